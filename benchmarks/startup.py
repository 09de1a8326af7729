"""Compare the seconds from process start to the first optimizer step of one local worker with an empty TorchTrainer.

python -m benchmarks.startup [runs]      (from the project's root; prints a line per run and the median ratio)
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile

EMPTY = """
import sys, time, psutil
start = psutil.Process().create_time()
import torch, ray
from ray.train import ScalingConfig, RunConfig
from ray.train.torch import TorchTrainer
def enter(config):
    open(config["file"], "w").write(str(time.time()))
ray.init(address="local", log_to_driver=False)
TorchTrainer(enter, train_loop_config={"file": sys.argv[1]}, scaling_config=ScalingConfig(num_workers=1),
             run_config=RunConfig(storage_path=sys.argv[2])).fit()
print(float(open(sys.argv[1]).read()) - start)
"""


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        train = [
            sys.executable,
            "-m",
            "workflows",
            "train",
            "training.epochs=1",
            f"storage={folder}/runs",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
            "--json",
        ]
        subprocess.run(train, check=True, capture_output=True)  # prepares the data and fills the disk cache
        ratios = []
        for _ in range(runs):
            out = subprocess.run(train, check=True, capture_output=True, text=True).stdout
            ours = json.loads(out.splitlines()[-1])["first_step_seconds"]
            out = subprocess.run(
                [sys.executable, "-c", EMPTY, f"{folder}/entered", f"{folder}/empty"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
            empty = float(out.splitlines()[-1])
            ratios.append(ours / empty)
            print(f"first step {ours:.1f} s, empty TorchTrainer {empty:.1f} s, ratio {ratios[-1]:.2f}", flush=True)
        print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
