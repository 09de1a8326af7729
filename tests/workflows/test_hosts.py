"""Two hosts, each with an address and files of its own: what only one of them has, and what happens without the wire."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from tests.faults import finish, launch, said, wait_until
from tests.hosts import FIRST, SECOND, Hosts

SETTINGS = ["workers.count=2", "workers.cpus=1", "model.hidden_size=32"]


@pytest.fixture(scope="module")
def hosts():
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
    words = [sys.executable, "-m", "workflows", "train", *SETTINGS, f"tracking.uri=sqlite:///{folder}/mlflow.db",
             "--json", *more]
    return launch(folder, hosts.on_first(*words), environment=hosts.environment)


@pytest.mark.parametrize(("own", "message"), [
    ("storage", "storage is another folder here: what the driver wrote is missing"),
    ("data", "data.csv is missing")])
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
    told = said(tmp_path)
    assert process.returncode == 2 and f"node {SECOND}: " in told and message in told and "s3://" in told
    assert f"node {FIRST}" not in told and not list(storage.glob("p*"))                # neither prepared nor probe
