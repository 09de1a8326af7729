"""Sequences with channels: each row has a list of frames, from sensors or as features that were computed before.

Shapes: F frames of all rows together, C channels of a frame.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.shared.columns import BadRows, is_list, list_array
from datasets.shared.options import RecordOptions
from datasets.shared.records import Records
from datasets.shared.sums import State, moments, tally_moments

Scale = Literal["standard", "none"]

LARGEST = 1e30  # frames are stored as float32 (up to 3e38), and the sums of their squares must fit in float64


def build(common: RecordOptions, *, values: str = "values", scale: Scale = "standard") -> Sequences:
    """Sequences in JSON Lines or Parquet files, one per row.

    Args:
        common: the options of all records.
        values: the column of the frames: a list over time of lists of channels, or of numbers (one channel).
        scale: standard gives each channel mean 0 and standard deviation 1 over all training frames; none keeps the
            values as they are.
    """
    return Sequences(common=common, values=values, scale=scale)


@dataclass(kw_only=True)
class Sequences(Records):
    """See `build`."""

    values: str
    scale: Scale
    kind: ClassVar[str] = "sequences"
    frontend: ClassVar[str] = "frames"

    def input_columns(self) -> list[str]:
        return [self.values]

    def tally_input(self, table: pa.Table, rows: Sequence[int]) -> tuple[State, list[str]]:
        """Moments of each channel over the frames, by the number of channels."""
        frames = _Frames(table, self.values, rows)
        if not frames.channels:
            return {}, []
        flat, _ = frames.usable(frames.channels, {})
        return {"channels": {str(frames.channels): tally_moments(flat)}}, []

    def fit_input(self, texts: Iterator[list[str]], tally: State) -> State:
        super().fit_input(texts, tally)
        moments_by_channels = tally.get("channels")
        if not moments_by_channels:
            raise ValueError(
                f"column {self.values!r} has no frames in the training rows; name the column of a list "
                "over time of lists of channels in dataset.values"
            )
        channels = max(moments_by_channels, key=lambda number: moments_by_channels[number]["count"])
        scaling = moments(moments_by_channels[channels])
        if self.scale == "none":
            scaling = {"mean": [0.0] * int(channels), "std": [1.0] * int(channels)}
        return {"channels": int(channels), "scaling": scaling}

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: BadRows) -> tuple[dict[str, pa.Array], State]:
        assert self.fitted is not None
        frames = _Frames(table, self.values, rows)
        flat, lengths = frames.usable(self.fitted["channels"], bad)
        scaling = self.fitted["scaling"]
        scaled = ((flat - np.array(scaling["mean"])) / np.array(scaling["std"])).astype(np.float32)
        return {
            "length": pa.array(lengths.astype(np.int32)),
            "values": list_array(scaled.ravel(), lengths * self.fitted["channels"]),
        }, {}

    def input_spec(self, fitted: State | None) -> dict[str, Any]:
        return {"channels": fitted["channels"] if fitted else 1}

    def stored_inputs(self, fitted: State) -> dict[str, int]:
        return {"values": fitted["channels"]}


class _Frames:
    """The frames of some rows of a table, one after the other.

    Attributes:
        channels: the most common number of channels; 0 if there are no frames.
    """

    def __init__(self, table: pa.Table, name: str, rows: Sequence[int]) -> None:
        self.name, self.rows = name, rows
        column = table[name].combine_chunks().take(pa.array(rows, pa.int64()))
        kind = column.type
        if pa.types.is_null(kind):
            column, kind = column.cast(pa.list_(pa.float64())), pa.list_(pa.float64())
        deep = is_list(kind) and is_list(kind.value_type)
        number = kind.value_type.value_type if deep else kind.value_type if is_list(kind) else kind
        if not is_list(kind) or not (
            pa.types.is_floating(number) or pa.types.is_integer(number) or pa.types.is_null(number)
        ):
            raise ValueError(
                f"{table['__file'][0].as_py()}: column {name!r} holds {kind}, not a list over time of "
                "lists of channels; name another column in dataset.values"
            )
        self.missing = ~column.is_valid().to_numpy(zero_copy_only=False)
        self.steps = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
        frames = pc.list_flatten(column)
        self.row = np.repeat(np.arange(len(rows)), self.steps)  # (F,) row of each frame
        if deep:
            self.widths = pc.fill_null(pc.list_value_length(frames), 0).to_numpy().astype(np.int64)
            frames = pc.list_flatten(frames)
        else:
            self.widths = np.ones(len(self.row), np.int64)
        self.numbers: NDArray[np.float64] = pc.fill_null(frames.cast(pa.float64(), safe=False), np.nan).to_numpy()
        usual = Counter(self.widths.tolist()).most_common(1)
        self.channels = int(usual[0][0]) if usual else 0

    def usable(self, channels: int, bad: BadRows) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """(frames (F, C) of the rows that can be used, steps (rows,), 0 for the others, which are added to `bad`)."""
        for i in np.flatnonzero(self.steps == 0).tolist():
            bad.setdefault(self.rows[i], (self.name, "no value" if self.missing[i] else "empty"))
        wrong = np.flatnonzero(self.widths != channels)
        for i, first in zip(*np.unique(self.row[wrong], return_index=True), strict=True):
            reason = f"a frame of {self.widths[wrong[first]]} channels, where {channels} are expected"
            bad.setdefault(self.rows[int(i)], (self.name, reason))
        use = np.ones(len(self.rows), bool)
        use[self.row[wrong]] = False
        flat = self.numbers[np.repeat(use[self.row], self.widths)].reshape(-1, channels)
        row = self.row[use[self.row]]
        for i in np.unique(row[~(np.abs(flat) <= LARGEST).all(1)]).tolist():  # True for NaN too
            bad.setdefault(self.rows[i], (self.name, "a missing, infinite or too large number"))
            use[i] = False
        return flat[use[row]], np.where(use, self.steps, 0)
