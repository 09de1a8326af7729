"""Connects Ray Train's workers by addresses that reach each other, and tolerates a worker lost while they connect."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import psutil
import ray
from ray.train.torch import TorchConfig

from workflows.cluster.connect import is_multi_node
from workflows.cluster.ray_train_private import RetriedBackend


def choose_interface() -> None:
    """Let gloo use the network interface that has Ray's address of this node.

    By default it takes the address of the host name, which on Debian and Ubuntu may be 127.0.1.1.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.family in (socket.AF_INET, socket.AF_INET6) and a.address == address for a in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(RetriedBackend):
    """On several nodes, workers connect by the addresses that Ray has of them."""

    def before(self) -> Callable[[], None] | None:
        return choose_interface if is_multi_node() else None


class TolerantTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's configuration of torch, with the backend above."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
