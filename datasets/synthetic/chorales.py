"""Chorale-like pieces: chords of four voices, drawn from a Markov chain; generated from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from datasets.music import Music
from datasets.shared.options import RecordOptions
from datasets.shared.synthetic import Synthetic, check_synthetic

# The chords of C major by their degree, bass to soprano, and the probabilities of the chord that follows each.
CHORDS = {
    "I": (48, 60, 64, 67),
    "ii": (50, 62, 65, 69),
    "iii": (52, 59, 64, 67),
    "IV": (53, 60, 65, 69),
    "V": (55, 59, 62, 67),
    "vi": (57, 60, 64, 72),
    "vii": (47, 62, 65, 74),
}
FOLLOW = {
    "I": {"IV": 0.35, "V": 0.35, "vi": 0.2, "ii": 0.1},
    "ii": {"V": 0.7, "vii": 0.3},
    "iii": {"vi": 0.6, "IV": 0.4},
    "IV": {"V": 0.5, "I": 0.3, "ii": 0.2},
    "V": {"I": 0.75, "vi": 0.25},
    "vi": {"ii": 0.4, "IV": 0.4, "iii": 0.2},
    "vii": {"I": 0.9, "iii": 0.1},
}
HELD = 2  # steps of each chord
SIZES = tuple(range(8, 25))  # chords of a piece; all equally likely


def build(*, rows: int = 600, seed: int = 0) -> Chorales:
    """Pieces of 8 to 24 chords, each held for two steps; the first is drawn from the stationary distribution.

    Args:
        rows: pieces in all; 80 % for training, 10 % for validation, 10 % for the test.
        seed: of the random generator.

    Raises:
        ValueError: an option is out of its range.
    """
    check_synthetic(rows, seed)
    return Chorales(common=RecordOptions(""), notes="notes", quarters=0.5, rows=rows, seed=seed)


@dataclass(kw_only=True)
class Chorales(Synthetic, Music):
    """See ``build``."""

    rows: int
    seed: int
    kind: ClassVar[str] = "chorales"

    @property
    def best(self) -> dict[str, float]:
        """The loss of predicting each note independently with the true probabilities; it is 0 where a chord is held."""
        transitions, start = _chain()
        sounds = np.array([[note in chord for note in range(128)] for chord in CHORDS.values()])
        p = transitions @ sounds  # of each note after each chord
        safe = np.clip(p, 1e-12, 1 - 1e-12)
        each = -(p * np.log(safe) + (1 - p) * np.log(1 - safe)).sum(1)
        changes = float(np.mean(SIZES)) - 1
        return {"loss": float(start @ each) * changes / (HELD * float(np.mean(SIZES)) - 1)}

    def generate(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        transitions, start = _chain()
        chords = [list(chord) for chord in CHORDS.values()]
        pieces = []
        for size in rng.choice(SIZES, count):
            chord = int(rng.choice(len(chords), p=start))
            steps = [chords[chord]] * HELD
            for _ in range(size - 1):
                chord = int(rng.choice(len(chords), p=transitions[chord]))
                steps += [chords[chord]] * HELD
            pieces.append(steps)
        return {"notes": pieces}


def _chain() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(transition probabilities (K, K), stationary distribution (K,)) of the K chords."""
    transitions = np.array([[FOLLOW[a].get(b, 0.0) for b in CHORDS] for a in CHORDS])
    stationary = np.linalg.matrix_power(transitions, 1000)[0]
    return transitions, stationary / stationary.sum()
