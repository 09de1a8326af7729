"""Audio: sound files with targets, stored as samples of one channel at one rate.

The model computes spectrograms on its device; the stored samples do not depend on their settings. Decoding, and the
checks that a file is complete, are in ``reading/sound.py``.
"""

from __future__ import annotations

import os
import posixpath
import urllib.parse
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.reading import errors, find, formats
from datasets.reading.find import SourceFile
from datasets.reading.sound import decode
from datasets.shared.columns import BadRows
from datasets.shared.options import RecordOptions
from datasets.shared.records import Records
from datasets.shared.sums import State

if TYPE_CHECKING:
    import ray.data

SOUNDS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
TASK_SOUNDS = 128  # maximum of files that one task decodes
TASK_BYTES = 128 << 20  # maximum of samples that they may become


def build(common: RecordOptions, *, audio: str = "path", rate: int = 16_000, max_seconds: float = 30.0) -> Audio:
    """Sound files (WAV, FLAC, OGG, MP3, ...), listed in a manifest or found in folders.

    Args:
        common: the options of all records. If path names sound files, or a folder of them, each file is a record with
            the columns path and folder (the name of its folder): with label=folder each folder is a class. Otherwise
            path names manifests: CSV, JSON Lines or Parquet.
        audio: the column of a manifest with the sound file: relative to the manifest, absolute, or a URI.
        rate: samples a second; sounds of another rate are resampled, and several channels are averaged to one.
        max_seconds: longer sounds are not used.

    Raises:
        ValueError: an option is out of its range.
    """
    if not 1000 <= rate <= 192_000:
        raise ValueError(f"dataset.rate={rate} is not between 1,000 and 192,000 samples a second")
    if not max_seconds > 0:
        raise ValueError(f"dataset.max_seconds={max_seconds} is too small; use more than 0, such as 30")
    if not max_seconds * rate < 2**31:
        raise ValueError(
            f"dataset.max_seconds={max_seconds} is too large; at dataset.rate={rate} a sound may last up "
            f"to {2**31 // rate:,} s: cut longer ones"
        )
    return Audio(common=common, audio=audio, rate=rate, max_seconds=max_seconds)


@dataclass(kw_only=True)
class Audio(Records):
    """See `build`."""

    audio: str
    rate: int
    max_seconds: float
    kind: ClassVar[str] = "audio"
    frontend: ClassVar[str] = "logmel"
    suffixes: ClassVar[tuple[str, ...]] = (*formats.TABLES, *SOUNDS)

    def find_files(self, path: str) -> list[SourceFile]:
        """Manifests, or sound files where there is none. An empty sound file is an unusable record, no error."""
        files = find.resolve(path, suffixes=self.suffixes, empty=True)
        for source in files:
            if not _split_options(source.uri)[0].lower().endswith(self.suffixes):
                raise ValueError(
                    f"{source.uri}: the ending is none of {', '.join(formats.TABLES)} (a manifest) or "
                    f"{', '.join(SOUNDS)} (a sound); rename the file, or name it in a manifest"
                )
        tables = [source for source in files if formats.suffix(source.uri) not in SOUNDS]
        return tables or files

    def sources(self) -> list[SourceFile]:
        """Manifests and sound files; the files that a manifest lists, if they are on this machine, are one entry."""
        return [entry for source in super().sources() for entry in (source, *self._listed_files(source))]

    def input_columns(self) -> list[str]:
        return [self.audio]

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: BadRows) -> tuple[dict[str, pa.Array], State]:
        sounds: list[NDArray[np.int16]] = []
        names, manifests = table[self.audio].to_pylist(), table["__file"].to_pylist()
        for i in rows:
            sound, reason = np.zeros(0, np.int16), "no value"
            if isinstance(names[i], str) and names[i].strip():
                sound, reason = decode(_absolute(names[i].strip(), manifests[i]), self.rate, self.max_seconds)
            elif names[i] is not None and not isinstance(names[i], str):
                reason = f"{names[i]!r} is no name of a file"
            if reason:
                bad.setdefault(i, (self.audio, reason))
            sounds.append(sound)
        lengths = np.array([len(sound) for sound in sounds], np.int32)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        flat = pa.array(np.concatenate([np.zeros(0, np.int16), *sounds]))
        missing = pa.array(lengths == 0)
        return {
            "length": pa.array(lengths, mask=lengths == 0),
            "samples": pa.ListArray.from_arrays(offsets, flat, mask=missing),
        }, {"samples": int(lengths.sum()), "rows": int((lengths > 0).sum())}

    def input_state(self, tally: State) -> State:
        seconds = tally.get("samples", 0) / self.rate
        return {"notes": [f"audio: {tally.get('rows', 0):,} sounds, {seconds:,.0f} s in all, at {self.rate:,} Hz"]}

    def input_spec(self, fitted: State | None) -> dict[str, Any]:
        return {"rate": self.rate}

    def stored_inputs(self, fitted: State) -> dict[str, int]:
        return {"samples": 0}

    @property
    def task_sounds(self) -> int:
        """Number of sounds that are decoded together, so that their memory is bounded."""
        return max(1, min(TASK_SOUNDS, int(TASK_BYTES / (2 * self.rate * self.max_seconds))))

    def repartition(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        return rows.repartition(target_num_rows_per_block=self.task_sounds)

    def raw_rows(self, sources: Sequence[SourceFile]) -> ray.data.Dataset:
        import ray.data

        sounds = [source.uri for source in sources if formats.suffix(source.uri) in SOUNDS]
        if not sounds:
            return super().raw_rows(sources)
        if len(sounds) < len(sources):
            other = next(source.uri for source in sources if source.uri not in sounds)
            raise ValueError(f"dataset.path names sound files and {other}; name either a manifest or sound files")
        for column in (self.audio, *self.common.columns):
            if column not in ("path", "folder"):
                raise formats.missing_column(posixpath.dirname(sounds[0]), column, ["path", "folder"])
        blocks = [sounds[i : i + TASK_SOUNDS] for i in range(0, len(sounds), TASK_SOUNDS)]
        return ray.data.from_items([{"uris": block} for block in blocks], override_num_blocks=len(blocks)).map_batches(
            _sound_rows, batch_size=None, batch_format="pyarrow", num_cpus=formats.TASK_CPUS
        )

    def raw_tables(self, source: str) -> Iterator[pa.Table]:
        files = self.find_files(source)
        sounds = [file.uri for file in files if formats.suffix(file.uri) in SOUNDS]
        for start in range(0, len(sounds), self.task_sounds):
            yield _records_of_files(sounds[start : start + self.task_sounds], self.audio)
        for file in files if not sounds else ():
            for table in formats.read_blocks(file.uri, self.input_columns(), lenient=True):
                for start in range(0, len(table), self.task_sounds):
                    yield table.slice(start, self.task_sounds)

    def _listed_files(self, source: SourceFile) -> list[SourceFile]:
        """An entry for the sound files on this machine that a manifest lists, whose ``mtime`` is a checksum of all."""
        if formats.suffix(source.uri) in SOUNDS:
            return []
        size, checksum = 0, 0
        for table in formats.read_blocks(source.uri, [self.audio], lenient=True):
            names = [name.strip() for name in table[self.audio].to_pylist() if isinstance(name, str)]
            for path in filter(None, (_local_path(_absolute(name, source.uri)) for name in names)):
                count, changed = _stamp(path)
                size += max(0, count)
                checksum = zlib.crc32(f"{path}\0{count}\0{changed}\0".encode(errors="surrogatepass"), checksum)
        return [SourceFile(f"{source.uri} (the files it names)", size, checksum)]


# Names


def _split_options(uri: str) -> tuple[str, str]:
    """The path of a URI, and its options ("?region=..."), which may have slashes; a local path has no options."""
    options = find.OPTIONS.search(uri) if "://" in uri else None
    after = options.group() if options else ""
    return uri.removesuffix(after), after


def _absolute(name: str, manifest: str) -> str:
    """The absolute path or URI of a file that a manifest lists."""
    if "://" in name or posixpath.isabs(name):
        return name
    path, options = _split_options(manifest)
    return posixpath.join(posixpath.dirname(path), name) + options


def _stamp(path: str) -> tuple[int, int]:
    """Size of a local file in bytes, and its time in nanoseconds; -1 where the file does not or cannot exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _local_path(uri: str) -> str | None:
    """The path of a file on this machine; None for files elsewhere."""
    scheme, mark, path = uri.partition("://")
    return uri if not mark else urllib.parse.unquote(path) if scheme == "file" else None


@errors.in_task
def _sound_rows(batch: pa.Table) -> Iterator[pa.Table]:
    for uris in batch["uris"].to_pylist():
        yield _records_of_files(uris, "path")


def _records_of_files(uris: list[str], column: str) -> pa.Table:
    """A record for each sound file."""
    folders = [posixpath.basename(posixpath.dirname(_split_options(uri)[0])) for uri in uris]
    return pa.table(
        {
            column: uris,
            "folder": folders,
            "__file": uris,
            "__row": pa.array([1] * len(uris), pa.int64()),
            "__bad": pa.nulls(len(uris), formats.BAD),
        }
    )
