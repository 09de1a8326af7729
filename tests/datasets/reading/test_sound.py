"""Decoding sound files: formats, rates and channels, and files that cannot be used."""

import os
import struct
import tracemalloc

import fsspec
import numpy as np
import pytest
import soundfile

from datasets.pipeline.storage import Unavailable
from datasets.reading import sound
from datasets.reading.sound import decode
from tests.datasets.sounds import RATE, coded, noise, put, sine


def reason_of(path: str, *, rate: int = RATE, max_seconds: float = 30.0) -> str:
    """The reason why a file is refused."""
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"format": "WAVEX"},
        {"format": "RF64"},
        {"format": "W64"},
        {"format": "FLAC"},
        {"format": "AIFF"},
        {"format": "AU"},
        {"format": "CAF"},
        {"endian": "BIG"},
    ],
    ids=str,
)
def test_16_bit_samples_are_unchanged(tmp_path, options):
    assert good(put(tmp_path / "a.wav", coded(noise(), **options))).tolist() == noise().tolist()


def test_plain_wav_files_give_what_libsndfile_reads(tmp_path, monkeypatch):
    files = [
        put(tmp_path / f"{channels}-{size}-{form}.wav", coded(noise(size, channels=channels), format=form))
        for channels in (1, 2, 3)
        for size in (1, 2, 999)
        for form in ("WAV", "WAVEX")
    ]
    fast = [good(path).tolist() for path in files]
    wav = sound._wav
    monkeypatch.setattr(sound, "_wav", lambda data: sound._Wav(**{**vars(wav(data)), "plain": False}))
    assert fast == [good(path).tolist() for path in files]
    assert max(map(len, fast)) == 999


def test_other_chunks_of_a_wav_file_are_skipped(tmp_path):
    whole = coded(noise())
    odd = b"LIST" + struct.pack("<I", 5) + b"hello\0"  # padded to an even size
    between, after = whole[:36] + odd + whole[36:], whole + odd
    for data in (between, after, after[:-3]):  # the last is truncated after the samples
        assert good(put(tmp_path / "a.wav", data)).tolist() == noise().tolist()


@pytest.mark.parametrize(
    ("options", "apart"),
    [
        ({"subtype": "PCM_U8"}, 2**-7),
        ({"subtype": "PCM_24"}, 2**-15),
        ({"subtype": "PCM_32"}, 2**-15),
        ({"subtype": "FLOAT"}, 2**-15),
        ({"subtype": "DOUBLE"}, 2**-15),
        ({"subtype": "ALAW"}, 0.03),
        ({"format": "FLAC", "subtype": "PCM_24"}, 2**-15),
        ({"format": "OGG"}, 0.05),
        ({"format": "MP3"}, 0.05),
    ],
    ids=str,
)
def test_other_codings_give_the_same_sound(tmp_path, options, apart):
    wave = sine(440, 0.5, RATE)
    samples = good(put(tmp_path / "a.wav", coded(wave, **options)))
    assert len(samples) == len(wave)
    assert np.abs(samples / 32768 - wave).max() < apart


def test_a_float_beyond_full_scale_is_clipped_not_wrapped(tmp_path):
    path = put(tmp_path / "a.wav", coded(np.array([1.5, -1.5, 1.0, -1.0, 0.5]), subtype="FLOAT"))
    assert good(path).tolist() == [32767, -32768, 32767, -32768, 16384]


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"subtype": "FLOAT"}], ids=str)
def test_channels_are_averaged(tmp_path, options):
    left, right = noise(seed=1).astype(np.int64), noise(seed=2).astype(np.int64)
    path = put(tmp_path / "a.wav", coded(np.stack([left, right], 1).astype(np.int16), **options))
    np.testing.assert_allclose(good(path), (left + right) / 2, atol=0.51)  # half a step of rounding


@pytest.mark.parametrize("options", [{}, {"subtype": "FLOAT"}], ids=["plain", "float"])
@pytest.mark.parametrize("given", [8000, 11_025, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("rate", [8000, 16_000])
def test_a_sine_keeps_frequency_and_amplitude_at_another_rate(tmp_path, given, rate, options):
    path = put(tmp_path / "a.wav", coded(sine(1000, 1.0, given), given, **options))
    samples = good(path, rate=rate) / 32768
    assert len(samples) == rate
    middle = samples[rate // 4 : -rate // 4]  # without the edges of resampling
    waves = np.exp(-2j * np.pi * 1000 * np.arange(len(middle)) / rate)
    assert abs(2 * np.mean(middle * waves)) == pytest.approx(0.5, rel=0.002)  # all of it is at 1,000 Hz:
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.002)


def test_frequencies_above_the_lower_rates_limit_are_filtered_out(tmp_path):
    path = put(tmp_path / "a.wav", coded(sine(7000, 0.5, 48_000), 48_000))
    assert np.abs(good(path, rate=8000)[500:-500]).max() < 33  # 60 dB below


# --- files that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["half", "all but 100 bytes", "all but the last byte"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subtype": "FLOAT"},
        {"subtype": "PCM_24", "format": "WAVEX"},
        {"format": "RF64"},
        {"format": "W64"},
        {"format": "AIFF"},
        {"format": "AU"},
        {"endian": "BIG"},
        {"format": "FLAC"},
        {"format": "OGG"},
        {"format": "OGG", "subtype": "OPUS"},
        {"format": "MP3"},
    ],
    ids=str,
)
def test_a_truncated_file_is_refused(tmp_path, options, keep):
    whole = coded(noise(20_000), **options)
    good(put(tmp_path / "a.wav", whole))
    size = {"half": len(whole) // 2, "all but 100 bytes": -100, "all but the last byte": -1}[keep]
    reason = reason_of(put(tmp_path / "a.wav", whole[:size]))
    assert "truncated" in reason or "flac decoder lost sync" in reason


@pytest.mark.parametrize(
    "options", [{}, {"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"}, {"format": "AIFF"}], ids=str
)
def test_a_file_truncated_at_any_byte_is_refused(tmp_path, options):
    whole = coded(noise(4000), **options)
    for size in [*range(1, 200), *range(200, len(whole), 101)]:
        reason_of(put(tmp_path / "a.wav", whole[:size]))


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_without_a_count_of_frames_is_read_completely(tmp_path, rate, channels):
    wave = np.concatenate([sine(440, 1.0, rate, loudness=0.01), sine(440, 1.0, rate)])  # frames of other sizes
    whole = coded(np.stack([wave] * channels, 1), rate, format="MP3").replace(b"Xing", bytes(4))
    tag = b"ID3\x04\0\0\0\0\0\x05hello"
    for data in (whole, tag + whole, whole + b"TAG" + b" " * 125):
        samples = good(put(tmp_path / "a.mp3", data), rate=rate)
        assert 2 * rate <= len(samples) < 2 * rate + 3600
        assert np.abs(samples[rate + 4000 : 2 * rate]).max() == pytest.approx(16_384, rel=0.05)
    for cut in range(1, 150, 7):
        assert "is truncated" in reason_of(put(tmp_path / "a.mp3", whole[: len(whole) // 2 + cut]))


@pytest.mark.parametrize("between", [b"", b"ID3\x04\0\0\0\0\0\x05hello", bytes(7), b"TAG" + b" " * 125], ids=len)
@pytest.mark.parametrize("counted", [True, False])
def test_joined_mp3_files_are_refused_or_read_completely(tmp_path, between, counted):
    one = coded(sine(440, 1.0, RATE), format="MP3")
    one = one if counted else one.replace(b"Xing", bytes(4)).replace(b"Info", bytes(4))
    samples, reason = decode(put(tmp_path / "a.mp3", one + between + one), RATE, 30.0)
    assert "is several recordings joined" in reason or len(samples) >= 2 * RATE


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_joined_ogg_streams_are_refused(tmp_path, subtype):
    one = coded(sine(440, 1.0, RATE), format="OGG", subtype=subtype)
    assert len(good(put(tmp_path / "a.ogg", one))) >= RATE
    assert "is several recordings joined" in reason_of(put(tmp_path / "a.ogg", one + one))


@pytest.mark.parametrize(
    ("riff", "data"),
    [
        (0xFFFFFFFF, 0xFFFFFFFF),
        (0, 0),
        (0, 0xFFFFFFFF),
        (0x7FFFFFFF, 0x7FFFFFDB),
        (0x80000024, 0x80000000),
        (0x7FFFF024, 0x7FFFF000),
    ],
    ids=hex,
)
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_a_wav_with_open_sizes_is_read_to_its_end(tmp_path, riff, data, subtype):
    whole = bytearray(coded(noise(), subtype=subtype))
    start = whole.index(b"data") + 4
    whole[4:8], whole[start : start + 4] = struct.pack("<I", riff), struct.pack("<I", data)
    np.testing.assert_allclose(good(put(tmp_path / "a.wav", bytes(whole))), noise(), atol=1)


def test_truncation_of_a_wav_is_found_if_only_the_size_of_the_file_is_open(tmp_path):
    whole = bytearray(coded(noise()))
    whole[4:8] = b"\xff" * 4
    assert good(put(tmp_path / "a.wav", bytes(whole))).tolist() == noise().tolist()
    assert "is truncated: 1,044 bytes of 2,044" in reason_of(put(tmp_path / "a.wav", bytes(whole[:-1000])))


def test_a_flac_without_a_length_is_refused(tmp_path):
    whole = bytearray(coded(noise(), format="FLAC"))
    whole[21] &= 0xF0  # 36 bits of the number of samples
    whole[22:26] = bytes(4)
    assert "does not say how long it is" in reason_of(put(tmp_path / "a.flac", bytes(whole)))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty (0 bytes)"),
        (b"These are words, no sound.\n" * 20, "is no sound that can be decoded"),
        (b"RIFF", "is no sound"),
        (b"\0" * 5000, "is no sound"),
        (b"\xff" * 5000, "is no sound"),
        (b"OggS", "is truncated"),
        (coded(np.zeros(0, np.int16)), "has no samples"),
        (coded(np.zeros(0), subtype="FLOAT"), "has no samples"),
        (coded(np.array([0.0, np.nan, 0.0]), subtype="FLOAT"), "has samples that are no finite numbers"),
        (coded(np.array([[0.0, 0.0], [np.inf, -np.inf]]), subtype="FLOAT"), "has samples that are no finite numbers"),
        (coded(noise(2), 192_000), "is shorter than a sample at 16,000 Hz"),
    ],
    ids=lambda x: str(len(x)) if isinstance(x, bytes) else x,
)  # the bytes have the time at which they were written
def test_a_file_without_a_sound_is_refused_with_a_reason(tmp_path, data, reason):
    path = put(tmp_path / "a.wav", data)
    assert reason in reason_of(path)
    assert " at 0x" not in reason_of(path)  # the same words in every run


def test_a_broken_header_is_refused(tmp_path):
    whole = coded(noise())
    for position in range(8, 44):
        for value in (0, 0xFF):
            broken = bytearray(whole)
            broken[position] = value
            samples, reason = decode(put(tmp_path / "a.wav", bytes(broken)), RATE, 30.0)
            assert bool(reason) == (len(samples) == 0)  # and nothing is raised


def test_a_path_without_a_readable_file_is_refused(tmp_path):
    assert reason_of(str(tmp_path / "no.wav")) == f"there is no file {tmp_path / 'no.wav'}"
    assert "cannot be read" in reason_of(str(tmp_path))
    hidden = put(tmp_path / "hidden.wav", coded(noise()))
    os.chmod(hidden, 0)
    if os.geteuid():
        assert "cannot be read" in reason_of(hidden)
    assert "cannot be read" in reason_of("nothing://at/all.wav")


@pytest.mark.parametrize("options", [{}, {"format": "FLAC"}, {"subtype": "FLOAT"}], ids=str)
def test_a_sound_of_max_seconds_is_read_and_a_longer_one_refused(tmp_path, options):
    path = put(tmp_path / "a.wav", coded(noise(RATE), **options))
    assert len(good(path, max_seconds=1.0)) == RATE
    path = put(tmp_path / "a.wav", coded(noise(RATE + 1600), **options))
    assert reason_of(path, max_seconds=1.0) == f"{path} lasts 1.1 s, more than dataset.max_seconds=1"


@pytest.mark.parametrize("form", ["WAV", "FLAC", "OGG", "MP3", "MP3 without a count of frames"])
def test_an_hour_is_refused_without_being_decoded(tmp_path, form, monkeypatch):
    path, minutes = tmp_path / "a.wav", 3 if form == "MP3" else 10 if form == "OGG" else 60  # these are slow to write
    if form in soundfile.available_formats():
        with soundfile.SoundFile(path, "w", 8000, 1, format=form) as sound:
            for _ in range(60 * minutes):
                sound.write(noise(8000) if form in ("WAV", "FLAC") else np.zeros(8000))
    else:
        put(path, coded(noise(8000 * 60), 8000, format="MP3").replace(b"Xing", bytes(4)) * minutes)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    reason = reason_of(str(path))
    assert float(reason.split("lasts ")[1].split(" s")[0].replace(",", "")) == pytest.approx(60 * minutes, rel=0.01)


def test_a_file_of_gigabytes_is_refused_without_reading_it(tmp_path):
    path, hole = tmp_path / "a.wav", 3 << 30
    start = coded(noise(8000), 8000)
    with path.open("wb") as file:  # a sparse file of 3 GB
        file.write(start[:4] + struct.pack("<I", hole - 8) + start[8:40] + struct.pack("<I", hole - 44))
        file.truncate(hole)
    tracemalloc.start()
    assert "lasts 201,326.6 s" in reason_of(str(path))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("size", [1000, sound.LARGE])  # the header of the latter is read first
def test_a_store_that_fails_makes_no_sound_unusable(failing_store, size):
    fsspec.filesystem("failing").pipe("/box/a.wav", coded(noise(size)))
    failing_store.fails = True
    with pytest.raises(Unavailable, match=r"^failing://box/a\.wav cannot be read now: AWS Error"):
        decode("failing://box/a.wav", RATE, 1e9)


def test_a_file_in_another_storage_is_read(tmp_path):
    with fsspec.open("memory://sounds/a.wav", "wb") as file:
        file.write(coded(noise()))
    assert good("memory://sounds/a.wav").tolist() == noise().tolist()
    assert reason_of("memory://sounds/b.wav") == "there is no file memory://sounds/b.wav"
