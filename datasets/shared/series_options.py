"""The options of time series, and their checks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from datasets.shared.frequency import Calendar
from datasets.shared.options import SPLITS

MISSING_VALUES = ["", "NA", "NaN", "nan", "null"]
COMPONENTS = ("year", "month", "day", "hour", "minute", "second")


@dataclass
class SeriesOptions:
    """The options of a time-series dataset; see ``datasets.timeseries.build``.

    Attributes:
        categories: names in each categorical column; set by ``encode``.
    """

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
    categories: dict[str, list[str]] = field(default_factory=dict, init=False)

    @property
    def numeric(self) -> list[str]:
        """Columns of numbers in the order of their channels: targets, then covariates."""
        return self.targets + self.covariates

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        time = [self.time] if isinstance(self.time, str) else self.time or []
        return list(dict.fromkeys([*time, *([self.series] if self.series else []), *self.numeric, *self.categorical]))


def check_columns(dataset: SeriesOptions) -> None:
    """Raise ValueError for options on columns and times that are empty, out of range, or contradict each other."""
    if not dataset.targets:
        raise ValueError("dataset.targets is empty; name at least one column to forecast")
    seen: dict[str, str] = {}
    time = [dataset.time] if isinstance(dataset.time, str) else dataset.time or []
    roles = {
        "time": time,
        "series": [dataset.series] if dataset.series else [],
        "targets": dataset.targets,
        "covariates": dataset.covariates,
        "categorical": dataset.categorical,
    }
    for role, columns in roles.items():
        for column in columns:
            # Parts of the date are good inputs, so a time column may be one too.
            if column in seen and (seen[column] != "time" or role == "time"):
                both = role if seen[column] == role else f"{seen[column]} and {role}"
                raise ValueError(f"dataset: column {column!r} is listed twice, in {both}; list it once")
            seen[column] = role
    if isinstance(dataset.time, list) and not 1 <= len(dataset.time) <= len(COMPONENTS):
        raise ValueError(f"dataset.time lists {len(dataset.time)} columns; list those of {', '.join(COMPONENTS)}")
    for option, is_set in (
        ("calendar", bool(dataset.calendar)),
        ("frequency", dataset.frequency != "auto"),
        ("time_format", dataset.time_format is not None),
    ):
        if is_set and dataset.time is None:
            raise ValueError(
                f"dataset.{option} is set, but dataset.time is not; name the time column, or leave {option} out"
            )
    if dataset.season is not None and dataset.season < 1:
        raise ValueError(f"dataset.season={dataset.season}; a season has at least 1 step")


def check_split(dataset: SeriesOptions) -> None:
    """Raise ValueError for a split that is incomplete, out of range, or contradicts the paths."""
    split, path = dataset.split, dataset.path
    have = set(split) | (set(path) if isinstance(path, dict) else {"train"})
    for name in [*split, *(path if isinstance(path, dict) else ())]:
        if name not in SPLITS:
            near = difflib.get_close_matches(str(name), SPLITS, n=1)
            raise ValueError(
                f"dataset: {name!r} is no split{f', did you mean {near[0]}' if near else ''}; "
                f"the splits are {', '.join(SPLITS)}"
            )
    if isinstance(path, dict):
        if "train" not in path:
            raise ValueError(f"dataset.path has files for {', '.join(path)}, but none for train")
        if extra := set(split) - ({"validation"} - set(path)):
            raise ValueError(
                f"dataset.split gives {', '.join(sorted(extra))}, but dataset.path has files for "
                f"{', '.join(path)}; with files for each split only a validation that has none is cut"
            )
    if "validation" not in have:
        raise ValueError(
            "dataset.split has no validation; say how many steps (or which share) it gets, "
            "such as {train: 0.7, validation: 0.15, test: 0.15}"
        )
    kinds = {bound_kind(name, value) for name, value in split.items()}
    if len(kinds) > 1:
        raise ValueError(f"dataset.split {split} mixes {' and '.join(sorted(kinds))}; give all as one of these")
    if kinds == {"fractions"} and sum(float(value) for value in split.values()) > 1 + 1e-9:
        raise ValueError(f"dataset.split {split} adds up to more than 1")
    if kinds == {"dates"}:
        if "train" in split:
            raise ValueError("dataset.split: with dates, train starts where the series does; leave train out")
        if dataset.time is None:
            raise ValueError("dataset.split has dates, but dataset.time is not set; name the time column")
        if "test" in split and parse_date(str(split["test"])) <= parse_date(str(split["validation"])):
            raise ValueError(
                f"dataset.split: test starts at {split['test']}, but must start after validation, {split['validation']}"
            )


def bound_kind(name: str, value: int | float | str) -> str:
    """Whether a value of the split is one of "counts", "fractions" or "dates"; ValueError for others."""
    if isinstance(value, str):
        parse_date(value)
        return "dates"
    if isinstance(value, bool) or not value > 0 or (isinstance(value, float) and value >= 1):
        raise ValueError(
            f"dataset.split.{name}={value!r}; give a count of steps (at least 1), a fraction between 0 "
            f"and 1, or the date at which it starts"
        )
    return "fractions" if isinstance(value, float) else "counts"


def parse_date(text: str) -> int:
    """Microseconds since 1970; ValueError if the text is no date."""
    try:
        return int(pc.cast(pa.scalar(text), pa.timestamp("us")).value)
    except pa.ArrowInvalid:
        raise ValueError(f"dataset.split: {text!r} is no date; write it as 2024-01-31 or 2024-01-31 12:00") from None
