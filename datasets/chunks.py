"""Rows for models of a sequence itself: each step is to be told from those before it. numpy only."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.views import Fields, Ids, Runs, flat_of, offsets_of, per_shard

if TYPE_CHECKING:
    from datasets.prepare import Part


@dataclass(frozen=True)
class ChunkView:
    """Stored rows (documents, pieces) cut into chunks, each the steps to read and, one further on, those to tell.

    Attributes:
        part: stored rows.
        column: of their steps.
        width: numbers a step; 0 for one number without an axis of its own.
        window: steps of a chunk, but for a row's last one; None makes a chunk of each row.
        ends: numbers that are put before and after a row's steps, so that the first and the end are told, too; None
            gives the first step, and tells no end.
    """

    part: Part
    column: str
    width: int
    window: int | None
    ends: tuple[int, int] | None

    @cached_property
    def told(self) -> Ids:
        """(stored rows,) steps that are told of each."""
        return self.part.column("length").astype(np.int64) + (1 if self.ends else -1)

    @cached_property
    def count(self) -> Ids:
        """(stored rows,) chunks of each."""
        return np.minimum(self.told, 1) if self.window is None else -(-self.told // self.window)

    @cached_property
    def before(self) -> Ids:
        """(stored rows,) id of the first chunk of each."""
        return np.cumsum(self.count) - self.count

    @cached_property
    def rows(self) -> Ids:
        return per_shard(self.part, self.count)

    @cached_property
    def whole(self) -> bool:
        """Whether no row has more than one chunk: then batches are of about one length, and no state is carried."""
        return int(self.count.max(initial=0)) <= 1

    @cached_property
    def lengths(self) -> NDArray[np.int32] | None:
        """Of whole rows; chunks of a window are as good as equal."""
        return self.told[self.count > 0].astype(np.int32) if self.whole else None

    @cached_property
    def follows(self) -> NDArray[np.bool_] | None:
        """(chunks,) whether each goes on from the one before it; None where all are whole rows."""
        if self.whole:
            return None
        out = np.ones(int(self.count.sum()), bool)
        out[self.before[self.count > 0]] = False
        return out

    def needs(self, shards: Ids) -> Ids:
        return np.flatnonzero(np.isin(self.part.shard_of, shards))

    def open(self, stored: Ids, table: pa.Table) -> ChunkReader:
        flat, offsets = flat_of(table[self.column]), offsets_of(table[self.column])
        if self.ends:
            flat = np.insert(flat, np.stack((offsets[:-1], offsets[1:]), 1).ravel(), np.tile(self.ends, len(table)))
        place = np.full(len(self.told), -1, np.int64)
        sizes = self.told[stored] + 1
        place[stored] = np.cumsum(sizes) - sizes
        return ChunkReader(self, flat.reshape(-1, self.width) if self.width else flat, place)


@dataclass(frozen=True)
class ChunkReader:
    """Stored rows side by side in `flat`, with their ends; `place` is where each begins."""

    view: ChunkView
    flat: NDArray[Any]
    place: Ids

    def take(self, ids: Ids) -> Fields:
        """The column's steps (B, T) or (B, T, C), and as the target ``next`` the steps after them, both padded with 0;
        numbers of several a step become float32."""
        view = self.view
        row = np.searchsorted(view.before + view.count, ids, side="right")
        start = (ids - view.before[row]) * (view.window or 0)
        steps = np.minimum(view.told[row] - start, view.window or view.told[row])
        read = Runs(self.flat, steps + 1, self.place[row] + start).take(np.arange(ids.size))
        inputs, told = read[:, :-1], read[:, 1:]
        if view.width:
            inputs, told = inputs.astype(np.float32), told.astype(np.float32)
        else:
            told = told.astype(np.int64)
        beyond = np.arange(inputs.shape[1]) >= steps[:, None]
        inputs = np.where(beyond[..., None] if view.width else beyond, inputs.dtype.type(0), inputs)
        return {"inputs": {view.column: inputs}, "targets": {"next": told}, "lengths": {view.column: steps}}
