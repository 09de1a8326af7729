"""Search spaces: mistakes in them are refused, and the settings that are drawn lie inside and can be trained."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.config.load import load, read
from workflows.config.settings import Search
from workflows.tuning.sampler import Sampler, importance
from workflows.tuning.space import (
    Axis,
    check_space,
    combinations,
    count_combinations,
    format_settings,
    parse_space,
    with_settings,
)
from workflows.tuning.study import Study

EXPERIMENT = {
    "name": "small",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 30, "series": 2},
    "task": {"kind": "forecast", "lookback": 48, "horizon": 24},
    "model": {"family": "gru", "hidden_size": 16, "patch": 24},
}
SPACE = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.family": {"choice": ["gru", "transformer"]},
    "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}},
    "model.hidden_size": {"logint": [8, 64]},
}


def refusal(space, search=None):
    with pytest.raises(ValueError) as refused:
        axes = parse_space(space)
        check_space(EXPERIMENT, axes, search or Search())
    return str(refused.value)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"training.learnin_rate": {"choice": [1.0]}},
            "search.space.training.learnin_rate: training.learnin_rate=1.0 is not known; did you mean "
            "training.learning_rate",
        ),
        (
            {"training.learning_rate": {"loguniform": [1e-2, 1e-4]}},
            "must be two different numbers, the lower one first",
        ),
        (
            {"training.learning_rate": {"loguniform": [0.0, 1e-4]}},
            "must be above 0, as it is drawn on a logarithmic scale",
        ),
        (
            {"training.learning_rate": {"uniform": ["a", 1]}},
            "must be a list of two numbers, the lowest and the highest",
        ),
        ({"training.learning_rate": {"uniform": [-1.0, 1.0]}}, "training.learning_rate=-1.0 must be above 0"),
        ({"model.hidden_size": {"int": [1.5, 3]}}, "must be a list of two whole numbers"),
        ({"model.hidden_size": {"choice": []}}, "choice=[] must be a list of values"),
        ({"model.hidden_size": {"choices": [1]}}, "must be one of choice, uniform, loguniform, int, logint, such as"),
        ({"model.hidden_size": {"choice": [1], "uniform": [0, 1]}}, "must be one of choice"),
        ({"model.hidden_size": 3}, "search.space.model.hidden_size=3 must be one of"),
        ({"workers.count": {"choice": [1, 2]}}, "only keys of dataset, task, model, training can be searched"),
        ({"model": {"choice": [1]}}, "only keys of dataset, task, model, training can be searched"),
        ({"task.horizon": {"choice": [12, 24]}}, "task.horizon decides what is measured"),
        (
            {"model.heads": {"choice": [2], "when": {"model.family": "transformer"}}},
            "when names model.family, which is no key of search.space",
        ),
        ({"model.heads": {"choice": [2], "when": 3}}, "when=3 must be a mapping"),
        (
            {
                "model.hidden_size": {"choice": [8], "when": {"training.clip": 1.0}},
                "training.clip": {"choice": [1.0], "when": {"model.hidden_size": 8}},
            },
            "depend on each other's values (when)",
        ),
        ({"model.patch": {"choice": [24, 7]}}, "model.patch=7 does not divide task.lookback=48"),
    ],
)
def test_a_mistake_is_refused_with_its_key_and_what_is_allowed(space, message):
    assert message in refusal(space)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        (
            Search(searcher="grid", trials=None),
            "training.learning_rate, model.hidden_size is a range; give it as choice",
        ),
        (Search(start=[{"training.rate": 1}]), "search.start, entry 1: training.rate is no key of search.space"),
        (
            Search(start=[{}, {"training.learning_rate": 1.0}]),
            "search.start, entry 2: training.learning_rate=1.0 lies outside of search.space",
        ),
        (Search(across={"storage": ["x"]}), "search.across.storage: it takes a key of dataset, task, model, training"),
        (Search(across={"model.hidden_size": [8]}), "that is not searched"),
        (
            Search(start=[{"model.hidden_size": 12, "model.family": "transformer", "model.heads": 8}]),
            "search.start, entry 1: model.heads=8 lies outside",
        ),
        (Search(across={"dataset.day": [1]}), "search.across.dataset.day: dataset.day=1 is not known; did you mean"),
        (Search(start=[{"model.family": "rnn"}]), "model.family='rnn' lies outside of search.space"),
    ],
)
def test_settings_of_a_search_that_contradict_the_space_are_refused(search, message):
    assert message in refusal(SPACE, search)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "search.trials=0 is too small"),
        ({"seconds": -1.0}, "search.seconds=-1.0 is out of range"),
        ({"trials": None}, "leave the search without an end"),
        ({"reduction": 1}, "search.reduction=1 is too small"),
        ({"scheduler": "pbt", "trials": 3}, "give search.trials of at least 4"),
        ({"scheduler": "pbt", "concurrent": 2}, "leave search.concurrent out"),
        ({"across": {"a": [1], "b": [2]}}, "must name one key and a list of its values"),
        ({"register_as": "a/b"}, "is no name of a registered model"),
        ({"keep": 0}, "search.keep=0 is too small"),
        ({"seeds": 0}, "search.seeds=0"),
        ({"grace": 0}, "search.grace=0"),
        ({"concurrent": 0}, "search.concurrent=0"),
    ],
)
def test_settings_of_a_search_are_checked(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Search(**options)


def test_a_value_that_is_valid_only_with_a_value_of_another_axis_is_accepted():
    """hidden_size=30 is valid with 3 heads only, and the experiment has 4."""
    options = {**EXPERIMENT, "model": {**EXPERIMENT["model"], "family": "transformer", "hidden_size": 16, "heads": 4}}
    space = {"model.hidden_size": {"choice": [16, 30]}, "model.heads": {"choice": [4, 3]}}
    check_space(options, parse_space(space), Search())


def test_axes_come_after_those_that_they_depend_on():
    backwards = dict(reversed(SPACE.items()))
    keys = [a.key for a in parse_space(backwards)]
    assert keys.index("model.family") < keys.index("model.heads") and set(keys) == set(SPACE)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    searcher=st.sampled_from(["tpe", "random"]),
    values=st.lists(st.floats(0.1, 10), min_size=6, max_size=6),
)
def test_drawn_settings_lie_inside_the_space_and_are_valid(seed, searcher, values):
    axes = parse_space(SPACE)
    sampler = Sampler(axes, Search(searcher=searcher, seed=seed), maximise=False, options=EXPERIMENT)
    for number, value in enumerate(values):
        drawn = sampler.draw(number)
        assert ("model.heads" in drawn) == (drawn["model.family"] == "transformer")
        assert 1e-4 <= drawn["training.learning_rate"] <= 1e-2 and 8 <= drawn["model.hidden_size"] <= 64
        assert isinstance(drawn["model.hidden_size"], int)
        assert with_settings(EXPERIMENT, drawn).training.learning_rate == drawn["training.learning_rate"]
        sampler.record(number, [value, value / 2], stopped=number % 2 == 0)
    assert len(sampler.drawn) == len({str(s) for s in sampler.drawn})


def test_draws_depend_on_the_seed_only():
    def drawn(seed):
        sampler = Sampler(parse_space(SPACE), Search(seed=seed), maximise=False, options=EXPERIMENT)
        draws = []
        for number in range(12):
            draws.append(sampler.draw(number))
            sampler.record(number, [draws[-1]["training.learning_rate"]], stopped=False)
        return draws

    assert drawn(0) == drawn(0) != drawn(1)


def test_tpe_learns_where_the_best_settings_are():
    axes = parse_space({"training.learning_rate": {"loguniform": [1e-4, 1e-1]}})
    medians = {}
    for searcher in ("tpe", "random"):
        sampler = Sampler(axes, Search(searcher=searcher, seed=0), maximise=True, options=EXPERIMENT)
        late = []
        for number in range(40):
            rate = sampler.draw(number)["training.learning_rate"]
            sampler.record(number, [-abs(rate - 3e-3)], stopped=False)
            late += [abs(rate - 3e-3)] if number >= 20 else []
        medians[searcher] = sorted(late)[len(late) // 2]
    assert medians["tpe"] < medians["random"] / 1.5


def test_starting_points_come_first_and_their_missing_keys_are_drawn():
    start = [{"training.learning_rate": 1e-3, "model.family": "transformer", "model.heads": 4}]
    sampler = Sampler(parse_space(SPACE), Search(start=start), maximise=False, options=EXPERIMENT)
    first = sampler.draw(0)
    assert {k: first[k] for k in start[0]} == start[0] and 8 <= first["model.hidden_size"] <= 64


GRID = {
    "model.family": {"choice": ["gru", "transformer"]},
    "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}},
}


def test_a_grid_tries_each_combination_once_without_keys_that_do_not_apply():
    every = list(combinations(parse_space(GRID), 9))
    assert every == [
        {"model.family": "gru"},
        {"model.family": "transformer", "model.heads": 2},
        {"model.family": "transformer", "model.heads": 4},
    ]
    sampler = Sampler(parse_space(GRID), Search(searcher="grid", trials=None), maximise=False, options=EXPERIMENT)
    assert [sampler.draw(i) for i in range(4)] == [*every, None]


def test_a_space_with_fewer_settings_than_trials_is_tried_completely():
    assert (
        count_combinations(parse_space(GRID), 16) == 3
        and count_combinations(parse_space(GRID), 2) is None
        and count_combinations(parse_space(SPACE), 9) is None
    )
    sampler = Sampler(parse_space(GRID), Search(trials=16), maximise=False, options=EXPERIMENT)
    assert len([s for i in range(5) if (s := sampler.draw(i)) is not None]) == 3


def test_a_small_range_of_whole_numbers_is_tried_completely_and_then_ends():
    axes = parse_space({"model.layers": {"int": [1, 3]}})
    sampler = Sampler(axes, Search(trials=8), maximise=False, options=EXPERIMENT)
    assert [sampler.draw(n) for n in range(4)] == [*({"model.layers": n} for n in (1, 2, 3)), None]
    search = Search(trials=None, seconds=9.0, searcher="random")
    random_sampler = Sampler(axes, search, maximise=False, options=EXPERIMENT)
    drawn = [random_sampler.draw(n) for n in range(4)]
    for number in range(3):
        random_sampler.record(number, [0.5], stopped=False)
    assert sorted(s["model.layers"] for s in drawn[:3]) == [1, 2, 3] and drawn[3] is None


def test_a_grid_skips_invalid_combinations():
    axes = parse_space(
        {
            "model.family": {"choice": ["transformer"]},
            "model.hidden_size": {"choice": [16, 12]},
            "model.heads": {"choice": [4, 2]},
        }
    )
    sampler = Sampler(axes, Search(searcher="grid", trials=None), maximise=False, options=EXPERIMENT)
    drawn = [sampler.draw(n) for n in range(4)]
    assert drawn[3] is None and [(s["model.hidden_size"], s["model.heads"]) for s in drawn[:3]] == [
        (16, 4),
        (16, 2),
        (12, 2),
    ]  # a head of 3 numbers has no rotary positions


@pytest.mark.parametrize("count", [5, 40])
def test_a_resumed_random_search_draws_new_settings(count):
    axes = parse_space({"training.learning_rate": {"loguniform": [1e-4, 1e-2]}})
    first = Sampler(axes, Search(searcher="random"), maximise=False, options=EXPERIMENT)
    earlier = [first.draw(n) for n in range(count)]
    resumed = Sampler(axes, Search(searcher="random"), maximise=False, options=EXPERIMENT, replayed=count)
    for number, old in enumerate(earlier):
        resumed.replay(number, old, [0.5], stopped=False, is_done=True)
    assert resumed.draw(count) not in earlier
    resumed.record(count, [0.4], stopped=False)


def test_a_resumed_search_does_not_repeat_settings():
    axes = parse_space(SPACE)
    first = Sampler(axes, Search(), maximise=False, options=EXPERIMENT)
    earlier = [first.draw(n) for n in range(4)]
    resumed = Sampler(axes, Search(), maximise=False, options=EXPERIMENT)
    for number, old in enumerate(earlier):
        resumed.replay(number, old, [0.5], stopped=number == 1, is_done=number != 3)
    assert resumed.draw(4) not in earlier
    resumed.record(3, [0.4], stopped=False)  # the one that was running ends now
    states = [t.state.name for t in resumed._study.trials if t.state.name != "FAIL"]  # drawn, but impossible
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "RUNNING"]
    grid = Sampler(parse_space(GRID), Search(), maximise=False, options=EXPERIMENT)
    grid.replay(0, {"model.family": "gru"}, [0.5], stopped=False, is_done=True)
    assert grid.draw(1) == {"model.family": "transformer", "model.heads": 2}


def test_importance_is_largest_for_the_key_that_decides():
    axes = parse_space(
        {"training.learning_rate": {"loguniform": [1e-4, 1e-1]}, "training.clip": {"uniform": [0.0, 1.0]}}
    )
    sampler = Sampler(axes, Search(searcher="random"), maximise=False, options=EXPERIMENT)
    trials = [(s, abs(s["training.learning_rate"] - 1e-2)) for s in (sampler.draw(n) for n in range(40))]
    shares = importance(axes, trials, maximise=False)
    assert list(shares) == ["training.learning_rate", "training.clip"] and sum(shares.values()) == pytest.approx(1)
    assert shares["training.learning_rate"] > 0.8
    assert (
        importance(axes, trials[:3], maximise=False)
        == {}
        == importance(axes, [(s, 1.0) for s, _ in trials], maximise=False)
    )


@pytest.mark.parametrize(
    ("kind", "values", "value", "expected"),
    [
        ("uniform", (0.0, 0.5), 0.6, 0.5),
        ("uniform", (0.0, 0.5), 0.123456, 0.1235),
        ("int", (1, 4), 2.6, 3),
        ("choice", ("a", "b"), "b", "b"),
        ("loguniform", (1e-4, 1e-2), 1e-6, 1e-4),
    ],
)
def test_a_value_is_clipped_to_its_range(kind, values, value, expected):
    assert Axis("training.x", kind, values, {}).clip(value) == expected


def test_an_override_can_name_a_key_of_the_space():
    search = load(
        EXPERIMENT, ["search.space.training.learning_rate={loguniform: [1.0e-4, 1.0e-2]}", "search.trials=3"]
    ).search
    assert search.space == {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}} and search.trials == 3
    assert read(EXPERIMENT, ["search.across.dataset.days=[30, 40]"])[1]["search"] == {
        "across": {"dataset.days": [30, 40]}
    }


def test_ranges_of_the_dataset_are_refused():
    space = {"dataset.days": {"int": [30, 40]}}
    with pytest.raises(ValueError, match=r"dataset\.days: the data is prepared once for each value"):
        Study.of("", {**EXPERIMENT, "search": {"space": space}})


def test_settings_are_formatted_without_their_sections():
    assert (
        format_settings({"training.learning_rate": 0.001, "model.family": "gru"}) == "learning_rate=0.001  family=gru"
    )
