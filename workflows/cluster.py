"""Where a run runs: a Ray of this machine's own, or a cluster; and whether it has what the run asks for."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflows.experiment import Experiment, flatten
from workflows.ray_core_private import in_job, nodes, request_resources
from workflows.settings import Workers

# Settings of Ray that must stand before it is imported; a user's own values win.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",     # a report waits for the next check: 2 s each otherwise
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",      # at the default, 15, importing MLflow beside training takes a minute
}


@dataclass(frozen=True)
class Place:
    """A connected Ray.

    Attributes:
        own: it was started for this process and ends with it.
        in_process: one worker can run right here.
        cpus: of each worker.
        grown: an autoscaler was asked for what the workers need.
    """

    own: bool
    in_process: bool
    cpus: int
    grown: bool = False


def check_paths(experiment: Experiment) -> None:
    """Refuse relative paths under a job, where the working folder is a copy that Ray deletes.

    Raises:
        ValueError: every relative path, and what to write instead.
    """
    if not in_job():
        return
    told = {"storage": experiment.storage, "tracking.uri": experiment.tracking.uri.removeprefix("sqlite:///")}
    told |= {f"dataset.{k}": v for k, v in flatten({"path": experiment.dataset.get("path")}) if v is not None}
    wrong = [f"{key}={value!r}" for key, value in told.items() if "://" not in value and not Path(value).is_absolute()]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: relative paths are lost under `ray job submit`, where the working "
                         "folder is a copy that is deleted; give absolute paths or URIs that every node reaches, such "
                         "as storage=/shared/runs tracking.uri=http://HOST:5000, and begin the job's command with "
                         "RONDO_DATA=/absolute/folder where the data is named by it (exports do not reach a job)")


def connect(workers: Workers, *, verbose: bool = False) -> Place:
    """Connect to the cluster of the environment, or start a Ray of this machine's own, and check its resources.

    Raises:
        ValueError: the workers ask for more than there is, with the arithmetic.
    """
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    check_machine(workers)
    cluster = in_job() or "RAY_ADDRESS" in os.environ
    import ray

    own = not ray.is_initialized()
    quiet: dict[str, Any] = {"log_to_driver": verbose,
                             "logging_level": logging.INFO if verbose else logging.ERROR}
    if own and cluster:
        ray.init(**quiet)
    elif own:
        ray.init(address="local", num_cpus=os.cpu_count() or 1, include_dashboard=False, **quiet)
    from datasets.ingest import configure_ray_data
    configure_ray_data(progress=verbose)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):         # importing them sets levels, so afterwards
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    local = not cluster and len(nodes()) == 1
    cpus = workers.cpus or (max(1, int(ray.cluster_resources().get("CPU", 1)) // workers.most) if local else 1)
    place = Place(own=own, in_process=local and workers.most == 1, cpus=cpus, grown=workers.wait > 0)
    try:
        _wait_for_room(replace(workers, cpus=cpus))
    except BaseException:                          # Ctrl-C too: what nobody takes back keeps nodes for ever
        disconnect(place)
        raise
    return place


def _wait_for_room(workers: Workers) -> None:
    """Return once Ray has what the least number of workers needs.

    Raises:
        ValueError: it still has not after `workers.wait` seconds.
    """
    import ray

    bundle = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    deadline = time.monotonic() + workers.wait
    while True:
        have = ray.cluster_resources()
        total = {"CPU": have.get("CPU", 0), "GPU": have.get("GPU", 0)}
        if workers.wait:
            # An autoscaler adds nodes only for what is asked of it, all or nothing: so for the least; Ray Train asks
            # for the rest. Every second, as a cluster has one request, and once a run has used Ray Data or Train there,
            # what these ask for, be it nothing, replaces it every 20 s.
            request_resources([bundle] * workers.least)
        try:
            _check(workers, total, f"Ray has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(nodes())} nodes")
            return
        except ValueError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)


def check_machine(workers: Workers) -> None:
    """Refuse at once, without Ray, what a Ray of this machine's own could not run.

    Raises:
        ValueError: the workers ask for more CPUs than there are, with the arithmetic.
    """
    if not (in_job() or "RAY_ADDRESS" in os.environ or _started()):
        machine = os.cpu_count() or 1
        _check(workers, {"CPU": machine, "GPU": None}, f"this machine has {machine} CPUs")


def _started() -> bool:
    """Whether this process has a Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def several_nodes() -> bool:
    """Whether this process has a Ray of more than one node."""
    return _started() and len(nodes()) > 1


def _check(workers: Workers, total: dict[str, Any], said: str) -> None:
    needs = {"CPU": workers.least * (workers.cpus or 1), "GPU": workers.least * workers.gpus}
    short = [kind for kind, need in needs.items() if total[kind] is not None and need > total[kind]]
    if short:
        raise ValueError(f"workers.count={workers.least} x workers.cpus={workers.cpus or 1} = {needs['CPU']} CPUs and "
                         f"workers.gpus={workers.gpus} = {needs['GPU']} GPUs in all, but {said}; ask for less, or let "
                         "an autoscaler add nodes and set workers.wait to the seconds it may take")


def disconnect(place: Place) -> None:
    """End the Ray that was started for this process; of another, only take back what its autoscaler was asked for."""
    import ray
    if place.grown:
        request_resources([])
    if place.own:
        ray.shutdown()
