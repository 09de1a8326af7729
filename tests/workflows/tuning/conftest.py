"""Shared by the tests of searches."""

import pytest


@pytest.fixture(scope="module")
def session(shared_ray_of_two_cpus):
    """A Ray in which two trials run at a time."""
