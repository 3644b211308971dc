"""SGD for weights, Adam for the coefficients of the hardware."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import SGD, Adam, Optimizer


class SGDWithAdam(Optimizer):
    """SGD with Nesterov momentum; groups that say their own learning rate, as ρ and ranges do, take Adam's steps.

    Weights that learn under read noise end better with SGD, but log ρ and log ranges, of which each layer has one, want
    steps that do not depend on how large the layer's energy is.

    Args:
        params: parameter groups, or parameters.
        lr: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.

    >>> weights, log_rho = torch.ones(2, requires_grad=True), torch.zeros(1, requires_grad=True)
    >>> optimizer = SGDWithAdam([{"params": [weights]}, {"params": [log_rho], "lr": 0.5}], lr=1.0, momentum=0.0)
    >>> (weights.sum() + 100 * log_rho.sum()).backward()
    >>> optimizer.step()
    >>> weights.tolist(), round(log_rho.item(), 3)
    ([0.0, 0.0], -0.5)
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 0.03, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        if not lr > 0 or not 0 <= momentum < 1:
            raise ValueError(f"lr is {lr}, momentum {momentum}; allowed: above 0, and 0 up to 1")
        groups = [group if isinstance(group, dict) else {"params": [group]} for group in params]
        own = [group for group in groups if "lr" in group]
        weights = [group for group in groups if "lr" not in group]
        self._parts: list[Optimizer] = [
            SGD(weights, lr, momentum, weight_decay=weight_decay, nesterov=momentum > 0),
            *([Adam(own)] if own else []),
        ]
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": lr})
        self._share()

    def _share(self) -> None:
        """The parts work on this optimizer's own groups and state: checkpoints and schedules see one optimizer."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state, first = self.param_groups[first:last], self.state, last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
