"""The examples of CONTRIBUTING.md, each written into its place in a copy of the project, and trained with."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of what the examples stand on, with the examples in it."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("datasets", "models", "workflows"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, code in EXAMPLES.items():
        assert not (folder / name).exists(), f"{name} is a file of the project already"
        (folder / name).write_text(code)
    return folder


TRAININGS = {
    "parity": ("parity.yaml",),
    "number_words": ("workflows/experiments/number_words.yaml", "model.family=average", "dataset.rows=300"),
    "median": ("workflows/experiments/article_lstm.yaml", "task.kind=median", "dataset.rows=400"),
}
SCRIPT = """
import json
import sys

import ray

from workflows.cluster.connect import set_environment
from workflows.train import train

set_environment()
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
trainings = json.loads(sys.argv[1])
results = {
    name: train(source, overrides=[*overrides, "training.epochs=1"], progress=False)
    for name, (source, *overrides) in trainings.items()
}
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def trained(project):
    """The results of all trainings, one after the other in one process and its Ray."""
    (project / "parity.yaml").write_text(
        "name: parity\ndataset: {kind: parity, rows: 400}\ntask: {kind: classify}\n"
        "model: {family: average, hidden_size: 16}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(TRAININGS)],
        cwd=project,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_there_is_an_example_of_each():
    assert [Path(name).parent.as_posix() for name in EXAMPLES] == [
        "datasets/synthetic",
        "models/families",
        "models/tasks",
    ]


def test_a_new_dataset_and_a_new_family_are_a_file_each(trained):
    result = trained["parity"]
    assert result["best_reachable"] == {"accuracy": 1.0}
    assert 0 <= result["metrics"]["test/accuracy"] <= 1


def test_a_new_family_that_carries_a_state_decodes_too(trained):
    assert 0 < trained["number_words"]["metrics"]["test/loss"] < 5


def test_a_new_task_is_a_file(trained):
    assert trained["median"]["primary"] == "mae"
    assert trained["median"]["metrics"]["test/mae"] > 0
