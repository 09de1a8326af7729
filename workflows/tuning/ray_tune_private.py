"""Names of Ray Tune that are not public, each behind a function or a class that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of Ray no longer has one of them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class OutOfMemoryDeath(RayActorError):  # type: ignore[misc]
    """The process of a trial was ended by Ray because its node had hardly any memory left."""


def survive_memory() -> None:
    """Make Tune treat a process that Ray ended for lack of memory like one that died.

    Tune 2.60 does not attribute that error to a trial, and ends the whole search; there is no setting for it. Calling
    this twice changes nothing.
    """
    task_failed = RayActorManager._actor_task_failed
    if hasattr(task_failed, "survives_memory"):
        return

    def task_failed_or_died(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = OutOfMemoryDeath(error_msg=str(exception))
        task_failed(self, tracked_actor_task, exception)

    task_failed_or_died.survives_memory = True  # type: ignore[attr-defined]
    RayActorManager._actor_task_failed = task_failed_or_died


def died_of_memory(error: BaseException) -> bool:
    """Whether a trial's process was ended for lack of memory; where Ray has no type for it, judged by its message."""
    return isinstance(error, OutOfMemoryDeath | OutOfMemoryError) or (
        isinstance(error, RayActorError) and "running low on memory" in str(error)
    )


def error_of(trial: Trial) -> Exception | None:
    """The error that ended a trial's process, for a callback; None if Tune kept none.

    The public way, ``ResultGrid.errors``, is there only after the whole search. ``Trial.get_pickled_error`` reads the
    search's storage, to which the file may not have been copied yet.
    """
    if trial.pickled_error_file is None:
        return None
    with open(trial.pickled_error_file, "rb") as file:  # written by this process, a moment ago
        error: Exception = pickle.load(file)
    return error


class PastTrial:
    """A trial of an earlier process, with the attributes that schedulers read."""

    def __init__(self, trial_id: str, config: dict[str, Any]) -> None:
        self.trial_id, self.config = trial_id, config


class _PastController:
    """The controller of such trials, none of which runs or waits."""

    def get_live_trials(self) -> list[Any]:
        return []

    get_trials = get_live_trials


def replay(scheduler: TrialScheduler, trial_id: str, config: dict[str, Any], results: Iterable[dict[str, Any]]) -> None:
    """Give a scheduler the results of a trial of an earlier process.

    After a result at which the scheduler would now stop the trial, it gets only the last one.

    The state of schedulers is private, and Tune's own way to resume, ``Tuner.restore``, runs trials again that have
    ended. So schedulers are called as Tune calls them, with substitutes for the trial and the controller.
    """
    controller, past = _PastController(), PastTrial(trial_id, config)
    last: dict[str, Any] = {}
    stopped = False
    scheduler.on_trial_add(controller, past)
    for last in results:
        stopped = stopped or scheduler.on_trial_result(controller, past, last) == TrialScheduler.STOP
    scheduler.on_trial_complete(controller, past, last)


class SynchronousPopulation(PopulationBasedTraining):  # type: ignore[misc]
    """Population-based training in which trials wait for each other, but not for those that have ended.

    Tune 2.60 lets the others continue only when the last of them reports, so they would wait forever for one that ends
    instead. The progress of its trials, and the point at which they are compared, have no public names.
    """

    def adapt(self, config: dict[str, Any], trial: Trial) -> dict[str, Any]:
        """The config for `trial` to continue from another's weights, given that one's config as Tune changed it.

        The public ``custom_explore_fn`` does not say which trial it is for.
        """
        return config

    def _get_new_config(self, trial: Trial, trial_to_clone: Trial) -> Any:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        return self.adapt(config, trial), operations

    def on_trial_result(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> Any:
        decision = super().on_trial_result(controller, trial, result)
        self._release_waiting(controller, None)
        return decision

    def on_trial_complete(self, controller: TuneController, trial: Trial, result: dict[str, Any]) -> None:
        super().on_trial_complete(controller, trial, result)
        self._release_waiting(controller, trial)

    def on_trial_error(self, controller: TuneController, trial: Trial) -> None:
        super().on_trial_error(controller, trial)
        self._release_waiting(controller, trial)

    def _release_waiting(self, controller: TuneController, ended: Trial | None) -> None:
        """Let trials continue once all of them have reached the point at which they are compared."""
        times = [self._trial_state[t].last_train_time for t in controller.get_live_trials() if t is not ended]
        until: int = self._next_perturbation_sync  # type: ignore[has-type]
        if times and min(times) >= until:
            self._next_perturbation_sync = max(times) + self._perturbation_interval
