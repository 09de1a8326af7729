"""Accuracy on digits of a speaker who is not in the training data, for each of the six speakers, and their mean.

python -m benchmarks.speakers [key=value ...]      (needs RONDO_DATA; from the project's root)
"""

from __future__ import annotations

import statistics
import sys
import tempfile

from workflows.cluster import connect
from workflows.config.load import load
from workflows.train import train

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def main(overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        experiments = {
            speaker: load(
                "workflows/experiments/fsdd_speakers.yaml",
                [
                    f"dataset.split_values={{test: [{speaker}]}}",
                    f"name={speaker}",
                    f"storage={folder}",
                    f"tracking.uri=sqlite:///{folder}/mlflow.db",
                    *overrides,
                ],
            )
            for speaker in SPEAKERS
        }
        connection = connect.connect(experiments[SPEAKERS[0]].workers)
        results = []
        for speaker, experiment in experiments.items():
            result = train(experiment)
            results.append((speaker, result["metrics"]["test/accuracy"], result["seconds"]))
        connect.disconnect(connection)
    for speaker, accuracy, seconds in results:
        print(f"{speaker:10} {accuracy:.3f}  {seconds:.0f} s")
    print(f"{'mean':10} {statistics.mean(accuracy for _, accuracy, _ in results):.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
