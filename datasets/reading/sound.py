"""Decoding sound files: from the bytes of a file to samples of one channel at one rate.

libsndfile decodes most formats. This module first checks what it does not detect: files that were cut, headers without
a length, and recordings that were joined. Plain WAV files are read without libsndfile, which is much faster.

Shapes: T samples, C channels.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import soxr
from numpy.typing import NDArray

from datasets.pipeline.storage import Unavailable
from datasets.reading import formats

LARGE = 4 << 20  # bytes; the length of a larger file is looked up in its header before the file is read
SCALE = 32768  # of int16


JOINED = "is several recordings joined, of which only the first can be read; write it again as one"


class _Unusable(Exception):
    """The reason why a file cannot be used; it continues a sentence that begins with the file."""


def decode(uri: str, rate: int, max_seconds: float) -> tuple[NDArray[np.int16], str]:
    """Decode a sound file.

    A file that was cut is refused if its format allows to detect this. It does not if the header leaves the size open,
    or if an MP3 file without a count of its frames was cut between two frames.

    Args:
        uri: of the file.
        rate: samples a second of the result.
        max_seconds: a longer sound is refused.

    Returns:
        (samples (T,) int16, the average of the channels, "") or (no samples, the reason).

    Raises:
        Unavailable: storage cannot be read now.
    """
    try:
        samples, given = _read(uri, max_seconds)
        return _at_rate(samples, given, rate), ""
    except FileNotFoundError:
        reason = f"there is no file {uri}"
    except Unavailable as error:
        if not isinstance(error.__cause__, PermissionError):
            raise  # the sound may be good
        reason = f"{uri} cannot be read: you have no permission"
    except _Unusable as error:
        reason = f"{uri} {error}"
    except soundfile.LibsndfileError as error:
        reason = f"{uri} is no sound that can be decoded: {error.error_string.removeprefix('Error : ')}"
    except (OSError, ValueError) as error:
        reason = f"{uri} cannot be read: {error}"
    return np.zeros(0, np.int16), reason


class _GuardedFile:
    """A file for libsndfile, through whose C code no exception can pass: the error of a read is kept in `error`."""

    def __init__(self, file: pa.NativeFile) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self.file.read(size))
        except OSError as error:
            self.error = error
            return b""


def _read(uri: str, max_seconds: float) -> tuple[NDArray[Any], int]:
    """(samples (T, C) as int16, or as float32 in [-1, 1]; samples a second)."""
    with formats.open_file(uri) as file:
        if file.size() > LARGE:  # probably too long, which the header shows
            guarded = _GuardedFile(file)
            try:
                with soundfile.SoundFile(guarded) as sound:
                    if sound.format != "MP3":  # whose length may be a guess, see _counted
                        _check_seconds(sound.frames, sound.samplerate, max_seconds)
            finally:
                if guarded.error is not None:
                    raise guarded.error
            file.seek(0)
        data = file.read()
    if not data:
        raise _Unusable("is empty (0 bytes)")
    wav = _wav(data)
    expected = wav.start + wav.size if wav else _expected_size(data)
    if expected > len(data):
        raise _Unusable(f"is truncated: {len(data):,} bytes of {expected:,}")
    if data[:4] == b"OggS":
        if not _ogg_ends(data):
            raise _Unusable("is truncated: the end of the Ogg stream is missing")
        if sum(data[page.start() + 5] & 2 > 0 for page in re.finditer(b"OggS\0", data)) > 1:
            raise _Unusable(JOINED)
    if wav and wav.plain:  # much faster than libsndfile
        frames = wav.size // (2 * wav.channels)
        _check_seconds(frames, wav.rate, max_seconds)
        return np.frombuffer(data, "<i2", frames * wav.channels, wav.start).reshape(frames, wav.channels), wav.rate
    if wav and not any(
        data[wav.start - 4 : wav.start]
    ):  # libsndfile would read no samples if the size was left open as 0
        data = data[: wav.start - 4] + b"\xff" * 4 + data[wav.start :]
    with soundfile.SoundFile(io.BytesIO(_counted(data))) as sound:
        _check_seconds(sound.frames, sound.samplerate, max_seconds)
        samples, frames = sound.read(dtype="float32", always_2d=True), sound.frames
        if len(samples) < frames:
            raise _Unusable(f"is truncated: {len(samples):,} of {frames:,} samples can be decoded")
        return samples, sound.samplerate


def _at_rate(samples: NDArray[Any], given: int, rate: int) -> NDArray[np.int16]:
    """(T, C) -> (T,) at `rate`."""
    if not len(samples):
        raise _Unusable("has no samples")
    whole = samples.dtype == np.int16
    if whole and samples.shape[1] == 1 and given == rate:
        return samples[:, 0]
    if not whole and not np.isfinite(samples).all():
        raise _Unusable("has samples that are no finite numbers")
    mono = samples.mean(1, dtype=np.float32) / np.float32(SCALE if whole else 1)
    if given != rate:
        mono = np.asarray(soxr.resample(mono, given, rate))
    if not len(mono):
        raise _Unusable(f"is shorter than a sample at {rate:,} Hz")
    rounded: NDArray[np.int16] = np.clip(np.rint(mono * SCALE), -SCALE, SCALE - 1).astype(np.int16)
    return rounded


def _check_seconds(frames: int, rate: int, max_seconds: float) -> None:
    if frames > 2**62:
        raise _Unusable("does not say how long it is, having been written as a stream; write it again to a file")
    if frames > max_seconds * rate:
        raise _Unusable(f"lasts {frames / rate:,.1f} s, more than dataset.max_seconds={max_seconds:g}")


@dataclass(frozen=True)
class _Wav:
    """The header of a RIFF WAV file.

    Attributes:
        start, size: of the samples, in bytes.
        channels, rate: number of channels, and samples a second.
        plain: whether the samples are plain int16.
    """

    start: int
    size: int
    channels: int
    rate: int
    plain: bool


def _wav(data: bytes) -> _Wav | None:
    """The header of a WAV file; None for other files."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at, format_chunk = 12, b""
    while at + 8 <= len(data):
        name, size, at = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little"), at + 8
        if name == b"fmt ":
            format_chunk = data[at : at + size]
        if name == b"data":
            if _left_open(size) or size == int.from_bytes(data[4:8], "little") == 0:
                size = len(data) - at
            kind, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", format_chunk[:16].ljust(16, b"\0"))
            kind = int.from_bytes(format_chunk[24:26], "little") if kind == 0xFFFE else kind
            plain = kind == 1 and bits == 16 and channels > 0 and frame == 2 * channels and rate > 0
            return _Wav(at, size, channels, rate, plain)
        at += size + size % 2
    return None


def _left_open(size: int) -> bool:
    """Whether a size of 32 bits is one that programs write while they do not know it (FFmpeg, SoX, arecord)."""
    return size >= 0xFFFFFF00 or 0x7FFFE000 <= size <= 0x80000100


def _expected_size(data: bytes) -> int:
    """The size that a file should have by its header, in bytes; 0 if unknown."""
    # beginning -> byte order, position of the size, its type, and the number of bytes that it does not include
    order, at, width, more = {
        b"RIFF": ("<", 4, "I", 8),
        b"RIFX": (">", 4, "I", 8),
        b"FORM": (">", 4, "I", 8),
        b"RF64": ("<", 20, "Q", 8),
        b"riff": ("<", 16, "Q", 0),
        b".snd": (">", 8, "I", int.from_bytes(data[4:8], "big")),
    }.get(data[:4], ("", 0, "", 0))
    if not order or len(data) < at + 8:
        return 0
    [size] = struct.unpack_from(order + width, data, at)
    return 0 if width == "I" and _left_open(size) else int(size) + more


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page is complete, and the last one of its stream (RFC 3533)."""
    last = data.rfind(b"OggS\0")
    segments = data[last + 27 : last + 27 + data[last + 26]] if last + 27 <= len(data) else b""
    return bool(segments) and bool(data[last + 5] & 4) and last + 27 + len(segments) + sum(segments) <= len(data)


# MP3: kbit/s by (is MPEG-1) and index, and Hz by version and index (ISO 11172-3, 13818-3, and MPEG 2.5)
KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}


def _frame_size(data: bytes, at: int) -> int:
    """Bytes of the MP3 frame (layer III) that begins at `at`; 0 if none does."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return 0
    version, bits, rate, padded = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or bits in (0, 15) or rate == 3:
        return 0
    first = version == 3
    return (144 if first else 72) * KBITS[first][bits] * 1000 // HERTZ[version][rate] + padded


def _has_frames(data: bytes, at: int) -> bool:
    """Whether three consecutive MP3 frames begin at `at` or later, after a tag or other bytes."""
    while (at := data.find(b"\xff", at)) >= 0:
        position = at
        for _ in range(3):
            size = _frame_size(data, position)
            if not size:
                break
            position += size
        else:
            return True
        at += 1
    return False


def _counted(data: bytes) -> bytes:
    """An MP3 file without a count of its frames, with a frame added that has it; other data unchanged.

    libsndfile estimates the length from the size of the first frame, and stops there even if the others are smaller.
    """
    start = 0
    if data[:3] == b"ID3" and len(data) > 10:
        start = 10 + sum((byte & 127) << 7 * (3 - i) for i, byte in enumerate(data[6:10]))
    size = _frame_size(data, start)
    if not size:
        return data
    marks = [mark.start() for mark in re.finditer(b"Xing|Info|VBRI", data)]  # of frames with a count of the others
    counted = any(start < mark < start + size for mark in marks)
    at, count, headers = start, 0, 0
    while last := _frame_size(data, at):
        headers += any(at < mark < at + 48 for mark in marks)
        at, count = at + last, count + 1
    if headers > counted or _has_frames(data, at):
        raise _Unusable(JOINED)
    if counted:
        return data
    if at > len(data):
        raise _Unusable("is truncated: its last MP3 frame is not whole")
    stereo, first = data[start + 3] >> 6 != 3, data[start + 1] >> 3 & 3 == 3
    header = bytes([0xFF, data[start + 1] | 1, *data[start + 2 : start + 4]])  # without a checksum
    blank = bytes((32 if first else 17) if stereo else (17 if first else 9))  # in place of the side information
    frame = header + blank + b"Xing" + struct.pack(">II", 1, count)
    return data[:start] + frame.ljust(size, b"\0") + data[start:]
