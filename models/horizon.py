"""How far back a model looks: how the gradient of its loss decays with the steps of its family's input.

Gradients that vanish on their way back through time are why recurrent networks do not learn what happened long ago
(Bengio, Simard & Frasconi 1994; Pascanu, Mikolov & Bengio 2013).

Shapes: B rows, R sequences of the family, T time, D input size, H output size, K steps back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.batch import Batch
from models.family import step_mask
from models.sequence import RecurrentState, SequenceModel

SHARE = 0.95  # of the summed norms: what lies within the reach
LONG_ENOUGH = 0.1  # share of the sequences that must be that long for a step to count


@dataclass(frozen=True)
class Horizon:
    """How a model's memory fades.

    Attributes:
        norms: (K,) of the gradient at the family's input 0, 1, ... steps back; the largest is 1.
        reach: least number of steps back within which 95 % of the sum of the norms lies; 0: the last step only. A sum
            needs no fit and no threshold on a single norm, so neither bumps nor a floor of small norms mislead it.
        scale: steps of the raw row that one step of the family stands for, as in the longest row: 24.0 with patches of
            24 steps. Reach times scale is in steps (samples, tokens) of the data.
    """

    norms: list[float]
    reach: int
    scale: float


def memory_horizon(model: SequenceModel, batches: Iterable[Batch], *, max_steps: int = 1000) -> Horizon | None:
    """The norms of d(u . y_e) / d x_(e - k), averaged over sequences, for k = 0, 1, ...

    x (R, T, D) is what the family reads, y (R, T, H) what it makes of it, e the last step of y that the loss reads: the
    last valid one, except under max pooling or where later steps have no label. u is the loss's gradient at y_e, scaled
    to length 1, so that rows count alike, whether the model is sure of them or not. What the loss reads of earlier
    steps directly is left out: with pooling over all steps that would hide the memory. Of a family that reads both ways
    it is the forward direction that looks back from e, and that is measured.

    A step back counts if at least a tenth of the sequences have it; its norm is the mean over these. Rows are left out
    whose gradient is 0 at all steps of y, as it is where their weight is 0, or is not finite.

    Args:
        model: in any mode; mode, carried states and gradients stay as they are. In evaluation it does not drop or draw
            anything, so the result is a function of the weights and rows.
        batches: on the model's device; rows in lanes continue from the states of the batches before, without gradients.
        max_steps: largest K.

    Returns:
        None if no row is left.
    """
    assert max_steps >= 1
    longest, scale = 0, 1.0
    # cuDNN has no backward pass in evaluation.
    with _in_evaluation(model), torch.backends.cudnn.flags(enabled=False):
        total, count = torch.zeros(2, max_steps, dtype=torch.float64)
        for batch in batches:
            norms, ends, lengths = _gradients(model, batch)
            steps = ends[:, None] - torch.arange(max_steps)  # (R, K), negative before the first
            total += norms.gather(1, steps.clamp(min=0)).masked_fill(steps < 0, 0).sum(0)
            count += (steps >= 0).sum(0)
            raw = next(iter(batch.lengths.values()))
            if int(raw.max()) > longest:
                longest = int(raw.max())
                scale = longest / int(lengths.max())
    longest_back = int((count >= max(1.0, LONG_ENOUGH * float(count[0]))).sum())  # counts fall with k
    mean = total[:longest_back] / count[:longest_back]
    if longest_back == 0 or not float(mean.max()) > 0:
        return None
    within = mean.cumsum(0) / mean.sum()
    return Horizon((mean / mean.max()).tolist(), int((within < SHARE).sum()), scale)


def _gradients(model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(norms (N, T) float64, e (N,)) of the N sequences that count, and lengths (R,) of all; all on the CPU."""
    with _watched(model.family) as seen:
        loss, _ = model.task.loss(model, batch)
    x, y, lengths = seen["x"], seen["y"], seen["lengths"]
    (g,) = torch.autograd.grad(loss, y, retain_graph=True, allow_unused=True, materialize_grads=True)
    read = (g != 0).any(-1) & step_mask(y, lengths)  # (R, T)
    ends = (read * torch.arange(1, y.shape[1] + 1, device=y.device)).amax(1) - 1
    rows = torch.arange(len(y), device=y.device)
    u = g[rows, ends.clamp(min=0)].double()  # squares of small gradients would be 0
    u = u / u.norm(dim=-1, keepdim=True)
    kept = ends >= 0
    back = torch.zeros_like(y)
    back[rows[kept], ends[kept]] = u[kept].to(y.dtype)
    norms = torch.autograd.grad(y, x, back)[0].double().norm(dim=-1)  # (R, T)
    kept &= norms.isfinite().all(-1)
    return norms[kept].cpu(), ends[kept].cpu(), lengths


@contextmanager
def _watched(family: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """Record the input of a family, as a leaf of the graph, and its output: x, lengths and y."""
    seen: dict[str, Tensor] = {}

    def before(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        assert not seen, "a loss reads the family once"
        seen["x"], seen["lengths"] = inputs[0].detach().requires_grad_(), inputs[1]
        return seen["x"], *inputs[1:]

    def after(module: torch.nn.Module, inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
        seen["y"] = outputs[0]

    handles = [family.register_forward_pre_hook(before), family.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _in_evaluation(model: SequenceModel) -> Iterator[None]:
    """Evaluate with gradients and with separate lanes; restore modes and lanes afterwards."""
    modes, recurrent_state = [(module, module.training) for module in model.modules()], model.recurrent_state
    model.recurrent_state = RecurrentState()
    model.eval()
    try:
        with torch.inference_mode(False):  # turns gradients on, too
            yield
    finally:
        model.recurrent_state = recurrent_state
        for module, mode in modes:
            module.training = mode
