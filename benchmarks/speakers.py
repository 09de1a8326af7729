"""Digits of a speaker whom training never heard, each of the six in turn, and the mean of their accuracies.

python -m benchmarks.speakers [key=value ...]      (needs RONDO_DATA; from the project's root)
"""

from __future__ import annotations

import statistics
import sys
import tempfile

from workflows import cluster
from workflows.experiment import load
from workflows.train import train

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        experiments = {speaker: load("workflows/experiments/fsdd_speakers.yaml", [
            f"dataset.split_values={{test: [{speaker}]}}", f"name={speaker}", f"storage={folder}",
            f"tracking.uri=sqlite:///{folder}/mlflow.db", *overrides]) for speaker in SPEAKERS}
        place = cluster.connect(experiments[SPEAKERS[0]].workers)
        told = []
        for speaker, experiment in experiments.items():
            result = train(experiment)
            told.append((speaker, result["metrics"]["test/accuracy"], result["seconds"]))
        cluster.disconnect(place)
    for speaker, accuracy, seconds in told:
        print(f"{speaker:10} {accuracy:.3f}  {seconds:.0f} s")
    print(f"{'mean':10} {statistics.mean(accuracy for _, accuracy, _ in told):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
