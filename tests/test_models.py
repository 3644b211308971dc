"""Networks: sizes as the papers count them, and published weights that load."""

import pytest
import torch
import torchvision

from energytl import convert, estimate, left_digital, models

NETWORKS = {
    models.mlp: ((1, 28, 28), 784 * 256 + 256 * 128 + 128 * 10, 3),
    models.lenet: ((1, 28, 28), 61_470, 28 * 28 + 10 * 10 + 3),
    models.resnet20: ((3, 32, 32), 268_336, 9_089),
    models.vgg16_cifar: ((3, 32, 32), 14_715_584, 2_813),
    models.resnet18_cifar: ((3, 32, 32), 11_164_352, 6_801),
    models.mobilenet_cifar: ((3, 32, 32), 3_195_328, 4_561),
    models.swin_cifar: ((3, 32, 32), 528_640, 64 + 2 * 4 * 64 + 16 + 2 * 4 * 16 + 1),
}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
def test_cells_and_positions(network):
    shape, cells, positions = NETWORKS[network]
    analog = convert(network(classes=7))
    images = torch.zeros(1, *shape)
    cost = estimate(analog, images, None, blank=True)
    with torch.no_grad():
        assert analog.eval()(images).shape == (1, 7)
    classifier = cost.layers[-1]
    assert cost.cells + classifier.rows * 3 == cells
    assert cost.reads == positions
    assert left_digital(analog) == []


@pytest.mark.parametrize(("depth", "parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_cifar_resnets_have_their_published_sizes_and_load_published_weights(depth, parameters, request):
    network = getattr(models, f"resnet{depth}")()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    folder = request.getfixturevalue("packed_data") / "weights" / "cifar10"
    (path,) = folder.glob(f"akamaster_resnet{depth}-*.th")
    state = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    network.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()}, strict=True)


def test_torchvision_by_name():
    assert models.torchvision_model("squeezenet1_0", classes=5)(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    with pytest.raises(ValueError, match=r"network\.name resnet99"):
        models.torchvision_model("resnet99")


def test_downloaded_weights_leave_another_number_of_classes_a_new_last_layer(monkeypatch):
    published = models.torchvision_model("squeezenet1_1").state_dict()
    kind = torchvision.models.SqueezeNet1_1_Weights
    monkeypatch.setattr(kind, "get_state_dict", lambda self, *args, **kwargs: published)
    network = models.torchvision_model("squeezenet1_1", weights="DEFAULT", classes=5)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    new = {key for key, tensor in network.state_dict().items() if not torch.equal(tensor, published[key])}
    assert new == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(ValueError, match="torchvision says"):
        models.torchvision_model("squeezenet1_1", weights="IMAGENET99", classes=5)
