"""Many trials on Ray Tune: a queue of what to try, and a ledger of what came of it.

Tune runs the trials, reuses their processes and asks its scheduler which to stop. What has been tried is kept by the
ledger, a JSON file a trial, written when a trial is given out and when it ends. So a search that was killed goes on
exactly: finished trials stand, those that were running go on from their checkpoints, and nothing of it is pickled.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from datasets.storage import Storage
from workflows import strict_json
from workflows.ray_tune_private import SynchronousPopulation, died_of_memory, error_of, replay, survive_memory
from workflows.settings import Search
from workflows.space import RANGES, Axis, Sampler, Settings
from workflows.tracking import Recorder
from workflows.trial import EPOCH, JUDGED, Assignment, Shared, Trial, began, folder_of, reason, trial_key

Status = Literal["running", "finished", "stopped", "failed"]
Phase = Literal["search", "final"]


@dataclass
class Record:
    """One trial, as the ledger has it (``trials/NUMBER/trial.json``).

    Attributes:
        number: within the search, from 0.
        study: the family in a comparison, else "".
        phase: search, or final: trained with settings that were found, and measured on the test rows.
        status: stopped means before its last epoch, by the scheduler or by the end of the time.
        reason: why it was stopped, or failed.
        settings: dotted keys to values; of population-based training the last ones.
        history: metrics of each epoch.
        best: of the validation metric that decides; None where there is none.
        seconds: of training.
        parameters: of the model; memory: the most bytes that its process had.
        node: address of the node on which it ran, and node_id, Ray's name of it.
        started, ended: in seconds since 1970, from when its process took it up.
        run_id: in MLflow.
        metrics, baselines: flat; of the phase final.
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
    def over(self) -> bool:
        """Whether it has ended, one way or the other."""
        return self.status != "running"


class Ledger:
    """The records of a search, in its folder."""

    def __init__(self, folder: Storage) -> None:
        self.folder = folder
        self.records: list[Record] = []
        for name in (folder / "trials").names():
            if (folder / f"trials/{name}").exists("trial.json"):
                told = json.loads(folder.read(f"trials/{name}/trial.json"))
                for key in told.keys() & {"history", "metrics", "baselines"}:
                    told[key] = strict_json.none_to_nan(told[key])
                self.records.append(Record(**told))

    def write(self, record: Record) -> None:
        """Keep a record, new or changed."""
        if not any(r is record for r in self.records):
            self.records.append(record)
        self.folder.write(f"trials/{record.number:04d}/trial.json", strict_json.dumps(asdict(record)).encode())

    def of(self, study: str, phase: Phase) -> list[Record]:
        return [r for r in self.records if (r.study, r.phase) == (study, phase)]


def ranked(records: Iterable[Record], *, maximise: bool) -> list[Record]:
    """Those with a best value, the best first."""
    sign = -1 if maximise else 1
    return sorted((r for r in records if r.best is not None and r.status != "failed"),
                  key=lambda r: (sign * (r.best or 0.0), r.number))


class Stage(Protocol):
    """A series of trials of one study.

    Attributes:
        study, phase: of its records.
        exhausted: nothing is left to be given out.
    """

    study: str
    phase: Phase
    exhausted: bool

    def ready(self) -> bool:
        """Whether it may begin, or go on."""

    def next(self, number: int) -> Settings | None:
        """Settings of the next trial; None where there are no more."""

    def bound(self) -> tuple[float | None, str]:
        """Seconds after which its trials have to stop, and the clock that counts them: see ``Assignment``."""

    def tell(self, record: Record) -> None:
        """A trial of it has ended."""


class Searching:
    """The search of one study: what its sampler draws, within the budget.

    Args:
        study: its name.
        axes: of the space; told: its experiment.
        search: the settings.
        ledger: of all.
        primary, maximise: the metric that decides.
        concurrent: trials at a time.
        after: a search that has to end before this one begins.
    """

    phase: Phase = "search"

    def __init__(self, study: str, axes: list[Axis], search: Search, *, told: dict[str, Any], ledger: Ledger,
                 primary: str, maximise: bool, concurrent: int, after: Searching | None = None) -> None:
        self.study, self.search, self.ledger, self.after = study, search, ledger, after
        self.primary, self.maximise, self.exhausted = primary, maximise, False
        past = ledger.of(study, "search")
        self.sampler = Sampler(axes, search, maximise=maximise, told=told, past=len(past))
        for record in past:
            self.sampler.replay(record.number, record.settings, self._values(record),
                                stopped=record.status == "stopped", over=record.over)
        self.used = sum(r.ended - r.started for r in past if r.over) / concurrent
        self.clock = f"clock-{study or 'all'}-{time.time_ns()}"

    def _values(self, record: Record) -> list[float]:
        return [h[f"validation/{self.primary}"] for h in record.history]

    def ready(self) -> bool:
        before = self.after
        return before is None or (before.exhausted and (self.search.seconds is None or before.ended()))

    def ended(self) -> bool:
        """Whether nothing of it is left to be waited for."""
        return self.exhausted and all(r.over for r in self.ledger.of(self.study, "search"))

    def bound(self) -> tuple[float | None, str]:
        return None if self.search.seconds is None else self.search.seconds - self.used, self.clock

    def next(self, number: int) -> Settings | None:
        given, (seconds, clock) = len(self.ledger.of(self.study, "search")), self.bound()
        if self.search.trials is not None and given >= self.search.trials:
            return None
        if seconds is not None and time.time() >= (began(self.ledger.folder, clock) or time.time()) + seconds:
            return None
        return self.sampler.next(number)

    def tell(self, record: Record) -> None:
        values = [] if record.status == "failed" else self._values(record)
        self.sampler.tell(record.number, values, stopped=record.status == "stopped")


class Finals:
    """Trainings with the settings that a study found, each with another seed, and at each value of `across`.

    Args:
        searching: the study's search.
        seeds: of training; across: key -> values, or nothing.
    """

    phase: Phase = "final"

    def __init__(self, searching: Searching, seeds: Sequence[int], across: dict[str, list[Any]]) -> None:
        self.study, self.searching, self.exhausted = searching.study, searching, False
        places: list[Settings] = [{}, *({key: value} for key, values in across.items() for value in values)]
        self.plan: list[Settings] = [{**place, "training.seed": seed} for place in places for seed in seeds]

    def ready(self) -> bool:
        return self.searching.ended()

    def best(self) -> Record | None:
        """The best trial of the search."""
        found = ranked(self.searching.ledger.of(self.study, "search"), maximise=self.searching.maximise)
        return found[0] if found else None

    def next(self, number: int) -> Settings | None:
        best, given = self.best(), [r.settings for r in self.searching.ledger.of(self.study, "final")]
        if best is None:
            return None
        return next((s for own in self.plan if (s := {**best.settings, **own}) not in given), None)

    def bound(self) -> tuple[None, str]:
        return None, ""

    def tell(self, record: Record) -> None:
        """Nothing is learnt from it."""


class Queue:
    """What is to be tried, and what comes of it; the one writer of the ledger.

    Args:
        stages: in order.
        ledger: of the search.
        begin: puts a new trial, or one that goes on, on record.
        tracker: of the record; name: of the search.
        most: trials that may be given out at a time; None: as many as are asked for.
        keep: best trials of each study whose checkpoints stay.
        maximise: whether the highest value is best.
        scheduler: its name, for the reason why a trial was stopped.
        watch: takes each record as it moves on and ends.
    """

    def __init__(self, stages: Sequence[Stage], ledger: Ledger, *, begin: Callable[[Record], None], tracker: Recorder,
                 name: str, most: int | None, keep: int, maximise: bool, scheduler: str,
                 watch: Callable[[Record], None]) -> None:
        self.stages, self.ledger, self.begin, self.tracker, self.name = stages, ledger, begin, tracker, name
        self.most, self.keep, self.maximise, self.scheduler, self.watch = most, keep, maximise, scheduler, watch
        self.running: dict[int, Record] = {}
        self.stop: Callable[[], bool] = lambda: False  # asked between two steps of Tune: in the midst of one an
                                                       # exception can be lost
        self.waiting = [r for r in ledger.records if not r.over]
        self.pruned: set[int] = set()
        for record in ledger.records:                  # of an earlier process, which may have died before it told
            if record.over:
                begin(record)
                self._put_on_record(record)

    @property
    def exhausted(self) -> bool:
        """Whether nothing is left to be given out."""
        return not self.waiting and all(s.exhausted for s in self.stages)

    def next(self) -> Assignment | None:
        """The next trial; None where there is none now."""
        if self.most is not None and len(self.running) >= self.most:
            return None
        if self.waiting:
            record = self.waiting.pop(0)
            return self._give(record)
        for stage in self.stages:
            if stage.exhausted or not stage.ready():
                continue
            number = len(self.ledger.records)
            settings = stage.next(number)
            if settings is None:
                stage.exhausted = True
                continue
            return self._give(Record(number, stage.study, stage.phase, settings=settings))
        return None

    def _give(self, record: Record) -> Assignment:
        self.running[record.number] = record
        self.ledger.write(record)
        self.begin(record)
        return Assignment(record.number, record.study, record.settings, record.phase == "final",
                          *self._stage(record).bound())

    def _stage(self, record: Record) -> Stage:
        return next(s for s in self.stages if (s.study, s.phase) == (record.study, record.phase))

    def moved(self, number: int, told: dict[str, Any]) -> None:
        """A trial has told of an epoch."""
        record = self.running[number]
        self._take(record, told)
        self.watch(record)

    def _take(self, record: Record, told: dict[str, Any]) -> None:
        for name in ("history", "best", "seconds", "parameters", "memory", "node", "node_id"):
            if told.get(name) is not None:
                setattr(record, name, told[name])
        record.started = record.started or told.get("started") or time.time()

    def changed(self, number: int, settings: Settings) -> None:
        """A trial goes on with other settings."""
        record = self.running[number]
        if record.settings != settings:
            record.settings = dict(settings)
            self.ledger.write(record)

    def ended(self, number: int, told: dict[str, Any]) -> None:
        """A trial is over: what it told last."""
        record = self.running.pop(number)
        self._take(record, told)
        if "failed" in told:
            record.status, record.reason = "failed", told["failed"]
        elif not told["over"]:
            record.status, record.reason = "stopped", f"by {self.scheduler} after epoch {told[EPOCH]}"
        elif told["late"]:
            record.status, record.reason = "stopped", "search.seconds were over"
        else:
            record.status = "finished"
        final = told.get("final")
        if final is not None:
            record.metrics, record.baselines = final["metrics"], final["baselines"]
        record.ended = time.time()
        self._put_on_record(record)
        self.ledger.write(record)
        self._stage(record).tell(record)
        self._prune(record.study)
        self.watch(record)

    def _put_on_record(self, record: Record) -> None:
        key = trial_key(self.name, record.number)
        if record.metrics:
            own = {k: v for k, v in record.metrics.items() if k != "train/loss"}
            self.tracker.metrics(key, own, int(record.history[-1]["step"]) + 1)
        tags = {"rondo.status": record.status, **({"rondo.reason": record.reason} if record.reason else {})}
        self.tracker.end(key, "FAILED" if record.status == "failed" else "FINISHED", tags=tags, wait=False,
                         time_ms=int(record.ended * 1000))

    def _prune(self, study: str) -> None:
        """Keep the checkpoints of the best trials and of those that run; a final one has its bundle."""
        own = [r for r in self.ledger.records if r.study == study]
        best = [r.number for r in ranked((r for r in own if r.phase == "search"), maximise=self.maximise)[:self.keep]]
        for record in own:
            if record.over and record.number not in best and record.number not in self.pruned:
                self.pruned.add(record.number)
                for part in ("checkpoints", "ray"):
                    folder_of(self.ledger.folder, record.number).delete(part)


class _Asked(Searcher):  # type: ignore[misc]
    """Where Tune asks for trials."""

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue = queue

    def suggest(self, trial_id: str) -> Any:
        given = self.queue.next()
        if given is None:
            return Searcher.FINISHED if self.queue.exhausted else None
        return {"trial": asdict(given)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The callback below hears of it, too, and of the reason."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is what a search goes on from."""

    def __reduce__(self) -> Any:
        return object, ()                              # Tune keeps a copy of what it was given, which nobody reads


class _Told(tune.Callback):  # type: ignore[misc]
    """Where Tune tells of trials."""

    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self.queue.stop():
            raise KeyboardInterrupt

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        given = trial.config["trial"]
        self.queue.changed(given["number"], given["settings"])

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any],
                        **info: Any) -> None:
        self.queue.moved(trial.config["trial"]["number"], json.loads(result["told"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        told = trial.last_result.get("told")
        nothing = {"failed": "it ended before its first epoch"}
        self.queue.ended(trial.config["trial"]["number"], json.loads(told) if told else nothing)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = error_of(trial) or RuntimeError("its process died")
        self.queue.ended(trial.config["trial"]["number"], {"failed": lost(error)})

    def __reduce__(self) -> Any:
        return object, ()


def lost(error: Exception) -> str:
    """Why Tune lost a trial's process, in a line."""
    if died_of_memory(error):
        return "out of memory: Ray ended its process before the machine had none left"
    text = str(error).strip()
    if isinstance(error, RayActorError):
        found = [line.strip() for line in text.splitlines() if "exit" in line.lower()]
        return f"its process died: {found[-1] if found else text.splitlines()[0]}"
    return reason(error)


class _PerStudy(FIFOScheduler):  # type: ignore[misc]
    """One scheduler for each study; final trainings are never stopped."""

    def __init__(self, make: Callable[[], Any]) -> None:
        super().__init__()
        self.make, self.own = make, {}                 # type: ignore[var-annotated]

    def _of(self, config: dict[str, Any]) -> Any:
        study = config["trial"]["study"]
        if config["trial"]["final"]:
            return FIFOScheduler()
        if study not in self.own:
            self.own[study] = self.make()
        return self.own[study]

    def on_trial_add(self, controller: Any, trial: Any) -> None:
        self._of(trial.config).on_trial_add(controller, trial)

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        self._of(trial.config).on_trial_error(controller, trial)

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> Any:
        return self._of(trial.config).on_trial_result(controller, trial, result)

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self._of(trial.config).on_trial_complete(controller, trial, result)

    def on_trial_remove(self, controller: Any, trial: Any) -> None:
        self._of(trial.config).on_trial_remove(controller, trial)


class _Population(SynchronousPopulation):
    """Population-based training within the space; a trial that goes on from another's weights stays itself."""

    def __init__(self, axes: list[Axis], **how: Any) -> None:
        super().__init__(hyperparam_mutations={"trial": {"settings": {a.key: _domain(a) for a in axes}}}, **how)
        self.axes = axes

    def adapted(self, config: dict[str, Any], trial: Any) -> dict[str, Any]:
        settings = {a.key: a.nearest(config["trial"]["settings"][a.key]) for a in self.axes}
        return {"trial": {**trial.config["trial"], "settings": settings}}


def _scheduler(search: Search, axes: list[Axis], *, epochs: int, records: list[Record], primary: str,
               maximise: bool) -> Any:
    """Tune's scheduler, with what trials of an earlier process have reached."""
    if search.scheduler == "none":
        return FIFOScheduler()
    mode = "max" if maximise else "min"
    if search.scheduler == "pbt":
        return _Population(axes, time_attr=EPOCH, metric=JUDGED, mode=mode, perturbation_interval=search.grace,
                           burn_in_period=search.grace, synch=True, log_config=False)

    def make() -> Any:
        if search.scheduler == "median":
            return MedianStoppingRule(EPOCH, JUDGED, mode, grace_period=search.grace, min_samples_required=3)
        return AsyncHyperBandScheduler(EPOCH, JUDGED, mode, max_t=epochs, grace_period=min(search.grace, epochs),
                                       reduction_factor=search.reduction, stop_last_trials=False)

    made = _PerStudy(make)
    for record in records:
        if record.over and record.phase == "search" and record.history:
            replay(made, f"past-{record.number}", {"trial": {"study": record.study, "final": False}}, (
                {EPOCH: epoch, JUDGED: point[f"validation/{primary}"], "time_total_s": epoch}
                for epoch, point in enumerate(record.history, 1)))
    return made


def _domain(axis: Axis) -> Any:
    """What population-based training may change a setting to."""
    if axis.kind == "choice":
        return list(axis.values)
    low, high = axis.values
    if RANGES[axis.kind] is int:
        high += 1                                      # which Tune leaves out
    return {"uniform": tune.uniform, "loguniform": tune.loguniform, "int": tune.randint,
            "logint": tune.lograndint}[axis.kind](low, high)


@dataclass(frozen=True)
class Room:
    """What trials are run in.

    Attributes:
        most: that fit at a time, on `nodes` nodes.
        resources: of one trial's process, as Tune asks for them.
        said: the arithmetic.
    """

    most: int
    nodes: int
    resources: Any
    said: str


def room(workers: Any, cpus: int, nodes: list[dict[str, float]]) -> Room:
    """How many trials fit at a time.

    Args:
        workers: of each trial.
        cpus: of each of a trial's workers.
        nodes: what each node has, as Ray tells it.
    """
    def fit(node: dict[str, float]) -> int:
        by_cpus = int(node.get("CPU", 0) // cpus)
        return min(by_cpus, int(node.get("GPU", 0) // workers.gpus)) if workers.gpus else by_cpus

    fitting = sum(fit(n) for n in nodes)
    most = fitting // workers.most
    total = sum(n.get("CPU", 0) for n in nodes), sum(n.get("GPU", 0) for n in nodes)
    one = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {workers.gpus} GPU" if workers.gpus else "")
    each = one if workers.most == 1 else f"{workers.most} workers x {one}"
    said = (f"{total[0]:g} CPUs{f' and {total[1]:g} GPUs' if total[1] else ''} on {len(nodes)} "
            f"node{'s' if len(nodes) > 1 else ''}; a trial takes {each}: {most} at a time. The driver, the record and "
            "the readers of Ray Data are counted as none: they run beside the trials")
    if workers.most == 1:
        bundle = {"CPU": cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    else:
        bundle = {"memory": 1 << 20}                   # its workers have a placement group of their own
    return Room(most, sum(fit(n) > 0 for n in nodes), tune.PlacementGroupFactory([bundle]), said)


def run(queue: Queue, shared: Shared, room: Room, search: Search, axes: list[Axis], *, epochs: int,
        primary: str) -> None:
    """Run all trials of a queue; returns when it is empty.

    Raises:
        KeyboardInterrupt: `queue.stop` said so; the ledger knows what was running.
    """
    os.environ.update({
        "RAY_AIR_NEW_OUTPUT": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_GLOBAL_CHECKPOINT_S": "600",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_MAX_PENDING_TRIALS_PG": str((queue.most or 0) + 1),         # else processes start one after the other
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0"})
    survive_memory()
    scheduler = _scheduler(search, axes, epochs=epochs, records=queue.ledger.records, primary=primary,
                           maximise=queue.maximise)
    how: dict[str, Any] = {"num_samples": -1, "search_alg": _Asked(queue)}
    space: dict[str, Any] = {}
    if search.scheduler == "pbt":                      # it takes no searcher, but all trials at once
        space, how = {"trial": tune.grid_search([asdict(a) for a in iter(queue.next, None)])}, {}
    trainable = tune.with_resources(tune.with_parameters(Trial, shared=shared), room.resources)
    tuner = tune.Tuner(
        trainable, param_space=space, tune_config=tune.TuneConfig(scheduler=scheduler, reuse_actors=True, **how),
        run_config=tune.RunConfig(
            name="ray", storage_path=queue.ledger.folder.uri, verbose=0, callbacks=[_Told(queue)],
            checkpoint_config=tune.CheckpointConfig(num_to_keep=4, checkpoint_at_end=False)))
    tuner.fit()
    queue.ledger.folder.delete("ray")
