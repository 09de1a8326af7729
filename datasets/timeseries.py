"""Time series: tables whose rows are the steps of one or many series, in order of time.

Words: a series has steps 0, 1, ... at a fixed frequency; a row of a file fills one step. A segment is what one block of
a file holds of one series. A stored row (chunk) is a run of steps, scaled, time-major. Windows are never stored:
a window is (series, start), see `windows`.

Shapes: L steps of a series, C channels, N numeric ones (targets, then covariates), K categorical columns.
"""

from __future__ import annotations

import difflib
import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets import files
from datasets.files import Source
from datasets.views import SeriesDataset

if TYPE_CHECKING:
    import ray.data

Calendar = Literal["minute", "hour", "weekday", "monthday", "yearday", "month"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
State = dict[str, Any]          # JSON-able
Bounds = dict[str, tuple[int, int]]

PARTS = ("train", "validation", "test")
MISSING_VALUES = ["", "NA", "NaN", "nan", "null"]
CHUNK_BYTES = 1 << 20           # of one stored row
SMALL_BYTES = 256 << 20         # of raw files; up to here one task takes all series, which saves a shuffle
SHUFFLE_BYTES = 64 << 20        # of raw files a partition of that shuffle
# Most steps of a series with gaps: so many for each of its rows, or of few rows so many in any case. Prices of markets
# that are closed at night and at weekends have 5 steps a row, and a row each quarter in a series of days 91. A hundred
# times what is there keeps time and memory in proportion to the data; where less than a step in a hundred has a row,
# there is next to nothing to learn from. Few rows may lie further apart, as some readings a minute long in two months
# (86,400 steps): 1 MB a column. More is most likely a frequency that is too fine, or a wrong date.
STEPS_A_ROW = 100
STEPS_OF_FEW = 100_000
MAX_CATEGORIES = 1000           # of one column; more is most likely a mistake
SUFFIXES = (*files.CSV, *(csv + end for csv in files.CSV for end in files.COMPRESSED), *files.PARQUET)

SECOND = 1_000_000              # time is counted in microseconds since 1970
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
UNITS = {"W": 7 * DAY, "D": DAY, "h": HOUR, "min": 60 * SECOND, "s": SECOND, "ms": 1000, "us": 1}
SEASONS = {"1min": 1440, "5min": 288, "10min": 144, "15min": 96, "30min": 48, "1h": 24, "1D": 7, "1W": 52,
           "1M": 12, "3M": 4}
COMPONENTS = ("year", "month", "day", "hour", "minute", "second")


def build(
    path: str | dict[str, str], *, targets: list[str], time: str | list[str] | None = None, series: str | None = None,
    covariates: list[str] | None = None, categorical: list[str] | None = None, calendar: list[Calendar] | None = None,
    split: dict[str, int | float | str] | None = None, missing: Literal["error", "interpolate", "mask"] = "error",
    frequency: str | int = "auto", time_format: str | None = None, time_restarts: bool = False,
    season: int | None = None, scale: Literal["standard", "none"] = "standard",
    missing_values: list[str] = MISSING_VALUES,
) -> TimeSeries:
    """One or many numeric series in CSV or Parquet files, split by time.

    Args:
        path: file, folder, glob or URI; or one of these for each split ({train: ..., test: ...}), whose rows continue
            the series of the same name. Files are read in order of their names.
        targets: columns to forecast.
        time: the column that says when (ISO 8601 text, timestamp, date or whole number); or the columns of year, month,
            day, hour, minute, second, as many of them as there are; without it rows follow each other step by step.
        series: the column that tells series apart; without it all rows are one series.
        covariates: numeric columns known up to the present.
        categorical: columns of names, one channel for each name seen in training (one-hot); others are all zero.
        calendar: parts of the time as channels, a sine and a cosine each; known for the future too.
        split: how each series is cut in time. Counts of steps or fractions: from the start when train is given, else
            validation and test are the end and train the rest. Or the dates at which validation and test start.
            With a path for each split only validation may be given: it is cut from the end of the train files.
        missing: what to do about missing values and steps: refuse them; interpolate linearly in time (nearest value at
            both ends; it looks at later values, also across splits); or mask: the mean, and a channel for each target
            that says 1 where it was observed. Gaps may make 100 steps of each row, or 100,000 of few rows.
        frequency: time between steps: auto (the most common one), 15min, 1h, 1D, 1W, 1M, 1Y, ... or a whole number.
        time_format: strptime format of a time that is not ISO 8601.
        time_restarts: the time column starts anew in each file; steps go on from the file before.
        season: steps of the season that MASE and seasonal baselines use; by default from the frequency (hourly 24).
        scale: standard gives each series and column mean 0 and deviation 1 over its training steps; none leaves values.
        missing_values: texts (and numbers) that stand for a missing value.

    Raises:
        ValueError: for options that contradict each other; the files are not touched yet.
    """
    dataset = TimeSeries(path, list(targets), time, series, list(covariates or []), list(categorical or []),
                         list(calendar or []), dict(split or {}), missing, frequency, time_format, time_restarts,
                         season, scale, list(missing_values))
    _check_columns(dataset)
    _check_split(dataset)
    Frequency.parse(frequency)
    return dataset


@dataclass
class TimeSeries(SeriesDataset):
    """The options of a time-series dataset (see `build`), and what is done by them."""

    path: str | dict[str, str]
    targets: list[str]
    time: str | list[str] | None
    series: str | None
    covariates: list[str]
    categorical: list[str]
    calendar: list[Calendar]
    split: dict[str, int | float | str]
    missing: Literal["error", "interpolate", "mask"]
    frequency: str | int
    time_format: str | None
    time_restarts: bool
    season: int | None
    scale: Literal["standard", "none"]
    missing_values: list[str]
    categories: dict[str, list[str]] = field(default_factory=dict, init=False)      # by column; `encode` finds them
    kind: ClassVar[str] = "timeseries"

    @property
    def numeric(self) -> list[str]:
        """Columns of numbers in order of channels: targets, covariates."""
        return self.targets + self.covariates

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        time = [self.time] if isinstance(self.time, str) else self.time or []
        return list(dict.fromkeys([*time, *([self.series] if self.series else []), *self.numeric, *self.categorical]))

    def inputs(self) -> list[tuple[Source, str]]:
        """The raw files in the order of time, each with the split it holds ("" when `split` says)."""
        paths = self.path if isinstance(self.path, dict) else {"": self.path}
        found = [(source, part) for part in ("", *PARTS) if part in paths
                 for source in files.resolve(paths[part], suffixes=SUFFIXES)]
        part_of: dict[str, str] = {}
        for source, part in found:
            if source.uri in part_of:
                raise ValueError(f"dataset.path: {source.uri} is in both {part_of[source.uri]} and {part}; "
                                 f"each file can be in one split only")
            part_of[source.uri] = part
        return found

    def sources(self) -> list[Source]:
        """The raw files; their fingerprints belong to the key of the prepared data."""
        return [source for source, _ in self.inputs()]

    def options(self) -> dict[str, Any]:
        """What else belongs to that key, as JSON: the options, and the split of each file instead of `path`."""
        options = {item.name: getattr(self, item.name) for item in fields(self) if item.init and item.name != "path"}
        return {**options, "parts": [part for _, part in self.inputs()]}

    def encode(self) -> dict[str, ray.data.Dataset]:
        """Read, check, fit and encode, by Ray Data; no rows come to this process.

        Returns:
            {"series": lazy rows}, each a chunk of a series: `series` string, `offset` int64 (its first step), `length`
            int32, `values` list<float32> (length * C, time-major, scaled), `summary` string: JSON with the first chunk
            of a series, else "". Chunks of a series follow each other, series come in any order.

        Raises:
            ValueError: for anything wrong in the files. What is found only while the rows run reaches you as a
                ValueError inside `files.user_errors`.
        """
        inputs = self.inputs()
        segments = self._segments(inputs)
        if self.categorical:
            with files.user_errors():
                if self._small(inputs):
                    segments = segments.materialize()       # read once; the large ones are read twice instead
                self.categories = self._categories(segments, inputs)
        task = functools.partial(_encode_group, self, Files.of(inputs), CHUNK_BYTES)
        return {"series": self._by_series(segments, inputs, task)}

    def state(self, summaries: Sequence[State]) -> State:
        """What training, evaluation and prediction need to know of the prepared data, as JSON; after `encode`.

        Args:
            summaries: one a series; state["series"] keeps their order.

        Raises:
            ValueError: when series differ in frequency or in their kind of time.
        """
        first = summaries[0]
        for key, option in (("frequency", "frequency"), ("kind", "time")):
            for other in summaries:
                if other[key] != first[key]:
                    raise ValueError(
                        f"series {first['name']!r} has {key} {first[key]}, series {other['name']!r} {other[key]}; "
                        f"set dataset.{option}, or make a dataset of each")
        shared = {"frequency", "kind", "style", "season"}
        return {
            "channels": {"targets": self.targets, "covariates": self.covariates, "categorical": self.categories,
                         "calendar": calendar_names(self.calendar), "observed": self.missing == "mask"},
            "width": len(first["mean"]), "frequency": first["frequency"], "season": first["season"],
            "time": {"kind": first["kind"], "style": first["style"]},
            "unused": sum(summary["unused"] for summary in summaries),
            "series": [{k: v for k, v in summary.items() if k not in shared} for summary in summaries],
        }

    def encode_request(self, path: str, state: State) -> list[Request]:
        """New raw data for a trained model, checked and encoded as the training data was; in this process.

        Args:
            path: file, folder, glob or URI with the same columns; all of its rows are input.
            state: of the prepared data that the model was trained on. A series that it does not know is scaled by the
                statistics of its own rows.

        Returns:
            One request a series, sorted by name.
        """
        inputs = [(source, "") for source in files.resolve(path, suffixes=SUFFIXES)]
        listed = Files.of(inputs)
        tables = [segment(self, listed, block) for source, _ in inputs
                  for block in files.read_blocks(source.uri, self.columns)]
        known = {summary["name"]: summary for summary in state["series"]}
        segments = pa.concat_tables([SEGMENT.empty_table(), *tables])
        return [_request(self, raw, state, known.get(raw.name)) for raw in _raw_series(segments, listed)]

    def _segments(self, inputs: list[tuple[Source, str]]) -> ray.data.Dataset:
        rows = files.read([source for source, _ in inputs], self.columns)
        return rows.map_batches(functools.partial(_to_segments, self, Files.of(inputs)), batch_size=None,
                                batch_format="pyarrow", num_cpus=files.TASK_CPUS)

    def _small(self, inputs: list[tuple[Source, str]]) -> bool:
        return files.total_bytes(source for source, _ in inputs) <= SMALL_BYTES

    def _by_series(self, segments: ray.data.Dataset, inputs: list[tuple[Source, str]],
                   task: Callable[[pa.Table], Iterator[pa.Table]]) -> ray.data.Dataset:
        """`task` on tables that hold all the segments of each series they have one of."""
        if self._small(inputs):
            return segments.repartition(1).map_batches(task, batch_size=None, batch_format="pyarrow")
        parts = 2 + files.total_bytes(source for source, _ in inputs) // SHUFFLE_BYTES
        return segments.groupby("series", num_partitions=parts).map_groups(task, batch_format="pyarrow")

    def _categories(self, segments: ray.data.Dataset, inputs: list[tuple[Source, str]]) -> dict[str, list[str]]:
        """Names in the training rows of all series, sorted, by categorical column."""
        task = functools.partial(_find_categories, self, Files.of(inputs))
        found: dict[str, set[str]] = {column: set() for column in self.categorical}
        for batch in self._by_series(segments, inputs, task).iter_batches(batch_size=None, batch_format="pyarrow"):
            batch = cast(pa.Table, batch)
            for column, name in zip(batch["column"].to_pylist(), batch["name"].to_pylist(), strict=True):
                found[column].add(name)
        for column, names in found.items():
            if len(names) > MAX_CATEGORIES:
                raise ValueError(f"dataset.categorical: column {column!r} has {len(names)} different values in "
                                 f"training, more than {MAX_CATEGORIES}; is it a number? Then list it in covariates")
        return {column: sorted(names) for column, names in found.items()}


# Prediction

@dataclass
class Request:
    """One series to predict.

    Attributes:
        series: its name; "" when the dataset has no series column.
        times: (L,) int64, microseconds since 1970, or whole numbers.
        values: (L, C) float32, scaled, channels as in the stored rows.
        mean, std: (C,) float64 of that scaling: raw = scaled * std + mean.
        frequency, style, calendar: how times go on, how they are written, and which calendar channels there are.
    """

    series: str
    times: Ints
    values: NDArray[np.float32]
    mean: Floats
    std: Floats
    frequency: Frequency
    style: str
    calendar: list[Calendar]


def future(request: Request, horizon: int) -> tuple[NDArray[np.float32], list[str]]:
    """What is known of the steps after the last one.

    Returns:
        (calendar channels (horizon, channels) float32, their times written as the input writes them).
    """
    times = request.frequency.after(request.times, horizon)
    return calendar_channels(times, request.calendar).astype(np.float32), labels(times, request.style)


def labels(times: Ints, style: str) -> list[str]:
    """Times as text: by a strftime format, or as whole numbers when `style` is ""."""
    if not style:
        return [str(time) for time in times.tolist()]
    return [(datetime(1970, 1, 1) + timedelta(microseconds=time)).strftime(style) for time in times.tolist()]


# Options

def _check_columns(dataset: TimeSeries) -> None:
    if not dataset.targets:
        raise ValueError("dataset.targets is empty; name at least one column to forecast")
    seen: dict[str, str] = {}
    time = [dataset.time] if isinstance(dataset.time, str) else dataset.time or []
    roles = {"time": time, "series": [dataset.series] if dataset.series else [], "targets": dataset.targets,
             "covariates": dataset.covariates, "categorical": dataset.categorical}
    for role, columns in roles.items():
        for column in columns:
            # Parts of the date are good inputs, so a time column may be one too.
            if column in seen and (seen[column] != "time" or role == "time"):
                both = role if seen[column] == role else f"{seen[column]} and {role}"
                raise ValueError(f"dataset: column {column!r} is listed twice, in {both}; list it once")
            seen[column] = role
    if isinstance(dataset.time, list) and not 1 <= len(dataset.time) <= len(COMPONENTS):
        raise ValueError(f"dataset.time lists {len(dataset.time)} columns; list those of {', '.join(COMPONENTS)}")
    for option, is_set in (("calendar", bool(dataset.calendar)), ("frequency", dataset.frequency != "auto"),
                           ("time_format", dataset.time_format is not None)):
        if is_set and dataset.time is None:
            raise ValueError(f"dataset.{option} is set, but dataset.time is not; name the time column, "
                             f"or leave {option} out")
    if dataset.season is not None and dataset.season < 1:
        raise ValueError(f"dataset.season={dataset.season}; a season has at least 1 step")


def _check_split(dataset: TimeSeries) -> None:
    split, path = dataset.split, dataset.path
    have = set(split) | (set(path) if isinstance(path, dict) else {"train"})
    for name in [*split, *(path if isinstance(path, dict) else ())]:
        if name not in PARTS:
            near = difflib.get_close_matches(str(name), PARTS, n=1)
            raise ValueError(f"dataset: {name!r} is no split{f', did you mean {near[0]}' if near else ''}; "
                             f"the splits are {', '.join(PARTS)}")
    if isinstance(path, dict):
        if "train" not in path:
            raise ValueError(f"dataset.path has files for {', '.join(path)}, but none for train")
        if extra := set(split) - ({"validation"} - set(path)):
            raise ValueError(f"dataset.split gives {', '.join(sorted(extra))}, but dataset.path has files for "
                             f"{', '.join(path)}; with files for each split only a validation that has none is cut")
    if "validation" not in have:
        raise ValueError("dataset.split has no validation; say how many steps (or which share) it gets, "
                         "such as {train: 0.7, validation: 0.15, test: 0.15}")
    kinds = {_kind(name, value) for name, value in split.items()}
    if len(kinds) > 1:
        raise ValueError(f"dataset.split {split} mixes {' and '.join(sorted(kinds))}; give all as one of these")
    if kinds == {"fractions"} and sum(float(value) for value in split.values()) > 1 + 1e-9:
        raise ValueError(f"dataset.split {split} adds up to more than 1")
    if kinds == {"dates"}:
        if "train" in split:
            raise ValueError("dataset.split: with dates, train starts where the series does; leave train out")
        if dataset.time is None:
            raise ValueError("dataset.split has dates, but dataset.time is not set; name the time column")
        if "test" in split and _date(str(split["test"])) <= _date(str(split["validation"])):
            raise ValueError(f"dataset.split: test starts at {split['test']}, but must start after validation, "
                             f"{split['validation']}")


def _kind(name: str, value: int | float | str) -> str:
    if isinstance(value, str):
        _date(value)
        return "dates"
    if isinstance(value, bool) or not value > 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(f"dataset.split.{name}={value!r}; give a count of steps (at least 1), a fraction between 0 "
                         f"and 1, or the date at which it starts")
    return "fractions" if isinstance(value, float) else "counts"


def _date(text: str) -> int:
    try:
        return int(pc.cast(pa.scalar(text), pa.timestamp("us")).value)
    except pa.ArrowInvalid:
        raise ValueError(f"dataset.split: {text!r} is no date; write it as 2024-01-31 or 2024-01-31 12:00") from None


# Frequency

@dataclass(frozen=True)
class Frequency:
    """Time between steps: `count` microseconds, calendar months, or whole numbers (unit "step")."""

    count: int
    unit: Literal["us", "month", "step"]

    @staticmethod
    def parse(text: str | int) -> Frequency | None:
        """From "15min", "1h", "1M", ... or a whole number; None for "auto"."""
        if text == "auto":
            return None
        match = re.fullmatch(r"([0-9]*)([A-Za-z]*)", str(text))
        count, unit = (int(match[1] or 1), match[2]) if match else (0, "")
        if match and count > 0:
            if not unit:
                return Frequency(count, "step")
            if unit in ("M", "Y"):
                return Frequency(count * (12 if unit == "Y" else 1), "month")
            if unit in UNITS:
                return Frequency(count * UNITS[unit], "us")
        raise ValueError(f"dataset.frequency={text!r} is not understood; give auto, a whole number, or a count and one "
                         f"of {', '.join([*UNITS, 'M (month)', 'Y (year)'])}, such as 15min or 1h")

    def __str__(self) -> str:
        if self.unit == "step":
            return str(self.count)
        if self.unit == "month":
            return f"{self.count}M" if self.count % 12 else f"{self.count // 12}Y"
        name, size = next((name, size) for name, size in UNITS.items() if self.count % size == 0)
        return f"{self.count // size}{name}"

    @staticmethod
    def infer(times: Ints, kind: str) -> Frequency:
        """The most common distance of neighbours, in months where it is at least 28 days and the days agree."""
        common = _most_common(np.diff(times))
        if kind == "integer":
            return Frequency(common, "step")
        if common >= 28 * DAY:
            months = Frequency(max(_most_common(np.diff(_month(times))), 1), "month")
            if months.steps(times)[1].mean() > 0.5:
                return months
        return Frequency(common, "us")

    def steps(self, times: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Steps (L,) from the first of `times` (L,) to each, and where a time does not lie on a step."""
        if self.unit != "month":
            steps, rest = np.divmod(times - times[0], self.count)
            return steps, rest == 0
        months = _month(times)
        steps, rest = np.divmod(months - months[0], self.count)
        return steps, (rest == 0) & (times == _in_month(months, _day_in_month(times)))

    def grid(self, times: Ints, length: int) -> Ints:
        """The times of `length` steps from the first of `times`."""
        if self.unit != "month":
            return np.int64(times[0]) + self.count * np.arange(length, dtype=np.int64)
        return _in_month(_month(times[:1]) + self.count * np.arange(length, dtype=np.int64), _day_in_month(times))

    def after(self, times: Ints, count: int) -> Ints:
        """The times of the `count` steps after the last of `times`, all of which lie on steps."""
        return self.grid(times, int(self.steps(times)[0][-1]) + 1 + count)[-count:]


def _most_common(distances: Ints) -> int:
    values, counts = np.unique(distances[distances > 0], return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else 1


def _month(times: Ints) -> Ints:
    """Months since January 1970."""
    months: Ints = times.view("M8[us]").astype("M8[M]").astype(np.int64)
    return months


def _month_start(months: Ints) -> Ints:
    starts: Ints = months.astype("M8[M]").astype("M8[us]").astype(np.int64)
    return starts


def _day_in_month(times: Ints) -> int:
    """The latest point in a month that any of the times has: the 31st for the ends of months."""
    return int((times - _month_start(_month(times))).max())


def _in_month(months: Ints, point: int) -> Ints:
    """That point of each month, or of its last day when the month is shorter."""
    starts, ends = _month_start(months), _month_start(months + 1)
    return np.minimum(starts + point, ends - DAY + point % DAY)


# Calendar

def calendar_names(calendar: Sequence[Calendar]) -> list[str]:
    """Names of the calendar channels, in order."""
    return [f"{part}_{wave}" for part in calendar for wave in ("sin", "cos")]


def calendar_channels(times: Ints, calendar: Sequence[Calendar]) -> Floats:
    """(L, 2 * parts): sine and cosine of the position in the hour, day, week, month or year; times in microseconds."""
    channels = np.empty((len(times), 2 * len(calendar)))
    stamps = times.view("M8[us]")
    months, years = _month(times), stamps.astype("M8[Y]").astype(np.int64)
    for i, part in enumerate(calendar):
        if part == "minute":
            phase = (times % HOUR) / HOUR
        elif part == "hour":
            phase = (times % DAY) / DAY
        elif part == "weekday":
            phase = ((times // DAY + 3) % 7) / 7                    # 1970-01-01 was a Thursday; Monday is 0
        elif part == "month":
            phase = (months % 12) / 12
        else:
            cycle, first = (months, _month_start) if part == "monthday" else (12 * years, _month_start)
            start, end = first(cycle), first(cycle + (1 if part == "monthday" else 12))
            phase = (times - start) // DAY / ((end - start) // DAY)
        channels[:, 2 * i], channels[:, 2 * i + 1] = np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)
    return channels


# Blocks to segments

@dataclass(frozen=True)
class Files:
    """Names and splits of the raw files by index; blocks and segments carry the index."""

    uris: list[str]
    parts: list[str]

    @staticmethod
    def of(inputs: list[tuple[Source, str]]) -> Files:
        return Files([source.uri for source, _ in inputs], [part for _, part in inputs])


SEGMENT = pa.schema([
    ("series", pa.string()), ("file", pa.int32()), ("style", pa.string()), ("rows", pa.list_(pa.int64())),
    ("times", pa.list_(pa.int64())), ("values", pa.list_(pa.float64())), ("names", pa.list_(pa.string()))])


@files.in_task
def _to_segments(dataset: TimeSeries, listed: Files, block: pa.Table) -> Iterator[pa.Table]:
    yield segment(dataset, listed, block)


def segment(dataset: TimeSeries, listed: Files, block: pa.Table) -> pa.Table:
    """One record for each series of a block (of one file): its rows' numbers, times, values and names, parsed."""
    if not len(block):
        return SEGMENT.empty_table()
    block = block.combine_chunks()
    place = _Block(block["__file"][0].as_py(), block["__row"].to_numpy())
    times, style = _times(dataset, block, place)
    values = np.stack([_numbers(dataset, block, column, place) for column in dataset.numeric], axis=1)
    names = [_names(dataset, block, column) for column in dataset.categorical]
    series, codes = _series_codes(dataset, block, place)
    order = np.argsort(codes, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=len(series)))])      # (series + 1,)

    def lists(flat: Any, width: int) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(ends * width, pa.int32()), pa.array(flat))

    taken = np.array(names, dtype=object).reshape(len(names), len(block)).T[order].ravel()
    return pa.table([
        pa.array(series, pa.string()), pa.array([listed.uris.index(place.file)] * len(series), pa.int32()),
        pa.array([style] * len(series), pa.string()), lists(place.rows[order], 1),
        lists(times[order], 1) if times is not None else pa.array([[]] * len(series), pa.list_(pa.int64())),
        lists(values[order].ravel(), values.shape[1]), lists(pa.array(taken, pa.string()), len(names)),
    ], schema=SEGMENT)


@dataclass(frozen=True)
class _Block:
    """Where the rows of a block come from."""

    file: str
    rows: Ints

    def error(self, index: int, text: str) -> ValueError:
        return ValueError(f"{self.file}, row {self.rows[index]}: {text}")


def _series_codes(dataset: TimeSeries, block: pa.Table, place: _Block) -> tuple[list[str], Ints]:
    """(names, index of each row's name)."""
    if dataset.series is None:
        return [""], np.zeros(len(block), dtype=np.int64)
    column = _text(block[dataset.series])
    blank = pc.fill_null(pc.is_in(column, value_set=pa.array(dataset.missing_values, pa.string())), True)
    blank = pc.or_(blank, column.is_null())
    if (bad := pc.index(blank, True).as_py()) >= 0:
        raise place.error(bad, f"no name of a series in column {dataset.series!r}; fill it in or remove the row")
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.utf8_trim_whitespace(pc.cast(column, pa.string()))


def _names(dataset: TimeSeries, block: pa.Table, column: str) -> list[str | None]:
    """Names of a categorical column, None where missing."""
    text = _text(block[column])
    missing = pc.is_in(text, value_set=pa.array(dataset.missing_values, pa.string()))
    names: list[str | None] = pc.if_else(missing, pa.scalar(None, pa.string()), text).to_pylist()
    return names


def _numbers(dataset: TimeSeries, block: pa.Table, column: str, place: _Block) -> Floats:
    """(rows,) float64, NaN where missing."""
    data = block[column]
    if pa.types.is_string(data.type) or pa.types.is_large_string(data.type) or pa.types.is_dictionary(data.type):
        data = _text(data)
        missing = pc.is_in(data, value_set=pa.array(dataset.missing_values, pa.string()))
        data = pc.if_else(missing, pa.scalar(None, pa.string()), data)
    elif pa.types.is_boolean(data.type):
        data = pc.cast(data, pa.uint8())
    try:
        parsed = _parsed(data)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if not pa.types.is_string(data.type):
            raise ValueError(f"{place.file}: column {column!r} holds {data.type}, not numbers; "
                             f"leave it out, or list it in categorical") from error
        bad = _first_bad(data, _parsed)
        raise place.error(bad, f"{data[bad].as_py()!r} in column {column!r} is not a number; correct it, list it in "
                               f"missing_values if it stands for none, or list the column in categorical") from None
    values: Floats = np.array(parsed.to_numpy(), dtype=np.float64)
    for text in dataset.missing_values:
        if (number := files.number(text)) is not None:
            values[values == number] = np.nan
    if (infinite := np.flatnonzero(np.isinf(values))).size:
        raise place.error(infinite[0], f"{values[infinite[0]]} in column {column!r} is infinite; correct it, "
                                       f"or list it in missing_values")
    return values


def _parsed(data: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers, or texts of numbers, as float64; ArrowInvalid for other texts."""
    if pa.types.is_string(data.type) and pc.all(pc.match_substring_regex(data, files.NUMERAL)).as_py() is False:
        raise pa.ArrowInvalid("a text that is no number")
    return pc.cast(data, pa.float64(), safe=False)


def _first_bad(data: pa.ChunkedArray, parse: Callable[[pa.ChunkedArray], Any]) -> int:
    """Index of the first value that `parse` refuses, by bisection; there is one."""
    low, high = 0, len(data)                    # data[:low] parses, data[:high] does not
    while high - low > 1:
        middle = (low + high) // 2
        try:
            parse(data.slice(low, middle - low))
            low = middle
        except pa.ArrowInvalid:
            high = middle
    return low


# Times of a block

def _times(dataset: TimeSeries, block: pa.Table, place: _Block) -> tuple[Ints | None, str]:
    """(microseconds or whole numbers, strftime format to write them by: "" for whole numbers)."""
    if dataset.time is None:
        return None, ""
    if isinstance(dataset.time, list):
        return _times_of_parts(dataset.time, block, place)
    data, column = block[dataset.time], dataset.time
    if pa.types.is_dictionary(data.type):
        data = pc.cast(data, pa.string())
    if data.null_count:
        raise place.error(pc.index(data.is_null(), True).as_py(), f"no time in column {column!r}")
    if dataset.time_format is not None and not pa.types.is_temporal(data.type):
        return _times_by_format(_text(data), column, dataset.time_format, place), dataset.time_format
    if pa.types.is_string(data.type) or pa.types.is_large_string(data.type):
        return _times_of_text(_text(data), column, place)
    if pa.types.is_integer(data.type):
        return data.to_numpy().astype(np.int64), ""
    if pa.types.is_temporal(data.type) and not pa.types.is_time(data.type) and not pa.types.is_duration(data.type):
        style = "%Y-%m-%d" if pa.types.is_date(data.type) else "%Y-%m-%dT%H:%M:%S"
        zone = "Z" if getattr(data.type, "tz", None) else ""
        stamps = pc.cast(data, pa.timestamp("us", getattr(data.type, "tz", None)), safe=False)
        return pc.cast(stamps, pa.int64()).to_numpy(), style + zone
    raise ValueError(f"{place.file}: column {column!r} holds {data.type}, which is no time; it must be text, "
                     f"timestamp, date or whole number")


def _times_of_text(text: pa.ChunkedArray, column: str, place: _Block) -> tuple[Ints, str]:
    if pc.all(pc.match_substring_regex(text, r"^-?\d+$")).as_py():
        return pc.cast(text, pa.int64()).to_numpy(), ""
    first, lengths = text[0].as_py(), pc.utf8_length(text)
    zone = "Z" if re.search(r"(Z|[+-]\d\d:?\d\d)$", first) else ""           # written in UTC
    kind = pa.timestamp("us", "UTC" if zone else None)
    try:
        times = pc.cast(text, kind)
    except pa.ArrowInvalid:
        bad = _first_bad(text, lambda part: pc.cast(part, kind))
        raise place.error(bad, f"{text[bad].as_py()!r} in column {column!r} is no time as ISO 8601 writes it "
                               f"(2024-01-31 12:00:00); correct it, or set time_format") from None
    longest = text[pc.index(lengths, pc.max(lengths)).as_py()].as_py()          # some write midnight as the date alone
    minutes = re.fullmatch(r".{11}\d\d(:\d\d)?", longest)
    clock = longest[10:11] + ("" if len(longest) <= 10 else "%H:%M" if minutes else "%H:%M:%S")
    fraction = ".%f" if "." in longest else ""
    return pc.cast(times, pa.int64()).to_numpy(), f"%Y-%m-%d{clock}{fraction}{zone}"


def _times_by_format(text: pa.ChunkedArray, column: str, style: str, place: _Block) -> Ints:
    times = pc.strptime(text, format=style, unit="us", error_is_null=True)
    if times.null_count:
        bad = pc.index(times.is_null(), True).as_py()
        raise place.error(bad, f"{text[bad].as_py()!r} in column {column!r} does not fit time_format {style!r}; "
                               f"correct one of them")
    parsed: Ints = pc.cast(times, pa.int64()).to_numpy()
    return parsed


def _times_of_parts(columns: list[str], block: pa.Table, place: _Block) -> tuple[Ints, str]:
    """From columns of year, month, day, ..."""
    parts = np.ones((6, len(block)), dtype=np.int64)
    parts[3:] = 0
    for i, column in enumerate(columns):
        text = _text(block[column])
        whole = pc.fill_null(pc.match_substring_regex(text, r"^\d{1,4}$"), False)
        if (bad := pc.index(whole, False).as_py()) >= 0:
            raise place.error(bad, f"{text[bad].as_py()!r} in column {column!r} is no {COMPONENTS[i]}")
        parts[i] = pc.cast(text, pa.int64()).to_numpy()
    year, month, day, hour, minute, second = parts
    start = (year - 1970) * 12 + month - 1
    days = (_month_start(start + 1) - _month_start(start)) // DAY
    for i, (low, high) in enumerate([(1, 9999), (1, 12), (1, days), (0, 23), (0, 59), (0, 59)]):
        if (wrong := np.flatnonzero((parts[i] < low) | (parts[i] > high))).size:
            raise place.error(wrong[0], f"{parts[i, wrong[0]]} in column {columns[i]!r} is no {COMPONENTS[i]}"
                                        f"{' of that month' if i == 2 else ''}")
    style = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S")[len(columns) - 1]
    return _month_start(start) + (day - 1) * DAY + hour * HOUR + minute * 60 * SECOND + second * SECOND, style


# Segments to series

@dataclass
class _Raw:
    """The rows of one series in the order of the files.

    file, rows, times: (rows,) int64; times is empty when rows are steps. values: (rows, N), NaN where missing.
    names: (rows, K) object, None where missing.
    """

    name: str
    listed: Files
    file: Ints
    rows: Ints
    times: Ints
    style: str
    values: Floats
    names: NDArray[np.object_]

    def __str__(self) -> str:
        return f"series {self.name!r}" if self.name else "the series"

    def at(self, index: int) -> str:
        series = f" (series {self.name!r})" if self.name else ""
        return f"{self.listed.uris[self.file[index]]}, row {self.rows[index]}{series}"

    def time(self, index: int) -> str:
        return labels(self.times[index:index + 1], self.style)[0]


def _raw_series(segments: pa.Table, listed: Files) -> Iterator[_Raw]:
    """Each series of a table that holds all of its segments; sorted by name."""
    segments = segments.combine_chunks()
    if not len(segments):
        raise ValueError(f"{', '.join(listed.uris[:3])}{', ...' if len(listed.uris) > 3 else ''} "
                         f"hold{'s' if len(listed.uris) == 1 else ''} no rows")
    first_row = pc.list_element(segments["rows"], 0)
    order = pc.sort_indices(segments.append_column("row", first_row), sort_keys=[
        ("series", "ascending"), ("file", "ascending"), ("row", "ascending")])
    segments = segments.take(order).combine_chunks()
    names = segments["series"].to_numpy()
    edges = np.concatenate([[0], np.flatnonzero(names[1:] != names[:-1]) + 1, [len(names)]])
    for a, b in itertools.pairwise(edges.tolist()):
        part = segments.slice(a, b - a)
        lengths = pc.list_value_length(part["rows"]).to_numpy()
        rows = pc.list_flatten(part["rows"]).to_numpy()
        yield _Raw(
            names[a], listed, np.repeat(part["file"].to_numpy().astype(np.int64), lengths), rows,
            pc.list_flatten(part["times"]).to_numpy(), _one_style(part, listed),
            pc.list_flatten(part["values"]).to_numpy().reshape(len(rows), -1),
            np.array(pc.list_flatten(part["names"]).to_pylist(), dtype=object).reshape(len(rows), -1))


def _one_style(segments: pa.Table, listed: Files) -> str:
    """The fullest way in which a series' times are written."""
    styles = segments["style"].to_pylist()

    def kind(style: str) -> str:
        return ("dates with a time zone" if style.endswith("Z") else "dates") if style else "whole numbers"

    for style, file in zip(styles, segments["file"].to_pylist(), strict=True):
        if kind(style) != kind(styles[0]):
            raise ValueError(f"{listed.uris[file]}: the time is {kind(style)} here, but {kind(styles[0])} before; "
                             f"write all in one way")
    fullest: str = max(styles, key=len)
    return fullest


@dataclass
class _Layout:
    """Where the rows of a series lie in time. steps: (rows,) step of each row; grid: (L,) time of each step."""

    steps: Ints
    grid: Ints
    frequency: Frequency
    kind: Literal["timestamp", "integer", "row"]

    @property
    def length(self) -> int:
        return len(self.grid)


def _layout(dataset: TimeSeries, raw: _Raw, known: str | int = "auto") -> _Layout:
    """Check the order of times, and give each row its step.

    Args:
        known: the frequency, where neither the dataset nor this series should say.
    """
    if dataset.time is None:
        _check_no_blanks(dataset, raw)
        steps = np.arange(len(raw.rows), dtype=np.int64)
        return _Layout(steps, steps, Frequency(1, "step"), "row")
    kind: Literal["timestamp", "integer"] = "timestamp" if raw.style else "integer"
    runs = _runs(raw) if dataset.time_restarts else [(0, len(raw.rows))]
    for a, b in runs:
        _check_order(raw, a, b)
    given = Frequency.parse(known if dataset.frequency == "auto" else dataset.frequency)
    longest = max(runs, key=lambda run: run[1] - run[0])
    frequency = given or Frequency.infer(raw.times[slice(*longest)], kind)
    if (frequency.unit == "step") != (kind == "integer"):
        raise ValueError(f"{raw}: dataset.frequency is {frequency}, but the time is "
                         f"{'whole numbers' if kind == 'integer' else 'dates'}; "
                         f"{'give a whole number' if kind == 'integer' else 'give one such as 1h or 1D'}, or auto")
    if dataset.calendar and kind == "integer":
        raise ValueError(f"dataset.calendar needs dates, but the time of {raw} is whole numbers; leave calendar out")
    steps = np.empty(len(raw.rows), dtype=np.int64)
    start = 0
    for a, b in runs:
        steps[a:b] = start + _steps(dataset, raw, a, b, frequency)
        start = int(steps[b - 1]) + 1
    _check_length(dataset, raw, steps, frequency)
    return _Layout(steps, frequency.grid(raw.times[slice(*runs[0])], start), frequency, kind)


def _check_length(dataset: TimeSeries, raw: _Raw, steps: Ints, frequency: Frequency) -> None:
    """Refuse steps (rows,) between which gaps are so long that filling them would make far more steps than rows."""
    rows, length = len(steps), int(steps[-1]) + 1
    most = max(STEPS_OF_FEW, STEPS_A_ROW * rows)
    if length > most:
        i = int(np.argmax(np.diff(steps))) + 1
        raise ValueError(
            f"{raw.at(i)}: dataset.missing={dataset.missing} would make {length:,} steps of {frequency} of {rows:,} "
            f"rows ({raw.time(0)} to {raw.time(rows - 1)}), of which {length - rows:,} have no row; at most {most:,} "
            f"can be made ({STEPS_A_ROW} a row, or {STEPS_OF_FEW:,}). The longest gap is of "
            f"{steps[i] - steps[i - 1] - 1:,} steps, between {raw.time(i - 1)} and {raw.time(i)}: correct the time if "
            f"it is wrong, set dataset.frequency to the time between most rows, or cut the series at the gap into "
            f"series of different names")


def _check_no_blanks(dataset: TimeSeries, raw: _Raw) -> None:
    """Without a time, a blank row that is left out would move all later steps."""
    if dataset.series is None:
        gaps = np.flatnonzero((np.diff(raw.rows) > 1) & (np.diff(raw.file) == 0))
        if gaps.size:
            i = int(gaps[0])
            raise ValueError(f"{raw.listed.uris[raw.file[i]]}, row {raw.rows[i] + 1}: blank, but without dataset.time "
                             f"each row is a step; remove the row, or write a missing value such as NA in it")


def _runs(raw: _Raw) -> list[tuple[int, int]]:
    """The range of rows of each file."""
    edges = [0, *(np.flatnonzero(np.diff(raw.file)) + 1).tolist(), len(raw.file)]
    return list(itertools.pairwise(edges))


def _check_order(raw: _Raw, a: int, b: int) -> None:
    wrong = np.flatnonzero(np.diff(raw.times[a:b]) <= 0)
    if not wrong.size:
        return
    i = a + int(wrong[0]) + 1
    before = f"{raw.at(i - 1)}" if raw.file[i] != raw.file[i - 1] else f"row {raw.rows[i - 1]}"
    if raw.times[i] == raw.times[i - 1]:
        raise ValueError(f"{raw.at(i)}: time {raw.time(i)} is there twice, also in {before}; remove one of the rows"
                         f"{'' if raw.name else ', or name the column that tells series apart (dataset.series)'}")
    raise ValueError(f"{raw.at(i)}: time {raw.time(i)} comes after {raw.time(i - 1)} of {before}; sort the rows by time"
                     f"{'' if raw.name else ', or name the column that tells series apart (dataset.series)'}")


def _steps(dataset: TimeSeries, raw: _Raw, a: int, b: int, frequency: Frequency) -> Ints:
    steps, fits = frequency.steps(raw.times[a:b])
    if not fits.all():
        i = a + int(np.flatnonzero(~fits)[0])
        raise ValueError(f"{raw.at(i)}: time {raw.time(i)} does not lie on a step of {frequency} from {raw.time(a)}; "
                         f"correct it, or set dataset.frequency")
    gaps = np.flatnonzero(np.diff(steps) > 1)
    if gaps.size and dataset.missing == "error":
        i, total = a + int(gaps[0]) + 1, int(steps[-1]) + 1 - (b - a)
        more = f" ({total} in {gaps.size} gaps in all)" if gaps.size > 1 else ""
        raise ValueError(f"{raw.at(i)}: {int(steps[i - a] - steps[i - a - 1]) - 1} steps of {frequency} are missing "
                         f"between {raw.time(i - 1)} and {raw.time(i)}{more}; add the rows, or set dataset.missing to "
                         f"interpolate or mask")
    return steps


# Splits

def _bounds(dataset: TimeSeries, raw: _Raw, layout: _Layout) -> Bounds:
    """Half-open ranges of steps, by split."""
    if isinstance(dataset.path, dict):
        bounds = _bounds_of_files(dataset, raw, layout)
    else:
        bounds = _cut(dataset, str(raw), layout.grid, layout.kind)
    for name, (a, b) in bounds.items():
        if a >= b:
            raise ValueError(f"{raw} has {layout.length} steps, of which dataset.split {dataset.split} leaves none for "
                             f"{name}; change the split, or leave the series out")
    return bounds


def _bounds_of_files(dataset: TimeSeries, raw: _Raw, layout: _Layout) -> Bounds:
    assert isinstance(dataset.path, dict)
    part_of = np.array([PARTS.index(part) for part in raw.listed.parts])[raw.file]
    bounds: Bounds = {}
    start = 0
    for i, part in enumerate(PARTS):
        if part not in dataset.path:
            continue
        rows = np.flatnonzero(part_of == i)
        if not rows.size:
            raise ValueError(f"{raw} has no rows in the {part} files ({dataset.path[part]}); "
                             f"each series must be in all of them")
        end = int(layout.steps[rows[-1]]) + 1
        bounds[part] = (start, end)
        start = end
    if "validation" not in bounds:
        cut = _cut(dataset, f"the train part of {raw}", layout.grid[:bounds["train"][1]], layout.kind)
        bounds = {**cut, **{part: span for part, span in bounds.items() if part != "train"}}
    return bounds


def _cut(dataset: TimeSeries, what: str, grid: Ints, kind: str) -> Bounds:
    """Cut the steps whose times are `grid` by dataset.split."""
    split, length = dataset.split, len(grid)
    names = [name for name in PARTS if name in split]
    if isinstance(split["validation"], str):
        if kind != "timestamp":
            raise ValueError(f"dataset.split has dates, but the time of {what} is whole numbers; "
                             f"give counts or fractions")
        starts = [int(np.searchsorted(grid, _date(str(split[name])))) for name in names]
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
            raise ValueError(f"{what} has {length} steps, too few for dataset.split {split}; use smaller counts "
                             f"or fractions, or leave the series out")
    parts = [name for name in PARTS if name == "train" or name in split]
    return {name: (edges[i], edges[i + 1]) for i, name in enumerate(parts)}


# Series to stored rows

STORED = pa.schema([("series", pa.string()), ("offset", pa.int64()), ("length", pa.int32()),
                    ("values", pa.list_(pa.float32())), ("summary", pa.string())])


@files.in_task
def _encode_group(dataset: TimeSeries, listed: Files, chunk_bytes: int, segments: pa.Table) -> Iterator[pa.Table]:
    for raw in _raw_series(segments, listed):
        yield _encode_series(dataset, raw, chunk_bytes)


def _encode_series(dataset: TimeSeries, raw: _Raw, chunk_bytes: int) -> pa.Table:
    """The stored rows of one series."""
    layout = _layout(dataset, raw)
    bounds = _bounds(dataset, raw, layout)
    used = max(b for _, b in bounds.values())
    observed = _scatter(dataset, raw, layout)                                   # (L, N), NaN where missing
    mean, std, fill = _statistics(dataset, raw, observed[slice(*bounds["train"])])
    channels = _channels(dataset, raw, layout, observed, (mean, std, fill), dataset.categories)[:used]
    season = dataset.season or SEASONS.get(str(layout.frequency), 1)
    other = channels.shape[1] - len(mean)
    summary = {
        "name": raw.name, "length": used, "start": int(layout.grid[0]), "unused": layout.length - used,
        "bounds": {part: list(span) for part, span in bounds.items()},
        "mean": [*mean.tolist(), *[0.0] * other], "std": [*std.tolist(), *[1.0] * other],
        "fill": fill.tolist(),
        "mase": _mase(observed[slice(*bounds["train"]), :len(dataset.targets)], season),
        "missing": int(np.isnan(observed[:used]).sum()), "season": season,
        "frequency": _json_frequency(layout.frequency), "kind": layout.kind, "style": raw.style,
    }
    return _chunks(raw.name, channels, json.dumps(summary), chunk_bytes)


def _json_frequency(frequency: Frequency) -> str | int:
    return frequency.count if frequency.unit == "step" else str(frequency)


def _chunks(name: str, channels: NDArray[np.float32], summary: str, chunk_bytes: int) -> pa.Table:
    length, width = channels.shape
    offsets = np.arange(0, length, max(1, chunk_bytes // (4 * width)))
    ends = np.append(offsets, length)
    values = pa.ListArray.from_arrays(pa.array(ends * width, pa.int32()), pa.array(channels.ravel()))
    count = len(offsets)
    return pa.table([pa.array([name] * count, pa.string()), pa.array(offsets, pa.int64()),
                     pa.array(np.diff(ends), pa.int32()), values,
                     pa.array([summary, *[""] * (count - 1)], pa.string())], schema=STORED)


def _scatter(dataset: TimeSeries, raw: _Raw, layout: _Layout) -> Floats:
    """(L, N): each row's values at its step; NaN where there is no value, which `missing` must allow."""
    if dataset.missing == "error":
        for column, data in zip(dataset.numeric, raw.values.T, strict=True):
            _refuse_missing(raw, column, np.isnan(data))
        for column, names in zip(dataset.categorical, raw.names.T, strict=True):
            _refuse_missing(raw, column, np.array([name is None for name in names], dtype=bool))
    if layout.length == len(raw.rows):
        return raw.values
    full = np.full((layout.length, raw.values.shape[1]), np.nan)
    full[layout.steps] = raw.values
    return full


def _refuse_missing(raw: _Raw, column: str, missing: NDArray[np.bool_]) -> None:
    if missing.any():
        where = np.flatnonzero(missing)
        raise ValueError(f"{raw.at(int(where[0]))}: no value in column {column!r}, the first of {len(where)} missing "
                         f"in {len(missing)} rows; fill them in, or set dataset.missing to interpolate or mask")


def _statistics(dataset: TimeSeries, raw: _Raw, train: Floats) -> tuple[Floats, Floats, Floats]:
    """(shift, divisor, what stands for a masked value once scaled), (N,) each, from the values that were observed.

    Standard scaling has their mean and deviation (1 for a constant column), so that a masked value becomes 0.
    """
    seen = ~np.isnan(train)
    count = seen.sum(0)
    for column, number in zip(dataset.numeric, count, strict=True):
        if number == 0:
            raise ValueError(f"{raw} has no value of column {column!r} in its {len(train)} training steps; leave out "
                             f"the column or the series, or change dataset.split")
    mean = np.where(seen, train, 0).sum(0) / count
    if dataset.scale == "none":
        return np.zeros(train.shape[1]), np.ones(train.shape[1]), mean
    std = np.sqrt((np.where(seen, train - mean, 0) ** 2).sum(0) / count)
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0), np.zeros(train.shape[1])


def _mase(train: Floats, season: int) -> list[float | None]:
    """Mean |y_t - y_(t - season)| of each target over the training steps, in raw units (Hyndman and Koehler 2006)."""
    scales: list[float | None] = []
    for column in train.T:
        change = np.abs(column[season:] - column[:-season]) if len(column) > season else np.empty(0)
        change = change[~np.isnan(change)]
        scales.append(float(change.mean()) if change.size and change.any() else None)
    return scales


def _channels(dataset: TimeSeries, raw: _Raw, layout: _Layout, observed: Floats, scaling: tuple[Floats, Floats, Floats],
              categories: Mapping[str, list[str]]) -> NDArray[np.float32]:
    """(L, C) float32: numbers scaled, one-hot names, calendar, and with a mask whether each target was observed.

    Args:
        observed: (L, N) raw numbers, NaN where missing.
        scaling: as `_statistics` gives it.
    """
    mean, std, fill = scaling
    parts = [(_filled(dataset, raw, observed) - mean) / std]
    if dataset.missing == "mask":
        parts[0] = np.where(np.isnan(parts[0]), fill, parts[0])
    for i, column in enumerate(dataset.categorical):
        hot = np.zeros((layout.length, len(categories[column])))
        index = {name: k for k, name in enumerate(categories[column])}
        found = np.array([index.get(name, -1) for name in raw.names[:, i]], dtype=np.int64)
        hot[layout.steps[found >= 0], found[found >= 0]] = 1
        parts.append(hot)
    if dataset.calendar:
        parts.append(calendar_channels(layout.grid, dataset.calendar))
    if dataset.missing == "mask":
        parts.append(~np.isnan(observed[:, :len(dataset.targets)]))
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _filled(dataset: TimeSeries, raw: _Raw, observed: Floats) -> Floats:
    if dataset.missing != "interpolate" or not np.isnan(observed).any():
        return observed
    filled, steps = observed.copy(), np.arange(len(observed))
    for name, column in zip(dataset.numeric, filled.T, strict=True):
        seen = ~np.isnan(column)
        if not seen.any():
            raise ValueError(f"{raw.at(0)}: column {name!r} has no value from here on, in all {len(column)} steps, so "
                             f"there is nothing to interpolate from; give some values or leave the series out")
        column[~seen] = np.interp(steps[~seen], steps[seen], column[seen])
    return filled


@files.in_task
def _find_categories(dataset: TimeSeries, listed: Files, segments: pa.Table) -> Iterator[pa.Table]:
    """Names in the training rows, by column; with repetitions."""
    for raw in _raw_series(segments, listed):
        layout = _layout(dataset, raw)
        a, b = _bounds(dataset, raw, layout)["train"]
        train = raw.names[(layout.steps >= a) & (layout.steps < b)]
        pairs = [(column, name) for column, names in zip(dataset.categorical, train.T, strict=True)
                 for name in sorted(set(names.tolist()) - {None})]
        yield pa.table({"column": pa.array([column for column, _ in pairs], pa.string()),
                        "name": pa.array([name for _, name in pairs], pa.string())})


def _request(dataset: TimeSeries, raw: _Raw, state: State, known: State | None) -> Request:
    layout = _layout(dataset, raw, state["frequency"] if dataset.time is not None else "auto")
    observed = _scatter(dataset, raw, layout)
    numbers = len(dataset.numeric)
    if known is None:
        mean, std, fill = _statistics(dataset, raw, observed)
    else:
        mean, std, fill = (np.array(known[name][:numbers]) for name in ("mean", "std", "fill"))
    values = _channels(dataset, raw, layout, observed, (mean, std, fill), state["channels"]["categorical"])
    other = values.shape[1] - numbers
    return Request(raw.name, layout.grid, values, np.append(mean, np.zeros(other)), np.append(std, np.ones(other)),
                   layout.frequency, raw.style, dataset.calendar)
