"""Probes: the adding problem, copy memory and associative recall are what their docstrings say."""

import json

import numpy as np
import pytest

import datasets


def make(kind: str, count: int = 200, **options) -> dict:
    return datasets.build(kind, **options).generate(np.random.default_rng(0), count)


@pytest.mark.parametrize("length", [2, 7, 200])
def test_the_sum_is_that_of_the_two_marked_numbers_one_in_each_half(length):
    made = make("adding", length=length)
    values = np.array(made["values"])
    assert values.shape == (200, length, 2)
    assert set(np.unique(values[..., 1])) <= {0, 1}
    assert (values[:, : length // 2, 1].sum(1) == 1).all() and (values[:, length // 2 :, 1].sum(1) == 1).all()
    assert values.prod(2).sum(1).tolist() == pytest.approx(made["sum"])


def test_who_always_says_one_has_a_squared_error_of_a_sixth():
    sums = np.array(make("adding", 20_000, length=2)["sum"])
    assert np.square(sums - 1).mean() == pytest.approx(1 / 6, rel=0.03)


def test_copy_memory_asks_for_the_letters_in_their_order():
    made = make("copy_memory", length=5, letters=3)
    for text, said in zip(made["text"], made["said"], strict=True):
        assert text[3:] == ["-"] * 5 + ["?"] * 3 and said == [None] * 8 + text[:3]
    assert len({tuple(said) for said in made["said"]}) > 100


def test_recall_asks_for_the_value_beside_the_key():
    made = make("recall", length=8, keys=6)
    places = []
    for text, said in zip(made["text"], made["said"], strict=True):
        keys, values, (mark, asked) = text[:8:2], text[1:8:2], text[8:]
        assert mark == "?" and len(set(keys)) == 4
        assert said == [None] * 9 + [values[keys.index(asked)]]
        places.append(keys.index(asked))
    assert set(places) == {0, 1, 2, 3}


@pytest.mark.parametrize(("kind", "asked"), [("copy_memory", 10), ("recall", 1)])
def test_only_the_steps_that_are_asked_for_have_a_class(kind, asked, tmp_path, encoded):
    made = make(kind, 50, length=6)
    rows = [{"text": text, "said": said} for text, said in zip(made["text"], made["said"], strict=True)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = encoded(datasets.build("text", path=str(tmp_path / "a.jsonl"), tokenizer="word", step_labels="said"))
    names = found.state["fitted"]["classes"]["step_labels"]
    assert found.bad == [] and len(found.parts["train"]) == 50
    for row, said in zip(found.parts["train"], made["said"], strict=True):
        assert [names[one] if one >= 0 else None for one in row["step_labels"]] == said
        assert said.count(None) == len(said) - asked


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("adding", {"length": 1}),
        ("copy_memory", {"length": 0}),
        ("copy_memory", {"letters": 0}),
        ("recall", {"length": 7}),
        ("recall", {"length": 40, "keys": 19}),
        ("adding", {"rows": 9}),
        ("recall", {"seed": -1}),
    ],
)
def test_options_out_of_range_are_refused_by_name(kind, options):
    name = list(options)[-1]
    with pytest.raises(ValueError, match=rf"dataset\.{name}={options[name]}"):
        datasets.build(kind, **options)


@pytest.mark.parametrize(
    ("kind", "best"), [("adding", {"mse": 0.0}), ("copy_memory", {"accuracy": 1.0}), ("recall", {"accuracy": 1.0})]
)
def test_the_defaults_can_be_made_and_solved(kind, best):
    assert datasets.build(kind).best == best
