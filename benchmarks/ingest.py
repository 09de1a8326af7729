"""Compare the batches/s of cached ingest with torch's DataLoader with 2 workers; and measure the padding.

python -m benchmarks.ingest [rounds] [imdb fsdd ...]      (needs RONDO_DATA; from the project's root)

Both have the stored rows in memory and yield the same tensors in the same order. The DataLoader's dataset is the usual
one: rows as tensors, a batch sampler with the same batches, and pad_sequence.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from datasets.pipeline.prepared import read_rows
from workflows.cluster import connect
from workflows.config.load import load
from workflows.config.settings import Workers
from workflows.training import worker_group
from workflows.training.data import Data, cache_parts, prepare_data

EPOCHS = 2


class Rows(Dataset):
    """Stored rows as a list of tensors, with their classes."""

    def __init__(self, table, name: str) -> None:
        flat = table[name].combine_chunks().flatten().to_numpy()
        self.rows = torch.from_numpy(flat.copy()).split(table["length"].to_pylist())
        self.labels = torch.tensor(table["label"].to_pylist())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        return self.rows[i], self.labels[i]


def collate(rows):
    return (
        pad_sequence([x for x, _ in rows], batch_first=True),
        torch.tensor([len(x) for x, _ in rows]),
        torch.stack([y for _, y in rows]),
    )


def measure(name: str, folder: str, rounds: int) -> None:
    experiment = load(f"workflows/experiments/{name}.yaml", [f"storage={folder}"])
    prepared = prepare_data(experiment)
    data = Data(experiment, prepared, cache_parts(experiment, prepared), worker_group.WorkerGroup(torch.device("cpu")))
    ingest = data.ingest("train", training=True)
    column = next(iter(ingest.view.inputs))
    batches = [ids.tolist() for epoch in range(EPOCHS) for *_, ids in ingest.plan.epoch(epoch)]
    table = read_rows(prepared.storage, ingest.view.part.shards, [None] * len(ingest.view.part.shards))
    loader = DataLoader(Rows(table, column), batch_sampler=batches, collate_fn=collate, num_workers=2)
    used = computed = 0
    for step in data.steps(ingest, EPOCHS):
        lengths = step.micro[0].lengths[column]
        used, computed = used + int(lengths.sum()), computed + len(lengths) * int(lengths.max())
    ratios = []
    for _ in range(rounds):
        start, sums = time.perf_counter(), [0, 0]
        for step in data.steps(ingest, EPOCHS):
            sums[0] += int(step.micro[0].inputs[column][:, 0].sum())
        ours, start = time.perf_counter() - start, time.perf_counter()
        for x, _, _ in loader:
            sums[1] += int(x[:, 0].sum())
        theirs = time.perf_counter() - start
        assert sums[0] == sums[1]
        ratios.append(theirs / ours)
        print(
            f"{name}: Rondo {len(batches) / ours:,.0f} batches/s, DataLoader {len(batches) / theirs:,.0f} batches/s, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    mean = np.mean([len(ids) for ids in batches])
    print(
        f"{name}: median ratio {statistics.median(ratios):.2f}; {used / computed:.1%} of the computed steps are "
        f"not padding; {len(batches) // EPOCHS} batches per epoch with {mean:.0f} rows on average",
        flush=True,
    )


def main(rounds: int, names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        connection = connect.connect(Workers())
        for name in names:
            measure(name, folder, rounds)
        connect.disconnect(connection)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, sys.argv[2:] or ["imdb", "fsdd"])
