"""Time series: reading, scaling, splits, the key, requests; the real files where they are."""

import json
import os
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import timeseries
from datasets.pipeline.windows import split_windows
from datasets.shared.frequency import HOUR, calendar_channels
from datasets.shared.options import SPLITS
from datasets.shared.series import STORED, known_future
from datasets.timeseries import build
from tests.datasets.series import HALVES, encoded, hours, only, table

DATA = os.environ.get("RONDO_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="RONDO_DATA (the folder of the real files) is not set")


pytestmark = pytest.mark.usefixtures("shared_ray")


# Reading, scaling, chunks


def test_values_are_scaled_by_the_training_steps_only(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(6), "y": [1, 2, 3, 4, 100, 200], "x": [5, 5, 5, 5, 5, 6]})
    state, series = encoded(
        build(path, time="date", targets=["y"], covariates=["x"], split={"train": 4, "validation": 1, "test": 1})
    )
    summary, deviation = only(state), np.std([1, 2, 3, 4])
    assert summary["mean"] == [2.5, 5.0]
    assert summary["std"] == [pytest.approx(deviation), 1.0]  # constant: 1
    np.testing.assert_allclose(series[""][:, 0], (np.array([1, 2, 3, 4, 100, 200]) - 2.5) / deviation, rtol=1e-6)
    assert series[""][:, 1].tolist() == [0, 0, 0, 0, 0, 1]
    assert (state["frequency"], state["season"], state["time"]["kind"]) == ("1h", 24, "timestamp")
    assert summary["start"] == int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 10**6
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
    assert batch.schema.equals(STORED)


def test_interleaved_series_in_many_blocks_and_files_are_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(timeseries, "CHUNK_BYTES", 64)
    for i, part in enumerate([range(40_000), range(40_000, 50_000)]):
        pq.write_table(
            pa.table(
                {
                    "s": ["b", "a"] * len(part),
                    "t": [t for t in part for _ in range(2)],
                    "y": [v for t in part for v in (float(t), float(-t))],
                }
            ),
            tmp_path / f"{i}.parquet",
        )
    state, series = encoded(
        build(str(tmp_path), time="t", series="s", targets=["y"], scale="none", split={"validation": 10}, season=1)
    )
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
    for i in range(3):  # so that series have several segments
        pq.write_table(
            pa.table(
                {
                    "s": np.repeat(["c", "a", "b"], 10),
                    "t": np.tile(np.arange(10), 3) + 10 * i,
                    "y": rng.normal(size=30),
                    "k": rng.choice(["u", "v", "w"], 30),
                }
            ),
            tmp_path / f"{i}.parquet",
        )
    small, large = both_ways(
        build(
            str(tmp_path), time="t", series="s", targets=["y"], categorical=["k"], split={"validation": 5, "test": 5}
        ),
        monkeypatch,
    )
    assert len(small[1]) == 3
    assert small == large


def test_a_long_series_is_stored_in_chunks_of_the_size_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(timeseries, "CHUNK_BYTES", 4 * 2 * 30)
    path = table(tmp_path / "a.csv", {"y": range(100), "x": range(100)})
    rows = build(path, targets=["y"], covariates=["x"], split=HALVES).encode()["series"].take_all()
    assert [(row["offset"], row["length"], len(row["values"])) for row in rows] == [
        (0, 30, 60),
        (30, 30, 60),
        (60, 30, 60),
        (90, 10, 20),
    ]


def test_mase_scale_is_the_seasonal_change_in_training_in_raw_units(tmp_path):
    y = [1.0, 5.0, 2.0, 9.0, 1000.0, 2000.0]
    path = table(tmp_path / "a.csv", {"y": y, "flat": [3] * 6})
    state, _ = encoded(build(path, targets=["y", "flat"], split={"train": 4, "validation": 2}, season=2))
    assert only(state)["mase"] == [pytest.approx((abs(2 - 1) + abs(9 - 5)) / 2), None]
    state, _ = encoded(build(path, targets=["y"], split={"train": 4, "validation": 2}, season=4))
    assert only(state)["mase"] == [None]  # no two steps a season apart


# Splits


@pytest.mark.parametrize(
    ("split", "bounds", "unused"),
    [
        ({"train": 5, "validation": 2, "test": 2}, {"train": [0, 5], "validation": [5, 7], "test": [7, 9]}, 1),
        ({"validation": 2, "test": 3}, {"train": [0, 5], "validation": [5, 7], "test": [7, 10]}, 0),
        ({"validation": 2}, {"train": [0, 8], "validation": [8, 10]}, 0),
        ({"train": 0.6, "validation": 0.2}, {"train": [0, 6], "validation": [6, 8]}, 2),
        ({"train": 0.7, "validation": 0.1, "test": 0.2}, {"train": [0, 7], "validation": [7, 8], "test": [8, 10]}, 0),
        ({"validation": 0.2, "test": 0.3}, {"train": [0, 5], "validation": [5, 7], "test": [7, 10]}, 0),
        (
            {"validation": "2024-01-01 04:00", "test": "2024-01-01T08:30"},
            {"train": [0, 4], "validation": [4, 9], "test": [9, 10]},
            0,
        ),
    ],
)
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


@pytest.mark.parametrize(
    ("split", "message"),
    [
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
    ],
)
def test_a_split_that_makes_no_sense_is_refused_before_any_reading(split, message):
    with pytest.raises(ValueError, match=message):
        build("nowhere.csv", time="date", targets=["y"], split=split)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"train": 5, "validation": 6}, "the series has 10 steps, too few for dataset.split"),
        ({"validation": 6, "test": 4}, "the series has 10 steps, too few for dataset.split"),
        ({"train": 0.95, "validation": 0.04}, "has 10 steps, of which dataset.split .* leaves none for validation"),
        ({"validation": "2025-01-01"}, "leaves none for validation"),
        ({"validation": "2023-01-01"}, "leaves none for train"),
    ],
)
def test_a_split_without_steps_is_refused(tmp_path, split, message):
    path = table(tmp_path / "a.csv", {"date": hours(10), "y": range(10)})
    with pytest.raises(ValueError, match=message):
        encoded(build(path, time="date", targets=["y"], split=split))


def test_files_for_each_split_continue_the_series_of_the_same_name(tmp_path):
    for name, steps in (("train", range(6)), ("test", range(6, 9))):
        table(
            tmp_path / f"{name}.csv",
            {"s": ["a"] * len(steps) + ["b"] * len(steps), "t": [*steps, *steps], "y": [*steps, *(-t for t in steps)]},
        )
    paths = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    state, series = encoded(build(paths, time="t", series="s", targets=["y"], split={"validation": 2}, scale="none"))
    assert [summary["bounds"] for summary in state["series"]] == [
        {"train": [0, 4], "validation": [4, 6], "test": [6, 9]}
    ] * 2
    assert series["b"].ravel().tolist() == [-t for t in range(9)]
    three = {**paths, "validation": table(tmp_path / "v.csv", {"s": ["a", "b"], "t": [6, 6], "y": [1, 1]})}
    with pytest.raises(ValueError, match=r"test.csv, row 2 \(series 'a'\): time 6 occurs twice, also in .*v.csv"):
        encoded(build(three, time="t", series="s", targets=["y"]))


def test_a_time_that_restarts_in_each_file_goes_on(tmp_path):
    paths = {
        "train": table(tmp_path / "a.csv", {"t": range(6), "y": range(6)}),
        "test": table(tmp_path / "b.csv", {"t": range(3), "y": range(6, 9)}),
    }
    state, series = encoded(
        build(paths, time="t", targets=["y"], split={"validation": 2}, scale="none", time_restarts=True)
    )
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


# The key


def test_sources_and_options_are_json_and_tell_the_split_of_each_file(tmp_path):
    paths = {name: table(tmp_path / f"{name}.csv", {"y": [1]}) for name in ("test", "train", "validation")}
    dataset = build(paths, targets=["y"])
    assert [os.path.basename(source.uri) for source in dataset.sources()] == ["train.csv", "validation.csv", "test.csv"]
    options = json.loads(json.dumps(dataset.options()))
    assert options["parts"] == ["train", "validation", "test"]
    assert "path" not in options
    assert build(paths, targets=["y"], season=3).options() != options


# Requests


def test_a_request_is_scaled_as_in_training_and_unknown_series_by_themselves(tmp_path):
    path = table(tmp_path / "a.csv", {"s": ["a"] * 4, "date": hours(4), "k": [*"uvuv"], "y": [1, 3, 5, 7]})
    dataset = build(
        path,
        time="date",
        series="s",
        targets=["y"],
        categorical=["k"],
        calendar=["hour"],
        missing="mask",
        split={"train": 2, "validation": 2},
    )
    state, series = encoded(dataset)
    new = table(
        tmp_path / "new.csv",
        {"s": [*"zzzzaaaa"], "date": hours(4) * 2, "k": [*"uvuw"] * 2, "y": [10, 10, 30, 30, 1, 3, 5, ""]},
    )
    a, z = build(
        "elsewhere.csv",
        time="date",
        series="s",
        targets=["y"],
        categorical=["k"],
        calendar=["hour"],
        missing="mask",
        split=HALVES,
    ).encode_request(new, state)
    assert (a.series, z.series) == ("a", "z")
    np.testing.assert_array_equal(a.values[:3], series["a"][:3])
    assert a.values[3, [0, 1, 2, 5]].tolist() == [0, 0, 0, 0]  # unseen value, unknown category
    assert (a.mean[0], a.std[0], z.mean[0], z.std[0]) == (2, 1, 20, 10)
    assert z.values[:, 0].tolist() == [-1, -1, 1, 1]
    known, times = known_future(a, 2)
    assert times == hours(2, "2024-01-01T04:00")
    np.testing.assert_allclose(known, calendar_channels(a.times[-1:] + np.array([1, 2]) * HOUR, ["hour"]), rtol=1e-6)


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


# The real files


@needs_data
def test_etth1_is_split_and_scaled_by_the_published_protocol():
    path = f"{DATA}/etth1/ETTh1.csv"
    targets = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    state, series = encoded(
        build(path, time="date", targets=targets, split={"train": 8640, "validation": 2880, "test": 2880})
    )
    raw = np.genfromtxt(path, delimiter=",", skip_header=1, usecols=range(1, 8))
    mean, std = raw[:8640].mean(0), raw[:8640].std(0)
    np.testing.assert_allclose(series[""], (raw[:14400] - mean) / std, rtol=1e-5, atol=1e-5)
    assert (state["unused"], state["frequency"], state["season"]) == (17_420 - 14_400, "1h", 24)
    assert [split_windows(state, split, 336, 96)[1].tolist() for split in SPLITS] == [[8209], [2785], [2785]]


@needs_data
def test_pollution_has_missing_values_and_categories():
    options = {
        "path": f"{DATA}/beijing_pollution/pollution.csv",
        "time": ["year", "month", "day", "hour"],
        "targets": ["pm2.5"],
        "covariates": ["DEWP", "TEMP", "PRES", "Iws", "Is", "Ir"],
        "categorical": ["cbwd"],
        "calendar": ["hour", "yearday"],
        "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
    }
    with pytest.raises(
        ValueError,
        match=r"pollution.csv, row 2: no value in column 'pm2.5', the first of 2067 missing "
        r"in 43824 rows",
    ):
        encoded(build(**options))
    state, series = encoded(build(**options, missing="mask"))
    assert only(state)["missing"] == 2067
    assert (series[""][:, -1] == 0).sum() == 2067
    assert state["channels"]["categorical"] == {"cbwd": ["NE", "NW", "SE", "cv"]}
    assert (series[""][:, 7:11].sum(1) == 1).all()


def m4():
    return build(
        {"train": f"{DATA}/m4_hourly/train.parquet", "test": f"{DATA}/m4_hourly/test.parquet"},
        time="step",
        series="series",
        targets=["value"],
        split={"validation": 48},
        time_restarts=True,
        season=24,
    )


@needs_data
@pytest.mark.soak
def test_the_shuffle_for_large_data_gives_the_same_on_m4(monkeypatch):
    small, large = both_ways(m4(), monkeypatch)
    assert small == large


@needs_data
def test_m4_tests_continue_414_series():
    state, series = encoded(m4())
    assert len(state["series"]) == 414
    assert {summary["length"] for summary in state["series"]} == {748, 1008}
    assert (split_windows(state, "test", 96, 48)[1] == 1).all()
    raw = pq.read_table(f"{DATA}/m4_hourly/test.parquet", filters=[("series", "=", "H7")])["value"].to_numpy()
    h7 = next(summary for summary in state["series"] if summary["name"] == "H7")
    np.testing.assert_allclose(np.ravel(series["H7"])[-48:] * h7["std"][0] + h7["mean"][0], raw, rtol=1e-5)


@needs_data
def test_weather_and_stocks_are_daily_and_monthly():
    state, _ = encoded(
        build(
            f"{DATA}/weather_and_stocks/seattle-weather.csv",
            time="date",
            targets=["temp_max"],
            categorical=["weather"],
            split={"validation": "2014-01-01", "test": "2015-01-01"},
        )
    )
    assert (state["frequency"], only(state)["bounds"]["test"]) == ("1D", [1096, 1461])
    path = f"{DATA}/weather_and_stocks/stocks.csv"
    state, _ = encoded(
        build(
            path,
            time="date",
            series="symbol",
            targets=["price"],
            time_format="%b %d %Y",
            split={"validation": 6, "test": 12},
        )
    )
    assert (state["frequency"], state["season"], len(state["series"])) == ("1M", 12, 5)
    assert {summary["length"] for summary in state["series"]} == {68, 123}
    with pytest.raises(ValueError, match=r"row 2: 'Jan 1 2000' in column 'date' is no time .* set time_format"):
        encoded(build(path, time="date", series="symbol", targets=["price"], split=HALVES))
