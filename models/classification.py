"""What tasks that choose among classes share: the weights of classes, and scores from counts of decisions.

Shapes: N decisions, B rows, K classes. Two kinds of count, both float64, add up over batches and workers:

- a confusion matrix (K, K), truth in rows, where exactly one class is right and they are not too many for it;
- a table (K, 4) of true positives, false positives, false negatives and true negatives.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from models.batch import Batch
from models.family import check_choice
from models.sequence import Artifact, SequenceModel, Sums, Task, mean

ClassWeights = Literal["none", "balanced"]
MATRIX = 500  # classes whose confusion is counted in full: memory grows with their square


class ChoiceTask(Task):
    """One class is right: cross entropy for each decision, the mean by weight; a confusion matrix.

    Metrics: ``accuracy``; ``macro_f1``, the mean over the classes that occur; ``loss``, weighted as in training.

    Args:
        spec: ``classes`` K; ``counts`` of each in the training split, None before the data is known.
        class_weights: none, or balanced: n / (K n_k) for n_k of n training examples, 0 for a class never seen.
        label_smoothing: share of the target that is spread evenly over all classes.
    """

    primary = "accuracy"
    maximise = True
    bounds = (0.0, 1.0)

    def __init__(self, spec: Mapping[str, Any], *, class_weights: ClassWeights, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_choice("class_weights", class_weights, get_args(ClassWeights), "task")
        self.classes, self.counts, self.label_smoothing = spec["classes"], spec["counts"], label_smoothing
        weights = torch.ones(self.classes, dtype=torch.float64)
        if class_weights == "balanced" and self.counts is not None:
            weights = balanced(self.counts, [sum(self.counts) / self.classes] * self.classes)
        self.class_weights: Tensor
        self.register_buffer("class_weights", weights, persistent=False)  # (K,)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(..., K) in at least float32, before the softmax."""
        raise NotImplementedError

    def truth(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(the right classes (...) int64, the weights of these decisions by their rows (...))."""
        raise NotImplementedError

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Sum over decisions of row weight x class weight."""
        return self._weights(*self.truth(batch)).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over decisions of row weight x class weight x cross entropy, sum of those weights)."""
        return self._loss(self.outputs(model, batch), batch), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        out = self.outputs(model, batch)
        return {"loss": mean(self._loss(out, batch), self.weight(model, batch)), **self._counted(out.argmax(-1), batch)}

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        others = {k: v for k, v in sums.items() if k not in ("confusion", "decisions")}
        counts = table(sums["confusion"]) if "confusion" in sums else sums["decisions"]
        return super().result(others) | scores(counts)

    def artifacts(self, sums: Mapping[str, Tensor]) -> list[Artifact]:
        """confusion: ``matrix`` (K, K), truth in rows; none of more than MATRIX classes."""
        return [Artifact("confusion", {"matrix": sums["confusion"].long().tolist()})] if "confusion" in sums else []

    def baselines(self, batch: Batch) -> dict[str, Sums]:
        """majority: the class most frequent in training, for every decision."""
        if self.counts is None:
            return {}
        majority = max(range(self.classes), key=self.counts.__getitem__)
        return {"majority": self._counted(torch.full_like(self.truth(batch)[0], majority), batch)}

    def _weights(self, classes: Tensor, weights: Tensor) -> Tensor:
        return weights * self.class_weights.to(weights.dtype)[classes]

    def _loss(self, out: Tensor, batch: Batch) -> Tensor:
        classes, weights = self.truth(batch)
        each = F.cross_entropy(
            out.flatten(0, -2), classes.flatten(), reduction="none", label_smoothing=self.label_smoothing
        )
        return (each * self._weights(classes, weights).flatten()).sum()

    def _counted(self, chosen: Tensor, batch: Batch) -> Sums:
        classes, weights = self.truth(batch)
        decided = classes.flatten(), chosen.flatten(), weights.flatten(), self.classes
        return {"confusion": confusion(*decided)} if self.classes <= MATRIX else {"decisions": choices(*decided)}


def balanced(counts: Sequence[int], others: Sequence[float]) -> Tensor:
    """(K,) float64 weights others / counts, which make what is counted weigh as much as `others`; 0 for none."""
    seen = torch.tensor(counts, dtype=torch.float64)
    return torch.where(seen > 0, torch.tensor(others, dtype=torch.float64) / seen.clamp(min=1), 0)


def confusion(truth: Tensor, chosen: Tensor, weights: Tensor, classes: int) -> Tensor:
    """(K, K) from the right and the chosen class of N decisions, each (N,) int64, and their weights (N,)."""
    counts = torch.zeros(classes * classes, dtype=torch.float64, device=truth.device)
    return counts.index_add_(0, truth * classes + chosen, weights.double()).reshape(classes, classes)


def choices(truth: Tensor, chosen: Tensor, weights: Tensor, classes: int) -> Tensor:
    """The same decisions as a table (K, 4)."""
    weights = weights.double()

    def each(which: Tensor, of: Tensor) -> Tensor:
        return weights.new_zeros(classes).index_add_(0, of, weights * which)

    right = truth == chosen
    positive, false, missed = each(right, truth), each(~right, chosen), each(~right, truth)
    return torch.stack([positive, false, missed, weights.sum() - positive - false - missed], -1)


def decisions(truth: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """(K, 4) from what is true of B rows and what was predicted, each (B, K) bool, and the rows' weights (B,)."""
    kinds = torch.stack([truth & chosen, ~truth & chosen, truth & ~chosen, ~truth & ~chosen], -1)  # (B, K, 4)
    return (kinds * weights.double()[:, None, None]).sum(0)


def table(matrix: Tensor) -> Tensor:
    """A confusion matrix (K, K) as the table (K, 4) of its classes."""
    right = matrix.diagonal()
    false, missed = matrix.sum(0) - right, matrix.sum(1) - right
    return torch.stack([right, false, missed, matrix.sum() - right - false - missed], -1)


def macro_f1(counts: Tensor) -> float | None:
    """The mean over classes of F1 = 2 TP / (2 TP + FP + FN), from (K, 4); None without a class.

    A class that is neither true nor chosen anywhere is left out, as scikit-learn does.
    """
    right, false, missed, _ = counts.unbind(-1)
    whole = 2 * right + false + missed
    occurs = whole > 0
    return float((2 * right[occurs] / whole[occurs]).mean()) if occurs.any() else None


def scores(counts: Tensor) -> dict[str, float]:
    """accuracy and macro_f1 of a table (K, 4) of which each decision has one right class; of nothing, none."""
    f1 = macro_f1(counts)
    right, _, missed, _ = counts.sum(0)
    return {} if f1 is None else {"accuracy": float(right / (right + missed)), "macro_f1": f1}


def scores_of_several(counts: Tensor) -> dict[str, float]:
    """accuracy (the share of decisions that are right) and macro_f1 of a table (K, 4)."""
    scores = {"accuracy": float(counts[:, [0, 3]].sum() / counts.sum())} if counts.sum() > 0 else {}
    f1 = macro_f1(counts)
    return scores if f1 is None else {**scores, "macro_f1": f1}
