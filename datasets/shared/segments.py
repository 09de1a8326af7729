"""Segments: the rows of one series in one block of a file, with their times and values parsed.

Shapes: L rows of a block, N numeric columns, K categorical columns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datasets.reading import errors, formats
from datasets.shared.frequency import DAY, HOUR, SECOND, Floats, Ints, month_start
from datasets.shared.series_options import COMPONENTS, SeriesOptions
from datasets.shared.splits import SplitFiles


@dataclass(frozen=True)
class FileList:
    """The raw files; blocks and segments refer to them by index.

    Attributes:
        uris: of each file.
        splits: the split of each file; "" where its rows are split later.
    """

    uris: list[str]
    splits: list[str]

    @staticmethod
    def of(files: SplitFiles) -> FileList:
        return FileList([source.uri for source, _ in files], [split for _, split in files])


SEGMENT = pa.schema(
    [
        ("series", pa.string()),
        ("file", pa.int32()),
        ("style", pa.string()),
        ("rows", pa.list_(pa.int64())),
        ("times", pa.list_(pa.int64())),
        ("values", pa.list_(pa.float64())),
        ("names", pa.list_(pa.string())),
    ]
)


@errors.in_task
def to_segments(dataset: SeriesOptions, files: FileList, block: pa.Table) -> Iterator[pa.Table]:
    """`parse_segments` as a task of Ray Data."""
    yield parse_segments(dataset, files, block)


def parse_segments(dataset: SeriesOptions, files: FileList, block: pa.Table) -> pa.Table:
    """The segments of a block of one file: a row for each series, with the columns of SEGMENT.

    Raises:
        ValueError: a value or time cannot be parsed; the message names file, row and column.
    """
    if not len(block):
        return SEGMENT.empty_table()
    block = block.combine_chunks()
    origin = _Origin(block["__file"][0].as_py(), block["__row"].to_numpy())
    times, style = _times(dataset, block, origin)
    values = np.stack([_numbers(dataset, block, column, origin) for column in dataset.numeric], axis=1)
    names = [_names(dataset, block, column) for column in dataset.categorical]
    series, codes = _series_codes(dataset, block, origin)
    order = np.argsort(codes, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(series)))])  # (series + 1,)

    def lists(flat: Any, width: int) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(ends * width, pa.int32()), pa.array(flat))

    names_in_order = np.array(names, dtype=object).reshape(len(names), len(block)).T[order].ravel()
    return pa.table(
        [
            pa.array(series, pa.string()),
            pa.array([files.uris.index(origin.file)] * len(series), pa.int32()),
            pa.array([style] * len(series), pa.string()),
            lists(origin.rows[order], 1),
            lists(times[order], 1) if times is not None else pa.array([[]] * len(series), pa.list_(pa.int64())),
            lists(values[order].ravel(), values.shape[1]),
            lists(pa.array(names_in_order, pa.string()), len(names)),
        ],
        schema=SEGMENT,
    )


@dataclass(frozen=True)
class _Origin:
    """The file of a block, and the numbers of its rows there."""

    file: str
    rows: Ints

    def error(self, index: int, text: str) -> ValueError:
        return ValueError(f"{self.file}, row {self.rows[index]}: {text}")


def _series_codes(dataset: SeriesOptions, block: pa.Table, origin: _Origin) -> tuple[list[str], Ints]:
    """(names of the series, (L,) index of each row's name)."""
    if dataset.series is None:
        return [""], np.zeros(len(block), dtype=np.int64)
    column = trimmed_text(block[dataset.series])
    blank = pc.fill_null(pc.is_in(column, value_set=pa.array(dataset.missing_values, pa.string())), True)
    blank = pc.or_(blank, column.is_null())
    if (bad := pc.index(blank, True).as_py()) >= 0:
        raise origin.error(bad, f"no name of a series in column {dataset.series!r}; fill it in or remove the row")
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def trimmed_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values as text, without blanks at their ends."""
    return pc.utf8_trim_whitespace(pc.cast(column, pa.string()))


def _names(dataset: SeriesOptions, block: pa.Table, column: str) -> list[str | None]:
    """The names in a categorical column; None where missing."""
    text = trimmed_text(block[column])
    missing = pc.is_in(text, value_set=pa.array(dataset.missing_values, pa.string()))
    names: list[str | None] = pc.if_else(missing, pa.scalar(None, pa.string()), text).to_pylist()
    return names


def _numbers(dataset: SeriesOptions, block: pa.Table, column: str, origin: _Origin) -> Floats:
    """(L,) float64: the numbers of a column; NaN where missing."""
    data = block[column]
    if pa.types.is_string(data.type) or pa.types.is_large_string(data.type) or pa.types.is_dictionary(data.type):
        data = trimmed_text(data)
        missing = pc.is_in(data, value_set=pa.array(dataset.missing_values, pa.string()))
        data = pc.if_else(missing, pa.scalar(None, pa.string()), data)
    elif pa.types.is_boolean(data.type):
        data = pc.cast(data, pa.uint8())
    try:
        parsed = _parsed(data)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if not pa.types.is_string(data.type):
            raise ValueError(
                f"{origin.file}: column {column!r} holds {data.type}, not numbers; "
                f"leave it out, or list it in categorical"
            ) from error
        bad = first_bad(data, _parsed)
        raise origin.error(
            bad,
            f"{data[bad].as_py()!r} in column {column!r} is not a number; correct it, list it in "
            f"missing_values if it means a missing one, or list the column in categorical",
        ) from None
    values: Floats = np.array(parsed.to_numpy(), dtype=np.float64)
    for text in dataset.missing_values:
        if (number := formats.number(text)) is not None:
            values[values == number] = np.nan
    if (infinite := np.flatnonzero(np.isinf(values))).size:
        raise origin.error(
            infinite[0],
            f"{values[infinite[0]]} in column {column!r} is infinite; correct it, or list it in missing_values",
        )
    return values


def _parsed(data: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers, or texts of numbers, as float64; ArrowInvalid for other texts."""
    if pa.types.is_string(data.type) and pc.all(pc.match_substring_regex(data, formats.NUMERAL)).as_py() is False:
        raise pa.ArrowInvalid("a text that is no number")
    return pc.cast(data, pa.float64(), safe=False)


def first_bad(data: pa.ChunkedArray, parse: Callable[[pa.ChunkedArray], Any]) -> int:
    """Index of the first value that `parse` refuses, by bisection; at least one must be refused."""
    low, high = 0, len(data)  # data[:low] parses, data[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            parse(data.slice(low, middle - low))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


# Times of a block


def _times(dataset: SeriesOptions, block: pa.Table, origin: _Origin) -> tuple[Ints | None, str]:
    """((L,) microseconds or whole numbers, the strftime format of the times, "" for whole numbers)."""
    if dataset.time is None:
        return None, ""
    if isinstance(dataset.time, list):
        return _times_of_parts(dataset.time, block, origin)
    data, column = block[dataset.time], dataset.time
    if pa.types.is_dictionary(data.type):
        data = pc.cast(data, pa.string())
    if data.null_count:
        raise origin.error(pc.index(data.is_null(), True).as_py(), f"no time in column {column!r}")
    if dataset.time_format is not None and not pa.types.is_temporal(data.type):
        return _times_by_format(trimmed_text(data), column, dataset.time_format, origin), dataset.time_format
    if pa.types.is_string(data.type) or pa.types.is_large_string(data.type):
        return _times_of_text(trimmed_text(data), column, origin)
    if pa.types.is_integer(data.type):
        return data.to_numpy().astype(np.int64), ""
    if pa.types.is_temporal(data.type) and not pa.types.is_time(data.type) and not pa.types.is_duration(data.type):
        style = "%Y-%m-%d" if pa.types.is_date(data.type) else "%Y-%m-%dT%H:%M:%S"
        zone = "Z" if getattr(data.type, "tz", None) else ""
        stamps = pc.cast(data, pa.timestamp("us", getattr(data.type, "tz", None)), safe=False)
        return pc.cast(stamps, pa.int64()).to_numpy(), style + zone
    raise ValueError(
        f"{origin.file}: column {column!r} holds {data.type}, which is no time; it must be text, "
        f"timestamp, date or whole number"
    )


def _times_of_text(text: pa.ChunkedArray, column: str, origin: _Origin) -> tuple[Ints, str]:
    if pc.all(pc.match_substring_regex(text, r"^-?\d+$")).as_py():
        return pc.cast(text, pa.int64()).to_numpy(), ""
    first, lengths = text[0].as_py(), pc.utf8_length(text)
    zone = "Z" if re.search(r"(Z|[+-]\d\d:?\d\d)$", first) else ""  # written in UTC
    kind = pa.timestamp("us", "UTC" if zone else None)
    try:
        times = pc.cast(text, kind)
    except pa.ArrowInvalid:
        bad = first_bad(text, lambda part: pc.cast(part, kind))
        raise origin.error(
            bad,
            f"{text[bad].as_py()!r} in column {column!r} is no time as ISO 8601 writes it "
            f"(2024-01-31 12:00:00); correct it, or set time_format",
        ) from None
    longest = text[pc.index(lengths, pc.max(lengths)).as_py()].as_py()  # midnight may be written as the date alone
    minutes = re.fullmatch(r".{11}\d\d(:\d\d)?", longest)
    clock = longest[10:11] + ("" if len(longest) <= 10 else "%H:%M" if minutes else "%H:%M:%S")
    fraction = ".%f" if "." in longest else ""
    return pc.cast(times, pa.int64()).to_numpy(), f"%Y-%m-%d{clock}{fraction}{zone}"


def _times_by_format(text: pa.ChunkedArray, column: str, style: str, origin: _Origin) -> Ints:
    times = pc.strptime(text, format=style, unit="us", error_is_null=True)
    if times.null_count:
        bad = pc.index(times.is_null(), True).as_py()
        raise origin.error(
            bad, f"{text[bad].as_py()!r} in column {column!r} does not fit time_format {style!r}; correct one of them"
        )
    parsed: Ints = pc.cast(times, pa.int64()).to_numpy()
    return parsed


def _times_of_parts(columns: list[str], block: pa.Table, origin: _Origin) -> tuple[Ints, str]:
    """Times from columns of year, month, day, ..., as of `_times`."""
    parts = np.ones((6, len(block)), dtype=np.int64)
    parts[3:] = 0
    for i, column in enumerate(columns):
        text = trimmed_text(block[column])
        whole = pc.fill_null(pc.match_substring_regex(text, r"^\d{1,4}$"), False)
        if (bad := pc.index(whole, False).as_py()) >= 0:
            raise origin.error(bad, f"{text[bad].as_py()!r} in column {column!r} is no {COMPONENTS[i]}")
        parts[i] = pc.cast(text, pa.int64()).to_numpy()
    year, month, day, hour, minute, second = parts
    start = (year - 1970) * 12 + month - 1
    days = (month_start(start + 1) - month_start(start)) // DAY
    for i, (low, high) in enumerate([(1, 9999), (1, 12), (1, days), (0, 23), (0, 59), (0, 59)]):
        if (wrong := np.flatnonzero((parts[i] < low) | (parts[i] > high))).size:
            raise origin.error(
                wrong[0],
                f"{parts[i, wrong[0]]} in column {columns[i]!r} is no {COMPONENTS[i]}"
                f"{' of that month' if i == 2 else ''}",
            )
    style = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S")[len(columns) - 1]
    return month_start(start) + (day - 1) * DAY + hour * HOUR + minute * 60 * SECOND + second * SECOND, style
