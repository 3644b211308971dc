"""Transfer learning with frozen layers: what a network makes of images, computed once, as images of another one."""

import copy
import hashlib
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from energytl.analog.convert import calibrate, convert
from energytl.analog.hardware import Hardware
from energytl.analog.inference import inference
from energytl.data import ImageData, tensor_bytes
from energytl.progress import Bar
from energytl.results import write_tensors
from energytl.source import made_by
from energytl.streams import Stream, seed_of
from energytl.training import load_tensors, load_weights


class Features(ImageData):
    """Features that a frozen network makes of images: what enters one of its layers, as images of 1×1 pixel.

    With positions, as before a convolution, their mean. They are computed once and kept in a file that its settings,
    the network's weights and code and the images name (of files: names, sizes and times). Training images that are
    cropped at random are cropped once: set `augment: false` of an ImageFolder. Where there is a GPU, it computes.

    Args:
        images: where the images come from; its batch_size and workers load them.
        network: the frozen network; random weights come from torch's global seed.
        layer: name of a module of it with in_features or in_channels, as classifier.1; it and those after it do not
            compute.
        weights: file with the network's state dict.
        hardware: what the frozen layers run on; null: they compute digitally.
        calibration_batches: batches of training images that set the input ranges of this hardware.
        cache: folder of the files.
        normalise: divide all features by the largest of the training images, so that after a ReLU these lie in 0..1;
            those of test images may be larger.
        batch_size: features in a batch, of training and of test.
        seed: of the read noise, of random crops and of the order of the training features.

    >>> from energytl.data import Digits
    >>> from energytl.models import lenet
    >>> Features(Digits(), lenet(), "fc2").shape
    (120, 1, 1)
    """

    def __init__(
        self,
        images: ImageData,
        network: nn.Module,
        layer: str,
        weights: str | None = None,
        hardware: Hardware | None = None,
        calibration_batches: int = 4,
        cache: str = "logs/features",
        normalise: bool = False,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        if calibration_batches < 1:
            raise ValueError(f"data.calibration_batches is {calibration_batches}; allowed: 1 or more")
        widths = {name: width for name, module in network.named_modules() if (width := _inputs(module))}
        if layer not in widths:
            known = ", ".join(list(widths)[-3:]) or "none here"
            raise ValueError(
                f"data.layer is {layer!r}; allowed: a module of data.network that has in_features or in_channels "
                f"(the last ones: {known})"
            )
        super().__init__((widths[layer], 1, 1), images.classes, batch_size, 0, seed)
        self.images, self.network, self.layer, self.weights = images, network, layer, weights
        self.hardware, self.calibration_batches = hardware, calibration_batches
        self.cache, self.normalise = Path(cache), normalise

    def load(self) -> tuple[Dataset[Any], Dataset[Any]]:  # noqa: D102
        missing = self.images.present()
        if missing:
            raise FileNotFoundError(re.sub(r"(^|--)data\.", r"\1data.images.", missing))
        try:
            load_weights(self.network, self.weights)
        except ValueError as error:
            raise ValueError(re.sub(r"(^|--)weights\b", r"\1data.weights", str(error))) from error
        file = self.cache / f"{self._digest()}.pt"
        self.cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                write_tensors(file, self._compute())
        sets = [TensorDataset(*tensors) for tensors in load_tensors(file, "features")]
        return sets[0], sets[-1]

    not_modelled = ("the frozen network that makes the features",)

    def _compute(self) -> list[tuple[Tensor, Tensor]]:
        """Features and labels of the training and of the test images, or of the only images there are."""
        images = self.images
        assert images.train_set is not None and images.test_set is not None
        network = copy.deepcopy(self.network).to("cuda" if torch.cuda.is_available() else "cpu")
        device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
        sets = [images.train_set] if images.train_set is images.test_set else [images.train_set, images.test_set]
        with torch.random.fork_rng(devices=[]):  # whether features are cached changes nothing that comes after
            torch.default_generator.manual_seed(seed_of(Stream.FEATURES, self.seed))
            try:
                if self.hardware is not None:
                    chip = seed_of(
                        Stream.FEATURES, self.hardware.chip
                    )  # not the cells of the network that learns from the features
                    network = convert(
                        network, replace(self.hardware, chip=chip), seed=seed_of(Stream.FEATURE_READS, self.seed)
                    )
                    batches = islice(images.train_dataloader(), self.calibration_batches)
                    calibrate(network, (x.to(device) for x, _ in batches))
                found = [self._features(network, device, data) for data in sets]
            except RuntimeError as error:
                reason = str(error).splitlines()[0]
                raise ValueError(f"data.network does not take images of shape {images.shape}: {reason}") from error
        largest = float(found[0][0].abs().max()) or 1.0
        return [(x / largest if self.normalise else x, labels) for x, labels in found]

    def _features(self, network: nn.Module, device: torch.device, images: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """Features (N, C, 1, 1) and labels (N,), in the images' order."""
        loader = DataLoader(images, self.images.batch_size, num_workers=self.images.workers)
        bar = Bar(loader, f"features: {len(images)} images", leave=False)  # type: ignore[arg-type]
        last = hasattr(self.network.get_submodule(self.layer), "in_features")  # a Linear's inputs are its last ones
        found, labels = [], []
        with inference(network):
            for x, label in bar:
                entering = _entering(network, self.layer, x.to(device)).float()
                if entering.dim() > 2:
                    entering = (entering.movedim(-1, 1) if last else entering).flatten(2).mean(2)
                found.append(entering.cpu())
                labels.append(label)
        return torch.cat(found)[:, :, None, None], torch.cat(labels)

    def _digest(self) -> str:
        """Of all that the features depend on."""
        network, kind = self.network, type(self.images)
        settings = (self.layer, self.hardware, self.calibration_batches, self.seed, self.normalise)
        modules = [_plain(module) for module in network.modules()]
        kinds = {kind, *map(type, network.modules()), *map(type, vars(self.hardware or Hardware()).values())}
        code = made_by(sorted(f"{one.__module__}.{one.__name__}" for one in kinds))
        text = repr((code, kind.__module__, kind.__qualname__, _plain(self.images), settings, network, modules))
        digest = hashlib.sha256(text.encode())
        digest.update(self.images.content.encode())
        for name, tensor in network.state_dict().items():
            digest.update(name.encode() + tensor_bytes(tensor))
        return digest.hexdigest()[:16]


class _Entered(Exception):
    """The forward pass has come to the layer; it ends there."""


def _entering(network: nn.Module, layer: str, images: Tensor) -> Tensor:
    """What enters the layer when the network gets these images."""

    def stop(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        raise _Entered(inputs[0])

    hook = network.get_submodule(layer).register_forward_pre_hook(stop)
    try:
        network(images)
    except _Entered as entered:
        x: Tensor = entered.args[0]
        return x
    finally:
        hook.remove()
    raise ValueError(f"data.layer {layer} is never called by data.network; name another one")


def _inputs(module: nn.Module) -> int:
    """Features or channels that a module takes; 0 if it does not say."""
    sizes = (getattr(module, name, 0) for name in ("in_features", "in_channels"))
    return next((size for size in sizes if isinstance(size, int) and size > 0), 0)


def _plain(thing: object) -> list[tuple[str, object]]:
    """Names and values of an object's attributes that are plain settings of what it makes."""
    named = [(name, value) for name, value in sorted(vars(thing).items()) if name[0] != "_" and name != "workers"]
    inner = [(name, value) for name, value in named if isinstance(value, ImageData)]
    wrapped: list[tuple[str, object]] = [(f"{name} {type(value).__qualname__}", _plain(value)) for name, value in inner]
    return wrapped + [
        (name, value) for name, value in named if isinstance(value, str | int | float | tuple | Path | None)
    ]
