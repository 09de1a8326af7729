"""Frequencies and calendars: the times of the steps of a series.

Times are int64, microseconds since 1970, or whole numbers. Shapes: L times.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Calendar = Literal["minute", "hour", "weekday", "monthday", "yearday", "month"]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
SECOND = 1_000_000  # time is counted in microseconds since 1970
HOUR, DAY = 3600 * SECOND, 86_400 * SECOND
UNITS = {"W": 7 * DAY, "D": DAY, "h": HOUR, "min": 60 * SECOND, "s": SECOND, "ms": 1000, "us": 1}
SEASONS = {
    "1min": 1440,
    "5min": 288,
    "10min": 144,
    "15min": 96,
    "30min": 48,
    "1h": 24,
    "1D": 7,
    "1W": 52,
    "1M": 12,
    "3M": 4,
}


def time_labels(times: Ints, style: str) -> list[str]:
    """Times as text: by a strftime format, or as whole numbers when `style` is ""."""
    if not style:
        return [str(time) for time in times.tolist()]
    return [(datetime(1970, 1, 1) + timedelta(microseconds=time)).strftime(style) for time in times.tolist()]


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
        raise ValueError(
            f"dataset.frequency={text!r} is not understood; give auto, a whole number, or a count and one "
            f"of {', '.join([*UNITS, 'M (month)', 'Y (year)'])}, such as 15min or 1h"
        )

    def __str__(self) -> str:
        if self.unit == "step":
            return str(self.count)
        if self.unit == "month":
            return f"{self.count}M" if self.count % 12 else f"{self.count // 12}Y"
        name, size = next((name, size) for name, size in UNITS.items() if self.count % size == 0)
        return f"{self.count // size}{name}"

    @staticmethod
    def infer(times: Ints, kind: str) -> Frequency:
        """The most common distance of neighbours; in months if it is at least 28 days and most times fit months."""
        common = _most_common(np.diff(times))
        if kind == "integer":
            return Frequency(common, "step")
        if common >= 28 * DAY:
            months = Frequency(max(_most_common(np.diff(month_of(times))), 1), "month")
            if months.steps(times)[1].mean() > 0.5:
                return months
        return Frequency(common, "us")

    def steps(self, times: Ints) -> tuple[Ints, NDArray[np.bool_]]:
        """Steps (L,) from the first of `times` (L,) to each, and whether each time lies on a step (L,)."""
        if self.unit != "month":
            steps, remainder = np.divmod(times - times[0], self.count)
            return steps, remainder == 0
        months = month_of(times)
        steps, remainder = np.divmod(months - months[0], self.count)
        return steps, (remainder == 0) & (times == _in_month(months, _day_in_month(times)))

    def grid(self, times: Ints, length: int) -> Ints:
        """The times of `length` steps, beginning with the first of `times`."""
        if self.unit != "month":
            return np.int64(times[0]) + self.count * np.arange(length, dtype=np.int64)
        return _in_month(month_of(times[:1]) + self.count * np.arange(length, dtype=np.int64), _day_in_month(times))

    def after(self, times: Ints, count: int) -> Ints:
        """The times of the `count` steps after the last of `times`, all of which lie on steps."""
        return self.grid(times, int(self.steps(times)[0][-1]) + 1 + count)[-count:]


def _most_common(distances: Ints) -> int:
    values, counts = np.unique(distances[distances > 0], return_counts=True)
    return int(values[np.argmax(counts)]) if len(values) else 1


def month_of(times: Ints) -> Ints:
    """Months since January 1970."""
    months: Ints = times.view("M8[us]").astype("M8[M]").astype(np.int64)
    return months


def month_start(months: Ints) -> Ints:
    """The times at which months begin; months are counted from January 1970."""
    starts: Ints = months.astype("M8[M]").astype("M8[us]").astype(np.int64)
    return starts


def _day_in_month(times: Ints) -> int:
    """The latest position within a month of any of the times, in microseconds: the 31st for ends of months."""
    return int((times - month_start(month_of(times))).max())


def _in_month(months: Ints, point: int) -> Ints:
    """The position `point` in each month, or on its last day if the month is shorter."""
    starts, ends = month_start(months), month_start(months + 1)
    return np.minimum(starts + point, ends - DAY + point % DAY)


# Calendar


def calendar_names(calendar: Sequence[Calendar]) -> list[str]:
    """Names of the calendar channels, in order."""
    return [f"{part}_{wave}" for part in calendar for wave in ("sin", "cos")]


def calendar_channels(times: Ints, calendar: Sequence[Calendar]) -> Floats:
    """(L, 2 * parts): sine and cosine of the position in the hour, day, week, month or year; times in microseconds."""
    channels = np.empty((len(times), 2 * len(calendar)))
    stamps = times.view("M8[us]")
    months, years = month_of(times), stamps.astype("M8[Y]").astype(np.int64)
    for i, part in enumerate(calendar):
        if part == "minute":
            phase = (times % HOUR) / HOUR
        elif part == "hour":
            phase = (times % DAY) / DAY
        elif part == "weekday":
            phase = ((times // DAY + 3) % 7) / 7  # 1970-01-01 was a Thursday; Monday is 0
        elif part == "month":
            phase = (months % 12) / 12
        else:
            cycle, first = (months, month_start) if part == "monthday" else (12 * years, month_start)
            start, end = first(cycle), first(cycle + (1 if part == "monthday" else 12))
            phase = (times - start) // DAY / ((end - start) // DAY)
        channels[:, 2 * i], channels[:, 2 * i + 1] = np.sin(2 * np.pi * phase), np.cos(2 * np.pi * phase)
    return channels
