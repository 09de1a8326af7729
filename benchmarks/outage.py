"""Measure training speed while the MLflow server is down, and check that it receives everything afterwards.

python -m benchmarks.outage [seconds of the outage]      (from the project's root; takes about four times as long)
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from tests.faults import Server, launch, wait_until
from workflows.tracking.mlflow import connect

METRIC = "train/rows_per_second"


def points(folder: Path) -> list[tuple[float, int, float]]:
    """(time in seconds, step, rows/s) of all logged points."""
    spools = [path.read_bytes() for path in folder.glob("runs/*/tracking.jsonl")]
    lines = [json.loads(line) for spool in spools for line in spool.splitlines()]
    return [
        (line["time"] / 1000, line["step"], line["values"][METRIC])
        for line in lines
        if line["op"] == "metrics" and METRIC in line["values"]
    ]


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = Server(folder)
        server.ready()
        process = launch(
            folder,
            [
                sys.executable,
                "-m",
                "workflows",
                "train",
                "training.epochs=100000",
                "model.hidden_size=128",
                "workers.cpus=1",
                f"storage={folder}/runs",
                f"tracking.uri={server.uri}",
            ],
        )
        try:
            wait_until(lambda: len(points(folder)) > 5, folder)
            time.sleep(seconds / 2)  # the first steps are slower, while MLflow is imported
            start = time.time()
            time.sleep(seconds)
            server.stop()
            stopped = time.time()
            time.sleep(seconds)
            restarted = time.time()
            server.launch()
            server.ready()
            time.sleep(seconds / 2)
            process.send_signal(signal.SIGTERM)
            process.wait(90)
            logged = points(folder)
            up = [rate for at, _, rate in logged if start < at < stopped]
            down = [rate for at, _, rate in logged if stopped < at < restarted]
            before, during = statistics.median(up), statistics.median(down)
            print(
                f"{before:,.0f} rows/s before, {during:,.0f} while MLflow was down for {restarted - stopped:.0f} s: "
                f"ratio {during / before:.3f} ({len(up)} and {len(down)} points)"
            )
            client = connect(server.uri)
            runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
            steps = [p.step for p in client.get_metric_history(runs[0].info.run_id, METRIC)]
            complete = len(runs) == 1 and steps == [step for _, step, _ in logged]
            print(
                f"{len(steps)} of {len(logged)} points in {len(runs)} run{'s' * (len(runs) != 1)}, "
                f"{'each once' if complete else 'NOT each once'}"
            )
        finally:
            process.kill()
            server.stop()
    sys.exit(not complete)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0)
