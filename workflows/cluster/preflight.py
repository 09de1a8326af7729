"""Checks on each node of a cluster, before a run starts: storage and raw data must be the same everywhere."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.pipeline.prepare import cache_key
from datasets.pipeline.storage import Storage
from workflows.cluster.connect import is_multi_node
from workflows.cluster.ray_core_private import alive_nodes
from workflows.config.experiment import Experiment
from workflows.errors import UserError

TIMEOUT = 120.0  # seconds in which all nodes start a process, fetch the code and answer
MAX_FILES = 100  # that are looked for on each node


def check_reach(storage: Storage, sources: Sequence[str] = ()) -> None:
    """Let each node read and write a probe in `storage`, and look for some of the files that it may have to read.

    Nodes that leave meanwhile, and nodes that join later, are not checked.

    Args:
        storage: that all nodes must share.
        sources: raw files; those that this machine does not have are not looked for.

    Raises:
        ValueError: what is not the same on every node, the node, and what to do.
    """
    local = [path for path in sources if os.path.exists(path)]
    probe, local = f"probe-{uuid.uuid4().hex[:8]}", local[:: -(-len(local) // MAX_FILES) or 1]
    storage.write(f"{probe}/driver", probe.encode())
    task = ray.remote(num_cpus=0, max_retries=0)(_find_problem)
    answers = {
        node["NodeID"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(storage.uri, probe, node["NodeID"], local)
        for node in alive_nodes()
    }
    try:
        deadline = time.monotonic() + TIMEOUT
        problems = {node: _wait_for(answer, deadline - time.monotonic()) for node, answer in answers.items()}
        problems |= {
            node: "what it wrote to storage did not arrive"
            for node, problem in problems.items()
            if problem is None and not storage.exists(f"{probe}/{node}")
        }
    finally:
        storage.delete(probe)
    lines = [
        f"node {node['NodeManagerAddress']}: {problems[node['NodeID']]}"
        for node in alive_nodes()
        if problems.get(node["NodeID"])
    ]
    if lines:
        raise UserError(
            f"not all nodes reach what this run needs; storage is {storage.uri}:\n"
            + "\n".join(lines)
            + "\nUse a folder that every node mounts at this path, or a URI such as s3://BUCKET/runs with "
            "credentials on every node"
        )


def _wait_for(answer: ray.ObjectRef[str | None], seconds: float) -> str | None:
    """The problem that a node found; None if it found none."""
    try:
        problem: str | None = ray.get(answer, timeout=max(0.0, seconds))
    except GetTimeoutError:
        ray.cancel(answer, force=True)
        return f"has not answered for {TIMEOUT:g} s"
    except RayError as error:
        return f"could not look: {str(error).strip().splitlines()[-1]}"
    return problem


def _find_problem(uri: str, probe: str, node: str, sources: list[str]) -> str | None:
    """Run on a node: what it cannot reach; None if nothing."""
    try:
        storage = Storage(uri)
        if not storage.exists(f"{probe}/driver"):
            return "storage is another folder here: what the driver wrote is missing"
        storage.read(f"{probe}/driver")
        storage.write(f"{probe}/{node}", b"")
    except (OSError, ValueError) as error:
        return f"storage cannot be read and written: {error}"
    missing = [path for path in sources if not os.path.exists(path)]
    return f"{missing[0]} is missing{f', and {len(missing) - 1} more' if missing[1:] else ''}" if missing else None


def check_nodes(experiment: Experiment) -> None:
    """If Ray has several nodes, check on each that it reaches the storage and the raw files of an experiment.

    Raises:
        ValueError: a node does not reach them.
    """
    if not is_multi_node():
        return
    dataset, storage = experiment.raw_dataset, Storage(experiment.storage)
    prepared = storage.exists(f"prepared/{cache_key(dataset)}/manifest.json")
    check_reach(storage, [] if prepared else [source.uri for source in dataset.sources()])
