"""Sequences of frames. Without Ray; see conftest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import datasets
from datasets.reading import formats


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, values: pa.Array, **columns) -> str:
    pq.write_table(pa.table({"values": values, "label": [f"c{i % 2}" for i in range(len(values))], **columns}), path)
    return str(path)


def build(path, **options):
    target = {} if {"label", "labels", "step_labels", "numbers"} & options.keys() else {"label": "label"}
    return datasets.build("sequences", path=path, **{"scale": "none", **target, **options})


def frames(found, part="train"):
    """The stored frames of each row, as lists of lists."""
    channels = found.state["fitted"]["channels"]
    return [np.array(row["values"]).reshape(row["length"], channels).tolist() for row in found.parts[part]]


TWO = [[[1.0, 2], [3, 4], [5, 6]], [[7, 8]]]
ONE = [[[1.0], [2], [3]], [[4]]]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        (pa.list_(pa.list_(pa.float64())), TWO, TWO),
        (pa.list_(pa.list_(pa.float32())), TWO, TWO),
        (pa.list_(pa.list_(pa.float16())), TWO, TWO),
        (pa.list_(pa.list_(pa.int16())), TWO, TWO),
        (pa.large_list(pa.large_list(pa.float64())), TWO, TWO),
        (pa.list_(pa.list_(pa.float64(), 2)), TWO, TWO),
        (pa.list_(pa.list_(pa.uint64(), 2), 2), [TWO[0][:2], TWO[0][1:]], [TWO[0][:2], TWO[0][1:]]),
        (pa.list_(pa.int64()), [[1, 2, 3], [4]], ONE),
        (pa.list_(pa.float32()), [[1, 2, 3], [4]], ONE),
        (pa.list_(pa.float32(), 3), [[1, 2, 3], [4, 5, 6]], [ONE[0], [[4], [5], [6]]]),
    ],
)
def test_lists_of_any_storage_are_frames(tmp_path, encoded, kind, values, expected):
    values = [[[int(x) for x in frame] for frame in row] if isinstance(row[0], list) else row for row in values]
    found = encoded(build(parquet(tmp_path / "a.parquet", pa.array(values, kind))))
    assert frames(found) == expected and found.bad == []


def test_json_holds_frames_or_numbers(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(formats, "LINE_ROWS", 1)  # a block of whole numbers, a block of others
    for values, expected in ((TWO, TWO), ([[1, 2, 3], [4.0]], ONE)):
        rows = [{"values": row, "label": i} for i, row in enumerate(values)]
        assert frames(encoded(build(lines(tmp_path / "a.jsonl", rows)))) == expected


BAD = {
    "fewer": ([[1, 2], [3]], "a frame of 1 channels, where 2 are expected"),
    "more": ([[1, 2, 3], [4, 5, 6]], "a frame of 3 channels, where 2 are expected"),
    "no frame": ([[1, 2], None], "a frame of 0 channels, where 2 are expected"),
    "nan": ([[1, 2], [float("nan"), 4]], "a missing, infinite or too large number"),
    "infinite": ([[1, float("inf")]], "a missing, infinite or too large number"),
    "large": ([[1, -1e300]], "a missing, infinite or too large number"),
    "hole": ([[1, None]], "a missing, infinite or too large number"),
    "null": (None, "no value"),
    "empty": ([], "empty"),
    "empty frame": ([[]], "a frame of 0 channels, where 2 are expected"),
}


@pytest.mark.parametrize("storage", ["jsonl", "parquet"])
def test_rows_that_are_no_frames_are_quarantined_and_change_nothing_else(tmp_path, encoded, storage):
    good = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], [[7.0, 8.0]]]
    values = [*(value for value, _ in BAD.values()), *good, *(value for value, _ in BAD.values())]
    if storage == "parquet":
        path = parquet(tmp_path / "a.parquet", pa.array(values, pa.list_(pa.list_(pa.float64()))))
    else:
        path = lines(tmp_path / "a.jsonl", [{"values": row, "label": i % 2} for i, row in enumerate(values)])
    found = encoded(build(path, scale="standard"))
    count = len(BAD)
    reasons = [reason for _, reason in BAD.values()]
    assert [row for row, _, _ in found.bad] == [*range(1, count + 1), *range(count + 4, 2 * count + 4)]
    assert [(field, reason) for _, field, reason in found.bad] == [("values", reason) for reason in reasons * 2]
    scaling = found.state["fitted"]["scaling"]
    usable = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])  # infinities and holes are in no mean
    np.testing.assert_allclose(scaling["mean"], usable.mean(0))
    np.testing.assert_allclose(scaling["std"], usable.std(0))
    assert np.vstack(frames(found)) == pytest.approx((usable - usable.mean(0)) / usable.std(0))


def test_whole_numbers_beyond_what_a_float_holds_exactly_are_rounded(tmp_path, encoded):
    values = pa.array([[2**60 + 1], [-(2**60) - 1]], pa.list_(pa.int64()))
    assert frames(encoded(build(parquet(tmp_path / "a.parquet", values)))) == [[[2.0**60]], [[-(2.0**60)]]]


def test_a_block_of_bad_rows_only_is_quarantined(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(formats, "LINE_ROWS", 2)
    values = [None, [], None, None, [[1.0]], [[2.0], [3.0]], [[]], []]
    rows = [{"values": value, "label": i % 2} for i, value in enumerate(values)]
    found = encoded(build(lines(tmp_path / "a.jsonl", rows)))
    assert [row for row, _, _ in found.bad] == [1, 2, 3, 4, 7, 8]
    assert frames(found) == [[[1.0]], [[2.0], [3.0]]]


def test_scaling_comes_from_the_training_split_only(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(formats, "LINE_ROWS", 2)
    rng = np.random.default_rng(0)
    sets = {
        part: [rng.normal(shift, 3, (int(n), 2)).tolist() for n in rng.integers(1, 9, 7)]
        for part, shift in (("train", 5), ("test", 500))
    }
    paths = {
        part: lines(tmp_path / f"{part}.jsonl", [{"values": v, "label": i % 2} for i, v in enumerate(values)])
        for part, values in sets.items()
    }
    found = encoded(build(paths, scale="standard"))
    whole = np.vstack(sets["train"])
    for part, values in sets.items():
        for stored, given in zip(frames(found, part), values, strict=True):
            np.testing.assert_allclose(stored, (given - whole.mean(0)) / whole.std(0), rtol=1e-5, atol=1e-5)
    assert frames(encoded(build(paths)), "test")[0] == pytest.approx(np.array(sets["test"][0]), rel=1e-6)


def test_the_channels_are_those_of_most_training_frames(tmp_path, encoded, monkeypatch):
    monkeypatch.setattr(formats, "LINE_ROWS", 1)
    rows = [{"values": [[1, 2]] * n, "label": i % 2} for i, n in enumerate((1, 1, 1))]
    rows += [{"values": [[1, 2, 3]] * 5, "label": i} for i in range(2)]
    found = encoded(build(lines(tmp_path / "a.jsonl", rows)))
    assert (found.state["fitted"]["channels"], len(found.bad)) == (3, 3)


@pytest.mark.parametrize("values", [["1 2", "3"], [1.5, 2.5], [["a"], ["b"]], [[[[1]]], [[[2]]]], [True, False]])
def test_a_column_of_a_wrong_type_is_an_error(tmp_path, encoded, values):
    kind = str(pa.array(values).type).replace("item", "element")  # as Parquet names it
    with pytest.raises(ValueError, match=rf"^{tmp_path}/a.parquet: column 'values' holds {kind}, not a list over time"):
        encoded(build(parquet(tmp_path / "a.parquet", pa.array(values))))


def test_data_without_frames_is_an_error(tmp_path, encoded):
    with pytest.raises(ValueError, match=r"column 'values' has no frames in the training rows; name the column"):
        encoded(build(lines(tmp_path / "a.jsonl", [{"values": [], "label": i} for i in range(4)])))


def test_targets_of_a_sequence_or_of_each_step(tmp_path, encoded):
    rows = [
        {"values": [[1], [2], [3]], "tags": ["b", "a", "b"], "all": "x z", "n": 1, "m": 2.5},
        {"values": [[4]], "tags": ["a"], "all": "", "n": 3, "m": -1},
        {"values": [[5], [6]], "tags": ["a"], "all": "x", "n": 0, "m": 0},
        {"values": [[5, 6], [6, 7]], "tags": ["a"], "all": "x", "n": 0, "m": 0},
    ]
    found = encoded(build(lines(tmp_path / "a.jsonl", rows), step_labels="tags", labels="all", numbers=["n", "m"]))
    assert [[row[name] for name in ("step_labels", "labels", "numbers")] for row in found.parts["train"]] == [
        [[1, 0, 1], [0, 1], [1, 2.5]],
        [[0], [], [3, -1]],
    ]
    assert found.bad == [
        (3, "tags", "1 classes for 2 steps"),
        (4, "values", "a frame of 2 channels, where 1 are expected"),
    ]


def test_a_request_is_scaled_as_training_was(tmp_path, encoded):
    rows = [{"values": [[1.0, 5], [3, 5]], "label": i} for i in range(2)]
    dataset = build(lines(tmp_path / "a.jsonl", rows), scale="standard")
    state = encoded(dataset).state
    rows = [{"values": [[2, 5], [3, 6]]}, {"values": [[2]]}, {"other": 1}, {"values": None}]
    path = lines(tmp_path / "b.jsonl", rows)
    found = [row for table in dataset.encode_request(path, state) for row in table.to_pylist()]
    assert [(row["values"], row["length"]) for row in found] == [
        ([0, 0, 1, 1], 2),
        (None, None),
        (None, None),
        (None, None),
    ]
    assert [row["skipped"] for row in found] == [
        None,
        "values: a frame of 1 channels, where 2 are expected",
        "values: missing",
        "values: no value",
    ]
