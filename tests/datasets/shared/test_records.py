"""Records: splits, targets, and rows that cannot be used. Without Ray; see conftest."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import datasets
from datasets.pipeline.prepare import cache_key
from datasets.reading import formats
from datasets.shared.labels import class_order
from datasets.shared.options import RecordOptions
from datasets.shared.sums import merge, moments, tally_moments
from datasets.shared.vocabulary import load
from models.special_tokens import BEGIN, END, SPECIAL_TOKENS, UNKNOWN

LABELS = ["no", "yes"]


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def many(path: Path, count: int = 40, **columns: list) -> str:
    """Rows whose text is their number, of two labels, with further columns that repeat."""
    return lines(
        path,
        [
            {
                "text": f"t{i}",
                "label": LABELS[i % 2],
                **{name: values[i % len(values)] for name, values in columns.items()},
            }
            for i in range(count)
        ],
    )


def text(path, **options):
    """A dataset of sentences; the target is the column label, unless the options name another."""
    target = {} if {"label", "labels", "step_labels", "numbers", "target"} & options.keys() else {"label": "label"}
    return datasets.build("text", path=path, tokenizer="word", **target | options)


def targets(dataset, encoded, name="label"):
    """{split: the target of each row}."""
    return {part: [row[name] for row in rows] for part, rows in encoded(dataset).parts.items()}


# --- targets --------------------------------------------------------------------------------------------------------


def test_a_target_becomes_tokens_of_a_vocabulary_of_its_own(tmp_path, encoded):
    rows = [{"text": "x", "said": word} for word in ("ab", "abc", " b a ", None, "", "abz", "ba")]
    path = {"train": lines(tmp_path / "a.jsonl", rows[:5]), "test": lines(tmp_path / "b.jsonl", rows[5:])}
    found = encoded(text(path, target="said", target_ngrams=2))
    state = found.state["fitted"]["target"]
    made = load(state["tokenizer"])
    assert sorted(made.get_vocab()) == sorted([*SPECIAL_TOKENS, "a", "b", "c", " "]) and state["vocabulary"] == 8
    assert [made.decode(row["target"]) for row in found.parts["train"]] == ["ab", "abc", "b a"]
    assert found.parts["test"][0]["target"][-1] == UNKNOWN  # training never had this letter
    assert found.bad == [(4, "said", "no value"), (5, "said", "no value")]
    a, b, c, blank = (made.token_to_id(letter) for letter in "abc ")
    assert state["ngrams"] == sorted(
        [
            [BEGIN, a, 2],
            [BEGIN, b, 1],
            [a, b, 2],
            [b, c, 1],
            [b, END, 1],
            [c, END, 1],
            [b, blank, 1],
            [blank, a, 1],
            [a, END, 1],
        ]
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_vocabulary": 4}, "dataset.target_vocabulary=4 is too small for dataset.target_tokenizer=character"),
        ({"target_ngrams": 9}, "dataset.target_ngrams=9 is out of range"),
        ({"target_ngrams": -1}, "target_ngrams=-1"),
    ],
)
def test_options_of_a_target_are_refused_by_name(options, said):
    with pytest.raises(ValueError, match=said):
        text("a.csv", target="said", **options)


# --- splits ---------------------------------------------------------------------------------------------------------


def test_a_path_for_each_split(tmp_path, encoded):
    paths = {
        "test": many(tmp_path / "c.jsonl", 3),
        "train": many(tmp_path / "a.jsonl", 10),
        "validation": many(tmp_path / "b.jsonl", 5),
    }
    found = encoded(text(paths))
    assert {part: len(rows) for part, rows in found.parts.items()} == {"train": 10, "validation": 5, "test": 3}
    assert list(found.parts) == ["train", "validation", "test"]
    assert found.state["fitted"]["rows"] == 10


def test_shares_are_drawn_by_place_whatever_the_blocks_are(tmp_path, encoded, monkeypatch):
    path = lines(tmp_path / "a.jsonl", [{"text": "a", "label": LABELS[i % 2], "n": i} for i in range(5000)])
    options = {"split": {"validation": 0.1, "test": 0.2}, "numbers": ["n"]}
    whole = targets(text(path, **options), encoded, "numbers")
    monkeypatch.setattr(formats, "LINE_ROWS", 7)
    assert targets(text(path, **options), encoded, "numbers") == whole
    rows = {part: [int(n) for [n] in numbers] for part, numbers in whole.items()}
    assert sorted(n for numbers in rows.values() for n in numbers) == list(range(5000))
    assert abs(len(rows["validation"]) - 500) < 70 and abs(len(rows["test"]) - 1000) < 100
    assert abs(np.mean(rows["test"]) - 2500) < 250  # from everywhere


def test_shares_of_several_files_differ_in_which_rows_they_draw(tmp_path, encoded):
    (tmp_path / "a").mkdir()
    for name in "xy":
        lines(tmp_path / "a" / f"{name}.jsonl", [{"text": "a", "n": i + 1000 * (name == "y")} for i in range(300)])
    found = targets(text(str(tmp_path / "a"), split={"validation": 0.5}, numbers=["n"]), encoded, "numbers")
    drawn = [{int(n) % 1000 for [n] in found["validation"] if (n >= 1000) == y} for y in (False, True)]
    assert len(drawn[0] ^ drawn[1]) > 30


def test_a_share_is_drawn_beside_files_of_their_own(tmp_path, encoded):
    paths = {"train": many(tmp_path / "a.jsonl", 400), "test": many(tmp_path / "b.jsonl", 7)}
    counts = {part: len(rows) for part, rows in encoded(text(paths, split={"validation": 0.25})).parts.items()}
    assert counts["train"] + counts["validation"] == 400 and 60 < counts["validation"] < 140
    assert counts["test"] == 7


def test_a_split_column_holds_the_names_of_splits(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 40, split=["train", "train", "train", " test"])
    counts = {part: len(rows) for part, rows in encoded(text(path, split_column="split")).parts.items()}
    assert counts == {"train": 30, "test": 10}


def test_a_value_that_is_no_split_is_named(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 40, split=["train", "train", "train", "dev"])
    with pytest.raises(
        ValueError,
        match=r"a.jsonl, row 4: column 'split' is 'dev', which is no split; say by "
        r"dataset.split_values .* \{validation: \[dev\]\}",
    ):
        encoded(text(path, split_column="split"))


def test_split_values_say_what_values_mean_and_others_are_for_training(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 40, who=["ann", "bob", "3", "cleo", None])
    counts = {
        part: len(rows)
        for part, rows in encoded(
            text(path, split_column="who", split_values={"validation": ["bob"], "test": ["3"]})
        ).parts.items()
    }
    assert counts == {"train": 24, "validation": 8, "test": 8}


def test_split_values_that_name_those_for_training_leave_others_out(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 40, who=["ann", "ann", "bob", "cleo", "ann"])
    counts = {
        part: len(rows)
        for part, rows in encoded(
            text(path, split_column="who", split_values={"train": ["ann"], "test": ["bob"]})
        ).parts.items()
    }
    assert counts == {"train": 24, "test": 8}


@pytest.mark.parametrize("values", [None, {"train": ["train"], "test": ["test"]}])
def test_a_row_that_does_not_say_its_split_is_quarantined_once(tmp_path, encoded, values):
    path = many(tmp_path / "a.jsonl", 10, split=["train", "train", "test", None, " "])
    found = encoded(text(path, split_column="split", split_values=values))
    assert found.bad == [(row, "split", "no value") for row in (4, 5, 9, 10)]
    assert {part: len(rows) for part, rows in found.parts.items()} == {"train": 4, "test": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": {"train": "a", "tset": "b"}}, r"dataset.path has 'tset'; the splits are train, validation, test"),
        ({"split": {"train": 0.8}}, r"give validation and test a share of the training rows between 0 and 1"),
        ({"split": {"test": 1.5}}, r"dataset.split=\{'test': 1.5\}: give validation and test a share"),
        ({"split": {"test": 0.5, "validation": 0.5}}, r"leaves nothing for training; use smaller shares"),
        ({"split_values": {"test": ["a"]}}, r"dataset.split_values says what .* dataset.split_column mean; name that"),
        ({"path": {"train": "a"}, "split_column": "s"}, r"split_column='s' and a path for each split contradict each"),
        (
            {"path": {"train": "a", "test": "b"}, "split": {"test": 0.1}},
            r"dataset.split gives test a share, but test also has",
        ),
        (
            {"split_column": "s", "split_values": {"test": ["a"]}, "split": {"test": 0.1}},
            r"gives test a share, but test also has",
        ),
        ({"split_column": "s", "split_values": {"test": ["a"], "train": ["a"]}}, r"has 'a' twice; a row can be in one"),
    ],
)
def test_contradictory_splits_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RecordOptions(**{"path": "a", **options})


def test_a_file_in_two_splits_is_refused(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"dataset.path: .*/a.jsonl is in both train and test; each file can be"):
        encoded(text({"train": path, "test": str(tmp_path / "*.jsonl")}))


def test_data_without_training_files_or_rows_is_refused(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 40, split=["test"])
    with pytest.raises(ValueError, match="there are no training files; name some under train"):
        encoded(text({"test": path}))
    with pytest.raises(ValueError, match=r"a.jsonl: there are no training rows that can be used"):
        encoded(text(path, split_column="split"))


def test_numbers_name_values_of_the_split_column_too(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 10, fold=[1, 2, 3, 4, 5])
    found = encoded(text(path, split_column="fold", split_values={"test": [5], "validation": ["4"]}))
    assert {part: len(rows) for part, rows in found.parts.items()} == {"train": 6, "validation": 2, "test": 2}


@pytest.mark.parametrize(
    ("options", "splits"),
    [
        ({"path": "a.csv"}, {"train"}),
        ({"path": "a.csv", "split": {"test": 0.1}}, {"train", "test"}),
        ({"path": {"train": "a.csv", "test": "b.csv"}, "split": {"validation": 0.1}}, {"train", "validation", "test"}),
        ({"path": "a.csv", "split_column": "s", "split_values": {"test": ["x"]}}, {"train", "test"}),
        ({"path": "a.csv", "split_column": "s"}, None),
    ],
)
def test_the_splits_are_known_beforehand_as_far_as_options_tell(options, splits):
    assert text(**options).splits == splits


# --- targets -------------------------------------------------------------------------------------------------------


def test_labels_of_any_kind_become_classes_in_the_order_of_their_names(tmp_path, encoded):
    for values, classes in (
        (["b", " a", "b "], ["a", "b"]),
        ([10, 9, -1], ["-1", "9", "10"]),
        ([True, False], ["False", "True"]),
        ([1.5, 2], ["1.5", "2"]),
        (["--1", "2"], ["--1", "2"]),
    ):
        path = many(tmp_path / "a.jsonl", 12, kind=values)
        found = encoded(text(path, label="kind"))
        assert found.state["fitted"]["classes"] == {"label": classes}
        assert [classes[row["label"]] for row in found.parts["train"]] == [
            str(values[i % len(values)]).strip() for i in range(12)
        ]
        assert sum(found.state["fitted"]["counts"]["label"]) == 12


def test_whole_numbers_are_one_class_whether_stored_as_integers_or_not(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(formats, "LINE_ROWS", 2)
    path = many(tmp_path / "a.jsonl", 8, kind=[1, 2, 1.0, 2.5])  # a block of whole numbers, a block of floats
    assert encoded(text(path, label="kind")).state["fitted"]["classes"]["label"] == sorted(["1", "2", "2.5"])
    path = many(tmp_path / "b.jsonl", 8, kind=[[1, 2], [2], [1.0, 2.5], []])
    assert encoded(text(path, labels="kind")).state["fitted"]["classes"]["labels"] == ["1", "2", "2.5"]


def test_missing_labels_are_quarantined(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 10, kind=["a", "b", None, "", " "])
    assert encoded(text(path, label="kind")).bad == [(row, "kind", "no value") for row in (3, 4, 5, 8, 9, 10)]
    pq.write_table(pa.table({"text": ["x"] * 4, "kind": [1.0, math.nan, 2.0, None]}), tmp_path / "a.parquet")
    found = encoded(text(str(tmp_path / "a.parquet"), label="kind"))
    assert found.state["fitted"]["classes"]["label"] == ["1", "2"]
    assert found.bad == [(2, "kind", "no value"), (4, "kind", "no value")]


def test_a_label_that_training_never_had_is_quarantined(tmp_path, encoded):
    paths = {"train": many(tmp_path / "a.jsonl"), "validation": many(tmp_path / "b.jsonl", 6, label=["no", "perhaps"])}
    found = encoded(text(paths))
    assert found.bad == [(row, "label", "'perhaps' is no class of the training rows") for row in (2, 4, 6)]
    assert len(found.parts["validation"]) == 3


def test_a_class_named_twice_in_a_row_counts_once(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 10, kind=[["a", "a", "a"], ["b"]])
    assert encoded(text(path, labels="kind")).state["fitted"]["counts"] == {"labels": [5, 5]}


def test_several_classes_a_row(tmp_path, encoded):
    for values in ([["a", "c"], [], ["b"], None, ["a", None], [""]], ["a  c", "", "b", None]):
        path = many(tmp_path / "a.jsonl", len(values), kind=values)
        found = encoded(text(path, labels="kind"))
        assert found.state["fitted"]["classes"]["labels"] == ["a", "b", "c"]
        assert [row["labels"] for row in found.parts["train"]] == [[0, 2], [], [1]]
        assert found.bad == [(row, "kind", "no value") for row in range(4, len(values) + 1)]
        assert found.state["fitted"]["counts"]["labels"] == [2 if len(values) > 4 else 1, 1, 1]


def test_numbers_are_stored_and_what_is_no_number_is_quarantined(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 6, a=[1, 2.5, None, 3, 4, 1e300], b=[0, 0, 0, -1, math.inf, 0])
    found = encoded(text(path, numbers=["a", "b"]))
    assert [row["numbers"] for row in found.parts["train"]] == [[1, 0], [2.5, 0], [3, -1]]
    assert found.bad == [
        (3, "a", "None is no finite number"),
        (5, "b", "inf is no finite number"),
        (6, "a", "1e+300 is no finite number"),
    ]
    np.testing.assert_allclose(found.state["fitted"]["numbers"]["mean"], [6.5 / 3, -1 / 3])
    np.testing.assert_allclose(found.state["fitted"]["numbers"]["std"], np.std([[1, 0], [2.5, 0], [3, -1]], 0))
    (tmp_path / "a.csv").write_text("text,a\nx,1\ny,one\nz, 3 \nw,\n")
    found = encoded(text(str(tmp_path / "a.csv"), numbers=["a"]))
    assert [row["numbers"] for row in found.parts["train"]] == [[1], [3]]
    assert found.bad == [(3, "a", "'one' is no finite number"), (5, "a", "'' is no finite number")]
    assert found.state["fitted"]["numbers"] == {"mean": [2], "std": [1]}


@pytest.mark.parametrize("odd", ["1_000", "\u0661\u0662", "nan(1)", "0x10"])
def test_a_numeral_of_no_csv_is_quarantined_with_its_row_and_value(tmp_path, encoded, odd):
    (tmp_path / "a.csv").write_text(f"text,a\nx,1\ny,{odd}\nz,3e0\n")
    found = encoded(text(str(tmp_path / "a.csv"), numbers=["a"]))
    assert [row["numbers"] for row in found.parts["train"]] == [[1], [3]]
    assert found.bad == [(3, "a", f"{odd!r} is no finite number")]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a"], "column 'label' has one class only, 'a', in the training rows; at least two are needed"),
        ([None], "column 'label' has no class in the training rows"),
        ([["a"], ["b"]], r"a.jsonl: column 'label' holds list<item: string>, where names or numbers are"),
        ([{"a": 1}], r"a.jsonl: column 'label' holds struct<a: int64>, where names or numbers are expected"),
        ([f"c{i}" for i in range(10_001)], "column 'label' has 10,001 classes in the training rows, more than 10,000"),
    ],
)
def test_a_label_column_that_cannot_be_one_is_an_error(tmp_path, encoded, values, message):
    with pytest.raises(ValueError, match=message):
        encoded(text(many(tmp_path / "a.jsonl", len(values), label=values)))


@pytest.mark.parametrize(
    ("options", "values", "message"),
    [
        ({"numbers": ["kind"]}, [True], r"a.jsonl: column 'kind' holds bool, where numbers are expected; name another"),
        (
            {"labels": "kind"},
            [[["a"]]],
            r"column 'kind' holds list<item: list<item: string>>, where lists of names or",
        ),
        ({"label": "knid"}, ["a"], r"a.jsonl has no column 'knid', did you mean 'kind'\?"),
    ],
)
def test_columns_of_a_wrong_type_are_an_error(tmp_path, encoded, options, values, message):
    with pytest.raises(ValueError, match=message):
        encoded(text(many(tmp_path / "a.jsonl", 10, kind=values), **options))


def test_label_and_labels_contradict_each_other():
    with pytest.raises(ValueError, match=r"dataset.label .* and dataset.labels .* contradict each other"):
        text("a", label="a", labels="b")


def test_rows_that_cannot_be_parsed_are_counted_once_among_several_splits(tmp_path, encoded):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "a", "label": i % 2}) + "\n" if i % 5 else "{\n" for i in range(500)))
    found = encoded(text(str(path), split={"validation": 0.3, "test": 0.3}))
    assert [row for row, _, _ in found.bad] == list(range(1, 501, 5))
    assert sum(len(rows) for rows in found.parts.values()) == 400
    path.write_text(
        "split,text,label\n"
        + "".join(f"{'train' if i % 3 else 'test'},a,{i % 2}\n" if i % 5 else "x\n" for i in range(500))
    )
    found = encoded(text(str(path.rename(tmp_path / "a.csv")), split_column="split"))
    assert [row for row, _, _ in found.bad] == list(range(2, 502, 5))
    assert sum(len(rows) for rows in found.parts.values()) == 400


# --- other data by the same fitted state ----------------------------------------------------------------------------


def test_other_data_is_encoded_with_the_given_vocabulary_and_classes(tmp_path, encoded):
    first = text(many(tmp_path / "a.jsonl", 10))
    state = encoded(first).state
    other = text(
        {
            "test": lines(
                tmp_path / "b.jsonl", [{"text": "t9 new t3", "label": "yes"}, {"text": "t1", "label": "perhaps"}]
            )
        }
    )
    alone = cache_key(other)
    other.reuse(state)
    assert cache_key(other) != alone
    found = encoded(other)
    assert found.state["fitted"] == state["fitted"]
    [row] = found.parts["test"]
    assert row["label"] == state["fitted"]["classes"]["label"].index("yes")
    assert row["tokens"] == encoded_text(first, state, "t9 [ t3")
    renamed = text({"test": lines(tmp_path / "c.jsonl", [{"text": "t9", "verdict": "yes"}])}, label="verdict")
    renamed.reuse(state)
    assert encoded(renamed).parts["test"][0]["label"] == row["label"]  # a column may be called otherwise
    with pytest.raises(ValueError, match=r"dataset\.labels is not what the bundle predicts \(dataset\.label\)"):
        text(str(tmp_path / "b.jsonl"), labels="label").reuse(state)
    assert found.bad == [(2, "label", "'perhaps' is no class of the training rows")]


def encoded_text(dataset, state, sentence):
    [table] = dataset.encode_request(sentence, state)
    return table["tokens"][0].as_py()


def test_other_data_need_not_have_the_splits_that_the_first_had(tmp_path, encoded):
    path = many(tmp_path / "a.jsonl", 40, split=["train", "validation", "train"])
    state = encoded(text(path, split_column="split")).state
    other = text(many(tmp_path / "b.jsonl", 5, split=["test", "test", None]), split_column="split")
    other.reuse(state)
    found = encoded(other)
    assert {part: len(rows) for part, rows in found.parts.items()} == {"test": 4}
    assert found.bad == [(3, "split", "no value")]
    other = text({"test": many(tmp_path / "c.jsonl", 5)}, split={"validation": 0.1})
    other.reuse(state)
    assert {part: len(rows) for part, rows in encoded(other).parts.items()} == {"test": 5}


def test_the_key_changes_with_the_options_the_splits_and_the_reused_state(tmp_path):
    path = many(tmp_path / "a.jsonl")
    made = [
        text(path),
        text(path, label="text"),
        text(path, split={"test": 0.1}),
        text(path, vocabulary=99),
        text({"train": path}),
        text({"test": path}),
        text(path, split_column="label"),
        text(path, split_column="label", split_values={"test": ["yes"]}),
        text(path),
        text(path),
    ]
    made[-2].reuse({"fitted": {"classes": {"label": ["a"]}}})
    made[-1].reuse({"fitted": {"classes": {"label": ["b"]}}})
    keys = [cache_key(dataset) for dataset in made]
    assert keys[0] == keys[4]  # the same rows in the same split
    assert len(set(keys)) == len(keys) - 1


# --- sums -----------------------------------------------------------------------------------------------------------

pairs = st.tuples(st.floats(-1e6, 1e6), st.floats(1e8, 1e8 + 1))


@given(st.lists(st.lists(pairs, max_size=20), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_moments_of_blocks_are_those_of_the_whole(blocks):
    arrays = [np.array(block, np.float64).reshape(-1, 2) for block in blocks]
    total = tally_moments(arrays[0])
    for array in arrays[1:]:
        total = merge(total, json.loads(json.dumps(tally_moments(array))))
    whole = np.concatenate(arrays)
    assert total["count"] == len(whole)
    if len(whole):
        np.testing.assert_allclose(total["mean"], whole.mean(0), rtol=1e-9, atol=1e-6)
        np.testing.assert_allclose(np.array(total["m2"]) / len(whole), whole.var(0), rtol=1e-5, atol=1e-5)


def test_a_column_that_never_changes_has_deviation_1():
    assert moments(tally_moments(np.full((5, 1), 1e9)))["std"] == [1.0]


def test_classes_that_look_like_numbers_only_in_part_are_sorted_as_text():
    assert class_order("x", {"10": 1, "9": 1, "-": 1}) == ["-", "10", "9"]
    assert class_order("x", {"10": 1, "9": 1, "-3": 1}) == ["-3", "9", "10"]
