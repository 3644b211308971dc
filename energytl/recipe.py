"""What a recipe holds, and how a YAML file with its cases and overrides becomes recipes."""

import copy
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from energytl.analog.hardware import Hardware
from energytl.analog.read import Computation, Moments, Noiseless
from energytl.convergence import Convergence
from energytl.cost.periphery import Periphery
from energytl.data import ImageData
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation
from energytl.devices.programming import WriteError
from energytl.devices.pulsed import PulsedDevice
from energytl.evaluation import Evaluation
from energytl.objectives import Objective

OWN_TRAINER_SETTINGS = {
    "callbacks",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "logger",
    "max_epochs",
}
"""What energytl sets of Lightning's Trainer; everything else can be set in a recipe."""

KEPT = "trained"
"""Folder beside the recipes' runs with finished trainings that other runs may share."""


PRETRAIN = "pretrain"
"""Name of the digital pre-training among the trainings before the recipe's own."""


class RecipeError(ValueError):
    """A recipe that cannot be run; the message is one line for its author."""


def adam(parameters: Iterable[Any]) -> Optimizer:
    """Adam with a learning rate of 10⁻³."""
    return torch.optim.Adam(parameters, lr=1e-3)


@dataclass(frozen=True)
class Fit:
    """One training run.

    Attributes:
        epochs: passes over the training set.
        optimizer: any of torch's, or your own, by class path.
        scheduler: any of torch's, stepped after each epoch.
        clip_weights: cut weights of analog layers to their range after each step: hardware-aware training of weights
            that are not rounded, for cells that hold no more.
    """

    epochs: int = 5
    optimizer: Callable[[Iterable[Any]], Optimizer] = adam
    scheduler: Callable[[Optimizer], LRScheduler] | None = None
    clip_weights: bool = False

    def __post_init__(self) -> None:
        """Refuse to train for less than an epoch."""
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; allowed: 1 or more (or no training: null)")


@dataclass(frozen=True)
class Pretrain(Fit):
    """A training before the recipe's own, from which that starts; kept for all cases that ask for the same.

    Attributes:
        data: what it learns; null: the recipe's data.
        network: what learns it, if it is not the recipe's network, as with other classes: all parameters and buffers
            that both have, by name and shape, go on in the recipe's; the others start anew.
        seed: null: the recipe's; a number of its own lets several seeds start from one pre-training.
    """

    data: ImageData | None = None
    network: nn.Module | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Stage(Pretrain):
    """A training of the analog network between the digital one and the recipe's own.

    Attributes:
        hardware: what it runs on; null: the recipe's, and if nothing is programmed in between, what comes next goes on
            with the same arrays (of pulsed cells; `MultilevelRefresh` and `ResetPair` write theirs anew).
        training_computation: how training sees the reads, as in the recipe.
        objective: the price of energy. ρ that it trains goes on.
    """

    hardware: Hardware | None = None
    training_computation: Computation = Moments()
    objective: Objective = Objective()

    def __post_init__(self) -> None:
        """Refuse a family of prices."""
        super().__post_init__()
        if len(self.objective.stages()) > 1:
            raise ValueError("objective.energy_weight of a stage is one number; add a stage for each other one")

    @property
    def on_recipes_arrays(self) -> bool:
        """Whether it trains the recipe's network on the recipe's hardware, so that its arrays can go on."""
        return self.hardware is None and self.network is None


@dataclass(frozen=True)
class Programming:
    """The write of the weights onto the arrays, once, before the recipe's own training.

    Attributes:
        error: what the write misses by.
        stuck: share of the weights that stay near 0, whatever is written.
    """

    error: WriteError
    stuck: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no share."""
        if not 0 <= self.stuck <= 1:
            raise ValueError(f"program.stuck is {self.stuck}; allowed: 0 to 1")


@dataclass(frozen=True)
class Recipe:
    """From a digital network to accuracy and energy on analog hardware.

    The order is: weights, pretrain (digital), conversion, stages (analog), program, train, evaluation.

    Attributes:
        network: the digital network: a class, or a function that returns one, by its path.
        data: the images, as an energytl.data.ImageData.
        weights: file with the digital network's state dict, loaded before anything else.
        pretrain: digital training.
        stages: trainings of the analog network by their names, one after the other.
        program: write the weights onto the arrays with an error; null: without one.
        frozen: names of layers, or of parameters, that the recipe's own training leaves as they are; * stands for
            anything.
        hardware: what the network runs on.
        training_computation: how training sees the reads. Moments: with their fluctuation (technique A);
            Noiseless: quantised only.
        objective: the price of energy in training (technique B).
        train: training of the analog network, from what came before.
        share_training: keep the trained analog network, and take it from any earlier run with the same settings that
            training sees, of this recipe or another.
        convergence: tell how soon training reaches an accuracy.
        evaluation: how accuracy is measured; null: not at all.
        periphery: the circuits around the arrays; null: not modelled.
        strict: refuse networks of which some weights would stay digital.
        calibration_batches: training batches that set the input ranges.
        baseline: the case is one that the others are compared with.
        method: what the case shows, if it differs from its name; with `condition`, figures group cases.
        condition: under which circumstances.
        published: energies that a paper reports for the same drops, in its own unit, to compare ratios with.
        paper: what a paper says of this case, in words.
        seed: of weights, order of images and noise.
    """

    network: nn.Module
    data: ImageData
    weights: str | None = None
    pretrain: Pretrain | None = None
    stages: dict[str, Stage] = field(default_factory=dict)
    program: Programming | None = None
    frozen: tuple[str, ...] = ()
    hardware: Hardware = Hardware()
    training_computation: Computation = Moments()
    objective: Objective = Objective()
    train: Fit | None = None
    share_training: bool = False
    convergence: Convergence | None = None
    evaluation: Evaluation | None = field(default_factory=Evaluation)
    periphery: Periphery | None = field(default_factory=Periphery)
    strict: bool = True
    calibration_batches: int = 4
    baseline: bool = False
    method: str | None = None
    condition: str | None = None
    published: tuple[float, ...] = ()
    paper: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse an uncalibrated network, and settings of a training that there is not."""
        if PRETRAIN in self.stages:
            raise ValueError(f"stages: {PRETRAIN} is the digital training before them; give the stage another name")
        for key in ("convergence", "frozen"):
            if getattr(self, key) and self.train is None:
                raise ValueError(f"{key} is about training, but train is null: leave it out")
        if self.pretrain is not None and self.pretrain.clip_weights:
            raise ValueError("pretrain.clip_weights: digital weights have no range; leave it out, or make it a stage")
        if self.data.runs > 1 and self.evaluation is not None:
            raise ValueError(
                f"evaluation is of one network, but {self.data.runs} runs train side by side: set evaluation: null"
            )
        if self.calibration_batches < 1:
            raise ValueError(f"calibration_batches is {self.calibration_batches}; allowed: 1 or more")

    @property
    def before(self) -> dict[str, Pretrain]:
        """The trainings before the recipe's own, in their order, by name."""
        return ({PRETRAIN: self.pretrain} if self.pretrain else {}) | self.stages

    @property
    def calibration(self) -> Computation:
        """How calibration reads: as training does; without training without fluctuation, alike for all read schemes."""
        return Noiseless() if self.train is None else self.training_computation


@dataclass(frozen=True)
class Case:
    """One variant of a recipe, read but not yet built.

    Attributes:
        name: of the case.
        settings: what the parser made of the file, the case and the overrides.
    """

    name: str
    settings: Namespace

    def build(self) -> Recipe:
        """The recipe with its network and data made. Random weights come from torch's global seed."""
        try:
            built = recipe_parser().instantiate(self.settings)
            return Recipe(**{name: built[name] for name in Recipe.__dataclass_fields__})
        except (ValueError, TypeError, ArgumentError) as error:
            raise RecipeError(f"case {self.name}: {one_line(error, recipe_parser())}") from error

    def trainer_settings(self) -> dict[str, Any]:
        """Arguments for Lightning's Trainer."""
        parser = _trainer_parser()
        return dict(vars(parser.instantiate(Namespace(trainer=self.settings.trainer)).trainer))

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain values, defaults filled in."""
        plain: dict[str, Any] = yaml.safe_load(self.as_yaml())
        return plain

    def as_yaml(self) -> str:
        """The resolved recipe, ready to be run itself."""
        text: str = recipe_parser().dump(self.settings, skip_unset=False)
        return text


@cache
def recipe_parser(prog: str = "energytl run RECIPE") -> ArgumentParser:
    """The parser of everything that a recipe may hold."""
    set_parsing_settings(
        subclasses_enabled=[Fluctuation, Cell, PulsedDevice]
    )  # so that functions may return them, as presets do
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=Recipe.__doc__)
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe to take settings from.")
    parser.add_class_arguments(Recipe, as_group=False)
    _add_trainer(parser)
    return parser


@cache
def _trainer_parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    _add_trainer(parser)
    return parser


def _add_trainer(parser: ArgumentParser) -> None:
    parser.add_class_arguments(Trainer, "trainer", instantiate=False, skip=set(OWN_TRAINER_SETTINGS))


def read(
    path: Path, overrides: list[str], only: str | None = None, changes: dict[str, Any] | None = None
) -> list[Case]:
    """The cases of a recipe file, in their order; a file without `cases` has one, named after the file.

    Args:
        path: YAML file. `cases` maps names to what differs from the rest of the file, nested or dotted; `seeds` lists
            numbers with each of which every case is run; `base` names a recipe beside it, or several, of which later
            ones win, from which this one differs in what it says; `import_from` lists folders of your own modules,
            besides the recipe's and the working one.
        overrides: as on the command line, --key.sub=value; they win over the file and its cases.
        only: read just the case of that name.
        changes: nested or dotted settings that win over the file and its cases, but not over the overrides.

    Raises:
        RecipeError: for what cannot be read, in one line.
    """
    content = _content(path)
    folders = content.pop("import_from", None) or []
    if not (isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)):
        raise RecipeError(f"{path}: import_from is {folders!r}; allowed: a list of folders with your own modules")
    sys.path[:0] = [place for folder in folders if (place := str(path.parent / folder)) not in sys.path]
    variants = content.pop("cases", None) or {path.stem: {}}
    if not isinstance(variants, dict) or not all(isinstance(v, dict | None) for v in variants.values()):
        raise RecipeError(f"{path}: cases must map names to settings")
    variants, seeds = _with_seeds(path, variants, content.pop("seeds", None), content.get("method"), overrides)
    if only is not None and only not in variants:
        raise RecipeError(f"{path}: no case {only!r}; there are: {', '.join(map(str, variants))}")
    cases = []
    parsed: dict[str, Namespace] = {}  # seeds of a case are told apart after parsing, which takes long
    for name, variant in variants.items():
        if only not in (None, name):
            continue
        if not str(name).strip(". ") or set(str(name)) & set("/\\\0"):
            raise RecipeError(f"{path}: the case name {name!r} cannot name a folder")
        merged = merge(merge(nested(content), nested(variant or {})), nested(changes or {}))
        seed = merged.pop("seed") if name in seeds and merged["seed"] == seeds[name] else None
        text = yaml.safe_dump(merged)
        try:
            if text not in parsed:
                parsed[text] = parse(text, overrides)
        except (ArgumentError, ValueError, TypeError) as error:
            where = str(path) if name == path.stem else f"{path}, case {name}"
            raise RecipeError(f"{where}: {one_line(error, recipe_parser())}") from error
        settings = parsed[text].clone()
        if seed is not None:
            settings.seed = seed
        if name in seeds:
            own = settings.data.get("init_args")
            if own is not None and "seed" in own:  # another order of images, too
                own.seed += seeds[name]
        cases.append(Case(str(name), settings))
    return cases


def _with_seeds(
    path: Path,
    variants: dict[str, Any],
    seeds: Any,  # noqa: ANN401
    method: str | None,
    overrides: Sequence[str],
) -> tuple[dict[str, Any], dict[str, int]]:
    """Every case with every seed, and the seed of each of them; a case without a method is one by its name."""
    if seeds is None:
        return variants, {}
    if any(re.match(r"--seed\b(?!\.)", word) for word in overrides):
        raise RecipeError(f"{path} has seeds, which --seed cannot change: change the list, or choose cases by --case")
    numbers = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not seeds or not numbers or len(set(seeds)) < len(seeds):
        raise RecipeError(f"{path}: seeds is {seeds}; allowed: a list of different whole numbers, as [0, 1, 2]")
    repeated, of = {}, {}
    for case, variant in variants.items():
        for seed in seeds:
            name = f"{case}, seed {seed}"
            repeated[name] = merge({"method": method or str(case)}, nested(variant or {})) | {"seed": seed}
            of[name] = seed
    return repeated, of


def parse(text: str, overrides: Sequence[str] = ()) -> Namespace:
    """The settings of a recipe without cases and base, as `Case.as_yaml` writes it; what it leaves out is default."""
    settings = recipe_parser().parse_args(["--config", text, *overrides])
    settings.pop("config", None)
    return settings


def _content(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file's settings, upon those of its base."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"recipe {path} not found" + (f", the base of {above[-1]}" if above else "")) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {one_line(error, recipe_parser())}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path} is not a mapping of settings")
    base = content.pop("base", None)
    if base is None:
        return content
    if path in above:
        raise RecipeError(f"recipe {path} is its own base")
    merged: dict[str, Any] = {}
    for name in base if isinstance(base, list) else [base]:
        merged = merge(merged, _content(path.parent / str(name), (*above, path)))
    return merge(merged, content)


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys unfolded into nested ones.

    >>> nested({"hardware.rho": 2, "hardware": {"read": "SingleRead"}})
    {'hardware': {'rho': 2, 'read': 'SingleRead'}}
    """
    unfolded: dict[str, Any] = {}
    for key, value in settings.items():
        value = nested(value) if isinstance(value, dict) else value
        *parents, last = str(key).split(".")
        for parent in reversed([*parents, last]):
            value = {parent: value}
        unfolded = merge(unfolded, value)
    return unfolded


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones, the inverse of `nested`.

    >>> flat({"hardware": {"rho": 2}, "seed": 0})
    {'hardware.rho': 2, 'seed': 0}
    """
    dotted: dict[str, Any] = {}
    for name, value in settings.items():
        dotted |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return dotted


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Base with changes, nested mappings merged; where the class path changes, nothing of the old class stays.

    >>> merge({"a": {"class_path": "X", "init_args": {"n": 1}}}, {"a": {"class_path": "Y"}})
    {'a': {'class_path': 'Y'}}
    """
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and _same_class(old, value):
            merged[key] = merge(old, value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _same_class(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return "class_path" not in new or new["class_path"] == old.get("class_path")


def said_by(error: BaseException) -> str:
    """What an error says, in one line; its type if it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def one_line(error: BaseException, parser: ArgumentParser) -> str:
    """What jsonargparse says, with the whole key in front, without Python's class brackets and the Nones allowed.

    Args:
        error: what a parser raised.
        parser: whose keys an unknown one is compared with.
    """
    text = said_by(error)
    text = re.sub(r"<class '([\w.]*\.)?(\w+)'>", r"\2", text)
    text = re.sub(r"Does not validate against .* Errors: - (?:Problem with given class_path '[^']*': )?", "", text)
    text = text.split(" - Expected a NoneType")[0]
    keys = re.findall(r'Parser key "([\w.]+)": ', text)
    if keys:
        text = text.rsplit(f'Parser key "{keys[-1]}": ', 1)[1]
        text = f"{'.'.join(keys)}: {text}"
    unknown = re.search(r"(?:unrecognized arguments: --|Option ')([\w.]+)", text)
    if unknown and keys:
        return f"{'.'.join(keys)}: unknown key {unknown[1]}"
    if unknown:
        known = sorted(set(parser.get_defaults().keys(branches=True)) - {"config"})
        close = difflib.get_close_matches(unknown[1], known, 1)
        top = ", ".join(key for key in known if "." not in key)
        return f"unknown key {unknown[1]}; " + (f"did you mean {close[0]}?" if close else f"there are {top}")
    return text.replace("Expected a ", "expected ")
