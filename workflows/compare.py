"""Every family on the same data with the same settings, in one Ray, ranked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from workflows import cluster
from workflows.console import Console, best_row, metrics_table
from workflows.experiment import Experiment, load


def compare(source: str | Path | None = None, overrides: list[str] | None = None, *, families: list[str],
            verbose: bool = False) -> dict[str, Any]:
    """Train each family once and rank them by the metric that the task decides on.

    Args:
        source: an experiment file, or None for the default on embedded data.
        overrides: ``section.key=value``, for all families.
        families: to compare.
        verbose: leave Ray's own messages on.

    Returns:
        ranking (best first), metrics by family, baselines, runs.

    Raises:
        ValueError: the user's mistakes; all families are checked before the first one is trained.
    """
    from workflows.train import train

    name = load(source, overrides).name
    experiments: dict[str, Experiment] = {
        family: load(source, [*(overrides or []), f"model.family={family}", f"name={name}-{family}"])
        for family in families}
    results: dict[str, dict[str, Any]] = {}
    console = Console()
    for experiment in experiments.values():
        cluster.check_paths(experiment)
    place = cluster.connect(next(iter(experiments.values())).workers, verbose=verbose)
    try:
        for family, experiment in experiments.items():
            console.say(f"\n== {family}")
            results[family] = train(experiment, verbose=verbose)
    finally:
        cluster.disconnect(place)
    first = next(iter(results.values()))
    split = "test" if any(k.startswith("test/") for k in first["metrics"]) else "validation"
    judged = f"{split}/{first['primary']}"
    sign = -1 if first["maximise"] else 1
    ranking = sorted(results, key=lambda f: sign * results[f]["metrics"][judged])
    methods = {**{family: results[family]["metrics"] for family in ranking}, **first["baselines"]}
    ranked = dict(sorted(methods.items(), key=lambda item: sign * item[1].get(judged, sign * math.inf)))
    trained = {family: f"{results[family]['seconds']:.1f}" for family in ranking}
    console.say(f"\nranked by {judged}, one seed each:")
    console.rich.print(metrics_table({**ranked, **best_row(first)}, {"seconds": trained}))
    for family in ranking:
        console.say(f"{family}: pictures in {results[family]['bundle'].removesuffix('bundle')}pictures")
    return {"ranking": ranking, "metrics": {f: results[f]["metrics"] for f in ranking}, "baselines": first["baselines"],
            "runs": {f: results[f]["run_id"] for f in ranking}}
