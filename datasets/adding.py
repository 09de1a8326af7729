"""The adding problem (Hochreiter & Schmidhuber 1997): how far back a model remembers two numbers; made from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.records import Made, Options, check_made
from datasets.sequences import Sequences


def build(*, length: int = 200, rows: int = 12_500, seed: int = 0) -> Adding:
    """Sequences of random numbers in [0, 1), two of which are marked: what is their sum?

    The first marked number is in the first half of the sequence, the second one in the second. Who always says 1 has a
    mean squared error of 1/6, who says the marked numbers' sum has 0.

    Args:
        length: steps of each sequence.
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: another seed, other data.

    Raises:
        ValueError: an option is out of its range.
    """
    check_made(rows, seed)
    if length < 2:
        raise ValueError(f"dataset.length={length} is too small; use at least 2")
    return Adding(told=Options("", numbers=["sum"]), values="values", scale="none", length=length, rows=rows, seed=seed)


@dataclass(kw_only=True)
class Adding(Made, Sequences):
    """See ``build``."""

    length: int
    rows: int
    seed: int
    kind: ClassVar[str] = "adding"

    @property
    def best(self) -> dict[str, float]:
        return {"mse": 0.0}

    def make(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        half = self.length // 2
        numbers, marks = rng.random((count, self.length)), np.zeros((count, self.length))
        rows = np.arange(count)
        places = np.stack([rng.integers(0, half, count), rng.integers(half, self.length, count)])
        marks[rows, places] = 1
        return {"values": np.stack([numbers, marks], -1).tolist(), "sum": numbers[rows, places].sum(0).tolist()}
