"""Prepare an experiment's data without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workflows.cluster import connect
from workflows.config.experiment import Experiment
from workflows.config.load import load
from workflows.config.settings import Workers
from workflows.console import Console


def prepare_only(source: str | Path | None, overrides: list[str], *, verbose: bool = False) -> dict[str, Any]:
    """Prepare an experiment's data; where it is, and how much."""
    experiment: Experiment = load(source, overrides)
    connect.check_paths(experiment)
    with connect.import_in_background("workflows.training.data"):
        connection = connect.connect(Workers(), verbose=verbose)
    try:
        from workflows.cluster.preflight import check_nodes  # Ray Data, loaded while Ray started
        from workflows.training.data import prepare_data

        check_nodes(experiment)
        prepared = prepare_data(experiment)
    finally:
        connect.disconnect(connection)
    parts = {
        n: {"rows": int(sum(s.rows for s in p.shards)), "shards": len(p.shards), "bytes": p.bytes}
        for n, p in prepared.parts.items()
    }
    console = Console()
    console.notes(prepared)
    console.say(
        f"prepared data: {prepared.storage.uri}\n"
        + "\n".join(
            f"{n}: {p['rows']:,} stored rows in {p['shards']} shards, {p['bytes']:,} bytes" for n, p in parts.items()
        )
    )
    return {
        "prepared": prepared.storage.uri,
        "digest": prepared.digest,
        "parts": parts,
        "quarantined": prepared.quarantine.rows,
        "quarantine": prepared.quarantine.uri,
    }
