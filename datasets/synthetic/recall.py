"""Associative recall (Graves, Wayne & Danihelka 2014): find the value of a key; generated from a seed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic
from datasets.text import Text


def build(*, length: int = 40, keys: int = 20, rows: int = 12_500, seed: int = 0) -> Recall:
    """Pairs of a key and a value, then a question mark and one of the keys, at which its value is to be predicted.

    The keys of a row differ from each other; the values are drawn independently, from as many as there are keys. Only
    the last step has a class; chance accuracy is 1 / keys.

    Args:
        length: steps of the pairs: twice their number.
        keys: number of different keys, and of values; at least half of the length.
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed)
    if length < 2 or length % 2:
        raise ValueError(f"dataset.length={length} must be an even number of at least 2, a key and a value a pair")
    if not length // 2 <= keys <= 10_000:
        raise ValueError(f"dataset.keys={keys} is out of range; use {length // 2}, one a pair, to 10000")
    return Recall(
        common=RecordOptions("", step_labels="said"),
        text=["text"],
        tokenizer="word",
        vocabulary=2 * keys + 5,
        min_count=1,
        lowercase=False,
        max_length=None,
        length=length,
        keys=keys,
        rows=rows,
        seed=seed,
    )


@dataclass(kw_only=True)
class Recall(Synthetic, Text):
    """See ``build``."""

    length: int
    keys: int
    rows: int
    seed: int
    kind: ClassVar[str] = "recall"

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        pairs = self.length // 2
        keys = rng.permuted(np.tile(np.arange(self.keys), (count, 1)), axis=1)[:, :pairs]
        values = rng.integers(0, self.keys, (count, pairs))
        queries = rng.integers(0, pairs, count)
        texts, labels = [], []
        for row, query in enumerate(queries):
            words = [(f"k{key}", f"v{value}") for key, value in zip(keys[row], values[row], strict=True)]
            texts.append([*itertools.chain(*words), "?", f"k{keys[row, query]}"])
            labels.append([None] * (self.length + 1) + [f"v{values[row, query]}"])
        return {"text": texts, "said": labels}
