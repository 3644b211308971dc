"""Features of frozen layers: what they are, when they are computed anew, and recipes that train on them."""

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from energytl import Hardware
from energytl.data import ImageData, ImageFolder
from energytl.features import Features
from energytl.models import mlp
from energytl.recipe import Case, RecipeError, parse, read
from energytl.run import prepare


def photographs(folder, images=5):
    for label in range(3):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(images):
            noise = torch.randint(256, (24, 20, 3), generator=torch.Generator().manual_seed(10 * label + number))
            Image.fromarray(noise.byte().numpy()).save(folder / f"class{label}" / f"{number}.png")
    return folder


@pytest.fixture
def photos(tmp_path):
    return photographs(tmp_path / "photos")


def folder_of(photos, **settings):
    return ImageFolder(str(photos), size=16, **{"augment": False, "test_fraction": 0.4, "batch_size": 4} | settings)


def small_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(6, 5),
    )


def made(photos, layer="8", images=None, network=None, **settings):
    features = Features(
        images or folder_of(photos), network or small_network(), layer, cache=str(photos.parent / "cache"), **settings
    )
    assert features.present() is None
    return features


def pixels(dataset):
    return torch.stack([image for image, _ in dataset])


def kept(photos):
    return len(list((photos.parent / "cache").glob("*.pt")))


class Tensors(ImageData):
    """Images of no file."""

    def __init__(self, images, labels):
        super().__init__(tuple(images.shape[1:]), 2, 3, 0, 0)
        self.pair = [images, labels]

    def load(self):
        only = TensorDataset(*self.pair)
        return only, only


def test_an_image_folder_without_augmentation_takes_training_images_as_test_images(photos):
    plain, augmented = folder_of(photos), folder_of(photos, augment=True)
    both = folder_of(photos, test=str(photos))
    for images in (plain, augmented, both):
        images.setup()
    assert torch.equal(pixels(plain.train_set), pixels(plain.train_set))
    assert not torch.equal(pixels(augmented.train_set), pixels(augmented.train_set))
    assert torch.equal(pixels(augmented.test_set), pixels(plain.test_set))
    assert torch.equal(pixels(both.train_set), pixels(both.test_set))


def test_features_are_what_enters_the_layer_in_evaluation_mode(photos):
    features, network = made(photos), small_network().eval()
    assert features.shape == (6, 1, 1)
    assert features.classes == 3
    for found, images in (
        (features.train_set, features.images.train_set),
        (features.test_set, features.images.test_set),
    ):
        x, labels = found.tensors
        with torch.no_grad():
            torch.testing.assert_close(x[:, :, 0, 0], network[:8](pixels(images)))
        assert labels.tolist() == [label for _, label in images]
    assert features.network.training


def test_positions_before_a_convolution_are_averaged(photos):
    features = made(photos, "3")
    assert features.shape == (4, 1, 1)
    with torch.no_grad():
        expected = small_network().eval()[:3](pixels(features.images.train_set)).mean((2, 3), keepdim=True)
    torch.testing.assert_close(features.train_set.tensors[0], expected)


def test_positions_before_a_linear_layer_are_averaged(tmp_path):
    images = Tensors(torch.randn(4, 2, 5), torch.tensor([0, 1, 0, 1]))
    features = Features(images, nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), "1", cache=str(tmp_path))
    features.setup()
    torch.testing.assert_close(features.train_set.tensors[0][:, :, 0, 0], images.pair[0].relu().mean(1))


def test_layers_after_it_do_not_compute(photos):
    class Never(nn.Module):
        def forward(self, x):
            raise AssertionError("computed")

    made(photos, network=nn.Sequential(*small_network(), Never()))


def test_analog_features_differ_from_digital_ones_and_depend_on_their_seed_alone(photos, tmp_path):
    digital = made(photos).train_set.tensors[0]
    first = made(photos, hardware=Hardware()).train_set.tensors[0]
    torch.manual_seed(5)
    again = Features(folder_of(photos), small_network(), "8", hardware=Hardware(), cache=str(tmp_path / "other"))
    again.setup()
    assert torch.equal(first, again.train_set.tensors[0])
    assert not torch.equal(first, digital)
    assert (first - digital).abs().mean() < digital.abs().mean()
    assert not torch.equal(first, made(photos, hardware=Hardware(), seed=1).train_set.tensors[0])


def test_features_of_random_crops_leave_the_global_seed_alone(photos, tmp_path):
    def found(cache):
        torch.manual_seed(3)
        features = Features(folder_of(photos, augment=True), small_network(), "8", cache=str(cache))
        features.setup()
        return features.train_set.tensors[0], torch.rand(1)

    (x, after), (y, cached) = found(tmp_path / "one"), found(tmp_path / "one")
    assert torch.equal(x, y)
    assert torch.equal(x, found(tmp_path / "two")[0])
    assert after == cached


def test_normalised_training_features_lie_in_0_to_1(photos):
    plain, normalised = made(photos), made(photos, normalise=True)
    assert normalised.train_set.tensors[0].min() >= 0
    assert normalised.train_set.tensors[0].max() == 1
    factor = plain.train_set.tensors[0].max()
    torch.testing.assert_close(normalised.test_set.tensors[0] * factor, plain.test_set.tensors[0])


def test_the_same_features_are_computed_once(photos, monkeypatch):
    first = made(photos)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda *_: pytest.fail("computed again"))
    second = made(photos, batch_size=2, images=folder_of(photos, workers=1))
    assert torch.equal(first.train_set.tensors[0], second.train_set.tensors[0])
    assert [path.suffix for path in sorted((photos.parent / "cache").iterdir())] == [".lock", ".pt"]


def test_what_features_depend_on_computes_them_anew(photos):
    first = made(photos).train_set.tensors[0]
    changed = small_network()
    with torch.no_grad():
        changed[0].weight[0, 0, 0, 0] += 1
    assert not torch.equal(made(photos, network=changed).train_set.tensors[0], first)
    assert made(photos, images=folder_of(photos, test_fraction=0.2)).train_set.tensors[0].shape != first.shape
    assert kept(photos) == 3
    Image.new("RGB", (20, 24), (255, 0, 0)).save(photos / "class0" / "0.png")
    assert not torch.equal(made(photos).train_set.tensors[0], first)
    for number, setting in enumerate(({"layer": "3"}, {"hardware": Hardware()}, {"hardware": Hardware(rho=5.0)})):
        made(photos, **setting)
        assert kept(photos) == 5 + number


def test_weights_come_from_a_file(photos):
    torch.save(small_network(1).state_dict(), photos.parent / "weights.pt")
    loaded = made(photos, weights=str(photos.parent / "weights.pt"))
    assert torch.equal(loaded.train_set.tensors[0], made(photos, network=small_network(1)).train_set.tensors[0])
    assert kept(photos) == 1


def test_images_of_no_file_and_without_a_training_set(tmp_path):
    images = [torch.rand(4, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    found = []
    for x in images:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        features = Features(Tensors(x, torch.tensor([0, 1, 0, 1])), network, "1", cache=str(tmp_path))
        nn.init.ones_(network[1].weight)
        nn.init.zeros_(network[1].bias)
        features.setup()
        found.append(features)
    assert found[0].train_set is found[0].test_set
    assert torch.equal(found[1].test_set.tensors[0].flatten(1), images[1].flatten(1))


def test_a_layer_that_is_not_there(photos):
    with pytest.raises(ValueError, match=r"data\.layer is '9'; allowed: .*the last ones: 0, 3, 8"):
        Features(folder_of(photos), small_network(), "9")
    with pytest.raises(ValueError, match=r"data\.layer is '2'; allowed: a module .* in_features or in_channels"):
        Features(folder_of(photos), small_network(), "2")
    with pytest.raises(ValueError, match=r"data\.calibration_batches is 0; allowed"):
        Features(folder_of(photos), small_network(), "8", calibration_batches=0)


def test_what_is_missing_is_said_in_one_line(photos, tmp_path):
    def problem(images, network, layer="8", **settings):
        return Features(images, network, layer, cache=str(tmp_path / "cache"), **settings).present()

    none = problem(ImageFolder(str(tmp_path / "none")), small_network())
    assert none.startswith("data.images.train ")
    assert none.endswith("set --data.images.train")
    unknown = problem(folder_of(photos), small_network(), weights=str(tmp_path / "none.pt"))
    assert unknown == f"data.weights {tmp_path}/none.pt not found: set --data.weights to a state dict's file"
    wrong = problem(folder_of(photos), nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(2, 2)), "1")
    assert wrong.startswith("data.network does not take images of shape (3, 16, 16): ")
    unused = small_network()
    unused.forward = lambda x: x
    assert "data.layer 8 is never called" in problem(folder_of(photos), unused)
    assert not kept(photos)


RECIPE = """
seed: 3
data:
  class_path: energytl.features.Features
  init_args:
    images: {{class_path: energytl.data.ImageFolder, init_args: {{train: {photos}, size: 32, augment: false}}}}
    network: {{class_path: energytl.models.torchvision_model, init_args: {{name: squeezenet1_0}}}}
    layer: classifier.1
    hardware: {{rho: 5.0}}
    calibration_batches: 1
    cache: {photos}/../cache
network: {{class_path: energytl.models.mlp, init_args: {{features: 512, hidden: [], classes: 3}}}}
train: {{epochs: 1}}
"""


def test_a_recipe_trains_on_features(photos):
    file = photos.parent / "transfer.yaml"
    file.write_text(RECIPE.format(photos=photos))
    case = read(file, [])[0]
    built = case.build()
    assert isinstance(built.data, Features)
    assert built.data.hardware == Hardware(rho=5.0)
    assert built.data.shape == (512, 1, 1)
    again = Case(case.name, parse(case.as_yaml()))
    assert again.as_yaml() == case.as_yaml()
    assert again.resolved() == case.resolved()
    recipes = [prepare(each, needs_data=True) for each in (case, again)]
    first, second = (recipe.data.train_set.tensors[0] for recipe in recipes)
    assert first.shape == (12, 512, 1, 1)
    assert torch.equal(first, second)
    assert kept(photos) == 1
    x, labels = next(iter(recipes[0].data.train_dataloader()))
    assert mlp(512, (), 3)(x).shape == (len(labels), 3)


def test_a_recipe_that_names_no_layer_of_its_network(photos):
    file = photos.parent / "transfer.yaml"
    file.write_text(RECIPE.format(photos=photos).replace("classifier.1", "classifier.9"))
    with pytest.raises(RecipeError, match=r"data\.layer is 'classifier\.9'; allowed: .*classifier\.1\)"):
        read(file, [])[0].build()
    file.write_text(RECIPE.format(photos=photos))
    missing = read(file, [f"--data.images.train={photos}/none"])[0]
    with pytest.raises(RecipeError, match=r"data\.images\.train .* set --data\.images\.train"):
        prepare(missing, needs_data=True)
