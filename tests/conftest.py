"""Shared by all tests: real data, one Ray for all, and one thread a process, so that figures are alike everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# The longest files begin first, so that none of them ends alone: with `--dist loadfile` a file is one process's.
LONG = (
    "test_search",
    "test_compare",
    "test_schedulers",
    "test_injected",
    "test_job",
    "test_train",
    "test_classify",
    "test_generate",
    "test_sync",
    "test_tracking",
    "test_contributing",
    "test_distributed",
    "test_browser",
    "test_hosts",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("RONDO_DATA", "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (set RONDO_DATA)")
    return folder.resolve()


def use_ray(cpus: int) -> None:
    """Connect this process to a local Ray with so many CPUs: the one that earlier tests started, or a new one."""
    from datasets.pipeline.ingest import configure_ray_data
    from workflows.cluster.connect import set_environment

    set_environment()
    import ray

    if ray.is_initialized() and ray.cluster_resources().get("CPU") != cpus:
        ray.shutdown()
    if not ray.is_initialized():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    configure_ray_data()


def shut_down_ray() -> None:
    """Shut down the Ray of this process, if it has one."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="session")
def _ray_ends_with_the_session() -> Iterator[None]:
    yield
    shut_down_ray()


@pytest.fixture(scope="module")
def shared_ray(_ray_ends_with_the_session: None) -> None:
    """A Ray of three CPUs for all modules of a test process; the first that needs it starts it."""
    use_ray(3)


@pytest.fixture(scope="module")
def shared_ray_of_two_cpus(_ray_ends_with_the_session: None) -> None:
    """The same with two CPUs, for modules that count what runs at a time."""
    use_ray(2)


@pytest.fixture
def without_ray() -> None:
    """No Ray at the start of the test, which may start one itself and then ends it."""
    shut_down_ray()
