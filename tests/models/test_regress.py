"""The regress task against plain numpy, and that padding and filler rows have no influence."""

import numpy as np
import pytest
import torch

import models
from models import families
from models.batch import Batch

torch.set_num_threads(1)

LENGTHS = [7, 1, 4]
POOLINGS = ["last", "mean", "max", "attention"]


def make(family="gru", pooling="last", targets=2, **options):
    torch.manual_seed(0)
    spec = {"frontend": "frames", "channels": 3, "targets": targets}
    task = {"kind": "regress", "pooling": pooling}
    return models.build(spec, {"family": family, "hidden_size": 8, **options}, task).double().eval()


def batch(*, padding=0.0, steps=7, targets=2, weights=(1, 1, 1)):
    make = torch.Generator().manual_seed(1)
    values = torch.randn(3, 7, 3, generator=make, dtype=torch.float64)
    values = torch.cat([values, torch.zeros(3, steps - 7, 3).double()], 1)
    lengths = torch.tensor(LENGTHS)
    values[torch.arange(steps) >= lengths[:, None]] = padding
    target = torch.randn(3, targets, generator=make, dtype=torch.float64)
    means = torch.full((3,), 0.25).double()
    return Batch({"values": values}, {"values": lengths}, {"target": target, "mean": means},
                 torch.tensor(weights).double(), torch.arange(3))


def quotient(pair):
    return float(pair[0].detach() / pair[1])


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 1)])
def test_loss_and_metrics_are_those_of_the_definition(pooling, weights):
    model, data = make(pooling=pooling), batch(weights=weights)
    out = model.task.predict(model, data)["value"].detach().numpy()
    error = out - data.targets["target"].numpy()                            # (B, K)
    kept = error[np.array(weights) > 0]
    with torch.no_grad():
        loss, weight = model(data)
    np.testing.assert_allclose(float(loss), (kept ** 2).mean(1).sum(), rtol=1e-12)
    assert float(weight) == float(model.task.weight(data)) == sum(weights)
    metrics = model.task.metrics(model, data)
    assert set(metrics) == {"loss", "mse", "mae"}
    np.testing.assert_allclose(quotient(metrics["mse"]), (kept ** 2).mean(), rtol=1e-12)
    np.testing.assert_allclose(quotient(metrics["loss"]), (kept ** 2).mean(), rtol=1e-12)
    np.testing.assert_allclose(quotient(metrics["mae"]), np.abs(kept).mean(), rtol=1e-12)
    assert model.task.primary == "mse"


def test_the_head_reads_what_the_pooling_says():
    for pooling in POOLINGS:
        model, data = make(pooling=pooling), batch()
        y, _ = model.family(data.inputs["values"], data.lengths["values"])
        if pooling == "attention":
            scores = torch.tanh(y @ model.task.pooling.project.weight.T) @ model.task.pooling.score.weight.T
            rows = [(torch.softmax(scores[b, :n], 0) * y[b, :n]).sum(0) for b, n in enumerate(LENGTHS)]
        else:
            pool = {"last": lambda one: one[-1], "mean": lambda one: one.mean(0), "max": lambda one: one.amax(0)}
            rows = [pool[pooling](y[b, :n]) for b, n in enumerate(LENGTHS)]
        expected = torch.stack(rows) @ model.task.head.weight.T + model.task.head.bias
        torch.testing.assert_close(model.task.predict(model, data)["value"], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", families.names())
def test_padding_has_no_influence_through_the_whole_model(family, pooling):
    model = make(family, pooling)
    told = []
    for data in (batch(), batch(padding=float("nan")), batch(padding=1e9, steps=12)):
        model.zero_grad()
        loss, _ = model(data)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        told.append((model.task.predict(model, data)["value"].detach(), gradients))
    for value, gradients in told[1:]:
        torch.testing.assert_close(value, told[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients, told[0][1], rtol=1e-9, atol=1e-12)
    for b, n in enumerate(LENGTHS):
        alone = Batch({"values": batch().inputs["values"][b:b + 1, :n]}, {"values": torch.tensor([n])}, {},
                      torch.ones(1), torch.arange(1))
        value = model.task.predict(model, alone)["value"]
        torch.testing.assert_close(value, told[0][0][b:b + 1], rtol=1e-10, atol=1e-12)


def test_filler_rows_change_neither_loss_nor_gradient_nor_metrics():
    model = make()
    data, filled = batch(), batch()
    filled.inputs["values"] = torch.cat([filled.inputs["values"], 100 * torch.randn(2, 7, 3).double()])
    filled.lengths["values"] = torch.tensor([*LENGTHS, 7, 2])
    filled.targets = {k: torch.cat([v, v[:2] + 50]) for k, v in filled.targets.items()}
    filled.weights = torch.tensor([1.0, 1, 1, 0, 0]).double()
    found = []
    for one in (data, filled):
        model.zero_grad()
        loss, weight = model(one)
        loss.backward()
        sums = {**model.task.metrics(model, one), **model.task.baselines(one)["mean"]}
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        found.append([loss.detach(), weight, gradients, *(x.detach() for pair in sums.values() for x in pair)])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-14)


def test_the_mean_is_the_baseline():
    model, data = make(), batch()
    error = 0.25 - data.targets["target"].numpy()
    found = model.task.baselines(data)
    assert list(found) == ["mean"]
    np.testing.assert_allclose(quotient(found["mean"]["mse"]), (error ** 2).mean(), rtol=1e-12)
    assert model.task.fitted_baselines() == []


def test_a_target_may_be_one_number_a_row():
    model, data = make(targets=1), batch(targets=1)
    flat = batch(targets=1)
    flat.targets["target"] = flat.targets["target"][:, 0]
    assert model(flat)[0] == model(data)[0]


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ValueError, match=r"task\.pooling='sum' is not known; use one of last, mean, max, attention"):
        make(pooling="sum")
