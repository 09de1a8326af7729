"""Runs in storage: their names, their folders, and which of them can be continued."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datasets.pipeline.storage import Storage
from workflows.config.experiment import Experiment
from workflows.config.yaml import parse
from workflows.errors import UserError, user_mistakes
from workflows.tracking import spool

DELIVERY = 30.0  # seconds that the end of a run waits for MLflow


@user_mistakes()
def open_storage(uri: str | Path) -> Storage:
    """The storage at a path or URI.

    Raises:
        UserError: there cannot be one.
    """
    return Storage(uri)


def local_folder(run: Storage) -> Path:
    """The run's folder, or for a run in an object store a folder on this machine."""
    return run.local or Path.home() / ".cache" / "rondo" / run.name


def spool_path(run: Storage) -> Path:
    """The file in which a run's metrics wait for MLflow."""
    return local_folder(run) / "tracking.jsonl"


def new_name(experiment: Experiment, kind: str = "") -> str:
    """A unique name for a run, or for a search or comparison (`kind`: search, compare)."""
    stem = f"{experiment.name}-{kind}" if kind else experiment.name
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def find_unfinished(
    storage: Storage,
    experiment: Experiment,
    resume: str,
    *,
    finished: Callable[[Storage], bool],
    result: str,
    kind: str = "",
) -> str:
    """Find the run to resume, or the search or comparison.

    Args:
        storage: that has it.
        experiment: "latest" means the newest unfinished one of its name.
        resume: a name, a folder or "latest".
        finished: whether the one in a folder is finished.
        result: a file or folder of a finished one, to name in the message.
        kind: search or compare; "" for a run.

    Returns:
        Its name.

    Raises:
        ValueError: there is none, it is finished, or it is still running.
    """
    noun = kind or "run"
    if resume == "latest":
        stem = f"{experiment.name}-{kind}" if kind else experiment.name
        named = re.compile(rf"{re.escape(stem)}-\d{{8}}-\d{{6}}-[0-9a-f]{{4}}")
        unfinished = [
            n
            for n in storage.names()
            if named.fullmatch(n) and (storage / n).exists("experiment.yaml") and not finished(storage / n)
        ]
        if not unfinished:
            raise UserError(
                f"--resume: no unfinished {noun} of {experiment.name!r} in {storage.uri}; leave --resume "
                "out to start one"
            )
        name = max(unfinished)
    else:
        name = open_storage(resume).name
    run = storage / name
    if not run.exists("experiment.yaml"):
        raise UserError(f"--resume {resume}: no {noun} of that name in {storage.uri}")
    if finished(run):
        raise UserError(
            f"--resume {resume}: that {noun} is finished; its {result.partition('.')[0]} is {(run / result).uri}"
        )
    if spool.is_in_use(spool_path(run)):
        raise UserError(f"--resume {resume}: that {noun} is still running; wait for its end, or stop it first")
    return name


def saved_experiment(run: Storage) -> dict[str, Any]:
    """The experiment that a run was started with, as plain values."""
    values: dict[str, Any] = parse(run.read("experiment.yaml"))
    return values


def open_bundle(bundle: str | Path) -> Storage:
    """The folder of a bundle, given the bundle or its run.

    Raises:
        ValueError: there is no such folder, or it holds no bundle.
    """
    folder = open_storage(bundle)
    if folder.exists("bundle/manifest.json"):
        return folder / "bundle"
    if folder.local is not None and not folder.local.is_dir():
        kind = "a file, not a folder" if folder.local.exists() else "no such folder"
        raise UserError(f"{folder.uri}: {kind}; a bundle is the folder that `train` names at its end")
    if not folder.exists("manifest.json"):
        raise UserError(f"{folder.uri}: not a bundle: it has no manifest.json")
    if b'"bundle.json"' not in folder.read("manifest.json"):
        raise UserError(f"{folder.uri}: not a bundle, but something else with a manifest.json")
    return folder
