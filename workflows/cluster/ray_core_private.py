"""Developer APIs of Ray itself, each behind a function that says what it is needed for.

tests/test_private_apis.py fails with a sentence when a version of Ray no longer has one of them.
"""

from __future__ import annotations

import os
from typing import Any

# What Ray calls the variable that it sets in the driver of `ray job submit`, and only there
# (ray._private.runtime_env.constants). No public call says whether a process is such a driver before Ray is started.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def in_job() -> bool:
    """Whether this process was started by ``ray job submit``; needs no Ray to be running."""
    return JOB_VARIABLE in os.environ


def alive_nodes() -> list[dict[str, Any]]:
    """The nodes of the connected Ray that are alive: ``NodeID``, ``NodeManagerAddress`` and ``Resources`` of each.

    ``ray.nodes`` is a developer API, and also lists dead nodes. The public calls, ``ray.cluster_resources``
    and the dashboard's State API, do not say what each node has, or need a dashboard.
    """
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def request_resources(bundles: list[dict[str, Any]]) -> None:
    """Ask the cluster's autoscaler, if it has one, for nodes on which all bundles fit; [] takes a request back.

    A developer API. A placement group would ask for nodes, too, but would also reserve what the workers will use.
    """
    from ray.autoscaler.sdk import request_resources as request

    request(bundles=bundles)
