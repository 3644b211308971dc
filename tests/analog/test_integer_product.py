"""The integer convolution against torch's float one, number by number."""

import pytest
import torch
from torch.nn import functional as F

from energytl.analog import integer_product
from energytl.analog.integer_product import integer_conv2d, integers_are_exact

CASES = {  # channels, outputs, kernel, stride, padding, dilation, groups, size
    "3x3": (16, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1, 9),
    "few channels": (3, 16, (3, 3), (1, 1), (1, 1), (1, 1), 1, 9),
    "one channel": (1, 5, (5, 5), (1, 1), (2, 2), (1, 1), 1, 12),
    "strided": (8, 12, (3, 3), (2, 2), (1, 1), (1, 1), 1, 9),
    "unequal": (8, 12, (3, 1), (2, 1), (1, 0), (1, 2), 1, 9),
    "dilated": (8, 8, (3, 3), (1, 1), (2, 2), (2, 2), 1, 9),
    "grouped": (8, 12, (3, 3), (1, 1), (1, 1), (1, 1), 4, 9),
    "depthwise": (16, 16, (3, 3), (1, 1), (1, 1), (1, 1), 16, 9),
    "1x1": (32, 64, (1, 1), (1, 1), (0, 0), (1, 1), 1, 7),
    "a pixel": (300, 10, (1, 1), (1, 1), (0, 0), (1, 1), 1, 1),
    "long sums": (512, 8, (3, 3), (1, 1), (1, 1), (1, 1), 1, 4),
}


@pytest.mark.parametrize("largest", [(15, 31), (127, 127), (1, 1)], ids=str)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_integer_products_are_the_float_ones(case, signed, largest):
    channels, outputs, kernel, stride, padding, dilation, groups, size = CASES[case]
    weights, inputs = largest
    if not integers_are_exact(inputs, weights):
        pytest.skip("this processor has no exact integer kernel for these")
    torch.manual_seed(0)
    x = torch.randint(-inputs if signed else 0, inputs + 1, (2, channels, size, size))
    weight = torch.randint(-weights, weights + 1, (outputs, channels // groups, *kernel))
    geometry = (stride, padding, dilation, groups)
    codes = (x + inputs).to(torch.uint8).contiguous(memory_format=torch.channels_last)
    found = integer_conv2d(codes, inputs, weight.to(torch.int8), 1.0, None, *geometry)
    expected = F.conv2d(x.double(), weight.double(), None, *geometry)
    assert found.dtype == torch.float32
    assert torch.equal(found.double(), expected.float().double())
    bias = torch.randn(outputs)
    scaled = integer_conv2d(codes, inputs, weight.to(torch.int8), 0.013, bias, *geometry)
    torch.testing.assert_close(scaled, (expected * 0.013 + bias.double().view(-1, 1, 1)).float(), rtol=1e-5, atol=1e-4)


def test_integers_wider_than_a_byte_are_not_multiplied_as_bytes():
    assert not integers_are_exact(128, 15)
    assert not integers_are_exact(31, 128)


@pytest.mark.parametrize("kernel", [lambda x, *_: torch.zeros(2, 16, 5, 5), lambda *_: torch.ops.onednn.gone()])
def test_a_kernel_that_errs_or_is_gone_is_not_used(kernel, monkeypatch):
    monkeypatch.setattr(integer_product, "integer_conv2d", kernel)
    assert not integers_are_exact.__wrapped__(31, 15)
