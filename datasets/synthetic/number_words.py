"""Numbers in English words, to translate to digits; generated from a seed, with a known share of wrong digits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic
from datasets.text import Text

MAX_DIGITS = 6
SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def build(*, rows: int = 8000, wrong: float = 0.02, seed: int = 0) -> NumberWords:
    """Numbers of one to six digits, all equally likely, in words ("three thousand and forty two") and digits ("3 0 4
    2").

    Args:
        rows: numbers in all; 80 % for training, 10 % for validation, 10 % for the test.
        wrong: share of the digits that are replaced by another one; the best expected loss follows.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed, wrong=wrong)
    return NumberWords(
        common=RecordOptions("", target="digits", target_tokenizer="word"),
        text=["words"],
        tokenizer="word",
        vocabulary=100,
        min_count=1,
        lowercase=False,
        max_length=None,
        rows=rows,
        wrong=wrong,
        seed=seed,
    )


@dataclass(kw_only=True)
class NumberWords(Synthetic, Text):
    """See ``build``."""

    rows: int
    wrong: float
    seed: int
    kind: ClassVar[str] = "number_words"

    @property
    def best(self) -> dict[str, float]:
        """The loss of knowing every number and the share of wrong digits; the end of each text is certain."""
        right = 1 - self.wrong
        digit = -right * math.log(right) - (self.wrong * math.log(self.wrong / 9) if self.wrong else 0.0)
        digits = (1 + MAX_DIGITS) / 2
        loss = digits * digit / (digits + 1)
        return {"loss": loss, "perplexity": math.exp(loss)}

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        words, digits = [], []
        for size in rng.integers(1, MAX_DIGITS + 1, count):
            number = int(rng.integers(10 ** (size - 1) if size > 1 else 0, 10**size))
            right = np.array([int(digit) for digit in str(number)])
            wrong = rng.random(right.size) < self.wrong
            written = np.where(wrong, (right + rng.integers(1, 10, right.size)) % 10, right)
            words.append(in_words(number))
            digits.append(" ".join(map(str, written)))
        return {"words": words, "digits": digits}


def in_words(number: int) -> str:
    """A number below a million in words."""
    if number < 20:
        return SMALL[number]
    if number < 100:
        return " ".join([TENS[number // 10 - 2], *([SMALL[number % 10]] if number % 10 else [])])
    unit, name = (100, "hundred") if number < 1000 else (1000, "thousand")
    remainder = number % unit
    joined = ["and"] if 0 < remainder < 100 else []
    return " ".join([in_words(number // unit), name, *joined, *([in_words(remainder)] if remainder else [])])
