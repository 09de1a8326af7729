"""SequenceModel = front end -> family -> task. Shapes: B rows, T steps that the family sees, H its width."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.family import Family, State

# By name, float64 tensors of any shape that are added over batches and workers; Task.result computes metrics from them.
# A mean is the pair (sum, count), see `mean`.
Sums = dict[str, Tensor]
Columns = dict[str, list[Any]]  # of a table, by name


@dataclass
class Encoded:
    """The output of a family for a batch.

    Attributes:
        y: (R, T, H); R = B, or B times the sequences into which the front end splits each row.
        lengths: (R,) valid steps, on the CPU.
        context: what the front end passes to the task, by name, such as the statistics of a normalisation.
        state: of the family after each row's last valid step; None for a family without one.
    """

    y: Tensor
    lengths: Tensor
    context: dict[str, Tensor]
    state: State | None


class Frontend(nn.Module):
    """Raw inputs -> steps of features.

    Attributes:
        size: features of a step.
        steps: steps of every row, if all rows have equally many; else None.
        sequences: the number of sequences into which each row is split.
        changes_steps: empty if each step is one step of the input; else the option that changes this and the remedy,
            for the message of a task that needs the steps of the input.
    """

    size: int
    steps: int | None = None
    sequences: int = 1
    changes_steps: str = ""

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(x (R, T, size), lengths (R,) on the CPU, context)."""
        raise NotImplementedError

    def lengths(self, batch: Batch) -> Tensor:
        """The lengths (R,) that `forward` gives in the same mode, on the CPU, without computing any features."""
        raise NotImplementedError


class Baseline(ABC):
    """A simple method that is fitted in one pass over the training rows, from sums over batches and workers."""

    name: str

    @abstractmethod
    def moments(self, batch: Batch) -> Tensor:
        """The contribution of a batch to the sums, float64."""

    @abstractmethod
    def fit(self, moments: Tensor) -> None:
        """Fit the method to the sum of all moments."""

    @abstractmethod
    def metrics(self, batch: Batch) -> Sums:
        """Sums over the batch, in the form of ``Task.metrics``."""


@dataclass
class Artifact:
    """Plain data to be drawn.

    Attributes:
        kind: of drawing.
        arrays: by name, nested lists of numbers and texts.
    """

    kind: str
    arrays: dict[str, list[Any]]


class Task(nn.Module):
    """What is predicted: head, loss, metrics, baselines, and how predictions are formatted and drawn.

    Attributes:
        primary: the metric by which models are compared.
        maximise: whether a higher value of it is better.
        bounds: the lowest and the highest value that it can have.
        quick: True during validation in training, which has to be fast: metrics may then use a cheaper decoding.
        signatures: by metric, the exact definition as its library prints it.
        output: the form of predictions: ``table``, or for a task that continues rows ``text`` (texts in a column
            ``text``) or ``notes`` (music in a column ``notes``: the notes that sound in each step).
    """

    primary: str
    maximise: bool = False
    bounds: tuple[float, float] = (0.0, math.inf)
    quick: bool = False
    signatures: Mapping[str, str] = MappingProxyType({})
    output: str = "table"

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(weighted sum of the rows' losses, sum of their weights), both scalars."""
        raise NotImplementedError

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """The weight that `loss` returns, without running the model: at most its front end is asked for lengths."""
        raise NotImplementedError

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        """Sums over the batch, from which ``result`` computes ``loss``, the primary metric and others."""
        raise NotImplementedError

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from the sums over all batches, of the model or a baseline; a mean over no rows is left out."""
        return {name: float(total / count) for name, (total, count) in sums.items() if count > 0}

    def artifacts(self, sums: Mapping[str, Tensor]) -> list[Artifact]:
        """Data to be drawn from the same sums."""
        return []

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """Predictions by name, rows first."""
        raise NotImplementedError

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """Predictions as people read them.

        Args:
            predictions: the output of `predict`, on the CPU, (B, ...) each.
            names: of the classes, numbers, columns or notes, in the order of their indices.
            context: what the dataset knows about the rows besides their tensors, by name, (B,) each: ``steps``, those
                steps of a row that are steps of the raw row; for series ``times``, the times of the horizon (Z,), and
                ``mean`` and ``std`` of the scaling (N,).

        Returns:
            Columns of equal length: the same number of entries for each row, in the order of the rows.
        """
        raise NotImplementedError

    def examples(self, model: SequenceModel, rows: Iterable[Batch]) -> list[Artifact]:
        """Predictions of a few rows of the last split, as data to be drawn; by default none.

        Args:
            model: the model of this task, in evaluation mode.
            rows: batches of one row each; they are read only when this is iterated over.

        Returns:
            Artifacts of kinds that workflows/reporting/pictures.py draws; each array has one entry for each row.
        """
        return []

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """The sums of simple methods that need no training, by name."""
        return {}

    def fitted_baselines(self) -> Sequence[Baseline]:
        """Simple methods that are fitted in one pass."""
        return []


class RecurrentState:
    """The state at the end of each lane, for truncated back-propagation through time (Williams & Peng 1990): values
    are carried from batch to batch, gradients are not.

    Attributes:
        lanes: the state's tensors by name, (lanes, ...); those of other workers' lanes are not valid.
    """

    def __init__(self) -> None:
        self.lanes: State = {}

    def before(self, batch: Batch, fresh: State) -> State:
        """The state before each row of a batch: that of its lane, or `fresh` where the lane is reset."""
        assert batch.lanes is not None and batch.reset is not None
        self._grow(int(batch.lanes.max()) + 1, fresh)
        lanes, state = batch.lanes.to(batch.reset.device, non_blocking=True), State()
        for name, value in fresh.items():
            reset = batch.reset.reshape(-1, *[1] * (value.ndim - 1))
            state[name] = torch.where(reset, value, self.lanes[name][lanes].to(value.device))
        return state

    def keep(self, batch: Batch, state: State) -> None:
        """Store the state after each row as that of its lane; filler rows (weight 0) belong to no lane."""
        assert batch.lanes is not None
        is_row = batch.weights > 0
        lanes = batch.lanes.to(is_row.device, non_blocking=True)[is_row]
        for name, value in state.items():
            stored = self.lanes[name]
            self.lanes[name] = stored.index_copy(0, lanes, value.detach()[is_row].to(stored.dtype))

    def gather(self, add: Callable[[Tensor], Tensor], rank: int, world: int) -> State:
        """The lanes of all workers, on each of them.

        Args:
            add: returns the sum of a tensor over workers.
            rank, world: of this worker; lane j belongs to worker j % world.
        """
        counts = torch.zeros(world, dtype=torch.int64)
        counts[rank] = max((len(value) for value in self.lanes.values()), default=0)
        lanes = int(add(counts).max())
        is_local = torch.arange(lanes) % world == rank
        gathered = {}
        for name in sorted(self.lanes):
            value = self.lanes[name].cpu()
            padded = torch.cat([value, value.new_zeros(lanes - len(value), *value.shape[1:])])
            padded[~is_local] = 0
            gathered[name] = add(padded).contiguous()
        return gathered

    def _grow(self, lanes: int, like: State) -> None:
        """Make the tensors long enough for `lanes` lanes; new ones are 0."""
        for name, value in like.items():
            stored = self.lanes.get(name, value.new_zeros(0, *value.shape[1:]).detach())
            if len(stored) < lanes:
                stored = torch.cat([stored.to(value.device), value.new_zeros(lanes - len(stored), *value.shape[1:])])
            self.lanes[name] = stored.to(value.device)


class SequenceModel(nn.Module):
    """A front end, a family and a task. Calling it computes the loss of a batch, so that DistributedDataParallel, which
    wraps calls, covers the whole computation."""

    def __init__(self, frontend: Frontend, family: Family, task: Task) -> None:
        super().__init__()
        self.frontend, self.family, self.task = frontend, family, task
        self.recurrent_state = RecurrentState()

    def encode(self, batch: Batch, state: State | None = None) -> Encoded:
        """Run front end and family. Rows of a batch in lanes continue from the stored state of their lanes, which is
        updated."""
        x, lengths, context = self.frontend(batch)
        in_lanes = batch.lanes is not None and self.family.stateful
        if in_lanes:
            state = self.recurrent_state.before(batch, self.family.initial_state(len(x)))
        y, state = self.family(x, lengths, state)
        if in_lanes and state is not None:
            self.recurrent_state.keep(batch, state)
        return Encoded(y, lengths, context, state)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of weighted losses, sum of weights)."""
        return self.task.loss(self, batch)


def mean(total: Tensor, count: Tensor) -> Tensor:
    """A mean in the form that can be added over batches: (2,) float64, sum and count."""
    return torch.stack([total.double(), count.double()])


def full(x: Tensor) -> Tensor:
    """x in at least float32: bfloat16, from autocast, is widened; float64 is kept."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
