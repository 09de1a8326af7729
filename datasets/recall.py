"""Associative recall (Graves, Wayne & Danihelka 2014): to find by a key what once stood beside it; made from a seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.records import Made, Options, check_made
from datasets.text import Text


def build(*, length: int = 40, keys: int = 20, rows: int = 12_500, seed: int = 0) -> Recall:
    """Pairs of a key and a value, then a question mark and a key of them, at which its value is to be said.

    The keys of a row differ from each other; its values are drawn anew for each row, from as many as there are keys.
    Only the last step has a class; who guesses is right in 1 / keys of the rows.

    Args:
        length: steps of the pairs: twice their number.
        keys: that there are, and values; at least half of the length.
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: another seed, other data.

    Raises:
        ValueError: an option is out of its range.
    """
    check_made(rows, seed)
    if length < 2 or length % 2:
        raise ValueError(f"dataset.length={length} must be an even number of at least 2, a key and a value a pair")
    if not length // 2 <= keys <= 10_000:
        raise ValueError(f"dataset.keys={keys} is out of range; use {length // 2}, one a pair, to 10000")
    return Recall(told=Options("", step_labels="said"), text=["text"], tokenizer="word", vocabulary=2 * keys + 5,
                  min_count=1, lowercase=False, max_length=None, length=length, keys=keys, rows=rows, seed=seed)


@dataclass(kw_only=True)
class Recall(Made, Text):
    """See ``build``."""

    length: int
    keys: int
    rows: int
    seed: int
    kind: ClassVar[str] = "recall"

    def make(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        pairs = self.length // 2
        keys = rng.permuted(np.tile(np.arange(self.keys), (count, 1)), axis=1)[:, :pairs]
        values = rng.integers(0, self.keys, (count, pairs))
        asked = rng.integers(0, pairs, count)
        texts, said = [], []
        for row, place in enumerate(asked):
            told = [(f"k{key}", f"v{value}") for key, value in zip(keys[row], values[row], strict=True)]
            texts.append([*itertools.chain(*told), "?", f"k{keys[row, place]}"])
            said.append([None] * (self.length + 1) + [f"v{values[row, place]}"])
        return {"text": texts, "said": said}
