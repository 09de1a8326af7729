"""Shared by the tests of records: the way from raw files to stored rows without Ray, block by block."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from datasets.reading import errors, find, formats
from datasets.shared.records import Records


class Blocks:
    """What records ask of a Ray Data dataset."""

    def __init__(self, tables: Iterable[pa.Table]) -> None:
        self.tables = tables

    def map_batches(self, task: Callable[[pa.Table], Iterator[pa.Table]], **_: Any) -> Blocks:
        return Blocks(made for table in self.tables for made in task(table))

    def iter_batches(self, **_: Any) -> Iterator[pa.Table]:
        return iter(self.tables)


@dataclass
class Encoded:
    """Stored rows of each split as plain values, [(row, field, reason)] of the others, and the state."""

    parts: dict[str, list[dict[str, Any]]]
    bad: list[tuple[int, str, str]]
    state: dict[str, Any]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Records], Encoded]:
    """Encodes a dataset in this process."""

    def read(sources: list[find.SourceFile], columns: list[str], *, lenient: bool, whole: bool = False) -> Blocks:
        return Blocks(
            table
            for source in sources
            for table in formats.read_blocks(source.uri, columns, lenient=lenient, whole=whole)
        )

    def run(dataset: Records) -> Encoded:
        parts, bad, summaries = {}, [], []
        for part, blocks in dataset.encode().items():
            with errors.user_errors():
                rows = [row for table in blocks.tables for row in table.to_pylist()]
            summaries += [json.loads(row["summary"]) for row in rows if row["summary"]]
            bad += [json.loads(row["quarantine"]) for row in rows if row["quarantine"]]
            parts[part] = [
                {name: value for name, value in row.items() if name not in ("summary", "quarantine")}
                for row in rows
                if not row["quarantine"]
            ]
        return Encoded(
            parts, sorted((one["row"], one["field"], one["reason"]) for one in bad), dataset.state(summaries)
        )

    monkeypatch.setattr(formats, "read", read)
    return run


class FailingStore(MemoryFileSystem):
    """A store in memory that opens files, and while `fails` is set gives none of their bytes."""

    protocol, store, pseudo_dirs, fails = "failing", {}, [""], False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("failing://").strip("/")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        file = super()._open(path, mode, **options)
        return Broken(file.getvalue()) if self.fails else file


class Broken(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")


@pytest.fixture
def failing_store() -> Iterator[type[FailingStore]]:
    """The store behind URIs of failing://."""
    fsspec.register_implementation("failing", FailingStore, clobber=True)
    yield FailingStore
    FailingStore.fails = False
    FailingStore.store.clear()
