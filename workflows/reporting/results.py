"""Saves the results of a run: final metrics, pictures and the page, in its folder and in MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets.pipeline.storage import Storage
from workflows.config.experiment import Experiment
from workflows.reporting import pictures
from workflows.reporting.page import write
from workflows.runs import local_folder
from workflows.tracking import recorder

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Prepared


def save_results(
    result: dict[str, Any],
    experiment: Experiment,
    prepared: Prepared,
    run: Storage,
    tracker: recorder.Recorder,
    name: str,
) -> None:
    """Draw the pictures of a run, and log its final metrics, pictures, experiment and bundle to MLflow.

    Args:
        result: of ``Attempt.finish``.
        experiment: that was trained.
        prepared: its data.
        run: the folder of the run.
        tracker: records metrics and files.
        name: key of the run in MLflow.
    """
    final = result["steps"] + 1  # the last epoch's step has validation metrics of its own, of other weights
    tracker.metrics(name, {k: v for k, v in result["metrics"].items() if k != "train/loss"}, final)
    for method, values in result["baselines"].items():
        tracker.metrics(name, {f"baseline/{method}/{k}": v for k, v in values.items()}, final)
    local = local_folder(run)
    folder = local / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    pictures.learning_curve(result["history"], result["primary"], result["best_step"], folder / "learning_curve.png")
    pictures.predictions(experiment, prepared, run, folder)
    if run.local is None:
        run.put(folder, "pictures")
        (local / "experiment.yaml").write_text(experiment.text())
        for file in (run / "bundle").names():
            (local / "bundle").mkdir(exist_ok=True)
            (local / "bundle" / file).write_bytes((run / "bundle").read(file))
    tracker.artifact(name, local / "experiment.yaml")
    tracker.artifact(name, folder, "pictures")
    tracker.artifact(name, local / "bundle", "bundle")


def report(run: Storage, tracker: recorder.Recorder, name: str) -> str:
    """Write the page of a run, a search or a comparison and log it to MLflow; its path or URI."""
    page = write(run)
    local = local_folder(run) / "report.html"
    if run.local is None:
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(run.read("report.html"))
    tracker.artifact(name, local)
    return page
