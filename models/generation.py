"""Tasks that continue a row, of any length, instead of giving one prediction for it. Shapes: B rows, T steps."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from models.sampling import Sampling
from models.sequence import SequenceModel, Task


class GenerativeTask(Task):
    """A task whose model draws the steps after the beginning of a row.

    ``format_predictions`` gets ``steps`` (B, T, ...): the beginning and what was drawn to follow it.
    """

    def prompt(self, inputs: Mapping[str, Tensor], steps: int | None) -> Tensor:
        """(B, T, ...) what `generate` begins with.

        Args:
            inputs: rows of equal length, as the dataset encodes them.
            steps: how many of their steps, from the start; None takes all.
        """
        raise NotImplementedError

    def check_sampling(self, sampling: Sampling) -> None:
        """Raise ValueError for options that have no meaning for the steps of this task."""

    def generate(self, model: SequenceModel, start: Tensor, length: int, *, sampling: Sampling, keys: Tensor) -> Tensor:
        """The steps after the beginning of each row.

        Args:
            model: that this is the task of, in evaluation mode.
            start: (B, T, ...) from `prompt`.
            length: maximum number of steps to add.
            sampling: how each is drawn.
            keys: (B,) int64 of the rows, that random numbers are drawn from.

        Returns:
            (B, U, ...), U <= length.
        """
        raise NotImplementedError
