"""Recurrent layers over rows of unequal lengths, without computing padding. Shapes: B rows, T time, L layers, H size.

Rows are sorted from the longest to the shortest. Between two lengths that occur, the same rows are active, so that
segment of time is one call of a torch kernel on a plain batch. torch's kernels for packed rows do the same inside, but
on the CPU they go step by step and, in the backward pass, write a tensor of all rows' steps at every step: their cost
grows with the square of the length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

States = tuple[Tensor, ...]  # h, or h and c: each (L, B, H)
Step = Callable[[Tensor, States], tuple[Tensor, States]]  # x (B, T, D), states before -> y (B, T, H), states after
FUNCTIONS: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "GRU": torch.gru,
    "LSTM": torch.lstm,
}


def scan(kernel: nn.RNNBase, x: Tensor, lengths: Tensor, hx: States) -> tuple[Tensor, States]:
    """All steps of all layers of a kernel with ``batch_first=True``.

    Args:
        kernel: an nn.RNN, nn.GRU or nn.LSTM.
        x: (B, T, D); padded steps are not read.
        lengths: (B,) on the CPU, each in 1..T.
        hx: the states to start from, L being layers times directions.

    Returns:
        y (B, T, H), 0 in padded steps; the states after each row's last step (of a backward layer: its first).
    """
    order = lengths.argsort(descending=True, stable=True)
    x, lengths, hx = x[order], lengths[order], tuple(h[:, order] for h in hx)
    if kernel.bidirectional:
        y, last = _both_ways(kernel, x, lengths, hx)
    else:
        y, last = walk(functools.partial(run, kernel), x, lengths, hx)
    back = order.argsort()
    return y[back], tuple(h[:, back] for h in last)


def run(kernel: nn.RNNBase, x: Any, hx: States) -> tuple[Any, States]:
    """The kernel on rows x without padding, or packed; the states as a tuple, also where they are h alone."""
    y, last = kernel(x, hx if len(hx) == 2 else hx[0])
    return y, last if isinstance(last, tuple) else (last,)


def walk(step: Step, x: Tensor, lengths: Tensor, hx: States, *, backward: bool = False) -> tuple[Tensor, States]:
    """One pass over rows sorted by falling length, segment by segment, from their first step or from their last.

    Args and returns are those of ``scan``; `step` computes one segment, in which no row is padded.
    """
    ends = sorted(set(lengths.tolist()))
    running = [int((lengths >= end).sum()) for end in ends]  # rows active in each segment: falling
    sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    segments = list(zip(torch.split(x[:, : ends[-1]], sizes, 1), running, strict=True))
    outputs: list[Tensor] = []
    ended: list[States] = []  # of rows that ended, segment by segment
    states = tuple(h[:, :0] for h in hx) if backward else hx
    for part, rows in reversed(segments) if backward else segments:
        if backward:  # rows that begin here join
            states = tuple(torch.cat([s, h[:, s.shape[1] : rows]], 1) for s, h in zip(states, hx, strict=True))
        else:
            ended.append(tuple(s[:, rows:] for s in states))
            states = tuple(s[:, :rows].contiguous() for s in states)
        y, states = step(part[:rows].flip(1) if backward else part[:rows], states)
        outputs.append(F.pad(y.flip(1) if backward else y, (0, 0, 0, 0, 0, len(x) - rows)))
    y = torch.cat(outputs[::-1] if backward else outputs, 1)
    if not backward:
        states = tuple(torch.cat(s, 1) for s in zip(states, *reversed(ended), strict=True))
    return F.pad(y, (0, 0, 0, x.shape[1] - ends[-1])), states


def _both_ways(kernel: nn.RNNBase, x: Tensor, lengths: Tensor, hx: States) -> tuple[Tensor, States]:
    """Layer by layer, as each reads both directions of the one below."""
    last: list[States] = []
    for layer in range(kernel.num_layers):
        if layer:
            x = F.dropout(x, kernel.dropout, kernel.training)
        halves = []
        for index in (2 * layer, 2 * layer + 1):  # forward, backward
            y, end = walk(
                _layer(kernel, index), x, lengths, tuple(h[index : index + 1] for h in hx), backward=index % 2 == 1
            )
            halves.append(y)
            last.append(end)
        x = torch.cat(halves, -1)
    return x, tuple(torch.cat(s) for s in zip(*last, strict=True))


def _layer(kernel: nn.RNNBase, index: int) -> Step:
    """One direction of one layer, from the first step given to the last."""
    function, weights = FUNCTIONS[kernel.mode], kernel.all_weights[index]

    def step(x: Tensor, hx: States) -> tuple[Tensor, States]:
        out = function(x, hx if len(hx) == 2 else hx[0], weights, True, 1, 0.0, kernel.training, False, True)
        return out[0], out[1:]

    return step
