"""A trial of a search, as Ray Tune runs it: in a process that runs one trial after the other, or with Ray Train.

Starting a process and importing what it needs takes longer than many trials do. Tune's actors are therefore reused, and
a trial is only a new ``Attempt`` in one of them. It never raises an exception: a failure is its result.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import threading
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ray
import torch.distributed as dist
from ray import train
from ray.actor import ActorHandle
from ray.tune import Trainable

from datasets.pipeline.prepared import Prepared
from datasets.pipeline.storage import Storage, mask
from workflows.cluster.connect import import_modules
from workflows.cluster.launch import fit_workers
from workflows.config.experiment import Experiment
from workflows.errors import RondoError
from workflows.tracking.recorder import Recorder
from workflows.training.job import Event, TrainingJob, WorkerContext
from workflows.training.loop import Stopped, is_finished
from workflows.training.worker import Attempt
from workflows.tuning.ledger import trial_folder, trial_key
from workflows.tuning.queue import EPOCH, METRIC, Assignment, start_time
from workflows.tuning.space import with_settings

OUT_OF_MEMORY = ("not enough memory", "out of memory", "allocate memory")  # in messages of torch


@dataclass
class TrialContext:
    """What all trials of a search share; sent to each process once.

    Attributes:
        options: by study, the contents of its experiment file.
        prepared: by `data_key`, the data.
        cached: by `data_key`, references to the rows that are in Ray's object store: see ``TrainingJob``.
        folder: of the search; each trial has a folder below it.
        name: of the search.
        cpus: torch threads of a trial's worker.
        tracker: records metrics.
        changeable: keys whose values may change while a trial trains.
    """

    options: dict[str, dict[str, Any]]
    prepared: dict[str, Prepared]
    cached: dict[str, dict[str, list[Any]]]
    folder: Storage
    name: str
    cpus: int
    tracker: Recorder
    changeable: tuple[str, ...] = ()


def data_key(experiment: Experiment) -> str:
    """What an experiment's prepared data depends on, as text."""
    return json.dumps([experiment.dataset, experiment.quarantine.limit], sort_keys=True)


class Trial(Trainable):  # type: ignore[misc]
    """Runs the trials that Tune assigns to it: `setup` is called once, `reset_config` for each further trial."""

    def setup(self, config: dict[str, Any], context: TrialContext | None = None) -> None:
        assert context is not None
        import_modules()  # now, so that the first trial need not wait for them
        self.context, self.assignment = context, Assignment(**config["trial"])
        self.run: RunningTrial | None = None

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.cleanup()
        self.assignment = Assignment(**config["trial"])
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch."""
        try:
            if self.run is None:
                self.run = start_trial(self.context, self.assignment)
            result = self.run.train_epoch()
        except Exception as error:  # returned as a result, so that the process stays alive for other trials
            self.cleanup()
            result = {"failed": failure_reason(error), "done": True}
        report = {"trial_result": json.dumps(result), EPOCH: result.get(EPOCH, 0), "done": result["done"]}
        return {**report, METRIC: result[METRIC]} if METRIC in result else report

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the trial's newest checkpoint and its best weights, for other trials to continue from."""
        source, target = self._checkpoints(), Storage(checkpoint_dir)
        names = source.names()
        newest = [n for n in names if n.startswith("step-")][-1:]
        best = [n for n in names if n.startswith("best-")][-1:]
        for name in [*newest, *best]:
            for file in (source / name).names():
                target.write(f"{name}/{file}", source.read(f"{name}/{file}"))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Replace the trial's checkpoints by those that another trial saved."""
        self.cleanup()
        target, source = self._checkpoints(), Storage(checkpoint)
        for name in target.names():
            target.delete(name)
        for name in source.names():
            if name.startswith(("step-", "best-")):
                for file in (source / name).names():
                    target.write(f"{name}/{file}", source.read(f"{name}/{file}"))

    def cleanup(self) -> None:
        """End the running trial, if there is one."""
        if self.run is not None:
            self.run.close()
            self.run = None

    def _checkpoints(self) -> Storage:
        return trial_folder(self.context.folder, self.assignment.number) / "checkpoints"


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, in one or two lines."""
    text = mask(str(error)).strip()
    if isinstance(error, MemoryError) or any(phrase in text.lower() for phrase in OUT_OF_MEMORY):
        return f"out of memory: {text.splitlines()[0] if text else type(error).__name__}"
    return text if isinstance(error, RondoError) else f"{type(error).__name__}: {text}"


def evaluate_best(context: TrialContext, assignment: Assignment) -> dict[str, Any]:
    """Measure a trial's best weights and write its bundle into the folder of the search.

    Runs in one process, which may be the user's, without Ray Train.

    Returns:
        the result of ``Attempt.finish``, as plain values.
    """
    job = replace(_job(context, assignment), folder=context.folder, name=context.name)
    attempt = Attempt(job, replace(_worker_context(context), in_ray_train=False, watched=False))
    attempt.checkpoints = trial_folder(context.folder, assignment.number) / "checkpoints"
    attempt.restore()
    return attempt.finish()


class RunningTrial(Protocol):
    """A trial that has been started."""

    def train_epoch(self) -> dict[str, Any]:
        """Train one epoch; its result, see ``epoch_result``."""

    def close(self) -> None:
        """End the trial, even if it has epochs left."""


def start_trial(context: TrialContext, assignment: Assignment) -> RunningTrial:
    """Start a trial in this process or, if it has several workers, as a run of Ray Train.

    Raises:
        ValueError: the settings are not valid.
    """
    job = _job(context, assignment)
    trial = _InProcessTrial if job.experiment.workers.most == 1 else _DistributedTrial
    deadline = _deadline(context.folder, assignment)
    return trial(job, _worker_context(context), final=assignment.final, deadline=deadline)


def _job(context: TrialContext, assignment: Assignment) -> TrainingJob:
    experiment = with_settings(context.options[assignment.study], assignment.settings)
    key = data_key(experiment)
    return TrainingJob(
        experiment,
        context.prepared[key],
        context.cached[key],
        trial_folder(context.folder, assignment.number),
        trial_key(context.name, assignment.number),
        group_sums=assignment.final,
        changeable=context.changeable,
    )


def _worker_context(context: TrialContext) -> WorkerContext:
    return WorkerContext(context.tracker, context.cpus, _ignore_event, started=time.time())


def _ignore_event(event: Event) -> None:
    """The progress within a trial is not shown."""


class _InProcessTrial:
    """A trial of one worker, which is this process."""

    def __init__(self, job: TrainingJob, worker: WorkerContext, *, final: bool, deadline: float | None) -> None:
        _reset_peak_memory()
        if deadline is not None:
            worker = replace(worker, should_stop=lambda: time.time() > deadline)
        self.final, self.attempt = final, Attempt(job, replace(worker, in_ray_train=False))
        self.epochs = self.attempt.epochs()

    def train_epoch(self) -> dict[str, Any]:
        attempt, timed_out = self.attempt, False
        try:
            next(self.epochs, None)
        except Stopped:
            timed_out = True
        done = timed_out or is_finished(attempt.settings, attempt.progress)
        result = epoch_result(attempt, done, timed_out=timed_out)
        if result["done"] and self.final and not timed_out:
            attempt.context = replace(attempt.context, should_stop=lambda: False)  # the deadline is for training only
            result["final"] = attempt.finish()
        result["memory"] = peak_memory()
        return result

    def close(self) -> None:
        self.epochs.close()


class _DistributedTrial:
    """A trial of several workers: a run of Ray Train, which waits for permission after each epoch."""

    def __init__(self, job: TrainingJob, worker: WorkerContext, *, final: bool, deadline: float | None) -> None:
        self.gate = ray.remote(_EpochGate).options(num_cpus=0, max_concurrency=8).remote()
        self.waits = False  # whether the workers wait for permission
        self.thread = threading.Thread(target=self._train, args=(job, worker, final, deadline), daemon=True)
        self.thread.start()

    def _train(self, job: TrainingJob, worker: WorkerContext, final: bool, deadline: float | None) -> None:
        try:
            fit_workers(job, worker, partial(_worker, gate=self.gate, final=final, deadline=deadline))
            end: dict[str, Any] = {"done": True, "failed": "its workers ended early"}
        except BaseException as error:
            end = {"done": True, "failed": failure_reason(error)}
        ray.get(self.gate.put_result.remote(end))

    def train_epoch(self) -> dict[str, Any]:
        if self.waits:
            self.gate.permit.remote(True)
        result: dict[str, Any] = ray.get(self.gate.next_result.remote())
        self.waits = not result["done"]
        return result

    def close(self) -> None:
        if self.waits:
            self.gate.permit.remote(False)
        self.thread.join(60)
        ray.kill(self.gate)


class _EpochGate:
    """An actor that passes results from the workers of a distributed trial to it, and permissions to continue back."""

    def __init__(self) -> None:
        self.results: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.permissions: asyncio.Queue[bool] = asyncio.Queue()

    async def put_result(self, result: dict[str, Any]) -> None:
        await self.results.put(result)

    async def next_result(self) -> dict[str, Any]:
        return await self.results.get()

    async def permit(self, continues: bool) -> None:
        await self.permissions.put(continues)

    async def permission(self) -> bool:
        return await self.permissions.get()


def _worker(
    job: TrainingJob, context: WorkerContext, *, gate: ActorHandle, final: bool, deadline: float | None
) -> None:
    """One worker of a distributed trial."""
    _reset_peak_memory()
    attempt = Attempt(job, context)
    is_first = attempt.workers.rank == 0

    def report(last: bool, *, timed_out: bool) -> bool:
        """Report an epoch; whether to train another one, the same answer on all workers."""
        result = epoch_result(attempt, last, timed_out=timed_out) if is_first else {}
        measured = attempt.finish() if last and final and not timed_out else None
        permission = None
        if is_first:
            result["memory"] = peak_memory()
            if measured:
                result["final"] = measured
            ray.get(gate.put_result.remote(result))
            permission = None if last else gate.permission.remote()
        continues: list[bool | None] = [False if last else None]
        while continues[0] is None:  # in short rounds, as an exchange between workers has a time limit
            if permission is not None and ray.wait([permission], timeout=10)[0]:
                continues = [bool(ray.get(permission))]
            dist.broadcast_object_list(continues, src=0, device=attempt.workers.device)
        return continues[0]

    last = False
    for metrics in attempt.epochs():
        train.report(metrics)
        timed_out = [deadline is not None and time.time() > deadline]
        dist.broadcast_object_list(timed_out, src=0, device=attempt.workers.device)
        last = is_finished(attempt.settings, attempt.progress) or timed_out[0]
        if not report(last, timed_out=timed_out[0]):
            return
    if not last:  # a resumed trial that had nothing left to train
        report(True, timed_out=False)


def _deadline(search: Storage, assignment: Assignment) -> float | None:
    """When a trial has to stop, in seconds since 1970; the first trial of a study starts the study's clock."""
    if assignment.seconds is None:
        return None
    start = start_time(search, assignment.clock)
    if start is None:
        start = time.time()
        search.write(assignment.clock, str(start).encode())
    return start + assignment.seconds


def epoch_result(attempt: Attempt, done: bool, *, timed_out: bool) -> dict[str, Any]:
    """The state of a trial after an epoch, as plain values.

    Args:
        attempt: the trial's training.
        done: whether it was the last epoch.
        timed_out: whether it is the last one because of `search.seconds`.
    """
    progress, task = attempt.progress, attempt.model.task
    last = progress.history[-1] if progress.history else {}
    if timed_out and not last:
        return {"done": True, "failed": "search.seconds were over before its first epoch"}
    best = -progress.best if task.maximise else progress.best
    return {
        METRIC: last[f"validation/{task.primary}"],
        EPOCH: progress.epoch,
        "done": done,
        "timed_out": timed_out,
        "history": progress.history,
        "best": best if math.isfinite(best) else None,
        "seconds": round(progress.seconds, 3),
        "started": attempt.context.started,
        "parameters": attempt.parameters,
        "node": ray.util.get_node_ip_address(),
        "node_id": ray.get_runtime_context().get_node_id(),
    }


def _reset_peak_memory() -> None:
    """Restart the measurement of this process's peak memory (Linux, proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not permitted: the peak is then that since the process started
        return


def peak_memory() -> int | None:
    """Peak memory of this process since the trial began, in bytes; None if the system does not report it."""
    try:
        status = Path(f"/proc/{os.getpid()}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), None)
