"""Files below a folder or URI: whole or not at all."""

import os
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from datasets.pipeline.storage import Storage, mask, sha256, split_options, without_secrets, write_file
from tests.faults import ACCESS, ObjectStore


def test_what_is_written_is_read_back_and_folders_are_made(tmp_path):
    storage = Storage(tmp_path / "new")
    storage.write("a/b/c.bin", b"one")
    storage.write("a/d.bin", pa.py_buffer(b"two"))
    assert storage.read("a/b/c.bin") == b"one"
    assert (tmp_path / "new/a/d.bin").read_bytes() == b"two"
    storage.write("a/d.bin", b"")
    assert storage.read("a/d.bin") == b""


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("x", b"old")

    def full(*_):
        raise OSError("no space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, full)
            with pytest.raises(OSError, match="no space"):
                storage.write("x", b"new")
        assert (storage.read("x"), storage.names()) == (b"old", ["x"])


def test_a_file_appears_only_once_it_is_whole(tmp_path, monkeypatch):
    storage, seen = Storage(tmp_path), []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (seen.append((Path(a).read_bytes(), storage.exists("x"))), replace(a, b))
    )
    storage.write("x", b"whole")
    assert seen == [(b"whole", False)]
    assert storage.read("x") == b"whole"


def test_names_are_those_directly_below_sorted_and_none_of_a_missing_folder(tmp_path):
    storage = Storage(tmp_path)
    for name in ("b", "a/deep/er", "c"):
        storage.write(name, b"")
    assert storage.names() == ["a", "b", "c"]
    assert (storage / "a").names() == ["deep"]
    assert (storage / "nowhere").names() == []


def test_exists_is_true_of_files_and_folders(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a/b", b"")
    assert storage.exists("a")
    assert storage.exists("a/b")
    assert not storage.exists("a/c")


def test_delete_removes_a_folder_and_remove_a_file_and_neither_minds_that_there_is_none(tmp_path):
    storage = Storage(tmp_path)
    storage.write("a/b/c", b"")
    storage.write("a/d", b"")
    storage.write("keep", b"")
    storage.delete("a/b")
    assert (storage / "a").names() == ["d"]
    storage.remove("a/d")
    storage.delete("a")
    storage.delete("a")
    storage.remove("nothing")
    assert storage.names() == ["keep"]


def test_reading_what_is_not_there_is_a_file_not_found_error(tmp_path):
    for read in (Storage(tmp_path).read, lambda name: Storage(tmp_path).read_spans(name, [(0, 1)])):
        with pytest.raises(FileNotFoundError):
            read("x")


def test_put_copies_a_folder_with_its_folders(tmp_path):
    for name in ("one", "deep/two"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    storage = Storage(tmp_path / "to")
    storage.put(tmp_path / "from", "copy")
    assert storage.read("copy/one") == b"one"
    assert storage.read("copy/deep/two") == b"deep/two"
    assert (storage / "copy").names() == ["deep", "one"]


def test_a_relative_folder_is_fixed_when_it_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs")
    monkeypatch.chdir("/")
    storage.write("x", b"here")
    assert (tmp_path / "runs/x").read_bytes() == b"here"
    assert (storage.uri, storage.local) == (str(tmp_path / "runs"), tmp_path / "runs")


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/runs").local == tmp_path / "runs"


def test_a_file_uri_is_the_local_folder(tmp_path):
    storage = Storage(f"file://{tmp_path}/my%20runs") / "one"
    assert storage.local == tmp_path / "my runs/one"
    storage.write("x", b"1")
    assert Storage(tmp_path / "my runs" / "one").read("x") == b"1"


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("out.csv", "here/out.csv"),
        ("./a/out.csv", "here/a/out.csv"),
        ("../out.csv", "out.csv"),
        ("~/x.csv", "home/x.csv"),
        ("{}/out.csv", "out.csv"),
        ("{}/a?b/what?.csv", "a?b/what?.csv"),
        ("file://{}/my%20runs/my%20out.csv", "my runs/my out.csv"),
    ],
)
def test_one_file_is_written_where_its_path_says(tmp_path, monkeypatch, name, where):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    name = name.format(tmp_path)
    assert write_file(name, b"one") == (name if "://" in name else str(tmp_path / where))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == {tmp_path / where: b"one"}


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_directly_below_the_root_is_written_there_or_refused_but_not_written_elsewhere(
    tmp_path, monkeypatch, scheme
):
    monkeypatch.chdir(tmp_path)
    file = Path(f"/rondo-test-{uuid.uuid4().hex}.csv")
    try:
        assert write_file(f"{scheme}{file}", b"one") == f"{scheme}{file}"
        assert file.read_bytes() == b"one"
    except OSError as error:  # as an ordinary user
        assert str(file) in str(error)
    finally:
        file.unlink(missing_ok=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("uri", ["s3://out.csv", "s3://out.csv/", "gs://out.csv?retry_limit_seconds=1"])
def test_a_file_needs_a_bucket(uri):
    with pytest.raises(ValueError, match=r"names no file in a bucket; write (s3|gs)://BUCKET/out.csv"):
        write_file(uri, b"")


def test_only_a_uri_has_options():
    assert split_options("s3://box/a.csv?region=eu/1") == ("s3://box/a.csv", "?region=eu/1")
    assert split_options("s3://box/a.csv") == ("s3://box/a.csv", "")
    assert split_options("/a?b.csv") == ("/a?b.csv", "")


@pytest.mark.parametrize("root", ["/", "file:///"])
def test_folders_below_the_root(root):
    assert (Storage(root) / "a").path == "/a"


def test_a_folder_below_keeps_the_uri(tmp_path):
    assert (Storage(f"file://{tmp_path}/") / "a/b").uri == f"file://{tmp_path}/a/b"
    assert repr(Storage(tmp_path) / "a") == f"Storage({str(tmp_path / 'a')!r})"


def test_storage_that_is_no_disk_has_no_local_folder_and_works_the_same():
    storage = Storage("mock://bucket")  # pyarrow's own file system in memory, a new one each time
    assert storage.local is None
    storage.fs.create_dir(f"{storage.path}/a")
    storage.write("a/x", b"1")
    assert storage.read("a/x") == b"1"
    assert (storage.exists("a/x"), storage.exists("a/y"), storage.names()) == (True, False, ["a"])
    storage.remove("a/x")
    assert not storage.exists("a/x")
    storage.delete("a")
    assert storage.names() == []


@pytest.mark.parametrize("uri", ["nosuch://host/folder", "s4://bucket", "://x"])
def test_an_unknown_scheme_is_refused_by_name(uri):
    with pytest.raises(ValueError, match="not a folder or URI that can be opened"):
        Storage(uri)


def test_sha256_is_that_of_the_bytes():
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(pa.py_buffer(b"abc")) == sha256(b"abc")


def test_names_go_before_the_options_of_a_uri():
    storage = Storage("s3://box/runs?endpoint_override=localhost:9000&scheme=http")
    below = storage / "a" / "b"
    assert (below.path, below.uri) == ("box/runs/a/b", "s3://box/runs/a/b?endpoint_override=localhost:9000&scheme=http")
    assert (Storage("/what?/is") / "a").path == "/what?/is/a"


def test_an_object_store_is_a_folder_like_another(tmp_path, monkeypatch):
    (tmp_path / "local").mkdir()
    (tmp_path / "local/c").write_bytes(b"put")
    for key, value in ACCESS.items():
        monkeypatch.setenv(key, value)
    store = ObjectStore(tmp_path)
    try:
        storage = Storage(store.uri("runs"))
        storage.write("a/b/x", b"one")
        storage.write("a/b/x", pa.py_buffer(b"other"))
        storage.write("a/empty", b"")
        storage.put(tmp_path / "local", "a/b")
        assert storage.local is None
        assert (storage.names(), (storage / "a").names()) == (["a"], ["b", "empty"])
        assert (storage / "a/b").names() == ["c", "x"]
        assert (storage.read("a/b/x"), (storage / "a").read("b/c"), storage.read("a/empty")) == (b"other", b"put", b"")
        assert storage.read_spans("a/b/x", [(0, 2), (3, 5), (4, 99), (99, 100)]) == (5, [b"ot", b"er", b"r", b""])
        assert storage.exists("a/b") and storage.exists("a/b/c") and not storage.exists("a/b/y")
        assert write_file(store.uri("out.csv"), b"one") == store.uri("out.csv")
        write_file(store.uri("runs/a/out.csv"), b"two")
        assert (Storage(store.uri("")).read("out.csv"), storage.read("a/out.csv")) == (b"one", b"two")
        storage.remove("a/out.csv")
        storage.remove("a/b/x")
        storage.remove("a/b/x")
        assert (storage / "a/b").names() == ["c"]
        storage.delete("a")
        storage.delete("a")
        assert storage.names() == []
        with pytest.raises(FileNotFoundError):
            storage.read("a/b/c")
    finally:
        store.stop()
    with pytest.raises(OSError, match="runs/a"):
        storage.write("a", b"")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host:5000/x", "http://me:***@host:5000/x"),
        ("failed: mysql://me:se:cr@et@db/x (then http://a:b@c)", "failed: mysql://me:***@db/x (then http://a:***@c)"),
        ("https://secrettoken@host", "https://***@host"),
        ("s3://AKIA:abc/def+gh@bucket/x", "s3://AKIA:***@bucket/x"),
        ("http://me:p@ss/w?r#d@host:5000/x", "http://me:***@host:5000/x"),
        ("s3://AKIA:12/34@bucket/x", "s3://AKIA:***@bucket/x"),
        ("http://me:a/b@[::1]:5000/x", "http://me:***@[::1]:5000/x"),
        ("s3://a:b/c@d/x,s3://e:f/g@h/y", "s3://a:***@d/x,s3://e:***@h/y"),
        ("x.csv::s3://a:b/c@d/x (see 's3://e:f/g@h/y')", "x.csv::s3://a:***@d/x (see 's3://e:***@h/y')"),
        ("https://x/?to=https://me:a/b@host", "https://x/?to=https://me:***@host"),
        ("https://secrettoken:@host", "https://***@host"),
        ("https://host/x?password=secret&n=1", "https://host/x?password=***&n=1"),
        ("https://host/x?sig=secret&se=1", "https://host/x?sig=***&se=1"),
        ("s3://b/k?secret_key=secret", "s3://b/k?secret_key=***"),
        (
            "abfss://runs@account.dfs.core.windows.net/x?sas_token=secret",
            "abfss://runs@account.dfs.core.windows.net/x?sas_token=***",
        ),
    ],
)
def test_mask_hides_passwords_and_tokens(text: str, shown: str) -> None:
    assert mask(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "/data/me@home/x: not found",
        "write to me@home.org: s3://bucket/me@home/x:y",
        "s3://bucket/12:30/me@home",
        "http://host:5000/a and b@c",
        "http://host:5000/me@home?to=you@home",
        "hdfs://namenode:8020/user/me@REALM/x",
        "http://[::1]:5000/me@home",
        "https://host?to=me@home",
        "file:///C:/x@y",
        "docker://registry/image:tag@sha256:ab",
        "zip://x.csv::https://host/me@home/a.zip",
        '[\'https://host\',\'me@home\'] {"uri":"https://host","to":"me@home"}',
        "abfss://runs@account/x",
        "sqlite:////data/mlflow.db",
    ],
)
def test_text_without_a_user_in_a_uri_is_not_masked(text: str) -> None:
    assert (mask(text), without_secrets(text)) == (text, text)


@pytest.mark.parametrize("frame", ["{}", "in {}: (no host)", "a,{},/data/me", "['{}', 1]", "{}?region=eu"])
@pytest.mark.parametrize("scheme", ["s3", "https", "gs", "mysql+pymysql"])
def test_no_password_is_shown_whatever_characters_it_has(scheme: str, frame: str) -> None:
    letters = [chr(i) for i in range(33, 127)] + ["\u00e9", "\u4e2d"]
    rng = np.random.default_rng(0)
    for _ in range(200):
        password = "x" + "".join(rng.choice(letters, int(rng.integers(1, 41))))
        text = frame.format("URI").replace("URI", f"{scheme}://AKIA:{password}@bucket/x")
        assert mask(text) == frame.format("URI").replace("URI", f"{scheme}://AKIA:***@bucket/x")
        if scheme != "gs":  # whose URIs have what is no secret there
            assert without_secrets(text) == frame.format("URI").replace("URI", f"{scheme}://bucket/x")


def test_a_uri_that_cannot_be_opened_is_shown_without_its_password_and_says_what_to_write():
    with pytest.raises(ValueError, match="%2F") as caught:
        Storage("s3://AKIA:abc/def+gh@bucket/x")
    assert str(caught.value).startswith("s3://AKIA:***@bucket/x: not a folder or URI")
    assert "abc" not in str(caught.value)


def test_what_is_passed_on_names_no_user_but_keeps_the_containers_of_azure():
    assert without_secrets("s3://me:secret@bucket/x, http://me@host") == "s3://bucket/x, http://host"
    assert without_secrets("abfss://runs@account/x") == "abfss://runs@account/x"
