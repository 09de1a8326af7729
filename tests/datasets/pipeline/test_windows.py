"""Windows of series, and the chunks that they are cut from; without Ray."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.pipeline.windows import chunk_windows, split_windows
from datasets.shared.options import SPLITS

SERIES = st.lists(st.tuples(*[st.integers(1, 12)] * 3), min_size=1, max_size=4)


def state_of(lengths: list[tuple[int, int, int]]) -> dict:
    series = []
    for i, (a, b, c) in enumerate(lengths):
        bounds = {"train": [0, a], "validation": [a, a + b], "test": [a + b, a + b + c]}
        series.append({"name": str(i), "length": a + b + c, "bounds": bounds})
    return {"series": series}


def brute_force(summary: dict, split: str, lookback: int, horizon: int) -> list[int]:
    a, b = summary["bounds"][split]
    return [p for p in range(summary["length"]) if all(a <= t < b for t in range(p + lookback, p + lookback + horizon))]


@settings(max_examples=200, deadline=None)
@given(
    SERIES,
    st.sampled_from(SPLITS),
    st.integers(1, 8),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_windows_and_their_chunks_are_those_of_brute_force(lengths, split, lookback, horizon, stride, size):
    state = state_of(lengths)
    expected = [brute_force(summary, split, lookback, horizon)[::-stride][::-1] for summary in state["series"]]
    if not all(expected):
        with pytest.raises(ValueError, match=r"has no window in"):
            split_windows(state, split, lookback, horizon, stride=stride)
        return
    first, count = split_windows(state, split, lookback, horizon, stride=stride)
    assert [list(range(f, f + stride * n, stride)) for f, n in zip(first, count, strict=True)] == expected
    chunks = [
        (s, offset, min(size, summary["length"] - offset))
        for s, summary in enumerate(state["series"])
        for offset in range(0, summary["length"], size)
    ]
    series, offset, length = np.array(chunks, np.int64).T
    start, number = chunk_windows(first, count, series, offset, length, stride=stride)
    for (s, low, n), p, k in zip(chunks, start, number, strict=True):
        assert [p + stride * i for i in range(k)] == [w for w in expected[s] if low <= w < low + n]


def test_inputs_of_validation_reach_back_into_training():
    first, count = split_windows(state_of([(20, 10, 10)]), "validation", 5, 3)
    assert (first.tolist(), count.tolist()) == ([15], [8])


def test_a_series_without_a_window_is_named_with_the_remedy():
    with pytest.raises(
        ValueError,
        match=r"series '1' \(and 1 more\) has no window in validation: that split is steps "
        r"20 to 22 of 32, and a window needs lookback \+ horizon = 5 \+ 3 = 8 steps, "
        r"the last 3 of them inside; use a shorter task.lookback or task.horizon",
    ):
        split_windows(state_of([(20, 10, 10), (20, 2, 10), (20, 1, 10)]), "validation", 5, 3)


def test_a_split_that_is_not_there_is_named():
    state = {"series": [{"name": "a", "length": 9, "bounds": {"train": [0, 5], "validation": [5, 9]}}]}
    with pytest.raises(ValueError, match=r"the prepared data has no test split, only train, validation"):
        split_windows(state, "test", 1, 1)


def test_windows_of_a_million_chunks_are_counted_without_a_loop():
    series = np.repeat(np.arange(1000), 1000)
    offset = np.tile(np.arange(1000) * 100, 1000)
    start, number = chunk_windows(np.zeros(1000, np.int64), np.full(1000, 99_000), series, offset, np.full(10**6, 100))
    assert number.sum() == 1000 * 99_000
    assert (start[number > 0] == offset[number > 0]).all()
