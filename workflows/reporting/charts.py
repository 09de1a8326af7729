"""The charts of the report: drawn by matplotlib, returned as SVG that takes its colours from the page's style sheet.

Colours here are placeholders, which `drawing` replaces by CSS variables, so that one drawing serves light and dark. No
meaning depends on colour alone: families differ in marker and dash, too. Text stays text, in the reader's own font.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from workflows.reporting.drawing import (
    INTERVAL_MARGIN,
    MARGIN,
    SHADE,
    Drawing,
    ParallelAxis,
    Scale,
    draw_curve,
    draw_interval,
    draw_label,
    draw_references,
    draw_ring,
    drawable_points,
    finite_numbers,
    format_number,
    integer_ticks,
    label_points,
    left_out_text,
    limit_ticks,
    set_log_scale,
    shorten,
    two_line_label,
    value_range,
    value_span,
)
from workflows.reporting.marks import (
    CARD,
    FAMILIES,
    GRID,
    INK,
    MAIN,
    MUTED,
    REFERENCE,
    SHADES,
    WIDTH,
    Chart,
    CostPoint,
    Curve,
    IntervalRow,
    LegendEntry,
    Style,
)


def line_chart(
    name: str,
    curves: Sequence[Curve],
    *,
    x: str,
    y: str,
    caption: str,
    legend: Sequence[LegendEntry] = (),
    references: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    maximise: bool = False,
) -> Chart:
    """Curves over a common axis; a value axis that spans decades is logarithmic.

    Args:
        name: of the chart, unique on the page.
        curves: to draw.
        x, y: titles of the axes.
        caption: the text below the chart.
        legend: its entries.
        references: name -> value to compare the curves with, drawn as horizontal lines.
        log_x, log_y: whether the axis is logarithmic in any case.
        maximise: whether the highest value is best.
    """
    references = references or {}
    curves = [drawable_points(curve, log_x, log_y) for curve in curves]
    values = finite_numbers(v for curve in curves for v in [*curve.y, *(end for pair in curve.error for end in pair)])
    many = any(not curve.strong for curve in curves)
    value_ends, outside = value_range(values, [], maximise) if many else (value_span(values), 0)
    scale = Scale(*value_ends, log=log_y)
    shown = {n: v for n, v in references.items() if scale.reaches(v, MARGIN)}
    caption = " ".join([caption, *left_out_text({n: v for n, v in references.items() if n not in shown}, outside)])
    strong = sum(curve.strong for curve in curves)
    width, faint = 2 if strong <= len(FAMILIES) else 1.3, min(0.55, max(0.12, 20 / max(1, len(curves))))
    with Drawing(name) as drawing:
        axes = drawing.axes(2.6)
        for curve in sorted(curves, key=lambda curve: curve.strong):
            draw_curve(axes, curve, width, faint)
        lowest = min(shown.values(), default=math.inf)
        scale = scale.including(shown.values())
        padding = 0.17 if lowest < scale.at(0.12) else 0.06, 0.09  # space for a name below the lowest line
        if scale.log:
            set_log_scale(axes, "y", scale.padded(*padding))
        axes.set_ylim(*scale.padded(*padding))
        draw_references(axes, shown, scale, maximise)
        all_x = [v for curve in curves for v in curve.x]
        if log_x:
            set_log_scale(axes, "x", all_x)
        integer_ticks(axes.xaxis, all_x, log_x)
        axes.set(title=shorten(y, 46), xlabel=x)
    return drawing.chart(caption, [entry for entry in legend if shown or entry.style != REFERENCE])


def interval_chart(name: str, rows: Sequence[IntervalRow], *, metric: str, caption: str, maximise: bool) -> Chart:
    """A row for each method: single values, interval and mean; references are vertical lines through all rows.

    Args:
        name: of the chart, unique on the page.
        rows: from top to bottom.
        metric: title of the value axis.
        caption: the text below the chart.
        maximise: whether the highest value is best.
    """
    methods = [r for r in rows if r.style is not None]
    values = finite_numbers(v for r in methods for v in (r.value, r.low, r.high, *r.single))
    scale = Scale(*value_span(values, min_size=0.02))
    near = [r for r in rows if r.style is None and scale.reaches(r.value, INTERVAL_MARGIN)]
    scale = scale.including(r.value for r in near)
    low, high = scale.padded(0.08, 0.08)
    with Drawing(name) as drawing:
        axes = drawing.axes(0.75 + 0.36 * len(rows))
        for y, row in enumerate(rows):
            if row.style is not None:
                draw_interval(axes, y, row, row.style)
            elif row in near:
                axes.axvline(row.value, color=MUTED, linestyle=":", linewidth=1.3)
                axes.plot(row.value, y, "|", color=INK, markersize=13, markeredgewidth=2)
                draw_label(axes, row.value, y, format_number(row.value), right=row.value < scale.at(0.5))
            else:  # an arrow at the edge towards a reference that is far away
                right = row.value > high
                edge = scale.at(1.06 if right else -0.06)
                axes.plot(edge, y, ">" if right else "<", color=MUTED, zorder=5)
                draw_label(axes, edge, y, format_number(row.value), right=not right)
        axes.set_yticks(range(len(rows)), [shorten(r.name, 18) for r in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if scale.log:
            set_log_scale(axes, "x", [low, high])
        else:
            limit_ticks(axes.xaxis, 4)
        axes.set_xlim(low, high)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{shorten(metric, 30)} ({'higher' if maximise else 'lower'} is better)")
    return drawing.chart(
        caption,
        [
            LegendEntry("mean and its interval", Style(INK, "o", "-")),
            LegendEntry("one seed (hollow)", Style(MUTED, "o", "")),
            *([LegendEntry("reference", REFERENCE)] if near else []),
        ],
    )


def bar_chart(
    name: str,
    values: Mapping[str, float],
    *,
    title: str,
    caption: str,
    highlighted: Iterable[str] = (),
    percent: bool = False,
) -> Chart:
    """A horizontal bar for each name, with its value.

    Args:
        name: of the chart, unique on the page.
        values: by name, from top to bottom.
        title: of the value axis.
        caption: the text below the chart.
        highlighted: names of the bars to emphasise.
        percent: whether the values are shares, to be shown in percent.
    """
    highlighted = set(highlighted)
    with Drawing(name) as drawing:
        axes = drawing.axes(0.62 + 0.3 * len(values))
        positions = range(len(values))
        bars = axes.barh(positions, list(values.values()), height=0.62, color=GRID)
        for bar, (label, value) in zip(bars, values.items(), strict=True):
            bar.set_color(MAIN.colour if label in highlighted else GRID)
            bar.set_edgecolor(MAIN.colour if label in highlighted else MUTED)
            text = f"{100 * value:.0f} %" if percent else format_number(value)
            draw_label(axes, max(value, 0), bar.get_y() + bar.get_height() / 2, text, right=True)
        axes.set_yticks(positions, [shorten(n, 22) for n in values], color=INK)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.set_xticks([])
        axes.spines.bottom.set_visible(False)
        axes.axvline(0, color=MUTED, linewidth=0.8)
        axes.set_xlim(min(0, *values.values()), max(0, *values.values()) * 1.25 or 1)
        axes.set_title(shorten(title, 46))
    return drawing.chart(caption, [])


def cost_chart(
    name: str,
    points: Sequence[CostPoint],
    *,
    cost: str,
    metric: str,
    maximise: bool,
    caption: str,
    legend: Sequence[LegendEntry] = (),
    ringed: str = "",
) -> Chart:
    """Values against costs, with the Pareto front: a line through the points that no other point beats in both.

    Args:
        name: of the chart, unique on the page.
        points: to draw; those without a cost above 0 are left out.
        cost, metric: titles of the axes.
        maximise: whether the highest value is best.
        caption: the text below the chart.
        legend: its entries; one for the front is added.
        ringed: name of the point to mark with a ring.
    """
    points = [p for p in points if math.isfinite(p.value) and math.isfinite(p.cost) and p.cost > 0]
    front = pareto_front(points, maximise=maximise)
    ends = finite_numbers(end for p in points for end in (p.low, p.high))
    value_ends, outside = value_range([p.value for p in points], ends, maximise)
    scale = Scale(*value_ends)
    with Drawing(name) as drawing:
        axes = drawing.axes(2.8)
        axes.step([p.cost for p in front], [p.value for p in front], where="post", color=INK, linewidth=1.2, zorder=2)
        for style in dict.fromkeys(p.style for p in points):
            of_style = [p for p in points if p.style == style]
            axes.plot(
                [p.cost for p in of_style],
                [p.value for p in of_style],
                style.marker,
                color=style.colour,
                markersize=6.5,
                markeredgecolor=CARD,
                markeredgewidth=0.8,
                zorder=3,
            )
        for p in points:
            if p.low is not None and p.high is not None:
                axes.plot([p.cost, p.cost], [p.low, p.high], color=p.style.colour, linewidth=2.2, zorder=2.5)
            if p.name and p.name == ringed:
                draw_ring(axes, p.cost, p.value)
        if len(points) and max(p.cost for p in points) > 8 * min(p.cost for p in points):
            set_log_scale(axes, "x", [p.cost for p in points])
        else:
            limit_ticks(axes.xaxis, 5)
        axes.margins(x=0.12)
        if scale.log:
            set_log_scale(axes, "y", scale.padded(0.08, 0.12))
        axes.set_ylim(*scale.padded(0.08, 0.12))
        label_points(axes, [p for p in front if p.name])
        axes.set(title=f"{shorten(metric, 30)} ({'higher' if maximise else 'lower'} is better)", xlabel=cost)
    caption = " ".join([caption, *left_out_text({}, outside)])
    return drawing.chart(caption, [*legend, LegendEntry("Pareto front", Style(INK, "", "-"))])


def pareto_front(points: Sequence[CostPoint], *, maximise: bool) -> list[CostPoint]:
    """The points that no other point beats in both cost and value, ordered by cost."""
    front: list[CostPoint] = []
    for p in sorted(points, key=lambda p: (p.cost, -p.value if maximise else p.value)):
        if not front or (p.value > front[-1].value if maximise else p.value < front[-1].value):
            front.append(p)
    return front


def parallel_coordinates(
    name: str,
    trials: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    *,
    metric: str,
    maximise: bool,
    caption: str,
    log_scales: Mapping[str, bool] | None = None,
) -> Chart:
    """A vertical axis for each setting, the last one for the metric; a line for each trial, coloured by rank.

    Args:
        name: of the chart, unique on the page.
        trials: the settings of each; one that does not apply to a trial is missing or None there.
        values: the metric of each trial.
        metric: its name.
        maximise: whether the highest value is best.
        caption: the text below the chart.
        log_scales: settings that are drawn on a scale, and whether it is logarithmic; the values of others are labels.
    """
    order = sorted(range(len(values)), key=values.__getitem__, reverse=not maximise)  # the best is drawn last
    settings = [
        ParallelAxis(key, [t.get(key) for t in trials], log=(log_scales or {}).get(key))
        for key in dict.fromkeys(k for t in trials for k in t)
    ]
    metric_ends = value_range(values, [], maximise)[0]
    columns = [*settings, ParallelAxis(metric, list(values), log=False, ends=metric_ends, flip=not maximise)]
    wide = len(columns) > 3
    width, faint = 1.3 * len(columns) + 0.3 if wide else WIDTH, min(0.75, max(0.15, 40 / len(order)))
    with Drawing(name) as drawing:
        axes = drawing.axes(3.4, width=width)
        for rank, i in enumerate(order):
            shade = SHADE[SHADES - 1 - rank * SHADES // len(order)]
            best = rank == len(order) - 1
            axes.plot(
                range(len(columns)),
                [column.positions[i] for column in columns],
                color=SHADE[0] if best else shade,
                linewidth=3 if best else 1.1,
                alpha=1 if best else faint,
                marker="o" if best else "",
                markeredgecolor=CARD,
                zorder=4 if best else 2,
                clip_on=False,
            )
        for x, column in enumerate(columns):
            axes.axvline(x, color=MUTED, linewidth=1, zorder=3)
            for text, y in column.ticks:
                axes.annotate(text, (x, y), (5, 0), textcoords="offset points", va="center", color=MUTED, zorder=5)
        axes.set_xticks(range(len(columns)), [two_line_label(column.key) for column in columns], color=INK)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set(yticks=[], xlim=(-0.08, len(columns) - 0.42), ylim=(-0.03, 1.03))
        axes.grid(visible=False)
        axes.spines.bottom.set_visible(False)
    return replace(
        drawing.chart(caption, [LegendEntry("the best", Style(SHADE[0], "o", "-"))]),
        wide=wide,
        shades=(f"best {format_number(values[order[-1]])}", f"worst {format_number(values[order[0]])}"),
    )
