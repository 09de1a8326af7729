"""The experiment: one YAML file, strictly checked against the options that datasets, families and tasks declare.

A section's options are the annotated arguments of what it configures: the ``build`` of a file in datasets/,
models/families/ or models/tasks/, a front end, or a settings class. Types, defaults and documentation are read from
there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import yaml

import datasets
from datasets.pipeline.storage import without_secrets
from datasets.shared.contract import RawDataset
from datasets.shared.records import Records
from datasets.shared.splits import no_split
from models import tasks
from workflows.config.settings import Quarantine, Search, Storing, Tracking, Training, Workers
from workflows.config.yaml import Dumper, map_texts


@dataclass(frozen=True)
class Experiment:
    """One experiment, checked: what a run is.

    Sections are plain values, ready to be written as YAML or JSON; ``raw_dataset``, ``resolved_task`` and ``storing``
    are what they describe, built once.
    """

    name: str
    dataset: dict[str, Any]
    task: dict[str, Any]
    model: dict[str, Any]
    training: Training = field(default_factory=Training)
    workers: Workers = field(default_factory=Workers)
    quarantine: Quarantine = field(default_factory=Quarantine)
    storage: str = "runs"
    tracking: Tracking = field(default_factory=Tracking)
    search: Search = field(default_factory=Search)
    source: str = ""  # the file it was read from, for messages
    overrides: tuple[str, ...] = field(default=(), compare=False)  # what changed it, for messages

    @cached_property
    def raw_dataset(self) -> RawDataset:
        """The dataset that the experiment describes; making it touches no files."""
        common = {f.name for f in fields(Storing)}
        return datasets.build(**{k: v for k, v in self.dataset.items() if k not in common})

    @cached_property
    def resolved_task(self) -> dict[str, Any]:
        """The task's kind and options, with ``target``: which of the dataset's targets it learns.

        Raises:
            ValueError: the task can learn none of the dataset's targets.
        """
        kind, available = self.task["kind"], self.raw_dataset.available_targets
        for target in tasks.module(kind).TARGETS:
            if target in available:
                return {**self.task, "target": target}
        able = [name for name in tasks.names() if set(tasks.module(name).TARGETS) & set(available)]
        raise ValueError(
            f"task.kind={kind!r} cannot be trained on dataset.kind={self.dataset['kind']!r} with "
            f"{', '.join(available)}; what can: {', '.join(able)}"
        )

    @cached_property
    def storing(self) -> Storing:
        """How its prepared data is stored and read."""
        return Storing(**{f.name: self.dataset[f.name] for f in fields(Storing)})

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}  # without the properties that were built from them

    def plain(self) -> dict[str, Any]:
        """The sections as nested plain values; user names, passwords and keys in URIs are left out."""
        values = asdict(self)
        del values["source"], values["overrides"]
        if self.search == Search():  # of no meaning to a single run
            del values["search"]
        public: dict[str, Any] = map_texts(values, without_secrets)
        return public

    def text(self) -> str:
        """The experiment as YAML, every option written out."""
        return yaml.dump(self.plain(), Dumper=Dumper, sort_keys=False, width=100)

    def replace(self, **sections: Any) -> Experiment:
        return replace(self, **sections)


def check_splits(experiment: Experiment) -> None:
    """Raise ValueError if there will be no validation rows, before the data is prepared, which may take hours."""
    dataset = experiment.raw_dataset
    if isinstance(dataset, Records) and dataset.splits is not None and "validation" not in dataset.splits:
        raise no_split("validation", sorted(dataset.splits))


def flatten(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every leaf of nested mappings."""
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two plain experiments, except in where they run (workers, tracking, storage)."""
    old, new = dict(flatten(before)), dict(flatten(now))
    ignored = ("workers.", "tracking.", "storage", "search.")
    return [
        f"{k}: {old.get(k)!r} there, {new.get(k)!r} here"
        for k in sorted(old.keys() | new.keys())
        if old.get(k) != new.get(k) and not k.startswith(ignored)
    ]
