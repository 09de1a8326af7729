"""Counts and clocks of training: loss, rows, and where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from workflows.training.progress import Progress, Step
from workflows.training.worker_group import WorkerGroup


class Meter:
    """Loss, rows and times of this worker.

    Seconds are counted from the start of training: `waited` for data, `saved` for checkpoints, and ``workers.seconds``
    for communication; a reading is the difference from a mark. Gradients are communicated during the backward pass, so
    some of those seconds are compute time as well.
    """

    def __init__(self, workers: WorkerGroup) -> None:
        self.workers = workers
        self.device_sums = torch.zeros(2, dtype=torch.float64, device=workers.device)  # loss, weight; not reduced yet
        self.logged = torch.zeros(2, dtype=torch.float64, device=workers.device)
        self.rows = self.checksum = 0
        self.waited = self.saved = 0.0
        self.reported_saved = 0.0  # of `saved`, what earlier epochs have reported
        self.steps, self.log_rows, self.epoch_rows = 0, 0, 0
        self.restart()

    def restart(self) -> None:
        """Start the clocks of an epoch."""
        self.epoch_start, self.epoch_rows = time.perf_counter(), 0
        self.started_total = self.epoch_start
        self.epoch_mark = self._mark()
        self._clocks()

    def _mark(self) -> tuple[float, float, float]:
        return self.waited, self.workers.seconds, self.saved

    def _clocks(self) -> None:
        self.start, self.steps, self.log_rows = time.perf_counter(), 0, 0
        self.log_mark = self._mark()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Count the time of the block as that of a checkpoint."""
        start = time.perf_counter()
        yield
        self.saved += time.perf_counter() - start

    def add(self, loss: Tensor, weight: Tensor, step: Step) -> None:
        pair = torch.stack([loss, weight])
        self.device_sums += pair
        self.logged += pair
        self.rows += step.own_rows
        self.checksum = wrap_int64(self.checksum + step.checksum)
        self.steps += 1
        self.log_rows += step.rows
        self.epoch_rows += step.rows

    def since(self) -> dict[str, float]:
        """Loss, speed and milliseconds a step since the last call. Call it on every worker: it reduces."""
        waited, communicated, saved = (now - then for now, then in zip(self._mark(), self.log_mark, strict=True))
        loss, weight = self.workers.sum(self.logged).tolist()
        seconds = time.perf_counter() - self.start
        per_step = 1000 / max(1, self.steps)
        out = {
            "train/step_loss": loss / max(weight, 1e-12),
            "train/rows_per_second": self.log_rows / seconds,
            "time/data_ms": waited * per_step,
            "time/communication_ms": communicated * per_step,
            "time/checkpoint_ms": saved * per_step,
            "time/compute_ms": max(0.0, seconds - waited - communicated - saved) * per_step,
        }
        self.logged.zero_()
        self._clocks()
        return out

    def total(self, progress: Progress) -> None:
        """Add what all workers counted since the last call to `progress`."""
        loss, weight = self.workers.sum(self.device_sums).tolist()
        rows, checksum = self.workers.sum(torch.tensor([self.rows, self.checksum])).tolist()
        progress.epoch_loss += loss
        progress.epoch_weight += weight
        progress.epoch_rows += rows
        progress.epoch_checksum = wrap_int64(progress.epoch_checksum + checksum)
        self.device_sums.zero_()
        self.rows = self.checksum = 0
        now = time.perf_counter()
        progress.seconds += now - self.started_total
        self.started_total = now

    def epoch(self) -> dict[str, float]:
        """Speed of the epoch, and where the time of all workers went. Call it on every worker: it reduces.

        Neither rows nor seconds include validation. The checkpoint at an epoch's end counts for the next epoch.
        """
        seconds = max(1e-9, self.started_total - self.epoch_start)
        waited, communicated, _ = (now - then for now, then in zip(self._mark(), self.epoch_mark, strict=True))
        before = self.epoch_mark[2] - self.reported_saved
        saved, self.reported_saved = self.saved - self.reported_saved, self.saved
        own_compute = max(0.0, seconds + before - waited - communicated - saved)
        seconds_by_part = torch.zeros(3 + self.workers.world, dtype=torch.float64)
        seconds_by_part[:3] = torch.tensor([waited, communicated, saved])
        seconds_by_part[3 + self.workers.rank] = own_compute
        seconds_by_part = self.workers.sum(seconds_by_part)
        compute = seconds_by_part[3:]
        total = max(1e-9, float(seconds_by_part.sum()))
        parts = dict(
            zip(
                ("data", "communication", "checkpoint", "compute"),
                [*seconds_by_part[:3].tolist(), float(compute.sum())],
                strict=True,
            )
        )
        out = {
            "train/epoch_seconds": seconds,
            "train/epoch_rows_per_second": self.epoch_rows / seconds,
            **{f"time/{name}_percent": 100 * part / total for name, part in parts.items()},
        }
        if self.workers.world > 1:
            out["time/slowest_worker"] = float(compute.argmax())
            out["time/slowest_worker_percent"] = 100 * (float(compute.max()) / max(1e-9, float(compute.median())) - 1)
        return out


def wrap_int64(x: int) -> int:
    """x modulo 2**64, as a signed number."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)
