"""The adding problem (Hochreiter & Schmidhuber 1997): remember two numbers for many steps; generated from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from datasets.sequences import Sequences
from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic


def build(*, length: int = 200, rows: int = 12_500, seed: int = 0) -> Adding:
    """Sequences of random numbers in [0, 1), two of which are marked; the target is their sum.

    The first marked number is in the first half of the sequence, the second one in the second. The mean squared error
    of always predicting 1 is 1/6; the best one is 0.

    Args:
        length: steps of each sequence.
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed)
    if length < 2:
        raise ValueError(f"dataset.length={length} is too small; use at least 2")
    return Adding(
        common=RecordOptions("", numbers=["sum"]), values="values", scale="none", length=length, rows=rows, seed=seed
    )


@dataclass(kw_only=True)
class Adding(Synthetic, Sequences):
    """See ``build``."""

    length: int
    rows: int
    seed: int
    kind: ClassVar[str] = "adding"

    @property
    def best(self) -> dict[str, float]:
        return {"mse": 0.0}

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        half = self.length // 2
        numbers, marks = rng.random((count, self.length)), np.zeros((count, self.length))
        rows = np.arange(count)
        marked = np.stack([rng.integers(0, half, count), rng.integers(half, self.length, count)])
        marks[rows, marked] = 1
        return {"values": np.stack([numbers, marks], -1).tolist(), "sum": numbers[rows, marked].sum(0).tolist()}
