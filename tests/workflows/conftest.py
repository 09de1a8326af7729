"""Shared by the tests of workflows/."""

import pytest
import ray


@pytest.fixture(scope="module")
def session():
    """A Ray of two CPUs, for all tests of a module."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
