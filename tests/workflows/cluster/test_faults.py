"""Real kills: the run continues, and ends in the same weights to the last bit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets.pipeline.storage import Storage
from tests.faults import ACCESS, WORKER, ObjectStore, below, finish, launch, said, unreadable, wait_until
from workflows.cluster.launch import _failure_message
from workflows.cluster.relay import EventChannel, relay
from workflows.cluster.stopping import StopSignal, run_interruptibly
from workflows.console import Console
from workflows.errors import Unwritable

COMMON = [
    "training.epochs=2",
    "training.checkpoint_steps=10",
    "training.batch_size=64",
    "workers.cpus=1",
    "model.hidden_size=32",
]


def command(folder, *more):
    return [
        sys.executable,
        "-m",
        "workflows",
        "train",
        *COMMON,
        f"storage={folder}/runs",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
        "--json",
        *more,
    ]


def start(folder, *more):
    return launch(folder, command(folder, *more))


def start_with_cpus(folder, cpus, *more):
    """The same from Python, in a Ray with so many CPUs."""
    overrides = [w for w in command(folder, *more)[4:] if "=" in w]
    resume = "latest" if "--resume" in more else None
    script = (
        f"import json, ray; ray.init(address='local', num_cpus={cpus}, include_dashboard=False, "
        f"log_to_driver=False)\nfrom workflows.train import train\n"
        f"print(json.dumps(train(None, overrides={overrides!r}, resume={resume!r})))"
    )
    return launch(folder, [sys.executable, "-c", script])


def wait_for_checkpoint(folder, step, name="*"):
    """Until a checkpoint of `step` or a later one is complete, of any run or of those of a name."""
    wait_until(
        lambda: any(
            int(p.parent.name[5:]) >= step for p in folder.glob(f"runs/{name}-*/checkpoints/step-*/manifest.json")
        ),
        folder,
    )


def weights(result):
    return (Path(result["bundle"]) / "model.safetensors").read_bytes()


def run_of(folder):
    """The one run that MLflow has."""
    from workflows.tracking.mlflow import connect

    client = connect(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("demand").experiment_id])
    return run


def points(folder, result):
    """Steps of each metric as MLflow has them."""
    from workflows.tracking.mlflow import connect

    client = connect(f"sqlite:///{folder}/mlflow.db")
    return {
        k: [p.step for p in client.get_metric_history(result["run_id"], k)] for k in ("train/loss", "train/step_loss")
    }


def killed_worker_run(process, folder, count):
    wait_for_checkpoint(folder, 20)
    victims = below(process, WORKER)
    assert len(victims) == count
    victims[-1].kill()
    return finish(process, folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    return finish(start(folder, "workers.count=2"), folder)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    return finish(start(folder), folder), folder


@pytest.mark.soak
def test_a_killed_worker_is_replaced_and_the_weights_are_the_same(undisturbed, tmp_path):
    result = killed_worker_run(start(tmp_path, "workers.count=2"), tmp_path, 2)
    assert weights(result) == weights(undisturbed)
    assert result["steps"] == undisturbed["steps"]
    for steps in points(tmp_path, result).values():
        assert steps == sorted(set(steps))  # replayed steps are recorded once


@pytest.mark.soak
def test_a_worker_that_hangs_is_replaced_in_time_and_the_weights_are_the_same(undisturbed, tmp_path):
    process = start(tmp_path, "workers.count=2", "workers.timeout=15")
    wait_for_checkpoint(tmp_path, 20)
    victims = below(process, WORKER)
    victims[-1].suspend()
    begin = time.monotonic()
    wait_until(lambda: not victims[-1].is_running() or victims[-1].status() == psutil.STATUS_ZOMBIE, tmp_path)
    assert time.monotonic() - begin < 45
    assert weights(finish(process, tmp_path)) == weights(undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize("for_good", [False, True], ids=["a while", "for good"])
def test_a_full_disk_costs_no_whole_checkpoint_and_no_point(for_good, alone, tmp_path, small_disk):
    undisturbed, folder = alone
    process = start(tmp_path, f"storage={small_disk}/runs")
    wait_for_checkpoint(small_disk, 10)
    with open(small_disk / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1024))
    wait_until(lambda: "could be written" in said(tmp_path), tmp_path)
    if for_good:
        process.communicate(timeout=200)
        assert process.returncode == 1 and "Make room" in said(tmp_path) and "Traceback" not in said(tmp_path)
    (small_disk / "filler").unlink()
    result = finish(start(tmp_path, f"storage={small_disk}/runs", "--resume") if for_good else process, tmp_path)
    assert weights(result) == weights(undisturbed)
    assert points(tmp_path, result) == points(folder, undisturbed)


def test_a_process_in_which_nothing_moves_ends_itself_and_says_so_before():
    script = (
        "import time; from workflows.training.watchdog import Watchdog\n"
        "dog = Watchdog(2, lambda event: print(event['text'], flush=True))\n"
        "for _ in range(30): dog.reset(); time.sleep(0.1)\n"
        "dog.pause(); time.sleep(3); print('rested', flush=True); dog.reset(); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and "most recent call first" in done.stderr
    rested, note = done.stdout.splitlines()
    assert (
        rested == "rested" and "made no progress for 1.6 s; at 2 s it is ended and replaced (workers.timeout)" in note
    )


def test_a_request_to_stop_arrives_however_late_the_answers_are(monkeypatch):
    """An event is sent at every step, and the answer to each says whether to stop."""
    mailbox = SimpleNamespace(stop=False, sent=0)
    mailbox.put = SimpleNamespace(remote=lambda event: (mailbox.sent, mailbox.stop))
    monkeypatch.setattr("ray.get", lambda replies: [stop for _, stop in replies])
    monkeypatch.setattr(
        "ray.wait",
        lambda replies, num_returns, timeout: (
            [r for r in replies if r[0] < mailbox.sent - 2],
            [r for r in replies if r[0] >= mailbox.sent - 2],
        ),
    )
    channel = EventChannel(mailbox)
    for mailbox.sent in range(20):
        mailbox.stop = mailbox.sent >= 10
        channel({"event": "step"})
        assert channel.stop_requested() == (mailbox.sent >= 13)
    assert channel.stop_requested()


def test_a_worker_without_events_asks_whether_to_stop(session):
    with relay(Console(show=False).event) as channel:
        channel.request_stop()
        wait_for_true(channel.stop_requested, 10)


def test_no_worker_is_alive_once_there_was_no_heartbeat_for_a_while(session, monkeypatch):
    monkeypatch.setattr("workflows.cluster.relay.HEARTBEAT", 0.1)
    with relay(Console(show=False).event) as channel:
        assert channel.no_worker_alive()  # none has started
        with channel.heartbeat():
            wait_for_true(lambda: not channel.no_worker_alive(), 10)
            time.sleep(1.5)
            assert not channel.no_worker_alive()
        wait_for_true(channel.no_worker_alive, 10)


def wait_for_true(what, seconds):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_after_a_signal_work_without_a_live_worker_is_abandoned():
    begin, stop = time.monotonic(), StopSignal()
    stop.signal = signal.SIGTERM
    run_interruptibly(lambda: time.sleep(30), stop, lambda: None, lambda: time.monotonic() - begin > 0.5)
    assert 0.5 < time.monotonic() - begin < 10


def test_the_error_that_lost_the_workers_is_named_and_not_those_that_followed():
    from ray.exceptions import OutOfMemoryError
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

    peer = UserExceptionWithTraceback(RuntimeError("Connection closed by peer"), "")
    own = UserExceptionWithTraceback(KeyError("lost"), "")
    gone = WorkerHealthCheckFailedError("A worker health check failed.", OutOfMemoryError("it was killed:\n SIGKILL"))
    full = UserExceptionWithTraceback(Unwritable("no room"), "")
    assert "at last worker 1: KeyError: 'lost'. --resume" in _failure_message({0: peer, 1: own}, 3)
    assert "more than 3 times (workers.failures); at last worker 1: OutOfMemoryError" in _failure_message(
        {0: peer, 1: gone}, 3
    )
    assert "killed: SIGKILL" in _failure_message({0: peer, 1: gone}, 3) and "(workers.failures=0)" in _failure_message(
        {0: own}, 0
    )
    assert _failure_message({0: full, 1: gone}, 3) == "no room"


def test_the_reason_why_workers_could_not_start_is_named():
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerGroupStartupTimeoutError

    from workflows.cluster.launch import _startup_failure
    from workflows.config.settings import Workers

    wanted = Workers(count=4, failures=2, wait=90)
    late = _startup_failure(WorkerGroupStartupTimeoutError(4), wanted)
    assert "workers.count=4 found no room in 90 s (workers.wait), 3 times" in late and "--resume" in late
    elastic = Workers(count=[2, 4], wait=90)
    assert "workers.count=[2, 4] found no room in 60 s" in _startup_failure(WorkerGroupStartupTimeoutError(2), elastic)
    assert "workers could not connect: refused. --resume" in _startup_failure(
        WorkerGroupStartupFailedError("workers could not connect: refused"), wanted
    )


STATEFUL = ["workflows/experiments/chorales.yaml", "task.window=8", "training.epochs=15"]  # lanes carry a state


@pytest.mark.soak
@pytest.mark.parametrize(
    ("more", "step", "name"), [([], 20, "demand"), (STATEFUL, 100, "chorales")], ids=["windows", "stateful"]
)
def test_a_killed_driver_is_resumed_to_the_same_weights(more, step, name, alone, tmp_path):
    whole = finish(start(tmp_path, *more), tmp_path) if more else alone[0]
    broken = tmp_path / "broken"
    broken.mkdir()
    process = start(broken, *more)
    wait_for_checkpoint(broken, step)
    process.kill()
    process.wait()
    assert not list(broken.glob("runs/*/result.json"))  # or nothing was interrupted
    result = finish(start(broken, *more, "--resume"), broken)
    assert weights(result) == weights(whole)
    assert len(list(broken.glob(f"runs/{name}-*"))) == 1
    for steps in points(broken, result).values():
        assert steps == sorted(set(steps))


@pytest.mark.soak
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_another_number_of_workers_goes_on_with_the_rows_that_are_left(before, after, tmp_path):
    """Each epoch is held against the plan: rows that were left out, or seen twice, would end the run."""
    double = ["training.precision=fp64", "model.dropout=0"]
    undisturbed = finish(start(tmp_path, *double, "name=whole"), tmp_path)
    process = start_with_cpus(tmp_path, 4, f"workers.count={before}", *double)
    wait_for_checkpoint(tmp_path, 10, "demand")
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("runs/demand-*/result.json"))  # or nothing was interrupted
    result = finish(start_with_cpus(tmp_path, 4, f"workers.count={after}", *double, "--resume"), tmp_path)
    assert result["steps"] == undisturbed["steps"]
    for one, other in zip(undisturbed["history"], result["history"], strict=True):
        for name in ("train/loss", "validation/mse"):
            assert other[name] == pytest.approx(one[name], rel=1e-6)
    for steps in points(tmp_path, result).values():
        assert steps == sorted(set(steps))


@pytest.mark.soak
@pytest.mark.parametrize(
    ("count", "number"), [(2, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGINT)]
)
def test_a_signal_ends_training_after_its_step_with_a_checkpoint(tmp_path, count, number):
    process = start(tmp_path, "training.epochs=500", "training.checkpoint_steps=0", f"workers.count={count}")
    wait_until(
        lambda: any("train/step_loss" in p.read_text() for p in tmp_path.glob("runs/*/tracking.jsonl")), tmp_path
    )
    before = {p.parent.name for p in tmp_path.glob("runs/*/checkpoints/step-*/manifest.json")}
    process.send_signal(number)
    process.communicate(timeout=60)
    output = said(tmp_path)
    assert process.returncode == 128 + number and "--resume demand-" in output and "Traceback" not in output
    assert f"workers.count={count}" in output
    newest = max(tmp_path.glob("runs/*/checkpoints/step-*"))
    assert newest.name not in before and (newest / "manifest.json").exists()
    assert run_of(tmp_path).info.status == "KILLED"


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("begin", "count", "more"),
    [(lambda folder, *more: start_with_cpus(folder, 3, *more), 3, []), (start, 2, STATEFUL)],
    ids=["windows", "stateful"],
)
def test_workers_one_killed_end_in_the_same_weights(begin, count, more, tmp_path):
    folders = [tmp_path / "whole", tmp_path / "broken"]
    for folder in folders:
        folder.mkdir()
    whole = finish(begin(folders[0], *more, f"workers.count={count}"), folders[0])
    broken = killed_worker_run(begin(folders[1], *more, f"workers.count={count}"), folders[1], count)
    assert weights(broken) == weights(whole)


@pytest.mark.soak
def test_a_shard_that_is_removed_while_it_streams_is_named(tmp_path):
    more = ["training.epochs=500", "dataset.cache_bytes=0"]
    process = start(tmp_path, *more)
    wait_until(lambda: "epoch 1/" in said(tmp_path), tmp_path)
    (shard,) = (p for p in tmp_path.glob("runs/prepared/*/*.parquet") if not p.stem.endswith("index"))
    shard.unlink()
    process.communicate(timeout=120)
    output = said(tmp_path)
    assert process.returncode == 2 and "Traceback" not in output
    assert f"{shard}: prepared data is missing; delete" in output
    shutil.rmtree(shard.parent)
    process = start(tmp_path, *more, "--resume")
    wait_until(lambda: ", from step " in said(tmp_path), tmp_path)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


@pytest.mark.soak
def test_workers_that_cannot_read_a_shard_for_a_while_are_replaced(undisturbed, tmp_path):
    process = start(tmp_path, "workers.count=2", "workers.failures=20", "dataset.cache_bytes=0")
    wait_until(lambda: list(tmp_path.glob("runs/prepared/*/manifest.json")), tmp_path)
    (shard,) = (p for p in tmp_path.glob("runs/prepared/*/*.parquet") if not p.stem.endswith("index"))
    with unreadable(shard):  # before the workers read it
        seen = set()
        wait_until(lambda: seen.update(p.pid for p in below(process, WORKER)) or len(seen) > 2, tmp_path)
    assert weights(finish(process, tmp_path)) == weights(undisturbed)
    assert "delete" not in said(tmp_path)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A URI of a folder in an object store."""
    for key, value in {**ACCESS, "HOME": str(tmp_path)}.items():  # where what is local of such a run is kept
        monkeypatch.setenv(key, value)
    store = ObjectStore(tmp_path)
    yield store.uri("runs")
    store.stop()


@pytest.mark.soak
def test_a_killed_run_in_an_object_store_is_resumed_to_the_same_weights_and_used(bucket, undisturbed, tmp_path):
    process = start(tmp_path, "workers.count=2", f"storage={bucket}")
    runs = Storage(bucket)
    wait_until(
        lambda: any(
            int(step[5:]) >= 20
            for name in runs.names()
            if name.startswith("demand-")
            for step in (runs / name / "checkpoints").names()
            if step.startswith("step-")
        ),
        tmp_path,
    )
    process.kill()
    process.wait()
    result = finish(start(tmp_path, "workers.count=2", f"storage={bucket}", "--resume"), tmp_path)
    assert Storage(result["bundle"]).read("model.safetensors") == weights(undisturbed)
    run = runs / result["run"]
    assert {"bundle", "report.html", "result.json"} <= set(run.names()) and run.name == result["run"]
    assert [p.name for p in (tmp_path / ".cache/rondo").iterdir()] == [result["run"]]

    def rondo(*words):
        done = subprocess.run([sys.executable, "-m", "workflows", *words, "--json"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    measured = rondo("evaluate", result["bundle"], f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    assert measured["metrics"]["test/mae"] == pytest.approx(result["metrics"]["test/mae"], rel=1e-6)
    assert rondo("sync", bucket)["settled"] == [result["run"]]
    rondo("report", run.uri)


@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 2])
def test_data_larger_than_the_object_store_is_trained_on(count, tmp_path):
    """128 MB of rows, all of them asked to stay in an object store of 80 MB, the smallest that Ray makes."""
    rows, steps, channels = 1000, 64, 500
    flat = pa.array(np.random.default_rng(0).standard_normal(rows * steps * channels, np.float32))
    values = pa.FixedSizeListArray.from_arrays(pa.FixedSizeListArray.from_arrays(flat, channels), steps)
    nested = values.cast(pa.list_(pa.list_(pa.float32())))
    table = pa.table({"x": nested, "y": ["a", "b"] * (rows // 2)})
    pq.write_table(table, tmp_path / "wide.parquet", row_group_size=100)
    options = {
        "name": "wide",
        "dataset": {
            "kind": "sequences",
            "path": f"{tmp_path}/wide.parquet",
            "values": "x",
            "label": "y",
            "split": {"validation": 0.1, "test": 0.1},
        },
        "task": {"kind": "classify"},
        "model": {"family": "gru", "hidden_size": 4},
        "training": {"epochs": 2},
        "workers": {"count": count, "cpus": 1},
        "storage": f"{tmp_path}/runs",
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    script = (
        "import json, ray; ray.init(address='local', num_cpus=2, include_dashboard=False, log_to_driver=False, "
        "object_store_memory=80_000_000)\nfrom workflows.train import train\n"
        f"print(json.dumps(train({options!r})))"
    )
    result = finish(launch(tmp_path, [sys.executable, "-c", script]), tmp_path)
    assert len(result["history"]) == 2


@pytest.mark.soak
def test_storage_that_refuses_at_the_end_ends_the_run_and_resuming_it_finishes(undisturbed, tmp_path):
    process = start(tmp_path, "workers.count=2", "workers.failures=1")
    wait_for_checkpoint(tmp_path, 10)
    (run,) = tmp_path.glob("runs/demand-*")
    (run / "bundle").touch()  # where a folder is to be
    process.communicate(timeout=200)
    output = said(tmp_path)
    assert process.returncode == 1 and "could not be read or written at the end" in output and "Traceback" not in output
    (run / "bundle").unlink()
    assert weights(finish(start(tmp_path, "workers.count=2", "--resume"), tmp_path)) == weights(undisturbed)


@pytest.fixture
def nodes():
    """A cluster of two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def start_on(nodes, folder, *more):
    return launch(folder, command(folder, "training.epochs=2000", *more), {**os.environ, "RAY_ADDRESS": nodes.address})


def lose_a_node(nodes):
    nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)


def train_on_both(nodes, folder, *more):
    """A training with a worker on each node, once it has ended an epoch."""
    process = start_on(nodes, folder, "workers.count=2", *more)
    wait_until(lambda: "epoch 1/" in said(folder), folder)
    return process


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_workers_go_and_come_with_their_nodes(nodes, tmp_path):
    def begins():
        """The number of workers, each time that training has begun."""
        return [int(n) for n in re.findall(r" rows an epoch, (\d+) worker", (tmp_path / "stderr").read_text())]

    process = start_on(nodes, tmp_path, "workers.count=[1, 2]")
    wait_until(lambda: begins() == [2], tmp_path, 300)
    begin = time.monotonic()
    lose_a_node(nodes)
    wait_until(lambda: begins()[-1] == 1, tmp_path, 300)
    print(f"went on with one worker {time.monotonic() - begin:.0f} s after its node was killed")
    nodes.add_node(num_cpus=1)
    begin = time.monotonic()
    wait_until(lambda: begins()[-1] == 2, tmp_path, 300)  # Ray Train looks for more once a minute
    print(f"and with two {time.monotonic() - begin:.0f} s after another node joined")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143 and "--resume demand-" in said(tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_run_whose_node_does_not_come_back_ends_and_says_what_is_missing(nodes, tmp_path):
    process = train_on_both(nodes, tmp_path, "workers.failures=1")
    lose_a_node(nodes)
    process.communicate(timeout=400)
    output = said(tmp_path)
    assert process.returncode == 1 and "workers.count=2 found no room in 60 s (workers.wait), 2 times" in output
    assert "Traceback" not in output


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_signal_is_heard_while_no_worker_is_there(nodes, tmp_path):
    process = train_on_both(nodes, tmp_path, "workers.wait=600")
    lose_a_node(nodes)
    time.sleep(45)  # Ray has noticed, and waits for another
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143 and "--resume demand-" in said(tmp_path) and "Traceback" not in said(tmp_path)
    assert run_of(tmp_path).info.status == "KILLED"


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_a_node_that_is_to_be_taken_away_is_left_with_a_checkpoint(nodes, tmp_path):
    """Training continues at that step when there is another node for it."""
    process = train_on_both(nodes, tmp_path, "training.checkpoint_steps=0")
    (leaving,) = nodes.worker_nodes
    begin = time.monotonic()
    subprocess.run(
        [
            Path(sys.executable).parent / "ray",
            "drain-node",
            "--address",
            nodes.address,
            "--node-id",
            leaving.node_id,
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "30",
        ],
        check=True,
    )
    wait_until(
        lambda: [p for p in tmp_path.glob("runs/*/checkpoints/step-*/manifest.json") if int(p.parent.name[5:]) % 229],
        tmp_path,
        30,
    )  # not of the end of an epoch
    print(f"a checkpoint {time.monotonic() - begin:.1f} s after the notice")
    nodes.add_node(num_cpus=1)
    wait_until(lambda: ", from step " in said(tmp_path), tmp_path)
    (step,) = re.findall(r", from step (\d+)", (tmp_path / "stderr").read_text())
    print(f"continues from step {step} {time.monotonic() - begin:.0f} s after the notice")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 143
