"""Decoding of connectionist temporal classification (Graves et al. 2006). Shapes: T steps, V tokens and the blank.

A path has a token or the blank at every step; the text of a path is what is left when repeats are joined and blanks
taken out. The probability of a text is the sum over all paths to it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from models.ngrams import NGrams

BLANK = 0
FLOOR = -14.0  # tokens less likely than exp(FLOOR) at a step are not tried there


def greedy(best: NDArray[np.int64]) -> list[int]:
    """The text of the likeliest path, from the likeliest token of each step, (T,)."""
    kept = np.flatnonzero(np.diff(best, prepend=-1))
    return [int(token) for token in best[kept] if token != BLANK]


def beam_search(
    scores: NDArray[np.float64], *, beam: int, language: NGrams | None = None, weight: float = 0.0, bonus: float = 0.0
) -> list[int]:
    """The likeliest text, by prefix beam search (Hannun et al. 2014).

    Args:
        scores: (T, V) natural logarithms of the tokens' probabilities at each step.
        beam: prefixes of texts that are kept at each step.
        language: what says how likely a text is by itself.
        weight: of its logarithm, relative to that of the sound.
        bonus: for each token, against the language model's liking of short texts.

    Returns:
        The text that maximises log p(text | sound) + weight log p(text) + bonus tokens, as far as the beam sees.
    """
    # A beginning -> [log p of the paths that end in the blank, of those that end in its last token]; and what the
    # language says of it.
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    language_scores: dict[tuple[int, ...], float] = {(): 0.0}

    def add(prefix: tuple[int, ...], blank: float, token: float) -> None:
        old = candidates.get(prefix, (-math.inf, -math.inf))
        candidates[prefix] = (_sum(old[0], blank), _sum(old[1], token))

    for step in scores:
        candidates: dict[tuple[int, ...], tuple[float, float]] = {}
        tried = [int(v) for v in np.flatnonzero(step > FLOOR) if v != BLANK]
        for prefix, (blank, token) in beams.items():
            whole = _sum(blank, token)
            last = prefix[-1] if prefix else BLANK
            add(prefix, whole + step[BLANK], token + step[last] if prefix else -math.inf)
            for v in tried:
                longer = (*prefix, v)
                if longer not in language_scores:
                    extra = weight * language.score(prefix, v) if language is not None and weight else 0.0
                    language_scores[longer] = language_scores[prefix] + extra + bonus
                add(longer, -math.inf, (blank if v == last else whole) + step[v])
        ranked = sorted(candidates, key=lambda p: (-(_sum(*candidates[p]) + language_scores[p]), p))
        beams = {prefix: candidates[prefix] for prefix in ranked[:beam]}

    def final(prefix: tuple[int, ...]) -> float:
        end = weight * language.end(prefix) if language is not None and weight else 0.0
        return _sum(*beams[prefix]) + language_scores[prefix] + end

    best: tuple[int, ...] = min(beams, key=lambda prefix: (-final(prefix), prefix))
    return list(best)


def _sum(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = (a, b) if a >= b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
