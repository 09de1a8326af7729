"""Schedulers and budgets of searches: early stopping, population-based training, time, workers and memory."""

from __future__ import annotations

import itertools
import re

import psutil
import pytest

from tests.workflows.tuning.small import mlflow_runs, small_search
from workflows.config.settings import Search
from workflows.search import search
from workflows.tuning.ledger import TrialRecord
from workflows.tuning.queue import EPOCH, METRIC
from workflows.tuning.ray_tune_private import PastTrial
from workflows.tuning.schedulers import make_scheduler


@pytest.mark.soak
@pytest.mark.parametrize(
    "more", [{"training.clip": 0.0}, {"training.patience": 1}, {}], ids=["nan", "patience", "time"]
)
def test_population_based_training_ends_when_trials_end_early(more, session, tmp_path):
    """Trials wait for the others before they exchange weights, and one of those may end before that."""
    rates = [1e-3, 2e-3, 1e30, 4e-3] if "training.clip" in more else [1e-3, 2e-3, 3e-3, 4e-3]
    seconds = None if more else 6.0
    result = search(
        small_search(tmp_path, scheduler="pbt", seconds=seconds, space={"training.learning_rate": {"choice": rates}}),
        overrides=[f"training.epochs={4 if more else 200}", *(f"{k}={v}" for k, v in more.items())],
        progress=False,
    )
    assert len(result["trials"]) == 4 and all(t["status"] != "running" for t in result["trials"])


@pytest.mark.soak
def test_population_based_training_continues_the_worst_trials_from_the_best(session, tmp_path):
    result = search(
        small_search(tmp_path, scheduler="pbt", space={"training.learning_rate": {"choice": [1e-6, 2e-6, 4e-6, 8e-3]}}),
        overrides=["training.epochs=3"],
        progress=False,
    )
    first = [t["history"][0]["validation/mae"] for t in result["trials"]]
    assert all(t["status"] == "finished" and len(t["history"]) == 3 for t in result["trials"])
    assert len(set(first)) < 4  # a history that begins with the epochs of another trial
    assert len(mlflow_runs(tmp_path)) == 5


@pytest.mark.parametrize("scheduler", ["asha", pytest.param("median", marks=pytest.mark.soak)])
def test_bad_trials_are_stopped_early_with_the_reason(scheduler, session, tmp_path):
    start = [{"training.learning_rate": rate} for rate in (8e-3, 6e-3, 7e-3, 1e-5)]
    result = search(
        small_search(
            tmp_path,
            scheduler=scheduler,
            trials=5,
            concurrent=1,
            start=start,
            space={"training.learning_rate": {"loguniform": [1e-5, 1e-2]}},
        ),
        overrides=["training.epochs=4"],
        progress=False,
    )
    stopped = [t for t in result["trials"] if t["status"] == "stopped"]
    assert stopped and all(t["reason"] == f"by {scheduler} after epoch {len(t['history'])}" for t in stopped)
    assert all(len(t["history"]) < 4 for t in stopped) and result["trials"][0]["status"] == "finished"


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_resumed_search_judges_by_trials_that_ended_before(scheduler):
    past = [
        TrialRecord(number, status="finished", history=[{"validation/mae": value}] * 3)  # the last one was lucky
        for number, value in enumerate([1.0, 1.0, 1.0, 1.0, 8.0])
    ]
    judge = make_scheduler(Search(scheduler=scheduler), [], epochs=4, records=past, primary="mae", maximise=False)
    new = PastTrial("new", {"trial": {"study": "", "final": False}})
    judge.on_trial_add(None, new)
    assert judge.on_trial_result(None, new, {EPOCH: 1, METRIC: 9.0, "time_total_s": 1}) == "STOP"


@pytest.mark.soak
def test_a_search_ends_when_its_seconds_are_over(session, tmp_path):
    result = search(small_search(tmp_path, trials=None, seconds=6.0), overrides=["training.epochs=200"], progress=False)
    assert {t["status"] for t in result["trials"]} <= {"finished", "stopped", "failed"}
    timed_out = [t for t in result["trials"] if "search.seconds were over" in t["reason"]]
    assert timed_out and max(t["ended"] for t in result["trials"]) - min(t["started"] for t in result["trials"]) < 12


@pytest.mark.soak
def test_a_trial_of_two_workers_has_the_results_of_one_worker(session, tmp_path):
    grid = {"searcher": "grid", "scheduler": "asha", "space": {"training.learning_rate": {"choice": [5e-3, 1e-5]}}}
    results = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        results.append(search(small_search(folder, **grid), overrides=[f"workers.count={count}"], progress=False))
    one, two = results
    assert [t["status"] for t in two["trials"]] == ["finished", "stopped"]
    for a, b in zip(one["trials"], two["trials"], strict=True):
        assert b["best"] == pytest.approx(a["best"], rel=1e-3)
    assert two["metrics"]["test/mae"] == pytest.approx(one["metrics"]["test/mae"], rel=1e-3)


@pytest.mark.soak
def test_fewer_trials_run_at_a_time_if_memory_is_too_small(session, tmp_path, monkeypatch, capfd):
    real = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: real._replace(total=int(6e8)))  # one trial takes 0.5 GB
    result = search(small_search(tmp_path, trials=6))
    shown = " ".join(capfd.readouterr().err.split())
    assert re.search(r"2 at a time on a node take [\d.]+ of 0.6 GB, too much: 1 at a time from now on", shown)
    spans = sorted((t["started"], t["ended"]) for t in result["trials"])[3:]
    assert all(b <= c for (_, b), (c, _) in itertools.pairwise(spans))
