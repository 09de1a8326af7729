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

READS = ("step_labels",)
NONE = -1       # the target of a step without a label, and of padding


class Label(ChoiceTask):
    """A linear layer on every step; a choice for each step that has a label. See ``ChoiceTask``."""

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float,
                 class_weights: ClassWeights) -> None:
        super().__init__(spec, class_weights=class_weights)
        check_share("task.dropout", dropout)
        if encoder["changes_steps"]:
            raise ValueError("task.kind='label' tells the class of every step of a row, but "
                             f"{encoder['changes_steps']}")
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder["size"], self.classes)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, T, K) in at least float32, before the softmax."""
        return full(self.head(self.dropout(model.encode(batch).y)))

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B, T) twice; weight 0 where a step has no label."""
        labels = batch.targets["step_labels"]
        return labels.clamp(min=0), batch.weights[:, None].expand_as(labels).masked_fill(labels == NONE, 0)

    def written(self, found: Mapping[str, Tensor], names: Sequence[str], steps: Sequence[Sequence[int]]) -> Columns:
        """classes and probabilities of the steps, with blanks between."""
        rows = [p[torch.tensor(kept, dtype=torch.int64)].max(-1)
                for p, kept in zip(found["probability"], steps, strict=True)]
        return {"classes": [" ".join(names[k] for k in row.indices.tolist()) for row in rows],
                "probabilities": [" ".join(f"{p:.4f}" for p in row.values.tolist()) for row in rows]}

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """probability (B, T, K), and steps (B,): how many of each row's are no padding."""
        encoded = model.encode(batch)
        return {"probability": full(self.head(encoded.y)).softmax(-1), "steps": encoded.lengths}


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float = 0.0,
          class_weights: ClassWeights = "none") -> Task:
    """Tell the class of every step; needs a front end that leaves the steps as they are.

    Args:
        dropout: probability that an input of the head is dropped.
        class_weights: none, or balanced: rare classes weigh more, as if all were equally frequent.

    Raises:
        ValueError: an option is out of its range, or the front end joins or moves steps.
    """
    return Label(spec, encoder, dropout=dropout, class_weights=class_weights)
