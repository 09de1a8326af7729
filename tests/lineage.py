"""A training that writes down which rows each of its steps was trained on, and what became of that in the end.

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
    """All steps that workers took, in their order; those after the checkpoint that a later attempt began at are marked.

    What is not marked made the final weights.
    """
    steps: dict[int, list[Trained]] = {}
    for line in log.read_bytes().splitlines():
        told = json.loads(line)
        own = steps.setdefault(told["rank"], [])
        if "begins" in told:
            for one in own:
                one.replayed |= one.step > told["begins"]
        else:
            own.append(Trained(told["step"], told["epoch"], told["ids"]))
    return [one for own in steps.values() for one in own]


def work(job: Any, *, plain: Callable[[Any], dict[str, Any]], log: str) -> dict[str, Any]:
    """What a worker does, written down."""
    from workflows import loop, worker

    restore, advance = worker.Attempt.restore, loop._advance
    rank = 0

    def tell(**told: Any) -> None:
        line = json.dumps({"rank": rank, **told}).encode() + b"\n"
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, line)                              # at once: a process that is killed leaves whole lines
        os.close(file)

    def restored(attempt: worker.Attempt) -> None:
        nonlocal rank
        restore(attempt)
        rank = attempt.workers.rank
        tell(begins=attempt.progress.step)

    def advanced(progress: loop.Progress, step: loop.Step) -> None:
        advance(progress, step)
        ids = [i for batch in step.micro for i in batch.row_ids[batch.weights > 0].tolist()]
        tell(step=progress.step, epoch=step.epoch, ids=ids)

    worker.Attempt.restore, loop._advance = restored, advanced               # type: ignore[method-assign]
    try:
        return plain(job)
    finally:
        worker.Attempt.restore, loop._advance = restore, advance             # type: ignore[method-assign]


if __name__ == "__main__":
    from workflows import worker
    from workflows.__main__ import main

    worker.work = functools.partial(work, plain=worker.work, log=sys.argv.pop(1))        # type: ignore[assignment]
    sys.argv[1:1] = ["train", "--json"]
    main()
