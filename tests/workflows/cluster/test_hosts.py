"""Two hosts, each with an address and files of its own: what only one of them has, and what a cut wire costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time

import pytest

from tests.faults import ObjectStore, finish, launch, said, wait_until
from tests.hosts import FIRST, SECOND, Hosts

SETTINGS = ["workers.count=2", "workers.cpus=1", "model.hidden_size=32"]
CHECKSUM = """
import sys
from datasets.pipeline.storage import Storage, sha256
print(sha256(Storage(sys.argv[1]).read("model.safetensors")))
"""


@pytest.fixture(scope="module")
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("hosts cannot be made here: there is no ip (iproute2)")
    made = Hosts()
    try:
        made.connect()
        made.join(FIRST)
        made.join(SECOND)
        yield made
    except OSError as error:
        pytest.skip(f"hosts cannot be made here: {error}")
    finally:
        made.stop()


def start(hosts, folder, *more):
    """A training whose driver is on the first host."""
    words = [
        sys.executable,
        "-m",
        "workflows",
        "train",
        *SETTINGS,
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        "--json",
        *more,
    ]
    return launch(folder, hosts.on_first(*words), environment=hosts.environment)


def wait_for(text, folder):
    """Until it is said."""
    wait_until(lambda: text in said(folder), folder)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("storage", "storage is another folder here: what the driver wrote is missing"),
        pytest.param("data", "data.csv is missing", marks=pytest.mark.soak),
    ],
)
def test_what_only_one_host_has_is_found_out_before_anything_is_done(own, message, hosts, tmp_path):
    shared = hosts.folder / "shared"
    data = (hosts.folder if own == "data" else shared) / "data.csv"
    data.write_text("time,value\n" + "".join(f"2024-01-01T{h:02}:00:00,{h}\n" for h in range(24)))
    storage = (hosts.folder if own == "storage" else shared) / "runs"
    experiment = tmp_path / "own.yaml"
    experiment.write_text(f"""
name: own
dataset: {{kind: timeseries, path: {data}, time: time, targets: [value], split: {{validation: 0.2, test: 0.2}}}}
task: {{kind: forecast, lookback: 2, horizon: 1}}
model: {{family: gru, patch: 1}}
storage: {storage}
""")
    process = start(hosts, tmp_path, str(experiment))
    process.communicate(timeout=120)
    output = said(tmp_path)
    assert process.returncode == 2 and f"node {SECOND}: " in output and message in output and "s3://" in output
    assert f"node {FIRST}" not in output and not list(storage.glob("p*"))  # neither prepared nor probe


@pytest.fixture
def object_store(hosts):
    """On the first host."""
    folder = hosts.folder / "store"
    folder.mkdir()
    store = ObjectStore(folder, FIRST, hosts.on_first())
    yield store
    store.stop()


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("where", "seconds"), [("folder", 30), ("object store", 90)])
def test_a_host_that_is_cut_off_costs_the_steps_since_the_last_checkpoint(where, seconds, hosts, tmp_path, request):
    shared = f"{hosts.folder}/shared/cut"
    storage = shared if where == "folder" else request.getfixturevalue("object_store").uri("cut")
    weights = []
    for cut in (False, True):
        folder = tmp_path / f"cut-{cut}"
        folder.mkdir()
        process = start(
            hosts,
            folder,
            f"storage={storage}",
            "training.epochs=8",
            "training.checkpoint_steps=20",
            "dataset.cache_bytes=0",
        )  # so that each node reads data itself
        if cut:
            wait_for("epoch 1/", folder)
            begin = time.monotonic()
            hosts.wire("down")
            time.sleep(seconds)
            hosts.wire("up")
            if seconds > 65:  # then Ray has given it up, and what it hears of that ends it
                wait_until(lambda: not hosts.processes(SECOND), folder)
                hosts.join(SECOND)
                wait_for(", from step ", folder)
            else:  # at the latest then, workers have been replaced if need be
                wait_for("epoch 3/", folder)
            print(f"{where}: cut off for {seconds} s, trained on after {time.monotonic() - begin:.0f} s")
        result = finish(process, folder)
        weights.append(
            subprocess.run(
                hosts.on_first(sys.executable, "-c", CHECKSUM, result["bundle"]),
                text=True,
                env=hosts.environment,
                capture_output=True,
                check=True,
            ).stdout
        )
    assert weights[0] == weights[1]
