"""Time series: tables whose rows are the steps of one or many series, in order of time.

Words: a series has steps 0, 1, ... at a fixed frequency, and a row of a file gives the values of one step. A segment is
the rows of one series in one block of a file. A stored row (chunk) is a number of consecutive scaled steps, time-major.
Windows are never stored: a window is (series, start), see ``datasets/pipeline/windows.py``.

From files to stored rows: ``shared/segments.py`` parses blocks, ``shared/series_layout.py`` orders the rows of each
series and splits them, and ``shared/series.py`` scales and encodes them.

Shapes: L steps of a series, C channels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import pyarrow as pa

from datasets.reading import errors, find, formats
from datasets.reading.find import SourceFile
from datasets.shared.frequency import Calendar, Frequency, calendar_names
from datasets.shared.request import SERIES_ROWS, RequestRows, series_rows
from datasets.shared.segments import SEGMENT, FileList, parse_segments, to_segments
from datasets.shared.series import Request, State, encode_group, find_categories, make_request
from datasets.shared.series_dataset import SeriesDataset
from datasets.shared.series_layout import raw_series
from datasets.shared.series_options import MISSING_VALUES, SeriesOptions, check_columns, check_split
from datasets.shared.splits import SplitFiles, files_of_paths

if TYPE_CHECKING:
    import ray.data


CHUNK_BYTES = 1 << 20  # maximum size of a stored row
SMALL_BYTES = 256 << 20  # raw files up to this size are encoded by one task, without a shuffle
SHUFFLE_BYTES = 64 << 20  # raw bytes in a partition of that shuffle
MAX_CATEGORIES = 1000  # a column with more is probably a mistake
SUFFIXES = (*formats.CSV, *(csv + end for csv in formats.CSV for end in formats.COMPRESSED), *formats.PARQUET)


def build(
    path: str | dict[str, str],
    *,
    targets: list[str],
    time: str | list[str] | None = None,
    series: str | None = None,
    covariates: list[str] | None = None,
    categorical: list[str] | None = None,
    calendar: list[Calendar] | None = None,
    split: dict[str, int | float | str] | None = None,
    missing: Literal["error", "interpolate", "mask"] = "error",
    frequency: str | int = "auto",
    time_format: str | None = None,
    time_restarts: bool = False,
    season: int | None = None,
    scale: Literal["standard", "none"] = "standard",
    missing_values: list[str] = MISSING_VALUES,
) -> TimeSeries:
    """One or many numeric series in CSV or Parquet files, split by time.

    Args:
        path: file, folder, glob or URI; or one of these for each split ({train: ..., test: ...}), whose rows continue
            the series of the same name. Files are read in order of their names.
        targets: columns to forecast.
        time: the column of the time (ISO 8601 text, timestamp, date or whole number); or the columns of year, month,
            day, hour, minute, second, or the first of these; without it each row is one step.
        series: the column with the name of each row's series; without it all rows are one series.
        covariates: numeric columns known up to the present.
        categorical: columns of names, one channel for each name in the training rows (one-hot); all zero for others.
        calendar: parts of the time as channels, a sine and a cosine each; known for the future too.
        split: how each series is split in time. Counts of steps or fractions: from the start if train is given, else
            validation and test are at the end and train is everything before. Or the dates at which validation and
            test start. With a path for each split only validation may be given: it is the end of the train files.
        missing: how to treat missing values and steps. error: raise an error. interpolate: linearly in time (the
            nearest value at both ends; uses later values, also across splits). mask: use the mean, and add a channel
            for each target that is 1 where it was observed. Gaps may make 100 steps for each row, or 100,000 for few
            rows.
        frequency: time between steps: auto (the most common one), 15min, 1h, 1D, 1W, 1M, 1Y, ... or a whole number.
        time_format: strptime format of a time that is not ISO 8601.
        time_restarts: whether times start again in each file; steps then continue those of the file before.
        season: steps of the season that MASE and seasonal baselines use; by default from the frequency (hourly 24).
        scale: standard gives each series and column mean 0 and standard deviation 1 over its training steps; none keeps
            the values as they are.
        missing_values: texts (and numbers) that mean a missing value.

    Raises:
        ValueError: options contradict each other; no file is read.
    """
    dataset = TimeSeries(
        path,
        list(targets),
        time,
        series,
        list(covariates or []),
        list(categorical or []),
        list(calendar or []),
        dict(split or {}),
        missing,
        frequency,
        time_format,
        time_restarts,
        season,
        scale,
        list(missing_values),
    )
    check_columns(dataset)
    check_split(dataset)
    Frequency.parse(frequency)
    return dataset


@dataclass
class TimeSeries(SeriesOptions, SeriesDataset):
    """A dataset of time series; see ``build``."""

    kind: ClassVar[str] = "timeseries"

    def files_with_splits(self) -> SplitFiles:
        """The raw files in the order of time, each with its split ("" where the option split decides)."""
        paths = self.path if isinstance(self.path, dict) else {"": self.path}
        return files_of_paths(paths, lambda path: find.resolve(path, suffixes=SUFFIXES))

    def sources(self) -> list[SourceFile]:
        return [source for source, _ in self.files_with_splits()]

    def options(self) -> dict[str, Any]:
        """The options, and instead of `path` the split of each file."""
        options = {item.name: getattr(self, item.name) for item in fields(self) if item.init and item.name != "path"}
        return {**options, "parts": [split for _, split in self.files_with_splits()]}

    def encode(self) -> dict[str, ray.data.Dataset]:
        """See `RawDataset.encode`; the rows are read by tasks of Ray Data and never gathered in this process.

        Returns:
            {"series": lazy rows}. Each row is a chunk of a series: `series` string, `offset` int64 (its first step),
            `length` int32, `values` list<float32> (length * C, time-major, scaled), `summary` string: JSON in the first
            chunk of a series, else "". The chunks of a series are adjacent; the order of series is arbitrary.
        """
        files = self.files_with_splits()
        segments = self._segments(files)
        if self.categorical:
            with errors.user_errors():
                if self._small(files):
                    segments = segments.materialize()  # read only once; large files are read twice instead
                self.categories = self._categories(segments, files)
        task = functools.partial(encode_group, self, FileList.of(files), CHUNK_BYTES)
        return {"series": self._by_series(segments, files, task)}

    def state(self, summaries: Sequence[State]) -> State:
        """The state: channels, frequency, season, format of times, and the bounds and statistics of each series.

        Args:
            summaries: of each series; state["series"] has the same order.

        Raises:
            ValueError: series differ in frequency or in their kind of time.
        """
        first = summaries[0]
        for key, option in (("frequency", "frequency"), ("kind", "time")):
            for other in summaries:
                if other[key] != first[key]:
                    raise ValueError(
                        f"series {first['name']!r} has {key} {first[key]}, series {other['name']!r} {other[key]}; "
                        f"set dataset.{option}, or make a dataset of each"
                    )
        shared = {"frequency", "kind", "style", "season"}
        return {
            "channels": {
                "targets": self.targets,
                "covariates": self.covariates,
                "categorical": self.categories,
                "calendar": calendar_names(self.calendar),
                "observed": self.missing == "mask",
            },
            "width": len(first["mean"]),
            "frequency": first["frequency"],
            "season": first["season"],
            "time": {"kind": first["kind"], "style": first["style"]},
            "unused": sum(summary["unused"] for summary in summaries),
            "series": [{k: v for k, v in summary.items() if k not in shared} for summary in summaries],
        }

    def encode_request(self, path: str, state: State) -> list[Request]:
        """Check and encode new raw data for a trained model like the training data, in this process.

        Args:
            path: file, folder, glob or URI with the same columns; all of its rows are input.
            state: of the prepared data on which the model was trained. A series that did not occur in it is scaled by
                the statistics of its new rows.

        Returns:
            One request per series, sorted by name.
        """
        sources = find.resolve(path, suffixes=SUFFIXES)
        files = FileList.of([(source, "") for source in sources])
        tables = [
            parse_segments(self, files, block)
            for source in sources
            for block in formats.read_blocks(source.uri, self.columns)
        ]
        known = {summary["name"]: summary for summary in state["series"]}
        segments = pa.concat_tables([SEGMENT.empty_table(), *tables])
        return [make_request(self, raw, state, known.get(raw.name)) for raw in raw_series(segments, files)]

    def read_request(self, source: str, state: State, task: Mapping[str, Any]) -> Iterator[RequestRows]:
        """The last task.lookback steps of each series; see ``RequestDataset``.

        Raises:
            ValueError: a series has fewer steps, or the files are wrong.
        """
        requests, lookback = self.encode_request(source, state), task["lookback"]
        for request in requests:
            if len(request.values) < lookback:
                name = f"series {request.series!r}" if request.series else "the series"
                raise ValueError(
                    f"{source}: {name} has {len(request.values)} rows; the model looks back {lookback} steps"
                )
        for start in range(0, len(requests), SERIES_ROWS):
            yield series_rows(
                requests[start : start + SERIES_ROWS],
                lookback,
                task["horizon"],
                targets=len(self.targets),
                column=self.series,
            )

    def _segments(self, files: SplitFiles) -> ray.data.Dataset:
        rows = formats.read([source for source, _ in files], self.columns)
        return rows.map_batches(
            functools.partial(to_segments, self, FileList.of(files)),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=formats.TASK_CPUS,
        )

    def _small(self, files: SplitFiles) -> bool:
        return find.total_bytes(source for source, _ in files) <= SMALL_BYTES

    def _by_series(
        self,
        segments: ray.data.Dataset,
        files: SplitFiles,
        task: Callable[[pa.Table], Iterator[pa.Table]],
    ) -> ray.data.Dataset:
        """The results of `task` on tables, each with all segments of one or more series."""
        if self._small(files):
            return segments.repartition(1).map_batches(task, batch_size=None, batch_format="pyarrow")
        partitions = 2 + find.total_bytes(source for source, _ in files) // SHUFFLE_BYTES
        return segments.groupby("series", num_partitions=partitions).map_groups(task, batch_format="pyarrow")

    def _categories(self, segments: ray.data.Dataset, files: SplitFiles) -> dict[str, list[str]]:
        """Names in the training rows of all series, sorted, by categorical column."""
        task = functools.partial(find_categories, self, FileList.of(files))
        categories: dict[str, set[str]] = {column: set() for column in self.categorical}
        for batch in self._by_series(segments, files, task).iter_batches(batch_size=None, batch_format="pyarrow"):
            batch = cast(pa.Table, batch)
            for column, name in zip(batch["column"].to_pylist(), batch["name"].to_pylist(), strict=True):
                categories[column].add(name)
        for column, names in categories.items():
            if len(names) > MAX_CATEGORIES:
                raise ValueError(
                    f"dataset.categorical: column {column!r} has {len(names)} different values in "
                    f"training, more than {MAX_CATEGORIES}; is it a number? Then list it in covariates"
                )
        return {column: sorted(names) for column, names in categories.items()}
