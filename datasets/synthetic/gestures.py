"""Gestures as an acceleration sensor records them; generated from a seed, with a known share of wrong labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from datasets.sequences import Sequences
from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic

NAMES = ("circle", "circle back", "eight", "shake", "wave")


def build(*, rows: int = 2000, noise: float = 0.3, wrong: float = 0.04, seed: int = 0) -> Gestures:
    """Sequences of 30 to 90 frames of three channels, each of one of five gestures of random size, speed and start.

    A circle and a circle back differ only in the direction of rotation, which no single frame or average shows.

    Args:
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        noise: standard deviation of white noise on each channel, relative to the size of the movement.
        wrong: share of the gestures that are replaced by another one, so that 1 - wrong is the best expected accuracy.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed, wrong=wrong, noise=noise)
    return Gestures(
        common=RecordOptions("", label="gesture"),
        values="values",
        scale="standard",
        rows=rows,
        noise=noise,
        wrong=wrong,
        seed=seed,
    )


@dataclass(kw_only=True)
class Gestures(Synthetic, Sequences):
    """See ``build``."""

    rows: int
    noise: float
    wrong: float
    seed: int
    kind: ClassVar[str] = "gestures"

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        kinds = rng.integers(0, len(NAMES), count)
        values = [_gesture(rng, NAMES[kind], self.noise).tolist() for kind in kinds]
        other = (kinds + rng.integers(1, len(NAMES), count)) % len(NAMES)
        labels = np.where(rng.random(count) < self.wrong, other, kinds)
        return {"values": values, "gesture": [NAMES[kind] for kind in labels]}


def _gesture(rng: np.random.Generator, name: str, noise: float) -> NDArray[np.float64]:
    """(T, 3): two channels of the movement, and one that swings up and down."""
    frames = int(rng.integers(30, 91))
    angle = 2 * np.pi * rng.uniform(1, 3) * np.arange(frames) / frames
    # Independent starts: otherwise the third channel would give the phase of the others, and so their direction.
    turn, swing = angle + 2 * np.pi * rng.random(), angle / 2 + 2 * np.pi * rng.random()
    across, along = {
        "circle": (np.cos(turn), np.sin(turn)),
        "circle back": (np.cos(turn), -np.sin(turn)),
        "eight": (np.cos(turn), np.sin(2 * turn)),
        "shake": (np.cos(3 * turn), np.cos(3 * turn)),
        "wave": (np.cos(turn), np.cos(turn)),
    }[name]
    movement = rng.uniform(0.6, 1.4) * np.stack([across, along, 0.3 * np.sin(swing)], 1)
    return movement + noise * rng.normal(size=movement.shape)
