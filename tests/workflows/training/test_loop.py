"""The training loop by itself: no Ray, no files."""

from __future__ import annotations

import pytest
import torch

import models
from models.batch import Batch
from workflows.config.settings import Training
from workflows.training import loop
from workflows.training.loop import Hooks
from workflows.training.progress import Progress, Step
from workflows.training.worker_group import WorkerGroup

ROWS = 4
SPEECH = {"frontend": "frames", "channels": 3, "tokens": 9, "tokenizer": None, "ngrams": []}


def speech(texts):
    """A model that transcribes, and a step of its ROWS rows of 4 frames with the same text."""
    torch.manual_seed(0)
    model = models.build(SPEECH, {"family": "gru", "hidden_size": 4}, {"kind": "transcribe"})
    rows = Batch(
        {"values": torch.randn(ROWS, 4, 3)},
        {"values": torch.full((ROWS,), 4)},
        {"target": torch.tensor([texts] * ROWS)},
        torch.ones(ROWS),
        torch.arange(ROWS),
    )
    return model, Step(0, (0, 0), ROWS, [rows], ROWS, checksum=0)


def one_epoch(model, step, validate):
    training, workers = Training(epochs=1, batch_size=ROWS), WorkerGroup(torch.device("cpu"))
    return next(
        loop.epochs(
            model,
            loop.make_optimizer(model, training),
            training,
            lambda epoch, place: iter([step]),
            rows=ROWS,
            expected_checksum=0,
            workers=workers,
            progress=Progress(),
            validate=validate,
            hooks=Hooks(*[lambda *given: None] * 3),
        )
    )


@pytest.mark.parametrize(
    ("text", "metrics", "split"),
    [([4, 5, 6, 7, 8], {"wer": 1.0, "loss": 1.0}, "train"), ([4, 5], {"wer": 1.0, "too_long": 1.0}, "validation")],
)
def test_a_split_of_which_no_row_counts_in_the_loss_is_refused(text, metrics, split):
    model, step = speech(text)
    with pytest.raises(ValueError, match=rf"no row of the {split} split counts in the loss.*smaller model\.stack"):
        one_epoch(model, step, lambda: metrics)


def test_an_epoch_has_the_mean_loss_of_the_rows_that_count():
    model, step = speech([4, 5])
    with torch.no_grad():
        loss, weight = model(step.micro[0])
    found = one_epoch(model, step, lambda: {"wer": 1.0, "loss": 1.0})
    assert found["train/loss"] == pytest.approx(float(loss / weight))
