"""Several processes, one gradient: N workers with B/N rows against one with B, in float64."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import models
from datasets.pipeline.plan import keys, share
from models.batch import Batch
from workflows.config.settings import Training
from workflows.training.evaluation import evaluate
from workflows.training.loop import Hooks, Stopped, _gradients, epochs, make_optimizer
from workflows.training.progress import Progress, Step
from workflows.training.worker_group import WorkerGroup

SPEC = {
    "frontend": "patches",
    "channels": 5,
    "targets": 2,
    "known": 1,
    "observed": True,
    "season": 4,
    "lookback": 12,
    "horizon": 6,
}
ROWS = 7
SILENT = Hooks(*[lambda *arguments: None] * 3)


def model_and_rows(family):
    torch.manual_seed(0)
    model = models.build(
        SPEC,
        {"family": family, "hidden_size": 8, "layers": 1, "patch": 4},
        {"kind": "forecast", "lookback": 12, "horizon": 6, "loss": "huber"},
    ).double()
    values = torch.randn(ROWS, 12, 5, dtype=torch.float64)
    values[..., -2:] = (torch.rand(ROWS, 12, 2) > 0.3).double()
    observed = (torch.rand(ROWS, 6, 2) > torch.arange(ROWS)[:, None, None] / ROWS).double()  # unequal weights
    rows = {"values": values, "known": torch.randn(ROWS, 6, 1, dtype=torch.float64)}
    targets = {"target": torch.randn(ROWS, 6, 2, dtype=torch.float64), "observed": observed}
    targets |= {k: torch.ones(ROWS, 2, dtype=torch.float64) for k in ("mean", "std", "mase")}
    return model, rows, targets


TEXT = {"frontend": "tokens", "vocabulary": 40, "classes": 3, "counts": [5, 1, 1], "rows": 7, "several": False}
SOUND = {"frontend": "logmel", "rate": 8000, "classes": 3, "counts": [5, 1, 1], "rows": 7, "several": False}
PAIRS = {"frontend": "tokens", "vocabulary": 12, "shared": True, "tokens": 12, "tokenizer": None}
SPEECH = {"frontend": "frames", "channels": 3, "tokens": 9, "tokenizer": None, "ngrams": []}
LENGTHS = torch.tensor([9, 2, 5, 9, 1, 7, 3])


def unequal_rows(kind, family):
    """Rows of unequal length and of weights that differ by class or text, augmented by their keys."""
    torch.manual_seed(0)
    if kind in ("pairs", "lanes"):
        task = {"kind": "translate", "decoder_layers": 2, "label_smoothing": 0.1}
        if kind == "lanes":
            task = {"kind": "generate", "window": 9}
        model = models.build(PAIRS, {"family": family, "hidden_size": 8, "embedding_size": 6, "layers": 2}, task)
        return model.double(), {"tokens": torch.randint(4, 12, (ROWS, 9), dtype=torch.int32)}, LENGTHS
    if kind == "speech":
        options = {"family": family, "hidden_size": 8, "time_masks": 1, "time_mask": 0.3}
        model = models.build(SPEECH, options, {"kind": "transcribe"}).double()
        return model, {"values": torch.randn(ROWS, 9, 3, dtype=torch.float64)}, LENGTHS
    front = {"embedding_size": 6, "token_dropout": 0.3}
    if kind == "sound":
        front = {"mels": 10, "speed": 0.2, "time_masks": 1}
    task = {"kind": "classify", "pooling": "attention", "class_weights": "balanced", "label_smoothing": 0.1}
    model = models.build(
        TEXT if kind == "text" else SOUND, {"family": family, "hidden_size": 8, "layers": 2, **front}, task
    ).double()
    if kind == "text":
        return model, {"tokens": torch.randint(4, 40, (ROWS, 9), dtype=torch.int32)}, LENGTHS
    return model, {"samples": torch.randint(-9000, 9000, (ROWS, 3600), dtype=torch.int16)}, 400 * LENGTHS


def batches(kind, family, rank, world, parts):
    if kind == "forecast":
        model, rows, targets = model_and_rows(family)
        lengths = torch.full((ROWS,), 12)
    else:
        model, rows, lengths = unequal_rows(kind, family)
        targets = {"label": torch.tensor([0, 0, 1, 0, 2, 0, 0])}
        if kind == "lanes":
            targets = {"next": torch.randint(4, 12, (ROWS, 9))}
        if kind in ("speech", "pairs"):  # of the second row more than its steps allow
            texts = torch.randint(4, 9, (ROWS, 4))
            targets = {"target": texts.masked_fill(torch.arange(4) >= torch.tensor([[4, 4, 2, 3, 1, 4, 1]]).T, -1)}
    micro = []
    for ids, weights, lanes in share(torch.arange(ROWS).numpy(), rank, world, parts):
        longest = int(lengths[ids].max())  # as ingest pads: each micro-batch to its own longest
        made = Batch(
            {k: v[ids, :longest] for k, v in rows.items()},
            dict.fromkeys(rows, lengths[ids]),
            {k: v[ids] for k, v in targets.items()},
            torch.from_numpy(weights).double(),
            torch.from_numpy(ids),
            keys=torch.from_numpy(keys(ids, 0, 0)),
        )
        if kind == "lanes":
            made.targets["next"] = made.targets["next"][:, :longest]
            made.lanes, made.reset = torch.from_numpy(lanes), torch.from_numpy(ids % 3 == 0)
        micro.append(made)
    return model, micro


def gradient(kind, family, rank, world, parts):
    model, micro = batches(kind, family, rank, world, parts)
    workers = WorkerGroup(torch.device("cpu"))
    training = Training(precision="fp64", accumulate=parts)
    wrapped = workers.wrap(model.train())
    for _ in range(2 if kind == "lanes" else 1):  # the second time from the state that the first left
        model.zero_grad()
        _gradients(wrapped, model, Step(0, (0, 0), ROWS, micro, 0, 0), training, workers, SILENT)
    assert workers.same_parameters(model)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


CASES = [  # kind of rows, number of workers, of micro-batches, family
    ("forecast", 2, 1, "gru"),
    ("forecast", 3, 2, "transformer"),
    ("text", 2, 1, "lstm"),
    ("sound", 2, 2, "transformer"),
    ("speech", 2, 1, "gru"),
    ("pairs", 2, 1, "lstm"),
    ("pairs", 3, 1, "transformer"),
    ("lanes", 2, 1, "lstm"),
    ("lanes", 3, 2, "gru"),
]


def run(rank, world, folder):
    """Write the gradient of each case of so many workers."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    for kind, workers, parts, family in CASES:
        if workers == world:
            of_case = gradient(kind, family, rank, world, parts)
            if rank == 0:
                torch.save(of_case, f"{folder}/{kind}-{world}.pt")
    dist.barrier()  # nobody hangs up while another still talks
    dist.destroy_process_group()
    os._exit(0)  # torch's threads have been seen to abort a process that winds down


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """The folder of the gradients of all cases."""
    folder = tmp_path_factory.mktemp("gradients")
    for world in (2, 3):
        mp.spawn(run, (world, str(folder)), nprocs=world)
    return folder


@pytest.mark.parametrize(("kind", "world", "parts", "family"), CASES)
def test_n_workers_give_the_gradient_of_one(kind, world, parts, family, gradients):
    alone = gradient(kind, family, 0, 1, 1)
    together = torch.load(gradients / f"{kind}-{world}.pt", weights_only=True)
    assert (together - alone).abs().max() < 1e-10
    assert alone.abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "family"), [("forecast", "lstm"), ("text", "gru"), ("sound", "rnn")])
def test_accumulated_micro_batches_give_the_gradient_of_one(kind, family):
    alone = gradient(kind, family, 0, 1, 1)
    for parts in (2, 3, 10):  # 10: more micro-batches than rows
        assert (gradient(kind, family, 0, 1, parts) - alone).abs().max() < 1e-10


def compared(rank, world, folder):
    """Writes which of these models' parameters the workers find to be the same."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    workers, found = WorkerGroup(torch.device("cpu")), {}
    for name, values in {
        "same": [[1.0, 2.0]] * 2,
        "other": [[1.0, 2.0], [1.0, 3.0]],
        "nan": [[1.0, torch.nan]] * 2,
        "one nan": [[1.0, 2.0], [1.0, torch.nan]],
        "infinite": [[torch.inf, -torch.inf]] * 2,
        "signs": [[torch.inf, 1.0], [-torch.inf, 1.0]],
        "other nan": [[1.0, torch.nan], [torch.nan, 1.0]],
    }.items():
        model = torch.nn.Linear(2, 1, bias=False)
        model.weight.data[:] = torch.tensor(values[rank])
        found[name] = workers.same_parameters(model)
    (Path(folder) / f"found-{rank}").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def test_workers_whose_parameters_are_not_finite_in_the_same_places_agree(tmp_path):
    mp.spawn(compared, (2, str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}").read_text())
        assert [name for name, same in found.items() if same] == ["same", "nan", "infinite"]


def diverging(rank, world, folder, device):
    """Writes down how a training ends whose first step has no finite loss."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    model, rows, targets = model_and_rows("gru")
    targets["target"][0] = torch.nan
    steps = [
        Step(0, (0, number), ROWS, [Batch(rows, {}, targets, torch.ones(ROWS), torch.arange(ROWS))], ROWS, 0)
        for number in range(2)
    ]
    training = Training(epochs=1, precision="fp64", log_steps=20)
    model = model.to(device)
    try:
        list(
            epochs(
                model,
                make_optimizer(model, training),
                training,
                lambda epoch, place: iter(steps),
                rows=2 * ROWS,
                expected_checksum=0,
                workers=WorkerGroup(torch.device(device)),
                progress=Progress(),
                hooks=SILENT,
                validate=dict,
            )
        )
    except Exception as error:
        (Path(folder) / f"error-{rank}").write_text(f"{type(error).__name__}: {error}")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda:0",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")],
        ),
    ],
)
def test_a_loss_that_is_not_finite_in_the_first_step_is_divergence_on_all_workers(device, tmp_path):
    mp.spawn(diverging, (2, str(tmp_path), device), nprocs=2)
    for rank in range(2):
        assert (tmp_path / f"error-{rank}").read_text().startswith("Diverged: the gradient is nan at step 1 of epoch 0")


def stopped_evaluation(rank, world, folder):
    """The last of the workers is asked at the third step; each writes down which steps it began."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    begun = []
    model, rows, targets = model_and_rows("gru")

    def steps():
        for number in range(5):
            begun.append(number)
            yield Step(0, (0, number), ROWS, [Batch(rows, {}, targets, torch.ones(ROWS), torch.arange(ROWS))], ROWS, 0)

    with pytest.raises(Stopped):
        evaluate(
            model,
            steps(),
            WorkerGroup(torch.device("cpu")),
            precision="fp64",
            should_stop=lambda: rank == world - 1 and len(begun) == 3,
        )
    (Path(folder) / f"begun-{rank}").write_text(str(begun))
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)


def test_an_evaluation_ends_on_all_workers_at_the_step_at_which_one_is_asked_to_stop(tmp_path):
    mp.spawn(stopped_evaluation, (2, str(tmp_path)), nprocs=2)
    assert [(tmp_path / f"begun-{rank}").read_text() for rank in range(2)] == ["[0, 1, 2]"] * 2
