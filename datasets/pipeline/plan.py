"""The plan: the order of batches, a pure function of (stored rows, global batch budget, seed, epoch); numpy only.

An epoch visits the shards in a permuted order, in groups that fit a bounded memory (shard groups). Inside a group
the rows are permuted and cut into global batches; a batch never crosses a group. Which worker reads a row of a
batch, and when, does not affect this order, so a run can stop after any batch and continue with other workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.splitmix64 import mix

Ids = NDArray[np.int64]
BUCKET = 0.03  # largest share of a row that its bucket may add as padding
LANE = 64  # documents of at most this many rows are not cut in evaluation


@dataclass(frozen=True, order=True)
class Cursor:
    """A position in the plan: the next global batch is number `batch` of shard group number `group` of `epoch`."""

    epoch: int = 0
    group: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Plan:
    """The global batches of one split.

    Attributes:
        rows: (S,) rows that start in each shard.
        sizes: (S,) bytes of memory that a shard takes once it is read.
        batch_rows: maximum of rows in a global batch.
        batch_tokens: maximum of steps in a global batch, padding included; None for no such limit.
        lengths: (R,) steps of each row, in stored order; each batch then has rows of similar length. None where all
            rows are equally long.
        seed: of the permutations.
        group_bytes: maximum memory of the shards of one shard group (a larger shard is a group by itself).
        shuffle: False keeps the stored order, as evaluation does.
        continues_previous: (R,) whether each row continues the one before it, so that a model's state can be carried
            from one to the next. The rows of a shard group are then joined end to end and cut into lanes: row j of each
            batch continues row j of the batch before.
    """

    rows: Ids
    sizes: Ids
    batch_rows: int
    seed: int = 0
    group_bytes: int = 256 << 20
    shuffle: bool = True
    batch_tokens: int | None = None
    lengths: NDArray[np.int32] | None = field(default=None, repr=False)
    continues_previous: NDArray[np.bool_] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ValueError(f"training.batch_size={self.batch_rows}; use at least 1")
        assert self.rows.shape == self.sizes.shape
        if self.lengths is not None:
            assert len(self.lengths) == self.total
        if self.batch_tokens is not None:
            assert self.lengths is not None
            longest = int(self.lengths.max(initial=0))
            if longest > self.batch_tokens:
                row = int(self.lengths.argmax())
                raise ValueError(
                    f"training.batch_tokens={self.batch_tokens} is less than the longest row (row {row}: "
                    f"{longest} steps); use at least {longest}, or cut long rows"
                )

    @property
    def total(self) -> int:
        """Rows in the split."""
        return int(self.rows.sum())

    @cached_property
    def first(self) -> Ids:
        """(S,) id of each shard's first row; ids count through the shards in stored order."""
        return np.cumsum(self.rows) - self.rows

    def groups(self, epoch: int) -> list[Ids]:
        """The shards of each shard group, in the order of the epoch; shards without rows are left out."""
        order = np.flatnonzero(self.rows)
        if self.shuffle:
            order = self._generator(epoch).permutation(order)
        total = np.cumsum(self.sizes[order])
        cuts, base = [], 0
        while base < total.size:  # one iteration per group, not per shard
            used = int(total[base - 1]) if base else 0
            end = max(base + 1, int(np.searchsorted(total, used + self.group_bytes, side="right")))
            cuts.append(order[base:end])
            base = end
        return cuts

    def batches(self, epoch: int, group: int, shards: Ids) -> Iterator[Ids]:
        """Row ids of each global batch of a shard group; `shards` is ``groups(epoch)[group]``."""
        if self.continues_previous is not None:
            yield from self._in_lanes(epoch, group, shards)
            return
        ids = self._rows_of(epoch, group, shards)
        if self.lengths is None:
            for start in range(0, ids.size, self.batch_rows):
                yield ids[start : start + self.batch_rows].astype(np.int64)
            return
        bounds = buckets(self.lengths[ids])
        order = np.argsort(-bounds, kind="stable")  # long rows first; the permutation breaks ties
        ids, bounds = ids[order], bounds[order]
        starts = [0]
        while starts[-1] < ids.size:  # no row of a batch is longer than the bound of its first
            fit = self.batch_rows if self.batch_tokens is None else self.batch_tokens // int(bounds[starts[-1]])
            starts.append(min(ids.size, starts[-1] + max(1, min(self.batch_rows, fit))))
        batches = np.arange(len(starts) - 1)
        if self.shuffle:
            batches = self._generator(epoch, group, 1).permutation(batches)
        for i in batches:
            yield ids[starts[i] : starts[i + 1]].astype(np.int64)

    def epoch(self, epoch: int, start: Cursor | None = None) -> Iterator[tuple[Cursor, Ids, Ids]]:
        """(position, shards of its group, row ids) of each global batch of an epoch, from `start` on."""
        start = start or Cursor(epoch)
        assert start.epoch == epoch
        for group, shards in enumerate(self.groups(epoch)):
            if group < start.group:
                continue
            for batch, ids in enumerate(self.batches(epoch, group, shards)):
                if group > start.group or batch >= start.batch:
                    yield Cursor(epoch, group, batch), shards, ids

    def _in_lanes(self, epoch: int, group: int, shards: Ids) -> Iterator[Ids]:
        """Batches of which number k has the k-th row of every lane; where lanes end, batches have fewer rows.

        The longest lanes come first, so that a lane keeps its position in the batch. In training, the order of
        documents is permuted and the beginning of the first lane is drawn at random, so that epochs cut long documents
        at different rows. Evaluation cuts only documents of more than LANE rows: a state that is reset in the middle of
        a document makes the next steps harder to predict.
        """
        assert self.continues_previous is not None
        ids = np.concatenate([np.arange(self.first[s], self.first[s] + self.rows[s]) for s in shards])
        begins = np.flatnonzero(~self.continues_previous[ids])  # the first row of each document
        if self.shuffle:
            generator = self._generator(epoch, group, 0)
            ids = np.roll(_permuted_runs(ids, begins, generator), -int(generator.integers(ids.size)))
            lanes = min(self.batch_rows, ids.size)
            cuts = np.arange(lanes + 1) * ids.size // lanes
        else:
            longest = int(np.diff(np.append(begins, ids.size)).max())
            lanes = max(1, min(self.batch_rows, ids.size // min(LANE, longest)))
            cuts = np.arange(lanes + 1) * ids.size // lanes
            next_begin = np.append(begins, ids.size)[np.searchsorted(begins, cuts[:-1])]
            cuts = np.unique(np.append(np.where(next_begin <= cuts[1:], next_begin, cuts[:-1]), ids.size))
        sizes = np.diff(cuts)
        order = np.argsort(-sizes, kind="stable")
        starts, sizes = cuts[:-1][order], sizes[order]
        for k in range(int(sizes[0])):
            yield ids[starts[: int(np.searchsorted(-sizes, -k))] + k].astype(np.int64)

    def _rows_of(self, epoch: int, group: int, shards: Ids) -> NDArray[np.integer[Any]]:
        """Ids of all rows of `shards`, permuted; 4 bytes each where that is enough."""
        counts = self.rows[shards]
        kind: type[np.integer[Any]] = np.uint32 if self.total < 1 << 32 else np.int64
        ids: NDArray[Any] = np.arange(int(counts.sum()), dtype=kind)
        ids += np.repeat(
            (self.first[shards] - (np.cumsum(counts) - counts)).astype(kind), counts
        )  # wraps around, and back
        if self.shuffle:
            self._generator(epoch, group, 0).shuffle(ids)
        return ids

    def _generator(self, *key: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence((self.seed, *key))))


def _permuted_runs(ids: Ids, begins: Ids, generator: np.random.Generator) -> Ids:
    """The runs of ids that start at `begins`, in another order."""
    sizes = np.diff(np.append(begins, ids.size))
    order = generator.permutation(begins.size)
    begins, sizes = begins[order], sizes[order]
    return ids[np.repeat(begins - (np.cumsum(sizes) - sizes), sizes) + np.arange(ids.size)]


def buckets(lengths: NDArray[np.int32]) -> NDArray[np.int32]:
    """(R,) the longest length of each row's bucket: lengths that differ by less than BUCKET count as equal.

    Without buckets, where no two rows are equally long, the same rows would share a batch in every epoch.
    """
    bounds = [1]
    while bounds[-1] < int(lengths.max(initial=1)):
        bounds.append(max(bounds[-1] + 1, int(bounds[-1] * (1 + BUCKET))))
    edges = np.array(bounds, np.int32)
    return edges[np.searchsorted(edges, lengths)]


def share(batch: Ids, rank: int, world: int, micro_batches: int = 1) -> list[tuple[Ids, NDArray[np.float32], Ids]]:
    """The share of worker `rank` of `world` in a global batch: `micro_batches` of (row ids, weights, positions).

    Positions are those of the rows in the global batch; a lane is a position, so it always belongs to the same worker.
    Every worker gets the same number of micro-batches. An empty one has the batch's first row with weight 0 instead,
    so that the worker takes part in every collective operation and changes no result.
    """
    shares = []
    for positions in np.array_split(np.arange(rank, batch.size, world), micro_batches):
        weights = np.ones(max(1, positions.size), dtype=np.float32)
        if not positions.size:
            positions, weights[:] = np.zeros(1, np.int64), 0
        shares.append((batch[positions], weights, positions))
    return shares


def keys(ids: Ids, seed: int, epoch: int) -> Ids:
    """What the augmentation of each row is drawn from: (B,) numbers mixed of (seed, epoch, row id)."""
    first = mix(mix(np.array([seed % (1 << 64)], np.uint64)) ^ np.uint64(epoch))
    return mix(first ^ ids.astype(np.uint64)).astype(np.int64)


def checksum(ids: NDArray[np.integer[Any]]) -> int:
    """A sum over rows of a mixed id, modulo 2**64, as a signed number: which rows, in any order."""
    return int(mix(ids.astype(np.uint64)).sum(dtype=np.uint64).astype(np.int64))


def checksum_range(total: int, step: int = 1 << 22) -> int:
    """``checksum`` of the ids 0..total-1, in bounded memory."""
    out = 0
    for start in range(0, total, step):
        out += checksum(np.arange(start, min(total, start + step), dtype=np.int64))
    return (out + (1 << 63)) % (1 << 64) - (1 << 63)
