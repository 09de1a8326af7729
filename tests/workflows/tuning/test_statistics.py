"""Statistics of comparisons, against scipy's tests, a baselines reference and thousands of simulated tables."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workflows.tuning import statistics

NAMES = ["gru", "lstm", "rnn", "transformer"]


def sums(losses):
    """Sums of groups of one row each."""
    return {"loss": np.stack([losses, np.ones(len(losses))], 1)}


def mse(totals):
    total, count = totals["loss"]
    return float(total / count)


def compare(families, **options):
    return statistics.compare(families, mse, **{"maximise": False, "resamples": 200, **options})


def table(rng, *, seeds=5, groups=200, better=0.0, spread=0.05):
    """Losses of four families, the first of which is `better`; `spread` is the deviation between seeds.

    Some rows are hard for all families, with a heavy tail, some for one family only, and some for one seed only.
    """
    hard, families = np.exp(rng.normal(size=groups)), {}
    for name in NAMES:
        losses = hard + 0.1 * rng.standard_t(4, groups) - better * (name == NAMES[0])
        families[name] = [
            sums(losses + spread * rng.normal() + 0.15 * rng.standard_t(4, groups) * np.sqrt(hard))
            for _ in range(seeds)
        ]
    return families


def levels(groups=50, **means):
    """Families with these means, whose five seeds lie 1e-4 apart and vary by 1e-6 from row to row."""
    noise = 1e-6 * np.random.default_rng(1).normal(size=(groups, len(means), 5))
    noise -= noise.mean((0, 2), keepdims=True)
    return {
        name: [sums(mean + 1e-4 * (k - 2) + noise[:, i, k]) for k in range(5)]
        for i, (name, mean) in enumerate(means.items())
    }


@pytest.mark.parametrize("tables", [150, pytest.param(400, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "setting", [{"seeds": 5, "groups": 200}, {"seeds": 3, "groups": 30}, {"seeds": 3, "groups": 30, "spread": 0.2}]
)
def test_equal_families_rarely_differ_significantly_and_intervals_contain_the_truth(setting, tables):
    rng, claims, inside = np.random.default_rng(0), 0, []
    for seed in range(tables):
        result = compare(table(rng, **setting), seed=seed)
        claims += any(d.significant for d in result.differences)
        assert result.decided <= any(d.significant for d in result.differences)
        inside += [d.low <= 0 <= d.high for d in result.differences]
    assert claims <= 0.05 * tables
    assert 0.92 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("tables", [80, pytest.param(200, marks=pytest.mark.soak)])
def test_a_family_that_is_better_is_found(tables):
    rng, right, inside = np.random.default_rng(0), 0, []
    for seed in range(tables):
        result = compare(table(rng, better=0.15), seed=seed)  # 3 deviations of the seeds
        right += result.best == NAMES[0] and any(d.significant and d.a == NAMES[0] for d in result.differences)
        inside += [d.low <= -0.15 * (d.a == NAMES[0]) + 0.15 * (d.b == NAMES[0]) <= d.high for d in result.differences]
    assert right >= 0.8 * tables
    assert 0.92 <= np.mean(inside) <= 0.98


@pytest.mark.parametrize("counts", [(5, 5), (3, 3), (2, 2)])
def test_if_rows_are_alike_it_is_the_test_of_welch(counts):
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, counts[0]), rng.normal(1, 3, counts[1])
    result = compare({"a": [sums(np.full(9, x)) for x in a], "b": [sums(np.full(9, x)) for x in b]})
    first, second = (a, b) if a.mean() < b.mean() else (b, a)
    welch, only = stats.ttest_ind(first, second, equal_var=False), result.differences[0]
    assert only.p == pytest.approx(welch.pvalue, rel=1e-9)
    assert (only.low, only.high) == pytest.approx(tuple(welch.confidence_interval(0.95)), rel=1e-9)
    alone = stats.ttest_1samp(a, 0).confidence_interval(0.95)
    assert (result.families["a"].low, result.families["a"].high) == pytest.approx(tuple(alone), rel=1e-9)


def test_intervals_of_methods_end_at_the_bounds_of_the_metric():
    right = np.array([1.0] * 39 + [0.0])
    rows = {"total": right, "count": np.ones(40)}
    options = {"families": {"a": [rows] * 3}, "metric": lambda s: float(s["total"] / s["count"]), "maximise": True}
    free, bound = statistics.compare(**options), statistics.compare(**options, bounds=(0.0, 1.0))
    assert free.families["a"].high > 1 and bound.families["a"].high == 1
    assert bound.families["a"].low == free.families["a"].low


def test_if_seeds_are_alike_errors_are_those_of_pairs_of_rows():
    rng = np.random.default_rng(0)
    hard = 10 * rng.normal(size=40)
    a, b = hard + rng.normal(size=40), hard + rng.normal(size=40)
    result = compare({"a": [sums(a)] * 5, "b": [sums(b)] * 5}, baselines={"flat": sums(b)}, resamples=20_000)
    error = np.std(a - b, ddof=1) / math.sqrt(40)
    for pair, models in zip(result.differences, (10, 5, 5), strict=True):
        if {pair.a, pair.b} == {"b", "flat"}:
            assert (pair.low, pair.high, pair.p) == (0, 0, 1)
        else:
            assert (pair.high - pair.low) / 2 == pytest.approx(stats.t.ppf(0.975, models) * error, rel=0.02)
            assert pair.p == pytest.approx(2 * stats.t.sf(abs(np.mean(a - b)) / error, models), rel=0.05)
    flat = result.baselines["flat"]
    assert (flat.high - flat.low) / 2 == pytest.approx(stats.t.ppf(0.975, 39) * stats.sem(b), rel=0.02)


def f1(totals):
    right, wrong, missed = totals["counts"]
    return float(2 * right / (2 * right + wrong + missed))


def counts(rng, groups):
    return {"counts": rng.integers(0, 9, (groups, 3)).astype(float)}


def reference(a, b, resamples, seed, groups):
    """(difference, standard error, degrees of freedom) by loops over resamples, groups and seeds."""
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples)

    def one(model, times):
        return f1({"counts": sum(t * row for t, row in zip(times, model["counts"], strict=True))})

    values, again = [], []
    for seeds in (a, b):
        values.append([one(model, np.ones(groups)) for model in seeds])
        again.append([[one(model, times) for times in drawn] for model in seeds])
    unbiased, fewest = groups / (groups - 1), min(len(a), len(b)) - 1
    rows = unbiased * np.var(np.mean(again[0], 0) - np.mean(again[1], 0), ddof=1)
    whole, twice = [], 0.0
    for k, value, more in zip((len(a), len(b)), values, again, strict=True):
        whole.append(np.var(value, ddof=1) / k)
        inner = [np.var(np.array(m) - np.mean(more, 0), ddof=1) for m in more]
        twice += unbiased * sum(inner) / (k - 1) / k
    variance = rows + max(0, sum(whole) - twice)
    freedom = variance**2 / (rows**2 / (groups - 1) + sum(w**2 for w in whole) / fewest)
    return np.mean(values[0]) - np.mean(values[1]), math.sqrt(variance), min(freedom, len(a) + len(b))


@pytest.mark.parametrize("seeds", [(3, 3), (4, 2)])
def test_a_metric_that_is_no_mean_agrees_with_a_simple_reference(seeds):
    rng = np.random.default_rng(4)
    a, b = ([counts(rng, 8) for _ in range(k)] for k in seeds)
    (pair,) = statistics.compare({"a": a, "b": b}, f1, maximise=True, resamples=50, seed=7).differences
    difference, error, freedom = reference(a, b, 50, 7, 8)
    sign = 1 if pair.a == "a" else -1
    assert pair.difference == pytest.approx(sign * difference) and pair.difference >= 0
    half = stats.t.ppf(0.975, freedom) * error
    assert (pair.low, pair.high) == pytest.approx((pair.difference - half, pair.difference + half))
    assert pair.p == pytest.approx(2 * stats.t.sf(abs(difference) / error, freedom))


def test_sums_of_any_shape_do_not_depend_on_how_many_are_resampled_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    families = {name: [{"confusion": rng.random((12, 3, 3)), "n": rng.random(12)} for _ in range(3)] for name in "ab"}

    def metric(totals):
        assert totals["confusion"].shape == (3, 3) and totals["n"].shape == ()
        return float(np.trace(totals["confusion"]) / totals["n"])

    at_once = statistics.compare(families, metric, maximise=True, resamples=20)
    monkeypatch.setattr(statistics, "MAX_ELEMENTS", 20)
    assert asdict(statistics.compare(families, metric, maximise=True, resamples=20)) == asdict(at_once)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_adjusts_upwards_and_keeps_the_order(p):
    adjusted = statistics.holm(p)
    for value, new in zip(p, adjusted, strict=True):
        assert value <= new <= 1
        assert new == pytest.approx(max(min(1, (len(p) - sum(q < x for q in p)) * x) for x in p if x <= value))
    assert [adjusted[i] for i in np.argsort(p, kind="stable")] == sorted(adjusted)
    assert statistics.holm([*p, math.nan])[:-1] == adjusted


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.permutations(NAMES), st.integers(2, 6), st.integers(2, 9), st.booleans())
def test_the_order_of_families_does_not_matter_and_intervals_contain_their_means(seed, order, seeds, groups, maximise):
    families = table(np.random.default_rng(seed), groups=groups, seeds=seeds)
    baselines = {"naive": sums(np.random.default_rng(seed).normal(size=groups))}
    result = compare(families, maximise=maximise, resamples=20, baselines=baselines)
    assert result == compare(
        {name: families[name] for name in order}, maximise=maximise, resamples=20, baselines=baselines
    )
    for estimate in (*result.families.values(), *result.baselines.values()):
        assert estimate.low <= estimate.mean <= estimate.high
    for d in result.differences:
        assert d.low <= d.difference <= d.high and d.p <= d.adjusted <= 1
    means = [e.mean for e in result.families.values()]
    assert means == sorted(means, reverse=maximise)
    assert result.decided == (not result.tied)


@pytest.mark.parametrize(
    ("means", "baseline", "text"),
    [
        (
            {"gru": 0.365, "lstm": 0.5, "rnn": 0.6, "transformer": 0.7},
            None,
            "gru is best on test/mse (0.365; the differences from lstm, rnn and transformer are significant)",
        ),
        (
            {"gru": 0.365, "lstm": 0.5},
            0.6,
            "gru is best on test/mse (0.365; the difference from lstm is significant); "
            "both beat the baseline naive (0.6)",
        ),
        (
            {"gru": 0.3, "lstm": 0.5},
            0.4,
            "gru is best on test/mse (0.3; the difference from lstm is significant); "
            "gru beats the baseline naive (0.4), lstm does not",
        ),
        (
            {"gru": 0.3, "lstm": 0.5, "rnn": 0.6},
            0.2,
            "gru is best on test/mse (0.3; the differences from lstm and rnn are significant); "
            "no family is significantly better than the baseline naive (0.2)",
        ),
        (
            {"gru": 0.3, "lstm": 0.30001, "rnn": 0.5},
            0.4,
            "no significant difference between gru and lstm on test/mse; both are better than rnn; "
            "gru and lstm beat the baseline naive (0.4), rnn does not",
        ),
        (
            {"gru": 0.3, "lstm": 0.30001, "rnn": 0.30002, "transformer": 0.5},
            0.6,
            "no significant difference between gru, lstm and rnn on test/mse; all are better than transformer; "
            "all beat the baseline naive (0.6)",
        ),
        (
            {"gru": 0.3, "lstm": 0.30001, "rnn": 0.30002, "transformer": 0.30003},
            None,
            "no significant difference between the four families on test/mse",
        ),
        ({"gru": 0.3, "lstm": 0.30001}, None, "no significant difference between gru and lstm on test/mse"),
        (
            {"gru": 0.3},
            0.3,
            "gru is the only family on test/mse (0.3); no family is significantly better than the baseline naive (0.3)",
        ),
        ({"gru": 0.3}, 0.5, "gru is the only family on test/mse (0.3); gru beats the baseline naive (0.5)"),
    ],
)
def test_the_verdict_names_significant_differences(means, baseline, text):
    baselines = (
        {}
        if baseline is None
        else {
            "naive": sums(baseline + 1e-6 * np.arange(-24.5, 25)),
            "worse": sums(np.full(50, 0.9)),
            "broken": sums(np.full(50, math.nan)),
        }
    )
    result = compare(levels(**means), baselines=baselines, name="test/mse")
    assert result.text == text
    assert result.decided == text.startswith("gru is best")
    assert result.baseline == ("" if baseline is None else "naive")
    assert [result.best, *result.tied] == [name for name in means if means[name] < 0.301 or name == "gru"]
    assert asdict(result)["best"] == json.loads(json.dumps(asdict(result)))["best"]


def test_the_verdict_names_a_difference_of_the_second_best_if_the_best_has_none():
    rng = np.random.default_rng(0)
    flat = {
        "lstm": [0.30, 0.301, 0.299, 0.30, 0.30],
        "rnn": [0.40, 0.401, 0.399, 0.40, 0.40],
        "gru": [0.0, 0.8, 0.1, 0.0, 0.5],
    }
    families = {name: [sums(x + 0.001 * rng.normal(size=50)) for x in seeds] for name, seeds in flat.items()}
    result = compare(families)
    assert (result.best, result.tied, result.decided) == ("gru", ["lstm", "rnn"], False)
    assert result.text == (
        "gru has the best mean, but is not significantly different from lstm and rnn; lstm is better than rnn"
    )


def test_identical_families_and_families_without_any_variation():
    same = table(np.random.default_rng(0))["gru"]
    result = compare({"a": same, "b": same})
    assert result.tied == ["b"] and (result.differences[0].difference, result.differences[0].p) == (0, 1)
    still = compare({"a": [sums(np.full(30, 0.2))] * 5, "b": [sums(np.full(30, 0.4))] * 5})
    assert still.decided and still.differences[0].p == pytest.approx(2 / math.comb(10, 5))
    assert (still.families["a"].low, still.families["a"].high) == (still.families["a"].mean,) * 2
    two_seeds = compare({"a": [sums(np.full(30, 0.2))] * 2, "b": [sums(np.full(30, 0.4))] * 2})
    assert not two_seeds.decided and two_seeds.differences[0].p == pytest.approx(1 / 3)  # the smallest p of four models


def test_one_seed_decides_nothing():
    rng = np.random.default_rng(0)
    one = compare(table(rng, seeds=1, better=9.0), baselines={"naive": sums(np.full(200, 99.0))})
    assert one.text == "undecided: one seed; to know how much seeds differ, train at least two"
    assert not one.decided and one.beats == [] and len(one.tied) == 3
    assert all(math.isnan(d.p) and math.isnan(d.adjusted) and not d.significant for d in one.differences)
    assert all(math.isnan(e.low) for e in one.families.values()) and math.isfinite(one.baselines["naive"].low)
    mixed = table(rng, better=9.0)
    mixed["rnn"] = mixed["rnn"][:1]
    result = compare(mixed)
    assert result.text == "undecided: one seed of rnn; to know how much seeds differ, train at least two"
    assert not result.decided and result.tied == ["rnn"]


def test_one_group_decides_nothing_and_two_groups_rarely():
    families = {name: [{"loss": x["loss"][:1]} for x in seeds] for name, seeds in levels(a=0.1, b=0.9).items()}
    one = compare(families)
    assert one.text == "undecided: one group of test rows, so it is not known how much rows differ"
    assert math.isnan(one.families["a"].low) and not one.decided
    rng = np.random.default_rng(0)
    claims = sum(compare(table(rng, groups=2), resamples=100).decided for _ in range(50))
    assert claims <= 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_failed_seed_never_makes_a_family_better(bad):
    means = {"gru": 0.1, "lstm": 0.3, "rnn": 0.5}
    families = levels(**means)
    families["gru"][2] = None if bad is None else sums(np.full(50, bad))
    result = compare(families, name="mse")
    assert result.families["gru"].mean == pytest.approx(0.1, abs=0.01) and not math.isfinite(
        result.families["gru"].seeds[2]
    )
    assert not result.decided and result.best == "gru" and result.tied == ["lstm", "rnn"]
    assert result.text == (
        "undecided: gru has the best mean (0.1) only without its failed seeds; 1 of 5 seeds of gru failed"
    )
    families = levels(**means)
    families["rnn"][2] = None if bad is None else sums(np.full(50, bad))
    result = compare(families, name="mse")
    assert result.decided and result.text.endswith("are significant); 1 of 5 seeds of rnn failed")


def test_families_whose_seeds_all_failed_are_named_and_left_out():
    families = levels(gru=0.3, lstm=0.5, rnn=0.1)
    families["rnn"] = [sums(np.full(50, math.nan))] * 2
    result = compare(families, name="mse")
    assert list(result.families) == ["gru", "lstm", "rnn"] and math.isnan(result.families["rnn"].mean)
    assert result.text == (
        "gru is best on mse (0.3; the difference from lstm is significant); 2 of 2 seeds of rnn failed"
    )
    assert result.decided and result.tied == []
    families["rnn"] = [sums(np.full(50, 0.9))] * 2
    broken = compare(families, baselines={"naive": sums(np.full(50, math.nan))})
    assert broken.baseline == "" and len(broken.differences) == 3 and "baseline" not in broken.text
    families["rnn"] = [sums(np.full(50, math.nan))] * 2
    for seeds in (families["rnn"], [None, None]):
        none = compare({"rnn": seeds})
        assert (none.best, none.text) == ("", "undecided: every training failed; 2 of 2 seeds of rnn failed")


def test_a_metric_that_is_undefined_on_most_resamples_decides_nothing():
    def defined_on_most_resamples(totals):
        return mse(totals) if totals["loss"][0] >= 1.9 else math.nan

    rng = np.random.default_rng(0)
    rare = np.array([0.0] * 8 + [1.0] * 2)
    result = statistics.compare(
        {name: [sums(rare + 1e-3 * rng.random(10)) for _ in range(5)] for name in "ab"},
        defined_on_most_resamples,
        maximise=True,
    )
    assert math.isfinite(result.differences[0].p)  # the metric is undefined on some resamples only
    result = statistics.compare(
        {name: [sums(rare + 0.1 * k) for k in range(5)] for name in "ab"},
        lambda s: mse(s) if s["loss"][1] == 10 and s["loss"][0] in TOTALS else math.nan,
        maximise=True,
    )
    assert result.text == "undecided: the metric is not defined on parts of the test rows"


TOTALS = [sums(np.array([0.0] * 8 + [1.0] * 2) + 0.1 * k)["loss"].sum(0)[0] for k in range(5)]
