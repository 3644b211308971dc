"""What stays digital in a converted network, by name and with the reason: products of weights and nothing else."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn.quantized.dynamic.modules import rnn as quantised_rnn
from torch.ao.nn.quantized.modules.utils import WeightedQuantizedModule
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.models import maxvit, swin_transformer, vision_transformer

from energytl.analog.attention import CallingAttention
from energytl.analog.copies import sharing_copy
from energytl.analog.inference import inference
from energytl.analog.layers import ADDED, AnalogConv2d, AnalogLayer, AnalogLinear
from energytl.analog.read import Noiseless

ANALOG_OF: dict[type[nn.Module], type[AnalogLayer]] = {nn.Linear: AnalogLinear, nn.Conv2d: AnalogConv2d}

PRODUCTS = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, _ConvNd)
"""torch's modules whose parameters of two dimensions or more are all weights."""

QUANTISED = (WeightedQuantizedModule, quantised_rnn.RNNBase, quantised_rnn.RNNCellBase)
"""torch's modules whose weights are packed and no Parameters."""

TABLES = (
    vision_transformer.Encoder,
    swin_transformer.ShiftedWindowAttention,
    maxvit.RelativePositionalMultiHeadAttention,
)
"""torchvision's modules whose own matrices are position tables, which are added."""

COMPUTED = (  # the hook, its attribute that names the tensor, what it does
    (BasePruningMethod, "_tensor_name", "pruned by a mask in every call; torch.nn.utils.prune.remove makes it plain"),
    (WeightNorm, "name", "computed by weight_norm in every call; torch.nn.utils.remove_weight_norm makes it plain"),
    (SpectralNorm, "name", "computed by spectral_norm in every call; torch.nn.utils.remove_spectral_norm makes it so"),
)

ADDING = {
    "add",
    "sub",
    "rsub",
    "cat",
    "stack",
    "where",
    "copy",
    "masked_fill",
    "masked_scatter",
    "index",
    "index_put",
    "_unsafe_index",
    "_unsafe_index_put",
    "index_select",
    "gather",
    "scatter",
    "scatter_add",
    "take",
    "embedding",
    "_embedding_bag",
    "_embedding_bag_forward_only",
    "maximum",
    "minimum",
    "eq",
    "ne",
    "lt",
    "gt",
    "le",
    "ge",
    "native_layer_norm",
    "native_group_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_fused_rms_norm",
    "slice_scatter",
    "select_scatter",
    "expand_as",
    "view_as",
    "type_as",
}
"""torch's operations that add, look up, choose or normalise, by name."""

WITH_SUMMAND = ("addmm", "baddbmm", "addbmm", "addmv")
"""Products that add their first argument."""

MULTIPLIED = "multiplied with inputs, but not by a Linear or Conv2d that is called"


def why_digital(analog: nn.Module, *example: Any) -> dict[str, str]:  # noqa: ANN401
    """Names of the weight matrices that are not on analog arrays, each with the reason; {} is the goal.

    Args:
        analog: a converted network.
        example: what the network is called with. It shows what is done with Parameters that no layer of torch holds;
            without it those count as weights if two or more of their dimensions are larger than one.

    >>> from energytl import convert
    >>> why_digital(convert(nn.Sequential(nn.Linear(4, 2), nn.Conv1d(2, 2, 3)), strict=False))
    {'1.weight': 'Conv1d is no Linear or Conv2d'}
    """
    used = _multiplied(analog, example) if example else None
    found: dict[str, str] = {}
    for prefix, module in analog.named_modules():
        of = f"{prefix}." if prefix else ""
        reasons = dict(_products(module)) | _unseen(analog, module)
        for name, parameter in module._parameters.items():
            if used is not None and parameter in used:
                reasons.setdefault(name, MULTIPLIED)
            elif used is None and parameter is not None and _is_matrix(parameter) and not _is_known(module):
                reasons[name] = (
                    f"a Parameter of {type(module).__name__}; an example input shows whether it is multiplied"
                )
        found |= {of + name: reason for name, reason in reasons.items()}
    return found


def left_digital(analog: nn.Module, *example: Any) -> list[str]:  # noqa: ANN401
    """Names of the weight matrices that are not on analog arrays; [] is the goal.

    A layer whose forward is never called, as its weight is used directly, shows only when the network runs: give an
    example. `estimate` counts no reads of it, and recipes refuse it.

    Args:
        analog: a converted network.
        example: what the network is called with, see `why_digital`.

    >>> from energytl import convert
    >>> left_digital(convert(nn.Sequential(nn.Linear(4, 2), nn.Conv1d(2, 2, 3)), strict=False))
    ['1.weight']
    """
    return list(why_digital(analog, *example))


def grouped(reasons: dict[str, str]) -> str:
    """Names by their reasons, on one line.

    >>> grouped({"a": "thin", "b": "thin", "c": "thick"})
    'a, b (thin); c (thick)'
    """
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(those)} ({reason})" for reason, those in names.items())


def refusal(layer: nn.Module, digital: type[nn.Module], kind: type[AnalogLayer]) -> str | None:
    """Why a layer of torch's class `digital`, or of a subclass, cannot be of that analog kind; None if it can.

    >>> layer = nn.Linear(4, 2)
    >>> layer.forward = layer.forward
    >>> refusal(layer, nn.Linear, AnalogLinear)
    'its forward was replaced on the layer'
    """
    own, weight = type(layer), layer._parameters.get("weight")
    for name, reason in computed_tensors(layer).items():
        return f"its {name} is {reason}"
    if "forward" in vars(layer):
        return "its forward was replaced on the layer"
    if own.forward is not digital.forward:
        return f"{own.__name__} has a forward of its own"
    if weight is None:
        return "its weight is no Parameter"
    if type(weight.data) is not Tensor or not weight.is_floating_point():
        return f"its weight is a {type(weight.data).__name__} of {weight.dtype}, not of real numbers"
    needed = {name for base in kind.__mro__ if issubclass(base, AnalogLayer) for name in vars(base)} | set(ADDED)
    theirs = {name for base in own.__mro__ if base not in digital.__mro__ for name in vars(base)}
    theirs |= {*vars(layer), *layer._parameters, *layer._buffers, *layer._modules}
    for name in sorted((needed & theirs) - set(dir(digital))):
        return f"its attribute {name} has a name that analog layers need"
    return None


def computed_tensors(module: nn.Module) -> dict[str, str]:
    """Names of a module's tensors that are computed from others whenever they are used, and how."""
    found = {
        getattr(hook, attribute): reason
        for hook in module._forward_pre_hooks.values()
        for kind, attribute, reason in COMPUTED
        if isinstance(hook, kind)
    }
    if parametrize.is_parametrized(module):
        chains: Any = module.parametrizations
        for name, steps in chains.items():
            kinds = ", ".join(type(step).__name__.lstrip("_") for step in steps)
            found[name] = f"computed by {kinds}; torch.nn.utils.parametrize.remove_parametrizations makes it plain"
    return found


def _products(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Weights of a module that are known to be multiplied with inputs, and why they are digital."""
    if isinstance(module, AnalogLayer | CallingAttention):
        return
    if isinstance(module, QUANTISED):
        yield "weight", "quantised by torch.ao; convert the network before"
    computed = computed_tensors(module)
    for name, reason in computed.items():
        if any(_is_matrix(part) for part in _parts(module, name)):
            yield name, reason
    parts = tuple(f"{name}_" for name in computed)
    for name, parameter in module._parameters.items():
        if parameter is None or name.startswith(parts) or not isinstance(module, (*PRODUCTS, nn.MultiheadAttention)):
            continue
        own = isinstance(module, PRODUCTS) and name.startswith("weight") and parameter.dim() > 1  # however thin
        if own or _is_matrix(parameter):
            yield name, _why(module)


def _why(module: nn.Module) -> str:
    kind = type(module).__name__
    for digital, analog in ANALOG_OF.items():
        if isinstance(module, digital):
            return refusal(module, digital, analog) or "used by an attention that has ways of its own, not called"
    if isinstance(module, nn.MultiheadAttention):
        return f"{kind} has ways of its own"
    return f"{kind} is no Linear or Conv2d"


def _parts(module: nn.Module, name: str) -> list[Tensor]:
    """What a computed tensor is computed from, or itself as it was last computed."""
    if parametrize.is_parametrized(module, name):
        chains: Any = module.parametrizations
        return list(chains[name].parameters(recurse=False))
    return [vars(module)[name]]


def _is_matrix(tensor: Tensor) -> bool:
    return sum(size > 1 for size in tensor.shape) > 1


def _is_known(module: nn.Module) -> bool:
    """Whether its class says which of its own Parameters are multiplied with inputs."""
    if isinstance(module, torch.jit.ScriptModule):  # without Parameters, or it had been refused
        return True
    forward = type(module).forward
    of_torch = forward.__module__.startswith("torch.nn.modules.") and forward is not nn.Module.forward
    known = isinstance(module, AnalogLayer | CallingAttention | parametrize.ParametrizationList)
    return of_torch or known or isinstance(module, PRODUCTS + TABLES)


def _unseen(network: nn.Module, module: nn.Module) -> dict[str, str]:
    """Matrices of modules that one of the network's holds in a list, tuple or dictionary, where torch sees none."""
    held = [(name, value) for name, value in vars(module).items() if not name.startswith("_")]
    found: dict[str, str] = {}
    seen: set[nn.Module] | None = None
    while held:
        name, value = held.pop()
        if isinstance(value, nn.Module):
            seen = set(network.modules()) if seen is None else seen
            if value not in seen:
                reason = "in a list or dictionary of Python's; nn.ModuleList or nn.ModuleDict shows it to torch"
                found |= {f"{name}.{own}": reason for own, p in value.named_parameters() if _is_matrix(p)}
        elif isinstance(value, dict):
            held += [(f"{name}.{key}", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            held += [(f"{name}.{number}", item) for number, item in enumerate(value)]
    return found


def _multiplied(analog: nn.Module, example: tuple[Any, ...]) -> set[Tensor]:
    """Parameters of matrices that the network, called with the example, multiplies with what comes from it.

    What analog layers do with their own is left out.
    """
    probe = sharing_copy(analog)
    uses = _Uses({parameter for parameter in probe.parameters() if _is_matrix(parameter)}, example)
    for layer in probe.modules():
        if isinstance(layer, AnalogLayer):
            layer.configure(computation=Noiseless(), converter=None)
            layer.register_forward_pre_hook(uses.enter)
            layer.register_forward_hook(uses.leave, always_call=True)
    with inference(probe), uses:
        probe(*example)
    return uses.multiplied


class _Uses(TorchDispatchMode):
    """Follows what comes from an example and what follows from Parameters alone, and notes where both are multiplied.

    Args:
        parameters: to be followed.
        example: nested tensors.

    Attributes:
        multiplied: those of the parameters.
    """

    def __init__(self, parameters: set[Tensor], example: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.multiplied: set[Tensor] = set()
        self._followed: Any = WeakIdKeyDictionary({parameter: {parameter} for parameter in parameters})
        self._of_example: Any = WeakIdKeyDictionary()
        self._note(example)
        self._inside = 0

    def enter(self, layer: nn.Module, inputs: Any) -> None:  # noqa: ANN401
        """Hook before an analog layer, whose own products do not count."""
        self._inside += 1

    def leave(self, layer: nn.Module, inputs: Any, outputs: Any) -> None:  # noqa: ANN401
        """Hook after it."""
        self._inside -= 1
        self._note(outputs)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """One operation of torch."""
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if self._inside:
            return results
        tensors = _tensors((args, kwargs))
        if any(tensor in self._of_example for tensor in tensors):
            self._note(results)
            name = func.overloadpacket.__name__.rstrip("_")
            if name not in ADDING:
                factors = args[1:] if name in WITH_SUMMAND else args[:3] if "attention" in name else (args, kwargs)
                self.multiplied.update(*(self._followed.get(tensor, ()) for tensor in _tensors(factors)))
        else:
            sources = set().union(*(self._followed.get(tensor, ()) for tensor in tensors))
            for result in _tensors(results) if sources else ():
                self._followed[result] = sources
        return results

    def _note(self, results: Any) -> None:  # noqa: ANN401
        for tensor in _tensors(results):
            self._of_example[tensor] = True


def _tensors(nested: Any) -> list[Tensor]:  # noqa: ANN401
    return [leaf for leaf in tree_leaves(nested) if isinstance(leaf, Tensor)]
