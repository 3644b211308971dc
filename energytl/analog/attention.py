"""Attention that calls its projections as layers, so that arrays can take their places.

torch's `nn.MultiheadAttention` and torchvision's windows of Swin use the weights of their projections and call none.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torchvision.models.swin_transformer import (
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    shifted_window_attention,
)

from energytl.analog.layers import AnalogLinear

FUNCTIONAL = (nn.MultiheadAttention, ShiftedWindowAttention)
"""Modules that use the weights of their children without calling them: a swapped child would change nothing."""


def call_projections(module: nn.Module) -> None:
    """Have an attention module call its projections, in place, if its forward is torch's or torchvision's own.

    >>> attention = nn.MultiheadAttention(4, 2)
    >>> call_projections(attention)
    >>> [name for name, _ in attention.named_children()]
    ['in_proj', 'out_proj']
    """
    functional: Any = type(module)
    calling = _CALLING.get(functional.forward) if isinstance(module, FUNCTIONAL) else None
    if calling is not None and "forward" not in vars(module) and calling.can_call(module):
        module.__class__ = _calling(functional)
        assert isinstance(module, CallingAttention)
        module.add_projections()


def use_weights(module: nn.Module) -> None:
    """Undo `call_projections`.

    >>> attention = nn.MultiheadAttention(4, 2)
    >>> call_projections(attention)
    >>> use_weights(attention)
    >>> type(attention).__name__, [name for name, _ in attention.named_children()]
    ('MultiheadAttention', ['out_proj'])
    """
    if isinstance(module, CallingAttention):
        module.remove_projections()
        module.__class__ = module.functional  # type: ignore[assignment]


class CallingAttention(nn.Module):
    """Attention that calls its projections; `call_projections` makes it of one that does not.

    Attributes:
        functional: the class it was before.
    """

    functional: type[nn.Module]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles know the class before; this one is made at run time."""
        return _blank, (self.functional,), self.__getstate__()

    @staticmethod
    def can_call(module: nn.Module) -> bool:
        """Whether the projections are plain Linear layers with weights of their own."""
        raise NotImplementedError

    def add_projections(self) -> None:
        """Make layers of projections that are none."""

    def remove_projections(self) -> None:
        """Forget them."""


class CallingWindowAttention(CallingAttention, ShiftedWindowAttention):
    """Windows of Swin, v1 and v2, that call `qkv` and `proj`: the tokens of all windows of an image at once."""

    qkv: nn.Linear
    proj: nn.Linear
    get_relative_position_bias: Callable[[], Tensor]

    @staticmethod
    def can_call(module: nn.Module) -> bool:  # noqa: D102
        return _is_plain(module.qkv) and _is_plain(module.proj)

    def forward(self, x: Tensor) -> Tensor:
        """As torchvision's, of inputs (N, H, W, C)."""
        return shifted_window_attention(
            x,
            _WeightOf(self.qkv, len(x)),
            _WeightOf(self.proj, len(x)),
            self.get_relative_position_bias(),
            self.window_size,
            self.num_heads,
            shift_size=self.shift_size,
            attention_dropout=self.attention_dropout,
            dropout=self.dropout,
            qkv_bias=self.qkv.bias,
            proj_bias=self.proj.bias,
            logit_scale=getattr(self, "logit_scale", None),
            training=self.training,
        )


class _WeightOf:
    """Stands for a layer's weight in a call of `F.linear`, which then calls the layer; nothing else is done with it.

    Args:
        layer: of (N, K) or (N, …, K) inputs.
        images: that the inputs belong to, one after the other.
    """

    def __init__(self, layer: nn.Module, images: int) -> None:
        self.layer, self.images = layer, images

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Tensor:
        """Take part in `F.linear(x, self, bias)`."""
        if function is not F.linear or kwargs or len(args) != 3:
            return NotImplemented
        x, weight, bias = args
        layer, of_images = weight.layer, x.reshape(weight.images, -1, x.shape[-1])
        given = {} if bias is layer.bias else {"bias": bias}  # Swin v2 zeroes the keys' part
        y: Tensor = functional_call(layer, given, (of_images,)) if given else layer(of_images)
        return y.reshape(*x.shape[:-1], -1)


class CallingMultiheadAttention(CallingAttention, nn.MultiheadAttention):
    """nn.MultiheadAttention that calls `in_proj` and `out_proj` (or `q_proj`, `k_proj`, `v_proj` and `out_proj`).

    The weights of the first stay its own Parameters `in_proj_weight` and so on, which the layers share; their biases
    are added here. `in_proj` has the outputs of queries, keys and values, and is called once for each different
    input: of cross-attention, it is read for the queries' tokens and for those of the keys.
    """

    in_proj: nn.Linear
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    _qkv_same_embed_dim = property(lambda self: False)  # else nn.TransformerEncoderLayer uses all weights itself

    @staticmethod
    def can_call(module: nn.Module) -> bool:  # noqa: D102
        names = _projections(module)
        own = all(isinstance(module._parameters[f"{name}_weight"], nn.Parameter) for name in names)
        return bool(names) and own and _is_plain(module.out_proj)

    def add_projections(self) -> None:  # noqa: D102
        layers = {name: Projection(getattr(self, f"{name}_weight")) for name in _projections(self)}
        self._modules = {**layers, **self._modules}

    def remove_projections(self) -> None:  # noqa: D102
        for name in _projections(self):
            del self._modules[name]

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's."""
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError(
                "analog attention takes no nested tensors; pad them, and build nn.TransformerEncoder with "
                "enable_nested_tensor=False"
            )
        if is_causal and attn_mask is None:
            raise ValueError("attention with is_causal has no attn_mask; give it the causal mask")
        q, k, v = self._projected(query, key, value)
        images, tokens = k.shape[:2]
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (torch.cat([x, bias.expand(images, 1, -1)], 1) for x, bias in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        is_causal = is_causal and key_padding_mask is None and not need_weights  # a hint that torch uses only so
        mask = None if is_causal else _added_to_scores(attn_mask, key_padding_mask, q.dtype, images)
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[1] - tokens))
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(2, 3)
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, -1), dropout)
            attended = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        y = self.out_proj(attended.transpose(1, 2).flatten(2))
        if query.dim() == 2:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return y if self.batch_first else y.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values, each (N, tokens, E)."""
        if self.in_proj_weight is None:
            layers = (self.q_proj, self.k_proj, self.v_proj)
            parts = [layer(self._images_first(x)) for layer, x in zip(layers, (query, key, value), strict=True)]
        else:
            of_query = self.in_proj(self._images_first(query))
            of_key = of_query if key is query else self.in_proj(self._images_first(key))
            if value is query or value is key:
                of_value = of_query if value is query else of_key
            else:
                of_value = self.in_proj(self._images_first(value))
            parts = [y.chunk(3, -1)[part] for part, y in enumerate((of_query, of_key, of_value))]
        if self.in_proj_bias is None:
            return parts
        return [part + bias for part, bias in zip(parts, self.in_proj_bias.chunk(3), strict=True)]

    def _images_first(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _share(self) -> None:
        for name in _projections(self):
            self._modules[name].weight = getattr(self, f"{name}_weight")  # type: ignore[union-attr]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "CallingMultiheadAttention":
        super()._apply(fn, recurse)
        self._share()
        return self

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401
        super()._load_from_state_dict(*args)
        self._share()


class Projection(nn.Linear):
    """A projection whose weight is a Parameter of the attention that calls it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight


class AnalogProjection(AnalogLinear):
    """A `Projection` on an analog array: its state dict has what is added in the metadata, and no keys."""

    digital_class: type[nn.Module] = Projection

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.pop(prefix + "weight")

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:  # noqa: ANN401
        super()._load_from_state_dict({**state_dict, prefix + "weight": self.weight}, prefix, *args)


_CALLING: dict[Any, type[CallingAttention]] = {
    nn.MultiheadAttention.forward: CallingMultiheadAttention,
    ShiftedWindowAttention.forward: CallingWindowAttention,
    ShiftedWindowAttentionV2.forward: CallingWindowAttention,
}
"""By the forward that they replace."""


@cache
def _calling(functional: Any) -> type[CallingAttention]:  # noqa: ANN401
    """A subclass that calls the projections, and keeps what else the class has."""
    calling = _CALLING[functional.forward]
    return type(f"Calling{functional.__name__}", (calling, functional), {"functional": functional})


def _blank(functional: Any) -> nn.Module:  # noqa: ANN401
    kind = _calling(functional)
    return kind.__new__(kind)


def _added_to_scores(
    attention: Tensor | None, padding: Tensor | None, dtype: torch.dtype, images: int
) -> Tensor | None:
    """Both masks as one that is added to the scores; it broadcasts to (N, heads, queries, keys)."""
    masks = []
    if attention is not None:
        masks.append(attention.unflatten(0, (images, -1)) if attention.dim() == 3 else attention[None, None])
    if padding is not None:
        masks.append(padding.reshape(images, 1, 1, -1))
    added = [
        torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf) if mask.dtype == torch.bool else mask.to(dtype)
        for mask in masks
    ]
    return sum(added[1:], added[0]) if added else None


def _is_plain(layer: Any) -> bool:  # noqa: ANN401
    """Whether the layer is a Linear, and calling it does what using its weight does."""
    own = isinstance(layer, nn.Linear) and isinstance(layer._parameters.get("weight"), nn.Parameter)
    return own and type(layer).forward is nn.Linear.forward and "forward" not in vars(layer)


def _projections(attention: nn.Module) -> list[str]:
    """Names of the input projections that this nn.MultiheadAttention has weights of."""
    names = ("in_proj", "q_proj", "k_proj", "v_proj")
    return [name for name in names if attention._parameters.get(f"{name}_weight") is not None]
