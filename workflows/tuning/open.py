"""Opens a search or a comparison (checks, Ray, tracking) and closes it again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.pipeline.storage import Storage, mask
from workflows.cluster import connect
from workflows.config.experiment import Experiment, check_splits, differences, flatten
from workflows.console import Console
from workflows.errors import Interrupted, UserError, user_mistakes
from workflows.runs import find_unfinished, new_name, open_storage, saved_experiment, spool_path
from workflows.tracking import mlflow, recorder
from workflows.tuning.study import Study

if TYPE_CHECKING:
    from workflows.tuning.session import SearchSession


@contextmanager
def open_session(
    kind: str, studies: list[Study], experiment: Experiment, *, resume: str | None, verbose: bool, progress: bool
) -> Iterator[SearchSession]:
    """Open a search or a comparison: connect to Ray, prepare the data and start tracking. All is closed at the end.

    Args:
        kind: search or compare.
        studies: of the search or comparison.
        experiment: checked.
        resume: name or folder of the one to continue, or "latest"; None starts a new one.
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Raises:
        ValueError: the user's mistakes, if possible before anything is started.
    """
    with user_mistakes():
        for study in studies:
            check_splits(study.experiment)
    connect.check_paths(experiment)
    workers = replace(experiment.workers, cpus=experiment.workers.cpus or 1)
    if workers.least < workers.most:
        raise UserError(
            f"workers.count={workers.count}: trials have a fixed number of workers; use one number, such "
            f"as {workers.least}"
        )
    connect.check_machine(workers)
    mlflow.check(experiment.tracking.uri)
    storage = open_storage(experiment.storage)
    name = resumed_name(kind, storage, experiment, resume) if resume else new_name(experiment, kind)
    folder = storage / name
    with Console(show=progress) as console:
        with connect.import_in_background("workflows.tuning.session"):
            connection = connect.connect(workers, verbose=verbose)
        try:
            from workflows.tracking import remote  # these import Ray, torch and Tune: only after the checks
            from workflows.tuning.session import start_session, trial_capacity

            capacity = trial_capacity(workers)
            console.say(f"{name}: {'continued' if resume else 'started'}, in {folder.uri}\n{capacity.explanation}")
            tracker = remote.start(
                experiment.tracking.uri,
                spool_path(folder),
                actor=True,
                system_metrics=experiment.tracking.system_seconds or None,
            )
            status: recorder.Status = "FAILED"
            session = None
            try:
                session = start_session(
                    kind, studies, experiment, folder, connection, capacity, console, tracker, command_line(kind)
                )
                folder.write("experiment.yaml", experiment.text().encode())
                tracker.begin(
                    name,
                    experiment=experiment.tracking.experiment or experiment.name,
                    run_name=name,
                    params=dict(flatten(experiment.plain())),
                    tags={"rondo.run": name, "rondo.storage": folder.uri, "rondo.kind": kind},
                )
                yield session
                status = "FINISHED"
            except BaseException as error:
                if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
                    status = "KILLED"
                raise
            finally:
                if session is not None:
                    session.end(status)
                if not tracker.close(timeout=120):
                    console.undelivered(tracker.problem(), spool_path(folder), folder.uri)
        finally:
            connect.disconnect(connection)


def command_line(kind: str) -> str:
    """The command of this process, ready to be run again; of a Python call, its name."""
    if Path(sys.argv[0]).name == "__main__.py":
        return f"python -m workflows {mask(shlex.join(sys.argv[1:]))}"
    return f"workflows.{kind}.{kind}(...)"


def resumed_name(kind: str, storage: Storage, experiment: Experiment, resume: str) -> str:
    """The name of the search or comparison to continue.

    Args:
        kind: search or compare.
        storage: that holds it.
        experiment: as given now.
        resume: its name or folder, or "latest".

    Raises:
        ValueError: there is none, it is finished, or it has another experiment.
    """
    name = find_unfinished(
        storage,
        experiment,
        resume,
        kind=kind,
        result="report.html",
        finished=lambda folder: folder.exists(f"{kind}.json"),
    )
    before, now = saved_experiment(storage / name), experiment.plain()
    may_change = ("trials", "seconds", "concurrent", "keep", "register_as")
    changed = differences(before, now) + [
        f"search.{k}: {before.get('search', {}).get(k)!r} there, {v!r} here"
        for k, v in now.get("search", {}).items()
        if k not in may_change and before.get("search", {}).get(k) != v
    ]
    if changed:
        raise UserError(
            f"--resume {resume}: it searches another experiment ({'; '.join(changed[:5])}); use the same "
            "experiment and overrides"
        )
    return name
