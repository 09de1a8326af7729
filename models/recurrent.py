"""What rnn, lstm and gru share: states, kernels, initialisation.

Shapes: B rows, T time, D input size, H hidden size, L layers times directions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from models import varlen_rnn
from models.family import Family, State, check_choice, padding_mask
from models.torch_private import cpu_has_bf16
from models.varlen_rnn import States

Initial = Literal["zeros", "random", "learned"]
RANDOM_INITIAL_STD = 0.1  # small compared with the states' range (-1, 1), yet enough that no row relies on zeros


class Recurrent(Family):
    """A stack of recurrent layers around a torch kernel.

    The state is ``{"h": (B, L, H)}``, for an LSTM ``{"h": ..., "c": ...}``. It is not detached: the caller
    that carries it over batches decides how far gradients reach.

    Args:
        kernel: an nn.RNN, nn.LSTM or nn.GRU with ``batch_first=True``; it is initialised here.
        initial: the state before the first step: zeros; random, N(0, 0.1^2) drawn for each row in training
            and zeros in evaluation; or learned, one for all rows, zeros at first.
    """

    def __init__(self, kernel: nn.RNNBase, *, initial: Initial) -> None:
        super().__init__()
        check_choice("initial", initial, get_args(Initial))
        directions = 2 if kernel.bidirectional else 1
        self.kernel = kernel
        self.size = kernel.hidden_size * directions
        self.backward = kernel.hidden_size if kernel.bidirectional else 0
        self.causal = self.stateful = not kernel.bidirectional
        self.initial = initial
        self.state_shape = (kernel.num_layers * directions, kernel.hidden_size)  # (L, H)
        self.state_names = ("h", "c") if kernel.mode == "LSTM" else ("h",)
        if initial == "learned":
            self.learned = nn.ParameterDict({name: torch.zeros(self.state_shape) for name in self.state_names})
        initialise(kernel)

    def initial_state(self, rows: int) -> State:
        """The state before the first step, each (rows, L, H), as the option `initial` has it."""
        shape = (rows, *self.state_shape)
        if self.initial == "learned":
            return {name: self.learned[name].expand(shape) for name in self.state_names}
        weight = self.kernel.weight_hh_l0
        assert isinstance(weight, Tensor)
        if self.initial == "random" and self.training:
            return {name: weight.new_empty(shape).normal_(std=RANDOM_INITIAL_STD) for name in self.state_names}
        return {name: weight.new_zeros(shape) for name in self.state_names}

    def forward(self, x: Tensor, lengths: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """See `Family.forward`; a bidirectional stack takes no state, as its backward half starts at the end."""
        start = self.initial_state(len(x)) if state is None else self._checked(state, rows=len(x))
        padding = padding_mask(x, lengths)  # (B, T)
        if padding is not None:
            x = x.masked_fill(padding[..., None], 0)  # padding is never read, but NaN would reach other gradients
        hx = tuple(start[name].transpose(0, 1).contiguous() for name in self.state_names)  # each (L, B, H)
        y, last = self.scan(x, None if padding is None else lengths, hx)
        if padding is not None:
            y = y.masked_fill(padding[..., None], 0)
        return y, {name: s.transpose(0, 1).contiguous() for name, s in zip(self.state_names, last, strict=True)}

    def scan(self, x: Tensor, lengths: Tensor | None, hx: States) -> tuple[Tensor, States]:
        """All steps of all layers.

        Args:
            x: (B, T, D), finite in padded steps.
            lengths: (B,) int64 on the CPU; None if no row is padded.
            hx: the states to start from, each (L, B, H).

        Returns:
            y (B, T, size), anything finite in padded steps; the states after the last valid steps, each (L, B, H).
        """
        if self.kernel.mode == "LSTM" and x.device.type == "cpu" and not cpu_has_bf16():
            kind = self.kernel.weight_ih_l0.dtype
            assert isinstance(kind, torch.dtype)
            with torch.autocast("cpu", enabled=False):  # under autocast torch would call a kernel that fails here
                return self._scan(x.to(kind), lengths, tuple(h.to(kind) for h in hx))
        return self._scan(x, lengths, hx)

    def _scan(self, x: Tensor, lengths: Tensor | None, hx: States) -> tuple[Tensor, States]:
        if lengths is None:
            return varlen_rnn.run(self.kernel, x, hx)
        # Measured: on the CPU packed rows cost 1.2 to 14 times as much, and less only in small, scattered batches. For
        # GPUs cuDNN has kernels of its own.
        return (varlen_rnn.scan if x.device.type == "cpu" else packed)(self.kernel, x, lengths, hx)

    def _checked(self, state: State, *, rows: int) -> State:
        if not self.causal:
            raise ValueError(
                "state was given to a bidirectional family, whose backward half starts at the end; "
                "set model.bidirectional=false to carry a state"
            )
        given, expected = {k: tuple(v.shape) for k, v in state.items()}, (rows, *self.state_shape)
        if given != dict.fromkeys(self.state_names, expected):
            raise ValueError(
                f"state has {given}; this family needs {', '.join(self.state_names)} of shape {expected}; "
                "pass what it returned for the same rows, or None"
            )
        return state


def packed(kernel: nn.RNNBase, x: Tensor, lengths: Tensor, hx: States) -> tuple[Tensor, States]:
    """All steps of all layers through torch's kernels for packed rows; see ``varlen_rnn.scan``."""
    rows = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, last = varlen_rnn.run(kernel, rows, hx)
    return pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])[0], last


def initialise(kernel: nn.RNNBase) -> None:
    """Orthogonal recurrent matrices (Saxe et al. 2014), Xavier input matrices (Glorot & Bengio 2010), zero biases.

    torch stacks a layer's gates in one matrix, (gates * H, D); each gate is drawn on its own.
    """
    for name, parameter in kernel.named_parameters():
        for gate in parameter.detach().chunk(len(parameter) // kernel.hidden_size):  # views of the weight
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(gate)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(gate)
            else:
                nn.init.zeros_(gate)


def chrono_bias(gate: Tensor, chrono: int) -> Tensor:
    """log u, u drawn from [1, chrono - 1] for each unit of a gate: such a unit forgets after about u steps."""
    if chrono < 2:
        raise ValueError(f"model.chrono={chrono} is too small; use at least 2 steps, or null")
    return torch.empty_like(gate).uniform_(1, chrono - 1).log()


def inner_dropout(dropout: float, layers: int) -> float:
    """Dropout between layers; 0 with one layer, which has no between, so that torch does not warn."""
    return dropout if layers > 1 else 0.0
