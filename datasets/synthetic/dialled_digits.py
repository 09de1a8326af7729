"""Dialled telephone digits, two tones each, in noise; generated from a seed, with a known share of wrong labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.audio import Audio
from datasets.shared.columns import BadRows
from datasets.shared.options import RecordOptions
from datasets.shared.sums import State
from datasets.shared.synthetic import Synthetic, check_synthetic

LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477)  # Hz, rows and columns of the keys (ITU-T Q.23)
KEYS = "123456789*0#"
SHORTEST, LONGEST = 0.1, 0.6  # seconds of a sound


def build(*, rows: int = 2000, noise: float = 1.0, wrong: float = 0.03, seed: int = 0) -> DialledDigits:
    """Sounds of one dialled digit each, at 8,000 samples a second, with a silence before and after it.

    Args:
        rows: sounds in all; 80 % for training, 10 % for validation, 10 % for the test.
        noise: standard deviation of white noise, relative to the amplitude of each of the two tones.
        wrong: share of the digits that are replaced by another one, so that 1 - wrong is the best expected accuracy.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed, wrong=wrong, noise=noise)
    return DialledDigits(
        common=RecordOptions("", label="digit"),
        audio="path",
        rate=8000,
        max_seconds=30.0,
        rows=rows,
        noise=noise,
        wrong=wrong,
        seed=seed,
    )


@dataclass(kw_only=True)
class DialledDigits(Synthetic, Audio):
    """See ``build``."""

    rows: int
    noise: float
    wrong: float
    seed: int
    kind: ClassVar[str] = "dialled_digits"

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        digits = rng.integers(0, 10, count)
        sounds = [dial(rng, str(digit), noise=self.noise, rate=self.rate) for digit in digits]
        labels = np.where(rng.random(count) < self.wrong, (digits + rng.integers(1, 10, count)) % 10, digits)
        return {"sound": pa.array(sounds, pa.list_(pa.int16())), "digit": [str(digit) for digit in labels]}

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: BadRows) -> tuple[dict[str, pa.Array], State]:
        """The generated sounds; new files to predict from are decoded like any audio."""
        if "sound" not in table.column_names:
            return super().encode_input(table, rows, bad)
        sounds = table["sound"].combine_chunks().take(pa.array(rows, pa.int64()))
        lengths = pa.array([len(sound) for sound in sounds], pa.int32())
        return {"length": lengths, "samples": sounds}, {"samples": sum(lengths.to_pylist()), "rows": len(rows)}


def dial(rng: np.random.Generator, key: str, *, noise: float, rate: int) -> NDArray[np.int16]:
    """The sound of a key in noise: (T,) samples, between two silences of up to 0.2 s, at a random loudness."""
    seconds, before, after = rng.uniform(SHORTEST, LONGEST), rng.uniform(0, 0.2), rng.uniform(0, 0.2)
    row, column = divmod(KEYS.index(key), 3)
    times = np.arange(int(rate * (before + seconds + after))) / rate
    tones = sum(np.sin(2 * np.pi * (hertz * times + rng.random())) for hertz in (LOW[row], HIGH[column]))
    on = (times >= before) & (times < before + seconds)
    sound = tones * on + noise * rng.normal(size=times.size)
    loudness = 10 ** rng.uniform(-1, 0) / (2 + 4 * noise)  # below clipping
    samples: NDArray[np.int16] = np.clip(np.rint(32767 * loudness * sound), -32768, 32767).astype(np.int16)
    return samples
