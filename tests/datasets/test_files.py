"""Finding raw files, and reading their rows with numbers that a person would count."""

import gzip
import os
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from datasets import files


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.use_datasource_v2, context.enable_progress_bars = False, False
    yield
    ray.shutdown()


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


def names(sources: list[files.Source]) -> list[str]:
    return [os.path.basename(source.uri) for source in sources]


def rows_of(path: str, columns: list[str] | None = None) -> list[dict]:
    return pa.concat_tables(files.read_blocks(path, columns)).to_pylist()


def test_a_file_has_an_absolute_uri_its_size_and_time(tmp_path, monkeypatch):
    write(tmp_path / "a.csv", "x\n1\n")
    monkeypatch.chdir(tmp_path)
    [source] = files.resolve("a.csv")
    assert source == files.Source(str(tmp_path / "a.csv"), 4, os.stat("a.csv").st_mtime_ns)
    assert files.resolve(f"file://{tmp_path}/a.csv") == [source]


def test_globs_and_folders_are_sorted_and_leave_hidden_files_out(tmp_path):
    for name in ("b.csv", "a.csv", "c1.csv", "c2.csv", ".x.csv", "_SUCCESS", "notes.md", "deep/er/d.csv", "deep/.h/e"):
        write(tmp_path / name, "x\n")
    assert names(files.resolve(str(tmp_path), suffixes=[".csv"])) == ["a.csv", "b.csv", "c1.csv", "c2.csv", "d.csv"]
    assert names(files.resolve(str(tmp_path / "*.csv"))) == ["a.csv", "b.csv", "c1.csv", "c2.csv"]
    assert names(files.resolve(str(tmp_path / "c?.csv"))) == ["c1.csv", "c2.csv"]
    assert names(files.resolve(str(tmp_path / "[!ab]*.csv"))) == ["c1.csv", "c2.csv"]
    assert names(files.resolve(str(tmp_path / "**/*.csv"))) == ["a.csv", "b.csv", "c1.csv", "c2.csv", "d.csv"]
    assert names(files.resolve(str(tmp_path / "d*/er/*"))) == ["d.csv"]
    assert files.resolve(f"file://{tmp_path}/*.csv") == files.resolve(str(tmp_path / "*.csv"))


def test_a_name_with_brackets_that_exists_is_no_glob(tmp_path):
    path = write(tmp_path / "a[1].csv", "x\n")
    assert names(files.resolve(path)) == ["a[1].csv"]


def test_what_is_not_there_is_told_with_the_nearest_name(tmp_path):
    write(tmp_path / "data" / "ETTh1.csv", "x\n")
    with pytest.raises(ValueError, match=rf"there is no file or folder {tmp_path}/data/ETTh2.csv; did you mean "
                                         rf"{tmp_path}/data/ETTh1.csv\?"):
        files.resolve(str(tmp_path / "data" / "ETTh2.csv"))
    with pytest.raises(ValueError, match=rf"did you mean {tmp_path}/data\?"):
        files.resolve(str(tmp_path / "dta" / "ETTh1.csv"))
    with pytest.raises(ValueError, match=rf"nothing matches {tmp_path}/data/\*.pq; {tmp_path}/data holds ETTh1.csv"):
        files.resolve(str(tmp_path / "data" / "*.pq"))


def test_empty_files_and_folders_are_refused(tmp_path):
    write(tmp_path / "full.csv", "x\n")
    write(tmp_path / "empty.csv", "")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(ValueError, match=r"empty.csv is empty \(0 bytes\)"):
        files.resolve(str(tmp_path / "*.csv"))
    with pytest.raises(ValueError, match="hollow holds no files"):
        files.resolve(str(tmp_path / "hollow"))
    with pytest.raises(ValueError, match=r"holds no .parquet file, only empty.csv, full.csv"):
        files.resolve(str(tmp_path), suffixes=[".parquet"])


def test_uris_of_fsspec_are_found_globbed_and_read():
    memory = fsspec.filesystem("memory")
    memory.pipe("/box/a.csv", b"x\n1\n")
    memory.pipe("/box/b.csv", b"x\n2\n")
    found = files.resolve("memory://box/*.csv")
    assert names(found) == ["a.csv", "b.csv"]
    assert all(source.uri.startswith("memory://") for source in found)
    assert [rows_of(source.uri)[0]["x"] for source in found] == ["1", "2"]


def test_a_scheme_that_nothing_serves_is_named():
    with pytest.raises(ValueError, match=r"no file system is known for nowhere://"):
        files.resolve("nowhere://box/a.csv")


def test_csv_values_stay_text_and_rows_count_from_the_header(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n1,NA\n\n,2\n\n3,oops\n")
    assert rows_of(path) == [{"x": "1", "y": "NA", "__file": path, "__row": 2},
                             {"x": "", "y": "2", "__file": path, "__row": 4},
                             {"x": "3", "y": "oops", "__file": path, "__row": 6}]


def test_csv_rows_are_numbered_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 64)
    path = write(tmp_path / "a.csv", "x,y\n" + "".join(f"{i},{i}\n" if i % 7 else "\n" for i in range(500)))
    assert len(list(files.read_blocks(path, ["x"]))) > 10
    assert [(int(row["x"]), row["__row"]) for row in rows_of(path, ["x"])] == [(i, i + 2) for i in range(500) if i % 7]


def test_a_quote_that_is_never_closed_is_refused_where_it_opens(tmp_path):
    lines = [f'{i},"said ""{i}"", then\nmore"' for i in range(5)]
    path = write(tmp_path / "a.csv", "\n".join(["x,note", *lines]) + "\n")
    assert [row["x"] for row in rows_of(path, ["x"])] == [*"01234"]              # quotes that close may span lines
    write(tmp_path / "a.csv", "\n".join(["x,note", "0,a", '1,"check', *(f"{i},a" for i in range(2, 30))]) + "\n")
    with pytest.raises(ValueError, match=r'a.csv, row 3: a quote \("\) opens here that is never closed'):
        rows_of(path, ["x"])


def test_an_ending_is_found_before_the_options_of_a_uri():
    assert files._reader("s3://box/a.csv?region=us-east-1") is files._reader("a.csv")
    assert files._reader("s3://box/a.pq?region=us-east-1") is files._reader("a.parquet")


def test_compressed_csv_tsv_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,y\n1,2\n"))
    write(tmp_path / "b.tsv", "\ufeffx\ty\n1\t2\n")
    for name in ("a.csv.gz", "b.tsv"):
        [row] = rows_of(str(tmp_path / name), ["y", "x"])
        assert (row["x"], row["y"]) == ("1", "2")


def test_parquet_keeps_types_and_rows_count_from_1(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_ROWS", 3)
    path = str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": list(range(10)), "y": ["a"] * 10}), path, row_group_size=4)
    assert [(row["x"], row["__row"]) for row in rows_of(path, ["x"])] == [(i, i + 1) for i in range(10)]


@pytest.mark.parametrize(("name", "content", "message"), [
    ("a.csv", b"x,y\n1,2\n1,2,3\n", r"a.csv, row 3: 3 values where the header names 2"),
    ("a.csv", b"x,y\n\xff\xfe,2\n", r"(?i)a.csv cannot be read: .*utf-?8"),
    ("a.csv", b"x,x\n1,2\n", r"a.csv has 2 columns named 'x'; rename all but one"),
    ("a.csv", b"\nx,y\n", r"a.csv, line 1: blank, but names of columns were expected"),
    ("a.csv", b"X,y\n1,2\n", r"a.csv has no column 'x'. Its columns: X, y"),
    ("a.csv", b"xx,y\n1,2\n", r"a.csv has no column 'x', did you mean 'xx'\? Its columns: xx, y"),
    ("a.parquet", b"PAR1 no PAR1", r"a.parquet cannot be read: .*; repair or remove the file"),
    ("a.csv.gz", b"x\n1\n", r"a.csv.gz cannot be read: "),
    ("a.xls", b"x\n1\n", r"a.xls: the ending is none of .csv, .tsv, .jsonl, .ndjson, .txt, .parquet, .pq"),
])
def test_what_cannot_be_read_names_the_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(str(tmp_path / name), ["x"])


def test_ray_reads_all_files_one_task_each(tmp_path):
    for i in range(3):
        write(tmp_path / f"{i}.csv", f"x,y\n{i},1\n{i},2\n")
    rows = files.read(files.resolve(str(tmp_path)), ["x"]).take_all()
    assert sorted((row["x"], os.path.basename(row["__file"]), row["__row"]) for row in rows) == [
        (str(i), f"{i}.csv", row) for i in range(3) for row in (2, 3)]


def test_an_error_in_a_task_arrives_as_a_plain_value_error(tmp_path):
    path = write(tmp_path / "a.csv", "x,y\n1,2\n1\n")
    with pytest.raises(ValueError, match="row 3: 1 value where the header names 2") as caught, files.user_errors():
        files.read(files.resolve(path), ["x"]).take_all()
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)


def test_other_errors_pass_unchanged():
    def broken(batch):
        raise KeyError("ours")
    with pytest.raises(Exception, match="ours") as caught, files.user_errors():
        ray.data.range(1).map_batches(broken).take_all()
    assert not isinstance(caught.value, ValueError)
