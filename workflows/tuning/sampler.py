"""Draws the settings of trials, with optuna or from a grid, and computes which settings mattered."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from workflows.config.settings import Search
from workflows.tuning.space import MAX_ATTEMPTS, Axis, Settings, combinations, count_combinations, with_settings

if TYPE_CHECKING:
    import optuna


class Sampler:
    """Draws the settings of each trial and learns from the results.

    Args:
        axes: of the space.
        search: searcher, seed, start, trials.
        maximise: whether the highest value is best.
        options: the contents of the experiment file; settings that are not valid with it are not drawn.
        replayed: number of trials of an earlier process, which will be replayed; the seed depends on it, so that their
            draws are not repeated.
    """

    def __init__(
        self, axes: list[Axis], search: Search, *, maximise: bool, options: Mapping[str, Any], replayed: int = 0
    ) -> None:
        self.axes, self.options = axes, options
        # In population-based training, trials with equal settings become different ones later.
        self.allows_repeats = search.scheduler == "pbt"
        # A space that has no more settings than there are trials is tried as a whole.
        size = count_combinations(axes, search.trials) if search.trials and not self.allows_repeats else None
        longest = len(axes) and max(len(a.values) for a in axes)
        self.grid = (
            combinations(axes, max(longest, search.trials or 0))
            if (search.searcher == "grid" or size is not None)
            else None
        )
        self.start = [dict(s) for s in search.start]
        self.drawn: list[Settings] = []
        self.pending: dict[int, optuna.Trial] = {}  # by the number of our trial
        self._study = _create_study(search, maximise=maximise, replayed=replayed)

    def draw(self, number: int) -> Settings | None:
        """Settings for trial `number`; None if nothing new is left, or none was found."""
        if self.start:
            start = self.start.pop(0)
            self._study.enqueue_trial({a.key: a.to_optuna(start[a.key]) for a in self.axes if a.key in start})
        elif self.grid is not None:
            untried = next((s for s in self.grid if s not in self.drawn and self._is_valid(s)), None)
            if untried is not None:
                self.drawn.append(untried)
            return untried
        for _ in range(MAX_ATTEMPTS):
            trial = self._study.ask()
            settings: Settings = {}
            for axis in self.axes:
                if axis.applies(settings):
                    settings[axis.key] = axis.draw(trial)
            if (self.allows_repeats or settings not in self.drawn) and self._is_valid(settings):
                self.pending[number] = trial
                self.drawn.append(settings)
                return settings
            self._study.tell(trial, state=_state("FAIL"))
        return None

    def _is_valid(self, settings: Settings) -> bool:
        try:
            with_settings(self.options, settings)
        except ValueError:
            return False
        return True

    def record(self, number: int, history: list[float], *, stopped: bool) -> None:
        """Learn from the result of trial `number`.

        Args:
            number: of the trial.
            history: the primary metric after each epoch; empty if the trial failed.
            stopped: whether it was stopped before its last epoch.
        """
        trial = self.pending.pop(number, None)
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

    def replay(self, number: int, settings: Settings, history: list[float], *, stopped: bool, is_done: bool) -> None:
        """Restore a trial of an earlier process: its settings and, if it has ended, its result.

        Args:
            number: of the trial.
            settings: that it had.
            history: the primary metric after each epoch.
            stopped: whether it was stopped before its last epoch.
            is_done: whether it has ended.
        """
        self.drawn.append(settings)
        if self.start:
            self.start.pop(0)
        if self.grid is not None:
            return
        self._study.enqueue_trial({a.key: a.to_optuna(settings[a.key]) for a in self.axes if a.key in settings})
        trial = self._study.ask()
        for axis in self.axes:
            if axis.key in settings:
                axis.draw(trial)
        self.pending[number] = trial
        if is_done:
            self.record(number, history, stopped=stopped)


def _create_study(search: Search, *, maximise: bool, replayed: int = 0) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler: optuna.samplers.BaseSampler
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the options below have been "experimental" for years
        if search.searcher == "random":
            sampler = optuna.samplers.RandomSampler(seed=search.seed + replayed)
        else:
            sampler = optuna.samplers.TPESampler(
                seed=search.seed + replayed, multivariate=True, group=True, constant_liar=True
            )
    return optuna.create_study(direction="maximize" if maximise else "minimize", sampler=sampler)


def _state(name: str) -> optuna.trial.TrialState:
    from optuna.trial import TrialState

    return TrialState[name]


def importance(axes: list[Axis], trials: list[tuple[Settings, float]], *, maximise: bool) -> dict[str, float]:
    """The share of each key in what distinguishes the best trials from the others: PED-ANOVA (Watanabe et al. 2023).

    Args:
        axes: of the space.
        trials: settings of each, and the value that it reached.
        maximise: whether the highest value is best.

    Returns:
        key -> share in 0..1, largest first; empty if there are fewer than four trials, or all are equal.
    """
    import optuna

    values = [value for _, value in trials]
    if len(trials) < 4 or max(values) - min(values) < 1e-12:
        return {}
    study = _create_study(Search(), maximise=maximise)
    for settings, value in trials:
        present = [a for a in axes if a.key in settings]
        study.add_trial(
            optuna.trial.create_trial(
                params={a.key: a.to_optuna(settings[a.key]) for a in present},
                distributions={a.key: a.distribution() for a in present},
                value=value,
            )
        )
    in_all_trials = [a.key for a in axes if all(a.key in s for s, _ in trials)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            shares = optuna.importance.get_param_importances(
                study, params=in_all_trials, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
            )
        except (RuntimeError, ValueError):  # every key has the same value in all trials
            return {}
    return {key: float(share) for key, share in shares.items()}
