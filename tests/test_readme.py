"""README.md promises nothing that no test has tried."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SURVIVAL = (ROOT / "README.md").read_text().partition("## What survives what")[2].partition("\n## ")[0]
ROWS = [line for line in SURVIVAL.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize("row", ROWS, ids=[row.split("|")[1].strip()[:40] for row in ROWS])
def test_every_line_of_what_survives_what_names_a_test(row):
    (name,) = re.findall(r"`(test_\w+\.py::test_\w+)`", row)
    file, _, function = name.partition("::")
    (path,) = (ROOT / "tests" / "workflows").rglob(file)
    tree = ast.parse(path.read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_there_are_lines():
    assert len(ROWS) > 10
