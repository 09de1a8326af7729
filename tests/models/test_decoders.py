"""Decoders: steps one by one give what all at once give, and what they see."""

import pytest
import torch

from models import decoders

B, U, S, D, M = 3, 5, 4, 6, 7
LENGTHS = torch.tensor([4, 2, 3])


def make(name, layers=2, **options):
    torch.manual_seed(0)
    return decoders.decoder(name, D, M, layers=layers, hidden_size=8, **options).double().eval()


def memory_of(decoder, seed=1, lengths=LENGTHS):
    y = torch.randn(B, S, M, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return decoder.remember(y.masked_fill(torch.arange(S)[None, :, None] >= lengths[:, None, None], 0), lengths)


def steps(seed=2):
    return torch.randn(B, U, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


VARIANTS = [("rnn", {}), ("lstm", {}), ("gru", {}), ("transformer", {}), ("transformer", {"positions": "sinusoidal"})]


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_steps_one_by_one_equal_all_at_once(name, options, layers):
    decoder, x = make(name, layers, **options), steps()
    memory = memory_of(decoder)
    whole, after, seen = decoder(x, decoder.begin(memory), memory)
    assert whole.shape == (B, U, decoder.size)
    for cuts in ([1] * U, [2, 3], [4, 1]):
        state, parts = decoder.begin(memory), []
        for part in x.split(cuts, 1):
            y, state, attention = decoder(part, state, memory)
            parts.append((y, attention))
        assert (torch.cat([y for y, _ in parts], 1) - whole).abs().max() < 1e-12
        assert (torch.cat([a for _, a in parts], 1) - seen).abs().max() < 1e-12
        assert all((state[k] - after[k]).abs().max() < 1e-12 for k in after)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_attention_is_a_share_of_the_memory_that_is_there(name, options):
    decoder = make(name, **options)
    memory = memory_of(decoder)
    attention = decoder(steps(), decoder.begin(memory), memory)[2]
    assert (attention.sum(-1) - 1).abs().max() < 1e-12
    assert attention[1, :, 2:].abs().max() == 0


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_padding_of_the_memory_and_other_rows_have_no_influence(name, options):
    decoder, x = make(name, **options), steps()
    memory = memory_of(decoder)
    whole = decoder(x, decoder.begin(memory), memory)[0]
    own = {k: v[1:2] for k, v in memory.items()}
    short = {k: v for k, v in own.items() if k != "padding"}
    for key, axis in (("values", 1), ("keys", 1), ("keys_values", 4)):
        if key in short:
            short[key] = short[key].narrow(axis, 0, 2)
    alone = decoder(x[1:2], decoder.begin(short), short)[0]
    assert (alone[0] - whole[1]).abs().max() < 1e-12


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_step_depends_on_steps_up_to_its_own_and_on_the_memory(name, options):
    decoder = make(name, **options)
    y = torch.randn(B, S, M, dtype=torch.float64, requires_grad=True)
    x = steps().requires_grad_()
    memory = decoder.remember(y, torch.full((B,), S))
    decoder(x, decoder.begin(memory), memory)[0][:, 2].sum().backward()
    assert x.grad[:, 3:].abs().max() == 0
    assert all(x.grad[:, u].abs().max() > 0 for u in range(3))
    assert all(y.grad[:, s].abs().max() > 0 for s in range(S))


def test_recurrent_attention_follows_its_equations():
    decoder, x = make("gru", 2), steps()
    memory = memory_of(decoder)
    state = decoder.begin(memory)
    below, above = decoder.stack
    lengths = torch.full((B,), U)
    y, _ = below(x, lengths, {"h": state["0.h"]})
    scores = torch.einsum("buh,hm,bsm->bus", y, decoder.key.weight, memory["values"])
    allowed = torch.arange(S) < LENGTHS[:, None]
    weights = scores.exp() * allowed[:, None]
    seen = torch.einsum("bus,bsm->bum", weights / weights.sum(-1, keepdim=True), memory["values"])
    top, _ = above(torch.cat([y, seen], -1), lengths, {"h": state["1.h"]})
    expected = torch.tanh(torch.cat([top, seen], -1) @ decoder.join.weight.T + decoder.join.bias)
    assert (decoder(x, state, memory)[0] - expected).abs().max() < 1e-12
    begun = torch.tanh(memory["values"].sum(1) / LENGTHS[:, None] @ decoder.start.weight.T + decoder.start.bias)
    assert (state["0.h"].flatten(1) - begun[:, :8]).abs().max() < 1e-12


def test_less_than_one_layer_is_refused():
    with pytest.raises(ValueError, match=r"task\.decoder_layers=0"):
        make("gru", 0)
