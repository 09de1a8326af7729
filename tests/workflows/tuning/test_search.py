"""Searches: what they leave in their folder and in MLflow, what they refuse, and how they survive failures."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner

from datasets.pipeline.storage import Storage
from tests.faults import finish, launch, wait_until
from tests.workflows.tuning.small import mlflow_runs, small_search
from workflows.__main__ import main
from workflows.config.load import load
from workflows.config.settings import Workers
from workflows.errors import NothingFound
from workflows.search import search
from workflows.tracking.mlflow import connect
from workflows.tuning.ledger import Ledger, TrialRecord, ranked
from workflows.tuning.open import resumed_name
from workflows.tuning.tuner import compute_capacity


@pytest.fixture(scope="module")
def finished(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return folder, search(small_search(folder, register_as="demand", keep=2), progress=False)


# Results.


def test_every_trial_ends_and_the_best_one_is_found(finished):
    _, result = finished
    assert [t["status"] for t in result["trials"]] == ["finished"] * 4
    assert len({json.dumps(t["settings"]) for t in result["trials"]}) == 4
    best = min(result["trials"], key=lambda t: t["best"])
    assert result["primary"] == "mse"
    assert result["best"]["number"] == best["number"] and result["best"]["settings"] == best["settings"]
    assert result["metrics"]["validation/mse"] == pytest.approx(best["best"], rel=1e-5)
    assert {"test/mae", "test/mse"} <= result["metrics"].keys() and "naive" in result["baselines"]
    assert all(t["memory"] > 1e8 and t["node"] and t["parameters"] for t in result["trials"])


def test_no_more_trials_run_at_a_time_than_there_are_cpus(finished):
    _, result = finished
    spans = sorted((t["started"], t["ended"]) for t in result["trials"])
    assert max(sum(a <= s < b for a, b in spans) for s, _ in spans) <= 2


def test_mlflow_has_one_run_with_a_child_for_each_trial(finished):
    folder, result = finished
    by_trial = mlflow_runs(folder)
    parent = by_trial.pop(None)
    assert parent.info.run_id == result["run_id"] and parent.info.status == "FINISHED"
    assert parent.data.metrics["test/mae"] == pytest.approx(result["metrics"]["test/mae"])
    assert parent.data.metrics["best/trial"] == result["best"]["number"]
    assert sorted(by_trial) == ["0", "1", "2", "3"]
    for trial in result["trials"]:
        run = by_trial[str(trial["number"])]
        assert run.data.tags["mlflow.parentRunId"] == result["run_id"] and run.info.status == "FINISHED"
        assert run.info.run_id == trial["run_id"] and run.data.tags["rondo.status"] == "finished"
        assert json.loads(run.data.tags["rondo.settings"]) == trial["settings"]
        assert float(run.data.params["training.learning_rate"]) == trial["settings"]["training.learning_rate"]
        assert run.data.params["model.family"] == trial["settings"]["model.family"]
        assert run.data.metrics["validation/mae"] == pytest.approx(trial["history"][-1]["validation/mae"])


def test_the_bundle_page_and_pictures_are_on_the_search_and_in_the_registry(finished):
    folder, result = finished
    client = connect(f"sqlite:///{folder}/mlflow.db")
    top = {a.path for a in client.list_artifacts(result["run_id"])}
    assert {"report.html", "bundle", "pictures", "experiment.yaml"} <= top
    version = client.get_model_version_by_alias("demand", "champion")
    assert version.run_id == result["run_id"] and version.source.endswith("/bundle")
    done = CliRunner().invoke(main, ["evaluate", result["bundle"], "--json"])
    evaluated = json.loads(done.stdout.splitlines()[-1])
    assert evaluated["metrics"]["test/mae"] == pytest.approx(result["metrics"]["test/mae"], rel=1e-5)
    assert evaluated["run_id"] == result["run_id"]


def test_checkpoints_of_the_best_trials_only_are_kept(finished):
    folder, result = finished
    kept = {int(p.parent.name) for p in Path(folder).glob("runs/small-search-*/trials/*/checkpoints")}
    assert kept == {t["number"] for t in sorted(result["trials"], key=lambda t: t["best"])[:2]}
    assert not list(Path(folder).glob("runs/small-search-*/ray"))  # what Tune keeps for itself, pickled


def test_the_page_can_be_rebuilt(finished):
    _, result = finished
    page = Path(result["report"])
    before = page.read_text()
    page.unlink()
    done = CliRunner().invoke(main, ["report", str(page.parent)])
    assert done.exit_code == 0, done.output
    assert page.read_text() == before and result["run_id"] in before


@pytest.mark.soak
def test_a_search_with_one_trial_at_a_time_is_repeatable(session, tmp_path):
    def once(folder):
        folder.mkdir()
        result = search(small_search(folder, concurrent=1, trials=3), progress=False)
        return [(t["settings"], t["best"]) for t in result["trials"]], result["metrics"]

    assert once(tmp_path / "a") == once(tmp_path / "b")


@pytest.mark.soak
def test_data_is_prepared_once_for_each_value_of_a_searched_vocabulary(session, tmp_path, capfd):
    texts = [f"{'good' if i % 2 else 'bad'} number {i} of {i % 7} films,{i % 2}" for i in range(200)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    reviews = {
        "name": "reviews",
        "task": {"kind": "classify"},
        "model": {"family": "gru", "hidden_size": 8},
        "dataset": {
            "kind": "text",
            "path": str(tmp_path / "reviews.csv"),
            "label": "label",
            "tokenizer": "word",
            "split": {"validation": 0.2, "test": 0.2},
        },
        "training": {"epochs": 1},
    }
    result = search(
        {
            **small_search(tmp_path),
            **reviews,
            "search": {
                "searcher": "grid",
                "space": {
                    "dataset.vocabulary": {"choice": [50, 100]},
                    "training.learning_rate": {"choice": [1e-3, 1e-2]},
                },
            },
        }
    )
    assert len(result["trials"]) == 4 and len(list((tmp_path / "runs/prepared").iterdir())) == 2
    shown = " ".join(capfd.readouterr().err.split())
    assert "2 variants of the prepared data, one for each dataset.vocabulary" in shown


# Mistakes of the user.


def test_a_search_without_a_space_is_refused_with_an_example(tmp_path):
    with pytest.raises(ValueError, match=r"search\.space is empty: give the keys to search, such as search: \{space"):
        search({**small_search(tmp_path), "search": {}}, progress=False)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"task.loss": {"choice": ["mse", "mae"]}}, "with loss=mae trials are judged by mae on"),
        ({"dataset.days": {"choice": [30, 40]}}, "with days=40 trials are judged by mse on {'validation':"),
    ],
)
def test_trials_that_could_not_be_compared_are_refused(space, message, session, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        search(small_search(tmp_path, space=space), progress=False)
    assert not list(tmp_path.glob("runs/*/experiment.yaml"))  # nothing that could be resumed


@pytest.mark.parametrize("key", ["count", "cpus"])
def test_trials_that_no_machine_can_run_are_refused_before_ray_starts(key, tmp_path):
    workers = {"count": 1, "cpus": 1, key: (os.cpu_count() or 1) + 1}
    script = f"from workflows.search import search\nsearch({ {**small_search(tmp_path), 'workers': workers}!r})"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert re.search(r"workers.count=\d+ x workers.cpus=\d+ = \d+ CPUs .* but this machine has \d+ CPUs", done.stderr)
    assert not (tmp_path / "runs").exists()


def test_capacity_is_counted_node_by_node():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}, {"memory": 1.0}]

    def capacity(count=1, cpus=1, gpus=0):
        return compute_capacity(Workers(count=count, cpus=cpus, gpus=gpus), cpus, nodes)

    assert capacity(cpus=2).max_trials == 2  # not (3 + 3) / 2
    assert capacity(count=2).max_trials == 3
    assert capacity(gpus=1).max_trials == 1
    assert capacity(cpus=4).max_trials == 0
    assert "6 CPUs and 1 GPUs on 3 nodes; a trial takes 2 CPUs: 2 at a time" in capacity(cpus=2).explanation


def test_what_population_based_training_cannot_change_is_refused(session, tmp_path):
    with pytest.raises(ValueError, match=r"pbt changes settings while a trial trains, and model\.layers cannot"):
        search(small_search(tmp_path, scheduler="pbt", space={"model.layers": {"choice": [1, 2]}}), progress=False)
    with pytest.raises(ValueError, match=r"model\.heads cannot depend on others"):
        search(small_search(tmp_path, scheduler="pbt"), progress=False)


# Failures.


def test_trials_that_fail_are_recorded_with_their_reasons(session, tmp_path):
    space = {
        "model.hidden_size": {"choice": [16, 400000]},
        "training.learning_rate": {"choice": [5e-3, 1e30]},
        "task.lookback": {"choice": [48, 4800]},
    }
    result = search(
        small_search(tmp_path, searcher="grid", trials=None, space=space),
        overrides=["model.family=transformer"],
        progress=False,
    )
    reasons = {tuple(t["settings"].values()): t["reason"] for t in result["trials"]}
    assert reasons[16, 5e-3, 48] == "" and "has no window in train" in reasons[16, 5e-3, 4800]
    assert reasons[400000, 5e-3, 48].startswith("out of memory: ") and "nan" in reasons[16, 1e30, 48]
    by_trial = mlflow_runs(tmp_path)
    assert by_trial[None].info.status == "FINISHED"
    for trial in result["trials"]:
        run = by_trial[str(trial["number"])]
        assert run.info.status == ("FAILED" if trial["reason"] else "FINISHED")
        assert run.data.tags.get("rondo.reason", "") == trial["reason"]
    page = Path(result["report"]).read_text()
    assert "out of memory" in page and "has no window in train" in page


def test_a_search_whose_trials_all_fail_says_why_and_leaves_a_page(session, tmp_path):
    with pytest.raises(NothingFound, match=r"none of the 2 trials has a result:\ntrial 0: the gradient is"):
        search(small_search(tmp_path, space={"training.learning_rate": {"choice": [1e30, 1e31]}}), progress=False)
    assert len(list(tmp_path.glob("runs/*/report.html"))) == 1
    assert mlflow_runs(tmp_path)[None].info.status == "FAILED"


@pytest.mark.soak
def test_a_trial_whose_process_is_killed_does_not_stop_the_search(session, tmp_path):
    killed = []

    def kill():
        end = time.monotonic() + 60
        while not killed and time.monotonic() < end:
            running = list(tmp_path.glob("runs/*/trials/0000/checkpoints/step-*/manifest.json"))
            for process in psutil.Process().children(recursive=True) if running else ():
                name = " ".join(process.cmdline())
                if "Trainable.train" in name or name.startswith("ray::Trial"):
                    process.kill()
                    killed.append(process.pid)
                    break
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    result = search(small_search(tmp_path, concurrent=1, trials=3), overrides=["training.epochs=8"], progress=False)
    thread.join()
    assert killed
    failed = [t for t in result["trials"] if t["status"] == "failed"]
    assert len(failed) == 1 and failed[0]["reason"].startswith("its process died")
    assert sum(t["status"] == "finished" for t in result["trials"]) == 2
    assert mlflow_runs(tmp_path)[str(failed[0]["number"])].info.status == "FAILED"


@pytest.mark.soak
def test_a_trial_that_fills_the_memory_is_ended_by_ray_and_the_search_continues(tmp_path):
    """Ray's own limit, set 3 GB above what is in use."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 3e9) / memory.total
    options = small_search(tmp_path, searcher="grid", space={"model.hidden_size": {"choice": [8, 30000, 16]}})
    script = f"from workflows.search import search\nimport json\nprint(json.dumps(search({options!r})))"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=280,
        env={**environment, "RAY_memory_usage_threshold": f"{limit:.3f}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trials = json.loads(done.stdout.splitlines()[-1])["trials"]
    assert [t["status"] for t in trials] == ["finished", "failed", "finished"]
    assert trials[1]["reason"].startswith("out of memory")
    assert mlflow_runs(tmp_path)["1"].data.tags["rondo.reason"].startswith("out of memory")


# Killed searches.


def start(folder, *more):
    (folder / "small.yaml").write_text(json.dumps(small_search(folder, trials=6)))
    return launch(
        folder,
        [
            sys.executable,
            "-m",
            "workflows",
            "search",
            str(folder / "small.yaml"),
            "training.epochs=10",
            *more,
            "--json",
        ],
    )


def records(folder):
    return [json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/trials/*/trial.json"))]


def ended(folder):
    return sum(record["status"] == "finished" for record in records(folder))


def test_a_killed_search_resumes_without_repeating_a_trial(tmp_path):
    process = start(tmp_path)
    wait_until(lambda: ended(tmp_path) >= 2, tmp_path)
    process.kill()
    process.wait()
    before = records(tmp_path)
    assert any(t["status"] == "running" for t in before) and not list(tmp_path.glob("runs/*/search.json"))
    result = finish(start(tmp_path, "--resume"), tmp_path)
    assert len(result["trials"]) == 6 and {t["status"] for t in result["trials"]} == {"finished"}
    for old, new in zip(before, result["trials"], strict=False):
        assert new["settings"] == old["settings"]
        if old["status"] == "finished":
            assert {k: v for k, v in new.items() if k != "run_id"} == {k: v for k, v in old.items() if k != "run_id"}
    by_trial = mlflow_runs(tmp_path)
    assert len(by_trial) == 7 and {r.info.status for r in by_trial.values()} == {"FINISHED"}
    client = connect(f"sqlite:///{tmp_path}/mlflow.db")
    for run in by_trial.values():
        steps = [p.step for p in client.get_metric_history(run.info.run_id, "validation/mae")]
        assert steps == sorted(set(steps))
    with pytest.raises(ValueError, match="that search is finished"):
        search(str(tmp_path / "small.yaml"), overrides=["training.epochs=10"], resume=result["run"], progress=False)


@pytest.mark.soak
def test_a_search_killed_while_its_best_is_measured_measures_it_again(tmp_path):
    process = start(tmp_path, "training.epochs=2")
    wait_until(lambda: ended(tmp_path) == 6, tmp_path)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("runs/*/search.json"))
    before = records(tmp_path)
    result = finish(start(tmp_path, "training.epochs=2", "--resume"), tmp_path)
    assert [t["history"] for t in result["trials"]] == [t["history"] for t in before]
    assert "test/mae" in result["metrics"] and Path(result["bundle"]).is_dir() and Path(result["report"]).is_file()
    assert len(mlflow_runs(tmp_path)) == 7


def test_ctrl_c_stops_a_search_and_says_how_to_continue(tmp_path):
    process = start(tmp_path)
    wait_until(lambda: ended(tmp_path), tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    shown = (tmp_path / "stderr").read_text()
    assert process.returncode == 130 and "Traceback" not in shown
    assert re.search(
        r"Continue with: python -m workflows search \S+small.yaml --resume small-search-\S+ "
        r"training.epochs=10",
        shown,
    )
    by_trial = mlflow_runs(tmp_path)
    assert by_trial[None].info.status == "KILLED" and "RUNNING" not in {r.info.status for r in by_trial.values()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model.hidden_size=8", "it searches another experiment (model.hidden_size: 16 there, 8 here)"),
        ("search.seed=3", "search.seed: 0 there, 3 here"),
        ("search.trials=9", None),
    ],
)
def test_a_search_of_another_experiment_is_notresumed_name(change, message, session, tmp_path):
    folder = tmp_path / "runs/small-search-20260101-000000-abcd"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(load(small_search(tmp_path)).text())
    now = load(small_search(tmp_path), [change])
    if message is None:
        assert resumed_name("search", Storage(tmp_path / "runs"), now, "latest") == folder.name
        return
    with pytest.raises(ValueError, match=re.escape(message)):
        resumed_name("search", Storage(tmp_path / "runs"), now, folder.name)


def test_the_ledger_reads_what_it_wrote_and_ranks(tmp_path):
    ledger = Ledger(Storage(tmp_path))
    for number, (status, best) in enumerate([("finished", 0.3), ("failed", 0.1), ("stopped", 0.2), ("running", None)]):
        ledger.write(TrialRecord(number, status=status, best=best, settings={"training.learning_rate": number / 10}))
    again = Ledger(Storage(tmp_path)).records
    assert again == ledger.records
    assert [r.number for r in ranked(again, maximise=False)] == [2, 0]
    assert [r.number for r in ranked(again, maximise=True)] == [0, 2]
