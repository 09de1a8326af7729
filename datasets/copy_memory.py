"""Copy memory (Hochreiter & Schmidhuber 1997): to say again what was said long ago; made from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.records import Made, Options, check_made
from datasets.text import Text

LETTERS = "abcdefgh"
WAIT, NOW = "-", "?"


def build(*, length: int = 200, letters: int = 10, rows: int = 12_500, seed: int = 0) -> CopyMemory:
    """Some letters, a long wait, and then as many question marks, at each of which the next letter is to be said.

    Only the steps of the question marks have a class, one of eight; who guesses is right in 1/8 of them.

    Args:
        length: steps of the wait.
        letters: to be remembered.
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: another seed, other data.

    Raises:
        ValueError: an option is out of its range.
    """
    check_made(rows, seed)
    for key, value in {"length": length, "letters": letters}.items():
        if value < 1:
            raise ValueError(f"dataset.{key}={value} is too small; use at least 1")
    return CopyMemory(told=Options("", step_labels="said"), text=["text"], tokenizer="word", vocabulary=20, min_count=1,
                      lowercase=False, max_length=None, length=length, letters=letters, rows=rows, seed=seed)


@dataclass(kw_only=True)
class CopyMemory(Made, Text):
    """See ``build``."""

    length: int
    letters: int
    rows: int
    seed: int
    kind: ClassVar[str] = "copy_memory"

    def make(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        said = np.array(list(LETTERS))[rng.integers(0, len(LETTERS), (count, self.letters))].tolist()
        before, after = [WAIT] * self.length, [NOW] * self.letters
        return {"text": [[*row, *before, *after] for row in said],
                "said": [[None] * (self.letters + self.length) + row for row in said]}
