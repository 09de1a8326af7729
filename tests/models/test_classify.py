"""The classification tasks against scikit-learn and plain numpy. Shapes: B rows, T time, K classes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics

import models
from models import classification
from models.batch import Batch

torch.set_num_threads(1)

B, T, K = 9, 6, 5
COUNTS, ROWS = [10, 0, 40, 30, 20], 60  # class 1 does not occur; ROWS: with several, class 2 is in the majority of rows
KINDS = ["one", "several", "steps"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind="one", *, counts=COUNTS, dtype=torch.float64, stack=1, **options):
    """A model; `kind` one and several classify rows, steps labels steps."""
    torch.manual_seed(0)
    spec = {
        "frontend": "frames",
        "channels": 3,
        "classes": K,
        "several": kind == "several",
        "counts": counts,
        "rows": None if counts is None else ROWS,
    }
    task = {"kind": "label" if kind == "steps" else "classify", **options}
    model = models.build(spec, {"family": "gru", "hidden_size": 8, "stack": stack}, task).to(dtype).eval()
    with torch.no_grad():
        model.get_parameter("task.head.weight" if kind == "steps" else "task.head.linear.weight").mul_(5)
    return model


def batch(*, weights=None, seed=0, dtype=torch.float64):
    rng = np.random.default_rng(seed)
    lengths = torch.from_numpy(rng.integers(1, T + 1, B))
    lengths[0] = T
    steps = rng.integers(-1, K, (B, T))  # -1: no label
    steps[np.arange(T) >= lengths.numpy()[:, None]] = -1
    targets = {"label": rng.integers(0, K, B), "labels": (rng.random((B, K)) < 0.4).astype(float), "step_labels": steps}
    values = torch.from_numpy(rng.normal(size=(B, T, 3))).to(dtype)
    return Batch(
        {"values": values},
        {"values": lengths},
        {k: torch.from_numpy(v) for k, v in targets.items()},
        torch.ones(B, dtype=dtype) if weights is None else torch.tensor(weights).to(dtype),
        torch.arange(B),
    )


def rows(data, chosen):
    return Batch(
        {"values": data.inputs["values"][chosen]},
        {"values": data.lengths["values"][chosen]},
        {k: v[chosen] for k, v in data.targets.items()},
        data.weights[chosen],
        data.row_ids[chosen],
    )


def probability(model, data):
    return model.task.predict(model, data)["probability"].detach().numpy()


def sums_of(model, data):
    with torch.no_grad():
        return model.task.metrics(model, data)


def decisions(kind, data, p):
    """(truth, probabilities, row weights) of all decisions with a label: (N,), (N, K), (N,); several: (B, K) twice."""
    weights = data.weights.numpy()
    if kind == "several":
        return data.targets["labels"].numpy(), p, weights
    if kind == "one":
        return data.targets["label"].numpy(), p, weights
    labels = data.targets["step_labels"].numpy()
    has_label = labels >= 0
    return labels[has_label], p[has_label], np.broadcast_to(weights[:, None], labels.shape)[has_label]


# --- loss --------------------------------------------------------------------------------------------------------


def reference_loss(kind, truth, p, weights, *, balanced, smoothing):
    """(sum, weight) of the loss, decision by decision."""
    total = weight = 0.0
    for t, q, w in zip(truth, p, weights, strict=True):
        if kind == "several":
            scale = [(ROWS - n) / n if n else 0.0 for n in COUNTS] if balanced else [1.0] * K
            each = [-(s * y * np.log(a) + (1 - y) * np.log(1 - a)) for s, y, a in zip(scale, t, q, strict=True)]
            total, weight = total + w * np.mean(each), weight + w
        else:
            n = COUNTS[t]
            scale = (sum(COUNTS) / (K * n) if n else 0.0) if balanced else 1.0
            target = np.eye(K)[t] * (1 - smoothing) + smoothing / K
            total, weight = total - w * scale * (target @ np.log(q)), weight + w * scale
    return total, weight


@pytest.mark.parametrize("weights", [None, [1, 0, 1, 1, 0, 1, 1, 1, 1]], ids=["all rows", "fillers"])
@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize(("kind", "smoothing"), [("one", 0.0), ("one", 0.2), ("several", 0.0), ("steps", 0.0)])
def test_loss_is_that_of_the_definition(kind, smoothing, class_weights, weights):
    options = {"label_smoothing": smoothing} if smoothing else {}
    model, data = make(kind, class_weights=class_weights, **options), batch(weights=weights)
    expected = reference_loss(
        kind,
        *decisions(kind, data, probability(model, data)),
        smoothing=smoothing,
        balanced=class_weights == "balanced",
    )
    with torch.no_grad():
        loss, weight = model(data)
    assert (loss.item(), weight.item()) == pytest.approx(expected, rel=1e-9)
    assert model.task.weight(model, data).item() == weight.item()
    assert model.task.result(sums_of(model, data))["loss"] == pytest.approx(expected[0] / expected[1], rel=1e-9)


def test_balanced_weights_give_every_class_that_occurs_the_same_total_weight():
    weights = make(class_weights="balanced").task.class_weights.numpy()
    np.testing.assert_allclose(weights * COUNTS, [20, 0, 20, 20, 20])
    several = make("several", class_weights="balanced").task.positive_weights.numpy()
    np.testing.assert_allclose(several * COUNTS, [50, 0, 20, 30, 40])  # the number of rows without the class


@every_kind
def test_before_the_data_is_known_all_class_weights_are_1(kind):
    model, plain, data = make(kind, counts=None, class_weights="balanced"), make(kind), batch()
    assert model(data)[0].item() == plain(data)[0].item()
    assert model.task.baselines(data) == {}


@every_kind
def test_filler_rows_change_neither_loss_nor_gradient_nor_metrics(kind):
    model, data = make(kind, class_weights="balanced"), batch()
    fillers = batch(seed=5, weights=[0.0] * B)
    filled = Batch(
        {"values": torch.cat([data.inputs["values"], 100 * fillers.inputs["values"]])},
        {"values": torch.cat([data.lengths["values"], fillers.lengths["values"]])},
        {k: torch.cat([v, fillers.targets[k]]) for k, v in data.targets.items()},
        torch.cat([data.weights, fillers.weights]),
        torch.arange(2 * B),
    )
    results = []
    for one in (data, filled):
        model.zero_grad()
        loss, weight = model(one)
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        results.append([loss.detach(), weight, gradient, sums_of(model, one), model.task.baselines(one)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-13)


# --- metrics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@every_kind
def test_metrics_are_those_of_scikit_learn(kind, seed):
    model, data = make(kind), batch(seed=seed)  # some classes are absent from such a small batch
    truth, p, _ = decisions(kind, data, probability(model, data))
    scores = model.task.result(sums_of(model, data))
    assert set(scores) == {"loss", "accuracy", "macro_f1"}
    chosen = p > 0.5 if kind == "several" else p.argmax(1)
    accuracy = (truth == chosen).mean() if kind == "several" else metrics.accuracy_score(truth, chosen)
    absent = {"zero_division": np.nan} if kind == "several" else {}  # else it counts absent classes as 0
    assert scores["accuracy"] == pytest.approx(accuracy)
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, chosen, average="macro", **absent))
    assert (model.task.primary, model.task.maximise) == ("accuracy", True)


def test_scores_of_counts_are_those_of_scikit_learn_also_with_absent_classes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        truth, chosen = (rng.choice(rng.choice(7, rng.integers(1, 5)), 12) for _ in range(2))
        matrix = classification.confusion(torch.from_numpy(truth), torch.from_numpy(chosen), torch.ones(12), 7)
        np.testing.assert_array_equal(matrix, metrics.confusion_matrix(truth, chosen, labels=range(7)))
        same = classification.choices(torch.from_numpy(truth), torch.from_numpy(chosen), torch.ones(12), 7)
        assert torch.equal(same, classification.table(matrix))
        assert classification.scores(same) == pytest.approx(
            {
                "accuracy": metrics.accuracy_score(truth, chosen),
                "macro_f1": metrics.f1_score(truth, chosen, average="macro"),
            }
        )


def test_decisions_are_counted_by_class():
    rng = np.random.default_rng(1)
    truth, chosen = rng.random((2, 20, 3)) < 0.4
    counts = classification.decisions(torch.from_numpy(truth), torch.from_numpy(chosen), torch.ones(20)).numpy()
    for row, ((tn, fp), (fn, tp)) in zip(counts, metrics.multilabel_confusion_matrix(truth, chosen), strict=True):
        assert row.tolist() == [tp, fp, fn, tn]


def test_no_decisions_have_no_scores():
    assert classification.scores(torch.zeros(3, 4)) == {}
    assert classification.scores_of_several(torch.zeros(3, 4)) == {}
    assert classification.scores_of_several(torch.tensor([[0.0, 0, 0, 9]])) == {"accuracy": 1.0}


@pytest.mark.parametrize("kind", ["one", "steps"])
def test_more_classes_than_the_limit_are_counted_without_a_matrix(kind, monkeypatch):
    model, data = make(kind), batch()
    whole = sums_of(model, data)
    monkeypatch.setattr(classification, "MATRIX", K - 1)
    without = sums_of(model, data)
    assert (whole["confusion"].shape, without["decisions"].shape, "confusion" in without) == ((K, K), (K, 4), False)
    assert model.task.result(without) == pytest.approx(model.task.result(whole))
    assert model.task.artifacts(without) == []


@every_kind
def test_sums_of_two_halves_add_up_to_those_of_the_whole(kind):
    model, data = make(kind, class_weights="balanced"), batch()
    whole, one, two = (sums_of(model, d) for d in (data, rows(data, slice(0, 4)), rows(data, slice(4, B))))
    assert all(total.dtype == torch.float64 for total in whole.values())
    torch.testing.assert_close({k: one[k] + two[k] for k in whole}, whole, rtol=1e-12, atol=0)
    majority, first, second = (
        model.task.baselines(d)["majority"] for d in (data, rows(data, slice(0, 4)), rows(data, slice(4, B)))
    )
    torch.testing.assert_close({k: first[k] + second[k] for k in majority}, majority)


@every_kind
def test_the_most_frequent_class_of_training_is_the_baseline(kind):
    model, data = make(kind), batch(seed=2)
    truth = decisions(kind, data, probability(model, data))[0]
    baselines = model.task.baselines(data)
    assert list(baselines) == ["majority"]
    scores = model.task.result(baselines["majority"])
    if kind == "several":
        chosen = np.broadcast_to([False, False, True, False, False], truth.shape)  # 40 of 60; 30 is half
        assert scores["accuracy"] == pytest.approx((truth == chosen).mean())
        expected = metrics.f1_score(truth, chosen, average="macro", zero_division=np.nan)
    else:
        assert scores["accuracy"] == pytest.approx((truth == 2).mean())
        expected = metrics.f1_score(truth, np.full_like(truth, 2), average="macro")
    assert scores["macro_f1"] == pytest.approx(expected)


@every_kind
def test_the_confusion_is_an_artifact_of_plain_numbers(kind):
    model, data = make(kind), batch()
    truth, p, _ = decisions(kind, data, probability(model, data))
    [artifact] = model.task.artifacts(sums_of(model, data))
    if kind == "several":
        expected = metrics.multilabel_confusion_matrix(truth, p > 0.5).reshape(K, 4)[:, [3, 1, 2, 0]].T.tolist()
        names = ["true_positive", "false_positive", "false_negative", "true_negative"]
        assert (artifact.kind, artifact.arrays) == ("decisions", dict(zip(names, expected, strict=True)))
    else:
        matrix = metrics.confusion_matrix(truth, p.argmax(1), labels=range(K)).tolist()
        assert (artifact.kind, artifact.arrays) == ("confusion", {"matrix": matrix})
        assert type(artifact.arrays["matrix"][0][0]) is int


# --- outputs -----------------------------------------------------------------------------------------------------


@every_kind
def test_probabilities_are_those_of_the_head(kind):
    model, data = make(kind), batch()
    y, _ = model.family(data.inputs["values"], data.lengths["values"])
    if kind == "steps":
        out = model.task.head(y)
        assert model.task.predict(model, data)["steps"].tolist() == data.lengths["values"].tolist()
    else:
        mean = torch.stack([y[b, :n].mean(0) for b, n in enumerate(data.lengths["values"].tolist())])
        out = model.task.head.linear(mean)
    expected = out.sigmoid() if kind == "several" else out.softmax(-1)
    np.testing.assert_allclose(probability(model, data), expected.detach().numpy(), rtol=1e-10)
    assert probability(model, data).shape == ((B, T, K) if kind == "steps" else (B, K))


@every_kind
def test_padding_has_no_influence_through_the_whole_model(kind):
    model, data = make(kind), batch()
    padded = torch.arange(T + 3) >= data.lengths["values"][:, None]
    longer = torch.cat([data.inputs["values"], torch.zeros(B, 3, 3)], 1).masked_fill(padded[..., None], torch.nan)
    steps = torch.cat([data.targets["step_labels"], torch.full((B, 3), -1)], 1)
    other = replace(data, inputs={"values": longer}, targets=data.targets | {"step_labels": steps})
    results = []
    for one in (data, other):
        model.zero_grad()
        loss, _ = model(one)
        loss.backward()
        results.append([loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters()]), sums_of(model, one)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_steps_without_a_label_have_no_influence():
    model, data = make("steps", class_weights="balanced"), batch()
    labels = data.targets["step_labels"]
    unlabelled = batch()
    unlabelled.targets["step_labels"] = torch.full((B, T), -1)
    assert [x.item() for x in model(unlabelled)] == [0, 0]
    assert sums_of(model, unlabelled)["confusion"].sum() == 0
    assert sums_of(model, data)["confusion"].sum() == (labels >= 0).sum()


@every_kind
def test_with_autocast_loss_and_probability_are_in_full_precision(kind):
    model, data = make(kind, dtype=torch.float32), batch(dtype=torch.float32)
    exact = probability(model, data)
    with torch.autocast("cpu", torch.bfloat16):
        assert probability(model, data).dtype == np.float32
        assert model(data)[0].dtype == torch.float32
        np.testing.assert_allclose(probability(model, data), exact, atol=0.05)


@every_kind
def test_dropout_acts_in_training_only(kind):
    model, data = make(kind, dropout=0.5), batch()
    assert torch.equal(model(data)[0], model(data)[0])
    model.train()
    assert not torch.equal(model(data)[0], model(data)[0])


@pytest.mark.parametrize("pooling", ["mean", "max", "last", "attention"])
def test_every_pooling_trains(pooling):
    model, data = make(pooling=pooling), batch()
    loss, _ = model(data)
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())


# --- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("one", {"pooling": "sum"}, r"task\.pooling='sum' is not known; use one of mean, max, last, attention"),
        ("one", {"dropout": 1.0}, r"task\.dropout=1\.0 is no probability below 1"),
        ("steps", {"dropout": -1.0}, r"task\.dropout=-1\.0 is no probability below 1"),
        ("one", {"label_smoothing": 1.0}, r"task\.label_smoothing=1\.0 is no probability below 1"),
        (
            "several",
            {"label_smoothing": 0.1},
            r"task\.label_smoothing=0\.1 spreads one correct class .* several; use 0",
        ),
        *(
            (kind, {"class_weights": "rare"}, r"task\.class_weights='rare' is not known; use one of none, balanced")
            for kind in KINDS
        ),
    ],
)
def test_invalid_options_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        make(kind, **options)


def test_labels_of_steps_need_a_front_end_that_keeps_the_steps():
    message = r"task\.kind='label' predicts the class of every step of a row, but "
    with pytest.raises(ValueError, match=message + r"model\.stack=2 joins steps; use model\.stack=1"):
        make("steps", stack=2)
    task = {"kind": "label"}
    spec = {"classes": K, "counts": None, "rate": 8000, "frontend": "logmel"}
    with pytest.raises(
        ValueError, match=message + r"model\.speed=0\.1 changes the number of steps; use model\.speed=0"
    ):
        models.build(spec, {"family": "gru", "mels": 20, "speed": 0.1}, task)
    models.build(spec, {"family": "gru", "mels": 20}, task)
    spec = {
        "classes": K,
        "counts": None,
        "frontend": "patches",
        "lookback": 4,
        "targets": 1,
        "channels": 1,
        "observed": False,
    }
    with pytest.raises(ValueError, match=message + r"model\.patch=1 makes patches of a whole window"):
        models.build(spec, {"family": "gru", "patch": 1}, task)
