"""The parts of a chart, drawn by matplotlib: figure, axes, ticks, lines, labels, and number formats."""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from workflows.reporting.marks import (
    CARD,
    GRID,
    INK,
    MUTED,
    SHADES,
    VARIABLES,
    WIDTH,
    Chart,
    CostPoint,
    Curve,
    IntervalRow,
    LegendEntry,
    Style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

MARGIN = 1.0  # a reference line is drawn if it is at most this many times the range of the curves away from them
INTERVAL_MARGIN = 0.35  # the same for intervals, whose differences must stay visible
DECADES = 30  # an axis is logarithmic if the highest value is more than this many times the lowest
MAX_CATEGORIES = 6  # a setting with more different numbers than this has a scale, with fewer a label for each
SHADE = [f"#0101d{i}" for i in range(SHADES)]
STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name may contain a "$"
    "font.size": 11,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "axes.formatter.useoffset": False,
    "lines.solid_capstyle": "round",
    "lines.dash_capstyle": "round",
    "axes.xmargin": 0.03,
    "axes.ymargin": 0.06,
}


def format_number(value: object, *, full: bool = False) -> str:
    """A number for people, with four significant digits.

    Args:
        value: a number; None gives "–", anything else its text.
        full: whether to show all four digits even if the last ones are 0.
    """
    if value is None or isinstance(value, str | bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = (
        f"{value:,.0f}"
        if isinstance(value, int) or abs(value) >= 1000
        else (f"{value:#.4g}" if full else f"{value:.4g}")
    )
    mantissa, exponent, power = text.partition("e")
    return (f"{mantissa} × 10^{int(power)}" if exponent else mantissa).replace("-", "−")


def finite_numbers(values: Iterable[object]) -> list[float]:
    """Those of the values that are finite numbers."""
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


class ParallelAxis:
    """One vertical axis of a parallel coordinates chart.

    Args:
        key: the setting, or the metric.
        values: of each trial; None if the setting is not set.
        log: whether numbers have a logarithmic scale; None: each of them a label, if there are few.
        ends: lowest and highest number of the scale; None: those of the values.
        flip: whether the lowest number is at the top.

    Attributes:
        positions: of each trial's value, in 0..1 from bottom to top.
        ticks: (label, position).
    """

    def __init__(
        self,
        key: str,
        values: Sequence[Any],
        *,
        log: bool | None,
        ends: tuple[float, float] | None = None,
        flip: bool = False,
    ) -> None:
        self.key = key
        present = [v for v in values if v is not None]
        missing = len(present) < len(values)
        numeric = bool(present) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in present)
        self.bottom = 0.13 if missing else 0.0  # "not set" is below all values
        self.ticks: list[tuple[str, float]] = [("not set", 0.0)] if missing else []
        if numeric and (len(set(present)) > (MAX_CATEGORIES if log is None else 1) or ends):
            position = self._add_scale(ends or (min(present), max(present)), bool(log), flip)
        else:
            labels = [_label(v) for v in sorted(set(present))] if numeric else sorted({_label(v) for v in present})
            position = self._add_categories(labels)
        self.positions = [0.0 if v is None else position(v) for v in values]

    def _at(self, share: float) -> float:
        return self.bottom + (1 - self.bottom) * min(1.0, max(0.0, share))

    def _add_categories(self, labels: list[str]) -> Callable[[Any], float]:
        """Add a tick for each label; returns the position of a value."""
        by_label = {label: self._at((i + 0.5) / len(labels)) for i, label in enumerate(labels)}
        self.ticks += [(shorten(label, 13), position) for label, position in by_label.items()]
        return lambda value: by_label[_label(value)]

    def _add_scale(self, ends: tuple[float, float], log: bool, flip: bool) -> Callable[[float], float]:
        """Add the ticks of a scale of numbers; returns the position of a number."""
        scale = Scale(*ends, log=log)
        between = [10.0**e for e in range(-12, 16)] if scale.log else [scale.at(0.5)]

        def position(value: float) -> float:
            share = scale.share(value) if value > 0 or not scale.log else 0.0
            return self._at(1 - share if flip else share)

        candidates = {v: position(v) for v in (*ends, *between) if ends[0] <= v <= ends[1]}
        shown = [v for v in candidates if v in ends or min(abs(candidates[v] - candidates[e]) for e in ends) > 0.1]
        self.ticks += [
            (f"{v:.2g}".replace("-", "−") if abs(v) < 100 else format_number(v), candidates[v]) for v in shown
        ]
        return position


class Scale:
    """A scale from `low` to `high`, logarithmic if `log` or if they are decades apart."""

    def __init__(self, low: float, high: float, *, log: bool = False) -> None:
        self.log = low > 0 and (log or high > DECADES * low)
        self.low, self.high = low, high
        self.transform: Callable[[float], float] = math.log if self.log else float
        self.inverse: Callable[[float], float] = math.exp if self.log else float

    def at(self, share: float) -> float:
        """The value at a share of the way from the lowest (0) to the highest (1)."""
        low, high = self.transform(self.low), self.transform(self.high)
        return self.inverse(low + share * (high - low))

    def share(self, value: float) -> float:
        """The inverse of `at`: the share of the way at which a value lies."""
        low, high = self.transform(self.low), self.transform(self.high)
        return (self.transform(value) - low) / (high - low)

    def reaches(self, value: float, margin: float) -> bool:
        """Whether a value lies inside, or outside by at most `margin` times the scale's length."""
        return (value > 0 or not self.log) and -margin <= self.share(value) <= 1 + margin

    def including(self, values: Iterable[float]) -> Scale:
        """The scale extended to include these values."""
        return Scale(*value_span([self.low, self.high, *values]), log=self.log)

    def padded(self, below: float, above: float) -> tuple[float, float]:
        """The ends of the scale, extended by a share of its length below and above."""
        return self.at(-below), self.at(1 + above)


class Drawing:
    """A figure in the report's style: drawn inside a ``with`` statement, then returned by `chart`."""

    def __init__(self, name: str) -> None:
        import matplotlib

        self.name = re.sub(r"\W+", "-", name)
        self.style = matplotlib.rc_context({**STYLE, "svg.hashsalt": self.name})
        self.width = WIDTH

    def __enter__(self) -> Drawing:
        self.style.__enter__()
        return self

    def __exit__(
        self, error: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.svg = self._save()
        finally:
            self.style.__exit__(error, value, traceback)

    def axes(self, height: float, *, width: float = WIDTH) -> Axes:
        """The axes of the figure, whose size is in inches."""
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        self.width = width
        self.figure = Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.04))
        return self.figure.subplots()

    def _save(self) -> str:
        file = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # text is only measured here; the browser draws it
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return _themed(file.getvalue(), self.name)

    def chart(self, caption: str, legend: list[LegendEntry]) -> Chart:
        label = html.escape(caption)
        svg = self.svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{label}" ', 1)
        return Chart(svg, caption, legend, units=self.width * 72)


def _themed(svg: str, name: str) -> str:
    """Matplotlib's SVG file as part of a page: without prologue and style, with unique ids and the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    referenced = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def tag(match: re.Match[str]) -> str:
        text = match[0]
        text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referenced else "", text)
        text = re.sub(
            r'xlink:href="#|url\(#',
            lambda m: f"{'href=' if 'href' in m[0] else 'url('}{chr(34) if 'href' in m[0] else ''}#{name}-",
            text,
        )
        text = re.sub(r"font(?:-size|-family|-weight)?: [^;\"]*(?:; )?", "", text)
        text = re.sub(r"#0101[c-e]\d", lambda m: f"var({VARIABLES[m[0]]})", text)
        text = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), text)
        text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"| style=""', "", text)
        if text.startswith("<svg"):
            text = re.sub(r' (?:width|height)="[^"]*"', "", text)
        return re.sub(r"\s*\n\s*", " ", text)

    svg = re.sub(r"<[^>]*>", tag, svg)
    return re.sub(r">\s+<", "><", svg).strip()


def drawable_points(curve: Curve, log_x: bool, log_y: bool) -> Curve:
    """The curve without points that cannot be drawn."""
    kept = [
        i
        for i, (x, y) in enumerate(zip(curve.x, curve.y, strict=True))
        if len(finite_numbers([x, y])) == 2 and (x > 0 or not log_x) and (y > 0 or not log_y)
    ]
    return replace(
        curve,
        x=[float(curve.x[i]) for i in kept],
        y=[float(curve.y[i]) for i in kept],
        error=[curve.error[i] for i in kept] if curve.error else (),
        ringed=kept.index(curve.ringed) if curve.ringed in kept else None,
    )


def draw_curve(axes: Axes, curve: Curve, width: float, faint: float) -> None:
    """Draw a curve with its markers, intervals and ring; `faint` is the opacity of one that is not strong."""
    style, last = curve.style, len(curve.x) - 1
    axes.plot(
        curve.x,
        curve.y,
        linestyle=style.dash or "none",
        color=style.colour,
        zorder=3 if curve.strong else 2,
        linewidth=width if curve.strong else 0.8,
        alpha=1 if curve.strong else faint,
        marker=style.marker or ("o" if last == 0 else ""),
        markevery=slice(0, None, max(1, len(curve.x) // 8)) if curve.strong else [last] if last >= 0 else [],
        markersize=5 if curve.strong else 4,
        markeredgecolor=style.colour if style.marker == "x" else CARD,
        markeredgewidth=0.8,
    )
    for x, y, (low, high) in zip(curve.x, curve.y, curve.error, strict=False):
        if low is not None and high is not None:
            axes.errorbar(x, y, [[max(0, y - low)], [max(0, high - y)]], color=style.colour, capsize=3, linewidth=1.4)
    if curve.ringed is not None:
        draw_ring(axes, curve.x[curve.ringed], curve.y[curve.ringed])


def draw_ring(axes: Axes, x: float, y: float) -> None:
    axes.plot(x, y, "o", markersize=12, fillstyle="none", color=INK, zorder=4)


def draw_references(axes: Axes, references: Mapping[str, float], scale: Scale, maximise: bool) -> None:
    """Draw dotted lines with their names, on the side that learning curves leave free: curves end where it is good."""
    previous = -math.inf
    for name, value in sorted(references.items(), key=lambda pair: pair[1]):
        share = scale.share(value)
        below = share - previous > 0.2
        left = (share > 0.5) == maximise
        axes.axhline(value, color=MUTED, linestyle=":", linewidth=1.3, zorder=1)
        axes.annotate(
            f"{shorten(name, 22)} {format_number(value)}",
            (0.02 if left else 0.99, value),
            (0, -3 if below else 3),
            ha="left" if left else "right",
            va="top" if below else "bottom",
            color=MUTED,
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
        )
        previous = share


def draw_interval(axes: Axes, y: int, row: IntervalRow, style: Style) -> None:
    """Draw an interval and its mean, and below them the single values."""
    up = 0.16 if len(row.single) > 1 else 0
    if row.low is not None and row.high is not None:
        axes.plot(
            [row.low, row.high],
            [y - up] * 2,
            "|-",
            color=style.colour,
            linewidth=2.4,
            markersize=9,
            markeredgewidth=2,
        )
    axes.plot(row.value, y - up, style.marker, color=style.colour, markersize=8, markeredgecolor=CARD, zorder=4)
    if len(row.single) > 1:
        axes.plot(
            row.single,
            [y + 0.22] * len(row.single),
            style.marker,
            color=style.colour,
            fillstyle="none",
            markersize=5,
            markeredgewidth=1.2,
        )


def label_points(axes: Axes, points: Sequence[CostPoint]) -> None:
    """Write the names of points, the last point first, if there is space for them."""
    labelled: list[tuple[float, float]] = []
    for p in reversed(points):
        x, y = axes.transData.transform((p.cost, p.value)) * 72 / axes.figure.dpi
        if all(abs(x - a) > 34 or abs(y - b) > 14 for a, b in labelled):
            labelled.append((x, y))
            axes.annotate(shorten(p.name, 6), (p.cost, p.value), (6, 5), textcoords="offset points")


def draw_label(axes: Axes, x: float, y: float, text: str, *, right: bool) -> None:
    """Write a text next to a point, on its right or left side."""
    axes.annotate(
        text,
        (x, y),
        (7 if right else -7, 0),
        textcoords="offset points",
        va="center",
        ha="left" if right else "right",
        color=INK,
        annotation_clip=False,
    )


def value_span(values: Iterable[float], *, min_size: float = 0.002) -> tuple[float, float]:
    """The lowest and the highest value, widened if they are less than `min_size` of the values' size apart."""
    numbers = finite_numbers(values) or [0.0, 1.0]
    low, high = min(numbers), max(numbers)
    short = (min_size * max(abs(low), abs(high)) or 1.0) - (high - low)
    return (low - short / 2, high + short / 2) if short > 0 else (low, high)


def value_range(values: Sequence[float], required: Sequence[float], maximise: bool) -> tuple[tuple[float, float], int]:
    """The range of values to show: without a few very bad ones, which would flatten the others.

    Args:
        values: numbers, of which some may be left out.
        required: numbers that must be inside.
        maximise: whether the highest value is best.

    Returns:
        (lowest, highest), and how many of the values lie outside.
    """
    ranked = sorted(finite_numbers(values), reverse=maximise)
    if len(ranked) < 5:
        return value_span([*ranked, *required]), 0
    best, usual, worst = ranked[0], ranked[int(0.85 * (len(ranked) - 1))], ranked[-1]
    limit = best + 1.6 * (usual - best)
    inside = [v for v in ranked if (v >= limit if maximise else v <= limit)] if usual != best else ranked
    if abs(worst - best) < 2.5 * abs(usual - best):
        inside = ranked
    return value_span([*inside, *required]), len(ranked) - len(inside)


def left_out_text(references: Mapping[str, float], points: int) -> list[str]:
    """Sentences about what a chart does not show: references by name, and a number of points."""
    sentences = []
    if references:
        listed = ", ".join(f"{name} {format_number(value)}" for name, value in references.items())
        sentences.append(f"Outside the chart: {listed}.")
    if points:
        sentences.append(f"{points:,} much worse value{'s lie' if points > 1 else ' lies'} outside.")
    return sentences


def limit_ticks(axis: Axis, count: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(count))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick_label(v)))


def integer_ticks(axis: Axis, values: Sequence[float], log: bool) -> None:
    """Put ticks only at whole numbers if all values are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    if not log and values and all(v == int(v) for v in values):
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def set_log_scale(axes: Axes, side: Literal["x", "y"], values: Iterable[float]) -> None:
    """Make an axis logarithmic, with plain numbers as ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = value_span(v for v in values if v > 0)
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    steps = [m * 10.0**e for e in range(-12, 16) for m in (1, 2, 5)]
    inside = [s for s in steps if 0.95 * low <= s <= 1.05 * high]
    if len(inside) > 6:
        inside = [s for s in inside if math.isclose(math.log10(s), round(math.log10(s)))]
        inside = inside[:: max(1, math.ceil(len(inside) / 6))]
    if len(inside) < 2:
        inside = [low, high]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick_label(v)))
    axis.set_minor_locator(NullLocator())


def _tick_label(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e−").replace("e-", "e−")
    return f"{value:.4g}".replace("-", "−")


def _label(value: object) -> str:
    return format_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def shorten(text: str, length: int) -> str:
    """The text on one line, cut to at most `length` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


def two_line_label(key: str) -> str:
    """A setting's name on two lines: its section above its last part."""
    section, dot, name = shorten(key, 60).rpartition(".")
    return f"{shorten(section, 15)}{dot}\n{shorten(name, 15)}"
