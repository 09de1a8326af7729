"""Any bytes: read, or refused with the project's own error. `python -m benchmarks.fuzz` tries a million, guided."""

from __future__ import annotations

import random
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import fuzz

ODD = [b"-1", b"{", b"null", b"1e999", b"\x00", b"\xff\xfe", b"[" * 50, b"..//"]
EACH = {"experiment": 300, "bundle": 500, "prepared": 500, "sound": 800}  # of the slower ones; of others 1,200
MANY = pytest.param(1, marks=pytest.mark.soak)


@pytest.fixture(scope="module", autouse=True)
def _cleared():
    yield
    shutil.rmtree(fuzz.FOLDER, ignore_errors=True)


def changed(target):
    """Good input with parts of it changed, left out, doubled, and mixed with others; and any bytes."""
    good = fuzz.seeds(target)

    def mix(seed, cuts):
        rng = random.Random(seed)
        data = bytearray(rng.choice(good))
        for _ in range(cuts):
            at = rng.randrange(len(data) + 1)
            end = min(len(data), at + rng.randrange(9))
            other = rng.choice(good)
            start = rng.randrange(len(other))
            data[at:end] = rng.choice([b"", rng.randbytes(3), data[at:end] * 2, other[start : start + 20], *ODD])
        return bytes(data)

    return st.one_of(
        st.builds(mix, st.integers(0, 2**63), st.integers(1, 6)),
        st.binary(max_size=200),
        st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    )


# pyarrow decodes a row with too many values before it calls `note`, and prints the error where it is not UTF-8.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <function _csv_blocks:pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("divisor", [6, MANY], ids=["few", "many"])
@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_whatever_is_read_ends_in_the_projects_own_error(target, divisor):
    @settings(
        max_examples=EACH.get(target, 1200) // divisor,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed(target))
    def check(data):
        fuzz.tried(target, data)

    check()


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_good_input_is_taken(target):
    """Or what is tried would all be refused at the first byte."""
    if target not in ("checkpoint", "spool"):
        fuzz.TARGETS[target](fuzz.seeds(target)[0])
