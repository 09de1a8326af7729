"""Series to stored rows: missing values, scaling, channels, and chunks; and new series to predict from.

A stored row (chunk) is a number of consecutive steps of one series. A step has C channels: the numeric columns
(targets, then covariates), one channel for each name of the categorical columns, the calendar, and with a mask one
channel for each target that says whether it was observed.

Shapes: L steps of a series, N numeric columns, C channels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.reading import errors
from datasets.shared.frequency import SEASONS, Calendar, Floats, Frequency, Ints, calendar_channels, time_labels
from datasets.shared.segments import FileList
from datasets.shared.series_layout import Layout, RawSeries, layout_of, raw_series, split_bounds
from datasets.shared.series_options import SeriesOptions

State = dict[str, Any]  # plain values, for JSON

STORED = pa.schema(
    [
        ("series", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("values", pa.list_(pa.float32())),
        ("summary", pa.string()),
    ]
)


@errors.in_task
def encode_group(dataset: SeriesOptions, files: FileList, chunk_bytes: int, segments: pa.Table) -> Iterator[pa.Table]:
    """The stored rows of all series of a table that has all of their segments."""
    for raw in raw_series(segments, files):
        yield _encode_series(dataset, raw, chunk_bytes)


def _encode_series(dataset: SeriesOptions, raw: RawSeries, chunk_bytes: int) -> pa.Table:
    """The stored rows of one series; the first one has its summary."""
    layout = layout_of(dataset, raw)
    bounds = split_bounds(dataset, raw, layout)
    used = max(b for _, b in bounds.values())
    observed = _scatter(dataset, raw, layout)  # (L, N), NaN where missing
    mean, std, fill = _statistics(dataset, raw, observed[slice(*bounds["train"])])
    channels = _channels(dataset, raw, layout, observed, (mean, std, fill), dataset.categories)[:used]
    season = dataset.season or SEASONS.get(str(layout.frequency), 1)
    other = channels.shape[1] - len(mean)  # channels that are not scaled
    summary = {
        "name": raw.name,
        "length": used,
        "start": int(layout.grid[0]),
        "unused": layout.length - used,
        "bounds": {part: list(span) for part, span in bounds.items()},
        "mean": [*mean.tolist(), *[0.0] * other],
        "std": [*std.tolist(), *[1.0] * other],
        "fill": fill.tolist(),
        "mase": _mase(observed[slice(*bounds["train"]), : len(dataset.targets)], season),
        "missing": int(np.isnan(observed[:used]).sum()),
        "season": season,
        "frequency": _json_frequency(layout.frequency),
        "kind": layout.kind,
        "style": raw.style,
    }
    return _chunks(raw.name, channels, json.dumps(summary), chunk_bytes)


def _json_frequency(frequency: Frequency) -> str | int:
    """The frequency as the option of that name has it."""
    return frequency.count if frequency.unit == "step" else str(frequency)


def _chunks(name: str, channels: NDArray[np.float32], summary: str, chunk_bytes: int) -> pa.Table:
    """The channels (L, C) of a series in rows of at most `chunk_bytes`."""
    length, width = channels.shape
    offsets = np.arange(0, length, max(1, chunk_bytes // (4 * width)))
    ends = np.append(offsets, length)
    values = pa.ListArray.from_arrays(pa.array(ends * width, pa.int32()), pa.array(channels.ravel()))
    count = len(offsets)
    return pa.table(
        [
            pa.array([name] * count, pa.string()),
            pa.array(offsets, pa.int64()),
            pa.array(np.diff(ends), pa.int32()),
            values,
            pa.array([summary, *[""] * (count - 1)], pa.string()),
        ],
        schema=STORED,
    )


def _scatter(dataset: SeriesOptions, raw: RawSeries, layout: Layout) -> Floats:
    """(L, N): each row's values at its step, NaN where missing; raises if the option missing does not allow this."""
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


def _refuse_missing(raw: RawSeries, column: str, missing: NDArray[np.bool_]) -> None:
    if missing.any():
        rows = np.flatnonzero(missing)
        raise ValueError(
            f"{raw.at(int(rows[0]))}: no value in column {column!r}, the first of {len(rows)} missing "
            f"in {len(missing)} rows; fill them in, or set dataset.missing to interpolate or mask"
        )


def _statistics(dataset: SeriesOptions, raw: RawSeries, train: Floats) -> tuple[Floats, Floats, Floats]:
    """Statistics of the observed values of the training steps (L, N).

    Standard scaling subtracts their mean and divides by their standard deviation (1 for a constant column); masked
    values become 0. Without scaling, masked values become the mean.

    Returns:
        (shift, divisor, value of masked ones after scaling), (N,) each.
    """
    observed = ~np.isnan(train)
    count = observed.sum(0)
    for column, number in zip(dataset.numeric, count, strict=True):
        if number == 0:
            raise ValueError(
                f"{raw} has no value of column {column!r} in its {len(train)} training steps; leave out "
                f"the column or the series, or change dataset.split"
            )
    mean = np.where(observed, train, 0).sum(0) / count
    if dataset.scale == "none":
        return np.zeros(train.shape[1]), np.ones(train.shape[1]), mean
    std = np.sqrt((np.where(observed, train - mean, 0) ** 2).sum(0) / count)
    return mean, np.where(std > 1e-12 * np.abs(mean), std, 1.0), np.zeros(train.shape[1])


def _mase(train: Floats, season: int) -> list[float | None]:
    """Mean |y_t - y_(t - season)| of each target over the training steps, in raw units (Hyndman and Koehler 2006)."""
    scales: list[float | None] = []
    for column in train.T:
        change = np.abs(column[season:] - column[:-season]) if len(column) > season else np.empty(0)
        change = change[~np.isnan(change)]
        scales.append(float(change.mean()) if change.size and change.any() else None)
    return scales


def _channels(
    dataset: SeriesOptions,
    raw: RawSeries,
    layout: Layout,
    observed: Floats,
    scaling: tuple[Floats, Floats, Floats],
    categories: Mapping[str, list[str]],
) -> NDArray[np.float32]:
    """(L, C) float32: scaled numbers, one-hot names, calendar, and with a mask whether each target was observed.

    Args:
        dataset: the options.
        raw: the series.
        layout: its steps.
        observed: (L, N) raw numbers, NaN where missing.
        scaling: as returned by `_statistics`.
        categories: names of each categorical column.
    """
    mean, std, fill = scaling
    parts = [(_filled(dataset, raw, observed) - mean) / std]
    if dataset.missing == "mask":
        parts[0] = np.where(np.isnan(parts[0]), fill, parts[0])
    for i, column in enumerate(dataset.categorical):
        hot = np.zeros((layout.length, len(categories[column])))
        index = {name: k for k, name in enumerate(categories[column])}
        codes = np.array([index.get(name, -1) for name in raw.names[:, i]], dtype=np.int64)
        hot[layout.steps[codes >= 0], codes[codes >= 0]] = 1
        parts.append(hot)
    if dataset.calendar:
        parts.append(calendar_channels(layout.grid, dataset.calendar))
    if dataset.missing == "mask":
        parts.append(~np.isnan(observed[:, : len(dataset.targets)]))
    return np.concatenate(parts, axis=1, dtype=np.float32)


def _filled(dataset: SeriesOptions, raw: RawSeries, observed: Floats) -> Floats:
    """`observed` (L, N) with missing values interpolated, if the option missing says so."""
    if dataset.missing != "interpolate" or not np.isnan(observed).any():
        return observed
    filled, steps = observed.copy(), np.arange(len(observed))
    for name, column in zip(dataset.numeric, filled.T, strict=True):
        known = ~np.isnan(column)
        if not known.any():
            raise ValueError(
                f"{raw.at(0)}: column {name!r} has no value from here on, in all {len(column)} steps, so "
                f"there is nothing to interpolate from; give some values or leave the series out"
            )
        column[~known] = np.interp(steps[~known], steps[known], column[known])
    return filled


@errors.in_task
def find_categories(dataset: SeriesOptions, files: FileList, segments: pa.Table) -> Iterator[pa.Table]:
    """The names in the categorical columns of the training rows, with repetitions."""
    for raw in raw_series(segments, files):
        layout = layout_of(dataset, raw)
        a, b = split_bounds(dataset, raw, layout)["train"]
        train = raw.names[(layout.steps >= a) & (layout.steps < b)]
        pairs = [
            (column, name)
            for column, names in zip(dataset.categorical, train.T, strict=True)
            for name in sorted(set(names.tolist()) - {None})
        ]
        yield pa.table(
            {
                "column": pa.array([column for column, _ in pairs], pa.string()),
                "name": pa.array([name for _, name in pairs], pa.string()),
            }
        )


# Prediction


@dataclass
class Request:
    """One series to predict.

    Attributes:
        series: its name; "" when the dataset has no series column.
        times: (L,) int64, microseconds since 1970, or whole numbers.
        values: (L, C) float32, scaled, channels as in the stored rows.
        mean, std: (C,) float64 of that scaling: raw = scaled * std + mean.
        frequency: the distance between steps.
        style: the strftime format of times in the input; "" for whole numbers.
        calendar: the calendar channels.
    """

    series: str
    times: Ints
    values: NDArray[np.float32]
    mean: Floats
    std: Floats
    frequency: Frequency
    style: str
    calendar: list[Calendar]


def known_future(request: Request, horizon: int) -> tuple[NDArray[np.float32], list[str]]:
    """The known facts about the `horizon` steps after the last one.

    Returns:
        (calendar channels (horizon, K) float32, the times of the steps as text, in the format of the input).
    """
    times = request.frequency.after(request.times, horizon)
    return calendar_channels(times, request.calendar).astype(np.float32), time_labels(times, request.style)


def make_request(dataset: SeriesOptions, raw: RawSeries, state: State, known: State | None) -> Request:
    """A series to predict, encoded like the training data.

    Args:
        dataset: the options.
        raw: the series.
        state: of the prepared data.
        known: the series' summary in `state`; None for a new series, which is scaled by its own statistics.
    """
    layout = layout_of(dataset, raw, state["frequency"] if dataset.time is not None else "auto")
    observed = _scatter(dataset, raw, layout)
    numbers = len(dataset.numeric)
    if known is None:
        mean, std, fill = _statistics(dataset, raw, observed)
    else:
        mean, std, fill = (np.array(known[name][:numbers]) for name in ("mean", "std", "fill"))
    values = _channels(dataset, raw, layout, observed, (mean, std, fill), state["channels"]["categorical"])
    other = values.shape[1] - numbers  # channels that are not scaled
    return Request(
        raw.name,
        layout.grid,
        values,
        np.append(mean, np.zeros(other)),
        np.append(std, np.ones(other)),
        layout.frequency,
        raw.style,
        dataset.calendar,
    )
