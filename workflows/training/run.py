"""One training run, from prepared data to the report, on a connected Ray."""

from __future__ import annotations

import json
from typing import Any

import psutil
import torch

from datasets.pipeline.storage import Storage
from models.torch_private import cpu_has_bf16
from workflows import strict_json
from workflows.cluster.connect import RayConnection
from workflows.cluster.launch import run_workers
from workflows.cluster.preflight import check_nodes
from workflows.config.experiment import Experiment, flatten
from workflows.console import Console
from workflows.errors import Interrupted
from workflows.reporting.results import report, save_results
from workflows.runs import DELIVERY, spool_path
from workflows.tracking import recorder, remote
from workflows.training.data import Data, cache_parts, prepare_data
from workflows.training.job import TrainingJob, WorkerContext
from workflows.training.worker import make_model, work
from workflows.training.worker_group import WorkerGroup


def run(
    experiment: Experiment, folder: Storage, connection: RayConnection, console: Console, *, resumed: bool
) -> dict[str, Any]:
    """Train an experiment on a connected Ray, and write everything that a run leaves into its folder.

    Args:
        experiment: checked.
        folder: of the run; its last part is the run's name.
        connection: to Ray.
        console: shows progress.
        resumed: whether the run was started before.

    Returns:
        The result, as plain values; see ``workflows.train.train``.
    """
    name = folder.name
    console.say(f"{name}: {'continued' if resumed else 'started'}, in {folder.uri}")
    if experiment.training.precision == "bf16" and not experiment.workers.gpus and not cpu_has_bf16():
        console.say("note: this CPU has no bf16 instructions; training.precision=fp32 is many times faster here")
    # Data: prepared once for all runs that need the same.
    with console.busy("preparing data"):
        check_nodes(experiment)
        prepared = prepare_data(experiment)
    console.notes(prepared)
    # Refuse now what cannot be built or batched.
    model, _ = make_model(experiment, prepared, torch.device("cpu"))
    data = Data(experiment, prepared, {}, WorkerGroup(torch.device("cpu")))
    for split in dict.fromkeys(("train", "validation", *data.splits)):
        data.plan(data.view(split), training=split == "train")
    # From here on MLflow has the run.
    folder.write("experiment.yaml", experiment.text().encode())
    tracker = remote.start(
        experiment.tracking.uri,
        spool_path(folder),
        actor=True,
        system_metrics=experiment.tracking.system_seconds or None,
    )
    tracker.begin(
        name,
        experiment=experiment.tracking.experiment or experiment.name,
        run_name=name,
        params=dict(flatten(experiment.plain())),
        tags={
            "rondo.run": name,
            "rondo.storage": folder.uri,
            **{f"rondo.signature.{k}": v for k, v in model.task.signatures.items()},
        },
        dataset={
            "name": experiment.name,
            "digest": prepared.digest,
            "source": prepared.storage.uri,
            "profile": {
                p: {"rows": int(sum(s.rows for s in part.shards)), "bytes": part.bytes}
                for p, part in prepared.parts.items()
            },
        },
    )
    status: recorder.Status = "FAILED"
    try:
        cached = cache_parts(experiment, prepared, console.event)
        context = WorkerContext(tracker, connection.cpus, console.event, started=psutil.Process().create_time())
        run_workers(TrainingJob(experiment, prepared, cached, folder, name), context, work, connection)
        saved = json.loads(folder.read("result.json"))
        numbers = {key: strict_json.none_to_nan(saved[key]) for key in ("metrics", "baselines", "history")}
        result = {
            **saved,
            **numbers,
            "run": name,
            "bundle": (folder / "bundle").uri,
            "run_id": tracker.run_id(name, timeout=DELIVERY),
        }
        folder.write("result.json", strict_json.dumps(result).encode())
        save_results(result, experiment, prepared, folder, tracker, name)
        result["report"] = report(folder, tracker, name)
        status = "FINISHED"
    except (Interrupted, KeyboardInterrupt, SystemExit):  # the last: `ray job stop`
        status = "KILLED"
        raise
    finally:
        tracker.end(name, status)
        if not tracker.close(timeout=DELIVERY):
            console.undelivered(tracker.problem(), spool_path(folder), folder.uri)
    console.result(result)
    return result
