"""What every model is fed, whatever the modality. Shapes: B rows, T time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class Batch:
    """Rows of one micro-batch on one worker.

    Attributes:
        inputs: tensors by name, batch first; what a front end reads (``values`` (B, T, C), ``tokens`` (B, T), ...).
        lengths: (B,) int64 on the CPU by input name; steps of each row that are not padding.
        targets: tensors by name, batch first; what a task's loss and metrics read.
        weights: (B,) float32; 0 for the filler rows that give all workers equally many rows, else 1.
        row_ids: (B,) int64 on the CPU; the row's number in its split.
        lanes: (B,) int64 on the CPU: the lane whose recurrent state each row continues; None if no state is carried
            over batches.
        reset: (B,) bool, True where the state of a lane is reset; None if no state is carried over batches.
        keys: (B,) int64 on the CPU, mixed from (seed, epoch, row id): what augmentation is drawn from; None in
            evaluation. On the CPU like lengths: a changed speed changes a row's length, which the CPU must know.
    """

    inputs: dict[str, Tensor]
    lengths: dict[str, Tensor]
    targets: dict[str, Tensor]
    weights: Tensor
    row_ids: Tensor
    lanes: Tensor | None = None
    reset: Tensor | None = None
    keys: Tensor | None = None

    @classmethod
    def from_arrays(cls, fields: Mapping[str, Mapping[str, NDArray[Any]]], dtype: torch.dtype) -> Batch:
        """Rows outside training, all of weight 1.

        Args:
            fields: ``inputs``, ``lengths`` and ``targets``: arrays by name, batch first.
            dtype: of inputs that are floating-point numbers.
        """
        parts = {
            part: {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
            for part, arrays in fields.items()
        }
        inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in parts["inputs"].items()}
        rows = len(next(iter(inputs.values())))
        return cls(inputs, parts["lengths"], parts["targets"], torch.ones(rows), torch.arange(rows))

    def to(self, device: torch.device) -> Batch:
        """The same batch with all that is computed with on `device`; copies do not block pinned memory."""

        def move(x: Tensor) -> Tensor:
            return x.to(device, non_blocking=True)

        return Batch(
            {k: move(v) for k, v in self.inputs.items()},
            self.lengths,
            {k: move(v) for k, v in self.targets.items()},
            move(self.weights),
            self.row_ids,
            self.lanes,
            None if self.reset is None else move(self.reset),
            self.keys,
        )
