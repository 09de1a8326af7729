"""The data of a run: prepared once, then the steps of each split for each worker."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from datasets.pipeline.ingest import Ingest, MicroBatch, cache, prefetch
from datasets.pipeline.plan import Cursor, Plan, checksum, keys
from datasets.pipeline.prepare import prepare
from datasets.pipeline.storage import Storage
from datasets.pipeline.views import View
from models.batch import Batch
from workflows.config.experiment import Experiment
from workflows.errors import UserError, check_each, user_mistakes
from workflows.training.job import Event
from workflows.training.progress import Step
from workflows.training.retry import retry
from workflows.training.worker_group import WorkerGroup

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Prepared


EVALUATION_ROWS = 256  # of a worker's batch when no gradients are kept, at most,
EVALUATION_TIMES = 4  # and how many times those of a training batch


class Data:
    """The splits of a run, as steps for this worker.

    Args:
        experiment: the settings.
        prepared: the data.
        cached: references to the rows of each part that is kept in memory; other parts stream.
        workers: of the run.
        on_step: called at each step.

    Attributes:
        splits: that the data has.
    """

    def __init__(
        self,
        experiment: Experiment,
        prepared: Prepared,
        cached: dict[str, list[Any]],
        workers: WorkerGroup,
        on_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.on_step = on_step
        self.experiment, self.prepared, self.cached, self.workers = experiment, prepared, cached, workers
        self.dataset, self.task = experiment.raw_dataset, experiment.resolved_task
        self.splits = [s for s in ("train", "validation", "test") if self._has(s)]

    def _has(self, split: str) -> bool:
        state = self.prepared.state
        return split in self.prepared.parts or any(split in s.get("bounds", {}) for s in state.get("series", [])[:1])

    @user_mistakes()
    def view(self, split: str) -> View:
        return self.dataset.view(self.prepared, split, self.task)

    @user_mistakes()
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
                raise UserError(
                    f"training.batch_seconds={settings.batch_seconds:g} is less than the longest "
                    f"recording (row {int(view.lengths.argmax())}: {most:g} s); use at least {most:g}, or "
                    "a lower dataset.max_seconds, which sets long ones aside"
                )
        size = settings.batch_size
        if not training:  # no gradients are kept: more rows fit, but not any number
            lanes = view.continues_previous is not None  # which are those of one worker
            most = EVALUATION_ROWS * (1 if lanes else self.workers.world)
            size = min(most, EVALUATION_TIMES * size)
        return Plan(
            view.rows,
            shard_sizes(view),
            rows or size,
            settings.seed,
            self.experiment.storing.shuffle_bytes,
            training,
            tokens,
            view.lengths,
            view.continues_previous,
        )

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

    @user_mistakes()
    def ingest(self, split: str, *, training: bool, rows: int | None = None) -> Ingest:
        view = self.view(split)
        part = next(name for name, p in self.prepared.parts.items() if p is view.part)
        return Ingest(
            view,
            self.prepared.storage,
            self.plan(view, training=training, rows=rows),
            self.workers.rank,
            self.workers.world,
            self.experiment.training.accumulate if training else 1,
            self.cached.get(part),
        )

    def steps(self, ingest: Ingest, epochs: int, epoch: int = 0, position: tuple[int, int] = (0, 0)) -> Iterator[Step]:
        """The steps of the loop from a position, with floats in the precision of the experiment."""
        settings = self.experiment.training
        double, pin = settings.precision == "fp64", self.workers.device.type == "cuda"
        numbered = check_each(ingest.steps(Cursor(epoch, *position), epochs))
        steps = ((cursor, ids, [to_batch(part, pin=pin) for part in parts]) for cursor, ids, parts in numbered)
        for cursor, ids, batches in prefetch(steps, ingest.ahead) if pin else steps:
            self.on_step()
            own_ids = ids[self.workers.rank :: self.workers.world]
            if ingest.plan.shuffle:  # training: what augmentation is drawn from
                for batch in batches:
                    batch.keys = torch.from_numpy(keys(batch.row_ids.numpy(), settings.seed, cursor.epoch))
            yield Step(
                cursor.epoch,
                (cursor.group, cursor.batch),
                ids.size,
                [to_float64(b) for b in batches] if double else batches,
                own_ids.size,
                checksum(own_ids),
            )

    def evaluation(self, split: str, rows: int | None = None) -> Iterator[Step]:
        """Every row of a split once, in stored order."""
        return self.steps(self.ingest(split, training=False, rows=rows), 1)


def to_batch(part: MicroBatch, *, pin: bool) -> Batch:
    """The tensors of a micro-batch; with `pin` in page-locked memory, for copies to a GPU that do not block."""

    def tensor(array: NDArray[Any]) -> torch.Tensor:
        x = torch.from_numpy(np.ascontiguousarray(array))
        return x.pin_memory() if pin else x

    return Batch(
        {name: tensor(array) for name, array in part.inputs.items()},
        {name: torch.from_numpy(array) for name, array in part.lengths.items()},
        {name: tensor(array) for name, array in part.targets.items()},
        tensor(part.weights),
        torch.from_numpy(np.ascontiguousarray(part.row_ids)),
        None if part.lanes is None else torch.from_numpy(part.lanes),
        None if part.reset is None else torch.from_numpy(part.reset),
    )


def shard_sizes(view: View) -> NDArray[np.int64]:
    return np.array([s.memory for s in view.part.shards], np.int64)


def to_float64(batch: Batch) -> Batch:
    def wide(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k: v.double() if v.is_floating_point() else v for k, v in fields.items()}

    return replace(batch, inputs=wide(batch.inputs), targets=wide(batch.targets), weights=batch.weights.double())


@user_mistakes()
def prepare_data(experiment: Experiment) -> Prepared:
    """The experiment's prepared data, from the cache, or prepared now, which needs a connected Ray.

    Raises:
        ValueError: what is wrong with the data.
    """
    return prepare(
        experiment.raw_dataset,
        Storage(experiment.storage) / "prepared",
        shard_bytes=experiment.storing.shard_bytes,
        limit=experiment.quarantine.limit,
    )


@user_mistakes()
def cache_parts(
    experiment: Experiment, prepared: Prepared, send_event: Callable[[Event], None] = lambda event: None
) -> dict[str, list[Any]]:
    """References to the rows of each part that fits the cache budget; hold them while they are used.

    Raises:
        ValueError: a shard is missing or damaged.
        WorkersLost: storage failed more often than ``workers.failures``.
    """
    budget, failures = experiment.storing.cache_bytes, experiment.workers.failures
    return {
        name: retry(partial(cache, part, prepared.storage), failures, send_event)
        for name, part in prepared.parts.items()
        if part.memory <= budget
    }
