"""Beam search over texts that a model writes token by token, for many rows at once.

Shapes: R rows, K beams of each, V tokens, S steps of what is attended to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.family import State

# The last token (N,) of N texts, their state and the rows (N,) that they belong to -> log probabilities of the next
# (N, V), the state after it.
Step = Callable[[Tensor, State, Tensor], tuple[Tensor, State]]


@dataclass
class _Row:
    """The texts of a row that have ended: (score, tokens), at most K of them, the best first."""

    ended: list[tuple[float, list[int]]] = field(default_factory=list)

    def add(self, score: float, tokens: list[int], beam: int) -> None:
        self.ended.append((score, tokens))
        self.ended.sort(key=lambda one: -one[0])  # stable: of equals the one that ended first
        del self.ended[beam:]


def beam_search(
    step: Step, state: State, rows: int, *, beam: int, max_length: int, length_penalty: float, begin: int, end: int
) -> list[list[int]]:
    """The best text of each row.

    A text's score is its log probability divided by ((5 + its tokens with `end`) / 6)^length_penalty (Wu et al. 2016,
    eq. 14). Of the 2 K likeliest continuations, an end counts if it is among the first K; the first K that are no ends
    continue. A search over a row ends when K texts have ended and no other would beat them if it ended now, which it
    must after `max_length` tokens. Rows do not influence each other.

    Args:
        step: the model.
        state: of each row before the first step, tensors by name, rows first.
        rows: R.
        beam: K; 1 takes the likeliest token every time.
        max_length: most tokens of a text.
        length_penalty: 0 prefers short texts; 1 takes about the mean by tokens.
        begin, end: the tokens before and after a text.

    Returns:
        tokens of each row, without begin and end.
    """

    def penalty(tokens: int) -> float:
        return float(((5 + tokens) / 6) ** length_penalty)

    finished = [_Row() for _ in range(rows)]
    rows_left = torch.arange(rows)  # (A,) the rows whose search continues
    texts = torch.empty(rows, 1, 0, dtype=torch.int64)  # (A, K, U), one beam at first
    scores = torch.zeros(rows, 1, dtype=torch.float64)  # (A, K)
    last = torch.full((rows,), begin)  # (A K,)
    for length in range(1, max_length + 2):
        width = scores.shape[1]
        each = rows_left.repeat_interleave(width)
        log_probabilities, state = step(last, state, each)
        log_probabilities = log_probabilities.double().cpu()
        if length > max_length:  # nothing but the end can follow
            log_probabilities[:, :end] = log_probabilities[:, end + 1 :] = -torch.inf
        tokens = log_probabilities.shape[1]
        # of each beam no more than 2 K can be among the best 2 K
        best, token = log_probabilities.topk(min(2 * beam, tokens), 1)
        best, index = (
            (scores.reshape(-1, 1) + best).reshape(len(rows_left), -1).topk(min(2 * beam, width * best.shape[1]), 1)
        )
        token = token.reshape(len(rows_left), -1).gather(1, index)
        source = index // min(2 * beam, tokens)  # (A, 2K), the beam that it continues
        ends = token == end
        for a, k in torch.nonzero((ends & (best > -torch.inf))[:, :beam]).tolist():
            finished[int(rows_left[a])].add(float(best[a, k]) / penalty(length), texts[a, source[a, k]].tolist(), beam)
        kept = best.masked_fill(ends, -torch.inf).argsort(dim=1, descending=True, stable=True)[:, :beam]
        scores = best.masked_fill(ends, -torch.inf).gather(1, kept)
        if length > max_length:
            break
        source, token = source.gather(1, kept), token.gather(1, kept)
        texts = torch.cat([texts.gather(1, source[..., None].expand(-1, -1, texts.shape[2])), token[..., None]], 2)
        bound = scores[:, 0] / penalty(length + 1)
        going = torch.tensor(
            [
                bool(scores[a, 0] > -torch.inf)
                and not (len(finished[row].ended) == beam and finished[row].ended[-1][0] >= float(bound[a]))
                for a, row in enumerate(rows_left.tolist())
            ],
            dtype=torch.bool,
        )
        if not going.any():
            break
        flat = (torch.arange(len(rows_left))[:, None] * width + source)[going].reshape(-1)
        state = {name: value[flat.to(value.device)] for name, value in state.items()}
        rows_left, texts, scores, last = rows_left[going], texts[going], scores[going], token[going].reshape(-1)
    return [row.ended[0][1] if row.ended else [] for row in finished]
