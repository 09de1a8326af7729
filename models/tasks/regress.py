"""Regress: numbers from a sequence. Shapes: B rows, T time, N numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from models.batch import Batch
from models.pooling import Kind, PooledHead
from models.sequence import Columns, SequenceModel, Sums, Task, full, mean

TARGETS = ("numbers",)


class Regress(Task):
    """Pooling over the steps, then a linear layer; mean squared error in scaled units (standard deviations of the
    training rows).

    Metrics, over rows and numbers: ``mse`` and ``mae`` in raw units; ``r2``, the explained share of the squared
    distance from the training mean, over all numbers in scaled units; ``loss``.
    """

    primary = "mse"

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, pooling: Kind, dropout: float) -> None:
        super().__init__()
        n = spec["targets"]
        center = [0.0] * n if spec["mean"] is None else spec["mean"]
        scale = [1.0] * n if spec["std"] is None else [s or 1.0 for s in spec["std"]]  # 0 for a constant
        self.head = PooledHead(encoder, n, pooling=pooling, dropout=dropout)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(center, dtype=torch.float64), persistent=False)  # (N,)
        self.register_buffer("std", torch.tensor(scale, dtype=torch.float64), persistent=False)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, N) in scaled units, at least float32."""
        encoded = model.encode(batch)
        return full(self.head(encoded.y, encoded.lengths))

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x mean squared error of its scaled numbers, sum of weights)."""
        out = self.outputs(model, batch)
        error = out - self.scaled(batch).to(out.dtype)
        return (error.square().mean(1) * batch.weights).sum(), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        return self._errors(self.outputs(model, batch), batch)

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        metrics = super().result(sums)
        if "unexplained" in metrics:
            metrics["r2"] = 1 - metrics.pop("unexplained")
        return metrics

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """A column for each number."""
        return {name: predictions["value"][:, i].tolist() for i, name in enumerate(names)}

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """value (B, N) in raw units."""
        out = self.outputs(model, batch)
        return {"value": (out.double() * self.std + self.mean).to(out.dtype)}

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """mean: the training mean, for every row."""
        return {"mean": self._errors(torch.zeros_like(self.scaled(batch)), batch)}

    def scaled(self, batch: Batch) -> Tensor:
        """The targets (B, N) in scaled units, float64: float32 has too few digits for raw numbers far from 0."""
        numbers = batch.targets["numbers"].reshape(len(batch.weights), -1)
        return (numbers.double() - self.mean) / self.std

    def _errors(self, out: Tensor, batch: Batch) -> Sums:
        """Sums for predictions (B, N) in scaled units."""
        target = self.scaled(batch)
        error = out.double() - target
        count = batch.weights.sum(dtype=torch.float64)

        def total(each: Tensor) -> Tensor:
            return (each.mean(1) * batch.weights).sum()

        squared = total(error.square())
        return {
            "loss": mean(squared, count),
            "mse": mean(total((error * self.std).square()), count),
            "mae": mean(total((error * self.std).abs()), count),
            "unexplained": mean(squared, total(target.square())),
        }


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, pooling: Kind = "last", dropout: float = 0.0) -> Task:
    """Predict numbers from a whole sequence.

    Args:
        pooling: how the steps are combined for the head: last (of a direction that reads backward: the first), mean,
            max, or attention (a learned weighted average).
        dropout: probability that an input of the head is dropped.

    Raises:
        ValueError: an option is out of its range.
    """
    return Regress(spec, encoder, pooling=pooling, dropout=dropout)
