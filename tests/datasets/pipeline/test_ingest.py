"""Ingest on 1, 2 and 3 real Ray processes: the plan's invariants, cached and streamed."""

from __future__ import annotations

import json
import re
import threading
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import ray

import datasets
from datasets.pipeline.ingest import Ingest, cache, configure_ray_data, prefetch
from datasets.pipeline.plan import Cursor, Plan
from datasets.pipeline.prepare import prepare
from datasets.pipeline.storage import Storage

BEGIN = Cursor()
TASK = {"kind": "forecast", "lookback": 48, "horizon": 24, "stride": 3, "target": "label"}


pytestmark = pytest.mark.usefixtures("shared_ray")


@pytest.fixture(scope="module", params=["windows", "rows", "text"])
def source(shared_ray, request, tmp_path_factory):
    """(dataset, prepared data in many small shards, plan of the training split)."""
    root = Storage(tmp_path_factory.mktemp("prepared"))
    if request.param == "windows":
        dataset = datasets.build("generated", series=3, days=20)
        prepared = prepare(dataset, root, shard_bytes=3000)
    elif request.param == "text":
        path = tmp_path_factory.mktemp("raw") / "a.jsonl"
        rng = np.random.default_rng(0)
        path.write_text(
            "".join(json.dumps({"text": "ab " * int(n), "label": int(n) % 2}) + "\n" for n in rng.integers(1, 100, 400))
        )
        dataset = datasets.build("text", path=str(path), label="label", tokenizer="byte", split={"validation": 0.1})
        prepared = prepare(dataset, root, shard_bytes=20_000)
    else:
        dataset = datasets.build("random_sequences", rows=400)
        prepared = prepare(dataset, root, shard_bytes=2000)
    view = dataset.view(prepared, "train", TASK)
    assert len(view.part.shards) >= 3
    sizes = np.array([s.memory for s in view.part.shards])
    tokens = None if view.lengths is None else 300
    plan = Plan(
        view.rows,
        sizes,
        32,
        seed=1,
        group_bytes=int(sizes.max() * 2),
        batch_tokens=tokens,
        lengths=view.lengths if tokens else None,
    )
    return view, prepared.storage, plan


@ray.remote(num_cpus=1)
def read(ingest, start, epochs):
    """[(position, ids of the global batch, ids of this worker, number of micro-batches, sum of values)] by step."""
    configure_ray_data()
    found = []
    for cursor, ids, micro in ingest.steps(start, epochs):
        mine = np.concatenate([m.row_ids[m.weights > 0] for m in micro])
        total = sum(
            float(x.astype(np.float64).reshape(len(x), -1).sum(1) @ m.weights.astype(np.float64))
            for m in micro
            for x in (*m.inputs.values(), *m.targets.values(), *m.lengths.values())
        )
        found.append((cursor, ids.tolist(), mine.tolist(), len(micro), total))
    return found


def on_workers(source, world, *, cached, start=BEGIN, epochs=2):
    view, storage, plan = source
    refs = cache(view.part, storage) if cached else None
    one = Ingest(view, storage, plan, world=world, micro_batches=2, cached=refs)
    return ray.get([read.remote(replace(one, rank=rank), start, epochs) for rank in range(world)])


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_every_row_once_an_epoch_and_equal_steps_on_real_workers(source, world, cached):
    parts = on_workers(source, world, cached=cached)
    assert len({len(p) for p in parts}) == 1
    assert len({tuple(n for *_, n, _ in p) for p in parts}) == 1
    for epoch in range(2):
        seen = [i for p in parts for cursor, _, mine, _, _ in p if cursor.epoch == epoch for i in mine]
        assert sorted(seen) == list(range(source[2].total))


def test_global_batches_do_not_depend_on_workers_or_on_caching(source):
    alone = [(c, ids) for c, ids, *_ in on_workers(source, 1, cached=True)[0]]
    for world, cached in ((2, True), (3, False), (1, False)):
        for part in on_workers(source, world, cached=cached):
            assert [(c, ids) for c, ids, *_ in part] == alone


def test_cached_and_streamed_rows_hold_the_same_numbers(source):
    kept, streamed = (on_workers(source, 2, cached=c) for c in (True, False))
    for a, b in zip(kept, streamed, strict=True):
        assert [total for *_, total in a] == [total for *_, total in b]


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
@pytest.mark.parametrize("cached", [True, False])
def test_a_run_resumed_on_other_workers_reads_exactly_the_remaining_rows(source, before, after, cached):
    whole = on_workers(source, before, cached=cached)
    stop = len(whole[0]) * 2 // 3
    start = whole[0][stop][0]
    done = [i for p in whole for c, _, mine, _, _ in p[:stop] if c.epoch == start.epoch for i in mine]
    left = [
        i
        for p in on_workers(source, after, cached=cached, start=start)
        for c, _, mine, _, _ in p
        if c.epoch == start.epoch
        for i in mine
    ]
    assert sorted(done + left) == list(range(source[2].total))


def test_windows_have_the_steps_of_their_series(source):
    view, storage, plan = source
    if view.lengths is not None:
        pytest.skip("stored rows are no windows")
    from datasets.pipeline.prepared import read_rows

    whole = read_rows(storage, view.part.shards, [None] * len(view.part.shards))
    reader = view.reader(np.arange(whole.num_rows), whole)
    series = {}
    for name, values in zip(whole["series"].to_pylist(), whole["values"].to_pylist(), strict=True):
        series.setdefault(name, []).extend(values)
    number = 0
    for s, values in enumerate(series.values()):
        steps = np.array(values, np.float32).reshape(-1, view.channels)
        for start in range(view.first[s], view.first[s] + 3 * view.count[s], 3):
            if number % 17 == 0:
                fields = reader.read(np.array([number]))
                np.testing.assert_array_equal(fields["inputs"]["values"][0], steps[start : start + 48])
                np.testing.assert_array_equal(fields["targets"]["target"][0], steps[start + 48 : start + 72, :1])
            number += 1
    assert number == plan.total


def test_streaming_reads_only_some_shard_groups_ahead(tmp_path):
    dataset = datasets.build("random_sequences", rows=600_000)
    prepared = prepare(dataset, Storage(tmp_path), shard_bytes=1_000_000)
    view = dataset.view(prepared, "train", TASK)
    sizes = np.array([s.memory for s in view.part.shards])
    assert len(sizes) > 30
    plan = Plan(view.rows, sizes, 32, group_bytes=int(sizes.max()))
    before = object_store_bytes()
    steps = Ingest(view, prepared.storage, plan).steps(BEGIN, 1)
    next(steps)
    time.sleep(3)  # enough to read everything, if nothing bounds it
    assert object_store_bytes() - before < sizes.sum() / 2
    steps.close()


def test_cached_data_is_read_without_a_copy(source):
    view, storage, plan = source
    refs = cache(view.part, storage)
    before = pa.total_allocated_bytes()
    steps = Ingest(view, storage, plan, cached=refs).steps(BEGIN, 1)
    next(steps)
    assert len(view.part.shards) > 1 and pa.total_allocated_bytes() - before < view.part.memory / 10


def test_prefetch_that_is_closed_early_leaves_no_thread():
    for count in (1, 3, 50):
        before = threading.active_count()
        items = prefetch(iter(range(count)), 2)
        assert next(items) == 0
        time.sleep(0.05)  # the thread has filled the queue, or is done
        items.close()
        deadline = time.monotonic() + 5
        while threading.active_count() > before:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def object_store_bytes():
    from ray._private.internal_api import memory_summary

    used = re.search(
        r"Plasma memory usage (\d+) MiB", memory_summary(ray.get_runtime_context().gcs_address, stats_only=True)
    )
    return int(used[1]) << 20
