"""The training loop, plain torch: no Ray, no files, no tracking. What it needs from outside, it is given.

One optimizer step is one global batch of the plan. Its loss is a weighted sum over all rows of all workers and all
micro-batches, divided by the sum of their weights, which is known before the first backward pass. Randomness inside a
step (dropout) is keyed by (seed, step, worker), so a resumed run repeats it without saving generator states.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models import splitmix64
from models.sequence import SequenceModel
from workflows.config.settings import Training
from workflows.errors import Diverged, UserError
from workflows.training.meter import Meter
from workflows.training.progress import Progress, Step, Steps
from workflows.training.worker_group import WorkerGroup


@dataclass
class Hooks:
    """What the loop calls, on every worker."""

    log: Callable[[dict[str, float], int], None]  # step metrics, reduced; rank 0 records them
    epoch: Callable[[dict[str, float], Progress], None]  # epoch metrics, reduced
    save: Callable[[Progress, bool], None]  # a checkpoint; True: and it is the best so far
    should_stop: Callable[[], bool] = lambda: False  # whether to end after this step
    should_save: Callable[[], bool] = lambda: False  # whether to save after this step, though not due


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Autocast to bf16 if that is the precision; weights and loss stay in fp32."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bf16" else nullcontext()


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), decay on matrices only."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=training.learning_rate, fused=True)


def rate(training: Training, done: float, scale: float = 1.0) -> float:
    """The learning rate after a share `done` (0..1) of the training: a function of rows, not of steps or workers."""
    warm = min(1.0, (done + 1e-9) / training.warmup) if training.warmup else 1.0
    if training.schedule == "cosine":
        past = max(0.0, done - training.warmup) / (1 - training.warmup)
        scale *= 0.5 * (1 + math.cos(math.pi * min(1.0, past)))
    return training.learning_rate * warm * scale


def epochs(
    model: SequenceModel,
    optimizer: torch.optim.Optimizer,
    training: Training,
    steps: Steps,
    *,
    rows: int,
    expected_checksum: int,
    workers: WorkerGroup,
    progress: Progress,
    hooks: Hooks,
    validate: Callable[[], dict[str, float]],
) -> Iterator[dict[str, float]]:
    """Train from `progress` to the last epoch, or until patience runs out; the metrics of each epoch, as it ends.

    Args:
        model: on the workers' device.
        optimizer: from ``make_optimizer``.
        training: the settings.
        steps: the plan's steps, for this worker.
        rows: of the training split, and `expected_checksum` over their ids: each epoch is checked against both.
        workers: all of them.
        progress: where to start; updated in place.
        hooks: called at log steps, epochs and checkpoints.
        validate: gives the reduced metrics of the validation split.

    Raises:
        Diverged: the gradient is not finite; no later checkpoint was saved.
        ValueError: no row of the training or the validation split counts in the loss.
        Stopped: `hooks.should_stop` returned True on some worker.
    """
    if is_finished(training, progress):
        return
    wrapped, device = workers.wrap(model), workers.device
    meter = Meter(workers)
    model.train()
    upcoming = steps(progress.epoch, progress.position)
    step = _next(upcoming, meter)
    while step is not None:
        # The learning rate and the random numbers of this step.
        now = rate(training, progress.rows / (rows * training.epochs), progress.rate_scale)
        for group in optimizer.param_groups:
            group["lr"] = now
        _seed(device, splitmix64.seed(training.seed, progress.step, workers.rank))
        # Gradients, summed over workers, and the optimizer.
        loss, weight, stops, save_requested = _gradients(wrapped, model, step, training, workers, hooks)
        norm = nn.utils.clip_grad_norm_(model.parameters(), training.clip or math.inf)
        at_log = (progress.step + 1) % training.log_steps == 0
        if device.type == "cpu" or at_log or progress.step == 0:  # on a GPU, reading the norm waits for it
            _check_finite(norm, step, progress.step + 1, now, training)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress.step == 0 and not workers.same_parameters(model):
            raise RuntimeError("workers hold different parameters after the first step: gradients are not synchronised")
        # Counts, and the next step, whose epoch tells whether this one ends here.
        meter.add(loss, weight, step)
        _advance(progress, step)
        next_step = _next(upcoming, meter)
        ends_epoch = next_step is None or next_step.epoch != step.epoch
        saves = save_requested or (bool(training.checkpoint_steps) and progress.step % training.checkpoint_steps == 0)
        if ends_epoch or saves or stops:
            _check_finite(norm, step, progress.step, now, training)  # weights that are not finite are not saved
        # Now and then: log, end the epoch (validate, decide, save), save, stop.
        if at_log:
            hooks.log({"train/learning_rate": now, "train/gradient_norm": float(norm)} | meter.since(), progress.step)
        if ends_epoch:
            _end_epoch(model, training, progress, meter, workers, hooks, validate, rows, expected_checksum)
            yield progress.history[-1]
            meter.restart()  # the caller may have paused at the yield
            if is_finished(training, progress):
                break
        elif saves or stops:
            meter.total(progress)
            with meter.saving():
                hooks.save(progress, False)
        if stops and next_step is not None:
            raise Stopped
        step = next_step
    if not workers.same_parameters(model):
        raise RuntimeError("workers hold different parameters at the end: gradients were not synchronised")


def _gradients(
    wrapped: nn.Module, model: SequenceModel, step: Step, training: Training, workers: WorkerGroup, hooks: Hooks
) -> tuple[Tensor, Tensor, bool, bool]:
    """Compute the gradient of the step's loss, summed over workers and micro-batches.

    Returns:
        This worker's sum of losses and its weight; whether some worker was asked to stop, and to save. Both requests
        travel in the all-reduce of the weights, so that all workers follow them at the same step.
    """
    micro = [b.to(workers.device) for b in step.micro]
    mine = torch.stack([model.task.weight(model, b).double() for b in micro]).sum()
    whole, stops, saves = mine, hooks.should_stop(), hooks.should_save()
    if workers.world > 1:
        sums = workers.sum(torch.cat([mine.reshape(1), mine.new_tensor([stops, saves])]))
        whole, stops, saves = sums[0], bool(sums[1] > 0), bool(sums[2] > 0)
    whole = whole.clamp(min=1e-12)
    loss = torch.zeros((), dtype=torch.float64, device=workers.device)
    for number, batch in enumerate(micro):
        last = number == len(micro) - 1
        unsynchronised = (
            wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()
        )
        with unsynchronised:
            with autocast(training.precision, workers.device):
                total, _ = wrapped(batch)
            (total / whole.to(total.device, total.dtype)).backward()
        loss += total.detach().double()
    return loss, mine, stops, saves


def _check_finite(norm: Tensor, step: Step, number: int, now: float, training: Training) -> None:
    if math.isfinite(float(norm)):
        return
    raise Diverged(
        f"the gradient is {float(norm)} at step {number} of epoch {step.epoch} (learning rate "
        f"{now:.3g}, precision {training.precision}, first rows {step.micro[0].row_ids[:5].tolist()}); "
        "nothing was saved since the last checkpoint. Try a lower training.learning_rate, a longer "
        "training.warmup or a smaller training.clip, and look for extreme values in the data"
    )


def _advance(progress: Progress, step: Step) -> None:
    progress.step += 1
    progress.rows += step.rows
    progress.epoch, progress.position = step.epoch, (step.position[0], step.position[1] + 1)


def _end_epoch(
    model: SequenceModel,
    training: Training,
    progress: Progress,
    meter: Meter,
    workers: WorkerGroup,
    hooks: Hooks,
    validate: Callable[[], dict[str, float]],
    rows: int,
    expected: int,
) -> None:
    """Reduce, audit, validate, decide and save; every worker decides the same, on reduced values."""
    meter.total(progress)
    if (progress.epoch_rows, progress.epoch_checksum) != (rows, expected):
        raise RuntimeError(
            f"epoch {progress.epoch} trained on {progress.epoch_rows} rows (checksum "
            f"{progress.epoch_checksum}); the plan has {rows} (checksum {expected})"
        )
    _check_counted("train", progress.epoch_weight != 0)
    metrics = {"train/loss": progress.epoch_loss / progress.epoch_weight}
    metrics |= {f"validation/{k}": v for k, v in validate().items()}
    _check_counted("validation", "validation/loss" in metrics)
    judged = metrics[f"validation/{model.task.primary}"] * (-1 if model.task.maximise else 1)
    loss = metrics["validation/loss"]
    better = (judged, loss) < (progress.best, progress.best_loss)
    if better:
        progress.best, progress.best_loss, progress.best_step, progress.stale = judged, loss, progress.step, 0
    else:
        progress.stale += 1
        if training.schedule == "plateau" and progress.stale % training.plateau_epochs == 0:
            progress.rate_scale /= 2
    metrics |= meter.epoch()
    progress.history.append({"epoch": float(progress.epoch), "step": float(progress.step), **metrics})
    progress.epoch, progress.position = progress.epoch + 1, (0, 0)
    progress.epoch_rows = progress.epoch_checksum = 0
    progress.epoch_loss = progress.epoch_weight = 0.0
    hooks.epoch(metrics, progress)  # before the checkpoint, from which a resumed run does not repeat these steps
    with meter.saving():
        hooks.save(progress, better)


def is_finished(training: Training, progress: Progress) -> bool:
    """Whether nothing is left to train: all epochs are done, or patience has run out."""
    return progress.epoch >= training.epochs or (bool(training.patience) and progress.stale >= training.patience)


def _next(upcoming: Iterator[Step], meter: Meter) -> Step | None:
    start = time.perf_counter()
    step = next(upcoming, None)
    meter.waited += time.perf_counter() - start
    return step


def _seed(device: torch.device, seed: int) -> None:
    """Seed the one generator that a step draws from; ``torch.manual_seed`` seeds all devices, which takes 0.3 ms."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class Stopped(Exception):
    """Training was asked to stop; a checkpoint of its last step was saved."""


def _check_counted(split: str, counted: bool) -> None:
    """Raise ValueError unless some row of a split counts in the loss: an epoch without a loss cannot be judged."""
    if not counted:
        raise UserError(
            f"no row of the {split} split counts in the loss: all weigh 0, as where labels or values are "
            "missing, or where, with task.kind=transcribe, each text needs more steps than its row has; "
            "a smaller model.stack or model.hop_ms gives more steps"
        )
