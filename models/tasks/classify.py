"""Classify: the class of a sequence, or all classes that apply. Shapes: B rows, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from models.batch import Batch
from models.classification import ChoiceTask, ClassWeights, balanced, decisions, scores_of_several
from models.family import check_choice
from models.options import check_share
from models.pooling import Kind, PooledHead
from models.sequence import Artifact, Columns, SequenceModel, Sums, Task, full, mean

TARGETS = ("label", "labels")


class Classify(ChoiceTask):
    """Pooling over the steps, then a linear layer; one class for each row. See ``ChoiceTask``."""

    def __init__(
        self, spec: Mapping[str, Any], head: PooledHead, *, class_weights: ClassWeights, label_smoothing: float
    ) -> None:
        super().__init__(spec, class_weights=class_weights, label_smoothing=label_smoothing)
        check_share("task.label_smoothing", label_smoothing)
        self.head = head

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, K) in at least float32, before the softmax."""
        encoded = model.encode(batch)
        return full(self.head(encoded.y, encoded.lengths))

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The class and the weight of each row, (B,) each."""
        return batch.targets["label"], batch.weights

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """class and probability."""
        best = predictions["probability"].max(-1)
        return {"class": [names[k] for k in best.indices.tolist()], "probability": best.values.tolist()}

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """probability (B, K)."""
        return {"probability": self.outputs(model, batch).softmax(-1)}


class ClassifySeveral(Task):
    """Any number of classes for each row: an independent decision for each class, with binary cross entropy averaged
    over classes.

    Metrics: ``accuracy``, the share of (row, class) decisions that are correct; ``macro_f1``; ``loss``.
    """

    primary = "accuracy"
    maximise = True
    bounds = (0.0, 1.0)

    def __init__(self, spec: Mapping[str, Any], head: PooledHead, *, class_weights: ClassWeights) -> None:
        super().__init__()
        check_choice("class_weights", class_weights, get_args(ClassWeights), "task")
        self.head, self.counts, self.rows = head, spec["counts"], spec["rows"]
        weights = torch.ones(spec["classes"], dtype=torch.float64)
        if class_weights == "balanced" and self.counts is not None:
            weights = balanced(self.counts, [self.rows - count for count in self.counts])
        self.positive_weights: Tensor
        self.register_buffer("positive_weights", weights, persistent=False)  # (K,)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, K) in at least float32, before the sigmoid."""
        encoded = model.encode(batch)
        return full(self.head(encoded.y, encoded.lengths))

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        return batch.weights.sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x mean binary cross entropy of its classes, sum of weights)."""
        return self._loss(self.outputs(model, batch), batch), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        out = self.outputs(model, batch)
        return {"loss": mean(self._loss(out, batch), self.weight(model, batch)), **self._counted(out > 0, batch)}

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        others = {k: v for k, v in sums.items() if k != "decisions"}
        return super().result(others) | scores_of_several(sums["decisions"])

    def artifacts(self, sums: Mapping[str, Tensor]) -> list[Artifact]:
        """decisions: for each class, the number of true and false positives and negatives; (K,) each."""
        kinds = ("true_positive", "false_positive", "false_negative", "true_negative")
        return [Artifact("decisions", dict(zip(kinds, sums["decisions"].long().T.tolist(), strict=True)))]

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """The classes with a probability above 0.5, and these probabilities, separated by spaces."""
        rows = [[(names[k], p) for k, p in enumerate(row) if p > 0.5] for row in predictions["probability"].tolist()]
        return {
            "classes": [" ".join(name for name, _ in row) for row in rows],
            "probabilities": [" ".join(f"{p:.4f}" for _, p in row) for row in rows],
        }

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """probability (B, K) of each class, independent of the others."""
        return {"probability": self.outputs(model, batch).sigmoid()}

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """majority: for every row, the classes of more than half of the training rows."""
        if self.counts is None:
            return {}
        frequent = torch.tensor([2 * count > self.rows for count in self.counts], device=batch.weights.device)
        return {"majority": self._counted(frequent.expand(len(batch.weights), -1), batch)}

    def _loss(self, out: Tensor, batch: Batch) -> Tensor:
        each = F.binary_cross_entropy_with_logits(
            out, batch.targets["labels"].to(out.dtype), reduction="none", pos_weight=self.positive_weights.to(out.dtype)
        )
        return (each.mean(1) * batch.weights).sum()

    def _counted(self, chosen: Tensor, batch: Batch) -> Sums:
        return {"decisions": decisions(batch.targets["labels"] > 0.5, chosen, batch.weights)}


def build(
    spec: Mapping[str, Any],
    encoder: Mapping[str, Any],
    *,
    pooling: Kind = "mean",
    dropout: float = 0.0,
    class_weights: ClassWeights = "none",
    label_smoothing: float = 0.0,
) -> Task:
    """Predict the class of a whole sequence, or all classes that apply if the dataset has several for each row.

    Args:
        pooling: how the steps are combined for the head: mean, max, last (of a direction that reads backward: the
            first), or attention (a learned weighted average).
        dropout: probability that an input of the head is dropped.
        class_weights: none, or balanced: rare classes have more weight, as if all were equally frequent; with several
            classes for each row, the positives of a class have the same total weight as its negatives.
        label_smoothing: share of the target that is spread evenly over all classes (Szegedy et al. 2016); only for one
            class for each row.

    Raises:
        ValueError: an option is out of its range, or does not fit the data.
    """
    head = PooledHead(encoder, spec["classes"], pooling=pooling, dropout=dropout)
    if not spec["several"]:
        return Classify(spec, head, class_weights=class_weights, label_smoothing=label_smoothing)
    if label_smoothing:
        raise ValueError(
            f"task.label_smoothing={label_smoothing} spreads one correct class over all, but these rows may "
            "have several; use 0"
        )
    return ClassifySeveral(spec, head, class_weights=class_weights)
