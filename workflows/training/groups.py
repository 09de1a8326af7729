"""Sums of groups of rows, from which a bootstrap draws."""

from __future__ import annotations

import math

import safetensors.torch
import torch

from datasets.pipeline.storage import Storage
from models.sequence import Sums
from workflows.training.data import EVALUATION_ROWS, Data
from workflows.training.worker_group import WorkerGroup

MAX_GROUPS = 300


class GroupSums:
    """Sums of groups of rows of a split, of the model and of each baseline: what a bootstrap draws from.

    A group is a row, or several in the order of evaluation: at most 300 groups, the same for every model on this data;
    windows of a series whose targets overlap lie in one group, or in two neighbouring ones.

    Attributes:
        rows: of a global batch, of which a group is one or several.
    """

    FILE = "groups.safetensors"

    def __init__(self, data: Data, split: str) -> None:
        view = data.view(split)
        total = int(view.rows.sum())
        series = len(data.prepared.state.get("series", ()))
        overlap = min(data.task.get("horizon", 1), math.ceil(total / series)) if series else 1
        size = max(overlap, math.ceil(total / MAX_GROUPS))
        self.rows = min(size, EVALUATION_ROWS)
        self.batches = math.ceil(size / self.rows)  # of a group
        self.seen = 0
        self.sums: dict[str, list[torch.Tensor]] = {}

    def add(self, sums: dict[str, Sums]) -> None:
        """Add this worker's sums of a step."""
        opens = self.seen % self.batches == 0
        self.seen += 1
        for method, method_sums in sums.items():
            for name, value in method_sums.items():
                values = self.sums.setdefault(f"{method}/{name}", [])
                if opens:
                    values.append(value.cpu())
                else:
                    values[-1] += value.cpu()

    def save(self, run: Storage, workers: WorkerGroup) -> None:
        """Write the sums over workers: METHOD/SUM -> (groups, ...) float64."""
        stacked = {name: workers.sum(torch.stack(values)).contiguous() for name, values in sorted(self.sums.items())}
        if workers.rank == 0:
            run.write(self.FILE, safetensors.torch.save(stacked))
