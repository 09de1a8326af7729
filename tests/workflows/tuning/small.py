"""A small search, and its runs in MLflow: for the tests of searches."""

from __future__ import annotations

from workflows.tracking.mlflow import connect

SMALL = {
    "name": "small",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 30, "series": 2},
    "task": {"kind": "forecast", "lookback": 48, "horizon": 24},
    "model": {"family": "gru", "hidden_size": 16, "patch": 24},
    "training": {"epochs": 2, "learning_rate": 5e-3},
    "search": {
        "trials": 4,
        "scheduler": "none",
        "space": {
            "training.learning_rate": {"loguniform": [1e-3, 1e-2]},
            "model.family": {"choice": ["gru", "transformer"]},
            "model.heads": {"choice": [2, 4], "when": {"model.family": "transformer"}},
        },
    },
}


def small_search(folder, **changes):
    """SMALL with its files in `folder`, and some settings of its search changed."""
    return {
        **SMALL,
        "storage": f"{folder}/runs",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "search": {**SMALL["search"], **changes},
    }


def mlflow_runs(folder, name="small"):
    """All of MLflow's runs by the number of their trial; the run of the search under None."""
    client = connect(f"sqlite:///{folder}/mlflow.db")
    all_runs = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
    assert len({r.data.tags["rondo.key"] for r in all_runs}) == len(all_runs)
    return {r.data.tags.get("rondo.trial"): r for r in all_runs}
