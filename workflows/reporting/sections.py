"""Sections that the pages of runs, searches and comparisons share."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import yaml

from datasets.pipeline.storage import Storage
from workflows.reporting import charts, marks
from workflows.reporting.drawing import finite_numbers
from workflows.reporting.format import difference_text, direction_text, duration_text, mean_of, metric_cell, value_text
from workflows.reporting.marks import MAIN, REFERENCE, SECOND, Curve, LegendEntry, Style
from workflows.reporting.parts import (
    Cell,
    Charts,
    Code,
    Collapsible,
    Paragraph,
    Part,
    Pictures,
    Section,
    Summary,
    Table,
)

OTHER, STOPPED = Style(marks.MUTED), Style(marks.MUTED, "x")
FAILED_STATUSES = ("failed", "unfinished")
MAX_SETTINGS = 40  # that a table shows, one in a column
TALL_ROWS = 15  # a table with more rows than this scrolls
DESCRIPTIONS = {
    "forecasts": "Forecasts of windows of the last split: the past, what happened, the forecast and its interval.",
    "confusion": "Confusion matrix of the last split.",
    "decisions": "Precision and recall of each class.",
    "transcripts": "Sounds of the last split, and where in them the model recognised each token.",
    "translations": "The tokens of the source to which each token of the translation attends.",
}


def scores(summary: Summary, judged: str) -> list[Part]:
    """The metrics of the model and the baselines as tables, and the metric `judged` as bars."""
    methods = {"the model": summary["metrics"], **summary["baselines"]}
    split = judged.rpartition("/")[0]
    splits = dict.fromkeys(k.rpartition("/")[0] for k in summary["metrics"])
    other_splits = [s for s in splits if s not in (split, "train")]
    shown = {m: v[judged] for m, v in methods.items() if finite_numbers([v.get(judged)])}
    shown |= best_reachable(summary, judged)
    parts: list[Part] = [_scores_table(summary, split, methods)]
    if len(shown) > 1:
        caption = (
            f"{judged} of the model and of the baselines"
            f"{', and the best that any model can reach' if 'best reachable' in shown else ''}; "
            f"{direction_text(summary['maximise'])}."
        )
        ordered = dict(sorted(shown.items(), key=lambda i: -i[1] if summary["maximise"] else i[1]))
        parts.append(
            Charts([charts.bar_chart("scores", ordered, title=judged, caption=caption, highlighted=["the model"])])
        )
    if other_splits:
        parts.append(Collapsible("Other splits", [_scores_table(summary, s, methods) for s in other_splits]))
    return parts


def _scores_table(summary: Summary, split: str, methods: Mapping[str, Summary]) -> Table:
    prefix = f"{split}/" if split else ""
    names = [k for k in summary["metrics"] if k.rpartition("/")[0] == split]
    names.sort(key=lambda n: n != prefix + summary["primary"])
    rows = [[Cell(method), *(metric_cell(values.get(n)) for n in names)] for method, values in methods.items()]
    if summary["best_reachable"]:
        best = summary["best_reachable"]
        rows.append([Cell("best reachable"), *(metric_cell(best.get(n.removeprefix(prefix))) for n in names)])
    return Table(f"scores-{split}", [f"on {split}", *(n.removeprefix(prefix) for n in names)], rows, frozenset([0]))


def learning_curves(summary: Summary, history: list[Summary]) -> list[Part]:
    """The loss and the metric that decides, by epoch."""
    if not history:
        return []
    primary = f"validation/{summary['primary']}"
    best = next((i for i, h in enumerate(history) if h["step"] == summary["best_step"]), None)
    baselines = baseline_values(summary, primary)
    return [
        Charts(
            [
                charts.line_chart(
                    "loss",
                    [learning_curve(history, "train/loss", SECOND), learning_curve(history, "validation/loss", MAIN)],
                    x="epoch",
                    y="loss",
                    legend=[LegendEntry("validation", MAIN), LegendEntry("training", SECOND)],
                    caption="Loss by epoch. The loss on training rows is measured while the model trains, with "
                    "dropout. Where the validation loss rises again, the model overfits.",
                ),
                charts.line_chart(
                    "judged",
                    [replace(learning_curve(history, primary, MAIN), ringed=best)],
                    x="epoch",
                    y=primary,
                    references=baselines,
                    maximise=summary["maximise"],
                    legend=[
                        LegendEntry("the model", MAIN),
                        *([LegendEntry("baselines", REFERENCE)] if baselines else []),
                    ],
                    caption=f"{primary} by epoch; {direction_text(summary['maximise'])}. The weights of the ringed "
                    "epoch were kept.",
                ),
            ]
        )
    ]


def example_pictures(run: Storage, folders: Mapping[str, str]) -> list[Part]:
    """The PNG files of some folders of a run, except learning curves, which the page shows as charts.

    Args:
        run: the run's folder.
        folders: family, or "" -> folder.
    """
    pictures = []
    for family, folder in folders.items():
        for name in (run / folder).names():
            stem = name.removesuffix(".png")
            if name.endswith(".png") and stem != "learning_curve":
                data = run.read(f"{folder}/{name}")
                text = DESCRIPTIONS.get(stem, f"{stem.replace('_', ' ')}.")
                uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
                width = int.from_bytes(data[16:20], "big")  # the PNG's header
                pictures.append((uri, f"{family}: {text[0].lower()}{text[1:]}" if family else text, width))
    if not pictures:
        return []
    more = [Collapsible(f"{len(pictures) - 1} more", [Pictures(pictures[1:])])] if len(pictures) > 1 else []
    return [Pictures(pictures[:1]), *more]


def learning_curve(history: list[Summary], metric: str, style: Style, *, strong: bool = True) -> Curve:
    return Curve([h["epoch"] + 1 for h in history], [mean_of(h.get(metric)) for h in history], style, strong)


def budget(summary: Summary) -> list[Part]:
    """The budget of a search, what was used of it, and the search space."""
    budget = dict(summary["budget"])
    items = []
    if budget.get("trials") is not None:
        items.append(f"at most {budget['trials']:,} trials" + (" for each family" if "families" in summary else ""))
    if budget.get("seconds") is not None:
        items.append(f"at most {duration_text(budget['seconds'])}")
    for key, text in (
        ("searcher", "settings proposed by {}"),
        ("scheduler", "bad trials stopped early by {}"),
        ("concurrent", "{} at a time"),
        ("seed", "seed {}"),
    ):
        if budget.get(key) is not None:
            items.append(text.format(budget[key]))
    known = {"trials", "seconds", "searcher", "scheduler", "concurrent", "seed"}
    items += [f"{k.replace('_', ' ')} {value_text(v)}" for k, v in budget.items() if k not in known and v is not None]
    text = f"Budget: {', '.join(items)}. " if items else ""
    text += (
        f"Of {len(summary['trials']):,} trials, {status_counts(summary['trials'])}. They trained for "
        f"{duration_text(summary['used'])} in total; the whole took {duration_text(summary['seconds'])} of "
        "wall-clock time."
    )
    rows = [
        [Cell(k), Cell(choice_text(v), style="long"), Cell(condition_text(v), style="long")]
        for k, v in summary["space"].items()
    ]
    if not rows:
        return [Paragraph(text), Paragraph("No settings were tuned.")]
    return [
        Paragraph(text),
        Paragraph("The tuned settings and their values; all other settings were those of the experiment:"),
        Table("space", ["setting", "values", "only if"], rows),
    ]


def choice_text(distribution: Summary) -> str:
    """The values of a setting, from an entry of the search space."""
    name, values = next(((k, v) for k, v in distribution.items() if k != "when"), ("", None))
    if name == "choice" and isinstance(values, list):
        return f"one of {', '.join(value_text(v) for v in values)}"
    if isinstance(values, list) and len(finite_numbers(values)) == len(values) >= 2:
        step = f", in steps of {value_text(values[2])}" if len(values) > 2 else ""
        whole = ", whole numbers" if "int" in name else ""
        log = ", logarithmic" if "log" in name else ""
        return f"{value_text(values[0])} to {value_text(values[1])}{step}{whole}{log}"
    return f"{name} {value_text(values)}".strip()


def condition_text(distribution: Summary) -> str:
    """The conditions of a setting, from an entry of the search space."""
    return ", ".join(
        f"{k} is {' or '.join(value_text(x) for x in v) if isinstance(v, list) else value_text(v)}"
        for k, v in (distribution.get("when") or {}).items()
    )


def trial_runs(summary: Summary, trials: list[Summary]) -> Table:
    """All trials, with their nodes and their runs in MLflow."""
    study = any(t["study"] for t in trials)
    rows = [
        [
            Cell(f"#{t['number']}", t["number"]),
            *([Cell(t["study"])] if study else []),
            Cell(t["phase"]),
            Cell(t["status"], title=t["reason"], style=f"chip {t['status']}"),
            metric_cell(t["best"]),
            Cell(t["node"]),
            Cell(t["run_id"] or "not delivered", style="id"),
        ]
        for t in trials
    ]
    columns = [
        "trial",
        *(["family"] if study else []),
        "phase",
        "status",
        f"validation/{summary['primary']}",
        "node",
        "MLflow run",
    ]
    return Table("runs", columns, rows, scrolls=len(rows) > TALL_ROWS)


def where_recorded(summary: Summary) -> str:
    """A sentence that says where MLflow has the figures of the page."""
    text = f"All figures on this page are also in MLflow, at {summary['tracking']}, under the run that they come from."
    if summary.get("run_id") and "trials" in summary:
        whole = "comparison" if "families" in summary else "search"
        text += f" The run of the whole {whole} is {summary['run_id']}."
    return text


def how_to_reproduce(summary: Summary) -> Section:
    """The command, the experiment that it needs, and the versions with which it ran."""
    text = yaml.safe_dump(summary["experiment"], sort_keys=False, allow_unicode=True, width=100)
    versions = summary.get("versions") or {}
    lead = (
        "To run it again, save the experiment below as experiment.yaml:"
        if "trials" not in summary
        else "The command that was run:"
    )
    parts: list[Part] = [Paragraph(lead), Code(summary["command"])]
    if summary["tracking"].startswith("sqlite:"):
        parts += [Paragraph("To view it in MLflow:"), Code(f"mlflow ui --backend-store-uri {summary['tracking']}")]
    parts.append(Collapsible("The experiment with all options", [Code(text)]))
    if versions:
        parts.append(
            Collapsible(
                "Versions",
                [Table("versions", ["package", "version"], [[Cell(k), Cell(str(v))] for k, v in versions.items()])],
            )
        )
    return Section("reproduce", "How to reproduce", parts)


def note_paragraphs(summary: Summary) -> list[Part]:
    """The notes of a run, and how exactly metrics are computed if their library says so."""
    return [Paragraph(n) for n in [*summary["notes"], *(f"{k}: {v}" for k, v in summary["signatures"].items())]]


def decisive_metric(summary: Summary, metrics: Summary) -> str:
    """The primary metric on the test split, or on the validation split if there is no test split."""
    return next(
        (f"{s}/{summary['primary']}" for s in ("test", "validation") if f"{s}/{summary['primary']}" in metrics),
        f"test/{summary['primary']}",
    )


def baseline_values(summary: Summary, metric: str) -> dict[str, float]:
    """The value of a metric for each baseline that has it."""
    values = {method: mean_of(metrics.get(metric)) for method, metrics in summary["baselines"].items()}
    return {method: value for method, value in values.items() if finite_numbers([value])}


def best_reachable(summary: Summary, metric: str) -> dict[str, float]:
    """The best value of a metric that any model can reach, as "best reachable" -> value; empty if it is unknown."""
    values = finite_numbers([summary["best_reachable"].get(metric.rpartition("/")[2])])
    return {"best reachable": values[0]} if values else {}


def ranked_baselines(summary: Summary) -> list[tuple[str, Summary]]:
    """(method, metrics) of the baselines, best first."""
    sign = -1 if summary["maximise"] else 1
    return sorted(
        summary["baselines"].items(),
        key=lambda item: sign * v[0] if (v := finite_numbers([mean_of(item[1].get(summary["judged"]))])) else math.inf,
    )


def compared_with_baselines(summary: Summary, judged: str, value: object) -> str:
    """A value compared with the best baseline, such as "19 % below linear"; "" if there is no baseline."""
    baselines, values = baseline_values(summary, judged), finite_numbers([value])
    if not baselines or not values:
        return ""
    best = (max if summary["maximise"] else min)(baselines, key=lambda m: baselines[m])
    return f"{difference_text(values[0], baselines[best], summary['maximise'])} {best}"


def completed_trials(trials: Iterable[Summary]) -> list[Summary]:
    """The trials that have a result."""
    return [t for t in trials if finite_numbers([t["best"]]) and t["status"] not in FAILED_STATUSES]


def ranked_trials(trials: Iterable[Summary], maximise: bool) -> list[Summary]:
    """The trials that have a result, best first."""
    return sorted(completed_trials(trials), key=lambda t: -t["best"] if maximise else t["best"])


def status_counts(trials: Sequence[Summary]) -> str:
    """How many trials ended in which way."""
    texts = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "unfinished": "unfinished"}
    counts = {text: sum(t["status"] == status for t in trials) for status, text in texts.items()}
    return ", ".join(f"{n:,} {text}" for text, n in counts.items() if n) or "none ended"


def model_text(experiment: Summary) -> str:
    """The model in a few words, such as "gru, 2 × 64"."""
    model = experiment.get("model", {})
    family, size, layers = (model.get(k) for k in ("family", "hidden_size", "layers"))
    size_text = f"{layers} × {size}" if layers and size else f"width {size}" if size else ""
    return ", ".join(text for text in (str(family or ""), size_text) if text)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each setting's name, or its whole name if another setting has the same last part."""
    keys = list(keys)
    last = [k.rpartition(".")[2] for k in keys]
    return {k: name if last.count(name) == 1 else k for k, name in zip(keys, last, strict=True)}


def settings_text(settings: Summary, max_count: int = 6) -> str:
    """Settings on one line, at most `max_count` of them."""
    texts = [f"{k.rpartition('.')[2]} {value_text(v)}" for k, v in settings.items() if v is not None]
    more = len(texts) - max_count
    return ", ".join(texts[:max_count]) + (f" and {more} more" if more > 0 else "")
