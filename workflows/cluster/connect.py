"""Connects to Ray, on this machine or a cluster, and checks that it has the resources that a run asks for."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from workflows.cluster.ray_core_private import alive_nodes, in_job, request_resources
from workflows.config.experiment import Experiment, flatten
from workflows.config.settings import Workers
from workflows.errors import UserError, user_mistakes

# Settings that Ray reads when it is imported or started; values that the user has set take precedence.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.1",  # a report waits for the next check, by default 2 s
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",  # at the default, 15, importing MLflow during training takes a minute
}


@dataclass(frozen=True)
class RayConnection:
    """A connected Ray.

    Attributes:
        started_here: whether it was started for this process and ends with it.
        in_process: whether the one worker can run in this process.
        cpus: of each worker.
        requested_nodes: whether an autoscaler was asked for nodes.
    """

    started_here: bool
    in_process: bool
    cpus: int
    requested_nodes: bool = False


@user_mistakes()
def check_paths(experiment: Experiment) -> None:
    """Refuse relative paths under a job, where the working folder is a copy that Ray deletes.

    Raises:
        ValueError: every relative path, and what to write instead.
    """
    if not in_job():
        return
    paths = {"storage": experiment.storage, "tracking.uri": experiment.tracking.uri.removeprefix("sqlite:///")}
    paths |= {f"dataset.{k}": v for k, v in flatten({"path": experiment.dataset.get("path")}) if v is not None}
    wrong = [f"{key}={value!r}" for key, value in paths.items() if "://" not in value and not Path(value).is_absolute()]
    if wrong:
        raise UserError(
            f"{', '.join(wrong)}: relative paths are lost under `ray job submit`, where the working "
            "folder is a copy that is deleted; give absolute paths or URIs that every node reaches, such "
            "as storage=/shared/runs tracking.uri=http://HOST:5000, and begin the job's command with "
            "RONDO_DATA=/absolute/folder where the data is named by it (exports do not reach a job)"
        )


def connect(workers: Workers, *, verbose: bool = False) -> RayConnection:
    """Connect to the cluster of the environment, or start a Ray of this machine's own, and check its resources.

    Raises:
        ValueError: the workers ask for more than there is, with the arithmetic.
    """
    set_environment()
    check_machine(workers)
    cluster = in_job() or "RAY_ADDRESS" in os.environ
    import ray

    start = not ray.is_initialized()
    quiet: dict[str, Any] = {"log_to_driver": verbose, "logging_level": logging.INFO if verbose else logging.ERROR}
    if start and cluster:
        ray.init(**quiet)
    elif start:
        ray.init(address="local", num_cpus=os.cpu_count() or 1, include_dashboard=False, **quiet)
    from datasets.pipeline.ingest import configure_ray_data

    configure_ray_data(progress=verbose)
    for name in ("ray", "ray.data", "ray.train", "ray.tune"):  # after their import, which sets levels
        logging.getLogger(name).setLevel(logging.INFO if verbose else logging.ERROR)
    local = not cluster and len(alive_nodes()) == 1
    cpus = workers.cpus or (max(1, int(ray.cluster_resources().get("CPU", 1)) // workers.most) if local else 1)
    connection = RayConnection(
        started_here=start, in_process=local and workers.most == 1, cpus=cpus, requested_nodes=workers.wait > 0
    )
    try:
        _wait_for_resources(replace(workers, cpus=cpus))
    except BaseException:  # Ctrl-C too: a request that is not withdrawn keeps nodes for ever
        disconnect(connection)
        raise
    return connection


def _wait_for_resources(workers: Workers) -> None:
    """Wait until Ray has the resources of the minimum number of workers.

    Raises:
        ValueError: it does not have them after `workers.wait` seconds.
    """
    import ray

    bundle = {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}
    deadline = time.monotonic() + workers.wait
    while True:
        have = ray.cluster_resources()
        total = {"CPU": have.get("CPU", 0), "GPU": have.get("GPU", 0)}
        if workers.wait:
            # An autoscaler grants a request whole or not at all, so this one is for the minimum; Ray Train requests the
            # rest. It is repeated every second: a cluster has one request, and Ray Data and Ray Train, once used there,
            # replace it by theirs, even if empty, every 20 s.
            request_resources([bundle] * workers.least)
        try:
            _check(
                workers, total, f"Ray has {total['CPU']:g} CPUs and {total['GPU']:g} GPUs on {len(alive_nodes())} nodes"
            )
            return
        except ValueError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(1)


def check_machine(workers: Workers) -> None:
    """Refuse, before Ray starts, what a Ray on this machine could not run.

    Raises:
        ValueError: the workers ask for more CPUs than there are, with the arithmetic.
    """
    if not (in_job() or "RAY_ADDRESS" in os.environ or _started()):
        machine = os.cpu_count() or 1
        _check(workers, {"CPU": machine, "GPU": None}, f"this machine has {machine} CPUs")


def _started() -> bool:
    """Whether this process is connected to Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def is_multi_node() -> bool:
    """Whether this process is connected to a Ray of more than one node."""
    return _started() and len(alive_nodes()) > 1


def _check(workers: Workers, total: dict[str, Any], available: str) -> None:
    needs = {"CPU": workers.least * (workers.cpus or 1), "GPU": workers.least * workers.gpus}
    short = [kind for kind, need in needs.items() if total[kind] is not None and need > total[kind]]
    if short:
        raise UserError(
            f"workers.count={workers.least} x workers.cpus={workers.cpus or 1} = {needs['CPU']} CPUs and "
            f"workers.gpus={workers.gpus} = {needs['GPU']} GPUs in all, but {available}; ask for less, or let "
            "an autoscaler add nodes and set workers.wait to the seconds it may take"
        )


def disconnect(connection: RayConnection) -> None:
    """Shut down Ray if it was started for this process; otherwise only withdraw the request to its autoscaler."""
    import ray

    if connection.requested_nodes:
        request_resources([])
    if connection.started_here:
        ray.shutdown()


def set_environment() -> None:
    """Set what Ray reads from the environment, before it is imported."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)


def import_modules(*names: str) -> None:
    """Import modules by name, before they are needed, and what torch imports with its first optimizer (1.4 s)."""
    for name in names:
        importlib.import_module(name)
    torch = importlib.import_module("torch")
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])


@contextmanager
def import_in_background(*names: str) -> Iterator[None]:
    """Import modules in a thread while the block runs, as while Ray starts.

    Ray itself is imported before: two threads that import it at once can find it incomplete.
    """
    set_environment()
    import ray  # noqa: F401

    thread = threading.Thread(target=import_modules, args=names, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
