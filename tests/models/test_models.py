"""Every family with every front end and every task that go together: built, trained, measured."""

import pytest
import torch

import models
from models import families
from models.batch import Batch

torch.set_num_threads(1)

B, K, N = 4, 3, 2
FRONTENDS = {
    "tokens": ({"vocabulary": 20}, {"embedding_size": 6, "embedding_dropout": 0.1, "token_dropout": 0.2}),
    "frames": ({"channels": 5}, {"time_masks": 1, "frequency_masks": 1}),
    "logmel": ({"rate": 8000}, {"mels": 20, "time_masks": 1, "frequency_masks": 1, "gain": 3.0}),
}
TASKS = {"one": "classify", "several": "classify", "steps": "label", "numbers": "regress"}
PLACES = [(front, task) for front in FRONTENDS for task in TASKS]


def inputs(frontend, lengths, dtype=torch.float32):
    """(inputs, lengths, steps that the family sees without stacking) of random rows."""
    make, n = torch.Generator().manual_seed(0), max(lengths)
    sizes = torch.tensor(lengths)
    if frontend == "tokens":
        return {"tokens": torch.randint(4, 20, (B, n), dtype=torch.int32, generator=make)}, {"tokens": sizes}, n
    if frontend == "frames":
        return {"values": torch.randn(B, n, 5, generator=make).to(dtype)}, {"values": sizes}, n
    samples = torch.randint(-9000, 9000, (B, 100 * n), dtype=torch.int16, generator=make)
    return {"samples": samples}, {"samples": 100 * sizes}, 1 + (100 * n - 200) // 80


def batch(frontend, *, lengths=(30, 7, 21, 1), dtype=torch.float32):
    fed, sizes, steps = inputs(frontend, lengths, dtype)
    step_labels = torch.full((B, steps), -1)
    step_labels[:, 0] = torch.tensor([0, 1, 2, 0])
    targets = {
        "label": torch.tensor([0, 2, 1, 0]),
        "labels": torch.eye(K)[:, [0, 1, 2]][torch.tensor([0, 1, 2, 0])],
        "step_labels": step_labels,
        "numbers": torch.randn(B, N),
    }
    return Batch(
        fed, sizes, targets, torch.ones(B, dtype=dtype), torch.arange(B), keys=torch.tensor([1 << 40, -5, 7, 99])
    )


def make(family, frontend, task, **options):
    torch.manual_seed(0)
    spec, chosen = FRONTENDS[frontend]
    spec = spec | {
        "frontend": frontend,
        "classes": K,
        "several": task == "several",
        "counts": [5, 3, 9],
        "rows": 12,
        "targets": N,
        "mean": [1.0, 2.0],
        "std": [3.0, 1.0],
    }
    return models.build(spec, {"family": family, "hidden_size": 8, **chosen, **options}, {"kind": TASKS[task]})


@pytest.mark.parametrize(("frontend", "task"), PLACES)
@pytest.mark.parametrize("family", families.names())
def test_every_model_trains_and_is_measured(family, frontend, task):
    model, data = make(family, frontend, task), batch(frontend)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss, weight = model(data)
        (loss / weight).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss / weight).item())
    assert min(losses[-3:]) < 0.9 * losses[0]
    model.eval()
    with torch.inference_mode():
        sums = model.task.metrics(model, data)
        found = model.task.result(sums)
        assert model.task.primary in found and "loss" in found
        for baseline in model.task.baselines(data).values():
            assert model.task.primary in model.task.result(baseline)
        model.task.artifacts(sums)
        assert all(torch.isfinite(x).all() for x in model.task.predict(model, data).values())


@pytest.mark.parametrize(("frontend", "task"), PLACES)
def test_models_are_built_without_memory_before_the_data_is_known(frontend, task):
    spec, chosen = FRONTENDS[frontend]
    spec = spec | {
        "frontend": frontend,
        "classes": K,
        "several": task == "several",
        "counts": None,
        "rows": None,
        "targets": N,
        "mean": None,
        "std": None,
    }
    with torch.device("meta"):
        models.build(spec, {"family": "gru", **chosen}, {"kind": TASKS[task]})


@pytest.mark.parametrize(("frontend", "task"), PLACES)
def test_a_model_in_double_precision_computes_in_double_precision(frontend, task):
    model, data = make("gru", frontend, task).double().eval(), batch(frontend, dtype=torch.float64)
    loss, _ = model(data)
    loss.backward()
    assert loss.dtype == torch.float64
    assert model.frontend(data)[0].dtype == torch.float64
    assert all(p.grad.dtype == torch.float64 for p in model.parameters())
    single = make("gru", frontend, task).eval()(batch(frontend))[0]
    assert loss.item() == pytest.approx(single.item(), rel=1e-3)


@pytest.mark.parametrize("task", ["one", "several", "numbers"])
@pytest.mark.parametrize("family", families.names())
def test_steps_of_several_frames_reach_the_family_stacked(family, task):
    for frontend, width in (("frames", 5), ("logmel", 20)):
        model, data = make(family, frontend, task, stack=3).eval(), batch(frontend)
        assert model.frontend.size == 3 * width
        plain = make(family, frontend, task).eval().frontend(data)
        y = model.encode(data)
        assert y.lengths.tolist() == [-(-n // 3) for n in plain[1].tolist()]
        assert torch.isfinite(model(data)[0])


@pytest.mark.parametrize("family", ["gru", "lstm", "rnn"])
@pytest.mark.parametrize("task", ["classify", "regress", "forecast"])
def test_what_reads_the_last_step_reads_the_first_one_of_the_backward_direction(task, family):
    torch.manual_seed(0)
    spec = {
        "channels": N,
        "targets": N,
        "classes": K,
        "several": False,
        "counts": None,
        "rows": None,
        "mean": None,
        "std": None,
        "known": 0,
        "observed": False,
        "season": 1,
        "lookback": 6,
        "horizon": 2,
    }
    if task == "forecast":
        front, options, own = (
            "patches",
            {"patch": 1, "normalise": "none", "channels": "joint"},
            {"lookback": 6, "horizon": 2},
        )
    else:
        front, options, own = "frames", {}, {"pooling": "last"}
    model = models.build(
        spec | {"frontend": front},
        {"family": family, "hidden_size": 8, "bidirectional": True, **options},
        {"kind": task, **own},
    )
    head = model.task.head if task == "forecast" else model.task.head.linear
    with torch.no_grad():
        head.weight[:, :8] = 0  # nothing of the forward direction
    lengths = torch.tensor([6, 6] if task == "forecast" else [6, 3])
    values = torch.randn(2, 6, N, requires_grad=True)
    data = Batch(
        {"values": values},
        {"values": lengths},
        {"label": torch.tensor([0, 1]), "numbers": torch.randn(2, N), "target": torch.randn(2, 2, N)},
        torch.ones(2),
        torch.arange(2),
    )
    model(data)[0].backward()
    assert ((values.grad != 0).any(-1) == (torch.arange(6) < lengths[:, None])).all()


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_keys_stay_on_the_cpu_and_nothing_is_drawn_without_them(frontend):
    data = batch(frontend)
    moved = data.to(torch.device("meta"))
    assert moved.keys is data.keys
    assert moved.inputs.popitem()[1].device.type == "meta"
    options = {"embedding_dropout": 0.0} if frontend == "tokens" else {}
    model = make("gru", frontend, "one", **options)
    with_keys = model(data)[0]
    data.keys = None
    assert model(data)[0] == model.eval()(data)[0] != with_keys
