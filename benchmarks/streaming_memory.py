"""Measure the peak memory of a worker that streams 1x and 8x the data.

python -m benchmarks.streaming_memory      (from the project's root; generates its data)
"""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STEPS, CHANNELS, SERIES = 200_000, 8, 4  # of 1x: 4 series, 51 MB of float64


def write_data(folder: Path, times: int) -> None:
    """Write `times` x the data, a Parquet file per series."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(SERIES * times):
        columns = {f"c{i}": rng.normal(size=STEPS).cumsum() for i in range(CHANNELS)}
        pq.write_table(pa.table({"name": [f"s{number:04d}"] * STEPS, **columns}), folder / f"{number:04d}.parquet")


def experiment(folder: Path, times: int):
    from workflows.config.load import load

    return load(
        {
            "name": "memory",
            "storage": str(folder / "runs"),
            "dataset": {
                "kind": "timeseries",
                "path": str(folder / f"x{times}"),
                "series": "name",
                "targets": [f"c{i}" for i in range(CHANNELS)],
                "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
                "cache_bytes": 0,
                "shuffle_bytes": 8 << 20,
                "shard_bytes": 4 << 20,
            },
            "task": {"kind": "forecast", "lookback": 96, "horizon": 24},
            "model": {"family": "gru", "hidden_size": 8},
            "training": {"batch_size": 4096},
        }
    )


def prepare(folder: Path, times: int) -> None:
    """Prepare the data; runs in a separate process, so that its memory does not count."""
    from workflows.cluster import connect
    from workflows.config.settings import Workers
    from workflows.training.data import prepare_data

    connection = connect.connect(Workers())
    prepare_data(experiment(folder, times))
    connect.disconnect(connection)


def measure(folder: Path, times: int) -> dict[str, int]:
    """Stream an epoch; return peak memory of this process in MB, private and mapped from the object store."""
    import torch

    from workflows.cluster import connect
    from workflows.config.settings import Workers
    from workflows.training.data import Data, prepare_data
    from workflows.training.worker_group import WorkerGroup

    checked = experiment(folder, times)
    connection = connect.connect(Workers())
    prepared = prepare_data(checked)
    data = Data(checked, prepared, {}, WorkerGroup(torch.device("cpu")))
    rows = private = shared = 0
    for step in data.steps(data.ingest("train", training=True), 1):
        rows += step.rows
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        private = max(private, int(status["RssAnon"].split()[0]) // 1024)
        shared = max(shared, int(status["RssShmem"].split()[0]) // 1024)
    connect.disconnect(connection)
    return {
        "prepared_mb": round(prepared.parts["series"].bytes / 2**20),
        "rows": rows,
        "private_peak_mb": private,
        "shared_peak_mb": shared,
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for times in (1, 8):
            write_data(folder / f"x{times}", times)
            for part in (prepare, measure):
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    result = pool.apply(part, (folder, times))
            print(f"{times}x: {json.dumps(result)}", flush=True)


if __name__ == "__main__":
    main()
