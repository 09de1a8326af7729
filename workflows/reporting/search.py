"""The page of a search."""

from __future__ import annotations

from dataclasses import replace

from datasets.pipeline.storage import Storage
from workflows.reporting import charts
from workflows.reporting.drawing import finite_numbers, format_number
from workflows.reporting.format import (
    bytes_cell,
    difference_text,
    direction_text,
    duration_cell,
    duration_text,
    metric_cell,
    number_cell,
    setting_cell,
)
from workflows.reporting.marks import MAIN, REFERENCE, CostPoint, LegendEntry, Style, styles_for
from workflows.reporting.parts import Cell, Charts, Collapsible, Page, Paragraph, Part, Section, Summary, Table
from workflows.reporting.sections import (
    FAILED_STATUSES,
    MAX_SETTINGS,
    OTHER,
    STOPPED,
    TALL_ROWS,
    baseline_values,
    budget,
    compared_with_baselines,
    completed_trials,
    decisive_metric,
    example_pictures,
    how_to_reproduce,
    learning_curve,
    note_paragraphs,
    ranked_trials,
    scores,
    settings_text,
    short_names,
    status_counts,
    trial_runs,
    where_recorded,
)


def build_search(summary: Summary, run: Storage) -> Page:
    """The page of a search.

    Args:
        summary: its search.json.
        run: its folder.
    """
    trials = summary["trials"]
    best = next((t for t in trials if t["number"] == summary["best"]), None)
    judged = decisive_metric(summary, summary["metrics"])
    facts = [
        ("trials", format_number(len(trials)), status_counts(trials)),
        ("wall-clock time", duration_text(summary["seconds"]), ""),
        ("training", duration_text(summary["used"]), "all trials together"),
    ]
    if best is not None:
        value = summary["metrics"].get(judged)
        facts = [
            (f"validation/{summary['primary']}", format_number(best["best"]), f"best, of trial {best['number']}"),
            (judged, format_number(value), compared_with_baselines(summary, judged, value)),
            *facts,
        ]
    return Page(
        summary["experiment"]["name"],
        summary["name"],
        "search",
        _search_verdict(summary, best, judged),
        facts,
        [
            Section("leaderboard", "Leaderboard", [*leaderboard(summary, trials), *failures(trials)]),
            Section("scores", "The best model", scores(summary, judged) if best is not None else []),
            Section("learning", "Learning curves", _trial_curves(summary, trials, best)),
            Section("settings", "Settings", settings_charts(summary, trials)),
            Section("costs", "Costs", trial_costs(summary, trials)),
            Section(
                "examples", "Example predictions", example_pictures(run, summary.get("pictures") or {"": "pictures"})
            ),
            Section("budget", "Budget and space", budget(summary)),
            Section("runs", "Runs", [Paragraph(where_recorded(summary)), trial_runs(summary, trials)]),
            how_to_reproduce(summary),
            Section("notes", "Notes", note_paragraphs(summary)),
        ],
    )


def _search_verdict(summary: Summary, best: Summary | None, judged: str) -> str:
    trials = summary["trials"]
    if best is None:
        if not trials:
            return "No trial was started."
        reason = next((t["reason"] for t in trials if t["status"] == "failed" and t["reason"]), "")
        text = f"None of the {len(trials)} trials has a result."
        return f"{text} The first failure: {reason}" if reason else text
    values = sorted(finite_numbers(t["best"] for t in completed_trials(trials)))
    metric = f"validation/{summary['primary']} {format_number(best['best'])}"
    settings = f" with {settings_text(best['settings'])}" if best["settings"] else ""
    text = f"Trial {best['number']} is the best of {len(trials)}: {metric}{settings}."
    if len(values) > 2:
        median = values[len(values) // 2]
        text += f" That is {difference_text(best['best'], median, summary['maximise'])} the median trial"
        value = summary["metrics"].get(judged)
        comparison = compared_with_baselines(summary, judged, value)
        if finite_numbers([value]):
            text += f"; {judged} is {format_number(value)}{f', {comparison}' if comparison else ''}"
        text += "."
    return text


def leaderboard(summary: Summary, trials: list[Summary]) -> list[Part]:
    """The trials that have a result, best first, with their settings."""
    completed = ranked_trials(trials, summary["maximise"])
    if not completed:
        return [Paragraph("No trial has a result.")]
    keys = list(dict.fromkeys(k for t in completed for k in t["settings"]))[:MAX_SETTINGS]
    study = any(t["study"] for t in completed)
    rows = []
    for rank, t in enumerate(completed, 1):
        mlflow_run = f"MLflow run {t['run_id'] or 'not delivered'}"
        rows.append(
            [
                Cell(str(rank), rank),
                Cell(f"#{t['number']}", t["number"], mlflow_run),
                *([Cell(t["study"])] if study else []),
                metric_cell(t["best"], mlflow_run),
                Cell(t["status"], title=t["reason"], style=f"chip {t['status']}"),
                *(setting_cell(t["settings"], k) for k in keys),
                number_cell(len(t["history"])),
                number_cell(t["parameters"]),
                duration_cell(t["seconds"]),
                bytes_cell(t["memory"]),
            ]
        )
    columns = [
        "",
        "trial",
        *(["family"] if study else []),
        f"validation/{summary['primary']}",
        "status",
        *short_names(keys).values(),
        "epochs",
        "parameters",
        "training time",
        "memory",
    ]
    return [Table("trials", columns, rows, frozenset([0]), scrolls=len(rows) > TALL_ROWS)]


def failures(trials: list[Summary]) -> list[Part]:
    """The trials that have no result, with the reasons."""
    bad = [t for t in trials if t["status"] in FAILED_STATUSES or t not in completed_trials(trials)]
    if not bad:
        return []
    study = any(t["study"] for t in bad)
    rows = [
        [
            Cell(f"#{t['number']}", t["number"]),
            *([Cell(t["study"])] if study else []),
            Cell(t["status"], style=f"chip {t['status']}"),
            Cell(t["reason"] or "unknown", style="long"),
            Cell(settings_text(t["settings"], 50), style="long"),
        ]
        for t in bad
    ]
    columns = ["trial", *(["family"] if study else []), "status", "reason", "settings"]
    noun = "trial" if len(bad) == 1 else "trials"
    return [
        Collapsible(
            f"{len(bad)} {noun} without a result", [Table("failures", columns, rows, scrolls=len(rows) > TALL_ROWS)]
        )
    ]


def _trial_curves(summary: Summary, trials: list[Summary], best: Summary | None) -> list[Part]:
    primary = f"validation/{summary['primary']}"
    baselines = baseline_values(summary, primary)
    curves = [
        learning_curve(t["history"], primary, STOPPED if t["status"] == "stopped" else OTHER, strong=False)
        for t in trials
        if t["history"] and t is not best
    ]
    if best is not None and best["history"]:
        curves.append(learning_curve(best["history"], primary, MAIN))
    if not curves:
        return []
    any_stopped = any(curve.style == STOPPED for curve in curves)
    legend = [
        *([LegendEntry(f"trial {best['number']}", MAIN)] if best is not None else []),
        LegendEntry("other trials", OTHER),
        *([LegendEntry("stopped early", replace(STOPPED, dash=""))] if any_stopped else []),
        *([LegendEntry("baselines", REFERENCE)] if baselines else []),
    ]
    return [
        Charts(
            [
                charts.line_chart(
                    "curves",
                    curves,
                    x="epoch",
                    y=primary,
                    maximise=summary["maximise"],
                    references=baselines,
                    legend=legend,
                    caption=f"{primary} of every trial by epoch; {direction_text(summary['maximise'])}."
                    + (f" The thick line is trial {best['number']}, the best." if best is not None else ""),
                )
            ]
        )
    ]


def settings_charts(summary: Summary, trials: list[Summary]) -> list[Part]:
    """Which settings the best trials have, as parallel coordinates, and the importance of each setting."""
    primary = f"validation/{summary['primary']}"
    completed = ranked_trials(trials, summary["maximise"])
    studies = list(dict.fromkeys(t["study"] for t in completed))
    settings = [{**({"family": t["study"]} if len(studies) > 1 else {}), **t["settings"]} for t in completed]
    drawn = []
    if len(completed) > 1 and any(settings):
        log_scales = {k: any("log" in name for name in v) for k, v in summary["space"].items() if "choice" not in v}
        drawn.append(
            charts.parallel_coordinates(
                "parallel",
                settings,
                [float(t["best"]) for t in completed],
                metric=primary,
                maximise=summary["maximise"],
                log_scales=log_scales,
                caption=f"Each line is a trial, from its settings on the left to its {primary} on the right, where the "
                "best is at the top. “not set”: the setting does not apply to that trial.",
            )
        )
    importance = {k: float(v) for k, v in summary["importance"].items() if finite_numbers([v])}
    if importance:
        names = short_names(importance)
        ordered = {names[k]: v for k, v in sorted(importance.items(), key=lambda item: -item[1])[:12]}
        drawn.append(
            charts.bar_chart(
                "importance",
                ordered,
                title="importance",
                percent=True,
                highlighted=ordered,
                caption="The share of the differences between trials that each setting explains"
                f"{', on average over families' if len(studies) > 1 else ''}. With few trials it is only a hint.",
            )
        )
    parts: list[Part] = [Charts([chart]) for chart in drawn if chart.wide]
    if narrow := [chart for chart in drawn if not chart.wide]:
        parts.append(Charts(narrow))
    if drawn and not importance:
        parts.append(Paragraph("There were too few trials to estimate the importance of each setting."))
    return parts


def trial_costs(summary: Summary, trials: list[Summary]) -> list[Part]:
    """The metric of each trial against its seconds of training and its number of parameters."""
    primary = f"validation/{summary['primary']}"
    completed = ranked_trials(trials, summary["maximise"])
    styles = styles_for(dict.fromkeys(t["study"] for t in completed if t["study"]))
    legend = [
        LegendEntry(name, Style(style.colour, style.marker, ""))
        for name, style in (styles or {"a trial": MAIN}).items()
    ]
    drawn = []
    for key, cost in (("seconds", "seconds of training"), ("parameters", "parameters")):
        points = [
            CostPoint(float(t[key]), float(t["best"]), f"#{t['number']}", styles.get(t["study"], MAIN))
            for t in completed
            if finite_numbers([t[key]]) and t[key] > 0
        ]
        if len({p.cost for p in points}) > 1:
            drawn.append(
                charts.cost_chart(
                    f"trials-{key}",
                    points,
                    cost=cost,
                    metric=primary,
                    maximise=summary["maximise"],
                    legend=legend,
                    ringed=points[0].name,
                    caption=f"{primary} of each trial against its {cost}. No other trial is better in both than one on "
                    "the Pareto front. The best trial is ringed.",
                )
            )
    return [Charts(drawn)] if drawn else []
