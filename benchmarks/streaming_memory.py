"""Peak memory of a worker that streams, with 1x and 8x the data.

python -m benchmarks.streaming_memory      (from the project's root; makes its own data)
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEPS, CHANNELS, SERIES = 200_000, 8, 4       # of 1x: 4 series, 51 MB of float64


def make(folder: Path, times: int) -> None:
    """`times` x the data, in one Parquet file a series."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(SERIES * times):
        columns = {f"c{i}": rng.normal(size=STEPS).cumsum() for i in range(CHANNELS)}
        pq.write_table(pa.table({"name": [f"s{number:04d}"] * STEPS, **columns}), folder / f"{number:04d}.parquet")


def experiment(folder: Path, times: int):
    from workflows.experiment import load

    return load({
        "name": "memory", "storage": str(folder / "runs"),
        "dataset": {"kind": "timeseries", "path": str(folder / f"x{times}"), "series": "name",
                    "targets": [f"c{i}" for i in range(CHANNELS)],
                    "split": {"train": 0.8, "validation": 0.1, "test": 0.1}, "cache_bytes": 0,
                    "shuffle_bytes": 8 << 20, "shard_bytes": 4 << 20},
        "task": {"kind": "forecast", "lookback": 96, "horizon": 24}, "model": {"family": "gru", "hidden_size": 8},
        "training": {"batch_size": 4096}})


def prepare(folder: Path, times: int) -> None:
    """In a process of its own, so that it does not count."""
    from workflows import cluster, train
    from workflows.settings import Workers

    place = cluster.connect(Workers())
    train.prepare(experiment(folder, times))
    cluster.disconnect(place)


def measure(folder: Path, times: int) -> dict[str, int]:
    """Stream an epoch; the peaks of this process's memory in MB: its own, and what it has seen of the object store."""
    import torch

    from workflows import cluster, train
    from workflows.loop import Workers
    from workflows.settings import Workers as Wanted
    from workflows.worker import Data

    asked = experiment(folder, times)
    place = cluster.connect(Wanted())
    prepared = train.prepare(asked)
    data = Data(asked, prepared, {}, Workers(torch.device("cpu")))
    rows = own = shared = 0
    for step in data.steps(data.ingest("train", training=True), 1):
        rows += step.rows
        told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        own = max(own, int(told["RssAnon"].split()[0]) // 1024)
        shared = max(shared, int(told["RssShmem"].split()[0]) // 1024)
    cluster.disconnect(place)
    return {"prepared_mb": round(prepared.parts["series"].bytes / 2**20), "rows": rows, "own_peak_mb": own,
            "shared_peak_mb": shared}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for times in (1, 8):
            make(folder / f"x{times}", times)
            for part in (prepare, measure):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    told = pool.apply(part, (folder, times))
            print(f"{times}x: {json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main()
