"""What layers hand over to an optimizer on the chip: every sample's x and d, and nothing more."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from energytl import Hardware, Noiseless, WeightFormat, convert
from energytl.analog.samples import collect, collected
from energytl.optim.pulsed_optimizer import lines_of
from energytl.optim.pulses import dense_lines

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "without bias": (lambda: nn.Linear(6, 5, bias=False), (4, 6)),
    "tokens": (lambda: nn.Linear(6, 5), (4, 3, 6)),
    "deep tokens": (lambda: nn.Linear(6, 5), (2, 2, 3, 6)),
    "one vector": (lambda: nn.Linear(6, 5), (6,)),
    "conv": (lambda: nn.Conv2d(3, 4, 3), (2, 3, 7, 6)),
    "strided": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 3), padding=(1, 2)), (2, 3, 8, 9)),
    "dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2, padding=2), (2, 3, 8, 7)),
    "same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (2, 3, 6, 7)),  # other sides padded differently
    "conv without bias": (lambda: nn.Conv2d(3, 4, 3, bias=False), (2, 3, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, stride=2, padding=1), (2, 4, 6, 5)),
    "reflected": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (2, 3, 5, 5)),
    "circular": (lambda: nn.Conv2d(4, 4, 3, padding=(1, 2), padding_mode="circular", groups=2), (2, 4, 5, 6)),
    "one image": (lambda: nn.Conv2d(3, 4, 3), (3, 7, 6)),
}
HARDWARE = Hardware(computation=Noiseless(), weights=WeightFormat(bits=None))

# torch's remark on an even kernel in a layer whose sides are padded differently
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
every_layer = pytest.mark.parametrize("name", LAYERS)


def layers(name):
    """A digital layer, its analog twin with Parameters of its own, and inputs."""
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    digital = make()
    analog = convert(copy.deepcopy(digital), HARDWARE, seed=0)
    return digital, analog, torch.randn(shape)


@every_layer
def test_handed_over_samples_make_the_gradient_of_the_weight(name):
    digital, analog, x = layers(name)
    samples = collect(analog.weight)
    d = torch.randn(digital(x).shape)
    digital(x).backward(d)
    analog(x).backward(d)
    ((layer, inputs, errors),) = samples.batches
    assert layer is analog and analog.weight.grad is None
    lines = lines_of(layer, inputs, errors)
    groups, rows, outputs = layer.matrix_shape
    gradient = digital.weight.grad.reshape(groups, outputs, rows)
    torch.testing.assert_close(lines.correlate(lines.x, lines.d), gradient, rtol=1e-4, atol=1e-5)
    x_matrix, d_matrix = lines.matrices()
    assert x_matrix.shape == (groups, lines.samples, rows) and d_matrix.shape == (groups, lines.samples, outputs)
    torch.testing.assert_close(d_matrix.mT @ x_matrix, gradient, rtol=1e-4, atol=1e-5)
    if analog.bias is not None:
        torch.testing.assert_close(analog.bias.grad, digital.bias.grad)


@every_layer
def test_lines_in_a_layers_own_layout_are_those_of_its_matrices(name):
    _, analog, x = layers(name)
    samples = collect(analog.weight)
    y = analog(x)
    y.backward(torch.randn(y.shape))
    lines = lines_of(*samples.batches[0])
    dense = dense_lines(*lines.matrices())
    squares = lines.d.square(), dense.d.square()
    own = lines.correlate(lines.x.square(), lines.sum_outputs(squares[0]))
    assert own.shape[-2] == 1
    torch.testing.assert_close(own, dense.correlate(dense.x.square(), dense.sum_outputs(squares[1])))
    torch.testing.assert_close(lines.shares(squares[0]), dense.shares(squares[1]))
    torch.testing.assert_close(lines.shares(squares[0]).sum(-2), torch.ones(analog.matrix_shape[0], 1))
    assert lines.samples == dense.samples
    # a sample's factors, applied in the layer's layout, are those of its row of the matrices
    ours = lines.correlate(lines.x, lines.d * lines.d_max * (1 + lines.x_max))
    theirs = dense.correlate(dense.x, dense.d * dense.d_max * (1 + dense.x_max))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@every_layer
def test_gradients_of_inputs_are_the_digital_ones(name):
    digital, analog, x = layers(name)
    collect_kept = collect(analog.weight)
    plain = convert(copy.deepcopy(digital), HARDWARE, seed=0)
    gradients = []
    for layer in (plain, analog):
        inputs = x.clone().requires_grad_()
        y = layer(inputs)
        y.backward(torch.ones_like(y))
        gradients.append((y.detach(), inputs.grad))
    assert len(collect_kept.batches) == 1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)


def test_samples_come_also_where_inputs_want_no_gradient_and_nothing_else_is_trained():
    _, analog, x = layers("without bias")
    analog.log_rho.requires_grad_(False)
    samples = collect(analog.weight)
    analog(x).sum().backward()
    assert len(samples.batches) == 1


def test_nothing_is_noted_without_a_backward_pass_or_gradients():
    _, analog, x = layers("linear")
    samples = collect(analog.weight)
    analog(x)
    with torch.no_grad():
        analog(x)
    assert not samples.batches


def test_frozen_weights_are_not_handed_over():
    _, analog, x = layers("linear")
    samples = collect(analog.weight)
    analog.weight.requires_grad_(False)
    analog(x.requires_grad_()).sum().backward()
    assert not samples.batches and analog.weight.grad is None
    analog.weight.requires_grad_()
    analog(x).sum().backward()
    assert len(samples.batches) == 1


def test_every_use_of_a_weight_is_noted():
    _, analog, x = layers("tokens")
    samples = collect(analog.weight)
    (analog(x).sum() + analog(2 * x[:2]).sum()).backward()
    assert sorted(len(inputs) for _, inputs, _ in samples.batches) == [2, 4]


def test_collecting_ends_with_whoever_asked_for_it():
    _, analog, x = layers("linear")
    samples = collect(analog.weight)
    assert collected(analog.weight) is samples
    del samples
    gc.collect()
    assert collected(analog.weight) is None
    analog(x).sum().backward()
    assert analog.weight.grad is not None


def test_copies_train_digitally():
    _, analog, x = layers("linear")
    samples = collect(analog.weight)
    twin = copy.deepcopy(analog)
    twin(x).sum().backward()
    assert twin.weight.grad is not None and not samples.batches


class Made(TorchDispatchMode):
    """Notes the tensors of one number of elements that operations make in memory of their own."""

    def __init__(self, like):
        super().__init__()
        self.like, self.found = like, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if torch.is_tensor(tensor) and tensor.numel() == self.like.numel():
                same = tensor.untyped_storage().data_ptr() == self.like.untyped_storage().data_ptr()
                self.found += [] if same else [str(function)]
        return out


@pytest.mark.parametrize("name", ["linear", "tokens", "conv", "grouped", "conv without bias"])
def test_no_copy_of_the_weights_is_made(name):
    _, analog, x = layers(name)
    x.requires_grad_()
    with Made(analog.weight) as made:  # the notes can tell
        analog(x).sum().backward()
    assert made.found  # the weight's gradient
    samples = collect(analog.weight)
    saved = []
    with (
        Made(analog.weight) as made,
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = analog(x)
        if analog.bias is None or "linear" in name:  # a convolution's own kernel makes it beside that of the bias
            y.sum().backward()
            assert len(samples.batches) == 1
    assert not made.found
    pointers = {t.untyped_storage().data_ptr() for t in saved if t.numel() == analog.weight.numel()}
    assert pointers == {analog.weight.untyped_storage().data_ptr()}
