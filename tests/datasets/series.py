"""Tables of series for tests, and their stored rows."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from datasets import timeseries
from datasets.reading.errors import user_errors

HALVES = {"train": 0.5, "validation": 0.5}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def hours(count: int, start: str = "2024-01-01T00:00") -> list[str]:
    first = datetime.fromisoformat(start)
    return [f"{first + timedelta(hours=i)}" for i in range(count)]


def table(path: Path, columns: dict[str, list]) -> str:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return write(path, "\n".join(lines) + "\n")


def encoded(dataset: timeseries.TimeSeries) -> tuple[dict, dict[str, np.ndarray]]:
    """(state, values (L, C) by name of series), as the stored rows hold them."""
    with user_errors():
        rows = dataset.encode()["series"].take_all()
    state = dataset.state([json.loads(row["summary"]) for row in rows if row["summary"]])
    chunks: dict[str, list[dict]] = {}
    for row in rows:
        chunks.setdefault(row["series"], []).append(row)
    series = {}
    for name, parts in chunks.items():
        assert [bool(row["summary"]) for row in parts] == [True] + [False] * (len(parts) - 1)
        assert [row["offset"] for row in parts] == np.cumsum([0, *(row["length"] for row in parts)]).tolist()[:-1]
        series[name] = np.concatenate([np.asarray(row["values"], np.float32) for row in parts]).reshape(
            -1, state["width"]
        )
    return state, series


def only(state: dict) -> dict:
    [summary] = state["series"]
    return summary
