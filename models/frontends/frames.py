"""Sequences of frames: sensors, or features computed elsewhere. Shapes: B rows, T time, C channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from models.batch import Batch
from models.frontends import FramesFrontend
from models.sequence import Frontend


class Frames(FramesFrontend):
    """Frames as they are stored. See `build`."""

    def frames(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """values (B, T, C) and their lengths."""
        return batch.inputs["values"], self.frame_lengths(batch)

    def frame_lengths(self, batch: Batch) -> Tensor:
        """Those of the values."""
        return batch.lengths["values"]


def build(
    spec: Mapping[str, Any],
    *,
    stack: int = 1,
    time_masks: int = 0,
    time_mask: float = 0.1,
    frequency_masks: int = 0,
    frequency_mask: float = 0.15,
) -> Frontend:
    """Sequences of frames as they are stored; ``spec["channels"]`` numbers each.

    Args:
        stack: consecutive frames that make one step of the family.
        time_masks: runs of frames of each row that are set to 0 in training; frames should have mean 0.
        time_mask: the longest of them, as a share of the row's frames; lengths are drawn from 0 to it.
        frequency_masks: runs of neighbouring channels (mel bands) of each row that are set to 0 in training.
        frequency_mask: the widest of them, as a share of the channels; widths are drawn from 0 to it.

    Raises:
        ValueError: an option is out of its range.
    """
    return Frames(
        spec["channels"],
        stack=stack,
        time_masks=time_masks,
        time_mask=time_mask,
        frequency_masks=frequency_masks,
        frequency_mask=frequency_mask,
    )
