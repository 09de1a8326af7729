"""Short reviews with a verdict, generated from a seed: distant negation, contrast, and a known share of wrong labels.

A review has two opinions, joined by "but" or "although". With "but" the second one decides, with "although" the first.
An opinion has a good or a bad word about something; "not", "never" or "hardly" some words before reverses its meaning.
So counting words does not help: every word is as frequent in good reviews as in bad ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic
from datasets.text import Text

GOOD = ("good", "great", "funny", "warm", "clever", "moving", "bright", "fresh")
BAD = ("bad", "dull", "cold", "slow", "silly", "flat", "tired", "loud")
NOT = ("not", "never", "hardly")
THINGS = ("the plot", "the music", "the acting", "this film", "the ending", "the first half", "every scene", "the cast")
ADVERBS = ("", "really", "at all", "in my eyes", "to be honest", "for a single minute", "after all these years")


def build(*, rows: int = 5000, wrong: float = 0.05, seed: int = 0) -> Reviews:
    """Reviews and their verdicts, good or bad.

    Args:
        rows: reviews in all; 80 % for training, 10 % for validation, 10 % for the test.
        wrong: share of the verdicts that are reversed, so that 1 - wrong is the best expected accuracy.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed, wrong=wrong)
    return Reviews(
        common=RecordOptions("", label="verdict"),
        text=["text"],
        tokenizer="word",
        vocabulary=1000,
        min_count=1,
        lowercase=False,
        max_length=None,
        rows=rows,
        wrong=wrong,
        seed=seed,
    )


@dataclass(kw_only=True)
class Reviews(Synthetic, Text):
    """See ``build``."""

    rows: int
    wrong: float
    seed: int
    kind: ClassVar[str] = "reviews"

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        reviews = [_review(rng) for _ in range(count)]
        good = np.array([verdict for _, verdict in reviews]) ^ (rng.random(count) < self.wrong)
        return {"text": [text for text, _ in reviews], "verdict": ["good" if one else "bad" for one in good]}


def _review(rng: np.random.Generator) -> tuple[str, bool]:
    """(text, whether its verdict is good)."""
    (first, one), (second, two) = _opinion(rng), _opinion(rng)
    if rng.random() < 0.5:
        return f"{first} , but {second} .", two
    return f"{first} , although {second} .", one


def _opinion(rng: np.random.Generator) -> tuple[str, bool]:
    good, negated = rng.random(2) < 0.5
    word = str(rng.choice(GOOD if good else BAD))
    words = [str(rng.choice(THINGS)), "is", str(rng.choice(NOT)) if negated else "", str(rng.choice(ADVERBS)), word]
    return " ".join(filter(None, words)), bool(good ^ negated)
