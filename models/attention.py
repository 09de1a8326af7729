"""Transformer blocks and positions. Shapes: B rows, T time, H width."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Positions = Literal["rotary", "sinusoidal"]
Rotation = tuple[Tensor, Tensor]  # cos and sin, each (T, K / 2)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)) with a GELU (Hendrycks & Gimpel 2016)."""

    def __init__(
        self, size: int, heads: int, *, feedforward: int, dropout: float, attention_dropout: float, causal: bool
    ) -> None:
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

    def attend(
        self, x: Tensor, keys: Tensor | None, rotation: Rotation | None, past: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
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
        a = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=keys,
            is_causal=self.causal and not before,
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        a = a.transpose(1, 2).flatten(2)  # (B, N, T, K) -> (B, T, H)
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


def initialise(stack: nn.Module, *, sublayers: int) -> None:
    """Xavier; outputs of sublayers shrunk so that the residual sum keeps its scale (Radford et al. 2019, GPT-2)."""
    for name, layer in stack.named_modules():
        if isinstance(layer, nn.Linear):
            nn.init.zeros_(layer.bias)
            fused = {"query_key_value": 3, "key_value": 2}.get(name.rpartition(".")[2], 1)
            for matrix in layer.weight.detach().chunk(fused):  # views of the weight
                nn.init.xavier_uniform_(matrix, gain=sublayers**-0.5 if "_out" in name else 1.0)


def add_positions(x: Tensor, positions: Positions, head_size: int, start: int = 0) -> tuple[Tensor, Rotation | None]:
    """x (B, T, H), whose first step is step `start`, with sinusoids added; or x and the rotation of its positions."""
    if positions == "rotary":
        return x, sinusoids(x, head_size, start=start)
    cos, sin = sinusoids(x, x.shape[2], start=start)
    return x + torch.stack((sin, cos), dim=-1).flatten(1).to(x.dtype), None


def sinusoids(x: Tensor, width: int, *, start: int = 0) -> Rotation:
    """cos and sin of t / 10000^(2i / width) for pairs i and the T steps t from `start` on that x (B, T, ...) has: each
    (T, width / 2)."""
    precise = torch.promote_types(x.dtype, torch.float32)  # bfloat16 cannot distinguish steps 256 and 257
    positions = torch.arange(start, start + x.shape[1], device=x.device, dtype=precise)
    speeds = 10000 ** (-torch.arange(0, width, 2, device=x.device, dtype=precise) / width)
    angles = torch.outer(positions, speeds)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair of units (2i, 2i + 1) of x (B, N, T, K) by its step's angle (Su et al. 2021, eq. 34)."""
    cos, sin = rotation
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)
