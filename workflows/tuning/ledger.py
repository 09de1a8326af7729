"""The ledger of a search: one JSON file for each trial."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Literal

from datasets.pipeline.storage import Storage
from workflows import strict_json
from workflows.tuning.space import Settings

Status = Literal["running", "finished", "stopped", "failed"]
Phase = Literal["search", "final"]


@dataclass
class TrialRecord:
    """One trial, as it is stored in ``trials/NUMBER/trial.json``.

    Attributes:
        number: within the search, from 0.
        study: the family in a comparison, else "".
        phase: search, or final: trained with the best settings of the search, and measured on the test rows.
        status: stopped means before its last epoch, by the scheduler or by `search.seconds`.
        reason: why it was stopped, or failed.
        settings: dotted keys to values; in population-based training the last ones.
        history: metrics of each epoch.
        best: best value of the validation metric that decides; None if there is none.
        seconds: of training.
        parameters: number of the model's parameters.
        memory: peak memory of its process, in bytes.
        node: address of the node on which it ran.
        node_id: Ray's name of that node.
        started: when its process began with it, in seconds since 1970.
        ended: the same for its end; 0 before.
        run_id: in MLflow.
        metrics: name -> value on the test rows; only in the phase final.
        baselines: method -> metrics; only in the phase final.
    """

    number: int
    study: str = ""
    phase: Phase = "search"
    status: Status = "running"
    reason: str = ""
    settings: Settings = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None
    seconds: float = 0.0
    parameters: int | None = None
    memory: int | None = None
    node: str = ""
    node_id: str = ""
    started: float = 0.0
    ended: float = 0.0
    run_id: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def is_done(self) -> bool:
        """Whether it has ended, whatever its status."""
        return self.status != "running"


class Ledger:
    """The records of a search's trials, which are stored in its folder."""

    def __init__(self, folder: Storage) -> None:
        self.folder = folder
        self.records: list[TrialRecord] = []
        for name in (folder / "trials").names():
            if (folder / f"trials/{name}").exists("trial.json"):
                values = json.loads(folder.read(f"trials/{name}/trial.json"))
                for key in values.keys() & {"history", "metrics", "baselines"}:
                    values[key] = strict_json.none_to_nan(values[key])
                self.records.append(TrialRecord(**values))

    def write(self, record: TrialRecord) -> None:
        """Store a record, new or changed."""
        if not any(r is record for r in self.records):
            self.records.append(record)
        self.folder.write(f"trials/{record.number:04d}/trial.json", strict_json.dumps(asdict(record)).encode())

    def select(self, study: str, phase: Phase) -> list[TrialRecord]:
        """The records of one study in one phase."""
        return [r for r in self.records if (r.study, r.phase) == (study, phase)]


def ranked(records: Iterable[TrialRecord], *, maximise: bool) -> list[TrialRecord]:
    """The records that have a value and did not fail, the best first."""
    sign = -1 if maximise else 1
    return sorted(
        (r for r in records if r.best is not None and r.status != "failed"),
        key=lambda r: (sign * (r.best or 0.0), r.number),
    )


def trial_key(search: str, number: int) -> str:
    """The key of a trial's MLflow run, which stays the same when the search is resumed."""
    return f"{search}/{number:04d}"


def trial_folder(search: Storage, number: int) -> Storage:
    """The folder of a trial's files."""
    return search / f"trials/{number:04d}"
