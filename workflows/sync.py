"""Deliver what runs have on record and MLflow has not: its server was away to the end, or the run was killed."""

from __future__ import annotations

from typing import Any

from datasets.storage import Storage
from workflows import tracking
from workflows.console import Console
from workflows.train import spool_of, told_before


class Undelivered(Exception):
    """Some of the record could not be delivered; the message says of which run, and why."""


def sync(folder: str, *, uri: str | None = None, timeout: float = 600.0, progress: bool = True) -> dict[str, Any]:
    """Deliver the records of a run, a search or a comparison, or of all of them in a storage folder.

    A run that was killed has no end on record: it is ended as KILLED; ``--resume`` opens it again. One that goes on is
    left alone. Delivering twice changes nothing.

    Args:
        folder: of one, or of all; or its URI: then the records wait on the machine that ran them.
        uri: of MLflow, where it is not what the experiment says, or has a password, which that does not keep.
        timeout: seconds for each.
        progress: say on stderr what is done.

    Returns:
        names: delivered, going_on, settled (nothing was left), elsewhere (no record is on this machine).

    Raises:
        ValueError: there is no run. Undelivered: MLflow still does not take all.
    """
    storage = Storage(folder)
    runs = [storage] if storage.exists("experiment.yaml") else [
        storage / name for name in storage.names() if (storage / name).exists("experiment.yaml")]
    if not runs:
        raise ValueError(f"{storage.uri}: neither a run nor a folder of runs; give the experiment's storage, such as "
                         "runs, or a folder in it")
    found: dict[str, list[str]] = {"delivered": [], "going_on": [], "settled": [], "elsewhere": []}
    left: list[str] = []
    with Console(show=progress) as console:
        for run in runs:
            name = run.name
            spool = spool_of(run)
            if not spool.exists():
                found["elsewhere"].append(name)
            elif tracking.settled(spool, uri):
                found["settled"].append(name)
            elif tracking.busy(spool):
                found["going_on"].append(name)
            else:
                problem = _deliver(run, uri or told_before(run)["tracking"]["uri"], timeout)
                if problem:
                    left.append(f"{name}: {problem}")
                else:
                    found["delivered"].append(name)
                    console.say(f"{name}: delivered")
        told = [f"{len(names)} {word}" for word, names in (("already in MLflow", found["settled"]),
                                                          ("still going on", found["going_on"]),
                                                          ("without a record on this machine", found["elsewhere"]))
                if names]
        if told:
            console.say(", ".join(told))
    if left:
        raise Undelivered("\n".join(left))
    return found


def _deliver(run: Storage, uri: str, timeout: float) -> str:
    """Deliver one run's record; what is in the way, empty if nothing is."""
    try:
        tracking.check(uri)
    except ValueError as error:
        return str(error)
    tracker = tracking.Tracker(uri, spool_of(run), source={})
    for key in tracker.open_runs():
        tracker.end(key, "KILLED")
    done = tracker.close(timeout)
    return tracker.problem() or ("" if done else f"not all was taken in {timeout:g} seconds")
