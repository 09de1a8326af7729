"""Views: what one training row is, in terms of the stored rows; numpy only.

A view says how many training rows start in each shard (for the plan) and which stored rows a group of shards needs (for
ingest). A reader cuts training rows out of stored rows that are in memory. There are three views: `RowView` (a stored
row is a training row), `WindowView` in ``windows.py`` (windows of series) and `ChunkView` in ``chunks.py`` (pieces of
documents). Lookback, horizon and batch settings are options of views, so the prepared data does not depend on them.

Shapes: S shards, R stored rows, B rows of a batch, T steps, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Part


Ids = NDArray[np.int64]
Fields = dict[str, dict[str, NDArray[Any]]]  # "inputs", "lengths", "targets" -> name -> array, rows first


class Reader(Protocol):
    """Training rows of stored rows that are in memory."""

    def read(self, ids: Ids) -> Fields:
        """The training rows of these ids, in this order, as arrays (B, ...)."""


class View(Protocol):
    """The training rows of one split; their ids count through the shards in stored order."""

    @property
    def part(self) -> Part:
        """The stored rows."""

    @property
    def rows(self) -> Ids:
        """(S,) training rows that start in each shard."""

    @property
    def lengths(self) -> NDArray[np.int32] | None:
        """(rows,) steps of each training row; None where all have equally many."""

    @property
    def continues_previous(self) -> NDArray[np.bool_] | None:
        """(rows,) whether each training row continues the one before it; None where none does."""

    def stored_rows(self, shards: Ids) -> Ids:
        """Numbers of the stored rows that hold the training rows starting in `shards`, ascending."""

    def reader(self, stored: Ids, table: pa.Table) -> Reader:
        """A reader of the stored rows with the numbers `stored`, whose content is `table`."""


@dataclass(frozen=True)
class RowView:
    """Each stored row is a training row: a sequence with its targets.

    Attributes:
        part: stored rows with a ``length`` each, in steps of the input.
        inputs: columns of lists -> numbers a step, or 0 for one number without an axis of its own.
        targets: columns -> what they hold: ``row`` (a number, or a list of one size, for each row), ``step`` (a number
            for each step; padding becomes -1), ``list`` (whole numbers, any count a row; padding becomes -1), or a
            count K (a list of whole numbers below K, which becomes K zeros and ones).
    """

    part: Part
    inputs: Mapping[str, int]
    targets: Mapping[str, str | int]
    continues_previous: None = None

    @cached_property
    def rows(self) -> Ids:
        return np.array([s.rows for s in self.part.shards], np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        return self.part.column("length").astype(np.int32)

    def stored_rows(self, shards: Ids) -> Ids:
        return np.flatnonzero(np.isin(self.part.shard_of, shards))

    def reader(self, stored: Ids, table: pa.Table) -> RowReader:
        return RowReader(stored, table, self.inputs, self.targets)


class RowReader:
    """Stored rows in memory, one after the other.

    Args:
        stored: (R,) their numbers, ascending.
        table: their content.
        inputs, targets: as of `RowView`.
    """

    def __init__(
        self, stored: Ids, table: pa.Table, inputs: Mapping[str, int], targets: Mapping[str, str | int]
    ) -> None:
        self.stored, self.targets = stored, targets
        self.steps = table["length"].to_numpy().astype(np.int64)
        self.inputs = {
            name: RaggedArray(flat_of(table[name]).reshape(-1, width) if width else flat_of(table[name]), self.steps)
            for name, width in inputs.items()
        }
        self.sequence_targets: dict[str, RaggedArray] = {}  # by step, or lists
        self.row_targets: dict[str, NDArray[Any]] = {}
        self.class_lists: dict[str, tuple[NDArray[Any], Ids]] = {}  # (classes of all rows, where each row's begin)
        for name, kind in targets.items():
            if kind == "step":
                self.sequence_targets[name] = RaggedArray(flat_of(table[name]), self.steps)
            elif kind == "list":
                self.sequence_targets[name] = RaggedArray(flat_of(table[name]), np.diff(offsets_of(table[name])))
            elif kind == "row":
                column = _row_values(table[name])
                self.row_targets[name] = column.astype(np.int64) if column.dtype.kind == "i" else column
            else:
                self.class_lists[name] = flat_of(table[name]), offsets_of(table[name])

    def read(self, ids: Ids) -> Fields:
        """Each input (B, T) or (B, T, C), padded with 0; each target (B,), (B, K), (B, T) or (B, U)."""
        rows = np.searchsorted(self.stored, ids)
        targets: dict[str, NDArray[Any]] = {}
        for name, kind in self.targets.items():
            if name in self.sequence_targets:
                targets[name] = self.sequence_targets[name].padded(rows, padding=-1).astype(np.int64)
            elif name in self.row_targets:
                targets[name] = self.row_targets[name][rows]
            else:
                targets[name] = _multi_hot(*self.class_lists[name], rows, int(kind))
        return {
            "inputs": {name: array.padded(rows) for name, array in self.inputs.items()},
            "targets": targets,
            "lengths": dict.fromkeys(self.inputs, self.steps[rows]),
        }


class RaggedArray:
    """Sequences of unequal length in one flat array.

    Args:
        flat: (total steps, ...) the steps of all sequences.
        steps: (R,) steps of each sequence.
        starts: (R,) where each begins in `flat`; by default one after the other.
    """

    def __init__(self, flat: NDArray[Any], steps: Ids, starts: Ids | None = None) -> None:
        self.flat, self.steps, self.starts = flat, steps, np.cumsum(steps) - steps if starts is None else starts
        assert starts is not None or int(steps.sum()) == len(flat)

    def padded(self, rows: Ids, *, padding: int = 0) -> NDArray[Any]:
        """(B, T, ...): the sequences `rows`, padded to the longest of them.

        Each row is copied as one slice of T steps, whose end belongs to the rows after it and is overwritten by the
        padding; a row too near the end of `flat` for that is copied alone.
        """
        steps, starts = self.steps[rows], self.starts[rows]
        width = int(steps.max())
        count = len(self.flat) - width + 1  # slices of T steps
        stride = self.flat.strides[0]
        slices = np.lib.stride_tricks.as_strided(
            self.flat, (count, width, *self.flat.shape[1:]), (stride, *self.flat.strides), writeable=False
        )
        out: NDArray[Any] = slices[np.minimum(starts, count - 1)]
        for i in np.flatnonzero(starts > count - 1):
            out[i, : steps[i]] = self.flat[starts[i] : starts[i] + steps[i]]
        if int(steps.min()) < width:
            out[np.arange(width) >= steps[:, None]] = padding
        return out


# Columns of Arrow as arrays


def offsets_of(column: pa.ChunkedArray) -> Ids:
    """(R + 1,) where each list begins in what `flat_of` returns, and the end of the last one."""
    sizes = pc.list_value_length(column).to_numpy().astype(np.int64)
    return np.concatenate([[0], np.cumsum(sizes)])


def flat_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of a column of lists, one after the other; not copied where the column is in one piece."""
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=True)
    return flat


def _row_values(column: pa.ChunkedArray) -> NDArray[Any]:
    """(R,) the numbers of a column, or (R, K) its lists of one size."""
    values = column.combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        flat: NDArray[Any] = values.flatten().to_numpy()
        return flat.reshape(len(values), -1)
    out: NDArray[Any] = values.to_numpy()
    return out


def _multi_hot(flat: NDArray[Any], offsets: Ids, rows: Ids, count: int) -> NDArray[np.float32]:
    """(B, count): 1 at the numbers of each row's list, which are flat[offsets[row]:offsets[row + 1]]."""
    out = np.zeros((rows.size, count), np.float32)
    sizes = offsets[rows + 1] - offsets[rows]
    positions = np.repeat(offsets[rows] - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
    out[np.repeat(np.arange(rows.size), sizes), flat[positions]] = 1
    return out


def sum_per_shard(part: Part, counts: Ids) -> Ids:
    """(S,) the sum of `counts` (stored rows,) over the stored rows of each shard."""
    out = np.zeros(len(part.shards), np.int64)
    np.add.at(out, part.shard_of, counts)
    return out
