"""Music: pieces as steps of equal length, each with the notes that sound in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from datasets.chunks import ChunkView
from datasets.records import Bad, Options, Records, State, is_list, list_array, part_of

if TYPE_CHECKING:
    from datasets.prepare import Prepared
    from datasets.views import View

LOWEST, NOTES = 21, 88                  # of a piano, as MIDI numbers them: 21 to 108


def build(told: Options, *, notes: str = "notes", quarters: float = 0.5) -> Music:
    """Pieces in JSON Lines or Parquet files, a row each.

    Args:
        told: the options of all records.
        notes: the column of the steps: a list over time of lists of the notes that sound, 21 to 108 as MIDI numbers
            them; a step in which nothing sounds is an empty list.
        quarters: quarter notes that a step lasts, for the MIDI files that are written.

    Raises:
        ValueError: an option is out of its range.
    """
    if not 0 < quarters <= 100:
        raise ValueError(f"dataset.quarters={quarters} is out of range; use more than 0, such as 0.25 for sixteenths")
    return Music(told=told, notes=notes, quarters=quarters)


@dataclass(kw_only=True)
class Music(Records):
    """See `build`."""

    notes: str
    quarters: float
    kind: ClassVar[str] = "music"
    frontend: ClassVar[str] = "frames"

    @property
    def offers(self) -> tuple[str, ...]:
        """What is told, and the notes themselves, to go on with."""
        return (*self.told.offers, "notes")

    def input_columns(self) -> list[str]:
        return [self.notes]

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: Bad) -> tuple[dict[str, pa.Array], State]:
        column = table[self.notes].combine_chunks().take(pa.array(rows, pa.int64()))
        kind = column.type
        if pa.types.is_null(kind):
            column = column.cast(pa.list_(pa.list_(pa.int64())))
        elif not (is_list(kind) and (pa.types.is_null(kind.value_type) or is_list(kind.value_type))):
            raise ValueError(f"{table['__file'][0].as_py()}: column {self.notes!r} holds {kind}, not a list over time "
                             "of lists of notes; name another column in dataset.notes")
        rolls = [_roll(piece, rows[i], self.notes, bad) for i, piece in enumerate(column.to_pylist())]
        lengths = np.array([len(roll) for roll in rolls], np.int32)
        flat = np.concatenate(rolls) if rolls else np.zeros((0, NOTES), np.int8)
        return {"length": pa.array(lengths), "values": list_array(flat.ravel(), lengths * NOTES)}, {}

    def input_spec(self, state: State | None) -> dict[str, Any]:
        return {"channels": NOTES}

    def inputs(self, state: State) -> dict[str, int]:
        return {"values": NOTES}

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        if task["target"] == "notes":
            return {"frontend": self.frontend, "channels": NOTES, "notes": NOTES}
        return super().spec(state, task)

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        if task["target"] == "notes":
            return ChunkView(part_of(prepared, split), "values", NOTES, task["window"], None)
        return super().view(prepared, split, task)


def _roll(piece: Any, row: int, column: str, bad: Bad) -> np.ndarray[Any, np.dtype[np.int8]]:
    """(T, 88): 1 where a note sounds; no steps, and what is wrong in `bad`, if it cannot be used."""
    steps = [[] if step is None else step for step in piece or []]
    if len(steps) < 2:
        bad.setdefault(row, (column, "no value" if piece is None else "less than two steps"))
        return np.zeros((0, NOTES), np.int8)
    roll = np.zeros((len(steps), NOTES), np.int8)
    for number, step in enumerate(steps):
        for note in step:
            if not isinstance(note, int | float) or not (LOWEST <= note < LOWEST + NOTES and note == int(note)):
                bad.setdefault(row, (column, f"step {number + 1}: {note!r} is no note from {LOWEST} to "
                                             f"{LOWEST + NOTES - 1}"))
                return np.zeros((0, NOTES), np.int8)
            roll[number, int(note) - LOWEST] = 1
    return roll


def notes_of(roll: np.ndarray[Any, Any]) -> Iterator[list[int]]:
    """The notes of each step of a roll (T, 88)."""
    for step in roll:
        yield (np.flatnonzero(step) + LOWEST).tolist()
