"""The search space: the keys of an experiment that a search varies, and the values that each may take.

``search.space`` maps dotted keys to the distribution of their values::

    training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}
    model.hidden_size: {choice: [64, 128, 256]}
    model.family: {choice: [gru, transformer]}
    model.heads: {choice: [2, 4], when: {model.family: transformer}}
"""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workflows.config.experiment import Experiment, flatten
from workflows.config.load import load
from workflows.config.settings import Search
from workflows.errors import OptionError

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution

RANGES = {"uniform": float, "loguniform": float, "int": int, "logint": int}
SECTIONS = ("dataset", "task", "model", "training")
FIXED = ("task.kind", "task.horizon", "dataset.kind")  # trials with different values could not be compared
MAX_ATTEMPTS = 30  # draws among which one must be a valid experiment and, for a sampler, new
SIGNIFICANT_DIGITS = 4  # of a drawn number: as many as a person would write
Settings = dict[str, Any]  # dotted keys -> values


@dataclass(frozen=True)
class Axis:
    """One key of a search space.

    Attributes:
        key: dotted, of the experiment.
        kind: choice, uniform, loguniform, int or logint.
        values: the choices, or (lowest, highest).
        when: the values that other keys must have for this key to be set at all.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    def applies(self, settings: Settings) -> bool:
        """Whether this key is to be set, given the settings of the axes before it."""
        return all(key in settings and settings[key] in allowed for key, allowed in self.when.items())

    def draw(self, trial: optuna.Trial) -> Any:
        """A value that an optuna trial suggests."""
        if self.kind == "choice":  # optuna has no lists as choices, so it chooses among texts
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(v) for v in self.values]))
        low, high = self.values
        log = self.kind.startswith("log")
        if RANGES[self.kind] is int:
            return trial.suggest_int(self.key, low, high, log=log)
        return self.clip(trial.suggest_float(self.key, low, high, log=log))

    def clip(self, value: Any) -> Any:
        """The nearest value inside the range, rounded to as many digits as a person would write."""
        if self.kind == "choice":
            return value
        low, high = self.values
        inside = min(high, max(low, value))
        if RANGES[self.kind] is int:
            return round(inside)
        return min(high, max(low, float(f"{inside:.{SIGNIFICANT_DIGITS - 1}e}")))

    def all_values(self, max_count: int) -> tuple[Any, ...] | None:
        """Every value, if the axis is a choice or has at most `max_count` whole numbers; else None."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        return tuple(range(low, high + 1)) if RANGES[self.kind] is int and high - low < max_count else None

    def distribution(self) -> BaseDistribution:
        """The axis as a distribution of optuna."""
        from optuna import distributions

        if self.kind == "choice":
            return distributions.CategoricalDistribution([json.dumps(v) for v in self.values])
        low, high = self.values
        log = self.kind.startswith("log")
        if RANGES[self.kind] is int:
            return distributions.IntDistribution(low, high, log=log)
        return distributions.FloatDistribution(low, high, log=log)

    def to_optuna(self, value: Any) -> Any:
        """A value as optuna stores it: a choice as JSON text."""
        return json.dumps(value) if self.kind == "choice" else value


def parse_space(space: Mapping[str, Mapping[str, Any]]) -> list[Axis]:
    """The axes of a space, each after those that it depends on.

    Args:
        space: the experiment's ``search.space``.

    Raises:
        ValueError: every mistake, a line each.
    """
    problems: list[str] = []
    axes = {key: axis for key, entry in space.items() if (axis := _parse_axis(key, entry, problems)) is not None}
    for axis in axes.values():
        for key in axis.when:
            if key not in space:
                problems.append(
                    f"search.space.{axis.key}: when names {key}, which is no key of search.space; "
                    f"known: {', '.join(sorted(space.keys() - {axis.key}))}"
                )
    if problems:
        raise ValueError("\n".join(problems))
    ordered: list[Axis] = []
    while len(ordered) < len(axes):
        done = {a.key for a in ordered}
        ready = [a for a in axes.values() if a.key not in done and done.issuperset(a.when)]
        if not ready:
            raise ValueError(
                f"search.space: {', '.join(sorted(axes.keys() - done))} depend on each other's values "
                "(when); leave one of the conditions out"
            )
        ordered += ready
    return ordered


def _parse_axis(key: str, entry: object, problems: list[str]) -> Axis | None:
    """One axis; if it has a mistake, a message is added to `problems` instead."""
    where, kinds = f"search.space.{key}", ("choice", *RANGES)
    example = "such as {loguniform: [1.0e-4, 1.0e-2]} or {choice: [64, 128]}"
    if key.partition(".")[0] not in SECTIONS or "." not in key:
        problems.append(f"{where}: only keys of {', '.join(SECTIONS)} can be searched, such as training.learning_rate")
        return None
    if key in FIXED:
        problems.append(
            f"{where}: {key} decides what is measured, so trials with different values could not be "
            "compared; set it in the experiment instead"
        )
        return None
    named = [k for k in entry if k != "when"] if isinstance(entry, Mapping) else []
    if not isinstance(entry, Mapping) or len(named) != 1 or named[0] not in kinds:
        problems.append(f"{where}={entry!r} must be one of {', '.join(kinds)}, {example}")
        return None
    kind, values, when = named[0], entry[named[0]], entry.get("when", {})
    if not isinstance(when, Mapping):
        problems.append(f"{where}: when={when!r} must be a mapping of other keys to their values")
        return None
    if kind == "choice":
        if not isinstance(values, list) or not values:
            problems.append(f"{where}: choice={values!r} must be a list of values")
            return None
        values = [v for i, v in enumerate(values) if v not in values[:i]]
    elif (problem := _range_problem(kind, values)) is not None:
        problems.append(f"{where}: {kind}={values!r} {problem}")
        return None
    conditions = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    return Axis(key, kind, tuple(values), conditions)


def _range_problem(kind: str, values: object) -> str | None:
    """What is wrong with the two ends of a range; None if they are right."""
    whole = RANGES[kind] is int
    numbers = (int,) if whole else (int, float)
    if (
        not isinstance(values, list)
        or len(values) != 2
        or not all(isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    ):
        return f"must be a list of two {'whole ' if whole else ''}numbers, the lowest and the highest"
    if not values[0] < values[1]:
        return "must be two different numbers, the lower one first"
    if kind.startswith("log") and values[0] <= 0:
        return "must be above 0, as it is drawn on a logarithmic scale"
    return None


def with_settings(options: Mapping[str, Any], settings: Settings) -> Experiment:
    """The experiment with some of its keys changed.

    Args:
        options: the contents of an experiment file.
        settings: dotted keys to values.

    Raises:
        ValueError: the experiment is not valid with these values.
    """
    return load(options, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def check_space(options: Mapping[str, Any], axes: list[Axis], search: Search) -> None:
    """Check that the experiment accepts every choice, both ends of every range, `search.start` and `search.across`.

    A value that the experiment does not accept with its other values as they are is tried with other values of the
    space, too.

    Args:
        options: the contents of an experiment file.
        axes: of the space.
        search: the settings of the search.

    Raises:
        ValueError: every value that is not valid in any combination, a line each.
    """
    problems = []
    chance = random.Random(0)
    for axis in axes:
        for value in axis.values:
            fixed = {axis.key: value, **{key: chance.choice(allowed) for key, allowed in axis.when.items()}}
            error = _impossible(options, axes, fixed, chance)
            if error is not None:
                problems.append(f"search.space.{axis.key}: {error}")
    if search.searcher == "grid" and any(a.kind != "choice" for a in axes):
        ranges = ", ".join(a.key for a in axes if a.kind != "choice")
        problems.append(f"search.searcher=grid tries every choice, but {ranges} is a range; give it as choice: [...]")
    problems += _across_problems(options, axes, search)
    known = {a.key for a in axes}
    for number, start in enumerate(search.start):
        for key in sorted(start.keys() - known):
            problems.append(
                f"search.start, entry {number + 1}: {key} is no key of search.space; known: {', '.join(sorted(known))}"
            )
        for axis in axes:
            if axis.key in start and not _is_inside(axis, start[axis.key]):
                problems.append(
                    f"search.start, entry {number + 1}: {axis.key}={start[axis.key]!r} lies outside of "
                    f"search.space, where it is {axis.kind}: {list(axis.values)}"
                )
        error = _impossible(options, axes, {k: v for k, v in start.items() if k in known}, chance)
        if error is not None:
            problems.append(f"search.start, entry {number + 1}: {error}")
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))


def _across_problems(options: Mapping[str, Any], axes: list[Axis], search: Search) -> list[str]:
    """What is wrong with `search.across`, a message each."""
    problems = []
    for key, values in search.across.items():
        if key.partition(".")[0] not in SECTIONS or key in ("training.seed", "model.family", *(a.key for a in axes)):
            problems.append(
                f"search.across.{key}: it takes a key of {', '.join(SECTIONS)} that is not searched, such "
                "as dataset.length; seeds and families are compared anyway"
            )
            continue
        for value in values:
            try:
                with_settings(options, {key: value})
            except ValueError as error:
                problems.append(f"search.across.{key}: {str(error).replace('experiment: ', '')}")
    return problems


def _is_inside(axis: Axis, value: object) -> bool:
    if axis.kind == "choice":
        return value in axis.values
    low, high = axis.values
    return isinstance(value, int | float) and bool(low <= value <= high)


def _impossible(options: Mapping[str, Any], axes: list[Axis], fixed: Settings, chance: random.Random) -> str | None:
    """Why no settings with these fixed values are a valid experiment; None if some are."""
    first: str | None = None
    for attempt in range(MAX_ATTEMPTS):
        settings: Settings = {}
        for axis in axes:
            if axis.key in fixed:
                settings[axis.key] = fixed[axis.key]
            elif attempt and axis.applies(settings):
                settings[axis.key] = _random(axis, chance)
        try:
            with_settings(options, settings)
            return None
        except ValueError as error:
            first = first or str(error).replace("experiment: ", "")
            if isinstance(error, OptionError) or len(axes) == 1:  # no other value of another key would help
                break
    return first


def _random(axis: Axis, chance: random.Random) -> Any:
    if axis.kind == "choice":
        return chance.choice(axis.values)
    low, high = axis.values
    drawn = (
        math.exp(chance.uniform(math.log(low), math.log(high)))
        if axis.kind.startswith("log")
        else chance.uniform(low, high)
    )
    return round(drawn) if RANGES[axis.kind] is int else drawn


def combinations(axes: list[Axis], max_values: int) -> Iterator[Settings]:
    """Every combination of the values of axes that have at most `max_values` each; the first axis varies slowest."""
    seen = []
    for values in itertools.product(*(axis.all_values(max_values) or () for axis in axes)):
        settings: Settings = {}
        for axis, value in zip(axes, values, strict=True):
            if axis.applies(settings):
                settings[axis.key] = value
        if settings not in seen:
            seen.append(settings)
            yield settings


def count_combinations(axes: list[Axis], max_count: int) -> int | None:
    """How many different settings there are, if at most `max_count`; else None."""
    if any(axis.all_values(max_count) is None for axis in axes):
        return None
    count = len(list(itertools.islice(combinations(axes, max_count), max_count + 1)))
    return count if count <= max_count else None


def format_settings(settings: Settings) -> str:
    """Settings on one line for people: each key without its section."""
    return "  ".join(f"{key.rpartition('.')[2]}={value}" for key, value in flatten(settings))
