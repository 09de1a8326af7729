"""New rows for a trained model, in the form that all kinds of datasets share. Without Ray."""

import json

import numpy as np
import pytest

import datasets
from datasets.shared.request import RequestDataset

TOKENS = {"kind": "generate", "target": "tokens"}
LABEL = {"kind": "classify", "target": "label"}


@pytest.fixture
def text(tmp_path, encoded):
    """A dataset of words, and its state."""
    (tmp_path / "train.csv").write_text("text,label\na b,x\nc a b,y\n")
    options = {"path": f"{tmp_path}/train.csv", "label": "label", "tokenizer": "word", "vocabulary": 20}
    dataset = datasets.build("text", **options, max_length=2)
    return dataset, encoded(dataset).state


def test_rows_that_cannot_be_used_are_skipped_and_the_others_are_numbered(tmp_path, text):
    dataset, state = text
    (tmp_path / "new.csv").write_text('text\n"b a"\n""\na\n')
    [rows] = dataset.read_request(f"{tmp_path}/new.csv", state, LABEL)
    assert rows.total == 3 and rows.usable.tolist() == [0, 2]
    assert rows.skipped.to_pylist() == [None, "text: empty", None]
    assert rows.identity["row"].to_pylist() == [2, 3, 4]
    assert rows.lengths.tolist() == [2, 1] and rows.context["steps"] == [[0, 1], [0]]
    words = json.loads(state["fitted"]["tokenizer"])["model"]["vocab"]
    assert rows.reader.read(np.array([1, 0]))["inputs"]["tokens"].tolist() == [
        [words["a"], 0],
        [words["b"], words["a"]],
    ]


def test_a_skipped_row_is_not_counted_as_cut(tmp_path, text):
    dataset, state = text
    (tmp_path / "new.csv").write_text('text\n"a b c"\n""\n"a b"\n')
    [rows] = dataset.read_request(f"{tmp_path}/new.csv", state, LABEL)
    assert rows.cut == 1


def test_the_empty_text_is_a_row_without_tokens_to_generate_from(text):
    dataset, state = text
    [rows] = dataset.read_request("", state, TOKENS)
    assert rows.usable.tolist() == [0] and rows.identity["file"].to_pylist() == ["text"]
    assert rows.reader.read(np.array([0]))["inputs"]["tokens"].shape == (1, 0)
    with pytest.raises(ValueError, match="the path of the data is empty"):
        list(dataset.read_request("", state, LABEL))


def test_series_have_their_last_steps_and_the_times_of_the_horizon(tmp_path):
    columns = {"targets": ["y"], "covariates": [], "categorical": {}, "calendar": ["hour"], "observed": False}
    known = {"name": "a", "mean": [10.0, 0, 0], "std": [2.0, 1, 1], "fill": [10.0]}
    state = {"channels": columns, "frequency": "1h", "series": [known]}
    lines = [f"2024-01-01 0{h}:00,{name},{v + h}" for name, v in (("b", 0), ("a", 10)) for h in range(5)]
    (tmp_path / "new.csv").write_text("\n".join(["time,series,y", *lines]) + "\n")
    options = {"time": "time", "series": "series", "targets": ["y"], "calendar": ["hour"], "split": {"validation": 0.2}}
    dataset = datasets.build("timeseries", path="", **options)
    task = {"kind": "forecast", "target": "series", "lookback": 3, "horizon": 2}
    [rows] = dataset.read_request(f"{tmp_path}/new.csv", state, task)
    assert rows.total == 2 and rows.skipped is None
    assert rows.identity["series"].to_pylist() == ["a", "b"]
    assert rows.context["times"] == [["2024-01-01 05:00", "2024-01-01 06:00"]] * 2
    assert rows.context["mean"][0].tolist() == [10.0] and rows.context["std"][0].tolist() == [2.0]
    fields = rows.reader.read(np.array([0]))
    assert fields["inputs"]["values"][0, :, 0].tolist() == [1.0, 1.5, 2.0]  # 12, 13, 14, scaled
    assert fields["inputs"]["known"].shape == (1, 2, 2) and fields["lengths"]["values"].tolist() == [3]
    assert dataset.names(state, "series") == ["y"]
    with pytest.raises(ValueError, match="series 'a' has 5 rows; the model looks back 6 steps"):
        list(dataset.read_request(f"{tmp_path}/new.csv", state, {**task, "lookback": 6}))


def test_a_dataset_that_is_only_made_from_a_seed_reads_no_requests():
    assert not isinstance(datasets.build("random_sequences"), RequestDataset)
    assert isinstance(datasets.build("text", path="", label="x"), RequestDataset)
