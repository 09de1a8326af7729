"""Stored rows as batches, against plain Python loops."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.pipeline.prepared import Part, Shard
from datasets.pipeline.views import RaggedArray, RowReader, RowView


@st.composite
def stored(draw):
    """(rows of frames of some channels with a class a step, classes, numbers; channels, and how many classes)."""
    channels, classes = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=15))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    rows = [
        {
            "length": n,
            "values": rng.normal(size=n * max(1, channels)).astype(np.float32).tolist(),
            "steps": rng.integers(-1, classes, n).tolist(),
            "label": int(rng.integers(classes)),
            "several": rng.permutation(classes)[: rng.integers(classes + 1)].tolist(),
            "numbers": rng.normal(size=2).astype(np.float32).tolist(),
        }
        for n in lengths
    ]
    return rows, channels, classes


SCHEMA = pa.schema(
    {
        "length": pa.int32(),
        "values": pa.list_(pa.float32()),
        "steps": pa.list_(pa.int32()),
        "label": pa.int32(),
        "several": pa.list_(pa.int32()),
        "numbers": pa.list_(pa.float32(), 2),
    }
)


def table(rows, pieces=1):
    """The rows as Arrow, in several chunks."""
    cuts = [rows] if pieces == 1 else [rows[:1], rows[1:]]
    return pa.concat_tables([pa.Table.from_pylist(cut, SCHEMA) for cut in cuts])


def padded(lists, shape, padding):
    width = max(len(one) for one in lists)
    return np.array([list(one) + [np.full(shape, padding).tolist()] * (width - len(one)) for one in lists])


@given(stored(), st.lists(st.integers(0, 99), min_size=1, max_size=20), st.sampled_from([1, 2]))
@settings(max_examples=200, deadline=None)
def test_batches_equal_those_of_a_plain_loop(example, chosen, pieces):
    rows, channels, classes = example
    numbers = np.arange(len(rows)) * 3 + 5  # of the stored rows, those in memory
    kinds = {"steps": "step", "label": "row", "numbers": "row", "several": classes}
    reader = RowReader(numbers, table(rows, pieces), {"values": channels}, kinds)
    ids = numbers[np.array(chosen) % len(rows)]
    some = [rows[i % len(rows)] for i in chosen]
    fields = reader.read(ids)
    frames = [np.array(row["values"]).reshape(-1, channels).tolist() if channels else row["values"] for row in some]
    np.testing.assert_array_equal(fields["inputs"]["values"], padded(frames, (channels,) if channels else (), 0.0))
    assert fields["lengths"]["values"].tolist() == [row["length"] for row in some]
    targets = fields["targets"]
    np.testing.assert_array_equal(targets["steps"], padded([row["steps"] for row in some], (), -1))
    assert targets["label"].tolist() == [row["label"] for row in some]
    np.testing.assert_array_equal(targets["numbers"], np.array([row["numbers"] for row in some], np.float32))
    assert targets["several"].tolist() == [[float(k in row["several"]) for k in range(classes)] for row in some]
    assert {name: str(x.dtype) for name, x in targets.items()} == {
        "steps": "int64",
        "label": "int64",
        "numbers": "float32",
        "several": "float32",
    }


@given(st.lists(st.integers(1, 12), min_size=1, max_size=20), st.data())
@settings(max_examples=200, deadline=None)
def test_sequences_near_the_end_are_complete_and_the_stored_array_is_not_changed(steps, data):
    flat = np.arange(1, sum(steps) + 1, dtype=np.int32)
    flat.flags.writeable = False  # as in the object store
    sequences = RaggedArray(flat, np.array(steps))
    rows = np.array([*data.draw(st.lists(st.integers(0, len(steps) - 1), max_size=8)), len(steps) - 1])
    got = sequences.padded(rows, padding=-7)
    ends = np.cumsum(steps)
    for row, out in zip(rows, got, strict=True):
        assert out[: steps[row]].tolist() == list(range(ends[row] - steps[row] + 1, ends[row] + 1))
        assert (out[steps[row] :] == -7).all()
    assert got.shape == (len(rows), max(steps[row] for row in rows))
    got[:] = 0
    assert flat[0] == 1


@pytest.mark.parametrize("several", [[], [2]])
def test_rows_without_any_class_are_all_zeros(several):
    rows = [
        {"length": 1, "values": [1.0], "steps": [0], "label": 0, "several": s, "numbers": [0, 0]}
        for s in ([], several, [])
    ]
    fields = RowReader(np.arange(3), table(rows), {}, {"several": 3}).read(np.array([2, 1, 0]))
    expected = [[0, 0, 0], [float(k in several) for k in range(3)], [0, 0, 0]]
    assert fields["targets"]["several"].tolist() == expected


def test_a_view_reads_the_stored_rows_of_the_requested_shards():
    shards = tuple(Shard(f"{i}", n, 1, 1, "", (n,)) for i, n in enumerate((2, 0, 3)))
    index = pa.table({"shard": pa.array([0, 0, 2, 2, 2], pa.int32()), "length": pa.array([3, 1, 2, 5, 4], pa.int32())})
    view = RowView(Part(shards, index), {"values": 0}, {})
    assert view.rows.tolist() == [2, 0, 3]
    assert view.lengths.tolist() == [3, 1, 2, 5, 4]
    assert view.stored_rows(np.array([2])).tolist() == [2, 3, 4]
    assert view.stored_rows(np.array([2, 0])).tolist() == [0, 1, 2, 3, 4]
    rows = [{"length": n, "values": [float(n)] * n} for n in (2, 5, 4)]
    reader = view.reader(view.stored_rows(np.array([2])), pa.Table.from_pylist(rows, pa.schema(list(SCHEMA)[:2])))
    assert reader.read(np.array([4, 2]))["inputs"]["values"].tolist() == [[4, 4, 4, 4], [2, 2, 0, 0]]
