"""Networks: torchvision's by name, the small-image ones of the papers, and two that train in seconds.

Each is a function that returns a module, so a recipe names it by its class path, as it would a user's own.
"""

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F


def mlp(features: int = 784, hidden: tuple[int, ...] = (256, 128), classes: int = 10) -> nn.Module:
    """A fully connected network with ReLU; images are flattened."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def lenet(channels: int = 1, classes: int = 10) -> nn.Module:
    """LeNet-5's sizes with ReLU and max pooling, for 28×28 images."""
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, 6, 5, padding=2),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(6, 16, 5),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(400, 120),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(120, 84),
        "relu4": nn.ReLU(),
        "fc3": nn.Linear(84, classes),
    }
    return nn.Sequential(OrderedDict(layers))


def conv_fc(kernels: int = 10, channels: int = 1, classes: int = 10) -> nn.Module:
    """One 5×5 convolution, pooling, ReLU and one fully connected layer, for 28×28 images (Dong 2018, §III A)."""
    return nn.Sequential(
        nn.Conv2d(channels, kernels, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(kernels * 144, classes)
    )


def conv3_fc(widths: tuple[int, int, int] = (16, 32, 64), channels: int = 3, classes: int = 10) -> nn.Module:
    """Three 3×3 convolutions, each with ReLU and pooling, and one fully connected layer, for 32×32 images.

    The layers of Athena 2024, table 1; the widths are ours.
    """
    layers: dict[str, nn.Module] = {}
    for number, width in enumerate(widths, 1):
        layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1)
        layers |= {f"relu{number}": nn.ReLU(), f"pool{number}": nn.MaxPool2d(2)}
        channels = width
    layers |= {"flatten": nn.Flatten(), "fc": nn.Linear(16 * channels, classes)}
    return nn.Sequential(OrderedDict(layers))


class SideBySide(nn.Module):
    """Many independent networks of one layer without bias, as groups of one convolution; for data with several runs.

    Args:
        features: inputs of each.
        classes: outputs of each.
        runs: how many.

    >>> import torch
    >>> SideBySide(features=8, classes=2, runs=50)(torch.zeros(3, 400, 1, 1)).shape
    torch.Size([3, 2, 50])
    """

    def __init__(self, features: int = 8, classes: int = 2, runs: int = 50) -> None:
        super().__init__()
        self.runs = runs
        self.layer = nn.Conv2d(runs * features, runs * classes, 1, groups=runs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, runs·features, 1, 1) → logits (N, classes, runs), or (N, classes) of a single run."""
        logits: Tensor = self.layer(x)
        logits = logits.view(len(x), self.runs, -1).mT
        return logits if self.runs > 1 else logits.squeeze(-1)


def torchvision_model(name: str, weights: str | None = None, classes: int | None = None) -> nn.Module:
    """A classifier of torchvision.

    Args:
        name: torchvision's name, as resnet18.
        weights: None for random ones, DEFAULT or the name of a published set, which is downloaded.
        classes: number of classes, if not those of ImageNet; layers whose sizes depend on it, as the last one, then get
            random weights.

    Raises:
        ValueError: for a name or a set of weights that torchvision does not have.
    """
    options = {} if classes is None else {"num_classes": classes}
    try:
        if weights is None or classes is None:
            network: nn.Module = torchvision.models.get_model(name, weights=weights, **options)
            return network
        published = torchvision.models.get_model(name, weights=weights).state_dict()
        network = torchvision.models.get_model(name, **options)
    except (KeyError, ValueError) as error:
        raise ValueError(f"network.name {name} with weights {weights}: torchvision says {error}") from error
    network.load_state_dict(what_fits(network, published), strict=False)
    return network


def what_fits(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters and buffers of a state dict that the network has, too, by name and shape."""
    own = network.state_dict()
    return {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}


class _CifarResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016: 16-32-64 channels, shortcuts without parameters (option A)."""

    def __init__(self, blocks: int, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[_CifarBlock(16, 16) for _ in range(blocks)])
        self.layer2 = nn.Sequential(_CifarBlock(16, 32), *[_CifarBlock(32, 32) for _ in range(blocks - 1)])
        self.layer3 = nn.Sequential(_CifarBlock(32, 64), *[_CifarBlock(64, 64) for _ in range(blocks - 1)])
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, 32, 32) → logits."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


class _CifarBlock(nn.Module):
    """Two 3×3 convolutions; where the width doubles, the first has stride 2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=outputs // inputs, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.widening = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Residual branch plus shortcut."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.widening:
            every_other = F.avg_pool2d(x, 1, 2)  # a slice's gradient would not keep channels last
            x = F.pad(every_other, (0, 0, 0, 0, self.widening // 2, self.widening // 2))
        return F.relu(x + y)


def resnet20(classes: int = 10) -> nn.Module:
    """The CIFAR ResNet with 3 blocks a stage; takes the state dicts of akamaster/pytorch_resnet_cifar10."""
    return _CifarResNet(3, classes)


def resnet32(classes: int = 10) -> nn.Module:
    """The CIFAR ResNet with 5 blocks a stage."""
    return _CifarResNet(5, classes)


def resnet44(classes: int = 10) -> nn.Module:
    """The CIFAR ResNet with 7 blocks a stage."""
    return _CifarResNet(7, classes)


def resnet56(classes: int = 10) -> nn.Module:
    """The CIFAR ResNet with 9 blocks a stage."""
    return _CifarResNet(9, classes)


def vgg16_cifar(classes: int = 10) -> nn.Module:
    """VGG-16 for 32×32 images with batch norm and one fully connected layer, as Wang 2021 counts it."""
    features = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512, classes))


def resnet18_cifar(classes: int = 10) -> nn.Module:
    """Torchvision's ResNet-18 with a stem for 32×32 images: 3×3, stride 1, no pooling."""
    network = torchvision.models.resnet18(num_classes=classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def mobilenet_cifar(classes: int = 10) -> nn.Module:
    """MobileNet v1 for 32×32 images, as Wang 2021 counts it: stem of stride 1, 13 separable convolutions."""
    widths = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
    strides = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
    block: Callable[..., nn.Module] = partial(torchvision.ops.Conv2dNormActivation, activation_layer=nn.ReLU)
    layers, inputs = [block(3, 32, 3)], 32
    for outputs, stride in zip(widths, strides, strict=True):
        layers += [block(inputs, inputs, 3, stride, groups=inputs), block(inputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, classes))


def swin_cifar(width: int = 64, depths: tuple[int, ...] = (2, 2), classes: int = 10) -> nn.Module:
    """A small Swin transformer for 32×32 images: torchvision's class, patches of 4×4, windows of 4×4, heads of 32.

    Swin-T (`torchvision_model("swin_t")`) is the same with width 96, depths 2, 2, 6, 2 and windows of 7×7.

    Args:
        width: channels of the first stage; each further one has twice as many and a quarter of the tokens.
        depths: blocks of each stage.
        classes: number of classes.
    """
    heads = [width * 2**stage // 32 for stage in range(len(depths))]
    return torchvision.models.SwinTransformer([4, 4], width, list(depths), heads, [4, 4], num_classes=classes)
