"""What a row of training is, over what is stored: a window cut from stored series, or a stored row itself; numpy only.

A view tells the plan how many rows start in each shard, tells ingest which stored rows a group of shards needs, and
cuts rows from what was read. Nothing of it is stored: lookback, horizon and batches are no part of prepared data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasets.prepare import Part, Prepared

Ids = NDArray[np.int64]
Fields = dict[str, dict[str, NDArray[Any]]]     # "inputs", "lengths", "targets" -> name -> array, rows first


class Reader(Protocol):
    """Stored rows in memory."""

    def take(self, ids: Ids) -> Fields:
        """The rows of these ids, in this order."""


class View(Protocol):
    """The rows of one split."""

    @property
    def part(self) -> Part:
        """What is stored."""

    @property
    def rows(self) -> Ids:
        """(S,) rows that start in each shard."""

    @property
    def lengths(self) -> NDArray[np.int32] | None:
        """(rows,) steps of each row; None where all are equal by construction."""

    @property
    def follows(self) -> NDArray[np.bool_] | None:
        """(rows,) whether each goes on from the one before it; None where none does."""

    def needs(self, shards: Ids) -> Ids:
        """Numbers of the stored rows that the rows starting in `shards` are made of, ascending."""

    def open(self, stored: Ids, table: pa.Table) -> Reader:
        """A reader over those stored rows."""


@dataclass(frozen=True)
class WindowView:
    """Windows of `lookback` + `horizon` steps, cut from series that are stored in chunks.

    Attributes:
        part: chunks of series; a series' chunks follow each other.
        series: (chunks,) number of each chunk's series in the fitted state.
        offset, length: (chunks,) first step within the series, and steps.
        first, count: (series,) the windows of series s start at first[s] + stride * k, k < count[s].
        channels: numbers stored for each step.
        targets: how many of the leading channels are forecast.
        known: the channels known in the future too (calendar), as a slice.
        observed: channels that say whether each target was measured, as a slice; None where all were.
        constants: arrays by name, (series, targets), handed to the task with each row.
    """

    part: Part
    series: Ids
    offset: Ids
    length: Ids
    first: Ids
    count: Ids
    stride: int
    lookback: int
    horizon: int
    channels: int
    targets: int
    known: slice
    observed: slice | None
    constants: Mapping[str, NDArray[np.float32]]
    lengths: None = None
    follows: None = None

    @cached_property
    def starts(self) -> tuple[Ids, Ids]:
        """(chunks,) the first start in each chunk, and how many windows start there."""
        return chunk_counts(self.first, self.count, self.series, self.offset, self.length, stride=self.stride)

    @cached_property
    def rows(self) -> Ids:
        return per_shard(self.part, self.starts[1])

    @cached_property
    def before(self) -> Ids:
        """(chunks,) id of the first window of each chunk."""
        counts = self.starts[1]
        return np.cumsum(counts) - counts

    def needs(self, shards: Ids) -> Ids:
        """Chunks in which a window of `shards` starts, and those that it runs on into."""
        low, count = self.starts
        chunk = np.flatnonzero(np.isin(self.part.shard_of, shards) & (count > 0))
        last = low[chunk] + self.stride * (count[chunk] - 1)
        reach = last + self.lookback + self.horizon            # end of the chunk's last window
        found = [chunk]
        while chunk.size:
            more = reach > self.offset[chunk] + self.length[chunk]
            chunk, reach = chunk[more] + 1, reach[more]
            found.append(chunk)
        return np.unique(np.concatenate(found))

    def open(self, stored: Ids, table: pa.Table) -> WindowReader:
        flat = flat_of(table["values"])
        place = np.full(self.offset.size, -1, np.int64)                            # step of flat where a chunk begins
        place[stored] = np.cumsum(self.length[stored]) - self.length[stored]
        return WindowReader(self, flat, place)


@dataclass(frozen=True)
class WindowReader:
    """Chunks side by side in one flat array; neighbours of a series touch, so a window is one run of it."""

    view: WindowView
    flat: NDArray[np.float32]
    place: Ids

    def take(self, ids: Ids) -> Fields:
        """values (B, lookback, C), known (B, horizon, K); target (B, horizon, N), observed, constants (B, N)."""
        v = self.view
        low, _ = v.starts
        chunk = np.searchsorted(v.before, ids, side="right") - 1
        start = self.place[chunk] + low[chunk] - v.offset[chunk] + v.stride * (ids - v.before[chunk])
        inputs = {"values": self._runs(start, v.lookback)}
        future = self._runs(start + v.lookback, v.horizon)
        if v.known.start < v.known.stop:
            inputs["known"] = future[..., v.known]
        targets: dict[str, NDArray[Any]] = {"target": future[..., :v.targets]}
        if v.observed is not None:
            targets["observed"] = future[..., v.observed]
        series = v.series[chunk]
        targets |= {name: table[series] for name, table in v.constants.items()}
        targets["series"] = series
        return {"inputs": inputs, "targets": targets,
                "lengths": {"values": np.full(ids.size, v.lookback, np.int64)}}

    def _runs(self, start: Ids, steps: int) -> NDArray[np.float32]:
        """The `steps` steps from each of `start` (B,) on: (B, steps, C), copied once."""
        width, one = steps * self.view.channels, self.view.channels * self.flat.itemsize
        count = max(0, (self.flat.size - width) // self.view.channels + 1)
        runs = np.lib.stride_tricks.as_strided(self.flat, (count, width), (one, self.flat.itemsize), writeable=False)
        return runs[start].reshape(-1, steps, self.view.channels)


def per_shard(part: Part, counts: Ids) -> Ids:
    """(S,) the sum over each shard's stored rows of counts (stored rows,)."""
    out = np.zeros(len(part.shards), np.int64)
    np.add.at(out, part.shard_of, counts)
    return out


def windows(state: Mapping[str, Any], split: str, lookback: int, horizon: int, *, stride: int = 1) -> tuple[Ids, Ids]:
    """The windows of a split: those whose `horizon` target steps [start + lookback, ...) all lie in it.

    Inputs of validation and test windows reach back into the split before. A stride counts back from the split's end,
    so that with a season as stride the windows are in the phase in which the next split begins.

    Returns:
        (first, count), (S,) int64 each: the windows of series s start at first[s] + stride * k, k < count[s].

    Raises:
        ValueError: for a split that is not there, or a series without a window.
    """
    if min(lookback, horizon, stride) < 1:
        raise ValueError(f"lookback={lookback}, horizon={horizon} and stride={stride} must be at least 1")
    if split not in state["series"][0]["bounds"]:
        raise ValueError(f"the prepared data has no {split} split, only {', '.join(state['series'][0]['bounds'])}")
    bounds = np.array([summary["bounds"][split] for summary in state["series"]], dtype=np.int64)    # (S, 2)
    first, last = np.maximum(bounds[:, 0] - lookback, 0), bounds[:, 1] - lookback - horizon
    count = np.maximum((last - first) // stride + 1, 0)
    first = np.where(count > 0, first + (last - first) % stride, first)         # so that the last window is one of them
    if not count.all():
        s = int(np.flatnonzero(count == 0)[0])
        more = int((count == 0).sum()) - 1
        name = f"series {state['series'][s]['name']!r}" if state["series"][s]["name"] else "the series"
        raise ValueError(
            f"{name}{f' (and {more} more)' if more else ''} has no window in {split}: "
            f"that split is steps {bounds[s, 0]} to {bounds[s, 1]} of {state['series'][s]['length']}, and a window "
            f"needs lookback + horizon = {lookback} + {horizon} = {lookback + horizon} steps, the last {horizon} of "
            f"them inside; use a shorter task.lookback or task.horizon, a longer split, or leave the series out")
    return first, count


def chunk_counts(first: Ids, count: Ids, series: Ids, offset: Ids, length: Ids, *,
                 stride: int = 1) -> tuple[Ids, Ids]:
    """The windows that start in each stored chunk.

    Args:
        first, count: (S,) from `windows`, with the same stride.
        series, offset, length: (R,) of the stored chunks; `series` is the index in state["series"].

    Returns:
        (start, number), (R,) int64 each: windows of chunk r start at steps start[r] + stride * k of the series,
        k < number[r].
    """
    begin, total = first[series], count[series]
    low = np.clip(-((begin - offset) // stride), 0, total)                      # ceil((offset - begin) / stride)
    high = np.clip(-((begin - offset - length) // stride), 0, total)
    return begin + stride * low, high - low


class SeriesDataset:
    """What any dataset of stored series offers to training: windows, to forecast from."""

    offers: ClassVar[tuple[str, ...]] = ("series",)
    frontend: ClassVar[str] = "patches"
    targets: list[str]

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        """``channels`` stored a step, of which ``targets`` and ``known`` (in the future); window and season."""
        told = {"frontend": self.frontend, "targets": len(self.targets), "channels": len(self.targets), "known": 0,
                "observed": False, "season": 1, "lookback": task.get("lookback"), "horizon": task.get("horizon")}
        if state is not None:
            told |= {"channels": state["width"], "known": len(state["channels"]["calendar"]),
                     "observed": state["channels"]["observed"], "season": state["season"]}
        return told

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> WindowView:
        """The windows of a split.

        Raises:
            ValueError: a series has none, or there is no such split.
        """
        state, part = prepared.state, prepared.parts["series"]
        lookback, horizon, spec = task["lookback"], task["horizon"], self.spec(prepared.state, task)
        stride = task.get("stride", 1) if split == "train" else 1
        first, count = windows(state, split, lookback, horizon, stride=stride)
        end = spec["channels"] - (spec["targets"] if spec["observed"] else 0)
        offset = part.column("offset")
        target = slice(0, spec["targets"])
        constants = {"mean": [s["mean"][target] for s in state["series"]],
                     "std": [s["std"][target] for s in state["series"]],
                     "mase": [[x or 0.0 for x in s["mase"]] for s in state["series"]]}
        return WindowView(
            part, np.cumsum(offset == 0) - 1, offset, part.column("length"), first, count, stride, lookback, horizon,
            spec["channels"], spec["targets"], slice(end - spec["known"], end),
            slice(end, spec["channels"]) if spec["observed"] else None,
            {name: np.array(table, np.float32) for name, table in constants.items()})


@dataclass(frozen=True)
class RowView:
    """Stored rows as they are: sequences with targets.

    Attributes:
        part: stored rows with a ``length`` each, in steps of the input.
        inputs: columns of lists -> numbers a step, or 0 for one number without an axis of its own.
        targets: columns -> what they hold: ``row`` (a number, or a list of one size, a row), ``step`` (a number a step;
            padding becomes -1), ``list`` (whole numbers, any count a row; padding becomes -1), or a count K (a list of
            whole numbers below K a row, which becomes K zeros and ones).
    """

    part: Part
    inputs: Mapping[str, int]
    targets: Mapping[str, str | int]
    follows: None = None

    @cached_property
    def rows(self) -> Ids:
        return np.array([s.rows for s in self.part.shards], np.int64)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        return self.part.column("length").astype(np.int32)

    def needs(self, shards: Ids) -> Ids:
        return np.flatnonzero(np.isin(self.part.shard_of, shards))

    def open(self, stored: Ids, table: pa.Table) -> RowReader:
        return RowReader(stored, table, self.inputs, self.targets)


class RowReader:
    """Stored rows side by side.

    Args:
        stored: (R,) their numbers, ascending.
        table: of them.
        inputs, targets: see RowView.
    """

    def __init__(self, stored: Ids, table: pa.Table, inputs: Mapping[str, int],
                 targets: Mapping[str, str | int]) -> None:
        self.stored, self.targets = stored, targets
        self.steps = table["length"].to_numpy().astype(np.int64)
        self.runs = {name: Runs(flat_of(table[name]).reshape(-1, width) if width else flat_of(table[name]), self.steps)
                     for name, width in inputs.items()}
        self.told: dict[str, Any] = {}
        for name, kind in targets.items():
            if kind == "step":
                self.told[name] = Runs(flat_of(table[name]), self.steps)
            elif kind == "list":
                self.told[name] = Runs(flat_of(table[name]), np.diff(offsets_of(table[name])))
            elif kind == "row":
                column = _column(table[name])
                self.told[name] = column.astype(np.int64) if column.dtype.kind == "i" else column
            else:
                self.told[name] = (flat_of(table[name]), offsets_of(table[name]))

    def take(self, ids: Ids) -> Fields:
        """Each input (B, T) or (B, T, C), padded with 0; each target (B,), (B, K), (B, T) or (B, U)."""
        rows = np.searchsorted(self.stored, ids)
        steps = self.steps[rows]
        targets: dict[str, NDArray[Any]] = {}
        for name, kind in self.targets.items():
            told = self.told[name]
            if kind in ("step", "list"):
                targets[name] = told.take(rows, padding=-1).astype(np.int64)
            else:
                targets[name] = told[rows] if kind == "row" else _ones(told[0], told[1], rows, int(kind))
        return {"inputs": {name: run.take(rows) for name, run in self.runs.items()}, "targets": targets,
                "lengths": dict.fromkeys(self.runs, steps)}


class Runs:
    """Sequences of unequal length in `flat` (steps, ...), from `place` on, by default one after the other."""

    def __init__(self, flat: NDArray[Any], steps: Ids, place: Ids | None = None) -> None:
        self.flat, self.steps, self.place = flat, steps, np.cumsum(steps) - steps if place is None else place
        assert place is not None or int(steps.sum()) == len(flat)

    def take(self, rows: Ids, *, padding: int = 0) -> NDArray[Any]:
        """(B, T, ...): the sequences `rows`, padded to the longest.

        Each row is copied as one run of T steps, the end of which belongs to rows after it and is then padded; a row
        too near the end of `flat` for that is copied by itself.
        """
        steps, place = self.steps[rows], self.place[rows]
        width = int(steps.max())
        count = len(self.flat) - width + 1
        stride = self.flat.strides[0]
        windows = np.lib.stride_tricks.as_strided(self.flat, (count, width, *self.flat.shape[1:]),
                                                  (stride, *self.flat.strides), writeable=False)
        out: NDArray[Any] = windows[np.minimum(place, count - 1)]
        for i in np.flatnonzero(place > count - 1):
            out[i, :steps[i]] = self.flat[place[i]:place[i] + steps[i]]
        if int(steps.min()) < width:
            out[np.arange(width) >= steps[:, None]] = padding
        return out


def _ones(flat: Ids, offsets: Ids, rows: Ids, count: int) -> NDArray[np.float32]:
    """(B, count): 1 at the numbers of each row's list."""
    out = np.zeros((rows.size, count), np.float32)
    sizes = offsets[rows + 1] - offsets[rows]
    place = np.repeat(offsets[rows] - (np.cumsum(sizes) - sizes), sizes) + np.arange(int(sizes.sum()))
    out[np.repeat(np.arange(rows.size), sizes), flat[place]] = 1
    return out


def offsets_of(column: pa.ChunkedArray) -> Ids:
    """(R + 1,) where each list begins in what `flat_of` gives, and the end."""
    sizes = pc.list_value_length(column).to_numpy().astype(np.int64)
    return np.concatenate([[0], np.cumsum(sizes)])


def flat_of(column: pa.ChunkedArray) -> NDArray[Any]:
    """The numbers of a column of lists, one after the other; not copied where the column is in one piece."""
    values = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    flat: NDArray[Any] = values.flatten().to_numpy(zero_copy_only=True)
    return flat


def _column(column: pa.ChunkedArray) -> NDArray[Any]:
    values = column.combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        flat: NDArray[Any] = values.flatten().to_numpy()
        return flat.reshape(len(values), -1)
    out: NDArray[Any] = values.to_numpy()
    return out
