"""Networks that others write: small ones of pytorch-cifar's kinds, and one of each of thirty families of timm.

They run converted, the way back is exact bit for bit, and what stays digital is named and is right.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from energytl import Hardware, Noiseless, analog_layers, convert, left_digital, to_digital
from energytl.analog.layers import AnalogLayer

pytestmark = pytest.mark.usefixtures("one_thread")


def norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False)


def unit(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(conv(i, o, k, stride, groups), norm_relu(o))


def squeeze(channels: int, to: int) -> nn.Sequential:
    """Scales of squeeze and excitation."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, to, 1), nn.ReLU(), nn.Conv2d(to, channels, 1), nn.Sigmoid()
    )


class Net(nn.Module):
    """Stem, blocks, pooling, and a flattening by view, as pytorch-cifar's networks do."""

    def __init__(self, *blocks: nn.Module, width: int = 8, last: int = 16):
        super().__init__()
        self.stem, self.blocks, self.linear = unit(3, width), nn.Sequential(*blocks), nn.Linear(last, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1)
        return self.linear(x.view(x.size(0), -1))


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(16, 12), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.view(x.size(0), -1))))


class Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module | None = None):
        super().__init__()
        self.body, self.shortcut = body, shortcut or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class PreAct(nn.Module):
    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.norm, self.conv1, self.conv2 = norm_relu(i), conv(i, o, 3, stride), nn.Sequential(norm_relu(o), conv(o, o))
        self.shortcut = conv(i, o, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return self.conv2(self.conv1(y)) + self.shortcut(y)


class Excited(nn.Module):
    def __init__(self, body: nn.Module, channels: int):
        super().__init__()
        self.body, self.scale = body, squeeze(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y * self.scale(y)


class Dense(nn.Module):
    def __init__(self, i: int, growth: int):
        super().__init__()
        self.body = nn.Sequential(norm_relu(i), conv(i, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.body(x), x], 1)


class Branches(nn.Module):
    """Several views of the inputs, one beside the other: GoogLeNet, PNASNet's cells, ShuffleNet v2."""

    def __init__(self, *branches: nn.Module, add: bool = False):
        super().__init__()
        self.branches, self.add = nn.ModuleList(branches), add

    def forward(self, x: Tensor) -> Tensor:
        outputs = [branch(x) for branch in self.branches]
        return F.relu(sum(outputs[1:], outputs[0])) if self.add else torch.cat(outputs, 1)


class Shuffle(nn.Module):
    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.size()
        return x.view(n, self.groups, c // self.groups, h, w).permute(0, 2, 1, 3, 4).reshape(n, c, h, w)


class HalfOf(nn.Module):
    """ShuffleNet v2's block: half of the channels goes by."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.half, self.shuffle = half, Shuffle(2)
        self.body = nn.Sequential(unit(half, half, 1), conv(half, half, 3, 1, half), unit(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, y = x[:, : self.half, :, :], x[:, self.half :, :, :]
        return self.shuffle(torch.cat([x, self.body(y)], 1))


class DualPath(nn.Module):
    def __init__(self, i: int, o: int, dense: int):
        super().__init__()
        self.o, self.body = o, nn.Sequential(unit(i, 8, 1), unit(8, 8, 3, 1, 4), conv(8, o + dense, 1))
        self.shortcut = conv(i, o + dense, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, y, d = self.shortcut(x), self.body(x), self.o
        return F.relu(torch.cat([x[:, :d] + y[:, :d], x[:, d:], y[:, d:]], 1))


class Tree(nn.Module):
    """DLA: two blocks and a root that takes both."""

    def __init__(self, i: int, o: int):
        super().__init__()
        self.left, self.right, self.root = unit(i, o), unit(o, o), unit(2 * o, o, 1)

    def forward(self, x: Tensor) -> Tensor:
        left = self.left(x)
        return self.root(torch.cat([left, self.right(left)], 1))


def pool() -> nn.Module:
    return nn.MaxPool2d(2)


def inverted(i: int, o: int, k: int = 3) -> nn.Sequential:
    return nn.Sequential(unit(i, 2 * i, 1), unit(2 * i, 2 * i, k, 1, 2 * i), conv(2 * i, o, 1), nn.BatchNorm2d(o))


CIFAR = {
    "LeNet": LeNet,
    "VGG": lambda: Net(pool(), unit(8, 16), pool(), unit(16, 16)),
    "PreActResNet": lambda: Net(PreAct(8, 16, 2), PreAct(16, 16, 1)),
    "ResNeXt": lambda: Net(Residual(nn.Sequential(unit(8, 8, 3, 2, 2), conv(8, 16, 1)), conv(8, 16, 1, 2))),
    "SENet": lambda: Net(Residual(Excited(nn.Sequential(unit(8, 16), conv(16, 16)), 16), conv(8, 16, 1))),
    "DenseNet": lambda: Net(Dense(8, 4), Dense(12, 4), norm_relu(16), conv(16, 16, 1), nn.AvgPool2d(2)),
    "GoogLeNet": lambda: Net(
        Branches(unit(8, 4, 1), unit(8, 4), unit(8, 4, 5), nn.Sequential(nn.MaxPool2d(3, 1, 1), unit(8, 4, 1)))
    ),
    "MobileNet": lambda: Net(unit(8, 8, 3, 2, 8), unit(8, 16, 1)),
    "MobileNetV2": lambda: Net(Residual(inverted(8, 8)), inverted(8, 16)),
    "ShuffleNet": lambda: Net(unit(8, 8, 1, 1, 2), Shuffle(2), conv(8, 8, 3, 2, 8), unit(8, 16, 1, 1, 2)),
    "ShuffleNetV2": lambda: Net(HalfOf(8), HalfOf(8), unit(8, 16, 1)),
    "EfficientNet": lambda: Net(Excited(inverted(8, 16, 5), 16), nn.SiLU()),
    "RegNet": lambda: Net(Residual(Excited(nn.Sequential(unit(8, 16, 3, 2, 4)), 16), conv(8, 16, 1, 2))),
    "DPN": lambda: Net(DualPath(8, 8, 4)),
    "DLA": lambda: Net(Tree(8, 16), pool(), Tree(16, 16)),
    "PNASNet": lambda: Net(Branches(unit(8, 16, 7, 2, 8), nn.Sequential(pool(), conv(8, 16, 1)), add=True)),
}


def check(network: nn.Module, x: Tensor, left: set[str] = frozenset()) -> None:
    """Convert, run, go back; `left` are the names of what has to stay digital."""
    before = {name: type(module) for name, module in network.named_modules()}
    analog = convert(network.eval(), Hardware(computation=Noiseless()), strict=False, seed=0)
    assert set(left_digital(analog, x)) == left
    back = to_digital(analog)
    assert {name: type(module) for name, module in back.named_modules()} == before
    assert list(back.state_dict()) == list(network.state_dict()) == list(analog.state_dict())
    with torch.no_grad():
        expected = network(x)
        found = analog(x)
        assert torch.equal(back(x), expected)
    assert found.shape == expected.shape
    assert found.stride() == expected.stride()
    assert bool(found.isfinite().all())
    plain = [m for m in analog.modules() if isinstance(m, nn.Linear | nn.Conv2d) and not isinstance(m, AnalogLayer)]
    assert bool(plain) <= bool(left)
    unread = {f"{name}.weight" for name, layer in analog_layers(analog).items() if layer.positions == 0}
    assert unread <= left


@pytest.mark.parametrize("name", CIFAR)
def test_networks_of_pytorch_cifars_kinds(name):
    torch.manual_seed(0)
    check(
        CIFAR[name](),
        torch.rand(2, 3, 32 if name in ("DPN",) else 16, 32 if name in ("DPN",) else 16)
        if name != "LeNet"
        else torch.rand(2, 3, 16, 16),
    )


SMALL = {"img_size": 64, "embed_dim": 24, "depths": (1, 1, 1, 1)}
TIMM: dict[str, tuple[int, dict[str, Any]]] = {  # size of its images, settings
    "resnet10t": (64, {}),
    "resnetv2_18": (64, {}),
    "regnetx_002": (64, {}),
    "resnest14d": (64, {}),
    "efficientnet_lite0": (64, {}),
    "tf_efficientnet_b0": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "ghostnet_050": (64, {}),
    "dla46_c": (64, {}),
    "repvgg_a0": (64, {}),
    "hgnetv2_b0": (64, {}),
    "convnext_atto": (64, {}),
    "convmixer_768_32": (32, {}),
    "mixer_s32_224": (224, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "deit_tiny_patch16_224": (64, {"img_size": 64, "depth": 2}),
    "beit_base_patch16_224": (32, {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 2}),
    "cait_xxs24_224": (32, {"img_size": 32, "depth": 2}),
    "xcit_nano_12_p16_224": (64, {"img_size": 64, "depth": 2}),
    "swin_tiny_patch4_window7_224": (64, SMALL),
    "swinv2_cr_tiny_224": (64, SMALL),
    "swinv2_tiny_window8_256": (64, SMALL),
    "pit_ti_224": (224, {}),
    "levit_128s": (224, {}),
    "mobilevit_xxs": (64, {}),
    "mobilevitv2_050": (64, {}),
    "poolformer_s12": (64, {}),
    "edgenext_xx_small": (64, {}),
    "pvt_v2_b0": (64, {}),
    "mambaout_femto": (64, {}),
    "nfnet_l0": (64, {}),
    "coat_tiny": (224, {}),
    "densenet121": (64, {}),
    "vgg11": (32, {}),
    "nest_tiny": (64, {"img_size": 64}),
    "twins_pcpvt_small": (64, {}),
    "crossvit_tiny_240": (240, {}),
}
LARGE = {"nfnet_l0", "coat_tiny", "densenet121", "vgg11", "nest_tiny", "twins_pcpvt_small", "crossvit_tiny_240"}
OWN_FORWARD = ("Conv2dSame", "ScaledStdConv2d")  # timm's convolutions that pad or normalise in their own forward


def stays(name: str, network: nn.Module) -> set[str]:
    """What has to stay digital of a network of timm."""
    kinds = {key: type(module).__name__ for key, module in network.named_modules()}
    left = {f"{key}.weight" for key, kind in kinds.items() if kind in OWN_FORWARD}
    if name in ("mobilenetv3_small_050", "ghostnet_050"):
        left |= {"classifier.weight"}  # timm.layers.Linear
    if name in ("beit_base_patch16_224", "swinv2_tiny_window8_256"):
        left |= {f"{key}.weight" for key in kinds if key.endswith("attn.qkv")}  # in F.linear, with a bias of parts
    if name == "coat_tiny":
        left |= {"aggregate.weight"}  # a Conv1d
    return left


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in TIMM])
def test_families_of_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    size, settings = TIMM[name]
    network = timm.create_model(name, pretrained=False, num_classes=10, **settings)
    check(network, torch.rand(2, 3, size, size), stays(name, network))
