"""Pictures from plain data: each kind of artifact, a new task, and what drawing leaves as it was."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import models
from models.batch import Batch
from models.sequence import Artifact
from models.tasks.regress import Regress
from workflows.reporting import pictures
from workflows.reporting.pictures import Labels

ROOT = Path(__file__).parents[3]
DRAW = """
import sys
from pathlib import Path
import matplotlib
from workflows.reporting import pictures

def draw(file, names):
    labels = pictures.Labels("test", names, [], None)
    pictures.confusion({"matrix": [[9, 1, 0], [2, 7, 0], [0, 0, 5]]}, labels, Path(file))
    pictures.decisions({k: [9, 1, 5] for k in ("true_positive", "false_positive", "false_negative")}, labels,
                       Path(file).with_suffix(".decisions.png"))
    history = [{"epoch": e, "step": e, "train/loss": 1.0, "validation/loss": 2.0, f"validation/{names[0]}": 3.0}
               for e in range(3)]
    pictures.learning_curve(history, names[0], 2, Path(file).with_suffix(".learning.png"))
"""

LABELS = Labels("test", ["a $1^2$", "b"], ["first", ""], None)
WAVE = np.sin(np.arange(12)).tolist()
ARRAYS = {
    "forecast": {"series": [0, 1], "history": [WAVE, WAVE], "truth": [[1.0, 2.0]] * 2, "forecast": [[1.5, 1.0]] * 2},
    "transcript": {
        "frames": [np.eye(9, 4).tolist()],
        "steps": [[0, 5]],
        "tokens": [["a", " "]],
        "reference": ["a"],
        "predicted": ["b"],
    },
    "attention": {
        "matrix": [[[0.1, 0.9], [0.5, 0.5]]],
        "tokens": [["x"]],
        "source": [[4, 5]],
        "reference": ["x"],
        "predicted": ["x"],
    },
    "confusion": {"matrix": [[3, 1], [0, 2]]},
    "decisions": {name: [1, 2] for name in ("true_positive", "false_positive", "false_negative", "true_negative")},
}
ARRAYS["forecast interval"] = ARRAYS["forecast"] | {"low": [[0.0, 0.0]] * 2, "high": [[3.0, 3.0]] * 2}
ARRAYS["forecast interval"]["probability"] = [0.8, 0.8]


def test_every_kind_that_can_be_drawn_is_tested():
    assert {kind.partition(" ")[0] for kind in ARRAYS} == set(pictures.DRAWINGS)


@pytest.mark.parametrize("kind", ARRAYS)
def test_an_artifact_of_plain_lists_is_drawn(tmp_path, kind):
    draw, name = pictures.DRAWINGS[kind.partition(" ")[0]]
    draw(ARRAYS[kind], LABELS, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["confusion", "decisions"])
def test_too_many_classes_are_not_drawn(tmp_path, kind):
    draw, name = pictures.DRAWINGS[kind]
    draw(ARRAYS[kind], Labels("test", ["a"] * (pictures.MAX_CLASSES + 1), [], None), tmp_path / name)
    assert not list(tmp_path.iterdir())


class Pictured(Regress):
    """A new task that draws what it predicts."""

    def examples(self, model, rows):
        arrays = {"history": [], "truth": [], "forecast": []}
        for row in rows:
            arrays["history"].append(row.inputs["values"][0, :, 0].tolist())
            arrays["truth"].append(row.targets["numbers"][0].tolist())
            arrays["forecast"].append(self.predict(model, row)["value"][0].tolist())
        return [Artifact("forecast", arrays)]


def test_a_new_task_has_pictures_without_a_change_to_any_other_file(tmp_path):
    spec = {"frontend": "frames", "channels": 1, "targets": 2, "mean": None, "std": None}
    model = models.build(spec, {"family": "gru", "hidden_size": 4}, {"kind": "regress"}).eval()
    model.task = Pictured(spec, {"size": 4, "backward": 0}, pooling="last", dropout=0.0)
    lengths = {"values": torch.tensor([5])}
    rows = [
        Batch({"values": torch.randn(1, 5, 1)}, lengths, {"numbers": torch.randn(1, 2)}, torch.ones(1), torch.zeros(1))
        for _ in range(3)
    ]
    with torch.inference_mode():
        [artifact] = model.task.examples(model, rows)
    draw, name = pictures.DRAWINGS[artifact.kind]
    draw(artifact.arrays, Labels("test", ["height", "weight"], [], None), tmp_path / name)
    assert (tmp_path / "forecasts.png").stat().st_size > 5000


def run(code, folder):
    subprocess.run([sys.executable, "-c", DRAW + code, str(folder)], cwd=ROOT, check=True, timeout=100)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    run(
        """
matplotlib.use("svg")
matplotlib.rcParams["lines.linewidth"] = 3.5
before = matplotlib.rcParams.copy()
draw(f"{sys.argv[1]}/a.png", ["a", "b", "c"])
assert "matplotlib.pyplot" not in sys.modules
assert dict(matplotlib.rcParams) == dict(before) and matplotlib.get_backend() == "svg"
from matplotlib import pyplot
assert not pyplot.get_fignums()
""",
        tmp_path,
    )


@pytest.mark.parametrize("names", [["$a$", "5 $", "$b_{"], ["$\\frac", "a", "$x^2$"]])
def test_a_name_with_a_dollar_sign_is_no_formula(tmp_path, names):
    run(
        f"""
names = {names!r}
draw(f"{{sys.argv[1]}}/a.png", names)
matplotlib.rcParams["text.parse_math"] = False
draw(f"{{sys.argv[1]}}/b.png", names)
""",
        tmp_path,
    )
    for end in (".png", ".decisions.png", ".learning.png"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()
