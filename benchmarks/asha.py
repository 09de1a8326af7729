"""Compare ASHA with random search on ETTh1: after how many seconds of training is it as good?

python -m benchmarks.asha [trials] [epochs]      (needs RONDO_DATA; from the project's root)

Both search the space of workflows/experiments/etth1.yaml with a GRU. Random search trains each of its settings to the
end; the other one draws settings by TPE and stops trials by ASHA, as `search` does by default. Neither uses the
starting point in the file. Seconds are those of training, summed over trials in the order in which their epochs ended.
"""

from __future__ import annotations

import sys
import tempfile

from workflows.search import search


def progress(trials: list[dict], metric: str) -> list[tuple[float, float]]:
    """(seconds of training so far in all trials, lowest validation metric so far) after each epoch."""
    epochs = []
    for trial in trials:
        total = sum(h["train/epoch_seconds"] for h in trial["history"])
        passed = 0.0
        for h in trial["history"]:
            passed += h["train/epoch_seconds"]
            ended = trial["started"] + (trial["ended"] - trial["started"]) * passed / total
            epochs.append((ended, h["train/epoch_seconds"], h[f"validation/{metric}"]))
    used, best, points = 0.0, float("inf"), []
    for _, seconds, value in sorted(epochs):
        used, best = used + seconds, min(best, value)
        points.append((used, best))
    return points


def main(trials: int, epochs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        common = [
            "search.start=[]",
            f"search.trials={trials}",
            f"training.epochs={epochs}",
            "model.family=gru",
            f"storage={folder}/runs",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
        ]
        by_name = {}
        for name, options in (("random", ["search.searcher=random", "search.scheduler=none"]), ("asha", [])):
            result = search("workflows/experiments/etth1.yaml", overrides=[*common, *options], progress=False)
            by_name[name] = progress(result["trials"], result["primary"])
            used, best = by_name[name][-1]
            print(
                f"{name}: best validation/{result['primary']} {best:.4f} after {used:.0f} s "
                f"of training ({result['seconds']:.0f} s of wall-clock time); the best on test: mse "
                f"{result['metrics']['test/mse']:.4f}; {result['best']['settings']}",
                flush=True,
            )
    goal = by_name["random"][-1][1]
    as_good = next((used for used, best in by_name["asha"] if best <= goal), None)
    if as_good is None:
        print(f"asha did not reach {goal:.4f}")
    else:
        share = as_good / by_name["random"][-1][0]
        print(f"asha reached {goal:.4f} after {as_good:.0f} s, {share:.2f} of the seconds of random search")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 24, int(sys.argv[2]) if len(sys.argv) > 2 else 8)
