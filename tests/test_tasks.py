"""Tasks made of other data: swapped rows, fewer images, and random projections side by side."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from energytl import tasks
from energytl.data import CIFAR100, MNIST, Digits, ImageData, ImageFolder
from energytl.features import Features
from energytl.models import mlp
from energytl.recipe import Case, RecipeError, parse, read
from energytl.streams import Stream, seed_of
from energytl.tasks import Modified, Reduced, linear_ceiling


def modified(images=None, **settings):
    data = Modified(images or Digits(), **settings)
    data.setup()
    return data


def reduced(images=None, **settings):
    data = Reduced(images or Digits(), **{"projections": 2, "repeats": 3} | settings)
    data.setup()
    return data


def tensors(dataset):
    return torch.stack([image for image, _ in dataset]), torch.tensor([int(label) for _, label in dataset])


@pytest.fixture(scope="module")
def digits():
    data = Digits()
    data.setup()
    return data


@pytest.fixture(scope="module")
def zeros_and_ones(digits):
    """Pixels and classes of the training and of the test digits 0 and 1."""
    sets = [dataset.tensors for dataset in (digits.train_set, digits.test_set)]
    return [(x[labels < 2].flatten(1), labels[labels < 2]) for x, labels in sets]


class Own(ImageData):
    """Two sets of one's own, as they are."""

    def __init__(self, train, test, shape=(1, 2, 2)):
        super().__init__(shape, 2, 3, 0, 0)
        self.sets = train, test

    not_modelled = ("the camera",)

    def load(self):
        return self.sets


class Unlabelled(Dataset):
    """Images that list no labels apart."""

    def __init__(self, images, labels):
        self.pair = images, labels

    def __len__(self):
        return len(self.pair[0])

    def __getitem__(self, index):
        return self.pair[0][index], int(self.pair[1][index])


def own(seed=0, count=6):
    images = torch.rand(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(images, torch.arange(count) % 2)


def photographs(folder):
    for label in range(2):
        (folder / f"class{label}").mkdir(parents=True)
        for number in range(5):
            noise = torch.randint(256, (24, 20, 3), generator=torch.Generator().manual_seed(10 * label + number))
            Image.fromarray(noise.byte().numpy()).save(folder / f"class{label}" / f"{number}.png")
    return folder


# Modified


@pytest.mark.parametrize("hold", [True, False])
def test_two_rows_of_every_image_change_places(digits, hold):
    data = modified(swapped_rows=((9, 14),), test_images=50, train_images=60, hold=hold)
    x, labels = tensors(data.test_set)
    original = digits.test_set.tensors[0][::20]
    assert labels.tolist() == digits.test_set.tensors[1][::20].tolist()
    assert torch.equal(x[:, :, 9], original[:, :, 14])
    assert torch.equal(x[:, :, 14], original[:, :, 9])
    rest = [row for row in range(28) if row not in (9, 14)]
    assert torch.equal(x[:, :, rest], original[:, :, rest])
    assert not torch.equal(x, original)
    before, after = modified(train_images=60).train_set.tensors[0], tensors(data.train_set)[0]
    assert torch.equal(after[:, :, 9], before[:, :, 14])
    assert (data.shape, data.classes) == (digits.shape, 10)
    assert isinstance(data.test_set, TensorDataset) == hold


def test_rows_swapped_twice_are_back():
    once, plain = Modified(Digits(), ((3, 20), (5, 6)), 50, 20), modified(train_images=50, test_images=20)
    for twice in (modified(once, swapped_rows=((6, 5), (20, 3))), modified(Digits(), swapped_rows=((3, 20),) * 2)):
        assert torch.equal(twice.test_set.tensors[0][0], plain.test_set.tensors[0][0])
    assert not torch.equal(once.test_set.tensors[0][0], plain.test_set.tensors[0][0])


def test_pairs_that_share_a_row_are_swapped_one_after_the_other(digits):
    x = modified(swapped_rows=((8, 12), (12, 16)), train_images=1, test_images=20).test_set.tensors[0]
    assert torch.equal(x[:, :, [8, 12, 16]], digits.test_set.tensors[0][::50][:, :, [12, 16, 8]])


def test_training_images_are_drawn_by_the_seed_alone(digits):
    def drawn(seed, count=200):
        return modified(Digits(seed=seed + 5), train_images=count, test_images=1, seed=seed).train_set.tensors

    x, labels = drawn(0)
    place = {image.numpy().tobytes(): i for i, image in enumerate(digits.train_set.tensors[0])}
    places = [place[image.numpy().tobytes()] for image in x]
    assert places == sorted(set(places))
    assert labels.tolist() == [i // 400 for i in places]
    assert 10 < labels.bincount(minlength=10).min() <= labels.bincount().max() < 30
    assert places != list(range(0, 4000, 20))
    torch.manual_seed(1)
    assert torch.equal(drawn(0)[0], x)
    assert not torch.equal(drawn(1)[0], x)


def test_without_a_number_all_images_stay_in_their_order(digits):
    data = modified()
    for found, expected in ((data.train_set, digits.train_set), (data.test_set, digits.test_set)):
        assert all(torch.equal(a, b) for a, b in zip(found.tensors, expected.tensors, strict=True))


def test_batches_of_changed_images():
    for hold in (True, False):
        data = modified(train_images=25, test_images=12, hold=hold)
        assert [x.shape for x, _ in data.train_dataloader()] == [(10, 1, 28, 28)] * 2 + [(5, 1, 28, 28)]
        labels = torch.cat([labels for _, labels in data.test_dataloader()])
        assert labels.dtype == torch.int64
        assert len(labels) == 12


def test_augmented_images_are_held_or_read_anew(tmp_path):
    images = ImageFolder(str(photographs(tmp_path / "photos")), size=16, test_fraction=0.4)
    anew = modified(images, swapped_rows=((0, 15),), hold=False)
    assert not torch.equal(tensors(anew.train_set)[0], tensors(anew.train_set)[0])
    plain = images.test_set[0][0]
    assert torch.equal(anew.test_set[0][0], plain[:, [15, *range(1, 15), 0]])
    torch.manual_seed(1)
    held, after = modified(images, train_images=4), torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(modified(images, train_images=4).train_set.tensors[0], held.train_set.tensors[0])
    torch.manual_seed(1)
    assert torch.rand(1) == after
    assert torch.equal(tensors(held.train_set)[0], tensors(held.train_set)[0])


def test_test_images_that_serve_for_training_are_known_as_such():
    only = own()
    data = modified(Own(only, only), swapped_rows=((0, 1),), train_images=2)
    assert data.train_set is data.test_set
    assert len(data.test_set) == 6
    assert "no training images" in Reduced(Own(only, only), dimensions=2, elements=1).present()


def test_what_is_not_modelled_of_its_images_is_not_of_a_task():
    images = Own(own(), own(1))
    assert Modified(images).not_modelled == ("the camera",)
    assert Reduced(images).not_modelled == ("the camera", "the random projection of the images")


def test_features_of_tasks_with_other_rows_are_others(tmp_path):
    def found(rows, hold):
        images = Modified(Digits(), rows, train_images=20, test_images=20, hold=hold)
        features = Features(images, mlp(784, (), 10), "1", cache=str(tmp_path))
        torch.manual_seed(0)
        features.setup()
        return features.test_set.tensors[0]

    for hold in (True, False):
        assert not torch.equal(found((), hold), found(((9, 14),), hold))


def test_refused_changes(tmp_path):
    with pytest.raises(
        ValueError, match=r"^data\.swapped_rows has row 28; allowed: 0 to 27, as data\.images are 28 high$"
    ):
        Modified(Digits(), ((0, 28),))
    with pytest.raises(ValueError, match=r"^data\.swapped_rows has row -1; allowed"):
        Modified(Digits(), ((-1, 2),))
    for name in ("train_images", "test_images"):
        with pytest.raises(ValueError, match=rf"^data\.{name} is 0; allowed: 1 or more, or null for all$"):
            Modified(Digits(), **{name: 0})
    assert Modified(Digits(), train_images=4001).present().startswith("data.train_images is 4001; allowed: 1 to 4000,")
    assert Modified(Digits(), test_images=1001).present().startswith("data.test_images is 1001; allowed: 1 to 1000,")
    for kind in (Modified, Reduced):
        problem = kind(MNIST(str(tmp_path))).present()
        assert problem.startswith(f"data.images.root {tmp_path} holds no readable MNIST")
        assert "--data.images.root" in problem
        assert "--data.images.download" in problem


# Reduced


def test_inputs_hold_an_image_and_labels_a_class_for_each_run():
    data = reduced(elements=5, repeats=4)
    assert (data.runs, data.shape, data.classes) == (8, (40, 1, 1), 2)
    assert [tensor.shape for tensor in data.train_set.tensors] == [(800, 40, 1, 1), (800, 8)]
    assert [tensor.shape for tensor in data.test_set.tensors] == [(200, 40, 1, 1), (200, 8)]
    for loader in (data.train_dataloader(), data.test_dataloader()):
        x, labels = next(iter(loader))
        assert (x.shape, labels.shape) == ((10, 40, 1, 1), (10, 8))
        assert (x.dtype, labels.dtype) == (torch.float32, torch.int64)


def of_runs(dataset, runs):
    x, labels = dataset.tensors
    return x.view(len(x), runs, -1).transpose(0, 1), labels.T


def projected(zeros_and_ones, draws, dimensions=16, seed=0):
    """The first random projections of training and test digits, by numpy, scaled."""
    generator, found = torch.Generator().manual_seed(seed_of(Stream.PROJECTION, seed)), []
    for _ in range(draws):
        matrix = torch.randn(dimensions, 784, generator=generator).numpy()
        train, test = (x.numpy() @ matrix.T for x, _ in zeros_and_ones)
        found.append((train / np.abs(train).max(), test / np.abs(train).max()))
    return found


def order_of(run, count=800, seed=0):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(Stream.RUN_ORDER, seed, run))).numpy()


def test_a_run_sees_the_first_elements_of_its_projection(zeros_and_ones):
    data = reduced()
    (x, labels), (test_x, test_labels) = (of_runs(dataset, 6) for dataset in (data.train_set, data.test_set))
    expected = projected(zeros_and_ones, 2)
    for run in range(6):
        train, test = expected[run // 3]
        order = order_of(run)
        np.testing.assert_allclose(x[run], train[order][:, :8], atol=1e-5)
        np.testing.assert_allclose(test_x[run], test[:, :8], atol=1e-5)
        assert labels[run].tolist() == zeros_and_ones[0][1][order].tolist()
        assert test_labels[run].tolist() == zeros_and_ones[1][1].tolist()
    assert not torch.equal(test_x[0], test_x[3])


def test_runs_of_a_projection_see_the_same_images_in_other_orders():
    x, labels = of_runs(reduced().train_set, 6)

    def in_order(run):
        order = np.lexsort(x[run].T.numpy())
        return x[run][order], labels[run][order]

    for first, second in ((0, 1), (0, 2), (3, 5)):
        assert not torch.equal(x[first], x[second])
        assert all(torch.equal(a, b) for a, b in zip(in_order(first), in_order(second), strict=True))
    assert not torch.allclose(in_order(0)[0], in_order(3)[0])


def test_projections_are_scaled_by_the_largest_training_number():
    data = reduced(dimensions=4, elements=4, projections=5, repeats=1)
    largest = of_runs(data.train_set, 5)[0].abs().amax((1, 2))
    assert torch.equal(largest, torch.ones(5))
    part = reduced(dimensions=16, elements=4, projections=5, repeats=1)
    assert (of_runs(part.train_set, 5)[0].abs().amax((1, 2)) < 1).any()


def test_the_seed_gives_another_order_and_the_projection_seed_other_tasks():
    first, other, elsewhere = reduced(changed=3), reduced(changed=3, seed=1), reduced(changed=3, projection_seed=1)
    assert torch.equal(first.test_set.tensors[0], other.test_set.tensors[0])
    assert not torch.equal(first.train_set.tensors[0], other.train_set.tensors[0])
    assert torch.equal(first.train_set.tensors[0].sort(0).values, other.train_set.tensors[0].sort(0).values)
    plain = [of_runs(reduced(projection_seed=seed).test_set, 6)[0] for seed in (0, 1)]
    assert not any(torch.allclose(x, y) for x, y in zip(*plain, strict=True))
    kept = [of_runs(data.test_set, 6)[0] == x for data, x in zip((first, elsewhere), plain, strict=True)]
    assert not torch.equal(*(places.all(1) for places in kept))
    assert torch.equal(first.train_set.tensors[1], elsewhere.train_set.tensors[1])
    torch.manual_seed(3)
    assert torch.equal(reduced(changed=3).train_set.tensors[0], first.train_set.tensors[0])


def test_changed_elements_are_as_many_as_asked_from_elsewhere_and_nested(zeros_and_ones):
    tests = {n: of_runs(reduced(changed=n, repeats=4).test_set, 8)[0] for n in (0, 1, 3, 8)}
    expected = projected(zeros_and_ones, 2)
    changed, sources = {}, {}
    for n, x in tests.items():
        for run in range(8):
            away = (x[run] != tests[0][run]).any(0).nonzero().flatten().tolist()
            assert len(away) == n
            every = expected[run // 4][1]
            found = [np.abs(every - x[run][:, [i]].numpy()).max(0).argmin() for i in range(8)]
            assert all(found[i] == i for i in range(8) if i not in away)
            assert len({found[i] for i in away} & set(range(8, 16))) == n
            changed[n, run], sources[n, run] = away, [int(found[i]) for i in away]
    for run in range(8):
        assert (
            dict(zip(changed[1, run], sources[1, run], strict=True)).items()
            <= dict(zip(changed[3, run], sources[3, run], strict=True)).items()
        )
    assert len({tuple(changed[3, run]) for run in range(8)}) > 4


def test_changes_keep_the_training_order():
    plain, changed = reduced().train_set.tensors, reduced(changed=3).train_set.tensors
    assert torch.equal(plain[1], changed[1])
    same = (plain[0] == changed[0]).all(0).view(6, 8).sum(1)
    assert same.tolist() == [5] * 6


def shares(x, labels):
    """What least squares on ±1 without bias gets right, by numpy, for two classes."""
    target = np.where(labels == 1, 1.0, -1.0)
    weights = np.linalg.lstsq(x, target, rcond=None)[0]
    return float(((x @ weights > 0) == (labels == 1)).mean())


def test_projections_below_the_ceiling_are_passed_over(zeros_and_ones):
    labels = zeros_and_ones[0][1].numpy()
    drawn = projected(zeros_and_ones, 40)
    ceilings = [shares(train[:, :8].astype(float), labels) for train, _ in drawn]
    reach = [i for i, share in enumerate(ceilings) if share >= 0.97][:3]
    assert reach != [0, 1, 2]
    x, _ = of_runs(reduced(ceiling=0.97, projections=3, repeats=1, changed=2).test_set, 3)
    plain, _ = of_runs(reduced(ceiling=0.97, projections=3, repeats=1).test_set, 3)
    for run, draw in enumerate(reach):
        np.testing.assert_allclose(plain[run], drawn[draw][1][:, :8], atol=1e-5)
        assert (x[run] == plain[run]).all(0).sum() == 6


def test_a_linear_ceiling_is_that_of_least_squares_for_any_number_of_classes():
    generator = torch.Generator().manual_seed(0)
    for classes in (2, 4):
        labels = torch.randint(classes, (300,), generator=generator)
        x = torch.randn(300, 6, generator=generator) + torch.eye(6)[labels] + 0.5
        weights = np.linalg.lstsq(x.double().numpy(), np.eye(classes)[labels.numpy()], rcond=None)[0]
        expected = ((x.double().numpy() @ weights).argmax(1) == labels.numpy()).mean()
        assert 1 / classes < expected < 1
        assert linear_ceiling(x, labels, classes) == pytest.approx(expected, abs=1e-12)
    assert linear_ceiling(x[:, [0, 0]], labels, 4) == linear_ceiling(x[:, [0]], labels, 4)


def test_a_ceiling_out_of_reach(monkeypatch, zeros_and_ones):
    monkeypatch.setattr(tasks, "DRAWS", 5)
    problem = Reduced(Digits(), ceiling=1.0, elements=2, projections=3).present()
    best = max(shares(train[:, :2], zeros_and_ones[0][1].numpy()) for train, _ in projected(zeros_and_ones, 5))
    assert problem.startswith("data.ceiling is 1.0; only 0 of 5 random projections reach it, of 3 wanted ")
    assert f"(best: {best:.4f})" in problem
    assert problem.endswith("): set a lower --data.ceiling, or more --data.elements")


def test_images_are_spaced_evenly_among_the_kept_classes(digits):
    plain, few = reduced(labels=(7, 2, 5)), reduced(labels=(7, 2, 5), train_images=30, test_images=60)
    assert few.classes == 3
    assert few.train_set.tensors[1].T.sort().values.tolist() == [[0] * 10 + [1] * 10 + [2] * 10] * 6
    kept = [[2, 5, 7].index(label) for label in digits.test_set.tensors[1].tolist() if label in (2, 5, 7)]
    names = torch.tensor([1, 2, 0])[torch.tensor(kept)]
    assert plain.test_set.tensors[1][:, 0].tolist() == names.tolist()
    assert few.test_set.tensors[1][:, 5].tolist() == names[::5].tolist()
    factor = plain.test_set.tensors[0][::5] / few.test_set.tensors[0]
    assert torch.allclose(factor[:, :24], factor[0, 0].expand(60, 24, 1, 1), rtol=1e-3)


def test_labels_come_from_wherever_a_data_set_keeps_them():
    train = TensorDataset(torch.rand(12, 1, 2, 2), torch.arange(12) % 2)
    for change in (
        lambda images: images,
        lambda images: Subset(images, range(11, -1, -1)),
        lambda images: Subset(Subset(images, range(11, -1, -1)), range(2, 8)),
        lambda images: Unlabelled(*images.tensors),
        lambda images: Modified(Own(images, own()), hold=False).load()[0],
    ):
        images = change(train)
        x, labels = reduced(Own(images, own()), dimensions=3, elements=1, labels=(1, 0)).train_set.tensors
        assert len(x) == len(images)
        assert labels[:, 0].tolist() == [1 - int(images[i][1]) for i in order_of(0, len(images)).tolist()]


def test_images_in_folders_are_kept_by_their_labels(tmp_path):
    images = ImageFolder(str(photographs(tmp_path / "photos")), size=16, test_fraction=0.4, augment=False)
    data = reduced(images, labels=(1, 0))
    assert data.test_set.tensors[1][:, 0].tolist() == [1, 1, 0, 0]
    assert len(data.train_set) == 6


def test_named_classes_of_cifar100(data_root):
    images = CIFAR100(str(data_root), names=("woman", "beaver"))
    data = reduced(images, labels=(1, 0), train_images=20, test_images=40)
    images.setup()
    expected = [1 - label for label in (images.test_set[i][1] for i in range(0, 200, 5))]
    assert data.test_set.tensors[1][:, 0].tolist() == expected


def test_mnist_zeros_and_ones(data_root):
    data = reduced(MNIST(str(data_root)), train_images=300, test_images=100)
    assert [len(tensor) for tensor in (*data.train_set.tensors, *data.test_set.tensors)] == [300, 300, 100, 100]
    assert 0.35 < data.train_set.tensors[1].double().mean() < 0.7
    x, labels = of_runs(data.train_set, 6)
    assert linear_ceiling(x[0], labels[0], 2) > 0.75


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"labels": (0,)}, r"data\.labels is \(0,\); allowed: 2 or more different ones of 0 to 9"),
        ({"labels": (0, 10)}, r"data\.labels is \(0, 10\); allowed"),
        ({"labels": (1, 1)}, r"data\.labels is \(1, 1\); allowed"),
        ({"dimensions": 0}, r"data\.dimensions is 0; allowed: 1 or more"),
        ({"repeats": 0}, r"data\.repeats is 0; allowed: 1 or more"),
        ({"train_images": 0}, r"data\.train_images is 0; allowed: 1 or more"),
        ({"elements": 17}, r"data\.elements is 17; allowed: 1 to data\.dimensions, 16"),
        ({"elements": 12, "changed": 5}, r"data\.changed is 5; allowed: 0 to 4, for 12 data\.elements of 16 data\.dim"),
        ({"changed": -1}, r"data\.changed is -1; allowed: 0 to 8"),
        ({"ceiling": 97.0}, r"data\.ceiling is 97\.0; allowed: 0 to 1"),
    ],
)
def test_refused_settings(setting, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        Reduced(Digits(), **setting)


def test_a_class_of_which_there_are_no_images():
    images = Own(TensorDataset(torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.long)), own())
    problem = Reduced(images, dimensions=2, elements=1).present()
    assert problem == "data.labels: data.images has no training images of [1]; name other classes"


# Recipes


RECIPE = """
data:
  class_path: energytl.tasks.{task}
  init_args:
    images: {{class_path: energytl.data.Digits, init_args: {{batch_size: 100}}}}
    {settings}
network: {{class_path: energytl.models.mlp, init_args: {{features: 8, hidden: [], classes: 2}}}}
evaluation: null
"""


@pytest.mark.parametrize(
    ("task", "settings", "expected"),
    [
        ("Modified", "swapped_rows: [[9, 14], [3, 4]]", {"swapped_rows": ((9, 14), (3, 4)), "train_images": None}),
        ("Reduced", "labels: [3, 5]\n    changed: 3", {"labels": (3, 5), "changed": 3, "runs": 50}),
    ],
)
def test_a_recipe_names_a_task(task, settings, expected):
    case = Case("a", parse(RECIPE.format(task=task, settings=settings)))
    data = case.build().data
    assert type(data) is getattr(tasks, task)
    assert type(data.images) is Digits
    assert {name: getattr(data, name) for name in expected} == expected
    again = Case("a", parse(case.as_yaml()))
    assert again.resolved() == case.resolved()
    assert data.present() is None
    x, _ = next(iter(data.train_dataloader()))
    assert x.shape == (10, *data.shape)


def test_a_recipe_that_swaps_rows_that_are_not_there(tmp_path):
    file = tmp_path / "swap.yaml"
    file.write_text(RECIPE.format(task="Modified", settings="swapped_rows: [[9, 28]]"))
    with pytest.raises(RecipeError, match=r"data\.swapped_rows has row 28; allowed: 0 to 27"):
        read(file, [])[0].build()
