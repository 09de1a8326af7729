"""Numbers as people read them: in text and in cells of tables."""

from __future__ import annotations

import math

from workflows.reporting.drawing import finite_numbers, format_number
from workflows.reporting.parts import Cell, Summary


def difference_text(value: float, other: float, maximise: bool) -> str:
    """How a value compares with another: "32 % below", "0.12 above"."""
    if value == other:
        return "the same as"
    side = "below" if value < other else "above"
    if maximise or other <= 0 or value < 0 or value > 10 * other:
        return f"{format_number(abs(value - other))} {side}"
    percent = 100 * abs(1 - value / other)
    return f"{percent:.0f} % {side}" if percent >= 1 else f"{percent:.1g} % {side}"


def direction_text(maximise: bool) -> str:
    return "higher is better" if maximise else "lower is better"


def family_mean(family: Summary, metric: str) -> float:
    """The mean of a family's metric; NaN if it has none."""
    return mean_of(family["metrics"].get(metric))


def mean_of(value: object) -> float:
    """A plain number, or the mean of an estimate with an interval; NaN if there is none."""
    numbers = finite_numbers([value.get("mean") if isinstance(value, dict) else value])
    return numbers[0] if numbers else math.nan


def interval_of(value: object) -> tuple[float | None, float | None]:
    """The ends of an estimate's interval; None if it has none."""
    if not isinstance(value, dict) or len(finite_numbers([value.get("low"), value.get("high")])) < 2:
        return None, None
    return float(value["low"]), float(value["high"])


def seed_values(family: Summary, metric: str) -> list[object]:
    """The metric of each seed of a family."""
    value = family["metrics"].get(metric)
    return list(value.get("seeds") or []) if isinstance(value, dict) else []


def value_text(value: object) -> str:
    """The value of a setting."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return f"[{', '.join(value_text(v) for v in value)}]"
    return format_number(value)


def number_cell(value: object, title: str = "", *, full: bool = False) -> Cell:
    return Cell(format_number(value, full=full), sort_key(value), title)


def metric_cell(value: object, title: str = "") -> Cell:
    """A number with as many digits as those above and below it."""
    return number_cell(value, title, full=True)


def setting_cell(settings: Summary, key: str) -> Cell:
    if key not in settings:
        return Cell("not set", style="quiet")
    value = settings[key]
    return Cell(value_text(value), sort_key(value))


def probability_cell(value: object) -> Cell:
    p = sort_key(value)
    return Cell("–") if p is None else Cell(f"{p:.3f}" if p >= 0.0005 else "< 0.001", p)


def interval_cell(value: object, *, full: bool = True) -> Cell:
    low, high = interval_of(value)
    return Cell(f"{format_number(low, full=full)} to {format_number(high, full=full)}" if low != high else "", low)


def sort_key(value: object) -> float | None:
    """The number by which a cell is sorted; None if the value is no finite number."""
    numbers = finite_numbers([value])
    return numbers[0] if numbers else None


def parse_number(text: str) -> float:
    """The number that a text stands for; NaN if it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def duration_cell(value: object) -> Cell:
    return Cell(duration_text(value), sort_key(value))


def duration_text(value: object) -> str:
    """A duration, of which `value` is the number of seconds."""
    numbers = finite_numbers([value])
    if not numbers:
        return "–"
    if numbers[0] < 60:
        return f"{numbers[0]:.3g} s"
    minutes, seconds = divmod(round(numbers[0]), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def bytes_cell(value: object) -> Cell:
    """A size in memory, of which `value` is the number of bytes."""
    numbers = finite_numbers([value])
    if not numbers:
        return Cell("–")
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if numbers[0] >= size:
            return Cell(f"{numbers[0] / size:.3g} {unit}", numbers[0])
    return Cell(f"{numbers[0]:.0f} B", numbers[0])
