"""Functions that parse any bytes as one of the formats that Rondo reads: they accept them, or raise ValueError.

    python -m tests.fuzz TARGET RUNS      coverage-guided (atheris, where it is installed), starting from good input

Any other error counts as a crash, also a subclass of ValueError that is not the project's own.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

FOLDER = Path("/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()) / f"rondo-fuzz-{os.getpid()}"


class Memory:
    """A folder of files in memory, with the methods of Storage that checkpoints and bundles use."""

    uri = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def read(self, name: str) -> bytes:
        if name not in self.files:
            raise FileNotFoundError(name)
        return self.files[name]

    def write(self, name: str, data: bytes) -> None:
        self.files[name] = data

    def names(self) -> list[str]:
        return sorted({name.partition("/")[0] for name in self.files})

    def exists(self, name: str) -> bool:
        return name in self.files

    def delete(self, name: str) -> None:
        self.files = {k: v for k, v in self.files.items() if not k.startswith(f"{name}/")}


def experiment(data: bytes) -> None:
    from workflows.config.load import load

    load(_file("experiment.yaml", data))


def overrides(data: bytes) -> None:
    from workflows.config.load import load

    load(None, data.decode("utf-8", "surrogateescape").split("\n"))


def manifest(data: bytes) -> None:
    from workflows.training.checkpoint import read_files

    read_files(Memory({"manifest.json": data, "a": b"text"}))


def checkpoint(data: bytes) -> None:
    """A whole checkpoint whose state.json, or tensors, are any bytes."""
    from workflows.training.checkpoint import load_weights, write_files

    folder = Memory({})
    write_files(folder, "step-000000001", {"model.safetensors": data, "state.json": data})
    import torch

    from workflows.training.checkpoint import latest

    found = latest(folder)
    assert found is not None
    load_weights(torch.nn.Linear(2, 1), found[1]["model.safetensors"])


def bundle(data: bytes) -> None:
    """A bundle whose description is any bytes, with valid weights."""
    from workflows.training.bundle import load
    from workflows.training.checkpoint import write_files

    folder = Memory({})
    write_files(folder, "bundle", {"model.safetensors": _good_bundle()[1], "bundle.json": data})
    load(folder, "bundle")


def prepared(data: bytes) -> None:
    from datasets.pipeline.prepared import load
    from datasets.pipeline.storage import Storage

    _file("prepared/manifest.json", data)
    load(Storage(FOLDER / "prepared"))


def csv(data: bytes) -> None:
    _table("rows.csv", data)


def json_lines(data: bytes) -> None:
    _table("rows.jsonl", data)


def parquet(data: bytes) -> None:
    _table("rows.parquet", data)


def text(data: bytes) -> None:
    _table("rows.txt", data)


def sound(data: bytes) -> None:
    from datasets.reading.sound import decode

    for name in ("sound.wav", "sound.mp3"):
        decode(str(_file(name, data)), 8000, 30.0)


def spool(data: bytes) -> None:
    """The record of a writer that was killed."""
    from workflows.tracking import spool

    path = _file("spool.jsonl", data)
    _file("spool.jsonl.ack", data)
    spool.is_delivered(path)
    with open(path, "rb") as lines:
        spool.read_records(lines, 0, 1000)


TARGETS: dict[str, Callable[[bytes], None]] = {
    f.__name__: f
    for f in (
        experiment,
        overrides,
        manifest,
        checkpoint,
        bundle,
        prepared,
        csv,
        json_lines,
        parquet,
        text,
        sound,
        spool,
    )
}


def seeds(target: str) -> list[bytes]:
    """Valid input to start from."""
    if target == "experiment":
        return [p.read_bytes() for p in sorted(Path("workflows/experiments").glob("*.yaml"))]
    if target == "overrides":
        return [b"model.family=lstm\ntraining.epochs=3", b"search.space={training.learning_rate: {uniform: [0, 1]}}"]
    if target == "manifest":
        return [
            b'{"format": 1, "files": {"a": {"bytes": 4, "sha256": "982d9e3eb996f559e633f4d194def3761d909f5a3b'
            b'647d1a851fead67c32c9d1"}}}'
        ]
    if target == "checkpoint":
        import safetensors.torch
        import torch

        return [safetensors.torch.save(torch.nn.Linear(2, 1).state_dict()), b"{}"]
    if target == "bundle":
        return [_good_bundle()[0]]
    if target == "prepared":
        return [
            b'{"key": "a", "kind": "text", "state": {}, "parts": {}, "quarantine": {"file": "", "rows": 0, '
            b'"kept": 1, "first": []}}',
            b'{"key": "a", "kind": "text", "state": {}, "parts": {"train": {"index": {"file": "../a", "bytes": 1, '
            b'"sha256": ""}, "shards": [{"file": "a", "rows": 1, "bytes": 9, "memory": 9, "sha256": "", '
            b'"groups": [1], "pieces": [[5, ""], [9, ""]]}]}}, "quarantine": {"file": "", "rows": 0, "kept": 1, '
            b'"first": []}}',
        ]
    if target in ("csv", "parquet"):
        table, out = pa.table({"a": [1, 2], "text": ["x", "y, z"]}), io.BytesIO()
        (pacsv.write_csv if target == "csv" else pq.write_table)(table, out)
        return [out.getvalue()]
    if target == "json_lines":
        return [b'{"a": 1, "text": "x", "notes": [[60, 62], []]}\n{"a": 2.5, "text": null}\n']
    if target == "sound":
        import numpy as np
        import soundfile

        files = []
        for kind in ("WAV", "FLAC", "OGG", "MP3"):
            out = io.BytesIO()
            soundfile.write(out, np.sin(np.arange(800) / 5), 8000, format=kind)
            files.append(out.getvalue())
        return files
    return [b"a line\nanother\n", json.dumps({"op": "end", "key": "a", "offset": 3, "uri": "b"}).encode() + b"\n"]


_BUNDLE: list[tuple[bytes, bytes]] = []


def _good_bundle() -> tuple[bytes, bytes]:
    """(description, weights) of a small model."""
    if not _BUNDLE:
        import models
        from workflows.training.checkpoint import weights

        spec = {
            "frontend": "tokens",
            "vocabulary": 12,
            "tokenizer": None,
            "shared": False,
            "tokens": 12,
            "classes": 2,
            "counts": None,
            "rows": None,
            "several": False,
        }
        model, task = {"family": "gru", "hidden_size": 4, "embedding_size": 3}, {"kind": "classify"}
        description: dict[str, Any] = {
            "format": 1,
            "run": "a",
            "experiment": {"model": model, "task": task},
            "spec": spec,
            "state": {},
            "metrics": {},
        }
        _BUNDLE.append((json.dumps(description).encode(), weights(models.build(spec, model, task))))
    return _BUNDLE[0]


def _file(name: str, data: bytes) -> Path:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _table(name: str, data: bytes) -> None:
    from datasets.reading.formats import read_blocks

    for lenient in (False, True):
        try:
            for _ in read_blocks(str(_file(name, data)), None, lenient=lenient):
                pass
        except ValueError:
            if lenient:
                raise


def tried(target: str, data: bytes) -> None:
    """Parse one input; any error that is neither a plain ValueError nor a UserError is raised."""
    from workflows.errors import UserError

    try:
        TARGETS[target](data)
    except UserError:
        pass
    except ValueError as error:
        if type(error) is not ValueError:  # such as json's, or that of text which is not UTF-8
            raise


def main(target: str, runs: str) -> None:
    import shutil

    import atheris
    import torch

    torch.set_num_threads(1)
    with atheris.instrument_imports(include=["workflows", "datasets", "models"]):
        for name in (
            "workflows.config.load",
            "workflows.training.checkpoint",
            "workflows.training.bundle",
            "datasets.reading.formats",
            "datasets.reading.sound",
            "datasets.pipeline.prepare",
            "workflows.tracking.spool",
        ):
            __import__(name)
    corpus = FOLDER / "corpus"
    corpus.mkdir(parents=True)
    for number, seed in enumerate(seeds(target)):
        (corpus / str(number)).write_bytes(seed)
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={runs}",
            "-timeout=30",
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            f"-artifact_prefix={os.getcwd()}/crash-{target}-",
            str(corpus),
        ],
        lambda data: tried(target, data),
    )
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(FOLDER, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
