"""Copy memory (Hochreiter & Schmidhuber 1997): reproduce symbols after a long delay; generated from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic
from datasets.text import Text

LETTERS = "abcdefgh"
DELAY, RECALL = "-", "?"


def build(*, length: int = 200, letters: int = 10, rows: int = 12_500, seed: int = 0) -> CopyMemory:
    """Some letters, a long delay, and then as many question marks, at each of which the next letter is to be predicted.

    Only the steps of the question marks have a class, one of eight; chance accuracy is 1/8.

    Args:
        length: steps of the delay.
        letters: number of letters to remember.
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed)
    for key, value in {"length": length, "letters": letters}.items():
        if value < 1:
            raise ValueError(f"dataset.{key}={value} is too small; use at least 1")
    return CopyMemory(
        common=RecordOptions("", step_labels="said"),
        text=["text"],
        tokenizer="word",
        vocabulary=20,
        min_count=1,
        lowercase=False,
        max_length=None,
        length=length,
        letters=letters,
        rows=rows,
        seed=seed,
    )


@dataclass(kw_only=True)
class CopyMemory(Synthetic, Text):
    """See ``build``."""

    length: int
    letters: int
    rows: int
    seed: int
    kind: ClassVar[str] = "copy_memory"

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        letters = np.array(list(LETTERS))[rng.integers(0, len(LETTERS), (count, self.letters))].tolist()
        before, after = [DELAY] * self.length, [RECALL] * self.letters
        return {
            "text": [[*row, *before, *after] for row in letters],
            "said": [[None] * (self.letters + self.length) + row for row in letters],
        }
