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


MEAN, STD = np.array([0.25, 40.0]), np.array([0.5, 7.0])  # of the training numbers, in raw units


def make(family="gru", pooling="last", targets=2, known=True, dropout=0.0, **options):
    torch.manual_seed(0)
    spec = {
        "frontend": "frames",
        "channels": 3,
        "targets": targets,
        "mean": MEAN[:targets].tolist() if known else None,
        "std": STD[:targets].tolist() if known else None,
    }
    task = {"kind": "regress", "pooling": pooling, "dropout": dropout}
    return models.build(spec, {"family": family, "hidden_size": 8, **options}, task).double().eval()


def batch(*, padding=0.0, steps=7, targets=2, weights=(1, 1, 1)):
    make = torch.Generator().manual_seed(1)
    values = torch.randn(3, 7, 3, generator=make, dtype=torch.float64)
    values = torch.cat([values, torch.zeros(3, steps - 7, 3).double()], 1)
    lengths = torch.tensor(LENGTHS)
    values[torch.arange(steps) >= lengths[:, None]] = padding
    numbers = 3 + 5 * torch.randn(3, targets, generator=make, dtype=torch.float64)
    return Batch(
        {"values": values}, {"values": lengths}, {"numbers": numbers}, torch.tensor(weights).double(), torch.arange(3)
    )


def detached(sums):
    return {name: total.detach() for name, total in sums.items()}


def scores(value, numbers):
    """The expected metrics of predictions and targets (B, N) in raw units."""
    error, distance = (value - numbers), (numbers - MEAN)
    scaled = (error / STD) ** 2
    return {
        "loss": scaled.mean(),
        "mse": (error**2).mean(),
        "mae": np.abs(error).mean(),
        "r2": 1 - scaled.sum() / ((distance / STD) ** 2).sum(),
    }


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("weights", [(1, 1, 1), (1, 0, 1)])
def test_loss_and_metrics_are_those_of_the_definition(pooling, weights):
    model, data = make(pooling=pooling), batch(weights=weights)
    is_row = np.array(weights) > 0
    value = model.task.predict(model, data)["value"].detach().numpy()[is_row]
    expected = scores(value, data.targets["numbers"].numpy()[is_row])
    with torch.no_grad():
        loss, weight = model(data)
    assert float(loss) == pytest.approx(expected["loss"] * sum(weights), rel=1e-12)
    assert float(weight) == float(model.task.weight(model, data)) == sum(weights)
    assert model.task.result(detached(model.task.metrics(model, data))) == pytest.approx(expected, rel=1e-12)
    assert (model.task.primary, model.task.maximise) == ("mse", False)


def test_a_head_with_output_0_predicts_the_training_mean():
    model = make()
    with torch.no_grad():
        model.task.head.linear.weight.zero_()
        model.task.head.linear.bias.copy_(torch.tensor([0, 1]))
    value = model.task.predict(model, batch())["value"]
    np.testing.assert_allclose(value.detach().numpy(), np.tile(MEAN + STD * [0, 1], (3, 1)))


def test_before_the_data_is_known_units_are_raw():
    model, data = make(known=False), batch()
    error = (model.task.predict(model, data)["value"] - data.targets["numbers"]).detach()
    assert model(data)[0].item() == pytest.approx(error.square().mean(1).sum().item())


def test_a_constant_number_is_not_divided_by_its_deviation():
    spec = {"frontend": "frames", "channels": 3, "targets": 1, "mean": [5.0], "std": [0.0]}
    model = models.build(spec, {"family": "gru", "hidden_size": 8}, {"kind": "regress"})
    data = batch(targets=1)
    data.inputs["values"] = data.inputs["values"].float()
    assert torch.isfinite(model(data)[0])


def test_numbers_far_from_zero_keep_their_digits_in_single_precision():
    spec = {"frontend": "frames", "channels": 3, "targets": 1, "mean": [1e7], "std": [1.0]}
    model = models.build(spec, {"family": "gru", "hidden_size": 8}, {"kind": "regress"}).eval()
    data = batch(targets=1)
    data.targets["numbers"] += 1e7
    data.inputs["values"] = data.inputs["values"].float()
    mean = model.task.result(model.task.baselines(data)["mean"])
    assert mean["mse"] == pytest.approx(float((data.targets["numbers"] - 1e7).square().mean()), rel=1e-9)


def test_the_head_reads_the_pooled_steps():
    for pooling in POOLINGS:
        model, data = make(pooling=pooling), batch()
        y, _ = model.family(data.inputs["values"], data.lengths["values"])
        if pooling == "attention":
            attention = model.task.head.pooling
            energy = torch.tanh(y @ attention.project.weight.T) @ attention.score.weight.T
            rows = [(torch.softmax(energy[b, :n], 0) * y[b, :n]).sum(0) for b, n in enumerate(LENGTHS)]
        else:
            pool = {"last": lambda one: one[-1], "mean": lambda one: one.mean(0), "max": lambda one: one.amax(0)}
            rows = [pool[pooling](y[b, :n]) for b, n in enumerate(LENGTHS)]
        linear = model.task.head.linear
        expected = (torch.stack(rows) @ linear.weight.T + linear.bias) * torch.tensor(STD) + torch.tensor(MEAN)
        torch.testing.assert_close(model.task.predict(model, data)["value"], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", families.names())
def test_padding_has_no_influence_through_the_whole_model(family, pooling):
    model = make(family, pooling)
    results = []
    for data in (batch(), batch(padding=float("nan")), batch(padding=1e9, steps=12)):
        model.zero_grad()
        loss, _ = model(data)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((model.task.predict(model, data)["value"].detach(), gradients))
    for value, gradients in results[1:]:
        torch.testing.assert_close(value, results[0][0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradients, results[0][1], rtol=1e-9, atol=1e-12)
    for b, n in enumerate(LENGTHS):
        alone = Batch(
            {"values": batch().inputs["values"][b : b + 1, :n]},
            {"values": torch.tensor([n])},
            {},
            torch.ones(1),
            torch.arange(1),
        )
        value = model.task.predict(model, alone)["value"]
        torch.testing.assert_close(value, results[0][0][b : b + 1], rtol=1e-10, atol=1e-12)


def test_filler_rows_change_neither_loss_nor_gradient_nor_metrics():
    model = make()
    data, filled = batch(), batch()
    filled.inputs["values"] = torch.cat([filled.inputs["values"], 100 * torch.randn(2, 7, 3).double()])
    filled.lengths["values"] = torch.tensor([*LENGTHS, 7, 2])
    filled.targets = {k: torch.cat([v, v[:2] + 50]) for k, v in filled.targets.items()}
    filled.weights = torch.tensor([1.0, 1, 1, 0, 0]).double()
    results = []
    for one in (data, filled):
        model.zero_grad()
        loss, weight = model(one)
        loss.backward()
        sums = {**model.task.metrics(model, one), **model.task.baselines(one)["mean"]}
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append([loss.detach(), weight, gradients, *(x.detach() for pair in sums.values() for x in pair)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-14)


def test_sums_of_parts_add_up_to_those_of_the_whole():
    model, data = make(), batch()

    def rows(chosen):
        return Batch(
            {"values": data.inputs["values"][chosen]},
            {"values": data.lengths["values"][chosen]},
            {"numbers": data.targets["numbers"][chosen]},
            data.weights[chosen],
            data.row_ids[chosen],
        )

    whole, one, two = (detached(model.task.metrics(model, d)) for d in (data, rows(slice(0, 1)), rows(slice(1, 3))))
    torch.testing.assert_close({name: one[name] + two[name] for name in whole}, whole, rtol=1e-12, atol=0)


def test_the_training_mean_is_the_baseline_and_explains_nothing():
    model, data = make(), batch()
    baselines = model.task.baselines(data)
    assert list(baselines) == ["mean"]
    numbers = data.targets["numbers"].numpy()
    assert model.task.result(baselines["mean"]) == pytest.approx(scores(np.broadcast_to(MEAN, numbers.shape), numbers))
    assert model.task.result(baselines["mean"])["r2"] == 0
    assert model.task.fitted_baselines() == []


def test_dropout_acts_in_training_only():
    model, data = make(dropout=0.5), batch()
    assert torch.equal(model(data)[0], model(data)[0])
    model.train()
    assert not torch.equal(model(data)[0], model(data)[0])


def test_a_target_may_be_a_single_number_for_each_row():
    model, data = make(targets=1), batch(targets=1)
    flat = batch(targets=1)
    flat.targets["numbers"] = flat.targets["numbers"][:, 0]
    assert model(flat)[0] == model(data)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "sum"}, r"task\.pooling='sum' is not known; use one of mean, max, last, attention"),
        ({"dropout": 1.0}, r"task\.dropout=1\.0 is no probability below 1"),
    ],
)
def test_invalid_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
