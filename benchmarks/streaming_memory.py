"""Peak memory of a worker that streams, with 1x and 8x the data.

python -m benchmarks.streaming_memory      (from the project's root; makes its own data)
"""

from __future__ import annotations

import json
import multiprocessing
import sys
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


def measure(folder: Path, times: int) -> dict[str, float]:
    """Train on a part of it, streamed, and say the peak of resident memory of this process in MB."""
    import resource

    import torch

    from workflows import cluster
    from workflows.experiment import load
    from workflows.loop import Workers
    from workflows.settings import Workers as Wanted
    from workflows.train import prepare
    from workflows.worker import Data

    experiment = load({
        "name": "memory", "storage": str(folder / "runs"),
        "dataset": {"kind": "timeseries", "path": str(folder / f"x{times}"), "series": "name",
                    "targets": [f"c{i}" for i in range(CHANNELS)],
                    "split": {"train": 0.8, "validation": 0.1, "test": 0.1}, "cache_bytes": 0,
                    "shuffle_bytes": 32 << 20, "shard_bytes": 8 << 20},
        "task": {"kind": "forecast", "lookback": 96, "horizon": 24}, "model": {"family": "gru", "hidden_size": 8},
        "training": {"batch_size": 4096}})
    place = cluster.connect(Wanted())
    prepared = prepare(experiment)
    data = Data(experiment, prepared, {}, Workers(torch.device("cpu")))
    rows = steps = 0
    for step in data.steps(data.ingest("train", training=True), 1):
        rows, steps = rows + step.rows, steps + 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = prepared.parts["series"].bytes / 2**20
    cluster.disconnect(place)
    return {"prepared_mb": round(size), "rows": rows, "steps": steps, "peak_mb": round(peak)}


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for times in (1, 8):
            make(folder / f"x{times}", times)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(f"{times}x: {json.dumps(pool.apply(measure, (folder, times)))}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
