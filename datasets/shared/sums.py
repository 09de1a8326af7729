"""Sums over blocks of rows, which can be added in any order: counts, and moments of columns.

A tally is a JSON-able mapping of such sums; tasks compute one per block, and the driver merges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

State = dict[str, Any]  # plain values, for JSON


def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> State:
    """The sum of two tallies: numbers and lists are added, moments combined, mappings merged key by key."""
    if "m2" in a and "m2" in b:
        return _merged_moments(a, b)
    out: State = dict(a)
    for key, value in b.items():
        if key not in out:
            out[key] = value
        elif isinstance(value, Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = out[key] + value
    return out


def tally_moments(values: NDArray[Any]) -> State:
    """Count, mean and sum of squared deviations of each column of `values` (rows, C)."""
    if not len(values):
        return {"count": 0, "mean": [0.0] * values.shape[1], "m2": [0.0] * values.shape[1]}
    wide = values.astype(np.float64)
    mean = wide.mean(0)
    return {"count": len(values), "mean": mean.tolist(), "m2": np.square(wide - mean).sum(0).tolist()}


def _merged_moments(a: Mapping[str, Any], b: Mapping[str, Any]) -> State:
    """Moments of the union of two sets of rows (Chan, Golub & LeVeque 1983)."""
    count = a["count"] + b["count"]
    if not count:
        return dict(a)
    mean_a, mean_b = np.array(a["mean"]), np.array(b["mean"])
    gap = mean_b - mean_a
    m2 = np.array(a["m2"]) + np.array(b["m2"]) + gap**2 * a["count"] * b["count"] / count
    return {"count": count, "mean": (mean_a + gap * b["count"] / count).tolist(), "m2": m2.tolist()}


def moments(tally: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and standard deviation of each column; a constant column has deviation 1."""
    std = np.sqrt(np.array(tally["m2"]) / max(1, tally["count"]))
    mean = np.array(tally["mean"])
    return {"mean": mean.tolist(), "std": np.where(std > 1e-12 * np.abs(mean), std, 1.0).tolist()}
