"""Benchmarks, which no test runs, import modules and names of the project that exist."""

import ast
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = sorted(path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "__init__.py")
OURS = ("benchmarks", "datasets", "models", "tests", "workflows")


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_import_of_a_benchmark_exists(path):
    missing = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in OURS:
            module = importlib.import_module(node.module)
            for name in (alias.name for alias in node.names):
                package = hasattr(module, "__path__")
                submodule = package and importlib.util.find_spec(f"{node.module}.{name}") is not None
                if not (hasattr(module, name) or submodule):
                    missing.append(f"{node.module}.{name}")
        elif isinstance(node, ast.Import):
            for name in (alias.name for alias in node.names if alias.name.partition(".")[0] in OURS):
                importlib.import_module(name)
    assert not missing
