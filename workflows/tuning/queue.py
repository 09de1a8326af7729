"""The trials of a search in stages: which trial starts next, and how its result is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets.pipeline.storage import Storage
from workflows.config.settings import Search
from workflows.tracking.recorder import Recorder
from workflows.tuning.ledger import Ledger, Phase, TrialRecord, ranked, trial_folder, trial_key
from workflows.tuning.sampler import Sampler
from workflows.tuning.space import Axis, Settings


class Stage(Protocol):
    """A series of trials of one study.

    Attributes:
        study, phase: of its records.
        exhausted: whether it has no more trials to start.
    """

    study: str
    phase: Phase
    exhausted: bool

    def is_ready(self) -> bool:
        """Whether its trials may start now."""

    def next_settings(self, number: int) -> Settings | None:
        """Settings for trial `number`; None if there are no more."""

    def time_limit(self) -> tuple[float | None, str]:
        """Seconds after which its trials have to stop, and the clock that counts them: see ``Assignment``."""

    def on_trial_end(self, record: TrialRecord) -> None:
        """A trial of this stage has ended."""


class SearchStage:
    """The search of one study: trials with the settings that its sampler draws, within the budget.

    Args:
        study: its name.
        axes: of the space.
        search: the settings of the search.
        options: the contents of the study's experiment file.
        ledger: the records of all trials.
        primary: the metric that decides.
        maximise: whether its highest value is best.
        concurrent: number of trials at a time.
        after: a search that has to end before this one begins.
    """

    phase: Phase = "search"

    def __init__(
        self,
        study: str,
        axes: list[Axis],
        search: Search,
        *,
        options: dict[str, Any],
        ledger: Ledger,
        primary: str,
        maximise: bool,
        concurrent: int,
        after: SearchStage | None = None,
    ) -> None:
        self.study, self.search, self.ledger, self.after = study, search, ledger, after
        self.primary, self.maximise, self.exhausted = primary, maximise, False
        earlier = ledger.select(study, "search")  # trials of an earlier process, if the search is resumed
        self.sampler = Sampler(axes, search, maximise=maximise, options=options, replayed=len(earlier))
        for record in earlier:
            self.sampler.replay(
                record.number,
                record.settings,
                self._values(record),
                stopped=record.status == "stopped",
                is_done=record.is_done,
            )
        self.used_seconds = sum(r.ended - r.started for r in earlier if r.is_done) / concurrent
        self.clock = f"clock-{study or 'all'}-{time.time_ns()}"

    def _values(self, record: TrialRecord) -> list[float]:
        return [h[f"validation/{self.primary}"] for h in record.history]

    def is_ready(self) -> bool:
        previous = self.after
        return previous is None or (previous.exhausted and (self.search.seconds is None or previous.all_trials_ended()))

    def all_trials_ended(self) -> bool:
        """Whether all trials of this search have been started and have ended."""
        return self.exhausted and all(r.is_done for r in self.ledger.select(self.study, "search"))

    def time_limit(self) -> tuple[float | None, str]:
        return None if self.search.seconds is None else self.search.seconds - self.used_seconds, self.clock

    def next_settings(self, number: int) -> Settings | None:
        started, (seconds, clock) = len(self.ledger.select(self.study, "search")), self.time_limit()
        if self.search.trials is not None and started >= self.search.trials:
            return None
        if seconds is not None and time.time() >= (start_time(self.ledger.folder, clock) or time.time()) + seconds:
            return None
        return self.sampler.draw(number)

    def on_trial_end(self, record: TrialRecord) -> None:
        values = [] if record.status == "failed" else self._values(record)
        self.sampler.record(record.number, values, stopped=record.status == "stopped")


class FinalStage:
    """Trainings with the best settings of a study, for several seeds and for each value of `search.across`.

    Args:
        search_stage: the study's search.
        seeds: values of training.seed.
        across: key -> values; may be empty.
    """

    phase: Phase = "final"

    def __init__(self, search_stage: SearchStage, seeds: Sequence[int], across: dict[str, list[Any]]) -> None:
        self.study, self.search_stage, self.exhausted = search_stage.study, search_stage, False
        variants: list[Settings] = [{}, *({key: value} for key, values in across.items() for value in values)]
        self.plan: list[Settings] = [{**variant, "training.seed": seed} for variant in variants for seed in seeds]

    def is_ready(self) -> bool:
        return self.search_stage.all_trials_ended()

    def best(self) -> TrialRecord | None:
        """The best trial of the search; None if none has a result."""
        records = self.search_stage.ledger.select(self.study, "search")
        return next(iter(ranked(records, maximise=self.search_stage.maximise)), None)

    def next_settings(self, number: int) -> Settings | None:
        best = self.best()
        if best is None:
            return None
        started = [r.settings for r in self.search_stage.ledger.select(self.study, "final")]
        planned = ({**best.settings, **changes} for changes in self.plan)
        return next((settings for settings in planned if settings not in started), None)

    def time_limit(self) -> tuple[None, str]:
        return None, ""

    def on_trial_end(self, record: TrialRecord) -> None:
        """Final trainings do not influence which settings are tried."""


class Queue:
    """Starts trials in the order of the stages and records their results; it alone writes the ledger.

    Args:
        stages: in order.
        ledger: of the search.
        begin: opens the MLflow run of a trial that is new or continued.
        tracker: records metrics in MLflow.
        name: of the search.
        max_running: trials that may run at a time; None: no limit.
        keep: number of best trials of each study whose checkpoints are kept.
        maximise: whether the highest value is best.
        scheduler: its name, for the reason why a trial was stopped.
        on_update: called with each record after an epoch and at the end.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        ledger: Ledger,
        *,
        begin: Callable[[TrialRecord], None],
        tracker: Recorder,
        name: str,
        max_running: int | None,
        keep: int,
        maximise: bool,
        scheduler: str,
        on_update: Callable[[TrialRecord], None],
    ) -> None:
        self.stages, self.ledger, self.begin, self.tracker, self.name = stages, ledger, begin, tracker, name
        self.max_running, self.keep, self.maximise, self.scheduler = max_running, keep, maximise, scheduler
        self.on_update = on_update
        self.running: dict[int, TrialRecord] = {}
        # Called between two steps of Tune: an exception that is raised during one can be lost.
        self.should_stop: Callable[[], bool] = lambda: False
        self.interrupted = [r for r in ledger.records if not r.is_done]  # when an earlier process ended
        self.pruned: set[int] = set()
        for record in ledger.records:  # an earlier process may have died before it recorded their end in MLflow
            if record.is_done:
                begin(record)
                self._record_end(record)

    @property
    def exhausted(self) -> bool:
        """Whether there are no more trials to start."""
        return not self.interrupted and all(s.exhausted for s in self.stages)

    def next(self) -> Assignment | None:
        """Start the next trial; None if none can start now."""
        if self.max_running is not None and len(self.running) >= self.max_running:
            return None
        if self.interrupted:
            return self._start(self.interrupted.pop(0))
        for stage in self.stages:
            if stage.exhausted or not stage.is_ready():
                continue
            number = len(self.ledger.records)
            settings = stage.next_settings(number)
            if settings is None:
                stage.exhausted = True
                continue
            return self._start(TrialRecord(number, stage.study, stage.phase, settings=settings))
        return None

    def _start(self, record: TrialRecord) -> Assignment:
        self.running[record.number] = record
        self.ledger.write(record)
        self.begin(record)
        return Assignment(
            record.number, record.study, record.settings, record.phase == "final", *self._stage(record).time_limit()
        )

    def _stage(self, record: TrialRecord) -> Stage:
        return next(s for s in self.stages if (s.study, s.phase) == (record.study, record.phase))

    def on_epoch(self, number: int, result: dict[str, Any]) -> None:
        """A trial has finished an epoch."""
        record = self.running[number]
        self._update(record, result)
        self.on_update(record)

    def _update(self, record: TrialRecord, result: dict[str, Any]) -> None:
        for name in ("history", "best", "seconds", "parameters", "memory", "node", "node_id"):
            if result.get(name) is not None:
                setattr(record, name, result[name])
        record.started = record.started or result.get("started") or time.time()

    def on_settings(self, number: int, settings: Settings) -> None:
        """A trial continues with these settings, which may be new."""
        record = self.running[number]
        if record.settings != settings:
            record.settings = dict(settings)
            self.ledger.write(record)

    def on_end(self, number: int, result: dict[str, Any]) -> None:
        """A trial has ended with this result."""
        record = self.running.pop(number)
        self._update(record, result)
        if "failed" in result:
            record.status, record.reason = "failed", result["failed"]
        elif not result["done"]:
            record.status, record.reason = "stopped", f"by {self.scheduler} after epoch {result[EPOCH]}"
        elif result["timed_out"]:
            record.status, record.reason = "stopped", "search.seconds were over"
        else:
            record.status = "finished"
        final = result.get("final")
        if final is not None:
            record.metrics, record.baselines = final["metrics"], final["baselines"]
        record.ended = time.time()
        self._record_end(record)
        self.ledger.write(record)
        self._stage(record).on_trial_end(record)
        self._prune(record.study)
        self.on_update(record)

    def _record_end(self, record: TrialRecord) -> None:
        key = trial_key(self.name, record.number)
        if record.metrics:
            metrics = {k: v for k, v in record.metrics.items() if k != "train/loss"}
            self.tracker.metrics(key, metrics, int(record.history[-1]["step"]) + 1)
        tags = {"rondo.status": record.status, **({"rondo.reason": record.reason} if record.reason else {})}
        self.tracker.end(
            key,
            "FAILED" if record.status == "failed" else "FINISHED",
            tags=tags,
            wait=False,
            time_ms=int(record.ended * 1000),
        )

    def _prune(self, study: str) -> None:
        """Delete checkpoints, except those of the best and of running trials; final trainings have a bundle."""
        records = [r for r in self.ledger.records if r.study == study]
        searched = ranked((r for r in records if r.phase == "search"), maximise=self.maximise)
        best = [r.number for r in searched[: self.keep]]
        for record in records:
            if record.is_done and record.number not in best and record.number not in self.pruned:
                self.pruned.add(record.number)
                for part in ("checkpoints", "ray"):
                    trial_folder(self.ledger.folder, record.number).delete(part)


METRIC = "metric"  # key of a result: the validation metric that decides
EPOCH = "epoch"


@dataclass(frozen=True)
class Assignment:
    """What one trial trains.

    Attributes:
        number: within the search.
        study: the family in a comparison, else "".
        settings: dotted keys to values.
        final: whether it is also measured on the test rows.
        seconds: after which it has to stop, by the study's `clock`; None: never.
        clock: name of the file in the search's folder with the time at which the study's first trial started.
    """

    number: int
    study: str
    settings: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    seconds: float | None = None
    clock: str = ""


def start_time(search: Storage, clock: str) -> float | None:
    """When the first trial of a study started, in seconds since 1970; None if none has."""
    try:
        return float(search.read(clock))
    except FileNotFoundError:
        return None
