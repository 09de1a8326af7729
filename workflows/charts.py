"""Charts for the report: drawn by matplotlib, handed over as SVG that takes its colours from the page's style sheet.

A colour here is a stand-in, which `_themed` replaces by a CSS variable, so that one drawing serves light and dark. No
meaning hangs on colour alone: families differ in marker and dash, too. Text stays text, in the reader's own font.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

WIDTH = 4.5                 # inches, of 72 SVG units: what a phone shows at about its natural size
ROOM = 1.0                  # a line to hold others against is drawn where it lies within so many spans of them
NEAR = 0.35                 # the same for intervals, whose differences are what is to be seen
DECADES = 30                # an axis is logarithmic where the highest value is more than so many times the lowest
FEW = 6                     # numbers that a setting takes: so many stand side by side, more on a scale
SHADES = 8                  # of the sequential colours --s0 (best) to --s7
VARIABLES = {"#0101e0": "--ink", "#0101e1": "--muted", "#0101e2": "--grid", "#0101e3": "--card",
             **{f"#0101c{i}": f"--c{i}" for i in range(5)}, **{f"#0101d{i}": f"--s{i}" for i in range(SHADES)}}
INK, MUTED, GRID, CARD, *_ = VARIABLES
SHADE = [f"#0101d{i}" for i in range(SHADES)]
STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "text.parse_math": False,          # a name with a "$" in it is a name
    "font.size": 11, "text.color": INK, "axes.titlesize": 11, "axes.titlecolor": MUTED, "axes.titlelocation": "left",
    "axes.edgecolor": GRID, "axes.labelcolor": MUTED, "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID,
    "grid.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
    "xtick.color": GRID, "ytick.color": GRID, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "ytick.major.size": 0, "xtick.major.size": 3, "lines.linewidth": 1.8, "lines.markersize": 5,
    "axes.formatter.useoffset": False,
    "lines.solid_capstyle": "round", "lines.dash_capstyle": "round", "axes.xmargin": 0.03, "axes.ymargin": 0.06,
}
Dash = Literal["-", "--", ":", "-.", ""]
Marker = Literal["o", "s", "D", "^", "x", ""]


@dataclass(frozen=True)
class Look:
    """How one thing is drawn in all charts."""

    colour: str
    marker: Marker = ""
    dash: Dash = "-"

    @property
    def variable(self) -> str:
        return VARIABLES[self.colour]


PLAIN = Look("#0101c0", "o", "-")
AGAINST = Look("#0101c1", "s", "--")
REFERENCE = Look(MUTED, "", ":")
FAMILIES = {"gru": PLAIN, "lstm": AGAINST, "transformer": Look("#0101c2", "D", "-."),
            "rnn": Look("#0101c3", "^", ":")}


@dataclass(frozen=True)
class Key:
    """One entry of a chart's legend, which the page sets beside it."""

    label: str
    look: Look


@dataclass(frozen=True)
class Chart:
    """A drawing and its words: `svg` is markup, all else plain text. `units` is the width it was drawn for."""

    svg: str
    caption: str
    keys: list[Key] = field(default_factory=list)
    wide: bool = False
    units: float = WIDTH * 72
    shades: tuple[str, str] | None = None        # what the best and the worst of the sequential colours stand for


@dataclass(frozen=True)
class Line:
    """One line: its points, and how it is drawn. `error` gives (low, high) of each y."""

    x: Sequence[float]
    y: Sequence[float]
    look: Look = PLAIN
    strong: bool = True
    error: Sequence[tuple[float | None, float | None]] = ()
    ring: int | None = None                      # the point to point out


@dataclass(frozen=True)
class Row:
    """One row of `intervals`: a value, the ends of its interval, and the single values it was made of."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    single: Sequence[float] = ()
    look: Look | None = None                     # None: what the others are held against


@dataclass(frozen=True)
class Point:
    """One point of `costs`: what it costs, what it reaches, and a name where it may be told."""

    cost: float
    value: float
    name: str = ""
    look: Look = PLAIN
    low: float | None = None
    high: float | None = None


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name: the families' own, and for others what is left of them."""
    names = list(names)
    free = [look for family, look in FAMILIES.items() if family not in names] or list(FAMILIES.values())
    others = [n for n in names if n not in FAMILIES]
    return {n: FAMILIES[n] if n in FAMILIES else free[others.index(n) % len(free)] for n in names}


def number(value: object, *, full: bool = False) -> str:
    """A number to read: four digits that count, with `full` also where they are 0; "–" for what is none."""
    if value is None or isinstance(value, str | bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    text = f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else \
        (f"{value:#.4g}" if full else f"{value:.4g}")
    mantissa, exponent, power = text.partition("e")
    return (f"{mantissa} × 10^{int(power)}" if exponent else mantissa).replace("-", "−")


def finite(values: Iterable[Any]) -> list[float]:
    """Those of the values that are numbers."""
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]


def lines(name: str, drawn: Sequence[Line], *, x: str, y: str, caption: str, keys: Sequence[Key] = (),
          levels: Mapping[str, float] | None = None, log_x: bool = False, log_y: bool = False,
          maximise: bool = False) -> Chart:
    """Lines over a common axis, with `levels` as lines to hold them against; what spans decades is logarithmic."""
    drawn = [_kept(line, log_x, log_y) for line in drawn]
    values = finite(v for line in drawn for v in [*line.y, *(e for pair in line.error for e in pair)])
    crowd = any(not line.strong for line in drawn)
    seen, outside = _range(values, [], maximise) if crowd else (_span(values), 0)
    scale = _Scale(*seen, log=log_y)
    near = {n: v for n, v in (levels or {}).items() if scale.reaches(v, ROOM)}
    caption = " ".join([caption, *_left_out({n: v for n, v in (levels or {}).items() if n not in near}, outside)])
    strong = sum(line.strong for line in drawn)
    width, faint = 2 if strong <= len(FAMILIES) else 1.3, min(0.55, max(0.12, 20 / max(1, len(drawn))))
    with _Drawing(name) as drawing:
        axis = drawing.axis(2.6)
        for line in sorted(drawn, key=lambda line: line.strong):
            _draw_line(axis, line, width, faint)
        lowest = min(near.values(), default=math.inf)
        scale = scale.around(near.values())
        pads = 0.17 if lowest < scale.at(0.12) else 0.06, 0.09           # room for a name below the lowest line
        if scale.log:
            _log(axis, "y", scale.ends(*pads))
        axis.set_ylim(*scale.ends(*pads))
        _draw_levels(axis, near, scale, maximise)
        if log_x:
            _log(axis, "x", [v for line in drawn for v in line.x])
        _integers(axis.xaxis, [v for line in drawn for v in line.x], log_x)
        axis.set(title=_short(y, 46), xlabel=x)
    return drawing.chart(caption, [k for k in keys if near or k.look != REFERENCE])


def intervals(name: str, rows: Sequence[Row], *, metric: str, caption: str, maximise: bool) -> Chart:
    """A row for each name: single values, interval and middle; references as lines through all rows."""
    own = [r for r in rows if r.look is not None]
    scale = _Scale(*_span(finite(v for r in own for v in (r.value, r.low, r.high, *r.single)), least=0.02))
    near = [r for r in rows if r.look is None and scale.reaches(r.value, NEAR)]
    scale = scale.around(r.value for r in near)
    low, high = scale.ends(0.08, 0.08)
    with _Drawing(name) as drawing:
        axis = drawing.axis(0.75 + 0.36 * len(rows))
        for place, row in enumerate(rows):
            if row.look is not None:
                _draw_interval(axis, place, row, row.look)
            elif row in near:
                axis.axvline(row.value, color=MUTED, linestyle=":", linewidth=1.3)
                axis.plot(row.value, place, "|", color=INK, markersize=13, markeredgewidth=2)
                _beside(axis, row.value, place, number(row.value), right=row.value < scale.at(0.5))
            else:
                right = row.value > high
                edge = scale.at(1.06 if right else -0.06)
                axis.plot(edge, place, ">" if right else "<", color=MUTED, zorder=5)
                _beside(axis, edge, place, number(row.value), right=not right)
        axis.set_yticks(range(len(rows)), [_short(r.name, 18) for r in rows], color=INK)
        axis.set_ylim(len(rows) - 0.5, -0.5)
        if scale.log:
            _log(axis, "x", [low, high])
        else:
            _few(axis.xaxis, 4)
        axis.set_xlim(low, high)
        axis.grid(visible=False, axis="y")
        axis.set_xlabel(f"{_short(metric, 30)} ({'higher' if maximise else 'lower'} is better)")
    return drawing.chart(caption, [Key("mean and its interval", Look(INK, "o", "-")),
                                   Key("one seed (hollow)", Look(MUTED, "o", "")),
                                   *([Key("held against", REFERENCE)] if near else [])])


def bars(name: str, values: Mapping[str, float], *, axis_name: str, caption: str, strong: Iterable[str] = (),
         share: bool = False) -> Chart:
    """A bar a name, its value beside it; those in `strong` stand out."""
    strong = set(strong)
    with _Drawing(name) as drawing:
        axis = drawing.axis(0.62 + 0.3 * len(values))
        places = range(len(values))
        made = axis.barh(places, list(values.values()), height=0.62, color=GRID)
        for bar, (label, value) in zip(made, values.items(), strict=True):
            bar.set_color(PLAIN.colour if label in strong else GRID)
            bar.set_edgecolor(PLAIN.colour if label in strong else MUTED)
            text = f"{100 * value:.0f} %" if share else number(value)
            _beside(axis, max(value, 0), bar.get_y() + bar.get_height() / 2, text, right=True)
        axis.set_yticks(places, [_short(n, 22) for n in values], color=INK)
        axis.invert_yaxis()
        axis.grid(visible=False)
        axis.set_xticks([])
        axis.spines.bottom.set_visible(False)
        axis.axvline(0, color=MUTED, linewidth=0.8)
        axis.set_xlim(min(0, *values.values()), max(0, *values.values()) * 1.25 or 1)
        axis.set_title(_short(axis_name, 46))
    return drawing.chart(caption, [])


def costs(name: str, points: Sequence[Point], *, cost: str, metric: str, maximise: bool, caption: str,
          keys: Sequence[Key] = (), ring: str = "") -> Chart:
    """What is reached against what it costs. The front joins what nothing else beats in both."""
    points = [p for p in points if math.isfinite(p.value) and math.isfinite(p.cost) and p.cost > 0]
    best = front(points, maximise=maximise)
    seen, outside = _range([p.value for p in points], finite(e for p in points for e in (p.low, p.high)), maximise)
    scale = _Scale(*seen)
    with _Drawing(name) as drawing:
        axis = drawing.axis(2.8)
        axis.step([p.cost for p in best], [p.value for p in best], where="post", color=INK, linewidth=1.2, zorder=2)
        for look in dict.fromkeys(p.look for p in points):
            some = [p for p in points if p.look == look]
            axis.plot([p.cost for p in some], [p.value for p in some], look.marker, color=look.colour, markersize=6.5,
                      markeredgecolor=CARD, markeredgewidth=0.8, zorder=3)
        for p in points:
            if p.low is not None and p.high is not None:
                axis.plot([p.cost, p.cost], [p.low, p.high], color=p.look.colour, linewidth=2.2, zorder=2.5)
            if p.name and p.name == ring:
                axis.plot(p.cost, p.value, "o", markersize=12, fillstyle="none", color=INK, zorder=4)
        if len(points) and max(p.cost for p in points) > 8 * min(p.cost for p in points):
            _log(axis, "x", [p.cost for p in points])
        else:
            _few(axis.xaxis, 5)
        axis.margins(x=0.12)
        if scale.log:
            _log(axis, "y", scale.ends(0.08, 0.12))
        axis.set_ylim(*scale.ends(0.08, 0.12))
        _name_points(axis, [p for p in best if p.name])
        axis.set(title=f"{_short(metric, 30)} ({'higher' if maximise else 'lower'} is better)", xlabel=cost)
    return drawing.chart(" ".join([caption, *_left_out({}, outside)]), [*keys, Key("the front", Look(INK, "", "-"))])


def front(points: Sequence[Point], *, maximise: bool) -> list[Point]:
    """The points that no other beats in cost and value both, by cost."""
    found: list[Point] = []
    for p in sorted(points, key=lambda p: (p.cost, -p.value if maximise else p.value)):
        if not found or (p.value > found[-1].value if maximise else p.value < found[-1].value):
            found.append(p)
    return found


def parallel(name: str, trials: Sequence[Mapping[str, Any]], values: Sequence[float], *, metric: str, maximise: bool,
             caption: str, scales: Mapping[str, bool] | None = None) -> Chart:
    """Parallel coordinates: an upright axis a setting, the last one the metric; a line a trial, its colour by rank.

    Args:
        name: of the chart.
        trials: the settings of each; one that has no part in a trial is missing or null there.
        values: what each trial reached.
        metric: what they are called.
        maximise: whether higher is better.
        caption: what to say below.
        scales: settings drawn on a scale, and whether it is logarithmic; the others' values stand side by side.
    """
    order = sorted(range(len(values)), key=values.__getitem__, reverse=not maximise)         # the best is drawn last
    axes = [_Upright(key, [t.get(key) for t in trials], log=(scales or {}).get(key))
            for key in dict.fromkeys(k for t in trials for k in t)]
    axes.append(_Upright(metric, list(values), log=False, clip=_range(values, [], maximise)[0], flip=not maximise))
    wide = len(axes) > 3
    width, faint = 1.3 * len(axes) + 0.3 if wide else WIDTH, min(0.75, max(0.15, 40 / len(order)))
    with _Drawing(name) as drawing:
        axis = drawing.axis(3.4, width=width)
        for place, i in enumerate(order):
            shade = SHADE[SHADES - 1 - place * SHADES // len(order)]
            best = place == len(order) - 1
            axis.plot(range(len(axes)), [a.places[i] for a in axes], color=SHADE[0] if best else shade,
                      linewidth=3 if best else 1.1, alpha=1 if best else faint, marker="o" if best else "",
                      markeredgecolor=CARD, zorder=4 if best else 2, clip_on=False)
        for x, one in enumerate(axes):
            axis.axvline(x, color=MUTED, linewidth=1, zorder=3)
            for text, y in one.ticks:
                axis.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", color=MUTED, zorder=5)
        axis.set_xticks(range(len(axes)), [_broken(a.key) for a in axes], color=INK)
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set(yticks=[], xlim=(-0.08, len(axes) - 0.42), ylim=(-0.03, 1.03))
        axis.grid(visible=False)
        axis.spines.bottom.set_visible(False)
    return replace(drawing.chart(caption, [Key("the best", Look(SHADE[0], "o", "-"))]), wide=wide,
                   shades=(f"best {number(values[order[-1]])}", f"worst {number(values[order[0]])}"))


class _Upright:
    """One axis of parallel coordinates: where each trial's value lies in 0..1, and what is written beside."""

    def __init__(self, key: str, values: list[Any], *, log: bool | None, clip: tuple[float, float] | None = None,
                 flip: bool = False) -> None:
        self.key = key
        there = [v for v in values if v is not None]
        missing = len(there) < len(values)
        numeric = bool(there) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there)
        self.floor = 0.13 if missing else 0.0            # "not set" lies below all values
        self.ticks: list[tuple[str, float]] = [("not set", 0.0)] if missing else []
        if numeric and (len(set(there)) > (FEW if log is None else 1) or clip):
            place = self._numbers(clip or (min(there), max(there)), bool(log), flip)
        else:
            names = [_value(v) for v in sorted(set(there))] if numeric else sorted({_value(v) for v in there})
            spots = {n: self._at((i + 0.5) / len(names)) for i, n in enumerate(names)}
            self.ticks += [(_short(n, 13), y) for n, y in spots.items()]
            place = lambda v: spots[_value(v)]  # noqa: E731
        self.places = [0.0 if v is None else place(v) for v in values]

    def _at(self, share: float) -> float:
        return self.floor + (1 - self.floor) * min(1.0, max(0.0, share))

    def _numbers(self, ends: tuple[float, float], log: bool, flip: bool) -> Callable[[float], float]:
        scale = _Scale(*ends, log=log)
        between = [10.0 ** e for e in range(-12, 16)] if scale.log else [scale.at(0.5)]

        def place(value: float) -> float:
            share = scale.share(value) if value > 0 or not scale.log else 0.0
            return self._at(1 - share if flip else share)

        spots = {v: place(v) for v in (*ends, *between) if ends[0] <= v <= ends[1]}
        shown = [v for v in spots if v in ends or min(abs(spots[v] - spots[e]) for e in ends) > 0.1]
        self.ticks += [(f"{v:.2g}".replace("-", "−") if abs(v) < 100 else number(v), spots[v]) for v in shown]
        return place


class _Scale:
    """From the lowest to the highest of some values, logarithmic where they span decades."""

    def __init__(self, low: float, high: float, *, log: bool = False) -> None:
        self.log = low > 0 and (log or high > DECADES * low)
        self.low, self.high = low, high
        self.to: Callable[[float], float] = math.log if self.log else float
        self.back: Callable[[float], float] = math.exp if self.log else float

    def at(self, share: float) -> float:
        """The value that lies at a share of the way from the lowest to the highest."""
        return self.back(self.to(self.low) + share * (self.to(self.high) - self.to(self.low)))

    def share(self, value: float) -> float:
        return (self.to(value) - self.to(self.low)) / (self.to(self.high) - self.to(self.low))

    def reaches(self, value: float, room: float) -> bool:
        """Whether a value lies at most `room` spans outside."""
        return (value > 0 or not self.log) and -room <= self.share(value) <= 1 + room

    def around(self, values: Iterable[float]) -> _Scale:
        """The scale that also holds these."""
        return _Scale(*_span([self.low, self.high, *values]), log=self.log)

    def ends(self, below: float, above: float) -> tuple[float, float]:
        return self.at(-below), self.at(1 + above)


class _Drawing:
    """A figure in the report's style; ``with`` it is open, `chart` closes it."""

    def __init__(self, name: str) -> None:
        import matplotlib
        self.name = re.sub(r"\W+", "-", name)
        style: Any = {**STYLE, "svg.hashsalt": self.name}
        self.style = matplotlib.rc_context(style)
        self.width = WIDTH

    def __enter__(self) -> _Drawing:
        self.style.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                self.svg = self._save()
        finally:
            self.style.__exit__(*error)

    def axis(self, height: float, *, width: float = WIDTH) -> Any:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
        self.width = width
        self.figure = Figure((width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.04))
        return self.figure.subplots()

    def _save(self) -> str:
        file = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")       # only measured here; the reader's font draws it
            self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return _themed(file.getvalue(), self.name)

    def chart(self, caption: str, keys: list[Key]) -> Chart:
        label = html.escape(caption)
        svg = self.svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{label}" ', 1)
        return Chart(svg, caption, keys, units=self.width * 72)


def _themed(svg: str, name: str) -> str:
    """Matplotlib's file as part of a page: no prologue or style of its own, names of its own, the page's colours."""
    svg = svg[svg.index("<svg"):]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))

    def tag(match: re.Match[str]) -> str:
        text = match[0]
        text = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", text)
        text = re.sub(r'xlink:href="#|url\(#', lambda m: f"{'href=' if 'href' in m[0] else 'url('}"
                      f"{chr(34) if 'href' in m[0] else ''}#{name}-", text)
        text = re.sub(r"font(?:-size|-family|-weight)?: [^;\"]*(?:; )?", "", text)
        text = re.sub(r"#0101[c-e]\d", lambda m: f"var({VARIABLES[m[0]]})", text)
        text = re.sub(r"-?\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), text)
        text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"| style=""', "", text)
        if text.startswith("<svg"):
            text = re.sub(r' (?:width|height)="[^"]*"', "", text)
        return re.sub(r"\s*\n\s*", " ", text)

    svg = re.sub(r"<[^>]*>", tag, svg)
    return re.sub(r">\s+<", "><", svg).strip()


def _kept(line: Line, log_x: bool, log_y: bool) -> Line:
    """The line's points that can be drawn."""
    good = [i for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)) if len(finite([x, y])) == 2
            and (x > 0 or not log_x) and (y > 0 or not log_y)]
    return replace(line, x=[float(line.x[i]) for i in good], y=[float(line.y[i]) for i in good],
                   error=[line.error[i] for i in good] if line.error else (),
                   ring=good.index(line.ring) if line.ring in good else None)


def _draw_line(axis: Any, line: Line, width: float, faint: float) -> None:
    look, last = line.look, len(line.x) - 1
    at = slice(0, None, max(1, len(line.x) // 8)) if line.strong else [last] if last >= 0 else []
    axis.plot(line.x, line.y, linestyle=look.dash or "none", color=look.colour, zorder=3 if line.strong else 2,
              linewidth=width if line.strong else 0.8, alpha=1 if line.strong else faint,
              marker=look.marker or ("o" if last == 0 else ""), markevery=at, markersize=5 if line.strong else 4,
              markeredgecolor=look.colour if look.marker == "x" else CARD, markeredgewidth=0.8)
    for x, y, (low, high) in zip(line.x, line.y, line.error, strict=False):
        if low is not None and high is not None:
            axis.errorbar(x, y, [[max(0, y - low)], [max(0, high - y)]], color=look.colour, capsize=3, linewidth=1.4)
    if line.ring is not None:
        axis.plot(line.x[line.ring], line.y[line.ring], "o", markersize=12, fillstyle="none", color=INK, zorder=4)


def _draw_levels(axis: Any, levels: Mapping[str, float], scale: _Scale, maximise: bool) -> None:
    """Dotted lines with their names, at the side that learning curves leave free: they end where it is good."""
    last = -math.inf
    for label, value in sorted(levels.items(), key=lambda pair: pair[1]):
        share = scale.share(value)
        below = share - last > 0.2
        left = (share > 0.5) == maximise
        axis.axhline(value, color=MUTED, linestyle=":", linewidth=1.3, zorder=1)
        axis.annotate(f"{_short(label, 22)} {number(value)}", (0.02 if left else 0.99, value), (0, -3 if below else 3),
                      ha="left" if left else "right", va="top" if below else "bottom", color=MUTED,
                      xycoords=("axes fraction", "data"), textcoords="offset points")
        last = share


def _draw_interval(axis: Any, place: int, row: Row, look: Look) -> None:
    """Interval and mean, and below them the single values."""
    up = 0.16 if len(row.single) > 1 else 0
    if row.low is not None and row.high is not None:
        axis.plot([row.low, row.high], [place - up] * 2, "|-", color=look.colour, linewidth=2.4, markersize=9,
                  markeredgewidth=2)
    axis.plot(row.value, place - up, look.marker, color=look.colour, markersize=8, markeredgecolor=CARD, zorder=4)
    if len(row.single) > 1:
        axis.plot(row.single, [place + 0.22] * len(row.single), look.marker, color=look.colour, fillstyle="none",
                  markersize=5, markeredgewidth=1.2)


def _name_points(axis: Any, points: Sequence[Point]) -> None:
    """The names of points, the best first, where there is room for them."""
    taken: list[tuple[float, float]] = []
    for p in reversed(points):
        x, y = axis.transData.transform((p.cost, p.value)) * 72 / axis.figure.dpi
        if all(abs(x - a) > 34 or abs(y - b) > 14 for a, b in taken):
            taken.append((x, y))
            axis.annotate(_short(p.name, 6), (p.cost, p.value), (6, 5), textcoords="offset points")


def _beside(axis: Any, x: float, y: float, text: str, *, right: bool) -> None:
    axis.annotate(text, (x, y), (7 if right else -7, 0), textcoords="offset points", va="center",
                  ha="left" if right else "right", color=INK, annotation_clip=False)


def _span(values: Iterable[float], *, least: float = 0.002) -> tuple[float, float]:
    """The lowest and the highest, never the same: at least `least` of their size apart."""
    found = finite(values) or [0.0, 1.0]
    low, high = min(found), max(found)
    short = (least * max(abs(low), abs(high)) or 1.0) - (high - low)
    return (low - short / 2, high + short / 2) if short > 0 else (low, high)


def _range(values: Sequence[float], always: Sequence[float], maximise: bool) -> tuple[tuple[float, float], int]:
    """The part of many values to look at - a few very bad ones would flatten the others - and how many lie outside."""
    found = sorted(finite(values), reverse=maximise)
    if len(found) < 5:
        return _span([*found, *always]), 0
    good, usual = found[0], found[int(0.85 * (len(found) - 1))]
    last = good + 1.6 * (usual - good)
    inside = [v for v in found if (v >= last if maximise else v <= last)] if usual != good else found
    if abs(found[-1] - good) < 2.5 * abs(usual - good):
        inside = found
    return _span([*inside, *always]), len(found) - len(inside)


def _left_out(levels: Mapping[str, float], points: int) -> list[str]:
    told = [f"Outside the picture: {', '.join(f'{n} {number(v)}' for n, v in levels.items())}."] if levels else []
    if points:
        told.append(f"{points:,} much worse value{'s lie' if points > 1 else ' lies'} outside.")
    return told


def _few(axis: Any, count: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator
    axis.set_major_locator(MaxNLocator(count))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))


def _integers(axis: Any, values: Sequence[float], log: bool) -> None:
    from matplotlib.ticker import MaxNLocator
    if not log and values and all(v == int(v) for v in values):
        axis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def _log(axes: Any, side: Literal["x", "y"], values: Sequence[float]) -> None:
    """A logarithmic axis whose ticks are plain numbers."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    low, high = _span(v for v in values if v > 0)
    axes.set(**{f"{side}scale": "log"})
    axis = axes.xaxis if side == "x" else axes.yaxis
    steps = [m * 10.0 ** e for e in range(-12, 16) for m in (1, 2, 5)]
    inside = [s for s in steps if 0.95 * low <= s <= 1.05 * high]
    if len(inside) > 6:
        inside = [s for s in inside if math.isclose(math.log10(s), round(math.log10(s)))]
        inside = inside[::max(1, math.ceil(len(inside) / 6))]
    if len(inside) < 2:
        inside = [low, high]
    axis.set_major_locator(FixedLocator(inside))
    axis.set_major_formatter(FuncFormatter(lambda v, _: _tick(v)))
    axis.set_minor_locator(NullLocator())


def _tick(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g}{unit}"
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e−").replace("e-", "e−")
    return f"{value:.4g}".replace("-", "−")


def _value(value: Any) -> str:
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _short(text: str, most: int) -> str:
    """One line of at most so many characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return text if len(text) <= most else f"{text[:most - 1]}…"


def _broken(key: str) -> str:
    """A setting's name on two lines, for the head of an upright axis."""
    head, dot, tail = _short(key, 60).rpartition(".")
    return f"{_short(head, 15)}{dot}\n{_short(tail, 15)}" if dot else f"\n{_short(tail, 15)}"
