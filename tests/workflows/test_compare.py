"""Comparisons for real: equal budgets, seeds, a verdict whose every number can be traced to MLflow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from tests.faults import finish, launch, wait_until
from workflows.__main__ import main
from workflows.compare import _study, compare
from workflows.search import NothingFound
from workflows.tracking import connect

SMALL = {
    "name": "small",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 40, "series": 2},
    "task": {"kind": "forecast", "lookback": 48, "horizon": 24},
    "model": {"family": "gru", "hidden_size": 16, "patch": 24},
    "training": {"epochs": 2, "learning_rate": 5e-3},
    "search": {"trials": 2, "scheduler": "none", "seeds": 2, "concurrent": 1, "space": {
        "training.learning_rate": {"loguniform": [2e-3, 1e-2]}, "model.family": {"choice": ["gru", "transformer"]},
        "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}}, "model.layers": {"choice": [1, 2]},
        "model.bidirectional": {"choice": [True, False]}}}}


def told(folder, **more):
    return {**SMALL, "storage": f"{folder}/runs", "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, **more}


@pytest.fixture(scope="module")
def found(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return folder, compare(told(folder), families=["gru", "transformer"], progress=False)


def strictly(text):
    """The value of JSON, in which Python's NaN and Infinity are refused."""
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")
    return json.loads(text, parse_constant=refuse)


def summary(result):
    return json.loads((Path(result["report"]).parent / "compare.json").read_text())


def test_each_family_has_the_same_budget_and_the_same_seeds(found):
    _, result = found
    trials = summary(result)["trials"]
    for family in ("gru", "transformer"):
        own = [t for t in trials if t["study"] == family]
        assert [t["phase"] for t in own] == ["search"] * 2 + ["final"] * 2
        best = min(own[:2], key=lambda t: t["best"])
        for seed, trial in enumerate(own[2:], 1):
            assert trial["settings"] == {**best["settings"], "training.seed": seed}
    assert result["ranking"] == sorted(result["ranking"], key=lambda f: result["metrics"][f]["test/mse"])


def test_a_family_is_searched_in_its_own_options_only():
    families = ["gru", "transformer"]
    keys = {f: [a.key for a in _study(f, SMALL, None, families).axes] for f in families}
    assert keys["gru"] == ["training.learning_rate", "model.layers", "model.bidirectional"]
    assert keys["transformer"] == ["training.learning_rate", "model.heads", "model.layers"]
    assert not any(a.when for a in _study("transformer", SMALL, None, families).axes)
    without = _study("gru", {**SMALL, "search": {}}, ["training.learning_rate=1.0e-3"], families)
    assert [(a.key, a.kind, a.values) for a in without.axes] == [
        ("training.learning_rate", "loguniform", pytest.approx((2e-4, 5e-3)))]
    assert without.experiment.search.trials == 6


def test_every_number_of_the_table_is_traced_to_a_run_in_mlflow(found):
    folder, result = found
    client = connect(f"sqlite:///{folder}/mlflow.db")
    parent = client.get_run(result["run_id"])
    for family, row in result["families"].items():
        for seed in row["seeds"]:
            run = client.get_run(seed["run_id"])
            assert run.data.tags["mlflow.parentRunId"] == result["run_id"]
            assert run.data.params["model.family"] == family and run.data.params["training.seed"] == str(seed["seed"])
            assert run.data.tags["rondo.phase"] == "final"
            for name, value in seed["metrics"].items():
                if name != "train/loss":
                    assert run.data.metrics[name] == pytest.approx(value), name
        for name in ("test/mse", "test/mae"):
            values = [s["metrics"][name] for s in row["seeds"]]
            assert row["metrics"][name]["mean"] == pytest.approx(np.mean(values), rel=1e-6)
            assert parent.data.metrics[f"{family}/{name}/mean"] == pytest.approx(np.mean(values), rel=1e-6)
        for name in ("parameters", "seconds", "rows_per_second", "memory"):
            assert row[name] > 0 and parent.data.metrics[f"{family}/{name}"] == pytest.approx(row[name])
        assert 0 < row["latency_ms"]["p50"] <= row["latency_ms"]["p95"]
        assert parent.data.metrics[f"{family}/memory_horizon"] == row["horizon"]["reach"]
    assert parent.data.metrics["baseline/naive/test/mse"] == pytest.approx(
        result["baselines"]["naive"]["test/mse"]["mean"])
    assert {"report.html", "bundle", "pictures"} <= {a.path for a in client.list_artifacts(result["run_id"])}


def test_the_groups_of_rows_add_up_to_the_metric(found):
    """28 windows of each of two series lie in groups of one horizon."""
    folder, result = found
    files = sorted(Path(folder).glob("runs/*/trials/*/groups.safetensors"))
    assert len(files) == 4
    trials = {t["number"]: t for t in summary(result)["trials"]}
    counts = set()
    for file in files:
        sums = safetensors.numpy.load(file.read_bytes())
        total, count = sums["model/mse"].sum(0)
        assert total / count == pytest.approx(trials[int(file.parent.name)]["metrics"]["test/mse"], rel=1e-6)
        naive, rows = sums["naive/mse"].sum(0)
        assert naive / rows == pytest.approx(result["baselines"]["naive"]["test/mse"]["mean"], rel=1e-6)
        counts.add(len(sums["model/mse"]))
    assert len(counts) == 1 and counts.pop() > 1


def test_the_verdict_names_what_the_differences_allow(found):
    _, result = found
    (pair,) = [d for d in result["differences"] if {d["a"], d["b"]} == {"gru", "transformer"}]
    assert pair["low"] <= pair["difference"] <= pair["high"] and pair["p"] <= pair["adjusted"] <= 1
    assert ("no significant difference between" in result["verdict"]) == (not pair["significant"])
    assert result["verdict"] in Path(result["report"]).read_text()
    assert result["repeatable"] == ""


def test_the_best_familys_bundle_is_that_of_the_comparison(found):
    _, result = found
    done = CliRunner().invoke(main, ["evaluate", result["bundle"], "--json"])
    told_ = json.loads(done.stdout.splitlines()[-1])
    best = result["families"][result["ranking"][0]]
    assert told_["metrics"]["test/mse"] == pytest.approx(best["seeds"][0]["metrics"]["test/mse"], rel=1e-5)


def test_the_same_seed_gives_the_same_metric_columns(found, tmp_path):
    _, first = found
    again = compare(told(tmp_path), families=["gru", "transformer"], progress=False)
    for family, row in first["families"].items():
        assert again["families"][family]["metrics"] == row["metrics"]
        assert again["families"][family]["settings"] == row["settings"]
        assert again["families"][family]["horizon"] == row["horizon"]
    assert again["verdict"] == first["verdict"] and again["differences"] == first["differences"]


@pytest.mark.soak
def test_a_comparison_killed_in_its_final_trainings_ends_in_the_same_figures(found, tmp_path):
    _, undisturbed = found
    (tmp_path / "small.yaml").write_text(json.dumps(told(tmp_path)))
    words = [sys.executable, "-m", "workflows", "compare", str(tmp_path / "small.yaml"), "--families",
             "gru,transformer", "--json"]
    process = launch(tmp_path, words)

    def final_runs():
        told_ = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/trials/*/trial.json")]
        return any(t["phase"] == "final" and t["status"] == "running" and t["study"] == "transformer" for t in told_)

    wait_until(final_runs, tmp_path)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("runs/*/compare.json"))
    result = finish(launch(tmp_path, [*words, "--resume"]), tmp_path)
    for family, row in undisturbed["families"].items():
        assert result["families"][family]["metrics"] == row["metrics"]
    assert result["verdict"] == undisturbed["verdict"] and len(summary(result)["trials"]) == 8


def test_why_figures_may_differ_is_said(tmp_path, session):
    from workflows.compare import _repeatable
    from workflows.settings import Search
    said = _repeatable(Search(seconds=3.0), 2)
    assert "by the clock" in said and "2 trials at a time" in said and "scheduler asha" in said
    assert _repeatable(Search(scheduler="none"), 1) == ""


def test_a_comparison_of_one_seed_leaves_json_that_any_program_reads_and_a_page(session, tmp_path):
    """One seed has no interval: a bare NaN in Python's JSON."""
    small = told(tmp_path, name="adding", dataset={"kind": "adding", "rows": 300, "length": 8},
                 model={"family": "rnn", "hidden_size": 8}, task={"kind": "regress", "pooling": "last"},
                 training={"epochs": 1}, search={"trials": 1, "seeds": 1})
    (tmp_path / "adding.yaml").write_text(json.dumps(small))
    done = CliRunner().invoke(main, ["compare", str(tmp_path / "adding.yaml"), "--families", "rnn", "--json"])
    assert done.exit_code == 0, done.stderr
    result = strictly(done.stdout.splitlines()[-1])
    assert result["families"]["rnn"]["metrics"]["test/mse"]["low"] is None
    files = [p for p in Path(result["report"]).parent.rglob("*.json") if "checkpoints" not in p.parts]
    assert {"compare.json", "result.json", "trial.json", "bundle.json"} <= {p.name for p in files}
    for file in files:
        strictly(file.read_text())
    page = Path(result["report"]).read_text()
    assert CliRunner().invoke(main, ["report", str(Path(result["report"]).parent)]).exit_code == 0
    assert len(Path(result["report"]).read_text()) == len(page)


def test_lengths_show_where_a_family_breaks_down(session, tmp_path):
    probe = {"name": "adding", "dataset": {"kind": "adding", "rows": 600, "length": 8}, "model": {
        "family": "rnn", "hidden_size": 8}, "task": {"kind": "regress", "pooling": "last"}, "training": {"epochs": 1}}
    result = compare(told(tmp_path, **probe, search={"trials": 1, "seeds": 2, "across": {"dataset.length": [8, 16]}}),
                     families=["rnn", "gru"], progress=False)
    made = summary(result)
    assert made["across"] == "dataset.length" and list(made["lengths"]) == ["8", "16"]
    for value, row in made["lengths"].items():
        for family in ("rnn", "gru"):
            own = [t for t in made["trials"] if t["study"] == family and t["phase"] == "final"
                   and t["settings"].get("dataset.length", 8) == int(value)]         # 8: the experiment's own
            assert row[family]["mean"] == pytest.approx(np.mean([t["metrics"]["test/mse"] for t in own]), rel=1e-6)
            assert len(own) == 2
    assert "dataset.length" in Path(result["report"]).read_text()
    assert len(list((tmp_path / "runs/prepared").iterdir())) == 2


@pytest.mark.soak
def test_groups_of_two_workers_are_those_of_one(tmp_path):
    sums = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        compare(told(folder, workers={"count": count, "cpus": 1}, search={"trials": 1, "seeds": 1}), families=["gru"],
                progress=False)
        (file,) = folder.glob("runs/*/trials/*/groups.safetensors")
        sums.append(safetensors.numpy.load(file.read_bytes()))
    one, two = sums
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, err_msg=name)


def test_a_family_that_fails_stands_in_the_table_with_its_reason(session, tmp_path):
    broken = {**SMALL["model"], "families": {"transformer": {"hidden_size": 400000, "heads": 4}}}
    result = compare(told(tmp_path, model=broken, search={"trials": 1, "seeds": 1, "scheduler": "none"}),
                     families=["gru", "transformer"], progress=False)
    assert result["ranking"] == ["gru"] and result["families"]["transformer"]["failed"].startswith("out of memory")
    assert "gru is the only family" in result["verdict"] or "undecided" in result["verdict"]
    with pytest.raises(NothingFound, match=r"no family has a training that came to its end:\ntransformer: out of mem"):
        compare(told(tmp_path, model={**broken, "family": "transformer"}, search={"trials": 1}),
                families=["transformer"], progress=False)


@pytest.mark.parametrize("name", ["chorales", *(pytest.param(name, marks=pytest.mark.soak)
                                                for name in ("number_words", "gestures"))])
def test_tasks_of_other_kinds_are_compared_too(name, session, tmp_path):
    rows = {"chorales": 300, "number_words": 300, "gestures": 120}[name]
    result = compare(f"workflows/experiments/{name}.yaml", [
        "training.epochs=1", "search={trials: 1, seeds: 2}", f"dataset.rows={rows}", f"storage={tmp_path}/runs",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"], families=["gru", "rnn"], progress=False)
    for row in result["families"].values():
        assert row["latency_ms"]["p50"] > 0 and row["horizon"]["norms"] and row["failed"] == ""
    assert Path(result["report"]).stat().st_size > 10_000


def test_a_comparison_is_resumed_with_its_own_families_only(found, tmp_path):
    from datasets.storage import Storage
    from workflows.search import _first

    folder, studies = Storage(tmp_path), [_study(f, SMALL, None, ["gru", "lstm"]) for f in ("gru", "lstm")]
    begun = _first(folder, "compare", studies)
    assert _first(folder, "compare", studies) == begun
    with pytest.raises(ValueError, match="that comparison is of gru, lstm; give --families gru,lstm"):
        _first(folder, "compare", studies[:1])


def test_population_based_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are none to train again"):
        compare(told(tmp_path, search={"scheduler": "pbt"}), families=["gru"], progress=False)
