"""Chunks of documents, for models that predict each step of a sequence from the steps before it; numpy only.

A document (a text, a piece of music) is a stored row. A chunk reads some of its steps and has as its targets the same
steps shifted by one. Each step of a document is a target exactly once.

Shapes: R documents (stored rows), B chunks of a batch, T steps, C numbers a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.pipeline.views import Fields, Ids, RaggedArray, flat_of, offsets_of, sum_per_shard

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Part


@dataclass(frozen=True)
class ChunkView:
    """Stored documents cut into chunks.

    Attributes:
        part: stored documents.
        column: of their steps.
        width: numbers a step; 0 for one number without an axis of its own.
        window: steps of a chunk, except the last one of a document; None makes each document one chunk.
        ends: numbers that are put before and after a document's steps, so that its first step and its end are predicted
            too; None predicts the steps after the first one, and no end.
    """

    part: Part
    column: str
    width: int
    window: int | None
    ends: tuple[int, int] | None

    @cached_property
    def target_steps(self) -> Ids:
        """(R,) steps of each document that are targets."""
        return self.part.column("length").astype(np.int64) + (1 if self.ends else -1)

    @cached_property
    def count(self) -> Ids:
        """(R,) chunks of each document."""
        return np.minimum(self.target_steps, 1) if self.window is None else -(-self.target_steps // self.window)

    @cached_property
    def first_id(self) -> Ids:
        """(R,) id of the first chunk of each document."""
        return np.cumsum(self.count) - self.count

    @cached_property
    def rows(self) -> Ids:
        return sum_per_shard(self.part, self.count)

    @cached_property
    def uncut(self) -> bool:
        """Whether no document has more than one chunk: then batches hold similar lengths, and no state is carried."""
        return int(self.count.max(initial=0)) <= 1

    @cached_property
    def lengths(self) -> NDArray[np.int32] | None:
        """(rows,) steps of uncut documents; chunks of a window are nearly all equally long."""
        return self.target_steps[self.count > 0].astype(np.int32) if self.uncut else None

    @cached_property
    def continues_previous(self) -> NDArray[np.bool_] | None:
        if self.uncut:
            return None
        out = np.ones(int(self.count.sum()), bool)
        out[self.first_id[self.count > 0]] = False
        return out

    def stored_rows(self, shards: Ids) -> Ids:
        return np.flatnonzero(np.isin(self.part.shard_of, shards))

    def reader(self, stored: Ids, table: pa.Table) -> ChunkReader:
        flat, offsets = flat_of(table[self.column]), offsets_of(table[self.column])
        if self.ends:
            flat = np.insert(flat, np.stack((offsets[:-1], offsets[1:]), 1).ravel(), np.tile(self.ends, len(table)))
        starts = np.full(len(self.target_steps), -1, np.int64)
        sizes = self.target_steps[stored] + 1
        starts[stored] = np.cumsum(sizes) - sizes
        return ChunkReader(self, flat.reshape(-1, self.width) if self.width else flat, starts)


@dataclass(frozen=True)
class ChunkReader:
    """Documents in memory, one after the other, with their ends.

    Attributes:
        view: of the chunks.
        flat: (steps,) or (steps, C) the steps of all documents.
        starts: (R,) where each document begins in `flat`; -1 for documents that are not in memory.
    """

    view: ChunkView
    flat: NDArray[Any]
    starts: Ids

    def read(self, ids: Ids) -> Fields:
        """The column's steps (B, T) or (B, T, C), and as target ``next`` the steps after them, both padded with 0.

        Steps of several numbers become float32; targets of one number int64.
        """
        view = self.view
        document = np.searchsorted(view.first_id + view.count, ids, side="right")
        start = (ids - view.first_id[document]) * (view.window or 0)
        steps = np.minimum(view.target_steps[document] - start, view.window or view.target_steps[document])
        values = RaggedArray(self.flat, steps + 1, self.starts[document] + start).padded(np.arange(ids.size))
        inputs, targets = values[:, :-1], values[:, 1:]
        if view.width:
            inputs, targets = inputs.astype(np.float32), targets.astype(np.float32)
        else:
            targets = targets.astype(np.int64)
        beyond = np.arange(inputs.shape[1]) >= steps[:, None]  # the last step of a shorter chunk is a target only
        inputs = np.where(beyond[..., None] if view.width else beyond, inputs.dtype.type(0), inputs)
        return {"inputs": {view.column: inputs}, "targets": {"next": targets}, "lengths": {view.column: steps}}
