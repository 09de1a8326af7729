"""An MLflow server that goes away in the middle of a run, for good, and a run that is killed: nothing is lost."""

from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from tests.faults import Server, finish, launch, said, wait_until
from workflows.__main__ import main
from workflows.tracking.mlflow import connect


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.ready()
    yield server
    server.stop()


def start(folder, uri, *more):
    return launch(
        folder,
        [
            sys.executable,
            "-m",
            "workflows",
            "train",
            "training.epochs=4",
            "training.log_steps=2",
            "model.hidden_size=16",
            "dataset.series=4",
            f"storage={folder}/runs",
            f"tracking.uri={uri}",
            "--json",
            *more,
        ],
    )


def spool(folder):
    """Of the only run there: its lines."""
    return [json.loads(line) for path in folder.glob("runs/*/tracking.jsonl") for line in path.read_text().splitlines()]


def steps(lines, metric):
    return [line["step"] for line in lines if line["op"] == "metrics" and metric in line["values"]]


def sync(*words):
    done = CliRunner().invoke(main, ["sync", *words, "--json"])
    return done, json.loads(done.stdout.splitlines()[-1]) if done.exit_code == 0 else {}


def test_a_run_whose_server_goes_away_ends_well_and_its_record_is_delivered_later(server, tmp_path):
    process = start(tmp_path, server.uri.replace("http://", "http://me:secret@"))
    wait_until(lambda: any(p.read_text() for p in tmp_path.glob("runs/*/tracking.jsonl.ack")), tmp_path)
    server.stop()
    result = finish(process, tmp_path)
    assert "MLflow has not received everything yet" in said(tmp_path) and "secret" not in said(tmp_path)
    done, _ = sync(str(tmp_path / "runs"))
    assert done.exit_code == 1 and f"error: {result['run']}: tracking.uri=" in done.stderr
    assert "no MLflow server answers there" in done.stderr and "secret" not in done.output
    server.launch()
    server.ready()
    done, found = sync(str(tmp_path / "runs" / result["run"]), f"tracking.uri={server.uri}")
    assert found["delivered"] == [result["run"]]
    client = connect(server.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "demand"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["rondo.run"] == result["run"]
    for metric in ("train/step_loss", "validation/mse", "test/mse"):
        assert [p.step for p in client.get_metric_history(run.info.run_id, metric)] == steps(spool(tmp_path), metric)
    assert {"report.html", "bundle", "pictures"} <= {a.path for a in client.list_artifacts(run.info.run_id)}
    assert sync(str(tmp_path / "runs"), f"tracking.uri={server.uri}")[1]["settled"] == [result["run"]]


def test_a_killed_run_is_ended_on_record_and_one_that_goes_on_is_left_alone(tmp_path):
    process = start(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", "training.epochs=500")
    wait_until(lambda: steps(spool(tmp_path), "train/step_loss"), tmp_path)
    assert len(sync(str(tmp_path / "runs"))[1]["going_on"]) == 1
    process.kill()
    process.wait()
    _, found = sync(str(tmp_path / "runs"))
    assert len(found["delivered"]) == 1
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("demand").experiment_id])
    assert run.info.status == "KILLED"
    delivered = [p.step for p in client.get_metric_history(run.info.run_id, "train/step_loss")]
    assert delivered == steps(spool(tmp_path), "train/step_loss")


@pytest.mark.soak
def test_a_run_that_was_killed_after_its_training_is_resumed_though_its_record_is_delivered(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    process = start(tmp_path, uri, "training.epochs=1")
    wait_until(lambda: list(tmp_path.glob("runs/*/result.json")), tmp_path)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("runs/*/report.html"))  # or it was at its end
    assert len(sync(str(tmp_path / "runs"))[1]["delivered"]) == 1
    result = finish(start(tmp_path, uri, "training.epochs=1", "--resume"), tmp_path)
    client = connect(uri)
    run = client.get_run(result["run_id"])
    assert run.info.status == "FINISHED" and "test/mse" in run.data.metrics
    assert {"report.html", "bundle"} <= {a.path for a in client.list_artifacts(result["run_id"])}


def test_what_mlflow_refuses_is_not_called_delivered(tmp_path):
    from workflows.tracking.spool import Tracker

    uri, run = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "runs" / "demand-1"
    run.mkdir(parents=True)
    (run / "experiment.yaml").write_text(f"tracking: {{uri: '{uri}'}}")
    (run / "gone").write_text("")
    tracker = Tracker("http://127.0.0.1:9", run / "tracking.jsonl")
    tracker.begin("demand-1", experiment="demand", run_name="demand-1", params={}, tags={})
    tracker.artifact("demand-1", run / "gone")
    tracker.end("demand-1", "FINISHED")
    tracker.close(0.1)
    (run / "gone").unlink()
    done, _ = sync(str(tmp_path / "runs"))
    assert done.exit_code == 1 and "MLflow refused 1 records: artifact of run 'demand-1'" in done.stderr


def test_a_folder_without_runs_is_refused(tmp_path):
    done, _ = sync(str(tmp_path))
    assert done.exit_code == 2 and "neither a run nor a folder of runs" in done.stderr
    done, _ = sync(str(tmp_path), "model.family=gru")
    assert done.exit_code == 2 and "sync takes a folder and tracking.uri=URI" in done.stderr
