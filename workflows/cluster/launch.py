"""Starts the workers of a run: one in this process, or those of Ray Train, which are replaced when they are lost."""

from __future__ import annotations

import json
import os
import shlex
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchTrainer

from datasets.pipeline.storage import Storage, mask
from workflows.cluster.backend import TolerantTorchConfig
from workflows.cluster.connect import RayConnection
from workflows.cluster.ray_train_private import cause_of, is_start_timeout
from workflows.cluster.relay import relay
from workflows.cluster.stopping import run_interruptibly, stop_signals
from workflows.config.settings import Workers
from workflows.errors import Diverged, Interrupted, Unwritable, UserError, WorkersLost
from workflows.tracking import recorder
from workflows.training.job import TrainingJob, WorkerContext
from workflows.training.loop import Stopped
from workflows.training.retry import retry

FOREVER = 10 * 365 * 86400  # seconds
FAILED = "failed.json"  # in a run's folder: an error that another attempt would raise again


def run_workers(
    job: TrainingJob,
    context: WorkerContext,
    work: Callable[[TrainingJob, WorkerContext], Any],
    connection: RayConnection,
) -> None:
    """Run `work` on the workers of a run: one in this process, or Ray Train's own processes.

    Args:
        job: what is trained.
        context: of a worker in this process; its ``send_event`` gets the events of the other processes, too.
        work: trains.
        connection: to Ray.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. ValueError, Diverged, WorkersLost: see ``fit_workers``.
    """
    with stop_signals() as stop:
        try:
            if connection.in_process:
                here = replace(context, should_stop=stop, watched=False)
                scaling = ScalingConfig(num_workers=0, use_gpu=job.experiment.workers.gpus > 0)
                trainer = TorchTrainer(lambda: work(job, here), scaling_config=scaling)
                retry(trainer.fit, job.experiment.workers.failures, context.send_event)
                return
            with relay(context.send_event) as channel:
                remote = replace(
                    context, send_event=channel, should_stop=channel.stop_requested, heartbeat=channel.heartbeat
                )
                # Ray Train, in the main thread, would answer signals itself, and without a checkpoint.
                run_interruptibly(
                    lambda: fit_workers(job, remote, work), stop, channel.request_stop, channel.no_worker_alive
                )
                if stop and not job.folder.exists("result.json"):
                    raise Stopped
        except (Stopped, KeyboardInterrupt, WorkersLost) as error:  # workers, too, may have received the signal
            if isinstance(error, WorkersLost) and not stop:
                raise
            raise Interrupted(_how_to_resume(job), stop.code) from None


def fit_workers(job: TrainingJob, context: WorkerContext, work: Callable[[TrainingJob, WorkerContext], Any]) -> None:
    """Run `work` on Ray Train's workers; lost ones are replaced ``workers.failures`` times.

    Raises:
        ValueError, Diverged: raised by a worker, and would be raised again. WorkersLost: workers failed too often.
    """
    settings = job.experiment.workers
    count = tuple(settings.count) if isinstance(settings.count, list) else settings.count
    timeout = int(settings.timeout) or FOREVER
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(timeout)  # of a process that does not answer
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_start_timeout(settings))
    resources = {"CPU": context.threads, **({"GPU": settings.gpus} if settings.gpus else {})}
    job.folder.remove(FAILED)
    trainer = TorchTrainer(
        _attempt,
        train_loop_config={"job": job, "context": context, "work": work},
        torch_config=TolerantTorchConfig(timeout_s=timeout),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=settings.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(
            name=f"attempts-{uuid.uuid4().hex[:8]}",
            storage_path=(job.folder / "ray").uri,
            failure_config=FailureConfig(max_failures=settings.failures, controller_failure_limit=settings.failures),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        _raise_failed(job.folder)
        if isinstance(error, WorkerGroupError):
            raise WorkersLost(_failure_message(error.worker_failures, settings.failures)) from error
        raise WorkersLost(_startup_failure(getattr(error, "controller_failure", error), settings)) from error
    _raise_failed(job.folder)


def _failure_message(failures: Mapping[int, Exception], most: int) -> str:
    """The message for workers that failed too often; of several failures it names the one that caused the others."""

    def weight(cause: BaseException) -> int:
        if isinstance(cause, Unwritable):
            return 0
        if isinstance(cause, RayError):  # its process died
            return 1
        return 3 if isinstance(cause, RuntimeError) else 2  # RuntimeError: communication with a worker that died

    causes = {rank: cause_of(error) for rank, error in sorted(failures.items())}
    rank, cause = min(causes.items(), key=lambda item: (weight(item[1]), item[0]))
    if isinstance(cause, Unwritable):
        return str(cause)
    text = " ".join(mask(str(cause)).split()) or "no message"
    times = f"more than {most} time{'s' if most != 1 else ''} (workers.failures)" if most else "(workers.failures=0)"
    return (
        f"workers failed {times}; at last worker {rank}: {type(cause).__name__}: {recorder.cut(text, 600)}. "
        "--resume continues from the last checkpoint"
    )


def _start_timeout(settings: Workers) -> float:
    """Seconds that workers may take to start, on nodes that have yet to join; 60 if fewer workers are enough."""
    return max(60.0, settings.wait if settings.least == settings.most else 0.0)


def _startup_failure(error: Exception, settings: Workers) -> str:
    """The message for workers that could not be started together."""
    if is_start_timeout(error):
        why = (
            f"workers.count={settings.count} found no room in {_start_timeout(settings):g} s (workers.wait), "
            f"{settings.failures + 1} times (workers.failures): nodes were lost, or others use them"
        )
    else:
        text = " ".join(mask(str(error)).split())
        why = f"workers could not be started together: {type(error).__name__}: {recorder.cut(text, 600)}"
    return f"{why}. --resume continues from the last checkpoint"


def _attempt(config: dict[str, Any]) -> None:
    """One worker of one attempt. An error that would occur again is written for the driver, and ends the run."""
    job: TrainingJob = config["job"]
    context: WorkerContext = config["context"]
    if job.folder.exists(FAILED):
        return
    in_group = dist.is_initialized()
    try:
        with context.heartbeat():
            config["work"](job, context)
    except Stopped:
        return  # the driver requested it
    except (UserError, Diverged) as error:
        if in_group and not dist.is_initialized():  # Ray Train does so when nodes join or leave
            raise RuntimeError("Ray Train has ended the process group") from error
        job.folder.write(FAILED, json.dumps({"kind": type(error).__name__, "text": str(error)}).encode())
        raise


def _raise_failed(run: Storage) -> None:
    """Raise the error that a worker has written, if there is one."""
    if run.exists(FAILED):
        failure = json.loads(run.read(FAILED))
        run.remove(FAILED)
        raise Diverged(failure["text"]) if failure["kind"] == "Diverged" else UserError(failure["text"])


def _how_to_resume(job: TrainingJob) -> str:
    source = job.experiment.source
    words = [*([source] if source not in ("", "experiment") else []), "--resume", job.name, *job.experiment.overrides]
    return (
        f"stopped; checkpoints are in {(job.folder / 'checkpoints').uri}. Continue with: "
        f"python -m workflows train {mask(shlex.join(words))}"
    )
