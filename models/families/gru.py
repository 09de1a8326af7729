"""The gated recurrent unit of Cho et al. (2014), in the form of torch and cuDNN."""

from __future__ import annotations

from torch import nn

from models.family import Family, check_sizes
from models.recurrent import Initial, Recurrent, chrono_bias, inner_dropout


def build(
    input_size: int,
    *,
    hidden_size: int = 128,
    layers: int = 1,
    dropout: float = 0.0,
    bidirectional: bool = False,
    chrono: int | None = None,
    initial: Initial = "zeros",
) -> Family:
    """A GRU: h_t = (1 - z_t) * n_t + z_t * h_{t-1}, where n_t = tanh(W x_t + b + r_t * (U h_{t-1} + d)).

    The reset gate r acts after the product with U (in the paper: before), which is what fused kernels compute.

    Args:
        hidden_size: units per layer and direction.
        layers: recurrent layers, each reading the one below.
        dropout: probability that a unit is dropped between layers; no effect with one layer.
        bidirectional: also read each row from its end; the output is then 2 * hidden_size wide.
        chrono: steps over which the units should remember, each another number of them up to this: biases of the gate z
            begin as log u with u drawn from [1, chrono - 1] (Tallec & Ollivier 2018); null does not.
        initial: h_0: zeros; random, N(0, 0.1^2) for each row in training and zeros in evaluation; or learned.

    Raises:
        ValueError: an option is out of its range.
    """
    check_sizes(input_size=input_size, hidden_size=hidden_size, layers=layers, dropout=dropout)
    kernel = nn.GRU(
        input_size,
        hidden_size,
        layers,
        batch_first=True,
        bidirectional=bidirectional,
        dropout=inner_dropout(dropout, layers),
    )
    family = Recurrent(kernel, initial=initial)
    for name, parameter in kernel.named_parameters():
        if chrono is not None and name.startswith("bias_ih"):  # torch adds bias_ih and bias_hh; the latter stays 0
            z = parameter.detach().chunk(3)[1]  # gates: r, z, n
            z.copy_(chrono_bias(z, chrono))
    return family
