"""Jobs for real: a head with token authentication, and jobs submitted from a copy of the source that changes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest

from tests.heads import BIN, free_ports, head_in_a_folder
from workflows.cluster import connect
from workflows.config.load import load

ROOT = Path(__file__).parents[3]
SMALL = ["training.epochs=1", "model.hidden_size=16", "workers.count=1"]
IGNORED = [
    ".venv/lib",
    ".git/objects",
    "runs/demand-1",
    "data/etth1",
    "mlruns/0",
    "mlartifacts/1",
    "build/lib",
    "workflows/__pycache__",
]
MARK = """
import os

def seen():
    return {"mark": "first", "file": __file__, "pid": os.getpid()}
"""
WORKER = """

_work = work

def work(job, context):
    from workflows.mark import seen
    job.folder.write("worker.json", json.dumps(seen()).encode())
    return _work(job, context)
"""
DRIVER = """

_inner = {name}

def {name}(*args, **kwargs):
    from workflows.mark import seen
    return {{**_inner(*args, **kwargs), "seen": seen()}}
"""


def copy_source(to):
    """The files of the checkout that git does not ignore, made to tell who runs them; and large files to be ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    (to / "workflows/mark.py").write_text(MARK)
    for name, more in {
        "training/worker": WORKER,
        "train": DRIVER.format(name="train"),
        "evaluate": DRIVER.format(name="evaluate"),
    }.items():
        with open(to / f"workflows/{name}.py", "a") as file:
            file.write(more)
    expected = files_of(to)
    for folder in IGNORED:
        (to / folder).mkdir(parents=True, exist_ok=True)
        (to / folder / "large.bin").write_bytes(bytes(3 << 20))
    (to / "mlflow.db").write_bytes(bytes(3 << 20))
    return expected


def files_of(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc"}


@pytest.fixture(scope="module")
def head():
    with head_in_a_folder() as made:
        made.files = copy_source(made.source)  # to be uploaded
        made.start("--num-cpus", 2)
        yield made


@pytest.fixture(scope="module")
def trained(head):
    """The first job."""
    done = head.submit(
        "first",
        "train",
        *SMALL,
        f"storage={head.folder}/runs",
        f"tracking.uri=sqlite:///{head.folder}/mlflow.db",
        "--json",
    )
    return done.json()


def test_a_job_trains_and_leaves_its_bundle(head, trained):
    assert Path(trained["bundle"], "model.safetensors").is_file() and trained["steps"] > 0
    assert trained["bundle"].startswith(f"{head.folder}/runs/")


def test_driver_and_worker_are_two_processes_that_run_the_uploaded_source(head, trained):
    worker = json.loads(Path(trained["bundle"], "../worker.json").read_text())
    driver = trained["seen"]
    assert worker["file"] == driver["file"] and worker["mark"] == driver["mark"] == "first"
    assert worker["file"].startswith(f"{head.folder}/ray/")  # not the source, nor the checkout
    assert worker["pid"] != driver["pid"]


def test_the_upload_is_all_of_the_source_and_nothing_else(head, trained):
    uploaded = Path(trained["seen"]["file"]).parents[1]
    assert files_of(uploaded) == head.files
    assert sum((uploaded / f).stat().st_size for f in files_of(uploaded)) < 2.5e6  # sent uncompressed


def test_a_finished_job_leaves_no_process(head, trained):
    names = {p: " ".join(p.cmdline()) for p in head.processes()}
    assert any("raylet" in n for n in names.values())
    left = [n for n in names.values() if any(w in n for w in ("-m workflows", "RayTrainWorker", "Controller", "Track"))]
    assert not left


def test_a_second_job_with_changed_source_evaluates_the_bundle_and_finds_its_run(head, trained):
    (head.source / "workflows/mark.py").write_text(MARK.replace("first", "second"))
    found = head.submit("second", "evaluate", trained["bundle"], "--json").json()
    assert found["seen"]["mark"] == "second" and found["seen"]["file"] != trained["seen"]["file"]
    assert found["run_id"] == trained["run_id"] and len(found["run_id"]) == 32
    expected = {k: v for k, v in trained["metrics"].items() if k.startswith("test/")}
    assert found["metrics"] == pytest.approx(expected, abs=1e-6) and "test/mse" in expected


@pytest.mark.soak
def test_a_run_at_home_does_not_join_a_head_of_this_machine(head, trained):
    """RAY_TMPDIR is where the head is written down, so Ray would find it here."""
    jobs = len(head.ask("/api/jobs/", head.token))
    done = subprocess.run(
        [sys.executable, "-m", "workflows", "evaluate", trained["bundle"], "--json"],
        cwd=head.source,
        env=head.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seen"]["file"] == str(head.source / "workflows/mark.py") and found["run_id"] == trained["run_id"]
    assert found["metrics"]["test/mse"] == pytest.approx(trained["metrics"]["test/mse"], abs=1e-6)
    assert len(head.ask("/api/jobs/", head.token)) == jobs  # drivers that joined count too


def test_relative_paths_are_refused_under_a_job_with_the_remedy(head):
    done = head.submit("third", "train", "workflows/experiments/etth1.yaml")
    assert done.code != 0 and "exit code 2" in done.said
    for words in (
        "storage='runs'",
        "tracking.uri='mlflow.db'",
        "dataset.path='data/etth1/ETTh1.csv'",
        "give absolute paths or URIs",
        "storage=/shared/runs",
        "RONDO_DATA=/absolute/folder",
    ):
        assert words in done.log
    assert "Traceback" not in done.log


@pytest.mark.parametrize(("token", "status"), [(None, 401), ("wrong", 403)])
def test_the_head_refuses_a_client_without_its_token(head, token, status):
    with pytest.raises(urllib.error.HTTPError) as refused:
        head.ask("/api/jobs/", token)
    assert refused.value.code == status


@pytest.mark.parametrize("path", ["data.csv", {"train": "/data/train.csv", "test": "test.csv"}])
def test_paths_of_every_shape_are_checked_under_a_job(path, monkeypatch):
    def experiment(path):
        return load(
            {
                "name": "x",
                "dataset": {"kind": "timeseries", "path": path, "targets": ["y"], "split": {"validation": 0.2}},
                "task": {"kind": "forecast", "lookback": 24, "horizon": 24},
                "model": {"family": "gru"},
                "storage": "s3://bucket/runs",
                "tracking": {"uri": "http://host:5000"},
            }
        )

    connect.check_paths(experiment(path))  # at home they are fine
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    connect.check_paths(experiment("/data/all.csv"))
    with pytest.raises(ValueError, match=r"dataset\.path(\.test)?='\w+\.csv': relative paths") as refused:
        connect.check_paths(experiment(path))
    assert "storage='" not in str(refused.value) and "train.csv" not in str(refused.value)


@pytest.mark.soak
def test_a_search_uses_both_nodes_and_is_one_run(head, trained):
    """A second raylet with two CPUs of its own joins; trials run on both."""
    (agent,) = free_ports(1)
    words = [
        BIN / "ray",
        "start",
        "--address",
        f"127.0.0.1:{head.port}",
        "--node-ip-address",
        "127.0.0.2",
        "--num-cpus",
        "2",
        "--dashboard-agent-listen-port",
        agent,
        "--disable-usage-stats",
        "--min-worker-port",
        0,
        "--max-worker-port",
        0,
    ]
    with open(head.folder / "join.log", "w") as log:
        joining = subprocess.Popen(
            [str(w) for w in words],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**head.environment, "RAY_AUTH_MODE": "token"},
        )
        head.more.append(joining.pid)
        assert joining.wait(timeout=120) == 0, (head.folder / "join.log").read_text()
    done = head.submit(
        "search",
        "search",
        "training.epochs=25",
        "model.hidden_size=16",
        "search.trials=4",
        "search.scheduler=none",
        f"storage={head.folder}/runs",
        f"tracking.uri=sqlite:///{head.folder}/mlflow.db",
        "--json",
        timeout=280,
    ).json()
    assert {t["status"] for t in done["trials"]} == {"finished"} and len(done["trials"]) == 4
    assert len({t["node_id"] for t in done["trials"]}) == 2
    from workflows.tracking.mlflow import connect

    client = connect(f"sqlite:///{head.folder}/mlflow.db")
    found = client.search_runs(
        [client.get_run(done["run_id"]).info.experiment_id], f"tags.`rondo.run` = '{done['run']}'"
    )
    assert len(found) == 5
    assert {r.data.tags.get("mlflow.parentRunId") for r in found} == {None, done["run_id"]}
