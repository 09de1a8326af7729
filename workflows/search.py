"""Search an experiment's hyperparameters, and leave the best trial's bundle.

>>> from workflows.search import search
>>> result = search("workflows/experiments/etth1.yaml", overrides=["search.trials=8"])
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.files import silenced
from datasets.storage import Storage, mask, without_secrets
from workflows import cluster, strict_json, tracking
from workflows.console import Console
from workflows.experiment import Experiment, differences, flatten, load, read
from workflows.ray_core_private import nodes
from workflows.settings import Search
from workflows.space import Axis, Settings, axes_of, changed, check, described, importance
from workflows.stopping import Interrupted, listening

if TYPE_CHECKING:
    from workflows.trial import Shared
    from workflows.tuner import Ledger, Queue, Record, Room, Stage

NODE_WAIT = 60.0       # seconds that nodes may take to fetch and import the code before trials are given out
MEMORY = 0.9           # of a node's memory is for trials; near 0.95 of it Ray ends processes
EXAMPLE = "search: {space: {training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}}"


class NothingFound(Exception):
    """No trial came to an end that is worth anything; the message has their reasons."""


@dataclass
class Study:
    """One search: of an experiment, or of one family in a comparison.

    Attributes:
        name: the family, or "".
        told: what the experiment says; experiment: the same, checked.
        axes: of its space.
    """

    name: str
    told: dict[str, Any]
    experiment: Experiment
    axes: list[Axis]

    @classmethod
    def of(cls, name: str, told: dict[str, Any]) -> Study:
        """Raises ValueError for what is wrong with the experiment or the space."""
        experiment = load(told)
        axes = axes_of(experiment.search.space)
        check(told, axes, experiment.search)
        ranges = [a.key for a in axes if a.key.startswith("dataset.") and a.kind != "choice"]
        if ranges:
            raise ValueError(f"search.space: {', '.join(ranges)}: each value prepares data of its own; give the values "
                             "as choice: [...]")
        return cls(name, {**told, "search": {}}, experiment, axes)

    def epochs(self) -> int:
        """Most epochs of a trial."""
        own: list[int] = [v for a in self.axes if a.key == "training.epochs" for v in a.values]
        return max([self.experiment.training.epochs, *own])


@dataclass
class Hunt:
    """A search or a comparison that goes on: where it runs, what it has prepared, and its record.

    Attributes:
        experiment: checked; its `search` says how.
        studies: what is searched.
        folder: of the search; name: its name; kind: search or compare.
        place: the Ray; room: for trials.
        console: what the user sees.
        tracker: the one writer.
        ledger: what has been tried.
        shared: what trials are handed.
        primary, maximise: the metric that decides.
        splits: of the data.
        notes: for the report.
        first: what it was begun with: the command, the studies.
        started: this process took it up, in seconds since 1970.
        queue: of trials, while they run.
    """

    experiment: Experiment
    studies: list[Study]
    folder: Storage
    name: str
    kind: str
    place: cluster.Place
    room: Room
    console: Console
    tracker: tracking.Recorder
    ledger: Ledger
    shared: Shared
    primary: str = ""
    maximise: bool = False
    splits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    queue: Queue | None = None

    def study(self, name: str) -> Study:
        """The study of this name."""
        return next(s for s in self.studies if s.name == name)

    @property
    def concurrent(self) -> int:
        """Trials at a time."""
        return min(self.experiment.search.concurrent or self.room.most, self.room.most)

    def run(self, stages: list[Stage]) -> None:
        """Run all trials of `stages`.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the message says how to go on.
        """
        from workflows import tuner

        search = self.experiment.search
        in_turn = self.concurrent < self.room.most or self.experiment.workers.most > 1
        staged = self.concurrent if in_turn else self.concurrent + 1        # one more waits for a process
        self.queue = queue = tuner.Queue(stages, self.ledger, begin=self._begin, tracker=self.tracker, name=self.name,
                             most=None if search.scheduler == "pbt" else staged, keep=search.keep,
                             maximise=self.maximise, scheduler=search.scheduler, watch=self._watch)
        try:
            with listening() as stop, silenced("ray.tune"):            # the ledger reports trials that fail
                queue.stop = stop
                tuner.run(queue, self.shared, self.room, search, self.studies[0].axes,
                          epochs=max(s.epochs() for s in self.studies), primary=self.primary)
        except (KeyboardInterrupt, SystemExit):
            done = sum(r.over for r in self.ledger.records)
            source = self.experiment.source
            families = ["--families", ",".join(s.name for s in self.studies)] if self.kind == "compare" else []
            words = [*([source] if source not in ("", "experiment") else []), "--resume", self.name, *families,
                     *self.experiment.overrides]
            raise Interrupted(f"stopped; {done} trials have ended, and those that ran go on from their checkpoints. "
                              f"Continue with: python -m workflows {self.kind} "
                              f"{mask(shlex.join(words))}", stop.code) from None

    def _begin(self, record: Record) -> None:
        """Put a trial on record: a child of the search's run."""
        from workflows.trial import trial_key

        study = self.study(record.study)
        try:
            params = changed(study.told, record.settings).plain()
        except ValueError:                             # it will fail for that, and says why
            params = study.experiment.replace(search=Search()).plain()
        label = " ".join([f"{record.number:04d}", *([record.study] if record.study else []),
                          *(["final"] if record.phase == "final" else [])])
        self.tracker.begin(trial_key(self.name, record.number), experiment=self._experiment(), run_name=label,
                           params={**dict(flatten(params)), **record.settings}, parent_key=self.name, tags={
                               "rondo.run": self.name, "rondo.trial": record.number, "rondo.phase": record.phase,
                               "rondo.settings": strict_json.dumps(record.settings),
                               **({"rondo.study": record.study} if record.study else {})})

    def _experiment(self) -> str:
        return self.experiment.tracking.experiment or self.experiment.name

    def _watch(self, record: Record) -> None:
        self.console.trial(record, self.ledger, primary=self.primary, maximise=self.maximise,
                           total=self.experiment.search.trials if self.kind == "search" else None)
        if record.over:
            self._count_memory(record)

    def _count_memory(self, record: Record) -> None:
        """Say what a trial takes, measured on the first that ended, and run fewer at a time where memory is too small.

        Nodes of a cluster are taken to be like this one.
        """
        if record.memory is None or sum(r.over and r.memory is not None for r in self.ledger.records) != 1:
            return
        import psutil

        total, each = psutil.virtual_memory().total, self.concurrent / max(1, self.room.nodes)
        fitting = int(MEMORY * total // record.memory)
        told = (f"the first trial took {record.memory / 1e9:.2f} GB of memory; {math.ceil(each)} at a time on a node "
                f"take {math.ceil(each) * record.memory / 1e9:.1f} of {total / 1e9:.1f} GB")
        if fitting < each and self.queue is not None:
            self.queue.most = max(1, fitting) * self.room.nodes
            told += f", too much: {self.queue.most} at a time from now on"
        self.console.say(told)
        self.notes.append(f"{told[0].upper()}{told[1:]}.")

    def end(self, status: tracking.Status) -> None:
        """Put the end on record; of trials that still ran, too."""
        from workflows.trial import trial_key

        for number in self.queue.running if self.queue is not None else ():
            self.tracker.end(trial_key(self.name, number), status, wait=False)
        self.tracker.end(self.name, status)

    def run_ids(self) -> None:
        """Put the MLflow run of each trial into the ledger."""
        from workflows.trial import trial_key

        self.tracker.flush(120)
        for record in self.ledger.records:
            found = self.tracker.run_id(trial_key(self.name, record.number))
            if found != record.run_id:
                record.run_id = found
                self.ledger.write(record)

    def told(self) -> dict[str, Any]:
        """What search.json and compare.json have in common."""
        search = self.experiment.search
        return {
            "kind": self.kind, "name": self.name, "command": self.first["command"],
            "experiment": self.experiment.plain(),
            "primary": self.primary, "maximise": self.maximise, "space": search.space,
            "budget": {**{k: getattr(search, k) for k in ("trials", "seconds", "searcher", "scheduler", "seed")},
                       "concurrent": self.concurrent},
            "trials": [asdict(r) for r in self.ledger.records],
            "seconds": round(time.time() - self.started + self._before(), 1),
            "used": round(sum(r.seconds for r in self.ledger.records), 1),
            "run_id": self.tracker.run_id(self.name, timeout=30),
            "tracking": without_secrets(self.experiment.tracking.uri), "notes": self.notes,
            "versions": {name: importlib.metadata.version(name) for name in ("ray", "torch", "mlflow", "optuna")}}

    def _before(self) -> float:
        """Seconds in which trials ran in earlier processes."""
        spans = sorted((r.started, r.ended) for r in self.ledger.records if 0 < r.ended < self.started)
        total = until = 0.0
        for start, end in spans:
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    def report(self) -> str:
        """Write the page, and put it on record; where it is."""
        from workflows.train import report
        return report(self.folder, self.tracker, self.name)


@contextmanager
def hunt(kind: str, studies: list[Study], experiment: Experiment, *, resume: str | None,
         verbose: bool, progress: bool) -> Iterator[Hunt]:
    """Open a search or a comparison: Ray, data, record; closed again whatever happens.

    Raises:
        ValueError: the user's mistakes, before anything starts where that can be.
    """
    from workflows.train import check_splits, new_name, spool_of, torch_meanwhile

    for study in studies:
        check_splits(study.experiment)
    cluster.check_paths(experiment)
    workers = replace(experiment.workers, cpus=experiment.workers.cpus or 1)
    if workers.least < workers.most:
        raise ValueError(f"workers.count={workers.count}: trials have a fixed number of workers; use one number, such "
                         f"as {workers.least}")
    cluster.check_machine(workers)
    tracking.check(experiment.tracking.uri)
    storage = Storage(experiment.storage)
    name = _resumed(kind, storage, experiment, resume) if resume else new_name(experiment, kind)
    folder = storage / name
    with Console(show=progress) as console:
        with torch_meanwhile():
            place = cluster.connect(workers, verbose=verbose)
        try:
            from workflows.tuner import Ledger, room
            made = room(workers, workers.cpus or 1, [node["Resources"] for node in nodes()])
            if made.most < 1:
                raise ValueError(f"no trial fits: {made.said}; lower workers.count, workers.cpus or workers.gpus, or "
                                 "add nodes")
            console.say(f"{name}: {'continued' if resume else 'started'}, in {folder.uri}\n{made.said}")
            tracker = tracking.start(experiment.tracking.uri, spool_of(folder), actor=True,
                                     system_metrics=experiment.tracking.system_seconds or None)
            status: tracking.Status = "FAILED"
            opened = None
            try:
                opened = _opened(kind, studies, experiment, folder, name, place, made, console, tracker,
                                 Ledger(folder), workers.cpus or 1)
                opened.first = _first(folder, kind, studies)
                folder.write("experiment.yaml", experiment.text().encode())
                tracker.begin(name, experiment=experiment.tracking.experiment or experiment.name, run_name=name,
                              params=dict(flatten(experiment.plain())),
                              tags={"rondo.run": name, "rondo.storage": folder.uri, "rondo.kind": kind})
                yield opened
                status = "FINISHED"
            except BaseException as error:
                if isinstance(error, Interrupted | KeyboardInterrupt | SystemExit):
                    status = "KILLED"
                raise
            finally:
                if opened is not None:
                    opened.end(status)
                if not tracker.close(timeout=120):
                    console.undelivered(tracker.problem(), spool_of(folder), folder.uri)
        finally:
            cluster.disconnect(place)


def _first(folder: Storage, kind: str, studies: list[Study]) -> dict[str, Any]:
    """What a search or comparison was begun with: written when it begins, read when it is resumed.

    Raises:
        ValueError: it was of other families.
    """
    told: dict[str, Any] = {"command": command(kind), "studies": [s.name for s in studies]}
    if not folder.exists("begun.json"):
        folder.write("begun.json", json.dumps(told).encode())
        return told
    before: dict[str, Any] = json.loads(folder.read("begun.json"))
    if before["studies"] != told["studies"]:
        raise ValueError(f"--resume: that comparison is of {', '.join(before['studies'])}; "
                         f"give --families {','.join(before['studies'])}")
    return before


def _opened(kind: str, studies: list[Study], experiment: Experiment, folder: Storage, name: str, place: cluster.Place,
            made: Room, console: Console, tracker: tracking.Recorder, ledger: Ledger, cpus: int) -> Hunt:
    """The hunt, with the data of all studies prepared."""
    import ray
    import torch

    from workflows import loop
    from workflows.train import check_nodes
    from workflows.trial import Shared
    from workflows.worker import Data

    axes = studies[0].axes
    free = tuple(a.key for a in axes) if experiment.search.scheduler == "pbt" else ()
    shared = Shared({s.name: s.told for s in studies}, {}, {}, folder, name, cpus, tracker, free)
    opened = Hunt(experiment, studies, folder, name, kind, place, made, console, tracker, ledger, shared)
    ready = _reach_nodes()
    with console.busy("preparing data"):
        check_nodes(studies[0].experiment)
        _prepare(opened)
    prepared = next(iter(shared.prepared.values()))
    console.notes(prepared)
    task = _weightless(studies[0].experiment, prepared).task
    opened.primary, opened.maximise = task.primary, task.maximise
    data = Data(studies[0].experiment, prepared, {}, loop.Workers(torch.device("cpu")))
    opened.splits = data.splits
    for split in data.splits:
        data.plan(data.view(split), training=split == "train")         # what cannot be batched is refused here
    _check_measured(opened)
    if free:
        _check_shapes(studies[0], prepared)
    ray.wait(ready, num_returns=len(ready), timeout=NODE_WAIT)
    return opened


def _reach_nodes() -> list[Any]:
    """Tasks that let every node fetch the code and import it, while data is prepared.

    Else short trials would all be run where the search started: Tune takes back a process that is not there yet when
    another one has become free.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from workflows.train import load_modules

    names = [node["NodeID"] for node in nodes()]
    task: Any = ray.remote(num_cpus=0)(load_modules)
    return [task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote()
            for node in names] if len(names) > 1 else []


def _prepare(opened: Hunt) -> None:
    """Prepare every variant of the data that trials will ask for, once each."""
    from workflows.train import cached_parts, prepare
    from workflows.trial import data_key

    shared, cached = opened.shared, {}
    for study in opened.studies:
        for settings in variants(study):
            experiment = changed(study.told, settings)
            key = data_key(experiment)
            if key in shared.prepared:
                continue
            shared.prepared[key] = prepared = prepare(experiment)
            if prepared.digest not in cached:
                cached[prepared.digest] = cached_parts(experiment, prepared)
            shared.cached[key] = cached[prepared.digest]
    if len(cached) > 1:
        keys = dict.fromkeys(k for s in opened.studies for v in variants(s) for k in v)
        opened.console.say(f"{len(cached)} variants of the prepared data, one for each {' and '.join(keys)}")
        opened.notes.append(f"{len(cached)} variants of the data were prepared, one for each {' and '.join(keys)}.")


def variants(study: Study, *, across: bool = True) -> Iterator[Settings]:
    """Every combination of settings that say something of the dataset, `search.across` among them or not."""
    unset = object()
    own = {a.key: [*a.values, *([unset] if a.when else [])] for a in study.axes}
    if across:
        own |= {key: [*values, unset] for key, values in study.experiment.search.across.items()}
    keys = [key for key in own if key.startswith("dataset.")]
    for values in itertools.product(*(own[key] for key in keys)):
        settings = {k: v for k, v in zip(keys, values, strict=True) if v is not unset}
        try:
            changed(study.told, settings)
        except ValueError:                             # no trial can have these together
            continue
        yield settings


def _weightless(experiment: Experiment, prepared: Any) -> Any:
    """An experiment's model without memory for its weights."""
    import torch

    from workflows.worker import make_model

    with torch.device("meta"):
        return make_model(experiment, prepared, torch.device("meta"))[0]


def _check_measured(opened: Hunt) -> None:
    """Refuse a space in which trials would be measured on other rows, or by another metric.

    Raises:
        ValueError: the settings that change it.
    """
    import torch

    from workflows import loop
    from workflows.trial import data_key
    from workflows.worker import Data

    def measured(experiment: Experiment) -> tuple[Any, ...]:
        prepared = opened.shared.prepared[data_key(experiment)]
        task = _weightless(experiment, prepared).task
        data = Data(experiment, prepared, {}, loop.Workers(torch.device("cpu")))
        rows = {split: int(data.view(split).rows.sum()) for split in dict.fromkeys(("validation", data.splits[-1]))}
        return task.primary, task.maximise, rows

    first: tuple[Any, ...] = ()
    for study in opened.studies:
        data = list(variants(study, across=False))
        values = [{a.key: value} for a in study.axes if a.key.startswith("task.") for value in a.values]
        for settings in [*data, *({**data[0], **one} for one in values)]:
            try:
                found = measured(changed(study.told, settings))
            except (KeyError, ValueError):             # not by itself; a trial that has it says what is wrong
                continue
            first = first or found
            if found != first:
                raise ValueError(f"search.space: with {described(settings)} trials are judged by {found[0]} on "
                                 f"{found[2]} rows, else by {first[0]} on {first[2]}: they could not be compared; "
                                 "leave that to the experiment")


def _check_shapes(study: Study, prepared: Any) -> None:
    """Refuse population-based training of what changes the weights' shapes, or the course of a training.

    Raises:
        ValueError: the keys that do.
    """
    def shapes(settings: Settings) -> Any:
        model = _weightless(changed(study.told, settings), prepared)
        return {name: value.shape for name, value in model.state_dict().items()}

    conditional = [a.key for a in study.axes if a.when]
    if conditional:
        raise ValueError(f"search.scheduler=pbt changes every setting while a trial trains, so "
                         f"{', '.join(conditional)} cannot depend on others (when); use another scheduler, or leave "
                         "the condition out")
    wrong = [a.key for a in study.axes if a.key.startswith("dataset.") or a.key in ("training.epochs", "training.seed")
             or len({str(shapes({a.key: v})) for v in a.values}) > 1]
    if wrong:
        raise ValueError(f"search.scheduler=pbt changes settings while a trial trains, and {', '.join(wrong)} cannot "
                         "be changed then; use another scheduler, or leave them out of search.space")


def search(source: str | Path | Mapping[str, Any] | None = None, *, overrides: list[str] | None = None,
           resume: str | None = None, verbose: bool = False, progress: bool = True) -> dict[str, Any]:
    """Search an experiment's hyperparameters as its section `search` says.

    Args:
        source: a YAML file, a mapping, or None for the default on embedded data.
        overrides: ``section.key=value``.
        resume: a search's name or folder to continue, or "latest".
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Returns:
        run, run_id, bundle, report, best (number and settings), metrics, baselines, trials and more.

    Raises:
        ValueError: the user's mistakes. Interrupted: Ctrl-C. NothingFound: every trial failed.
    """
    from workflows import trial, tuner

    experiment = load(source, overrides)
    told = read(source, overrides)[1]
    if not experiment.search.space:
        raise ValueError(f"{experiment.source}: search.space is empty: say what to search, such as {EXAMPLE}")
    studies = [Study.of("", told)]
    with hunt("search", studies, experiment, resume=resume, verbose=verbose, progress=progress) as opened:
        stage = tuner.Searching("", studies[0].axes, experiment.search, told=studies[0].told, ledger=opened.ledger,
                                primary=opened.primary, maximise=opened.maximise, concurrent=opened.concurrent)
        opened.run([stage])
        result = _leave_best(opened, trial.finish)
    opened.console.leaderboard(opened.ledger.records, primary=opened.primary, maximise=opened.maximise)
    opened.console.found(result)
    return result


def _leave_best(opened: Hunt, finish: Any) -> dict[str, Any]:
    """The best trial's bundle and pictures, the page and the record of the whole search; the result.

    Raises:
        NothingFound: there is no best trial.
    """
    from workflows.train import leave
    from workflows.trial import Assignment, data_key
    from workflows.tuner import ranked

    study, shared, tracker = opened.studies[0], opened.shared, opened.tracker
    found = ranked(opened.ledger.records, maximise=opened.maximise)
    result: dict[str, Any] = {"metrics": {}, "baselines": {}, "best_reachable": {}}
    if found:
        best = found[0]
        with opened.console.busy("measuring the best trial"):
            made = on_a_worker(opened, finish, Assignment(best.number, best.study, best.settings))
        experiment = changed(study.told, best.settings)
        key = data_key(experiment)
        leave(made, experiment, shared.prepared[key], shared.cached[key], opened.folder, tracker, opened.name)
        result = {k: made[k] for k in ("metrics", "baselines", "best_reachable", "signatures", "parameters")}
        tracker.metrics(opened.name, {f"best/validation/{opened.primary}": best.best or 0.0, "best/trial": best.number},
                        len(opened.ledger.records))
        if opened.experiment.search.register_as:
            tracker.register(opened.name, opened.experiment.search.register_as, "bundle")
    opened.run_ids()
    values = [(r.settings, r.best) for r in found if r.best is not None]
    summary = {**opened.told(), **result, "best": found[0].number if found else None,
               "importance": importance(study.axes, values, maximise=opened.maximise)}
    opened.folder.write("search.json", strict_json.dumps(summary).encode())
    page = opened.report()
    if not found:
        reasons = "\n".join(dict.fromkeys(f"trial {r.number}: {r.reason}" for r in opened.ledger.records[:10]))
        raise NothingFound(f"no trial came to an end ({len(opened.ledger.records)} were tried):\n{reasons}\n{page}")
    return {**result, "run": opened.name, "run_id": summary["run_id"], "bundle": (opened.folder / "bundle").uri,
            "report": page, "best": {"number": found[0].number, "settings": found[0].settings,
                                     f"validation/{opened.primary}": found[0].best},
            "primary": opened.primary, "maximise": opened.maximise, "trials": summary["trials"],
            "seconds": summary["seconds"], "used": summary["used"]}


def on_a_worker(opened: Hunt, work: Any, assignment: Any) -> Any:
    """Do something with a trial: here on a Ray of this machine's own, else in a task where trials run."""
    gpus = opened.experiment.workers.gpus
    if opened.place.own and not gpus:
        import torch
        before = torch.get_num_threads()
        try:
            return work(opened.shared, assignment)
        finally:
            torch.set_num_threads(before)
    import ray
    task: Any = ray.remote(num_cpus=opened.shared.cpus, num_gpus=gpus)(work)
    return ray.get(task.remote(opened.shared, assignment))


def command(kind: str) -> str:
    """The command that was given, as it can be given again."""
    program = Path(sys.argv[0]).name == "__main__.py"
    if program:
        return f"python -m workflows {mask(shlex.join(sys.argv[1:]))}"
    return f"workflows.{kind}.{kind}(...)"


def _resumed(kind: str, storage: Storage, experiment: Experiment, resume: str) -> str:
    """The search to continue.

    Raises:
        ValueError: there is none, it is finished, or it is one of another experiment.
    """
    from workflows.train import told_before, unfinished

    name = unfinished(storage, experiment, resume, kind=kind, leaves="report.html",
                      finished=lambda folder: folder.exists(f"{kind}.json"))
    before, now = told_before(storage / name), experiment.plain()
    free = ("trials", "seconds", "concurrent", "keep", "register_as")       # how long, and where, may change
    wrong = differences(before, now) + [
        f"search.{k}: {before.get('search', {}).get(k)!r} there, {v!r} here" for k, v in now.get("search", {}).items()
        if k not in free and before.get("search", {}).get(k) != v]
    if wrong:
        raise ValueError(f"--resume {resume}: it searches another experiment ({'; '.join(wrong[:5])}); use the same "
                         "experiment and overrides")
    return name


