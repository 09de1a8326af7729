"""The contract of a family, an encoder of sequences, and the masks that families use.

Shapes: B rows, T time, D input size, H output size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.options import check_least, check_share

State = dict[str, Tensor]  # by name, rows first: (B, ...); contiguous, so that safetensors takes it as it is


class Family(nn.Module):
    """A sequence encoder.

    Attributes:
        size: H, the width of the output.
        causal: whether the output at step t depends on steps up to t only.
        backward: units at the end of the output that read each row from its end, so that they have read all of it at
            its first step, and a single step at its last.
        stateful: whether `forward` continues from a state.
    """

    size: int
    causal: bool
    backward: int = 0
    stateful: bool = False

    def initial_state(self, rows: int) -> State:
        """The state before the first step, of a stateful family."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Encode each row.

        Args:
            x: (B, T, D) float; values in padded steps, NaN included, have no influence.
            lengths: (B,) int64 on the CPU, each in 1..T.
            state: returned by an earlier call, to continue from it; None starts with the initial state.

        Returns:
            y (B, T, H), exactly 0 in padded steps; the state after each row's last valid step, or None.

        Raises:
            ValueError: a state was given that this family cannot use.
        """
        raise NotImplementedError


def step_mask(x: Tensor, lengths: Tensor) -> Tensor:
    """True where a step is not padding: (B, T) bool on x's device, from x (B, T, ...) and lengths (B,) anywhere."""
    steps = torch.arange(x.shape[1], device=x.device)
    return steps < lengths.to(x.device, non_blocking=True)[:, None]


def padding_mask(x: Tensor, lengths: Tensor) -> Tensor | None:
    """True where a step is padding: (B, T) bool on x's device; None if no row is padded, for kernels without a mask.

    Lengths are on the CPU, so that the answer does not wait for the device.
    """
    assert lengths.device.type == "cpu" and lengths.shape == x.shape[:1], "lengths: (B,) on the CPU"
    assert int(lengths.min()) >= 1 and int(lengths.max()) <= x.shape[1], "lengths: each in 1..T"
    return None if int(lengths.min()) == x.shape[1] else ~step_mask(x, lengths)


def check_sizes(*, dropout: float, **sizes: int) -> None:
    """Raise ValueError unless each of `sizes` is at least 1 and `dropout` lies in [0, 1)."""
    for key, value in sizes.items():
        check_least(f"model.{key}", value, 1)
    check_share("model.dropout", dropout)


def check_choice(key: str, value: str, choices: tuple[str, ...], section: str = "model") -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{section}.{key}={value!r} is not known; use one of {', '.join(choices)}")
