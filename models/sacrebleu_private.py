"""Names of sacrebleu that are not public, each behind a function that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of sacrebleu no longer has one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


def counts(metric: Metric, truth: Sequence[str], written: Sequence[str]) -> list[float]:
    """What a metric counts in texts with one reference each, summed over texts.

    Scores of batches and of workers cannot be averaged, but counts can be added. The public ``corpus_score`` wants all
    texts at once; BLEU's result has its counts, chrF's has not.
    """
    rows = metric._extract_corpus_statistics([*written, ""], [[*truth, ""]])       # never without a row
    return [float(sum(column)) for column in zip(*rows, strict=True)]


def score(metric: Metric, sums: Sequence[float]) -> float:
    """The score, 0 to 100, of sums of ``counts``."""
    return float(metric._compute_score_from_stats([int(one) for one in sums]).score)
