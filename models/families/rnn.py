"""The simple recurrent network of Elman (1990), with the output layer some articles add.

Shapes: B rows, T time, D input size, H hidden size, L layers times directions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.family import Family, check_choice, check_sizes, step_mask
from models.recurrent import Initial, Recurrent, inner_dropout

Nonlinearity = Literal["tanh", "relu", "sigmoid"]
Output = Literal["hidden", "article"]
OutputNonlinearity = Literal["tanh", "relu", "sigmoid", "none"]

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "none": lambda x: x,
}


def build(
    input_size: int,
    *,
    hidden_size: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
    nonlinearity: Nonlinearity = "tanh",
    output: Output = "hidden",
    output_nonlinearity: OutputNonlinearity = "tanh",
    initial: Initial = "zeros",
) -> Family:
    """A simple recurrent network: h_t = f(W x_t + U h_{t-1} + b).

    Args:
        hidden_size: units per layer and direction.
        layers: recurrent layers, each reading the one below.
        dropout: probability that a unit is dropped between layers; no effect with one layer.
        bidirectional: also read each row from its end; the output is then 2 * hidden_size wide.
        nonlinearity: f. tanh and relu run in torch's fused kernel, sigmoid in a plain loop that is slower.
        output: hidden gives the last layer's h_t; article gives y_t = g(W h_t + V x_t + c), hidden_size units wide,
            where h_t is the last layer's (both directions) and x_t the family's input. Each unit mixes the directions,
            so that what reads the last step only gets little of the backward one, which has read one step there.
        output_nonlinearity: g, for output article: tanh, relu, sigmoid or none.
        initial: h_0: zeros; random, N(0, 0.1^2) for each row in training and zeros in evaluation; or learned.

    Raises:
        ValueError: an option is out of its range.
    """
    check_sizes(input_size=input_size, hidden_size=hidden_size, layers=layers, dropout=dropout)
    check_choice("nonlinearity", nonlinearity, get_args(Nonlinearity))
    check_choice("output", output, get_args(Output))
    check_choice("output_nonlinearity", output_nonlinearity, get_args(OutputNonlinearity))
    kernel = nn.RNN(
        input_size,
        hidden_size,
        layers,
        batch_first=True,
        bidirectional=bidirectional,
        dropout=inner_dropout(dropout, layers),
        nonlinearity="relu" if nonlinearity == "relu" else "tanh",
    )
    return RNN(
        kernel,
        sigmoid=nonlinearity == "sigmoid",
        initial=initial,
        output_nonlinearity=output_nonlinearity if output == "article" else None,
    )


class RNN(Recurrent):
    """See `build`. With the sigmoid, the kernel only holds the weights."""

    def __init__(
        self, kernel: nn.RNN, *, sigmoid: bool, output_nonlinearity: OutputNonlinearity | None, initial: Initial
    ) -> None:
        super().__init__(kernel, initial=initial)
        self.sigmoid, self.output_nonlinearity = sigmoid, output_nonlinearity
        if output_nonlinearity is not None:
            self.from_hidden = nn.Linear(self.size, kernel.hidden_size)  # W and c
            self.from_input = nn.Linear(kernel.input_size, kernel.hidden_size, bias=False)  # V
            self.size, self.backward = kernel.hidden_size, 0  # each unit mixes both directions
            nn.init.xavier_uniform_(self.from_hidden.weight)
            nn.init.xavier_uniform_(self.from_input.weight)
            nn.init.zeros_(self.from_hidden.bias)

    def scan(self, x: Tensor, lengths: Tensor | None, hx: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See `Recurrent.scan`."""
        y, last = self._sigmoid_scan(x, lengths, hx[0]) if self.sigmoid else super().scan(x, lengths, hx)
        if self.output_nonlinearity is not None:
            y = FUNCTIONS[self.output_nonlinearity](self.from_hidden(y) + self.from_input(x))
        return y, last

    def _sigmoid_scan(self, x: Tensor, lengths: Tensor | None, hx: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        kernel, steps = self.kernel, range(x.shape[1])
        directions = 2 if kernel.bidirectional else 1
        valid = None if lengths is None else step_mask(x, lengths)[..., None].unbind(1)  # T times (B, 1)
        last = []
        for layer in range(kernel.num_layers):
            outputs = []
            for direction in range(directions):
                w_x, w_h, b_x, b_h = kernel.all_weights[layer * directions + direction]
                driven = F.linear(x, w_x, b_x + b_h).unbind(1)  # T times (B, H): W x_t + b, all steps in one product
                h, states = hx[layer * directions + direction], list(driven)
                for t in reversed(steps) if direction else steps:
                    new = torch.sigmoid(driven[t] + F.linear(h, w_h))
                    states[t] = h = new if valid is None else torch.where(valid[t], new, h)
                outputs.append(torch.stack(states, dim=1))
                last.append(h)
            x = torch.cat(outputs, dim=-1)  # (B, T, directions * H)
            if layer < kernel.num_layers - 1:
                x = F.dropout(x, kernel.dropout, self.training)
        return x, (torch.stack(last),)
