"""Label: the class of every step. Shapes: B rows, T time, K classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.classification import ChoiceTask, ClassWeights
from models.options import check_share
from models.sequence import Columns, SequenceModel, Task, full

TARGETS = ("step_labels",)
NONE = -1  # the target of a step without a label, and of padding


class Label(ChoiceTask):
    """A linear layer on every step; one class for each step that has a label. See ``ChoiceTask``."""

    def __init__(
        self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float, class_weights: ClassWeights
    ) -> None:
        super().__init__(spec, class_weights=class_weights)
        check_share("task.dropout", dropout)
        if encoder["changes_steps"]:
            raise ValueError(
                f"task.kind='label' predicts the class of every step of a row, but {encoder['changes_steps']}"
            )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder["size"], self.classes)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, T, K) in at least float32, before the softmax."""
        return full(self.head(self.dropout(model.encode(batch).y)))

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The class and the weight of each step, (B, T) each; weight 0 for a step without a label."""
        labels = batch.targets["step_labels"]
        return labels.clamp(min=0), batch.weights[:, None].expand_as(labels).masked_fill(labels == NONE, 0)

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """The classes of the raw row's steps and their probabilities, separated by spaces."""
        rows = [
            probability[torch.tensor(steps, dtype=torch.int64)].max(-1)
            for probability, steps in zip(predictions["probability"], context["steps"], strict=True)
        ]
        return {
            "classes": [" ".join(names[k] for k in row.indices.tolist()) for row in rows],
            "probabilities": [" ".join(f"{p:.4f}" for p in row.values.tolist()) for row in rows],
        }

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """probability (B, T, K), and steps (B,): the number of each row's steps that are not padding."""
        encoded = model.encode(batch)
        return {"probability": full(self.head(encoded.y)).softmax(-1), "steps": encoded.lengths}


def build(
    spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float = 0.0, class_weights: ClassWeights = "none"
) -> Task:
    """Predict the class of every step; needs a front end that keeps the steps of the input.

    Args:
        dropout: probability that an input of the head is dropped.
        class_weights: none, or balanced: rare classes have more weight, as if all were equally frequent.

    Raises:
        ValueError: an option is out of its range, or the front end changes the steps.
    """
    return Label(spec, encoder, dropout=dropout, class_weights=class_weights)
