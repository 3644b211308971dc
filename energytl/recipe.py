"""What a recipe holds, and how a YAML file with its cases and overrides becomes recipes."""

import copy
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from energytl import strict_yaml
from energytl.allowed import ABOVE_0, COUNT, FINITE, SEED, check, check_value
from energytl.analog.hardware import Hardware
from energytl.analog.read import Computation, Moments, Noiseless
from energytl.convergence import Convergence
from energytl.cost.periphery import Periphery
from energytl.data import ImageData
from energytl.devices.cell import Cell
from energytl.devices.fluctuation import Fluctuation
from energytl.devices.programming import Stuck, WriteError
from energytl.devices.pulsed import PulsedDevice
from energytl.evaluation import Evaluation
from energytl.objectives import Objective
from energytl.parser import (
    explained,
    help_on,
    lost,
    named,
    no_part,
    one_line,
    public_path,
    said_by,
    same_part,
    unknown_key,
)
from energytl.parser import parse as parse_settings

OWN_TRAINER_SETTINGS = {
    "callbacks",
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "logger",
    "max_epochs",
}
"""What energytl sets of Lightning's Trainer; everything else can be set in a recipe."""

TRAINER_BOUNDS = {"limit_train_batches": ABOVE_0} | dict.fromkeys(
    ("accumulate_grad_batches", "check_val_every_n_epoch", "devices", "log_every_n_steps", "num_nodes"), COUNT
)
"""What Lightning's Trainer takes, but trains nothing with, or fails with later."""

KEPT = "trained"
"""Folder beside the recipes' runs with finished trainings that other runs may share."""

SEARCHES = "search"
"""Folder beside the recipes' runs with those of searches."""

OF_THE_FILE = ("base", "cases", "seeds")
"""Keys of a recipe file, and of no case."""

LONGEST_NAME = 200
"""Bytes of a case's name, which names a folder."""

OF_THE_REPORT = (".html", ".json", ".lock", ".part", ".png")
"""Endings of what a report writes beside the cases."""

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
        check(self, epochs=COUNT, seed=SEED)


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
        stuck: shares of the cells that stay in one state, whatever is written.
    """

    error: WriteError
    stuck: Stuck = Stuck()


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
        layers: for patterns of layers' names (* stands for anything), what differs in their hardware; keys may be
            dotted, as converter.bits. Of patterns that match one layer, the later win.
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
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
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
        check(self, calibration_batches=COUNT, published=ABOVE_0, seed=SEED)
        for key in ("method", "condition"):
            if not (getattr(self, key) or "").isprintable():
                raise ValueError(f"{key} is {getattr(self, key)!r}; allowed: characters that a terminal shows")
        if PRETRAIN in self.stages:
            raise ValueError(f"stages: {PRETRAIN} is the digital training before them; give the stage another name")
        for key in ("convergence", "frozen"):
            if getattr(self, key) and self.train is None:
                raise ValueError(f"{key} is about training, but train is null: leave it out")
        if self.pretrain is not None and self.pretrain.clip_weights:
            raise ValueError("pretrain.clip_weights: digital weights have no range; leave it out, or make it a stage")
        times, drift = () if self.evaluation is None else self.evaluation.times_s, self.hardware.drift
        if times and drift.law is None:
            raise ValueError("evaluation.times_s requires cells that change: set hardware.drift.law, e.g. PcmDrift")
        for time_s in times:
            replace(drift, time_s=time_s)  # refuses what the law says nothing of
        if self.data.runs > 1 and self.evaluation is not None:
            raise ValueError(
                f"evaluation is of one network, but {self.data.runs} runs train side by side: set evaluation: null"
            )

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
        """The recipe with its network and data made. Random weights come from torch's global seed.

        Raises:
            RecipeError: for what the settings do not allow, and whatever a user's own network, data or device raises.
        """
        try:
            built = recipe_parser().instantiate(self.settings)
            layers = {pattern: self._of_layers(pattern, own, built.hardware) for pattern, own in built.layers.items()}
            return Recipe(**{name: built[name] for name in Recipe.__dataclass_fields__} | {"layers": layers})
        except Exception as error:
            said = _whole_key(one_line(error, recipe_parser(), Recipe), self.settings)
            part = self._failing()
            raise RecipeError(f"case {self.name}: {'' if part in said else f'{part}: '}{said}") from error

    def _of_layers(self, pattern: str, changes: dict[str, Any], common: Hardware) -> dict[str, Any]:
        """Fields of the hardware that differ in the layers of a pattern, checked as the whole hardware is."""
        settings = self.resolved()["hardware"]
        for key, value in changes.items():
            *places, last = key.split(".")
            part = settings
            for place in places:
                part[place] = part.get(place) or {}
                part = part[place].setdefault("init_args", {}) if "class_path" in part[place] else part[place]
            part[last] = value
        try:
            parser = _hardware_parser()
            own = parser.instantiate(parse_settings(parser, yaml.safe_dump({"hardware": settings}), ())).hardware
        except Exception as error:
            raise ValueError(f"layers.{pattern}: {one_line(error, _hardware_parser(), Recipe)}") from error
        names = [name for name in Hardware.__dataclass_fields__ if getattr(own, name) != getattr(common, name)]
        return {name: getattr(own, name) for name in names}

    def _failing(self) -> str:
        """The first part of the recipe that cannot be made; empty if each can."""
        for name in vars(self.settings):
            try:
                recipe_parser().instantiate(Namespace({name: self.settings[name]}))
            except Exception:
                return name
        return ""

    def trainer_settings(self) -> dict[str, Any]:
        """Arguments for Lightning's Trainer."""
        made = dict(vars(_trainer_parser().instantiate(Namespace(trainer=self.settings.trainer)).trainer))
        hints = typing.get_type_hints(Trainer.__init__)
        try:
            for name, value in made.items():
                check_value(name, value, hints[name], TRAINER_BOUNDS.get(name, FINITE))
        except TypeError as error:
            raise RecipeError(str(error)) from error
        return made

    def resolved(self) -> dict[str, Any]:
        """Every setting as plain values, defaults filled in."""
        plain: dict[str, Any] = yaml.safe_load(self.as_yaml())
        return plain

    def as_yaml(self) -> str:
        """The resolved recipe, ready to be run itself."""
        text: str = recipe_parser().dump(self.settings, skip_unset=False)
        return text


def _whole_key(said: str, settings: Namespace) -> str:
    """What a record says of a setting, with all of its key where only one setting can be meant.

    >>> _whole_key("seed is -1; allowed: 0 or more", Namespace(seed=0, pretrain=Namespace(seed=-1)))
    'pretrain.seed is -1; allowed: 0 or more'
    """
    found = re.match(r"([\w.]+) is (\S+);", said)
    if not found:
        return said
    last = found[1].rpartition(".")[2]
    keys = [key for key, value in flat(settings).items() if key.rpartition(".")[2] == last and str(value) == found[2]]
    return said.replace(found[1], keys[0].replace(".init_args", ""), 1) if len(keys) == 1 else said


@cache
def recipe_parser(prog: str = "energytl run RECIPE") -> ArgumentParser:
    """The parser of everything that a recipe may hold."""
    set_parsing_settings(
        subclasses_enabled=[Fluctuation, Cell, PulsedDevice]
    )  # so that functions may return them, as presets do
    parser = ArgumentParser(prog=prog, exit_on_error=False, description=Recipe.__doc__, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="A recipe to take settings from.")
    parser.add_class_arguments(Recipe, as_group=False)
    _add_trainer(parser)
    return parser


@cache
def _hardware_parser() -> ArgumentParser:
    recipe_parser()  # whose settings for parsing hold here, too
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile)
    parser.add_argument("--hardware", type=Hardware)
    return parser


def recipe_help(key: str | None = None, name: str | None = None) -> str:
    """The keys of a recipe, or what one of them takes; see `help_on`."""
    if key is None:
        keys = explained(Recipe).replace("\n  ", "\n  --").replace("  ", "  --", 1)
        keys += "\n  --trainer  whatever Lightning's Trainer takes"
        return f"{keys}\n\nwhat a key takes: --KEY.help, as --hardware.help"
    if key == "trainer":
        return explained(Trainer, [*OWN_TRAINER_SETTINGS, "self"])
    return help_on(Recipe, key, name)


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
    if path.stem in (KEPT, SEARCHES):
        raise RecipeError(f"{path}: a folder called {path.stem} lies beside those of recipes: give it another name")
    folders = content.pop("import_from", None) or []
    if not (isinstance(folders, list) and all(isinstance(folder, str) for folder in folders)):
        raise RecipeError(f"{path}: import_from is {folders!r}; allowed: a list of folders with your own modules")
    sys.path[:0] = [place for folder in folders if (place := str(path.parent / folder)) not in sys.path]
    variants = content.pop("cases", None) or {path.stem: {}}
    if not isinstance(variants, dict) or not all(isinstance(v, dict | None) for v in variants.values()):
        raise RecipeError(f"{path}: cases must map names to settings")
    for name, variant in variants.items():
        for key in OF_THE_FILE:
            if key in (variant or {}):
                raise RecipeError(f"{path}, case {name}: {key} belongs to the file, not to a case")
    variants, seeds = _with_seeds(path, variants, content.pop("seeds", None), content.get("method"), overrides)
    if only is not None and only not in variants:
        raise RecipeError(f"{path}: no case {only!r}; there are: {', '.join(variants)}")
    cases = []
    parsed: dict[str, Namespace] = {}  # seeds of a case are told apart after parsing, which takes long
    for name, variant in variants.items():
        if only not in (None, name):
            continue
        _refuse_name(path, name)
        where = str(path) if name == path.stem else f"{path}, case {name}"
        try:
            merged = merge(merge(content, variant or {}), nested(changes or {}))
            seed = merged.pop("seed") if name in seeds and merged["seed"] == seeds[name] else None
            text = yaml.safe_dump(merged)
            if text not in parsed:
                parsed[text] = parse(text, overrides)
                unknown = lost(merged, parsed[text])
                if unknown:
                    raise ValueError(unknown_key(unknown, recipe_parser(), Recipe))
            settings = parsed[text].clone()
            if seed is not None:
                settings.seed = seed
            check_value("seed", settings.seed, int, SEED)
        except Exception as error:  # a user's module may raise anything when it is imported
            raise RecipeError(f"{where}: {one_line(error, recipe_parser(), Recipe)}") from error
        if name in seeds:
            own = settings.data.get("init_args")
            if own is not None and "seed" in own:  # another order of images, too
                own.seed += seeds[name]
        cases.append(Case(name, settings))
    return cases


def _refuse_name(path: Path, name: str) -> None:
    """Refuse a case whose folder could not be made, or would take the place of a file of the report."""
    if not name.strip(". ") or set(name) & set("/\\\0"):
        raise RecipeError(f"{path}: the case name {name!r} cannot name a folder")
    if not name.isprintable():
        raise RecipeError(f"{path}: the case name {name!r} has characters that no terminal shows: take them out")
    if len(name.encode()) > LONGEST_NAME:
        raise RecipeError(f"{path}: the case name {name[:20]}… is too long for a folder; allowed: {LONGEST_NAME} bytes")
    if Path(name).suffix.lower() in OF_THE_REPORT:
        raise RecipeError(f"{path}: the case name {name} is that of a file of the report: leave out its ending")


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
    settings = parse_settings(recipe_parser(), text, overrides)
    trainings = {"pretrain": settings.pretrain, "train": settings.train}
    trainings |= {f"stages.{name}": stage for name, stage in settings.stages.items()}
    for name, training in trainings.items():
        for key, kind in (("optimizer", Optimizer), ("scheduler", LRScheduler)):
            maker = None if training is None else training[key]
            if maker is not None:
                _refuse_other_makers(f"{name}.{key}", maker, kind)
    return settings


def _refuse_other_makers(key: str, maker: Any, kind: type) -> None:  # noqa: ANN401
    """Refuse a function that does not make what is wanted before it is called, whatever it does."""
    part = named(maker["class_path"]) if isinstance(maker, Namespace) else maker
    made = part if inspect.isclass(part) else None
    if inspect.isfunction(part):
        made = typing.get_type_hints(part).get("return")
    if not (inspect.isclass(made) and issubclass(made, kind)):
        path = maker["class_path"] if isinstance(maker, Namespace) else public_path(part)
        raise ValueError(f"{key}: {no_part(path, kind)}")


def _content(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file's settings, upon those of its base, with nested keys."""
    if path.resolve() in [other.resolve() for other in above]:
        raise RecipeError(f"recipe {path} is its own base")
    try:
        content = strict_yaml.read(path)
    except FileNotFoundError as error:
        raise RecipeError(f"recipe {path} not found" + (f", the base of {above[-1]}" if above else "")) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RecipeError(f"recipe {path} cannot be read: {said_by(error)}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"recipe {path} is not a mapping of settings")
    base, cases = content.pop("base", None), content.pop("cases", None)
    bases = base if isinstance(base, list) else [] if base is None else [base]
    if not all(isinstance(name, str) for name in bases):
        raise RecipeError(f"recipe {path}: base is {base}; allowed: the name of a recipe beside it, or a list of names")
    own = nested(content)
    if isinstance(cases, dict):
        cases = {name: nested(case) if isinstance(case, dict) else case for name, case in cases.items()}
    merged: dict[str, Any] = {}
    for name in bases:
        merged = merge(merged, _content(path.parent / name, (*above, path)))
    return merge(merged, own if cases is None else {**own, "cases": cases})


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """Dotted keys unfolded into nested ones.

    >>> nested({"hardware.rho": 2, "hardware": {"read": "SingleRead"}})
    {'hardware': {'rho': 2, 'read': 'SingleRead'}}
    """
    unfolded: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "layers":  # its keys are patterns
            unfolded = merge(unfolded, {key: value})
            continue
        value = nested(value) if isinstance(value, dict) else value
        *parents, last = key.split(".")
        for parent in reversed([*parents, last]):
            value = {parent: value}
        unfolded = merge(unfolded, value)
    return unfolded


def flat(settings: dict[str, Any] | Namespace, prefix: str = "") -> dict[str, Any]:
    """Nested keys as dotted ones, the inverse of `nested`.

    >>> flat({"hardware": {"rho": 2}, "seed": 0})
    {'hardware.rho': 2, 'seed': 0}
    """
    dotted: dict[str, Any] = {}
    for name, value in (vars(settings) if isinstance(settings, Namespace) else settings).items():
        inner = isinstance(value, dict | Namespace)
        dotted |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return dotted


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Base with changes, nested mappings merged; where the class path changes, nothing of the old class stays.

    >>> merge({"a": {"class_path": "X", "init_args": {"n": 1}}}, {"a": {"class_path": "Y"}})
    {'a': {'class_path': 'Y'}}
    >>> merge({"a": "X"}, {"a": {"n": 1}})
    {'a': {'class_path': 'X', 'init_args': {'n': 1}}}
    """
    merged = copy.deepcopy(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, str) and isinstance(value, dict):
            old = {"class_path": old}
        if not isinstance(old, dict) or not isinstance(value, dict | str):
            merged[key] = copy.deepcopy(value)
            continue
        part = old.get("class_path")
        if isinstance(value, str):
            value = {"class_path": value}
        elif part is not None and not {"class_path", "init_args", "dict_kwargs"} & set(value):
            value = {"init_args": value}
        same = "class_path" not in value or (part is not None and same_part(str(part), str(value["class_path"])))
        merged[key] = merge(old, value) if same else copy.deepcopy(changes[key])
    return merged
