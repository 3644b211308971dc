"""Data modules: what they load, and what they say when it is not there."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from energytl import data
from energytl.origin import described


def labels_of(dataset):
    return torch.tensor([label for _, label in dataset])


def test_digits_are_split_by_class_alike():
    digits = data.Digits()
    digits.setup()
    assert labels_of(digits.train_set).bincount().tolist() == [400] * 10
    assert labels_of(digits.test_set).bincount().tolist() == [100] * 10
    image, _ = digits.train_set[0]
    assert image.shape == digits.shape
    assert 0 == image.min() < image.max() == 1


def test_no_digit_is_in_both_sets():
    digits = data.Digits()
    digits.setup()
    train = {image.numpy().tobytes() for image, _ in digits.train_set}
    assert not any(image.numpy().tobytes() in train for image, _ in digits.test_set)


def test_the_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        digits = data.Digits(batch_size=4000, seed=seed)
        digits.setup()
        loader = digits.train_dataloader()
        loader.sampler.set_epoch(epoch)
        return next(iter(loader))[1].tolist()

    torch.manual_seed(1)
    first = order(0, 3)
    torch.manual_seed(2)
    assert order(0, 3) == first
    assert order(0, 4) != first != order(1, 3)


def test_part_of_the_test_images_is_spread_evenly():
    digits = data.Digits()
    digits.setup()
    labels = torch.cat([labels for _, labels in digits.test_dataloader(50)])
    assert labels.bincount().tolist() == [5] * 10


def digits_of(dataset):
    return {image.numpy().tobytes() for image, _ in dataset}


@pytest.mark.parametrize("of_training", [True, False])
def test_images_held_out_are_in_no_other_set(of_training):
    digits = data.Digits()
    digits.hold_out(None, of_training, seed=0)
    sets = [digits_of(images) for images in (digits.train_set, digits.held_out, digits.test_set)]
    assert [len(images) for images in sets] == ([3200, 800, 1000] if of_training else [4000, 500, 500])
    assert len(set.union(*sets)) == 5000
    assert digits.trains_without == ((800, 0) if of_training else None)
    counts = labels_of(digits.held_out).bincount().tolist()  # the file is sorted by class
    assert max(counts) - min(counts) <= 2
    batches = list(digits.held_out_dataloader())
    assert torch.equal(torch.cat([labels for _, labels in batches]), labels_of(digits.held_out))


def test_images_held_out_depend_on_their_seed_alone_and_leave_random_numbers_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = data.Digits(batch_size=10, seed=0), data.Digits(batch_size=7, seed=3)
    for digits in (first, second):
        digits.hold_out(40, of_training=True, seed=0)
    assert digits_of(first.held_out) == digits_of(second.held_out)
    other = data.Digits(batch_size=10, seed=0)
    other.hold_out(40, of_training=True, seed=1)
    assert len(digits_of(first.held_out) & digits_of(other.held_out)) < 10
    assert torch.equal(torch.get_rng_state(), before)


class Numbers(data.ImageData):
    """Classes 0..9 in turn, or sorted; the label says which image it is."""

    def __init__(self, order, test=10):
        super().__init__((1, 1, 1), 10, 10, 0, 0)
        self.order, self.test = order, test

    def load(self):
        sets = [
            torch.utils.data.TensorDataset(torch.zeros(len(o), 1, 1, 1), torch.tensor(o))
            for o in (self.order, [0] * self.test)
        ]
        return sets[0], sets[1]


def test_images_held_out_are_of_all_classes_though_these_come_in_turn():
    numbers = Numbers([place % 10 for place in range(1000)])
    numbers.hold_out(100, of_training=True, seed=0)  # every tenth image would be of one class
    counts = labels_of(numbers.held_out).bincount(minlength=10)
    assert counts.sum() == 100
    assert counts.max() <= 10 + 5 * 3  # five standard errors of a hundred drawn at random


@pytest.mark.parametrize("asked", [0, 10, 11])
def test_as_many_images_as_there_are_cannot_be_held_out(asked):
    said = rf"evaluation\.held_out is {asked}; allowed: 1 to 9 of 10 test images"
    with pytest.raises(ValueError, match=said):
        Numbers([0] * 10).hold_out(asked, of_training=False, seed=0)
    with pytest.raises(ValueError, match=r"evaluation\.held_out is 0; allowed: 1 to 0 of 1 test images"):
        Numbers([0] * 10, test=1).hold_out(None, of_training=False, seed=0)


def test_no_more_than_enough_are_held_out_of_a_large_set():
    numbers = Numbers([0] * 100_000)
    numbers.hold_out(None, of_training=True, seed=0)
    assert numbers.trains_without == (data.HELD_OUT_IMAGES, 0)
    assert len(numbers.train_set) == 100_000 - data.HELD_OUT_IMAGES


def test_training_images_held_out_are_seen_as_test_images(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(10):
            pixels = torch.randint(0, 256, (40, 40, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / label / f"{number}.png")
    folder = data.ImageFolder(str(tmp_path), size=28)
    folder.hold_out(4, of_training=True, seed=0)
    once, again = ([image for image, _ in folder.held_out] for _ in range(2))
    assert all(map(torch.equal, once, again))
    augmented = [image for image, _ in folder.train_set]
    assert not all(map(torch.equal, augmented, [image for image, _ in folder.train_set]))
    plain = data.ImageFolder(str(tmp_path), size=28, augment=False)
    plain.setup()
    assert all(any(torch.equal(image, other) for other, _ in plain.train_set) for image in once)


@pytest.mark.parametrize("kind", [data.MNIST, data.FashionMNIST, data.CIFAR10, data.CIFAR100])
def test_missing_data_is_said_in_one_line(kind, tmp_path):
    problem = kind(root=str(tmp_path)).present()
    assert problem.startswith(f"data.root {tmp_path} holds no readable {kind.__name__}")
    assert "--data.root" in problem
    assert "\n" not in problem


def test_missing_folders_are_said_in_one_line(tmp_path):
    assert data.ImageFolder(train=str(tmp_path / "none")).present().startswith("data.train")
    assert data.ImageNet(root=str(tmp_path)).present().startswith("data.root")


def test_a_corrupt_file_is_said_in_one_line(data_root, tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for path in (data_root / "cifar-10-batches-py").iterdir():
        (folder / path.name).write_bytes(path.read_bytes()[:1000])
    assert "holds no readable CIFAR10" in data.CIFAR10(root=str(tmp_path)).present()


def photographs(folder, classes=3, images=5):
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", (40, 30), (80 * label, 40 * number, 0)).save(folder / f"class{label}" / f"{number}.png")
    return folder


def test_an_image_folder_keeps_a_part_of_each_class_for_testing(tmp_path):
    folder = data.ImageFolder(train=str(photographs(tmp_path / "all")), size=16, test_fraction=0.4)
    assert folder.present() is None
    assert folder.classes == 3
    assert labels_of(folder.train_set).bincount().tolist() == [3, 3, 3]
    assert labels_of(folder.test_set).bincount().tolist() == [2, 2, 2]
    assert folder.test_set[0][0].shape == folder.shape == (3, 16, 16)
    assert not set(folder.train_set.indices) & set(folder.test_set.indices)


def test_an_image_folder_of_its_own_for_testing(tmp_path):
    train, test = photographs(tmp_path / "train"), photographs(tmp_path / "test", images=2)
    folder = data.ImageFolder(train=str(train), test=str(test), size=16)
    folder.setup()
    assert (len(folder.train_set), len(folder.test_set)) == (15, 6)


def test_folders_with_other_classes_are_refused(tmp_path):
    train, test = photographs(tmp_path / "train"), photographs(tmp_path / "test", classes=2)
    assert "has other classes" in data.ImageFolder(train=str(train), test=str(test), size=16).present()


@pytest.mark.parametrize("kind", [data.CIFAR10, data.CIFAR100, data.ImageNet])
@pytest.mark.parametrize("key", ["size", "batch_size"])
def test_images_without_pixels_and_batches_without_images_are_refused(kind, key):
    with pytest.raises(ValueError, match=rf"data\.{key} is 0; allowed: 1 to 1000"):
        kind(**{key: 0})


@pytest.mark.parametrize(("kind", "sizes"), [(data.MNIST, (60000, 10000)), (data.CIFAR10, (50000, 10000))])
def test_real_data_sets(data_root, kind, sizes):
    images = kind(root=str(data_root), batch_size=16)
    assert images.present() is None
    assert (len(images.train_set), len(images.test_set)) == sizes
    x, labels = next(iter(images.train_dataloader()))
    assert x.shape == (16, *images.shape)
    assert labels.max() < images.classes


def test_classes_of_cifar100_keep_the_order_of_their_names(data_root):
    names = ("woman", "beaver")
    pair = data.CIFAR100(root=str(data_root), names=names)
    pair.setup()
    assert pair.classes == 2
    assert labels_of(pair.test_set).bincount().tolist() == [100, 100]
    both = data.CIFAR100(root=str(data_root), names=names[::-1])
    both.setup()
    assert both.test_set[0][1] != pair.test_set[0][1]
    assert torch.equal(both.test_set[0][0], pair.test_set[0][0])


@pytest.mark.parametrize("kind", [data.CIFAR10, data.CIFAR100])
def test_small_images_are_scaled(data_root, kind):
    plain, scaled = kind(root=str(data_root)), kind(root=str(data_root), size=64)
    for images in (plain, scaled):
        images.setup()
    assert scaled.shape == scaled.train_set[0][0].shape == (3, 64, 64)
    halved = torch.nn.functional.avg_pool2d(scaled.test_set[0][0], 2)
    assert (halved - plain.test_set[0][0]).abs().mean() < 0.1


@pytest.mark.parametrize(("name", "says"), [("unicorn", "which CIFAR-100 does not"), ("tank", "hold no images of")])
def test_classes_that_are_not_there(data_root, name, says):
    assert says in data.CIFAR100(root=str(data_root), names=("beaver", name)).present()


def test_a_folder_of_which_nothing_is_kept_is_tested_with_what_it_trains_on(tmp_path):
    folder = data.ImageFolder(str(photographs(tmp_path / "all")), size=16, test_fraction=0.0, augment=False)
    folder.setup()
    assert len(folder.train_set) == len(folder.test_set) > 0
    assert all(torch.equal(a[0], b[0]) for a, b in zip(folder.train_set, folder.test_set, strict=True))
    with pytest.raises(ValueError, match=r"data\.test_fraction is 1; allowed: 0 up to 1"):
        data.ImageFolder(test_fraction=1)


# broken images


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("name", "spoil", "says"),
    [
        ("3.jpg", lambda whole: whole[:700], "truncated"),
        ("3.png", lambda whole: whole[: len(whole) // 2], "truncated|Truncated|broken"),
        ("3.jpg", lambda whole: b"<html>404</html>", "it is a web page"),
        ("3.png", lambda whole: b"", "it is empty"),
        ("3.jpg", lambda whole: b"no image at all", "cannot identify image file"),
        ("3.png", lambda whole: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_broken_image_is_named(tmp_path, name, spoil, says, workers):
    if workers and says not in ("truncated", "it is a web page"):
        pytest.skip("two kinds are enough")
    numbers = np.random.default_rng(0)
    for folder in ("cat", "dog"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            image = Image.fromarray(numbers.integers(0, 255, (40, 40, 3), dtype=np.uint8))
            image.save(tmp_path / folder / f"{number}{name[1:]}")
    broken = tmp_path / "cat" / name
    broken.write_bytes(spoil(broken.read_bytes()))
    images = data.ImageFolder(str(tmp_path), size=16, batch_size=2, workers=workers, test_fraction=0.0)
    images.setup()
    with pytest.raises(ValueError) as refused:
        list(images.train_dataloader())
    assert re.fullmatch(rf"image {broken} cannot be read: .*({says}).*: replace or remove it", described(refused.value))
