"""A whole run, in this process and in Ray Train's own: record, pictures, bundle, predictions."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.csv
import pytest
from click.testing import CliRunner

from tests.faults import unreadable
from workflows.__main__ import main
from workflows.cluster import connect
from workflows.config.load import load
from workflows.config.settings import Workers
from workflows.errors import Interrupted
from workflows.train import train

SMALL = ["training.epochs=2", "model.hidden_size=16", "dataset.series=2", "dataset.days=30", "training.log_steps=5"]


@pytest.fixture(scope="module")
def folder(shared_ray, tmp_path_factory):
    return tmp_path_factory.mktemp("train")


def overrides(folder, *more):
    return [*SMALL, f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db", *more]


@pytest.fixture(scope="module")
def result(folder):
    return train(None, overrides=overrides(folder), progress=False)


def record(folder, run_id):
    from workflows.tracking.mlflow import connect

    return connect(f"sqlite:///{folder}/mlflow.db"), run_id


def test_workers_share_the_cpus_of_the_ray_that_is_there(folder):
    assert [connect.connect(Workers(count=count)).cpus for count in (1, 2)] == [3, 1]  # not this machine's


def test_the_result_names_metrics_as_mlflow_has_them(folder, result):
    client, run_id = record(folder, result["run_id"])
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name in ("train/loss", "validation/mse", "test/mse", "test/mae", "test/mase", "test/smape", "test/coverage"):
        assert run.data.metrics[name] == pytest.approx(result["metrics"][name], rel=1e-6), name
    assert run.data.metrics["baseline/naive/test/mse"] == pytest.approx(result["baselines"]["naive"]["test/mse"])
    assert run.data.params["model.family"] == "gru" and run.data.params["training.epochs"] == "2"
    times = {"time/data_ms", "time/compute_ms", "time/communication_ms"}
    assert {*times, "train/learning_rate"} <= run.data.metrics.keys()
    *epochs, final = client.get_metric_history(run_id, "validation/mse")
    assert [p.step for p in epochs] == [h["step"] for h in result["history"]]
    assert (final.step, final.value) == (result["steps"] + 1, pytest.approx(result["metrics"]["validation/mse"]))
    assert run.inputs.dataset_inputs[0].dataset.digest


def test_pictures_experiment_and_bundle_are_on_record(folder, result):
    client, run_id = record(folder, result["run_id"])
    found = {a.path for top in ("", "pictures", "bundle") for a in client.list_artifacts(run_id, top)}
    assert {"experiment.yaml", "pictures/learning_curve.png", "pictures/forecasts.png", "bundle/bundle.json"} <= found


def test_the_model_beats_the_naive_forecast_and_not_what_is_reachable(result):
    assert result["best_reachable"]["mse"] < result["metrics"]["test/mse"] < result["baselines"]["naive"]["test/mse"]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(folder, result):
    again = train(None, overrides=overrides(folder), progress=False)
    other = train(None, overrides=overrides(folder, "training.seed=1"), progress=False)
    weights = [(Path(r["bundle"]) / "model.safetensors").read_bytes() for r in (result, again, other)]
    assert weights[0] == weights[1] != weights[2]


def test_two_workers_of_ray_train_reach_what_one_reaches(folder, result):
    two = train(None, overrides=overrides(folder, "workers.count=2"), progress=False)
    assert two["steps"] == result["steps"]
    assert two["metrics"]["test/mse"] == pytest.approx(result["metrics"]["test/mse"], rel=0.02)
    client, run_id = record(folder, two["run_id"])
    assert client.get_run(run_id).data.metrics["time/communication_ms"] > 0


def test_streamed_training_ends_in_the_weights_of_cached_training(folder, result):
    streamed = train(None, overrides=overrides(folder, "dataset.cache_bytes=0"), progress=False)
    assert (Path(streamed["bundle"]) / "model.safetensors").read_bytes() == (
        Path(result["bundle"]) / "model.safetensors"
    ).read_bytes()


@pytest.fixture
def failing_disk(folder, result, monkeypatch):
    """The only shard of the prepared data cannot be read until that has been noted; what was noted."""
    noted = []
    [shard] = (p for p in Path(folder).glob("runs/prepared/*/*.parquet") if "index" not in p.stem)
    monkeypatch.setattr("workflows.training.retry.PAUSE", 0)
    with unreadable(shard) as mend:

        def on_event(self, event):
            if event["event"] == "note":
                noted.append(event["text"])
                mend()

        monkeypatch.setattr("workflows.console.Console.event", on_event)
        yield shard, noted


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30], ids=["streamed", "cached"])
def test_a_disk_that_fails_for_a_while_changes_nothing(folder, result, failing_disk, cache_bytes):
    shard, noted = failing_disk
    made = train(None, overrides=overrides(folder, f"dataset.cache_bytes={cache_bytes}"), progress=False)
    assert (Path(made["bundle"]) / "model.safetensors").read_bytes() == (
        Path(result["bundle"]) / "model.safetensors"
    ).read_bytes()
    assert len(noted) == 1 and noted[0].startswith(f"{shard} cannot be read now") and "tried again" in noted[0]


def test_a_disk_that_fails_for_good_ends_the_run_with_advice_that_harms_no_data(folder, failing_disk, monkeypatch):
    monkeypatch.setattr("workflows.console.Console.event", lambda self, event: None)
    found = CliRunner().invoke(main, ["train", *overrides(folder, "workers.failures=1", "dataset.cache_bytes=0")])
    assert found.exit_code == 1 and "Traceback" not in found.stderr and "delete" not in found.stderr
    assert re.search(
        rf"{failing_disk[0]} cannot be read now: .*; it was tried 2 times \(workers.failures=1\)\. Start "
        "again once storage is back, a training with --resume",
        found.stderr,
    )


def test_a_storage_uri_works_as_a_folder_does(folder, result):
    by_uri = train(None, overrides=[*overrides(folder), f"storage=file://{folder}/by_uri"], progress=False)
    assert by_uri["metrics"] == result["metrics"]


@pytest.mark.parametrize(
    "options", [("schedule=plateau", "precision=bf16"), ("schedule=constant", "accumulate=2", "clip=0")]
)
def test_every_choice_of_the_loop_trains(folder, options):
    """Those of other tests apart: schedule=cosine, precision=fp32 and fp64."""
    changes = [f"training.{option}" for option in options]
    found = train(None, overrides=overrides(folder, "training.epochs=1", *changes), progress=False)
    assert np.isfinite(found["metrics"]["test/mse"])


def test_patience_ends_training_and_the_best_epoch_is_kept(folder):
    found = train(
        None,
        overrides=overrides(folder, "training.epochs=30", "training.patience=2", "training.learning_rate=0.1"),
        progress=False,
    )
    judged = [h["validation/mae"] for h in found["history"]]
    assert len(judged) < 30 and judged.index(min(judged)) == len(judged) - 3
    assert found["metrics"]["validation/mae"] == pytest.approx(min(judged), rel=1e-6)


def test_a_diverged_run_says_what_to_look_at_and_is_recorded_as_failed(folder):
    words = [
        "train",
        *overrides(
            folder,
            "training.learning_rate=1e30",
            "training.clip=0",
            "name=diverged",
            "training.schedule=constant",
            "training.warmup=0",
        ),
    ]
    found = CliRunner().invoke(main, words)
    assert found.exit_code == 1 and re.search(r"gradient is (nan|inf).*training.learning_rate", found.stderr)
    from workflows.tracking.mlflow import connect

    client = connect(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("diverged").experiment_id])
    assert [r.info.status for r in runs] == ["FAILED"]


def test_evaluate_reads_bundles_in_double_precision_and_in_stores_that_are_no_folders(folder):
    made = train(None, overrides=overrides(folder, "training.epochs=1", "training.precision=fp64"), progress=False)
    memory = fsspec.filesystem("memory")
    memory.put(made["bundle"], "/box/bundle", recursive=True)
    for bundle in (made["bundle"], "fsspec+memory://box/bundle"):
        found = CliRunner().invoke(main, ["evaluate", bundle, "--json"])
        assert found.exit_code == 0, found.stderr
        metrics = json.loads(found.stdout.splitlines()[-1])["metrics"]
        assert metrics["test/mse"] == pytest.approx(made["metrics"]["test/mse"], rel=1e-9)


@pytest.fixture
def away(monkeypatch):
    """MLflow seems to be there when a run begins, and is waited for at its end, a little."""
    monkeypatch.setattr("workflows.tracking.mlflow.check", lambda uri: None)
    monkeypatch.setattr("workflows.training.run.DELIVERY", 2.0)


def test_passwords_stay_out_of_everything_that_is_written(folder, away):
    made = train(
        None,
        overrides=overrides(folder, "training.epochs=1", "name=secret", "tracking.uri=http://me:hunter2@127.0.0.1:9"),
        progress=False,
    )
    run = Path(made["bundle"]).parent
    assert "http://127.0.0.1:9" in (run / "experiment.yaml").read_text()
    written = [p for p in run.rglob("*") if p.is_file()]
    assert len(written) > 8 and not [p for p in written if b"hunter2" in p.read_bytes()]


def test_a_record_that_waits_is_delivered_by_resuming(folder, away, monkeypatch):
    words = overrides(folder, "training.epochs=1", "name=away")
    without = train(None, overrides=[*words, "tracking.uri=http://127.0.0.1:9"], progress=False)
    assert without["run_id"] is None
    monkeypatch.undo()
    made = train(None, overrides=words, resume="latest", progress=False)
    assert (made["run"], made["metrics"]) == (without["run"], without["metrics"])
    client, run_id = record(folder, made["run_id"])
    assert client.get_run(run_id).data.metrics["test/mse"] == pytest.approx(made["metrics"]["test/mse"])
    with pytest.raises(ValueError, match="no unfinished run of 'away'"):
        train(None, overrides=words, resume="latest", progress=False)


def test_a_run_does_not_go_on_with_other_data(folder, tmp_path):
    def write(times):
        lines = ["t,y", *(f"{t},{times * math.sin(t)}" for t in range(400))]
        (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")

    write(1)
    options = {
        "name": "moved",
        "dataset": {
            "kind": "timeseries",
            "path": str(tmp_path / "a.csv"),
            "time": "t",
            "targets": ["y"],
            "split": {"validation": 60, "test": 60},
        },
        "task": {"kind": "forecast", "lookback": 24, "horizon": 4},
        "model": {"family": "rnn", "hidden_size": 8},
        "training": {"epochs": 2},
        "storage": f"{tmp_path}/runs",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    made = train(options, progress=False)
    (Path(made["bundle"]).parent / "result.json").unlink()  # as if it had stopped before its end
    write(-50)
    with pytest.raises(ValueError, match="was trained on other data: the files of the dataset have changed"):
        train(options, resume=made["run"], progress=False)


def test_ctrl_c_stops_epochs_of_a_single_step(folder):
    calls = []

    def stop():
        calls.append(1)
        return len(calls) == 3

    from workflows.training import worker

    with pytest.MonkeyPatch.context() as patched:
        hooks = worker._hooks
        patched.setattr(worker, "_hooks", lambda *a: dataclasses.replace(hooks(*a), should_stop=stop))
        with pytest.raises(Interrupted, match=r"demand.yaml --resume demand-\S+ .*training.batch_size=100000"):
            train(None, overrides=overrides(folder, "training.epochs=9", "training.batch_size=100000"), progress=False)
    assert len(calls) == 3


class Clock:
    """The time of the training loop: a millisecond for each look, and what slow parts add. No machine is slower."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 0.001
        return self.now

    def slowed(self, function, seconds):
        def slow(*given):
            self.now += seconds
            return function(*given)

        return slow


def slow_data(patched, clock):
    from datasets.pipeline.ingest import Ingest

    patched.setattr(Ingest, "_cut", clock.slowed(Ingest._cut, 0.05))


def slow_storage(patched, clock):
    from datasets.pipeline.storage import Storage

    patched.setattr(Storage, "write", clock.slowed(Storage.write, 0.05))


@pytest.mark.parametrize(
    ("slow", "part", "said", "steps"),
    [
        (slow_data, "data", "of the time went into waiting for data; larger batches", 0),
        (
            slow_storage,
            "checkpoint",
            "of the time went into writing checkpoints; a larger training.checkpoint_steps",
            5,
        ),
        (slow_storage, "checkpoint", "of the time went into writing checkpoints; each epoch ends with one", 0),
        (slow_storage, "checkpoint", "of the time went into writing checkpoints; each epoch ends with one", 10**6),
    ],
)
def test_a_slow_run_says_why(slow, part, said, steps, folder, capfd):
    from workflows.training import loop, meter, worker_group

    with pytest.MonkeyPatch.context() as patched:
        clock = Clock()
        for module in (loop, meter, worker_group):
            patched.setattr(module, "time", clock)
        slow(patched, clock)
        result = train(None, overrides=overrides(folder, "name=slow", f"training.checkpoint_steps={steps}"))
    assert said in " ".join(capfd.readouterr().err.split())
    client, run_id = record(folder, result["run_id"])
    shares = {name: value for name, value in client.get_run(run_id).data.metrics.items() if name.endswith("_percent")}
    assert shares[f"time/{part}_percent"] > 25
    assert sum(v for k, v in shares.items() if k.startswith("time/")) == pytest.approx(100)


def test_an_uneven_host_is_named():
    from workflows.console import diagnosis

    even = {"time/data_percent": 3.0, "time/communication_percent": 20.0, "time/checkpoint_percent": 1.0}
    assert diagnosis([even], streams=True, inside_epochs=True) == "" == diagnosis([], streams=True, inside_epochs=True)
    uneven = {**even, "time/slowest_worker": 2.0, "time/slowest_worker_percent": 80.0}
    said = diagnosis([uneven] * 2, streams=True, inside_epochs=True)
    assert "slow: worker 2 computes 80 % longer than the median worker" in said
    others = [uneven, {**uneven, "time/slowest_worker": 1.0}]  # now one, now another
    assert diagnosis(others, streams=True, inside_epochs=True) == ""
    waits = {**even, "time/communication_percent": 60.0, "time/data_percent": 61.0}
    assert "a larger dataset.cache_bytes" in diagnosis([waits], streams=True, inside_epochs=True)


def test_evaluate_gives_the_metrics_of_the_run(folder, result):
    found = CliRunner().invoke(main, ["evaluate", result["bundle"], "--json"])
    assert found.exit_code == 0, found.stderr
    printed = json.loads(found.stdout.splitlines()[-1])
    assert printed["run_id"] == result["run_id"] and printed["rows"] > 100
    for name, value in printed["metrics"].items():
        assert value == pytest.approx(result["metrics"][name], rel=1e-5)


def test_predict_forecasts_what_comes_after_new_rows(folder, result, tmp_path):
    from datasets.shared.frequency import time_labels
    from datasets.synthetic import generated

    lines = ["time,place,demand,temperature"]
    for place in (0, 7):  # 7: a place that training never had
        times, demand, temperature = generated.build(series=8, days=30).rows(place)
        lines += [
            f"{t},place-{place:02d},{d},{w}"
            for t, d, w in zip(time_labels(times, "%Y-%m-%d %H:%M:%S"), demand, temperature, strict=True)
        ]
    (tmp_path / "new.csv").write_text("\n".join(lines) + "\n")
    found = CliRunner().invoke(
        main, ["predict", result["bundle"], str(tmp_path / "new.csv"), "-o", str(tmp_path / "out.csv")]
    )
    assert found.exit_code == 0, found.stderr
    table = pyarrow.csv.read_csv(tmp_path / "out.csv")
    assert table.column_names == ["place", "time", "demand", "demand_q0.1", "demand_q0.9"]
    assert table.num_rows == 48 and str(table["time"][0]) == "2024-01-31 00:00:00"
    low, middle, high = (table[c].to_numpy() for c in ("demand_q0.1", "demand", "demand_q0.9"))
    assert (low <= middle).all() and (middle <= high).all() and middle.min() > 0


@pytest.mark.parametrize("name", ["article_rnn", "article_lstm", "article_attention"])
def test_the_articles_samples_learn(folder, name):
    found = train(
        load(
            f"workflows/experiments/{name}.yaml",
            ["training.epochs=2", f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db"],
        ),
        progress=False,
    )
    assert found["metrics"]["test/mse"] < 0.5 * found["baselines"]["mean"]["test/mse"]
