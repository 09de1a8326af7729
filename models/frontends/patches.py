"""Patches of windows of time series. Shapes: B rows, L lookback, N targets, C channels stored for each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from models.batch import Batch
from models.family import check_choice
from models.sequence import Frontend

Normalise = Literal["window", "last", "none"]
Channels = Literal["independent", "joint"]


class Patches(Frontend):
    """Patches of a multivariate window, after a reversible normalisation of the targets.

    With independent channels every target is a separate sequence, read by shared weights, with the other channels'
    patches appended (Nie et al. 2023, "A Time Series is Worth 64 Words"); jointly, one sequence holds all. Each
    window's mean and spread are removed here and restored by the task's head (Kim et al. 2022, "Reversible
    Instance Normalization").
    """

    def __init__(self, spec: Mapping[str, Any], *, patch: int, normalise: Normalise, channels: Channels) -> None:
        super().__init__()
        if spec["lookback"] < 1:
            raise ValueError(f"task.lookback={spec['lookback']} is too small; use at least 1")
        if patch < 1 or spec["lookback"] % patch:
            start = min(max(patch, 1), spec["lookback"])
            near = next(p for far in range(start) for p in (start - far, start + far) if spec["lookback"] % p == 0)
            raise ValueError(
                f"model.patch={patch} does not divide task.lookback={spec['lookback']}; use a divisor such as {near}"
            )
        check_choice("normalise", normalise, get_args(Normalise))
        check_choice("channels", channels, get_args(Channels))
        self.patch, self.normalise, self.independent = patch, normalise, channels == "independent"
        self.targets, self.observed = spec["targets"], spec["observed"]
        others = spec["channels"] - self.targets * (2 if self.observed else 1)
        self.sequences = self.targets if self.independent else 1
        per_step = (1 if self.independent else self.targets) * (2 if self.observed else 1) + others
        self.size, self.steps = patch * per_step, spec["lookback"] // patch
        self.changes_steps = f"model.patch={patch} makes patches of a whole window; use a dataset with other rows"

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """values (B, L, C) -> x (B or B*N, L / patch, patch * features); context: shift and spread, each (B, N)."""
        values = batch.inputs["values"]
        n = self.targets
        targets, others = values[..., :n], values[..., n:]
        seen = None
        if self.observed:  # 1 where a target was measured, the last N channels
            seen, others = values[..., -n:], others[..., :-n]
        shift, spread = self._statistics(targets, seen)
        targets = (targets - shift[:, None]) / spread[:, None]  # (B, L, N)
        if seen is not None:
            targets = targets * seen  # a missing value is the window's mean
        rows, steps = values.shape[0], values.shape[1] // self.patch
        if self.independent:
            parts = [targets.transpose(1, 2)[..., None]]  # (B, N, L, 1)
            if seen is not None:
                parts.append(seen.transpose(1, 2)[..., None])
            if others.shape[-1]:
                parts.append(others[:, None].expand(-1, n, -1, -1))
            x = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        else:
            x = torch.cat([targets, others] if seen is None else [targets, seen, others], -1)
        x = x.reshape(rows * self.sequences, steps, self.size)
        return x, self.lengths(batch), {"shift": shift, "spread": spread}

    def lengths(self, batch: Batch) -> Tensor:
        """Patches of a window, the same in all rows."""
        rows, steps = batch.inputs["values"].shape[:2]
        return torch.full((rows * self.sequences,), steps // self.patch, dtype=torch.int64)

    def _statistics(self, targets: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """What is subtracted from, and divides, each target of each window: (B, N) twice."""
        if self.normalise == "none":
            return torch.zeros_like(targets[:, 0]), torch.ones_like(targets[:, 0])
        if seen is None:
            mean, spread = targets.mean(1), targets.std(1, unbiased=False)
            last = targets[:, -1]
        else:
            count = seen.sum(1).clamp(min=1)
            mean = (targets * seen).sum(1) / count
            spread = ((targets - mean[:, None]).square() * seen).sum(1).div(count).sqrt()
            last = last_seen(targets, seen)
        return (last if self.normalise == "last" else mean), spread.clamp(min=1e-3)


def last_seen(targets: Tensor, seen: Tensor) -> Tensor:
    """(B, N) the last measured value of each target, from targets (B, L, N); 0 where none was measured."""
    step = torch.arange(1, targets.shape[1] + 1, device=targets.device)[:, None]  # (L, 1)
    at = (seen * step).amax(1).long()  # (B, N), 0: never
    value = targets.gather(1, (at - 1).clamp(min=0)[:, None])[:, 0]
    return torch.where(at > 0, value, 0)


def build(
    spec: Mapping[str, Any], *, patch: int = 24, normalise: Normalise = "window", channels: Channels = "independent"
) -> Frontend:
    """Patches of a window of a time series.

    Args:
        patch: steps that make one step of the family; divides task.lookback. 1 reads every step by itself.
        normalise: what is removed from each target of each window, and restored in its forecast: window (its mean,
            and divided by its spread), last (its last value, and divided by its spread) or none.
        channels: independent (each target is a separate sequence, with shared weights) or joint (one sequence).
    """
    return Patches(spec, patch=patch, normalise=normalise, channels=channels)
