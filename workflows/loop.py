"""The training loop, plain torch: no Ray, no files, no tracking. What it needs from outside, it is given.

One optimizer step is one global batch of the plan. Its loss is a weighted sum over all rows of all workers and all
micro-batches, divided by the sum of their weights, which is known before the first backward pass. Randomness inside a
step (dropout) is keyed by (seed, step, worker), so a resumed run repeats it without saving generator states.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.batch import Batch
from models.sequence import Artifact, Baseline, Carried, SequenceModel, Sums
from workflows.settings import Training


@dataclass
class Step:
    """One global batch, as one worker sees it.

    Attributes:
        epoch: that it belongs to; place: (window, batch) within the epoch.
        rows: of the whole global batch.
        micro: this worker's micro-batches.
        own_rows: of the global batch's rows, those of this worker.
        checksum: over this worker's own row ids.
    """

    epoch: int
    place: tuple[int, int]
    rows: int
    micro: list[Batch]
    own_rows: int
    checksum: int


class Steps(Protocol):
    """The steps from a place in the plan to the end of the last epoch."""

    def __call__(self, epoch: int, place: tuple[int, int]) -> Iterator[Step]: ...


@dataclass
class Progress:
    """What a checkpoint holds beside tensors: where training stands and what it has counted."""

    step: int = 0
    epoch: int = 0
    place: tuple[int, int] = (0, 0)                  # of the next global batch
    rows: int = 0                                    # trained on, all epochs
    epoch_rows: int = 0                              # in this epoch, by this worker count, all workers
    epoch_checksum: int = 0
    epoch_loss: float = 0.0                          # weighted sum, all workers
    epoch_weight: float = 0.0
    best: float = math.inf                           # of the primary metric, negative where the highest is best
    best_loss: float = math.inf                      # of that epoch's validation, which decides among equals
    best_step: int = -1
    stale: int = 0                                   # epochs since the best
    rate_scale: float = 1.0                          # of schedule plateau
    seconds: float = 0.0                             # of training, over all attempts
    history: list[dict[str, float]] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, told: dict[str, Any]) -> Progress:
        return cls(**{**told, "place": tuple(told["place"])})


@dataclass
class Hooks:
    """What the loop tells the outside. All but `save` are called on every worker; see each."""

    log: Callable[[dict[str, float], int], None]                     # step metrics, reduced; rank 0 should record them
    epoch: Callable[[dict[str, float], Progress], None]              # epoch metrics, reduced
    save: Callable[[Progress, bool], None]                           # a checkpoint; True: and it is the best so far
    stops: Callable[[], bool] = lambda: False                        # whether to end after this step
    saves: Callable[[], bool] = lambda: False                        # whether to save after this step, though not due


class Stopped(Exception):
    """Work was asked to stop; a checkpoint of the last step of training was saved."""


class Diverged(Exception):
    """The loss or its gradient is no longer a finite number."""


NOT_A_NUMBER = 1e300          # stands for NaN where parameters are compared; no parameter is as large


class Workers:
    """All workers of a run, of which this is one; alone, exchanges cost nothing."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.seconds = 0.0                           # spent in exchanges

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over workers, on the CPU; x may be a float64 or int64 tensor."""
        if self.world == 1:
            return x.cpu()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)      # what it still computes is no exchange, and waited for anyway
        start = time.perf_counter()
        x = x.to(self.device, copy=True)
        dist.all_reduce(x)
        out = x.cpu()
        self.seconds += time.perf_counter() - start
        return out

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with gradients summed over workers in the backward pass.

        The buckets keep their first order (which searching for unused parameters brings with it), so that sums are
        added up in the same order before and after a restart.
        """
        if self.world == 1:
            return model
        on_gpu = self.device.type == "cuda"
        wrapped = DistributedDataParallel(model, device_ids=[self.device] if on_gpu else None, broadcast_buffers=False,
                                          gradient_as_bucket_view=True, find_unused_parameters=True)
        wrapped.register_comm_hook(self, _sum_gradients)
        return wrapped

    def agree(self, model: nn.Module) -> bool:
        """Whether all workers hold the same parameters; NaN in the same place counts as the same."""
        if self.world == 1:
            return True
        flat = torch.cat([p.detach().reshape(-1).double() for p in model.parameters()])
        flat = flat.nan_to_num(nan=NOT_A_NUMBER, posinf=math.inf, neginf=-math.inf)     # NaN never equals itself
        low, high = flat.clone(), flat.clone()
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        dist.all_reduce(high, op=dist.ReduceOp.MAX)
        return bool(torch.equal(low, high))


def _sum_gradients(workers: Workers, bucket: Any) -> torch.futures.Future[Tensor]:
    """DDP's hook: the sum, not the average; the loss is divided by the whole step's weight already."""
    start = time.perf_counter()
    future = dist.all_reduce(bucket.buffer(), async_op=True).get_future()

    def done(finished: torch.futures.Future[list[Tensor]]) -> Tensor:
        workers.seconds += time.perf_counter() - start
        summed: Tensor = finished.value()[0]
        return summed

    summed: torch.futures.Future[Tensor] = future.then(done)
    return summed


# DDP compares the annotations themselves, not their text, which is what `from __future__ import annotations` leaves.
_sum_gradients.__annotations__ |= {
    "bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}  # type: ignore[attr-defined]


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where it is asked for; weights and loss stay in fp32."""
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


def epochs(model: SequenceModel, optimizer: torch.optim.Optimizer, training: Training, steps: Steps, *,
           rows: int, expected_checksum: int, workers: Workers, progress: Progress, hooks: Hooks,
           validate: Callable[[], dict[str, float]]) -> Iterator[dict[str, float]]:
    """Train from `progress` to the last epoch, or until patience runs out; the metrics of each epoch, as it ends.

    Args:
        model: on the workers' device.
        optimizer: from ``make_optimizer``.
        training: the settings.
        steps: the plan's steps, for this worker.
        rows: of the training split, and `expected_checksum` over their ids: each epoch is held against both.
        workers: all of them.
        progress: where to begin; it moves on.
        hooks: what to call on the way.
        validate: gives the reduced metrics of the validation split.

    Raises:
        Diverged: the gradient is not finite; no later checkpoint was saved.
        ValueError: no row of the training or the validation split counts in the loss.
        Stopped: `hooks.stops` said so on some worker.
    """
    if over(training, progress):
        return
    wrapped, device = workers.wrap(model), workers.device
    meter = _Meter(workers)
    model.train()
    moving = steps(progress.epoch, progress.place)
    step = _next(moving, meter)
    while step is not None:
        now = rate(training, progress.rows / (rows * training.epochs), progress.rate_scale)
        for group in optimizer.param_groups:
            group["lr"] = now
        _seed(device, _mixed(training.seed, progress.step, workers.rank))
        loss, weight, stops, asked = _gradients(wrapped, model, step, training, workers, hooks)
        norm = nn.utils.clip_grad_norm_(model.parameters(), training.clip or math.inf)
        at_log = (progress.step + 1) % training.log_steps == 0
        if device.type == "cpu" or at_log or progress.step == 0:        # on a GPU, asking costs a wait
            _check_finite(norm, step, progress.step + 1, now, training)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress.step == 0 and not workers.agree(model):
            raise RuntimeError("workers hold different parameters after the first step: gradients are not synchronised")
        meter.add(loss, weight, step)
        _advance(progress, step)
        following = _next(moving, meter)
        ends_epoch = following is None or following.epoch != step.epoch
        saves = asked or (bool(training.checkpoint_steps) and progress.step % training.checkpoint_steps == 0)
        if ends_epoch or saves or stops:
            _check_finite(norm, step, progress.step, now, training)       # nothing is saved of weights that are not
        if at_log:
            hooks.log({"train/learning_rate": now, "train/gradient_norm": float(norm)} | meter.since(), progress.step)
        if ends_epoch:
            _end_epoch(model, training, progress, meter, workers, hooks, validate, rows, expected_checksum)
            yield progress.history[-1]
            meter.restart()                          # whoever asked for the epoch may have taken their time
            if over(training, progress):
                break
        elif saves or stops:
            meter.total(progress)
            with meter.saving():
                hooks.save(progress, False)
        if stops and following is not None:
            raise Stopped
        step = following
    if not workers.agree(model):
        raise RuntimeError("workers hold different parameters at the end: gradients were not synchronised")


@dataclass
class Evaluation:
    """What an evaluation found: metrics by method (``model``, and baselines), and what is to be seen of the model."""

    metrics: dict[str, dict[str, float]]
    artifacts: list[Artifact]


def evaluate(model: SequenceModel, steps: Iterable[Step], workers: Workers, *, precision: str = "fp32",
             baselines: bool = False, fitted: Iterable[Baseline] = (), quick: bool = False,
             each: Callable[[dict[str, Sums]], None] | None = None,
             stops: Callable[[], bool] | None = None) -> Evaluation:
    """Metrics over all steps and workers, of the model, and of the task's baselines where asked for.

    Quick ones are for watching a training: the task decodes in its cheapest way. `each` takes this worker's sums of
    every step, by method.

    Raises:
        Stopped: `stops` said so on some worker.
    """
    totals: dict[str, Sums] = {}

    def add(into: dict[str, Sums], method: str, sums: Sums) -> None:
        own = into.setdefault(method, {})
        for name, value in sums.items():
            own[name] = own[name] + value.double() if name in own else value.double()

    carried, model.carried = model.carried, Carried()       # a training's states wait; these lanes are others
    model.eval()
    model.task.quick = quick
    with torch.inference_mode():
        for step in steps:
            _check_stop(stops, workers)
            here: dict[str, Sums] = {}
            for batch in step.micro:
                batch = batch.to(workers.device)
                with autocast(precision, workers.device):
                    add(here, "model", model.task.metrics(model, batch))
                if baselines:
                    for method, sums in model.task.baselines(batch).items():
                        add(here, method, sums)
                    for method_ in fitted:
                        add(here, method_.name, method_.metrics(batch))
            for method, sums in here.items():
                add(totals, method, sums)
            if each is not None:
                each(here)
    model.train()
    model.carried = carried
    reduced = {method: _reduced(into, workers) for method, into in totals.items()}
    return Evaluation({method: model.task.result(sums) for method, sums in reduced.items()},
                      model.task.artifacts(reduced["model"]))


def fit_baselines(fitted: Iterable[Baseline], steps: Iterable[Step], workers: Workers,
                  stops: Callable[[], bool] | None = None) -> None:
    """One pass over the training rows, sums added over workers, then each baseline solves its own.

    Raises:
        Stopped: `stops` said so on some worker.
    """
    fitted = list(fitted)
    sums: dict[str, Tensor] = {}
    for step in steps:
        _check_stop(stops, workers)
        for batch in step.micro:
            batch = batch.to(workers.device)
            for method in fitted:
                moments = method.moments(batch)
                sums[method.name] = sums[method.name] + moments if method.name in sums else moments
    for method in fitted:
        method.fit(workers.sum(sums[method.name]).to(workers.device))


def _check_stop(stops: Callable[[], bool] | None, workers: Workers) -> None:
    if stops is not None and workers.sum(torch.tensor(float(stops()))) > 0:
        raise Stopped


def _reduced(sums: Sums, workers: Workers) -> Sums:
    """The sums over workers, in one exchange."""
    names = sorted(sums)
    flat = workers.sum(torch.cat([sums[name].reshape(-1) for name in names]))
    parts = torch.split(flat, [sums[name].numel() for name in names])
    return {name: part.reshape(sums[name].shape) for name, part in zip(names, parts, strict=True)}


def _gradients(wrapped: nn.Module, model: SequenceModel, step: Step, training: Training, workers: Workers,
               hooks: Hooks) -> tuple[Tensor, Tensor, bool, bool]:
    """Leave the gradient of the step's loss in the parameters.

    Returns:
        this worker's sum of losses, its weight; and whether some worker was asked to stop, and to save: all hear of it
        in the exchange that the weight needs.
    """
    micro = [b.to(workers.device) for b in step.micro]
    mine = torch.stack([model.task.weight(model, b).double() for b in micro]).sum()
    whole, stops, saves = mine, hooks.stops(), hooks.saves()
    if workers.world > 1:
        told = workers.sum(torch.cat([mine.reshape(1), mine.new_tensor([stops, saves])]))
        whole, stops, saves = told[0], bool(told[1] > 0), bool(told[2] > 0)
    whole = whole.clamp(min=1e-12)
    loss = torch.zeros((), dtype=torch.float64, device=workers.device)
    for number, batch in enumerate(micro):
        last = number == len(micro) - 1
        held = wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()
        with held:
            with autocast(training.precision, workers.device):
                total, _ = wrapped(batch)
            (total / whole.to(total.device, total.dtype)).backward()
        loss += total.detach().double()
    return loss, mine, stops, saves


def _check_finite(norm: Tensor, step: Step, number: int, now: float, training: Training) -> None:
    if math.isfinite(float(norm)):
        return
    raise Diverged(f"the gradient is {float(norm)} at step {number} of epoch {step.epoch} (learning rate "
                   f"{now:.3g}, precision {training.precision}, first rows {step.micro[0].row_ids[:5].tolist()}); "
                   "nothing was saved since the last checkpoint. Try a lower training.learning_rate, a longer "
                   "training.warmup or a smaller training.clip, and look for extreme values in the data")


def _advance(progress: Progress, step: Step) -> None:
    progress.step += 1
    progress.rows += step.rows
    progress.epoch, progress.place = step.epoch, (step.place[0], step.place[1] + 1)


def _end_epoch(model: SequenceModel, training: Training, progress: Progress, meter: _Meter, workers: Workers,
               hooks: Hooks, validate: Callable[[], dict[str, float]], rows: int, expected: int) -> None:
    """Reduce, audit, validate, decide and save; every worker decides the same, on reduced values."""
    meter.total(progress)
    if (progress.epoch_rows, progress.epoch_checksum) != (rows, expected):
        raise RuntimeError(f"epoch {progress.epoch} trained on {progress.epoch_rows} rows (checksum "
                           f"{progress.epoch_checksum}); the plan has {rows} (checksum {expected})")
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
    progress.epoch, progress.place = progress.epoch + 1, (0, 0)
    progress.epoch_rows = progress.epoch_checksum = 0
    progress.epoch_loss = progress.epoch_weight = 0.0
    hooks.epoch(metrics, progress)                   # before it is saved: nobody takes these steps again afterwards
    with meter.saving():
        hooks.save(progress, better)


def _check_counted(split: str, counted: bool) -> None:
    """Raise ValueError unless some row of a split counts in the loss: an epoch without a loss cannot be judged."""
    if not counted:
        raise ValueError(f"no row of the {split} split counts in the loss: all weigh 0, as where labels or values are "
                         "missing, or where, with task.kind=transcribe, each text needs more steps than its row has; "
                         "a smaller model.stack or model.hop_ms gives more steps")


def over(training: Training, progress: Progress) -> bool:
    """Whether nothing is left to train: all epochs are done, or patience has run out."""
    return progress.epoch >= training.epochs or (bool(training.patience) and progress.stale >= training.patience)


def _next(moving: Iterator[Step], meter: _Meter) -> Step | None:
    start = time.perf_counter()
    step = next(moving, None)
    meter.waited += time.perf_counter() - start
    return step


def _seed(device: torch.device, seed: int) -> None:
    """Seed the one generator that a step draws from; ``torch.manual_seed`` takes 0.3 ms to reach for all devices."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _mixed(*numbers: int) -> int:
    """One 63-bit seed of several numbers (splitmix64 steps)."""
    x = 0
    for number in numbers:
        x = (x + number + 0x9E3779B97F4A7C15) % (1 << 64)
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % (1 << 64)
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % (1 << 64)
        x ^= x >> 31
    return x >> 1


class _Meter:
    """Sums of this worker since the last look, and times.

    Seconds are counted from the start of training: `waited` for data, `saved` on checkpoints, and ``workers.seconds``
    in exchanges; a look takes the difference from a mark. Exchanges of gradients go on beside the backward pass, so
    that their seconds may be compute, too.
    """

    def __init__(self, workers: Workers) -> None:
        self.workers = workers
        self.device_sums = torch.zeros(2, dtype=torch.float64, device=workers.device)    # loss, weight: to be reduced
        self.logged = torch.zeros(2, dtype=torch.float64, device=workers.device)
        self.rows = self.checksum = 0
        self.waited = self.saved = 0.0
        self.told_saved = 0.0                            # of `saved`, what epochs have told
        self.steps, self.log_rows, self.epoch_rows = 0, 0, 0
        self.restart()

    def restart(self) -> None:
        """Begin the clocks of an epoch."""
        self.epoch_start, self.epoch_rows = time.perf_counter(), 0
        self.started_total = self.epoch_start
        self.epoch_mark = self._mark()
        self._clocks()

    def _mark(self) -> tuple[float, float, float]:
        return self.waited, self.workers.seconds, self.saved

    def _clocks(self) -> None:
        self.start, self.steps, self.log_rows = time.perf_counter(), 0, 0
        self.log_mark = self._mark()

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While a checkpoint is written."""
        start = time.perf_counter()
        yield
        self.saved += time.perf_counter() - start

    def add(self, loss: Tensor, weight: Tensor, step: Step) -> None:
        pair = torch.stack([loss, weight])
        self.device_sums += pair
        self.logged += pair
        self.rows += step.own_rows
        self.checksum = _wrap(self.checksum + step.checksum)
        self.steps += 1
        self.log_rows += step.rows
        self.epoch_rows += step.rows

    def since(self) -> dict[str, float]:
        """Loss, speed and times a step since the last call; on every worker, as it reduces."""
        waited, exchanged, saved = (now - then for now, then in zip(self._mark(), self.log_mark, strict=True))
        loss, weight = self.workers.sum(self.logged).tolist()
        seconds = time.perf_counter() - self.start
        per_step = 1000 / max(1, self.steps)
        out = {"train/step_loss": loss / max(weight, 1e-12), "train/rows_per_second": self.log_rows / seconds,
               "time/data_ms": waited * per_step, "time/communication_ms": exchanged * per_step,
               "time/checkpoint_ms": saved * per_step,
               "time/compute_ms": max(0.0, seconds - waited - exchanged - saved) * per_step}
        self.logged.zero_()
        self._clocks()
        return out

    def total(self, progress: Progress) -> None:
        """Add what all workers counted since the last call to `progress`."""
        loss, weight = self.workers.sum(self.device_sums).tolist()
        rows, checksum = self.workers.sum(torch.tensor([self.rows, self.checksum])).tolist()
        progress.epoch_loss += loss
        progress.epoch_weight += weight
        progress.epoch_rows += rows
        progress.epoch_checksum = _wrap(progress.epoch_checksum + checksum)
        self.device_sums.zero_()
        self.rows = self.checksum = 0
        now = time.perf_counter()
        progress.seconds += now - self.started_total
        self.started_total = now

    def epoch(self) -> dict[str, float]:
        """Speed of the epoch, and where its time went on all workers; on every worker, as it reduces.

        Validation is included in neither rows nor seconds. The checkpoint of an epoch's end counts for the next one.
        """
        seconds = max(1e-9, self.started_total - self.epoch_start)
        waited, exchanged, _ = (now - then for now, then in zip(self._mark(), self.epoch_mark, strict=True))
        before = self.epoch_mark[2] - self.told_saved
        saved, self.told_saved = self.saved - self.told_saved, self.saved
        computed = max(0.0, seconds + before - waited - exchanged - saved)
        told = torch.zeros(3 + self.workers.world, dtype=torch.float64)
        told[:3] = torch.tensor([waited, exchanged, saved])
        told[3 + self.workers.rank] = computed
        told = self.workers.sum(told)
        each = told[3:]
        whole = max(1e-9, float(told.sum()))
        parts = dict(zip(("data", "communication", "checkpoint", "compute"), [*told[:3].tolist(), float(each.sum())],
                         strict=True))
        out = {"train/epoch_seconds": seconds, "train/epoch_rows_per_second": self.epoch_rows / seconds,
               **{f"time/{name}_percent": 100 * part / whole for name, part in parts.items()}}
        if self.workers.world > 1:
            out["time/slowest_worker"] = float(each.argmax())
            out["time/slowest_worker_percent"] = 100 * (float(each.max()) / max(1e-9, float(each.median())) - 1)
        return out


def _wrap(x: int) -> int:
    """x modulo 2**64, as a signed number."""
    return (x + (1 << 63)) % (1 << 64) - (1 << 63)
