"""Train one experiment: prepare, wire Ray Train, keep the record, leave a bundle.

>>> from workflows.train import train
>>> result = train("workflows/experiments/etth1.yaml", overrides=["model.family=lstm"])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.pipeline.storage import Storage
from workflows.cluster import connect
from workflows.config.experiment import Experiment, check_splits, differences
from workflows.config.load import load
from workflows.config.settings import Search
from workflows.console import Console
from workflows.errors import UserError, user_mistakes
from workflows.runs import find_unfinished, new_name, open_storage, saved_experiment, spool_path
from workflows.tracking import mlflow, spool


def train(
    experiment: Experiment | str | Path | Mapping[str, Any] | None = None,
    *,
    overrides: list[str] | None = None,
    resume: str | None = None,
    verbose: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an experiment and return its result as plain values.

    Args:
        experiment: a checked one, a YAML file, a mapping, or None for the default on synthetic data.
        overrides: ``section.key=value``, where `experiment` is not checked yet.
        resume: a run's name or folder to continue, or "latest" for the newest unfinished run of this name.
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Returns:
        run, run_id, bundle, metrics (flat), baselines, seconds, steps and more.

    Raises:
        ValueError: the user's mistakes. Interrupted: Ctrl-C or SIGTERM. Diverged: the loss became NaN.
    """
    checked = experiment if isinstance(experiment, Experiment) else load(experiment, overrides)
    checked = checked.replace(search=Search())
    with user_mistakes():
        check_splits(checked)
    connect.check_paths(checked)
    connect.check_machine(checked.workers)
    mlflow.check(checked.tracking.uri)
    storage = open_storage(checked.storage)
    name = _resumed(storage, checked, resume) if resume else new_name(checked)
    with Console(show=progress) as console:
        with connect.import_in_background("workflows.training.run"):
            connection = connect.connect(checked.workers, verbose=verbose)
        try:
            from workflows.training.run import run  # Ray and torch: seconds, and only once the experiment is right

            return run(checked, storage / name, connection, console, resumed=resume is not None)
        finally:
            connect.disconnect(connection)


def _resumed(storage: Storage, experiment: Experiment, resume: str) -> str:
    """The run to continue.

    Raises:
        ValueError: there is none, it is finished, or it is a run of another experiment.
    """
    name = find_unfinished(storage, experiment, resume, finished=_finished, result="bundle")
    changed = differences(saved_experiment(storage / name), experiment.plain())
    if changed:
        raise UserError(
            f"--resume {resume}: its checkpoints belong to another experiment ({'; '.join(changed[:5])}); "
            "use the same experiment and overrides"
        )
    return name


def _finished(run: Storage) -> bool:
    """Whether a run has come to its end, and nothing of its record is left to deliver."""
    return run.exists("result.json") and spool.is_delivered(spool_path(run), status="FINISHED")
