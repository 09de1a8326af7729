"""Audio: sound files with what to tell from them, stored as samples of one channel at one rate.

The spectrogram is made by the model, on its device: what is stored does not depend on it.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import struct
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import soundfile
import soxr
from numpy.typing import NDArray

from datasets import files
from datasets.files import Source
from datasets.records import Bad, Options, Records, State
from datasets.storage import Unavailable

if TYPE_CHECKING:
    import ray.data

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
TASK_SOUNDS = 128           # files decoded by one task, at most
TASK_BYTES = 128 << 20      # of samples that one task may make of them
LARGE = 4 << 20             # bytes of a file whose length is looked up before it is read
SCALE = 32768               # of int16


def build(told: Options, *, audio: str = "path", rate: int = 16_000, max_seconds: float = 30.0) -> Audio:
    """Sound files (WAV, FLAC, OGG, MP3, ...), named by a manifest or found in folders.

    Args:
        told: the options of all records. Where path names sound files, or a folder of them, each is a record with the
            columns path and folder (the name of the folder it lies in): label: folder makes a class of each folder.
            Else path names manifests: CSV, JSON Lines or Parquet.
        audio: the column of a manifest that names the sound file, relative to the manifest, absolute, or a URI.
        rate: samples a second that every sound is brought to; several channels are averaged to one.
        max_seconds: longer sounds are set aside.

    Raises:
        ValueError: an option is out of its range.
    """
    if not 1000 <= rate <= 192_000:
        raise ValueError(f"dataset.rate={rate} is not between 1,000 and 192,000 samples a second")
    if not max_seconds > 0:
        raise ValueError(f"dataset.max_seconds={max_seconds} is too small; use more than 0, such as 30")
    if not max_seconds * rate < 2 ** 31:
        raise ValueError(f"dataset.max_seconds={max_seconds} is too large; at dataset.rate={rate} a sound may last up "
                         f"to {2 ** 31 // rate:,} s: cut longer ones")
    return Audio(told=told, audio=audio, rate=rate, max_seconds=max_seconds)


@dataclass(kw_only=True)
class Audio(Records):
    """See `build`."""

    audio: str
    rate: int
    max_seconds: float
    kind: ClassVar[str] = "audio"
    frontend: ClassVar[str] = "logmel"
    suffixes: ClassVar[tuple[str, ...]] = (*files.TABLES, *SOUNDS)

    def find(self, path: str) -> list[Source]:
        """Manifests, or sound files where there is none; these may be empty, which is a matter of that record only."""
        found = files.resolve(path, suffixes=self.suffixes, empty=True)
        for source in found:
            if not _split_options(source.uri)[0].lower().endswith(self.suffixes):
                raise ValueError(f"{source.uri}: the ending is none of {', '.join(files.TABLES)} (a manifest) or "
                                 f"{', '.join(SOUNDS)} (a sound); rename the file, or name it in a manifest")
        tables = [source for source in found if files.suffix(source.uri) not in SOUNDS]
        return tables or found

    def sources(self) -> list[Source]:
        """Manifests and sound files; the files that a manifest on this machine names count as one."""
        found = super().sources()
        return [one for source in found for one in (source, *self._named(source))]

    def input_columns(self) -> list[str]:
        return [self.audio]

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: Bad) -> tuple[dict[str, pa.Array], State]:
        sounds: list[NDArray[np.int16]] = []
        names, manifests = table[self.audio].to_pylist(), table["__file"].to_pylist()
        for i in rows:
            sound, reason = np.zeros(0, np.int16), "no value"
            if isinstance(names[i], str) and names[i].strip():
                sound, reason = decode(_beside(names[i].strip(), manifests[i]), self.rate, self.max_seconds)
            elif names[i] is not None and not isinstance(names[i], str):
                reason = f"{names[i]!r} is no name of a file"
            if reason:
                bad.setdefault(i, (self.audio, reason))
            sounds.append(sound)
        lengths = np.array([len(sound) for sound in sounds], np.int32)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        flat = pa.array(np.concatenate([np.zeros(0, np.int16), *sounds]))
        none = pa.array(lengths == 0)
        return {"length": pa.array(lengths, mask=lengths == 0),
                "samples": pa.ListArray.from_arrays(offsets, flat, mask=none)}, \
            {"samples": int(lengths.sum()), "rows": int((lengths > 0).sum())}

    def input_state(self, sums: State) -> State:
        seconds = sums.get("samples", 0) / self.rate
        return {"notes": [f"audio: {sums.get('rows', 0):,} sounds, {seconds:,.0f} s in all, at {self.rate:,} Hz"]}

    def input_spec(self, state: State | None) -> dict[str, Any]:
        return {"rate": self.rate}

    def inputs(self, state: State) -> dict[str, int]:
        return {"samples": 0}

    @property
    def task_sounds(self) -> int:
        """Sounds that are decoded at a time, so that the memory they take is bounded."""
        return max(1, min(TASK_SOUNDS, int(TASK_BYTES / (2 * self.rate * self.max_seconds))))

    def spread(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        return rows.repartition(target_num_rows_per_block=self.task_sounds)

    def raw_rows(self, sources: Sequence[Source]) -> ray.data.Dataset:
        import ray.data

        sounds = [source.uri for source in sources if files.suffix(source.uri) in SOUNDS]
        if not sounds:
            return super().raw_rows(sources)
        if len(sounds) < len(sources):
            other = next(source.uri for source in sources if source.uri not in sounds)
            raise ValueError(f"dataset.path names sound files and {other}; name either a manifest or sound files")
        for column in (self.audio, *self.told.columns):
            if column not in ("path", "folder"):
                raise files.missing_column(posixpath.dirname(sounds[0]), column, ["path", "folder"])
        blocks = [sounds[i:i + TASK_SOUNDS] for i in range(0, len(sounds), TASK_SOUNDS)]
        return ray.data.from_items([{"uris": block} for block in blocks], override_num_blocks=len(blocks)).map_batches(
            _sound_rows, batch_size=None, batch_format="pyarrow", num_cpus=files.TASK_CPUS)

    def raw_tables(self, source: str) -> Iterator[pa.Table]:
        found = self.find(source)
        sounds = [one.uri for one in found if files.suffix(one.uri) in SOUNDS]
        for start in range(0, len(sounds), self.task_sounds):
            yield _sounds(sounds[start:start + self.task_sounds], self.audio)
        for one in found if not sounds else ():
            for table in files.read_blocks(one.uri, self.input_columns(), lenient=True):
                for start in range(0, len(table), self.task_sounds):
                    yield table.slice(start, self.task_sounds)

    def _named(self, source: Source) -> list[Source]:
        """One source that stands for all the sound files on this machine that a manifest names."""
        if files.suffix(source.uri) in SOUNDS:
            return []
        size, told = 0, 0
        for table in files.read_blocks(source.uri, [self.audio], lenient=True):
            names = [name.strip() for name in table[self.audio].to_pylist() if isinstance(name, str)]
            for path in filter(None, (_local(_beside(name, source.uri)) for name in names)):
                count, changed = _stamp(path)
                size += max(0, count)
                told = zlib.crc32(f"{path}\0{count}\0{changed}\0".encode(errors="surrogatepass"), told)
        return [Source(f"{source.uri} (the files it names)", size, told)]


# Decoding

class _Unusable(Exception):
    """Why a file is set aside."""


JOINED = "is several recordings joined, of which only the first can be read; write it again as one"


def decode(uri: str, rate: int, max_seconds: float) -> tuple[NDArray[np.int16], str]:
    """The sound of a file: (samples (T,) at `rate`, channels averaged, and "") or (none, why there are none).

    A file that was cut is refused wherever its format lets one know: not where the header leaves the size open, nor
    where an MP3 that does not count its frames was cut between two of them.

    Raises:
        Unavailable: storage does not give it now.
    """
    try:
        samples, given = _read(uri, max_seconds)
        return _at_rate(samples, given, rate), ""
    except FileNotFoundError:
        reason = f"there is no file {uri}"
    except Unavailable as error:
        if not isinstance(error.__cause__, PermissionError):
            raise                                        # nothing says that the sound is at fault
        reason = f"{uri} cannot be read: you have no permission"
    except _Unusable as error:
        reason = f"{uri} {error}"
    except soundfile.LibsndfileError as error:
        reason = f"{uri} is no sound that can be decoded: {error.error_string.removeprefix('Error : ')}"
    except (OSError, ValueError) as error:
        reason = f"{uri} cannot be read: {error}"
    return np.zeros(0, np.int16), reason


class _Kept:
    """A file for libsndfile, through which nothing can be raised: the error of a read is kept instead."""

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
    """(samples (T, C): int16, or float32 of which 1 is the loudest; how many a second)."""
    with files.open_file(uri) as file:
        if file.size() > LARGE:                          # most likely too long, which the header tells
            kept = _Kept(file)
            try:
                with soundfile.SoundFile(kept) as sound:
                    if sound.format != "MP3":            # which may hold only a guess of it, see _counted
                        _check_seconds(sound.frames, sound.samplerate, max_seconds)
            finally:
                if kept.error is not None:
                    raise kept.error
            file.seek(0)
        data = file.read()
    if not data:
        raise _Unusable("is empty (0 bytes)")
    wav = _wav(data)
    promised = wav.start + wav.size if wav else _promised(data)
    if promised > len(data):
        raise _Unusable(f"is truncated: {len(data):,} bytes of {promised:,}")
    if data[:4] == b"OggS":
        if not _ogg_ends(data):
            raise _Unusable("is truncated: the end of the Ogg stream is missing")
        if sum(data[page.start() + 5] & 2 > 0 for page in re.finditer(b"OggS\0", data)) > 1:
            raise _Unusable(JOINED)
    if wav and wav.plain:                                # much faster than libsndfile
        frames = wav.size // (2 * wav.channels)
        _check_seconds(frames, wav.rate, max_seconds)
        return np.frombuffer(data, "<i2", frames * wav.channels, wav.start).reshape(frames, wav.channels), wav.rate
    if wav and not any(data[wav.start - 4:wav.start]):   # libsndfile takes a size of 0 that was left open for none
        data = data[:wav.start - 4] + b"\xff" * 4 + data[wav.start:]
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
    made: NDArray[np.int16] = np.clip(np.rint(mono * SCALE), -SCALE, SCALE - 1).astype(np.int16)
    return made


def _check_seconds(frames: int, rate: int, most: float) -> None:
    if frames > 2 ** 62:
        raise _Unusable("does not say how long it is, having been written as a stream; write it again to a file")
    if frames > most * rate:
        raise _Unusable(f"lasts {frames / rate:,.1f} s, more than dataset.max_seconds={most:g}")


@dataclass(frozen=True)
class _Wav:
    """A RIFF WAV file's header: where its samples begin, how many bytes they are, and whether they are plain int16."""

    start: int
    size: int
    channels: int
    rate: int
    plain: bool


def _wav(data: bytes) -> _Wav | None:
    """The header of a WAV file; None of others."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    at, told = 12, b""
    while at + 8 <= len(data):
        name, size, at = data[at:at + 4], int.from_bytes(data[at + 4:at + 8], "little"), at + 8
        if name == b"fmt ":
            told = data[at:at + size]
        if name == b"data":
            if _left_open(size) or size == int.from_bytes(data[4:8], "little") == 0:
                size = len(data) - at
            kind, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", told[:16].ljust(16, b"\0"))
            kind = int.from_bytes(told[24:26], "little") if kind == 0xFFFE else kind
            plain = kind == 1 and bits == 16 and channels > 0 and frame == 2 * channels and rate > 0
            return _Wav(at, size, channels, rate, plain)
        at += size + size % 2
    return None


def _left_open(size: int) -> bool:
    """Whether a size of 32 bits is what programs write that do not know it yet (FFmpeg, SoX, arecord)."""
    return size >= 0xFFFFFF00 or 0x7FFFE000 <= size <= 0x80000100


def _promised(data: bytes) -> int:
    """The bytes that a file should have by its header; 0 where that does not tell."""
    # beginning -> order of bytes, where the size stands, its type, and how many bytes it leaves out
    order, at, width, more = {
        b"RIFF": ("<", 4, "I", 8), b"RIFX": (">", 4, "I", 8), b"FORM": (">", 4, "I", 8), b"RF64": ("<", 20, "Q", 8),
        b"riff": ("<", 16, "Q", 0), b".snd": (">", 8, "I", int.from_bytes(data[4:8], "big")),
    }.get(data[:4], ("", 0, "", 0))
    if not order or len(data) < at + 8:
        return 0
    [size] = struct.unpack_from(order + width, data, at)
    return 0 if width == "I" and _left_open(size) else int(size) + more


def _ogg_ends(data: bytes) -> bool:
    """Whether the last page is whole, and the last of its stream (RFC 3533)."""
    last = data.rfind(b"OggS\0")
    segments = data[last + 27:last + 27 + data[last + 26]] if last + 27 <= len(data) else b""
    return bool(segments) and bool(data[last + 5] & 4) and last + 27 + len(segments) + sum(segments) <= len(data)


# Of MP3: (MPEG-1 or not) -> kbit/s by index, and Hz by version and index (ISO 11172-3, 13818-3, and MPEG 2.5)
KBITS = {True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
         False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)}
HERTZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}


def _frame(data: bytes, at: int) -> int:
    """Bytes of the MP3 frame (layer III) that begins here; 0 where none does."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return 0
    version, bits, rate, padded = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or bits in (0, 15) or rate == 3:
        return 0
    first = version == 3
    return (144 if first else 72) * KBITS[first][bits] * 1000 // HERTZ[version][rate] + padded


def _mp3_follows(data: bytes, at: int) -> bool:
    """Whether three MP3 frames in a row begin somewhere from `at` on, past a tag or some bytes that are none."""
    while (at := data.find(b"\xff", at)) >= 0:
        place = at
        for _ in range(3):
            size = _frame(data, place)
            if not size:
                break
            place += size
        else:
            return True
        at += 1
    return False


def _counted(data: bytes) -> bytes:
    """An MP3 that does not count its frames with a frame before them that does; other data as it is.

    libsndfile guesses the length by the first frame, and reads no further even where the others are smaller.
    """
    start = 0
    if data[:3] == b"ID3" and len(data) > 10:
        start = 10 + sum((byte & 127) << 7 * (3 - place) for place, byte in enumerate(data[6:10]))
    size = _frame(data, start)
    if not size:
        return data
    marks = [mark.start() for mark in re.finditer(b"Xing|Info|VBRI", data)]       # of frames that count the others
    counted = any(start < mark < start + size for mark in marks)
    at, count, heads = start, 0, 0
    while last := _frame(data, at):
        heads += any(at < mark < at + 48 for mark in marks)
        at, count = at + last, count + 1
    if heads > counted or _mp3_follows(data, at):
        raise _Unusable(JOINED)
    if counted:
        return data
    if at > len(data):
        raise _Unusable("is truncated: its last MP3 frame is not whole")
    stereo, first = data[start + 3] >> 6 != 3, data[start + 1] >> 3 & 3 == 3
    head = bytes([0xFF, data[start + 1] | 1, *data[start + 2:start + 4]])           # without a checksum
    blank = bytes((32 if first else 17) if stereo else (17 if first else 9))        # where the side information stands
    told = head + blank + b"Xing" + struct.pack(">II", 1, count)
    return data[:start] + told.ljust(size, b"\0") + data[start:]


# Names

def _split_options(uri: str) -> tuple[str, str]:
    """A URI's path and its options ("?region=..."), which may have slashes; of a local path all is the path."""
    options = files.OPTIONS.search(uri) if "://" in uri else None
    after = options.group() if options else ""
    return uri.removesuffix(after), after


def _beside(name: str, manifest: str) -> str:
    """What a manifest's name of a file means."""
    if "://" in name or posixpath.isabs(name):
        return name
    path, options = _split_options(manifest)
    return posixpath.join(posixpath.dirname(path), name) + options


def _stamp(path: str) -> tuple[int, int]:
    """Bytes of a file of this machine and when it changed; -1 where there is none, or no such name can be."""
    try:
        told = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return told.st_size, told.st_mtime_ns


def _local(uri: str) -> str | None:
    """The path of a file on this machine; None of others."""
    scheme, mark, rest = uri.partition("://")
    return uri if not mark else urllib.parse.unquote(rest) if scheme == "file" else None


@files.in_task
def _sound_rows(batch: pa.Table) -> Iterator[pa.Table]:
    for uris in batch["uris"].to_pylist():
        yield _sounds(uris, "path")


def _sounds(uris: list[str], column: str) -> pa.Table:
    """A record for each sound file."""
    folders = [posixpath.basename(posixpath.dirname(_split_options(uri)[0])) for uri in uris]
    return pa.table({column: uris, "folder": folders, "__file": uris, "__row": pa.array([1] * len(uris), pa.int64()),
                     "__bad": pa.nulls(len(uris), files.BAD)})
