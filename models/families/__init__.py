"""Families: the sequence encoders, one a file. Shapes: B rows, T time, D input size, H output size.

A family is a file of this folder with a function ``build(input_size, *, option: type = default, ...)``.
The file's name is the family's name; the annotated keyword-only arguments are its options.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from models import folders
from models.options import check_least, check_share, filled

if TYPE_CHECKING:
    from models.decoders import Decoder

State = dict[str, Tensor]   # by name, rows first: (B, ...); contiguous, so that safetensors takes it as it is


class Family(nn.Module):
    """A sequence encoder.

    Attributes:
        size: H, the width of the output.
        causal: whether the output at step t depends on steps up to t only.
        backward: units at the end of the output that read each row from its end, so that they have read all of it at
            its first step, and a single step at its last.
        carries: whether `forward` goes on from a state.
    """

    size: int
    causal: bool
    backward: int = 0
    carries: bool = False

    def initial_state(self, rows: int) -> State:
        """The state before the first step, of a family that carries one."""
        raise NotImplementedError

    def forward(self, x: Tensor, lengths: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Encode each row.

        Args:
            x: (B, T, D) float; values in padded steps, NaN included, have no influence.
            lengths: (B,) int64 on the CPU, each in 1..T.
            state: what an earlier call returned, to go on from there; None starts anew.

        Returns:
            y (B, T, H), exactly 0 in padded steps; the state after each row's last valid step, or None.

        Raises:
            ValueError: a state was given that this family cannot use.
        """
        raise NotImplementedError


def names() -> list[str]:
    """The known families, sorted: the names of this folder's files."""
    return folders.names(__path__)


def module(name: str) -> ModuleType:
    """The file of a family.

    Raises:
        ValueError: no such file; the message lists the known families and the nearest one.
    """
    return folders.module(__name__, __path__, name, key="model.family", kind="families")


def build(name: str, input_size: int, **options: Any) -> Family:
    """Make a family for inputs of `input_size` features; `options` are those of the file's own `build`."""
    return cast(Family, module(name).build(input_size, **options))


def decoder(name: str, input_size: int, memory_size: int, *, layers: int, **options: Any) -> Decoder:
    """Make a decoder of this family's layers.

    A family that carries a state needs nothing for it; another one has a function ``decoder`` of its own, with these
    arguments.

    Args:
        name: of the family.
        input_size: features of a step that is read.
        memory_size: features of a step that is attended to.
        layers: of the decoder.
        options: of the family; direction, causality and where states begin follow from what a decoder is.

    Raises:
        ValueError: less than one layer, or a family of which no decoder can be made.
    """
    from models import decoders

    check_least("task.decoder_layers", layers, 1)
    own = module(name)
    told = filled(own.build, options)
    if hasattr(own, "decoder"):
        return cast("Decoder", own.decoder(input_size, memory_size, **{**told, "layers": layers}))
    one_way = {k: v for k, v in told.items() if k not in ("layers", "bidirectional", "initial")}

    def make(size: int, count: int) -> Family:
        made = build(name, size, **one_way, **({"layers": count} if "layers" in told else {}))
        if not made.carries or (count > 1 and "layers" not in told):
            raise ValueError(f"model.family={name} makes no decoder of task.decoder_layers={layers}; use 1 or 2 layers "
                             "and a family that carries a state")
        return made

    return decoders.AttendingRecurrent(make, input_size, memory_size, layers=layers, dropout=told.get("dropout", 0.0))


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
