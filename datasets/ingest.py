"""Prepared data + plan -> this worker's micro-batches, through Ray Data.

Data that fits the cache budget is read once, by the driver, into the object store; every worker on a node then reads
the same memory. Larger data streams: each worker runs one Ray Data pipeline an attempt, whose tasks are the plan
windows that are left, in order. Both give the same batches.

A pipeline's tasks ask for no CPU: training workers may hold all of them, and reading must go on. How many windows are
read ahead is bounded instead.
"""

from __future__ import annotations

import queue
import threading
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from numpy.typing import NDArray

from datasets.files import in_task, user_errors
from datasets.plan import Cursor, Plan, share
from datasets.prepare import Part, read_rows
from datasets.ray_data_private import arrow_refs, limit_memory, set_options
from datasets.storage import Storage
from datasets.views import Fields, Ids, Reader, View

AHEAD = 3       # plan windows that streaming keeps in the object store, about


def configure_ray_data(*, progress: bool = False) -> None:
    """Settings of Ray Data for this process: order kept, quiet, and the reader that starts quickly."""
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")      # small data has few
    set_options(progress=progress)


def cache(part: Part, storage: Storage) -> list[ray.ObjectRef[pa.Table]]:
    """All stored rows of a part, read once into the object store; the caller must hold what is returned."""
    shards = part.shards

    @in_task
    def read(items: dict[str, Any]) -> Iterator[pa.Table]:
        for number in items["id"]:
            yield read_rows(storage, [shards[number]], [None])

    numbers = ray.data.from_items([{"id": i} for i in range(len(shards))], override_num_blocks=len(shards))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    readers = ray.data.TaskPoolStrategy(size=max(1, min(cpus, len(shards))))       # else one process a shard, at once
    with user_errors():
        refs = arrow_refs(numbers.map_batches(read, batch_size=None, num_cpus=0, compute=readers))
    join: Any = ray.remote(num_cpus=0)(_join)
    return refs if len(refs) == 1 else [join.remote(*refs)]


def _join(*tables: pa.Table) -> pa.Table:
    """One table in one piece, so that whoever reads it in the object store need not copy it."""
    return pa.concat_tables(tables).combine_chunks()


@dataclass(frozen=True)
class MicroBatch:
    """One worker's part of one step: fields as torch tensors, ready for a model's batch.

    `lanes` are the rows' places in the global batch, and `reset` says which do not go on from the row before in their
    lane; None where the plan has no lanes.
    """

    inputs: dict[str, torch.Tensor]
    lengths: dict[str, torch.Tensor]
    targets: dict[str, torch.Tensor]
    weights: torch.Tensor
    row_ids: torch.Tensor
    lanes: torch.Tensor | None = None
    reset: torch.Tensor | None = None


Steps = Iterator[tuple[Cursor, Ids, list[MicroBatch]]]


@dataclass(frozen=True)
class Ingest:
    """One worker's way to the rows of a split.

    Attributes:
        view: the rows; storage: where its part lies.
        plan: their order.
        rank, world: this worker among all.
        parts: micro-batches a step.
        cached: what ``cache`` returned; None streams.
        pin: page-locked memory, for copies to a GPU that do not block.
        ahead: steps that a thread keeps ready.
    """

    view: View
    storage: Storage
    plan: Plan
    rank: int = 0
    world: int = 1
    parts: int = 1
    cached: list[Any] | None = None
    pin: bool = False
    ahead: int = 2

    def steps(self, start: Cursor, epochs: int) -> Steps:
        """Each step from `start` to the end of epoch `epochs` - 1: place, ids of the global batch, micro-batches."""
        steps = self._streamed_steps(start, epochs) if self.cached is None else self._cached_steps(start, epochs)
        return _ahead(steps, self.ahead) if self.pin or self.cached is None else steps

    def _cached_steps(self, start: Cursor, epochs: int) -> Steps:
        table = pa.concat_tables(ray.get(self.cached))
        reader = self.view.open(np.arange(table.num_rows), table)
        for epoch in range(start.epoch, epochs):
            for cursor, _, ids in self.plan.epoch(epoch, start if epoch == start.epoch else None):
                yield cursor, ids, self._cut(reader, ids, cursor)

    def _streamed_steps(self, start: Cursor, epochs: int) -> Steps:
        left = [(epoch, window, shards) for epoch in range(start.epoch, epochs)
                for window, shards in enumerate(self.plan.windows(epoch))
                if (epoch, window) >= (start.epoch, start.window)]
        tables = _stream(self.view, self.storage, left)
        for (epoch, window, shards), (stored, table) in zip(left, tables, strict=True):
            reader = self.view.open(stored, table)
            for number, ids in enumerate(self.plan.batches(epoch, window, shards)):
                cursor = Cursor(epoch, window, number)
                if cursor >= start:
                    yield cursor, ids, self._cut(reader, ids, cursor)

    def _cut(self, reader: Reader, ids: Ids, cursor: Cursor) -> list[MicroBatch]:
        follows = self.plan.follows
        parts = []
        for mine, weights, lanes in share(ids, self.rank, self.world, self.parts):
            made = self._tensors(reader.take(mine), weights, mine)
            if follows is not None:
                reset = ~follows[mine] if cursor.batch else np.ones(mine.size, bool)
                made = replace(made, lanes=torch.from_numpy(lanes), reset=torch.from_numpy(reset))
            parts.append(made)
        return parts

    def _tensors(self, fields: Fields, weights: NDArray[np.float32], ids: Ids) -> MicroBatch:
        def tensor(array: NDArray[Any]) -> torch.Tensor:
            x = torch.from_numpy(np.ascontiguousarray(array))
            return x.pin_memory() if self.pin else x
        return MicroBatch({k: tensor(v) for k, v in fields["inputs"].items()},
                          {k: torch.from_numpy(v) for k, v in fields["lengths"].items()},
                          {k: tensor(v) for k, v in fields["targets"].items()},
                          tensor(weights), torch.from_numpy(np.ascontiguousarray(ids)))


def _stream(view: View, storage: Storage, left: list[tuple[int, int, Ids]]) -> Iterator[tuple[Ids, pa.Table]]:
    """The stored rows of each plan window, in order, read by Ray Data at most a few windows ahead."""
    part = view.part

    @in_task
    def read(items: dict[str, Any]) -> Iterator[pa.Table]:
        for number in items["id"]:
            own = left[number][2]
            for shard, places in _places(view, own):
                yield read_rows(storage, [part.shards[shard]], [places])

    if not left:
        return
    windows = ray.data.from_items([{"id": i} for i in range(len(left))], override_num_blocks=len(left))
    largest = max(sum(part.shards[shard].memory for shard in own) for _, _, own in left)
    limit_memory(windows, AHEAD * largest)
    pipeline = windows.map_batches(read, batch_size=None, num_cpus=0,
                                   compute=ray.data.TaskPoolStrategy(size=1))
    blocks = iter(pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    for _, _, own in left:
        stored = view.needs(own)
        tables, have = [], 0
        while have < stored.size:                      # a window larger than a block comes in several
            with user_errors():
                tables.append(next(blocks))
            have += tables[-1].num_rows
        assert have == stored.size
        yield stored, pa.concat_tables(tables)


def _places(view: View, own: Ids) -> Iterable[tuple[int, Ids | None]]:
    """(shard, rows of it or None for all) that the plan window `own` needs, in stored order."""
    stored = view.needs(own)
    shard = view.part.shard_of[stored]
    for number in np.unique(shard):
        places = stored[shard == number] - view.part.first[number]
        yield int(number), None if places.size == view.part.shards[number].rows else places


def _ahead(items: Iterator[Any], count: int) -> Iterator[Any]:
    """The same items, made by a thread that stays `count` of them ahead; its errors are raised here."""
    ready: queue.Queue[Any] = queue.Queue(count)
    stop = threading.Event()

    def hand(item: Any, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                break
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                hand(item, None)
                if stop.is_set():
                    return
            hand(None, StopIteration())
        except BaseException as error:                 # handed over: the reader raises it
            hand(None, error)

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stop.set()
