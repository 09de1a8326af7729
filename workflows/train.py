"""Train one experiment: prepare, wire Ray Train, keep the record, leave a bundle.

>>> from workflows.train import train
>>> result = train("workflows/experiments/etth1.yaml", overrides=["model.family=lstm"])
"""

from __future__ import annotations

if __name__ == "__main__":         # the imports below would look in the wrong folder
    raise SystemExit("start it from the project's folder as: python -m workflows train ...")

import importlib
import itertools
import json
import os
import re
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import psutil

from datasets.storage import Storage, mask
from workflows import cluster, strict_json, tracking
from workflows.console import Console
from workflows.experiment import Experiment, dataset_of, differences, flatten, load, parse, storing_of
from workflows.settings import Search, Workers
from workflows.stopping import Interrupted, beside, listening

if TYPE_CHECKING:
    from datasets import RawDataset
    from datasets.prepare import Prepared
    from workflows.worker import Job


T = TypeVar("T")
PAUSE = 2.0                   # seconds before what storage failed is tried again, and as much more each time
DELIVERY = 30.0               # seconds that the end of a run waits for MLflow
FOREVER = 10 * 365 * 86400    # seconds
FAILED = "failed.json"        # in a run's folder: an error that another attempt would meet again


class Lost(Exception):
    """Workers failed more often than they are replaced."""


def train(experiment: Experiment | str | Path | Mapping[str, Any] | None = None, *, overrides: list[str] | None = None,
          resume: str | None = None, verbose: bool = False, progress: bool = True) -> dict[str, Any]:
    """Train an experiment and return its result as plain values.

    Args:
        experiment: a checked one, a YAML file, a mapping, or None for the default on embedded data.
        overrides: ``section.key=value``, where `experiment` is not checked yet.
        resume: a run's name or folder to continue, or "latest" for the newest unfinished run of this name.
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Returns:
        run, run_id, bundle, metrics (flat), baselines, seconds, steps and more.

    Raises:
        ValueError: the user's mistakes. Interrupted: Ctrl-C or SIGTERM. Diverged: the loss became NaN.
    """
    checked = experiment if isinstance(experiment, Experiment) else load(experiment, overrides)
    checked = checked.replace(search=Search())
    check_splits(checked)
    cluster.check_paths(checked)
    cluster.check_machine(checked.workers)
    tracking.check(checked.tracking.uri)
    storage = Storage(checked.storage)
    name = _resumed(storage, checked, resume) if resume else new_name(checked)
    with Console(show=progress) as console:
        with torch_meanwhile():
            place = cluster.connect(checked.workers, verbose=verbose)
        try:
            return _run(checked, storage, name, place, console, resumed=resume is not None)
        finally:
            cluster.disconnect(place)


def check_splits(experiment: Experiment) -> None:
    """Raise ValueError if there will be no validation rows, before hours may go into preparing the others."""
    from datasets.records import Records, no_split

    dataset = dataset_of(experiment)
    if isinstance(dataset, Records) and dataset.splits is not None and "validation" not in dataset.splits:
        raise no_split("validation", sorted(dataset.splits))


def check_nodes(experiment: Experiment) -> None:
    """With several nodes, look on each for the storage and the raw files of an experiment.

    Raises:
        ValueError: what a node does not reach.
    """
    if not cluster.several_nodes():
        return
    from datasets.prepare import cache_key
    from workflows.preflight import check_reach

    dataset, storage = dataset_of(experiment), Storage(experiment.storage)
    made = storage.exists(f"prepared/{cache_key(dataset)}/manifest.json")
    check_reach(storage, [] if made else [source.uri for source in dataset.sources()])


def prepare(experiment: Experiment, dataset: RawDataset | None = None) -> Prepared:
    """The experiment's prepared data: made now, or found. Needs a connected Ray to be made.

    Args:
        experiment: that says how.
        dataset: where it is not simply the one that the experiment describes.

    Raises:
        ValueError: what is wrong with the data.
    """
    from datasets.prepare import prepare as make
    return make(dataset or dataset_of(experiment), Storage(experiment.storage) / "prepared",
                shard_bytes=storing_of(experiment).shard_bytes, limit=experiment.quarantine.limit)


def cached_parts(experiment: Experiment, prepared: Prepared,
                 tell: Callable[[dict[str, Any]], None] = lambda event: None) -> dict[str, list[Any]]:
    """References to the rows of each part that fits the cache budget; hold them while they are used.

    Raises:
        ValueError: a shard is missing or damaged.
        Lost: storage failed more often than ``workers.failures``.
    """
    from datasets.ingest import cache
    budget, most = storing_of(experiment).cache_bytes, experiment.workers.failures
    return {name: patiently(partial(cache, part, prepared.storage), most, tell)
            for name, part in prepared.parts.items() if part.memory <= budget}


def patiently(function: Callable[[], T], most: int, tell: Callable[[dict[str, Any]], None]) -> T:
    """What `function` returns: called again, up to `most` times, after what Ray Train would replace a worker for.

    Raises:
        Lost: storage failed once more. Others: as they come, such as ValueError.
    """
    for failures in itertools.count(1):
        try:
            return function()
        except OSError as error:
            if failures > most:
                raise Lost(f"{mask(str(error))}; it was tried {failures} times (workers.failures={most}). Start again "
                           "once storage is back, a training with --resume") from error
            tell({"event": "note", "text": f"{mask(str(error))}; it is tried again in {failures * PAUSE:g} s"})
            time.sleep(failures * PAUSE)
    raise AssertionError                                # not reached


def _run(experiment: Experiment, storage: Storage, name: str, place: cluster.Place, console: Console, *,
         resumed: bool) -> dict[str, Any]:
    from models.torch_private import cpu_has_bf16
    from workflows import loop
    from workflows.worker import Data, Job, make_model

    run = storage / name
    console.say(f"{name}: {'continued' if resumed else 'started'}, in {run.uri}")
    if experiment.training.precision == "bf16" and not experiment.workers.gpus and not cpu_has_bf16():
        console.say("note: this CPU has no bf16 instructions; training.precision=fp32 is many times faster here")
    with console.busy("preparing data"):
        check_nodes(experiment)
        prepared = prepare(experiment)
    console.notes(prepared)
    import torch
    model, _ = make_model(experiment, prepared, torch.device("cpu"))   # what cannot be built is refused here
    data = Data(experiment, prepared, {}, loop.Workers(torch.device("cpu")))
    for split in dict.fromkeys(("train", "validation", *data.splits)):
        data.plan(data.view(split), training=split == "train")
    run.write("experiment.yaml", experiment.text().encode())
    tracker = tracking.start(experiment.tracking.uri, spool_of(run), actor=True,
                             system_metrics=experiment.tracking.system_seconds or None)
    tracker.begin(name, experiment=experiment.tracking.experiment or experiment.name, run_name=name,
                  params=dict(flatten(experiment.plain())), tags={"rondo.run": name, "rondo.storage": run.uri,
                        **{f"rondo.signature.{k}": v for k, v in model.task.signatures.items()}},
                  dataset={"name": experiment.name, "digest": prepared.digest, "source": prepared.storage.uri,
                           "profile": {p: {"rows": int(sum(s.rows for s in part.shards)), "bytes": part.bytes}
                                       for p, part in prepared.parts.items()}})
    status: tracking.Status = "FAILED"
    try:
        cached = cached_parts(experiment, prepared, console.event)
        job = Job(experiment, prepared, cached, run, name, place.cpus, tracker, console.event,
                  entered=psutil.Process().create_time())
        _fit(job, place, console)
        left = json.loads(run.read("result.json"))
        numbers = {key: strict_json.none_to_nan(left[key]) for key in ("metrics", "baselines", "history")}
        result = {**left, **numbers, "run": name, "bundle": (run / "bundle").uri,
                  "run_id": tracker.run_id(name, timeout=DELIVERY)}
        run.write("result.json", strict_json.dumps(result).encode())
        leave(result, experiment, prepared, cached, run, tracker, name)
        result["report"] = report(run, tracker, name)
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt, SystemExit):              # the last: `ray job stop`
        status = "KILLED"
        raise
    finally:
        tracker.end(name, status)
        if not tracker.close(timeout=DELIVERY):
            console.undelivered(tracker.problem(), spool_of(run), run.uri)
    console.result(result)
    return result


def _fit(job: Job, place: cluster.Place, console: Console) -> None:
    """Run the workers: one right here, or Ray Train's own processes."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from workflows.console import relay
    from workflows.loop import Stopped
    from workflows.worker import work

    with listening() as stop:
        try:
            if place.in_process:
                job.stop, job.watched = stop, False
                scaling = ScalingConfig(num_workers=0, use_gpu=job.experiment.workers.gpus > 0)
                trainer = TorchTrainer(lambda: work(job), scaling_config=scaling)
                patiently(trainer.fit, job.experiment.workers.failures, job.tell)
                return
            with relay(console) as line:
                job.tell, job.stop, job.present = line, line.stops, line.present
                # Ray Train, in the main thread, would answer signals itself, and without a checkpoint.
                beside(lambda: fit_workers(job, work), stop, line.ask, line.deserted)
                if stop and not job.run.exists("result.json"):
                    raise Stopped
        except (Stopped, KeyboardInterrupt, Lost) as error:               # workers, too, may have heard the signal
            if isinstance(error, Lost) and not stop:
                raise
            raise Interrupted(_how_to_resume(job), stop.code) from None


def fit_workers(job: Job, work: Callable[[Job], Any]) -> None:
    """Run `work` on Ray Train's workers; lost ones are replaced ``workers.failures`` times.

    Raises:
        ValueError, Diverged: what a worker met, and would meet again. Lost: workers failed too often.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchTrainer

    from workflows.backend import TolerantTorchConfig

    wanted = job.experiment.workers
    count = tuple(wanted.count) if isinstance(wanted.count, list) else wanted.count
    patience = int(wanted.timeout) or FOREVER
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(patience)     # of a process that does not answer
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(_patience(wanted))
    resources = {"CPU": job.cpus, **({"GPU": wanted.gpus} if wanted.gpus else {})}
    job.run.remove(FAILED)
    trainer = TorchTrainer(
        _attempt, train_loop_config={"job": job, "work": work}, torch_config=TolerantTorchConfig(timeout_s=patience),
        scaling_config=ScalingConfig(num_workers=count, use_gpu=wanted.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name=f"attempts-{uuid.uuid4().hex[:8]}", storage_path=(job.run / "ray").uri,
                             failure_config=FailureConfig(max_failures=wanted.failures,
                                                          controller_failure_limit=wanted.failures)))
    try:
        trainer.fit()
    except TrainingFailedError as error:
        _raise_failed(job.run)
        if isinstance(error, WorkerGroupError):
            raise Lost(_why(error.worker_failures, wanted.failures)) from error
        raise Lost(_why_none(getattr(error, "controller_failure", error), wanted)) from error
    _raise_failed(job.run)


def _why(failures: Mapping[int, Exception], most: int) -> str:
    """What ended a run whose workers failed once too often: of several failures the one that the others follow from."""
    from ray.exceptions import RayError

    from workflows.ray_train_private import cause_of
    from workflows.worker import Unwritable

    def weight(cause: BaseException) -> int:
        if isinstance(cause, Unwritable):
            return 0
        if isinstance(cause, RayError):                # its process is gone
            return 1
        return 3 if isinstance(cause, RuntimeError) else 2                # the last: an exchange whose peer is gone

    causes = {rank: cause_of(error) for rank, error in sorted(failures.items())}
    rank, cause = min(causes.items(), key=lambda item: (weight(item[1]), item[0]))
    if isinstance(cause, Unwritable):
        return str(cause)
    text = " ".join(mask(str(cause)).split()) or "no message"
    times = f"more than {most} time{'s' if most != 1 else ''} (workers.failures)" if most else "(workers.failures=0)"
    return (f"workers failed {times}; at last worker {rank}: {type(cause).__name__}: {tracking.cut(text, 600)}. "
            "--resume goes on from the last checkpoint")


def _patience(wanted: Workers) -> float:
    """Seconds that workers may take to start, on nodes that are to come back or come; where fewer will do, 60."""
    return max(60.0, wanted.wait if wanted.least == wanted.most else 0.0)


def _why_none(error: Exception, wanted: Workers) -> str:
    """What kept workers from starting together."""
    from workflows.ray_train_private import no_room

    if no_room(error):
        why = (f"workers.count={wanted.count} did not find room in {_patience(wanted):g} s (workers.wait), "
               f"{wanted.failures + 1} times (workers.failures): nodes were lost, or others use them")
    else:
        text = " ".join(mask(str(error)).split())
        why = f"workers could not be started together: {type(error).__name__}: {tracking.cut(text, 600)}"
    return f"{why}. --resume goes on from the last checkpoint"


def _attempt(config: dict[str, Any]) -> None:
    """One worker of one attempt. An error that would come again is left for the driver, and the next attempt ends."""
    import torch.distributed as dist

    from workflows.loop import Diverged, Stopped

    job: Job = config["job"]
    if job.run.exists(FAILED):
        return
    together = dist.is_initialized()
    try:
        with job.present():
            config["work"](job)
    except Stopped:
        return                       # the driver knows: it asked for it
    except (ValueError, Diverged) as error:
        if together and not dist.is_initialized():           # Ray Train ends workers so, too, when nodes come or go
            raise RuntimeError("the workers were taken apart") from error
        job.run.write(FAILED, json.dumps({"kind": type(error).__name__, "text": str(error)}).encode())
        raise


def _raise_failed(run: Storage) -> None:
    """Raise what a worker left."""
    from workflows.loop import Diverged
    if run.exists(FAILED):
        told = json.loads(run.read(FAILED))
        run.remove(FAILED)
        raise Diverged(told["text"]) if told["kind"] == "Diverged" else ValueError(told["text"])


def _how_to_resume(job: Job) -> str:
    source = job.experiment.source
    words = [*([source] if source not in ("", "experiment") else []), "--resume", job.name, *job.experiment.overrides]
    return (f"stopped; checkpoints are in {(job.run / 'checkpoints').uri}. Continue with: "
            f"python -m workflows train {mask(shlex.join(words))}")


def leave(result: dict[str, Any], experiment: Experiment, prepared: Prepared, cached: dict[str, list[Any]],
           run: Storage, tracker: tracking.Recorder, name: str) -> None:
    """Final metrics, pictures, experiment and bundle, in the run's folder and on record."""
    from workflows import pictures

    final = result["steps"] + 1          # the last epoch's step has validation metrics of its own, of other weights
    tracker.metrics(name, {k: v for k, v in result["metrics"].items() if k != "train/loss"}, final)
    for method, values in result["baselines"].items():
        tracker.metrics(name, {f"baseline/{method}/{k}": v for k, v in values.items()}, final)
    local = local_folder(run)
    made = local / "pictures"
    made.mkdir(parents=True, exist_ok=True)
    pictures.learning_curve(result["history"], result["primary"], result["best_step"], made / "learning_curve.png")
    pictures.predictions(experiment, prepared, run, made)
    if run.local is None:
        run.put(made, "pictures")
        (local / "experiment.yaml").write_text(experiment.text())
        for file in (run / "bundle").names():
            (local / "bundle").mkdir(exist_ok=True)
            (local / "bundle" / file).write_bytes((run / "bundle").read(file))
    tracker.artifact(name, local / "experiment.yaml")
    tracker.artifact(name, made, "pictures")
    tracker.artifact(name, local / "bundle", "bundle")


def report(run: Storage, tracker: tracking.Recorder, name: str) -> str:
    """Write the page of a run, a search or a comparison, and put it on record; where it is."""
    from workflows.report import write

    made = write(run)
    local = local_folder(run) / "report.html"
    if run.local is None:
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_bytes(run.read("report.html"))
    tracker.artifact(name, local)
    return made


def local_folder(run: Storage) -> Path:
    """The run's folder, or for a run in an object store a folder on this machine."""
    return run.local or Path.home() / ".cache" / "rondo" / run.name


def spool_of(run: Storage) -> Path:
    return local_folder(run) / "tracking.jsonl"


def new_name(experiment: Experiment, kind: str = "") -> str:
    """A name that no other has: of a run, or of a search or comparison by its kind."""
    stem = f"{experiment.name}-{kind}" if kind else experiment.name
    return f"{stem}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"


def _resumed(storage: Storage, experiment: Experiment, resume: str) -> str:
    """The run to continue.

    Raises:
        ValueError: there is none, it is finished, or it is a run of another experiment.
    """
    name = unfinished(storage, experiment, resume, finished=_finished, leaves="bundle")
    changed = differences(told_before(storage / name), experiment.plain())
    if changed:
        raise ValueError(f"--resume {resume}: its checkpoints belong to another experiment ({'; '.join(changed[:5])}); "
                         "use the same experiment and overrides")
    return name


def unfinished(storage: Storage, experiment: Experiment, resume: str, *, finished: Callable[[Storage], bool],
               leaves: str, kind: str = "") -> str:
    """The name of the run, or by its kind of the search or comparison, that `resume` means.

    Args:
        storage: where it is.
        experiment: "latest" is the newest of its name.
        resume: a name, a folder or "latest".
        finished: whether one is; then nothing is left to continue.
        leaves: the file or folder that a finished one is known for.
        kind: search or compare; a run has none.

    Raises:
        ValueError: there is none, it is finished, or it still goes on.
    """
    noun = kind or "run"
    if resume == "latest":
        stem = f"{experiment.name}-{kind}" if kind else experiment.name
        named = re.compile(rf"{re.escape(stem)}-\d{{8}}-\d{{6}}-[0-9a-f]{{4}}")
        open_ones = [n for n in storage.names() if named.fullmatch(n) and (storage / n).exists("experiment.yaml")
                     and not finished(storage / n)]
        if not open_ones:
            raise ValueError(f"--resume: no unfinished {noun} of {experiment.name!r} in {storage.uri}; leave --resume "
                             "out to start one")
        name = max(open_ones)
    else:
        name = Storage(resume).name
    run = storage / name
    if not run.exists("experiment.yaml"):
        raise ValueError(f"--resume {resume}: no {noun} of that name in {storage.uri}")
    if finished(run):
        raise ValueError(f"--resume {resume}: that {noun} is finished; its {leaves.partition('.')[0]} is "
                         f"{(run / leaves).uri}")
    if tracking.busy(spool_of(run)):
        raise ValueError(f"--resume {resume}: that {noun} is still going on; wait for its end, or stop it first")
    return name


def told_before(run: Storage) -> dict[str, Any]:
    """The experiment that a run was begun with, as plain values."""
    told: dict[str, Any] = parse(run.read("experiment.yaml"))
    return told


def _finished(run: Storage) -> bool:
    """Whether a run has come to its end, and nothing of its record is left to deliver."""
    return run.exists("result.json") and tracking.settled(spool_of(run), status="FINISHED")


def load_modules() -> None:
    """Import what a training needs."""
    importlib.import_module("workflows.worker")
    import torch
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])      # a process's first optimizer imports for 1.4 s


@contextmanager
def torch_meanwhile() -> Iterator[None]:
    """Import what training needs in a thread, while the caller waits for Ray to start.

    Ray itself is imported before: two threads that import it at once can meet it half made.
    """
    import ray  # noqa: F401

    thread = threading.Thread(target=load_modules, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


