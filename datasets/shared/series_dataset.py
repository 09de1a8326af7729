"""What every dataset of stored series has in common: the facts that a model needs, and the windows of each split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from datasets.pipeline.windows import WindowView, split_windows

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Prepared


class SeriesDataset:
    """Base class of datasets of stored series, from which task forecast learns; see `RawDataset`."""

    available_targets: ClassVar[tuple[str, ...]] = ("series",)
    frontend: ClassVar[str] = "patches"
    targets: list[str]

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        """``channels`` stored a step, of which ``targets`` and ``known`` (in the future); window and season."""
        spec = {
            "frontend": self.frontend,
            "targets": len(self.targets),
            "channels": len(self.targets),
            "known": 0,
            "observed": False,
            "season": 1,
            "lookback": task.get("lookback"),
            "horizon": task.get("horizon"),
        }
        if state is not None:
            spec |= {
                "channels": state["width"],
                "known": len(state["channels"]["calendar"]),
                "observed": state["channels"]["observed"],
                "season": state["season"],
            }
        return spec

    def names(self, state: Mapping[str, Any], target: str) -> list[str]:
        """The columns that are forecast."""
        names: list[str] = state["channels"]["targets"]
        return names

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> WindowView:
        """The windows of a split; in training every ``task.stride``-th one.

        Raises:
            ValueError: a series has no window, or the split does not exist.
        """
        state, part = prepared.state, prepared.parts["series"]
        lookback, horizon, spec = task["lookback"], task["horizon"], self.spec(prepared.state, task)
        stride = task.get("stride", 1) if split == "train" else 1
        first, count = split_windows(state, split, lookback, horizon, stride=stride)
        known_end = spec["channels"] - (spec["targets"] if spec["observed"] else 0)
        offset = part.column("offset")
        target = slice(0, spec["targets"])
        constants = {
            "mean": [s["mean"][target] for s in state["series"]],
            "std": [s["std"][target] for s in state["series"]],
            "mase": [[x or 0.0 for x in s["mase"]] for s in state["series"]],
        }
        return WindowView(
            part,
            np.cumsum(offset == 0) - 1,
            offset,
            part.column("length"),
            first,
            count,
            stride,
            lookback,
            horizon,
            spec["channels"],
            spec["targets"],
            slice(known_end - spec["known"], known_end),
            slice(known_end, spec["channels"]) if spec["observed"] else None,
            {name: np.array(table, np.float32) for name, table in constants.items()},
        )
