"""Runs the trials of a search on Ray Tune.

Tune runs the trials, reuses their processes and asks its scheduler which ones to stop. The trials and their results are
recorded in the ledger: one JSON file for each trial, written when the trial starts and when it ends. A search that was
killed is therefore resumed without loss: finished trials are kept, those that were running continue from their
checkpoints, and nothing is stored as a pickle.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search import Searcher

from workflows.config.settings import Search, Workers
from workflows.tuning.queue import Queue
from workflows.tuning.ray_tune_private import died_of_memory, error_of, survive_memory
from workflows.tuning.schedulers import make_scheduler
from workflows.tuning.space import Axis
from workflows.tuning.trial import Trial, TrialContext, failure_reason


class QueueSearcher(Searcher):  # type: ignore[misc]
    """Gives Tune the trials of the queue."""

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue = queue

    def suggest(self, trial_id: str) -> Any:
        assignment = self.queue.next()
        if assignment is None:
            return Searcher.FINISHED if self.queue.exhausted else None
        return {"trial": asdict(assignment)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: ``QueueCallback`` is notified, too, and learns the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a search is resumed from its ledger."""

    def __reduce__(self) -> Any:
        return object, ()  # Tune pickles the searcher into its folder; the copy is never read


class QueueCallback(tune.Callback):  # type: ignore[misc]
    """Reports the results of Tune's trials to the queue."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def on_step_begin(self, iteration: int, trials: list[TuneTrial], **info: object) -> None:
        if self.queue.should_stop():
            raise KeyboardInterrupt

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        assignment = trial.config["trial"]
        self.queue.on_settings(assignment["number"], assignment["settings"])

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: object
    ) -> None:
        self.queue.on_epoch(trial.config["trial"]["number"], json.loads(result["trial_result"]))

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        result = trial.last_result.get("trial_result")
        no_result = {"failed": "it ended before its first epoch"}
        self.queue.on_end(trial.config["trial"]["number"], json.loads(result) if result else no_result)

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: object) -> None:
        error = error_of(trial) or RuntimeError("its process died")
        self.queue.on_end(trial.config["trial"]["number"], {"failed": process_failure(error)})

    def __reduce__(self) -> Any:
        return object, ()


def process_failure(error: Exception) -> str:
    """Why a trial's process ended, in one line."""
    if died_of_memory(error):
        return "out of memory: Ray ended its process before the machine had none left"
    text = str(error).strip()
    text = str(error).strip()
    if isinstance(error, RayActorError):
        lines = [line.strip() for line in text.splitlines() if "exit" in line.lower()]
        return f"its process died: {lines[-1] if lines else text.splitlines()[0]}"
    return failure_reason(error)


@dataclass(frozen=True)
class Capacity:
    """How many trials run at a time, and what each of them needs.

    Attributes:
        max_trials: that fit at a time.
        nodes: number of nodes that trials fit on.
        resources: of one trial's process, as Tune requests them.
        explanation: the arithmetic, for the user.
    """

    max_trials: int
    nodes: int
    resources: tune.PlacementGroupFactory
    explanation: str


def compute_capacity(workers: Workers, cpus: int, nodes: list[dict[str, float]]) -> Capacity:
    """How many trials fit at a time.

    Args:
        workers: of each trial.
        cpus: of each of a trial's workers.
        nodes: resources of each node, as Ray reports them.
    """

    def count_fitting(node: dict[str, float]) -> int:
        by_cpus = int(node.get("CPU", 0) // cpus)
        return min(by_cpus, int(node.get("GPU", 0) // workers.gpus)) if workers.gpus else by_cpus

    max_trials = sum(count_fitting(n) for n in nodes) // workers.most
    total_cpus, total_gpus = sum(n.get("CPU", 0) for n in nodes), sum(n.get("GPU", 0) for n in nodes)
    one = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {workers.gpus} GPU" if workers.gpus else "")
    each = one if workers.most == 1 else f"{workers.most} workers x {one}"
    explanation = (
        f"{total_cpus:g} CPUs{f' and {total_gpus:g} GPUs' if total_gpus else ''} on {len(nodes)} "
        f"node{'s' if len(nodes) > 1 else ''}; a trial takes {each}: {max_trials} at a time. The driver, the tracking "
        "process and the tasks of Ray Data reserve no CPUs: they share those of the trials"
    )
    if workers.most == 1:
        bundle = {"CPU": cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    else:
        bundle = {"memory": 1 << 20}  # its workers have a placement group of their own
    used_nodes = sum(count_fitting(n) > 0 for n in nodes)
    return Capacity(max_trials, used_nodes, tune.PlacementGroupFactory([bundle]), explanation)


def run_trials(
    queue: Queue,
    context: TrialContext,
    capacity: Capacity,
    search: Search,
    axes: list[Axis],
    *,
    epochs: int,
    primary: str,
) -> None:
    """Run the trials of a queue until it is exhausted.

    Args:
        queue: of trials.
        context: what all trials share.
        capacity: how many run at a time.
        search: the settings of the search.
        axes: of the space.
        epochs: the largest number of epochs that a trial may have.
        primary: the metric that decides.

    Raises:
        KeyboardInterrupt: `queue.should_stop` returned True; the ledger lists the trials that were running.
    """
    os.environ.update(
        {
            "RAY_AIR_NEW_OUTPUT": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_GLOBAL_CHECKPOINT_S": "600",
            "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
            "TUNE_DISABLE_SIGINT_HANDLER": "1",
            "TUNE_MAX_PENDING_TRIALS_PG": str((queue.max_running or 0) + 1),  # else processes start one after the other
            "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        }
    )
    survive_memory()
    scheduler = make_scheduler(
        search, axes, epochs=epochs, records=queue.ledger.records, primary=primary, maximise=queue.maximise
    )
    source: dict[str, Any] = {"num_samples": -1, "search_alg": QueueSearcher(queue)}
    space: dict[str, Any] = {}
    if search.scheduler == "pbt":  # it accepts no searcher and needs all trials at once
        space, source = {"trial": tune.grid_search([asdict(a) for a in iter(queue.next, None)])}, {}
    trainable = tune.with_resources(tune.with_parameters(Trial, context=context), capacity.resources)
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True, **source),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=queue.ledger.folder.uri,
            verbose=0,
            callbacks=[QueueCallback(queue)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4, checkpoint_at_end=False),
        ),
    )
    tuner.fit()
    queue.ledger.folder.delete("ray")
