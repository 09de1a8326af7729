"""Apply a bundle to new raw data, in this process."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from workflows.bundle import Bundle

ROWS = 256      # requests that go through the model together


def predict(bundle: str | Path, file: str | Path, output: str | Path | None = None) -> dict[str, Any] | None:
    """What comes after the last row of every series in a file.

    Args:
        bundle: its folder or URI.
        file: CSV or Parquet with the columns that the model was trained on (or a glob, folder or URI).
        output: CSV or Parquet to write; None writes CSV to stdout.

    Returns:
        rows, series and output; None when stdout has the predictions.

    Raises:
        ValueError: what is wrong with the bundle or the file.
    """
    from workflows import bundle as bundles
    from workflows.evaluate import open_bundle

    if output is not None and Path(output).suffix not in (".csv", ".parquet"):
        raise ValueError(f"{output}: the output is CSV or Parquet; name it .csv or .parquet")
    told = bundles.load(open_bundle(bundle))
    if told.experiment["task"]["kind"] != "forecast":
        raise ValueError(f"{bundle}: predict has no raw input for dataset.kind="
                         f"{told.experiment['dataset']['kind']!r}; it forecasts time series")
    table = forecast(told, str(file))
    if output is None:
        pyarrow.csv.write_csv(table, sys.stdout.buffer)
        return None
    sink = io.BytesIO()
    if Path(output).suffix == ".csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink)
    from datasets.storage import Storage
    folder, _, name = str(output if "://" in str(output) else Path(output).resolve()).rpartition("/")
    Storage(folder).write(name, sink.getvalue())
    return {"rows": table.num_rows, "output": f"{folder}/{name}"}


def forecast(told: Bundle, file: str) -> pa.Table:
    """The horizon after the last step of every series: series, time, a column a target, and its outer quantiles."""
    import torch

    from models.batch import Batch
    from workflows.experiment import dataset_of, load

    experiment = load(told.experiment)
    dataset: Any = dataset_of(experiment)
    task, names = experiment.task, told.state["channels"]["targets"]
    lookback, horizon = task["lookback"], task["horizon"]
    requests = dataset.encode_request(file, told.state)
    for request in requests:
        if len(request.values) < lookback:
            name = f"series {request.series!r}" if request.series else "the series"
            raise ValueError(f"{file}: {name} has {len(request.values)} rows; the model looks back {lookback} steps")
    from datasets.timeseries import future
    ahead = [future(r, horizon) for r in requests]
    tables = []
    for start in range(0, len(requests), ROWS):
        some, known = requests[start:start + ROWS], ahead[start:start + ROWS]
        inputs = {"values": torch.from_numpy(np.stack([r.values[-lookback:] for r in some]))}
        if told.spec["known"]:
            inputs["known"] = torch.from_numpy(np.stack([k for k, _ in known]))
        count = len(some)
        inputs = {name: x.to(next(told.model.parameters()).dtype) for name, x in inputs.items()}
        batch = Batch(inputs, {"values": torch.full((count,), lookback)}, {}, torch.ones(count), torch.arange(count))
        with torch.inference_mode():
            out = told.model.task.predict(told.model, batch)["quantiles"].double().numpy()      # (B, Z, N, Q)
        n = len(names)
        mean, std = (np.stack([getattr(r, k)[:n] for r in some]) for k in ("mean", "std"))
        out = out * std[:, None, :, None] + mean[:, None, :, None]
        columns: dict[str, Any] = {}
        if dataset.series:
            columns[dataset.series] = np.repeat([r.series for r in some], horizon)
        columns["time"] = [t for _, times in known for t in times]
        levels = _levels(task)
        for number, name in enumerate(names):
            columns[name] = out[:, :, number, levels.index(0.5)].ravel()
            for q, level in enumerate(levels):
                if level != 0.5:
                    columns[f"{name}_q{level:g}"] = out[:, :, number, q].ravel()
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _levels(task: dict[str, Any]) -> list[float]:
    return sorted(task["quantiles"]) if task["loss"] == "quantile" else [0.5]
