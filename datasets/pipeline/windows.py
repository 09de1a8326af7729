"""Windows of stored series: which there are, and how they are cut from the chunks in which a series is stored.

A window is (series, start): `lookback` input steps from `start` on, then `horizon` target steps. Windows are never
stored; they are cut from the chunks in memory as one strided copy.

Shapes: S series, R chunks (stored rows), B windows of a batch, C channels, N targets, K channels known in the future.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.pipeline.views import Fields, Ids, flat_of, sum_per_shard

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Part


def split_windows(
    state: Mapping[str, Any], split: str, lookback: int, horizon: int, *, stride: int = 1
) -> tuple[Ids, Ids]:
    """The windows of a split: those whose `horizon` target steps [start + lookback, ...) all lie in it.

    Inputs of validation and test windows reach back into the split before. A stride counts back from the split's end,
    so that with a season as stride the windows are in the phase in which the next split begins.

    Returns:
        (first, count), (S,) int64 each: the windows of series s start at first[s] + stride * k, k < count[s].

    Raises:
        ValueError: the split does not exist, or a series has no window in it.
    """
    if min(lookback, horizon, stride) < 1:
        raise ValueError(f"lookback={lookback}, horizon={horizon} and stride={stride} must be at least 1")
    if split not in state["series"][0]["bounds"]:
        raise ValueError(f"the prepared data has no {split} split, only {', '.join(state['series'][0]['bounds'])}")
    bounds = np.array([summary["bounds"][split] for summary in state["series"]], dtype=np.int64)  # (S, 2)
    first, last = np.maximum(bounds[:, 0] - lookback, 0), bounds[:, 1] - lookback - horizon
    count = np.maximum((last - first) // stride + 1, 0)
    first = np.where(count > 0, first + (last - first) % stride, first)  # so that the last window is one of them
    if not count.all():
        s = int(np.flatnonzero(count == 0)[0])
        more = int((count == 0).sum()) - 1
        name = f"series {state['series'][s]['name']!r}" if state["series"][s]["name"] else "the series"
        raise ValueError(
            f"{name}{f' (and {more} more)' if more else ''} has no window in {split}: "
            f"that split is steps {bounds[s, 0]} to {bounds[s, 1]} of {state['series'][s]['length']}, and a window "
            f"needs lookback + horizon = {lookback} + {horizon} = {lookback + horizon} steps, the last {horizon} of "
            f"them inside; use a shorter task.lookback or task.horizon, a longer split, or leave the series out"
        )
    return first, count


def chunk_windows(first: Ids, count: Ids, series: Ids, offset: Ids, length: Ids, *, stride: int = 1) -> tuple[Ids, Ids]:
    """The windows that start in each stored chunk.

    Args:
        first, count: (S,) from `split_windows`, with the same stride.
        series, offset, length: (R,) of the stored chunks; `series` is the index in state["series"].

    Returns:
        (start, number), (R,) int64 each: windows of chunk r start at steps start[r] + stride * k of the series,
        k < number[r].
    """
    begin, total = first[series], count[series]
    low = np.clip(-((begin - offset) // stride), 0, total)  # ceil((offset - begin) / stride)
    high = np.clip(-((begin - offset - length) // stride), 0, total)
    return begin + stride * low, high - low


@dataclass(frozen=True)
class WindowView:
    """Windows of `lookback` + `horizon` steps, cut from series that are stored in chunks.

    Attributes:
        part: chunks of series; a series' chunks follow each other.
        series: (R,) number of each chunk's series in the fitted state.
        offset, length: (R,) first step of each chunk within its series, and its number of steps.
        first, count: (S,) the windows of series s start at first[s] + stride * k, k < count[s].
        channels: numbers stored for each step.
        targets: how many of the leading channels are forecast.
        known: the channels known in the future too (calendar), as a slice.
        observed: channels that say whether each target was measured, as a slice; None where all were.
        constants: arrays by name, (S, N), passed to the task with each window.
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
    continues_previous: None = None

    @cached_property
    def windows_by_chunk(self) -> tuple[Ids, Ids]:
        """(R,) the start of the first window in each chunk, and how many windows start there."""
        return chunk_windows(self.first, self.count, self.series, self.offset, self.length, stride=self.stride)

    @cached_property
    def rows(self) -> Ids:
        return sum_per_shard(self.part, self.windows_by_chunk[1])

    @cached_property
    def first_id(self) -> Ids:
        """(R,) id of the first window of each chunk."""
        counts = self.windows_by_chunk[1]
        return np.cumsum(counts) - counts

    def stored_rows(self, shards: Ids) -> Ids:
        """Chunks in which a window of `shards` starts, and those into which such windows extend."""
        start, count = self.windows_by_chunk
        chunk = np.flatnonzero(np.isin(self.part.shard_of, shards) & (count > 0))
        last = start[chunk] + self.stride * (count[chunk] - 1)
        end = last + self.lookback + self.horizon  # of the chunk's last window
        chunks = [chunk]
        while chunk.size:
            beyond = end > self.offset[chunk] + self.length[chunk]
            chunk, end = chunk[beyond] + 1, end[beyond]
            chunks.append(chunk)
        return np.unique(np.concatenate(chunks))

    def reader(self, stored: Ids, table: pa.Table) -> WindowReader:
        chunk_start = np.full(self.offset.size, -1, np.int64)
        chunk_start[stored] = np.cumsum(self.length[stored]) - self.length[stored]
        return WindowReader(self, flat_of(table["values"]), chunk_start)


@dataclass(frozen=True)
class WindowReader:
    """Chunks in one flat array; neighbours of a series are adjacent, so a window is one slice of it.

    Attributes:
        view: of the windows.
        flat: (steps * C,) the numbers of the chunks.
        chunk_start: (R,) the step of `flat` at which each chunk begins; -1 for chunks that are not in memory.
    """

    view: WindowView
    flat: NDArray[np.float32]
    chunk_start: Ids

    def read(self, ids: Ids) -> Fields:
        """values (B, lookback, C), known (B, horizon, K); target (B, horizon, N), observed, constants (B, N)."""
        v = self.view
        first_start, _ = v.windows_by_chunk
        chunk = np.searchsorted(v.first_id, ids, side="right") - 1
        start = self.chunk_start[chunk] + first_start[chunk] - v.offset[chunk] + v.stride * (ids - v.first_id[chunk])
        inputs = {"values": self._steps(start, v.lookback)}
        future = self._steps(start + v.lookback, v.horizon)
        if v.known.start < v.known.stop:
            inputs["known"] = future[..., v.known]
        targets: dict[str, NDArray[Any]] = {"target": future[..., : v.targets]}
        if v.observed is not None:
            targets["observed"] = future[..., v.observed]
        series = v.series[chunk]
        targets |= {name: table[series] for name, table in v.constants.items()}
        targets["series"] = series
        return {"inputs": inputs, "targets": targets, "lengths": {"values": np.full(ids.size, v.lookback, np.int64)}}

    def _steps(self, start: Ids, steps: int) -> NDArray[np.float32]:
        """(B, steps, C): the `steps` steps from each of `start` (B,) on, copied once."""
        width, one = steps * self.view.channels, self.view.channels * self.flat.itemsize
        count = max(0, (self.flat.size - width) // self.view.channels + 1)
        slices = np.lib.stride_tricks.as_strided(self.flat, (count, width), (one, self.flat.itemsize), writeable=False)
        return slices[start].reshape(-1, steps, self.view.channels)
