"""Prepared data: its manifest, parts and shards, and reading rows from them.

Words: a part is a set of rows stored together (a split, or all series); a shard is one Parquet file of a part; the
index of a part has the integer columns of all its rows, so that lengths and positions are known without reading shards.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from datasets.pipeline.storage import Storage, absent, sha256

FORMAT = 4
MAX_NAME = 200  # characters of a file's name


@dataclass(frozen=True)
class Shard:
    """One Parquet file of prepared rows: `bytes` is its size as stored (compressed), `memory` its size once read."""

    file: str
    rows: int
    bytes: int
    memory: int
    sha256: str
    groups: tuple[int, ...]  # rows in each row group
    pieces: tuple[tuple[int, str], ...] = ()  # (end, sha256) of the bytes of each row group, then of the footer

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
    index: pa.Table  # a record for each stored row: ``shard``, ``length`` and its other integers (``offset``, ...)

    def column(self, name: str) -> NDArray[np.int64]:
        """(R,) a column of the index."""
        values: NDArray[np.int64] = self.index[name].to_numpy().astype(np.int64)
        return values

    @cached_property
    def shard_of(self) -> NDArray[np.int64]:
        """(R,) number of the shard that holds each stored row, in ascending order."""
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
    """Records that cannot be used: ``quarantine.parquet`` has the uri, row, field and reason of each.

    Attributes:
        rows: number of such records.
        kept: number of records that can be used.
        first: the first ten, as plain values.
        uri: of the file; "" where there is none.
    """

    rows: int
    kept: int
    first: list[dict[str, Any]]
    uri: str

    def check(self, limit: float) -> None:
        """Raise ValueError, which lists the first ten records, if their share is more than `limit`."""
        total = self.rows + self.kept
        if self.rows > limit * total:
            more = f"\n... and {self.rows - len(self.first):,} more" if self.rows > len(self.first) else ""
            details = "\n".join(
                f"{r['uri']}, row {r['row']}{', ' if r['field'] else ''}{r['field']}: {r['reason']}" for r in self.first
            )
            raise ValueError(
                f"{self.rows:,} of {total:,} records cannot be used, more than quarantine.limit={limit} "
                f"allows:\n{details}{more}\ncorrect them, or raise quarantine.limit"
            )


@dataclass(frozen=True)
class Prepared:
    """The content of one manifest.

    Attributes:
        storage: its folder.
        key: the folder's name, see ``prepare.cache_key``.
        kind: of the dataset.
        state: the fitted state.
        parts: by split, or ``series``.
        digest: of the state and the rows: the same bytes of data give the same digest.
        quarantine: records that cannot be used.
    """

    storage: Storage
    key: str
    kind: str
    state: dict[str, Any]
    parts: dict[str, Part]
    digest: str
    quarantine: Quarantine


def load(target: Storage) -> Prepared:
    """Read a prepared folder's manifest and index.

    Raises:
        ValueError: a file is missing or its bytes are not what the manifest says; or the manifest names one that is
            not directly in the folder.
    """
    try:
        return _loaded(target, json.loads(target.read("manifest.json")))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{target.uri}/manifest.json: prepared data is damaged ({type(error).__name__}: {error}); "
            f"delete {target.uri} and prepare again"
        ) from None


def _loaded(target: Storage, manifest: dict[str, Any]) -> Prepared:
    _check_names(target, manifest)
    parts = {}
    for name, part in manifest["parts"].items():
        data = _read_checked(target, part["index"])
        shards = tuple(Shard.of(entry) for entry in part["shards"])
        parts[name] = Part(shards, pq.read_table(io.BytesIO(data)))
    content = [s.sha256 for p in parts.values() for s in p.shards]
    digest = hashlib.sha256(json.dumps([manifest["state"], content], sort_keys=True).encode()).hexdigest()
    bad = manifest["quarantine"]
    uri = f"{target.uri}/{bad['file']}" if bad["file"] else ""
    quarantine = Quarantine(bad["rows"], bad["kept"], bad["first"], uri)
    return Prepared(target, manifest["key"], manifest["kind"], manifest["state"], parts, digest[:32], quarantine)


def _check_names(target: Storage, manifest: dict[str, Any]) -> None:
    """Raise ValueError if the manifest names a file that does not lie directly in its folder."""
    named = [entry["file"] for part in manifest["parts"].values() for entry in [part["index"], *part["shards"]]]
    if manifest["quarantine"]["file"]:
        named.append(manifest["quarantine"]["file"])
    for name in named:
        if (
            not isinstance(name, str)
            or re.search(r"[/\\\0]", name)
            or len(name) > MAX_NAME
            or name in ("", ".", "..", "manifest.json")
        ):
            raise ValueError(
                f"{target.uri}/manifest.json names {str(name)[:MAX_NAME]!r}, which is no file of this "
                f"folder; delete {target.uri} and prepare again"
            )


def read_rows(storage: Storage, shards: Sequence[Shard], wanted: Sequence[NDArray[np.int64] | None]) -> pa.Table:
    """Read stored rows.

    Args:
        storage: the folder of the shards.
        shards: to read from.
        wanted: for each shard, the rows within it, ascending (whole row groups are fetched); None for all.

    Returns:
        The rows of all shards, in this order.

    Raises:
        ValueError: a shard is missing or damaged.
        Unavailable: storage cannot be read now.
    """
    tables = []
    for shard, rows in zip(shards, wanted, strict=True):
        if rows is None:
            tables.append(_read_groups(storage, shard, np.arange(len(shard.groups))))
            continue
        ends = np.cumsum(shard.groups)
        groups = np.unique(np.searchsorted(ends, rows, side="right"))
        table = _read_groups(storage, shard, groups)
        fetched = np.concatenate([np.arange(ends[g] - shard.groups[g], ends[g]) for g in groups])
        tables.append(table.take(pa.array(np.searchsorted(fetched, rows))))
    return pa.concat_tables(tables)


def _read_groups(storage: Storage, shard: Shard, groups: NDArray[np.int64]) -> pa.Table:
    """Read row groups of a shard, from bytes whose SHA-256 sums are those of the manifest."""
    whole = len(groups) == len(shard.groups)
    if whole or not shard.pieces:
        data = _read_checked(storage, {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256})
    else:
        data = _read_pieces(storage, shard, [*groups.tolist(), len(shard.pieces) - 1])
    source = pa.BufferReader(data)
    try:
        if whole:  # the quicker way
            return pq.read_table(source, use_threads=False)
        return pq.ParquetFile(source).read_row_groups(groups.tolist(), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(
            f"{storage.uri}/{shard.file}: prepared data cannot be decoded ({error}); delete {storage.uri} "
            "and prepare again"
        ) from None


def _read_pieces(storage: Storage, shard: Shard, wanted: Sequence[int]) -> pa.Buffer:
    """The bytes of a shard of which only some pieces were read; the others are zeros and take no memory."""
    starts = [0, *(end for end, _ in shard.pieces)]
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > 1) + 1)  # neighbours are read together
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
        data[start : start + len(read)] = np.frombuffer(read, np.uint8)
    if any(sha256(data[starts[i] : starts[i + 1]].data) != shard.pieces[i][1] for i in wanted):
        raise _damaged(storage, shard.file, size, shard.bytes)
    return pa.py_buffer(data)


def _read_checked(storage: Storage, entry: dict[str, Any]) -> bytes:
    """The bytes of a file, which must be those that its entry in the manifest describes."""
    try:
        data = storage.read(entry["file"])
    except OSError as error:
        if not absent(error):
            raise
        raise _missing(storage, entry["file"]) from None
    if len(data) != entry["bytes"] or sha256(data) != entry["sha256"]:
        raise _damaged(storage, entry["file"], len(data), entry["bytes"])
    return data


def _missing(storage: Storage, file: str) -> ValueError:
    return ValueError(f"{storage.uri}/{file}: prepared data is missing; delete {storage.uri} and prepare again")


def _damaged(storage: Storage, file: str, size: int, expected: int) -> ValueError:
    return ValueError(
        f"{storage.uri}/{file}: prepared data is damaged ({size} bytes, {expected} expected, or other "
        f"content); delete {storage.uri} and prepare again"
    )


def pieces(data: pa.Buffer) -> list[tuple[int, str]]:
    """(end, sha256) of the bytes of each row group of a Parquet file without dictionaries, then of the footer."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    starts = [
        min(metadata.row_group(g).column(c).data_page_offset for c in range(metadata.num_columns))
        for g in range(metadata.num_row_groups)
    ]
    ends = [*starts[1:], data.size - metadata.serialized_size - 8, data.size]  # 8: the footer's length and PAR1
    return [(end, sha256(data.slice(start, end - start))) for start, end in zip([0, *ends], ends, strict=False)]
