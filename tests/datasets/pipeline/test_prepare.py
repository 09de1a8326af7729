"""Prepared data: its key, its completeness, and reading it back. Real Ray Data, small files."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import datasets
from datasets.pipeline import prepare as preparing
from datasets.pipeline.ingest import cache
from datasets.pipeline.prepare import cache_key, prepare
from datasets.pipeline.prepared import Prepared, Shard, load, read_rows
from datasets.pipeline.storage import Storage, Unavailable
from tests.faults import ACCESS, ObjectStore, unreadable
from workflows.config.load import load as load_experiment

pytestmark = pytest.mark.usefixtures("shared_ray")


def write(path: Path, *, rows: int = 60, series: tuple[str, ...] = ("a", "b")) -> Path:
    """A CSV of some series, one after the other, whose values count up: 1000 s + step."""
    lines = [f"{name},{step},{1000 * s + step}" for s, name in enumerate(series) for step in range(rows)]
    path.write_text("\n".join(["name,t,y", *lines]) + "\n")
    return path


def numbers(path: Path, **options):
    given = {"targets": ["y"], "time": "t", "series": "name", "split": {"validation": 10, "test": 10}, "scale": "none"}
    return datasets.build("timeseries", path=str(path), **given | options)


def stored(prepared: Prepared) -> pa.Table:
    [part] = prepared.parts.values()
    return read_rows(prepared.storage, part.shards, [None] * len(part.shards))


def files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """200 training rows of unequal length in shards of about 10 rows."""
    root = Storage(tmp_path_factory.mktemp("many"))
    return prepare(datasets.build("random_sequences", rows=250), root, shard_bytes=1000)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """(storage, three shards of 100 rows in row groups of 3 to 5, all their rows)."""
    storage = Storage(tmp_path_factory.mktemp("grouped"))
    lengths = np.random.default_rng(0).integers(1, 50, 300)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    values = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(np.arange(ends[-1]), pa.float32()))
    rows = pa.table({"length": pa.array(lengths, pa.int32()), "values": values})
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(preparing, "GROUP_BYTES", 400)
        made = [preparing._write_shard(rows.slice(start, 100), storage, f"{start}.parquet") for start in (0, 100, 200)]
    entries = [json.loads(record["shard"][0].as_py()) for record in made]
    shards = [Shard.of(entry) for entry in entries]
    assert all(sum(s.groups) == 100 and 20 <= len(s.groups) <= 34 for s in shards)
    return storage, shards, rows


# --- the key -----------------------------------------------------------------------------------------------------


def test_the_key_changes_with_the_files_and_the_options(tmp_path):
    path = write(tmp_path / "a.csv")
    key = cache_key(numbers(path))
    assert key == cache_key(numbers(path))
    assert key.startswith("timeseries-")
    others = [
        numbers(path, **change)
        for change in (
            {"scale": "standard"},
            {"split": {"validation": 11, "test": 10}},
            {"missing": "mask"},
            {"season": 7},
            {"frequency": 1},
            {"missing_values": ["?"]},
            {"targets": ["y", "name"], "series": None},
        )
    ]
    assert len({key, *map(cache_key, others)}) == 1 + len(others)
    os.utime(path, ns=(0, 1))
    touched = cache_key(numbers(path))
    write(path, rows=61)
    os.utime(path, ns=(0, 1))
    longer = cache_key(numbers(path))
    moved = cache_key(numbers(path.rename(tmp_path / "b.csv")))
    assert len({key, touched, longer, moved}) == 4


def test_the_key_does_not_change_with_windows_batches_or_storing():
    def key(*overrides: str) -> str:
        return cache_key(load_experiment(None, list(overrides)).raw_dataset)

    assert key() == key(
        "task.lookback=48",
        "task.horizon=2",
        "training.batch_size=7",
        "dataset.shard_bytes=10",
        "dataset.shuffle_bytes=10",
        "dataset.cache_bytes=0",
        "model.family=rnn",
        "model.patch=12",
    )
    assert key() != key("dataset.days=61")
    assert key() != key("dataset.seed=1")


# --- prepared once------------------------------------------------------------------------------------------------


def test_prepared_data_is_not_prepared_again(tmp_path, monkeypatch):
    dataset = numbers(write(tmp_path / "a.csv"))
    root = Storage(tmp_path / "out")
    first = prepare(dataset, root)
    before = files(tmp_path / "out")
    monkeypatch.setattr(type(dataset), "encode", lambda self: pytest.fail("encoded a second time"))
    second = prepare(dataset, root)
    assert files(tmp_path / "out") == before
    assert second.digest == first.digest
    assert second.state == first.state
    assert second.parts["series"].shards == first.parts["series"].shards
    os.utime(tmp_path / "a.csv", ns=(0, 1))
    with pytest.raises(pytest.fail.Exception, match="encoded a second time"):
        prepare(dataset, root)


def test_the_same_rows_give_the_same_digest_in_any_folder(tmp_path):
    path = write(tmp_path / "a.csv")
    one, two = (prepare(numbers(path), Storage(tmp_path / name)) for name in "xy")
    assert one.digest == two.digest
    assert one.digest != prepare(numbers(path, scale="standard"), Storage(tmp_path / "z")).digest


def test_the_manifest_names_every_file_with_size_and_sum(many):
    manifest = json.loads(many.storage.read("manifest.json"))
    named = [entry for part in manifest["parts"].values() for entry in [part["index"], *part["shards"]]]
    assert {entry["file"] for entry in named} == set(many.storage.names()) - {"manifest.json"}
    for entry in named:
        data = many.storage.read(entry["file"])
        assert (len(data), preparing.sha256(data)) == (entry["bytes"], entry["sha256"])
    assert many.key == many.storage.uri.rpartition("/")[2]


# --- never half ---------------------------------------------------------------------------------------------------


def test_a_crash_before_the_manifest_leaves_nothing_that_loads(tmp_path, monkeypatch):
    dataset, root = numbers(write(tmp_path / "a.csv")), Storage(tmp_path / "out")
    whole = Storage.write

    def crash(self, name, data):
        if name == "manifest.json":
            raise KeyboardInterrupt
        whole(self, name, data)

    with monkeypatch.context() as patched:
        patched.setattr(Storage, "write", crash)
        patched.setattr(preparing, "_clear", lambda *_: None)  # a real crash clears nothing up
        with pytest.raises(KeyboardInterrupt):
            prepare(dataset, root)
    [left] = root.names()
    assert len((root / left).names()) == 2  # a shard and an index, but no manifest
    with pytest.raises(FileNotFoundError):
        load(root / left)
    again = prepare(dataset, root)
    assert sorted(stored(again)["series"].to_pylist()) == ["a", "b"]


def test_keys_in_the_uri_of_raw_data_are_not_written_down(tmp_path, monkeypatch):
    store = ObjectStore(tmp_path)
    try:
        with monkeypatch.context() as known:
            for key, value in ACCESS.items():
                known.setenv(key, value)
            rows = [{"text": "good" if i % 2 else "bad", "label": i % 2} for i in range(40)]
            rows.append({"text": "", "label": 0})
            Storage(store.uri("raw")).write("rows.jsonl", "\n".join(map(json.dumps, rows)).encode())
        uri = store.uri("raw/rows.jsonl").replace("s3://", "s3://test:test@")
        dataset = datasets.build("text", path=uri, text="text", label="label", split={"validation": 0.2})
        prepared = prepare(dataset, Storage(tmp_path / "prepared"), limit=0.1)
    finally:
        store.stop()
    shown = uri.replace("test:test@", "")
    assert [prepared.quarantine.first[0]["uri"]] == pq.read_table(prepared.quarantine.uri)["uri"].to_pylist() == [shown]
    assert not [file for file in (tmp_path / "prepared").rglob("*") if file.is_file() and b"test@" in file.read_bytes()]


def test_wrong_data_leaves_no_files_behind(tmp_path):
    path = write(tmp_path / "a.csv")
    path.write_text(path.read_text().replace("b,50,1050", "b,50,oops"))
    with pytest.raises(ValueError, match=r"a.csv, row 112: 'oops' in column 'y' is not a number"):
        prepare(numbers(path), Storage(tmp_path / "out"))
    assert files(tmp_path) == ["a.csv"]


def test_series_that_contradict_each_other_leave_no_files_behind(tmp_path):
    path = write(tmp_path / "a.csv")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:61], *(f"c,{2 * step},1" for step in range(60))]) + "\n")
    with pytest.raises(ValueError, match="series 'a' has frequency 1, series 'c' 2"):
        prepare(numbers(path), Storage(tmp_path / "out"))
    assert files(tmp_path) == ["a.csv"]
    assert not (tmp_path / "out" / cache_key(numbers(path))).exists()


def test_a_failed_attempt_leaves_the_files_of_others_alone(tmp_path):
    path = write(tmp_path / "a.csv", series=("a", "a"))  # times start anew: refused
    target = Storage(tmp_path / "out") / cache_key(numbers(path))
    target.write("series-0123abcd-0.parquet", b"of another process that is at work")
    with pytest.raises(ValueError, match="sort the rows by time"):
        prepare(numbers(path), Storage(tmp_path / "out"))
    assert target.names() == ["series-0123abcd-0.parquet"]


# --- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture
def copy(many, tmp_path):
    """The prepared folder `many`, to be damaged."""
    for name in many.storage.names():
        (tmp_path / name).write_bytes(many.storage.read(name))
    return Storage(tmp_path)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_index_is_refused_by_name(copy, damage):
    path = next(copy.local.glob("train-*index.parquet"))
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        flip(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=f"{path}: prepared data is (missing|damaged).*delete .* and prepare again"):
        load(copy)


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
@pytest.mark.parametrize("places", [None, np.arange(4)], ids=["all rows", "some rows"])
def test_a_damaged_shard_is_refused_by_name(copy, damage, places):
    shard = load(copy).parts["train"].shards[1]
    path = copy.local / shard.file
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        flip(path, 100)  # inside the first pages
    with pytest.raises(ValueError, match=f"{path}: prepared data .*delete .* and prepare again"):
        read_rows(copy, [shard], [places])


def test_a_disk_that_fails_is_no_damage_and_the_rows_are_read_once_it_is_back(copy):
    part = load(copy).parts["train"]
    shard = part.shards[1]
    with unreadable(copy.local / shard.file):
        for read in (lambda: read_rows(copy, [shard], [None]), lambda: cache(part, copy)):
            with pytest.raises(Unavailable, match=f"^{copy.local / shard.file} cannot be read now: ") as caught:
                read()
            assert "delete" not in str(caught.value)
    assert len(read_rows(copy, [shard], [None])) == shard.rows


def test_a_store_that_fails_is_no_damage_to_rows_that_are_read_alone(grouped, failing_store):
    local, shards, rows = grouped
    store, places = Storage("fsspec+failing://box/data"), np.array([3, 40, 99])
    store.write(shards[0].file, local.read(shards[0].file))
    assert read_rows(store, shards[:1], [places]).equals(rows.take(pa.array(places)))
    failing_store.fails = True
    for wanted in (places, None):
        with pytest.raises(Unavailable, match=rf"{shards[0].file} cannot be read now: AWS Error"):
            read_rows(store, shards[:1], [wanted])


def test_no_flipped_byte_of_what_is_read_goes_unnoticed(grouped, tmp_path):
    storage, shards, rows = grouped
    copied, shard, places = Storage(tmp_path), shards[0], np.array([40])
    whole = storage.read(shard.file)
    group = int(np.searchsorted(np.cumsum(shard.groups), 40, side="right"))
    starts = [0, *(end for end, _ in shard.pieces)]
    read = [*range(starts[group], starts[group + 1]), *range(starts[-2], starts[-1])]  # headers and footer, too
    for at in range(0, len(whole), 3):
        copied.write(shard.file, whole)
        flip(tmp_path / shard.file, at)
        if at in read:
            with pytest.raises(ValueError, match=r"prepared data is damaged .*or other content"):
                read_rows(copied, [shard], [places])
        else:  # what is not read is not checked
            assert read_rows(copied, [shard], [places]).equals(rows.take(pa.array(places)))


def test_another_shard_in_the_place_of_one_is_not_read(grouped, tmp_path):
    storage, shards, _ = grouped
    copied = Storage(tmp_path)
    copied.write(shards[0].file, storage.read(shards[1].file))
    for places in (None, np.array([40])):
        with pytest.raises(ValueError, match=f"{tmp_path / shards[0].file}: prepared data is damaged"):
            read_rows(copied, shards[:1], [places])


def test_data_of_an_earlier_version_which_has_no_sums_of_row_groups_is_read_and_checked_whole(many, copy):
    manifest = json.loads(copy.read("manifest.json"))
    for part in manifest["parts"].values():
        for entry in part["shards"]:
            assert len(entry.pop("pieces")) == len(entry["groups"]) + 1
    copy.write("manifest.json", json.dumps(manifest).encode())
    shard, new = load(copy).parts["train"].shards[0], many.parts["train"].shards[0]
    places = np.arange(4)
    assert read_rows(copy, [shard], [places]).equals(read_rows(many.storage, [new], [places]))
    flip(copy.local / shard.file, shard.bytes - 20)
    with pytest.raises(ValueError, match="prepared data is damaged"):
        read_rows(copy, [shard], [places])


@pytest.mark.parametrize("change", [lambda pieces: pieces.pop(), lambda pieces: pieces[-1].__setitem__(0, 10**12)])
def test_a_manifest_whose_pieces_are_not_those_of_the_shard_is_refused(copy, change):
    manifest = json.loads(copy.read("manifest.json"))
    change(manifest["parts"]["train"]["shards"][0]["pieces"])
    copy.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ValueError, match=r"manifest\.json: prepared data is damaged .*the pieces of .* delete"):
        load(copy)


@pytest.mark.parametrize("place", ["shard", "index", "quarantine"])
@pytest.mark.parametrize(
    "name",
    [
        "../outside.parquet",
        "/outside.parquet",
        "other/outside.parquet",
        "..\\outside",
        "..",
        ".",
        "manifest.json",
        "a\0b",
        "a" * 300,
        7,
    ],
)
def test_a_manifest_names_no_file_outside_its_folder(copy, place, name):
    manifest = json.loads(copy.read("manifest.json"))
    part = manifest["parts"]["train"]
    {"shard": part["shards"][1], "index": part["index"], "quarantine": manifest["quarantine"]}[place]["file"] = name
    copy.write("manifest.json", json.dumps(manifest).encode())
    with pytest.raises(ValueError, match=r"manifest\.json names .*, which is no file of this folder; delete"):
        load(copy)


def test_a_damaged_manifest_is_refused_by_name(copy):
    copy.write("manifest.json", copy.read("manifest.json")[:-5])
    with pytest.raises(ValueError, match=r"manifest\.json: prepared data is damaged"):
        load(copy)


def test_a_damaged_shard_is_named_through_ray_too(copy):
    part = load(copy).parts["train"]
    (copy.local / part.shards[1].file).unlink()
    with pytest.raises(ValueError, match=f"^{copy.local / part.shards[1].file}: prepared data is missing"):
        cache(part, copy)


# --- reading back -------------------------------------------------------------------------------------------------


def test_small_shards_hold_the_same_rows_in_order(many, tmp_path):
    large = prepare(datasets.build("random_sequences", rows=250), Storage(tmp_path))
    assert (len(large.parts["train"].shards), large.state) == (1, many.state)
    assert len(many.parts["train"].shards) > 10
    for name, part in many.parts.items():
        one = read_rows(many.storage, part.shards, [None] * len(part.shards))
        other = read_rows(large.storage, large.parts[name].shards, [None])
        assert one.equals(other)
        assert part.column("length").tolist() == one["length"].to_pylist()


def test_the_index_places_every_row_in_its_shard(many):
    part = many.parts["train"]
    rows = [s.rows for s in part.shards]
    assert part.shard_of.tolist() == np.repeat(np.arange(len(rows)), rows).tolist()
    assert part.first.tolist() == (np.cumsum(rows) - rows).tolist()
    assert part.bytes == sum(len(many.storage.read(s.file)) for s in part.shards)


def test_reading_places_gives_those_rows_of_the_whole(grouped):
    storage, shards, rows = grouped
    assert read_rows(storage, shards, [None] * 3).equals(rows)
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = np.sort(rng.choice(3, 2, replace=False))
        places = [np.sort(rng.choice(100, rng.integers(1, 100), replace=False)), None]
        got = read_rows(storage, [shards[s] for s in chosen], places)
        expected = np.concatenate([100 * chosen[0] + places[0], 100 * chosen[1] + np.arange(100)])
        assert got.equals(rows.take(pa.array(expected)))


def test_reading_places_fetches_only_their_row_groups(grouped, monkeypatch):
    storage, shards, rows = grouped
    fetched, whole = [], Storage.read_spans

    def read_spans(self, name, spans):
        fetched.extend(spans)
        return whole(self, name, spans)

    monkeypatch.setattr(Storage, "read_spans", read_spans)
    edge = shards[0].groups[0]
    assert read_rows(storage, shards[:1], [np.array([edge, 99])]).equals(rows.take(pa.array([edge, 99])))
    ends = [end for end, _ in shards[0].pieces]
    assert fetched == [(ends[0], ends[1]), (ends[-3], ends[-1])]  # the second group; the last and the footer


def test_long_series_are_stored_in_order_with_their_values(tmp_path):
    prepared = prepare(numbers(write(tmp_path / "a.csv", rows=70)), Storage(tmp_path / "out"), shard_bytes=100)
    table = stored(prepared)
    assert len(prepared.parts["series"].shards) == 2  # a row is never cut
    names = [s["name"] for s in prepared.state["series"]]
    assert names == table["series"].to_pylist() == ["a", "b"]
    assert "summary" not in table.column_names
    assert table["values"].to_pylist() == [[float(x) for x in range(70)], [float(1000 + x) for x in range(70)]]


def test_a_part_without_rows_is_refused(tmp_path):
    class Nothing:
        kind = "nothing"

        def sources(self):
            return []

        options = sources

        def encode(self):
            return {"train": ray.data.from_arrow(pa.table({"length": pa.array([], pa.int32())}))}

    with pytest.raises(ValueError, match="no rows to prepare"):
        prepare(Nothing(), Storage(tmp_path))
    assert files(tmp_path) == []


# --- quarantine ---------------------------------------------------------------------------------------------------


def sentences(path: Path, bad: int, *, good: int = 60, **options):
    """Rows with a label, `bad` of them without a text (every other of the first rows), split among all three splits."""
    rows = [f"{'' if i % 2 and i < 2 * bad else f'word{i}'},{'yes' if i % 3 else 'no'}" for i in range(good + bad)]
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return datasets.build(
        "text",
        path=str(path),
        label="label",
        **{"tokenizer": "word", "split": {"validation": 0.3, "test": 0.3}} | options,
    )


def quarantined(prepared: Prepared) -> list[tuple]:
    table = preparing.pq.read_table(prepared.quarantine.uri)
    assert table.schema.equals(preparing.QUARANTINE)
    return [(row["uri"], row["row"], row["field"], row["reason"]) for row in table.to_pylist()]


def test_bad_rows_land_in_quarantine_once_and_a_stricter_limit_is_refused_later(tmp_path):
    dataset, root = sentences(tmp_path / "a.csv", 12), Storage(tmp_path / "out")
    prepared = prepare(dataset, root, limit=0.2)
    assert quarantined(prepared) == [(str(tmp_path / "a.csv"), row, "text", "empty") for row in range(3, 27, 2)]
    kept = sum(shard.rows for part in prepared.parts.values() for shard in part.shards)
    assert (prepared.quarantine.rows, prepared.quarantine.kept, kept) == (12, 60, 60)
    assert list(prepared.parts) == ["train", "validation", "test"]
    before = files(tmp_path / "out")
    assert prepare(dataset, root, limit=12 / 72).digest == prepared.digest
    with pytest.raises(ValueError, match=r"12 of 72 records cannot be used, more than quarantine.limit=0.1 allows:"):
        prepare(dataset, root, limit=0.1)
    assert files(tmp_path / "out") == before


def test_more_bad_rows_than_allowed_stop_with_the_first_ten_and_leave_nothing(tmp_path):
    dataset = sentences(tmp_path / "a.csv", 12)
    with pytest.raises(ValueError, match=r"12 of 72 records cannot be used") as caught:
        prepare(dataset, Storage(tmp_path / "out"))
    first = [f"{tmp_path / 'a.csv'}, row {row}, text: empty" for row in range(3, 23, 2)]
    assert str(caught.value).splitlines()[1:] == [*first, "... and 2 more", "correct them, or raise quarantine.limit"]
    assert files(tmp_path) == ["a.csv"]
    assert not (tmp_path / "out" / cache_key(dataset)).exists()


def test_without_bad_rows_there_is_no_quarantine_file(tmp_path):
    prepared = prepare(sentences(tmp_path / "a.csv", 0, split=None), Storage(tmp_path / "out"), limit=0)
    assert (prepared.quarantine.rows, prepared.quarantine.kept, prepared.quarantine.uri) == (0, 60, "")
    assert "quarantine.parquet" not in prepared.storage.names()


def test_all_kinds_of_unusable_rows_are_quarantined_with_row_and_field(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"text,label\ngood,a\nfine,b\n,a\nmissing,\nmore,a,b\n\xff,a\nlast,b\n")
    (tmp_path / "validation.jsonl").write_text(
        '{"text": "good", "label": "a"}\n{"text": "x", "label": "c"}\n{\n[]\n{"text": 1, "label": "a"}\n'
    )
    paths = {name.partition(".")[0]: str(tmp_path / name) for name in ("train.csv", "validation.jsonl")}
    dataset = datasets.build("text", path=paths, label="label", tokenizer="word")
    prepared = prepare(dataset, Storage(tmp_path / "out"), limit=0.9)
    assert [(Path(uri).name, *entry) for uri, *entry in quarantined(prepared)] == [
        ("train.csv", 4, "text", "empty"),
        ("train.csv", 5, "label", "no value"),
        ("train.csv", 6, "", "3 values where the header names 2"),
        ("train.csv", 7, "text", "not UTF-8"),
        ("validation.jsonl", 2, "label", "'c' is no class of the training rows"),
        ("validation.jsonl", 3, "", "not JSON: Expecting property name enclosed in double quotes (character 2)"),
        ("validation.jsonl", 4, "", "a JSON object was expected, not list"),
        ("validation.jsonl", 5, "text", "number where other rows have text"),
    ]
    assert prepared.quarantine.kept == 4
    assert prepared.state["fitted"]["classes"] == {"label": ["a", "b"]}


def test_wrong_columns_and_classes_are_errors_that_leave_nothing(tmp_path):
    root = Storage(tmp_path / "out")
    preparing.pq.write_table(
        pa.table({"text": [1, 2], "label": ["a", "b"], "list": [["a"], ["b"]]}), tmp_path / "a.parquet"
    )
    for options, message in (
        ({"label": "label"}, "column 'text' holds int64, not text"),
        ({"label": "list", "text": "label"}, "column 'list' holds list<element: string>, where names"),
        ({"label": "nothing"}, "a.parquet has no column 'nothing'"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            prepare(datasets.build("text", path=str(tmp_path / "a.parquet"), **options), root)
        assert type(caught.value) is ValueError and str(tmp_path / "a.parquet") in str(caught.value)
    (tmp_path / "b.csv").write_text("text,label\na,x\nb,x\n")
    with pytest.raises(ValueError, match="column 'label' has one class only, 'x', in the training rows"):
        prepare(datasets.build("text", path=str(tmp_path / "b.csv"), label="label", tokenizer="unigram"), root)
    assert files(tmp_path) == ["a.parquet", "b.csv"]


def test_records_prepared_again_elsewhere_are_the_same(tmp_path):
    for kind in ("bpe", "unigram"):
        dataset = sentences(tmp_path / "a.csv", 0, tokenizer=kind)
        one, two = (prepare(dataset, Storage(tmp_path / kind / name)) for name in "xy")
        assert one.digest == two.digest
        shards = [
            [(s.rows, s.sha256) for part in prepared.parts.values() for s in part.shards] for prepared in (one, two)
        ]
        assert shards[0] == shards[1]


def test_other_data_is_prepared_by_a_given_state_beside_the_first(tmp_path):
    root = Storage(tmp_path / "out")
    first = prepare(sentences(tmp_path / "a.csv", 0), root)
    (tmp_path / "b.csv").write_text("text,label\nword3 word4 new,yes\n")
    other = datasets.build("text", path={"test": str(tmp_path / "b.csv")}, label="label", tokenizer="word")
    other.reuse(first.state)
    second = prepare(other, root)
    assert second.key != first.key and list(second.parts) == ["test"]
    assert second.state["fitted"] == first.state["fitted"]
    [row] = stored(second).to_pylist()
    assert (row["length"], row["tokens"][-1], row["label"]) == (3, 1, 1)
