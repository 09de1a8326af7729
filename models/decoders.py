"""Decoders: causal stacks that attend to a memory, for writing one sequence from another.

Shapes: B rows, U steps that are generated, S steps of the memory, M its width, D input size, H output size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.attention import Block, Positions, Rotation, add_positions, initialise, rotate, sinusoids
from models.families import build, module
from models.family import Family, State, padding_mask
from models.options import check_least, filled


class Decoder(nn.Module):
    """A causal stack with attention.

    A memory and a state are tensors by name, rows first. The memory does not change while a row is generated, the state
    changes at each step; a search that keeps a selection of rows indexes both by row.

    Attributes:
        size: H.
    """

    size: int

    def remember(self, y: Tensor, lengths: Tensor) -> State:
        """What is attended to: made of the encoder's y (B, S, M), whose padded steps have no influence."""
        raise NotImplementedError

    def begin(self, memory: State) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State, memory: State) -> tuple[Tensor, State, Tensor]:
        """Some more steps.

        Args:
            x: (B, U, D).
            state: from `begin` or an earlier call.
            memory: from `remember`.

        Returns:
            y (B, U, H), of which a step depends on steps up to its own; the state after the last step; the attention
            (B, U, S), which sums to 1 over S.
        """
        raise NotImplementedError


class AttendingRecurrent(Decoder):
    """Recurrent layers, the first of which attends (Luong, Pham & Manning 2015, score "general").

    The others read its output and what it attended to, as in Wu et al. (2016, GNMT), so that every layer runs over
    all steps at once in training. The states begin as a layer of the mean of the memory.

    Args:
        make: (input size, layers) -> a stateful family.
        input_size: D.
        memory_size: M.
        layers: of which the first attends.
        dropout: probability that an input of the later layers is dropped.
    """

    def __init__(
        self, make: Callable[[int, int], Family], input_size: int, memory_size: int, *, layers: int, dropout: float
    ) -> None:
        super().__init__()
        below = make(input_size, 1)
        self.size, self.dropout = below.size, dropout
        stack = [below, *([make(below.size + memory_size, layers - 1)] if layers > 1 else [])]
        self.stack = nn.ModuleList(stack)
        self.shapes = {
            f"{number}.{name}": value.shape[1:]
            for number, one in enumerate(stack)
            for name, value in one.initial_state(1).items()
        }
        self.start = nn.Linear(memory_size, sum(math.prod(shape) for shape in self.shapes.values()))
        self.key = nn.Linear(memory_size, self.size, bias=False)
        self.join = nn.Linear(self.size + memory_size, self.size)

    def remember(self, y: Tensor, lengths: Tensor) -> State:
        padding = padding_mask(y, lengths)
        memory = {"values": y, "keys": self.key(y), "mean": y.sum(1) / lengths.to(y.device)[:, None]}  # padding is 0
        return memory if padding is None else {**memory, "padding": padding}

    def begin(self, memory: State) -> State:
        flat = torch.tanh(self.start(memory["mean"]))
        parts = torch.split(flat, [math.prod(shape) for shape in self.shapes.values()], dim=1)
        return {name: part.reshape(-1, *shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}

    def forward(self, x: Tensor, state: State, memory: State) -> tuple[Tensor, State, Tensor]:
        y, state = self._layers(0, x, state)
        scores = y @ memory["keys"].transpose(1, 2)  # (B, U, S)
        if "padding" in memory:
            scores = scores.masked_fill(memory["padding"][:, None], -torch.inf)
        attention = scores.softmax(-1)
        seen = attention @ memory["values"]  # (B, U, M)
        if len(self.stack) > 1:
            y, state = self._layers(1, F.dropout(torch.cat([y, seen], -1), self.dropout, self.training), state)
        return torch.tanh(self.join(torch.cat([y, seen], -1))), state, attention

    def _layers(self, number: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        state_of_layer = {
            name.partition(".")[2]: value for name, value in state.items() if name.startswith(f"{number}.")
        }
        y, after = self.stack[number](x, torch.full((len(x),), x.shape[1]), state_of_layer)
        return y, {**state, **{f"{number}.{name}": value for name, value in after.items()}}


class AttendingBlock(nn.Module):
    """A causal block with attention to the memory between its two halves (Vaswani et al. 2017)."""

    def __init__(self, block: Block, memory_size: int) -> None:
        super().__init__()
        size = block.size
        self.block = block
        self.memory_norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, size)
        self.key_value = nn.Linear(memory_size, 2 * size)
        self.memory_out = nn.Linear(size, size)

    def forward(
        self, x: Tensor, past: Tensor, memory: tuple[Tensor, Tensor, Tensor | None], rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One block.

        Args:
            x: (B, U, H).
            past: (B, 2, N, P, K), keys and values of the P steps before.
            memory: keys and values (B, N, S, K), and which to attend to, (B, 1, 1, S) bool or None for all.
            rotation: the angles of the rotary positions of x, or None.

        Returns:
            (B, U, H); past, U steps longer; the attention to the memory, (B, U, S), the mean over heads.
        """
        block = self.block
        x, k, v = block.attend(x, None, rotation, past)
        (q,) = block.heads_of(self.query(self.memory_norm(x)), 1)
        if rotation is not None:
            q = rotate(q, rotation)
        keys, values, allowed = memory
        scores = q @ keys.transpose(2, 3) / math.sqrt(q.shape[-1])  # (B, N, U, S)
        attention = (scores if allowed is None else scores.masked_fill(~allowed, -torch.inf)).softmax(-1)
        seen = F.dropout(attention, block.attention_dropout, self.training) @ values
        x = x + block.dropped(self.memory_out(seen.transpose(1, 2).flatten(2)))
        return block.feed_forward(x), torch.stack((k, v), 1), attention.mean(1)


class AttendingTransformer(Decoder):
    """Input projection, blocks with attention to the memory, final norm; the state holds the steps' keys and values.

    With rotary positions, attention to the memory sees the distance of positions, too.

    Args:
        input_size: D.
        memory_size: M.
        blocks: causal ones.
        positions: see ``families.transformer.build``.
    """

    def __init__(self, input_size: int, memory_size: int, blocks: list[Block], *, positions: Positions) -> None:
        super().__init__()
        self.size, self.positions, self.heads = blocks[0].size, positions, blocks[0].heads
        self.project = nn.Linear(input_size, self.size)
        self.blocks = nn.ModuleList(AttendingBlock(block, memory_size) for block in blocks)
        self.norm = nn.LayerNorm(self.size)
        initialise(self, sublayers=3 * len(blocks))

    def remember(self, y: Tensor, lengths: Tensor) -> State:
        rotation = sinusoids(y, self.size // self.heads) if self.positions == "rotary" else None
        layers = []
        for block in self.blocks:
            assert isinstance(block, AttendingBlock)
            k, v = block.block.heads_of(block.key_value(y), 2)
            layers.append(torch.stack((k if rotation is None else rotate(k, rotation), v), 1))
        memory = {"keys_values": torch.stack(layers, 1)}  # (B, L, 2, N, S, K)
        padding = padding_mask(y, lengths)
        return memory if padding is None else {**memory, "padding": padding}

    def begin(self, memory: State) -> State:
        return {"past": memory["keys_values"][..., :0, :]}

    def forward(self, x: Tensor, state: State, memory: State) -> tuple[Tensor, State, Tensor]:
        x = self.project(x).to(self.project.weight.dtype)
        x, rotation = add_positions(x, self.positions, self.size // self.heads, start=state["past"].shape[4])
        allowed = ~memory["padding"][:, None, None] if "padding" in memory else None
        pasts = []
        for number, block in enumerate(self.blocks):
            keys, values = memory["keys_values"][:, number].unbind(1)
            x, past, attention = block(x, state["past"][:, number], (keys, values, allowed), rotation)
            pasts.append(past)
        return self.norm(x), {"past": torch.stack(pasts, 1)}, attention


def decoder(name: str, input_size: int, memory_size: int, *, layers: int, **options: Any) -> Decoder:
    """Make a decoder of this family's layers.

    A stateful family needs nothing for it; another one has a function ``decoder`` in its file, with these arguments.

    Args:
        name: of the family.
        input_size: features of a step that is read.
        memory_size: features of a step that is attended to.
        layers: of the decoder.
        options: of the family; direction, causality and where states begin follow from what a decoder is.

    Raises:
        ValueError: less than one layer, or a family without a decoder.
    """

    check_least("task.decoder_layers", layers, 1)
    file = module(name)
    filled_options = filled(file.build, options)
    if hasattr(file, "decoder"):
        return cast("Decoder", file.decoder(input_size, memory_size, **{**filled_options, "layers": layers}))
    one_way = {k: v for k, v in filled_options.items() if k not in ("layers", "bidirectional", "initial")}

    def make(size: int, count: int) -> Family:
        family = build(name, size, **one_way, **({"layers": count} if "layers" in filled_options else {}))
        if not family.stateful or (count > 1 and "layers" not in filled_options):
            raise ValueError(
                f"model.family={name} makes no decoder of task.decoder_layers={layers}; use 1 or 2 layers "
                "and a stateful family"
            )
        return family

    return AttendingRecurrent(make, input_size, memory_size, layers=layers, dropout=filled_options.get("dropout", 0.0))
