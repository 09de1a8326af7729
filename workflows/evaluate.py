"""Evaluate a bundle on a split of its data, or of other data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from datasets.shared.records import Records
from workflows.cluster import connect
from workflows.config.load import load
from workflows.config.settings import Workers
from workflows.console import Console, metrics_table
from workflows.errors import UserError, user_mistakes
from workflows.runs import open_bundle
from workflows.tracking import mlflow
from workflows.training import bundle as bundles
from workflows.training import evaluation, worker_group


def evaluate(
    bundle: str | Path, overrides: list[str] | None = None, *, split: str = "test", verbose: bool = False
) -> dict[str, Any]:
    """Compute the metrics of a bundle on every row of a split.

    Args:
        bundle: its folder or URI.
        overrides: of its experiment, such as ``dataset.path=...`` for other data.
        split: train, validation or test.
        verbose: show Ray's messages.

    Returns:
        metrics (flat), their signatures, baselines, rows, run (that trained the bundle), run_id (in MLflow; None if
        it is not found).

    Raises:
        ValueError: not a bundle, other data that does not fit, no such split.
    """
    folder = open_bundle(bundle)
    trained = bundles.load(folder)
    experiment = load(trained.experiment, overrides)
    connect.check_paths(experiment)
    mlflow.check(experiment.tracking.uri)
    with connect.import_in_background("workflows.training.data"):
        connection = connect.connect(Workers(cpus=experiment.workers.cpus), verbose=verbose)
    try:
        from workflows.training.data import Data, cache_parts, prepare_data  # Ray Data, loaded while Ray started

        dataset = experiment.raw_dataset
        if isinstance(dataset, Records) and experiment.dataset != load(trained.experiment).dataset:
            with user_mistakes():
                dataset.reuse(trained.state)  # other data: the bundle's vocabulary, classes and scaling
        prepared = prepare_data(experiment)
        console = Console()
        console.notes(prepared)
        spec = dataset.spec(prepared.state, experiment.resolved_task)
        if spec != trained.spec:
            changed = [
                f"{k}: {trained.spec.get(k)!r} in the bundle, {spec[k]!r} here"
                for k in spec
                if spec[k] != trained.spec.get(k)
            ]
            raise UserError(
                f"this data does not fit the bundle ({'; '.join(changed)}); give data with the same columns"
            )
        if prepared.state.get("channels") != trained.state.get("channels"):
            raise UserError(
                f"this data does not fit the bundle: its columns and categories are "
                f"{prepared.state['channels']} here, {trained.state['channels']} in the bundle; give data "
                "with the same ones"
            )
        workers = worker_group.WorkerGroup(torch.device("cpu"))
        data = Data(experiment, prepared, cache_parts(experiment, prepared), workers)
        if split not in data.splits:
            raise UserError(f"--split {split}: this data has {', '.join(data.splits)}")
        torch.set_num_threads(connection.cpus)
        evaluated = evaluation.evaluate(
            trained.model, data.evaluation(split), workers, baselines=True, precision=experiment.training.precision
        )
        rows = data.ingest(split, training=False).plan.total
    finally:
        connect.disconnect(connection)
    metrics = {f"{split}/{k}": v for k, v in evaluated.metrics.pop("model").items()}
    baselines = {m: {f"{split}/{k}": v for k, v in values.items()} for m, values in evaluated.metrics.items()}
    run_id = mlflow.find(experiment.tracking.uri, trained.run)
    console.rich.print(metrics_table({"model": metrics, **baselines}))
    signatures = dict(trained.model.task.signatures)
    console.signatures(signatures)
    console.say(f"{rows:,} rows")
    return {
        "metrics": metrics,
        "signatures": signatures,
        "baselines": baselines,
        "rows": rows,
        "run": trained.run,
        "run_id": run_id,
        "bundle": folder.uri,
    }
