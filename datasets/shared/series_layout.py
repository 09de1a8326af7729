"""Segments to series: the rows of each series in order, the step of each row, and the steps of each split.

Shapes: L steps of a series, N numeric columns, K categorical columns; "rows" are those of one series in the files.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.shared.frequency import Floats, Frequency, Ints, time_labels
from datasets.shared.options import SPLITS
from datasets.shared.segments import FileList
from datasets.shared.series_options import SeriesOptions, parse_date

Bounds = dict[str, tuple[int, int]]  # split -> (first step, step after the last one)


# Maximum steps of a series with gaps: so many for each of its rows, or for few rows so many in any case. Prices of
# markets that are closed at night and at weekends have 5 steps a row, and a quarterly series in days has 91. A hundred
# keeps time and memory in proportion to the data; with less than one row in a hundred steps there is almost nothing to
# learn from. A few rows may be further apart, such as some readings a minute long in two months (86,400 steps): 1 MB a
# column. More is probably a frequency that is too fine, or a wrong date.
STEPS_PER_ROW = 100
STEPS_OF_FEW = 100_000


@dataclass
class RawSeries:
    """The rows of one series, in the order of the files.

    Attributes:
        name: of the series; "" without a series column.
        files: all raw files.
        file, rows: (rows,) index of each row's file, and its number there.
        times: (rows,) int64; empty without a time column, when each row is a step.
        style: the strftime format of the times; "" for whole numbers.
        values: (rows, N), NaN where missing.
        names: (rows, K) object, None where missing.
    """

    name: str
    files: FileList
    file: Ints
    rows: Ints
    times: Ints
    style: str
    values: Floats
    names: NDArray[np.object_]

    def __str__(self) -> str:
        return f"series {self.name!r}" if self.name else "the series"

    def at(self, index: int) -> str:
        """File, number and series of a row, for messages."""
        series = f" (series {self.name!r})" if self.name else ""
        return f"{self.files.uris[self.file[index]]}, row {self.rows[index]}{series}"

    def time(self, index: int) -> str:
        """The time of a row as text."""
        return time_labels(self.times[index : index + 1], self.style)[0]


def raw_series(segments: pa.Table, files: FileList) -> Iterator[RawSeries]:
    """The series of a table that has all of their segments, sorted by name."""
    segments = segments.combine_chunks()
    if not len(segments):
        raise ValueError(
            f"{', '.join(files.uris[:3])}{', ...' if len(files.uris) > 3 else ''} "
            f"hold{'s' if len(files.uris) == 1 else ''} no rows"
        )
    first_row = pc.list_element(segments["rows"], 0)
    order = pc.sort_indices(
        segments.append_column("row", first_row),
        sort_keys=[("series", "ascending"), ("file", "ascending"), ("row", "ascending")],
    )
    segments = segments.take(order).combine_chunks()
    names = segments["series"].to_numpy()
    edges = np.concatenate([[0], np.flatnonzero(names[1:] != names[:-1]) + 1, [len(names)]])
    for a, b in itertools.pairwise(edges.tolist()):
        of_series = segments.slice(a, b - a)
        lengths = pc.list_value_length(of_series["rows"]).to_numpy()
        rows = pc.list_flatten(of_series["rows"]).to_numpy()
        yield RawSeries(
            names[a],
            files,
            np.repeat(of_series["file"].to_numpy().astype(np.int64), lengths),
            rows,
            pc.list_flatten(of_series["times"]).to_numpy(),
            _one_style(of_series, files),
            pc.list_flatten(of_series["values"]).to_numpy().reshape(len(rows), -1),
            np.array(pc.list_flatten(of_series["names"]).to_pylist(), dtype=object).reshape(len(rows), -1),
        )


def _one_style(segments: pa.Table, files: FileList) -> str:
    """The longest of the formats in which the times of a series are written."""
    styles = segments["style"].to_pylist()

    def kind(style: str) -> str:
        return ("dates with a time zone" if style.endswith("Z") else "dates") if style else "whole numbers"

    for style, file in zip(styles, segments["file"].to_pylist(), strict=True):
        if kind(style) != kind(styles[0]):
            raise ValueError(
                f"{files.uris[file]}: the time is {kind(style)} here, but {kind(styles[0])} before; "
                f"write all in one way"
            )
    longest: str = max(styles, key=len)
    return longest


@dataclass
class Layout:
    """The steps of a series.

    Attributes:
        steps: (rows,) the step of each row.
        grid: (L,) the time of each step.
        frequency: the distance between steps.
        kind: what the times are; "row" without a time column.
    """

    steps: Ints
    grid: Ints
    frequency: Frequency
    kind: Literal["timestamp", "integer", "row"]

    @property
    def length(self) -> int:
        return len(self.grid)


def layout_of(dataset: SeriesOptions, raw: RawSeries, known: str | int = "auto") -> Layout:
    """The steps of a series' rows, whose times must be in order.

    Args:
        dataset: the options.
        raw: the series.
        known: the frequency to use if the options do not set one, instead of inferring it from this series.

    Raises:
        ValueError: times are not in order or do not lie on steps, or steps are missing where this is an error.
    """
    if dataset.time is None:
        _check_no_blanks(dataset, raw)
        steps = np.arange(len(raw.rows), dtype=np.int64)
        return Layout(steps, steps, Frequency(1, "step"), "row")
    kind: Literal["timestamp", "integer"] = "timestamp" if raw.style else "integer"
    ranges = _rows_by_file(raw) if dataset.time_restarts else [(0, len(raw.rows))]
    for a, b in ranges:
        _check_order(raw, a, b)
    given = Frequency.parse(known if dataset.frequency == "auto" else dataset.frequency)
    longest = max(ranges, key=lambda span: span[1] - span[0])
    frequency = given or Frequency.infer(raw.times[slice(*longest)], kind)
    if (frequency.unit == "step") != (kind == "integer"):
        raise ValueError(
            f"{raw}: dataset.frequency is {frequency}, but the time is "
            f"{'whole numbers' if kind == 'integer' else 'dates'}; "
            f"{'give a whole number' if kind == 'integer' else 'give one such as 1h or 1D'}, or auto"
        )
    if dataset.calendar and kind == "integer":
        raise ValueError(f"dataset.calendar needs dates, but the time of {raw} is whole numbers; leave calendar out")
    steps = np.empty(len(raw.rows), dtype=np.int64)
    start = 0
    for a, b in ranges:
        steps[a:b] = start + _steps(dataset, raw, a, b, frequency)
        start = int(steps[b - 1]) + 1
    _check_length(dataset, raw, steps, frequency)
    return Layout(steps, frequency.grid(raw.times[slice(*ranges[0])], start), frequency, kind)


def _check_length(dataset: SeriesOptions, raw: RawSeries, steps: Ints, frequency: Frequency) -> None:
    """Raise ValueError for steps (rows,) with gaps so long that filling them would make far more steps than rows."""
    rows, length = len(steps), int(steps[-1]) + 1
    most = max(STEPS_OF_FEW, STEPS_PER_ROW * rows)
    if length > most:
        i = int(np.argmax(np.diff(steps))) + 1
        raise ValueError(
            f"{raw.at(i)}: dataset.missing={dataset.missing} would make {length:,} steps of {frequency} of {rows:,} "
            f"rows ({raw.time(0)} to {raw.time(rows - 1)}), of which {length - rows:,} have no row; at most {most:,} "
            f"can be made ({STEPS_PER_ROW} a row, or {STEPS_OF_FEW:,}). The longest gap is of "
            f"{steps[i] - steps[i - 1] - 1:,} steps, between {raw.time(i - 1)} and {raw.time(i)}: correct the time if "
            f"it is wrong, set dataset.frequency to the time between most rows, or cut the series at the gap into "
            f"series of different names"
        )


def _check_no_blanks(dataset: SeriesOptions, raw: RawSeries) -> None:
    """Raise for a blank row in a table without times: it is not read, so all later steps would shift by one."""
    if dataset.series is None:
        gaps = np.flatnonzero((np.diff(raw.rows) > 1) & (np.diff(raw.file) == 0))
        if gaps.size:
            i = int(gaps[0])
            raise ValueError(
                f"{raw.files.uris[raw.file[i]]}, row {raw.rows[i] + 1}: blank, but without dataset.time "
                f"each row is a step; remove the row, or write a missing value such as NA in it"
            )


def _rows_by_file(raw: RawSeries) -> list[tuple[int, int]]:
    """(first, end) of the rows of each file."""
    edges = [0, *(np.flatnonzero(np.diff(raw.file)) + 1).tolist(), len(raw.file)]
    return list(itertools.pairwise(edges))


def _check_order(raw: RawSeries, a: int, b: int) -> None:
    """Raise if the times of rows a to b - 1 do not increase."""
    wrong = np.flatnonzero(np.diff(raw.times[a:b]) <= 0)
    if not wrong.size:
        return
    i = a + int(wrong[0]) + 1
    before = f"{raw.at(i - 1)}" if raw.file[i] != raw.file[i - 1] else f"row {raw.rows[i - 1]}"
    if raw.times[i] == raw.times[i - 1]:
        raise ValueError(
            f"{raw.at(i)}: time {raw.time(i)} occurs twice, also in {before}; remove one of the rows"
            f"{'' if raw.name else ', or name the column of the series (dataset.series)'}"
        )
    raise ValueError(
        f"{raw.at(i)}: time {raw.time(i)} comes after {raw.time(i - 1)} of {before}; sort the rows by time"
        f"{'' if raw.name else ', or name the column of the series (dataset.series)'}"
    )


def _steps(dataset: SeriesOptions, raw: RawSeries, a: int, b: int, frequency: Frequency) -> Ints:
    """The steps of rows a to b - 1, counted from the first of them; raises for times between steps, and for gaps."""
    steps, fits = frequency.steps(raw.times[a:b])
    if not fits.all():
        i = a + int(np.flatnonzero(~fits)[0])
        raise ValueError(
            f"{raw.at(i)}: time {raw.time(i)} does not lie on a step of {frequency} from {raw.time(a)}; "
            f"correct it, or set dataset.frequency"
        )
    gaps = np.flatnonzero(np.diff(steps) > 1)
    if gaps.size and dataset.missing == "error":
        i, total = a + int(gaps[0]) + 1, int(steps[-1]) + 1 - (b - a)
        more = f" ({total} in {gaps.size} gaps in all)" if gaps.size > 1 else ""
        raise ValueError(
            f"{raw.at(i)}: {int(steps[i - a] - steps[i - a - 1]) - 1} steps of {frequency} are missing "
            f"between {raw.time(i - 1)} and {raw.time(i)}{more}; add the rows, or set dataset.missing to "
            f"interpolate or mask"
        )
    return steps


# Splits


def split_bounds(dataset: SeriesOptions, raw: RawSeries, layout: Layout) -> Bounds:
    """The steps of each split.

    Raises:
        ValueError: the series is too short for a split, or does not occur in the files of one.
    """
    if isinstance(dataset.path, dict):
        bounds = _bounds_of_files(dataset, raw, layout)
    else:
        bounds = _cut(dataset, str(raw), layout.grid, layout.kind)
    for name, (a, b) in bounds.items():
        if a >= b:
            raise ValueError(
                f"{raw} has {layout.length} steps, of which dataset.split {dataset.split} leaves none for "
                f"{name}; change the split, or leave the series out"
            )
    return bounds


def _bounds_of_files(dataset: SeriesOptions, raw: RawSeries, layout: Layout) -> Bounds:
    assert isinstance(dataset.path, dict)
    split_of = np.array([SPLITS.index(split) for split in raw.files.splits])[raw.file]
    bounds: Bounds = {}
    start = 0
    for i, split in enumerate(SPLITS):
        if split not in dataset.path:
            continue
        rows = np.flatnonzero(split_of == i)
        if not rows.size:
            raise ValueError(
                f"{raw} has no rows in the {split} files ({dataset.path[split]}); each series must be in all of them"
            )
        end = int(layout.steps[rows[-1]]) + 1
        bounds[split] = (start, end)
        start = end
    if "validation" not in bounds:
        cut = _cut(dataset, f"the train part of {raw}", layout.grid[: bounds["train"][1]], layout.kind)
        bounds = {**cut, **{split: span for split, span in bounds.items() if split != "train"}}
    return bounds


def _cut(dataset: SeriesOptions, what: str, grid: Ints, kind: str) -> Bounds:
    """The steps of each split by the option split.

    Args:
        dataset: the options.
        what: the series in words, for messages.
        grid: (L,) the times of the steps.
        kind: of these times, see Layout.
    """
    split, length = dataset.split, len(grid)
    names = [name for name in SPLITS if name in split]
    if isinstance(split["validation"], str):
        if kind != "timestamp":
            raise ValueError(
                f"dataset.split has dates, but the time of {what} is whole numbers; give counts or fractions"
            )
        starts = [int(np.searchsorted(grid, parse_date(str(split[name])))) for name in names]
        edges = [0, *starts, length]
    elif isinstance(split["validation"], float):
        shares = [float(split[name]) for name in names]
        shares = shares if "train" in split else [1 - sum(shares), *shares]
        edges = [0, *(math.floor(length * share + 1e-6) for share in np.cumsum(shares))]
    else:
        counts = [int(split[name]) for name in names]
        counts = counts if "train" in split else [length - sum(counts), *counts]
        edges = [0, *np.cumsum(counts).tolist()]
        if edges[-1] > length or counts[0] < 1:
            raise ValueError(
                f"{what} has {length} steps, too few for dataset.split {split}; use smaller counts "
                f"or fractions, or leave the series out"
            )
    names = [name for name in SPLITS if name == "train" or name in split]
    return {name: (edges[i], edges[i + 1]) for i, name in enumerate(names)}
