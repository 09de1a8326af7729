"""What each Ray Train worker does: model, batches, checkpoint, loop, final evaluation. The same on one or many."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Iterator
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from ray import train
from ray.train.torch import get_device

import models
from datasets.pipeline.ingest import Ingest, configure_ray_data
from datasets.pipeline.plan import checksum_range
from datasets.pipeline.prepared import Prepared
from datasets.pipeline.storage import Storage
from models.sequence import SequenceModel
from workflows import strict_json
from workflows.cluster.ray_train_private import preemption_notice
from workflows.config.experiment import Experiment, differences
from workflows.errors import Diverged, Unwritable, UserError, user_mistakes
from workflows.training import bundle, checkpoint, evaluation, loop
from workflows.training.data import Data
from workflows.training.groups import GroupSums
from workflows.training.job import TrainingJob, WorkerContext
from workflows.training.loop import Hooks
from workflows.training.progress import Progress, Step
from workflows.training.saver import Saver
from workflows.training.watchdog import Watchdog
from workflows.training.worker_group import WorkerGroup


class Attempt:
    """One worker of one attempt at a run: ``for metrics in attempt.epochs()``, then ``attempt.finish()``.

    Attributes:
        workers: all of the run.
        progress: the position in the data, and what was counted so far.
        parameters: of the model.
    """

    def __init__(self, job: TrainingJob, context: WorkerContext) -> None:
        self.job, self.context, self.settings = job, context, job.experiment.training
        self.workers = _connect_workers(job.experiment, context)
        self.watchdog = Watchdog(job.experiment.workers.timeout if context.watched else 0.0, context.send_event)
        self.data = Data(job.experiment, job.prepared, job.cached, self.workers, self.watchdog.reset)
        self.model, self.spec = make_model(job.experiment, job.prepared, self.workers.device)
        self.optimizer = loop.make_optimizer(self.model, self.settings)
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.checkpoints = job.folder / "checkpoints"
        self.saver = Saver(
            self.checkpoints,
            self.model,
            self.optimizer,
            experiment=job.experiment.plain(),
            data=job.prepared.digest,
            send_event=context.send_event,
        )
        self.progress, self.first_step = Progress(), 0.0

    def restore(self) -> None:
        """Continue from the newest checkpoint, if there is one."""
        found = _newest(self.checkpoints, self.workers)
        if found is not None:
            self.progress = Progress.from_plain(
                _restore(found, self.job, self.model, self.optimizer, self.checkpoints.uri)
            )

    def epochs(self) -> Generator[dict[str, float]]:
        """Train from the newest checkpoint; yields the metrics of each epoch."""
        self.watchdog.reset()
        try:
            for metrics in self._epochs():
                self.watchdog.pause()  # the caller may pause between epochs
                yield metrics
                self.watchdog.reset()
        finally:
            self.watchdog.pause()

    def _epochs(self) -> Generator[dict[str, float]]:
        job, settings, workers = self.job, self.settings, self.workers
        self.restore()
        ingest = self.data.ingest("train", training=True)
        total = ingest.plan.total
        if workers.rank == 0:
            self.context.send_event(
                {
                    "event": "start",
                    "rows": total,
                    "epochs": settings.epochs,
                    "step": self.progress.step,
                    "epoch": self.progress.epoch,
                    "parameters": self.parameters,
                    "streams": ingest.cached is None,
                    "workers": workers.world,
                    "checkpoint_steps": settings.checkpoint_steps,
                }
            )
        steps = _ReportedSteps(self.data, ingest, self.context, workers, settings.epochs)
        for metrics in loop.epochs(
            self.model,
            self.optimizer,
            settings,
            steps,
            rows=total,
            expected_checksum=checksum_range(total),
            workers=workers,
            progress=self.progress,
            validate=self._validate,
            hooks=_hooks(job.name, self.context, self.model, self.saver, workers),
        ):
            self.first_step = steps.first_step
            yield metrics

    def _validate(self) -> dict[str, float]:
        return evaluation.evaluate(
            self.model, self.data.evaluation("validation"), self.workers, precision=self.settings.precision, quick=True
        ).metrics["model"]

    def finish(self) -> dict[str, Any]:
        """Measure the best weights, write the bundle and ``result.json``; the result, as plain values."""
        self.watchdog.reset()
        try:
            return self._finish()
        finally:
            self.watchdog.pause()

    def _finish(self) -> dict[str, Any]:
        job = self.job
        try:
            self.saver.write_best()
            if dist.is_initialized():
                dist.barrier()
            checkpoint.load_weights(self.model, _best(self.checkpoints, self.progress))
            result = {
                **self._final_evaluation(),
                "first_step_seconds": round(self.first_step, 2),
            }
            if self.workers.rank == 0:
                bundle.save(
                    job.folder,
                    "bundle",
                    checkpoint.weights(self.model),
                    experiment=job.experiment.plain(),
                    spec=self.spec,
                    state=job.prepared.state,
                    run=job.name,
                    metrics=strict_json.finite_or_none(result["metrics"]),
                )
                job.folder.write("result.json", strict_json.dumps(result).encode())
        except OSError as error:
            raise Unwritable(
                f"{job.folder.uri} could not be read or written at the end: {error}. Make room, or bring "
                "storage back; then --resume continues from the last checkpoint"
            ) from error
        if dist.is_initialized():
            dist.barrier()
        return result

    def _final_evaluation(self) -> dict[str, Any]:
        """The best weights on validation and test, and those of the baselines."""
        model, data, workers, job, progress = self.model, self.data, self.workers, self.job, self.progress
        should_stop = self.context.should_stop
        fitted_baselines = list(model.task.fitted_baselines())
        if fitted_baselines:
            evaluation.fit_baselines(fitted_baselines, data.evaluation("train"), workers, should_stop)
        metrics = {"train/loss": progress.history[_best_epoch(progress)]["train/loss"]}
        baselines: dict[str, dict[str, float]] = {}
        artifacts: list[dict[str, Any]] = []
        for split in data.splits[1:]:
            groups = GroupSums(data, split) if job.group_sums and split == data.splits[-1] else None
            evaluated = evaluation.evaluate(
                model,
                data.evaluation(split, groups.rows if groups else None),
                workers,
                baselines=True,
                precision=self.settings.precision,
                fitted=fitted_baselines,
                on_step=groups.add if groups else None,
                should_stop=should_stop,
            )
            if groups is not None:
                groups.save(job.folder, workers)
            artifacts = [{"split": split, **asdict(artifact)} for artifact in evaluated.artifacts]
            metrics |= {f"{split}/{k}": v for k, v in evaluated.metrics.pop("model").items()}
            for method, values in evaluated.metrics.items():
                baselines.setdefault(method, {}).update({f"{split}/{k}": v for k, v in values.items()})
        if workers.rank == 0:
            job.folder.write("artifacts.json", strict_json.dumps(artifacts).encode())
        return {
            "metrics": metrics,
            "baselines": baselines,
            "seconds": round(progress.seconds, 3),
            "steps": progress.step,
            "parameters": sum(p.numel() for p in model.parameters()),
            "best_step": progress.best_step,
            "history": progress.history,
            "primary": model.task.primary,
            "maximise": model.task.maximise,
            "signatures": dict(model.task.signatures),
            "best_reachable": _reachable(data.prepared.state.get("best", {}), job.experiment.task),
        }


def work(job: TrainingJob, context: WorkerContext) -> dict[str, Any]:
    """Train, evaluate and write the bundle as a Ray Train worker; the result, as plain values."""

    attempt = Attempt(job, context)
    for metrics in attempt.epochs():
        train.report(metrics)
    return attempt.finish()


def make_model(
    experiment: Experiment, prepared: Prepared, device: torch.device
) -> tuple[SequenceModel, dict[str, Any]]:
    """The model of an experiment with the weights of its seed, and the specification of rows that it was built from."""
    spec = experiment.raw_dataset.spec(prepared.state, experiment.resolved_task)
    torch.manual_seed(experiment.training.seed)
    with user_mistakes():
        model: SequenceModel = models.build(spec, experiment.model, experiment.task)
    return model.to(device, torch.float64 if experiment.training.precision == "fp64" else torch.float32), spec


class _ReportedSteps:
    """The steps of training; rank 0 reports its progress, at most a few times a second."""

    def __init__(self, data: Data, ingest: Ingest, context: WorkerContext, workers: WorkerGroup, epochs: int) -> None:
        self.data, self.ingest, self.context, self.epochs = data, ingest, context, epochs
        self.reports = workers.rank == 0
        self.first_step = 0.0  # seconds from the start of the user's process to the end of the first step

    def __call__(self, epoch: int, position: tuple[int, int]) -> Iterator[Step]:
        first, last, rows = True, time.monotonic(), 0
        for step in self.data.steps(self.ingest, self.epochs, epoch, position):
            rows += step.rows
            now = time.monotonic()
            if self.reports and (first or now - last > 0.3):
                self.context.send_event({"event": "step", "epoch": step.epoch, "rows": rows, "first": first})
                last, rows = now, 0
            yield step
            if first:
                self.first_step, first = time.time() - self.context.started, False


def _connect_workers(experiment: Experiment, context: WorkerContext) -> WorkerGroup:
    """All workers of the run, on this process's device."""
    torch.set_num_threads(context.threads)
    device: torch.device
    if experiment.workers.gpus and not context.in_ray_train:
        device = torch.device("cuda", 0)  # Ray shows a process its own GPUs only
    elif experiment.workers.gpus:
        device = get_device()
    else:
        device = torch.device("cpu")

    configure_ray_data()
    return WorkerGroup(device)


def _newest(checkpoints: Storage, workers: WorkerGroup) -> tuple[str, dict[str, bytes]] | None:
    """The newest complete checkpoint, as rank 0 sees it, read by every worker."""
    newest = checkpoint.latest(checkpoints) if workers.rank == 0 else None
    if workers.world == 1:
        return newest
    name = [newest[0] if newest else None]
    dist.broadcast_object_list(name, src=0, device=workers.device)
    if name[0] is None:
        return None
    return newest or (name[0], checkpoint.read_files(checkpoints, name[0]))


def _restore(
    found: tuple[str, dict[str, bytes]],
    job: TrainingJob,
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    where: str,
) -> dict[str, Any]:
    """Load a checkpoint's tensors; return its progress.

    Raises:
        ValueError: it is a checkpoint of another experiment, or of other data.
    """
    name, files = found
    state = json.loads(files["state.json"])
    changed = [
        text
        for text in differences(state["experiment"], job.experiment.plain())
        if not text.startswith(tuple(f"{key}:" for key in job.changeable))
    ]
    if changed:
        raise UserError(
            f"{where}/{name} is a checkpoint of another experiment ({'; '.join(changed[:5])}); "
            "use the same experiment and overrides, or start a new run"
        )
    if state["data"] != job.prepared.digest:
        raise UserError(
            f"{where}/{name} was trained on other data: the files of the dataset have changed since; "
            "bring the old ones back, or start a new run"
        )
    progress: dict[str, Any] = checkpoint.restore(files, model, optimizer)["progress"]
    model.recurrent_state.lanes = checkpoint.recurrent_state(files)
    return progress


def _hooks(name: str, context: WorkerContext, model: SequenceModel, saver: Saver, workers: WorkerGroup) -> Hooks:
    """Hooks that record and save on rank 0, with the recurrent state of all workers' lanes."""
    first = workers.rank == 0

    def log(metrics: dict[str, float], step: int) -> None:
        if first:
            context.tracker.metrics(name, metrics, step)

    def epoch(metrics: dict[str, float], progress: Progress) -> None:
        if first:
            context.tracker.metrics(name, metrics, progress.step)
            context.send_event(
                {
                    "event": "epoch",
                    "epoch": progress.epoch,
                    "metrics": metrics,
                    "primary": model.task.primary,
                    "best": progress.best_step == progress.step,
                }
            )

    def save(progress: Progress, best: bool) -> None:
        lanes = (
            model.recurrent_state.gather(workers.sum, workers.rank, workers.world)
            if model.recurrent_state.lanes
            else {}
        )
        if first:
            context.tracker.flush_to_disk()  # a run resumed from this checkpoint does not repeat the steps before it
            saver.save(progress, best, lanes)

    return Hooks(log, epoch, save, context.should_stop, PreemptionNotice() if context.in_ray_train else _never)


class PreemptionNotice:
    """True once after Ray Train was notified that a node of the run will be taken away: time to save a checkpoint."""

    def __init__(self) -> None:
        self.known: object = None
        self.notice = preemption_notice()

    def __call__(self) -> bool:
        info = self.notice()
        new, self.known = info is not None and info != self.known, info
        return new


def _best(checkpoints: Storage, progress: Progress) -> bytes:
    if progress.best_step < 0:
        raise Diverged("the validation metric was never a finite number; try a lower training.learning_rate")
    return checkpoint.read_files(checkpoints, f"best-{progress.best_step:09d}")["model.safetensors"]


def _reachable(best: dict[str, float], task: dict[str, Any]) -> dict[str, float]:
    """The metrics that no model can beat, where the data has them for tasks with such a lookback and horizon."""
    if best.get("lookback", 0) > task.get("lookback", 0) or best.get("horizon", math.inf) < task.get("horizon", 0):
        return {}
    return {name: value for name, value in best.items() if name not in ("lookback", "horizon")}


def _best_epoch(progress: Progress) -> int:
    """Index of the best epoch in the history."""
    return next(i for i, h in enumerate(progress.history) if h["step"] == progress.best_step)


def _never() -> bool:
    return False
