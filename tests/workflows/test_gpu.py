"""What only a CUDA device can show; `make test-gpu` runs these and says what it skipped."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from workflows.__main__ import main
from workflows.compare import compare
from workflows.search import search
from workflows.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("session"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def overrides(folder, *more):
    return [f"storage={folder}/runs", f"tracking.uri=sqlite:///{folder}/mlflow.db", *more]


def small(folder, *more):
    return overrides(folder, "training.epochs=2", "model.hidden_size=32", *more)


def test_one_gpu_trains_to_the_metrics_of_the_cpu(tmp_path):
    cpu = train(None, overrides=small(tmp_path), progress=False)
    gpu = train(None, overrides=small(tmp_path, "workers.gpus=1"), progress=False)
    assert gpu["metrics"]["test/mse"] == pytest.approx(cpu["metrics"]["test/mse"], rel=0.05)
    assert gpu["baselines"]["naive"]["test/mse"] == pytest.approx(cpu["baselines"]["naive"]["test/mse"], rel=1e-5)


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru", "transformer"])
def test_bf16_trains_every_family(family, tmp_path):
    result = train(
        None,
        overrides=small(tmp_path, "workers.gpus=1", "training.precision=bf16", f"model.family={family}"),
        progress=False,
    )
    assert result["metrics"]["test/mse"] < result["baselines"]["naive"]["test/mse"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
def test_two_gpus_agree_with_one(tmp_path):
    one = train(None, overrides=small(tmp_path, "workers.gpus=1"), progress=False)
    two = train(None, overrides=small(tmp_path, "workers.gpus=1", "workers.count=2"), progress=False)
    assert two["metrics"]["test/mse"] == pytest.approx(one["metrics"]["test/mse"], rel=0.05)


@pytest.mark.parametrize(("name", "precision"), [("reviews", "fp32"), ("dialled_digits", "fp32"), ("gestures", "bf16")])
def test_text_audio_and_sensors_are_told_apart_on_a_gpu(name, precision, tmp_path):
    result = train(
        f"workflows/experiments/{name}.yaml",
        progress=False,
        overrides=overrides(tmp_path, "workers.gpus=1", f"training.precision={precision}"),
    )
    assert result["metrics"]["test/accuracy"] > result["best_reachable"]["accuracy"] - 0.08


@pytest.mark.parametrize(
    ("name", "family"),
    [("number_words", "gru"), ("number_words", "transformer"), ("chorales", "lstm"), ("telephone_numbers", "gru")],
)
def test_what_decodes_is_evaluated_on_a_gpu_as_on_the_cpu(name, family, tmp_path):
    made = train(
        f"workflows/experiments/{name}.yaml",
        progress=False,
        overrides=overrides(tmp_path, "workers.gpus=1", "training.epochs=2", f"model.family={family}"),
    )
    done = CliRunner().invoke(main, ["evaluate", made["bundle"], "--json"])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout.splitlines()[-1])["metrics"]
    for key, value in metrics.items():
        assert value == pytest.approx(made["metrics"][key], rel=0.01, abs=0.01), key


def test_trials_take_turns_on_a_gpu_and_the_families_are_measured_on_it(tmp_path):
    budget = small(
        tmp_path,
        "workers.gpus=1",
        "search.scheduler=none",
        "search.trials=2",
        "search.seeds=2",
        "search.space={training.learning_rate: {loguniform: [1.0e-3, 1.0e-2]}}",
    )
    found = search(None, progress=False, overrides=budget)
    assert [t["status"] for t in found["trials"]] == ["finished"] * 2
    first, second = sorted((t["started"], t["ended"]) for t in found["trials"])
    assert torch.cuda.device_count() > 1 or second[0] >= first[1]
    result = compare(None, progress=False, families=["gru", "rnn"], overrides=budget)
    assert all(f["latency_ms"]["p50"] > 0 and f["horizon"] for f in result["families"].values())
