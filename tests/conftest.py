"""Shared by all tests: where real data lies, and one thread a process, so that figures do not depend on the machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# The longest files begin first, so that none of them ends alone: with `--dist loadfile` a file is one process's.
LONG = ("test_search", "test_compare", "test_faults", "test_injected", "test_train", "test_distributed", "test_job",
        "test_report", "test_hosts", "test_generate", "test_tracking")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RONDO_DATA", "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set RONDO_DATA)")
    return folder.resolve()
