"""Shared by the tests of the report."""

from __future__ import annotations

import pytest

from tests.workflows.reporting.cases import CASES, save
from workflows.reporting.page import write


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The page of every case: name -> path."""
    paths = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("pages") / f"{case.__name__}0"
        paths[case.__name__] = write(save(folder, case()))
    return paths
