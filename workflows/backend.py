"""How Ray Train's workers come together: by addresses that reach each other, and once more when one is lost."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
import ray
from ray.exceptions import RayTaskError
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

from workflows.cluster import several_nodes


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
        if several_nodes():
            worker_group.execute(choose_interface)
        try:
            super().on_start(worker_group, backend_config)
        except RayTaskError as error:
            raise WorkerGroupStartupFailedError(f"workers could not connect: {error.cause}") from error


class TolerantTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's own, with the backend above."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
