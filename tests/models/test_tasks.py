"""Tasks in general: that a task is one file, and that nothing else depends on which task it is."""

import ast
from pathlib import Path

from models import tasks
from models.sequence import Task

ROOT = Path(__file__).parents[2]
NAMES = set(tasks.names()) - {"label"}  # "label" is also the name of a target


def compared_names(source: str) -> list[str]:
    """The names of tasks that a source file compares something with."""
    values: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            values += [node.left, *node.comparators]
        if isinstance(node, ast.MatchValue):
            values.append(node.value)
    constants = [inner for value in values for inner in ast.walk(value) if isinstance(inner, ast.Constant)]
    return [constant.value for constant in constants if constant.value in NAMES]


def test_no_file_outside_of_the_tasks_compares_with_a_tasks_name():
    files = [file for folder in ("models", "datasets", "workflows") for file in (ROOT / folder).rglob("*.py")]
    outside = [file for file in files if file.parent != ROOT / "models" / "tasks"]
    assert (
        outside
        and {
            file.relative_to(ROOT).as_posix(): names for file in outside if (names := compared_names(file.read_text()))
        }
        == {}
    )


def test_a_planted_comparison_is_found():
    assert compared_names('if task["kind"] == "forecast": pass') == ["forecast"]
    assert compared_names('music = kind in ("generate", "sing")') == ["generate"]
    assert compared_names('match kind:\n    case "translate": pass') == ["translate"]
    assert compared_names('DRAWINGS = {"forecast": 1}\nif kind == "choice": pass') == []


def test_a_task_without_examples_reads_no_rows():
    def rows():
        raise AssertionError("a row was read")
        yield

    assert Task().examples(None, rows()) == []
