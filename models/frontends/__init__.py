"""Front ends: raw inputs -> steps of features, one a file. Shapes: B rows, T time, F bins of a frame.

A front end is a file of this folder with a function ``build(spec, *, option: type = default, ...)``. The dataset
chooses it by the file's name, in ``spec["frontend"]``; the annotated keyword-only arguments are the user's options.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F

from models import augment, folders
from models.batch import Batch
from models.family import step_mask
from models.options import check_least
from models.sequence import Frontend


def names() -> list[str]:
    """The known front ends, sorted: the names of this folder's files."""
    return folders.names(__path__)


def module(name: str) -> ModuleType:
    """The file of a front end.

    Raises:
        ValueError: no such file; the message lists the known front ends and the nearest one.
    """
    return folders.module(__name__, __path__, name, key="frontend", kind="front ends")


def build(name: str, spec: Mapping[str, Any], **options: Any) -> Frontend:
    """Make the front end of this name for rows as `spec` describes them."""
    return cast(Frontend, module(name).build(spec, **options))


class FramesFrontend(Frontend):
    """A front end whose rows are frames of `bins` numbers: masked in training, then neighbours joined.

    Args:
        bins: F.
        stack: frames joined into one step; what is missing in the last one is 0.
        time_masks, frequency_masks: masks of each row in training (SpecAugment, Park et al. 2019).
        time_mask, frequency_mask: the longest mask, as a share of the row's frames or of the bins.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self, bins: int, *, stack: int, time_masks: int, time_mask: float, frequency_masks: int, frequency_mask: float
    ) -> None:
        super().__init__()
        check_least("model.stack", stack, 1)
        for key, count in {"time_masks": time_masks, "frequency_masks": frequency_masks}.items():
            check_least(f"model.{key}", count, 0)
        for key, share in {"time_mask": time_mask, "frequency_mask": frequency_mask}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"model.{key}={share} is no share of a row; use a value in [0, 1]")
        self.size, self.stack = bins * stack, stack
        self.time_masks, self.time_mask = time_masks, time_mask
        self.frequency_masks, self.frequency_mask = frequency_masks, frequency_mask
        if stack > 1:
            self.changes_steps = f"model.stack={stack} joins steps; use model.stack=1"

    def frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(x (B, T, F), lengths (B,) on the CPU)."""
        raise NotImplementedError

    def frame_lengths(self, batch: Batch) -> Tensor:
        """The lengths (B,) that `frames` gives in the same mode, on the CPU, without computing any frame."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x (B, ceil(T / stack), F * stack), lengths, nothing."""
        x, lengths = self.frames(batch)
        if self.training and batch.keys is not None:
            x = augment.mask_steps(x, lengths, batch.keys, masks=self.time_masks, share=self.time_mask)
            x = augment.mask_bins(x, batch.keys, masks=self.frequency_masks, share=self.frequency_mask)
        if self.stack > 1:
            x = stacked(x, lengths, self.stack)
        return x, self._steps(lengths), {}

    def lengths(self, batch: Batch) -> Tensor:
        """ceil(frames / stack) of each row."""
        return self._steps(self.frame_lengths(batch))

    def _steps(self, frames: Tensor) -> Tensor:
        return frames if self.stack == 1 else (frames + self.stack - 1) // self.stack


def stacked(x: Tensor, lengths: Tensor, stack: int) -> Tensor:
    """Each `stack` neighbouring steps joined: (B, T, F) -> (B, ceil(T / stack), F * stack); padded steps are 0."""
    x = x.masked_fill(~step_mask(x, lengths)[..., None], 0)  # a row's last step may hold some of its padding
    x = F.pad(x, (0, 0, 0, -x.shape[1] % stack))
    return x.reshape(x.shape[0], -1, x.shape[2] * stack)
