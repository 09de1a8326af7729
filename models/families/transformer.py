"""A transformer encoder: Vaswani et al. (2017), normalised before each sublayer (Xiong et al. 2020).

Shapes: B rows, T time, D input size, H hidden size, N heads of width K = H / N, G feedforward width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor, nn

from models.attention import Block, Positions, add_positions, initialise
from models.family import Family, State, check_choice, check_sizes, padding_mask
from models.options import check_share

if TYPE_CHECKING:
    from models.decoders import Decoder


def build(
    input_size: int,
    *,
    hidden_size: int = 128,
    layers: int = 2,
    heads: int = 4,
    feedforward: int | None = None,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    causal: bool | None = None,
    positions: Positions = "rotary",
) -> Family:
    """A stack of self-attention blocks.

    Args:
        hidden_size: width of the residual stream; a multiple of heads.
        layers: blocks.
        heads: attention heads per block, each hidden_size / heads wide.
        feedforward: width inside each block's feedforward half; unset, 4 * hidden_size.
        dropout: probability that a unit of a sublayer's output is dropped.
        attention_dropout: probability that an attention weight is dropped; on the CPU this takes several times as long,
            as no fused kernel drops any.
        causal: attend to the present and earlier steps only; null: where the task needs it (generate).
        positions: rotary turns queries and keys by their step, so that attention sees distances (Su et al. 2021)
            and needs an even head width; sinusoidal adds sinusoids to the input, so that it sees positions
            (Vaswani et al. 2017) and needs an even hidden_size.

    Raises:
        ValueError: an option is out of its range, or does not fit another.
    """
    feedforward = 4 * hidden_size if feedforward is None else feedforward
    check_sizes(
        input_size=input_size,
        hidden_size=hidden_size,
        layers=layers,
        heads=heads,
        feedforward=feedforward,
        dropout=dropout,
    )
    check_share("model.attention_dropout", attention_dropout)
    check_choice("positions", positions, get_args(Positions))
    if hidden_size % heads:
        raise ValueError(
            f"model.hidden_size={hidden_size} cannot be divided among model.heads={heads}; "
            f"use a multiple, such as {heads * math.ceil(hidden_size / heads)}"
        )
    turned = hidden_size // heads if positions == "rotary" else hidden_size
    if turned % 2:
        raise ValueError(
            f"model.positions={positions} pairs units, but model.hidden_size={hidden_size} with "
            f"model.heads={heads} gives {turned}; use a hidden_size such as {hidden_size * 2}"
        )
    blocks = [
        Block(
            hidden_size,
            heads,
            feedforward=feedforward,
            dropout=dropout,
            attention_dropout=attention_dropout,
            causal=bool(causal),
        )
        for _ in range(layers)
    ]
    return Transformer(input_size, blocks, positions=positions)


def decoder(
    input_size: int,
    memory_size: int,
    *,
    layers: int,
    hidden_size: int,
    heads: int,
    feedforward: int | None,
    dropout: float,
    attention_dropout: float,
    positions: Positions,
    **others: Any,
) -> Decoder:
    """The same stack, causal, with attention to a memory in every block; options as in `build`, which checks them."""
    from models.decoders import AttendingTransformer

    blocks = [
        Block(
            hidden_size,
            heads,
            feedforward=feedforward or 4 * hidden_size,
            dropout=dropout,
            attention_dropout=attention_dropout,
            causal=True,
        )
        for _ in range(layers)
    ]
    return AttendingTransformer(input_size, memory_size, blocks, positions=positions)


class Transformer(Family):
    """Input projection, blocks, final norm. See `build`."""

    def __init__(self, input_size: int, blocks: list[Block], *, positions: Positions) -> None:
        super().__init__()
        self.size, self.causal, self.positions = blocks[0].size, blocks[0].causal, positions
        self.head_size = self.size // blocks[0].heads
        self.project = nn.Linear(input_size, self.size)
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(self.size)
        initialise(self, sublayers=2 * len(blocks))

    def forward(self, x: Tensor, lengths: Tensor, state: State | None = None) -> tuple[Tensor, None]:
        """See `Family.forward`; no state is kept: every call sees its own T steps only."""
        if state is not None:
            raise ValueError(
                "the transformer keeps no state; call it with state=None, or use model.family=rnn, lstm "
                "or gru to carry a state"
            )
        padding = padding_mask(x, lengths)  # (B, T)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        x = self.project(x).to(self.project.weight.dtype)  # under autocast the residual sum keeps full precision
        x, rotation = add_positions(x, self.positions, self.head_size)
        # Padding is on the right, so that causal attention never reaches it from a valid step: no mask, fused kernel.
        keys = None if padding is None or self.causal else ~padding[:, None, None]
        for block in self.blocks:
            x = block(x, keys, rotation)
        x = self.norm(x)
        return x if padding is None else x.masked_fill(padding[..., None], 0), None
