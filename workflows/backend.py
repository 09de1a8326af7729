"""How Ray Train's workers come together: by addresses that reach each other, and once more when one is lost."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import psutil
import ray
from ray.train.torch import TorchConfig

from workflows.cluster import several_nodes
from workflows.ray_train_private import RetriedBackend


def choose_interface() -> None:
    """Let gloo use the network interface of the address that Ray knows this node by.

    It would take the address of the host's name, which on Debian and Ubuntu may be 127.0.1.1.
    """
    address = ray.util.get_node_ip_address()
    for name, found in psutil.net_if_addrs().items():
        if any(one.family in (socket.AF_INET, socket.AF_INET6) and one.address == address for one in found):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


class _Backend(RetriedBackend):
    """Ray Train's own, for workers on nodes whose names may stand for addresses that no other node reaches."""

    def before(self) -> Callable[[], None] | None:
        return choose_interface if several_nodes() else None


class TolerantTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's own, with the backend above."""

    @property
    def backend_cls(self) -> type[_Backend]:
        return _Backend
