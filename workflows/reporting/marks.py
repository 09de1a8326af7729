"""What charts consist of: lines, intervals, points, their styles, and the chart itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

WIDTH = 4.5  # inches, of 72 SVG units: what a phone shows at about its natural size
SHADES = 8  # sequential colours, --s0 (best) to --s7 (worst)
VARIABLES = {
    "#0101e0": "--ink",
    "#0101e1": "--muted",
    "#0101e2": "--grid",
    "#0101e3": "--card",
    **{f"#0101c{i}": f"--c{i}" for i in range(5)},
    **{f"#0101d{i}": f"--s{i}" for i in range(SHADES)},
}
INK, MUTED, GRID, CARD, *_ = VARIABLES
Dash = Literal["-", "--", ":", "-.", ""]
Marker = Literal["o", "s", "D", "^", "x", ""]


@dataclass(frozen=True)
class Style:
    """How one thing is drawn in all charts.

    Attributes:
        colour: a placeholder, one of VARIABLES.
        marker: of points; "" for none.
        dash: of lines; "" for none.
    """

    colour: str
    marker: Marker = ""
    dash: Dash = "-"

    @property
    def variable(self) -> str:
        """The CSS variable of its colour."""
        return VARIABLES[self.colour]


MAIN = Style("#0101c0", "o", "-")
SECOND = Style("#0101c1", "s", "--")
REFERENCE = Style(MUTED, "", ":")
FAMILIES = {
    "gru": MAIN,
    "lstm": SECOND,
    "transformer": Style("#0101c2", "D", "-."),
    "rnn": Style("#0101c3", "^", ":"),
}


@dataclass(frozen=True)
class LegendEntry:
    """One entry of a chart's legend, which the page shows next to the chart."""

    label: str
    style: Style


@dataclass(frozen=True)
class Chart:
    """A drawing and its texts.

    Attributes:
        svg: markup.
        caption: plain text.
        legend: its entries.
        wide: whether it takes the whole width of the page.
        units: the width for which it was drawn, in SVG units.
        shades: labels of the best and the worst end of the sequential colours; None if they are not used.
    """

    svg: str
    caption: str
    legend: list[LegendEntry] = field(default_factory=list)
    wide: bool = False
    units: float = WIDTH * 72
    shades: tuple[str, str] | None = None


@dataclass(frozen=True)
class Curve:
    """One line of a line chart.

    Attributes:
        x, y: of its points.
        style: how it is drawn.
        strong: False draws it faint, as one of many.
        error: (low, high) of the interval of each y; may be empty.
        ringed: index of the point to mark with a ring; None for none.
    """

    x: Sequence[float]
    y: Sequence[float]
    style: Style = MAIN
    strong: bool = True
    error: Sequence[tuple[float | None, float | None]] = ()
    ringed: int | None = None


@dataclass(frozen=True)
class IntervalRow:
    """One row of an interval chart.

    Attributes:
        name: of the row.
        value: the mean, or the value of a reference.
        low, high: ends of the interval; None if there is none.
        single: the values of which `value` is the mean.
        style: how it is drawn; None for a reference, which the other rows are compared with.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    single: Sequence[float] = ()
    style: Style | None = None


@dataclass(frozen=True)
class CostPoint:
    """One point of a cost chart: its cost, its value, and a name, which is shown if there is space."""

    cost: float
    value: float
    name: str = ""
    style: Style = MAIN
    low: float | None = None
    high: float | None = None


def styles_for(names: Iterable[str]) -> dict[str, Style]:
    """A style for each name: the known families have their own, other names get the remaining ones."""
    names = list(names)
    free = [style for family, style in FAMILIES.items() if family not in names] or list(FAMILIES.values())
    others = [n for n in names if n not in FAMILIES]
    return {n: FAMILIES[n] if n in FAMILIES else free[others.index(n) % len(free)] for n in names}
