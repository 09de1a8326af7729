"""Sampling of the next step from a model's scores. Shapes: B rows, V tokens, N notes.

The random numbers of a row are a function of its key (see ``augment.uniform``), so they do not depend on other rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models import augment


@dataclass(frozen=True)
class Sampling:
    """How the next step is sampled.

    Attributes:
        temperature: divisor of the scores; below 1 likely steps become likelier; 0 takes the likeliest.
        top_k: sample from this many of the likeliest tokens only, None from all; for notes, the maximum number that
            sound at once.
        top_p: sample from the smallest set of the likeliest tokens with at least this probability (Holtzman et al.
            2020), 1 from all; not for notes.
        seed: another seed gives other samples.

    Raises:
        ValueError: a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"--temperature {self.temperature} is out of range; use 0 or more, such as 0.8")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k} is too small; use at least 1")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p} is out of range; use more than 0 and at most 1")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} is too small; use at least 0")

    def keys(self, row: int, samples: int) -> Tensor:
        """(samples,) int64: a key for each sample of a row."""
        numbers = augment.uniform(torch.tensor([self.seed]), 1, augment.SAMPLE).double() * 2**24
        key = int(numbers) * 1_000_003 + row
        return key * 1_000_003 + torch.arange(samples)


def token(scores: Tensor, sampling: Sampling, keys: Tensor, step: int) -> Tensor:
    """The next token of each row: (B,) int64, from scores (B, V) before the softmax."""
    if sampling.temperature == 0:
        return scores.argmax(-1)
    ordered, tokens = torch.sort(scores.double() / sampling.temperature, dim=-1, descending=True, stable=True)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability
    allowed = before < sampling.top_p
    if sampling.top_k is not None:
        allowed &= torch.arange(scores.shape[1], device=scores.device) < sampling.top_k
    total = (probability * allowed).cumsum(-1)
    drawn = _uniform(keys, 1, step).to(scores.device) * total[:, -1:]
    chosen = torch.searchsorted(total, drawn, right=True).clamp(max=scores.shape[1] - 1)
    last = allowed.sum(-1, keepdim=True) - 1  # rounding must not select a token that is not allowed
    sampled: Tensor = tokens.gather(1, torch.minimum(chosen, last))[:, 0]
    return sampled


def notes(scores: Tensor, sampling: Sampling, keys: Tensor, step: int) -> Tensor:
    """The notes that sound next in each row: (B, N) of 0 and 1, from scores (B, N) before the sigmoid."""
    wide = scores.double()
    if sampling.temperature == 0:
        out = wide > 0
    else:
        out = _uniform(keys, scores.shape[1], step).to(scores.device) < (wide / sampling.temperature).sigmoid()
    if sampling.top_k is not None and sampling.top_k < scores.shape[1]:
        out &= wide >= wide.topk(sampling.top_k, -1).values[:, -1:]
    return out.to(scores.dtype)


def _uniform(keys: Tensor, count: int, step: int) -> Tensor:
    """(B, count) float64 in [0, 1), independent between steps."""
    return augment.uniform(keys, count, augment.SAMPLE + 1 + step).double()
