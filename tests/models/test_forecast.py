"""The forecast task against plain numpy in float64, row by row. Shapes: B rows, L lookback, Z horizon, N targets."""

import json

import numpy as np
import pytest
import torch

import models
from models import families
from models.batch import Batch
from models.tasks.forecast import Linear, pinball

torch.set_num_threads(1)

B, L, Z, N, P = 5, 12, 4, 2, 4
LOSSES = ["mse", "mae", "huber", "quantile"]
LEVELS = [0.9, 0.5, 0.1]  # any order


def spec(**changes):
    return {
        "frontend": "patches",
        "targets": N,
        "channels": N,
        "known": 0,
        "observed": False,
        "season": 3,
        "lookback": L,
        "horizon": Z,
        **changes,
    }


def make(row_spec=None, family="gru", seed=0, channels="independent", dtype=torch.float64, **task):
    torch.manual_seed(seed)
    chosen = {"kind": "forecast", "lookback": L, "horizon": Z, **task}
    model = models.build(
        row_spec or spec(), {"family": family, "hidden_size": 8, "patch": P, "channels": channels}, chosen
    )
    return model.to(dtype).eval()


def batch(row_spec=None, *, rows=B, seed=0, weights=None, dtype=torch.float64):
    row_spec = row_spec or spec()
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(rows, L, row_spec["channels"]))
    targets = {
        "target": 2 * rng.normal(size=(rows, Z, N)),
        "mean": rng.normal(size=(rows, N)),
        "std": rng.uniform(0.5, 3, (rows, N)),
        "mase": rng.uniform(0.5, 2, (rows, N)),
    }
    targets["mase"][0, 1] = 0  # a target without a unit
    inputs = {"values": values}
    if row_spec["observed"]:
        values[..., -N:] = rng.random((rows, L, N)) < 0.6
        targets["observed"] = (rng.random((rows, Z, N)) < 0.6).astype(float)
    if row_spec["known"]:
        inputs["known"] = rng.normal(size=(rows, Z, row_spec["known"]))

    def tensors(arrays):
        return {k: torch.from_numpy(v).to(dtype) for k, v in arrays.items()}

    return Batch(
        tensors(inputs),
        {"values": torch.full((rows,), L)},
        tensors(targets),
        torch.ones(rows, dtype=dtype) if weights is None else torch.tensor(weights).to(dtype),
        torch.arange(rows),
    )


def quotients(sums):
    return {name: float(total) / float(count) for name, (total, count) in sums.items()}


def reference(out, data, loss="mse"):
    """(loss sum, loss weight, metrics) by loops over rows with weight and observed targets; out (B, Z, N, Q)."""
    t = {k: v.double().numpy() for k, v in data.targets.items()}
    weights, levels = data.weights.double().numpy(), sorted(LEVELS) if loss == "quantile" else [0.5]
    sums = {k: [] for k in ("mse", "mae", "smape", "mase", "quantile_loss", "coverage")}
    total = weight = 0.0
    for b in range(len(weights)):
        each, share = [], []
        for z in range(Z):
            for n in range(N):
                y, f, q = t["target"][b, z, n], out[b, z, n, len(levels) // 2], out[b, z, n]
                e = y - f
                pin = np.mean([max(level * (y - x), (level - 1) * (y - x)) for level, x in zip(levels, q, strict=True)])
                is_observed = "observed" not in t or t["observed"][b, z, n] > 0
                one = {
                    "mse": e**2,
                    "mae": abs(e),
                    "quantile": pin,
                    "huber": 0.5 * e**2 if abs(e) <= 1 else abs(e) - 0.5,
                }[loss]
                each.append(one if is_observed else 0.0)
                share.append(float(is_observed))
                if not (is_observed and weights[b]):
                    continue
                raw, raw_target = (v * t["std"][b, n] + t["mean"][b, n] for v in (f, y))
                sums["mse"].append(e**2)
                sums["mae"].append(abs(e))
                sums["smape"].append(200 * abs(raw - raw_target) / (abs(raw) + abs(raw_target)))
                if t["mase"][b, n]:
                    sums["mase"].append(abs(raw - raw_target) / t["mase"][b, n])
                if loss == "quantile":
                    sums["quantile_loss"].append(pin)
                    sums["coverage"].append(q[0] <= y <= q[-1])
        total += weights[b] * np.mean(each)
        weight += weights[b] * np.mean(share)
    metrics = {name: (np.sum(values), len(values)) for name, values in sums.items() if values}
    return total, weight, {**metrics, "loss": (total, weight)}


# --- loss and metrics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("observed", [False, True], ids=["all observed", "some observed"])
@pytest.mark.parametrize("weights", [None, [1, 0, 1, 1, 0]], ids=["all rows", "fillers"])
def test_loss_and_metrics_are_those_of_the_definition(loss, observed, weights):
    row_spec = spec(observed=observed, channels=2 * N if observed else N)
    model, data = make(row_spec, loss=loss, quantiles=LEVELS), batch(row_spec, weights=weights)
    with torch.no_grad():
        out = model.task.predict(model, data)
        total, weight = model(data)
        metrics = model.task.metrics(model, data)
    expected, share, sums = reference(out["quantiles"].numpy(), data, loss)
    np.testing.assert_allclose(float(total), expected, rtol=1e-6)  # levels are float32
    np.testing.assert_allclose([float(weight), float(model.task.weight(model, data))], share, rtol=1e-12)
    assert set(metrics) == set(sums)
    for name, (value, count) in sums.items():
        np.testing.assert_allclose(float(metrics[name][0]), value, rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(float(metrics[name][1]), count, rtol=1e-12, err_msg=name)
    assert model.task.primary in metrics
    assert model.task.primary == ("mae" if loss in ("mae", "quantile") else "mse")


def test_metrics_of_a_series_far_from_zero_keep_their_digits_in_single_precision():
    data = batch(dtype=torch.float32)
    data.targets["mean"] += 1e7
    metrics = quotients(make(dtype=torch.float32).task.baselines(data)["naive"])
    naive = np.repeat(data.inputs["values"][:, -1:].double().numpy(), Z, 1)
    assert metrics == pytest.approx(metrics_of(naive, data), rel=1e-4)


def test_metrics_of_parts_add_up_to_those_of_the_whole():
    model, data = make(loss="quantile"), batch(rows=6)

    def rows(chosen):
        take = {k: v[chosen] for k, v in data.targets.items()}
        return Batch(
            {"values": data.inputs["values"][chosen]},
            {"values": data.lengths["values"][chosen]},
            take,
            data.weights[chosen],
            data.row_ids[chosen],
        )

    with torch.no_grad():
        whole = model.task.metrics(model, data)
        one, two = (model.task.metrics(model, rows(part)) for part in (slice(0, 1), slice(1, 6)))
    for name, pair in whole.items():
        torch.testing.assert_close([a + b for a, b in zip(one[name], two[name], strict=True)], list(pair))


@pytest.mark.parametrize("loss", LOSSES)
def test_filler_rows_change_neither_loss_nor_gradient_nor_any_metric(loss):
    model, data, filled = make(loss=loss), batch(rows=3), batch(rows=5, seed=7, weights=[1, 1, 1, 0, 0])
    filled.inputs["values"][:3] = data.inputs["values"]
    for name, value in data.targets.items():
        filled.targets[name][:3] = value
    results = []
    for one in (data, filled):
        model.zero_grad()
        total, weight = model(one)
        total.backward()
        linear = Linear(N)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        with torch.no_grad():
            sums = [model.task.metrics(model, one), *model.task.baselines(one).values()]
        results.append(
            [
                total.detach(),
                weight,
                gradient,
                linear.moments(one),
                *(x for each in sums for pair in each.values() for x in pair),
            ]
        )
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


def test_the_pinball_loss_of_koenker_and_bassett():
    levels = torch.tensor([0.1, 0.5, 0.9])
    low, high = torch.zeros(3), torch.full((3,), 2.0)
    torch.testing.assert_close(pinball(low, high, levels), torch.tensor([0.2, 1.0, 1.8]))  # forecast too low
    torch.testing.assert_close(pinball(high, low, levels), torch.tensor([1.8, 1.0, 0.2]))


def test_minimising_the_pinball_loss_finds_the_quantile():
    target = torch.arange(1.0, 101.0)
    candidates = torch.arange(0.5, 101.0)
    losses = pinball(candidates[:, None], target, torch.tensor(0.9)).sum(1)
    assert candidates[losses.argmin()] == 90.5


# --- outputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", ["independent", "joint"])
@pytest.mark.parametrize("head", ["last", "flatten"])
@pytest.mark.parametrize("family", families.names())
def test_the_head_is_one_linear_map_of_the_steps_it_reads(channels, head, family):
    row_spec = spec(channels=4, known=2)  # targets, then two of the calendar
    model, data = make(row_spec, family=family, channels=channels, head=head), batch(row_spec)
    x, lengths, context = model.frontend(data)
    y = model.family(x, lengths)[0]
    read = y.flatten(1) if head == "flatten" else y[:, -1]
    out = (read @ model.task.head.weight.T + model.task.head.bias).detach().numpy()
    effect = (data.inputs["known"] @ model.task.known.weight.T + model.task.known.bias).detach().numpy()  # (B, Z, E)
    got = model.task.predict(model, data)["forecast"].detach().numpy()
    assert got.shape == (B, Z, N)
    for b in range(B):
        for n in range(N):
            if channels == "independent":  # one sequence a target, all with the same effect
                one, known = out[b * N + n], effect[b, :, 0]
            else:
                one, known = out[b].reshape(Z, N)[:, n], effect[b, :, n]
            shift, spread = context["shift"][b, n].item(), context["spread"][b, n].item()
            np.testing.assert_allclose(got[b, :, n], (one + known) * spread + shift, rtol=1e-10)


@pytest.mark.parametrize("channels", ["independent", "joint"])
def test_quantiles_never_cross_and_the_forecast_is_the_middle_one(channels):
    model, data = make(loss="quantile", quantiles=[0.5, 0.95, 0.05, 0.3], channels=channels), batch()
    with torch.no_grad():
        model.task.head.weight.mul_(30)  # so that the outputs of the head do cross
        encoded = model.encode(data)
        unsorted = model.task.head(encoded.y[:, -1]).reshape(-1, 4)
        out = model.task.predict(model, data)
    assert (unsorted.diff(dim=1) < 0).any()
    assert (out["quantiles"].diff(dim=-1) >= 0).all()
    assert model.task.levels.tolist() == pytest.approx([0.05, 0.3, 0.5, 0.95])
    assert torch.equal(out["forecast"], out["quantiles"][..., 2])


def test_independent_channels_do_not_see_each_other_and_joint_ones_do():
    for channels, expected in (("independent", True), ("joint", False)):
        model, data = make(channels=channels), batch()
        before = model.task.predict(model, data)["forecast"]
        data.inputs["values"][..., 1] = torch.randn(B, L).double()
        after = model.task.predict(model, data)["forecast"]
        assert torch.equal(before[..., 0], after[..., 0]) is expected
        assert not torch.equal(before[..., 1], after[..., 1])


def test_a_forecast_does_not_depend_on_the_other_rows():
    for family in families.names():
        model, data = make(family=family), batch()
        whole = model.task.predict(model, data)["forecast"]
        alone = Batch(
            {"values": data.inputs["values"][2:3]}, {"values": torch.tensor([L])}, {}, torch.ones(1), torch.arange(1)
        )
        torch.testing.assert_close(model.task.predict(model, alone)["forecast"], whole[2:3], rtol=1e-10, atol=1e-12)


def test_with_autocast_forecast_and_loss_are_in_full_precision():
    model, data = make(dtype=torch.float32), batch(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert model.task.head(model.encode(data).y).dtype == torch.bfloat16
        assert model.task.predict(model, data)["forecast"].dtype == torch.float32
        assert model(data)[0].dtype == torch.float32


def test_dropout_acts_in_training_only():
    model, data = make(dropout=0.5), batch()
    assert torch.equal(model.task.outputs(model, data), model.task.outputs(model, data))
    model.train()
    assert not torch.equal(model.task.outputs(model, data), model.task.outputs(model, data))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"loss": "rmse"}, r"task\.loss='rmse' is not known; use one of mse, mae, huber, quantile"),
        ({"head": "first"}, r"task\.head='first' is not known; use one of last, flatten"),
        ({"dropout": 1.0}, r"task\.dropout=1\.0 is no probability below 1"),
        ({"loss": "quantile", "quantiles": [0.1, 0.9]}, r"task\.quantiles=\[0\.1, 0\.9\] must .* hold 0\.5"),
        ({"loss": "quantile", "quantiles": [0.5, 1.0]}, r"task\.quantiles=\[0\.5, 1\.0\] must lie between 0 and 1"),
        ({"horizon": 0}, r"task\.horizon=0 is too small; use at least 1"),
    ],
)
def test_invalid_options_are_refused(task, message):
    with pytest.raises(ValueError, match=message):
        make(**task)


# --- baselines ---------------------------------------------------------------------------------------------------


def metrics_of(forecast, data):
    """The expected metrics of a point forecast (B, Z, N)."""
    return {k: v / c for k, (v, c) in reference(forecast[..., None], data)[2].items() if k != "loss"}


def test_naive_repeats_the_last_value_and_seasonal_naive_the_last_season():
    data, model = batch(), make()
    history = data.inputs["values"].numpy()
    baselines = model.task.baselines(data)
    assert list(baselines) == ["naive", "seasonal_naive"]
    naive = np.repeat(history[:, -1:], Z, 1)
    seasonal = np.stack([history[:, L - 3 + z % 3] for z in range(Z)], 1)  # season 3, horizon 4
    assert quotients(baselines["naive"]) == pytest.approx(metrics_of(naive, data), rel=1e-6)
    assert quotients(baselines["seasonal_naive"]) == pytest.approx(metrics_of(seasonal, data), rel=1e-6)


def test_a_seasonal_baseline_needs_a_season_in_the_lookback():
    for season, expected in ((1, False), (2, True), (L, True), (L + 1, False)):
        assert ("seasonal_naive" in make(spec(season=season)).task.baselines(batch())) is expected


def test_baselines_skip_steps_that_were_not_observed():
    row_spec = spec(observed=True, channels=2 * N)
    data, model = batch(row_spec), make(row_spec)
    history, observed = data.inputs["values"][..., :N].numpy(), data.inputs["values"][..., N:].numpy()
    last = np.array([[history[b, np.flatnonzero(observed[b, :, n])[-1], n] for n in range(N)] for b in range(B)])
    filled = np.where(observed[:, -3:] > 0, history[:, -3:], last[:, None])
    baselines = model.task.baselines(data)
    assert quotients(baselines["naive"]) == pytest.approx(metrics_of(np.repeat(last[:, None], Z, 1), data), rel=1e-6)
    assert quotients(baselines["seasonal_naive"]) == pytest.approx(
        metrics_of(np.stack([filled[:, z % 3] for z in range(Z)], 1), data), rel=1e-6
    )
    assert model.task.fitted_baselines() == []  # least squares would read a gap as a value


def test_the_linear_baseline_is_least_squares_on_all_rows_of_all_targets():
    row_spec, rng = spec(), np.random.default_rng(0)
    mix = rng.normal(size=(L, Z)) / L
    parts = [batch(row_spec, rows=200, seed=s) for s in range(3)]
    for part in parts:  # a linear relation and noise
        history = part.inputs["values"].numpy()
        target = np.einsum("bln,lz->bzn", history, mix) + 0.1 * rng.normal(size=(200, Z, N))
        part.targets["target"] = torch.from_numpy(target)
    parts[0].weights[50:] = 0  # fillers are not fitted
    [linear] = make().task.fitted_baselines()
    linear.fit(sum(linear.moments(part) for part in parts))

    def split(part, rows):
        history, target = part.inputs["values"].numpy()[:rows], part.targets["target"].numpy()[:rows]
        last = history[:, -1]
        x = (history - last[:, None]).transpose(0, 2, 1).reshape(-1, L)
        return np.c_[x, np.ones(len(x))], (target - last[:, None]).transpose(0, 2, 1).reshape(-1, Z), last

    pairs = [split(part, rows)[:2] for part, rows in zip(parts, (50, 200, 200), strict=True)]
    x, y = np.concatenate([x for x, _ in pairs]), np.concatenate([y for _, y in pairs])
    solution = np.linalg.lstsq(x, y, rcond=None)[0]
    data = batch(row_spec, rows=20, seed=9)
    inputs, _, last = split(data, 20)
    expected = (inputs @ solution).reshape(20, N, Z).transpose(0, 2, 1) + last[:, None]
    assert quotients(linear.metrics(data)) == pytest.approx(metrics_of(expected, data), rel=1e-4)


def test_the_linear_baseline_fits_constant_data():
    data = batch()
    data.inputs["values"][:] = 1.0
    data.targets["target"][:] = 1.0
    linear = Linear(N)
    linear.fit(linear.moments(data))
    assert quotients(linear.metrics(data))["mse"] == pytest.approx(0, abs=1e-12)


# --- formatting and examples -------------------------------------------------------------------------------------


def single_rows():
    """Two batches of one row, of series 7 and 8."""
    whole = batch(rows=2, dtype=torch.float32)
    return [
        Batch(
            {name: x[i : i + 1] for name, x in whole.inputs.items()},
            {name: x[i : i + 1] for name, x in whole.lengths.items()},
            {**{name: x[i : i + 1] for name, x in whole.targets.items()}, "series": torch.tensor([7 + i])},
            whole.weights[i : i + 1],
            whole.row_ids[i : i + 1],
        )
        for i in range(2)
    ]


def test_formatted_forecasts_are_in_raw_units_with_an_entry_for_each_step():
    model, data = make(loss="quantile", quantiles=LEVELS, dtype=torch.float32), batch(rows=2, dtype=torch.float32)
    mean, std = np.array([[1.0, 20.0], [300.0, 4.0]]), np.array([[2.0, 3.0], [0.5, 1.0]])
    context = {"times": [list("abcd"), list("efgh")], "mean": list(mean), "std": list(std)}
    with torch.inference_mode():
        out = model.task.predict(model, data)
        columns = model.task.format_predictions(out, ["x", "y"], context)
    assert list(columns) == ["time", "x", "x_q0.1", "x_q0.9", "y", "y_q0.1", "y_q0.9"]
    assert columns["time"] == list("abcdefgh")
    for n, name in enumerate(["x", "y"]):
        for q, column in enumerate([f"{name}_q0.1", name, f"{name}_q0.9"]):
            scaled = out["quantiles"][:, :, n, q].double().numpy()
            np.testing.assert_array_equal(columns[column], (scaled * std[:, [n]] + mean[:, [n]]).ravel())


@pytest.mark.parametrize("loss", ["mse", "quantile"])
def test_examples_are_in_raw_units_and_plain_values(loss):
    model, rows = make(loss=loss, quantiles=[0.5, 0.9, 0.05], dtype=torch.float32), single_rows()
    with torch.inference_mode():
        [artifact] = model.task.examples(model, iter(rows))
    assert json.loads(json.dumps(artifact.arrays)) == artifact.arrays
    assert artifact.kind == "forecast" and artifact.arrays["series"] == [7, 8]
    assert ("low" in artifact.arrays) == (loss == "quantile")
    for i, row in enumerate(rows):
        std, mean = (row.targets[name][0, 0].item() for name in ("std", "mean"))
        with torch.inference_mode():
            out = model.task.predict(model, row)["quantiles"][0, :, 0].double().numpy()
        history, truth = row.inputs["values"][0, :, 0].numpy(), row.targets["target"][0, :, 0].numpy()
        expected = {"history": history[-3 * Z :], "truth": truth, "forecast": out[:, out.shape[1] // 2]}
        if loss == "quantile":
            expected |= {"low": out[:, 0], "high": out[:, -1]}
            assert artifact.arrays["probability"][i] == pytest.approx(0.85)
        for name, values in expected.items():
            np.testing.assert_allclose(artifact.arrays[name][i], values * std + mean, rtol=1e-4, atol=1e-5)


def test_the_forecast_that_is_drawn_is_the_median_also_if_it_is_not_the_middle_quantile():
    model = make(loss="quantile", quantiles=[0.5, 0.9], dtype=torch.float32)
    with torch.inference_mode():
        [artifact] = model.task.examples(model, single_rows())
    assert artifact.arrays["forecast"] == artifact.arrays["low"] != artifact.arrays["high"]
