"""Settings of an experiment that belong to no dataset, family or task. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: passes over the training rows.
        batch_size: rows in a global batch: all workers, all accumulated micro-batches.
        batch_tokens: maximum steps in a global batch, padding included, for rows of unequal length; null: no limit.
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
        at_least = {
            "epochs": 1,
            "batch_size": 1,
            "plateau_epochs": 1,
            "patience": 0,
            "accumulate": 1,
            "seed": 0,
            "checkpoint_steps": 0,
            "log_steps": 1,
            "weight_decay": 0,
            "clip": 0,
        }
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
            raise ValueError(
                f"training.batch_seconds={self.batch_seconds} is out of range; use more than 0, such as "
                "60, or null for no such limit"
            )


LONGEST = 10_000_000  # seconds, 115 days; timers overflow after some 290 years


@dataclass(frozen=True)
class Workers:
    """Where training runs.

    Attributes:
        count: Ray Train workers. One worker on a Ray of this machine's own runs in the starting process. [2, 4]: as
            many as the cluster has resources for, from two to four; when nodes leave or join, all restart from the last
            checkpoint.
        cpus: CPUs of each worker, also its torch threads; null: an equal share of this machine's, or 1 on a cluster and
            in a search.
        gpus: GPUs of each worker.
        failures: times, in all, that lost workers are replaced before the run fails.
        wait: seconds to wait for a cluster to grow to what is asked for; 0 refuses at once. For nodes that are lost in
            a run it waits as long, 60 s at least, `failures` + 1 times in all; with [least, most], until there are
            the least.
        timeout: seconds without a step after which a worker counts as hung and is replaced; 0 waits for ever. The
            worker that runs in the starting process is not watched.
    """

    count: int | list[int] = 1
    cpus: int | None = None
    gpus: int = 0
    failures: int = 3
    wait: float = 0.0
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if isinstance(self.count, list) and not (len(self.count) == 2 and self.count[0] < self.count[1]):
            raise ValueError(f"workers.count={self.count}: use one number, or [least, most] such as [2, 4]")
        if self.least < 1:
            raise ValueError(f"workers.count={self.count} is too small; use at least 1")
        for key, low in {"gpus": 0, "failures": 0, "wait": 0}.items():
            if not getattr(self, key) >= low:
                raise ValueError(f"workers.{key}={getattr(self, key)} is too small; use at least {low}")
        if self.timeout and not 1 <= self.timeout <= LONGEST:
            raise ValueError(
                f"workers.timeout={self.timeout:g} is out of range; use 1 to {LONGEST:,} seconds, or 0 to wait for ever"
            )
        if self.cpus is not None and self.cpus < 1:
            raise ValueError(f"workers.cpus={self.cpus} is too small; use at least 1, or null")

    @property
    def least(self) -> int:
        """Workers without which nothing begins."""
        return self.count[0] if isinstance(self.count, list) else self.count

    @property
    def most(self) -> int:
        """Workers that there are at most."""
        return self.count[1] if isinstance(self.count, list) else self.count


@dataclass(frozen=True)
class Search:
    """How ``search`` looks for good settings, and how ``compare`` does so for each family.

    Attributes:
        space: keys of the experiment -> where their values come from: {loguniform: [1.0e-4, 1.0e-2]},
            {uniform: [0, 1]}, {int: [1, 4]}, {logint: [16, 256]} or {choice: [a, b]}; with
            `when: {model.family: transformer}` added, the key is set only where others have these values.
        start: settings that are tried first, each a mapping of keys of the space to values.
        trials: number of trials; null: as many as end within `seconds`.
        seconds: that trials may take together, by the clock; null: no such limit.
        searcher: tpe (tree-structured Parzen estimator, Bergstra et al. 2011), random, or grid (every combination of
            choices that can be).
        scheduler: asha (asynchronous successive halving, Li et al. 2020), median (stops what is worse than the median
            of the others so far), pbt (population-based training, Jaderberg et al. 2017: the worst trials continue from
            the best ones' weights, with other settings) or none.
        grace: epochs that a trial trains before asha or median may stop it; for pbt, epochs from exchange to exchange.
        reduction: of asha: at each stage one trial in so many, the best, continues for so many times as long.
        concurrent: trials at a time; null: as many as the CPUs and GPUs allow.
        keep: best trials whose weights are kept.
        seed: of what is tried.
        register_as: name of a model in MLflow's registry, of which the best trial becomes a version, with the alias
            champion; null: none.
        seeds: trainings of each family's best settings by ``compare``, each with another training.seed.
        across: one key of the experiment -> values, such as {dataset.length: [50, 100, 200]}: ``compare`` trains the
            best settings at each of them, too.
    """

    space: dict[str, dict[str, Any]] = field(default_factory=dict)
    start: list[dict[str, Any]] = field(default_factory=list)
    trials: int | None = 16
    seconds: float | None = None
    searcher: Literal["tpe", "random", "grid"] = "tpe"
    scheduler: Literal["asha", "median", "pbt", "none"] = "asha"
    grace: int = 1
    reduction: int = 3
    concurrent: int | None = None
    keep: int = 3
    seed: int = 0
    register_as: str | None = None
    seeds: int = 5
    across: dict[str, list[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least = {"trials": 1, "grace": 1, "reduction": 2, "concurrent": 1, "keep": 1, "seed": 0, "seeds": 1}
        for key, low in at_least.items():
            if getattr(self, key) is not None and not getattr(self, key) >= low:
                raise ValueError(f"search.{key}={getattr(self, key)} is too small; use at least {low}")
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise ValueError(f"search.seconds={self.seconds} is out of range; use more than 0, or null for no limit")
        if self.trials is None and self.seconds is None and self.searcher != "grid":
            raise ValueError(
                "search.trials=null and search.seconds=null leave the search without an end; set one of them"
            )
        if self.scheduler == "pbt" and (self.trials is None or self.trials < 4 or self.concurrent is not None):
            raise ValueError(
                "search.scheduler=pbt exchanges weights among all of its trials: give search.trials of at "
                f"least 4, not {self.trials}, and leave search.concurrent out"
            )
        if len(self.across) > 1 or not all(self.across.values()):
            raise ValueError(f"search.across={self.across} must name one key and a list of its values")
        if self.register_as is not None and (not self.register_as.strip() or set(self.register_as) & set("/:.%\"'")):
            raise ValueError(
                f"search.register_as={self.register_as!r} is no name of a registered model; use letters, "
                "digits, spaces and _ -"
            )


@dataclass(frozen=True)
class Tracking:
    """Where runs are tracked.

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
    """What happens to records that cannot be used: they are left out, and listed in ``quarantine.parquet``.

    Attributes:
        limit: the share of all records that may be left out; with more, the run stops and shows the first ten.
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
        if self.cache_bytes > 4 << 30:  # Arrow counts the numbers of one piece in 32 bits; audio has 2 bytes
            raise ValueError(
                f"dataset.cache_bytes={self.cache_bytes} is too large; use at most {4 << 30}, "
                "and let larger data stream"
            )
