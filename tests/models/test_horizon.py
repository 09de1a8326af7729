"""The memory horizon against products of Jacobians in numpy, and that it leaves models as they were.

Shapes: B rows, T time, D channels, H units.
"""

import numpy as np
import pytest
import torch

import models
from models import families
from models.batch import Batch
from models.horizon import memory_horizon
from models.sequence import RecurrentState

torch.set_num_threads(1)

B, D, H, V = 4, 3, 6, 12
LENGTHS = (9, 3, 6, 1)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
TEXT = {"frontend": "tokens", "vocabulary": V, "tokenizer": None, "shared": False, "tokens": V}
FRAMES = {
    "frontend": "frames",
    "channels": D,
    "classes": 3,
    "several": False,
    "counts": None,
    "rows": None,
    "targets": 2,
    "mean": None,
    "std": None,
    "tokens": V,
    "tokenizer": None,
    "ngrams": [],
}
PATCHES = {
    "frontend": "patches",
    "targets": D,
    "channels": D,
    "known": 0,
    "observed": False,
    "season": 3,
    "lookback": 12,
    "horizon": 4,
}
SPECS = {
    "classify": FRAMES,
    "label": FRAMES,
    "regress": FRAMES,
    "transcribe": FRAMES,
    "translate": TEXT,
    "generate": TEXT,
    "forecast": PATCHES,
}
OPTIONS = {"forecast": {"lookback": 12, "horizon": 4}}
BOTH_WAYS = [(task, family, {}) for task in SPECS for family in families.names()] + [
    (task, family, {"bidirectional": True}) for task in SPECS if task != "generate" for family in ("gru", "lstm", "rnn")
]


def make(kind="classify", family="rnn", task=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    front = {"embedding_size": 5} if SPECS[kind] is TEXT else {"patch": 2} if SPECS[kind] is PATCHES else {}
    small = {"hidden_size": 8, "heads": 2} if family == "transformer" else {"hidden_size": H}
    model = models.build(
        SPECS[kind],
        {"family": family, **small, **front, **options},
        {"kind": kind, **OPTIONS.get(kind, {}), **(task or {})},
    )
    return model.to(dtype)


def batch(kind="classify", *, lengths=LENGTHS, rows=None, more=0, padding=0.0, weights=None, dtype=torch.float64):
    """Some of B random rows, with `more` steps of padding."""
    gen, n, sizes = torch.Generator().manual_seed(1), max(lengths), torch.tensor(lengths)
    rows = list(range(len(lengths)) if rows is None else rows)
    values = torch.randn(len(lengths), n, D, generator=gen, dtype=torch.float64)
    tokens = torch.randint(4, V, (len(lengths), n + 1), generator=gen)
    step_labels = torch.randint(0, 3, (len(lengths), n), generator=gen)
    targets = {
        "label": torch.arange(len(lengths)) % 3,
        "target": 5 + torch.arange(len(lengths))[:, None] % 4,
        "numbers": torch.randn(len(lengths), 2, generator=gen).to(dtype),
        "next": tokens[:, 1:],
    }
    padded = torch.arange(n + more) >= sizes[:, None]
    if kind == "forecast":
        values = torch.randn(len(lengths), 12, D, generator=gen, dtype=torch.float64).to(dtype)
        inputs, sizes = {"values": values}, torch.full((len(lengths),), 12)
        targets = {"target": torch.randn(len(lengths), 4, D, generator=gen).to(dtype)}
    else:
        wide = torch.nn.functional.pad
        inputs = (
            {"tokens": wide(tokens[:, :-1], (0, more)).masked_fill(padded, 0 if not more else 7)}
            if SPECS[kind] is TEXT
            else {"values": wide(values, (0, 0, 0, more)).masked_fill(padded[..., None], padding).to(dtype)}
        )
        targets["next"] = wide(targets["next"], (0, more))
        targets["step_labels"] = wide(step_labels, (0, more)).masked_fill(padded, -1)
    weights = torch.ones(len(lengths)) if weights is None else torch.tensor(weights)
    return Batch(
        {k: v[rows] for k, v in inputs.items()},
        {next(iter(inputs)): sizes[rows]},
        {k: v[rows] for k, v in targets.items()},
        weights[rows].to(dtype),
        torch.arange(len(rows)),
    )


def close(a, b, rel=1e-9):
    assert a is not None and b is not None
    assert (a.reach, a.scale) == (b.reach, b.scale)
    assert a.norms == pytest.approx(b.norms, rel=rel, abs=1e-15)


def back(model, x, label):
    """Norms 0, 1, ... steps back of an Elman network that classifies by its last step, for one row x (n, D)."""
    w, u, b, c = (p.detach().numpy() for p in model.family.kernel.all_weights[0])
    h, states = np.zeros(H), []
    for step in x:
        h = np.tanh(w @ step + b + u @ h + c)
        states.append(h)
    head = model.task.head.linear
    out = head.weight.detach().numpy() @ h + head.bias.detach().numpy()
    g = head.weight.detach().numpy().T @ (np.exp(out) / np.exp(out).sum() - np.eye(3)[label])
    g, norms = g / np.linalg.norm(g), []
    for h in reversed(states):
        g = (1 - h**2) * g
        norms.append(np.linalg.norm(g @ w))
        g = g @ u
    return norms


def test_norms_are_those_of_products_of_jacobians():
    model, data = make(task={"pooling": "last"}), batch()
    values, labels = data.inputs["values"].numpy(), data.targets["label"].tolist()
    each = [back(model, values[i, :n], labels[i]) for i, n in enumerate(LENGTHS)]
    mean = np.array([np.mean([row[k] for row in each if len(row) > k]) for k in range(9)])
    found = memory_horizon(model, [data])
    assert found.norms == pytest.approx(mean / mean.max(), rel=1e-9)
    assert found.reach == next(k for k in range(9) if mean[: k + 1].sum() >= 0.95 * mean.sum())
    assert found.scale == 1.0


def geometric(rate, steps=50, **task):
    """An Elman network that keeps a share of its state at every step, on inputs that it cannot but add up."""
    model = make(task=task, nonlinearity="relu")
    w, u, b, c = model.family.kernel.all_weights[0]
    with torch.no_grad():
        w.copy_(torch.eye(H)[:, :D].abs() + 0.1)
        u.copy_(rate * torch.eye(H))
        b.fill_(1.0)
        c.zero_()
    data = batch(lengths=(steps,) * B)
    data.inputs["values"] = data.inputs["values"].abs()
    return memory_horizon(model, [data])


def test_a_state_that_halves_is_a_memory_that_halves():
    assert geometric(0.5).norms == pytest.approx([0.5**k for k in range(50)], rel=1e-9)
    assert geometric(0.5).reach == 4  # 1 - 0.5^5 = 0.97


def test_the_longer_a_state_stays_the_farther_is_the_reach():
    found = [geometric(rate).reach for rate in (0.0, 0.2, 0.5, 0.8, 0.9, 1.0)]
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, 47)  # 47.5 of 50 are 95 %


@pytest.mark.parametrize("pooling", ["mean", "attention", "max"])
def test_pooling_that_reads_every_step_does_not_hide_the_memory(pooling):
    found = geometric(0.5, pooling=pooling).norms
    assert found[:30] == pytest.approx([0.5**k for k in range(30)], rel=1e-6)


def test_a_transformer_looks_farther_back_than_a_forgetful_network():
    far = memory_horizon(make(family="transformer", causal=True), [batch(lengths=(50,) * B)])
    assert far.reach > 20 > geometric(0.5).reach


@pytest.mark.parametrize(("task", "family", "options"), BOTH_WAYS)
def test_every_model_has_a_horizon_whatever_the_batches_and_the_padding(task, family, options):
    model = make(task, family, **options)
    found = memory_horizon(model, [batch(task)])
    steps = 6 if task == "forecast" else 9
    assert len(found.norms) == steps and max(found.norms) == 1 and all(np.isfinite(found.norms))
    assert 0 <= found.reach < steps and found.scale == (2.0 if task == "forecast" else 1.0)
    close(memory_horizon(model, [batch(task, rows=[i]) for i in (2, 0, 3, 1)]), found)
    close(memory_horizon(model, [batch(task, weights=[3.0, 3.0, 3.0, 3.0])]), found)
    small = batch(task, dtype=torch.float32, weights=[1e-25] * 4)  # whose squares are 0 in fp32
    close(memory_horizon(model.float(), [small]), found, rel=1e-3)
    model.double()
    if task != "forecast":
        for padding in (-50.0, torch.nan):
            close(memory_horizon(model, [batch(task, more=3, padding=padding)]), found)


def test_a_front_end_that_joins_steps_is_scaled():
    assert memory_horizon(make(stack=3), [batch(), batch(lengths=(2, 1))]).scale == 3.0


def test_rows_without_weight_or_gradient_are_left_out():
    model = make("label", "gru")
    found = memory_horizon(model, [batch("label", rows=[0, 2])])
    close(memory_horizon(model, [batch("label", weights=[1.0, 0.0, 1.0, 0.0])]), found)
    data = batch("label")
    data.targets["step_labels"][[1, 3]] = -1
    close(memory_horizon(model, [data]), found)
    data.inputs["values"][1, 0] = torch.inf
    close(memory_horizon(model, [data]), found)
    data.targets["step_labels"][:] = -1
    assert memory_horizon(model, [data]) is None
    assert memory_horizon(model, []) is None


def test_rows_whose_gradients_overflow_are_left_out():
    model, data = make(), batch()
    data.inputs["values"][:] = 0  # states of 0, and nothing saturates
    with torch.no_grad():
        model.get_parameter("family.kernel.weight_hh_l0").copy_(1e20 * torch.eye(H))
    found = memory_horizon(model, [data])
    assert len(found.norms) == 6 and found.norms[5] == 1  # the row of 9 steps is not there


def test_memory_is_counted_from_the_last_step_that_the_loss_reads():
    model, data, short = make("label", "lstm"), *(batch("label", lengths=(9, 9, 9, 9)) for _ in range(2))
    data.targets["step_labels"][:, 6:] = -1
    for part, name in ((short.inputs, "values"), (short.targets, "step_labels")):
        part[name] = part[name][:, :6]
    short.lengths["values"] = torch.full((4,), 6)
    assert memory_horizon(model, [data]).norms == pytest.approx(memory_horizon(model, [short]).norms, rel=1e-9)


def test_steps_that_few_rows_have_do_not_count():
    model, lengths = make(), (30, *[4] * 19)
    assert len(memory_horizon(model, [batch(lengths=lengths)]).norms) == 4  # the other 26 are of 1 row in 20
    assert len(memory_horizon(model, [batch(lengths=(30, 30, *lengths[2:]))]).norms) == 30
    assert len(memory_horizon(model, [batch()], max_steps=2).norms) == 2


def test_the_model_is_left_as_it_was():
    model = make("generate", "gru", layers=2, dropout=0.5).train()
    model.task.eval()
    model.get_parameter("task.head.bias").requires_grad_(False)
    data = batch("generate", lengths=(9, 9, 9, 9))
    data.lanes, data.reset = torch.arange(4), torch.tensor([True] * 4)
    model(data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    carried, lanes = model.recurrent_state, {name: value.clone() for name, value in model.recurrent_state.lanes.items()}
    modes, states = [m.training for m in model.modules()], torch.get_rng_state()
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = memory_horizon(model, [data, data])
            assert not torch.is_grad_enabled()
    close(memory_horizon(model, [data, data]), found)  # nothing is dropped
    assert model.recurrent_state is carried and isinstance(carried, RecurrentState)
    assert lanes and all(torch.equal(value, carried.lanes[name]) for name, value in lanes.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes and True in modes and False in modes
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), states)
    assert not model.get_parameter("task.head.bias").requires_grad
    assert not model.family._forward_hooks and not model.family._forward_pre_hooks


def test_the_model_is_left_as_it_was_also_after_an_error():
    model, carried = make().train(), RecurrentState()
    model.recurrent_state = carried
    broken = batch()
    broken.targets = {}
    with pytest.raises(KeyError):
        memory_horizon(model, [broken])
    assert model.training and model.family.training and model.recurrent_state is carried
    assert not model.family._forward_hooks and not model.family._forward_pre_hooks


def test_lanes_go_on_from_the_batch_before():
    model = make("generate", "gru")
    first, second = (batch("generate", lengths=(9, 9, 9, 9)) for _ in range(2))
    second.inputs["tokens"] = second.inputs["tokens"].flip(1)
    first.lanes = second.lanes = torch.arange(4)
    first.reset, second.reset = torch.tensor([True] * 4), torch.tensor([False] * 4)
    on = memory_horizon(model, [first, second])
    second.reset = torch.tensor([True] * 4)
    assert on.norms != pytest.approx(memory_horizon(model, [first, second]).norms, rel=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", families.names())
def test_devices_agree(family, device):
    model, data = make(family=family, dtype=torch.float32), batch(dtype=torch.float32)
    expected = memory_horizon(make(family=family), [batch()])
    close(memory_horizon(model.to(device), [data.to(torch.device(device))]), expected, rel=1e-3)
