"""A search or a comparison while it runs: its data, its trials and their results."""

from __future__ import annotations

import importlib.metadata
import json
import math
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.pipeline.storage import Storage, mask, without_secrets
from datasets.reading.errors import silenced
from workflows import strict_json
from workflows.cluster import connect
from workflows.cluster.preflight import check_nodes
from workflows.cluster.ray_core_private import alive_nodes
from workflows.cluster.stopping import stop_signals
from workflows.config.experiment import Experiment, flatten
from workflows.config.settings import Search, Workers
from workflows.console import Console
from workflows.errors import Interrupted, UserError
from workflows.reporting.results import report
from workflows.tracking import recorder
from workflows.training.data import Data, cache_parts, prepare_data
from workflows.training.worker_group import WorkerGroup
from workflows.tuning import tuner
from workflows.tuning.checks import check_same_measure, check_shapes, model_without_weights
from workflows.tuning.ledger import Ledger, TrialRecord, trial_key
from workflows.tuning.queue import Assignment, Queue, SearchStage, Stage
from workflows.tuning.space import with_settings
from workflows.tuning.study import Study, variants
from workflows.tuning.trial import TrialContext, data_key
from workflows.tuning.tuner import Capacity

NODE_WAIT = 60.0  # seconds that nodes may take to fetch and import the code before trials start
MEMORY_SHARE = 0.9  # of a node's memory that trials may use; at about 0.95 of it Ray ends processes


@dataclass
class SearchSession:
    """A search or a comparison while it runs.

    Attributes:
        kind: search or compare.
        experiment: checked; its `search` has the settings.
        studies: one, or in a comparison one for each family.
        folder: for its files; the last part is its name.
        connection: to Ray.
        capacity: how many trials run at a time.
        console: shows progress.
        tracker: records metrics.
        ledger: the records of all trials.
        context: what all trials share.
        command: the command that started it.
        primary: the metric that decides.
        maximise: whether its highest value is best.
        splits: names of the data's splits.
        notes: sentences for the report.
        started: when this process began to work on it, in seconds since 1970.
        queue: of trials, while they run.
    """

    kind: str
    experiment: Experiment
    studies: list[Study]
    folder: Storage
    connection: connect.RayConnection
    capacity: Capacity
    console: Console
    tracker: recorder.Recorder
    ledger: Ledger
    context: TrialContext
    command: str
    primary: str = ""
    maximise: bool = False
    splits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    queue: Queue | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def study(self, name: str) -> Study:
        """The study of this name."""
        return next(s for s in self.studies if s.name == name)

    def search_stage(self, study: Study, search: Search, after: SearchStage | None = None) -> SearchStage:
        """The search of a study as a stage of the queue, which begins when the search `after` has ended."""
        return SearchStage(
            study.name,
            study.axes,
            search,
            options=study.options,
            ledger=self.ledger,
            primary=self.primary,
            maximise=self.maximise,
            concurrent=self.concurrent,
            after=after,
        )

    @property
    def concurrent(self) -> int:
        """Number of trials at a time."""
        limit = self.capacity.max_trials
        return min(self.experiment.search.concurrent or limit, limit)

    def run(self, stages: list[Stage]) -> None:
        """Run all trials of `stages`.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; the message says how to continue.
        """
        search = self.experiment.search
        reserved = self.concurrent < self.capacity.max_trials or self.experiment.workers.most > 1
        max_running = self.concurrent if reserved else self.concurrent + 1  # one more waits for a process
        self.queue = queue = Queue(
            stages,
            self.ledger,
            begin=self._begin_run,
            tracker=self.tracker,
            name=self.name,
            max_running=None if search.scheduler == "pbt" else max_running,
            keep=search.keep,
            maximise=self.maximise,
            scheduler=search.scheduler,
            on_update=self._on_update,
        )
        try:
            with stop_signals() as stop, silenced("ray.tune"):  # the ledger reports trials that fail
                queue.should_stop = stop
                tuner.run_trials(
                    queue,
                    self.context,
                    self.capacity,
                    search,
                    self.studies[0].axes,
                    epochs=max(s.epochs() for s in self.studies),
                    primary=self.primary,
                )
        except (KeyboardInterrupt, SystemExit):
            done = sum(r.is_done for r in self.ledger.records)
            source = self.experiment.source
            families = ["--families", ",".join(s.name for s in self.studies)] if self.kind == "compare" else []
            arguments = [
                *([source] if source not in ("", "experiment") else []),
                "--resume",
                self.name,
                *families,
                *self.experiment.overrides,
            ]
            raise Interrupted(
                f"stopped; {done} trials have ended, and those that were running can continue from their checkpoints. "
                f"Continue with: python -m workflows {self.kind} "
                f"{mask(shlex.join(arguments))}",
                stop.code,
            ) from None

    def _begin_run(self, record: TrialRecord) -> None:
        """Open the MLflow run of a trial, as a child of the search's run."""
        study = self.study(record.study)
        try:
            params = with_settings(study.options, record.settings).plain()
        except ValueError:  # the trial will fail with this error as its reason
            params = study.experiment.replace(search=Search()).plain()
        label = " ".join(
            [
                f"{record.number:04d}",
                *([record.study] if record.study else []),
                *(["final"] if record.phase == "final" else []),
            ]
        )
        self.tracker.begin(
            trial_key(self.name, record.number),
            experiment=self.experiment.tracking.experiment or self.experiment.name,
            run_name=label,
            params={**dict(flatten(params)), **record.settings},
            parent_key=self.name,
            tags={
                "rondo.run": self.name,
                "rondo.trial": record.number,
                "rondo.phase": record.phase,
                "rondo.settings": strict_json.dumps(record.settings),
                **({"rondo.study": record.study} if record.study else {}),
            },
        )

    def _on_update(self, record: TrialRecord) -> None:
        self.console.trial(
            record,
            self.ledger,
            primary=self.primary,
            maximise=self.maximise,
            total=self.experiment.search.trials if self.kind == "search" else None,
        )
        if record.is_done:
            self._limit_by_memory(record)

    def _limit_by_memory(self, record: TrialRecord) -> None:
        """When the first trial has ended, show how much memory it used, and run fewer at a time if that is too much.

        The nodes of a cluster are assumed to have as much memory as this one.
        """
        if record.memory is None or sum(r.is_done and r.memory is not None for r in self.ledger.records) != 1:
            return
        total, each = psutil.virtual_memory().total, self.concurrent / max(1, self.capacity.nodes)
        fitting = int(MEMORY_SHARE * total // record.memory)
        text = (
            f"the first trial took {record.memory / 1e9:.2f} GB of memory; {math.ceil(each)} at a time on a node "
            f"take {math.ceil(each) * record.memory / 1e9:.1f} of {total / 1e9:.1f} GB"
        )
        if fitting < each and self.queue is not None:
            self.queue.max_running = max(1, fitting) * self.capacity.nodes
            text += f", too much: {self.queue.max_running} at a time from now on"
        self.console.say(text)
        self.notes.append(f"{text[0].upper()}{text[1:]}.")

    def end(self, status: recorder.Status) -> None:
        """Close the MLflow run, and those of trials that are still running."""
        for number in self.queue.running if self.queue is not None else ():
            self.tracker.end(trial_key(self.name, number), status, wait=False)
        self.tracker.end(self.name, status)

    def save_run_ids(self) -> None:
        """Write the id of each trial's MLflow run into the ledger."""
        self.tracker.flush(120)
        for record in self.ledger.records:
            run_id = self.tracker.run_id(trial_key(self.name, record.number))
            if run_id != record.run_id:
                record.run_id = run_id
                self.ledger.write(record)

    def summary(self) -> dict[str, Any]:
        """The values that search.json and compare.json have in common."""
        search = self.experiment.search
        return {
            "kind": self.kind,
            "name": self.name,
            "command": self.command,
            "experiment": self.experiment.plain(),
            "primary": self.primary,
            "maximise": self.maximise,
            "space": search.space,
            "budget": {
                **{k: getattr(search, k) for k in ("trials", "seconds", "searcher", "scheduler", "seed")},
                "concurrent": self.concurrent,
            },
            "trials": [asdict(r) for r in self.ledger.records],
            "seconds": round(time.time() - self.started + self._earlier_seconds(), 1),
            "used": round(sum(r.seconds for r in self.ledger.records), 1),
            "run_id": self.tracker.run_id(self.name, timeout=30),
            "tracking": without_secrets(self.experiment.tracking.uri),
            "notes": self.notes,
            "versions": {name: importlib.metadata.version(name) for name in ("ray", "torch", "mlflow", "optuna")},
        }

    def _earlier_seconds(self) -> float:
        """Seconds in which at least one trial ran, in the processes before this one."""
        spans = sorted((r.started, r.ended) for r in self.ledger.records if 0 < r.ended < self.started)
        total = until = 0.0
        for start, end in spans:
            total += max(0.0, end - max(start, until))
            until = max(until, end)
        return total

    def report(self) -> str:
        """Write the page and log it to MLflow; its path or URI."""
        return report(self.folder, self.tracker, self.name)


def trial_capacity(workers: Workers) -> Capacity:
    """How many trials run at a time on the connected Ray.

    Args:
        workers: of each trial.

    Raises:
        ValueError: none fits; the message has the arithmetic.
    """
    capacity = tuner.compute_capacity(workers, workers.cpus or 1, [node["Resources"] for node in alive_nodes()])
    if capacity.max_trials < 1:
        raise UserError(
            f"no trial fits: {capacity.explanation}; lower workers.count, workers.cpus or workers.gpus, or add nodes"
        )
    return capacity


def start_session(
    kind: str,
    studies: list[Study],
    experiment: Experiment,
    folder: Storage,
    connection: connect.RayConnection,
    capacity: Capacity,
    console: Console,
    tracker: recorder.Recorder,
    command: str,
) -> SearchSession:
    """Prepare the data of all studies and check that their trials can be trained and compared.

    Args:
        kind: search or compare.
        studies: of the search or comparison.
        experiment: checked.
        folder: for its files.
        connection: to Ray.
        capacity: how many trials run at a time.
        console: shows progress.
        tracker: records metrics.
        command: that started this process.

    Raises:
        ValueError: a mistake in the data or the space, or the comparison that is resumed has other families.
    """
    axes, cpus = studies[0].axes, experiment.workers.cpus or 1
    changeable = tuple(a.key for a in axes) if experiment.search.scheduler == "pbt" else ()
    options = {s.name: s.options for s in studies}
    context = TrialContext(options, {}, {}, folder, folder.name, cpus, tracker, changeable)
    session = SearchSession(
        kind, experiment, studies, folder, connection, capacity, console, tracker, Ledger(folder), context, command
    )
    imports = _import_on_nodes()
    with console.busy("preparing data"):
        check_nodes(studies[0].experiment)
        _prepare_variants(session)
    prepared = next(iter(context.prepared.values()))
    console.notes(prepared)
    task = model_without_weights(studies[0].experiment, prepared).task
    session.primary, session.maximise = task.primary, task.maximise
    data = Data(studies[0].experiment, prepared, {}, WorkerGroup(torch.device("cpu")))
    session.splits = data.splits
    for split in data.splits:
        data.plan(data.view(split), training=split == "train")  # raises if the rows do not fit into batches
    check_same_measure(studies, context.prepared)
    if changeable:
        check_shapes(studies[0], prepared)
    ray.wait(imports, num_returns=len(imports), timeout=NODE_WAIT)
    session.command = original_command(folder, command, studies)
    return session


def original_command(folder: Storage, command: str, studies: list[Study]) -> str:
    """The command that started a search or comparison: written when it starts, read when it is resumed.

    Args:
        folder: of the search or comparison.
        command: that started this process.
        studies: that this process is to run.

    Raises:
        ValueError: the comparison that is resumed has other families.
    """
    families = [s.name for s in studies]
    if not folder.exists("begun.json"):
        folder.write("begun.json", json.dumps({"command": command, "studies": families}).encode())
        return command
    before: dict[str, Any] = json.loads(folder.read("begun.json"))
    if before["studies"] != families:
        raise UserError(
            f"--resume: that comparison is of {', '.join(before['studies'])}; "
            f"give --families {','.join(before['studies'])}"
        )
    original: str = before["command"]
    return original


def _import_on_nodes() -> list[ray.ObjectRef]:
    """Tasks that fetch the code on every node and import it, while data is prepared.

    Otherwise short trials would all run on the node where the search started: Tune cancels a process that has not
    started yet when another one becomes free.
    """
    nodes = [node["NodeID"] for node in alive_nodes()]
    if len(nodes) == 1:
        return []
    task = ray.remote(num_cpus=0)(connect.import_modules)
    return [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)).remote(
            "workflows.training.worker"
        )
        for node in nodes
    ]


def _prepare_variants(session: SearchSession) -> None:
    """Prepare each variant of the data that trials will need, once."""
    context, cached = session.context, {}
    for study in session.studies:
        for settings in variants(study):
            experiment = with_settings(study.options, settings)
            key = data_key(experiment)
            if key in context.prepared:
                continue
            context.prepared[key] = prepared = prepare_data(experiment)
            if prepared.digest not in cached:
                cached[prepared.digest] = cache_parts(experiment, prepared)
            context.cached[key] = cached[prepared.digest]
    if len(cached) > 1:
        keys = dict.fromkeys(k for s in session.studies for v in variants(s) for k in v)
        session.console.say(f"{len(cached)} variants of the prepared data, one for each {' and '.join(keys)}")
        session.notes.append(f"{len(cached)} variants of the data were prepared, one for each {' and '.join(keys)}.")


def run_on_worker(
    session: SearchSession, work: Callable[[TrialContext, Assignment], dict[str, Any]], assignment: Assignment
) -> dict[str, Any]:
    """Run `work` for a trial: in this process if it started Ray and needs no GPU, else in a task of Ray."""
    gpus = session.experiment.workers.gpus
    if session.connection.started_here and not gpus:
        before = torch.get_num_threads()
        try:
            return work(session.context, assignment)
        finally:
            torch.set_num_threads(before)
    task = ray.remote(num_cpus=session.context.cpus, num_gpus=gpus)(work)
    result: dict[str, Any] = ray.get(task.remote(session.context, assignment))
    return result
