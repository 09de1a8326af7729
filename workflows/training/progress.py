"""Steps of training, and its progress."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from models.batch import Batch


@dataclass
class Step:
    """One global batch, as one worker sees it.

    Attributes:
        epoch: that it belongs to; position: (shard group, batch) within the epoch.
        rows: of the whole global batch.
        micro: this worker's micro-batches.
        own_rows: of the global batch's rows, those of this worker.
        checksum: over this worker's own row ids.
    """

    epoch: int
    position: tuple[int, int]
    rows: int
    micro: list[Batch]
    own_rows: int
    checksum: int


class Steps(Protocol):
    """The steps from a position in the plan to the end of the last epoch."""

    def __call__(self, epoch: int, position: tuple[int, int]) -> Iterator[Step]: ...


@dataclass
class Progress:
    """What a checkpoint holds besides tensors: the position in the data, and what was counted so far."""

    step: int = 0
    epoch: int = 0
    position: tuple[int, int] = (0, 0)  # of the next global batch
    rows: int = 0  # trained on, all epochs
    epoch_rows: int = 0  # in this epoch, by this worker count, all workers
    epoch_checksum: int = 0
    epoch_loss: float = 0.0  # weighted sum, all workers
    epoch_weight: float = 0.0
    best: float = math.inf  # of the primary metric, negative where the highest is best
    best_loss: float = math.inf  # of that epoch's validation, which decides among equals
    best_step: int = -1
    stale: int = 0  # epochs since the best
    rate_scale: float = 1.0  # of schedule plateau
    seconds: float = 0.0  # of training, over all attempts
    history: list[dict[str, float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint, which calls the position ``place``."""
        values = asdict(self)
        values["place"] = values.pop("position")
        return values

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Progress:
        """The progress that ``plain`` wrote."""
        others = {name: value for name, value in values.items() if name != "place"}
        return cls(**others, position=tuple(values["place"]))
