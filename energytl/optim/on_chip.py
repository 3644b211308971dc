"""What all optimizers that train on the chip share: one process, counts of what the arrays did, checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from energytl.analog.layers import AnalogLayer, layers_of
from energytl.cost.training import Activity

Cells = dict[int, dict[str, Any]]
"""Arrays of layers, by the layers' numbers in their network."""


class OnChipOptimizer(torch.optim.Optimizer, ABC):
    """Trains weights of analog layers on their arrays; states go to checkpoints and back as they are.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        settings: of the groups; those under "on" (the device) and "by" (all else) must be a checkpoint's own, too.

    Raises:
        ValueError: if no parameter is a weight of an analog layer.
    """

    def __init__(self, params: Iterable[Any], lr: float, settings: dict[str, Any]) -> None:
        if not 0 <= lr < float("inf"):
            raise ValueError(f"lr is {lr}; allowed: 0 or more")
        super().__init__(params, {"lr": lr, **settings})
        if not any(layers_of(parameter) for group in self.param_groups for parameter in group["params"]):
            raise ValueError(
                "none of the parameters is the weight of an analog layer: convert the network (energytl.convert) "
                "before its parameters go to the optimizer, and leave some out of frozen"
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take up a group; weights of analog layers train on their arrays from now on."""
        super().add_param_group(param_group)
        for parameter in self.param_groups[-1]["params"]:
            layers = layers_of(parameter)
            if layers:
                self.take_up(parameter, layers)

    @abstractmethod
    def take_up(self, weight: Tensor, layers: list[AnalogLayer]) -> None:
        """Get ready to train a weight of these analog layers, or refuse it in one line."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # noqa: ANN401
        """Change every parameter once.

        Args:
            closure: called once, before; computes the loss and its gradients.

        Raises:
            ValueError: with several processes, whose arrays would drift apart, and for what `update` refuses.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            processes = torch.distributed.get_world_size()
            if processes > 1:
                raise ValueError(f"on-chip training runs in one process, not {processes}: set trainer.devices to 1")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                self.update(parameter, group, number)
                number += 1
        return loss

    @abstractmethod
    def update(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        """Change one parameter, the number-th, of a group."""

    @abstractmethod
    def activities(self) -> list[Activity]:
        """What the arrays did so far, for `energytl.cost.training`."""

    def cells(self) -> Cells:
        """The arrays as training left them, for another training to go on with."""
        return {}

    def go_on_with(self, cells: Cells) -> None:
        """Begin with the arrays of an earlier training instead of new ones.

        Raises:
            ValueError: if its arrays are of another kind.
        """
        if cells:
            raise ValueError(
                f"{type(self).__name__} cannot go on with the arrays of the stage before: write the weights onto its "
                "own (program), or give the stage a hardware of its own"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            ValueError: if it was trained on another device or with other settings.
        """
        for saved in state_dict["param_groups"]:
            for key, name in (("on", "device"), ("by", "settings")):
                if key in self.defaults and saved.get(key) != self.defaults[key]:
                    raise ValueError(
                        f"the checkpoint's {name} is {saved.get(key)}, this optimizer's {self.defaults[key]}: go on "
                        "with the same, or start anew"
                    )
        super().load_state_dict(state_dict)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        for index, parameter in zip(indices, parameters, strict=True):  # torch would cast states to the weight's type
            if index in state_dict["state"]:
                self.state[parameter] = _copied(state_dict["state"][index], parameter.device)

    @abstractmethod
    def __repr__(self) -> str:
        """The algorithm and its settings, on one line."""


def refuse_changes(layer: AnalogLayer) -> None:
    """Refuse a layer whose cells do not hold what is written to them: on chip, cells are left where pulses put them.

    Raises:
        ValueError: in one line.
    """
    if layer.hardware.changes:
        raise ValueError(
            f"layer {layer.index} has hardware.programming, stuck, drift or arrays.wire_ohm, which say what becomes of "
            "what was written once, but training on chip leaves cells where its pulses put them: leave them out"
        )


def _copied(saved: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Tensors in nested dictionaries, copied to a device, all else as it is."""
    if isinstance(saved, dict):
        return {name: _copied(value, device) for name, value in saved.items()}
    return saved.to(device, copy=True) if isinstance(saved, Tensor) else saved
