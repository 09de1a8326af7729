"""Names of sacrebleu that are not public, each behind a function that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of sacrebleu no longer has one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


def counts(metric: Metric, references: Sequence[str], predictions: Sequence[str]) -> list[float]:
    """The counts of a metric over texts with one reference each, summed over texts.

    Scores of batches and workers cannot be averaged, but counts can be added. The public ``corpus_score`` needs all
    texts at once; the result of BLEU contains its counts, that of chrF does not.
    """
    rows = metric._extract_corpus_statistics([*predictions, ""], [[*references, ""]])  # fails without a row
    return [float(sum(column)) for column in zip(*rows, strict=True)]


def score(metric: Metric, sums: Sequence[float]) -> float:
    """The score, 0 to 100, of sums of ``counts``."""
    return float(metric._compute_score_from_stats([int(count) for count in sums]).score)
