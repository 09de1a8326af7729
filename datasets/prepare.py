"""Raw files -> prepared data: encoded rows in Parquet shards and a manifest, made once by Ray Data, shared by all runs.

A prepared folder is ``<root>/<key>``. The manifest is written last and names every file with its size and sha256, so
a folder without one is unfinished work that nobody reads. Two runs that prepare the same key at once each write files
of their own names; whichever manifest comes last is complete by itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.storage import Storage, absent, sha256, without_secrets

if TYPE_CHECKING:
    import ray.data

    from datasets import RawDataset

FORMAT = 4
QUARANTINE = pa.schema([("uri", pa.string()), ("row", pa.int64()), ("field", pa.string()), ("reason", pa.string())])
LONGEST = 200              # characters of a file's name
GROUP_BYTES = 1 << 20      # a Parquet row group: the least that is read to fetch a few rows of a shard


@dataclass(frozen=True)
class Shard:
    """One Parquet file of prepared rows: `bytes` as stored, compressed; `memory` bytes once read.

    Its pieces, each from where the one before ends, are the row groups and the footer. Their sums let some rows be read
    and checked without the others. Data that an earlier version prepared has none: such a shard is read whole.
    """

    file: str
    rows: int
    bytes: int
    memory: int
    sha256: str
    groups: tuple[int, ...]   # rows in each row group
    pieces: tuple[tuple[int, str], ...] = ()          # (end, sha256) of the bytes of each row group, then of the footer

    @staticmethod
    def of(entry: dict[str, Any]) -> Shard:
        """From its entry in the manifest."""
        pieces = tuple((end, checksum) for end, checksum in entry.get("pieces", ()))
        if pieces and (len(pieces) != len(entry["groups"]) + 1 or pieces[-1][0] != entry["bytes"]):
            raise TypeError(f"the pieces of {entry['file']} are not those of its row groups")
        return Shard(**{**entry, "groups": tuple(entry["groups"]), "pieces": pieces})


@dataclass(frozen=True)
class Part:
    """Rows that are stored together: one split, or ``series`` where all splits are ranges of the same series."""

    shards: tuple[Shard, ...]
    index: pa.Table           # one record a stored row: ``shard``, ``length`` and what else places it (``offset``, ...)

    def column(self, name: str) -> NDArray[np.int64]:
        values: NDArray[np.int64] = self.index[name].to_numpy().astype(np.int64)
        return values

    @cached_property
    def shard_of(self) -> NDArray[np.int64]:
        """(rows,) number of the shard that holds each stored row; never falls."""
        return self.column("shard")

    @cached_property
    def first(self) -> NDArray[np.int64]:
        """(S,) number of each shard's first stored row."""
        rows = np.array([s.rows for s in self.shards], np.int64)
        return np.cumsum(rows) - rows

    @property
    def bytes(self) -> int:
        return sum(s.bytes for s in self.shards)

    @property
    def memory(self) -> int:
        return sum(s.memory for s in self.shards)


@dataclass(frozen=True)
class Quarantine:
    """Records that could not be used: ``quarantine.parquet`` has each one's uri, row, field and reason.

    Attributes:
        rows: how many.
        kept: records that could be used.
        first: the first ten, as plain values.
        uri: of the file; "" where there is none.
    """

    rows: int
    kept: int
    first: list[dict[str, Any]]
    uri: str

    def check(self, limit: float) -> None:
        """Raise ValueError, with the first ten, if more than the share `limit` is here."""
        total = self.rows + self.kept
        if self.rows > limit * total:
            more = f"\n... and {self.rows - len(self.first):,} more" if self.rows > len(self.first) else ""
            told = "\n".join(f"{r['uri']}, row {r['row']}{', ' if r['field'] else ''}{r['field']}: {r['reason']}"
                             for r in self.first)
            raise ValueError(f"{self.rows:,} of {total:,} records cannot be used, more than quarantine.limit={limit} "
                             f"allows:\n{told}{more}\ncorrect them, or raise quarantine.limit")


@dataclass(frozen=True)
class Prepared:
    """What one manifest names: parts, fitted state, and where they came from."""

    storage: Storage
    key: str
    kind: str
    state: dict[str, Any]
    parts: dict[str, Part]
    digest: str               # of the manifest: the same bytes of data give the same digest
    quarantine: Quarantine


def cache_key(dataset: RawDataset) -> str:
    """A name for what `dataset` prepares: of its options, its source files' fingerprints, and the format."""
    told = {"format": FORMAT, "kind": dataset.kind, "options": dataset.options(),
            "sources": [(s.uri, s.size, str(s.mtime)) for s in dataset.sources()]}
    return f"{dataset.kind}-{sha256(json.dumps(told, sort_keys=True, default=str).encode())[:16]}"


def prepare(dataset: RawDataset, root: Storage, *, shard_bytes: int = 32 << 20, limit: float = 0.01) -> Prepared:
    """Encode `dataset` below `root`, or load what an earlier run made of the same sources and options.

    Args:
        dataset: to prepare.
        root: folder of all prepared data.
        shard_bytes: size of a shard.
        limit: the share of records that may be unusable.

    Raises:
        ValueError: what is wrong with the data: file, row, column, value, and what to do.
    """
    key = cache_key(dataset)
    target = root / key
    if not target.exists("manifest.json"):
        token = uuid.uuid4().hex[:8]
        try:
            manifest = _encode(dataset, target, token, shard_bytes, limit)
        except BaseException:                   # Ctrl-C too
            _clear(target, token)
            raise
        target.write("manifest.json", json.dumps({"key": key, **manifest}).encode())
    prepared = load(target)
    prepared.quarantine.check(limit)
    return prepared


def _encode(dataset: RawDataset, target: Storage, token: str, shard_bytes: int, limit: float) -> dict[str, Any]:
    """Write everything but the manifest, which is returned."""
    written = {name: _write_part(rows, target, f"{name}-{token}", shard_bytes)
               for name, rows in dataset.encode().items()}
    bad = sorted((record for part in written.values() for record in part.quarantined),
                 key=lambda record: (record["uri"], record["row"]))
    kept = sum(shard["rows"] for part in written.values() for shard in part.shards)
    Quarantine(len(bad), kept, bad[:10], "").check(limit)
    for name, part in written.items():
        if not part.shards:
            source = ", ".join(s.uri for s in dataset.sources()[:3]) or f"dataset.kind={dataset.kind}"
            raise ValueError(f"{source}: there are no rows to prepare for {name}; add some, or name another file")
    state = dataset.state([summary for part in written.values() for summary in part.summaries])
    sources = [{"uri": without_secrets(s.uri), "size": s.size, "mtime": s.mtime} for s in dataset.sources()]
    return {"format": FORMAT, "kind": dataset.kind, "options": dataset.options(), "sources": sources, "state": state,
            "parts": {name: {"shards": part.shards, "index": part.index} for name, part in written.items()},
            "quarantine": _write_quarantine(bad, target) | {"kept": kept}}


def _write_quarantine(bad: list[dict[str, Any]], target: Storage) -> dict[str, Any]:
    if not bad:
        return {"rows": 0, "first": [], "file": ""}
    sink = pa.BufferOutputStream()
    bad = [{**record, "uri": without_secrets(record["uri"])} for record in bad]
    pq.write_table(pa.Table.from_pylist(bad, QUARANTINE), sink, compression="zstd")
    target.write("quarantine.parquet", sink.getvalue())        # whoever prepares the same data writes the same
    return {"rows": len(bad), "first": bad[:10], "file": "quarantine.parquet"}


def _clear(target: Storage, token: str) -> None:
    """Remove what was written of data that turned out to be wrong; a task that still writes may leave a shard."""
    for name in target.names():
        if f"-{token}-" in name:
            target.remove(name)
    if target.names() in ([], ["quarantine.parquet"]):
        target.delete("")


def load(target: Storage) -> Prepared:
    """Read a prepared folder's manifest and index.

    Raises:
        ValueError: a file is missing or its bytes are not what the manifest says; or the manifest names one that is
            not directly in the folder.
    """
    try:
        return _loaded(target, json.loads(target.read("manifest.json")))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{target.uri}/manifest.json: prepared data is damaged ({type(error).__name__}: {error}); "
                         f"delete {target.uri} and prepare again") from None


def _loaded(target: Storage, manifest: dict[str, Any]) -> Prepared:
    _check_names(target, manifest)
    parts = {}
    for name, part in manifest["parts"].items():
        data = _checked(target, part["index"])
        shards = tuple(Shard.of(entry) for entry in part["shards"])
        parts[name] = Part(shards, pq.read_table(io.BytesIO(data)))
    content = [s.sha256 for p in parts.values() for s in p.shards]
    digest = hashlib.sha256(json.dumps([manifest["state"], content], sort_keys=True).encode()).hexdigest()
    told = manifest["quarantine"]
    uri = f"{target.uri}/{told['file']}" if told["file"] else ""
    quarantine = Quarantine(told["rows"], told["kept"], told["first"], uri)
    return Prepared(target, manifest["key"], manifest["kind"], manifest["state"], parts, digest[:32], quarantine)


def _check_names(target: Storage, manifest: dict[str, Any]) -> None:
    """Raise ValueError if the manifest names a file that does not lie directly in its folder."""
    named = [entry["file"] for part in manifest["parts"].values() for entry in [part["index"], *part["shards"]]]
    if manifest["quarantine"]["file"]:
        named.append(manifest["quarantine"]["file"])
    for name in named:
        if (not isinstance(name, str) or re.search(r"[/\\\0]", name) or len(name) > LONGEST
                or name in ("", ".", "..", "manifest.json")):
            raise ValueError(f"{target.uri}/manifest.json names {str(name)[:LONGEST]!r}, which is no file of this "
                             f"folder; delete {target.uri} and prepare again")


def read_rows(storage: Storage, shards: Sequence[Shard], wanted: Sequence[NDArray[np.int64] | None]) -> pa.Table:
    """Stored rows: all of a shard where wanted is None, else those places in it (whole row groups are fetched).

    Raises:
        ValueError: a shard that is missing or damaged.
        Unavailable: one cannot be read now.
    """
    tables = []
    for shard, places in zip(shards, wanted, strict=True):
        if places is None:
            tables.append(_groups(storage, shard, np.arange(len(shard.groups))))
            continue
        ends = np.cumsum(shard.groups)
        groups = np.unique(np.searchsorted(ends, places, side="right"))
        table = _groups(storage, shard, groups)
        held = np.concatenate([np.arange(ends[g] - shard.groups[g], ends[g]) for g in groups])
        tables.append(table.take(pa.array(np.searchsorted(held, places))))
    return pa.concat_tables(tables)


def _groups(storage: Storage, shard: Shard, groups: NDArray[np.int64]) -> pa.Table:
    """These row groups of a shard, from bytes whose sums are those of the manifest."""
    whole = len(groups) == len(shard.groups)
    if whole or not shard.pieces:
        data = _checked(storage, {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256})
    else:
        data = _checked_pieces(storage, shard, [*groups.tolist(), len(shard.pieces) - 1])
    source = pa.BufferReader(data)
    try:
        if whole:                                      # the quicker way
            return pq.read_table(source, use_threads=False)
        return pq.ParquetFile(source).read_row_groups(groups.tolist(), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{storage.uri}/{shard.file}: prepared data cannot be decoded ({error}); delete {storage.uri} "
                         "and prepare again") from None


def _checked_pieces(storage: Storage, shard: Shard, wanted: Sequence[int]) -> pa.Buffer:
    """A shard's bytes in which only some pieces have been read; the others are zeros, which cost no memory."""
    starts = [0, *(end for end, _ in shard.pieces)]
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)        # neighbours are read together
    spans = [(starts[run[0]], starts[run[-1] + 1]) for run in runs]
    try:
        size, found = storage.read_spans(shard.file, spans)
    except OSError as error:
        if not absent(error):
            raise
        raise _missing(storage, shard.file) from None
    if size != shard.bytes:
        raise _damaged(storage, shard.file, size, shard.bytes)
    data = np.zeros(size, np.uint8)
    for (start, _), read in zip(spans, found, strict=True):
        data[start:start + len(read)] = np.frombuffer(read, np.uint8)
    if any(sha256(data[starts[i]:starts[i + 1]].data) != shard.pieces[i][1] for i in wanted):
        raise _damaged(storage, shard.file, size, shard.bytes)
    return pa.py_buffer(data)


def _checked(storage: Storage, told: dict[str, Any]) -> bytes:
    try:
        data = storage.read(told["file"])
    except OSError as error:
        if not absent(error):
            raise
        raise _missing(storage, told["file"]) from None
    if len(data) != told["bytes"] or sha256(data) != told["sha256"]:
        raise _damaged(storage, told["file"], len(data), told["bytes"])
    return data


def _missing(storage: Storage, file: str) -> ValueError:
    return ValueError(f"{storage.uri}/{file}: prepared data is missing; delete {storage.uri} and prepare again")


def _damaged(storage: Storage, file: str, size: int, expected: int) -> ValueError:
    return ValueError(f"{storage.uri}/{file}: prepared data is damaged ({size} bytes, {expected} expected, or other "
                      f"content); delete {storage.uri} and prepare again")


@dataclass(frozen=True)
class _Written:
    """One part: the manifest's entries, the summaries of its rows, and its quarantined records."""

    shards: list[dict[str, Any]]
    index: dict[str, Any]
    summaries: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]


def _write_part(rows: ray.data.Dataset, target: Storage, prefix: str, shard_bytes: int) -> _Written:
    """Write a dataset's rows as shards, in its order."""
    def write(block: pa.Table) -> Iterator[pa.Table]:
        for table in _slices(block, shard_bytes):
            yield _write_shard(table, target, f"{prefix}-{uuid.uuid4().hex}.parquet")

    from datasets.files import user_errors
    from datasets.ray_data_private import arrow_refs
    with user_errors():
        refs = arrow_refs(rows.map_batches(write, batch_size=None, batch_format="pyarrow", zero_copy_batch=True))
        import ray
        tables = [t for t in ray.get(refs) if t.num_rows]
    written, index = _Written([], {}, [], []), []
    for record in (r for t in tables for r in t.to_pylist()):
        written.summaries.extend(json.loads(record["summaries"]))
        written.quarantined.extend(json.loads(record["quarantined"]))
        if record["shard"]:
            places = pq.read_table(io.BytesIO(record["index"]))
            number = pa.array(np.full(places.num_rows, len(written.shards), np.int32))
            index.append(places.append_column("shard", number))
            written.shards.append(json.loads(record["shard"]))
    if index:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(index), sink, compression="zstd")
        data = sink.getvalue()
        name = f"{prefix}-index.parquet"
        target.write(name, data)
        written.index.update({"file": name, "bytes": data.size, "sha256": sha256(data)})
    return written


def _slices(block: pa.Table, most: int) -> Iterator[pa.Table]:
    """The block in runs of whole rows of about `most` bytes."""
    if not block.num_rows:
        return
    rows = max(1, int(block.num_rows * most / max(block.nbytes, 1)))
    for start in range(0, block.num_rows, rows):
        yield block.slice(start, rows)


def _write_shard(table: pa.Table, target: Storage, name: str) -> pa.Table:
    """Write one shard; a record of its manifest entry, its rows' index, their summaries, and who is quarantined."""
    told = {c: [json.loads(s) for s in table[c].to_pylist() if s] if c in table.column_names else []
            for c in ("summary", "quarantine")}
    if told["quarantine"]:
        table = table.filter(pc.fill_null(pc.equal(table["quarantine"], ""), True))
    stored = table.drop_columns([c for c in told if c in table.column_names])
    record = {"shard": [""], "index": [b""], "summaries": [json.dumps(told["summary"])],
              "quarantined": [json.dumps(told["quarantine"])]}
    if not stored.num_rows:
        return pa.table(record)
    group = max(1, int(stored.num_rows * GROUP_BYTES / max(stored.nbytes, 1)))
    sink = pa.BufferOutputStream()
    # Parquet has no 16-bit numbers: put together byte by byte, the empty half of its 32-bit ones costs nothing.
    sound = [f"{f.name}.list.element" for f in stored.schema
             if pa.types.is_list(f.type) and f.type.value_type == pa.int16()]
    pq.write_table(stored, sink, row_group_size=group, compression="zstd", use_dictionary=False,
                   use_byte_stream_split=sound, write_page_checksum=True)
    data = sink.getvalue()
    target.write(name, data)
    groups = [min(group, stored.num_rows - i) for i in range(0, stored.num_rows, group)]
    places = pa.BufferOutputStream()
    narrow = [f.name for f in stored.schema if pa.types.is_integer(f.type)]
    pq.write_table(stored.select(narrow), places, compression="zstd")
    entry = {"file": name, "rows": stored.num_rows, "bytes": data.size, "memory": stored.nbytes,
             "sha256": sha256(data), "groups": groups, "pieces": _pieces(data)}
    return pa.table(record | {"shard": [json.dumps(entry)], "index": [places.getvalue().to_pybytes()]})


def _pieces(data: pa.Buffer) -> list[tuple[int, str]]:
    """(end, sha256) of the bytes of each row group of a Parquet file without dictionaries, then of the footer."""
    told = pq.read_metadata(pa.BufferReader(data))
    starts = [min(told.row_group(g).column(c).data_page_offset for c in range(told.num_columns))
              for g in range(told.num_row_groups)]
    ends = [*starts[1:], data.size - told.serialized_size - 8, data.size]      # 8: the footer's length and PAR1
    return [(end, sha256(data.slice(start, end - start))) for start, end in zip([0, *ends], ends, strict=False)]
