"""What several nodes have to have in common, looked for on each of them before anything is done."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.storage import Storage
from workflows.ray_core_private import nodes

ANSWER = 120.0                # seconds in which all nodes start a process, fetch the code and answer
SOME = 100                    # files that are looked for, at most


def check_reach(storage: Storage, sources: Sequence[str] = ()) -> None:
    """Let each node read and write a probe in `storage`, and look for some of the files that it may have to read.

    Nodes that go meanwhile, and those that join later, are not asked.

    Args:
        storage: that all nodes are to share.
        sources: raw files; those that are no files of this machine's are not looked for.

    Raises:
        ValueError: what is not the same on every node, the node, and what to do.
    """
    local = [path for path in sources if os.path.exists(path)]
    probe, local = f"probe-{uuid.uuid4().hex[:8]}", local[::-(-len(local) // SOME) or 1]
    storage.write(f"{probe}/driver", probe.encode())
    look: Any = ray.remote(num_cpus=0, max_retries=0)(_look)
    asked = {node["NodeID"]: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(
        node["NodeID"], soft=False)).remote(storage.uri, probe, node["NodeID"], local) for node in nodes()}
    try:
        deadline = time.monotonic() + ANSWER
        told = {node: _answer(answer, deadline - time.monotonic()) for node, answer in asked.items()}
        told |= {node: "what it wrote to storage did not arrive" for node, problem in told.items()
                 if problem is None and not storage.exists(f"{probe}/{node}")}
    finally:
        storage.delete(probe)
    problems = [f"node {node['NodeManagerAddress']}: {told[node['NodeID']]}" for node in nodes()
                if told.get(node["NodeID"])]
    if problems:
        raise ValueError(f"not all nodes reach what this run needs; storage is {storage.uri}:\n" + "\n".join(problems)
                         + "\nUse a folder that every node mounts at this path, or a URI such as s3://BUCKET/runs with "
                         "credentials on every node")


def _answer(answer: Any, seconds: float) -> str | None:
    """What a node does not reach, as far as it can be learnt in time."""
    try:
        problem: str | None = ray.get(answer, timeout=max(0.0, seconds))
    except GetTimeoutError:
        ray.cancel(answer, force=True)
        return f"has not answered for {ANSWER:g} s"
    except RayError as error:
        return f"could not look: {str(error).strip().splitlines()[-1]}"
    return problem


def _look(uri: str, probe: str, node: str, sources: list[str]) -> str | None:
    """On a node: what it does not reach."""
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
