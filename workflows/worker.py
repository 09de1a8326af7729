"""What each Ray Train worker does: model, batches, checkpoint, loop, final evaluation. The same on one or many."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

import models
from datasets.ingest import Ingest
from datasets.plan import Cursor, Plan, checksum, checksum_range, keys
from datasets.prepare import Prepared
from datasets.views import View
from models.batch import Batch
from models.sequence import SequenceModel
from workflows import bundle, checkpoint, loop
from workflows.experiment import Experiment, dataset_of, differences, storing_of, task_of
from workflows.loop import Hooks, Progress, Step, Workers

EVALUATION_ROWS = 256         # of a worker's batch when no gradients are kept, at most,
EVALUATION_TIMES = 4          # and how many times those of a training batch


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
        stop: asked between steps whether to stop; only in the process that was started.
        entered: when the process that was called started, in seconds since 1970.
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
    entered: float = 0.0


class Data:
    """The splits of a job, as steps for this worker."""

    def __init__(self, experiment: Experiment, prepared: Prepared, cached: dict[str, list[Any]],
                 workers: Workers) -> None:
        self.experiment, self.prepared, self.cached, self.workers = experiment, prepared, cached, workers
        self.dataset, self.storing = dataset_of(experiment), storing_of(experiment)
        self.task = task_of(experiment, self.dataset)
        self.splits = [s for s in ("train", "validation", "test") if self._has(s)]

    def _has(self, split: str) -> bool:
        state = self.prepared.state
        return split in self.prepared.parts or any(split in s.get("bounds", {}) for s in state.get("series", [])[:1])

    def view(self, split: str) -> View:
        return self.dataset.view(self.prepared, split, self.task)

    def plan(self, view: View, *, training: bool) -> Plan:
        settings = self.experiment.training
        tokens = None if view.lengths is None else self._budget()
        if tokens is not None and view.lengths is not None:
            longest = int(view.lengths.max(initial=1))
            if not training:
                tokens = max(tokens, longest)
            elif settings.batch_seconds is not None and tokens < longest:
                most = math.ceil(100 * longest / self._rate()) / 100
                raise ValueError(f"training.batch_seconds={settings.batch_seconds:g} is less than the longest "
                                 f"recording (row {int(view.lengths.argmax())}: {most:g} s); use at least {most:g}, or "
                                 "a lower dataset.max_seconds, which sets long ones aside")
        rows = settings.batch_size
        if not training:                                # no gradients are kept: more rows fit, but not any number
            most = EVALUATION_ROWS * (self.workers.world if view.follows is None else 1)    # lanes are those of one
            rows = min(most, EVALUATION_TIMES * rows)
        return Plan(view.rows, _sizes(view), rows, settings.seed, self.storing.shuffle_bytes, training, tokens,
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

    def ingest(self, split: str, *, training: bool) -> Ingest:
        view = self.view(split)
        part = next(name for name, p in self.prepared.parts.items() if p is view.part)
        return Ingest(view, self.prepared.storage, self.plan(view, training=training), self.workers.rank,
                      self.workers.world, self.experiment.training.accumulate if training else 1,
                      self.cached.get(part), pin=self.workers.device.type == "cuda")

    def steps(self, ingest: Ingest, epochs: int, epoch: int = 0, place: tuple[int, int] = (0, 0)) -> Iterator[Step]:
        """The loop's steps from a place on; floats of the precision asked for."""
        settings = self.experiment.training
        double = settings.precision == "fp64"
        for cursor, ids, micro in ingest.steps(Cursor(epoch, *place), epochs):
            own = ids[self.workers.rank::self.workers.world]
            batches = [Batch(m.inputs, m.lengths, m.targets, m.weights, m.row_ids, m.lanes, m.reset) for m in micro]
            if ingest.plan.shuffle:                   # training: what augmentation is drawn from
                for batch in batches:
                    batch.keys = torch.from_numpy(keys(batch.row_ids.numpy(), settings.seed, cursor.epoch))
            yield Step(cursor.epoch, (cursor.window, cursor.batch), ids.size,
                       [_double(b) for b in batches] if double else batches, own.size, checksum(own))

    def evaluation(self, split: str) -> Iterator[Step]:
        """Every row of a split once, in stored order."""
        return self.steps(self.ingest(split, training=False), 1)


def work(job: Job) -> dict[str, Any]:
    """Train, evaluate and write the bundle; the result, as plain values."""
    workers = _join(job)
    settings = job.experiment.training
    data = Data(job.experiment, job.prepared, job.cached, workers)
    model, spec = make_model(job.experiment, job.prepared, workers.device)
    optimizer = loop.make_optimizer(model, settings)
    checkpoints = job.run / "checkpoints"
    found = _newest(checkpoints, workers)
    progress = Progress()
    if found is not None:
        progress = Progress.of(_restore(found, job, model, optimizer, checkpoints.uri))
    ingest = data.ingest("train", training=True)
    total = ingest.plan.total
    if workers.rank == 0:
        job.tell({"event": "start", "rows": total, "epochs": settings.epochs, "step": progress.step,
                  "epoch": progress.epoch, "parameters": sum(p.numel() for p in model.parameters()),
                  "streams": ingest.cached is None, "workers": workers.world})

    def validate() -> dict[str, float]:
        return loop.evaluate(model, data.evaluation("validation"), workers,
                             precision=settings.precision, quick=True).metrics["model"]

    steps = _Watched(data, ingest, job, workers, settings.epochs)
    loop.fit(model, optimizer, settings, steps, rows=total, expected_checksum=checksum_range(total), workers=workers,
             progress=progress,
             hooks=_hooks(job, model, optimizer, checkpoints, workers), validate=validate)
    checkpoint.load_weights(model, _best(checkpoints, progress))
    result = {**_final(model, data, workers, job, progress), "first_step_seconds": round(steps.first_step, 2)}
    if workers.rank == 0:
        bundle.save(job.run, "bundle", checkpoint.weights(model), experiment=job.experiment.plain(), spec=spec,
                    state=job.prepared.state, metrics=result["metrics"], run=job.name)
        job.run.write("result.json", json.dumps(result).encode())
    if dist.is_initialized():
        dist.barrier()
    return result


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
    if job.experiment.workers.gpus:
        from ray.train.torch import get_device
        device: torch.device = get_device()
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
    changed = differences(state["experiment"], job.experiment.plain())
    if changed:
        raise ValueError(f"{where}/{name} is a checkpoint of another experiment ({'; '.join(changed[:5])}); "
                         "use the same experiment and overrides, or start a new run")
    if state["data"] != job.prepared.digest:
        raise ValueError(f"{where}/{name} was trained on other data: the files of the dataset have changed since; "
                         "bring the old ones back, or start a new run")
    progress: dict[str, Any] = checkpoint.restore(files, model, optimizer)["progress"]
    model.carried.lanes = checkpoint.carried(files)
    return progress


def _hooks(job: Job, model: SequenceModel, optimizer: torch.optim.Optimizer, checkpoints: Any,
           workers: Workers) -> Hooks:
    """Rank 0 records and saves; all workers meet at the end of an epoch, where Ray Train hears of it."""
    chief = workers.rank == 0

    def log(metrics: dict[str, float], step: int) -> None:
        if chief:
            job.tracker.metrics(job.name, metrics, step)

    def epoch(metrics: dict[str, float], progress: Progress) -> None:
        if chief:
            job.tracker.metrics(job.name, metrics, progress.step)
            job.tell({"event": "epoch", "epoch": progress.epoch, "metrics": metrics,
                      "primary": model.task.primary, "best": progress.best_step == progress.step})
        from ray import train
        train.report({**metrics, "epoch": progress.epoch, "step": progress.step})

    def save(progress: Progress, best: bool) -> None:
        carried = model.carried.of_all(workers.sum, workers.rank, workers.world) if model.carried.lanes else {}
        if not chief:
            return
        if best:
            checkpoint.write_files(checkpoints, f"best-{progress.step:09d}",
                                   {"model.safetensors": checkpoint.weights(model)})
        state = {"progress": progress.plain(), "experiment": job.experiment.plain(), "data": job.prepared.digest}
        checkpoint.save(checkpoints, progress.step, model, optimizer, state, carried=carried)
        for old in checkpoints.names():
            if old.startswith("best-") and int(old[5:]) < progress.best_step:
                checkpoints.delete(old)

    return Hooks(log, epoch, save, job.stop)


def _best(checkpoints: Any, progress: Progress) -> bytes:
    if progress.best_step < 0:
        raise loop.Diverged("the validation metric was never a finite number; try a lower training.learning_rate")
    return checkpoint.read_files(checkpoints, f"best-{progress.best_step:09d}")["model.safetensors"]


def _final(model: SequenceModel, data: Data, workers: Workers, job: Job, progress: Progress) -> dict[str, Any]:
    """The best weights on validation and test, beside the baselines."""
    settings = job.experiment.training
    fitted = list(model.task.fitted_baselines())
    if fitted:
        loop.fit_baselines(fitted, data.evaluation("train"), workers)
    metrics = {"train/loss": progress.history[_best_epoch(progress)]["train/loss"]}
    others: dict[str, dict[str, float]] = {}
    artifacts: list[dict[str, Any]] = []
    for split in data.splits[1:]:
        found = loop.evaluate(model, data.evaluation(split), workers, precision=settings.precision,
                              baselines=True, fitted=fitted)
        artifacts = [{"split": split, **asdict(artifact)} for artifact in found.artifacts]
        metrics |= {f"{split}/{k}": v for k, v in found.metrics.pop("model").items()}
        for method, values in found.metrics.items():
            others.setdefault(method, {}).update({f"{split}/{k}": v for k, v in values.items()})
    if workers.rank == 0:
        job.run.write("artifacts.json", json.dumps(artifacts).encode())
    return {"metrics": metrics, "baselines": others, "seconds": round(progress.seconds, 3), "steps": progress.step,
            "parameters": sum(p.numel() for p in model.parameters()), "best_step": progress.best_step,
            "history": progress.history, "primary": model.task.primary, "maximise": model.task.maximise,
            "signatures": dict(model.task.signatures),
            "best_reachable": _reachable(data.prepared.state.get("best", {}), job.experiment.task)}


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

