"""Evaluation: metrics of a model and of the baselines over all rows and workers. Plain torch, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.sequence import Artifact, Baseline, RecurrentState, SequenceModel, Sums
from workflows.training.loop import Stopped, autocast
from workflows.training.progress import Step
from workflows.training.worker_group import WorkerGroup


@dataclass
class Evaluation:
    """Metrics by method (``model`` and the baselines), and the model's artifacts."""

    metrics: dict[str, dict[str, float]]
    artifacts: list[Artifact]


def evaluate(
    model: SequenceModel,
    steps: Iterable[Step],
    workers: WorkerGroup,
    *,
    precision: str = "fp32",
    baselines: bool = False,
    fitted: Iterable[Baseline] = (),
    quick: bool = False,
    on_step: Callable[[dict[str, Sums]], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Evaluation:
    """Compute metrics over all steps and workers.

    Args:
        model: in any mode; it is left in training mode.
        steps: the rows to evaluate on, for this worker.
        workers: all of them.
        precision: fp32, bf16 or fp64.
        baselines: whether to evaluate the task's baselines too.
        fitted: baselines that were fitted, to evaluate too.
        quick: whether the task may decode in its cheapest way, as validation during training does.
        on_step: called with this worker's sums of each step, by method.
        should_stop: called at each step.

    Raises:
        Stopped: `should_stop` returned True on some worker.
    """
    totals: dict[str, Sums] = {}

    def add(into: dict[str, Sums], method: str, sums: Sums) -> None:
        totals_of = into.setdefault(method, {})
        for name, value in sums.items():
            totals_of[name] = totals_of[name] + value.double() if name in totals_of else value.double()

    training_state, model.recurrent_state = model.recurrent_state, RecurrentState()  # evaluation has lanes of its own
    model.eval()
    model.task.quick = quick
    with torch.inference_mode():
        for step in steps:
            check_stop(should_stop, workers)
            step_sums: dict[str, Sums] = {}
            for batch in step.micro:
                batch = batch.to(workers.device)
                with autocast(precision, workers.device):
                    add(step_sums, "model", model.task.metrics(model, batch))
                if baselines:
                    for method, sums in model.task.baselines(batch).items():
                        add(step_sums, method, sums)
                    for baseline in fitted:
                        add(step_sums, baseline.name, baseline.metrics(batch))
            for method, sums in step_sums.items():
                add(totals, method, sums)
            if on_step is not None:
                on_step(step_sums)
    model.train()
    model.recurrent_state = training_state
    reduced = {method: reduce_sums(into, workers) for method, into in totals.items()}
    return Evaluation(
        {method: model.task.result(sums) for method, sums in reduced.items()}, model.task.artifacts(reduced["model"])
    )


def fit_baselines(
    baselines: Iterable[Baseline],
    steps: Iterable[Step],
    workers: WorkerGroup,
    should_stop: Callable[[], bool] | None = None,
) -> None:
    """Fit baselines in one pass over the training rows, from sums over all workers.

    Raises:
        Stopped: `should_stop` returned True on some worker.
    """
    baselines = list(baselines)
    sums: dict[str, Tensor] = {}
    for step in steps:
        check_stop(should_stop, workers)
        for batch in step.micro:
            batch = batch.to(workers.device)
            for method in baselines:
                moments = method.moments(batch)
                sums[method.name] = sums[method.name] + moments if method.name in sums else moments
    for method in baselines:
        method.fit(workers.sum(sums[method.name]).to(workers.device))


def check_stop(should_stop: Callable[[], bool] | None, workers: WorkerGroup) -> None:
    """Raise Stopped on all workers if `should_stop` returns True on one of them."""
    if should_stop is not None and workers.sum(torch.tensor(float(should_stop()))) > 0:
        raise Stopped


def reduce_sums(sums: Sums, workers: WorkerGroup) -> Sums:
    """The sums over workers, in one all-reduce."""
    names = sorted(sums)
    flat = workers.sum(torch.cat([sums[name].reshape(-1) for name in names]))
    parts = torch.split(flat, [sums[name].numel() for name in names])
    return {name: part.reshape(sums[name].shape) for name, part in zip(names, parts, strict=True)}
