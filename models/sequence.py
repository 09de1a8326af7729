"""SequenceModel = front end -> family -> task. Shapes: B rows, T steps that the family sees, H its width."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.families import Family, State

# By name, tensors of any shape that add up over batches and workers, in float64; Task.result makes metrics of the sums.
# A mean is the pair (sum, count), made by `mean`.
Sums = dict[str, Tensor]
Columns = dict[str, list[Any]]


@dataclass
class Encoded:
    """What a family made of a batch.

    Attributes:
        y: (R, T, H); R = B, or B times the sequences that the front end made of each row.
        lengths: (R,) valid steps, on the CPU.
        context: what the front end hands to the task, by name (the statistics to undo a normalisation, ...).
        state: of the family after each row's last valid step; None where it has none.
    """

    y: Tensor
    lengths: Tensor
    context: dict[str, Tensor]
    state: State | None


class Frontend(nn.Module):
    """Raw inputs -> steps of features.

    Attributes:
        size: features of a step.
        steps: of every row, where all rows have as many; else None.
        sequences: that each row becomes.
        changes_steps: where its steps are not the input's own, the option that makes it so and the remedy, for the
            message of a task that needs them to be; else empty.
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
    """A simple method that is fitted in one pass over the training rows, from sums that add over workers."""

    name: str

    @abstractmethod
    def moments(self, batch: Batch) -> Tensor:
        """What this batch adds, float64."""

    @abstractmethod
    def fit(self, moments: Tensor) -> None:
        """Solve from the sum of all moments."""

    @abstractmethod
    def metrics(self, batch: Batch) -> Sums:
        """Sums over the batch, as ``Task.metrics`` gives them."""


@dataclass
class Artifact:
    """Something to be drawn or written beside the metrics.

    Attributes:
        kind: what it is, which says how it is drawn.
        arrays: by name, nested lists of plain numbers.
    """

    kind: str
    arrays: dict[str, list[Any]]


class Task(nn.Module):
    """What is predicted: head, loss, metrics, baselines.

    Attributes:
        primary: the metric that says which model is best.
        maximise: whether its highest value is best; else its lowest.
        bounds: values that it cannot go beyond.
        quick: set while validation must not take long: metrics then need not decode as well as they can.
        signatures: by metric, how exactly it is computed, where its library says so.
    """

    primary: str
    maximise: bool = False
    bounds: tuple[float, float] = (0.0, math.inf)
    quick: bool = False
    signatures: Mapping[str, str] = MappingProxyType({})

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(weighted sum of the rows' losses, sum of their weights), both scalars."""
        raise NotImplementedError

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """The weight that `loss` will return, without running the model: at most its front end is asked for lengths."""
        raise NotImplementedError

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        """Sums over the batch, of which ``result`` makes ``loss``, the primary metric and others."""
        raise NotImplementedError

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Metrics from the sums of all batches, the model's or a baseline's; a mean of nothing is left out."""
        return {name: float(total / count) for name, (total, count) in sums.items() if count > 0}

    def artifacts(self, sums: Mapping[str, Tensor]) -> list[Artifact]:
        """What is to be seen in the same sums beside the metrics."""
        return []

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """Predictions by name, rows first."""
        raise NotImplementedError

    def written(self, found: Mapping[str, Tensor], names: Sequence[str], steps: Sequence[Sequence[int]]) -> Columns:
        """What people read of predictions.

        Args:
            found: what `predict` gave, on the CPU, (B, ...) each.
            names: of the classes, or of the numbers, in their order.
            steps: (B,) the steps of each row that stand for steps of the raw row.

        Returns:
            Columns by name, an entry a row.
        """
        raise NotImplementedError

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """The sums of simple methods that need no training, by their names."""
        return {}

    def fitted_baselines(self) -> Sequence[Baseline]:
        """Simple methods that are fitted in one pass."""
        return []


class Carried:
    """The state that each lane was left in, for truncated back-propagation through time (Williams & Peng 1990): values
    go on from batch to batch, gradients do not.

    Attributes:
        lanes: the state's tensors by name, (lanes, ...); of lanes of other workers they mean nothing.
    """

    def __init__(self) -> None:
        self.lanes: State = {}

    def before(self, batch: Batch, fresh: State) -> State:
        """The state before each row of a batch: that of its lane, or `fresh` where it starts anew."""
        assert batch.lanes is not None and batch.reset is not None
        self._make_room(int(batch.lanes.max()) + 1, fresh)
        where, out = batch.lanes.to(batch.reset.device, non_blocking=True), State()
        for name, value in fresh.items():
            reset = batch.reset.reshape(-1, *[1] * (value.ndim - 1))
            out[name] = torch.where(reset, value, self.lanes[name][where].to(value.device))
        return out

    def keep(self, batch: Batch, state: State) -> None:
        """The state after each row, as its lane's; rows of weight 0 fill up a batch, and are no lane's."""
        assert batch.lanes is not None
        real = batch.weights > 0
        where = batch.lanes.to(real.device, non_blocking=True)[real]
        for name, value in state.items():
            kept = self.lanes[name]
            self.lanes[name] = kept.index_copy(0, where, value.detach()[real].to(kept.dtype))

    def of_all(self, add: Callable[[Tensor], Tensor], rank: int, world: int) -> State:
        """The lanes of all workers, on each of them.

        Args:
            add: the sum of a tensor over workers.
            rank, world: of this worker; lane j is worker j % world's.
        """
        counts = torch.zeros(world, dtype=torch.int64)
        counts[rank] = max((len(value) for value in self.lanes.values()), default=0)
        most = int(add(counts).max())
        own = torch.arange(most) % world == rank
        out = {}
        for name in sorted(self.lanes):
            value = self.lanes[name].cpu()
            padded = torch.cat([value, value.new_zeros(most - len(value), *value.shape[1:])])
            padded[~own] = 0
            out[name] = add(padded).contiguous()
        return out

    def _make_room(self, lanes: int, like: State) -> None:
        for name, value in like.items():
            there = self.lanes.get(name, value.new_zeros(0, *value.shape[1:]).detach())
            if len(there) < lanes:
                there = torch.cat([there.to(value.device), value.new_zeros(lanes - len(there), *value.shape[1:])])
            self.lanes[name] = there.to(value.device)


class SequenceModel(nn.Module):
    """Calling the model gives the loss of a batch, so that whatever wraps it sees the whole computation."""

    def __init__(self, frontend: Frontend, family: Family, task: Task) -> None:
        super().__init__()
        self.frontend, self.family, self.task = frontend, family, task
        self.carried = Carried()

    def encode(self, batch: Batch, state: State | None = None) -> Encoded:
        """Front end and family; of a batch in lanes, rows go on from the state of their lanes, and leave it there."""
        x, lengths, context = self.frontend(batch)
        in_lanes = batch.lanes is not None and self.family.carries
        if in_lanes:
            state = self.carried.before(batch, self.family.initial_state(len(x)))
        y, state = self.family(x, lengths, state)
        if in_lanes and state is not None:
            self.carried.keep(batch, state)
        return Encoded(y, lengths, context, state)

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum of weighted losses, sum of weights)."""
        return self.task.loss(self, batch)


def mean(total: Tensor, count: Tensor) -> Tensor:
    """A mean as it adds up: (2,) float64, sum and count."""
    return torch.stack([total.double(), count.double()])


def full(x: Tensor) -> Tensor:
    """x in at least fp32: what autocast made bf16 is widened, fp64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
