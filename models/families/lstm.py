"""Long short-term memory: Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000)."""

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
    forget_bias: float = 1.0,
    chrono: int | None = None,
    initial: Initial = "zeros",
) -> Family:
    """An LSTM: c_t = f_t * c_{t-1} + i_t * g_t and h_t = o_t * tanh(c_t), with gates i, f, o and candidate g.

    Args:
        hidden_size: units per layer and direction.
        layers: recurrent layers, each reading the one below.
        dropout: probability that a unit is dropped between layers; no effect with one layer.
        bidirectional: also read each row from its end; the output is then 2 * hidden_size wide.
        forget_bias: the forget gate's bias before training; 1 keeps the gate open (Jozefowicz et al. 2015).
        chrono: steps over which the units should remember, each another number of them up to this: in place of
            forget_bias, biases of the forget gate begin as log u with u drawn from [1, chrono - 1], those of the input
            gate as its negative (Tallec & Ollivier 2018); null does not.
        initial: h_0 and c_0: zeros; random, N(0, 0.1^2) for each row in training and zeros in evaluation; or learned.

    Raises:
        ValueError: an option is out of its range.
    """
    check_sizes(input_size=input_size, hidden_size=hidden_size, layers=layers, dropout=dropout)
    kernel = nn.LSTM(
        input_size,
        hidden_size,
        layers,
        batch_first=True,
        bidirectional=bidirectional,
        dropout=inner_dropout(dropout, layers),
    )
    family = Recurrent(kernel, initial=initial)
    for name, parameter in kernel.named_parameters():
        if name.startswith("bias_ih"):  # torch adds bias_ih and bias_hh; the latter stays 0
            i, f, _, _ = parameter.detach().chunk(4)
            nn.init.constant_(f, forget_bias)
            if chrono is not None:
                f.copy_(chrono_bias(f, chrono))
                i.copy_(-f)
    return family
