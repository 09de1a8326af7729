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


def train(project, *words):
    done = subprocess.run([sys.executable, "-m", "workflows", "train", *words, "training.epochs=1", "--json"],
                          cwd=project, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_there_is_an_example_of_each():
    assert [Path(name).parent.as_posix() for name in EXAMPLES] == ["datasets", "models/families", "models/tasks"]


def test_a_new_dataset_and_a_new_family_are_a_file_each(project):
    (project / "parity.yaml").write_text("name: parity\ndataset: {kind: parity, rows: 400}\ntask: {kind: classify}\n"
                                         "model: {family: average, hidden_size: 16}\n")
    result = train(project, "parity.yaml")
    assert result["best_reachable"] == {"accuracy": 1.0}
    assert 0 <= result["metrics"]["test/accuracy"] <= 1


def test_a_new_family_that_carries_a_state_decodes_too(project):
    result = train(project, "workflows/experiments/number_words.yaml", "model.family=average", "dataset.rows=300")
    assert 0 < result["metrics"]["test/loss"] < 5


def test_a_new_task_is_a_file(project):
    result = train(project, "workflows/experiments/article_lstm.yaml", "task.kind=median", "dataset.rows=400")
    assert result["primary"] == "mae"
    assert result["metrics"]["test/mae"] > 0
