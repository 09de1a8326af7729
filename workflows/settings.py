"""Settings of an experiment that belong to no dataset, family or task. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows in a global batch: all workers, all accumulated micro-batches.
        batch_tokens: most steps in a global batch, padding included, for rows of unequal length; null: no such limit.
        batch_seconds: the same for audio, in seconds.
        learning_rate: of AdamW, at its highest.
        weight_decay: of AdamW, on matrices only (no biases or norms).
        schedule: cosine (falls to 0 at the end), plateau (halved when the validation metric stops falling) or constant.
        warmup: share of the training over which the learning rate rises from 0.
        plateau_epochs: epochs without a better validation metric before schedule plateau halves the learning rate.
        patience: epochs without a better validation metric before training stops; 0 never stops early.
        clip: largest norm of the gradient; larger ones are scaled down; 0 leaves them.
        accumulate: micro-batches in which each worker computes its share of a global batch.
        precision: fp32, bf16 (autocast of the forward pass; weights stay fp32) or fp64.
        seed: of weights, dropout and the order of rows.
        checkpoint_steps: steps between checkpoints inside an epoch; each epoch ends with one in any case; 0: only then.
        log_steps: steps between two records of loss, speed and learning rate.
    """

    epochs: int = 10
    batch_size: int = 64
    batch_tokens: int | None = None
    batch_seconds: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    warmup: float = 0.05
    plateau_epochs: int = 2
    patience: int = 0
    clip: float = 1.0
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    seed: int = 0
    checkpoint_steps: int = 0
    log_steps: int = 20

    def __post_init__(self) -> None:
        at_least = {"epochs": 1, "batch_size": 1, "plateau_epochs": 1, "patience": 0, "accumulate": 1, "seed": 0,
                    "checkpoint_steps": 0, "log_steps": 1, "weight_decay": 0, "clip": 0}
        for key, low in at_least.items():
            if not getattr(self, key) >= low:
                raise ValueError(f"training.{key}={getattr(self, key)} is too small; use at least {low}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"training.learning_rate={self.learning_rate} must be above 0, such as 1e-3")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"training.warmup={self.warmup} is a share of the training; use a value in [0, 1)")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"training.batch_tokens={self.batch_tokens} is too small; use at least 1")
        if self.batch_seconds is not None and not 0 < self.batch_seconds < math.inf:
            raise ValueError(f"training.batch_seconds={self.batch_seconds} is out of range; use more than 0, such as "
                             "60, or null for no such limit")


@dataclass(frozen=True)
class Workers:
    """Where training runs.

    Attributes:
        count: Ray Train workers. One worker on a Ray of this machine's own runs in the starting process.
        cpus: CPUs of each worker, also its torch threads; null: an equal share of this machine's, or 1 on a cluster.
        gpus: GPUs of each worker.
        failures: times that lost workers are replaced before the run fails.
        wait: seconds to wait for a cluster to grow to what is asked for; 0 refuses at once.
    """

    count: int = 1
    cpus: int | None = None
    gpus: int = 0
    failures: int = 3
    wait: float = 0.0

    def __post_init__(self) -> None:
        for key, low in {"count": 1, "gpus": 0, "failures": 0, "wait": 0}.items():
            if not getattr(self, key) >= low:
                raise ValueError(f"workers.{key}={getattr(self, key)} is too small; use at least {low}")
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"workers.cpus={self.cpus} is too small; use at least 1, or null")


@dataclass(frozen=True)
class Tracking:
    """Where the record goes.

    Attributes:
        uri: of MLflow: sqlite:///FILE (no server needed) or http(s)://HOST:PORT.
        experiment: name of the MLflow experiment; null: the experiment's own name.
        system_seconds: seconds between two samples of CPU, memory and GPU use; 0: none.
    """

    uri: str = "sqlite:///mlflow.db"
    experiment: str | None = None
    system_seconds: float = 10.0

    def __post_init__(self) -> None:
        if not self.system_seconds >= 0:
            raise ValueError(f"tracking.system_seconds={self.system_seconds} is too small; use 0 for none")


@dataclass(frozen=True)
class Quarantine:
    """What happens to records that cannot be used: they are set aside, and listed in ``quarantine.parquet``.

    Attributes:
        limit: the share of all records that may be set aside; with more, the run stops and shows the first ten.
    """

    limit: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.limit <= 1:
            raise ValueError(f"quarantine.limit={self.limit} is a share of the records; use a value in [0, 1]")


@dataclass(frozen=True)
class Storing:
    """How prepared data is stored and read, for every kind of dataset.

    Attributes:
        shuffle_bytes: rows are shuffled inside groups of shards of at most this many bytes; bounds a worker's memory.
        cache_bytes: a split's data up to this size is read once and kept in memory; larger data streams every epoch.
            At most 4 GiB.
        shard_bytes: size of a prepared file.
    """

    shuffle_bytes: int = 256 << 20
    cache_bytes: int = 1 << 30
    shard_bytes: int = 32 << 20

    def __post_init__(self) -> None:
        for key, low in {"shuffle_bytes": 1, "cache_bytes": 0, "shard_bytes": 1}.items():
            if not getattr(self, key) >= low:
                raise ValueError(f"dataset.{key}={getattr(self, key)} is too small; use at least {low}")
        if self.cache_bytes > 4 << 30:             # Arrow counts the numbers of one piece in 32 bits; audio has 2 bytes
            raise ValueError(f"dataset.cache_bytes={self.cache_bytes} is too large; use at most {4 << 30}, "
                             "and let larger data stream")
