"""Measure a bundle; prepare data without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets.storage import Storage
from workflows import cluster
from workflows.console import Console, metrics_table
from workflows.experiment import Experiment, dataset_of, load, task_of
from workflows.settings import Workers


def evaluate(bundle: str | Path, overrides: list[str] | None = None, *, split: str = "test",
             verbose: bool = False) -> dict[str, Any]:
    """The metrics of a bundle on every row of a split, by the data of its experiment.

    Args:
        bundle: its folder or URI.
        overrides: changes to its experiment: ``dataset.path=...`` for other data, ``storage=...`` and so on.
        split: train, validation or test.
        verbose: leave Ray's own messages on.

    Returns:
        metrics (flat), their signatures, baselines, rows, run (that made the bundle), run_id (in MLflow; None where it
        is not found).

    Raises:
        ValueError: not a bundle, other data that does not fit, no such split.
    """
    import torch

    from datasets.records import Records
    from workflows import bundle as bundles
    from workflows import loop, tracking
    from workflows.train import cached_parts, prepare
    from workflows.worker import Data

    folder = open_bundle(bundle)
    told = bundles.load(folder)
    experiment = load(told.experiment, overrides)
    cluster.check_paths(experiment)
    tracking.check(experiment.tracking.uri)
    place = cluster.connect(Workers(cpus=experiment.workers.cpus), verbose=verbose)
    try:
        dataset = dataset_of(experiment)
        if isinstance(dataset, Records) and experiment.dataset != load(told.experiment).dataset:
            dataset.reuse(told.state)                  # other data: the bundle's vocabulary, classes and scaling
        prepared = prepare(experiment, dataset)
        console = Console()
        console.notes(prepared)
        spec = dataset.spec(prepared.state, task_of(experiment, dataset))
        if spec != told.spec:
            changed = [f"{k}: {told.spec.get(k)!r} in the bundle, {spec[k]!r} here" for k in spec
                       if spec[k] != told.spec.get(k)]
            raise ValueError(f"this data does not fit the bundle ({'; '.join(changed)}); "
                             "give data with the same columns")
        if prepared.state.get("channels") != told.state.get("channels"):
            raise ValueError(f"this data does not fit the bundle: its columns and categories are "
                             f"{prepared.state['channels']} here, {told.state['channels']} in the bundle; give data "
                             "with the same ones")
        workers = loop.Workers(torch.device("cpu"))
        data = Data(experiment, prepared, cached_parts(experiment, prepared), workers)
        if split not in data.splits:
            raise ValueError(f"--split {split}: this data has {', '.join(data.splits)}")
        torch.set_num_threads(place.cpus)
        found = loop.evaluate(told.model, data.evaluation(split), workers, baselines=True,
                              precision=experiment.training.precision)
        rows = data.ingest(split, training=False).plan.total
    finally:
        cluster.disconnect(place)
    metrics = {f"{split}/{k}": v for k, v in found.metrics.pop("model").items()}
    others = {m: {f"{split}/{k}": v for k, v in values.items()} for m, values in found.metrics.items()}
    run_id = tracking.find(experiment.tracking.uri, told.run)
    console.rich.print(metrics_table({"model": metrics, **others}))
    signatures = dict(told.model.task.signatures)
    console.signatures(signatures)
    console.say(f"{rows:,} rows")
    return {"metrics": metrics, "signatures": signatures, "baselines": others, "rows": rows, "run": told.run,
            "run_id": run_id, "bundle": folder.uri}


def prepare_only(source: str | Path | None, overrides: list[str], *, verbose: bool = False) -> dict[str, Any]:
    """Prepare an experiment's data, and say where it is and how much."""
    from workflows.train import check_nodes, prepare

    experiment: Experiment = load(source, overrides)
    cluster.check_paths(experiment)
    place = cluster.connect(Workers(), verbose=verbose)
    try:
        check_nodes(experiment)
        prepared = prepare(experiment)
    finally:
        cluster.disconnect(place)
    parts = {n: {"rows": int(sum(s.rows for s in p.shards)), "shards": len(p.shards), "bytes": p.bytes}
             for n, p in prepared.parts.items()}
    console = Console()
    console.notes(prepared)
    console.say(f"prepared data: {prepared.storage.uri}\n" + "\n".join(
        f"{n}: {p['rows']:,} stored rows in {p['shards']} shards, {p['bytes']:,} bytes" for n, p in parts.items()))
    return {"prepared": prepared.storage.uri, "digest": prepared.digest, "parts": parts,
            "quarantined": prepared.quarantine.rows, "quarantine": prepared.quarantine.uri}


def open_bundle(bundle: str | Path) -> Storage:
    """The folder of a bundle, also when its run's folder is named.

    Raises:
        ValueError: there is no such folder, or it holds no bundle.
    """
    folder = Storage(bundle)
    if folder.exists("bundle/manifest.json"):
        return folder / "bundle"
    if folder.local is not None and not folder.local.is_dir():
        kind = "a file, not a folder" if folder.local.exists() else "no such folder"
        raise ValueError(f"{folder.uri}: {kind}; a bundle is the folder that `train` names at its end")
    if not folder.exists("manifest.json"):
        raise ValueError(f"{folder.uri}: not a bundle: it has no manifest.json")
    if b'"bundle.json"' not in folder.read("manifest.json"):
        raise ValueError(f"{folder.uri}: not a bundle, but something else with a manifest.json")
    return folder
