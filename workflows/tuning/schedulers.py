"""Ray Tune's schedulers, which stop bad trials early: one scheduler for each study of a search."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from workflows.config.settings import Search
from workflows.tuning.ledger import TrialRecord
from workflows.tuning.queue import EPOCH, METRIC
from workflows.tuning.ray_tune_private import SynchronousPopulation, replay
from workflows.tuning.space import RANGES, Axis

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class PerStudyScheduler(FIFOScheduler):  # type: ignore[misc]
    """One scheduler for each study; final trainings are never stopped.

    Args:
        make_one: creates the scheduler of a study.
    """

    def __init__(self, make_one: Callable[[], TrialScheduler]) -> None:
        super().__init__()
        self.make_one = make_one
        self.by_study: dict[str, TrialScheduler] = {}

    def _scheduler(self, trial: Trial) -> TrialScheduler:
        study = trial.config["trial"]["study"]
        if trial.config["trial"]["final"]:
            return FIFOScheduler()
        if study not in self.by_study:
            self.by_study[study] = self.make_one()
        return self.by_study[study]

    def on_trial_add(self, controller: TuneController, trial: Trial) -> None:
        self._scheduler(trial).on_trial_add(controller, trial)

    def on_trial_error(self, controller: TuneController, trial: Trial) -> None:
        self._scheduler(trial).on_trial_error(controller, trial)

    def on_trial_result(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> str:
        decision: str = self._scheduler(trial).on_trial_result(controller, trial, result)
        return decision

    def on_trial_complete(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        self._scheduler(trial).on_trial_complete(controller, trial, result)

    def on_trial_remove(self, controller: TuneController, trial: Trial) -> None:
        self._scheduler(trial).on_trial_remove(controller, trial)


class PopulationScheduler(SynchronousPopulation):
    """Population-based training within the space; a trial that continues from another's weights keeps its number."""

    def __init__(self, axes: list[Axis], **how: object) -> None:
        super().__init__(hyperparam_mutations={"trial": {"settings": {a.key: _domain(a) for a in axes}}}, **how)
        self.axes = axes

    def adapt(self, config: dict[str, Any], trial: Trial) -> dict[str, Any]:
        settings = {a.key: a.clip(config["trial"]["settings"][a.key]) for a in self.axes}
        return {"trial": {**trial.config["trial"], "settings": settings}}


def make_scheduler(
    search: Search, axes: list[Axis], *, epochs: int, records: list[TrialRecord], primary: str, maximise: bool
) -> TrialScheduler:
    """Tune's scheduler, which knows the results of the trials of an earlier process.

    Args:
        search: the settings of the search.
        axes: of the space.
        epochs: the largest number of epochs that a trial may have.
        records: of all trials.
        primary: the metric that decides.
        maximise: whether its highest value is best.
    """
    if search.scheduler == "none":
        return FIFOScheduler()
    mode = "max" if maximise else "min"
    if search.scheduler == "pbt":
        return PopulationScheduler(
            axes,
            time_attr=EPOCH,
            metric=METRIC,
            mode=mode,
            perturbation_interval=search.grace,
            burn_in_period=search.grace,
            synch=True,
            log_config=False,
        )

    def make_one() -> TrialScheduler:
        if search.scheduler == "median":
            return MedianStoppingRule(EPOCH, METRIC, mode, grace_period=search.grace, min_samples_required=3)
        return AsyncHyperBandScheduler(
            EPOCH,
            METRIC,
            mode,
            max_t=epochs,
            grace_period=min(search.grace, epochs),
            reduction_factor=search.reduction,
            stop_last_trials=False,
        )

    scheduler = PerStudyScheduler(make_one)
    for record in records:
        if record.is_done and record.phase == "search" and record.history:
            config = {"trial": {"study": record.study, "final": False}}
            results = (
                {EPOCH: epoch, METRIC: metrics[f"validation/{primary}"], "time_total_s": epoch}
                for epoch, metrics in enumerate(record.history, 1)
            )
            replay(scheduler, f"past-{record.number}", config, results)
    return scheduler


def _domain(axis: Axis) -> Any:
    """The values to which population-based training may change a setting, as Tune describes them."""
    if axis.kind == "choice":
        return list(axis.values)
    low, high = axis.values
    if RANGES[axis.kind] is int:
        high += 1  # Tune excludes the end of a range of whole numbers
    return {"uniform": tune.uniform, "loguniform": tune.loguniform, "int": tune.randint, "logint": tune.lograndint}[
        axis.kind
    ](low, high)
