"""Audio: manifests and folders of sound files, records that cannot be used, the key, requests."""

import json
import os
import urllib.parse
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

import datasets
from datasets import audio
from datasets.pipeline.prepare import cache_key, prepare
from datasets.pipeline.prepared import Prepared, read_rows
from datasets.pipeline.storage import Storage
from tests.datasets.sounds import RATE, coded, noise, put

# --- manifests and folders ----------------------------------------------------------------------------------------

LABELS = ("yes", "no", "perhaps")


def sound_of(number: int) -> np.ndarray:
    """A sound whose every sample is its number, and whose length depends on it."""
    return np.full(5 + number % 7, number, np.int16)


def write_sounds(folder: Path, count: int) -> list[dict[str, str]]:
    """Write `count` sounds, and return rows of a manifest that lists them: relative, absolute, or as a URI."""
    rows = []
    for number in range(count):
        path = Path(put(folder / "sounds" / f"{number} ä.wav", coded(sound_of(number))))
        name = (f"sounds/{path.name}", str(path), f"file://{urllib.parse.quote(str(path))}")[number % 3]
        rows.append({"path": name, "word": LABELS[number % 3], "speaker": ("anna", "bob", "george")[number // 3 % 3]})
    return rows


def write(path: Path, rows: list[dict]) -> str:
    """Write a manifest in the format of its ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(rows[0])
    if path.suffix == ".csv":
        path.write_text("\n".join([",".join(names), *(",".join(row[name] or "" for name in names) for row in rows)]))
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def build(path: str | dict[str, str], **options) -> audio.Audio:
    return datasets.build("audio", path=path, **options)


def stored(prepared: Prepared, part: str) -> list[dict]:
    shards = prepared.parts[part].shards
    return read_rows(prepared.storage, shards, [None] * len(shards)).to_pylist()


def numbers(prepared: Prepared, part: str) -> list[int]:
    """The numbers of the stored sounds, which must be complete."""
    rows = stored(prepared, part)
    for row in rows:
        assert row["length"] == len(row["samples"])
        assert row["samples"] == sound_of(row["samples"][0]).tolist()
    return [row["samples"][0] for row in rows]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_manifest_gives_sounds_classes_and_splits(tmp_path, shared_ray, ending):
    manifest = write(tmp_path / f"rows{ending}", write_sounds(tmp_path, 30))
    prepared = prepare(
        build(manifest, label="word", split_column="speaker", split_values={"validation": ["bob"], "test": ["george"]}),
        Storage(tmp_path / "out"),
    )
    for group, part in enumerate(("train", "validation", "test")):
        assert numbers(prepared, part) == [i for i in range(30) if i // 3 % 3 == group]
        assert [row["label"] for row in stored(prepared, part)] == [(2, 0, 1)[i % 3] for i in numbers(prepared, part)]
        assert prepared.parts[part].column("length").tolist() == [5 + i % 7 for i in numbers(prepared, part)]
    assert prepared.state["fitted"]["classes"] == {"label": ["no", "perhaps", "yes"]}
    assert prepared.state["fitted"]["counts"] == {"label": [4, 4, 4]}
    assert prepared.state["notes"] == ["audio: 30 sounds, 0 s in all, at 16,000 Hz"]
    rows = pq.read_schema(prepared.storage.local / prepared.parts["train"].shards[0].file)
    assert rows.field("samples").type == pa.list_(pa.int16())


def test_a_column_of_another_name_and_numbers_to_predict(tmp_path, shared_ray):
    rows = [{"clip": f" {row['path']} ", "age": str(20 + i)} for i, row in enumerate(write_sounds(tmp_path, 12))]
    prepared = prepare(
        build(write(tmp_path / "rows.csv", rows), audio="clip", numbers=["age"], rate=8000, split={"validation": 0.3}),
        Storage(tmp_path / "out"),
    )
    found = stored(prepared, "train") + stored(prepared, "validation")
    assert sorted(row["numbers"][0] for row in found) == list(range(20, 32))
    assert all(row["length"] == pytest.approx((5 + (row["numbers"][0] - 20) % 7) / 2, abs=0.51) for row in found)
    assert len(prepared.parts["validation"].index) > 0


def test_each_folder_can_be_a_class(tmp_path, shared_ray):
    for part, start in (("train", 0), ("test", 100)):
        for number in range(start, start + 12):
            put(tmp_path / part / LABELS[number % 3] / f"{number:03}.wav", coded(sound_of(number)))
    put(tmp_path / "train" / "README.txt", b"words")
    prepared = prepare(
        build({"test": str(tmp_path / "test"), "train": str(tmp_path / "train" / "**" / "*.wav")}, label="folder"),
        Storage(tmp_path / "out"),
    )
    assert list(prepared.parts) == ["train", "test"]
    assert prepared.state["fitted"]["classes"] == {"label": ["no", "perhaps", "yes"]}
    for part, start in (("train", 0), ("test", 100)):
        by_folder = sorted((LABELS[number % 3], number) for number in range(start, start + 12))
        assert numbers(prepared, part) == [number for _, number in by_folder]
        assert [row["label"] for row in stored(prepared, part)] == [0] * 4 + [1] * 4 + [2] * 4


def test_unusable_files_of_a_folder_are_quarantined(tmp_path, shared_ray):
    for number in range(20):
        put(tmp_path / "sounds" / LABELS[number % 2] / f"{number:03}.wav", coded(sound_of(number)))
    bad = [
        put(tmp_path / "sounds" / "no" / "005.wav", b""),
        put(tmp_path / "sounds" / "no" / "007.wav", coded(noise())[:300]),
    ]
    prepared = prepare(build(str(tmp_path / "sounds"), label="folder"), Storage(tmp_path / "out"), limit=0.1)
    assert sorted(numbers(prepared, "train")) == [i for i in range(20) if i not in (5, 7)]
    assert pq.read_table(prepared.storage.local / "quarantine.parquet").to_pylist() == [
        {"uri": path, "row": 1, "field": "path", "reason": f"{path} {why}"}
        for path, why in zip(bad, ("is empty (0 bytes)", "is truncated: 300 bytes of 2,044"), strict=True)
    ]


@pytest.fixture(scope="module")
def flawed(tmp_path_factory) -> tuple[str, dict[int, tuple[str, str]]]:
    """(a manifest of 60 rows, the 13 unusable ones: row -> field and the end of the reason)."""
    folder = tmp_path_factory.mktemp("flawed")
    rows = write_sounds(folder, 60)
    wrong = {}
    for number, (data, reason) in enumerate(
        [
            (b"", "is empty (0 bytes)"),
            (b"words", "is no sound that can be decoded: Format not recognised."),
            (coded(noise())[:1000], "is truncated: 1,000 bytes of 2,044"),
            (coded(noise(), format="FLAC")[:1000], "is no sound that can be decoded: flac decoder lost sync."),
            (coded(np.array([np.nan]), subtype="FLOAT"), "has samples that are no finite numbers"),
            (coded(np.zeros(0, np.int16)), "has no samples"),
            (coded(noise(32_000)), "lasts 2.0 s, more than dataset.max_seconds=1.5"),
        ]
    ):
        path = put(folder / f"bad{number}.wav", data)
        rows[4 * number + 3]["path"] = f"bad{number}.wav"
        wrong[4 * number + 5] = ("path", f"{path} {reason}")  # the header is row 1
    rows[40]["path"], wrong[42] = "none.wav", ("path", f"there is no file {folder / 'none.wav'}")
    rows[42]["path"], wrong[44] = f"{'x' * 300}.wav", ("path", "")  # longer than a name can be
    rows[44]["path"], wrong[46] = "sounds", ("path", "")
    rows[48]["path"], wrong[50] = "", ("path", "no value")
    rows[52]["word"], wrong[54] = "", ("word", "no value")
    manifest = Path(write(folder / "rows.csv", rows))
    lines = manifest.read_text().splitlines()
    lines[57], wrong[58] = "too,many,values,here", ("", "4 values where the header names 3")
    manifest.write_text("\n".join(lines))
    return str(manifest), wrong


def test_unusable_files_of_a_manifest_are_quarantined_with_rows_and_reasons(flawed, shared_ray, tmp_path):
    manifest, wrong = flawed
    prepared = prepare(build(manifest, label="word", max_seconds=1.5), Storage(tmp_path), limit=0.25)
    assert numbers(prepared, "train") == [i for i in range(60) if i + 2 not in wrong]
    found = pq.read_table(prepared.storage.local / "quarantine.parquet").to_pylist()
    assert {row["uri"] for row in found} == {manifest}
    assert {row["row"]: row["field"] for row in found} == {row: field for row, (field, _) in wrong.items()}
    for row in found:
        assert row["reason"].endswith(wrong[row["row"]][1])
    assert (prepared.quarantine.rows, prepared.quarantine.kept) == (13, 47)


def test_too_many_unusable_files_are_an_error_with_the_first_ten(flawed, shared_ray, tmp_path):
    manifest, wrong = flawed
    with pytest.raises(
        ValueError, match=r"^13 of 60 records cannot be used, more than quarantine\.limit=0\.1"
    ) as error:
        prepare(build(manifest, label="word", max_seconds=1.5), Storage(tmp_path), limit=0.1)
    lines = str(error.value).splitlines()
    assert len([line for line in lines if line.startswith(manifest)]) == 10
    assert f"{manifest}, row 5, path: {wrong[5][1]}" in lines
    assert "... and 3 more" in lines
    assert not any(tmp_path.rglob("*.parquet"))


def test_a_block_of_unusable_files_only_is_quarantined(tmp_path, shared_ray):
    rows = write_sounds(tmp_path, 12)
    for row in rows[4:8]:
        row["path"] = "none.wav"
    dataset = build(write(tmp_path / "rows.csv", rows), label="word", max_seconds=1000)  # four sounds a task
    assert dataset.task_sounds == 4
    prepared = prepare(dataset, Storage(tmp_path / "out"), limit=0.5)
    assert (numbers(prepared, "train"), prepared.quarantine.rows) == ([0, 1, 2, 3, 8, 9, 10, 11], 4)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 30.0, 3600.0, 100_000.0])
def test_the_sounds_of_a_task_fit_its_memory(seconds):
    dataset = audio.Audio(common=datasets.builders("audio")[1]("x"), audio="path", rate=RATE, max_seconds=seconds)
    assert 1 <= dataset.task_sounds <= audio.TASK_SOUNDS
    assert dataset.task_sounds == 1 or dataset.task_sounds * 2 * RATE * seconds <= audio.TASK_BYTES
    assert dataset.task_sounds == audio.TASK_SOUNDS or (dataset.task_sounds + 1) * 2 * RATE * seconds > audio.TASK_BYTES


def test_a_path_of_both_sounds_and_a_manifest_reads_the_manifest(tmp_path):
    rows = write_sounds(tmp_path, 3)
    write(tmp_path / "rows.csv", rows)
    assert [source.uri for source, _ in build(str(tmp_path), label="word").files_with_splits()] == [
        str(tmp_path / "rows.csv")
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 999}, r"dataset\.rate=999 is not between 1,000 and 192,000"),
        ({"rate": 200_000}, r"dataset\.rate"),
        ({"max_seconds": 0}, r"dataset\.max_seconds=0 is too small"),
        ({"max_seconds": float("nan")}, r"dataset\.max_seconds=nan is too small"),
        ({"max_seconds": float("inf")}, r"dataset\.max_seconds=inf is too large"),
        ({"max_seconds": 1e6}, r"dataset\.max_seconds=1000000\.0 is too large.* up to 134,217 s"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("rows.csv", label="word", **options)


def test_a_missing_column_of_a_folder_or_manifest_is_refused(tmp_path, shared_ray):
    rows = write_sounds(tmp_path, 3)
    manifest = write(tmp_path / "rows.csv", rows)
    for path, options, message in [
        (str(tmp_path / "sounds"), {"label": "folders"}, "has no column 'folders', did you mean 'folder'"),
        (str(tmp_path / "sounds"), {"label": "folder", "audio": "clip"}, "has no column 'clip'"),
        (manifest, {"label": "wrod"}, "has no column 'wrod', did you mean 'word'"),
        (manifest, {"label": "word", "audio": "paths"}, "has no column 'paths', did you mean 'path'"),
    ]:
        with pytest.raises(ValueError, match=message):
            prepare(build(path, **options), Storage(tmp_path / "out"))


def test_a_file_that_is_neither_manifest_nor_sound_is_refused(tmp_path):
    path = put(tmp_path / "clip.m4a", b"words")
    with pytest.raises(ValueError, match=r"clip\.m4a: .*\.csv.*\.wav"):
        build(path, label="word").files_with_splits()


# --- the key ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [0, 1, 2], ids=["relative", "absolute", "file URI"])
def test_another_sound_gives_another_key_though_the_manifest_is_the_same(tmp_path, number):
    rows = write_sounds(tmp_path, 4)
    for row in rows:
        row["path"] = f" {row['path']} "  # blanks do not count
    dataset = build(write(tmp_path / "rows.csv", rows), label="word")
    keys = [cache_key(dataset), cache_key(dataset)]
    assert keys[0] == keys[1]
    path = tmp_path / "sounds" / f"{number} ä.wav"
    put(path, coded(sound_of(99)))
    keys.append(cache_key(dataset))  # another size or time
    os.utime(path, ns=(0, 1))
    keys.append(cache_key(dataset))
    path.unlink()
    keys.append(cache_key(dataset))
    assert len(set(keys)) == 4


def test_another_sound_of_a_folder_gives_another_key(tmp_path):
    write_sounds(tmp_path, 4)
    dataset = build(str(tmp_path / "sounds"), label="folder")
    keys = [cache_key(dataset)]
    os.utime(tmp_path / "sounds" / "1 ä.wav", ns=(0, 1))
    keys.append(cache_key(dataset))
    put(tmp_path / "sounds" / "4.wav", coded(sound_of(4)))
    keys.append(cache_key(dataset))
    assert len(set(keys)) == 3


def test_options_that_change_what_is_stored_change_the_key(tmp_path):
    manifest = write(tmp_path / "rows.csv", write_sounds(tmp_path, 4))
    keys = [
        cache_key(build(manifest, label="word", **options))
        for options in ({}, {"rate": 8000}, {"max_seconds": 2.0}, {"split": {"test": 0.5}}, {"split_column": "speaker"})
    ]
    assert len(set(keys)) == 5


def test_names_in_a_manifest_are_relative_to_it():
    for manifest, name, expected in [
        ("/a/b/rows.csv", "c/d.wav", "/a/b/c/d.wav"),
        ("/a/b/rows.csv", "/d.wav", "/d.wav"),
        ("s3://bucket/a/rows.csv", "c/d.wav", "s3://bucket/a/c/d.wav"),
        (
            "s3://bucket/a/rows.csv?endpoint_override=http://host:9000",
            "d.wav",
            "s3://bucket/a/d.wav?endpoint_override=http://host:9000",
        ),
        ("/a/rows.csv", "s3://bucket/d.wav", "s3://bucket/d.wav"),
    ]:
        assert audio._absolute(name, manifest) == expected
    [folder] = audio._records_of_files(["s3://bucket/yes/a.wav?endpoint_override=http://host:9000"], "path")[
        "folder"
    ].to_pylist()
    assert folder == "yes"


def test_a_manifest_and_sounds_in_another_storage(shared_ray):
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/clips/{number}.wav", coded(sound_of(number)))
    system.pipe("/clips/rows.csv", b"path\n0.wav\n1.wav\n2.wav\n3.wav\n")
    [table] = build("memory://clips/rows.csv", label="word").encode_request("memory://clips/rows.csv", {"fitted": {}})
    assert table["samples"].to_pylist() == [sound_of(i).tolist() for i in range(3)] + [None]


# --- requests -----------------------------------------------------------------------------------------------------


def request(source: str | Path, **options) -> list[dict]:
    """Rows of new data, encoded."""
    tables = build("unused.csv", label="word", **options).encode_request(str(source), {"fitted": {}})
    return [row for table in tables for row in table.to_pylist()]


def test_one_sound_is_a_request(tmp_path):
    path = put(tmp_path / "a.wav", coded(noise()))
    assert request(path) == [{"length": 1000, "samples": noise().tolist(), "__file": path, "__row": 1, "skipped": None}]


def test_a_folder_is_a_request_and_its_unusable_files_have_a_reason(tmp_path):
    for number in range(5):
        put(tmp_path / f"{number}.wav", coded(sound_of(number)))
    bad = put(tmp_path / "2.wav", b"")
    rows = request(tmp_path, max_seconds=2000)  # two at a time
    assert [row["samples"] for row in rows] == [None if i == 2 else sound_of(i).tolist() for i in range(5)]
    assert [row["length"] for row in rows] == [None if i == 2 else 5 + i for i in range(5)]
    assert [row["skipped"] for row in rows] == [None if i != 2 else f"path: {bad} is empty (0 bytes)" for i in range(5)]
    assert [Path(row["__file"]).name for row in rows] == [f"{i}.wav" for i in range(5)]


def test_a_manifest_is_a_request_without_targets(flawed):
    manifest, wrong = flawed
    rows = request(manifest, max_seconds=1.5)
    assert [row["__row"] for row in rows if not row["skipped"]] == [
        i + 2 for i in range(60) if i + 2 not in wrong or wrong[i + 2][0] == "word"
    ]
    for row in rows:
        assert row["__file"] == manifest
        if row["skipped"]:
            assert (row["length"], row["samples"]) == (None, None)
            assert row["skipped"].endswith(wrong[row["__row"]][1])
        else:
            assert row["samples"] == sound_of(row["__row"] - 2).tolist()


def test_a_long_manifest_is_encoded_in_small_groups(tmp_path):
    manifest = write(tmp_path / "rows.csv", write_sounds(tmp_path, 10))
    tables = list(build("unused.csv", label="word", max_seconds=1000).encode_request(manifest, {"fitted": {}}))
    assert [len(table) for table in tables] == [4, 4, 2]


# --- the same data from any machine -------------------------------------------------------------------------------


def test_rows_and_digest_do_not_depend_on_the_cpus(tmp_path, shared_ray, monkeypatch):
    rows = write_sounds(tmp_path, 160)
    for row in rows:
        row["path"] = row["path"].replace("sounds/", "../sounds/", row["path"].startswith("sounds"))
    for start, stop in ((0, 1), (1, 120), (120, 160)):
        write(tmp_path / "lists" / f"{start:03}.csv", rows[start:stop])
    dataset = build(str(tmp_path / "lists"), label="word", max_seconds=500, split={"test": 0.2})
    assert dataset.task_sounds == 8
    found = []
    for cpus in (2, 1):  # four tasks at a time, or two
        monkeypatch.setattr(
            ray.data.DataContext.get_current().execution_options,
            "resource_limits",
            ray.data.ExecutionResources(cpu=cpus),
        )
        prepared = prepare(dataset, Storage(tmp_path / f"out{cpus}"))
        train, test = numbers(prepared, "train"), numbers(prepared, "test")
        assert train == sorted(set(range(160)) - set(test))  # in the order of the manifests
        assert test == sorted(test)
        found.append(prepared)
    assert found[0].digest == found[1].digest
    assert len(found[0].parts["train"].shards) > 10
