"""What every model is fed, whatever the modality. Shapes: B rows, T time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Batch:
    """Rows of one micro-batch on one worker.

    Attributes:
        inputs: tensors by name, batch first; what a front end reads (``values`` (B, T, C), ``tokens`` (B, T), ...).
        lengths: (B,) int64 on the CPU by input name; steps of each row that are not padding.
        targets: tensors by name, batch first; what a task's loss and metrics read.
        weights: (B,) float32; 0 for the filler rows that keep all workers in step, else 1.
        row_ids: (B,) int64 on the CPU; the row's number in its split.
        lanes: (B,) int64 on the CPU: the lane in which each row goes on from where the row before left the state; None
            where no state is carried.
        reset: (B,) bool, True where the state of a lane starts anew; None where no state is carried.
        keys: (B,) int64 on the CPU, mixed from (seed, epoch, row id): what augmentation is drawn from; None in
            evaluation. They stay there, like lengths: a changed speed changes a row's length, which the CPU must know.
    """

    inputs: dict[str, Tensor]
    lengths: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: Tensor
    row_ids: Tensor
    lanes: Tensor | None = None
    reset: Tensor | None = None
    keys: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with all that is computed with on `device`; copies do not block pinned memory."""
        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)
        return Batch({k: move(v) for k, v in self.inputs.items()}, self.lengths,
                     {k: move(v) for k, v in self.targets.items()}, move(self.weights), self.row_ids,
                     self.lanes, None if self.reset is None else move(self.reset), self.keys)
