"""What a worker needs to train: the job, the same for all workers, and the context of its own process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from datasets.pipeline.prepared import Prepared
from datasets.pipeline.storage import Storage
from workflows.config.experiment import Experiment
from workflows.tracking.recorder import Recorder

Event = dict[str, Any]  # what a worker reports while it trains: ``event`` (start, step, epoch, note) and its values


@dataclass(frozen=True)
class TrainingJob:
    """What is trained, on which data, and where its files go.

    Attributes:
        experiment: the settings.
        prepared: the data.
        cached: part -> references to its rows in Ray's object store; a part that is not here streams.
        folder: of the run.
        name: of the run, also its key in MLflow.
        group_sums: whether to save the sums of groups of test rows, see ``GroupSums``.
        changeable: keys of the experiment in which a checkpoint may differ from it.
    """

    experiment: Experiment
    prepared: Prepared
    cached: dict[str, list[Any]]
    folder: Storage
    name: str
    group_sums: bool = False
    changeable: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerContext:
    """How a worker's process takes part in a job.

    Attributes:
        tracker: records metrics (pickled: a handle to the one writer).
        threads: torch threads.
        send_event: called with each event.
        should_stop: called at each step; True ends training after it.
        heartbeat: entered while the worker is alive.
        started: when the user's process started, in seconds since 1970.
        in_ray_train: whether this process is a worker of Ray Train.
        watched: whether a ``Watchdog`` may end this process; not the one that the user started.
    """

    tracker: Recorder
    threads: int
    send_event: Callable[[Event], None]
    should_stop: Callable[[], bool] = lambda: False
    heartbeat: Callable[[], AbstractContextManager[None]] = nullcontext
    started: float = 0.0
    in_ray_train: bool = True
    watched: bool = True
