"""All workers of a run, as one of them sees them: sums over workers, of gradients too. Plain torch, no Ray."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

NOT_A_NUMBER = 1e300  # stands for NaN where parameters are compared; no parameter is as large


class WorkerGroup:
    """All workers of a run, of which this process is one; a single worker communicates with nobody.

    Attributes:
        device: of this worker.
        world: number of workers.
        rank: of this worker.
        seconds: spent in communication so far.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.seconds = 0.0

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over workers, on the CPU; x may be a float64 or int64 tensor."""
        if self.world == 1:
            return x.cpu()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else its pending computation would count as communication
        start = time.perf_counter()
        x = x.to(self.device, copy=True)
        dist.all_reduce(x)
        out = x.cpu()
        self.seconds += time.perf_counter() - start
        return out

    def wrap(self, model: nn.Module) -> nn.Module:
        """Wrap a model so that the backward pass sums its gradients over workers.

        ``find_unused_parameters`` keeps the buckets in their first order, so that sums are added up in the same order
        before and after a restart.
        """
        if self.world == 1:
            return model
        on_gpu = self.device.type == "cuda"
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self.device] if on_gpu else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=True,
        )
        wrapped.register_comm_hook(self, _sum_gradients)
        return wrapped

    def same_parameters(self, model: nn.Module) -> bool:
        """Whether all workers hold the same parameters; NaN in the same place counts as the same."""
        if self.world == 1:
            return True
        flat = torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])
        flat = flat.nan_to_num(nan=NOT_A_NUMBER, posinf=math.inf, neginf=-math.inf)  # NaN never equals itself
        low, high = flat.clone(), flat.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        return bool(torch.equal(low, high))


def _sum_gradients(workers: WorkerGroup, bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's communication hook: the sum, not the average, as the loss is already divided by the whole step's weight."""
    start = time.perf_counter()
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()

    def done(finished: torch.futures.Future[list[Tensor]]) -> Tensor:
        workers.seconds += time.perf_counter() - start
        summed: Tensor = finished.value()[0]
        return summed

    summed: torch.futures.Future[Tensor] = future.then(done)
    return summed


# DDP checks the types in the annotations; `from __future__ import annotations` leaves only their text.
_sum_gradients.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}  # type: ignore[attr-defined]
