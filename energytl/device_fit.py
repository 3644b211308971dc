"""From a CSV file of measured pulses to a device as a recipe takes it, and a figure of measured against fitted."""

from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from energytl.devices.fit import FITTED, DeviceFit, fit, respond
from energytl.devices.measured import read_csv
from energytl.devices.pulsed import pulse
from energytl.plots import pulse_response

EXAMPLES = 4
"""Cells drawn one by one in the figure."""

MOST_DRAWN = 2000

NEAR = 0.8
"""Share of the way to a bound from which on a run of pulses is thought to show the bound."""


def fit_device(data: Path, figure: Path | None = None) -> str:
    """Fit a device, draw it, and return it as YAML with its errors and the Python call as comments.

    Args:
        data: see `energytl.devices.measured.read_csv`.
        figure: where the PNG goes; default: beside the data, of its name.

    Raises:
        OSError: if the data are not there, or the figure cannot be written.
        ValueError: in one line, naming what is wrong with the data or the figure's folder.
    """
    measured, picture = read_csv(data), figure or data.with_suffix(".png")
    if not picture.parent.is_dir():
        raise ValueError(f"there is no folder {picture.parent} for the figure: make it, or give another with --out")
    found = fit(measured)
    _draw(found, picture)
    stuck = int((~found.moving).sum())
    unmoved = f"; {stuck} of them do not move" if stuck else ""
    return "\n".join(
        [
            f"# {data.name}: {len(measured.names)} devices, {measured.pulses:,} pulses{unmoved}",
            f"# state 0 is a conductance of {found.zero:.4g}, state 1 of {found.zero + found.half_range:.4g}",
            *_cautions(found),
            *_yaml(found),
            f"# {_call(found)}",
            f"# measured against fitted: {picture}",
        ]
    )


def _cautions(found: DeviceFit) -> list[str]:
    """What the pulses cannot tell: 1 − (1 − α)ⁿ is how far n equal pulses take the median cell to its bound at 1."""
    device, cautions = found.device, []
    for way, sign in (("up", 1), ("down", -1)):
        run = _longest_run(found.measured.directions[:, found.moving] == sign)
        gone = 1 - max(0.0, 1 - device.dw_min * (1 + sign * device.up_down)) ** run
        if gone < NEAR:
            cautions.append(
                f"# caution: the longest run of pulses {way} ({run}) takes the median device only {gone:.0%} of the "
                "way to its bound, so bounds and steps are uncertain: measure longer runs"
            )
    return cautions


def _longest_run(pulsed: Tensor) -> int:
    longest = run = torch.zeros(pulsed.shape[1], dtype=torch.int64)
    for now in pulsed:
        run = (run + 1) * now
        longest = torch.maximum(longest, run)
    return int(longest.max())


def _values(found: DeviceFit) -> dict[str, float | bool]:
    """The fields to write, numbers to four digits."""
    kept = [name for name in FITTED if name not in ("upper", "lower")]
    kept += ["stuck", "stuck_range"] if found.device.stuck else []
    numbers: dict[str, float | bool] = {name: float(f"{getattr(found.device, name):.4g}") for name in kept}
    return numbers | ({"log_normal": True} if found.device.log_normal else {})


def _yaml(found: DeviceFit) -> list[str]:
    kind = type(found.device)
    lines = [f"class_path: {kind.__module__}.{kind.__name__}", "init_args:"]
    for name, value in _values(found).items():
        entry = "  " + yaml.safe_dump({name: value}).strip()
        lines.append(f"{entry:<28}# ± {found.errors[name]:.2g}" if name in found.errors else entry)
    return lines


def _call(found: DeviceFit) -> str:
    values = ", ".join(f"{name}={value}" for name, value in _values(found).items())
    return f"{type(found.device).__name__}({values})"


def _draw(found: DeviceFit, path: Path) -> None:
    """Percentiles of as many new cells of the fitted device, and single cells beside their noise-free curves."""
    shown, directions = found.measured.shown[:, found.moving], found.measured.directions[:, found.moving]
    copies = -(-MOST_DRAWN // shown.shape[1])
    protocol = directions.repeat(1, copies)
    moving = replace(found.device, stuck=0.0)
    fitted = respond(moving, protocol, found.start.repeat(copies), torch.Generator().manual_seed(0))
    fitted = fitted.masked_fill(protocol == 0, float("nan"))
    g, curves = found.start, [found.start]
    for direction in directions[1:]:
        g = pulse(moving, g, direction, found.cells, None)
        curves.append(g)
    single = torch.stack(curves).masked_fill(directions == 0, float("nan"))
    chosen = torch.linspace(0, shown.shape[1] - 1, min(EXAMPLES, shown.shape[1])).round().int().tolist()
    names = [name for name, moves in zip(found.measured.names, found.moving.tolist(), strict=True) if moves]
    examples = {names[column]: (shown[:, column].tolist(), single[:, column].tolist()) for column in chosen}
    pulse_response(_percentiles(shown), _percentiles(fitted), examples).savefig(path, dpi=150)


def _percentiles(shown: Tensor) -> list[list[float]]:
    return torch.nanquantile(shown, torch.tensor([0.05, 0.5, 0.95], dtype=shown.dtype), 1).tolist()
