"""Beam search over texts that a model writes token by token, for many rows at once.

Shapes: R rows, K beams of each, V tokens, S steps of what is attended to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.families import State

# The last token (N,) of N texts, their state and the rows (N,) that they belong to -> log probabilities of the next
# (N, V), the state after it.
Step = Callable[[Tensor, State, Tensor], tuple[Tensor, State]]


@dataclass
class _Row:
    """The texts of a row that have ended: (score, tokens), at most K of them, the best first."""

    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, score: float, tokens: list[int], beam: int) -> None:
        self.ended.append((score, tokens))
        self.ended.sort(key=lambda one: -one[0])            # stable: of equals the one that ended first
        del self.ended[beam:]


def beam_search(step: Step, state: State, rows: int, *, beam: int, most: int, length_penalty: float, begin: int,
                end: int) -> list[list[int]]:
    """The best text of each row.

    A text's score is its log probability divided by ((5 + its tokens with `end`) / 6)^length_penalty (Wu et al. 2016,
    eq. 14). Of the 2 K likeliest ways to go on, an end counts if it is among the first K; the first K that are no ends
    go on. A search over a row ends when K texts have ended and no other would beat them if it ended now, which it
    must after `most` tokens. Rows do not influence each other.

    Args:
        step: the model.
        state: of each row before the first step, tensors by name, rows first.
        rows: R.
        beam: K; 1 takes the likeliest token every time.
        most: tokens that a text has at most.
        length_penalty: 0 prefers short texts; 1 takes about the mean by tokens.
        begin, end: the tokens before and after a text.

    Returns:
        tokens of each row, without begin and end.
    """
    def penalty(tokens: int) -> float:
        return float(((5 + tokens) / 6) ** length_penalty)

    found = [_Row() for _ in range(rows)]
    own = torch.arange(rows)                                                    # (A,) the rows that still go on
    texts = torch.empty(rows, 1, 0, dtype=torch.int64)                          # (A, K, U), one beam at first
    scores = torch.zeros(rows, 1, dtype=torch.float64)                          # (A, K)
    last = torch.full((rows,), begin)                                           # (A K,)
    for written in range(1, most + 2):
        width = scores.shape[1]
        each = own.repeat_interleave(width)
        told, state = step(last, state, each)
        told = told.double().cpu()
        if written > most:                                                      # nothing but the end can follow
            told[:, :end] = told[:, end + 1:] = -torch.inf
        tokens = told.shape[1]
        # of each beam no more than 2 K can be among the best 2 K
        best, token = told.topk(min(2 * beam, tokens), 1)
        best, place = (scores.reshape(-1, 1) + best).reshape(len(own), -1).topk(
            min(2 * beam, width * best.shape[1]), 1)
        token = token.reshape(len(own), -1).gather(1, place)
        source = place // min(2 * beam, tokens)                                 # (A, 2K), the beam that it goes on from
        ends = token == end
        for a, k in torch.nonzero((ends & (best > -torch.inf))[:, :beam]).tolist():
            found[int(own[a])].add(float(best[a, k]) / penalty(written), texts[a, source[a, k]].tolist(), beam)
        kept = best.masked_fill(ends, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :beam]
        scores = best.masked_fill(ends, -torch.inf).gather(1, kept)
        if written > most:
            break
        source, token = source.gather(1, kept), token.gather(1, kept)
        texts = torch.cat([texts.gather(1, source[..., None].expand(-1, -1, texts.shape[2])), token[..., None]], 2)
        bound = scores[:, 0] / penalty(written + 1)
        going = torch.tensor([bool(scores[a, 0] > -torch.inf) and not (
            len(found[row].ended) == beam and found[row].ended[-1][0] >= float(bound[a]))
            for a, row in enumerate(own.tolist())], dtype=torch.bool)
        if not going.any():
            break
        flat = (torch.arange(len(own))[:, None] * width + source)[going].reshape(-1)
        state = {name: value[flat.to(value.device)] for name, value in state.items()}
        own, texts, scores, last = own[going], texts[going], scores[going], token[going].reshape(-1)
    return [row.ended[0][1] if row.ended else [] for row in found]
