"""Time series: reading, checks, splits, scaling, channels, windows, requests; the real files where they are."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets import files, generated, timeseries
from datasets.timeseries import DAY, Frequency, build, future
from datasets.views import chunk_counts, windows

DATA = os.environ.get("RONDO_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RONDO_DATA (the folder of the real files) is not set")
HALVES = {"train": 0.5, "validation": 0.5}


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.use_datasource_v2, context.enable_progress_bars = False, False
    yield
    ray.shutdown()


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def hours(count: int, start: str = "2024-01-01T00:00") -> list[str]:
    first = datetime.fromisoformat(start)
    return [f"{first + timedelta(hours=i)}" for i in range(count)]


def table(path: Path, columns: dict[str, list]) -> str:
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    return write(path, "\n".join(lines) + "\n")


def encoded(dataset: timeseries.TimeSeries) -> tuple[dict, dict[str, np.ndarray]]:
    """(state, values (L, C) by name of series), as the stored rows hold them."""
    with files.user_errors():
        rows = dataset.encode()["series"].take_all()
    state = dataset.state([json.loads(row["summary"]) for row in rows if row["summary"]])
    chunks: dict[str, list[dict]] = {}
    for row in rows:
        chunks.setdefault(row["series"], []).append(row)
    series = {}
    for name, parts in chunks.items():
        assert [bool(row["summary"]) for row in parts] == [True] + [False] * (len(parts) - 1)
        assert [row["offset"] for row in parts] == np.cumsum([0, *(row["length"] for row in parts)]).tolist()[:-1]
        series[name] = np.concatenate([np.asarray(row["values"], np.float32) for row in parts]).reshape(
            -1, state["width"])
    return state, series


def only(state: dict) -> dict:
    [summary] = state["series"]
    return summary


# Reading, scaling, chunks

def test_values_are_scaled_by_the_training_steps_only(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(6), "y": [1, 2, 3, 4, 100, 200], "x": [5, 5, 5, 5, 5, 6]})
    state, series = encoded(build(path, time="date", targets=["y"], covariates=["x"],
                                  split={"train": 4, "validation": 1, "test": 1}))
    summary, deviation = only(state), np.std([1, 2, 3, 4])
    assert summary["mean"] == [2.5, 5.0]
    assert summary["std"] == [pytest.approx(deviation), 1.0]                     # constant: 1
    np.testing.assert_allclose(series[""][:, 0], (np.array([1, 2, 3, 4, 100, 200]) - 2.5) / deviation, rtol=1e-6)
    assert series[""][:, 1].tolist() == [0, 0, 0, 0, 0, 1]
    assert (state["frequency"], state["season"], state["time"]["kind"]) == ("1h", 24, "timestamp")
    assert summary["start"] == int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 10 ** 6
    assert json.loads(json.dumps(state)) == state


def test_scale_none_leaves_values(tmp_path):
    path = table(tmp_path / "a.csv", {"y": [1, 2, 3, 4]})
    state, series = encoded(build(path, targets=["y"], split=HALVES, scale="none"))
    assert series[""].ravel().tolist() == [1, 2, 3, 4]
    assert (only(state)["mean"], only(state)["std"]) == ([0.0], [1.0])


def test_schema_of_the_stored_rows(tmp_path):
    path = table(tmp_path / "a.csv", {"y": [1, 2, 3, 4]})
    rows = build(path, targets=["y"], split=HALVES).encode()["series"]
    [batch] = rows.iter_batches(batch_size=None, batch_format="pyarrow")
    assert batch.schema.equals(timeseries.STORED)


def test_interleaved_series_in_many_blocks_and_files_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(timeseries, "CHUNK_BYTES", 64)
    for i, part in enumerate([range(40_000), range(40_000, 50_000)]):
        pq.write_table(pa.table({"s": ["b", "a"] * len(part), "t": [t for t in part for _ in range(2)],
                                 "y": [v for t in part for v in (float(t), float(-t))]}),
                       tmp_path / f"{i}.parquet")
    state, series = encoded(build(str(tmp_path), time="t", series="s", targets=["y"], scale="none",
                                  split={"validation": 10}, season=1))
    assert [summary["name"] for summary in state["series"]] == ["a", "b"]
    assert series["b"].ravel().tolist() == list(range(50_000))
    assert series["a"].ravel().tolist() == [-t for t in range(50_000)]


def both_ways(dataset: timeseries.TimeSeries, monkeypatch) -> list:
    """The result of one task for all series, and of the shuffle for data too large for that."""
    results = []
    for limit in (timeseries.SMALL_BYTES, 0):
        monkeypatch.setattr(timeseries, "SMALL_BYTES", limit)
        state, series = encoded(dataset)
        state["series"].sort(key=lambda summary: summary["name"])
        results.append((state, {name: values.tolist() for name, values in sorted(series.items())}))
    return results


def test_the_shuffle_for_large_data_gives_the_same(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for i in range(3):                                                           # so that series have several segments
        pq.write_table(pa.table({"s": np.repeat(["c", "a", "b"], 10), "t": np.tile(np.arange(10), 3) + 10 * i,
                                 "y": rng.normal(size=30), "k": rng.choice(["u", "v", "w"], 30)}),
                       tmp_path / f"{i}.parquet")
    small, large = both_ways(build(str(tmp_path), time="t", series="s", targets=["y"], categorical=["k"],
                                   split={"validation": 5, "test": 5}), monkeypatch)
    assert len(small[1]) == 3
    assert small == large


def test_a_long_series_is_stored_in_chunks_of_the_size_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(timeseries, "CHUNK_BYTES", 4 * 2 * 30)
    path = table(tmp_path / "a.csv", {"y": range(100), "x": range(100)})
    rows = build(path, targets=["y"], covariates=["x"], split=HALVES).encode()["series"].take_all()
    assert [(row["offset"], row["length"], len(row["values"])) for row in rows] == [
        (0, 30, 60), (30, 30, 60), (60, 30, 60), (90, 10, 20)]


def test_mase_scale_is_the_seasonal_change_in_training_in_raw_units(tmp_path):
    y = [1.0, 5.0, 2.0, 9.0, 1000.0, 2000.0]
    path = table(tmp_path / "a.csv", {"y": y, "flat": [3] * 6})
    state, _ = encoded(build(path, targets=["y", "flat"], split={"train": 4, "validation": 2}, season=2))
    assert only(state)["mase"] == [pytest.approx((abs(2 - 1) + abs(9 - 5)) / 2), None]
    state, _ = encoded(build(path, targets=["y"], split={"train": 4, "validation": 2}, season=4))
    assert only(state)["mase"] == [None]                                         # no two steps a season apart


# Splits

@pytest.mark.parametrize(("split", "bounds", "unused"), [
    ({"train": 5, "validation": 2, "test": 2}, {"train": [0, 5], "validation": [5, 7], "test": [7, 9]}, 1),
    ({"validation": 2, "test": 3}, {"train": [0, 5], "validation": [5, 7], "test": [7, 10]}, 0),
    ({"validation": 2}, {"train": [0, 8], "validation": [8, 10]}, 0),
    ({"train": 0.6, "validation": 0.2}, {"train": [0, 6], "validation": [6, 8]}, 2),
    ({"train": 0.7, "validation": 0.1, "test": 0.2}, {"train": [0, 7], "validation": [7, 8], "test": [8, 10]}, 0),
    ({"validation": 0.2, "test": 0.3}, {"train": [0, 5], "validation": [5, 7], "test": [7, 10]}, 0),
    ({"validation": "2024-01-01 04:00", "test": "2024-01-01T08:30"},
     {"train": [0, 4], "validation": [4, 9], "test": [9, 10]}, 0),
])
def test_splits_by_counts_fractions_and_dates(tmp_path, split, bounds, unused):
    path = table(tmp_path / "a.csv", {"date": hours(10), "y": range(10)})
    state, series = encoded(build(path, time="date", targets=["y"], split=split))
    assert only(state)["bounds"] == bounds
    assert (state["unused"], only(state)["length"], len(series[""])) == (unused, 10 - unused, 10 - unused)


def test_a_date_inside_a_filled_gap_splits_there(tmp_path):
    dates = hours(10)
    path = table(tmp_path / "a.csv", {"date": dates[:3] + dates[7:], "y": [0, 1, 2, 7, 8, 9]})
    state, _ = encoded(build(path, time="date", targets=["y"], split={"validation": dates[5]}, missing="interpolate"))
    assert only(state)["bounds"] == {"train": [0, 5], "validation": [5, 10]}


@pytest.mark.parametrize(("split", "message"), [
    ({"train": 0.5}, "dataset.split has no validation"),
    (None, "dataset.split has no validation"),
    ({"train": 5, "validation": 0.5}, "mixes counts and fractions"),
    ({"train": 0.8, "validation": 0.5}, "adds up to more than 1"),
    ({"validation": 0}, r"dataset.split.validation=0; give a count"),
    ({"validation": 1.5}, r"dataset.split.validation=1.5; give a count"),
    ({"train": 5, "valid": 5}, "'valid' is no split, did you mean validation; the splits are"),
    ({"validation": "soon"}, "'soon' is no date"),
    ({"train": "2024-01-01", "validation": "2024-01-02"}, "leave train out"),
    ({"validation": "2024-01-02", "test": "2024-01-02"}, "test starts at 2024-01-02, but must start after"),
])
def test_a_split_that_makes_no_sense_is_refused_before_any_reading(split, message):
    with pytest.raises(ValueError, match=message):
        build("nowhere.csv", time="date", targets=["y"], split=split)


@pytest.mark.parametrize(("split", "message"), [
    ({"train": 5, "validation": 6}, "the series has 10 steps, too few for dataset.split"),
    ({"validation": 6, "test": 4}, "the series has 10 steps, too few for dataset.split"),
    ({"train": 0.95, "validation": 0.04}, "has 10 steps, of which dataset.split .* leaves none for validation"),
    ({"validation": "2025-01-01"}, "leaves none for validation"),
    ({"validation": "2023-01-01"}, "leaves none for train"),
])
def test_a_split_without_steps_is_refused(tmp_path, split, message):
    path = table(tmp_path / "a.csv", {"date": hours(10), "y": range(10)})
    with pytest.raises(ValueError, match=message):
        encoded(build(path, time="date", targets=["y"], split=split))


def test_files_for_each_split_continue_the_series_of_the_same_name(tmp_path):
    for name, steps in (("train", range(6)), ("test", range(6, 9))):
        table(tmp_path / f"{name}.csv", {"s": ["a"] * len(steps) + ["b"] * len(steps), "t": [*steps, *steps],
                                         "y": [*steps, *(-t for t in steps)]})
    paths = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    state, series = encoded(build(paths, time="t", series="s", targets=["y"], split={"validation": 2}, scale="none"))
    assert [summary["bounds"] for summary in state["series"]] == [
        {"train": [0, 4], "validation": [4, 6], "test": [6, 9]}] * 2
    assert series["b"].ravel().tolist() == [-t for t in range(9)]
    three = {**paths, "validation": table(tmp_path / "v.csv", {"s": ["a", "b"], "t": [6, 6], "y": [1, 1]})}
    with pytest.raises(ValueError, match=r"test.csv, row 2 \(series 'a'\): time 6 is there twice, also in .*v.csv"):
        encoded(build(three, time="t", series="s", targets=["y"]))


def test_a_time_that_restarts_in_each_file_goes_on(tmp_path):
    paths = {"train": table(tmp_path / "a.csv", {"t": range(6), "y": range(6)}),
             "test": table(tmp_path / "b.csv", {"t": range(3), "y": range(6, 9)})}
    state, series = encoded(build(paths, time="t", targets=["y"], split={"validation": 2}, scale="none",
                                  time_restarts=True))
    assert only(state)["bounds"] == {"train": [0, 4], "validation": [4, 6], "test": [6, 9]}
    assert series[""].ravel().tolist() == list(range(9))
    with pytest.raises(ValueError, match=r"b.csv, row 2: time 0 comes after 5 of .*a.csv, row 7; sort the rows"):
        encoded(build(paths, time="t", targets=["y"], split={"validation": 2}))


def test_files_for_splits_must_agree(tmp_path):
    a = table(tmp_path / "a.csv", {"s": ["a", "a", "b", "b"], "y": range(4)})
    b = table(tmp_path / "b.csv", {"s": ["a"], "y": [1]})
    with pytest.raises(ValueError, match=r"series 'b' has no rows in the test files"):
        encoded(build({"train": a, "test": b}, series="s", targets=["y"], split={"validation": 1}))
    with pytest.raises(ValueError, match=r"a.csv is in both train and test"):
        build({"train": a, "test": a}, series="s", targets=["y"], split={"validation": 1}).sources()
    with pytest.raises(ValueError, match=r"dataset.split gives test, but dataset.path has files for train, test"):
        build({"train": a, "test": b}, targets=["y"], split={"validation": 1, "test": 1})
    with pytest.raises(ValueError, match=r"has files for test, but none for train"):
        build({"test": b}, targets=["y"], split={"validation": 1})


# Time

TIMES = {
    "1h": ["2024-01-01 22:00", "2024-01-01 23:00", "2024-01-02 00:00", "2024-01-02 01:00"],
    "15min": ["2024-01-01T22:00:00Z", "2024-01-01T22:15:00Z", "2024-01-01T22:30:00Z", "2024-01-01T22:45:00Z"],
    "1D": ["2024-02-28", "2024-02-29", "2024-03-01", "2024-03-02"],
    "1W": ["2024-01-01", "2024-01-08", "2024-01-15", "2024-01-22"],
    "1M": ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"],
    "3M": ["2023-10-01", "2024-01-01", "2024-04-01", "2024-07-01"],
    "1Y": ["2020-02-29", "2021-02-28", "2022-02-28", "2023-02-28"],
    "500ms": ["2024-01-01 00:00:00.000", "2024-01-01 00:00:00.500", "2024-01-01 00:00:01.000",
              "2024-01-01 00:00:01.500"],
    10: ["10", "20", "30", "40"],
}
NEXT = {"1h": "2024-01-02 02:00", "15min": "2024-01-01T23:00:00Z", "1D": "2024-03-03", "1W": "2024-01-29",
        "1M": "2024-05-31", "3M": "2024-10-01", "1Y": "2024-02-29", "500ms": "2024-01-01 00:00:02.000000", 10: "50"}


@pytest.mark.parametrize("frequency", TIMES)
def test_frequency_is_found_and_times_go_on_in_their_style(tmp_path, frequency):
    path = table(tmp_path / "a.csv", {"t": TIMES[frequency], "y": range(4)})
    dataset = build(path, time="t", targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    assert state["frequency"] == frequency
    [request] = dataset.encode_request(path, state)
    assert future(request, 1)[1] == [NEXT[frequency]]
    assert timeseries.labels(request.times, request.style)[-1].rstrip("0") == TIMES[frequency][-1].rstrip("0")


def test_frequency_text_is_normalised_and_nonsense_refused():
    assert [str(Frequency.parse(text)) for text in ("60min", "24h", "7D", "12M", "h", 3)] == [
        "1h", "1D", "1W", "1Y", "1h", "3"]
    for text in ("hourly", "0h", "-1h", "1x", "\u0661h", "1_0"):
        with pytest.raises(ValueError, match=r"is not understood; give auto, a whole number, or a count and one of W"):
            build("a.csv", time="t", targets=["y"], split=HALVES, frequency=text)


def test_parquet_times_of_every_type_mean_the_same(tmp_path):
    starts = []
    stamps = pa.array([datetime(2024, 1, day) for day in (1, 2, 3, 4)])
    kinds = [pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("s"), pa.date32(), pa.date64(), pa.string()]
    for i, column in enumerate([*(stamps.cast(kind) for kind in kinds), stamps.cast(pa.timestamp("us", "UTC"))]):
        pq.write_table(pa.table({"t": column, "y": [1, 2, 3, 4]}), tmp_path / f"{i}.parquet")
        state, _ = encoded(build(str(tmp_path / f"{i}.parquet"), time="t", targets=["y"], split=HALVES))
        assert state["frequency"] == "1D"
        starts.append(only(state)["start"])
    assert set(starts) == {19_723 * DAY}


def test_time_from_columns_of_year_month_day_hour(tmp_path):
    path = table(tmp_path / "a.csv", {"year": [2023, 2023, 2024, 2024], "month": [12, 12, 1, 1], "day": [31, 31, 1, 1],
                                      "hour": [22, 23, 0, 1], "y": range(4)})
    dataset = build(path, time=["year", "month", "day", "hour"], targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    assert state["frequency"] == "1h"
    assert future(dataset.encode_request(path, state)[0], 2)[1] == ["2024-01-01 02:00", "2024-01-01 03:00"]


def test_time_format_reads_and_writes_other_times(tmp_path):
    path = table(tmp_path / "a.csv", {"t": ["Jan 1 2000", "Feb 1 2000", "Mar 1 2000", "Apr 1 2000"], "y": range(4)})
    dataset = build(path, time="t", targets=["y"], split=HALVES, time_format="%b %d %Y")
    state, _ = encoded(dataset)
    assert (state["frequency"], state["season"]) == ("1M", 12)
    assert future(dataset.encode_request(path, state)[0], 1)[1] == ["May 01 2000"]


def test_series_of_different_frequency_are_refused(tmp_path):
    path = table(tmp_path / "a.csv", {"s": [*"aaaabbbb"], "t": [0, 1, 2, 3, 0, 2, 4, 6], "y": range(8)})
    with pytest.raises(ValueError, match=r"series 'a' has frequency 1, series 'b' 2; set dataset.frequency"):
        encoded(build(path, time="t", series="s", targets=["y"], split=HALVES))


# Checks: each names the file, the row, the column and the value

H = hours(5)
BAD = {
    "text among numbers": ({"date": H, "y": [0, 1, "oops", 3, 4]},
                           r"a.csv, row 4: 'oops' in column 'y' is not a number"),
    "decimal comma": ({"date": H, "y": [0, 1, '"1,5"', 3, 4]}, r"row 4: '1,5' in column 'y' is not a number"),
    "underscore": ({"date": H, "y": [0, 1, "1_000", 3, 4]}, r"a.csv, row 4: '1_000' in column 'y' is not a number"),
    "digits of another script": ({"date": H, "y": [0, 1, 2, "\u0661\u0662", 4]},
                                 "a.csv, row 5: '\u0661\u0662' in column 'y' is not a number"),
    "not a number with a note": ({"date": H, "y": [0, "nan(1)", 2, 3, 4]}, r"row 3: 'nan\(1\)' in column 'y' is not a"),
    "infinite": ({"date": H, "y": [0, 1, 2, "-inf", 4]}, r"a.csv, row 5: -inf in column 'y' is infinite"),
    "missing": ({"date": H, "y": [0, "NA", 2, "", 4]},
                r"a.csv, row 3: no value in column 'y', the first of 2 missing in 5 rows; .* interpolate or mask"),
    "no time": ({"date": [*H[:3], "later", H[4]], "y": range(5)},
                r"a.csv, row 5: 'later' in column 'date' is no time as ISO 8601"),
    "blank time": ({"date": [*H[:3], "", H[4]], "y": range(5)}, r"a.csv, row 5: '' in column 'date' is no time"),
    "unsorted": ({"date": [H[0], H[2], H[1], H[3], H[4]], "y": range(5)},
                 rf"a.csv, row 4: time {H[1]} comes after {H[2]} of row 3; sort the rows by time"),
    "duplicate": ({"date": [H[0], H[1], H[1], H[2], H[3]], "y": range(5)},
                  rf"a.csv, row 4: time {H[1]} is there twice, also in row 3; remove one of the rows"),
    "gap": ({"date": [H[0], H[1], H[4], *hours(2, "2024-01-01 05:00")], "y": range(5)},
            rf"a.csv, row 4: 2 steps of 1h are missing between {H[1]} and {H[4]}; .* interpolate or mask"),
    "off step": ({"date": [H[0], H[1], H[2], "2024-01-01 03:07:00", H[4]], "y": range(5)},
                 rf"a.csv, row 5: time 2024-01-01 03:07:00 does not lie on a step of 1h from {H[0]}"),
    "no column": ({"date": H, "Y": range(5)}, r"a.csv has no column 'y'. Its columns: date, Y"),
    "all missing": ({"date": H, "y": ["", "", "", 3, 4]}, r"a.csv, row 2: no value in column 'y'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_is_refused_by_file_row_column_and_value(tmp_path, case):
    columns, message = BAD[case]
    path = table(tmp_path / "a.csv", columns)
    with pytest.raises(ValueError, match=message) as caught:
        encoded(build(path, time="date", targets=["y"], split=HALVES))
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


def test_errors_name_the_series_and_its_row_among_interleaved_ones(tmp_path):
    path = table(tmp_path / "a.csv", {"s": [*"ababab"], "t": [0, 0, 1, 1, 2, 1], "y": range(6)})
    with pytest.raises(ValueError, match=r"a.csv, row 7 \(series 'b'\): time 1 is there twice, also in row 5"):
        encoded(build(path, time="t", series="s", targets=["y"], split=HALVES))


def test_a_row_without_a_series_name_is_refused(tmp_path):
    path = table(tmp_path / "a.csv", {"s": ["a", "a", "", "a"], "y": range(4)})
    with pytest.raises(ValueError, match=r"a.csv, row 4: no name of a series in column 's'"):
        encoded(build(path, series="s", targets=["y"], split=HALVES))


def test_dates_and_whole_numbers_do_not_mix(tmp_path):
    table(tmp_path / "a.csv", {"t": [1, 2, 3], "y": range(3)})
    table(tmp_path / "b.csv", {"t": H[:3], "y": range(3)})
    with pytest.raises(ValueError, match=r"b.csv: the time is dates here, but whole numbers before"):
        encoded(build(str(tmp_path), time="t", targets=["y"], split=HALVES))
    with pytest.raises(ValueError, match=r"dataset.frequency is 1h, but the time is whole numbers; give a whole"):
        encoded(build(str(tmp_path / "a.csv"), time="t", targets=["y"], split=HALVES, frequency="1h"))


def test_parts_of_a_date_are_checked(tmp_path):
    path = table(tmp_path / "a.csv", {"year": [2023, 2023], "month": [2, 2], "day": [28, 29], "y": [1, 2]})
    with pytest.raises(ValueError, match=r"a.csv, row 3: 29 in column 'day' is no day of that month"):
        encoded(build(path, time=["year", "month", "day"], targets=["y"], split=HALVES))


def test_a_parquet_column_that_is_no_number_is_refused(tmp_path):
    pq.write_table(pa.table({"y": [datetime(2024, 1, 1)] * 4}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: column 'y' holds timestamp\[us\], not numbers"):
        encoded(build(str(tmp_path / "a.parquet"), targets=["y"], split=HALVES))


@pytest.mark.parametrize(("options", "message"), [
    ({"targets": []}, "dataset.targets is empty"),
    ({"targets": ["y", "y"]}, "column 'y' is listed twice, in targets"),
    ({"targets": ["y"], "covariates": ["y"]}, "column 'y' is listed twice, in targets and covariates"),
    ({"targets": ["y"], "calendar": ["hour"]}, "dataset.calendar is set, but dataset.time is not"),
    ({"targets": ["y"], "frequency": "1h"}, "dataset.frequency is set, but dataset.time is not"),
    ({"targets": ["y"], "season": 0}, "dataset.season=0"),
])
def test_contradicting_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("a.csv", split=HALVES, **options)


def test_a_file_without_rows_is_refused_for_prediction_and_gives_no_rows_in_preparation(tmp_path):
    full = build(table(tmp_path / "a.csv", {"y": range(4)}), targets=["y"], split=HALVES)
    empty = write(tmp_path / "empty.csv", "y\n")
    assert build(empty, targets=["y"], split=HALVES).encode()["series"].take_all() == []
    with pytest.raises(ValueError, match=r"empty.csv holds no rows"):
        full.encode_request(empty, encoded(full)[0])


# Missing values and steps

def with_gaps(tmp_path: Path) -> str:
    dates = hours(10)
    return table(tmp_path / "a.csv", {"date": [dates[i] for i in (0, 1, 2, 5, 6, 7, 8, 9)],
                                      "y": ["", 1, 2, 5, "NA", 7, 8, ""], "x": [0, 1, "null", 5, 6, 7, 8, 9]})


def test_interpolate_is_linear_in_time_and_nearest_at_the_ends(tmp_path):
    state, series = encoded(build(with_gaps(tmp_path), time="date", targets=["y"], covariates=["x"], split=HALVES,
                                  missing="interpolate", scale="none"))
    np.testing.assert_allclose(series[""], [[y, x] for y, x in zip([1, 1, 2, 3, 4, 5, 6, 7, 8, 8], range(10),
                                                                   strict=True)])
    assert only(state)["missing"] == 3 + 1 + 2 * 2                               # values, and two steps of two columns
    assert state["channels"]["observed"] is False


def test_mask_is_the_mean_and_says_what_was_observed(tmp_path):
    state, series = encoded(build(with_gaps(tmp_path), time="date", targets=["y"], covariates=["x"], split=HALVES,
                                  missing="mask"))
    assert only(state)["mean"] == [1.5, 0.5, 0.0]                                # of the observed training values
    seen = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1, 0])
    assert series[""][:, 2].tolist() == seen.tolist()
    assert (series[""][seen == 0, 0] == 0).all()
    np.testing.assert_allclose(series[""][seen == 1, 0], (np.array([1, 2, 5, 7, 8]) - 1.5) / 0.5)
    assert state["channels"]["observed"] is True


def test_mask_is_the_mean_also_without_scaling(tmp_path):
    dataset = build(with_gaps(tmp_path), time="date", targets=["y"], covariates=["x"], split=HALVES, missing="mask",
                    scale="none")
    state, series = encoded(dataset)
    assert only(state)["mean"][:2] == [0, 0]
    assert (series[""][series[""][:, 2] == 0, 0] == 1.5).all()                   # of the observed training values
    [request] = dataset.encode_request(with_gaps(tmp_path), state)
    np.testing.assert_array_equal(request.values, series[""])


def test_a_blank_row_is_no_step_to_leave_out(tmp_path):
    path = write(tmp_path / "a.csv", "a,b\n1,10\n2,20\n,\n4,40\n5,50\n")
    for missing in ("error", "mask"):
        with pytest.raises(ValueError, match=r"a.csv, row 4: blank, but without dataset.time each row is a step"):
            encoded(build(path, targets=["b"], split=HALVES, missing=missing))
    path = write(tmp_path / "b.csv", "a\n1\n2\n\n4\n5\n6\n")
    with pytest.raises(ValueError, match=r"b.csv, row 4: no value in column 'a'"):
        encoded(build(path, targets=["a"], split=HALVES))
    _, series = encoded(build(path, targets=["a"], split=HALVES, missing="mask"))
    assert series[""][:, 1].tolist() == [1, 1, 0, 1, 1, 1]


def test_gaps_are_counted_in_all(tmp_path):
    dates = hours(20)
    path = table(tmp_path / "a.csv", {"date": [dates[i] for i in (0, 1, 2, 3, 5, 6, 9)], "y": range(7)})
    with pytest.raises(ValueError, match=r"row 6: 1 steps of 1h are missing .* \(3 in 2 gaps in all\)"):
        encoded(build(path, time="date", targets=["y"], split=HALVES))


def test_a_column_without_training_values_is_refused(tmp_path):
    path = table(tmp_path / "a.csv", {"y": range(4), "x": ["", "", 1, 2]})
    with pytest.raises(ValueError, match=r"the series has no value of column 'x' in its 2 training steps"):
        encoded(build(path, targets=["y"], covariates=["x"], split=HALVES, missing="mask"))


def test_missing_values_may_be_numbers_in_csv_and_parquet(tmp_path):
    pq.write_table(pa.table({"y": [1.0, -999.0, 3.0, 4.0]}), tmp_path / "a.parquet")
    paths = [str(tmp_path / "a.parquet"), table(tmp_path / "a.csv", {"y": [1, "-999.00", 3, 4]})]
    for path in paths:
        state, _ = encoded(build(path, targets=["y"], split={"train": 3, "validation": 1}, missing="mask",
                                 missing_values=["-999"]))
        assert (only(state)["missing"], only(state)["mean"][0]) == (1, 2.0)


@pytest.mark.parametrize("missing", ["mask", "interpolate"])
def test_gaps_that_would_make_far_more_steps_than_rows_are_refused_with_the_arithmetic(tmp_path, missing):
    dates = ["2020-01-01 00:00:00", "2020-01-01 00:00:01", "2022-12-31 00:00:00"]
    path = table(tmp_path / "a.csv", {"s": ["x"] * 3, "t": dates, "y": range(3)})
    dataset = build(path, time="t", series="s", targets=["y"], split={"validation": 1}, frequency="1s", missing=missing)
    with pytest.raises(ValueError, match=(
            rf"a.csv, row 4 \(series 'x'\): dataset.missing={missing} would make 94,608,001 steps of 1s of 3 rows "
            r"\(2020-01-01 00:00:00 to 2022-12-31 00:00:00\), of which 94,607,998 have no row; at most 100,000 can be "
            r"made \(100 a row, or 100,000\). The longest gap is of 94,607,998 steps, between 2020-01-01 00:00:01 and "
            r"2022-12-31 00:00:00: correct the time .*, set dataset.frequency to .*, or cut the series")):
        encoded(dataset)
    with pytest.raises(ValueError, match="would make 94,608,001 steps"):
        dataset.encode_request(path, {"frequency": "1s", "series": []})


@pytest.mark.parametrize("missing", ["mask", "interpolate"])
def test_few_rows_may_lie_far_apart_and_many_rows_a_hundred_steps(tmp_path, missing, monkeypatch):
    monkeypatch.setattr(timeseries, "STEPS_OF_FEW", 1000)

    def steps(times):
        path = table(tmp_path / "a.csv", {"t": times, "y": range(len(times))})
        dataset = build(path, time="t", targets=["y"], split={"validation": 1}, frequency=1, missing=missing)
        [request] = dataset.encode_request(path, {"frequency": 1, "series": [], "channels": {"categorical": {}}})
        return len(request.values)

    assert steps([0, 1, 999]) == 1000
    assert steps([*range(19), 1999]) == 2000
    for times in ([0, 1, 1000], [*range(19), 2000]):
        with pytest.raises(ValueError, match="a row, or 1,000"):
            steps(times)


@pytest.mark.parametrize("missing", ["mask", "interpolate"])
def test_a_month_without_rows_in_a_year_of_hours_is_filled(tmp_path, missing):
    year = hours(8760, "2023-01-01 00:00")
    kept = year[:4000] + year[4720:]
    path = table(tmp_path / "a.csv", {"s": ["a"] * len(kept) + ["b"] * 100, "t": kept + year[:50] + year[-50:],
                                      "y": range(len(kept) + 100)})
    state, series = encoded(build(path, time="t", series="s", targets=["y"], split={"validation": 0.1},
                                  missing=missing))
    assert [len(series[name]) for name in "ab"] == [8760, 8760]
    assert [s["missing"] for s in state["series"]] == [720, 8660]


@pytest.mark.parametrize("text", ["1_0", "\u0661\u0660"])
def test_a_missing_value_that_is_no_numeral_stands_for_no_number(tmp_path, text):
    path = table(tmp_path / "a.csv", {"y": [1, 10, 3, 4]})
    state, _ = encoded(build(path, targets=["y"], split={"train": 3, "validation": 1}, missing="mask",
                             missing_values=[text]))
    assert only(state)["missing"] == 0


# Categories and calendar

def test_categories_come_from_the_training_rows_of_all_series(tmp_path, monkeypatch):
    path = table(tmp_path / "a.csv", {"s": [*"aaaabbbb"], "k": [*"xyzxxwzw"], "y": range(8)})
    state, series = encoded(build(path, series="s", targets=["y"], categorical=["k"], split=HALVES))
    assert state["channels"]["categorical"] == {"k": ["w", "x", "y"]}            # z only after training
    assert series["a"][:, 1:].tolist() == [[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert series["b"][:, 1:].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert state["series"][0]["mean"][1:] == [0, 0, 0]
    assert state["series"][0]["std"][1:] == [1, 1, 1]
    monkeypatch.setattr(timeseries, "MAX_CATEGORIES", 2)
    with pytest.raises(ValueError, match=r"column 'k' has 3 different values in training, more than 2"):
        build(path, series="s", targets=["y"], categorical=["k"], split=HALVES).encode()


def test_a_missing_category_is_refused_or_all_zero(tmp_path):
    path = table(tmp_path / "a.csv", {"k": ["x", "NA", "y", "x"], "y": range(4)})
    with pytest.raises(ValueError, match=r"a.csv, row 3: no value in column 'k'"):
        encoded(build(path, targets=["y"], categorical=["k"], split={"train": 3, "validation": 1}))
    _, series = encoded(build(path, targets=["y"], categorical=["k"], split={"train": 3, "validation": 1},
                              missing="interpolate"))
    assert series[""][:, 1:].tolist() == [[1, 0], [0, 0], [0, 1], [1, 0]]


def test_calendar_channels_are_the_place_on_each_cycle():
    times = np.array([datetime(2024, 1, 1), datetime(2024, 2, 29, 6, 30), datetime(1969, 12, 28, 18)], "M8[us]")
    phases = {"minute": [0, 0.5, 0], "hour": [0, 6.5 / 24, 0.75], "weekday": [0, 3 / 7, 6 / 7],
              "monthday": [0, 28 / 29, 27 / 31], "yearday": [0, 59 / 366, 361 / 365], "month": [0, 1 / 12, 11 / 12]}
    channels = timeseries.calendar_channels(times.astype(np.int64), list(phases))
    angles = 2 * np.pi * np.array(list(phases.values())).T
    np.testing.assert_allclose(channels[:, 0::2], np.sin(angles), atol=1e-12)
    np.testing.assert_allclose(channels[:, 1::2], np.cos(angles), atol=1e-12)


def test_channels_are_in_the_order_that_the_state_tells(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(4), "k": [*"uvuv"], "x": range(4), "y": range(4)})
    state, series = encoded(build(path, time="date", targets=["y"], covariates=["x"], categorical=["k"],
                                  calendar=["hour"], missing="mask", split={"train": 2, "validation": 2}))
    assert state["channels"] == {"targets": ["y"], "covariates": ["x"], "categorical": {"k": ["u", "v"]},
                                 "calendar": ["hour_sin", "hour_cos"], "observed": True}
    angle = 2 * np.pi * 2 / 24
    np.testing.assert_allclose(series[""][2], [3, 3, 1, 0, np.sin(angle), np.cos(angle), 1], rtol=1e-6)


def test_calendar_needs_dates(tmp_path):
    path = table(tmp_path / "a.csv", {"t": range(4), "y": range(4)})
    with pytest.raises(ValueError, match=r"dataset.calendar needs dates"):
        encoded(build(path, time="t", targets=["y"], calendar=["hour"], split=HALVES))


# The key

def test_sources_and_options_are_json_and_tell_the_split_of_each_file(tmp_path):
    paths = {name: table(tmp_path / f"{name}.csv", {"y": [1]}) for name in ("test", "train", "validation")}
    dataset = build(paths, targets=["y"])
    assert [os.path.basename(source.uri) for source in dataset.sources()] == ["train.csv", "validation.csv", "test.csv"]
    options = json.loads(json.dumps(dataset.options()))
    assert options["parts"] == ["train", "validation", "test"]
    assert "path" not in options
    assert build(paths, targets=["y"], season=3).options() != options


# Windows

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
@given(SERIES, st.sampled_from(timeseries.PARTS), st.integers(1, 8), st.integers(1, 4), st.integers(1, 5),
       st.integers(1, 7))
def test_windows_and_their_chunks_are_those_of_brute_force(lengths, split, lookback, horizon, stride, size):
    state = state_of(lengths)
    expected = [brute_force(summary, split, lookback, horizon)[::-stride][::-1] for summary in state["series"]]
    if not all(expected):
        with pytest.raises(ValueError, match=r"has no window in"):
            windows(state, split, lookback, horizon, stride=stride)
        return
    first, count = windows(state, split, lookback, horizon, stride=stride)
    assert [list(range(f, f + stride * n, stride)) for f, n in zip(first, count, strict=True)] == expected
    chunks = [(s, offset, min(size, summary["length"] - offset))
              for s, summary in enumerate(state["series"]) for offset in range(0, summary["length"], size)]
    series, offset, length = np.array(chunks, np.int64).T
    start, number = chunk_counts(first, count, series, offset, length, stride=stride)
    for (s, low, n), p, k in zip(chunks, start, number, strict=True):
        assert [p + stride * i for i in range(k)] == [w for w in expected[s] if low <= w < low + n]


def test_inputs_of_validation_reach_back_into_training():
    first, count = windows(state_of([(20, 10, 10)]), "validation", 5, 3)
    assert (first.tolist(), count.tolist()) == ([15], [8])


def test_a_series_without_a_window_is_named_with_the_remedy():
    with pytest.raises(ValueError, match=r"series '1' \(and 1 more\) has no window in validation: that split is steps "
                                         r"20 to 22 of 32, and a window needs lookback \+ horizon = 5 \+ 3 = 8 steps, "
                                         r"the last 3 of them inside; use a shorter task.lookback or task.horizon"):
        windows(state_of([(20, 10, 10), (20, 2, 10), (20, 1, 10)]), "validation", 5, 3)


def test_a_split_that_is_not_there_is_named():
    state = {"series": [{"name": "a", "length": 9, "bounds": {"train": [0, 5], "validation": [5, 9]}}]}
    with pytest.raises(ValueError, match=r"the prepared data has no test split, only train, validation"):
        windows(state, "test", 1, 1)


def test_windows_of_a_million_chunks_are_counted_without_a_loop():
    series = np.repeat(np.arange(1000), 1000)
    offset = np.tile(np.arange(1000) * 100, 1000)
    start, number = chunk_counts(np.zeros(1000, np.int64), np.full(1000, 99_000), series, offset,
                                 np.full(10 ** 6, 100))
    assert number.sum() == 1000 * 99_000
    assert (start[number > 0] == offset[number > 0]).all()


# Requests

def test_a_request_is_scaled_as_in_training_and_unknown_series_by_themselves(tmp_path):
    path = table(tmp_path / "a.csv", {"s": ["a"] * 4, "date": hours(4), "k": [*"uvuv"], "y": [1, 3, 5, 7]})
    dataset = build(path, time="date", series="s", targets=["y"], categorical=["k"], calendar=["hour"], missing="mask",
                    split={"train": 2, "validation": 2})
    state, series = encoded(dataset)
    new = table(tmp_path / "new.csv", {"s": [*"zzzzaaaa"], "date": hours(4) * 2, "k": [*"uvuw"] * 2,
                                       "y": [10, 10, 30, 30, 1, 3, 5, ""]})
    a, z = build("elsewhere.csv", time="date", series="s", targets=["y"], categorical=["k"], calendar=["hour"],
                 missing="mask", split=HALVES).encode_request(new, state)
    assert (a.series, z.series) == ("a", "z")
    np.testing.assert_array_equal(a.values[:3], series["a"][:3])
    assert a.values[3, [0, 1, 2, 5]].tolist() == [0, 0, 0, 0]                    # unseen value, unknown category
    assert (a.mean[0], a.std[0], z.mean[0], z.std[0]) == (2, 1, 20, 10)
    assert z.values[:, 0].tolist() == [-1, -1, 1, 1]
    known, times = future(a, 2)
    assert times == hours(2, "2024-01-01T04:00")
    np.testing.assert_allclose(known, timeseries.calendar_channels(a.times[-1:] + np.array([1, 2]) * timeseries.HOUR,
                                                                   ["hour"]), rtol=1e-6)


def test_a_request_is_checked_as_training_data_is(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(6), "y": range(6)})
    dataset = build(path, time="date", targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    daily = table(tmp_path / "b.csv", {"date": ["2024-01-01", "2024-01-02"], "y": [1, 2]})
    with pytest.raises(ValueError, match=r"23 steps of 1h are missing between"):
        dataset.encode_request(daily, state)
    bad = table(tmp_path / "c.csv", {"date": hours(2), "y": [1, "x"]})
    with pytest.raises(ValueError, match=r"c.csv, row 3: 'x' in column 'y' is not a number"):
        dataset.encode_request(bad, state)


def test_a_request_without_any_value_in_a_column_is_refused_by_name(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(6), "y": range(6), "x": range(6)})
    dataset = build(path, time="date", targets=["y"], covariates=["x"], split=HALVES, missing="interpolate")
    state, _ = encoded(dataset)
    new = table(tmp_path / "new.csv", {"date": hours(3), "y": [1, 2, 3], "x": ["", "", ""]})
    with pytest.raises(ValueError, match=r"new.csv, row 2: column 'x' has no value from here on, in all 3 steps"):
        dataset.encode_request(new, state)


def test_midnight_written_as_the_date_alone_does_not_hide_the_hour(tmp_path):
    dates = [f"{date:%Y-%m-%d}" if date.hour == 0 else f"{date:%Y-%m-%d %H:%M}"
             for date in map(datetime.fromisoformat, hours(48))]
    path = table(tmp_path / "a.csv", {"date": dates, "y": range(48)})
    dataset = build(path, time="date", targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    [request] = dataset.encode_request(path, state)
    assert future(request, 2)[1] == ["2024-01-03 00:00", "2024-01-03 01:00"]


def test_times_with_and_without_a_zone_do_not_mix(tmp_path):
    table(tmp_path / "a.csv", {"date": hours(4), "y": range(4)})
    table(tmp_path / "b.csv", {"date": [f"{date}+02:00" for date in hours(4, "2024-01-01T06:00")], "y": range(4)})
    with pytest.raises(ValueError, match=r"b.csv: the time is dates with a time zone here, but dates before"):
        encoded(build(str(tmp_path / "*.csv"), time="date", targets=["y"], split=HALVES))


def test_a_bad_value_beside_a_categorical_column_is_a_plain_error(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(4), "y": [1, 2, "oops", 4], "k": [*"uvuv"]})
    with pytest.raises(ValueError, match=r"a.csv, row 4: 'oops' in column 'y'") as caught:
        build(path, time="date", targets=["y"], categorical=["k"], split=HALVES).encode()
    assert type(caught.value) is ValueError


# Generated data

def test_generated_data_comes_from_the_seed_alone():
    state, series = encoded(generated.build(series=2, days=14, seed=1))
    again, same = encoded(generated.build(series=2, days=14, seed=1))
    other, _ = encoded(generated.build(series=2, days=14, seed=2))
    assert state == again
    assert state["best"] != other["best"]
    np.testing.assert_array_equal(series["place-00"], same["place-00"])
    assert (state["frequency"], state["channels"]["covariates"]) == ("1h", ["temperature"])


def test_the_best_error_of_generated_data_is_what_its_process_leaves():
    dataset = generated.build(series=8, days=60)
    state, series = encoded(dataset)
    errors = []
    for place, summary in enumerate(state["series"]):
        a, b = summary["bounds"]["test"]
        signal = (dataset.signal(place)[0] - summary["mean"][0]) / summary["std"][0]
        errors.append(series[summary["name"]][a:b, 0] - signal[a:b])
    assert np.mean(np.square(errors)) == pytest.approx(state["best"]["mse"], rel=0.1)
    assert np.mean(np.abs(errors)) == pytest.approx(state["best"]["mae"], rel=0.05)


def test_the_best_error_of_generated_data_is_reachable_from_what_a_model_sees():
    dataset = generated.build(series=8, days=60)
    state, series = encoded(dataset)
    errors = []
    for summary in state["series"]:
        values, hour = series[summary["name"]].astype(float), np.arange(summary["length"])
        yesterday = np.roll(values[:, 1], generated.LAG)
        seasons = [f(2 * np.pi * k * hour / 24) for k in (1, 2) for f in (np.sin, np.cos)]
        weekend = (hour // 24) % 7 >= 5
        x = np.stack([np.ones(len(hour)), hour / len(hour), weekend, yesterday, *seasons], axis=1)
        end, (a, b) = summary["bounds"]["train"][1], summary["bounds"]["test"]
        weights = np.linalg.lstsq(x[generated.LAG:end], values[generated.LAG:end, 0])[0]
        errors.append(values[a:b, 0] - x[a:b] @ weights)
    assert np.mean(np.square(errors)) < 1.2 * state["best"]["mse"]


def test_generated_data_refuses_too_little():
    with pytest.raises(ValueError, match=r"dataset.series=0 and dataset.days=60: at least 1 series of 14 days"):
        generated.build(series=0)


# The real files

@needs_data
def test_etth1_is_split_and_scaled_by_the_published_protocol():
    path = f"{DATA}/etth1/ETTh1.csv"
    targets = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    state, series = encoded(build(path, time="date", targets=targets,
                                  split={"train": 8640, "validation": 2880, "test": 2880}))
    raw = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=range(1, 8))
    mean, std = raw[:8640].mean(0), raw[:8640].std(0)
    np.testing.assert_allclose(series[""], (raw[:14400] - mean) / std, rtol=1e-5, atol=1e-5)
    assert (state["unused"], state["frequency"], state["season"]) == (17_420 - 14_400, "1h", 24)
    assert [windows(state, split, 336, 96)[1].tolist() for split in timeseries.PARTS] == [[8209], [2785], [2785]]


@needs_data
def test_pollution_has_missing_values_and_categories():
    options = {"path": f"{DATA}/beijing_pollution/pollution.csv", "time": ["year", "month", "day", "hour"],
               "targets": ["pm2.5"], "covariates": ["DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"], "categorical": ["cbwd"],
               "calendar": ["hour", "yearday"], "split": {"train": 0.6, "validation": 0.2, "test": 0.2}}
    with pytest.raises(ValueError, match=r"pollution.csv, row 2: no value in column 'pm2.5', the first of 2067 missing "
                                         r"in 43824 rows"):
        encoded(build(**options))
    state, series = encoded(build(**options, missing="mask"))
    assert only(state)["missing"] == 2067
    assert (series[""][:, -1] == 0).sum() == 2067
    assert state["channels"]["categorical"] == {"cbwd": ["NE", "NW", "SE", "cv"]}
    assert (series[""][:, 7:11].sum(1) == 1).all()


@needs_data
def test_m4_tests_continue_414_series(monkeypatch):
    dataset = build({"train": f"{DATA}/m4_hourly/train.parquet", "test": f"{DATA}/m4_hourly/test.parquet"}, time="step",
                    series="series", targets=["value"], split={"validation": 48}, time_restarts=True, season=24)
    small, large = both_ways(dataset, monkeypatch)
    assert small == large
    state = small[0]
    assert len(state["series"]) == 414
    assert {summary["length"] for summary in state["series"]} == {748, 1008}
    assert (windows(state, "test", 96, 48)[1] == 1).all()
    raw = pq.read_table(f"{DATA}/m4_hourly/test.parquet", filters=[("series", "=", "H7")])["value"].to_numpy()
    h7 = next(summary for summary in state["series"] if summary["name"] == "H7")
    np.testing.assert_allclose(np.ravel(small[1]["H7"])[-48:] * h7["std"][0] + h7["mean"][0], raw, rtol=1e-5)


@needs_data
def test_weather_and_stocks_are_daily_and_monthly():
    state, _ = encoded(build(f"{DATA}/weather_and_stocks/seattle-weather.csv", time="date", targets=["temp_max"],
                             categorical=["weather"], split={"validation": "2014-01-01", "test": "2015-01-01"}))
    assert (state["frequency"], only(state)["bounds"]["test"]) == ("1D", [1096, 1461])
    path = f"{DATA}/weather_and_stocks/stocks.csv"
    state, _ = encoded(build(path, time="date", series="symbol", targets=["price"], time_format="%b %d %Y",
                             split={"validation": 6, "test": 12}))
    assert (state["frequency"], state["season"], len(state["series"])) == ("1M", 12, 5)
    assert {summary["length"] for summary in state["series"]} == {68, 123}
    with pytest.raises(ValueError, match=r"row 2: 'Jan 1 2000' in column 'date' is no time .* set time_format"):
        encoded(build(path, time="date", series="symbol", targets=["price"], split=HALVES))
