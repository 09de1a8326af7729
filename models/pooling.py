"""Pooling over time, ignoring padding. Shapes: B rows, T time, H size.

Lengths are (B,) int64, each in 1..T, on any device. Values in padded steps, NaN included, have no influence.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from models.family import check_choice, step_mask
from models.options import check_share

Kind = Literal["mean", "max", "last", "attention"]


def masked_mean(x: Tensor, lengths: Tensor) -> Tensor:
    """The average of the valid steps: (B, T, H) -> (B, H)."""
    mask = step_mask(x, lengths)[..., None]  # (B, T, 1)
    return x.masked_fill(~mask, 0).sum(1) / lengths.to(x.device)[:, None]  # a product with the mask keeps NaN


def masked_max(x: Tensor, lengths: Tensor) -> Tensor:
    """The greatest value of each unit over the valid steps: (B, T, H) -> (B, H)."""
    return x.masked_fill(~step_mask(x, lengths)[..., None], -torch.inf).amax(1)


def last_step(x: Tensor, lengths: Tensor | None, *, backward: int = 0) -> Tensor:
    """The step at which each unit has read the whole row: (B, T, H) -> (B, H).

    That is the last valid step (without lengths: T); of the last `backward` units, which read each row from its end,
    the first one.
    """
    last = x[:, -1] if lengths is None else x[torch.arange(len(x), device=x.device), lengths.to(x.device) - 1]
    return torch.cat([last[:, :-backward], x[:, 0, -backward:]], 1) if backward else last


class AttentionPooling(nn.Module):
    """A learned weighted average of the valid steps: additive attention without a query (Bahdanau et al. 2015).

    e_t = v^T tanh(W x_t); weights a = softmax(e) over the valid steps; the result is the sum of a_t x_t.

    Args:
        size: H.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.project = nn.Linear(size, size, bias=False)  # W
        self.score = nn.Linear(size, 1, bias=False)  # v

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, H) -> (B, H)."""
        mask = step_mask(x, lengths)[..., None]  # (B, T, 1)
        x = x.masked_fill(~mask, 0)
        scores: Tensor = self.score(torch.tanh(self.project(x)))  # (B, T, 1)
        return (scores.masked_fill(~mask, -torch.inf).softmax(1) * x).sum(1)


class Pooling(nn.Module):
    """A pooling function as a module, for a model that has its pooling as an option."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, H) -> (B, H)."""
        return self.function(x, lengths)


def build(kind: Kind, size: int, *, backward: int = 0) -> nn.Module:
    """A module (x (B, T, H), lengths (B,)) -> (B, H), for steps of `size` units, the last `backward` of them backward.

    Raises:
        ValueError: `kind` is not known.
    """
    check_choice("pooling", kind, get_args(Kind), "task")
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "mean": masked_mean,
        "max": masked_max,
        "last": functools.partial(last_step, backward=backward),
    }
    return AttentionPooling(size) if kind == "attention" else Pooling(functions[kind])


class PooledHead(nn.Module):
    """Pooling, dropout, then one linear layer: what a task reads of a whole row.

    Args:
        encoder: of which ``size`` H and ``backward`` are read, see ``models.tasks.build``.
        outputs: K.
        pooling: see ``build``.
        dropout: probability that a pooled unit is dropped.
    """

    def __init__(self, encoder: Mapping[str, Any], outputs: int, *, pooling: Kind, dropout: float) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        self.pooling = build(pooling, encoder["size"], backward=encoder["backward"])
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(encoder["size"], outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, H) -> (B, K)."""
        out: Tensor = self.linear(self.dropout(self.pooling(x, lengths)))
        return out
