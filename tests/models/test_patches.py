"""Patches: what goes where, and that a normalisation is undone exactly. Shapes: B rows, L lookback, N targets."""

import numpy as np
import pytest
import torch

import models
from models.batch import Batch
from models.frontends import patches

torch.set_num_threads(1)

B, L, P = 3, 12, 4  # rows, lookback, patch


def spec(*, targets=2, others=0, known=0, observed=False, horizon=5):
    """Channels as they are stored: targets, others, known (calendar), and whether each target was observed."""
    channels = targets + others + known + (targets if observed else 0)
    return {
        "frontend": "patches",
        "targets": targets,
        "channels": channels,
        "known": known,
        "observed": observed,
        "season": 1,
        "lookback": L,
        "horizon": horizon,
    }


def batch(row_spec, seed=0):
    """Random rows in float64; an observed mask of random 0 and 1 where the spec has one."""
    make = torch.Generator().manual_seed(seed)
    n, z = row_spec["targets"], row_spec["horizon"]
    values = torch.randn(B, L, row_spec["channels"], generator=make, dtype=torch.float64) * 3 + 5
    targets = {"target": torch.randn(B, z, n, generator=make, dtype=torch.float64)}
    if row_spec["observed"]:
        values[..., -n:] = (torch.rand(B, L, n, generator=make) < 0.6).double()
        targets["observed"] = (torch.rand(B, z, n, generator=make) < 0.6).double()
    inputs = {"values": values}
    if row_spec["known"]:
        inputs["known"] = torch.randn(B, z, row_spec["known"], generator=make, dtype=torch.float64)
    return Batch(inputs, {"values": torch.full((B,), L)}, targets, torch.ones(B).double(), torch.arange(B))


def statistics(own, seen, normalise):
    """(shift, spread) of one target of one window, (L,) each, by the definition."""
    if normalise == "none":
        return 0.0, 1.0
    there = own[seen > 0]
    if not there.size:
        return 0.0, 1e-3
    return there[-1] if normalise == "last" else there.mean(), max(there.std(), 1e-3)


@pytest.mark.parametrize("normalise", ["window", "last", "none"])
@pytest.mark.parametrize("channels", ["independent", "joint"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"others": 3},
        {"others": 1, "known": 2},
        {"observed": True},
        {"others": 1, "known": 2, "observed": True},
        {"targets": 1, "observed": True},
    ],
)
def test_each_channel_goes_where_the_definition_says(normalise, channels, options):
    row_spec = spec(**options)
    data = batch(row_spec)
    front = patches.build(row_spec, patch=P, normalise=normalise, channels=channels)
    x, lengths, context = front(data)
    n, values = row_spec["targets"], data.inputs["values"].numpy()
    seen = values[..., -n:] if row_spec["observed"] else np.ones((B, L, n))
    rest = values[..., n : row_spec["channels"] - (n if row_spec["observed"] else 0)]
    sequences = n if channels == "independent" else 1
    assert (front.sequences, x.shape) == (sequences, (B * sequences, L // P, front.size))
    assert lengths.tolist() == [L // P] * (B * sequences)
    for b in range(B):
        shift, spread = np.transpose([statistics(values[b, :, i], seen[b, :, i], normalise) for i in range(n)])
        np.testing.assert_allclose(context["shift"][b], shift, atol=1e-12)
        np.testing.assert_allclose(context["spread"][b], spread, atol=1e-12)
        scaled = (values[b, :, :n] - shift) / spread * seen[b]
        for s in range(sequences):
            own = [s] if channels == "independent" else list(range(n))
            for patch in range(L // P):
                expected = []
                for step in range(patch * P, (patch + 1) * P):
                    observed = seen[b, step, own] if row_spec["observed"] else []
                    expected += [*scaled[step, own], *observed, *rest[b, step]]
                np.testing.assert_allclose(x[b * sequences + s, patch], expected, atol=1e-12)


def test_a_patch_of_one_step_reads_every_step_by_itself():
    row_spec = spec()
    x, lengths, _ = patches.build(row_spec, patch=1, channels="joint", normalise="none")(batch(row_spec))
    assert torch.equal(x, batch(row_spec).inputs["values"])
    assert lengths.tolist() == [L] * B


@pytest.mark.parametrize(("normalise", "forecast"), [("window", "mean"), ("last", "last"), ("none", "zero")])
@pytest.mark.parametrize("channels", ["independent", "joint"])
@pytest.mark.parametrize("family", ["gru", "transformer"])
def test_a_head_that_says_nothing_forecasts_what_was_taken_out(normalise, forecast, channels, family):
    row_spec = spec(others=1)
    data = batch(row_spec)
    model = models.build(
        row_spec,
        {"family": family, "hidden_size": 8, "patch": P, "normalise": normalise, "channels": channels},
        {"kind": "forecast", "lookback": L, "horizon": 5},
    ).double()
    with torch.no_grad():
        model.task.head.weight.zero_()
        model.task.head.bias.zero_()
    own = data.inputs["values"][..., :2]
    expected = {"mean": own.mean(1), "last": own[:, -1], "zero": torch.zeros(B, 2)}[forecast]
    out = model.task.predict(model, data)["forecast"]
    torch.testing.assert_close(out, expected[:, None].expand(-1, 5, -1).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("normalise", ["window", "last"])
@pytest.mark.parametrize("channels", ["independent", "joint"])
def test_a_window_moved_and_stretched_gives_the_forecast_moved_and_stretched(normalise, channels):
    row_spec = spec()
    model = models.build(
        row_spec,
        {"family": "gru", "hidden_size": 8, "patch": P, "normalise": normalise, "channels": channels},
        {"kind": "forecast", "lookback": L, "horizon": 5},
    ).double()
    data = batch(row_spec)
    before = model.task.predict(model, data)["forecast"]
    factor, shift = torch.tensor([3.0, 0.5]).double(), torch.tensor([-7.0, 100.0]).double()
    data.inputs["values"] = data.inputs["values"] * factor + shift
    torch.testing.assert_close(model.task.predict(model, data)["forecast"], before * factor + shift)


def test_a_constant_window_gives_finite_steps_and_its_own_value_back():
    row_spec = spec()
    data = batch(row_spec)
    data.inputs["values"] = torch.full((B, L, 2), 42.0).double()
    x, _, context = patches.build(row_spec, patch=P)(data)
    assert (x == 0).all()
    assert (context["shift"] == 42).all()


def test_values_of_steps_that_were_not_observed_have_no_influence():
    row_spec = spec(observed=True)
    data, other = batch(row_spec), batch(row_spec)
    hidden = data.inputs["values"][..., -2:] == 0
    other.inputs["values"][..., :2][hidden] = 1e6
    for normalise in ("window", "last", "none"):
        for channels in ("independent", "joint"):
            front = patches.build(row_spec, patch=P, normalise=normalise, channels=channels)
            (x, _, context), (y, _, changed) = front(data), front(other)
            torch.testing.assert_close(x, y)
            torch.testing.assert_close(context, changed)


def test_the_last_value_seen_is_found_whatever_was_missing():
    own = torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, 2, 3]]).T[None]  # (1, L, N)
    seen = torch.tensor([[1.0, 1, 1], [1, 1, 0], [0, 0, 0]]).T[None]
    assert patches.last_seen(own, seen).tolist() == [[3.0, 2.0, 0.0]]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patch": 5}, r"model\.patch=5 does not divide task\.lookback=12; use a divisor such as 4"),
        ({"patch": 100}, r"model\.patch=100 does not divide task\.lookback=12; use a divisor such as 12"),
        ({"patch": 0}, r"model\.patch=0 does not divide .* use a divisor such as 1"),
        ({"normalise": "mean"}, r"model\.normalise='mean' is not known; use one of window, last, none"),
        ({"channels": "both"}, r"model\.channels='both' is not known; use one of independent, joint"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        patches.build(spec(), **{"patch": P} | options)
