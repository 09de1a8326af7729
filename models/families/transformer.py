"""A transformer encoder: Vaswani et al. (2017), normalised before each sublayer (Xiong et al. 2020).

Shapes: B rows, T time, D input size, H hidden size, N heads of width K = H / N, G feedforward width.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.families import Family, State, check_choice, check_sizes, padding_mask
from models.options import check_share

if TYPE_CHECKING:
    from models.decoders import Decoder

Positions = Literal["rotary", "sinusoidal"]
Rotation = tuple[Tensor, Tensor]   # cos and sin, each (T, K / 2)


def build(input_size: int, *, hidden_size: int = 128, layers: int = 2, heads: int = 4,
          feedforward: int | None = None, dropout: float = 0.0, attention_dropout: float = 0.0,
          causal: bool | None = None, positions: Positions = "rotary") -> Family:
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
            and needs an even head width; sinusoidal adds waves to the input, so that it sees places
            (Vaswani et al. 2017) and needs an even hidden_size.

    Raises:
        ValueError: an option is out of its range, or does not fit another.
    """
    feedforward = 4 * hidden_size if feedforward is None else feedforward
    check_sizes(input_size=input_size, hidden_size=hidden_size, layers=layers, heads=heads, feedforward=feedforward,
                dropout=dropout)
    check_share("model.attention_dropout", attention_dropout)
    check_choice("positions", positions, get_args(Positions))
    if hidden_size % heads:
        raise ValueError(f"model.hidden_size={hidden_size} cannot be divided among model.heads={heads}; "
                         f"use a multiple, such as {heads * math.ceil(hidden_size / heads)}")
    turned = hidden_size // heads if positions == "rotary" else hidden_size
    if turned % 2:
        raise ValueError(f"model.positions={positions} pairs units, but model.hidden_size={hidden_size} with "
                         f"model.heads={heads} gives {turned}; use a hidden_size such as {hidden_size * 2}")
    blocks = [Block(hidden_size, heads, feedforward=feedforward, dropout=dropout, attention_dropout=attention_dropout,
                    causal=bool(causal)) for _ in range(layers)]
    return Transformer(input_size, blocks, positions=positions)


def decoder(input_size: int, memory_size: int, *, layers: int, hidden_size: int, heads: int, feedforward: int | None,
            dropout: float, attention_dropout: float, positions: Positions, **others: Any) -> Decoder:
    """The same stack, causal, with attention to a memory in every block; options as in `build`, which checks them."""
    from models.decoders import AttendingTransformer
    blocks = [Block(hidden_size, heads, feedforward=feedforward or 4 * hidden_size, dropout=dropout,
                    attention_dropout=attention_dropout, causal=True) for _ in range(layers)]
    return AttendingTransformer(input_size, memory_size, blocks, positions=positions)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)) with a GELU (Hendrycks & Gimpel 2016)."""

    def __init__(self, size: int, heads: int, *, feedforward: int, dropout: float, attention_dropout: float,
                 causal: bool) -> None:
        super().__init__()
        self.size, self.heads, self.causal = size, heads, causal
        self.dropout, self.attention_dropout = dropout, attention_dropout
        self.attention_norm = nn.LayerNorm(size)
        self.query_key_value = nn.Linear(size, 3 * size)
        self.attention_out = nn.Linear(size, size)
        self.feedforward_norm = nn.LayerNorm(size)
        self.feedforward_in = nn.Linear(size, feedforward)
        self.feedforward_out = nn.Linear(feedforward, size)

    def forward(self, x: Tensor, keys: Tensor | None, rotation: Rotation | None) -> Tensor:
        """One block.

        Args:
            x: (B, T, H).
            keys: (B, 1, 1, T) bool, True at keys that may be attended to; None for all.
            rotation: the angles of the rotary positions, or None.

        Returns:
            (B, T, H).
        """
        return self.feed_forward(self.attend(x, keys, rotation)[0])

    def attend(self, x: Tensor, keys: Tensor | None, rotation: Rotation | None,
               past: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The first half; of a causal block also after `past`, the keys and values (B, 2, N, P, K) of P steps before.

        Returns:
            (B, T, H); keys and values of all steps so far, (B, N, P + T, K) each.
        """
        q, k, v = self.heads_of(self.query_key_value(self.attention_norm(x)), 3)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        steps, before = x.shape[1], 0
        if past is not None:
            k, v, before = torch.cat([past[:, 0], k], 2), torch.cat([past[:, 1], v], 2), past.shape[3]
        if self.causal and before and steps > 1:
            keys = torch.ones(steps, before + steps, dtype=torch.bool, device=x.device).tril(before)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=keys, is_causal=self.causal and not before,
                                           dropout_p=self.attention_dropout if self.training else 0.0)
        a = a.transpose(1, 2).flatten(2)                                                    # (B, N, T, K) -> (B, T, H)
        return x + self.dropped(self.attention_out(a)), k, v

    def heads_of(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        """(B, T, parts * H) as that many tensors (B, N, T, K)."""
        return x.reshape(*x.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4).unbind()

    def feed_forward(self, x: Tensor) -> Tensor:
        """The second half, of x (B, T, H)."""
        return x + self.dropped(self.feedforward_out(F.gelu(self.feedforward_in(self.feedforward_norm(x)))))

    def dropped(self, x: Tensor) -> Tensor:
        """A sublayer's output as training sees it."""
        return F.dropout(x, self.dropout, self.training)


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
            raise ValueError("the transformer keeps no state; call it with state=None, or use model.family=rnn, lstm "
                             "or gru to carry a state")
        padding = padding_mask(x, lengths)                  # (B, T)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)
        x = self.project(x).to(self.project.weight.dtype)   # under autocast the residual sum keeps full precision
        x, rotation = placed(x, self.positions, self.head_size)
        # Padding is on the right, so that causal attention never reaches it from a valid step: no mask, fused kernel.
        keys = None if padding is None or self.causal else ~padding[:, None, None]
        for block in self.blocks:
            x = block(x, keys, rotation)
        x = self.norm(x)
        return x if padding is None else x.masked_fill(padding[..., None], 0), None


def initialise(stack: nn.Module, *, sublayers: int) -> None:
    """Xavier; outputs of sublayers shrunk so that the residual sum keeps its scale (Radford et al. 2019, GPT-2)."""
    for name, layer in stack.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
            fused = {"query_key_value": 3, "key_value": 2}.get(name.rpartition(".")[2], 1)
            for matrix in layer.weight.detach().chunk(fused):       # views of the weight
                nn.init.xavier_uniform_(matrix, gain=sublayers ** -0.5 if "_out" in name else 1.0)


def placed(x: Tensor, positions: Positions, head_size: int, start: int = 0) -> tuple[Tensor, Rotation | None]:
    """x (B, T, H), whose first step is step `start`, with its places told: by waves in it, or a rotation beside it."""
    if positions == "rotary":
        return x, waves(x, head_size, start=start)
    cos, sin = waves(x, x.shape[2], start=start)
    return x + torch.stack((sin, cos), dim=-1).flatten(1).to(x.dtype), None


def waves(x: Tensor, width: int, *, start: int = 0) -> Rotation:
    """cos and sin of t / 10000^(2i / width) for pairs i and the T steps t from `start` on that x (B, T, ...) has: each
    (T, width / 2)."""
    precise = torch.promote_types(x.dtype, torch.float32)   # bfloat16 cannot tell step 257 from 256
    places = torch.arange(start, start + x.shape[1], device=x.device, dtype=precise)
    speeds = 10000 ** (-torch.arange(0, width, 2, device=x.device, dtype=precise) / width)
    angles = torch.outer(places, speeds)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of units (2i, 2i + 1) of x (B, N, T, K) by its step's angle (Su et al. 2021, eq. 34)."""
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
