"""Prepare: from raw files to encoded rows in Parquet shards and a manifest, written once by Ray Data for all runs.

A folder of prepared data is ``<root>/<key>``. The manifest is written last and names every file with its size and
sha256, so a folder without a manifest is unfinished and is never read. Two runs that prepare the same key at once write
files of different names; each of the two manifests is complete by itself, and the later one stays.
"""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datasets.pipeline.prepared import FORMAT, Prepared, Quarantine, load, pieces
from datasets.pipeline.storage import Storage, sha256, without_secrets

if TYPE_CHECKING:
    import ray.data

    from datasets.shared.contract import RawDataset


QUARANTINE = pa.schema([("uri", pa.string()), ("row", pa.int64()), ("field", pa.string()), ("reason", pa.string())])
GROUP_BYTES = 1 << 20  # of a Parquet row group, which is read as a whole to fetch some rows of a shard


def cache_key(dataset: RawDataset) -> str:
    """The name of the prepared data of `dataset`: a hash of its options, the files' fingerprints and the format."""
    content = {
        "format": FORMAT,
        "kind": dataset.kind,
        "options": dataset.options(),
        "sources": [(s.uri, s.size, str(s.mtime)) for s in dataset.sources()],
    }
    return f"{dataset.kind}-{sha256(json.dumps(content, sort_keys=True, default=str).encode())[:16]}"


def prepare(dataset: RawDataset, root: Storage, *, shard_bytes: int = 32 << 20, limit: float = 0.01) -> Prepared:
    """Encode `dataset` below `root`, or load what an earlier run prepared of the same sources and options.

    Args:
        dataset: to prepare.
        root: folder of all prepared data.
        shard_bytes: approximate size of a shard in memory.
        limit: the largest share of records that may be unusable (quarantine.limit).

    Raises:
        ValueError: the data cannot be used; the message names file, row, column and value, and what to do.
    """
    key = cache_key(dataset)
    target = root / key
    if not target.exists("manifest.json"):
        token = uuid.uuid4().hex[:8]
        try:
            manifest = _encode(dataset, target, token, shard_bytes, limit)
        except BaseException:  # Ctrl-C too
            _clear(target, token)
            raise
        target.write("manifest.json", json.dumps({"key": key, **manifest}).encode())
    prepared = load(target)
    prepared.quarantine.check(limit)
    return prepared


def _encode(dataset: RawDataset, target: Storage, token: str, shard_bytes: int, limit: float) -> dict[str, Any]:
    """Write everything except the manifest, and return its content."""
    written = {
        name: _write_part(rows, target, f"{name}-{token}", shard_bytes) for name, rows in dataset.encode().items()
    }
    bad = sorted(
        (record for part in written.values() for record in part.quarantined),
        key=lambda record: (record["uri"], record["row"]),
    )
    kept = sum(shard["rows"] for part in written.values() for shard in part.shards)
    Quarantine(len(bad), kept, bad[:10], "").check(limit)
    for name, part in written.items():
        if not part.shards:
            source = ", ".join(s.uri for s in dataset.sources()[:3]) or f"dataset.kind={dataset.kind}"
            raise ValueError(f"{source}: there are no rows to prepare for {name}; add some, or name another file")
    state = dataset.state([summary for part in written.values() for summary in part.summaries])
    sources = [{"uri": without_secrets(s.uri), "size": s.size, "mtime": s.mtime} for s in dataset.sources()]
    return {
        "format": FORMAT,
        "kind": dataset.kind,
        "options": dataset.options(),
        "sources": sources,
        "state": state,
        "parts": {name: {"shards": part.shards, "index": part.index} for name, part in written.items()},
        "quarantine": _write_quarantine(bad, target) | {"kept": kept},
    }


def _write_quarantine(bad: list[dict[str, Any]], target: Storage) -> dict[str, Any]:
    if not bad:
        return {"rows": 0, "first": [], "file": ""}
    sink = pa.BufferOutputStream()
    bad = [{**record, "uri": without_secrets(record["uri"])} for record in bad]
    pq.write_table(pa.Table.from_pylist(bad, QUARANTINE), sink, compression="zstd")
    target.write("quarantine.parquet", sink.getvalue())  # another run that prepares this key writes the same bytes
    return {"rows": len(bad), "first": bad[:10], "file": "quarantine.parquet"}


def _clear(target: Storage, token: str) -> None:
    """Remove the files of a failed preparation; a task that is still writing may leave a shard behind."""
    for name in target.names():
        if f"-{token}-" in name:
            target.remove(name)
    if target.names() in ([], ["quarantine.parquet"]):
        target.delete("")


@dataclass(frozen=True)
class _WrittenPart:
    """One part: its entries in the manifest, the summaries of its rows, and its quarantined records."""

    shards: list[dict[str, Any]]
    index: dict[str, Any]
    summaries: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]


def _write_part(rows: ray.data.Dataset, target: Storage, prefix: str, shard_bytes: int) -> _WrittenPart:
    """Write a dataset's rows as shards, in the dataset's order."""

    def write(block: pa.Table) -> Iterator[pa.Table]:
        for table in _slices(block, shard_bytes):
            yield _write_shard(table, target, f"{prefix}-{uuid.uuid4().hex}.parquet")

    from datasets.pipeline.ray_data_private import arrow_refs
    from datasets.reading.errors import user_errors

    with user_errors():
        refs = arrow_refs(rows.map_batches(write, batch_size=None, batch_format="pyarrow", zero_copy_batch=True))
        import ray

        tables = [t for t in ray.get(refs) if t.num_rows]
    written, index = _WrittenPart([], {}, [], []), []
    for record in (r for t in tables for r in t.to_pylist()):
        written.summaries.extend(json.loads(record["summaries"]))
        written.quarantined.extend(json.loads(record["quarantined"]))
        if record["shard"]:
            rows_index = pq.read_table(io.BytesIO(record["index"]))
            number = pa.array(np.full(rows_index.num_rows, len(written.shards), np.int32))
            index.append(rows_index.append_column("shard", number))
            written.shards.append(json.loads(record["shard"]))
    if index:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(index), sink, compression="zstd")
        data = sink.getvalue()
        name = f"{prefix}-index.parquet"
        target.write(name, data)
        written.index.update({"file": name, "bytes": data.size, "sha256": sha256(data)})
    return written


def _slices(block: pa.Table, max_bytes: int) -> Iterator[pa.Table]:
    """The block in slices of whole rows, of about `max_bytes` each."""
    if not block.num_rows:
        return
    rows = max(1, int(block.num_rows * max_bytes / max(block.nbytes, 1)))
    for start in range(0, block.num_rows, rows):
        yield block.slice(start, rows)


def _write_shard(table: pa.Table, target: Storage, name: str) -> pa.Table:
    """Write one shard; return a record of its manifest entry, index of rows, summaries and quarantined records."""
    lists = {
        c: [json.loads(s) for s in table[c].to_pylist() if s] if c in table.column_names else []
        for c in ("summary", "quarantine")
    }
    if lists["quarantine"]:
        table = table.filter(pc.fill_null(pc.equal(table["quarantine"], ""), True))
    stored = table.drop_columns([c for c in lists if c in table.column_names])
    record = {
        "shard": [""],
        "index": [b""],
        "summaries": [json.dumps(lists["summary"])],
        "quarantined": [json.dumps(lists["quarantine"])],
    }
    if not stored.num_rows:
        return pa.table(record)
    group = max(1, int(stored.num_rows * GROUP_BYTES / max(stored.nbytes, 1)))
    sink = pa.BufferOutputStream()
    # Parquet stores int16 as 32 bits; with bytes of equal significance stored together, the empty half compresses away.
    int16_columns = [
        f"{f.name}.list.element" for f in stored.schema if pa.types.is_list(f.type) and f.type.value_type == pa.int16()
    ]
    pq.write_table(
        stored,
        sink,
        row_group_size=group,
        compression="zstd",
        use_dictionary=False,
        use_byte_stream_split=int16_columns,
        write_page_checksum=True,
    )
    data = sink.getvalue()
    target.write(name, data)
    groups = [min(group, stored.num_rows - i) for i in range(0, stored.num_rows, group)]
    index = pa.BufferOutputStream()
    integer_columns = [f.name for f in stored.schema if pa.types.is_integer(f.type)]
    pq.write_table(stored.select(integer_columns), index, compression="zstd")
    entry = {
        "file": name,
        "rows": stored.num_rows,
        "bytes": data.size,
        "memory": stored.nbytes,
        "sha256": sha256(data),
        "groups": groups,
        "pieces": pieces(data),
    }
    return pa.table(record | {"shard": [json.dumps(entry)], "index": [index.getvalue().to_pybytes()]})
