"""Ingest: from prepared data and a plan to the micro-batches of one worker, through Ray Data.

Data that fits the cache budget is read once, by the driver, into the object store; all workers of a node then read the
same memory. Larger data is streamed: each worker runs one Ray Data pipeline per attempt, whose tasks are the remaining
shard groups of the plan, in order. Both give the same batches.

The tasks of a pipeline request no CPU: training workers may occupy all of them, and reading must not wait for them.
Instead, the number of groups that are read ahead is bounded.
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
import ray.data
from numpy.typing import NDArray

from datasets.pipeline.plan import Cursor, Plan, share
from datasets.pipeline.prepared import Part, read_rows
from datasets.pipeline.ray_data_private import arrow_refs, limit_memory, set_options
from datasets.pipeline.storage import Storage
from datasets.pipeline.views import Ids, Reader, View
from datasets.reading.errors import in_task, user_errors

GROUPS_AHEAD = 3  # shard groups that streaming keeps in the object store, approximately


def configure_ray_data(*, progress: bool = False) -> None:
    """Set up Ray Data in this process: it keeps the order, prints little, and uses the reader that starts quickly."""
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")  # of small data
    set_options(progress=progress)


def cache(part: Part, storage: Storage) -> list[ray.ObjectRef[pa.Table]]:
    """Read all stored rows of a part into the object store; they stay as long as the caller holds the references."""
    shards = part.shards

    @in_task
    def read(items: dict[str, Any]) -> Iterator[pa.Table]:
        for number in items["id"]:
            yield read_rows(storage, [shards[number]], [None])

    numbers = ray.data.from_items([{"id": i} for i in range(len(shards))], override_num_blocks=len(shards))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    readers = ray.data.TaskPoolStrategy(size=max(1, min(cpus, len(shards))))  # else one process per shard at once
    with user_errors():
        refs = arrow_refs(numbers.map_batches(read, batch_size=None, num_cpus=0, compute=readers))
    join: Any = ray.remote(num_cpus=0)(_join)
    return refs if len(refs) == 1 else [join.remote(*refs)]


def _join(*tables: pa.Table) -> pa.Table:
    """One table in one piece, so that it is read from the object store without a copy."""
    return pa.concat_tables(tables).combine_chunks()


@dataclass(frozen=True)
class MicroBatch:
    """The rows of one forward and backward pass of one worker, as numpy arrays.

    Attributes:
        inputs, targets: by name, (B, ...) as the view's reader returns them.
        lengths: by input, (B,) steps.
        weights: (B,) 1, or 0 for a row that only fills an empty micro-batch.
        row_ids: (B,) ids in the view.
        lanes: (B,) the rows' positions in the global batch; None where the plan has no lanes.
        reset: (B,) whether a row does not continue the row before it in its lane; None where the plan has no lanes.
    """

    inputs: dict[str, NDArray[Any]]
    lengths: dict[str, NDArray[Any]]
    targets: dict[str, NDArray[Any]]
    weights: NDArray[np.float32]
    row_ids: Ids
    lanes: Ids | None = None
    reset: NDArray[np.bool_] | None = None


Steps = Iterator[tuple[Cursor, Ids, list[MicroBatch]]]


@dataclass(frozen=True)
class Ingest:
    """Reads the rows of a split for one worker.

    Attributes:
        view: the rows.
        storage: the folder of their shards.
        plan: their order.
        rank, world: number of this worker, and of workers.
        micro_batches: micro-batches a step.
        cached: the references that ``cache`` returned; None streams.
        ahead: steps that a thread prepares in advance.
    """

    view: View
    storage: Storage
    plan: Plan
    rank: int = 0
    world: int = 1
    micro_batches: int = 1
    cached: list[Any] | None = None
    ahead: int = 2

    def steps(self, start: Cursor, epochs: int) -> Steps:
        """Each step from `start` to the end of epoch `epochs` - 1: position, ids of the global batch, micro-batches."""
        steps = self._streamed_steps(start, epochs) if self.cached is None else self._cached_steps(start, epochs)
        return prefetch(steps, self.ahead) if self.cached is None else steps

    def _cached_steps(self, start: Cursor, epochs: int) -> Steps:
        table = pa.concat_tables(ray.get(self.cached))
        reader = self.view.reader(np.arange(table.num_rows), table)
        for epoch in range(start.epoch, epochs):
            for cursor, _, ids in self.plan.epoch(epoch, start if epoch == start.epoch else None):
                yield cursor, ids, self._cut(reader, ids, cursor)

    def _streamed_steps(self, start: Cursor, epochs: int) -> Steps:
        remaining = [
            (epoch, group, shards)
            for epoch in range(start.epoch, epochs)
            for group, shards in enumerate(self.plan.groups(epoch))
            if (epoch, group) >= (start.epoch, start.group)
        ]
        tables = _stream(self.view, self.storage, remaining)
        for (epoch, group, shards), (stored, table) in zip(remaining, tables, strict=True):
            reader = self.view.reader(stored, table)
            for number, ids in enumerate(self.plan.batches(epoch, group, shards)):
                cursor = Cursor(epoch, group, number)
                if cursor >= start:
                    yield cursor, ids, self._cut(reader, ids, cursor)

    def _cut(self, reader: Reader, ids: Ids, cursor: Cursor) -> list[MicroBatch]:
        continues = self.plan.continues_previous
        batches = []
        for mine, weights, lanes in share(ids, self.rank, self.world, self.micro_batches):
            fields = reader.read(mine)
            batch = MicroBatch(fields["inputs"], fields["lengths"], fields["targets"], weights, mine)
            if continues is not None:
                reset = ~continues[mine] if cursor.batch else np.ones(mine.size, bool)
                batch = replace(batch, lanes=lanes, reset=reset)
            batches.append(batch)
        return batches


def _stream(view: View, storage: Storage, groups: list[tuple[int, int, Ids]]) -> Iterator[tuple[Ids, pa.Table]]:
    """(numbers, content) of the stored rows of each shard group, read in order by Ray Data, a few groups ahead.

    Args:
        groups: (epoch, number, shards) of each shard group.
    """
    part = view.part

    @in_task
    def read(items: dict[str, Any]) -> Iterator[pa.Table]:
        for number in items["id"]:
            for shard, rows in _rows_by_shard(view, groups[number][2]):
                yield read_rows(storage, [part.shards[shard]], [rows])

    if not groups:
        return
    numbers = ray.data.from_items([{"id": i} for i in range(len(groups))], override_num_blocks=len(groups))
    largest = max(sum(part.shards[shard].memory for shard in shards) for _, _, shards in groups)
    limit_memory(numbers, GROUPS_AHEAD * largest)
    pipeline = numbers.map_batches(read, batch_size=None, num_cpus=0, compute=ray.data.TaskPoolStrategy(size=1))
    blocks = iter(pipeline.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    for _, _, shards in groups:
        stored = view.stored_rows(shards)
        tables, received = list[pa.Table](), 0
        while received < stored.size:  # a group larger than a block arrives in several
            with user_errors():
                tables.append(next(blocks))
            received += tables[-1].num_rows
        assert received == stored.size
        yield stored, pa.concat_tables(tables)


def _rows_by_shard(view: View, group: Ids) -> Iterable[tuple[int, Ids | None]]:
    """(shard, rows of it or None for all) that the shards of `group` need, in stored order."""
    stored = view.stored_rows(group)
    shard = view.part.shard_of[stored]
    for number in np.unique(shard):
        rows = stored[shard == number] - view.part.first[number]
        yield int(number), None if rows.size == view.part.shards[number].rows else rows


def prefetch(items: Iterator[Any], count: int) -> Iterator[Any]:
    """The same items, produced by a thread that is up to `count` of them ahead; its errors are raised here."""
    ready: queue.Queue[Any] = queue.Queue(count)
    stop = threading.Event()

    def put(item: Any, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                break
            except queue.Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # the reader raises it
            put(None, error)

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
