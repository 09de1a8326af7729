"""Audio: decoding, manifests and folders of sound files, files that cannot be used, the key, requests."""

import io
import json
import os
import struct
import tracemalloc
import urllib.parse
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import soundfile

import datasets
from datasets import audio
from datasets.audio import decode
from datasets.ingest import configure_ray_data
from datasets.prepare import Prepared, cache_key, prepare, read_rows
from datasets.storage import Storage, Unavailable

RATE = 16_000


@pytest.fixture(scope="module")
def cluster():
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    configure_ray_data()
    yield
    ray.shutdown()


def noise(count: int = 1000, *, seed: int = 0, channels: int = 1) -> np.ndarray:
    """(T,) or (T, C) int16; the first two samples are the extremes."""
    shape = count if channels == 1 else (count, channels)
    made = np.random.default_rng(seed).integers(-20_000, 20_000, shape).astype(np.int16)
    made[:2] = np.array([-32768, 32767]).reshape(-1, *[1] * (made.ndim - 1))[:len(made)]
    return made


def sine(hertz: float, seconds: float, rate: int, *, loudness: float = 0.5) -> np.ndarray:
    return loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def coded(samples: np.ndarray, rate: int = RATE, **options) -> bytes:
    """A sound file's bytes; format="WAV" unless told."""
    if options.get("subtype") == "FLOAT" and samples.dtype == np.int16:
        samples = samples / 32768
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, **{"format": "WAV"} | options)
    return sink.getvalue()


def put(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def reason_of(path: str, *, rate: int = RATE, max_seconds: float = 30.0) -> str:
    """Why a file is set aside."""
    samples, reason = decode(path, rate, max_seconds)
    assert samples.shape == (0,)
    assert reason.startswith((path, f"there is no file {path}"))
    return reason


def good(path: str, *, rate: int = RATE, max_seconds: float = 30.0) -> np.ndarray:
    samples, reason = decode(path, rate, max_seconds)
    assert reason == ""
    assert (samples.dtype, samples.ndim) == (np.int16, 1)
    return samples


# --- decoding -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", [
    {}, {"format": "WAVEX"}, {"format": "RF64"}, {"format": "W64"}, {"format": "FLAC"}, {"format": "AIFF"},
    {"format": "AU"}, {"format": "CAF"}, {"endian": "BIG"}], ids=str)
def test_16_bits_come_through_bit_for_bit(tmp_path, options):
    assert good(put(tmp_path / "a.wav", coded(noise(), **options))).tolist() == noise().tolist()


def test_what_is_read_without_libsndfile_is_what_libsndfile_reads(tmp_path, monkeypatch):
    files = [put(tmp_path / f"{channels}-{size}-{form}.wav", coded(noise(size, channels=channels), format=form))
             for channels in (1, 2, 3) for size in (1, 2, 999) for form in ("WAV", "WAVEX")]
    fast = [good(path).tolist() for path in files]
    wav = audio._wav
    monkeypatch.setattr(audio, "_wav", lambda data: audio._Wav(**{**vars(wav(data)), "plain": False}))
    assert fast == [good(path).tolist() for path in files]
    assert max(map(len, fast)) == 999


def test_chunks_beside_the_samples_are_passed_over(tmp_path):
    whole = coded(noise())
    odd = b"LIST" + struct.pack("<I", 5) + b"hello\0"                           # padded to an even size
    between, after = whole[:36] + odd + whole[36:], whole + odd
    for data in (between, after, after[:-3]):                                   # the last is cut behind the samples
        assert good(put(tmp_path / "a.wav", data)).tolist() == noise().tolist()


@pytest.mark.parametrize(("options", "apart"), [
    ({"subtype": "PCM_U8"}, 2 ** -7), ({"subtype": "PCM_24"}, 2 ** -15), ({"subtype": "PCM_32"}, 2 ** -15),
    ({"subtype": "FLOAT"}, 2 ** -15), ({"subtype": "DOUBLE"}, 2 ** -15), ({"subtype": "ALAW"}, 0.03),
    ({"format": "FLAC", "subtype": "PCM_24"}, 2 ** -15), ({"format": "OGG"}, 0.05), ({"format": "MP3"}, 0.05)], ids=str)
def test_other_codings_give_the_same_sound(tmp_path, options, apart):
    wave = sine(440, 0.5, RATE)
    found = good(put(tmp_path / "a.wav", coded(wave, **options)))
    assert len(found) == len(wave)
    assert np.abs(found / 32768 - wave).max() < apart


def test_a_float_beyond_full_scale_is_clipped_not_wrapped(tmp_path):
    path = put(tmp_path / "a.wav", coded(np.array([1.5, -1.5, 1.0, -1.0, 0.5]), subtype="FLOAT"))
    assert good(path).tolist() == [32767, -32768, 32767, -32768, 16384]


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"subtype": "FLOAT"}], ids=str)
def test_channels_are_averaged(tmp_path, options):
    left, right = noise(seed=1).astype(np.int64), noise(seed=2).astype(np.int64)
    path = put(tmp_path / "a.wav", coded(np.stack([left, right], 1).astype(np.int16), **options))
    np.testing.assert_allclose(good(path), (left + right) / 2, atol=0.51)       # half a step of rounding


@pytest.mark.parametrize("options", [{}, {"subtype": "FLOAT"}], ids=["plain", "float"])
@pytest.mark.parametrize("given", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_sine_keeps_frequency_and_amplitude_at_another_rate(tmp_path, given, rate, options):
    path = put(tmp_path / "a.wav", coded(sine(1000, 1.0, given), given, **options))
    found = good(path, rate=rate) / 32768
    assert len(found) == rate
    middle = found[rate // 4:-rate // 4]                                        # resampling has edges
    waves = np.exp(-2j * np.pi * 1000 * np.arange(len(middle)) / rate)
    assert abs(2 * np.mean(middle * waves)) == pytest.approx(0.5, rel=0.002)    # all of it is at 1,000 Hz:
    assert np.sqrt(np.mean(middle ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.002)


def test_what_the_lower_rate_cannot_hold_is_filtered_away(tmp_path):
    path = put(tmp_path / "a.wav", coded(sine(7000, 0.5, 48_000), 48_000))
    assert np.abs(good(path, rate=8000)[500:-500]).max() < 33                   # 60 dB below


# --- files that cannot be used ------------------------------------------------------------------------------------

@pytest.mark.parametrize("keep", ["half", "all but 100 bytes", "all but the last byte"])
@pytest.mark.parametrize("options", [
    {}, {"subtype": "FLOAT"}, {"subtype": "PCM_24", "format": "WAVEX"}, {"format": "RF64"}, {"format": "W64"},
    {"format": "AIFF"}, {"format": "AU"}, {"endian": "BIG"}, {"format": "FLAC"}, {"format": "OGG"},
    {"format": "OGG", "subtype": "OPUS"}, {"format": "MP3"}], ids=str)
def test_a_cut_file_is_set_aside(tmp_path, options, keep):
    whole = coded(noise(20_000), **options)
    good(put(tmp_path / "a.wav", whole))
    size = {"half": len(whole) // 2, "all but 100 bytes": -100, "all but the last byte": -1}[keep]
    reason = reason_of(put(tmp_path / "a.wav", whole[:size]))
    assert "truncated" in reason or "flac decoder lost sync" in reason


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"}, {"format": "AIFF"}],
                         ids=str)
def test_a_file_cut_anywhere_is_set_aside(tmp_path, options):
    whole = coded(noise(4000), **options)
    for size in [*range(1, 200), *range(200, len(whole), 101)]:
        reason_of(put(tmp_path / "a.wav", whole[:size]))


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_that_does_not_count_its_frames_is_read_whole(tmp_path, rate, channels):
    wave = np.concatenate([sine(440, 1.0, rate, loudness=0.01), sine(440, 1.0, rate)])          # frames of other sizes
    whole = coded(np.stack([wave] * channels, 1), rate, format="MP3").replace(b"Xing", bytes(4))
    told = b"ID3\x04\0\0\0\0\0\x05hello"
    for data in (whole, told + whole, whole + b"TAG" + b" " * 125):
        found = good(put(tmp_path / "a.mp3", data), rate=rate)
        assert 2 * rate <= len(found) < 2 * rate + 3600
        assert np.abs(found[rate + 4000:2 * rate]).max() == pytest.approx(16_384, rel=0.05)
    for cut in range(1, 150, 7):
        assert "is truncated" in reason_of(put(tmp_path / "a.mp3", whole[:len(whole) // 2 + cut]))


@pytest.mark.parametrize("between", [b"", b"ID3\x04\0\0\0\0\0\x05hello", bytes(7), b"TAG" + b" " * 125], ids=len)
@pytest.mark.parametrize("counted", [True, False])
def test_mp3s_that_were_joined_are_never_read_in_part(tmp_path, between, counted):
    one = coded(sine(440, 1.0, RATE), format="MP3")
    one = one if counted else one.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))
    samples, reason = decode(put(tmp_path / "a.mp3", one + between + one), RATE, 30.0)
    assert "is several recordings joined" in reason or len(samples) >= 2 * RATE


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_ogg_streams_that_were_joined_are_not_read_in_part(tmp_path, subtype):
    one = coded(sine(440, 1.0, RATE), format="OGG", subtype=subtype)
    assert len(good(put(tmp_path / "a.ogg", one))) >= RATE
    assert "is several recordings joined" in reason_of(put(tmp_path / "a.ogg", one + one))


@pytest.mark.parametrize(("riff", "data"), [
    (0xFFFFFFFF, 0xFFFFFFFF), (0, 0), (0, 0xFFFFFFFF), (0x7FFFFFFF, 0x7FFFFFDB), (0x80000024, 0x80000000),
    (0x7FFFF024, 0x7FFFF000)], ids=hex)
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_that_was_streamed_is_read_to_its_end(tmp_path, riff, data, subtype):
    whole = bytearray(coded(noise(), subtype=subtype))
    place = whole.index(b"data") + 4
    whole[4:8], whole[place:place + 4] = struct.pack("<I", riff), struct.pack("<I", data)
    np.testing.assert_allclose(good(put(tmp_path / "a.wav", bytes(whole))), noise(), atol=1)


def test_a_wav_whose_only_size_left_open_is_the_whole_files_can_be_cut(tmp_path):
    whole = bytearray(coded(noise()))
    whole[4:8] = b"\xff" * 4
    assert good(put(tmp_path / "a.wav", bytes(whole))).tolist() == noise().tolist()
    assert "is truncated: 1,044 bytes of 2,044" in reason_of(put(tmp_path / "a.wav", bytes(whole[:-1000])))


def test_a_flac_that_does_not_say_its_length_is_set_aside(tmp_path):
    whole = bytearray(coded(noise(), format="FLAC"))
    whole[21] &= 0xF0                                                           # 36 bits of the number of samples
    whole[22:26] = bytes(4)
    assert "does not say how long it is" in reason_of(put(tmp_path / "a.flac", bytes(whole)))


@pytest.mark.parametrize(("data", "reason"), [
    (b"", "is empty (0 bytes)"), (b"These are words, no sound.\n" * 20, "is no sound that can be decoded"),
    (b"RIFF", "is no sound"), (b"\0" * 5000, "is no sound"), (b"\xff" * 5000, "is no sound"), (b"OggS", "is truncated"),
    (coded(np.zeros(0, np.int16)), "has no samples"), (coded(np.zeros(0), subtype="FLOAT"), "has no samples"),
    (coded(np.array([0.0, np.nan, 0.0]), subtype="FLOAT"), "has samples that are no finite numbers"),
    (coded(np.array([[0.0, 0.0], [np.inf, -np.inf]]), subtype="FLOAT"), "has samples that are no finite numbers"),
    (coded(noise(2), 192_000), "is shorter than a sample at 16,000 Hz")],
    ids=lambda x: str(len(x)) if isinstance(x, bytes) else x)             # bytes hold the time at which they were made
def test_a_file_without_a_sound_says_why(tmp_path, data, reason):
    path = put(tmp_path / "a.wav", data)
    assert reason in reason_of(path)
    assert " at 0x" not in reason_of(path)                                      # the same words in every run


def test_a_broken_header_is_refused(tmp_path):
    whole = coded(noise())
    for place in range(8, 44):
        for value in (0, 0xFF):
            broken = bytearray(whole)
            broken[place] = value
            samples, reason = decode(put(tmp_path / "a.wav", bytes(broken)), RATE, 30.0)
            assert bool(reason) == (len(samples) == 0)                          # and nothing else is raised


def test_what_is_no_file_is_told(tmp_path):
    assert reason_of(str(tmp_path / "no.wav")) == f"there is no file {tmp_path / 'no.wav'}"
    assert "cannot be read" in reason_of(str(tmp_path))
    hidden = put(tmp_path / "hidden.wav", coded(noise()))
    os.chmod(hidden, 0)
    if os.geteuid():
        assert "cannot be read" in reason_of(hidden)
    assert "cannot be read" in reason_of("nothing://at/all.wav")


@pytest.mark.parametrize("size", [1000, audio.LARGE])               # of the latter the header is looked up first
def test_a_store_that_fails_sets_no_sound_aside(failing_store, size):
    fsspec.filesystem("failing").pipe("/box/a.wav", coded(noise(size)))
    failing_store.fails = True
    with pytest.raises(Unavailable, match=r"^failing://box/a\.wav cannot be read now: AWS Error"):
        decode("failing://box/a.wav", RATE, 1e9)


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"subtype": "FLOAT"}], ids=str)
def test_the_longest_sound_is_kept_and_a_longer_one_is_not(tmp_path, options):
    path = put(tmp_path / "a.wav", coded(noise(RATE), **options))
    assert len(good(path, max_seconds=1.0)) == RATE
    path = put(tmp_path / "a.wav", coded(noise(RATE + 1600), **options))
    assert reason_of(path, max_seconds=1.0) == f"{path} lasts 1.1 s, more than dataset.max_seconds=1"


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "MP3 without a count of frames"])
def test_an_hour_is_refused_without_being_decoded(tmp_path, form, monkeypatch):
    path, minutes = tmp_path / "a.wav", 3 if form == "MP3" else 10 if form == "OGG" else 60      # slow to make
    if form in soundfile.available_formats():
        with soundfile.SoundFile(path, "w", 8000, 1, format=form) as sound:
            for _ in range(60 * minutes):
                sound.write(noise(8000) if form in ("WAV", "FLAC") else np.zeros(8000))
    else:
        put(path, coded(noise(8000 * 60), 8000, format="MP3").replace(b"Xing", bytes(4)) * minutes)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    reason = reason_of(str(path))
    assert float(reason.split("lasts ")[1].split(" s")[0].replace(",", "")) == pytest.approx(60 * minutes, rel=0.01)


def test_a_long_file_is_not_even_read(tmp_path):
    path, hole = tmp_path / "a.wav", 3 << 30
    start = coded(noise(8000), 8000)
    with path.open("wb") as file:                                               # 3 GB that are not there
        file.write(start[:4] + struct.pack("<I", hole - 8) + start[8:40] + struct.pack("<I", hole - 44))
        file.truncate(hole)
    tracemalloc.start()
    assert "lasts 201,326.6 s" in reason_of(str(path))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


def test_a_file_of_another_storage_is_read(tmp_path):
    with fsspec.open("memory://sounds/a.wav", "wb") as file:
        file.write(coded(noise()))
    assert good("memory://sounds/a.wav").tolist() == noise().tolist()
    assert reason_of("memory://sounds/b.wav") == "there is no file memory://sounds/b.wav"


# --- manifests and folders ----------------------------------------------------------------------------------------

LABELS = ("yes", "no", "perhaps")


def sound_of(number: int) -> np.ndarray:
    """A sound whose every sample is its number, and whose length depends on it."""
    return np.full(5 + number % 7, number, np.int16)


def make(folder: Path, count: int) -> list[dict[str, str]]:
    """`count` sounds in a folder, and rows of a manifest beside it that name them: relative, absolute, as a URI."""
    rows = []
    for number in range(count):
        path = Path(put(folder / "sounds" / f"{number} ä.wav", coded(sound_of(number))))
        name = (f"sounds/{path.name}", str(path), f"file://{urllib.parse.quote(str(path))}")[number % 3]
        rows.append({"path": name, "said": LABELS[number % 3], "speaker": ("anna", "bob", "george")[number // 3 % 3]})
    return rows


def write(path: Path, rows: list[dict]) -> str:
    """A manifest, in the format that the ending says."""
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
    """The numbers of the sounds that are stored, once it is certain that they are whole."""
    rows = stored(prepared, part)
    for row in rows:
        assert row["length"] == len(row["samples"])
        assert row["samples"] == sound_of(row["samples"][0]).tolist()
    return [row["samples"][0] for row in rows]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_manifest_gives_sounds_classes_and_splits(tmp_path, cluster, ending):
    manifest = write(tmp_path / f"rows{ending}", make(tmp_path, 30))
    prepared = prepare(build(manifest, label="said", split_column="speaker", split_values={
        "validation": ["bob"], "test": ["george"]}), Storage(tmp_path / "out"))
    for place, part in enumerate(("train", "validation", "test")):
        assert numbers(prepared, part) == [i for i in range(30) if i // 3 % 3 == place]
        assert [row["label"] for row in stored(prepared, part)] == [(2, 0, 1)[i % 3] for i in numbers(prepared, part)]
        assert prepared.parts[part].column("length").tolist() == [5 + i % 7 for i in numbers(prepared, part)]
    assert prepared.state["fitted"]["classes"] == {"label": ["no", "perhaps", "yes"]}
    assert prepared.state["fitted"]["counts"] == {"label": [4, 4, 4]}
    assert prepared.state["notes"] == ["audio: 30 sounds, 0 s in all, at 16,000 Hz"]
    rows = pq.read_schema(prepared.storage.local / prepared.parts["train"].shards[0].file)
    assert rows.field("samples").type == pa.list_(pa.int16())


def test_a_column_of_another_name_and_numbers_to_predict(tmp_path, cluster):
    rows = [{"clip": f" {row['path']} ", "age": str(20 + i)} for i, row in enumerate(make(tmp_path, 12))]
    prepared = prepare(build(write(tmp_path / "rows.csv", rows), audio="clip", numbers=["age"], rate=8000,
                             split={"validation": 0.3}), Storage(tmp_path / "out"))
    found = stored(prepared, "train") + stored(prepared, "validation")
    assert sorted(row["numbers"][0] for row in found) == list(range(20, 32))
    assert all(row["length"] == pytest.approx((5 + (row["numbers"][0] - 20) % 7) / 2, abs=0.51) for row in found)
    assert len(prepared.parts["validation"].index) > 0


def test_a_class_a_folder(tmp_path, cluster):
    for part, start in (("train", 0), ("test", 100)):
        for number in range(start, start + 12):
            put(tmp_path / part / LABELS[number % 3] / f"{number:03}.wav", coded(sound_of(number)))
    put(tmp_path / "train" / "README.txt", b"words")
    prepared = prepare(build({"test": str(tmp_path / "test"), "train": str(tmp_path / "train" / "**" / "*.wav")},
                             label="folder"), Storage(tmp_path / "out"))
    assert list(prepared.parts) == ["train", "test"]
    assert prepared.state["fitted"]["classes"] == {"label": ["no", "perhaps", "yes"]}
    for part, start in (("train", 0), ("test", 100)):
        by_folder = sorted((LABELS[number % 3], number) for number in range(start, start + 12))
        assert numbers(prepared, part) == [number for _, number in by_folder]
        assert [row["label"] for row in stored(prepared, part)] == [0] * 4 + [1] * 4 + [2] * 4


def test_bad_files_of_a_folder_are_set_aside(tmp_path, cluster):
    for number in range(20):
        put(tmp_path / "sounds" / LABELS[number % 2] / f"{number:03}.wav", coded(sound_of(number)))
    bad = [put(tmp_path / "sounds" / "no" / "005.wav", b""),
           put(tmp_path / "sounds" / "no" / "007.wav", coded(noise())[:300])]
    prepared = prepare(build(str(tmp_path / "sounds"), label="folder"), Storage(tmp_path / "out"), limit=0.1)
    assert sorted(numbers(prepared, "train")) == [i for i in range(20) if i not in (5, 7)]
    assert pq.read_table(prepared.storage.local / "quarantine.parquet").to_pylist() == [
        {"uri": path, "row": 1, "field": "path", "reason": f"{path} {why}"}
        for path, why in zip(bad, ("is empty (0 bytes)", "is truncated: 300 bytes of 2,044"), strict=True)]


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> tuple[str, dict[int, tuple[str, str]]]:
    """(a manifest of 60 rows, what is wrong in 13 of them: row -> field and the end of the reason)."""
    folder = tmp_path_factory.mktemp("troubled")
    rows = make(folder, 60)
    wrong = {}
    for number, (data, reason) in enumerate([
            (b"", "is empty (0 bytes)"), (b"words", "is no sound that can be decoded: Format not recognised."),
            (coded(noise())[:1000], "is truncated: 1,000 bytes of 2,044"),
            (coded(noise(), format="FLAC")[:1000], "is no sound that can be decoded: flac decoder lost sync."),
            (coded(np.array([np.nan]), subtype="FLOAT"), "has samples that are no finite numbers"),
            (coded(np.zeros(0, np.int16)), "has no samples"),
            (coded(noise(32_000)), "lasts 2.0 s, more than dataset.max_seconds=1.5")]):
        path = put(folder / f"bad{number}.wav", data)
        rows[4 * number + 3]["path"] = f"bad{number}.wav"
        wrong[4 * number + 5] = ("path", f"{path} {reason}")                     # the header is row 1
    rows[40]["path"], wrong[42] = "none.wav", ("path", f"there is no file {folder / 'none.wav'}")
    rows[42]["path"], wrong[44] = f"{'x' * 300}.wav", ("path", "")              # longer than a name can be
    rows[44]["path"], wrong[46] = "sounds", ("path", "")
    rows[48]["path"], wrong[50] = "", ("path", "no value")
    rows[52]["said"], wrong[54] = "", ("said", "no value")
    manifest = Path(write(folder / "rows.csv", rows))
    lines = manifest.read_text().splitlines()
    lines[57], wrong[58] = "too,many,values,here", ("", "4 values where the header names 3")
    manifest.write_text("\n".join(lines))
    return str(manifest), wrong


def test_bad_files_of_a_manifest_are_set_aside_with_their_rows_and_reasons(troubled, cluster, tmp_path):
    manifest, wrong = troubled
    prepared = prepare(build(manifest, label="said", max_seconds=1.5), Storage(tmp_path), limit=0.25)
    assert numbers(prepared, "train") == [i for i in range(60) if i + 2 not in wrong]
    found = pq.read_table(prepared.storage.local / "quarantine.parquet").to_pylist()
    assert {row["uri"] for row in found} == {manifest}
    assert {row["row"]: row["field"] for row in found} == {row: field for row, (field, _) in wrong.items()}
    for row in found:
        assert row["reason"].endswith(wrong[row["row"]][1])
    assert (prepared.quarantine.rows, prepared.quarantine.kept) == (13, 47)


def test_too_many_bad_files_stop_with_the_first_ten(troubled, cluster, tmp_path):
    manifest, wrong = troubled
    with pytest.raises(ValueError, match=r"^13 of 60 records cannot be used, more than quarantine\.limit=0\.1") as told:
        prepare(build(manifest, label="said", max_seconds=1.5), Storage(tmp_path), limit=0.1)
    lines = str(told.value).splitlines()
    assert len([line for line in lines if line.startswith(manifest)]) == 10
    assert f"{manifest}, row 5, path: {wrong[5][1]}" in lines
    assert "... and 3 more" in lines
    assert not any(tmp_path.rglob("*.parquet"))


def test_a_block_of_nothing_but_bad_files_is_set_aside(tmp_path, cluster):
    rows = make(tmp_path, 12)
    for row in rows[4:8]:
        row["path"] = "none.wav"
    dataset = build(write(tmp_path / "rows.csv", rows), label="said", max_seconds=1000)         # four sounds a task
    assert dataset.task_sounds == 4
    prepared = prepare(dataset, Storage(tmp_path / "out"), limit=0.5)
    assert (numbers(prepared, "train"), prepared.quarantine.rows) == ([0, 1, 2, 3, 8, 9, 10, 11], 4)


@pytest.mark.parametrize("seconds", [0.5, 3.0, 30.0, 3600.0, 100_000.0])
def test_a_task_decodes_no_more_than_it_has_memory_for(seconds):
    one = audio.Audio(told=datasets.builders("audio")[1]("x"), audio="path", rate=RATE, max_seconds=seconds)
    assert 1 <= one.task_sounds <= audio.TASK_SOUNDS
    assert one.task_sounds == 1 or one.task_sounds * 2 * RATE * seconds <= audio.TASK_BYTES
    assert one.task_sounds == audio.TASK_SOUNDS or (one.task_sounds + 1) * 2 * RATE * seconds > audio.TASK_BYTES


def test_a_path_of_both_sounds_and_a_manifest_reads_the_manifest(tmp_path):
    rows = make(tmp_path, 3)
    write(tmp_path / "rows.csv", rows)
    assert [source.uri for source, _ in build(str(tmp_path), label="said").listed()] == [str(tmp_path / "rows.csv")]


@pytest.mark.parametrize(("options", "told"), [
    ({"rate": 999}, r"dataset\.rate=999 is not between 1,000 and 192,000"), ({"rate": 200_000}, r"dataset\.rate"),
    ({"max_seconds": 0}, r"dataset\.max_seconds=0 is too small"),
    ({"max_seconds": float("nan")}, r"dataset\.max_seconds=nan is too small"),
    ({"max_seconds": float("inf")}, r"dataset\.max_seconds=inf is too large"),
    ({"max_seconds": 1e6}, r"dataset\.max_seconds=1000000\.0 is too large.* up to 134,217 s")])
def test_options_out_of_range_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        build("rows.csv", label="said", **options)


def test_a_column_that_a_folder_or_a_manifest_lacks_is_refused(tmp_path, cluster):
    rows = make(tmp_path, 3)
    manifest = write(tmp_path / "rows.csv", rows)
    for path, options, told in [
            (str(tmp_path / "sounds"), {"label": "folders"}, "has no column 'folders', did you mean 'folder'"),
            (str(tmp_path / "sounds"), {"label": "folder", "audio": "clip"}, "has no column 'clip'"),
            (manifest, {"label": "sayd"}, "has no column 'sayd', did you mean 'said'"),
            (manifest, {"label": "said", "audio": "paths"}, "has no column 'paths', did you mean 'path'")]:
        with pytest.raises(ValueError, match=told):
            prepare(build(path, **options), Storage(tmp_path / "out"))


def test_a_file_that_is_neither_a_manifest_nor_a_sound_is_refused(tmp_path):
    path = put(tmp_path / "clip.m4a", b"words")
    with pytest.raises(ValueError, match=r"clip\.m4a: .*\.csv.*\.wav"):
        build(path, label="said").listed()


# --- the key ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [0, 1, 2], ids=["relative", "absolute", "file URI"])
def test_another_sound_gives_another_key_though_the_manifest_is_the_same(tmp_path, number):
    rows = make(tmp_path, 4)
    for row in rows:
        row["path"] = f" {row['path']} "                                        # blanks do not count
    dataset = build(write(tmp_path / "rows.csv", rows), label="said")
    keys = [cache_key(dataset), cache_key(dataset)]
    assert keys[0] == keys[1]
    path = tmp_path / "sounds" / f"{number} ä.wav"
    put(path, coded(sound_of(99)))
    keys.append(cache_key(dataset))                                             # another size or time
    os.utime(path, ns=(0, 1))
    keys.append(cache_key(dataset))
    path.unlink()
    keys.append(cache_key(dataset))
    assert len(set(keys)) == 4


def test_another_sound_of_a_folder_gives_another_key(tmp_path):
    make(tmp_path, 4)
    dataset = build(str(tmp_path / "sounds"), label="folder")
    keys = [cache_key(dataset)]
    os.utime(tmp_path / "sounds" / "1 ä.wav", ns=(0, 1))
    keys.append(cache_key(dataset))
    put(tmp_path / "sounds" / "4.wav", coded(sound_of(4)))
    keys.append(cache_key(dataset))
    assert len(set(keys)) == 3


def test_options_that_change_what_is_stored_change_the_key(tmp_path):
    manifest = write(tmp_path / "rows.csv", make(tmp_path, 4))
    keys = [cache_key(build(manifest, label="said", **options)) for options in (
        {}, {"rate": 8000}, {"max_seconds": 2.0}, {"split": {"test": 0.5}}, {"split_column": "speaker"})]
    assert len(set(keys)) == 5


def test_names_beside_a_manifest_of_another_storage():
    for manifest, name, meant in [
            ("/a/b/rows.csv", "c/d.wav", "/a/b/c/d.wav"), ("/a/b/rows.csv", "/d.wav", "/d.wav"),
            ("s3://bucket/a/rows.csv", "c/d.wav", "s3://bucket/a/c/d.wav"),
            ("s3://bucket/a/rows.csv?endpoint_override=http://host:9000", "d.wav",
             "s3://bucket/a/d.wav?endpoint_override=http://host:9000"),
            ("/a/rows.csv", "s3://bucket/d.wav", "s3://bucket/d.wav")]:
        assert audio._beside(name, manifest) == meant
    [folder] = audio._sounds(["s3://bucket/yes/a.wav?endpoint_override=http://host:9000"], "path")["folder"].to_pylist()
    assert folder == "yes"


def test_a_manifest_and_sounds_of_another_storage(cluster):
    system = fsspec.filesystem("memory")
    for number in range(3):
        system.pipe(f"/clips/{number}.wav", coded(sound_of(number)))
    system.pipe("/clips/rows.csv", b"path\n0.wav\n1.wav\n2.wav\n3.wav\n")
    [table] = build("memory://clips/rows.csv", label="said").encode_request("memory://clips/rows.csv", {"fitted": {}})
    assert table["samples"].to_pylist() == [sound_of(i).tolist() for i in range(3)] + [None]


# --- requests -----------------------------------------------------------------------------------------------------

def request(source: str | Path, **options) -> list[dict]:
    """Rows of new data, encoded."""
    tables = build("unused.csv", label="said", **options).encode_request(str(source), {"fitted": {}})
    return [row for table in tables for row in table.to_pylist()]


def test_one_sound_is_a_request(tmp_path):
    path = put(tmp_path / "a.wav", coded(noise()))
    assert request(path) == [{"length": 1000, "samples": noise().tolist(), "__file": path, "__row": 1, "skipped": None}]


def test_a_folder_is_a_request_and_its_bad_files_are_told(tmp_path):
    for number in range(5):
        put(tmp_path / f"{number}.wav", coded(sound_of(number)))
    bad = put(tmp_path / "2.wav", b"")
    rows = request(tmp_path, max_seconds=2000)                                  # two at a time
    assert [row["samples"] for row in rows] == [None if i == 2 else sound_of(i).tolist() for i in range(5)]
    assert [row["length"] for row in rows] == [None if i == 2 else 5 + i for i in range(5)]
    assert [row["skipped"] for row in rows] == [None if i != 2 else f"path: {bad} is empty (0 bytes)" for i in range(5)]
    assert [Path(row["__file"]).name for row in rows] == [f"{i}.wav" for i in range(5)]


def test_a_manifest_is_a_request_without_what_is_told(troubled):
    manifest, wrong = troubled
    rows = request(manifest, max_seconds=1.5)
    assert [row["__row"] for row in rows if not row["skipped"]] == [
        i + 2 for i in range(60) if i + 2 not in wrong or wrong[i + 2][0] == "said"]
    for row in rows:
        assert row["__file"] == manifest
        if row["skipped"]:
            assert (row["length"], row["samples"]) == (None, None)
            assert row["skipped"].endswith(wrong[row["__row"]][1])
        else:
            assert row["samples"] == sound_of(row["__row"] - 2).tolist()


def test_a_long_manifest_is_encoded_a_few_sounds_at_a_time(tmp_path):
    manifest = write(tmp_path / "rows.csv", make(tmp_path, 10))
    tables = list(build("unused.csv", label="said", max_seconds=1000).encode_request(manifest, {"fitted": {}}))
    assert [len(table) for table in tables] == [4, 4, 2]


# --- the same data from any machine -------------------------------------------------------------------------------

def test_rows_and_digest_do_not_depend_on_the_cpus(tmp_path, cluster, monkeypatch):
    rows = make(tmp_path, 160)
    for row in rows:
        row["path"] = row["path"].replace("sounds/", "../sounds/", row["path"].startswith("sounds"))
    for start, stop in ((0, 1), (1, 120), (120, 160)):
        write(tmp_path / "lists" / f"{start:03}.csv", rows[start:stop])
    dataset = build(str(tmp_path / "lists"), label="said", max_seconds=500, split={"test": 0.2})
    assert dataset.task_sounds == 8
    found = []
    for cpus in (2, 1):                                                         # four tasks at a time, or two
        monkeypatch.setattr(ray.data.DataContext.get_current().execution_options, "resource_limits",
                            ray.data.ExecutionResources(cpu=cpus))
        prepared = prepare(dataset, Storage(tmp_path / f"out{cpus}"))
        train, test = numbers(prepared, "train"), numbers(prepared, "test")
        assert train == sorted(set(range(160)) - set(test))                     # in the order of the manifests
        assert test == sorted(test)
        found.append(prepared)
    assert found[0].digest == found[1].digest
    assert len(found[0].parts["train"].shards) > 10
