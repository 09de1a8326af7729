"""Writes the checkpoints of a run, and the best weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from models.sequence import SequenceModel
from workflows.errors import Unwritable
from workflows.training import checkpoint
from workflows.training.checkpoint import Folder
from workflows.training.job import Event
from workflows.training.progress import Progress

REFUSALS = 3  # by storage, in a row, that end a run


class Saver:
    """Writes a run's checkpoints, and the best weights; of one worker, the first.

    A checkpoint that storage refuses is reported, and the next one is tried: a disk that is full for a minute, or an
    object store that is away, costs no training.

    Args:
        folder: of the checkpoints.
        model, optimizer: what is saved.
        experiment: plain values; data: the digest of the prepared data. Both are kept in each checkpoint.
        send_event: called with a note where storage refuses one.
    """

    def __init__(
        self,
        folder: Folder,
        model: SequenceModel,
        optimizer: torch.optim.Optimizer,
        *,
        experiment: dict[str, Any],
        data: str,
        send_event: Callable[[Event], None],
    ) -> None:
        self.folder, self.model, self.optimizer, self.send_event = folder, model, optimizer, send_event
        self.origin = {"experiment": experiment, "data": data}
        self.best: tuple[str, bytes] | None = None  # that storage does not have yet: name, weights
        self.refused = 0  # in a row

    def save(self, progress: Progress, best: bool, lanes: dict[str, torch.Tensor]) -> None:
        """Write a checkpoint; `best`: of the best weights so far.

        Raises:
            Unwritable: storage has refused several in a row.
        """
        if best:
            self.best = f"best-{progress.step:09d}", checkpoint.weights(self.model)
        state = {"progress": progress.plain(), **self.origin}
        try:
            self.write_best()
            checkpoint.save(self.folder, progress.step, self.model, self.optimizer, state, lanes=lanes)
            for old in self.folder.names():
                if old.startswith("best-") and int(old[5:]) < progress.best_step:
                    self.folder.delete(old)
        except OSError as error:
            self.refused += 1
            problem = f"no checkpoint of step {progress.step} could be written to {self.folder.uri}: {error}"
            if self.refused == REFUSALS:
                raise Unwritable(
                    f"{problem}; it is the {REFUSALS}rd in a row. Make room, or bring storage back; then "
                    "--resume continues from the last whole checkpoint"
                ) from None
            self.send_event({"event": "note", "text": f"{problem}; the next one is tried"})
        else:
            self.refused = 0

    def write_best(self) -> None:
        """Write the best weights that are still to be written.

        Raises:
            OSError: storage refuses them.
        """
        if self.best is not None:
            name, data = self.best
            checkpoint.write_files(self.folder, name, {"model.safetensors": data})
            self.best = None
