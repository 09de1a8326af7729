"""Music: pieces as steps of equal length, each with the notes that sound in it.

A piece is stored as a piano roll: (T, 88) zeros and ones, by step and key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from datasets.pipeline.chunks import ChunkView
from datasets.shared.columns import BadRows, is_list, list_array
from datasets.shared.options import RecordOptions
from datasets.shared.records import Records
from datasets.shared.splits import part_of
from datasets.shared.sums import State

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Prepared
    from datasets.pipeline.views import View

LOWEST, NOTES = 21, 88  # the keys of a piano, MIDI numbers 21 to 108


def build(common: RecordOptions, *, notes: str = "notes", quarters: float = 0.5) -> Music:
    """Pieces in JSON Lines or Parquet files, one per row.

    Args:
        common: the options of all records.
        notes: the column of the steps: a list over time of lists of the notes that sound, as MIDI numbers from 21 to
            108; a step without a sound is an empty list.
        quarters: duration of a step in quarter notes, for MIDI files that predict writes.

    Raises:
        ValueError: an option is out of its range.
    """
    if not 0 < quarters <= 100:
        raise ValueError(f"dataset.quarters={quarters} is out of range; use more than 0, such as 0.25 for sixteenths")
    return Music(common=common, notes=notes, quarters=quarters)


@dataclass(kw_only=True)
class Music(Records):
    """See `build`."""

    notes: str
    quarters: float
    kind: ClassVar[str] = "music"
    frontend: ClassVar[str] = "frames"

    @property
    def available_targets(self) -> tuple[str, ...]:
        """The targets of the options, and the notes of the piece itself (task generate)."""
        return (*self.common.available_targets, "notes")

    def input_columns(self) -> list[str]:
        return [self.notes]

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: BadRows) -> tuple[dict[str, pa.Array], State]:
        column = table[self.notes].combine_chunks().take(pa.array(rows, pa.int64()))
        kind = column.type
        if pa.types.is_null(kind):
            column = column.cast(pa.list_(pa.list_(pa.int64())))
        elif not (is_list(kind) and (pa.types.is_null(kind.value_type) or is_list(kind.value_type))):
            raise ValueError(
                f"{table['__file'][0].as_py()}: column {self.notes!r} holds {kind}, not a list over time "
                "of lists of notes; name another column in dataset.notes"
            )
        rolls = [_roll(piece, rows[i], self.notes, bad) for i, piece in enumerate(column.to_pylist())]
        lengths = np.array([len(roll) for roll in rolls], np.int32)
        flat = np.concatenate(rolls) if rolls else np.zeros((0, NOTES), np.int8)
        return {"length": pa.array(lengths), "values": list_array(flat.ravel(), lengths * NOTES)}, {}

    def input_spec(self, fitted: State | None) -> dict[str, Any]:
        return {"channels": NOTES}

    def stored_inputs(self, fitted: State) -> dict[str, int]:
        return {"values": NOTES}

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        if task["target"] == "notes":
            return {"frontend": self.frontend, "channels": NOTES, "notes": NOTES}
        return super().spec(state, task)

    def names(self, state: Mapping[str, Any], target: str) -> list[str]:
        """As of other records; of notes, how MIDI numbers them."""
        if target == "notes":
            return [str(LOWEST + note) for note in range(NOTES)]
        return super().names(state, target)

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        if task["target"] == "notes":
            return ChunkView(part_of(prepared, split), "values", NOTES, task["window"], None)
        return super().view(prepared, split, task)


def _roll(piece: Any, row: int, column: str, bad: BadRows) -> np.ndarray[Any, np.dtype[np.int8]]:
    """(T, 88): 1 where a note sounds; no steps, and the reason in `bad`, if the piece cannot be used."""
    steps = [[] if step is None else step for step in piece or []]
    if len(steps) < 2:
        bad.setdefault(row, (column, "no value" if piece is None else "less than two steps"))
        return np.zeros((0, NOTES), np.int8)
    roll = np.zeros((len(steps), NOTES), np.int8)
    for number, step in enumerate(steps):
        for note in step:
            if not isinstance(note, int | float) or not (LOWEST <= note < LOWEST + NOTES and note == int(note)):
                bad.setdefault(
                    row, (column, f"step {number + 1}: {note!r} is no note from {LOWEST} to {LOWEST + NOTES - 1}")
                )
                return np.zeros((0, NOTES), np.int8)
            roll[number, int(note) - LOWEST] = 1
    return roll
