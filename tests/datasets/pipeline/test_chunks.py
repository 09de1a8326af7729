"""Chunks of documents, and the lanes in which a plan puts them."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.pipeline.chunks import ChunkView
from datasets.pipeline.plan import LANE, Cursor, Plan, share
from datasets.pipeline.prepared import Part, Shard
from models.special_tokens import BEGIN, END

LENGTHS = [5, 1, 2, 7, 3]


def part_of(lengths, shards):
    """Stored rows spread over shards, and the table of all of them: row r holds 100 r, 100 r + 1, ..."""
    counts = np.bincount(np.sort(np.arange(len(lengths)) % shards), minlength=shards)
    shard = np.repeat(np.arange(shards), counts)
    part = Part(
        tuple(Shard(f"{s}", int(n), 1, 1, "", (int(n),)) for s, n in enumerate(counts)),
        pa.table({"shard": shard, "length": pa.array(lengths, pa.int32())}),
    )
    steps = [[100 * r + i for i in range(n)] for r, n in enumerate(lengths)]
    return part, pa.table({"tokens": pa.array(steps, pa.list_(pa.int32())), "length": pa.array(lengths, pa.int32())})


def fields(view, table, ids, stored=None):
    stored = np.arange(len(table)) if stored is None else stored
    return view.reader(stored, table.take(pa.array(stored))).read(np.asarray(ids))


@pytest.mark.parametrize("ends", [None, (BEGIN, END)])
@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_step_is_a_target_once_and_in_order(window, ends, shards):
    part, table = part_of(LENGTHS, shards)
    view = ChunkView(part, "tokens", 0, window, ends)
    inputs, targets = {}, {}
    row = -1
    for i in range(int(view.rows.sum())):
        got = fields(view, table, [i])
        steps = int(got["lengths"]["tokens"][0])
        assert got["inputs"]["tokens"].shape == got["targets"]["next"].shape == (1, steps)
        if view.continues_previous is None or not view.continues_previous[i]:
            row += 1
            while ends is None and LENGTHS[row] == 1:  # has no target
                row += 1
        inputs.setdefault(row, []).extend(got["inputs"]["tokens"][0].tolist())
        targets.setdefault(row, []).extend(got["targets"]["next"][0].tolist())
    for r, n in enumerate(LENGTHS):
        steps = [100 * r + i for i in range(n)]
        stream = steps if ends is None else [BEGIN, *steps, END]
        assert inputs.get(r, []) == stream[:-1] and targets.get(r, []) == stream[1:]
    if window in (None, 50):  # no document is cut
        assert view.continues_previous is None
        assert view.lengths.tolist() == [len(targets[r]) for r in sorted(targets)]


def test_a_batch_is_padded_with_zeros_in_any_order_of_rows():
    part, table = part_of(LENGTHS, 2)
    view = ChunkView(part, "tokens", 0, 4, (BEGIN, END))
    ids = [5, 0, 2]  # chunks: 2, 1, 1, 2, 1 of each row
    got = fields(view, table, ids)
    assert got["lengths"]["tokens"].tolist() == [4, 4, 2]
    assert got["inputs"]["tokens"].tolist() == [[303, 304, 305, 306], [BEGIN, 0, 1, 2], [BEGIN, 100, 0, 0]]
    assert got["targets"]["next"].tolist()[:2] == [[304, 305, 306, END], [0, 1, 2, 3]]


def test_rows_of_some_shards_can_be_read_alone():
    part, table = part_of(LENGTHS, 3)
    view = ChunkView(part, "tokens", 0, 2, (BEGIN, END))
    stored = view.stored_rows(np.array([2]))
    first = int(view.rows[:2].sum())
    alone = fields(view, table, [first], stored)["inputs"]["tokens"]
    assert alone.tolist() == fields(view, table, [first])["inputs"]["tokens"].tolist()


def test_several_numbers_a_step_become_floats():
    part, _ = part_of([3, 2], 1)
    table = pa.table({"values": pa.array([[1, 0, 0, 1, 1, 1], [0, 1, 1, 0]], pa.list_(pa.int8()))})
    got = fields(ChunkView(part, "values", 2, None, None), table, [0, 1])
    assert got["inputs"]["values"].tolist() == [[[1, 0], [0, 1]], [[0, 1], [0, 0]]]
    assert got["targets"]["next"].tolist()[0] == [[0, 1], [1, 1]]
    assert got["inputs"]["values"].dtype == np.float32


@st.composite
def lane_plans(draw):
    documents = draw(st.lists(st.lists(st.integers(1, 2 * LANE + 9), max_size=5), min_size=1, max_size=4))
    if not any(documents):
        documents[0] = [3]
    continues_previous = np.concatenate([np.arange(n) > 0 for some in documents for n in some])
    rows = np.array([sum(some) for some in documents], np.int64)
    return Plan(
        rows,
        np.ones_like(rows),
        draw(st.integers(1, 30)),
        draw(st.integers(0, 9)),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        continues_previous=continues_previous,
    )


@given(lane_plans(), st.integers(0, 2), st.integers(1, 4), st.integers(1, 2))
@settings(max_examples=150, deadline=None)
def test_lanes_hold_every_row_once_in_order_and_on_one_worker(plan, epoch, world, parts):
    seen, worker, last, starts = [], {}, {}, 0
    for cursor, _, ids in plan.epoch(epoch):
        assert 0 < ids.size <= plan.batch_rows
        if cursor.batch == 0:
            last, starts = {}, starts + ids.size
        for rank in range(world):
            for mine, weights, lanes in share(ids, rank, world, parts):
                for row, lane in zip(mine[weights > 0].tolist(), lanes[weights > 0].tolist(), strict=True):
                    assert worker.setdefault(lane, rank) == rank == lane % world
                    if lane in last and plan.continues_previous[row]:
                        assert row == last[lane] + 1  # else a state would be carried into other documents
                    assert cursor.batch == 0 or lane in last
                    last[lane] = row
                    seen.append(row)
    assert sorted(seen) == list(range(plan.total))


@given(lane_plans())
@settings(max_examples=100, deadline=None)
def test_evaluation_cuts_long_documents_only(plan):
    plan = Plan(plan.rows, plan.sizes, plan.batch_rows, shuffle=False, continues_previous=plan.continues_previous)
    sizes = np.diff(np.append(np.flatnonzero(~plan.continues_previous), plan.total))
    document = np.repeat(sizes, sizes)
    for cursor, _, ids in plan.epoch(0):
        if cursor.batch == 0:
            assert all(document[row] > LANE for row in ids[plan.continues_previous[ids]])


def test_epochs_cut_a_long_document_at_different_steps():
    plan = Plan(np.array([1000]), np.array([1]), 8, continues_previous=np.arange(1000) > 0)
    firsts = [next(plan.epoch(e))[2].tolist() for e in range(3)]
    assert len({tuple(one) for one in firsts}) == 3
    assert firsts == [next(plan.epoch(e))[2].tolist() for e in range(3)]
    batches = [ids.size for _, _, ids in plan.epoch(0)]
    assert batches == [8] * 125


def test_an_epoch_continues_from_any_position():
    plan = Plan(np.array([80, 40]), np.array([1, 1]), 7, continues_previous=np.arange(120) % 40 > 0)
    whole = [(c, ids.tolist()) for c, _, ids in plan.epoch(1)]
    position = whole[9][0]
    assert [(c, ids.tolist()) for c, _, ids in plan.epoch(1, Cursor(1, position.group, position.batch))] == whole[9:]
