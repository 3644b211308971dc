"""State dicts in the files of other tools: read without running what is in them, and found under their names."""

import re
import struct
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Parts of names that torch's wrappers put in, at any place: of torch.compile, FSDP and checkpointing."""

NUMBERS = ("scalar", "dtype", "_reconstruct", "encode")
"""What numpy's numbers and arrays are made of in a file."""

State = dict[str, Tensor]


class Unread:
    """Stands for an object in a file whose class is not loaded: its state is dropped, its code never runs."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        """An empty one, whatever the file's object was made of."""
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop it."""


class _Dictionary(Unread):
    """The same as an OrderedDict, with what was the object's state as attributes; numbers of numpy are dropped."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        return super().__new__(cls) if cls.__name__ in NUMBERS else OrderedDict()


def read_tensors(path: Path) -> Any:  # noqa: ANN401
    """What a file of torch.save or of safetensors holds, on the CPU; objects of other classes are `Unread` or empty.

    Raises:
        Exception: whatever a damaged file provokes.
    """
    if _is_safetensors(path):
        if find_spec("safetensors") is None:
            raise ValueError("it is a file of safetensors, which is not installed: pip install safetensors")
        from safetensors.torch import load_file

        return load_file(path)
    try:
        unsafe = get_unsafe_globals_in_checkpoint(str(path))
    except ValueError as error:
        if "torchscript" in str(error):
            raise ValueError("it is a program of TorchScript; save its state_dict()") from error
        unsafe = []  # torch's old format: they show one by one
    for stand_in in (_Dictionary, Unread):  # torch fills only dictionaries, and gives only others any other state
        while True:
            try:
                with safe_globals([(type(name.rpartition(".")[2], (stand_in,), {}), name) for name in unsafe]):
                    return torch.load(path, map_location="cpu", weights_only=True)
            except UnpicklingError as error:
                refused = re.search(r"GLOBAL ([\w.]+) was not an allowed", str(error))
                name = "" if refused is None else refused[1] if "." in refused[1] else f"builtins.{refused[1]}"
                if not name or name in unsafe:
                    if not unsafe:
                        raise
                    break
                unsafe.append(name)
            except TypeError:
                break
    raise ValueError(f"it holds objects of {', '.join(unsafe)}, which are not loaded; save network.state_dict() alone")


def find_state(content: Any, names: Collection[str]) -> tuple[State, str, list[str]]:  # noqa: ANN401
    """The state dict in what a file holds that fits a network's names best.

    It may lie under any keys, and its names behind a common prefix, as those of DistributedDataParallel (`module.`),
    Lightning (`model.`) and torch.compile (`_orig_mod.`). Of several that fit alike the first is taken.

    Args:
        content: of the file.
        names: of the network's parameters and buffers.

    Returns:
        The state dict by the network's names, where it was found, and what fits alike or lies beside it.

    Raises:
        ValueError: if there are no tensors by names.

    >>> weight = torch.zeros(1)
    >>> find_state({"epoch": 3, "model": {"module.0.weight": weight}}, ["0.weight"])[1:]
    ("model, without its names' module.", [])
    """
    wanted = set(names)
    best: tuple[int, State, str] | None = None
    alike: list[str] = []
    for where, tensors in _dictionaries(content):
        cleaned = {_unwrapped(name): tensor for name, tensor in tensors.items()}
        for prefix in _prefixes(cleaned, wanted):
            state = {name[len(prefix) :]: tensor for name, tensor in cleaned.items() if name.startswith(prefix)}
            place = " ".join([*[where] * bool(where), *[f"without its names' {prefix}"] * bool(prefix)])
            place = place.replace(" without", ", without")
            fitting = len(wanted & set(state))
            if best is None or fitting > best[0]:
                best, alike = (fitting, state, place), []
                beside = [name for name in cleaned if not name.startswith(prefix)]
            elif fitting == best[0]:
                alike.append(place)
    if best is None:
        raise ValueError("no state dict")
    return best[1], best[2], alike or beside


def listed(content: Any) -> str:  # noqa: ANN401
    """What a file holds, in a few words."""
    if isinstance(content, OrderedDict) and "_modules" in vars(content):
        return "a whole module; save its state_dict()"
    if isinstance(content, Mapping):
        keys = [str(key) for key in content]
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        return f"a dictionary of {', '.join(keys[:4])}{more}" if keys else "an empty dictionary"
    return f"an object of type {type(content).__name__}"


def _dictionaries(content: Any, where: str = "") -> Iterator[tuple[str, State]]:  # noqa: ANN401
    """All dictionaries in the content that hold tensors by names, the outer first, with their keys."""
    if isinstance(content, OrderedDict) and "_modules" in vars(content):  # a whole module, its classes not loaded
        yield where, dict(_of_module(vars(content), ""))
        return
    if not isinstance(content, Mapping):
        return
    tensors = {name: tensor for name, tensor in content.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if tensors:
        yield where, tensors
    for key, value in content.items():
        yield from _dictionaries(value, f"{where}.{key}" if where else str(key))


def _of_module(attributes: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by name, from what a pickled module holds."""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in attributes.get(kind, {}).items():
            if isinstance(tensor, Tensor):
                yield prefix + name, tensor
    for name, child in attributes.get("_modules", {}).items():
        yield from _of_module(vars(child), f"{prefix}{name}.")


def _prefixes(state: Collection[str], wanted: Collection[str]) -> list[str]:
    """What stands before names of the network in the state's names; none first."""
    found = {""}
    for name in state:
        parts = name.split(".")
        found |= {".".join(parts[:cut]) + "." for cut in range(1, len(parts)) if ".".join(parts[cut:]) in wanted}
    return sorted(found, key=len)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as those of safetensors: the length of a header, then the header, JSON."""
    with path.open("rb") as file:
        first = file.read(9)
    return len(first) == 9 and first[8:] == b"{" and 2 <= struct.unpack("<Q", first[:8])[0] < path.stat().st_size
