"""Who may import what (DESIGN.md's table), read from the files themselves.

The table as the code needs it, beside its text:

- An import counts wherever it stands: at the top, in a function, under TYPE_CHECKING, or as a literal name given to
  ``importlib.import_module`` or ``__import__``. A type that a file may not import is no type for its signatures.
- datasets/ may name the errors of Ray (``ray.exceptions``), which it must tell apart from the user's; prepare.py and
  ingest.py may import ``ray`` itself, for ``ray.get``. Nothing in datasets/ imports ingest.py, which needs torch.
- loop.py, checkpoint.py and bundle.py may also import settings.py (standard library only) and each other's files.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODELS = {"torch", "torchmetrics", "sacrebleu", "numpy", "models", "tokenizers", "rapidfuzz"}
DATASETS = {"ray.data", "ray.exceptions", "pyarrow", "numpy", "tokenizers", "soundfile", "soxr", "datasets"}
LOOP = {"torch", "numpy", "safetensors", "models", "workflows.settings", "workflows.checkpoint"}
WORKFLOWS = MODELS | DATASETS | LOOP | {"ray", "workflows", "pydantic", "yaml", "click", "rich", "matplotlib", "optuna",
                                        "psutil", "mido", "scipy", "jinja2"}
FILES = {
    "datasets/prepare.py": DATASETS | {"ray"},
    "datasets/ingest.py": DATASETS | {"ray", "torch"},
    "workflows/settings.py": set(),
    "workflows/loop.py": LOOP, "workflows/checkpoint.py": LOOP, "workflows/bundle.py": LOOP,
    "workflows/tracking.py": {"mlflow", "ray", "psutil", "pynvml", "workflows", "datasets.storage"},
}
FOLDERS = {"models": MODELS, "datasets": DATASETS, "workflows": WORKFLOWS}


def allowed(file: str) -> set[str]:
    """What a file may import besides the standard library: names of modules, their submodules included."""
    return FILES.get(file, FOLDERS[file.partition("/")[0]])


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file of `package` imports, names taken from modules included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[:len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def within(name: str, modules: set[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def breaches(file: str, source: str) -> list[str]:
    """Imports of a file (its path from the root) that the table does not allow."""
    package = file.rpartition("/")[0].replace("/", ".")
    found = []
    for line, name in imports(source, package):
        standard = name.partition(".")[0] in sys.stdlib_module_names
        from_ingest = file.startswith("datasets/") and within(name, {"datasets.ingest"})
        if not standard and (from_ingest or not within(name, allowed(file))):
            found.append(f"{file}:{line} imports {name}")
    return found


def sources() -> list[str]:
    return [p.relative_to(ROOT).as_posix() for folder in FOLDERS for p in sorted((ROOT / folder).rglob("*.py"))]


def test_every_file_keeps_to_the_table():
    found = [breach for file in sources() for breach in breaches(file, (ROOT / file).read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_the_table_names_files_that_exist():
    assert set(FILES) <= set(sources())
    assert {"models/families/gru.py", "datasets/timeseries.py", "workflows/__main__.py"} <= set(sources())


@pytest.mark.parametrize(("file", "source"), [
    ("models/batch.py", "import pyarrow"),
    ("models/tasks/forecast.py", "from datasets.plan import Plan"),
    ("models/tasks/forecast.py", "def f():\n    import ray"),
    ("models/families/gru.py", "from ... import workflows"),
    ("datasets/timeseries.py", "import torch"),
    ("datasets/timeseries.py", "import ray"),
    ("datasets/files.py", "from ray import get"),
    ("datasets/files.py", "import ray.train"),
    ("datasets/audio.py", "from datasets.ingest import Ingest"),
    ("datasets/audio.py", "from . import ingest"),
    ("datasets/audio.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
    ("datasets/plan.py", "import pandas as pd"),
    ("workflows/settings.py", "import numpy"),
    ("workflows/loop.py", "from workflows.experiment import load"),
    ("workflows/loop.py", "import ray.train"),
    ("workflows/bundle.py", "from datasets.storage import Storage"),
    ("workflows/train.py", "import mlflow"),
    ("workflows/train.py", "import importlib\nimportlib.import_module('mlflow.entities')"),
    ("workflows/search.py", "client = __import__('mlflow')"),
    ("workflows/tracking.py", "import torch"),
])
def test_a_planted_breach_is_found(file, source):
    assert len(breaches(file, source)) == 1


@pytest.mark.parametrize(("file", "source"), [
    ("models/tasks/transcribe.py", "import torchmetrics.text\nfrom . import forecast\nfrom ..batch import Batch"),
    ("datasets/audio.py", "import ray.data\nimport soundfile as sf\nfrom datasets.views import RowView\nimport wave"),
    ("datasets/ingest.py", "import ray\nfrom ray.train import DataConfig\nimport torch"),
    ("workflows/loop.py", "import torch.distributed as dist\nfrom workflows.settings import Training"),
    ("workflows/tracking.py", "def f():\n    from mlflow import MlflowClient"),
    ("workflows/search.py", "from ray import tune\nimport optuna\nfrom workflows.train import train"),
])
def test_what_the_table_allows_is_no_breach(file, source):
    assert breaches(file, source) == []
