"""Finding raw files, and reading their rows with numbers that a person would count."""

import contextlib
import gzip
import itertools
import json
import logging
import os
import threading
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.pipeline.storage import Unavailable
from datasets.reading import errors, find, formats
from tests.faults import unreadable

pytestmark = pytest.mark.usefixtures("shared_ray")


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


def names(sources: list[find.SourceFile]) -> list[str]:
    return [os.path.basename(source.uri) for source in sources]


def rows_of(path: str, columns: list[str] | None = None) -> list[dict]:
    return pa.concat_tables(formats.read_blocks(path, columns)).to_pylist()


def test_a_file_has_an_absolute_uri_its_size_and_time(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", "x\n1\n")
    monkeypatch.chdir(tmp_path)
    [source] = find.resolve("a.csv")
    assert source == find.SourceFile(str(tmp_path / "a.csv"), 4, os.stat("a.csv").st_mtime_ns)
    assert find.resolve(f"file://{tmp_path}/a.csv") == [source]


def test_globs_and_folders_are_sorted_and_leave_hidden_files_out(tmp_path):
    for name in ("b.csv", "a.csv", "c1.csv", "c2.csv", ".x.csv", "_SUCCESS", "notes.md", "deep/er/d.csv", "deep/.h/e"):
        write(tmp_path / name, "x\n")
    assert names(find.resolve(str(tmp_path), suffixes=[".csv"])) == ["a.csv", "b.csv", "c1.csv", "c2.csv", "d.csv"]
    assert names(find.resolve(str(tmp_path / "*.csv"))) == ["a.csv", "b.csv", "c1.csv", "c2.csv"]
    assert names(find.resolve(str(tmp_path / "c?.csv"))) == ["c1.csv", "c2.csv"]
    assert names(find.resolve(str(tmp_path / "[!ab]*.csv"))) == ["c1.csv", "c2.csv"]
    assert names(find.resolve(str(tmp_path / "**/*.csv"))) == ["a.csv", "b.csv", "c1.csv", "c2.csv", "d.csv"]
    assert names(find.resolve(str(tmp_path / "d*/er/*"))) == ["d.csv"]
    assert find.resolve(f"file://{tmp_path}/*.csv") == find.resolve(str(tmp_path / "*.csv"))


def test_a_name_with_brackets_that_exists_is_no_glob(tmp_path):
    path = write(tmp_path / "a[1].csv", "x\n")
    assert names(find.resolve(path)) == ["a[1].csv"]


def test_a_missing_path_is_an_error_with_the_most_similar_name(tmp_path):
    write(tmp_path / "data" / "ETTh1.csv", "x\n")
    with pytest.raises(
        ValueError,
        match=rf"there is no file or folder {tmp_path}/data/ETTh2.csv; did you mean "
        rf"{tmp_path}/data/ETTh1.csv\?",
    ):
        find.resolve(str(tmp_path / "data" / "ETTh2.csv"))
    with pytest.raises(ValueError, match=rf"did you mean {tmp_path}/data\?"):
        find.resolve(str(tmp_path / "dta" / "ETTh1.csv"))
    with pytest.raises(ValueError, match=rf"nothing matches {tmp_path}/data/\*.pq; {tmp_path}/data holds ETTh1.csv"):
        find.resolve(str(tmp_path / "data" / "*.pq"))


def test_empty_files_and_folders_are_refused(tmp_path):
    write(tmp_path / "full.csv", "x\n")
    write(tmp_path / "empty.csv", "")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match=r"empty.csv is empty \(0 bytes\)"):
        find.resolve(str(tmp_path / "*.csv"))
    with pytest.raises(ValueError, match="hollow holds no files"):
        find.resolve(str(tmp_path / "hollow"))
    with pytest.raises(ValueError, match=r"holds no .parquet file, only empty.csv, full.csv"):
        find.resolve(str(tmp_path), suffixes=[".parquet"])


def test_uris_of_fsspec_are_found_globbed_and_read():
    memory = fsspec.filesystem("memory")
    memory.pipe("/box/a.csv", b"x\n1\n")
    memory.pipe("/box/b.csv", b"x\n2\n")
    found = find.resolve("memory://box/*.csv")
    assert names(found) == ["a.csv", "b.csv"]
    assert all(source.uri.startswith("memory://") for source in found)
    assert [rows_of(source.uri)[0]["x"] for source in found] == ["1", "2"]


def test_a_scheme_that_nothing_serves_is_named():
    with pytest.raises(ValueError, match=r"no file system is known for nowhere://"):
        find.resolve("nowhere://box/a.csv")


def test_csv_values_stay_text_and_rows_count_from_the_header(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n1,NA\n\n,2\n\n3,oops\n")
    assert rows_of(path) == [
        {"x": "1", "y": "NA", "__file": path, "__row": 2},
        {"x": "", "y": "2", "__file": path, "__row": 4},
        {"x": "3", "y": "oops", "__file": path, "__row": 6},
    ]


def test_csv_rows_are_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 64)
    path = write(tmp_path / "a.csv", "x,y\n" + "".join(f"{i},{i}\n" if i % 7 else "\n" for i in range(500)))
    assert len(list(formats.read_blocks(path, ["x"]))) > 10
    assert [(int(row["x"]), row["__row"]) for row in rows_of(path, ["x"])] == [(i, i + 2) for i in range(500) if i % 7]


def test_a_quote_that_is_never_closed_is_refused_where_it_opens(tmp_path):
    lines = [f'{i},"said ""{i}"", then\nmore"' for i in range(5)]
    path = write(tmp_path / "a.csv", "\n".join(["x,note", *lines]) + "\n")
    assert [row["x"] for row in rows_of(path, ["x"])] == [*"01234"]  # quotes that close may span lines
    write(tmp_path / "a.csv", "\n".join(["x,note", "0,a", '1,"check', *(f"{i},a" for i in range(2, 30))]) + "\n")
    with pytest.raises(ValueError, match=r'a.csv, row 3: a quote \("\) opens here that is never closed'):
        rows_of(path, ["x"])


def test_an_ending_is_found_before_the_options_of_a_uri():
    assert formats._reader("s3://box/a.csv?region=us-east-1") is formats._reader("a.csv")
    assert formats._reader("s3://box/a.pq?region=us-east-1") is formats._reader("a.parquet")


def test_compressed_csv_tsv_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n"))
    write(tmp_path / "b.tsv", "\ufeffx\ty\n1\t2\n")
    for name in ("a.csv.gz", "b.tsv"):
        [row] = rows_of(str(tmp_path / name), ["y", "x"])
        assert (row["x"], row["y"]) == ("1", "2")


def test_parquet_keeps_types_and_rows_count_from_1(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_ROWS", 3)
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": list(range(10)), "y": ["a"] * 10}), path, row_group_size=4)
    assert [(row["x"], row["__row"]) for row in rows_of(path, ["x"])] == [(i, i + 1) for i in range(10)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"x,y\n1,2\n1,2,3\n", r"a.csv, row 3: 3 values where the header names 2"),
        ("a.csv", b"x,y\n\xff\xfe,2\n", r"a.csv, row 2: column 'x': not UTF-8; correct or remove it"),
        ("a.csv", b"x,\xff\n1,2\n", r"a.csv, line 1: the name of a column is not UTF-8"),
        ("a.jsonl", b'{"x": 1}\n{"x": \n', r"a.jsonl, row 2: not JSON: Expecting value \(character 6\); correct"),
        ("a.jsonl", b'{"x": 1}\n\n{"y": 1}\n', r"a.jsonl, row 3: column 'x': missing; correct or remove it"),
        ("a.jsonl", b'{"xx": 1}\n{"y": 1}\n', r"a.jsonl has no column 'x', did you mean 'xx'\? Its columns: xx, y"),
        ("a.jsonl.gz", b'{"x": 1}\n', r"a.jsonl.gz cannot be read: "),
        ("a.txt", b"x\n", r"a.txt has no column 'x'. Its columns: text"),
        ("a.csv", b"x,x\n1,2\n", r"a.csv has 2 columns named 'x'; rename all but one"),
        ("a.csv", b"\nx,y\n", r"a.csv, line 1: blank, but names of columns were expected"),
        ("a.csv", b"X,y\n1,2\n", r"a.csv has no column 'x'. Its columns: X, y"),
        ("a.csv", b"xx,y\n1,2\n", r"a.csv has no column 'x', did you mean 'xx'\? Its columns: xx, y"),
        ("a.parquet", b"PAR1 no PAR1", r"a.parquet cannot be read: .*; repair or remove the file"),
        ("a.csv.gz", b"x\n1\n", r"a.csv.gz cannot be read: "),
        ("a.xls", b"x\n1\n", r"a.xls: the ending is none of .csv, .tsv, .jsonl, .ndjson, .txt, .parquet, .pq"),
    ],
)
def test_what_cannot_be_read_names_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(str(tmp_path / name), ["x"])


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl", "a.txt"])
def test_a_disk_that_fails_is_not_blamed_on_the_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    with unreadable(path), pytest.raises(Unavailable, match=f"^{path} cannot be read now: ") as caught:
        rows_of(str(path))
    assert "remove" not in str(caught.value)


def test_a_disk_that_fails_in_a_task_is_told_in_a_line(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n1,2\n")
    found = find.resolve(path)
    with (
        unreadable(Path(path)),
        pytest.raises(Unavailable, match=f"^{path} cannot be read now: .*$"),
        errors.user_errors(),
    ):
        formats.read(found, ["x"]).take_all()


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz"])
def test_a_store_that_fails_while_a_file_is_parsed_is_not_blamed_on_the_file(failing_store, name):
    """Stores have errors without numbers, as parsers of damaged files have."""
    store = fsspec.filesystem("failing")
    with store.open(f"/box/{name}", "wb") as out:
        if name == "a.parquet":
            pq.write_table(pa.table({"x": ["1", "2"]}), out)
        else:
            out.write(gzip.compress(b"x\n1\n2\n"))
    uri = f"failing://box/{name}"
    assert [row["x"] for row in rows_of(uri)] == ["1", "2"]
    failing_store.fails = True
    with pytest.raises(Unavailable, match=f"^{uri} cannot be read now: AWS Error NETWORK_CONNECTION"):
        rows_of(uri)


def test_a_file_that_is_gone_by_the_time_it_is_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"there is no file {tmp_path / 'a.csv'} any more"):
        rows_of(str(tmp_path / "a.csv"), ["x"])


ODD = [
    "1_000",
    "1e1_0",
    "\u0661\u0662",
    "\uff11",
    "\u0967",
    "\u22121",
    "1,5",
    "1 000",
    "0x10",
    "nan(1)",
    "1e",
    ".",
    "",
    "True",
]


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_ascii_numeral_is_no_number(text):
    assert formats.number(text) is None
    assert pa.compute.match_substring_regex(pa.array([text]), formats.NUMERAL).to_pylist() == [False]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("-1", -1),
        ("+1", 1),
        ("007", 7),
        ("1.", 1),
        (".5", 0.5),
        ("-1.5E-3", -0.0015),
        ("1e5", 1e5),
        (" 2 ", 2),
        ("inf", np.inf),
        ("-Infinity", -np.inf),
        ("1e400", np.inf),
        ("nan", np.nan),
        ("NaN", np.nan),
        ("0.1", 0.1),
    ],
)
def test_numerals_are_read_as_python_and_arrow_read_them(text, value):
    np.testing.assert_equal(formats.number(text), value)
    stripped = pa.array([text.strip()])
    assert pa.compute.match_substring_regex(stripped, formats.NUMERAL).to_pylist() == [True]
    np.testing.assert_equal(stripped.cast(pa.float64())[0].as_py(), value)


def test_ray_reads_all_files_one_task_each(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.csv", f"x,y\n{i},1\n{i},2\n")
    rows = formats.read(find.resolve(str(tmp_path)), ["x"]).take_all()
    assert sorted((row["x"], os.path.basename(row["__file"]), row["__row"]) for row in rows) == [
        (str(i), f"{i}.csv", row) for i in range(3) for row in (2, 3)
    ]


def test_an_error_in_a_task_arrives_as_a_plain_value_error(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n1,2\n1\n")
    with pytest.raises(ValueError, match="row 3: 1 value where the header names 2") as caught, errors.user_errors():
        formats.read(find.resolve(path), ["x"]).take_all()
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


def test_other_errors_pass_unchanged():
    def broken(batch):
        raise KeyError("ours")

    with pytest.raises(Exception, match="ours") as caught, errors.user_errors():
        ray.data.range(1).map_batches(broken).take_all()
    assert not isinstance(caught.value, ValueError)


RAY_DATA = [
    logging.getLogger(f"ray.data.{name}") for name in ("exceptions", "_internal.execution.streaming_executor_state")
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ray_datas_loggers_are_as_before_after_the_last_of_several_threads_whatever_the_order(monkeypatch, order):
    for logger, level in zip(RAY_DATA, (logging.NOTSET, logging.INFO), strict=True):
        monkeypatch.setattr(logger, "level", level)
    inside, leave = threading.Barrier(4), [threading.Event() for _ in range(3)]

    def use(number: int) -> None:
        with contextlib.suppress(ZeroDivisionError), errors.user_errors():
            inside.wait(30)
            leave[number].wait(30)
            if number == 1:
                raise ZeroDivisionError

    threads = [threading.Thread(target=use, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    for number in order:
        assert [logger.level for logger in RAY_DATA] == [logging.CRITICAL] * 2
        leave[number].set()
        threads[number].join(30)
    assert [logger.level for logger in RAY_DATA] == [logging.NOTSET, logging.INFO]


def test_ray_datas_loggers_are_as_before_after_an_error():
    before = [logger.level for logger in RAY_DATA]
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), errors.user_errors(), errors.user_errors():
            raise error
        assert [logger.level for logger in RAY_DATA] == before != [logging.CRITICAL] * 2


# --- rows that cannot be parsed -------------------------------------------------------------------------------------


def lenient(path: str, columns: list[str] | None = None) -> tuple[list[tuple], dict[int, str]]:
    """([(row, value, ...) of good rows], row -> field and reason of the others), both in the order of the rows."""
    rows = [row for table in formats.read_blocks(path, columns, lenient=True) for row in table.to_pylist()]
    rows.sort(key=lambda row: row["__row"])
    assert len({row["__row"] for row in rows}) == len(rows)
    added = ("__row", "__file", "__bad")
    return (
        [
            (row["__row"], *(value for name, value in row.items() if name not in added))
            for row in rows
            if row["__bad"] is None
        ],
        {row["__row"]: f"{row['__bad']['field']}: {row['__bad']['reason']}" for row in rows if row["__bad"]},
    )


@pytest.mark.parametrize("block", [16, 24, 1 << 20])
def test_csv_rows_that_cannot_be_parsed_are_handed_on_by_number(tmp_path, monkeypatch, block):
    monkeypatch.setattr(formats, "BLOCK_BYTES", block)
    (tmp_path / "a.csv").write_bytes(b"x,y\n1,2\n1,2,3\n\n4\n\xff,5\n6,7\n\n8,9,\n10,\xfe\n11,12\n9\n")
    good, bad = lenient(str(tmp_path / "a.csv"), ["y", "x"])
    assert good == [(2, "2", "1"), (7, "7", "6"), (11, "12", "11")]
    assert bad == {
        3: ": 3 values where the header names 2",
        5: ": 1 value where the header names 2",
        6: "x: not UTF-8",
        9: ": 3 values where the header names 2",
        10: "y: not UTF-8",
        12: ": 1 value where the header names 2",
    }
    assert lenient(str(tmp_path / "a.csv"), ["y"])[1].keys() == bad.keys() - {6}  # x is not read


@given(
    st.lists(st.sampled_from([b"1,2", b"1", b"1,2,3", b"", b"\xff,2", b'"a\nb",2', "ä,ö".encode()]), max_size=40),
    st.integers(12, 80),
)
@settings(max_examples=60, deadline=None)
def test_csv_rows_keep_their_numbers_whatever_is_broken_and_wherever_blocks_end(tmp_path_factory, lines, block):
    path = tmp_path_factory.mktemp("drawn") / "a.csv"
    path.write_bytes(b"\n".join([b"x,y", *lines, b"7,8"]) + b"\n")
    expected = {i: line for i, line in enumerate([*lines, b"7,8"], 2) if line}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(formats, "BLOCK_BYTES", block)
        good, bad = lenient(str(path))
    assert [(row, f"{x},{y}".encode()) for row, x, y in good] == [
        (i, line.replace(b'"', b"")) for i, line in expected.items() if line.count(b",") == 1 and b"\xff" not in line
    ]
    assert sorted(bad) == [i for i, line in expected.items() if line.count(b",") != 1 or b"\xff" in line]


def test_an_open_quote_that_contains_later_rows_is_an_error_not_one_bad_row(tmp_path):
    path = write(tmp_path / "a.csv", 'x,y\n1,2\n"a,3\n4,5\n6,7\n')
    with pytest.raises(ValueError, match=r'a.csv, row 3: a quote \("\) opens here that is never closed'):
        lenient(path)
    write(tmp_path / "a.csv", 'x,y\n1,2\n"a,3\n4,5\n6,"7"\n8,9\n')
    assert lenient(path) == (
        [(2, "1", "2"), (4, "8", "9")],
        {3: ': 1 value where the header names 2, over 3 lines: is there a quote (") that is never closed?'},
    )


def test_a_csv_row_longer_than_a_block_is_an_error_that_says_what_to_look_for(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_BYTES", 32)
    path = write(tmp_path / "a.csv", "x,y\n1," + "a" * 200 + "\n1,2\n")
    with pytest.raises(ValueError, match=r"a.csv: no end of a row is found in 32 bytes; look for a quote"):
        lenient(path)


def test_json_rows_that_cannot_be_used_are_handed_on(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LINE_ROWS", 4)
    lines = [
        b'\xef\xbb\xbf{"x": "a", "y": 1}',
        b"",
        b'{"x": "b"',
        b'["x"]',
        b'{"y": 2}',
        b'{"x": 3, "y": 3}',
        b'{"x": "c", "y": "4", "z": 0}',
        b'{"x": "\xff", "y": 5}',
        b"  \t",
        b'{"x": "\\ud800", "y": 6}',
        b'{"x": null, "y": 7.5}',
        b'{"x": "d", "y": 1' + b"0" * 400 + b"}",
        b'{"x": "e", "y": null} x',
        b'{"x": "f", "y": 8}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\r\n".join(lines))
    good, bad = lenient(str(tmp_path / "a.jsonl"), ["x", "y"])
    assert good == [(1, "a", 1), (11, None, 7.5), (14, "f", 8)]
    assert bad == {
        3: ": not JSON: Expecting ',' delimiter (character 10)",
        4: ": a JSON object was expected, not list",
        5: "x: missing",
        6: "x: number where other rows have text",
        7: "y: text where other rows have number",
        8: ": not UTF-8",
        10: "x: half a character (a lone surrogate)",
        12: "y: a number that is too large",
        13: ": not JSON: Extra data (character 23)",
    }
    whole = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(whole[:60]) + gzip.compress(whole[60:]))
    assert lenient(str(tmp_path / "b.jsonl.gz"), ["x", "y"]) == (good, bad)


@pytest.mark.parametrize(
    ("values", "good", "reasons"),
    [
        (
            [None, [], [1, 2], [1.5], [[1]], "q", [True]],
            [None, [], [1, 2], [1.5]],
            [
                "list of list of number where other rows have list of number",
                "text where other rows have list of number",
                "list of true or false where other rows have list of number",
            ],
        ),
        (
            [[[1, 2], [3]], [[4.5, 5]], [1, 2], [[6, "a"]], [[]], []],
            [[[1, 2], [3]], [[4.5, 5]], [[]], []],
            ["list of number where other rows have list of list of number", "a list of different things"],
        ),
        (
            [["a"], ["b", None], [1], None, {"c": 1}],
            [["a"], ["b", None], None],
            ["list of number where other rows have list of text", "an object"],
        ),
        (
            [[], [], [], [1], ["a"], [2.5]],
            [[], [], [], [1], [2.5]],
            ["list of text where other rows have list of number"],
        ),
        (
            [float("inf"), 1, "a", True],
            [float("inf"), 1],
            ["text where other rows have number", "true or false where other rows have number"],
        ),
        ([1, True, 2], [1, 2], ["true or false where other rows have number"]),
        ([1, 2**70, -1], [1, 2.0**70, -1], []),
        ([{"a": 1}, {"a": "b"}], [], ["an object", "an object"]),
        ([[{"a": 1}], [{"a": "b"}]], [], ["an object", "an object"]),
    ],
)
def test_json_values_of_another_kind_than_most_are_bad_whatever_comes_first(tmp_path, values, good, reasons):
    for order in (1, -1):
        path = write(tmp_path / "a.jsonl", "".join(json.dumps({"x": value}) + "\n" for value in values[::order]))
        found, bad = lenient(path, ["x"])
        assert [value for _, value in found] == good[::order]
        assert list(bad.values()) == [f"x: {reason}" for reason in reasons[::order]]


def test_a_file_without_a_json_object_is_refused_unless_its_columns_are_known(tmp_path):
    path = write(tmp_path / "a.jsonl", "x\n[1]\n")
    with pytest.raises(ValueError, match=r"a.jsonl, row 1: not JSON: .*; give one JSON object a line"):
        rows_of(path)
    assert lenient(path, ["x"])[1].keys() == {1, 2}


def test_lines_of_text_are_rows_blank_ones_left_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b'\xef\xbb\xbfone\r\n\n  \ntwo, "2"\n\xff\nlast')
    assert lenient(str(tmp_path / "a.txt")) == ([(1, "one"), (4, 'two, "2"'), (6, "last")], {5: "text: not UTF-8"})
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    assert lenient(str(tmp_path / "a.txt.gz")) == lenient(str(tmp_path / "a.txt"))
    with pytest.raises(ValueError, match=r"a.txt, row 5: column 'text': not UTF-8; correct or remove it"):
        rows_of(str(tmp_path / "a.txt"))


def test_parquet_text_that_is_not_utf_8_is_a_bad_row(tmp_path):
    path = str(tmp_path / "a.parquet")
    broken = pa.array([b"a", b"\xff", None, "ä".encode()])
    text = pa.StringArray.from_buffers(4, *broken.buffers()[1:], broken.buffers()[0])
    nested = pa.ListArray.from_arrays(pa.array(range(5), pa.int32()), text)
    pq.write_table(pa.table({"bytes": broken, "text": text, "words": nested, "number": [1, 2, 3, 4]}), path)
    for column, first in (("bytes", "a"), ("text", "a"), ("words", ["a"])):
        good, bad = lenient(path, [column])
        assert (good[0], bad) == ((1, first), {2: f"{column}: not UTF-8"})
        assert [row for row, _ in good] == [1, 3, 4]
        with pytest.raises(ValueError, match=rf"a.parquet, row 2: column '{column}': not UTF-8; correct"):
            rows_of(path, [column])


def test_parquet_text_of_any_storage_is_plain_text(tmp_path):
    path = str(tmp_path / "a.parquet")
    values = pa.array(["a", "b", None, "a"])
    pq.write_table(
        pa.table(
            {
                "coded": values.dictionary_encode(),
                "view": values.cast(pa.string_view()),
                "large": values.cast(pa.large_string()),
            }
        ),
        path,
    )
    [table] = formats.read_blocks(path, None, lenient=True)
    assert [str(field.type) for field in table.schema][:3] == ["string", "string", "large_string"]
    for name in ("coded", "view", "large"):
        assert table[name].to_pylist() == values.to_pylist()


def test_parquet_is_decoded_in_blocks_of_bounded_memory_of_the_columns_that_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "BLOCK_MEMORY", 10_000)
    path = str(tmp_path / "a.parquet")
    rng = np.random.default_rng(0)
    pq.write_table(
        pa.table({"small": np.arange(200), "large": [rng.bytes(1000).hex() for _ in range(200)]}),
        path,
        row_group_size=70,
    )
    blocks = list(formats.read_blocks(path, ["small", "large"], lenient=True))
    assert max(len(block) for block in blocks) <= 6 and sum(len(block) for block in blocks) == 200
    assert [row for block in blocks for row in block["__row"].to_pylist()] == list(range(1, 201))
    assert len(list(formats.read_blocks(path, ["small"], lenient=True))) <= 3
