"""Pictures of runs, drawn in a process that has pictures of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRAW = """
import sys
from pathlib import Path
import matplotlib
from workflows import pictures

def draw(file, names):
    pictures.confusion({"matrix": [[9, 1, 0], [2, 7, 0], [0, 0, 5]]}, names, "test", Path(file))
    pictures.decisions({k: [9, 1, 5] for k in ("true_positive", "false_positive", "false_negative")}, names, "test",
                       Path(file).with_suffix(".decisions.png"))
    history = [{"epoch": e, "step": e, "train/loss": 1.0, "validation/loss": 2.0, f"validation/{names[0]}": 3.0}
               for e in range(3)]
    pictures.learning_curve(history, names[0], 2, Path(file).with_suffix(".learning.png"))
"""


def run(code, folder):
    subprocess.run([sys.executable, "-c", DRAW + code, str(folder)], cwd=ROOT, check=True, timeout=100)


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    run("""
matplotlib.use("svg")
matplotlib.rcParams["lines.linewidth"] = 3.5
before = matplotlib.rcParams.copy()
draw(f"{sys.argv[1]}/a.png", ["a", "b", "c"])
assert "matplotlib.pyplot" not in sys.modules
assert dict(matplotlib.rcParams) == dict(before) and matplotlib.get_backend() == "svg"
from matplotlib import pyplot
assert not pyplot.get_fignums()
""", tmp_path)


@pytest.mark.parametrize("names", [["$a$", "5 $", "$b_{"], ["$\\frac", "a", "$x^2$"]])
def test_a_name_with_a_dollar_sign_is_no_formula(tmp_path, names):
    run(f"""
names = {names!r}
draw(f"{{sys.argv[1]}}/a.png", names)
matplotlib.rcParams["text.parse_math"] = False
draw(f"{{sys.argv[1]}}/b.png", names)
""", tmp_path)
    for end in (".png", ".decisions.png", ".learning.png"):
        assert (tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes()
