"""splitmix64 (Steele, Lea & Flood 2014): random-looking numbers as a function of 64-bit keys. numpy only.

The same keys give the same numbers on every machine and device, whatever else is computed with them. All arithmetic is
modulo 2^64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # what the generator adds to its state before each number


def output(state: Words) -> Words:
    """The generator's output for each state, of any shape."""
    x = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(x: Words) -> Words:
    """A random-looking number for each number of an array; different numbers give different ones."""
    return output((x + np.uint64(1)) * GOLDEN)


def seed(*numbers: int) -> int:
    """One seed, 0 to 2^63 - 1, from several whole numbers."""
    x = np.zeros(1, np.uint64)
    for number in numbers:
        x = output(x + np.array([number % (1 << 64)], np.uint64) + GOLDEN)
    return int(x[0]) >> 1


def uniform(keys: NDArray[np.int64], count: int, stream: int = 0) -> NDArray[np.float32]:
    """Random numbers in [0, 1) for each key.

    Args:
        keys: (B,).
        count: numbers for each key; the first ones do not depend on it.
        stream: another stream gives independent numbers for the same keys.

    Returns:
        (B, count), multiples of 2^-24.
    """
    state = output(keys.astype(np.uint64) + np.array([stream + 1], np.uint64) * GOLDEN)[:, None]  # (B, 1)
    numbers = output(state + np.arange(1, count + 1, dtype=np.uint64) * GOLDEN)
    return (numbers >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
