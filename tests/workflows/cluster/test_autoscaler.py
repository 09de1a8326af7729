"""cluster.yaml for real, but for its nodes: Ray's autoscaler adds processes of this machine in their place."""

from __future__ import annotations

import json
import re
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from tests.heads import free_ports, head_in_a_folder

pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[3]
SMALLER = 8  # a node has so many times fewer CPUs than in cluster.yaml
IDLE = 0.25  # minutes
HEAD = {"CPU": 1.0}
CPU = {"CPU": 2.0}
GPU = {"CPU": 6.0, "GPU": 4.0}


def made_for_here(port):
    """cluster.yaml as `ray up` hands it to the head's autoscaler, but for the provider, and smaller."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_TYPE, FakeMultiNodeProvider
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8")))
    provider = f"{FakeMultiNodeProvider.__module__}.{FakeMultiNodeProvider.__name__}"
    config["provider"] = {  # by its own name, fake_multinode, Ray misses a file that its packages leave out
        "type": "external",
        "module": provider,
        "gcs_address": f"127.0.0.1:{port}",
        "launch_multiple": True,
    }
    config["idle_timeout_minutes"] = IDLE
    types = config["available_node_types"]
    for node in types.values():
        node["node_config"] = {}  # AWS's
        node["resources"]["CPU"] = max(1, node["resources"]["CPU"] // SMALLER)
    types[FAKE_HEAD_NODE_TYPE] = types.pop(config["head_node_type"])  # the provider knows its head by this name
    config["head_node_type"] = FAKE_HEAD_NODE_TYPE
    return config


@pytest.fixture(scope="module")
def head():
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    with head_in_a_folder(ROOT) as made:
        made.environment |= {
            "RAY_enable_autoscaler_v2": "1",  # as `ray up` does
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # added nodes are on loopback, too
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "AUTOSCALER_METRIC_PORT": str(free_ports(1)[0]),
        }
        config = made.folder / "cluster.yaml"
        config.write_text(yaml.safe_dump(made_for_here(made.port)))
        made.start("--num-cpus", int(HEAD["CPU"]), "--autoscaling-config", config)
        yield made


def begin(head, name, *words):
    """Submit a training, and do not wait for it."""
    done = head.job(
        "submit",
        "--no-wait",
        "--submission-id",
        name,
        "--working-dir",
        ".",
        "--",
        "python",
        "-m",
        "workflows",
        "train",
        "training.epochs=1",
        "model.hidden_size=16",
        "workers.cpus=1",
        f"storage={head.folder}/runs",
        f"tracking.uri=sqlite:///{head.folder}/mlflow.db",
        "--json",
        *words,
    )
    assert done.returncode == 0, done.stdout


def ended(head, name):
    """What is known of a job that has ended, by itself or because it was stopped; else None."""
    job = head.ask(f"/api/jobs/{name}", head.token)
    return job if job["status"] in ("SUCCEEDED", "FAILED", "STOPPED") else None


def nodes(head, state="ALIVE"):
    """CPUs and GPUs of each node that the autoscaler added, by its id."""
    reply = head.ask("/api/v0/nodes?limit=1000", head.token)["data"]["result"]["result"]
    return {
        n["node_id"]: {k: v for k, v in n["resources_total"].items() if k in ("CPU", "GPU")}
        for n in reply
        if n["state"] == state and not n["is_head_node"]
    }


def asked(head):
    """What `request_resources` has asked for: what a worker needs, as text, and for how many."""
    reply = head.ask("/api/cluster_status?format=1", head.token)["data"]["clusterStatus"]
    return [(bundle, int(count)) for bundle, count in re.findall(r"(\{.*\}): (\d+) from request_resources", reply)]


def raylets(head):
    """How many nodes there are, as processes."""
    count = 0
    for process in head.processes():
        with suppress(psutil.NoSuchProcess):
            count += process.name() == "raylet"
    return count


def wait_until(head, what, seconds=240):
    """The first answer that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.5)
    logs = [
        *head.folder.glob("ray/session_latest/logs/monitor.[el]*"),
        *head.folder.glob("ray/session_latest/logs/job-driver-*"),
    ]
    raise AssertionError("it never came: " + "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in logs))


def test_a_run_that_is_stopped_while_it_waits_takes_back_what_it_asked_for(head):
    """The first run of a cluster: after others, an actor of Ray Data's would take it back within 20 s."""
    begin(head, "stopped", "workers.count=2", "workers.gpus=8", "workers.wait=500")
    wait_until(head, lambda: asked(head) or ended(head, "stopped"))
    head.job("stop", "stopped")
    job = wait_until(head, lambda: ended(head, "stopped"))
    wait_until(head, lambda: not asked(head), 30)
    assert job["status"] == "STOPPED" and not nodes(head)


@pytest.fixture(scope="module")
def grown(head):
    """A run on a cluster that has nothing but its head: all nodes seen while it ran, and how it ended."""
    assert not nodes(head) and not asked(head)
    begin(head, "cpu", "workers.count=2", "workers.wait=200")
    seen, requests = {}, []

    def look():
        seen.update(nodes(head))
        requests.extend(asked(head))
        return ended(head, "cpu")

    job = wait_until(head, look, 500)
    assert job["status"] == "SUCCEEDED", head.log("cpu")
    return seen, requests, json.loads(head.log("cpu").splitlines()[-1])


def test_a_run_that_waits_makes_the_autoscaler_add_a_node_and_trains_on_it(head, grown):
    seen, requests, result = grown
    assert seen and all(node == CPU for node in seen.values())  # the cheapest that does: none with GPUs
    assert ("{'CPU': 1.0}", 2) in requests
    assert Path(result["bundle"], "model.safetensors").is_file() and result["steps"] > 0
    actors = head.ask("/api/v0/actors?detail=1&limit=1000", head.token)["data"]["result"]["result"]
    workers = [a["node_id"] for a in actors if a["class_name"].endswith("RayTrainWorker")]
    assert len(workers) >= 2 and set(workers) & set(seen)


def test_what_the_run_asked_for_is_taken_back_and_its_nodes_go_when_they_are_idle(head, grown):
    wait_until(head, lambda: not asked(head), 30)
    wait_until(head, lambda: not nodes(head), 60 * IDLE + 90)
    assert set(nodes(head, "DEAD")) >= set(grown[0])
    wait_until(head, lambda: raylets(head) == 1, 30)  # the head's


def test_a_run_that_asks_for_gpus_gets_a_node_that_has_them_however_many_workers_it_would_take(head, grown):
    """The cluster can never have room for all 40; there is no GPU here, so the run is stopped before it trains."""
    begin(head, "gpu", "workers.count=[2,40]", "workers.gpus=1", "workers.wait=200")
    added = wait_until(head, lambda: {k: v for k, v in nodes(head).items() if "GPU" in v} or ended(head, "gpu"))
    assert list(added.values()) == [GPU], head.log("gpu")
    head.job("stop", "gpu")
    wait_until(head, lambda: ended(head, "gpu"))
    wait_until(head, lambda: not asked(head), 30)


def test_asking_for_what_no_node_has_ends_after_the_wait_with_a_message_and_is_asked_until_then(head, grown):
    """Earlier runs left an actor of Ray Data's, which takes back every 20 s what it has not asked for itself."""
    wait_until(head, lambda: not nodes(head), 60 * IDLE + 90)
    wait = 40
    begin(head, "large", "workers.count=2", "workers.gpus=8", f"workers.wait={wait}")
    wait_until(head, lambda: asked(head) or ended(head, "large"))
    begun = time.monotonic()
    last = 0.0
    while not (job := ended(head, "large")):
        assert time.monotonic() < begun + 200
        if asked(head):
            last = time.monotonic() - begun
        time.sleep(0.5)
    assert job["driver_exit_code"] == 2 and "Traceback" not in head.log("large")
    assert "workers.gpus=8 = 16 GPUs in all, but Ray has 1 CPUs and 0 GPUs on 1 nodes;" in head.log("large")
    assert "set workers.wait to the seconds it may take" in head.log("large")
    assert last > wait - 15
    wait_until(head, lambda: not asked(head), 30)
    assert not nodes(head)
