"""Who may import what, and that nothing imports itself in a circle, read from the files themselves.

The table as the code needs it:

- An import counts wherever it stands: at the top, in a function, under TYPE_CHECKING, or as a literal name given to
  ``importlib.import_module`` or ``__import__``. A type that a file may not import is no type for its signatures.
- models/ needs torch alone and knows no Ray, no files. datasets/ knows no torch; it may name the errors of Ray
  (``ray.exceptions``), and only the pipeline imports ``ray`` itself.
- The loop and what it needs (``LOOP``) know no Ray, no files and no tracking. mlflow is imported in one folder.
- reporting/ and tracking/ know nothing of clusters and searches.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODELS = {"torch", "sacrebleu", "numpy", "models", "tokenizers", "rapidfuzz"}
SHARED_TABLES = {"models.special_tokens", "models.splitmix64"}  # tables and arithmetic without torch
DATASETS = {"ray.data", "ray.exceptions", "pyarrow", "numpy", "tokenizers", "soundfile", "soxr", "datasets"}
LOOP = {"torch", "numpy", "safetensors", "models", "workflows.config.settings", "workflows.errors"}
LOOP |= {
    f"workflows.training.{name}" for name in ("progress", "worker_group", "meter", "loop", "evaluation", "checkpoint")
}
LIGHT = {"datasets", "models", "numpy", "torch", "workflows.config", "workflows.errors", "workflows.runs"}
LIGHT |= {"workflows.training", "workflows.strict_json", "yaml", "psutil"}
WORKFLOWS = MODELS | DATASETS | LIGHT | {"ray", "workflows", "pydantic", "click", "rich", "safetensors", "pyarrow"}
PLACES = {  # the longest prefix of a file's path decides
    "models/": MODELS,
    "datasets/": DATASETS | SHARED_TABLES,
    "datasets/pipeline/": DATASETS | SHARED_TABLES | {"ray"},
    "workflows/": WORKFLOWS,
    "workflows/errors.py": set(),
    "workflows/config/": {"datasets", "models", "torch", "pydantic", "yaml", "workflows.config", "workflows.errors"},
    "workflows/config/settings.py": set(),
    "workflows/training/loop.py": LOOP,
    "workflows/training/progress.py": LOOP,
    "workflows/training/worker_group.py": LOOP,
    "workflows/training/meter.py": LOOP,
    "workflows/training/evaluation.py": LOOP,
    "workflows/training/checkpoint.py": LOOP,
    "workflows/training/bundle.py": LOOP,
    "workflows/tuning/": WORKFLOWS | {"optuna", "scipy"},
    "workflows/tracking/": {
        "mlflow",
        "workflows.strict_json",
        "ray",
        "psutil",
        "pynvml",
        "workflows.tracking",
        "workflows.errors",
    }
    | {"datasets.pipeline.storage"},
    "workflows/reporting/": LIGHT | {"matplotlib", "jinja2", "mido", "workflows.reporting", "workflows.tracking"},
}
FOLDERS = ("models", "datasets", "workflows")


def allowed(file: str) -> set[str]:
    """What a file may import besides the standard library: names of modules, their submodules included."""
    return PLACES[max((place for place in PLACES if file.startswith(place)), key=len)]


def imports(source: str, package: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a file of `package` imports, names taken from modules included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
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
    return [
        f"{file}:{line} imports {name}"
        for line, name in imports(source, package)
        if name.partition(".")[0] not in sys.stdlib_module_names and not within(name, allowed(file))
    ]


def sources() -> dict[str, str]:
    """The text of each source file, by its path from the root."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def circles(files: dict[str, str]) -> list[list[str]]:
    """Groups of files that import each other, in a circle of any length; imports in functions count."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in files}
    needs: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = [name for _, name in imports(files[file], file.rpartition("/")[0].replace("/", "."))]
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        needs[module] = (found & modules.keys()) - {module}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [*needs[start]]
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += needs[module]
        return seen

    reached = {module: reach(module) for module in modules}
    return sorted({tuple(sorted(b for b in reached[a] if a in reached[b])) for a in modules if a in reached[a]})


def test_every_file_keeps_to_the_table():
    found = [breach for file, source in sources().items() for breach in breaches(file, source)]
    assert not found, "\n".join(found)


def test_no_file_imports_itself_in_a_circle():
    assert circles(sources()) == []


def test_the_table_names_files_and_folders_that_exist():
    assert all((ROOT / place).exists() for place in PLACES)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/batch.py", "import pyarrow"),
        ("models/tasks/forecast.py", "from datasets.pipeline.plan import Plan"),
        ("models/tasks/forecast.py", "def f():\n    import ray"),
        ("models/families/gru.py", "from ... import workflows"),
        ("datasets/timeseries.py", "import torch"),
        ("datasets/pipeline/ingest.py", "import torch"),
        ("datasets/timeseries.py", "import ray"),
        ("datasets/timeseries.py", "from models.batch import Batch"),
        ("datasets/reading/formats.py", "from ray import get"),
        ("datasets/reading/formats.py", "import ray.train"),
        ("datasets/audio.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("datasets/pipeline/plan.py", "import pandas as pd"),
        ("workflows/config/settings.py", "import numpy"),
        ("workflows/config/load.py", "import ray"),
        ("workflows/training/loop.py", "from workflows.config.load import load"),
        ("workflows/training/loop.py", "import ray.train"),
        ("workflows/training/bundle.py", "from datasets.pipeline.storage import Storage"),
        ("workflows/reporting/page.py", "from workflows.tuning.ledger import Ledger"),
        ("workflows/tracking/spool.py", "from workflows.config.experiment import Experiment"),
        ("workflows/train.py", "import mlflow"),
        ("workflows/train.py", "import importlib\nimportlib.import_module('mlflow.entities')"),
        ("workflows/search.py", "client = __import__('mlflow')"),
        ("workflows/tracking/spool.py", "import torch"),
    ],
)
def test_a_planted_breach_is_found(file, source):
    assert len(breaches(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/tasks/transcribe.py", "import sacrebleu\nfrom . import forecast\nfrom ..batch import Batch"),
        ("datasets/audio.py", "import ray.data\nimport soundfile as sf\nfrom datasets.pipeline.views import RowView"),
        ("datasets/pipeline/ingest.py", "import ray\nfrom ray.train import DataConfig\nimport wave"),
        ("workflows/training/loop.py", "import torch.distributed as dist\nfrom workflows.errors import Diverged"),
        ("workflows/tracking/spool.py", "def f():\n    from mlflow import MlflowClient"),
        ("workflows/tuning/tuner.py", "from ray import tune\nimport optuna\nfrom workflows.train import train"),
    ],
)
def test_what_the_table_allows_is_no_breach(file, source):
    assert breaches(file, source) == []


def test_a_planted_circle_is_found():
    files = {
        "workflows/a.py": "from workflows import b",
        "workflows/b.py": "def f():\n    import workflows.c",
        "workflows/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from workflows.a import A",
        "workflows/d.py": "import workflows.a",
    }
    assert circles(files) == [("workflows.a", "workflows.b", "workflows.c")]
