"""What several nodes need of each other: the same storage, and addresses that lead from one to the other."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from datasets.storage import Storage

ANSWER = 120.0                # seconds in which a node starts a process, fetches the code and answers


def check_reach(storage: Storage, sources: Sequence[str] = ()) -> None:
    """Let each node read and write a probe in `storage`, and look for the files that it may have to read.

    Args:
        storage: that all nodes are to share.
        sources: raw files; those that are no files of this machine's are not looked for.

    Raises:
        ValueError: what is not the same on every node, the node, and what to do.
    """
    probe, local = f"probe-{uuid.uuid4().hex[:8]}", [path for path in sources if os.path.exists(path)]
    look: Any = ray.remote(num_cpus=0, max_retries=0)(_reach)
    storage.write(f"{probe}/driver", probe.encode())
    try:
        asked = {(node["NodeManagerAddress"], node["NodeID"]): look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                storage.uri, probe, node["NodeID"], local) for node in ray.nodes() if node["Alive"]}
        problems = []
        for (address, node), answer in asked.items():
            problem = _answer(answer)
            if problem is None and not storage.exists(f"{probe}/{node}"):
                problem = "what it wrote to storage did not arrive"
            if problem:
                problems.append(f"node {address}: {problem}")
    finally:
        storage.delete(probe)
    if problems:
        raise ValueError(f"not all nodes reach what this run needs; storage is {storage.uri}:\n" + "\n".join(problems)
                         + "\nUse a folder that every node mounts at this path, or a URI such as s3://BUCKET/runs with "
                         "credentials on every node")


def _answer(answer: Any) -> str | None:
    """What a node does not reach."""
    try:
        problem: str | None = ray.get(answer, timeout=ANSWER)
    except GetTimeoutError:
        return f"has not answered for {ANSWER:g} s"
    except RayError as error:
        return f"could not look: {str(error).strip().splitlines()[-1]}"
    return problem


def _reach(uri: str, probe: str, node: str, sources: list[str]) -> str | None:
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


def choose_interface() -> None:
    """Let gloo use the network interface of the address that Ray knows this node by.

    It would take the address of the host's name, which on Debian and Ubuntu may be 127.0.1.1.
    """
    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(one.family in (socket.AF_INET, socket.AF_INET6) and one.address == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(_TorchBackend):  # type: ignore[misc]
    """Ray Train's own, for which a worker that is lost while they meet is one more that is lost, and not the end."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(choose_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            raise WorkerGroupStartupFailedError(f"workers could not connect: {error.cause}") from error


@dataclass
class Meeting(TorchConfig):  # type: ignore[misc]
    """How workers find each other."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
