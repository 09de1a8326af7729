"""Series from tables: times, checks of the data, missing values, categories and calendar."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datasets import timeseries
from datasets.shared import series_layout
from datasets.shared.frequency import DAY, Frequency, calendar_channels, time_labels
from datasets.shared.series import known_future
from datasets.timeseries import build
from tests.datasets.series import HALVES, encoded, hours, only, table, write

pytestmark = pytest.mark.usefixtures("shared_ray")


# Time

TIMES = {
    "1h": ["2024-01-01 22:00", "2024-01-01 23:00", "2024-01-02 00:00", "2024-01-02 01:00"],
    "15min": ["2024-01-01T22:00:00Z", "2024-01-01T22:15:00Z", "2024-01-01T22:30:00Z", "2024-01-01T22:45:00Z"],
    "1D": ["2024-02-28", "2024-02-29", "2024-03-01", "2024-03-02"],
    "1W": ["2024-01-01", "2024-01-08", "2024-01-15", "2024-01-22"],
    "1M": ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"],
    "3M": ["2023-10-01", "2024-01-01", "2024-04-01", "2024-07-01"],
    "1Y": ["2020-02-29", "2021-02-28", "2022-02-28", "2023-02-28"],
    "500ms": [
        "2024-01-01 00:00:00.000",
        "2024-01-01 00:00:00.500",
        "2024-01-01 00:00:01.000",
        "2024-01-01 00:00:01.500",
    ],
    10: ["10", "20", "30", "40"],
}
NEXT = {
    "1h": "2024-01-02 02:00",
    "15min": "2024-01-01T23:00:00Z",
    "1D": "2024-03-03",
    "1W": "2024-01-29",
    "1M": "2024-05-31",
    "3M": "2024-10-01",
    "1Y": "2024-02-29",
    "500ms": "2024-01-01 00:00:02.000000",
    10: "50",
}


@pytest.mark.parametrize("frequency", TIMES)
def test_frequency_is_found_and_times_go_on_in_their_style(tmp_path, frequency):
    path = table(tmp_path / "a.csv", {"t": TIMES[frequency], "y": range(4)})
    dataset = build(path, time="t", targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    assert state["frequency"] == frequency
    [request] = dataset.encode_request(path, state)
    assert known_future(request, 1)[1] == [NEXT[frequency]]
    assert time_labels(request.times, request.style)[-1].rstrip("0") == TIMES[frequency][-1].rstrip("0")


def test_frequency_text_is_normalised_and_nonsense_refused():
    assert [str(Frequency.parse(text)) for text in ("60min", "24h", "7D", "12M", "h", 3)] == [
        "1h",
        "1D",
        "1W",
        "1Y",
        "1h",
        "3",
    ]
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
    path = table(
        tmp_path / "a.csv",
        {
            "year": [2023, 2023, 2024, 2024],
            "month": [12, 12, 1, 1],
            "day": [31, 31, 1, 1],
            "hour": [22, 23, 0, 1],
            "y": range(4),
        },
    )
    dataset = build(path, time=["year", "month", "day", "hour"], targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    assert state["frequency"] == "1h"
    assert known_future(dataset.encode_request(path, state)[0], 2)[1] == ["2024-01-01 02:00", "2024-01-01 03:00"]


def test_time_format_reads_and_writes_other_times(tmp_path):
    path = table(tmp_path / "a.csv", {"t": ["Jan 1 2000", "Feb 1 2000", "Mar 1 2000", "Apr 1 2000"], "y": range(4)})
    dataset = build(path, time="t", targets=["y"], split=HALVES, time_format="%b %d %Y")
    state, _ = encoded(dataset)
    assert (state["frequency"], state["season"]) == ("1M", 12)
    assert known_future(dataset.encode_request(path, state)[0], 1)[1] == ["May 01 2000"]


def test_series_of_different_frequency_are_refused(tmp_path):
    path = table(tmp_path / "a.csv", {"s": [*"aaaabbbb"], "t": [0, 1, 2, 3, 0, 2, 4, 6], "y": range(8)})
    with pytest.raises(ValueError, match=r"series 'a' has frequency 1, series 'b' 2; set dataset.frequency"):
        encoded(build(path, time="t", series="s", targets=["y"], split=HALVES))


def test_midnight_written_as_the_date_alone_does_not_hide_the_hour(tmp_path):
    dates = [
        f"{date:%Y-%m-%d}" if date.hour == 0 else f"{date:%Y-%m-%d %H:%M}"
        for date in map(datetime.fromisoformat, hours(48))
    ]
    path = table(tmp_path / "a.csv", {"date": dates, "y": range(48)})
    dataset = build(path, time="date", targets=["y"], split=HALVES)
    state, _ = encoded(dataset)
    [request] = dataset.encode_request(path, state)
    assert known_future(request, 2)[1] == ["2024-01-03 00:00", "2024-01-03 01:00"]


def test_times_with_and_without_a_zone_do_not_mix(tmp_path):
    table(tmp_path / "a.csv", {"date": hours(4), "y": range(4)})
    table(tmp_path / "b.csv", {"date": [f"{date}+02:00" for date in hours(4, "2024-01-01T06:00")], "y": range(4)})
    with pytest.raises(ValueError, match=r"b.csv: the time is dates with a time zone here, but dates before"):
        encoded(build(str(tmp_path / "*.csv"), time="date", targets=["y"], split=HALVES))


# Checks: each names the file, the row, the column and the value

H = hours(5)
BAD = {
    "text among numbers": (
        {"date": H, "y": [0, 1, "oops", 3, 4]},
        r"a.csv, row 4: 'oops' in column 'y' is not a number",
    ),
    "underscore": ({"date": H, "y": [0, 1, "1_000", 3, 4]}, r"a.csv, row 4: '1_000' in column 'y' is not a number"),
    "digits of another script": (
        {"date": H, "y": [0, 1, 2, "\u0661\u0662", 4]},
        "a.csv, row 5: '\u0661\u0662' in column 'y' is not a number",
    ),
    "not a number with a note": ({"date": H, "y": [0, "nan(1)", 2, 3, 4]}, r"row 3: 'nan\(1\)' in column 'y' is not a"),
    "decimal comma": ({"date": H, "y": [0, 1, '"1,5"', 3, 4]}, r"row 4: '1,5' in column 'y' is not a number"),
    "infinite": ({"date": H, "y": [0, 1, 2, "-inf", 4]}, r"a.csv, row 5: -inf in column 'y' is infinite"),
    "missing": (
        {"date": H, "y": [0, "NA", 2, "", 4]},
        r"a.csv, row 3: no value in column 'y', the first of 2 missing in 5 rows; .* interpolate or mask",
    ),
    "no time": (
        {"date": [*H[:3], "later", H[4]], "y": range(5)},
        r"a.csv, row 5: 'later' in column 'date' is no time as ISO 8601",
    ),
    "blank time": ({"date": [*H[:3], "", H[4]], "y": range(5)}, r"a.csv, row 5: '' in column 'date' is no time"),
    "unsorted": (
        {"date": [H[0], H[2], H[1], H[3], H[4]], "y": range(5)},
        rf"a.csv, row 4: time {H[1]} comes after {H[2]} of row 3; sort the rows by time",
    ),
    "duplicate": (
        {"date": [H[0], H[1], H[1], H[2], H[3]], "y": range(5)},
        rf"a.csv, row 4: time {H[1]} occurs twice, also in row 3; remove one of the rows",
    ),
    "gap": (
        {"date": [H[0], H[1], H[4], *hours(2, "2024-01-01 05:00")], "y": range(5)},
        rf"a.csv, row 4: 2 steps of 1h are missing between {H[1]} and {H[4]}; .* interpolate or mask",
    ),
    "off step": (
        {"date": [H[0], H[1], H[2], "2024-01-01 03:07:00", H[4]], "y": range(5)},
        rf"a.csv, row 5: time 2024-01-01 03:07:00 does not lie on a step of 1h from {H[0]}",
    ),
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
    with pytest.raises(ValueError, match=r"a.csv, row 7 \(series 'b'\): time 1 occurs twice, also in row 5"):
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": []}, "dataset.targets is empty"),
        ({"targets": ["y", "y"]}, "column 'y' is listed twice, in targets"),
        ({"targets": ["y"], "covariates": ["y"]}, "column 'y' is listed twice, in targets and covariates"),
        ({"targets": ["y"], "calendar": ["hour"]}, "dataset.calendar is set, but dataset.time is not"),
        ({"targets": ["y"], "frequency": "1h"}, "dataset.frequency is set, but dataset.time is not"),
        ({"targets": ["y"], "season": 0}, "dataset.season=0"),
    ],
)
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
    return table(
        tmp_path / "a.csv",
        {
            "date": [dates[i] for i in (0, 1, 2, 5, 6, 7, 8, 9)],
            "y": ["", 1, 2, 5, "NA", 7, 8, ""],
            "x": [0, 1, "null", 5, 6, 7, 8, 9],
        },
    )


def test_interpolate_is_linear_in_time_and_nearest_at_the_ends(tmp_path):
    state, series = encoded(
        build(
            with_gaps(tmp_path),
            time="date",
            targets=["y"],
            covariates=["x"],
            split=HALVES,
            missing="interpolate",
            scale="none",
        )
    )
    np.testing.assert_allclose(
        series[""], [[y, x] for y, x in zip([1, 1, 2, 3, 4, 5, 6, 7, 8, 8], range(10), strict=True)]
    )
    assert only(state)["missing"] == 3 + 1 + 2 * 2  # values, and two steps of two columns
    assert state["channels"]["observed"] is False


def test_mask_is_the_mean_and_says_what_was_observed(tmp_path):
    state, series = encoded(
        build(with_gaps(tmp_path), time="date", targets=["y"], covariates=["x"], split=HALVES, missing="mask")
    )
    assert only(state)["mean"] == [1.5, 0.5, 0.0]  # of the observed training values
    seen = np.array([0, 1, 1, 0, 0, 1, 0, 1, 1, 0])
    assert series[""][:, 2].tolist() == seen.tolist()
    assert (series[""][seen == 0, 0] == 0).all()
    np.testing.assert_allclose(series[""][seen == 1, 0], (np.array([1, 2, 5, 7, 8]) - 1.5) / 0.5)
    assert state["channels"]["observed"] is True


def test_mask_is_the_mean_also_without_scaling(tmp_path):
    dataset = build(
        with_gaps(tmp_path), time="date", targets=["y"], covariates=["x"], split=HALVES, missing="mask", scale="none"
    )
    state, series = encoded(dataset)
    assert only(state)["mean"][:2] == [0, 0]
    assert (series[""][series[""][:, 2] == 0, 0] == 1.5).all()  # of the observed training values
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
        state, _ = encoded(
            build(path, targets=["y"], split={"train": 3, "validation": 1}, missing="mask", missing_values=["-999"])
        )
        assert (only(state)["missing"], only(state)["mean"][0]) == (1, 2.0)


# Categories and calendar


def test_categories_come_from_the_training_rows_of_all_series(tmp_path, monkeypatch):
    path = table(tmp_path / "a.csv", {"s": [*"aaaabbbb"], "k": [*"xyzxxwzw"], "y": range(8)})
    state, series = encoded(build(path, series="s", targets=["y"], categorical=["k"], split=HALVES))
    assert state["channels"]["categorical"] == {"k": ["w", "x", "y"]}  # z only after training
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
    _, series = encoded(
        build(path, targets=["y"], categorical=["k"], split={"train": 3, "validation": 1}, missing="interpolate")
    )
    assert series[""][:, 1:].tolist() == [[1, 0], [0, 0], [0, 1], [1, 0]]


def test_calendar_channels_are_the_place_on_each_cycle():
    times = np.array([datetime(2024, 1, 1), datetime(2024, 2, 29, 6, 30), datetime(1969, 12, 28, 18)], "M8[us]")
    phases = {
        "minute": [0, 0.5, 0],
        "hour": [0, 6.5 / 24, 0.75],
        "weekday": [0, 3 / 7, 6 / 7],
        "monthday": [0, 28 / 29, 27 / 31],
        "yearday": [0, 59 / 366, 361 / 365],
        "month": [0, 1 / 12, 11 / 12],
    }
    channels = calendar_channels(times.astype(np.int64), list(phases))
    angles = 2 * np.pi * np.array(list(phases.values())).T
    np.testing.assert_allclose(channels[:, 0::2], np.sin(angles), atol=1e-12)
    np.testing.assert_allclose(channels[:, 1::2], np.cos(angles), atol=1e-12)


def test_channels_are_in_the_order_that_the_state_tells(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(4), "k": [*"uvuv"], "x": range(4), "y": range(4)})
    state, series = encoded(
        build(
            path,
            time="date",
            targets=["y"],
            covariates=["x"],
            categorical=["k"],
            calendar=["hour"],
            missing="mask",
            split={"train": 2, "validation": 2},
        )
    )
    assert state["channels"] == {
        "targets": ["y"],
        "covariates": ["x"],
        "categorical": {"k": ["u", "v"]},
        "calendar": ["hour_sin", "hour_cos"],
        "observed": True,
    }
    angle = 2 * np.pi * 2 / 24
    np.testing.assert_allclose(series[""][2], [3, 3, 1, 0, np.sin(angle), np.cos(angle), 1], rtol=1e-6)


def test_calendar_needs_dates(tmp_path):
    path = table(tmp_path / "a.csv", {"t": range(4), "y": range(4)})
    with pytest.raises(ValueError, match=r"dataset.calendar needs dates"):
        encoded(build(path, time="t", targets=["y"], calendar=["hour"], split=HALVES))


def test_a_bad_value_beside_a_categorical_column_is_a_plain_error(tmp_path):
    path = table(tmp_path / "a.csv", {"date": hours(4), "y": [1, 2, "oops", 4], "k": [*"uvuv"]})
    with pytest.raises(ValueError, match=r"a.csv, row 4: 'oops' in column 'y'") as caught:
        build(path, time="date", targets=["y"], categorical=["k"], split=HALVES).encode()
    assert type(caught.value) is ValueError


@pytest.mark.parametrize("missing", ["mask", "interpolate"])
def test_gaps_that_would_make_far_more_steps_than_rows_are_refused_with_the_arithmetic(tmp_path, missing):
    dates = ["2020-01-01 00:00:00", "2020-01-01 00:00:01", "2022-12-31 00:00:00"]
    path = table(tmp_path / "a.csv", {"s": ["x"] * 3, "t": dates, "y": range(3)})
    dataset = build(path, time="t", series="s", targets=["y"], split={"validation": 1}, frequency="1s", missing=missing)
    with pytest.raises(
        ValueError,
        match=(
            rf"a.csv, row 4 \(series 'x'\): dataset.missing={missing} would make 94,608,001 steps of 1s of 3 rows "
            r"\(2020-01-01 00:00:00 to 2022-12-31 00:00:00\), of which 94,607,998 have no row; at most 100,000 can be "
            r"made \(100 a row, or 100,000\). The longest gap is of 94,607,998 steps, between 2020-01-01 00:00:01 and "
            r"2022-12-31 00:00:00: correct the time .*, set dataset.frequency to .*, or cut the series"
        ),
    ):
        encoded(dataset)
    with pytest.raises(ValueError, match="would make 94,608,001 steps"):
        dataset.encode_request(path, {"frequency": "1s", "series": []})


@pytest.mark.parametrize("missing", ["mask", "interpolate"])
def test_few_rows_may_lie_far_apart_and_many_rows_a_hundred_steps(tmp_path, missing, monkeypatch):
    monkeypatch.setattr(series_layout, "STEPS_OF_FEW", 1000)

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
    path = table(
        tmp_path / "a.csv",
        {"s": ["a"] * len(kept) + ["b"] * 100, "t": kept + year[:50] + year[-50:], "y": range(len(kept) + 100)},
    )
    state, series = encoded(
        build(path, time="t", series="s", targets=["y"], split={"validation": 0.1}, missing=missing)
    )
    assert [len(series[name]) for name in "ab"] == [8760, 8760]
    assert [s["missing"] for s in state["series"]] == [720, 8660]


@pytest.mark.parametrize("text", ["1_0", "\u0661\u0660"])
def test_a_missing_value_that_is_no_numeral_stands_for_no_number(tmp_path, text):
    path = table(tmp_path / "a.csv", {"y": [1, 10, 3, 4]})
    state, _ = encoded(
        build(path, targets=["y"], split={"train": 3, "validation": 1}, missing="mask", missing_values=[text])
    )
    assert only(state)["missing"] == 0
