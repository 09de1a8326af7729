"""The search space: what is refused and how it is said, and that what is drawn lies inside and can be trained."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.experiment import load, read
from workflows.search import Study
from workflows.settings import Search
from workflows.space import Axis, Sampler, axes_of, changed, check, combinations, count, described, importance

TOLD = {
    "name": "small", "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 30, "series": 2},
    "task": {"kind": "forecast", "lookback": 48, "horizon": 24},
    "model": {"family": "gru", "hidden_size": 16, "patch": 24}}
SPACE = {
    "training.learning_rate": {"loguniform": [1e-4, 1e-2]},
    "model.family": {"choice": ["gru", "transformer"]},
    "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}},
    "model.hidden_size": {"logint": [8, 64]},
}


def refusal(space, search=None):
    with pytest.raises(ValueError) as refused:
        axes = axes_of(space)
        check(TOLD, axes, search or Search())
    return str(refused.value)


@pytest.mark.parametrize(("space", "said"), [
    ({"training.learnin_rate": {"choice": [1.0]}},
     "search.space.training.learnin_rate: training.learnin_rate=1.0 is not known; did you mean training.learning_rate"),
    ({"training.learning_rate": {"loguniform": [1e-2, 1e-4]}}, "must begin with the lower of two different numbers"),
    ({"training.learning_rate": {"loguniform": [0.0, 1e-4]}}, "must lie above 0, as it is drawn by its logarithm"),
    ({"training.learning_rate": {"uniform": ["a", 1]}}, "must be a list of two numbers, the lowest and the highest"),
    ({"training.learning_rate": {"uniform": [-1.0, 1.0]}}, "training.learning_rate=-1.0 must be above 0"),
    ({"model.hidden_size": {"int": [1.5, 3]}}, "must be a list of two whole numbers"),
    ({"model.hidden_size": {"choice": []}}, "choice=[] must be a list of values"),
    ({"model.hidden_size": {"choices": [1]}}, "must be one of choice, uniform, loguniform, int, logint, such as"),
    ({"model.hidden_size": {"choice": [1], "uniform": [0, 1]}}, "must be one of choice"),
    ({"model.hidden_size": 3}, "search.space.model.hidden_size=3 must be one of"),
    ({"workers.count": {"choice": [1, 2]}}, "only keys of dataset, task, model, training can be searched"),
    ({"model": {"choice": [1]}}, "only keys of dataset, task, model, training can be searched"),
    ({"task.horizon": {"choice": [12, 24]}}, "task.horizon says what is measured"),
    ({"model.heads": {"choice": [2], "when": {"model.family": "transformer"}}},
     "when names model.family, which is no key of search.space"),
    ({"model.heads": {"choice": [2], "when": 3}}, "when=3 must be a mapping"),
    ({"model.hidden_size": {"choice": [8], "when": {"training.clip": 1.0}},
      "training.clip": {"choice": [1.0], "when": {"model.hidden_size": 8}}}, "wait for each other's values (when)"),
    ({"model.patch": {"choice": [24, 7]}}, "model.patch=7 does not divide task.lookback=48"),
])
def test_a_mistake_is_told_with_its_key_and_what_is_allowed(space, said):
    assert said in refusal(space)


@pytest.mark.parametrize(("search", "said"), [
    (Search(searcher="grid", trials=None), "training.learning_rate, model.hidden_size is a range; give it as choice"),
    (Search(start=[{"training.rate": 1}]), "search.start, entry 1: training.rate is no key of search.space"),
    (Search(start=[{}, {"training.learning_rate": 1.0}]),
     "search.start, entry 2: training.learning_rate=1.0 lies outside of search.space"),
    (Search(across={"storage": ["x"]}), "search.across.storage: it takes a key of dataset, task, model, training"),
    (Search(across={"model.hidden_size": [8]}), "that is not searched"),
    (Search(start=[{"model.hidden_size": 12, "model.family": "transformer", "model.heads": 8}]),
     "search.start, entry 1: model.heads=8 lies outside"),
    (Search(across={"dataset.day": [1]}), "search.across.dataset.day: dataset.day=1 is not known; did you mean"),
    (Search(start=[{"model.family": "rnn"}]), "model.family='rnn' lies outside of search.space"),
])
def test_what_does_not_go_with_the_space_is_refused(search, said):
    assert said in refusal(SPACE, search)


@pytest.mark.parametrize(("options", "said"), [
    ({"trials": 0}, "search.trials=0 is too small"), ({"seconds": -1.0}, "search.seconds=-1.0 is out of range"),
    ({"trials": None}, "leave the search without an end"), ({"reduction": 1}, "search.reduction=1 is too small"),
    ({"scheduler": "pbt", "trials": 3}, "give search.trials of at least 4"),
    ({"scheduler": "pbt", "concurrent": 2}, "leave search.concurrent out"),
    ({"across": {"a": [1], "b": [2]}}, "must name one key and a list of its values"),
    ({"register_as": "a/b"}, "is no name of a registered model"), ({"keep": 0}, "search.keep=0 is too small"),
    ({"seeds": 0}, "search.seeds=0"), ({"grace": 0}, "search.grace=0"), ({"concurrent": 0}, "search.concurrent=0"),
])
def test_settings_of_a_search_are_checked(options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Search(**options)


def test_a_value_that_needs_another_one_beside_it_is_no_mistake():
    """hidden_size=30 goes with 3 heads only, and the experiment has 4."""
    told = {**TOLD, "model": {**TOLD["model"], "family": "transformer", "hidden_size": 16, "heads": 4}}
    space = {"model.hidden_size": {"choice": [16, 30]}, "model.heads": {"choice": [4, 3]}}
    check(told, axes_of(space), Search())


def test_axes_stand_after_those_that_they_depend_on():
    backwards = dict(reversed(SPACE.items()))
    keys = [a.key for a in axes_of(backwards)]
    assert keys.index("model.family") < keys.index("model.heads") and set(keys) == set(SPACE)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1 << 30), searcher=st.sampled_from(["tpe", "random"]), values=st.lists(
    st.floats(0.1, 10), min_size=6, max_size=6))
def test_what_is_drawn_lies_inside_and_can_be_trained(seed, searcher, values):
    axes = axes_of(SPACE)
    sampler = Sampler(axes, Search(searcher=searcher, seed=seed), maximise=False, told=TOLD)
    for number, value in enumerate(values):
        drawn = sampler.next(number)
        assert ("model.heads" in drawn) == (drawn["model.family"] == "transformer")
        assert 1e-4 <= drawn["training.learning_rate"] <= 1e-2 and 8 <= drawn["model.hidden_size"] <= 64
        assert isinstance(drawn["model.hidden_size"], int)
        made = changed(TOLD, drawn)
        assert made.training.learning_rate == drawn["training.learning_rate"]
        sampler.tell(number, [value, value / 2], stopped=number % 2 == 0)
    assert len(sampler.given) == len({str(s) for s in sampler.given})


def test_the_same_seed_draws_the_same_and_another_one_others():
    def drawn(seed):
        sampler = Sampler(axes_of(SPACE), Search(seed=seed), maximise=False, told=TOLD)
        found = []
        for number in range(12):
            found.append(sampler.next(number))
            sampler.tell(number, [found[-1]["training.learning_rate"]], stopped=False)
        return found

    assert drawn(0) == drawn(0) != drawn(1)


def test_tpe_learns_where_the_best_settings_are():
    axes = axes_of({"training.learning_rate": {"loguniform": [1e-4, 1e-1]}})
    found = {}
    for searcher in ("tpe", "random"):
        sampler = Sampler(axes, Search(searcher=searcher, seed=0), maximise=True, told=TOLD)
        late = []
        for number in range(40):
            rate = sampler.next(number)["training.learning_rate"]
            sampler.tell(number, [-abs(rate - 3e-3)], stopped=False)
            late += [abs(rate - 3e-3)] if number >= 20 else []
        found[searcher] = sorted(late)[len(late) // 2]
    assert found["tpe"] < found["random"] / 1.5


def test_starting_points_come_first_and_the_rest_of_them_is_drawn():
    start = [{"training.learning_rate": 1e-3, "model.family": "transformer", "model.heads": 4}]
    sampler = Sampler(axes_of(SPACE), Search(start=start), maximise=False, told=TOLD)
    first = sampler.next(0)
    assert {k: first[k] for k in start[0]} == start[0] and 8 <= first["model.hidden_size"] <= 64


GRID = {"model.family": {"choice": ["gru", "transformer"]},
        "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}}}


def test_a_grid_tries_each_combination_once_and_no_key_that_does_not_apply():
    every = list(combinations(axes_of(GRID), 9))
    assert every == [{"model.family": "gru"}, {"model.family": "transformer", "model.heads": 2},
                     {"model.family": "transformer", "model.heads": 4}]
    sampler = Sampler(axes_of(GRID), Search(searcher="grid", trials=None), maximise=False, told=TOLD)
    assert [sampler.next(i) for i in range(4)] == [*every, None]


def test_a_space_with_fewer_settings_than_trials_is_tried_as_a_whole():
    assert count(axes_of(GRID), 16) == 3 and count(axes_of(GRID), 2) is None and count(axes_of(SPACE), 9) is None
    sampler = Sampler(axes_of(GRID), Search(trials=16), maximise=False, told=TOLD)
    assert len([s for i in range(5) if (s := sampler.next(i)) is not None]) == 3


def test_a_range_of_few_whole_numbers_is_tried_as_a_whole_and_then_ends():
    axes = axes_of({"model.layers": {"int": [1, 3]}})
    sampler = Sampler(axes, Search(trials=8), maximise=False, told=TOLD)
    assert [sampler.next(n) for n in range(4)] == [*({"model.layers": n} for n in (1, 2, 3)), None]
    few = Sampler(axes, Search(trials=None, seconds=9.0, searcher="random"), maximise=False, told=TOLD)
    drawn = [few.next(n) for n in range(4)]
    for number in range(3):
        few.tell(number, [0.5], stopped=False)
    assert sorted(s["model.layers"] for s in drawn[:3]) == [1, 2, 3] and drawn[3] is None


def test_a_grid_leaves_out_what_cannot_be():
    axes = axes_of({"model.family": {"choice": ["transformer"]}, "model.hidden_size": {"choice": [16, 12]},
                    "model.heads": {"choice": [4, 2]}})
    sampler = Sampler(axes, Search(searcher="grid", trials=None), maximise=False, told=TOLD)
    drawn = [sampler.next(n) for n in range(4)]
    assert drawn[3] is None and [(s["model.hidden_size"], s["model.heads"]) for s in drawn[:3]] == [
        (16, 4), (16, 2), (12, 2)]               # a head of 3 numbers has no rotary positions


@pytest.mark.parametrize("past", [5, 40])
def test_a_resumed_random_search_goes_on_with_new_draws(past):
    axes = axes_of({"training.learning_rate": {"loguniform": [1e-4, 1e-2]}})
    first = Sampler(axes, Search(searcher="random"), maximise=False, told=TOLD)
    given_ = [first.next(n) for n in range(past)]
    again = Sampler(axes, Search(searcher="random"), maximise=False, told=TOLD, past=past)
    for number, old in enumerate(given_):
        again.replay(number, old, [0.5], stopped=False, over=True)
    assert again.next(past) not in given_
    again.tell(past, [0.4], stopped=False)


def test_a_replayed_search_does_not_try_again_what_was_tried():
    axes = axes_of(SPACE)
    first = Sampler(axes, Search(), maximise=False, told=TOLD)
    past = [first.next(n) for n in range(4)]
    again = Sampler(axes, Search(), maximise=False, told=TOLD)
    for number, old in enumerate(past):
        again.replay(number, old, [0.5], stopped=number == 1, over=number != 3)
    assert again.next(4) not in past
    again.tell(3, [0.4], stopped=False)                            # the one that was running ends now
    states = [t.state.name for t in again._study.trials if t.state.name != "FAIL"]        # drawn, but impossible
    assert states == ["COMPLETE", "PRUNED", "COMPLETE", "COMPLETE", "RUNNING"]
    grid = Sampler(axes_of(GRID), Search(), maximise=False, told=TOLD)
    grid.replay(0, {"model.family": "gru"}, [0.5], stopped=False, over=True)
    assert grid.next(1) == {"model.family": "transformer", "model.heads": 2}


def test_importance_names_what_decides():
    axes = axes_of({"training.learning_rate": {"loguniform": [1e-4, 1e-1]}, "training.clip": {"uniform": [0.0, 1.0]}})
    sampler = Sampler(axes, Search(searcher="random"), maximise=False, told=TOLD)
    trials = [(s, abs(s["training.learning_rate"] - 1e-2)) for s in (sampler.next(n) for n in range(40))]
    found = importance(axes, trials, maximise=False)
    assert list(found) == ["training.learning_rate", "training.clip"] and sum(found.values()) == pytest.approx(1)
    assert found["training.learning_rate"] > 0.8
    assert importance(axes, trials[:3], maximise=False) == {} == importance(axes, [(s, 1.0) for s, _ in trials],
                                                                            maximise=False)


@pytest.mark.parametrize(("kind", "values", "given_", "expected"), [
    ("uniform", (0.0, 0.5), 0.6, 0.5), ("uniform", (0.0, 0.5), 0.123456, 0.1235), ("int", (1, 4), 2.6, 3),
    ("choice", ("a", "b"), "b", "b"), ("loguniform", (1e-4, 1e-2), 1e-6, 1e-4)])
def test_a_value_is_brought_inside(kind, values, given_, expected):
    assert Axis("training.x", kind, values, {}).nearest(given_) == expected


def test_an_override_can_name_a_key_of_the_space():
    made = load(TOLD, ["search.space.training.learning_rate={loguniform: [1.0e-4, 1.0e-2]}", "search.trials=3"])
    assert made.search.space == {"training.learning_rate": {"loguniform": [1e-4, 1e-2]}} and made.search.trials == 3
    assert read(TOLD, ["search.across.dataset.days=[30, 40]"])[1]["search"] == {"across": {"dataset.days": [30, 40]}}


def test_ranges_of_the_dataset_are_refused_as_each_value_prepares_data():
    space = {"dataset.days": {"int": [30, 40]}}
    with pytest.raises(ValueError, match=r"dataset\.days: each value prepares data of its own"):
        Study.of("", {**TOLD, "search": {"space": space}})


def test_settings_read_as_people_write_them():
    assert described({"training.learning_rate": 0.001, "model.family": "gru"}) == "learning_rate=0.001  family=gru"
