"""A tracker in a Ray actor, for the workers of other processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.pipeline.storage import mask
from workflows.tracking.mlflow import absolute
from workflows.tracking.recorder import Record, Recorder, process_tags
from workflows.tracking.spool import Tracker


class RemoteTracker(Recorder):
    """A tracker in a zero-CPU actor; may be pickled and used in any worker of the job.

    begin, metrics and artifact return at once; the others wait. Nothing raises if the actor is gone: training
    continues, and `problem` reports it.
    """

    def __init__(self, actor: ActorHandle, source: dict[str, str]) -> None:
        self._actor, self._source = actor, source

    def __reduce__(self) -> Any:
        return RemoteTracker, (self._actor, self._source)

    def source(self) -> dict[str, str]:
        return self._source

    def put(self, record: Record) -> None:
        self._actor.put.remote(record)

    def flush_to_disk(self) -> None:
        self._wait(self._actor.flush_to_disk.remote(), 60.0)

    def _wait(self, answer: ray.ObjectRef, timeout: float) -> Any:
        """The actor's answer; None if there is none in time."""
        try:
            return ray.get(answer, timeout=timeout)
        except (GetTimeoutError, RayActorError, OutOfMemoryError):
            return None

    def _poll(self, method: str, *arguments: object, timeout: float) -> Any:
        """Ask with short timeouts: the actor has one thread, and a long call would delay the metrics of others."""
        deadline = time.monotonic() + timeout
        while True:
            remaining = max(0.0, deadline - time.monotonic())
            answer = self._wait(getattr(self._actor, method).remote(*arguments, min(remaining, 0.2)), remaining + 1.0)
            if answer or time.monotonic() >= deadline:
                return answer
            time.sleep(0.02)  # a call to a dead actor fails at once

    def flush(self, timeout: float) -> bool:
        return bool(self._poll("flush", timeout=timeout))

    def close(self, timeout: float = 30.0) -> bool:
        deadline = time.monotonic() + timeout
        self.flush(timeout)  # with short timeouts: workers may still be sending
        remaining = max(0.0, deadline - time.monotonic())
        done = bool(self._wait(self._actor.close.remote(remaining), remaining + 15.0))
        ray.kill(self._actor)
        return done

    def run_id(self, key: str, timeout: float = 0.0) -> str | None:
        answer: str | None = self._poll("run_id", key, timeout=timeout)
        return answer

    def url(self, key: str) -> str | None:
        answer: str | None = self._wait(self._actor.url.remote(key), 10.0)
        return answer

    def problem(self) -> str | None:
        try:
            answer: str | None = ray.get(self._actor.problem.remote(), timeout=10.0)
        except (GetTimeoutError, RayActorError, OutOfMemoryError) as error:
            return mask(f"the tracker's actor does not answer: {error}")
        return answer


def start(uri: str, spool: str | Path, *, actor: bool, system_metrics: float | None = None) -> Recorder:
    """Start a tracker in this process, or in an actor on this node that all workers can reach.

    Returns at once: the actor starts and imports mlflow in the background.
    """
    if not actor:
        return Tracker(uri, spool, system_metrics=system_metrics)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # All calls may be repeated: an actor that dies starts again on the same spool.
    options = {"num_cpus": 0, "max_restarts": 3, "max_task_retries": 3, "scheduling_strategy": here}
    source = process_tags()
    tracker = (
        ray.remote(Tracker)
        .options(**options)
        .remote(absolute(uri), os.path.abspath(spool), system_metrics=system_metrics, source=source)
    )
    return RemoteTracker(tracker, source)
