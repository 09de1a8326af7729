"""Dialled telephone numbers in noise; generated from a seed, with a known share of wrong digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import check_synthetic
from datasets.synthetic.dialled_digits import HIGH, KEYS, LOW, DialledDigits

GROUPS, SIZES = (2, 3), (3, 4)  # of a number, and digits of a group; all equally likely


def build(*, rows: int = 1500, noise: float = 0.5, wrong: float = 0.02, seed: int = 0) -> TelephoneNumbers:
    """Sounds of numbers of two or three groups of three or four digits, at 8,000 samples a second, and their texts.

    The pause between two groups is 0.3 to 0.5 s, and a blank in the text; the one between two digits is 0.04 to 0.12 s.

    Args:
        rows: sounds in all; 80 % for training, 10 % for validation, 10 % for the test.
        noise: standard deviation of white noise, relative to the amplitude of each of a digit's two tones.
        wrong: share of the digits of the texts that are replaced by another one; the best expected error rates follow.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed, wrong=wrong, noise=noise)
    return TelephoneNumbers(
        common=RecordOptions("", target="number", target_tokenizer="character"),
        audio="path",
        rate=8000,
        max_seconds=30.0,
        rows=rows,
        noise=noise,
        wrong=wrong,
        seed=seed,
    )


@dataclass(kw_only=True)
class TelephoneNumbers(DialledDigits):
    """See ``build``."""

    kind: ClassVar[str] = "telephone_numbers"

    @property
    def best(self) -> dict[str, float]:
        """The error rates of recognising every digit: of characters (with blanks), and of groups as words."""
        groups, digits = float(np.mean(GROUPS)), float(np.mean(SIZES))
        return {
            "cer": self.wrong * groups * digits / (groups * digits + groups - 1),
            "wer": float(np.mean([1 - (1 - self.wrong) ** size for size in SIZES])),
        }

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        sounds, numbers = [], []
        for _ in range(count):
            groups = [rng.integers(0, 10, rng.choice(SIZES)) for _ in range(rng.choice(GROUPS))]
            sounds.append(_dial(rng, groups, noise=self.noise, rate=self.rate))
            written = [
                np.where(rng.random(len(group)) < self.wrong, (group + rng.integers(1, 10, len(group))) % 10, group)
                for group in groups
            ]
            numbers.append(" ".join("".join(map(str, group)) for group in written))
        return {"sound": pa.array(sounds, pa.list_(pa.int16())), "number": numbers}


def _dial(rng: np.random.Generator, groups: list[NDArray[np.int64]], *, noise: float, rate: int) -> NDArray[np.int16]:
    """The sound of a number in noise: (T,) samples, at a random loudness."""
    parts = [np.zeros(int(rate * rng.uniform(0.05, 0.3)))]
    for group in groups:
        for digit in group:
            row, column = divmod(KEYS.index(str(digit)), 3)
            times = np.arange(int(rate * rng.uniform(0.06, 0.14))) / rate
            parts.append(
                sum(
                    (np.sin(2 * np.pi * (hertz * times + rng.random())) for hertz in (LOW[row], HIGH[column])),
                    np.zeros(times.size),
                )
            )
            parts.append(np.zeros(int(rate * rng.uniform(0.04, 0.12))))
        parts.append(np.zeros(int(rate * rng.uniform(0.26, 0.38))))  # in addition to the pause of the last digit
    sound = np.concatenate(parts)
    loudness = 10 ** rng.uniform(-1, 0) / (2 + 4 * noise)  # below clipping
    noisy = loudness * (sound + noise * rng.normal(size=sound.size))
    samples: NDArray[np.int16] = np.clip(np.rint(32767 * noisy), -32768, 32767).astype(np.int16)
    return samples
