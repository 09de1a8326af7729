"""Documents and comments name files, commands and pages that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    ROOT / "benchmarks" / "RESULTS.md",
    ROOT / "cluster.yaml",
    ROOT / "docs" / "rayjob.yaml",
]
FOLDERS = "tests|workflows|datasets|models|benchmarks|docs"
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("0*.md"))


def named_paths(text):
    """The files of the project that a text names; not those of examples (``# path`` on top) and placeholders."""
    examples = set(re.findall(r"```python\n# (\S+)\n", text))
    paths = set(re.findall(rf"(?<![\w./-])((?:{FOLDERS})/[\w./-]+\.(?:py|md|yaml|png))\b", text))
    return {path for path in paths - examples if not re.search("[A-Z]{3}", Path(path).stem) or (ROOT / path).exists()}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_documents_name_files_and_commands_that_exist(path):
    text = path.read_text(encoding="utf-8")
    missing = {name for name in named_paths(text) if not (ROOT / name).exists()}
    links = {link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text) if "://" not in link}
    missing |= {link for link in links if not (path.parent / link).exists()}
    modules = set(re.findall(r"python -m (benchmarks\.\w+)", text))
    missing |= {module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()}
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_within_a_document_lead_to_a_heading(path):
    text = path.read_text(encoding="utf-8")
    headings = {re.sub(r"[^\w -]", "", line).strip().lower() for line in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    anchors = {heading.replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors


def test_decisions_are_numbered_and_in_the_index():
    index = (DECISIONS[0].parent / "README.md").read_text(encoding="utf-8")
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    assert re.findall(r"\((\d{4}[\w-]*\.md)\)", index) == [page.name for page in DECISIONS]
    for page in DECISIONS:
        text = page.read_text(encoding="utf-8")
        title = text.partition(": ")[2].partition("\n")[0]
        assert text.startswith(f"# {page.name[:4]}: ") and f"| {title} |" in index
        assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]


def test_a_path_that_does_not_exist_is_noticed():
    assert named_paths("see `tests/test_nothing.py` and workflows/experiments/NAME.yaml") == {"tests/test_nothing.py"}
    assert named_paths("```python\n# models/families/average.py\nx\n```\nand models/families/average.py") == set()
