"""The families against the equations of their papers, written as plain loops in float64.

The loops see one row at a time and its valid steps only: they know nothing of padding.
"""

import inspect
import types
import typing
import warnings

import numpy as np
import pytest
import torch

from models import attention as attention_module
from models import families, pooling, recurrent, varlen_rnn
from models.family import Family

torch.set_num_threads(1)

RECURRENT = ["gru", "lstm", "rnn"]
UNEQUAL, EQUAL = [7, 1, 4], [7, 7, 7]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(params=["stairs", "packed"])
def kernels(request, monkeypatch):
    """Unequal rows through each of the two ways that recurrent families have for them."""
    if request.param == "packed":
        monkeypatch.setattr(varlen_rnn, "scan", recurrent.packed)


both_ways = pytest.mark.usefixtures("kernels")


def make(name, input_size=5, seed=0, **options):
    """A small family in float64 and evaluation mode whose biases are not zero."""
    torch.manual_seed(seed)
    small = {"hidden_size": 8, "heads": 2} if name == "transformer" else {"hidden_size": 6}
    family = families.build(name, input_size, **small | options).double().eval()
    with torch.no_grad():
        for parameter in family.parameters():
            if parameter.ndim == 1:
                parameter += 0.3 * torch.randn_like(parameter)
    return family


def rows(lengths, input_size=5, seed=1, padding=0.0):
    """x (B, 7, D) float64 with `padding` in padded steps, and lengths."""
    x = torch.randn(len(lengths), 7, input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor(lengths)
    return x.masked_fill((torch.arange(7) >= lengths[:, None])[..., None], padding), lengths


def every_parameter_gradient(family, x, lengths):
    family.zero_grad()
    y, _ = family(x, lengths)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {name: parameter.grad for name, parameter in family.named_parameters()}


def assert_rows_equal(y, expected, lengths):
    """y (B, T, H) equals expected[b] (n, H) in valid steps and is exactly 0 in padded ones."""
    for b, n in enumerate(lengths.tolist()):
        np.testing.assert_allclose(y[b, :n].detach().numpy(), expected[b], atol=1e-10, rtol=0)
        assert (y[b, n:] == 0).all()


# --- recurrent families against their equations ---------------------------------------------------------------


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


NONLINEARITY = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "sigmoid": sigmoid}


def rnn_step(x, s, p, f):
    w, u, b, d = p
    return {"h": f(w @ x + u @ s["h"] + b + d)}


def lstm_step(x, s, p, f):
    i, forget, g, o = np.split(p[0] @ x + p[2] + p[1] @ s["h"] + p[3], 4)
    c = sigmoid(forget) * s["c"] + sigmoid(i) * np.tanh(g)
    return {"h": sigmoid(o) * np.tanh(c), "c": c}


def gru_step(x, s, p, f):
    (xr, xz, xn), (hr, hz, hn) = np.split(p[0] @ x + p[2], 3), np.split(p[1] @ s["h"] + p[3], 3)
    z, n = sigmoid(xz + hz), np.tanh(xn + sigmoid(xr + hr) * hn)
    return {"h": (1 - z) * n + z * s["h"]}


def textbook(family, x, f):
    """Outputs (n, H) and final states {name: (L, H)} of one row x (n, D)."""
    step = {"RNN_TANH": rnn_step, "RNN_RELU": rnn_step, "LSTM": lstm_step, "GRU": gru_step}[family.kernel.mode]
    weights = [[p.detach().numpy() for p in group] for group in family.kernel.all_weights]
    start = {k: v[0].detach().numpy() for k, v in family.initial_state(1).items()}
    directions, last, y = 2 if family.kernel.bidirectional else 1, [], x
    for layer in range(family.kernel.num_layers):
        halves = []
        for direction in range(directions):
            index = layer * directions + direction
            s, out = {k: v[index] for k, v in start.items()}, {}
            for t in list(range(len(x)))[:: -1 if direction else 1]:
                s = step(y[t], s, weights[index], f)
                out[t] = s["h"]
            halves.append(np.stack([out[t] for t in range(len(x))]))
            last.append(s)
        y = np.concatenate(halves, axis=1)
    return y, {k: np.stack([s[k] for s in last]) for k in last[0]}


KERNELS = [("gru", {}), ("lstm", {})] + [("rnn", {"nonlinearity": f}) for f in NONLINEARITY]


@both_ways
@pytest.mark.parametrize("lengths", [UNEQUAL, EQUAL, [5, 5, 5]], ids=str)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "options"), KERNELS)
def test_recurrent_family_follows_its_equations(name, options, layers, bidirectional, lengths):
    family = make(name, layers=layers, bidirectional=bidirectional, initial="learned", **options)
    with torch.no_grad():
        for start in family.learned.values():
            start.normal_()
    x, lengths = rows(lengths)
    y, state = family(x, lengths)
    f = NONLINEARITY[options.get("nonlinearity", "tanh")]
    expected = [textbook(family, x[b, :n].numpy(), f) for b, n in enumerate(lengths.tolist())]
    assert y.shape == (3, 7, family.size) and family.size == 6 * (1 + bidirectional)
    assert_rows_equal(y, [e[0] for e in expected], lengths)
    for key, value in state.items():
        np.testing.assert_allclose(value.detach().numpy(), np.stack([e[1][key] for e in expected]), atol=1e-10, rtol=0)
    assert set(state) == set(expected[0][1])


@both_ways
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("output_nonlinearity", [*NONLINEARITY, "none"])
@pytest.mark.parametrize("nonlinearity", NONLINEARITY)
def test_article_output_reads_the_last_layer_and_the_input(nonlinearity, output_nonlinearity, bidirectional):
    options = {"layers": 2, "nonlinearity": nonlinearity, "bidirectional": bidirectional}
    family = make("rnn", output="article", output_nonlinearity=output_nonlinearity, **options)
    x, lengths = rows(UNEQUAL)
    y, _ = family(x, lengths)
    w, v, c = (
        p.detach().numpy() for p in (family.from_hidden.weight, family.from_input.weight, family.from_hidden.bias)
    )
    f, g, expected = NONLINEARITY[nonlinearity], NONLINEARITY.get(output_nonlinearity, lambda a: a), []
    for b, n in enumerate(lengths.tolist()):
        h, _ = textbook(family, x[b, :n].numpy(), f)
        expected.append(np.stack([g(w @ h[t] + v @ x[b, t].numpy() + c) for t in range(n)]))
    assert family.size == 6
    assert_rows_equal(y, expected, lengths)


STATEFUL = [*KERNELS, ("rnn", {"output": "article"})]


@both_ways
@pytest.mark.parametrize(("name", "options"), STATEFUL)
def test_state_carried_over_chunks_equals_one_pass(name, options):
    family = make(name, layers=2, initial="learned", **options)
    x, lengths = rows([7, 4, 5])
    whole, end = family(x, lengths)
    first, state = family(x[:, :3], torch.tensor([3, 3, 3]))
    second, state = family(x[:, 3:], lengths - 3, state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-12, rtol=0)
    for key in end:
        torch.testing.assert_close(state[key], end[key], atol=1e-12, rtol=0)
        assert state[key].is_contiguous()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, o in KERNELS if o.get("nonlinearity") != "sigmoid"])
def test_stairs_give_what_packed_rows_give(name, options, layers, bidirectional, padded, monkeypatch):
    family = make(name, layers=layers, bidirectional=bidirectional, initial="learned", **options)
    lengths = torch.tensor([5, 20, 1, 20, 13, 5])
    x = torch.randn(6, 23 if padded else 20, 5, dtype=torch.float64)
    found = []
    for scan in (varlen_rnn.scan, recurrent.packed):
        monkeypatch.setattr(varlen_rnn, "scan", scan)
        read = x.clone().requires_grad_()
        y, state = family(read, lengths)
        loss = sum((s * torch.linspace(-1, 1, s.numel()).view_as(s)).sum() for s in (y, *state.values()))
        gradients = torch.autograd.grad(loss, [read, *family.parameters()])
        found.append([y, *state.values(), *gradients])
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_stairs_are_as_many_as_lengths_and_without_padding_there_is_one(monkeypatch):
    calls, run = [], varlen_rnn.run
    monkeypatch.setattr(varlen_rnn, "run", lambda kernel, x, hx: calls.append(tuple(x.shape[:2])) or run(kernel, x, hx))
    family, x = make("gru", layers=2), torch.randn(4, 40, 5, dtype=torch.float64)
    for lengths, expected in (
        ([39, 40, 39, 40], [(4, 39), (2, 1)]),
        ([40, 40, 40, 40], [(4, 40)]),
        ([4, 1, 4, 39], [(4, 1), (3, 3), (1, 35)]),
    ):
        calls.clear()
        family(x, torch.tensor(lengths))
        assert calls == expected  # no step of padding is computed


@pytest.mark.parametrize("name", RECURRENT)
def test_both_directions_drop_units_between_layers_at_the_rate_of_the_kernel(name, monkeypatch):
    family = make(name, layers=2, bidirectional=True, dropout=0.5).train()
    dropped, plain = [], torch.nn.functional.dropout
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda *a: dropped.append(a[1:]) or plain(*a))
    family(*rows(UNEQUAL))
    assert dropped == [(0.5, True)]


@pytest.mark.parametrize("name", RECURRENT)
def test_each_gate_starts_orthogonal_with_zero_biases(name):
    family = families.build(name, 5, hidden_size=8, layers=2, bidirectional=True)
    for key, parameter in family.kernel.named_parameters():
        for gate in parameter.detach().split(8):
            if key.startswith("weight_hh"):
                torch.testing.assert_close(gate @ gate.T, torch.eye(8), atol=1e-5, rtol=0)
            elif key.startswith("weight_ih"):
                limit = (6 / sum(gate.shape)) ** 0.5  # Glorot & Bengio 2010, eq. 16
                assert limit * 0.8 < gate.abs().max() <= limit
            elif name != "lstm":
                assert (gate == 0).all()


def test_forget_bias_is_the_sum_of_both_biases_in_every_layer():
    kernel = families.build("lstm", 5, hidden_size=3, layers=2, bidirectional=True, forget_bias=1.5).kernel
    for _, _, b_x, b_h in kernel.all_weights:
        assert (b_x + b_h).tolist() == [0.0] * 3 + [1.5] * 3 + [0.0] * 6


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_chrono_biases_are_logarithms_of_the_steps_to_remember(name):
    torch.manual_seed(0)
    family = families.build(name, 3, hidden_size=500, layers=2, chrono=100)
    for key, parameter in family.kernel.named_parameters():
        if key.startswith("bias_ih"):
            gates = parameter.detach().chunk(4 if name == "lstm" else 3)
            steps = gates[1].exp()
            assert 1 <= steps.min() < 5 and 95 < steps.max() <= 99 and abs(steps.mean() - 50) < 4
            if name == "lstm":
                assert torch.equal(gates[0], -gates[1])
        elif key.startswith("bias"):
            assert parameter.abs().max() == 0
    with pytest.raises(ValueError, match=r"model\.chrono=1 "):
        families.build(name, 3, chrono=1)


@pytest.mark.parametrize("name", RECURRENT)
def test_random_initial_state_differs_by_row_in_training_and_is_zero_in_evaluation(name):
    family = make(name, initial="random")
    x, lengths = rows(EQUAL)
    x = x[:1].expand(3, -1, -1)
    zeros = {key: torch.zeros(3, 1, 6, dtype=torch.float64) for key in family.state_names}
    assert torch.equal(family(x, lengths)[0], family(x, lengths, zeros)[0])
    y, _ = family.train()(x, lengths)
    assert not torch.allclose(y[0], y[1]) and not torch.allclose(y[0], family(x, lengths)[0][0])
    assert family.initial_state(1000)["h"].std() == pytest.approx(0.1, rel=0.05)


@both_ways
@pytest.mark.parametrize("name", RECURRENT)
def test_learned_initial_state_is_one_for_all_rows_and_gets_a_gradient(name):
    family = make(name, initial="learned")
    start = family.initial_state(3)
    assert all(torch.equal(s[0], s[2]) for s in start.values())
    grads = every_parameter_gradient(family, *rows(UNEQUAL))
    assert all(grads[f"learned.{key}"].abs().sum() > 0 for key in start)
    assert not any("learned" in key for key, _ in make(name).named_parameters())


# --- the transformer against its equations --------------------------------------------------------------------


def norm(x, layer):
    standard = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + layer.eps)
    return standard * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def linear(x, layer):
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def turned(x):
    """Rotary positions of one head x (n, K) as a product of complex numbers (Su et al. 2021, eq. 12)."""
    n, k = x.shape
    z = x[:, 0::2] + 1j * x[:, 1::2]
    z = z * np.exp(1j * np.arange(n)[:, None] * 10000.0 ** (-2 * np.arange(k // 2) / k))
    return np.stack([z.real, z.imag], axis=-1).reshape(n, k)


def attention(q, k, v, causal):
    """softmax(Q K^T / sqrt(d)) V, one query at a time."""
    out = []
    for t in range(len(q)):
        seen = t + 1 if causal else len(k)
        weights = np.exp(k[:seen] @ q[t] / np.sqrt(q.shape[1]))
        out.append((weights / weights.sum()) @ v[:seen])
    return np.stack(out)


def textbook_transformer(family, x, heads, causal, positions):
    x = linear(x, family.project)
    n, size = x.shape
    if positions == "sinusoidal":
        for t in range(n):
            for i in range(size // 2):
                x[t, 2 * i] += np.sin(t / 10000 ** (2 * i / size))
                x[t, 2 * i + 1] += np.cos(t / 10000 ** (2 * i / size))
    turn = turned if positions == "rotary" else lambda a: a
    for block in family.blocks:
        q, k, v = np.split(linear(norm(x, block.attention_norm), block.query_key_value), 3, axis=1)
        found = [
            attention(turn(a), turn(b), c, causal)
            for a, b, c in zip(*(np.split(m, heads, axis=1) for m in (q, k, v)), strict=True)
        ]
        x = x + linear(np.concatenate(found, axis=1), block.attention_out)
        inner = torch.from_numpy(linear(norm(x, block.feedforward_norm), block.feedforward_in))
        inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
        x = x + linear(inner.numpy(), block.feedforward_out)
    return norm(x, family.norm)


@pytest.mark.parametrize("lengths", [UNEQUAL, EQUAL, [5, 5, 5]], ids=str)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_transformer_follows_its_equations(positions, causal, lengths):
    family = make("transformer", hidden_size=12, heads=3, feedforward=10, causal=causal, positions=positions)
    x, lengths = rows(lengths)
    y, state = family(x, lengths)
    expected = [
        textbook_transformer(family, x[b, :n].numpy(), 3, causal, positions) for b, n in enumerate(lengths.tolist())
    ]
    assert state is None and y.shape == (3, 7, family.size) and family.size == 12
    assert_rows_equal(y, expected, lengths)


def test_transformer_passes_no_mask_when_no_row_is_padded(monkeypatch):
    masks, plain = [], torch.nn.functional.scaled_dot_product_attention

    def spy(q, k, v, **options):
        masks.append(options["attn_mask"])
        return plain(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    make("transformer", layers=1)(*rows(EQUAL))
    make("transformer", layers=1, causal=True, positions="sinusoidal")(*rows(UNEQUAL))
    make("transformer", layers=1)(*rows(UNEQUAL))
    assert masks[:2] == [None, None] and masks[2].shape == (3, 1, 1, 7)


def test_rotary_attention_depends_on_distances_only():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = attention_module.sinusoids(torch.zeros(1, 20, 8, dtype=torch.float64), 8)
    q, k = (attention_module.rotate(a.expand(1, 1, 20, 8), rotation)[0, 0] for a in (q, k))
    torch.testing.assert_close(q[9] @ k[4], q[19] @ k[14])
    assert not torch.allclose(q[9] @ k[4], q[9] @ k[5])


def test_positions_of_long_rows_stay_exact_in_half_precision():
    cos, _ = attention_module.sinusoids(torch.zeros(1, 3000, 4, dtype=torch.bfloat16), 4)
    assert cos[2999, 0].item() == pytest.approx(np.cos(2999), abs=1e-4)


def test_residual_sum_keeps_full_precision_under_autocast():
    family, seen = families.build("transformer", 5, hidden_size=8, heads=2), []
    for block in family.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        family(torch.ones(1, 3, 5), torch.tensor([3]))
    assert seen == [torch.float32, torch.float32]


def test_transformer_starts_with_small_sublayer_outputs():
    family = families.build("transformer", 5, hidden_size=16, layers=8)
    block = family.blocks[0]
    limit = (6 / 32) ** 0.5
    assert limit * 0.9 < block.query_key_value.weight.abs().max() <= limit
    assert limit * 0.9 / 4 < block.attention_out.weight.abs().max() <= limit / 4
    assert (block.feedforward_out.bias == 0).all()


# --- what holds for every family ------------------------------------------------------------------------------

VARIANTS = [
    *STATEFUL,
    ("transformer", {}),
    ("transformer", {"causal": True, "positions": "sinusoidal"}),
    *((name, {"bidirectional": True}) for name in RECURRENT),
    ("rnn", {"nonlinearity": "sigmoid", "output": "article", "bidirectional": True}),
]
every_variant = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else "-".join(map(str, v.values())) or "plain"
)


def test_every_family_has_a_variant():
    assert {name for name, _ in VARIANTS} == set(families.names())


@both_ways
@every_variant
def test_padding_has_no_influence_on_outputs_states_or_gradients(name, options):
    family = make(name, layers=2, **options)
    clean, lengths = rows(UNEQUAL)
    y, state = family(clean, lengths)
    grads = every_parameter_gradient(family, clean, lengths)
    for garbage in (1e6, float("nan")):
        x, _ = rows(UNEQUAL, padding=garbage)
        x.requires_grad_()
        dirty, dirty_state = family(x, lengths)
        assert torch.equal(dirty, y) and (dirty[1, 1:] == 0).all()
        assert state is None or all(torch.equal(dirty_state[key], state[key]) for key in state)
        for key, grad in every_parameter_gradient(family, x, lengths).items():
            assert torch.equal(grad, grads[key]), key
        assert torch.isfinite(x.grad).all() and (x.grad[1, 1:] == 0).all() and (x.grad[1, 0] != 0).any()


@both_ways
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("name", "options"), KERNELS)
def test_the_last_step_is_the_final_state_of_every_direction(name, options, bidirectional):
    family = make(name, layers=2, bidirectional=bidirectional, **options)
    x, lengths = rows(UNEQUAL)
    y, state = family(x, lengths)
    final = state["h"][:, -2:].flatten(1) if bidirectional else state["h"][:, -1]  # as torch's h_n has them
    torch.testing.assert_close(pooling.last_step(y, lengths, backward=family.backward), final, atol=1e-12, rtol=0)


@both_ways
@every_variant
def test_longer_padding_changes_nothing(name, options):
    family = make(name, **options)
    x, lengths = rows([4, 1, 3])
    long, short = family(x, lengths)[0], family(x[:, :4], lengths)[0]
    torch.testing.assert_close(long[:, :4], short, atol=1e-12, rtol=0)


@every_variant
def test_causal_says_whether_later_steps_are_seen(name, options):
    family = make(name, layers=2, **options)
    x, lengths = rows(EQUAL)
    changed = x.clone()
    changed[:, 4] += 1
    y, other = family(x, lengths)[0], family(changed, lengths)[0]
    same = (y == other).all(dim=-1)  # (B, T)
    assert same[:, :4].all() == family.causal and (family.causal or not same[:, :4].any())
    assert not same[:, 4:].any()
    assert family.causal == (not options.get("bidirectional") and (name != "transformer" or "causal" in options))


@both_ways
@every_variant
def test_every_parameter_gets_a_finite_gradient_in_training(name, options):
    family = make(name, layers=2, dropout=0.2, **options).train()
    for key, grad in every_parameter_gradient(family, *rows(UNEQUAL)).items():
        assert grad is not None and torch.isfinite(grad).all() and (grad != 0).any(), key


@every_variant
def test_one_row_of_one_step_works(name, options):
    family = make(name, layers=2, dropout=0.1, **options).train()
    y, _ = family(torch.ones(1, 1, 5, dtype=torch.float64), torch.tensor([1]))
    assert y.shape == (1, 1, family.size) and torch.isfinite(y).all() and (y != 0).any()


@both_ways
@every_variant
def test_dropout_acts_in_training_only(name, options):
    family = make(name, layers=2, dropout=0.5, **options)
    x, lengths = rows(UNEQUAL)
    assert torch.equal(family(x, lengths)[0], family(x, lengths)[0])
    assert torch.equal(family(x, lengths)[0], make(name, layers=2, **options)(x, lengths)[0])
    family.train()
    assert not torch.equal(family(x, lengths)[0], family(x, lengths)[0])


@both_ways
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", [UNEQUAL, EQUAL], ids=str)
@every_variant
def test_autocast_trains_and_stays_near_full_precision(name, options, lengths, device):
    family = make(name, layers=2, **options).float().to(device).train()
    x, lengths = rows(lengths)
    x = x.float().to(device)
    y, _ = family(x, lengths)
    with torch.autocast(device, torch.bfloat16):
        half, state = family(x, lengths)
        if state is not None and family.causal:
            family(x, lengths, state)
    half.float().pow(2).sum().backward()
    torch.testing.assert_close(half.float(), y, atol=0.1, rtol=0.1)
    assert all(torch.isfinite(p.grad).all() for p in family.parameters())


@both_ways
@every_variant
def test_weights_in_half_precision_give_outputs_in_half_precision(name, options):
    family = make(name, **options).bfloat16()
    x, lengths = rows(UNEQUAL)
    assert family(x.bfloat16(), lengths)[0].dtype == torch.bfloat16


@pytest.mark.parametrize("name", families.names())
def test_options_are_documented_and_of_types_a_schema_can_express(name):
    build = families.module(name).build
    hints, documentation = typing.get_type_hints(build), inspect.getdoc(build).split("Args:")[1]
    options = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert next(iter(inspect.signature(build).parameters)) == "input_size" and hints["return"] is Family
    for option in options:
        hint = hints[option.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        assert all(
            part in (int, float, bool, str, type(None)) or typing.get_origin(part) is typing.Literal for part in parts
        ), option
        assert f"\n    {option.name}: " in documentation
        assert option.default is not option.empty


def test_a_new_family_is_one_new_file(tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text("def build(input_size, *, times: int = 1): return 'echo', input_size, times")
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    assert families.names() == ["echo", "gru", "lstm", "rnn", "transformer"]
    assert families.build("echo", 3, times=2) == ("echo", 3, 2)


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "hint"), [("grru", "did you mean 'gru'? "), ("LSTM", "did you mean 'lstm'? "), ("quartet", "")]
)
def test_unknown_family_lists_the_known_ones_and_the_nearest(name, hint):
    with pytest.raises(ValueError) as error:
        families.build(name, 3)
    assert str(error.value) == (
        f"model.family={name!r} is not known; {hint}known families: gru, lstm, rnn, transformer"
    )


@pytest.mark.parametrize("name", families.names())
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden_size": 0}, "model.hidden_size=0 is too small; use at least 1"),
        ({"layers": 0}, "model.layers=0 is too small"),
        ({"dropout": 1.0}, r"model.dropout=1.0 .* \[0, 1\)"),
        ({"dropout": -0.1}, "model.dropout=-0.1"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        families.build(name, 3, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rnn", {"nonlinearity": "cosine"}, "model.nonlinearity='cosine' is not known; use one of tanh, relu, sigmoid"),
        ("rnn", {"output": "both"}, "model.output='both' is not known; use one of hidden, article"),
        (
            "rnn",
            {"output_nonlinearity": "x"},
            "model.output_nonlinearity='x' is not known; use one of tanh, relu, sigmoid",
        ),
        ("gru", {"initial": "ones"}, "model.initial='ones' is not known; use one of zeros, random, learned"),
        ("transformer", {"positions": "none"}, "model.positions='none' is not known; use one of rotary, sinusoidal"),
        ("transformer", {"heads": 0}, "model.heads=0 is too small"),
        ("transformer", {"feedforward": 0}, "model.feedforward=0 is too small"),
        ("transformer", {"hidden_size": 10, "heads": 4}, "model.hidden_size=10 .* model.heads=4; .* such as 12"),
        ("transformer", {"hidden_size": 12, "heads": 4}, "model.positions=rotary .* gives 3; .* such as 24"),
        ("transformer", {"hidden_size": 9, "heads": 3, "positions": "sinusoidal"}, "gives 9; .* such as 18"),
    ],
)
def test_options_of_one_family_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        families.build(name, 3, **options)


def test_a_state_that_cannot_be_used_is_refused():
    x, lengths = rows(EQUAL)
    _, state = make("lstm")(x, lengths)
    with pytest.raises(ValueError, match="state=None"):
        make("transformer", causal=True)(x, lengths, state)
    with pytest.raises(ValueError, match=r"model\.bidirectional=false"):
        make("lstm", bidirectional=True)(x, lengths, state)
    with pytest.raises(ValueError, match=r"this family needs h of shape \(3, 1, 6\)"):
        make("gru")(x, lengths, state)
    with pytest.raises(ValueError, match=r"needs h, c of shape \(2, 1, 6\)"):
        make("lstm")(x[:2], lengths[:2], state)


@pytest.mark.parametrize("name", RECURRENT)
def test_dropout_with_one_layer_warns_nobody(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(name, dropout=0.5)


def test_sigmoid_loop_equals_the_fused_kernel_given_its_nonlinearity(monkeypatch):
    x, lengths = rows(UNEQUAL)
    fused, plain = (make("rnn", layers=2, bidirectional=True, nonlinearity=f) for f in ("tanh", "sigmoid"))
    monkeypatch.setattr(torch, "sigmoid", torch.tanh)
    for (key, a), b in zip(
        every_parameter_gradient(fused, x, lengths).items(),
        every_parameter_gradient(plain, x, lengths).values(),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0, msg=key)


def test_attention_dropout_drops_attention_weights_in_training_only():
    family = make("transformer", attention_dropout=0.5)
    x, lengths = rows(EQUAL)
    family.eval()
    assert torch.equal(family(x, lengths)[0], family(x, lengths)[0])
    family.train()
    assert not torch.equal(family(x, lengths)[0], family(x, lengths)[0])
    assert torch.equal(
        make("transformer", attention_dropout=0.5).eval()(x, lengths)[0], make("transformer").eval()(x, lengths)[0]
    )
