"""Deliver to MLflow what runs have recorded while its server was away, or before they were killed."""

from __future__ import annotations

from typing import Any

from datasets.pipeline.storage import Storage
from workflows.console import Console
from workflows.errors import Undelivered, UserError
from workflows.runs import open_storage, saved_experiment, spool_path
from workflows.tracking import mlflow
from workflows.tracking.spool import Tracker, is_delivered, is_in_use


def sync(folder: str, *, uri: str | None = None, timeout: float = 600.0, progress: bool = True) -> dict[str, Any]:
    """Deliver what a run, a search or a comparison has recorded, or all of those in a storage folder.

    A run that was killed has recorded no end: it is ended as KILLED, and ``--resume`` reopens it. A run that is still
    running is skipped. Delivering twice changes nothing.

    Args:
        folder: of one, or of all, or its URI; the records are on the machine that ran them.
        uri: of MLflow, if it is not the experiment's, or has a password, which experiments do not keep.
        timeout: seconds for each.
        progress: show progress on stderr.

    Returns:
        names: delivered, going_on, settled (nothing was left), elsewhere (no record is on this machine).

    Raises:
        ValueError: there is no run. Undelivered: MLflow did not take everything.
    """
    storage = open_storage(folder)
    runs = (
        [storage]
        if storage.exists("experiment.yaml")
        else [storage / name for name in storage.names() if (storage / name).exists("experiment.yaml")]
    )
    if not runs:
        raise UserError(
            f"{storage.uri}: neither a run nor a folder of runs; give the experiment's storage, such as "
            "runs, or a folder in it"
        )
    names_by_state: dict[str, list[str]] = {"delivered": [], "going_on": [], "settled": [], "elsewhere": []}
    problems: list[str] = []
    with Console(show=progress) as console:
        for run in runs:
            name = run.name
            spool = spool_path(run)
            if not spool.exists():
                names_by_state["elsewhere"].append(name)
            elif is_delivered(spool, uri):
                names_by_state["settled"].append(name)
            elif is_in_use(spool):
                names_by_state["going_on"].append(name)
            else:
                problem = _deliver(run, uri or saved_experiment(run)["tracking"]["uri"], timeout)
                if problem:
                    problems.append(f"{name}: {problem}")
                else:
                    names_by_state["delivered"].append(name)
                    console.say(f"{name}: delivered")
        summary = [
            f"{len(names)} {word}"
            for word, names in (
                ("already in MLflow", names_by_state["settled"]),
                ("still running", names_by_state["going_on"]),
                ("without a record on this machine", names_by_state["elsewhere"]),
            )
            if names
        ]
        if summary:
            console.say(", ".join(summary))
    if problems:
        raise Undelivered("\n".join(problems))
    return names_by_state


def _deliver(run: Storage, uri: str, timeout: float) -> str:
    """Deliver what one run has recorded; the problem, or ""."""
    try:
        mlflow.check(uri)
    except ValueError as error:
        return str(error)
    tracker = Tracker(uri, spool_path(run), source={})
    for key in tracker.open_runs():
        tracker.end(key, "KILLED")
    done = tracker.close(timeout)
    return tracker.problem() or ("" if done else f"MLflow did not take everything in {timeout:g} seconds")
