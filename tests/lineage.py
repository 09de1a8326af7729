"""A training that logs the rows of each of its steps, and which steps were repeated after a failure.

python -m tests.lineage LOG [--resume] OVERRIDE ...
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Trained:
    """A step of one worker: its number, the epoch, the ids of the worker's rows; and whether it was trained again."""

    step: int
    epoch: int
    ids: list[int]
    replayed: bool = False


def lineage(log: Path) -> list[Trained]:
    """All steps of all workers in their order; those after a checkpoint that a later attempt started from are replayed.

    The steps that are not replayed are in the lineage of the final weights.
    """
    steps: dict[int, list[Trained]] = {}
    for line in log.read_bytes().splitlines():
        entry = json.loads(line)
        of_rank = steps.setdefault(entry["rank"], [])
        if "begins" in entry:
            for one in of_rank:
                one.replayed |= one.step > entry["begins"]
        else:
            of_rank.append(Trained(entry["step"], entry["epoch"], entry["ids"]))
    return [one for of_rank in steps.values() for one in of_rank]


def work(job: Any, context: Any, *, plain: Callable[[Any, Any], dict[str, Any]], log: str) -> dict[str, Any]:
    """Train as a worker does, and log each step."""
    from workflows.training import loop, worker
    from workflows.training.progress import Progress, Step

    restore, advance = worker.Attempt.restore, loop._advance
    rank = 0

    def write(**entry: Any) -> None:
        line = json.dumps({"rank": rank, **entry}).encode() + b"\n"
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line)  # at once: a process that is killed leaves whole lines
        os.close(file)

    def restored(attempt: worker.Attempt) -> None:
        nonlocal rank
        restore(attempt)
        rank = attempt.workers.rank
        write(begins=attempt.progress.step)

    def advanced(progress: Progress, step: Step) -> None:
        advance(progress, step)
        ids = [i for batch in step.micro for i in batch.row_ids[batch.weights > 0].tolist()]
        write(step=progress.step, epoch=step.epoch, ids=ids)

    worker.Attempt.restore, loop._advance = restored, advanced  # type: ignore[method-assign]
    try:
        return plain(job, context)
    finally:
        worker.Attempt.restore, loop._advance = restore, advance  # type: ignore[method-assign]


if __name__ == "__main__":
    from workflows.__main__ import main
    from workflows.training import worker

    worker.work = functools.partial(work, plain=worker.work, log=sys.argv.pop(1))  # type: ignore[assignment]
    sys.argv[1:1] = ["train", "--json"]
    main()
