"""Shared by the tests of workflows/."""

import subprocess

import pytest

from tests.faults import kill_launched


@pytest.fixture(scope="module")
def session(shared_ray):
    """The Ray that all modules share."""


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    """What a test launched and did not wait for, because it failed, ends with it."""
    yield
    kill_launched()
