"""One training, hurt again and again at moments that a seed chooses, ends as the one that nobody disturbed."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from tests.faults import Injector, Run
from tests.lineage import lineage
from workflows.tracking.mlflow import connect
from workflows.train import train as train_here

ROWS, BATCH = 14_600, 64  # of the default data
EPOCHS = 40
FEW = ["worker_killed", "driver_told", "checkpoint_damaged"]
MANY = (
    2 * ["worker_killed", "worker_killed_again"]
    + 3 * ["driver_killed"]
    + 3 * ["driver_told"]
    + 2 * ["worker_hangs", "raylet_killed", "record_killed", "checkpoint_damaged", "disk_full"]
)


@pytest.fixture
def place(shared_ray, tmp_path, monkeypatch):
    """The temporary folder of runs, and of Ray: what they leave lies here. That of the tests' own Ray is another."""
    folder = Path(tempfile.mkdtemp(prefix="rondo"))  # short: names of sockets have 107 characters
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def settings(folder, epochs):
    return [
        "workers.count=2",
        "workers.cpus=1",
        "workers.failures=50",
        "workers.timeout=20",
        "model.hidden_size=64",
        f"training.batch_size={BATCH}",
        f"training.epochs={epochs}",
        "training.checkpoint_steps=50",
        f"tracking.uri=sqlite:///{folder}/mlflow.db",
    ]


def train(folder, storage, epochs, faults=(), seed=0):
    """The run, its result, and the seconds that it took."""
    folder.mkdir()
    begin = time.monotonic()
    run = Run(folder, storage, settings(folder, epochs))
    try:
        Injector(seed, run, faults, epochs * -(-ROWS // BATCH)).hurt()
        result = run.finish(200 + 20 * epochs)
        seconds = time.monotonic() - begin
        psutil.wait_procs(run.processes(), timeout=20)
    finally:
        orphans = run.end()
    assert not orphans
    return run, result, seconds


def record(folder, result):
    """Steps of metrics as MLflow has them, and its status."""
    client = connect(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("demand").experiment_id])
    return run.info.status, {
        name: [p.step for p in client.get_metric_history(result["run_id"], name)]
        for name in ("train/loss", "train/step_loss", "validation/mse")
    }


@pytest.mark.parametrize(
    ("faults", "epochs"),
    [(FEW, 2), pytest.param(MANY, EPOCHS, marks=[pytest.mark.soak, pytest.mark.timeout(3000)])],
    ids=["few", "many"],
)
def test_a_training_that_is_hurt_ends_as_one_that_is_not(faults, epochs, place, tmp_path, request):
    shared = set(Path("/dev/shm").iterdir())
    disk = request.getfixturevalue("small_disk") if "disk_full" in faults else tmp_path / "hurt"
    whole = tmp_path / "whole"
    if faults is MANY:
        _, expected, undisturbed = train(whole, whole / "runs", epochs)
    else:  # the same, but in the Ray that is there
        whole.mkdir()
        expected, undisturbed = (
            train_here(None, overrides=[*settings(whole, epochs), f"storage={whole}/runs"], progress=False),
            0.0,
        )
    run, result, seconds = train(tmp_path / "hurt", disk / "runs", epochs, faults)

    bundles = [Path(r["bundle"]) / "model.safetensors" for r in (expected, result)]
    assert bundles[0].read_bytes() == bundles[1].read_bytes()
    assert record(tmp_path / "hurt", result) == record(tmp_path / "whole", expected)

    steps = lineage(run.log)
    for epoch in range(epochs):  # replays are no part of what the weights were made of
        ids = sorted(i for one in steps if one.epoch == epoch and not one.replayed for i in one.ids)
        assert ids == list(range(ROWS))
    replayed = sum(one.replayed for one in steps)
    print(
        f"{len(faults)} faults: {seconds:.0f} s, of them {run.restarts:.0f} s of restarts; undisturbed "
        f"{undisturbed:.0f} s; {replayed / 2:.0f} of {len(steps) / 2 - replayed / 2:.0f} steps trained again"
    )
    assert replayed
    if faults is MANY:  # of a short run, the start of processes is the most
        assert seconds - run.restarts < 1.5 * undisturbed
        assert set(Path("/dev/shm").iterdir()) <= shared  # where nobody else is at work
    assert {p.name.partition("_")[0] for p in place.iterdir()} <= {"ray", "torchinductor"}  # logs, and a cache
