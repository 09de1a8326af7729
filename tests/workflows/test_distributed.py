"""Several processes, one gradient: N workers with B/N rows against one with B, in float64."""

from __future__ import annotations

import os
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import models
from datasets.plan import share
from models.batch import Batch
from workflows.loop import Step, Workers, _gradients
from workflows.settings import Training

SPEC = {"frontend": "patches", "channels": 5, "targets": 2, "known": 1, "observed": True, "season": 4, "lookback": 12,
        "horizon": 6}
ROWS = 7


def model_and_rows(family):
    torch.manual_seed(0)
    model = models.build(SPEC, {"family": family, "hidden_size": 8, "layers": 1, "patch": 4},
                         {"kind": "forecast", "lookback": 12, "horizon": 6, "loss": "huber"}).double()
    values = torch.randn(ROWS, 12, 5, dtype=torch.float64)
    values[..., -2:] = (torch.rand(ROWS, 12, 2) > 0.3).double()
    observed = (torch.rand(ROWS, 6, 2) > torch.arange(ROWS)[:, None, None] / ROWS).double()     # unequal weights
    rows = {"values": values, "known": torch.randn(ROWS, 6, 1, dtype=torch.float64)}
    targets = {"target": torch.randn(ROWS, 6, 2, dtype=torch.float64), "observed": observed}
    targets |= {k: torch.ones(ROWS, 2, dtype=torch.float64) for k in ("mean", "std", "mase")}
    return model, rows, targets


def gradient(family, rank, world, parts):
    model, rows, targets = model_and_rows(family)
    workers = Workers(torch.device("cpu"))
    micro = []
    for ids, weights in share(torch.arange(ROWS).numpy(), rank, world, parts):
        micro.append(Batch({k: v[ids] for k, v in rows.items()}, {"values": torch.full((len(ids),), 12)},
                           {k: v[ids] for k, v in targets.items()}, torch.from_numpy(weights).double(),
                           torch.from_numpy(ids)))
    training = Training(precision="fp64", accumulate=parts)
    _gradients(workers.wrap(model), model, Step(0, (0, 0), ROWS, micro, 0, 0), training, workers)
    assert workers.agree(model)
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def run(rank, world, port, family, parts, out):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    found = gradient(family, rank, world, parts)
    dist.destroy_process_group()
    if rank == 0:
        torch.save(found, out)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(("world", "parts", "family"), [(2, 1, "gru"), (3, 2, "transformer")])
def test_n_workers_give_the_gradient_of_one(world, parts, family, tmp_path):
    alone = gradient(family, 0, 1, 1)
    mp.spawn(run, (world, free_port(), family, parts, str(tmp_path / "gradient.pt")), nprocs=world)
    together = torch.load(tmp_path / "gradient.pt", weights_only=True)
    assert (together - alone).abs().max() < 1e-10
    assert alone.abs().max() > 1e-3


def test_accumulated_micro_batches_give_the_gradient_of_one():
    for parts in (2, 3, 10):                                     # 10: more micro-batches than rows
        assert (gradient("lstm", 0, 1, parts) - gradient("lstm", 0, 1, 1)).abs().max() < 1e-10
