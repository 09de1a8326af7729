"""Audio: sound files with what to tell from them, stored as samples of one channel at one rate.

The spectrogram is made by the model, on its device: what is stored does not depend on it.
"""

from __future__ import annotations

import io
import json
import posixpath
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import soundfile
import soxr
from numpy.typing import NDArray
from pyarrow import fs

from datasets import files
from datasets.files import Source
from datasets.records import Bad, Options, Records, State

if TYPE_CHECKING:
    import ray.data

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
TASK_SOUNDS = 128           # files decoded by one task
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

    def listed(self) -> list[tuple[Source, str]]:
        """As for all records; sound files may be empty, which is a matter of that record only."""
        paths = self.told.path if isinstance(self.told.path, dict) else {"train": self.told.path}
        found = [(source, part) for part, path in paths.items() for source in _found(path)]
        self.check_parts(found)
        return found

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
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        flat = np.concatenate([np.zeros(0, np.int16), *sounds])
        return {"length": pa.array(lengths), "samples": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))}, \
            {"samples": int(lengths.sum()), "rows": int((lengths > 0).sum())}

    def input_state(self, sums: State) -> State:
        seconds = sums.get("samples", 0) / self.rate
        return {"notes": [f"audio: {sums.get('rows', 0):,} sounds, {seconds:,.0f} s in all, at {self.rate:,} Hz"]}

    def input_spec(self, state: State | None) -> dict[str, Any]:
        return {"rate": self.rate}

    def inputs(self, state: State) -> dict[str, int]:
        return {"samples": 0}

    def spread(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        return rows.repartition(target_num_rows_per_block=TASK_SOUNDS)

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
        for one in _found(source):
            if files.suffix(one.uri) in SOUNDS:
                yield _sounds([one.uri], self.audio)
            else:
                yield from files.read_blocks(one.uri, self.input_columns(), lenient=True)

    def _named(self, source: Source) -> list[Source]:
        """One source that stands for all the sound files that a local manifest names."""
        if "://" in source.uri or files.suffix(source.uri) in SOUNDS:
            return []
        names = [name for table in files.read_blocks(source.uri, [self.audio], lenient=True)
                 for name in table[self.audio].to_pylist() if isinstance(name, str)]
        local = [path for name in names if "://" not in (path := _beside(name, source.uri))]
        found = fs.LocalFileSystem().get_file_info(local)
        told = json.dumps([[info.path, info.size, info.mtime_ns] for info in found]).encode()
        return [Source(f"{source.uri} (the files it names)", sum(info.size or 0 for info in found), zlib.crc32(told))]


def decode(uri: str, rate: int, max_seconds: float) -> tuple[NDArray[np.int16], str]:
    """The sound of a file: (samples (T,) at `rate`, channels averaged, and "") or (none, why there are none)."""
    nothing = np.zeros(0, np.int16)
    try:
        system, path = files.open_input(uri)
        with system.open_input_stream(path) as stream:
            data = stream.read()
    except FileNotFoundError:
        return nothing, f"there is no file {uri}"
    except (OSError, ValueError) as error:
        return nothing, f"{uri} cannot be read: {error}"
    if not data:
        return nothing, f"{uri} is empty (0 bytes)"
    if data[:4] == b"RIFF" and 8 + int.from_bytes(data[4:8], "little") > len(data) and data[4:8] != b"\xff" * 4:
        return nothing, f"{uri} is truncated: {len(data):,} bytes of {8 + int.from_bytes(data[4:8], 'little'):,}"
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as sound:
            if sound.frames > max_seconds * sound.samplerate:
                seconds = sound.frames / sound.samplerate
                return nothing, f"{uri} lasts {seconds:,.1f} s, more than dataset.max_seconds={max_seconds:g}"
            exact = sound.subtype == "PCM_16" and sound.channels == 1 and sound.samplerate == rate
            samples = sound.read(dtype="int16" if exact else "float32")
            frames, given = sound.frames, sound.samplerate
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return nothing, f"{uri} is no sound that can be decoded: {str(error).removeprefix('Error opening ')}"
    if len(samples) < frames:
        return nothing, f"{uri} is truncated: {len(samples):,} of {frames:,} samples can be decoded"
    if not len(samples):
        return nothing, f"{uri} has no samples"
    if exact:
        return samples, ""
    if not np.isfinite(samples).all():
        return nothing, f"{uri} has samples that are no finite numbers"
    mono = samples.mean(1) if samples.ndim > 1 else samples
    if given != rate:
        mono = soxr.resample(mono, given, rate)
    if not len(mono):
        return nothing, f"{uri} is shorter than a sample at {rate:,} Hz"
    return np.clip(np.rint(mono * SCALE), -SCALE, SCALE - 1).astype(np.int16), ""


def _found(path: str) -> list[Source]:
    """Manifests, or sound files where there is no manifest."""
    found = files.resolve(path, suffixes=(*files.TABLES, *SOUNDS), empty=True)
    tables = [source for source in found if files.suffix(source.uri) not in SOUNDS]
    return tables or found


def _beside(name: str, manifest: str) -> str:
    """What a manifest's name of a file means."""
    return name if "://" in name or posixpath.isabs(name) else posixpath.join(posixpath.dirname(manifest), name)


@files.in_task
def _sound_rows(batch: pa.Table) -> Iterator[pa.Table]:
    for uris in batch["uris"].to_pylist():
        yield _sounds(uris, "path")


def _sounds(uris: list[str], column: str) -> pa.Table:
    """A record for each sound file."""
    return pa.table({column: uris, "folder": [posixpath.basename(posixpath.dirname(uri)) for uri in uris],
                     "__file": uris, "__row": pa.array([1] * len(uris), pa.int64()),
                     "__bad": pa.nulls(len(uris), files.BAD)})
