"""Searches for real: trials on Ray Tune, their record in MLflow, failures of every kind, and kills."""

from __future__ import annotations

import itertools
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

from tests.faults import finish, launch, wait_until
from workflows.__main__ import main
from workflows.ray_tune_private import _PastTrial
from workflows.search import NothingFound, search
from workflows.settings import Search, Workers
from workflows.tracking import connect
from workflows.tuner import Ledger, Record, _scheduler, ranked, room

SMALL = {
    "name": "small",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 30, "series": 2},
    "task": {"kind": "forecast", "lookback": 48, "horizon": 24},
    "model": {"family": "gru", "hidden_size": 16, "patch": 24},
    "training": {"epochs": 2, "learning_rate": 5e-3},
    "search": {"trials": 4, "scheduler": "none", "space": {
        "training.learning_rate": {"loguniform": [1e-3, 1e-2]}, "model.family": {"choice": ["gru", "transformer"]},
        "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}}}}}


def told(folder, **search_):
    return {**SMALL, "storage": f"{folder}/runs", "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "search": {**SMALL["search"], **search_}}


def runs(folder, name="small"):
    """All of MLflow's runs by the tag of their trial; the search's own under None."""
    client = connect(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    assert len({r.data.tags["rondo.key"] for r in found}) == len(found)
    return {r.data.tags.get("rondo.trial"): r for r in found}


@pytest.fixture(scope="module")
def found(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return folder, search(told(folder, register_as="demand", keep=2), progress=False)


# --- what a search leaves ------------------------------------------------------------------------------------------

def test_every_trial_ends_and_the_best_one_is_found(found):
    _, result = found
    assert [t["status"] for t in result["trials"]] == ["finished"] * 4
    assert len({json.dumps(t["settings"]) for t in result["trials"]}) == 4
    best = min(result["trials"], key=lambda t: t["best"])
    assert result["primary"] == "mse"
    assert result["best"]["number"] == best["number"] and result["best"]["settings"] == best["settings"]
    assert result["metrics"]["validation/mse"] == pytest.approx(best["best"], rel=1e-5)
    assert {"test/mae", "test/mse"} <= result["metrics"].keys() and "naive" in result["baselines"]
    assert all(t["memory"] > 1e8 and t["node"] and t["parameters"] for t in result["trials"])


def test_no_more_trials_run_at_a_time_than_there_are_cpus(found):
    _, result = found
    spans = sorted((t["started"], t["ended"]) for t in result["trials"])
    assert max(sum(a <= s < b for a, b in spans) for s, _ in spans) <= 2


def test_the_record_is_one_run_with_a_child_for_each_trial(found):
    folder, result = found
    by_trial = runs(folder)
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


def test_the_bundle_page_and_pictures_are_on_the_search_and_in_the_registry(found):
    folder, result = found
    client = connect(f"sqlite:///{folder}/mlflow.db")
    top = {a.path for a in client.list_artifacts(result["run_id"])}
    assert {"report.html", "bundle", "pictures", "experiment.yaml"} <= top
    version = client.get_model_version_by_alias("demand", "champion")
    assert version.run_id == result["run_id"] and version.source.endswith("/bundle")
    done = CliRunner().invoke(main, ["evaluate", result["bundle"], "--json"])
    told_ = json.loads(done.stdout.splitlines()[-1])
    assert told_["metrics"]["test/mae"] == pytest.approx(result["metrics"]["test/mae"], rel=1e-5)
    assert told_["run_id"] == result["run_id"]


def test_checkpoints_of_the_best_trials_only_are_kept(found):
    folder, result = found
    kept = {int(p.parent.name) for p in Path(folder).glob("runs/small-search-*/trials/*/checkpoints")}
    assert kept == {t["number"] for t in sorted(result["trials"], key=lambda t: t["best"])[:2]}
    assert not list(Path(folder).glob("runs/small-search-*/ray"))           # what Tune keeps for itself, pickled


def test_the_page_can_be_made_again(found):
    _, result = found
    page = Path(result["report"])
    before = page.read_text()
    page.unlink()
    done = CliRunner().invoke(main, ["report", str(page.parent)])
    assert done.exit_code == 0, done.output
    assert page.read_text() == before and result["run_id"] in before


def test_one_trial_at_a_time_draws_and_reaches_the_same_again(session, tmp_path):
    def once(folder):
        folder.mkdir()
        result = search(told(folder, concurrent=1, trials=3), progress=False)
        return [(t["settings"], t["best"]) for t in result["trials"]], result["metrics"]

    assert once(tmp_path / "a") == once(tmp_path / "b")


# --- what is refused -----------------------------------------------------------------------------------------------

def test_a_search_without_a_space_is_refused_with_an_example(tmp_path):
    with pytest.raises(ValueError, match=r"search\.space is empty: say what to search, such as search: \{space"):
        search({**told(tmp_path), "search": {}}, progress=False)


@pytest.mark.parametrize(("space", "said"), [
    ({"task.loss": {"choice": ["mse", "mae"]}}, "with loss=mae trials are judged by mae on"),
    ({"dataset.days": {"choice": [30, 40]}}, "with days=40 trials are judged by mse on {'validation':")])
def test_trials_that_could_not_be_compared_are_refused(space, said, session, tmp_path):
    with pytest.raises(ValueError, match=re.escape(said)):
        search(told(tmp_path, space=space), progress=False)
    assert not list(tmp_path.glob("runs/*/experiment.yaml"))             # nothing that could be resumed


@pytest.mark.parametrize("options", [["workers.cpus=3"], ["workers.count=3", "workers.cpus=2"]])
def test_trials_that_no_machine_can_run_are_refused_at_once_with_the_arithmetic(options, tmp_path):
    more = [f"workers.cpus={(os.cpu_count() or 1) + 1}"] if len(options) == 1 else [
        f"workers.count={(os.cpu_count() or 1) + 1}", "workers.cpus=1"]
    script = f"from workflows.search import search\nsearch({told(tmp_path)!r}, overrides={more!r})"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert re.search(r"workers.count=\d+ x workers.cpus=\d+ = \d+ CPUs .* but this machine has \d+ CPUs", done.stderr)
    assert time.monotonic() - start < 30                       # imports alone take 3 s, on a busy machine more
    assert not (tmp_path / "runs").exists()


def test_the_room_for_trials_is_counted_node_by_node():
    nodes = [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 1.0}, {"memory": 1.0}]
    assert room(Workers(cpus=2), 2, nodes).most == 2                              # not (3 + 3) / 2
    assert room(Workers(count=2, cpus=1), 1, nodes).most == 3
    assert room(Workers(cpus=1, gpus=1), 1, nodes).most == 1
    assert "6 CPUs and 1 GPUs on 3 nodes; a trial takes 2 CPUs: 2 at a time" in room(Workers(cpus=2), 2, nodes).said
    assert room(Workers(cpus=4), 4, nodes).most == 0


def test_what_population_based_training_cannot_change_is_refused(session, tmp_path):
    with pytest.raises(ValueError, match=r"pbt changes settings while a trial trains, and model\.hidden_size cannot"):
        search(told(tmp_path, scheduler="pbt", space={"model.hidden_size": {"choice": [8, 16]}}), progress=False)
    with pytest.raises(ValueError, match=r"model\.heads cannot depend on others"):
        search(told(tmp_path, scheduler="pbt"), progress=False)


# --- schedulers and budgets ----------------------------------------------------------------------------------------

@pytest.mark.soak
@pytest.mark.parametrize("more", [
    {"training.clip": 0.0}, {"training.patience": 1}, {}], ids=["nan", "patience", "time"])
def test_population_based_training_ends_when_trials_end_early(more, session, tmp_path):
    """Those that have come to an exchange wait for the others, of which one may never come."""
    rates = [1e-3, 2e-3, 1e30, 4e-3] if "training.clip" in more else [1e-3, 2e-3, 3e-3, 4e-3]
    seconds = None if more else 6.0
    result = search(told(tmp_path, scheduler="pbt", seconds=seconds, space={"training.learning_rate": {
        "choice": rates}}), overrides=[f"training.epochs={4 if more else 200}", *(f"{k}={v}" for k, v in more.items())],
        progress=False)
    assert len(result["trials"]) == 4 and all(t["status"] != "running" for t in result["trials"])


def test_population_based_training_lets_the_worst_go_on_from_the_best(session, tmp_path):
    result = search(told(tmp_path, scheduler="pbt", space={
        "training.learning_rate": {"choice": [1e-6, 2e-6, 4e-6, 8e-3]}}), overrides=["training.epochs=3"],
        progress=False)
    first = [t["history"][0]["validation/mae"] for t in result["trials"]]
    assert all(t["status"] == "finished" and len(t["history"]) == 3 for t in result["trials"])
    assert len(set(first)) < 4                                 # a history that another trial has begun
    assert len(runs(tmp_path)) == 5


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_bad_trials_are_stopped_early_and_that_is_said(scheduler, session, tmp_path):
    start = [{"training.learning_rate": rate} for rate in (8e-3, 6e-3, 7e-3, 1e-5)]
    result = search(told(tmp_path, scheduler=scheduler, trials=5, concurrent=1, start=start, space={
        "training.learning_rate": {"loguniform": [1e-5, 1e-2]}}), overrides=["training.epochs=4"], progress=False)
    stopped = [t for t in result["trials"] if t["status"] == "stopped"]
    assert stopped and all(t["reason"] == f"by {scheduler} after epoch {len(t['history'])}" for t in stopped)
    assert all(len(t["history"]) < 4 for t in stopped) and result["trials"][0]["status"] == "finished"


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_resumed_search_judges_by_trials_that_ended_before(scheduler):
    past = [Record(number, status="finished", history=[{"validation/mae": value}] * 3)      # the last one was lucky
            for number, value in enumerate([1.0, 1.0, 1.0, 1.0, 8.0])]
    judge = _scheduler(Search(scheduler=scheduler), [], epochs=4, records=past, primary="mae", maximise=False)
    new = _PastTrial("new", {"trial": {"study": "", "final": False}})
    judge.on_trial_add(None, new)
    assert judge.on_trial_result(None, new, {"epoch": 1, "judged": 9.0, "time_total_s": 1}) == "STOP"


def test_a_search_ends_when_its_seconds_are_over(session, tmp_path):
    result = search(told(tmp_path, trials=None, seconds=6.0), overrides=["training.epochs=200"], progress=False)
    assert {t["status"] for t in result["trials"]} <= {"finished", "stopped", "failed"}
    late = [t for t in result["trials"] if "search.seconds were over" in t["reason"]]
    assert late and max(t["ended"] for t in result["trials"]) - min(t["started"] for t in result["trials"]) < 12


def test_a_trial_of_several_workers_trains_as_one_of_one(session, tmp_path):
    grid = {"searcher": "grid", "scheduler": "asha", "space": {"training.learning_rate": {"choice": [5e-3, 1e-5]}}}
    results = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        results.append(search(told(folder, **grid), overrides=[f"workers.count={count}"], progress=False))
    one, two = results
    assert [t["status"] for t in two["trials"]] == ["finished", "stopped"]
    for a, b in zip(one["trials"], two["trials"], strict=True):
        assert b["best"] == pytest.approx(a["best"], rel=1e-3)
    assert two["metrics"]["test/mae"] == pytest.approx(one["metrics"]["test/mae"], rel=1e-3)


def test_a_vocabulary_that_is_searched_prepares_the_data_once_for_each_value(session, tmp_path, capfd):
    texts = [f"{'good' if i % 2 else 'bad'} number {i} of {i % 7} films,{i % 2}" for i in range(200)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *texts]) + "\n")
    reviews = {"name": "reviews", "task": {"kind": "classify"}, "model": {"family": "gru", "hidden_size": 8},
               "dataset": {"kind": "text", "path": str(tmp_path / "reviews.csv"), "label": "label", "tokenizer": "word",
                           "split": {"validation": 0.2, "test": 0.2}}, "training": {"epochs": 1}}
    given = {**told(tmp_path), **reviews}
    result = search({**given, "search": {"searcher": "grid", "space": {
        "dataset.vocabulary": {"choice": [50, 100]}, "training.learning_rate": {"choice": [1e-3, 1e-2]}}}})
    assert len(result["trials"]) == 4 and len(list((tmp_path / "runs/prepared").iterdir())) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "2 variants of the prepared data, one for each dataset.vocabulary" in said


@pytest.mark.soak
def test_fewer_trials_run_at_a_time_where_memory_is_too_small(session, tmp_path, monkeypatch, capfd):
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(total=int(6e8)))      # for one of 0.5 GB
    result = search(told(tmp_path, trials=6))
    said = " ".join(capfd.readouterr().err.split())
    assert re.search(r"2 at a time on a node take [\d.]+ of 0.6 GB, too much: 1 at a time from now on", said)
    spans = sorted((t["started"], t["ended"]) for t in result["trials"])[3:]
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(spans))


# --- failures ------------------------------------------------------------------------------------------------------

def test_a_trial_that_raises_one_without_memory_and_one_with_nan_are_told_with_reasons(session, tmp_path):
    space = {"model.hidden_size": {"choice": [16, 400000]}, "training.learning_rate": {"choice": [5e-3, 1e30]},
             "task.lookback": {"choice": [48, 4800]}}
    result = search(told(tmp_path, searcher="grid", trials=None, space=space), overrides=["model.family=transformer"],
                    progress=False)
    reasons = {tuple(t["settings"].values()): t["reason"] for t in result["trials"]}
    assert reasons[16, 5e-3, 48] == "" and "has no window in train" in reasons[16, 5e-3, 4800]
    assert reasons[400000, 5e-3, 48].startswith("out of memory: ") and "nan" in reasons[16, 1e30, 48]
    by_trial = runs(tmp_path)
    assert by_trial[None].info.status == "FINISHED"
    for trial in result["trials"]:
        run = by_trial[str(trial["number"])]
        assert run.info.status == ("FAILED" if trial["reason"] else "FINISHED")
        assert run.data.tags.get("rondo.reason", "") == trial["reason"]
    page = Path(result["report"]).read_text()
    assert "out of memory" in page and "has no window in train" in page


def test_a_search_whose_trials_all_fail_says_why_and_leaves_a_page(session, tmp_path):
    with pytest.raises(NothingFound, match=r"no trial came to an end \(2 were tried\):\ntrial 0: the gradient is"):
        search(told(tmp_path, space={"training.learning_rate": {"choice": [1e30, 1e31]}}), progress=False)
    assert len(list(tmp_path.glob("runs/*/report.html"))) == 1
    assert runs(tmp_path)[None].info.status == "FAILED"


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
    result = search(told(tmp_path, concurrent=1, trials=3), overrides=["training.epochs=8"], progress=False)
    thread.join()
    assert killed
    failed = [t for t in result["trials"] if t["status"] == "failed"]
    assert len(failed) == 1 and failed[0]["reason"].startswith("its process died")
    assert sum(t["status"] == "finished" for t in result["trials"]) == 2
    assert runs(tmp_path)[str(failed[0]["number"])].info.status == "FAILED"


@pytest.mark.soak
def test_a_trial_that_fills_the_machine_is_ended_by_ray_and_the_search_goes_on(tmp_path):
    """Ray's own limit, set 3 GB above what is in use."""
    memory = psutil.virtual_memory()
    limit = (memory.total - memory.available + 3e9) / memory.total
    given = told(tmp_path, searcher="grid", space={"model.hidden_size": {"choice": [8, 30000, 16]}})
    script = f"from workflows.search import search\nimport json\nprint(json.dumps(search({given!r})))"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=280,
                          env={**environment, "RAY_memory_usage_threshold": f"{limit:.3f}"})
    assert done.returncode == 0, done.stderr[-3000:]
    trials = json.loads(done.stdout.splitlines()[-1])["trials"]
    assert [t["status"] for t in trials] == ["finished", "failed", "finished"]
    assert trials[1]["reason"].startswith("out of memory")
    assert runs(tmp_path)["1"].data.tags["rondo.reason"].startswith("out of memory")


# --- kills ---------------------------------------------------------------------------------------------------------

def start(folder, *more):
    (folder / "small.yaml").write_text(json.dumps(told(folder, trials=6)))
    return launch(folder, [sys.executable, "-m", "workflows", "search", str(folder / "small.yaml"),
                           "training.epochs=10", *more, "--json"])


def records(folder):
    return [json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/trials/*/trial.json"))]


def ended(folder):
    return sum(record["status"] == "finished" for record in records(folder))


def test_a_killed_search_goes_on_without_a_trial_done_again(tmp_path):
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
    by_trial = runs(tmp_path)
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
    assert len(runs(tmp_path)) == 7


def test_ctrl_c_stops_a_search_and_says_how_to_go_on(tmp_path):
    process = start(tmp_path)
    wait_until(lambda: ended(tmp_path), tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    said = (tmp_path / "stderr").read_text()
    assert process.returncode == 130 and "Traceback" not in said
    assert re.search(r"Continue with: python -m workflows search \S+small.yaml --resume small-search-\S+ "
                     r"training.epochs=10", said)
    by_trial = runs(tmp_path)
    assert by_trial[None].info.status == "KILLED" and "RUNNING" not in {r.info.status for r in by_trial.values()}


@pytest.mark.parametrize(("change", "said"), [
    ("model.hidden_size=8", "it searches another experiment (model.hidden_size: 16 there, 8 here)"),
    ("search.seed=3", "search.seed: 0 there, 3 here"),
    ("search.trials=9", None)])
def test_a_search_of_something_else_is_not_resumed(change, said, session, tmp_path):
    from datasets.storage import Storage
    from workflows.experiment import load
    from workflows.search import _resumed

    folder = tmp_path / "runs/small-search-20260101-000000-abcd"
    folder.mkdir(parents=True)
    (folder / "experiment.yaml").write_text(load(told(tmp_path)).text())
    now = load(told(tmp_path), [change])
    if said is None:
        assert _resumed("search", Storage(tmp_path / "runs"), now, "latest") == folder.name
        return
    with pytest.raises(ValueError, match=re.escape(said)):
        _resumed("search", Storage(tmp_path / "runs"), now, folder.name)


def test_the_ledger_reads_what_it_wrote_and_ranks(tmp_path):
    from datasets.storage import Storage

    ledger = Ledger(Storage(tmp_path))
    for number, (status, best) in enumerate([("finished", 0.3), ("failed", 0.1), ("stopped", 0.2), ("running", None)]):
        ledger.write(Record(number, status=status, best=best, settings={"training.learning_rate": number / 10}))
    again = Ledger(Storage(tmp_path)).records
    assert again == ledger.records
    assert [r.number for r in ranked(again, maximise=False)] == [2, 0]
    assert [r.number for r in ranked(again, maximise=True)] == [0, 2]
