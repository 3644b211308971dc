"""What a study file holds, and how it is read: a base recipe, what varies, the objectives and their bounds."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from optuna import Trial
from optuna.samplers import BaseSampler
from torch import nn

from energytl import strict_yaml
from energytl.allowed import COUNT, SEED, check
from energytl.analog.configure import analog_layers
from energytl.analog.convert import convert
from energytl.optim.on_chip import OnChipOptimizer
from energytl.parser import one_line, parse, said_by
from energytl.recipe import Case, Recipe, RecipeError, merge, nested, read
from energytl.study.quantities import QUANTITIES


class StudyError(RecipeError):
    """A study that cannot be run; the message is one line for its author."""


@dataclass(frozen=True)
class Range:
    """A number that varies.

    Attributes:
        low: smallest value.
        high: largest value. Whole numbers at both ends (and as step) make all values whole.
        log: drawn evenly in its logarithm.
        step: distance of the values; None: any.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        check(self)
        if not self.low < self.high:
            raise ValueError(f"the range from {self.low} to {self.high} is empty; low must be below high")
        if self.log and not self.low > 0:
            raise ValueError(f"low is {self.low}; with log it must be above 0")
        if self.log and self.step is not None:
            raise ValueError("log and step exclude each other")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"step is {self.step}; allowed: above 0, at most high - low")

    def suggest(self, trial: Trial, key: str) -> Any:  # noqa: ANN401
        """A value for a trial."""
        if all(isinstance(value, int | None) for value in (self.low, self.high, self.step)):
            return trial.suggest_int(key, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)

    @property
    def examples(self) -> list[Any]:
        """Values to check the recipe with: the ends."""
        return [self.low, self.high]


@dataclass(frozen=True)
class Choice:
    """One of several values, of any kind that a recipe takes.

    Attributes:
        values: at least two, all different.
    """

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        """Refuse what leaves no choice."""
        if len({self.name(value) for value in self.values}) < max(2, len(self.values)):
            raise ValueError(f"{list(self.values)} leaves no choice; a list of two different values or more is wanted")

    @staticmethod
    def name(value: Any) -> str:  # noqa: ANN401
        """A value as one line of YAML, how the storage knows it."""
        return str(yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip())

    def suggest(self, trial: Trial, key: str) -> Any:  # noqa: ANN401
        """A value for a trial."""
        names = {self.name(value): value for value in self.values}
        return names[trial.suggest_categorical(key, list(names))]

    @property
    def examples(self) -> list[Any]:
        """Values to check the recipe with: all."""
        return list(self.values)


@dataclass(frozen=True)
class Bound:
    """What a quantity must keep to.

    Attributes:
        at_least: smallest value allowed.
        at_most: largest value allowed.
    """

    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        """Refuse what bounds nothing."""
        check(self)
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError("a constraint wants either at_least or at_most")

    @property
    def value(self) -> float:
        """The one that is set."""
        value = self.at_most if self.at_least is None else self.at_least
        assert value is not None
        return value

    def violation(self, quantity: str, value: float) -> float:
        """How far a value is beyond the bound, in the quantity's scale; 0 or less: it keeps to it.

        >>> round(Bound(at_least=0.9).violation("accuracy", 0.87), 3), Bound(at_most=1e-6).violation("latency", 1e-7)
        (0.03, -1.0)
        """
        worse = QUANTITIES[quantity].loss(value) - QUANTITIES[quantity].loss(self.value)
        bounded_from_the_bad_side = (self.at_least is None) != QUANTITIES[quantity].larger_is_better
        return worse if bounded_from_the_bad_side else -worse


@dataclass(frozen=True)
class Stagnation:
    """When a study has seen enough: its hypervolume has hardly grown for a while.

    Attributes:
        trials: so many, the last ones, are looked at.
        gain: they must have added this share of the hypervolume.
    """

    trials: int = 30
    gain: float = 0.001

    def __post_init__(self) -> None:
        """Refuse to stop at once."""
        check(self, "stop")
        if self.trials < 1 or not 0 <= self.gain < 1:
            raise ValueError(f"stop has trials {self.trials} and gain {self.gain}; allowed: 1 or more, 0 up to 1")


@dataclass(frozen=True)
class Hopeless:
    """When a trial is stopped in training: too many others were better in everything at the same epoch.

    Attributes:
        share: of the others at this epoch that may dominate it: at least as cheap in every cost, and more accurate
            by the margin.
        margin: of accuracy.
        least: others that must have been seen at this epoch.
    """

    share: float = 0.3
    margin: float = 0.01
    least: int = 8

    def __post_init__(self) -> None:
        """Refuse shares and margins that mean nothing."""
        check(self, "hopeless")
        if not 0 < self.share <= 1 or not 0 <= self.margin < 1 or self.least < 1:
            raise ValueError("hopeless: allowed are share above 0 up to 1, margin 0 up to 1, least 1 or more")


@dataclass(frozen=True)
class Confirmation:
    """How the front is measured again, since trials are measured in a hurry.

    Attributes:
        reads: Monte Carlo reads of each of its points.
        near: points that are less accurate than the front by no more than this are measured, too.
    """

    reads: int = 20
    near: float = 0.003

    def __post_init__(self) -> None:
        """Refuse to measure nothing."""
        check(self, "confirm", reads=COUNT)
        if self.reads < 1 or not 0 <= self.near < 1:
            raise ValueError(f"confirm has reads {self.reads} and near {self.near}; allowed: 1 or more, 0 up to 1")


@dataclass(frozen=True)
class Settings:
    """What a study file holds.

    Attributes:
        recipe: the base recipe, beside the study file.
        objectives: two or three of accuracy, energy_paper, energy_cell, energy_total, latency, cells, training_energy,
            training_latency.
        vary: recipe keys, dotted, each with the values it takes: a list, or {low, high, log, step}.
        case: which case of the base recipe, if it has several.
        settings: what all trials change in the base recipe, as a case does.
        constraints: quantities with at_least or at_most; points that break one are not on the front.
        sampler: any of Optuna's that takes several objectives, by class path. Its seed is set for each trial.
        trials: how many.
        stop: when to stop before; null: not.
        hopeless: when to stop a trial in training; null: not. Needs costs that are known by then: none of training,
            and evaluation.max_drop: null.
        confirm: how the front is measured again; null: not.
        seed: of the suggestions. Trials have the recipe's.
    """

    recipe: str
    objectives: tuple[str, ...]
    vary: dict[str, Any]
    sampler: BaseSampler
    case: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    constraints: dict[str, Bound] = field(default_factory=dict)
    trials: int = 60
    stop: Stagnation | None = None
    hopeless: Hopeless | None = None
    confirm: Confirmation | None = Confirmation()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse objectives and constraints that do not exist."""
        check(self, trials=COUNT, seed=SEED)
        known = ", ".join(QUANTITIES)
        for name in (*self.objectives, *self.constraints):
            if name not in QUANTITIES:
                raise ValueError(f"there is no quantity {name!r}; there are: {known}")
        if not 2 <= len(set(self.objectives)) == len(self.objectives) <= 3:
            raise ValueError(f"objectives are {list(self.objectives)}; two or three different ones are wanted")
        if not self.vary:
            raise ValueError("vary is empty: nothing to search")
        for name, bound in self.constraints.items():
            if QUANTITIES[name].logarithmic and not bound.value > 0:
                raise ValueError(f"constraints.{name} is {bound.value}; allowed: above 0")
            if name == "accuracy" and not 0 < bound.value <= 1:
                raise ValueError(f"constraints.accuracy is {bound.value}; allowed: above 0 up to 1, as 0.9 for 90 %")
        late = [name for name in self.objectives if name.startswith("training")]
        if self.hopeless and late:
            raise ValueError(f"hopeless cannot judge {late[0]} before the training has ended; set hopeless: null")
        if self.trials < 1:
            raise ValueError(f"trials is {self.trials}; allowed: 1 or more")


TRIAL_SETTINGS = {
    "share_training": True,  # the front is measured again without training again
    "trainer.enable_progress_bar": False,
    "baseline": False,
}
"""What every trial changes in the recipe."""


@dataclass(frozen=True)
class Study:
    """A study that has been read.

    Attributes:
        name: of the file.
        parsed: what the parser made of the file.
        settings: the same, made.
        varied: ranges and choices, by recipe key.
        base: the recipe of the study.
        overrides: of the recipe, from the command line.
    """

    name: str
    parsed: Namespace
    settings: Settings
    varied: dict[str, Range | Choice]
    base: Path
    overrides: tuple[str, ...]

    def sampler(self, seed: int) -> BaseSampler:
        """A new sampler with that seed."""
        parsed = self.parsed.clone()
        parsed.sampler.init_args.seed = seed
        return parser().instantiate(parsed).sampler

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """A value for all that varies."""
        return {key: varied.suggest(trial, key) for key, varied in self.varied.items()}

    def values(self, params: dict[str, Any]) -> dict[str, Any]:
        """What varies, from how the storage knows it."""
        return {
            key: yaml.safe_load(value) if isinstance(self.varied[key], Choice) else value
            for key, value in params.items()
        }

    def example(self) -> dict[str, Any]:
        """The first value of all that varies."""
        return {key: varied.examples[0] for key, varied in self.varied.items()}

    def case(self, name: str, values: dict[str, Any]) -> Case:
        """The recipe with these values of what varies, as a case with that name.

        Raises:
            RecipeError: if the recipe does not take them.
        """
        changes = merge(merge(nested(TRIAL_SETTINGS), nested(self.settings.settings)), nested(values))
        cases = read(self.base, [*self.overrides], self.settings.case, changes)
        if len(cases) > 1:
            named = ", ".join(case.name for case in cases)
            raise RecipeError(f"{self.base} has several cases; choose one with `case`: {named}")
        settings = cases[0].settings
        if settings.evaluation is not None:
            settings.evaluation.searched = True
        return Case(name, settings)

    def as_yaml(self) -> str:
        """The study with all defaults, and the command line's overrides."""
        plain = yaml.safe_load(parser().dump(self.parsed, skip_unset=False))
        plain |= {name: getattr(self.settings, name) for name in OF_THE_RECIPE}
        text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
        return text + "".join(f"# with {word}\n" for word in self.overrides)


OF_THE_RECIPE = ("vary", "settings")
"""Keys of a study file with recipe keys below them, which the recipe's parser checks."""


def parser() -> ArgumentParser:
    """The parser of everything that a study file may hold."""
    made = ArgumentParser(prog="energytl search STUDY", exit_on_error=False, description=Settings.__doc__)
    made.add_argument("--config", action=ActionConfigFile, help="A study file.")
    made.add_class_arguments(Settings, as_group=False, skip={*OF_THE_RECIPE})
    made.set_defaults({"sampler": {"class_path": "optuna.samplers.TPESampler", "init_args": {"constant_liar": True}}})
    return made


def read_study(path: Path, overrides: list[str]) -> Study:
    """A study file, checked down to the recipes that it will run.

    Args:
        path: YAML file.
        overrides: of the recipe, --key.sub=value; they win over the file, and may not set what varies.

    Raises:
        RecipeError: for what cannot be run, in one line.
    """
    parsed, settings, varied = _parsed(path)
    base = path.parent / settings.recipe
    sys.path.insert(0, str(base.parent))  # for a user's own modules beside the recipe
    study = Study(path.stem, parsed, settings, varied, base, tuple(overrides))
    for word in overrides:
        key = word.removeprefix("--").split("=")[0]
        if key in varied:
            raise StudyError(f"{path} varies {key}: take it out of `vary` before you set it")
    _check(path, study)
    return study


def read_settings(path: Path) -> Settings:
    """What a study file holds, without its recipe.

    Raises:
        StudyError: for what cannot be read, in one line.
    """
    return _parsed(path)[1]


def read_varied(settings: Settings) -> dict[str, Range | Choice]:
    """Ranges and choices of what varies, by recipe key.

    Raises:
        ValueError: for what does not vary.
    """
    return {key: _varied(key, values) for key, values in settings.vary.items()}


def _parsed(path: Path) -> tuple[Namespace, Settings, dict[str, Range | Choice]]:
    try:
        content = strict_yaml.read(path)
    except FileNotFoundError as error:
        raise StudyError(f"study {path} not found") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StudyError(f"study {path} cannot be read: {said_by(error)}") from error
    if not isinstance(content, dict):
        raise StudyError(f"study {path} is not a mapping of settings")
    try:
        of_the_recipe: dict[str, Any] = {name: content.pop(name, None) or {} for name in OF_THE_RECIPE}
        for name, value in of_the_recipe.items():
            if not isinstance(value, dict):
                raise ValueError(f"{name} must map keys of the recipe to values")
        parsed = parse(parser(), yaml.safe_dump(content))
        made = parser().instantiate(parsed)
        settings = Settings(**vars(made), **of_the_recipe)
        return parsed, settings, read_varied(settings)
    except Exception as error:  # a user's sampler may raise anything
        raise StudyError(f"{path}: {one_line(error, parser(), Settings)}") from error


def _varied(key: str, values: Any) -> Range | Choice:  # noqa: ANN401
    """A list is a choice, a mapping with low and high a range."""
    try:
        if isinstance(values, list):
            return Choice(tuple(values))
        if isinstance(values, dict):
            unknown = set(values) - set(Range.__dataclass_fields__)
            if unknown or not {"low", "high"} <= set(values):
                raise ValueError(f"{values} is no range; allowed: low, high, and log or step")
            return Range(**values)
        raise ValueError(f"{values!r} does not vary; a list of values or {{low, high, log, step}} is wanted")
    except (ValueError, TypeError) as error:
        raise ValueError(f"vary.{key}: {error}") from error


def _check(path: Path, study: Study) -> None:
    """Build the recipe with the ends of each range and every choice, so that no trial fails for a wrong setting."""
    lists = {key: varied.examples for key, varied in study.varied.items()}
    late = [name for name in (*study.settings.objectives, *study.settings.constraints) if name.startswith("training")]
    for number in range(max(map(len, lists.values()))):
        values = {key: examples[min(number, len(examples) - 1)] for key, examples in lists.items()}
        try:
            case = study.case(study.name, values)
            recipe = case.build()
            if late and not _trains_on_chip(recipe):
                raise StudyError(f"{late[0]} is searched, but nothing trains on the chip: set train.optimizer")
        except (RecipeError, ValueError, TypeError) as error:
            raise StudyError(f"{path}, with {_shown(values)}: {said_by(error)}") from error
    resolved = case.resolved()
    if study.settings.hopeless and (resolved.get("evaluation") or {}).get("max_drop") is not None:
        raise StudyError(f"{path}: hopeless needs evaluation.max_drop: null; set it in settings, or hopeless: null")
    if not resolved.get("evaluation"):
        raise StudyError(f"{path}: the recipe has evaluation: null, so that no accuracy is measured")


def _trains_on_chip(recipe: Recipe) -> bool:
    """Whether the recipe's own training is one whose energy and time are known."""
    if recipe.train is None:
        return False
    network = convert(nn.Sequential(nn.Linear(2, 2)), recipe.hardware, seed=0)
    for layer in analog_layers(network).values():
        layer.input_range = 1.0  # any: nothing is calibrated yet
    return isinstance(recipe.train.optimizer(network.parameters()), OnChipOptimizer)


def _shown(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} = {Choice.name(value)}" for key, value in values.items())
