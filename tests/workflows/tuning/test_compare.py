"""Comparisons: equal budgets, several seeds, and a verdict whose every number can be traced to MLflow."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from datasets.pipeline.storage import Storage
from tests.faults import finish, launch, wait_until
from workflows.__main__ import main
from workflows.compare import _study, compare
from workflows.config.settings import Search
from workflows.errors import NothingFound
from workflows.tracking.mlflow import connect
from workflows.tuning.comparison import repeatable
from workflows.tuning.session import original_command

SMALL = {
    "name": "small",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 40, "series": 2},
    "task": {"kind": "forecast", "lookback": 48, "horizon": 24},
    "model": {"family": "gru", "hidden_size": 16, "patch": 24},
    "training": {"epochs": 2, "learning_rate": 5e-3},
    "search": {
        "trials": 2,
        "scheduler": "none",
        "seeds": 2,
        "concurrent": 1,
        "space": {
            "training.learning_rate": {"loguniform": [2e-3, 1e-2]},
            "model.family": {"choice": ["gru", "transformer"]},
            "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}},
            "model.layers": {"choice": [1, 2]},
            "model.bidirectional": {"choice": [True, False]},
        },
    },
}


def small_comparison(folder, **changes):
    """SMALL with its files in `folder`, and some sections changed."""
    return {**SMALL, "storage": f"{folder}/runs", "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}, **changes}


@pytest.fixture(scope="module")
def finished(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    return folder, compare(small_comparison(folder), families=["gru", "transformer"], progress=False)


def strictly(text):
    """The value of JSON, in which Python's NaN and Infinity are refused."""

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def summary(result):
    return json.loads((Path(result["report"]).parent / "compare.json").read_text())


def test_each_family_has_the_same_budget_and_the_same_seeds(finished):
    _, result = finished
    trials = summary(result)["trials"]
    for family in ("gru", "transformer"):
        of_family = [t for t in trials if t["study"] == family]
        assert [t["phase"] for t in of_family] == ["search"] * 2 + ["final"] * 2
        best = min(of_family[:2], key=lambda t: t["best"])
        for seed, trial in enumerate(of_family[2:], 1):
            assert trial["settings"] == {**best["settings"], "training.seed": seed}
    assert result["ranking"] == sorted(result["ranking"], key=lambda f: result["metrics"][f]["test/mse"])


def test_a_family_is_searched_only_in_keys_that_apply_to_it():
    families = ["gru", "transformer"]
    keys = {f: [a.key for a in _study(f, SMALL, None, families).axes] for f in families}
    assert keys["gru"] == ["training.learning_rate", "model.layers", "model.bidirectional"]
    assert keys["transformer"] == ["training.learning_rate", "model.heads", "model.layers"]
    assert not any(a.when for a in _study("transformer", SMALL, None, families).axes)
    without = _study("gru", {**SMALL, "search": {}}, ["training.learning_rate=1.0e-3"], families)
    assert [(a.key, a.kind, a.values) for a in without.axes] == [
        ("training.learning_rate", "loguniform", pytest.approx((2e-4, 5e-3)))
    ]
    assert without.experiment.search.trials == 6


def test_every_number_of_the_table_can_be_traced_to_an_mlflow_run(finished):
    folder, result = finished
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
        result["baselines"]["naive"]["test/mse"]["mean"]
    )
    assert {"report.html", "bundle", "pictures"} <= {a.path for a in client.list_artifacts(result["run_id"])}


def test_sums_of_the_groups_of_rows_give_the_metric(finished):
    """28 windows of each of two series lie in groups of one horizon."""
    folder, result = finished
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


def test_the_verdict_agrees_with_the_differences(finished):
    _, result = finished
    (pair,) = [d for d in result["differences"] if {d["a"], d["b"]} == {"gru", "transformer"}]
    assert pair["low"] <= pair["difference"] <= pair["high"] and pair["p"] <= pair["adjusted"] <= 1
    assert ("no significant difference between" in result["verdict"]) == (not pair["significant"])
    assert result["verdict"] in Path(result["report"]).read_text()
    assert result["repeatable"] == ""


def test_the_bundle_of_a_comparison_is_that_of_the_best_family(finished):
    _, result = finished
    done = CliRunner().invoke(main, ["evaluate", result["bundle"], "--json"])
    evaluated = json.loads(done.stdout.splitlines()[-1])
    best = result["families"][result["ranking"][0]]
    assert evaluated["metrics"]["test/mse"] == pytest.approx(best["seeds"][0]["metrics"]["test/mse"], rel=1e-5)


def test_the_same_seed_gives_the_same_metrics(finished, tmp_path):
    _, first = finished
    again = compare(small_comparison(tmp_path), families=["gru", "transformer"], progress=False)
    for family, row in first["families"].items():
        assert again["families"][family]["metrics"] == row["metrics"]
        assert again["families"][family]["settings"] == row["settings"]
        assert again["families"][family]["horizon"] == row["horizon"]
    assert again["verdict"] == first["verdict"] and again["differences"] == first["differences"]


@pytest.mark.soak
def test_a_comparison_killed_in_its_final_trainings_ends_in_the_same_figures(finished, tmp_path):
    _, undisturbed = finished
    (tmp_path / "small.yaml").write_text(json.dumps(small_comparison(tmp_path)))
    command = [
        sys.executable,
        "-m",
        "workflows",
        "compare",
        str(tmp_path / "small.yaml"),
        "--families",
        "gru,transformer",
        "--json",
    ]
    process = launch(tmp_path, command)

    def final_runs():
        trials = [json.loads(p.read_text()) for p in tmp_path.glob("runs/*/trials/*/trial.json")]
        return any(t["phase"] == "final" and t["status"] == "running" and t["study"] == "transformer" for t in trials)

    wait_until(final_runs, tmp_path)
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("runs/*/compare.json"))
    result = finish(launch(tmp_path, [*command, "--resume"]), tmp_path)
    for family, row in undisturbed["families"].items():
        assert result["families"][family]["metrics"] == row["metrics"]
    assert result["verdict"] == undisturbed["verdict"] and len(summary(result)["trials"]) == 8


def test_reasons_why_figures_may_differ_are_given():
    text = repeatable(Search(seconds=3.0), 2)
    assert "by the clock" in text and "2 trials at a time" in text and "scheduler asha" in text
    assert repeatable(Search(scheduler="none"), 1) == ""


def test_a_comparison_of_one_seed_leaves_json_that_any_program_reads_and_a_page(session, tmp_path):
    """One seed has no interval: a bare NaN in Python's JSON."""
    small = small_comparison(
        tmp_path,
        name="adding",
        dataset={"kind": "adding", "rows": 300, "length": 8},
        model={"family": "rnn", "hidden_size": 8},
        task={"kind": "regress", "pooling": "last"},
        training={"epochs": 1},
        search={"trials": 1, "seeds": 1},
    )
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


@pytest.mark.soak
def test_families_are_also_compared_at_each_length(session, tmp_path):
    probe = {
        "name": "adding",
        "dataset": {"kind": "adding", "rows": 600, "length": 8},
        "model": {"family": "rnn", "hidden_size": 8},
        "task": {"kind": "regress", "pooling": "last"},
        "training": {"epochs": 1},
    }
    result = compare(
        small_comparison(tmp_path, **probe, search={"trials": 1, "seeds": 2, "across": {"dataset.length": [8, 16]}}),
        families=["rnn", "gru"],
        progress=False,
    )
    saved = summary(result)
    assert saved["across"] == "dataset.length" and list(saved["lengths"]) == ["8", "16"]
    for value, row in saved["lengths"].items():
        for family in ("rnn", "gru"):
            finals = [
                t
                for t in saved["trials"]
                if t["study"] == family
                and t["phase"] == "final"
                and t["settings"].get("dataset.length", 8) == int(value)
            ]  # 8: the experiment's own
            assert row[family]["mean"] == pytest.approx(np.mean([t["metrics"]["test/mse"] for t in finals]), rel=1e-6)
            assert len(finals) == 2
    assert "dataset.length" in Path(result["report"]).read_text()
    assert len(list((tmp_path / "runs/prepared").iterdir())) == 2


@pytest.mark.soak
def test_two_workers_save_the_same_groups_of_rows_as_one(tmp_path):
    sums = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        compare(
            small_comparison(folder, workers={"count": count, "cpus": 1}, search={"trials": 1, "seeds": 1}),
            families=["gru"],
            progress=False,
        )
        (file,) = folder.glob("runs/*/trials/*/groups.safetensors")
        sums.append(safetensors.numpy.load(file.read_bytes()))
    one, two = sums
    assert one.keys() == two.keys()
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, err_msg=name)


def test_a_family_that_fails_is_listed_with_its_reason(session, tmp_path):
    broken = {**SMALL["model"], "families": {"transformer": {"hidden_size": 400000, "heads": 4}}}
    result = compare(
        small_comparison(tmp_path, model=broken, search={"trials": 1, "seeds": 1, "scheduler": "none"}),
        families=["gru", "transformer"],
        progress=False,
    )
    assert result["ranking"] == ["gru"] and result["families"]["transformer"]["failed"].startswith("out of memory")
    assert "gru is the only family" in result["verdict"] or "undecided" in result["verdict"]
    with pytest.raises(NothingFound, match=r"no family has a finished training:\ntransformer: out of mem"):
        compare(
            small_comparison(tmp_path, model={**broken, "family": "transformer"}, search={"trials": 1}),
            families=["transformer"],
            progress=False,
        )


@pytest.mark.soak
@pytest.mark.parametrize("name", ["chorales", "number_words", "gestures"])
def test_tasks_of_other_kinds_are_compared_too(name, session, tmp_path):
    rows = {"chorales": 300, "number_words": 300, "gestures": 120}[name]
    result = compare(
        f"workflows/experiments/{name}.yaml",
        [
            "training.epochs=1",
            "search={trials: 1, seeds: 2}",
            f"dataset.rows={rows}",
            f"storage={tmp_path}/runs",
            f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        ],
        families=["gru", "rnn"],
        progress=False,
    )
    for row in result["families"].values():
        assert row["latency_ms"]["p50"] > 0 and row["horizon"]["norms"] and row["failed"] == ""
    assert Path(result["report"]).stat().st_size > 10_000


def test_a_comparison_is_resumed_only_with_the_same_families(tmp_path):
    folder, studies = Storage(tmp_path), [_study(f, SMALL, None, ["gru", "lstm"]) for f in ("gru", "lstm")]
    assert original_command(folder, "workflows compare a", studies) == "workflows compare a"
    assert original_command(folder, "workflows compare b", studies) == "workflows compare a"
    with pytest.raises(ValueError, match="that comparison is of gru, lstm; give --families gru,lstm"):
        original_command(folder, "workflows compare", studies[:1])


def test_population_based_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there are no settings to train again"):
        compare(small_comparison(tmp_path, search={"scheduler": "pbt"}), families=["gru"], progress=False)
