"""What each Ray Train worker does: model, batches, checkpoint, loop, final evaluation. The same on one or many."""

from __future__ import annotations

import faulthandler
import json
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from numpy.typing import NDArray

import models
from datasets.ingest import Ingest
from datasets.plan import Cursor, Plan, checksum, checksum_range, keys
from datasets.prepare import Prepared
from datasets.views import View
from models.batch import Batch
from models.sequence import SequenceModel, Sums
from workflows import bundle, checkpoint, loop, strict_json
from workflows.experiment import Experiment, dataset_of, differences, storing_of, task_of
from workflows.loop import Hooks, Progress, Step, Workers

EVALUATION_ROWS = 256         # of a worker's batch when no gradients are kept, at most,
EVALUATION_TIMES = 4          # and how many times those of a training batch
REFUSALS = 3                  # by storage, in a row, that end a run
MOST_GROUPS = 300             # of rows, from which a bootstrap draws


@dataclass
class Job:
    """What a worker is handed.

    Attributes:
        experiment: to run.
        prepared: its data.
        cached: part -> references to its rows in the object store; a part that is not here streams.
        run: storage of the run; name: of the run.
        cpus: torch threads.
        tracker: of the run (pickled: a handle).
        tell: takes an event for the one who watches.
        stop: asked at each step whether to stop after it.
        present: what a worker of Ray Train is in while it is there.
        entered: when the process that was called started, in seconds since 1970.
        alone: this process is no worker of Ray Train.
        watched: a ``Watchdog`` may end this process; not the one that was started.
        groups: leave the sums of groups of rows of the last split, too: see ``Groups``.
        free: keys of the experiment in which a checkpoint may be of another one.
    """

    experiment: Experiment
    prepared: Prepared
    cached: dict[str, list[Any]]
    run: Any
    name: str
    cpus: int
    tracker: Any
    tell: Callable[[dict[str, Any]], None]
    stop: Callable[[], bool] = lambda: False
    present: Callable[[], AbstractContextManager[None]] = nullcontext
    entered: float = 0.0
    alone: bool = False
    watched: bool = True
    groups: bool = False
    free: tuple[str, ...] = ()


class Data:
    """The splits of a job, as steps for this worker."""

    def __init__(self, experiment: Experiment, prepared: Prepared, cached: dict[str, list[Any]],
                 workers: Workers, moved: Callable[[], None] = lambda: None) -> None:
        self.moved = moved                            # called at each step
        self.experiment, self.prepared, self.cached, self.workers = experiment, prepared, cached, workers
        self.dataset, self.storing = dataset_of(experiment), storing_of(experiment)
        self.task = task_of(experiment, self.dataset)
        self.splits = [s for s in ("train", "validation", "test") if self._has(s)]

    def _has(self, split: str) -> bool:
        state = self.prepared.state
        return split in self.prepared.parts or any(split in s.get("bounds", {}) for s in state.get("series", [])[:1])

    def view(self, split: str) -> View:
        return self.dataset.view(self.prepared, split, self.task)

    def plan(self, view: View, *, training: bool, rows: int | None = None) -> Plan:
        """The order of a view's rows; with `rows`, global batches of that many, whatever the settings are."""
        settings = self.experiment.training
        tokens = None if view.lengths is None or rows is not None else self._budget()
        if tokens is not None and view.lengths is not None:
            longest = int(view.lengths.max(initial=1))
            if not training:
                tokens = max(tokens, longest)
            elif settings.batch_seconds is not None and tokens < longest:
                most = math.ceil(100 * longest / self._rate()) / 100
                raise ValueError(f"training.batch_seconds={settings.batch_seconds:g} is less than the longest "
                                 f"recording (row {int(view.lengths.argmax())}: {most:g} s); use at least {most:g}, or "
                                 "a lower dataset.max_seconds, which sets long ones aside")
        size = settings.batch_size
        if not training:                                # no gradients are kept: more rows fit, but not any number
            most = EVALUATION_ROWS * (self.workers.world if view.follows is None else 1)    # lanes are those of one
            size = min(most, EVALUATION_TIMES * size)
        return Plan(view.rows, _sizes(view), rows or size, settings.seed, self.storing.shuffle_bytes, training, tokens,
                    view.lengths, view.follows)

    def _budget(self) -> int | None:
        """Most steps in a global batch, in steps of the stored rows."""
        settings = self.experiment.training
        if settings.batch_seconds is None:
            return settings.batch_tokens
        return max(1, math.floor(settings.batch_seconds * self._rate()))

    def _rate(self) -> int:
        """Samples a second."""
        rate: int = self.dataset.spec(self.prepared.state, self.task)["rate"]
        return rate

    def ingest(self, split: str, *, training: bool, rows: int | None = None) -> Ingest:
        view = self.view(split)
        part = next(name for name, p in self.prepared.parts.items() if p is view.part)
        return Ingest(view, self.prepared.storage, self.plan(view, training=training, rows=rows), self.workers.rank,
                      self.workers.world, self.experiment.training.accumulate if training else 1,
                      self.cached.get(part), pin=self.workers.device.type == "cuda")

    def steps(self, ingest: Ingest, epochs: int, epoch: int = 0, place: tuple[int, int] = (0, 0)) -> Iterator[Step]:
        """The loop's steps from a place on; floats of the precision asked for."""
        settings = self.experiment.training
        double = settings.precision == "fp64"
        for cursor, ids, micro in ingest.steps(Cursor(epoch, *place), epochs):
            self.moved()
            own = ids[self.workers.rank::self.workers.world]
            batches = [Batch(m.inputs, m.lengths, m.targets, m.weights, m.row_ids, m.lanes, m.reset) for m in micro]
            if ingest.plan.shuffle:                   # training: what augmentation is drawn from
                for batch in batches:
                    batch.keys = torch.from_numpy(keys(batch.row_ids.numpy(), settings.seed, cursor.epoch))
            yield Step(cursor.epoch, (cursor.window, cursor.batch), ids.size,
                       [_double(b) for b in batches] if double else batches, own.size, checksum(own))

    def evaluation(self, split: str, rows: int | None = None) -> Iterator[Step]:
        """Every row of a split once, in stored order."""
        return self.steps(self.ingest(split, training=False, rows=rows), 1)


class Unwritable(Exception):
    """Storage takes no checkpoints."""


class Watchdog:
    """Ends this process once nothing has moved for `seconds`, so that another takes over; 0 never does.

    Shortly before, `tell` gets a note. What the threads were doing then goes to stderr, the worker's log. The end is a
    timer of faulthandler's, which needs no turn of the interpreter.
    """

    def __init__(self, seconds: float, tell: Callable[[dict[str, Any]], None]) -> None:
        self.seconds, self.tell = seconds, tell
        self.last = self.set = -math.inf               # when something moved, and when the timer was set
        self.warning: threading.Thread | None = None

    def moved(self) -> None:
        """Something happened. Setting a timer takes 0.1 ms, so it is done twenty times in `seconds` at most."""
        if not self.seconds:
            return
        self.last = time.monotonic()
        if self.last - self.set > self.seconds / 20:
            self.set = self.last
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or sys.stderr)
        if self.warning is None or not self.warning.is_alive():
            self.warning = threading.Thread(target=self._warn, daemon=True)
            self.warning.start()

    def rest(self) -> None:
        """Nothing is expected to move any more."""
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
            self.last, self.set = math.inf, -math.inf

    def _warn(self) -> None:
        warned = -math.inf
        while (last := self.last) < math.inf:          # at rest, this thread ends
            time.sleep(self.seconds / 20)
            if warned != last == self.last and time.monotonic() - last > 0.8 * self.seconds:
                warned = last
                self.tell({"event": "note", "text": f"a worker (process {os.getpid()} on {socket.gethostname()}) has "
                           f"not moved for {0.8 * self.seconds:g} s; at {self.seconds:g} s it is ended and replaced "
                           "(workers.timeout)"})


class Attempt:
    """One worker of one attempt at a run: ``for metrics in attempt.epochs()``, then ``attempt.finish()``.

    Attributes:
        workers: all of the run.
        progress: where training stands.
        parameters: of the model.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.settings = job, job.experiment.training
        self.workers = _join(job)
        self.watchdog = Watchdog(job.experiment.workers.timeout if job.watched else 0.0, job.tell)
        self.data = Data(job.experiment, job.prepared, job.cached, self.workers, self.watchdog.moved)
        self.model, self.spec = make_model(job.experiment, job.prepared, self.workers.device)
        self.optimizer = loop.make_optimizer(self.model, self.settings)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.checkpoints = job.run / "checkpoints"
        self.saver = Saver(job, self.checkpoints, self.model, self.optimizer)
        self.progress, self.first_step = Progress(), 0.0

    def restore(self) -> None:
        """Go to where the newest checkpoint is, if there is one."""
        found = _newest(self.checkpoints, self.workers)
        if found is not None:
            self.progress = Progress.of(_restore(found, self.job, self.model, self.optimizer, self.checkpoints.uri))

    def epochs(self) -> Generator[dict[str, float]]:
        """Train from the newest checkpoint on; the metrics of each epoch, as it ends."""
        self.watchdog.moved()
        try:
            for metrics in self._epochs():
                self.watchdog.rest()                   # whoever asked for the epoch may take their time
                yield metrics
                self.watchdog.moved()
        finally:
            self.watchdog.rest()

    def _epochs(self) -> Generator[dict[str, float]]:
        job, settings, workers = self.job, self.settings, self.workers
        self.restore()
        ingest = self.data.ingest("train", training=True)
        total = ingest.plan.total
        if workers.rank == 0:
            job.tell({"event": "start", "rows": total, "epochs": settings.epochs, "step": self.progress.step,
                      "epoch": self.progress.epoch, "parameters": self.parameters,
                      "streams": ingest.cached is None, "workers": workers.world,
                      "checkpoint_steps": settings.checkpoint_steps})
        steps = _Watched(self.data, ingest, job, workers, settings.epochs)
        for metrics in loop.epochs(
                self.model, self.optimizer, settings, steps, rows=total, expected_checksum=checksum_range(total),
                workers=workers, progress=self.progress, validate=self._validate,
                hooks=_hooks(job, self.model, self.saver, workers)):
            self.first_step = steps.first_step
            yield metrics

    def _validate(self) -> dict[str, float]:
        return loop.evaluate(self.model, self.data.evaluation("validation"), self.workers,
                             precision=self.settings.precision, quick=True).metrics["model"]

    def finish(self) -> dict[str, Any]:
        """Measure the best weights, write the bundle and ``result.json``; the result, as plain values."""
        self.watchdog.moved()
        try:
            return self._finish()
        finally:
            self.watchdog.rest()

    def _finish(self) -> dict[str, Any]:
        job = self.job
        try:
            self.saver.settle()
            if dist.is_initialized():
                dist.barrier()
            checkpoint.load_weights(self.model, _best(self.checkpoints, self.progress))
            result = {**_final(self.model, self.data, self.workers, job, self.progress),
                      "first_step_seconds": round(self.first_step, 2)}
            if self.workers.rank == 0:
                bundle.save(job.run, "bundle", checkpoint.weights(self.model), experiment=job.experiment.plain(),
                            spec=self.spec, state=job.prepared.state, run=job.name,
                            metrics=strict_json.finite_or_none(result["metrics"]))
                job.run.write("result.json", strict_json.dumps(result).encode())
        except OSError as error:
            raise Unwritable(f"{job.run.uri} could not be read or written at the end: {error}. Make room, or bring "
                             "storage back; then --resume goes on from the last checkpoint") from error
        if dist.is_initialized():
            dist.barrier()
        return result


def work(job: Job) -> dict[str, Any]:
    """Train, evaluate and write the bundle as a Ray Train worker; the result, as plain values."""
    from ray import train

    attempt = Attempt(job)
    for metrics in attempt.epochs():
        train.report(metrics)
    return attempt.finish()


def make_model(experiment: Experiment, prepared: Prepared,
               device: torch.device) -> tuple[SequenceModel, dict[str, Any]]:
    """The model of an experiment with the weights that its seed gives, and what it was told of its rows."""
    dataset = dataset_of(experiment)
    spec = dataset.spec(prepared.state, task_of(experiment, dataset))
    torch.manual_seed(experiment.training.seed)
    model: SequenceModel = models.build(spec, experiment.model, experiment.task)
    return model.to(device, torch.float64 if experiment.training.precision == "fp64" else torch.float32), spec


class _Watched:
    """The steps of training, telling how far it is, at most a few times a second."""

    def __init__(self, data: Data, ingest: Ingest, job: Job, workers: Workers, epochs: int) -> None:
        self.data, self.ingest, self.job, self.epochs, self.told = data, ingest, job, epochs, workers.rank != 0
        self.first_step = 0.0                     # seconds from the call to the end of the first step

    def __call__(self, epoch: int, place: tuple[int, int]) -> Iterator[Step]:
        first, last, rows = True, time.monotonic(), 0
        for step in self.data.steps(self.ingest, self.epochs, epoch, place):
            rows += step.rows
            now = time.monotonic()
            if not self.told and (first or now - last > 0.3):
                self.job.tell({"event": "step", "epoch": step.epoch, "rows": rows, "first": first})
                last, rows = now, 0
            yield step
            if first:
                self.first_step, first = time.time() - self.job.entered, False


def _join(job: Job) -> Workers:
    torch.set_num_threads(job.cpus)
    device: torch.device
    if job.experiment.workers.gpus and job.alone:
        device = torch.device("cuda", 0)               # Ray shows a process its own GPUs only
    elif job.experiment.workers.gpus:
        from ray.train.torch import get_device
        device = get_device()
    else:
        device = torch.device("cpu")
    from datasets.ingest import configure_ray_data
    configure_ray_data()
    return Workers(device)


def _newest(checkpoints: Any, workers: Workers) -> tuple[str, dict[str, bytes]] | None:
    """The newest complete checkpoint, as rank 0 sees it, read by every worker."""
    found = checkpoint.latest(checkpoints) if workers.rank == 0 else None
    if workers.world == 1:
        return found
    name = [found[0] if found else None]
    dist.broadcast_object_list(name, src=0, device=workers.device)
    if name[0] is None:
        return None
    return found or (name[0], checkpoint.read_files(checkpoints, name[0]))


def _restore(found: tuple[str, dict[str, bytes]], job: Job, model: SequenceModel,
             optimizer: torch.optim.Optimizer, where: str) -> dict[str, Any]:
    """Put a checkpoint's tensors back; its progress.

    Raises:
        ValueError: it is a checkpoint of another experiment, or of other data.
    """
    name, files = found
    state = json.loads(files["state.json"])
    changed = [text for text in differences(state["experiment"], job.experiment.plain())
               if not text.startswith(tuple(f"{key}:" for key in job.free))]
    if changed:
        raise ValueError(f"{where}/{name} is a checkpoint of another experiment ({'; '.join(changed[:5])}); "
                         "use the same experiment and overrides, or start a new run")
    if state["data"] != job.prepared.digest:
        raise ValueError(f"{where}/{name} was trained on other data: the files of the dataset have changed since; "
                         "bring the old ones back, or start a new run")
    progress: dict[str, Any] = checkpoint.restore(files, model, optimizer)["progress"]
    model.carried.lanes = checkpoint.carried(files)
    return progress


def _hooks(job: Job, model: SequenceModel, saver: Saver, workers: Workers) -> Hooks:
    """Rank 0 records and saves; the state of all lanes is gathered from all workers."""
    chief = workers.rank == 0

    def log(metrics: dict[str, float], step: int) -> None:
        if chief:
            job.tracker.metrics(job.name, metrics, step)

    def epoch(metrics: dict[str, float], progress: Progress) -> None:
        if chief:
            job.tracker.metrics(job.name, metrics, progress.step)
            job.tell({"event": "epoch", "epoch": progress.epoch, "metrics": metrics,
                      "primary": model.task.primary, "best": progress.best_step == progress.step})

    def save(progress: Progress, best: bool) -> None:
        carried = model.carried.of_all(workers.sum, workers.rank, workers.world) if model.carried.lanes else {}
        if chief:
            job.tracker.settle()         # whoever goes on from this checkpoint does not take the steps before it again
            saver.save(progress, best, carried)

    return Hooks(log, epoch, save, job.stop, _never if job.alone else _Notice())


class Saver:
    """Writes a run's checkpoints, and the best weights; of one worker, the first.

    What storage refuses is told, and tried again with the next checkpoint: a disk that is full for a minute, or a store
    that is away, costs no training.
    """

    def __init__(self, job: Job, folder: Any, model: SequenceModel, optimizer: torch.optim.Optimizer) -> None:
        self.job, self.folder, self.model, self.optimizer = job, folder, model, optimizer
        self.best: tuple[str, bytes] | None = None     # that storage does not have yet: name, weights
        self.refused = 0                               # in a row

    def save(self, progress: Progress, best: bool, carried: dict[str, torch.Tensor]) -> None:
        """Write a checkpoint; `best`: of the best weights so far.

        Raises:
            Unwritable: storage has refused several in a row.
        """
        if best:
            self.best = f"best-{progress.step:09d}", checkpoint.weights(self.model)
        state = {"progress": progress.plain(), "experiment": self.job.experiment.plain(),
                 "data": self.job.prepared.digest}
        try:
            self.settle()
            checkpoint.save(self.folder, progress.step, self.model, self.optimizer, state, carried=carried)
            for old in self.folder.names():
                if old.startswith("best-") and int(old[5:]) < progress.best_step:
                    self.folder.delete(old)
        except OSError as error:
            self.refused += 1
            told = f"no checkpoint of step {progress.step} could be written to {self.folder.uri}: {error}"
            if self.refused == REFUSALS:
                raise Unwritable(f"{told}; it is the {REFUSALS}rd in a row. Make room, or bring storage back; then "
                                 "--resume goes on from the last whole checkpoint") from None
            self.job.tell({"event": "note", "text": f"{told}; the next one is tried"})
        else:
            self.refused = 0

    def settle(self) -> None:
        """Write the best weights that are still to be written.

        Raises:
            OSError: storage refuses them.
        """
        if self.best is not None:
            name, data = self.best
            checkpoint.write_files(self.folder, name, {"model.safetensors": data})
            self.best = None


class _Notice:
    """Says once, after Ray Train has heard that a node of these workers will be taken away, that it is time to save."""

    def __init__(self) -> None:
        from workflows.ray_train_private import preemption_notice
        self.known: Any = None
        self.notice = preemption_notice()

    def __call__(self) -> bool:
        info = self.notice()
        new, self.known = info is not None and info != self.known, info
        return new


def _never() -> bool:
    return False


def _best(checkpoints: Any, progress: Progress) -> bytes:
    if progress.best_step < 0:
        raise loop.Diverged("the validation metric was never a finite number; try a lower training.learning_rate")
    return checkpoint.read_files(checkpoints, f"best-{progress.best_step:09d}")["model.safetensors"]


def _final(model: SequenceModel, data: Data, workers: Workers, job: Job, progress: Progress) -> dict[str, Any]:
    """The best weights on validation and test, beside the baselines."""
    settings = job.experiment.training
    fitted = list(model.task.fitted_baselines())
    if fitted:
        loop.fit_baselines(fitted, data.evaluation("train"), workers, job.stop)
    metrics = {"train/loss": progress.history[_best_epoch(progress)]["train/loss"]}
    others: dict[str, dict[str, float]] = {}
    artifacts: list[dict[str, Any]] = []
    for split in data.splits[1:]:
        groups = Groups(data, split) if job.groups and split == data.splits[-1] else None
        found = loop.evaluate(model, data.evaluation(split, groups.rows if groups else None), workers, baselines=True,
                              precision=settings.precision, fitted=fitted, each=groups.add if groups else None,
                              stops=job.stop)
        if groups is not None:
            groups.save(job.run, workers)
        artifacts = [{"split": split, **asdict(artifact)} for artifact in found.artifacts]
        metrics |= {f"{split}/{k}": v for k, v in found.metrics.pop("model").items()}
        for method, values in found.metrics.items():
            others.setdefault(method, {}).update({f"{split}/{k}": v for k, v in values.items()})
    if workers.rank == 0:
        job.run.write("artifacts.json", strict_json.dumps(artifacts).encode())
    return {"metrics": metrics, "baselines": others, "seconds": round(progress.seconds, 3), "steps": progress.step,
            "parameters": sum(p.numel() for p in model.parameters()), "best_step": progress.best_step,
            "history": progress.history, "primary": model.task.primary, "maximise": model.task.maximise,
            "signatures": dict(model.task.signatures),
            "best_reachable": _reachable(data.prepared.state.get("best", {}), job.experiment.task)}


class Groups:
    """Sums of groups of rows of a split, of the model and of each baseline: what a bootstrap draws from.

    A group is a row, or several in the order of evaluation: at most 300 groups, the same for every model on this data;
    windows of a series whose targets overlap lie in one group, or in two neighbouring ones.

    Attributes:
        rows: of a global batch, of which a group is one or several.
    """

    FILE = "groups.safetensors"

    def __init__(self, data: Data, split: str) -> None:
        view = data.view(split)
        total = int(view.rows.sum())
        series = len(data.prepared.state.get("series", ()))
        overlap = min(data.task.get("horizon", 1), math.ceil(total / series)) if series else 1
        size = max(overlap, math.ceil(total / MOST_GROUPS))
        self.rows = min(size, EVALUATION_ROWS)
        self.each = math.ceil(size / self.rows)       # batches a group
        self.seen = 0
        self.sums: dict[str, list[torch.Tensor]] = {}

    def add(self, sums: dict[str, Sums]) -> None:
        """Take this worker's sums of a step."""
        opens = self.seen % self.each == 0
        self.seen += 1
        for method, own in sums.items():
            for name, value in own.items():
                told = self.sums.setdefault(f"{method}/{name}", [])
                if opens:
                    told.append(value.cpu())
                else:
                    told[-1] += value.cpu()

    def save(self, run: Any, workers: Workers) -> None:
        """Write the sums over workers: METHOD/SUM -> (groups, ...) float64."""
        stacked = {name: workers.sum(torch.stack(told)).contiguous() for name, told in sorted(self.sums.items())}
        if workers.rank == 0:
            run.write(self.FILE, safetensors.torch.save(stacked))


def _reachable(best: dict[str, float], task: dict[str, Any]) -> dict[str, float]:
    """The metrics that no model can beat, where the data says so of tasks that see and ask for as much as this one."""
    if best.get("lookback", 0) > task.get("lookback", 0) or best.get("horizon", math.inf) < task.get("horizon", 0):
        return {}
    return {name: value for name, value in best.items() if name not in ("lookback", "horizon")}


def _best_epoch(progress: Progress) -> int:
    """Place of the best epoch in the history."""
    return next(i for i, h in enumerate(progress.history) if h["step"] == progress.best_step)


def _sizes(view: View) -> NDArray[np.int64]:
    return np.array([s.memory for s in view.part.shards], np.int64)


def _double(batch: Batch) -> Batch:
    def wide(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.double() if v.is_floating_point() else v for k, v in fields.items()}
    return replace(batch, inputs=wide(batch.inputs), targets=wide(batch.targets), weights=batch.weights.double())

