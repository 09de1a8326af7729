"""The search space: what a search may give to which keys of an experiment, and what it tries next.

``search.space`` maps dotted keys to where their values come from::

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
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from workflows.experiment import Experiment, flatten, load
from workflows.settings import Search

RANGES = {"uniform": float, "loguniform": float, "int": int, "logint": int}
SECTIONS = ("dataset", "task", "model", "training")
FIXED = ("task.kind", "task.horizon", "dataset.kind")            # what they change cannot be compared
TRIES = 30            # random settings among which one must be possible, and draws of TPE among which one must be new
DIGITS = 4            # of a drawn number: as many as a person would write

Settings = dict[str, Any]                       # dotted keys -> values


@dataclass(frozen=True)
class Axis:
    """One key of a search space.

    Attributes:
        key: dotted, of the experiment.
        kind: choice, uniform, loguniform, int or logint.
        values: the choices, or (lowest, highest).
        when: the values that other keys must have for this one to be set at all.
    """

    key: str
    kind: str
    values: tuple[Any, ...]
    when: Mapping[str, tuple[Any, ...]]

    def applies(self, settings: Mapping[str, Any]) -> bool:
        """Whether settings of the axes before this one ask for it."""
        return all(key in settings and settings[key] in allowed for key, allowed in self.when.items())

    def draw(self, trial: Any) -> Any:
        """A value, by an optuna trial."""
        if self.kind == "choice":                      # optuna knows no lists: it chooses among texts
            return json.loads(trial.suggest_categorical(self.key, [json.dumps(v) for v in self.values]))
        low, high = self.values
        log = self.kind.startswith("log")
        if RANGES[self.kind] is int:
            return trial.suggest_int(self.key, low, high, log=log)
        return self.nearest(trial.suggest_float(self.key, low, high, log=log))

    def nearest(self, value: Any) -> Any:
        """The nearest value inside, as a person would write it."""
        if self.kind == "choice":
            return value
        low, high = self.values
        inside = min(high, max(low, value))
        return round(inside) if RANGES[self.kind] is int else min(high, max(low, float(f"{inside:.{DIGITS - 1}e}")))

    def every(self, most: int) -> tuple[Any, ...] | None:
        """All its values, where there are at most so many; else None."""
        if self.kind == "choice":
            return self.values
        low, high = self.values
        return tuple(range(low, high + 1)) if RANGES[self.kind] is int and high - low < most else None

    def distribution(self) -> Any:
        """The same as optuna's distribution."""
        from optuna import distributions as known
        if self.kind == "choice":
            return known.CategoricalDistribution([json.dumps(v) for v in self.values])
        low, high = self.values
        made = known.IntDistribution if RANGES[self.kind] is int else known.FloatDistribution
        return made(low, high, log=self.kind.startswith("log"))

    def stored(self, value: Any) -> Any:
        """A value as optuna knows it."""
        return json.dumps(value) if self.kind == "choice" else value


def axes_of(space: Mapping[str, Mapping[str, Any]]) -> list[Axis]:
    """The axes of a space, each after those that it depends on.

    Raises:
        ValueError: every mistake, a line each.
    """
    problems: list[str] = []
    found = {key: axis for key, told in space.items() if (axis := _axis(key, told, problems)) is not None}
    for axis in found.values():
        for key in axis.when:
            if key not in space:
                problems.append(f"search.space.{axis.key}: when names {key}, which is no key of search.space; "
                                f"known: {', '.join(sorted(space.keys() - {axis.key}))}")
    if problems:
        raise ValueError("\n".join(problems))
    ordered: list[Axis] = []
    while len(ordered) < len(found):
        done = {a.key for a in ordered}
        ready = [a for a in found.values() if a.key not in done and done.issuperset(a.when)]
        if not ready:
            raise ValueError(f"search.space: {', '.join(sorted(found.keys() - done))} wait for each other's values "
                             "(when); leave one of the conditions out")
        ordered += ready
    return ordered


def _axis(key: str, told: Any, problems: list[str]) -> Axis | None:
    """One axis, or what is wrong with it, added to `problems`."""
    where, kinds = f"search.space.{key}", ("choice", *RANGES)
    example = "such as {loguniform: [1.0e-4, 1.0e-2]} or {choice: [64, 128]}"
    if key.partition(".")[0] not in SECTIONS or "." not in key:
        problems.append(f"{where}: only keys of {', '.join(SECTIONS)} can be searched, such as training.learning_rate")
        return None
    if key in FIXED:
        problems.append(f"{where}: {key} says what is measured, so that trials with other values of it could not be "
                        "compared; leave it to the experiment")
        return None
    named = [k for k in told if k != "when"] if isinstance(told, Mapping) else []
    if len(named) != 1 or named[0] not in kinds:
        problems.append(f"{where}={told!r} must be one of {', '.join(kinds)}, {example}")
        return None
    kind, values, when = named[0], told[named[0]], told.get("when", {})
    if not isinstance(when, Mapping):
        problems.append(f"{where}: when={when!r} must be a mapping of other keys to their values")
        return None
    if kind == "choice":
        if not isinstance(values, list) or not values:
            problems.append(f"{where}: choice={values!r} must be a list of values")
            return None
        values = [v for i, v in enumerate(values) if v not in values[:i]]
    elif (wrong := _wrong_range(kind, values)) is not None:
        problems.append(f"{where}: {kind}={values!r} {wrong}")
        return None
    conditions = {k: tuple(v) if isinstance(v, list) else (v,) for k, v in when.items()}
    return Axis(key, kind, tuple(values), conditions)


def _wrong_range(kind: str, values: Any) -> str | None:
    """What is wrong with the two ends of a range."""
    of = RANGES[kind]
    numbers = (int,) if of is int else (int, float)
    if not isinstance(values, list) or len(values) != 2 or not all(
            isinstance(v, numbers) and not isinstance(v, bool) and math.isfinite(v) for v in values):
        return f"must be a list of two {'whole ' if of is int else ''}numbers, the lowest and the highest"
    if not values[0] < values[1]:
        return "must begin with the lower of two different numbers"
    if kind.startswith("log") and values[0] <= 0:
        return "must lie above 0, as it is drawn by its logarithm"
    return None


def changed(told: Mapping[str, Any], settings: Mapping[str, Any]) -> Experiment:
    """The experiment with some keys set.

    Args:
        told: what an experiment file holds.
        settings: dotted keys to values.

    Raises:
        ValueError: they cannot be.
    """
    return load(told, [f"{key}={json.dumps(value)}" for key, value in settings.items()])


def check(told: Mapping[str, Any], axes: list[Axis], search: Search) -> None:
    """See whether the experiment takes every choice and both ends of every range, starting points and `across`.

    A value that is impossible beside the file's own other values is tried beside others of the space.

    Raises:
        ValueError: every value that is impossible beside all of them, a line each.
    """
    problems = []
    chance = random.Random(0)
    for axis in axes:
        for value in axis.values:
            fixed = {axis.key: value, **{key: chance.choice(allowed) for key, allowed in axis.when.items()}}
            error = _impossible(told, axes, fixed, chance)
            if error is not None:
                problems.append(f"search.space.{axis.key}: {error}")
    if search.searcher == "grid" and any(a.kind != "choice" for a in axes):
        ranges = ", ".join(a.key for a in axes if a.kind != "choice")
        problems.append(f"search.searcher=grid tries every choice, but {ranges} is a range; give it as choice: [...]")
    for key, values in search.across.items():
        if key.partition(".")[0] not in SECTIONS or key in ("training.seed", "model.family", *(a.key for a in axes)):
            problems.append(f"search.across.{key}: it takes a key of {', '.join(SECTIONS)} that is not searched, such "
                            "as dataset.length; seeds and families are compared anyway")
            continue
        for value in values:
            try:
                changed(told, {key: value})
            except ValueError as error:
                problems.append(f"search.across.{key}: {str(error).replace('experiment: ', '')}")
    known = {a.key for a in axes}
    for number, start in enumerate(search.start):
        for key in sorted(start.keys() - known):
            problems.append(f"search.start, entry {number + 1}: {key} is no key of search.space; "
                            f"known: {', '.join(sorted(known))}")
        for axis in axes:
            if axis.key in start and not _inside(axis, start[axis.key]):
                problems.append(f"search.start, entry {number + 1}: {axis.key}={start[axis.key]!r} lies outside of "
                                f"search.space, where it is {axis.kind}: {list(axis.values)}")
        wrong = _impossible(told, axes, {k: v for k, v in start.items() if k in known}, chance)
        if wrong is not None:
            problems.append(f"search.start, entry {number + 1}: {wrong}")
    if problems:
        raise ValueError("\n".join(dict.fromkeys(problems)))


def _inside(axis: Axis, value: Any) -> bool:
    if axis.kind == "choice":
        return value in axis.values
    return isinstance(value, int | float) and axis.values[0] <= value <= axis.values[1]


def _impossible(told: Mapping[str, Any], axes: list[Axis], fixed: Settings, chance: random.Random) -> str | None:
    """Why no settings with these values can be; None where some can."""
    first: str | None = None
    for attempt in range(TRIES):
        settings: Settings = {}
        for axis in axes:
            if axis.key in fixed:
                settings[axis.key] = fixed[axis.key]
            elif attempt and axis.applies(settings):
                settings[axis.key] = _random(axis, chance)
        try:
            changed(told, settings)
            return None
        except ValueError as error:
            first = first or str(error).replace("experiment: ", "")
            if "is not known" in first or "must be" in first or len(axes) == 1:     # no other value mends that
                break
    return first


def _random(axis: Axis, chance: random.Random) -> Any:
    if axis.kind == "choice":
        return chance.choice(axis.values)
    low, high = axis.values
    drawn = math.exp(chance.uniform(math.log(low), math.log(high))) if axis.kind.startswith("log") else chance.uniform(
        low, high)
    return round(drawn) if RANGES[axis.kind] is int else drawn


def combinations(axes: list[Axis], most: int) -> Iterator[Settings]:
    """Every settings of axes with at most `most` values each, the first axis slowest."""
    seen = []
    for values in itertools.product(*(axis.every(most) or () for axis in axes)):
        settings: Settings = {}
        for axis, value in zip(axes, values, strict=True):
            if axis.applies(settings):
                settings[axis.key] = value
        if settings not in seen:
            seen.append(settings)
            yield settings


def count(axes: list[Axis], most: int) -> int | None:
    """How many different settings there are, where that is at most `most`; else None."""
    if any(axis.every(most) is None for axis in axes):
        return None
    found = len(list(itertools.islice(combinations(axes, most), most + 1)))
    return found if found <= most else None


class Sampler:
    """What to try next, by optuna or from the grid, and what came of it.

    Args:
        axes: of the space.
        search: searcher, seed, start, trials.
        maximise: whether the highest value is best.
        told: the experiment that they change; settings that it cannot have are not given out.
        past: trials of an earlier process, which will be replayed: their draws are not to be repeated.
    """

    def __init__(self, axes: list[Axis], search: Search, *, maximise: bool, told: Mapping[str, Any],
                 past: int = 0) -> None:
        self.axes, self.told = axes, told
        self.twice = search.scheduler == "pbt"         # its trials part ways later
        few = count(axes, search.trials) if search.trials and not self.twice else None
        every = len(axes) and max(len(a.values) for a in axes)
        self.grid = combinations(axes, max(every, search.trials or 0)) if (
            search.searcher == "grid" or few is not None) else None
        self.start = [dict(s) for s in search.start]
        self.given: list[Settings] = []
        self.open: dict[int, Any] = {}                 # number of a trial -> optuna's trial
        self._study = _study(search, maximise=maximise, past=past)

    def next(self, number: int) -> Settings | None:
        """Settings for trial `number`; None where nothing new is left, or can be found."""
        if self.start:
            self._study.enqueue_trial({a.key: a.stored(v) for s in (self.start.pop(0),) for a in self.axes
                                       if (v := s.get(a.key, _NONE)) is not _NONE})
        elif self.grid is not None:
            untried = next((s for s in self.grid if s not in self.given and self._possible(s)), None)
            if untried is not None:
                self.given.append(untried)
            return untried
        for _ in range(TRIES):
            trial = self._study.ask()
            settings: Settings = {}
            for axis in self.axes:
                if axis.applies(settings):
                    settings[axis.key] = axis.draw(trial)
            if (self.twice or settings not in self.given) and self._possible(settings):
                self.open[number] = trial
                self.given.append(settings)
                return settings
            self._study.tell(trial, state=_state("FAIL"))
        return None

    def _possible(self, settings: Settings) -> bool:
        try:
            changed(self.told, settings)
        except ValueError:
            return False
        return True

    def tell(self, number: int, history: list[float], *, stopped: bool) -> None:
        """What trial `number` reached after each epoch; nothing where it failed.

        Args:
            history: the metric that decides, an entry an epoch.
            stopped: before its last epoch.
        """
        trial = self.open.pop(number, None)
        values = [v for v in history if math.isfinite(v)]
        if trial is None:
            return
        for epoch, value in enumerate(history):
            trial.report(value, epoch)
        if not values:
            self._study.tell(trial, state=_state("FAIL"))
        elif stopped:
            self._study.tell(trial, state=_state("PRUNED"))
        else:
            best = max(values) if self._study.direction.name == "MAXIMIZE" else min(values)
            self._study.tell(trial, best)

    def replay(self, number: int, settings: Settings, history: list[float], *, stopped: bool, over: bool) -> None:
        """Take up a trial of an earlier process: what it was given, and where it is over what it reached."""
        self.given.append(settings)
        if self.start:
            self.start.pop(0)
        with_value = {a.key: a.stored(settings[a.key]) for a in self.axes if a.key in settings}
        if self.grid is None:
            self._study.enqueue_trial(with_value)
            trial = self._study.ask()
            for axis in self.axes:
                if axis.key in settings:
                    axis.draw(trial)
            self.open[number] = trial
            if over:
                self.tell(number, history, stopped=stopped)


_NONE = object()


def _study(search: Search, *, maximise: bool, past: int = 0) -> Any:
    import optuna
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                # "experimental": these options have been for years
        if search.searcher == "random":
            sampler: Any = optuna.samplers.RandomSampler(seed=search.seed + past)
        else:
            sampler = optuna.samplers.TPESampler(seed=search.seed + past, multivariate=True, group=True,
                                                 constant_liar=True)
    return optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)


def _state(name: str) -> Any:
    from optuna.trial import TrialState
    return TrialState[name]


def importance(axes: list[Axis], trials: list[tuple[Settings, float]], *, maximise: bool) -> dict[str, float]:
    """The share of each key in what tells the best trials from the others, largest first: PED-ANOVA (Watanabe et al.
    2023). Empty where there are too few trials, or all are equal.

    Args:
        axes: of the space.
        trials: settings, and the value that they reached.
        maximise: whether the highest value is best.
    """
    import optuna
    values = [value for _, value in trials]
    if len(trials) < 4 or max(values) - min(values) < 1e-12:
        return {}
    study = _study(Search(), maximise=maximise)
    for settings, value in trials:
        own = [a for a in axes if a.key in settings]
        study.add_trial(optuna.trial.create_trial(
            params={a.key: a.stored(settings[a.key]) for a in own},
            distributions={a.key: a.distribution() for a in own}, value=value))
    everywhere = [a.key for a in axes if all(a.key in s for s, _ in trials)]
    told = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            told = optuna.importance.get_param_importances(
                study, params=everywhere, evaluator=optuna.importance.PedAnovaImportanceEvaluator())
        except (RuntimeError, ValueError):             # all trials alike in every key
            return {}
    return {key: float(share) for key, share in told.items()}


def described(settings: Mapping[str, Any]) -> str:
    """Settings as people read them."""
    return "  ".join(f"{key.rpartition('.')[2]}={value}" for key, value in flatten(settings))
