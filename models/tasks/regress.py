"""Regress: a sequence to numbers. Shapes: B rows, T time, K numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models import pooling as pool
from models.batch import Batch
from models.families import check_choice
from models.sequence import SequenceModel, Sums, Task, full

Pooling = Literal["last", "mean", "max", "attention"]


class Regress(Task):
    """Pooling over the steps, then a linear layer; mean squared error.

    Metrics, over rows and numbers: ``mse``, ``mae``.
    """

    primary = "mse"

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, pooling: Pooling) -> None:
        super().__init__()
        check_choice("pooling", pooling, get_args(Pooling), "task")
        self.pooling = pool.build(pooling, encoder["size"])
        self.head = nn.Linear(encoder["size"], spec["targets"])

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, K) float32."""
        encoded = model.encode(batch)
        return full(self.head(self.pooling(encoded.y, encoded.lengths)))

    def weight(self, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x mean squared error of its numbers, sum of weights)."""
        error = self.outputs(model, batch) - _target(batch)
        return (error.square().mean(1) * batch.weights).sum(), self.weight(batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        return self._errors(self.outputs(model, batch), batch)

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """value (B, K)."""
        return {"value": self.outputs(model, batch)}

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """mean: the training mean, for every row."""
        return {"mean": self._errors(batch.targets["mean"].reshape(len(batch.weights), -1), batch)}

    def _errors(self, out: Tensor, batch: Batch) -> Sums:
        error = out - _target(batch)
        count = batch.weights.sum(dtype=torch.float64)
        mse = (error.square().mean(1) * batch.weights).sum(dtype=torch.float64)
        mae = (error.abs().mean(1) * batch.weights).sum(dtype=torch.float64)
        return {"loss": (mse, count), "mse": (mse, count), "mae": (mae, count)}


def _target(batch: Batch) -> Tensor:
    return batch.targets["target"].reshape(len(batch.weights), -1)


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, pooling: Pooling = "last") -> Task:
    """Predict numbers from a whole sequence.

    Args:
        pooling: what the head reads of the steps: last, mean, max, or attention (a learned weighted average).
    """
    return Regress(spec, encoder, pooling=pooling)
