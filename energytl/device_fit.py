"""From a CSV file of measured pulses to a device as a recipe takes it, and a figure of measured against fitted."""

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import Tensor
from tqdm import tqdm

from energytl.devices.fit import FITTED, DeviceFit, fit, respond
from energytl.devices.measured import read_csv
from energytl.devices.pulsed import pulse
from energytl.plots import pulse_response

EXAMPLES = 4
"""Cells drawn one by one in the figure."""

MOST_DRAWN = 2000

NEAR = 0.8
"""Share of the way to a bound from which on a run of pulses is thought to show the bound."""

MISFIT = 1.5
"""By how many times what noise makes the fitted curves may miss the data without a word."""

PICTURES = (".png", ".pdf", ".svg")


def fit_device(data: Path, figure: Path | None = None) -> str:
    """Fit a device, draw it, and return it as YAML with its intervals and the Python call as comments.

    Args:
        data: see `energytl.devices.measured`.
        figure: where it goes, as PNG, PDF or SVG; default: a PNG beside the data, of their name.

    Raises:
        OSError: if the data are not there, or the figure cannot be written.
        ValueError: in one line, naming what is wrong with the data or the figure's place.
    """
    picture = figure or data.with_suffix(".png")
    measured = read_csv(data)
    _require_place(picture, data)
    with tqdm(
        desc=f"fitting {measured.pulses:,} pulses",
        bar_format="{desc}: {n_fmt} steps, {elapsed}{postfix}",
        disable=None,
        leave=False,
    ) as bar:

        def tell(said: str) -> None:
            bar.set_postfix_str(said, refresh=False)
            bar.update()

        found = fit(measured, tell)
    _draw(found, picture)
    return "\n".join(
        [
            *_told(found, data),
            *_cautions(found),
            *_yaml(found),
            f"# {_call(found)}",
            f"# measured against fitted: {picture}",
        ]
    )


def _require_place(picture: Path, data: Path) -> None:
    """Refuse a figure's place before the fit; leaves nothing there."""
    if picture.is_dir():
        raise ValueError(f"--out {picture} is a folder; give a file in it, e.g. {picture / (data.stem + '.png')}")
    if picture.suffix.lower() not in PICTURES:
        raise ValueError(f"--out {picture} ends with {picture.suffix!r}; allowed: {', '.join(PICTURES)}")
    if not picture.parent.is_dir():
        raise ValueError(f"there is no folder {picture.parent} for the figure: make it, or give another with --out")
    if picture.exists():
        if picture.samefile(data):
            raise ValueError(f"the figure would replace the data {data}: give another file with --out")
        picture.open("ab").close()
    else:
        tempfile.TemporaryFile(dir=picture.parent).close()


def _told(found: DeviceFit, data: Path) -> list[str]:
    """What was fitted, how well, and in which units."""
    stuck = int((~found.moving).sum())
    unmoved = f"; {stuck} of them do not move" if stuck else ""
    states = []
    for state, value, name in ((0, found.zero, "zero"), (1, found.zero + found.half_range, "one")):
        low, high = found.intervals[name]
        scale, unit = (1e6, " µS") if found.measured.siemens else (1.0, "")
        states.append(
            f"state {state} is a conductance of {value * scale:.4g}{unit} ({low * scale:.4g} to {high * scale:.4g})"
        )
    reached = "converged" if found.converged else "did NOT converge"
    return [
        f"# {data.name}: {len(found.measured.names)} devices, {found.measured.pulses:,} pulses{unmoved}",
        f"# {', '.join(states)}; numbers behind # are 95 % intervals",
        f"# the fit {reached} after {found.steps} steps; its curves miss the data by {found.missed / 2:.2%} of the "
        f"range (root mean square), its noise alone makes {found.missed_by_noise / 2:.2%}",
    ]


def _cautions(found: DeviceFit) -> list[str]:
    """What the pulses cannot tell: 1 − (1 − α)ⁿ is how far n equal pulses take the median cell to its bound at 1."""
    device, cautions = found.device, []
    if not found.converged:
        cautions.append(
            "# caution: the fit did not converge, so its values are preliminary: measure more pulses or devices"
        )
    if found.missed > MISFIT * found.missed_by_noise:
        cautions.append(
            f"# caution: the curves miss the data by {found.missed / found.missed_by_noise:.1f} times what noise "
            "makes: soft bounds describe these devices only roughly, see the figure"
        )
    if found.proportional:
        cautions.append(
            "# caution: the noise of a pulse is proportional to the step that it takes; that of the device below is "
            "not, so its cycle_noise holds at state 0"
        )
    if len(found.cells.up) == 1:
        cautions.append("# caution: one device does not tell how devices spread: spreads are left at 0")
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
    kept = [*FITTED, *(("stuck", "stuck_range") if found.device.stuck else ())]
    numbers: dict[str, float | bool] = {name: float(f"{getattr(found.device, name):.4g}") for name in kept}
    return numbers | ({"log_normal": True} if found.device.log_normal else {})


def _yaml(found: DeviceFit) -> list[str]:
    kind = type(found.device)
    lines = [f"class_path: {kind.__module__}.{kind.__name__}", "init_args:"]
    for name, value in _values(found).items():
        entry = "  " + yaml.safe_dump({name: value}).strip()
        if name in found.intervals:
            low, high = found.intervals[name]
            entry = f"{entry:<28}# {low:.3g} to {high:.3g}"
        lines.append(entry)
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
