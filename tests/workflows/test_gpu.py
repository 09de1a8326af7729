"""What only a CUDA device can show; `make test-gpu` runs these and says what it skipped."""

from __future__ import annotations

import pytest
import torch

from workflows.train import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


def overrides(folder, *more):
    return ["training.epochs=2", "model.hidden_size=32", f"storage={folder}/runs",
            f"tracking.uri=sqlite:///{folder}/mlflow.db", *more]


def test_one_gpu_trains_to_the_metrics_of_the_cpu(tmp_path):
    cpu = train(None, overrides=overrides(tmp_path), progress=False)
    gpu = train(None, overrides=overrides(tmp_path, "workers.gpus=1"), progress=False)
    assert gpu["metrics"]["test/mse"] == pytest.approx(cpu["metrics"]["test/mse"], rel=0.05)
    assert gpu["baselines"]["naive"]["test/mse"] == pytest.approx(cpu["baselines"]["naive"]["test/mse"], rel=1e-5)


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru", "transformer"])
def test_bf16_trains_every_family(family, tmp_path):
    result = train(None, overrides=overrides(tmp_path, "workers.gpus=1", "training.precision=bf16",
                                             f"model.family={family}"), progress=False)
    assert result["metrics"]["test/mse"] < result["baselines"]["naive"]["test/mse"]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
def test_two_gpus_agree_with_one(tmp_path):
    one = train(None, overrides=overrides(tmp_path, "workers.gpus=1"), progress=False)
    two = train(None, overrides=overrides(tmp_path, "workers.gpus=1", "workers.count=2"), progress=False)
    assert two["metrics"]["test/mse"] == pytest.approx(one["metrics"]["test/mse"], rel=0.05)


@pytest.mark.parametrize(("name", "precision"), [("reviews", "fp32"), ("dialled_digits", "fp32"), ("gestures", "bf16")])
def test_text_audio_and_sensors_are_told_apart_on_a_gpu(name, precision, tmp_path):
    result = train(f"workflows/experiments/{name}.yaml", progress=False, overrides=[
        f"storage={tmp_path}/runs", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db", "workers.gpus=1",
        f"training.precision={precision}"])
    assert result["metrics"]["test/accuracy"] > result["best_reachable"]["accuracy"] - 0.08
