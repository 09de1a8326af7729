"""The page of one training."""

from __future__ import annotations

from datasets.pipeline.storage import Storage
from workflows.reporting.drawing import finite_numbers, format_number
from workflows.reporting.format import duration_text
from workflows.reporting.parts import Cell, Page, Paragraph, Section, Summary, Table
from workflows.reporting.sections import (
    compared_with_baselines,
    decisive_metric,
    example_pictures,
    how_to_reproduce,
    learning_curves,
    model_text,
    note_paragraphs,
    scores,
    where_recorded,
)


def build_run(summary: Summary, run: Storage) -> Page:
    """The page of a training.

    Args:
        summary: its result.json, with the experiment, its name and the command.
        run: its folder.
    """
    judged = decisive_metric(summary, summary["metrics"])
    value = summary["metrics"].get(judged)
    history = summary["history"]
    best = next((h for h in history if h["step"] == summary["best_step"]), None)
    speeds = finite_numbers(h.get("train/epoch_rows_per_second") for h in history)
    facts = [
        (judged, format_number(value), compared_with_baselines(summary, judged, value)),
        ("best epoch", f"{best['epoch'] + 1:.0f} of {len(history)}" if best else "–", f"step {summary['best_step']:,}"),
        ("trained for", duration_text(summary["seconds"]), f"{summary['steps']:,} steps"),
        ("parameters", format_number(summary["parameters"]), model_text(summary["experiment"])),
        ("speed", format_number(max(speeds)) if speeds else "–", "rows per second"),
    ]
    mlflow_run = summary.get("run_id") or "find it by its tag, rondo.run"
    return Page(
        summary["experiment"]["name"],
        summary["name"],
        "training",
        _train_verdict(summary, judged, value),
        facts,
        [
            Section("scores", "Scores", scores(summary, judged)),
            Section("learning", "Learning curves", learning_curves(summary, history)),
            Section("examples", "Example predictions", example_pictures(run, {"": "pictures"})),
            Section(
                "runs",
                "Runs",
                [
                    Paragraph(where_recorded(summary)),
                    Table("runs", ["run", "MLflow run"], [[Cell(summary["name"]), Cell(mlflow_run, style="id")]]),
                ],
            ),
            how_to_reproduce(summary),
            Section("notes", "Notes", note_paragraphs(summary)),
        ],
    )


def _train_verdict(summary: Summary, judged: str, value: object) -> str:
    split, _, metric = judged.rpartition("/")
    if not finite_numbers([value]):
        return f"There is no {judged}: the run ended without it."
    text = f"{metric} {format_number(value)} on {split}"
    comparison = compared_with_baselines(summary, judged, value)
    text += f", {comparison}." if comparison else ". There is no baseline to compare it with."
    best = summary["best_reachable"].get(metric)
    return f"{text} The best that any model can reach is {format_number(best)}." if finite_numbers([best]) else text
