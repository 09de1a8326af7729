"""The plan's invariants, over drawn row counts, shards, workers, budgets and seeds."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.pipeline.plan import BUCKET, Cursor, Plan, buckets, checksum, checksum_range, share

shards = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 100)), min_size=1, max_size=12)


@st.composite
def plans(draw):
    rows, sizes = map(np.array, zip(*draw(shards), strict=True))
    tokens = draw(st.none() | st.integers(20, 200))
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(1, 21, rows.sum()).astype(np.int32)
    return Plan(
        rows.astype(np.int64),
        sizes.astype(np.int64),
        draw(st.integers(1, 50)),
        draw(st.integers(0, 9)),
        draw(st.integers(1, 300)),
        draw(st.booleans()),
        tokens,
        None if tokens is None else lengths,
    )


def batches_of(plan, epoch=0, start=None):
    return [(cursor, ids.tolist()) for cursor, _, ids in plan.epoch(epoch, start)]


@given(plans(), st.integers(0, 3), st.integers(1, 5), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_every_row_exactly_once_and_equal_steps_for_any_number_of_workers(plan, epoch, world, parts):
    seen, steps = [], np.zeros(world, int)
    for _, _, batch in plan.epoch(epoch):
        for rank in range(world):
            micro = share(batch, rank, world, parts)
            steps[rank] += len(micro)
            for ids, weights, _ in micro:
                assert ids.size == weights.size > 0
                seen += ids[weights > 0].tolist()
    assert sorted(seen) == list(range(plan.total))
    assert (steps == steps[0]).all()
    assert (
        sum(map(checksum, (np.array(seen, dtype=np.int64).reshape(-1, 1)))) % 2**64
        == checksum_range(plan.total) % 2**64
    )


@given(plans(), st.integers(0, 2))
@settings(max_examples=80, deadline=None)
def test_batches_stay_inside_their_shard_group_and_budget(plan, epoch):
    shard_of = np.repeat(np.arange(plan.rows.size), plan.rows)
    for _, group, ids in plan.epoch(epoch):
        assert 0 < ids.size <= plan.batch_rows
        assert set(shard_of[ids]) <= set(group.tolist())
        assert group.size == 1 or plan.sizes[group].sum() <= plan.group_bytes
        if plan.batch_tokens is not None:
            assert ids.size * plan.lengths[ids].max() <= plan.batch_tokens


@given(plans(), st.integers(0, 2), st.data())
@settings(max_examples=80, deadline=None)
def test_a_resumed_plan_has_exactly_the_remaining_batches(plan, epoch, data):
    whole = batches_of(plan, epoch)
    stop = data.draw(st.integers(0, max(0, len(whole) - 1)))
    if whole:
        assert batches_of(replace(plan), epoch, whole[stop][0]) == whole[stop:]


@given(plans())
@settings(max_examples=40, deadline=None)
def test_order_is_a_function_of_seed_and_epoch(plan):
    assert batches_of(plan, 1) == batches_of(replace(plan), 1)
    if plan.shuffle and plan.total > 30:
        assert [b for _, b in batches_of(plan, 1)] != [b for _, b in batches_of(plan, 2)]
        assert [b for _, b in batches_of(plan, 1)] != [b for _, b in batches_of(replace(plan, seed=plan.seed + 1), 1)]


@st.composite
def ragged(draw):
    """Plans over rows of unequal length, with or without a budget of tokens."""
    longest = draw(st.integers(1, 3000))
    rows = np.array(draw(st.lists(st.integers(0, 80), min_size=1, max_size=6)))
    lengths = np.random.default_rng(draw(st.integers(0, 99))).integers(1, longest + 1, rows.sum()).astype(np.int32)
    tokens = draw(st.none() | st.integers(longest, 6 * longest))
    return Plan(
        rows,
        np.full(rows.size, 10),
        draw(st.integers(1, 70)),
        draw(st.integers(0, 9)),
        draw(st.integers(10, 60)),
        draw(st.booleans()),
        tokens,
        lengths,
    )


@given(ragged(), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_rows_of_unequal_length_come_once_within_the_budget_and_in_few_more_batches_than_needed(plan, epoch):
    seen, sizes = [], []
    for _, _, ids in plan.epoch(epoch):
        seen += ids.tolist()
        sizes.append(ids.size)
        lengths = plan.lengths[ids]
        assert 0 < ids.size <= plan.batch_rows
        assert plan.batch_tokens is None or ids.size * int(lengths.max()) <= plan.batch_tokens
    assert sorted(seen) == list(range(plan.total))
    if plan.batch_tokens is None:  # a batch is full, but for the last of each group
        groups = sum(1 for _ in plan.groups(epoch))
        assert sum(size < plan.batch_rows for size in sizes) <= groups


@given(st.lists(st.integers(1, 100_000), min_size=1, max_size=200))
@settings(max_examples=200, deadline=None)
def test_a_bucket_ends_less_than_its_share_above_each_length(lengths):
    lengths = np.array(lengths, np.int32)
    bounds = buckets(lengths)
    assert (bounds >= lengths).all()
    assert ((bounds - lengths) <= BUCKET * lengths).all()
    shorter = np.argsort(lengths, kind="stable")
    assert (np.diff(bounds[shorter]) >= 0).all()
    assert len(set(bounds.tolist())) <= 1 + np.log(lengths.max()) / np.log(1 + BUCKET / 2) + 1 / BUCKET


def test_batches_differ_between_epochs_even_where_all_lengths_do():
    lengths = np.random.default_rng(0).permutation(np.arange(1, 4001)).astype(np.int32)
    for tokens in (None, 16_000):
        plan = Plan(np.full(4, 1000), np.full(4, 1), 32, batch_tokens=tokens, lengths=lengths)
        one, two = ([frozenset(ids.tolist()) for _, _, ids in plan.epoch(epoch)] for epoch in (0, 1))
        assert len(set(one) & set(two)) < len(one) / 10
        assert [min(batch) for batch in one] != sorted(min(batch) for batch in one)
        long = [batch for batch in one if lengths[list(batch)].mean() > 2000]
        together = {batch: max(len(batch & other) for other in two) / len(batch) for batch in long}
        assert np.mean(list(together.values())) < 0.8


@pytest.mark.parametrize("tokens", [None, 16_384])
@pytest.mark.parametrize("groups", [1, 4])
def test_bucketed_batches_hold_little_padding(tokens, groups):
    lengths = np.clip(np.random.default_rng(0).lognormal(5, 0.9, 40_000), 1, 2000).astype(np.int32)
    plan = Plan(
        np.full(20, 2000),
        np.full(20, 1),
        64 if tokens is None else 4096,
        group_bytes=20 // groups,
        batch_tokens=tokens,
        lengths=lengths,
    )
    assert len(plan.groups(0)) == groups
    used = sum(int(lengths[ids].sum()) for _, _, ids in plan.epoch(0))
    computed = sum(ids.size * int(lengths[ids].max()) for _, _, ids in plan.epoch(0))
    assert used == lengths.sum()
    assert used / computed >= 0.95


def test_planning_takes_few_bytes_a_row_so_that_100_million_fit_in_2_gb():
    rows = 1_000_000
    lengths = np.random.default_rng(0).integers(5, 200, rows).astype(np.int32)
    plan = Plan(np.full(10, rows // 10), np.full(10, 1), 4096, group_bytes=3, batch_tokens=65_536, lengths=lengths)
    tracemalloc.start()
    try:
        batches = sum(1 for _ in plan.epoch(0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(plan.groups(0)) == 4 and 1000 < batches < rows / 100
    assert peak + lengths.nbytes < 20 * rows


def test_a_token_budget_below_the_longest_row_names_the_row():
    with pytest.raises(ValueError, match=r"batch_tokens=5 .* \(row 1: 9 steps\); use at least 9"):
        Plan(np.array([2]), np.array([1]), 4, batch_tokens=5, lengths=np.array([3, 9], np.int32))


def test_cursors_are_ordered_as_the_plan_is():
    plan = Plan(np.full(5, 7), np.full(5, 10), 3, group_bytes=20)
    cursors = [c for c, _, _ in plan.epoch(0)]
    assert cursors == sorted(cursors) and cursors[0] == Cursor()
