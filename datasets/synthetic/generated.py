"""Hourly demand, generated from a seed, whose best reachable error is known from the formula of the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from datasets import timeseries
from datasets.reading.find import SourceFile
from datasets.shared import segments
from datasets.shared.frequency import DAY, HOUR, Floats, Ints
from datasets.shared.series import State
from datasets.shared.splits import SplitFiles
from datasets.timeseries import TimeSeries

if TYPE_CHECKING:
    import ray.data


LAG = 24  # hours after which the temperature acts on demand
NOISE = 0.06  # deviation of the noise, as a share of a series' level
START = 19_723 * DAY  # 2024-01-01, a Monday; microseconds since 1970


def build(
    *, shape: Literal["hourly_demand"] = "hourly_demand", series: int = 8, days: int = 60, seed: int = 0
) -> HourlyDemand:
    """Time series that need no files.

    Args:
        shape: hourly_demand: hourly demand in several places (trend, daily and weekly season, effect of the temperature
            of the day before, white noise), 70 % training, 15 % validation, 15 % test.
        series: number of places.
        days: length of each series.
        seed: of the random generator.

    Raises:
        ValueError: less than one series or 14 days.
    """
    if shape != "hourly_demand":
        raise ValueError(f"dataset.shape={shape!r} is not known; the shapes are hourly_demand")
    if seed < 0:
        raise ValueError(f"dataset.seed={seed} is too small; use at least 0")
    if series < 1 or days < 14:
        raise ValueError(f"dataset.series={series} and dataset.days={days}: at least 1 series of 14 days is needed")
    options = timeseries.build(
        "generated",
        time="time",
        series="place",
        targets=["demand"],
        covariates=["temperature"],
        split={"train": 0.7, "validation": 0.15, "test": 0.15},
    )
    shared = {name: value for name, value in vars(options).items() if name != "categories"}
    return HourlyDemand(**shared, places=series, days=days, seed=seed)


@dataclass
class HourlyDemand(TimeSeries):
    """Demand that depends on level, trend, hour, weekend and the temperature a day before, plus white noise.

    A model that reads 24 hours or more and forecasts 24 or less can know everything except the noise, so the variance
    of the noise is the best expected mean squared error (that of a finite test split differs a little).
    """

    places: int = 8
    days: int = 60
    seed: int = 0
    kind: ClassVar[str] = "generated"

    def files_with_splits(self) -> SplitFiles:
        """One entry that is no file, only a name for messages."""
        return [(SourceFile("generated", 0, 0), "")]

    def sources(self) -> list[SourceFile]:
        """No files: the options determine the data."""
        return []

    def state(self, summaries: Sequence[State]) -> State:
        """The state of a TimeSeries, and ``best``: mse and mae (scaled) of a model that knows all except the noise."""
        state = super().state(summaries)
        noise = [self.noise(int(summary["name"].removeprefix("place-"))) / summary["std"][0] for summary in summaries]
        state["best"] = {
            "mse": float(np.mean(np.square(noise))),
            "mae": float(np.mean(noise)) * math.sqrt(2 / math.pi),
            "lookback": LAG,
            "horizon": LAG,
        }  # for this lookback or more, and this horizon or less
        return state

    def noise(self, place: int) -> float:
        """Standard deviation of the noise, in units of demand."""
        return NOISE * _level(self.seed, place)

    def signal(self, place: int) -> tuple[Floats, Floats]:
        """(demand without noise, temperature), (hours,) each; demand depends on the temperature LAG hours before."""
        rng = np.random.default_rng([self.seed, place, 1])
        hours = np.arange(-LAG, 24 * self.days)
        weather = np.zeros(len(hours))
        for t, shock in enumerate(rng.normal(size=len(hours))):
            weather[t] = 0.95 * weather[t - 1] + shock if t else shock / math.sqrt(1 - 0.95**2)
        temperature = 12 + 4 * np.sin(2 * np.pi * (hours - 9) / 24) + 1.5 * weather
        now, phase, effect = hours[LAG:], rng.uniform(-2, 2), rng.uniform(0.02, 0.04)
        day = 2 * np.pi * (now - phase) / 24
        shape = 0.2 * np.sin(day - 2) + 0.08 * np.sin(2 * day) - 0.15 * ((now // 24) % 7 >= 5)
        trend = 0.1 * now / len(now)
        return _level(self.seed, place) * (1 + trend + shape + effect * (temperature[:-LAG] - 12)), temperature[LAG:]

    def rows(self, place: int) -> tuple[Ints, Floats, Floats]:
        """(times, demand, temperature), (hours,) each: the columns of a file of this place."""
        signal, temperature = self.signal(place)
        rng = np.random.default_rng([self.seed, place, 2])
        times = START + HOUR * np.arange(len(signal), dtype=np.int64)
        return times, signal + rng.normal(scale=self.noise(place), size=len(signal)), temperature

    def _segments(self, files: SplitFiles) -> ray.data.Dataset:
        import ray.data

        return ray.data.range(self.places, override_num_blocks=1).map_batches(
            functools.partial(_to_segments, self), batch_size=None, batch_format="pyarrow"
        )


def _level(seed: int, place: int) -> float:
    return float(np.random.default_rng([seed, place, 0]).uniform(50, 150))


def _to_segments(dataset: HourlyDemand, batch: pa.Table) -> Iterator[pa.Table]:
    for place in batch["id"].to_pylist():
        times, demand, temperature = dataset.rows(place)
        block: dict[str, Any] = {
            "time": pa.array(times).cast(pa.timestamp("us")),
            "place": [f"place-{place:02d}"] * len(times),
            "demand": demand,
            "temperature": temperature,
            "__file": ["generated"] * len(times),
            "__row": np.arange(1, len(times) + 1),
        }
        yield segments.parse_segments(dataset, segments.FileList.of(dataset.files_with_splits()), pa.table(block))
