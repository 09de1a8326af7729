"""Compare the rows/s of one worker with cached data with a bare torch loop with the same model and data in memory.

python -m benchmarks.train_loop [rounds] [etth1 | sst2] [cpu | cuda] [overrides]
(needs RONDO_DATA; from the project's root)

For etth1 the bare loop cuts its windows itself; for sst2 it iterates over the same, precomputed batches. With cuda both
copy their batches from the host's memory to the GPU.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time

import numpy as np
import torch

from datasets.pipeline.prepared import read_rows
from models.batch import Batch
from workflows.cluster import connect
from workflows.config.load import load
from workflows.train import train
from workflows.training import loop, worker_group
from workflows.training.data import Data, prepare_data
from workflows.training.worker import make_model

EPOCHS, FIRST = 8, 3  # the first epochs are excluded: the tracker imports MLflow at the same time


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bare_epochs(experiment, prepared, threads: int, device: torch.device) -> list[float]:
    """Rows/s of each epoch of a plain loop over the same windows: index, forward, backward, clip, AdamW."""
    torch.set_num_threads(threads)
    dataset = experiment.raw_dataset
    view = dataset.view(prepared, "train", experiment.resolved_task)
    table = read_rows(prepared.storage, view.part.shards, [None] * len(view.part.shards))
    steps = torch.from_numpy(table["values"].combine_chunks().flatten().to_numpy().copy()).reshape(-1, view.channels)
    look, width = view.lookback, view.lookback + view.horizon
    windows = steps.unfold(0, width, 1).transpose(1, 2)
    rows, one = int(view.rows.sum()), torch.ones(1)
    model, _ = make_model(experiment, prepared, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    speeds = []
    for epoch in range(EPOCHS - FIRST + 1):
        order, start = np.random.default_rng(epoch).permutation(rows), time.perf_counter()
        for first in range(0, rows, experiment.training.batch_size):
            cut = windows[order[first : first + experiment.training.batch_size]]
            batch = Batch({"values": cut[:, :look]}, {}, {"target": cut[:, look:]}, one.expand(len(cut)), one)
            with loop.autocast(experiment.training.precision, device):
                total, weight = model(batch.to(device))
            (total / weight).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), experiment.training.clip or math.inf)
            optimizer.step()
            optimizer.zero_grad()
        finish(device)
        speeds.append(rows / (time.perf_counter() - start))
    return speeds


def bare_text_epochs(experiment, prepared, threads: int, device: torch.device) -> list[float]:
    """Rows/s of each epoch of a plain loop over precomputed batches: forward, backward, clip, AdamW."""
    torch.set_num_threads(threads)
    data = Data(experiment, prepared, {}, worker_group.WorkerGroup(torch.device("cpu")))
    epochs = EPOCHS - FIRST + 1
    steps = list(data.steps(data.ingest("train", training=True), epochs))
    model, _ = make_model(experiment, prepared, device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    speeds = []
    for epoch in range(epochs):
        of_epoch = [step for step in steps if step.epoch == epoch]
        start = time.perf_counter()
        for step in of_epoch:
            with loop.autocast(experiment.training.precision, device):
                total, weight = model(step.micro[0].to(device))
            (total / weight).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), experiment.training.clip or math.inf)
            optimizer.step()
            optimizer.zero_grad()
        finish(device)
        speeds.append(sum(step.rows for step in of_epoch) / (time.perf_counter() - start))
    return speeds


BARE = {"etth1": bare_epochs, "sst2": bare_text_epochs}


def main(rounds: int = 3, name: str = "etth1", device: str = "cpu", *overrides: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        experiment = load(
            f"workflows/experiments/{name}.yaml",
            [
                f"training.epochs={EPOCHS}",
                f"storage={folder}/runs",
                f"tracking.uri=sqlite:///{folder}/mlflow.db",
                f"workers.gpus={int(device == 'cuda')}",
                *overrides,
            ],
        )
        connection = connect.connect(experiment.workers)
        prepared = prepare_data(experiment)
        ratios = []
        for _ in range(rounds):
            # The fastest epoch of each, as other load on the machine can only slow an epoch down.
            ours = max(h["train/epoch_rows_per_second"] for h in train(experiment, progress=False)["history"][FIRST:])
            bare = max(BARE[name](experiment, prepared, connection.cpus, torch.device(device))[1:])
            ratios.append(ours / bare)
            print(f"Rondo {ours:,.0f} rows/s, bare loop {bare:,.0f} rows/s, ratio {ratios[-1]:.3f}", flush=True)
        connect.disconnect(connection)
        print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]), *sys.argv[2:])
