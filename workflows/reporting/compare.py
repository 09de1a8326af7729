"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from datasets.pipeline.storage import Storage
from workflows.reporting import charts
from workflows.reporting.drawing import finite_numbers, format_number
from workflows.reporting.format import (
    bytes_cell,
    direction_text,
    duration_cell,
    duration_text,
    family_mean,
    interval_cell,
    interval_of,
    mean_of,
    metric_cell,
    number_cell,
    parse_number,
    probability_cell,
    seed_values,
    setting_cell,
    sort_key,
)
from workflows.reporting.marks import CostPoint, Curve, IntervalRow, LegendEntry, styles_for
from workflows.reporting.parts import Cell, Charts, Collapsible, Page, Paragraph, Part, Section, Summary, Table
from workflows.reporting.search import failures, leaderboard, settings_charts, trial_costs
from workflows.reporting.sections import (
    MAX_SETTINGS,
    TALL_ROWS,
    baseline_values,
    best_reachable,
    budget,
    compared_with_baselines,
    example_pictures,
    how_to_reproduce,
    learning_curve,
    note_paragraphs,
    ranked_baselines,
    settings_text,
    status_counts,
    trial_runs,
    where_recorded,
)


def build_comparison(summary: Summary, run: Storage) -> Page:
    """The page of a comparison.

    Args:
        summary: its compare.json.
        run: its folder.
    """
    ranked = _ranked_families(summary)
    final = [t for t in summary["trials"] if t["phase"] == "final"]
    searched = [t for t in summary["trials"] if t["phase"] != "final"]
    all_searched: list[Part] = []
    if searched:
        all_searched = [Collapsible(f"All {len(searched)} trials of the search", leaderboard(summary, searched))]
    verdict = f"{ranked[0]} is the best by {summary['judged']}." if ranked else "No family has a result."
    if summary["verdict"]:
        verdict = summary["verdict"] + ("" if summary["verdict"].endswith((".", "!", "?")) else ".")
    pictures = example_pictures(run, _in_ranked_order(summary, summary.get("pictures") or {}))
    return Page(
        summary["experiment"]["name"],
        summary["name"],
        "comparison",
        verdict,
        _compare_facts(summary, ranked),
        [
            Section(
                "leaderboard",
                "Leaderboard",
                [_families_table(summary), *_repeatability(summary), *failures(summary["trials"])],
            ),
            Section("differences", "Certainty of the ranking", _differences(summary)),
            Section("lengths", "By length", _lengths(summary)),
            Section("learning", "Learning curves", _family_curves(summary, final)),
            Section("horizon", "Memory horizon", _horizon(summary)),
            Section("costs", "Costs", [*_family_costs(summary), *trial_costs(summary, searched)]),
            Section("settings", "Settings", [*_tuned(summary), *settings_charts(summary, searched), *all_searched]),
            Section("examples", "Example predictions", pictures),
            Section("budget", "Budget and space", budget(summary)),
            Section(
                "runs",
                "Runs",
                [
                    Paragraph(where_recorded(summary)),
                    *_seed_runs(summary),
                    Collapsible("All trials", [trial_runs(summary, summary["trials"])]),
                ],
            ),
            how_to_reproduce(summary),
            Section("notes", "Notes", note_paragraphs(summary)),
        ],
    )


def _compare_facts(summary: Summary, ranked: list[str]) -> list[tuple[str, str, str]]:
    families, judged = summary["families"], summary["judged"]
    seeds = max((len(f["seeds"]) for f in families.values()), default=0)
    facts = [
        ("families", format_number(len(families)), f"{seeds} seed{'' if seeds == 1 else 's'} each"),
        ("trials", format_number(len(summary["trials"])), status_counts(summary["trials"])),
        ("wall-clock time", duration_text(summary["seconds"]), f"{duration_text(summary['used'])} of training"),
    ]
    if not ranked:
        return facts
    value = family_mean(families[ranked[0]], judged)
    return [
        ("best family", ranked[0], settings_text(families[ranked[0]]["settings"], 3)),
        (judged, format_number(value), compared_with_baselines(summary, judged, value)),
        *facts,
    ]


def _families_table(summary: Summary) -> Table:
    """Ranked families, baselines, and the best reachable values. The title of a figure names its MLflow runs."""
    judged, families = summary["judged"], summary["families"]
    split, _, metric = judged.rpartition("/")
    names = dict.fromkeys(k for f in families.values() for k in f["metrics"])
    others = [k for k in names if k != judged and k.rpartition("/")[0] == split]
    rows = []
    ranked = _ranked_families(summary)
    for family in ranked:
        f = families[family]
        runs = "MLflow runs: " + ", ".join(str(s["run_id"]) for s in f["seeds"])
        rows.append(
            [
                Cell(family, title=runs),
                metric_cell(family_mean(f, judged), runs),
                interval_cell(f["metrics"].get(judged)),
                duration_cell(f["seconds"]),
                number_cell(f["parameters"]),
                number_cell(f["rows_per_second"]),
                *(number_cell((f["latency_ms"] or {}).get(q)) for q in ("p50", "p95")),
                bytes_cell(f["memory"]),
                *(metric_cell(family_mean(f, k), runs) for k in others),
            ]
        )
    empty = [Cell("")] * 6
    for family in [f for f in families if f not in ranked]:
        reason = families[family]["failed"] or "no result"
        rows.append(
            [
                Cell(family),
                Cell("failed", title=reason, style="chip failed"),
                Cell(reason, style="long"),
                *empty,
                *[Cell("")] * len(others),
            ]
        )
    for method, values in ranked_baselines(summary):
        rows.append(
            [
                Cell(method, style="quiet"),
                metric_cell(mean_of(values.get(judged))),
                interval_cell(values.get(judged)),
                *empty,
                *(metric_cell(mean_of(values.get(k))) for k in others),
            ]
        )
    if summary["best_reachable"]:
        best = summary["best_reachable"]
        rows.append(
            [
                Cell("best reachable", style="quiet"),
                metric_cell(best.get(metric)),
                Cell(""),
                *empty,
                *(metric_cell(best.get(k.rpartition("/")[2])) for k in others),
            ]
        )
    columns = [
        "family",
        judged,
        "interval",
        "training time",
        "parameters",
        "rows/s",
        "latency p50, ms",
        "p95, ms",
        "peak memory",
        *(k.rpartition("/")[2] for k in others),
    ]
    return Table("families", columns, rows, frozenset([0] if ranked else []))


def _repeatability(summary: Summary) -> list[Part]:
    return [Paragraph(summary["repeatable"])] if summary["repeatable"] else []


def _differences(summary: Summary) -> list[Part]:
    """The families' intervals, and the difference of each pair."""
    judged, families = summary["judged"], summary["families"]
    styles = styles_for(families)
    rows = [
        IntervalRow(
            f,
            family_mean(families[f], judged),
            *interval_of(families[f]["metrics"].get(judged)),
            finite_numbers(seed_values(families[f], judged)),
            styles[f],
        )
        for f in _ranked_families(summary)
    ]
    parts: list[Part] = []
    if rows:
        values = {**baseline_values(summary, judged), **best_reachable(summary, judged)}
        references = [IntervalRow(method, value) for method, value in values.items()]
        references.sort(key=lambda row: -row.value if summary["maximise"] else row.value)
        parts.append(
            Charts(
                [
                    charts.interval_chart(
                        "intervals",
                        [*rows, *references],
                        metric=judged,
                        maximise=summary["maximise"],
                        caption=f"{judged} of each family with its best settings: every seed, their mean, and its "
                        "interval. An arrow at the edge stands for a value outside the chart.",
                    )
                ]
            )
        )
    if summary["differences"]:
        parts.append(
            Table(
                "differences",
                ["pair", "difference", "interval", "p", "adjusted p", "result"],
                [
                    [
                        Cell(f"{d['a']} − {d['b']}"),
                        number_cell(d["difference"]),
                        interval_cell(d, full=False),
                        probability_cell(d["p"]),
                        probability_cell(d["adjusted"]),
                        Cell(_interpretation(d, summary["maximise"])),
                    ]
                    for d in summary["differences"]
                ],
            )
        )
    return parts


def _interpretation(d: Summary, maximise: bool) -> str:
    if not finite_numbers([d["adjusted"]]) or not finite_numbers([d["difference"]]):
        return "unknown"
    if not d["significant"]:
        return "not significant"
    return f"{d['a'] if (d['difference'] > 0) == maximise else d['b']} is better"


def _lengths(summary: Summary) -> list[Part]:
    """The metric of each family at each value of `search.across`, such as the length of sequences."""
    lengths, judged = summary.get("lengths") or {}, summary["judged"]
    families = [f for f in summary["families"] if any(f in v for v in lengths.values())]
    if not families:
        return []
    styles = styles_for(summary["families"])
    order = sorted(lengths, key=lambda n: (not finite_numbers([parse_number(n)]), parse_number(n), n))
    numeric = all(finite_numbers([parse_number(n)]) for n in order)
    curves = []
    for family in families:
        points = [
            (parse_number(n) if numeric else i, lengths[n][family])
            for i, n in enumerate(order, 1)
            if family in lengths[n]
        ]
        curves.append(
            Curve(
                [x for x, _ in points],
                [mean_of(v) for _, v in points],
                styles[family],
                error=[interval_of(v) for _, v in points],
            )
        )
    xs = [x for curve in curves for x in curve.x]
    return [
        Charts(
            [
                charts.line_chart(
                    "lengths",
                    curves,
                    x=summary["across"],
                    y=judged,
                    legend=[LegendEntry(f, styles[f]) for f in families],
                    log_x=numeric and min(xs) > 0 and max(xs) > 8 * min(xs),
                    maximise=summary["maximise"],
                    references=best_reachable(summary, judged),
                    caption=f"{judged} for each {summary['across']}, with its interval; "
                    f"{direction_text(summary['maximise'])}.",
                )
            ]
        )
    ]


def _family_curves(summary: Summary, final: list[Summary]) -> list[Part]:
    primary = f"validation/{summary['primary']}"
    styles = styles_for(summary["families"])
    curves = [
        learning_curve(t["history"], primary, styles[t["study"]])
        for t in final
        if t["history"] and t["study"] in styles
    ]
    if not curves:
        return []
    trained = [f for f in summary["families"] if any(t["study"] == f for t in final)]
    return [
        Charts(
            [
                charts.line_chart(
                    "curves",
                    curves,
                    x="epoch",
                    y=primary,
                    maximise=summary["maximise"],
                    legend=[LegendEntry(f, styles[f]) for f in trained],
                    references=baseline_values(summary, primary),
                    caption=f"{primary} by epoch with each family's best settings, one line for each seed; "
                    f"{direction_text(summary['maximise'])}.",
                )
            ]
        )
    ]


def _horizon(summary: Summary) -> list[Part]:
    """How far back in the data each family looks."""
    styles = styles_for(summary["families"])
    horizons = {f: v["horizon"] for f, v in summary["families"].items() if v.get("horizon") and v["horizon"]["norms"]}
    if not horizons:
        return []
    return [
        Charts(
            [
                charts.line_chart(
                    "horizon",
                    [
                        Curve([i * h["scale"] for i in range(len(h["norms"]))], h["norms"], styles[f])
                        for f, h in horizons.items()
                    ],
                    x="steps back in the data",
                    y="influence on the output, the largest being 1",
                    log_y=True,
                    legend=[LegendEntry(f"{f}: reach {_reach_text(h)}", styles[f]) for f, h in horizons.items()],
                    caption="How much the output depends on an input that is so many steps back: the norm of its "
                    "gradient, averaged over rows. 95 % of the total influence lies within a family's reach.",
                )
            ]
        )
    ]


def _reach_text(horizon: Summary) -> str:
    """The reach in steps of the model and, if those differ, in steps of the data."""
    reach, scale = horizon["reach"], horizon["scale"]
    steps = f"{format_number(reach)} step{'' if reach == 1 else 's'}"
    if scale == 1 or not finite_numbers([reach]):
        return steps
    return f"{steps} of {format_number(scale)}, {format_number(reach * scale)} of the data"


def _family_costs(summary: Summary) -> list[Part]:
    """The metric of each family against training time, size and latency."""
    judged, families = summary["judged"], summary["families"]
    styles = styles_for(families)
    costs: dict[str, Callable[[Summary], float | None]] = {
        "seconds of training": lambda f: f["seconds"],
        "parameters": lambda f: f["parameters"],
        "latency p50, ms": lambda f: (f["latency_ms"] or {}).get("p50"),
    }
    drawn = []
    for name, cost in costs.items():
        numbers = {f: finite_numbers([cost(families[f])]) for f in _ranked_families(summary)}
        known = {f: found[0] for f, found in numbers.items() if found and found[0] > 0}
        points = [
            CostPoint(
                value,
                family_mean(families[f], judged),
                "",
                styles[f],
                *interval_of(families[f]["metrics"].get(judged)),
            )
            for f, value in known.items()
        ]
        if len(points) > 1:
            drawn.append(
                charts.cost_chart(
                    f"families-{name}",
                    points,
                    cost=name,
                    metric=judged,
                    maximise=summary["maximise"],
                    legend=[LegendEntry(f, replace(styles[f], dash="")) for f in known],
                    caption=f"{judged} of each family, with its interval, against {name}. No other family is better in "
                    "both than one on the Pareto front.",
                )
            )
    return [Charts(drawn)] if drawn else []


def _tuned(summary: Summary) -> list[Part]:
    """The best settings of each family."""
    families = {f: v["settings"] for f, v in summary["families"].items() if v["settings"]}
    keys = list(dict.fromkeys(k for s in families.values() for k in s))[:MAX_SETTINGS]
    if not keys:
        return []
    rows = [[Cell(k), *(setting_cell(s, k) for s in families.values())] for k in keys]
    return [Paragraph("The best settings of each family:"), Table("tuned", ["setting", *families], rows)]


def _seed_runs(summary: Summary) -> list[Part]:
    """The final trainings, with their runs in MLflow."""
    rows = [
        [
            Cell(family),
            Cell(str(s["seed"]), sort_key(s["seed"])),
            Cell(f"#{s['number']}", sort_key(s["number"])),
            metric_cell(s["metrics"].get(summary["judged"])),
            Cell(s["run_id"] or "not delivered", style="id"),
        ]
        for family, f in summary["families"].items()
        for s in f["seeds"]
    ]
    columns = ["family", "seed", "trial", summary["judged"], "MLflow run"]
    return [Table("seeds", columns, rows, scrolls=len(rows) > TALL_ROWS)] if rows else []


def _ranked_families(summary: Summary) -> list[str]:
    """The families that have a result, best first."""
    means = {f: family_mean(v, summary["judged"]) for f, v in summary["families"].items() if not v["failed"]}
    with_result = (f for f in means if finite_numbers([means[f]]))
    return sorted(with_result, key=lambda f: -means[f] if summary["maximise"] else means[f])


def _in_ranked_order(summary: Summary, folders: Summary) -> dict[str, str]:
    """Folders by family, the best family's first."""
    ranked = _ranked_families(summary)
    return dict(sorted(folders.items(), key=lambda item: ranked.index(item[0]) if item[0] in ranked else len(ranked)))
