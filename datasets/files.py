"""Raw files: finding them on any storage, and reading tables out of them block by block.

A path is a local file, a folder, a glob (``*``, ``?``, ``[ab]``, and ``**`` for any depth), or a URI of anything that
pyarrow or fsspec can open (``s3://``, ``gs://``, ``hf://``, ``file://``, ...), with the same globs.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import io
import json
import logging
import os
import posixpath
import re
import threading
import urllib.parse
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv
from pyarrow import fs
from pyarrow import parquet as pq

from datasets.ray_data_private import LOUD, user_code_error
from datasets.storage import Unavailable, reading, watched

if TYPE_CHECKING:
    import ray.data

P = ParamSpec("P")
T = TypeVar("T")

CSV, JSON, LINES, PARQUET = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".txt",), (".parquet", ".pq")
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}  # all but Parquet
TABLES = (*CSV, *JSON, *(text + end for text in CSV + JSON for end in COMPRESSED), *PARQUET)
OPTIONS = re.compile(r"\?\w+=.*$")           # of a URI: s3://bucket/key?region=...; any other ? is a glob's
TASK_CPUS = 0.5             # of a task that reads; a step after it with the same number runs in the same task
BLOCK_BYTES = 4 << 20       # of CSV text parsed at a time
BLOCK_ROWS = 65_536         # of Parquet decoded at a time, at most
BLOCK_MEMORY = 32 << 20     # of Parquet decoded at a time, about
SURROGATE = re.compile("[\ud800-\udfff]")    # in a str: no character
LARGEST = 2.0 ** 1023       # of whole numbers in JSON, as a float
LINE_ROWS = 4096            # lines of text or JSON parsed at a time
# A number as CSV has it, for Python and for Arrow (RE2). Python's float would take 1_000 and the digits of any script,
# too, and Arrow's nan(a).
NUMERAL = r"^[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))$"
BAD = pa.struct([("field", pa.string()), ("reason", pa.string())])      # of column `__bad`


@dataclass(frozen=True, order=True)
class Source:
    """One raw file.

    Attributes:
        uri: absolute local path, or URI.
        size: bytes.
        mtime: modification time in nanoseconds; 0 where the storage keeps none.
    """

    uri: str
    size: int
    mtime: int


def resolve(path: str, *, suffixes: Collection[str] = (), empty: bool = False) -> list[Source]:
    """The files that `path` stands for, sorted by name.

    Args:
        path: local path, folder (searched at any depth), glob or URI. Names that start with "." or "_" are left out of
            folders and globs.
        suffixes: endings (".csv") that a file of a folder must have; () takes all. A file named in full or by
            a glob is taken whatever its ending.
        empty: whether files of 0 bytes are taken.

    Raises:
        ValueError: when nothing is there, no file of a folder has the ending, or a file is empty and may not be.
    """
    if not path:
        raise ValueError("the path of the data is empty; give a file, a folder, a glob or a URI")
    try:
        place = _open(path)
    except Unavailable as error:
        raise ValueError(str(error)) from error             # an address that has never been reached
    info = place.system.get_file_info(place.root)
    if info.type == fs.FileType.File:
        found = [info]
    elif info.type == fs.FileType.Directory:
        found = _in_folder(place, suffixes)
    elif re.search(r"[*?[]", place.root):
        found = _in_glob(place)
    else:
        raise ValueError(f"there is no file or folder {place.uri(place.root)}{_nearest(place)}")
    for item in found:
        if item.size == 0 and not empty:
            raise ValueError(f"{place.uri(item.path)} is empty (0 bytes); remove it or write it again")
    return sorted(Source(place.uri(item.path), int(item.size or 0), int(item.mtime_ns or 0)) for item in found)


def total_bytes(sources: Iterable[Source]) -> int:
    """Size of all the files together."""
    return sum(source.size for source in sources)


def open_stream(uri: str) -> pa.NativeFile:
    """The bytes of a Source's `uri` from the first on, decompressed as its ending says; see `open_file`."""
    place = _open(uri)
    with reading(uri):
        plain = watched(uri, place.system.open_input_stream(place.root, compression=None))
    codec = COMPRESSED.get(posixpath.splitext(place.root.lower())[1])
    return pa.CompressedInputStream(plain, codec) if codec else plain


def open_file(uri: str) -> pa.NativeFile:
    """The bytes of a Source's `uri`, anywhere in it.

    What storage refuses, now or later, is raised as `Unavailable`. Another OSError says that there is no such file or,
    if a parser raises it, that the content is damaged.
    """
    place = _open(uri)
    with reading(uri):
        return watched(uri, place.system.open_input_file(place.root))


def read(sources: Sequence[Source], columns: list[str] | None, *, lenient: bool = False,
         whole: bool = False) -> ray.data.Dataset:
    """Rows of tables as a lazy Ray Data dataset: one task a file, streamed in blocks.

    Args:
        sources: files; the ending says the format: .csv, .tsv, .jsonl, .ndjson, .txt (one column, ``text``, a row for
            each line that is not blank), all of them also compressed, as in .csv.gz; .parquet, .pq.
        columns: columns to read, in this order; None reads all.
        lenient: a row that cannot be parsed is handed on, with nulls and what is wrong with it in `__bad`.
        whole: a text file is one row, instead of one for each line.

    Returns:
        Rows with the columns asked for, `__file` (string, the source's uri) and `__row` (int64); if lenient also
        `__bad`, a struct of field and reason, null in good rows. CSV values are all strings, so that whoever parses
        them can name a bad one; JSON and Parquet values keep their types. `__row` counts as a person does: in CSV the
        header is line 1 and the first row line 2 (a record that spans several lines counts as one), elsewhere the first
        row is 1.

    Raises:
        ValueError: (while the dataset runs, see `user_errors`) for a file that cannot be read or lacks a column.
    """
    import ray.data

    for source in sources:
        _reader(source.uri)                 # an unknown ending is said now, not by a task
    rows = ray.data.from_items([{"uri": source.uri} for source in sources], override_num_blocks=len(sources))
    return rows.map_batches(functools.partial(_read_listed, columns=columns, lenient=lenient, whole=whole),
                            batch_size=None, batch_format="pyarrow", num_cpus=TASK_CPUS)


def read_blocks(uri: str, columns: list[str] | None, *, lenient: bool = False,
                whole: bool = False) -> Iterator[pa.Table]:
    """The blocks of one file, as `read` describes them, in this process.

    Raises:
        ValueError: the file is damaged or lacks a column; if not lenient, also for a row that cannot be parsed.
        Unavailable: storage does not give it now.
    """
    reader = _whole_text if whole else _reader(uri)
    first = pa.scalar(2 if reader is _csv_blocks else 1, pa.int64())
    try:
        for numbers, table, bad in reader(uri, columns, lenient):
            places = pc.add(numbers, first)
            names = pa.array([uri]).take(pa.array(np.zeros(len(table), dtype=np.int64)))
            table = table.append_column("__file", names).append_column("__row", places)
            if lenient:
                why: list[dict[str, str] | None] = [None] * len(table)
                for row, told in bad.items():
                    why[row] = told
                table = table.append_column("__bad", pa.array(why, BAD))
            elif bad:
                row, told = min(bad.items())
                raise ValueError(f"{uri}, row {places[row]}: {_said(told)}; correct or remove it")
            yield table
    except Unavailable:
        raise
    except (OSError, pa.ArrowException, UnicodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"there is no file {uri} any more; bring it back, or name another") from error
        reason = " ".join(str(error).split())
        raise ValueError(f"{uri} cannot be read: {reason}; repair or remove the file") from error


def _said(told: dict[str, str]) -> str:
    return f"column {told['field']!r}: {told['reason']}" if told["field"] else told["reason"]


def number(text: str) -> float | None:
    """The number that a text is, blanks around it left out; None where it is none.

    >>> number(" -1.5e3 "), number("1_000"), number("\u0661")
    (-1500.0, None, None)
    """
    text = text.strip()
    return float(text) if re.fullmatch(NUMERAL, text) else None


def missing_column(uri: str, wanted: str, names: Sequence[str]) -> ValueError:
    """The error for a column that a file lacks: names the file, what it has, and the nearest of those."""
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return ValueError(f"{uri} has no column {wanted!r}{hint} Its columns: {', '.join(names)}")


def in_task(function: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Decorate a generator that Ray Data runs: its ValueErrors, and Unavailable, reach `user_errors` as they are."""
    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            yield from function(*args, **kwargs)
        except (ValueError, Unavailable) as error:
            raise user_code_error(error) from error
    return run


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """ValueErrors and Unavailable, raised inside Ray tasks (see `in_task`), leave the block with only their message.

    Use it around whatever makes a dataset run (`take_all`, `iter_batches`, `write_parquet`, ...). Other errors pass
    unchanged, with their tracebacks.
    """
    try:
        with silenced(*LOUD):
            yield
    except Exception as error:
        found = _user_error(error)
        if found is None:
            raise
        logging.getLogger(__name__).debug("raised in a Ray task", exc_info=error)
        raise (Unavailable if isinstance(found, Unavailable) else ValueError)(str(found)) from None


_silenced: dict[str, tuple[int, int]] = {}           # logger: how many blocks silence it, its level before the first
_silencing = threading.Lock()


@contextlib.contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Loggers say only what is critical while any thread is in such a block; after the last one all is as before."""
    entered = []
    try:
        with _silencing:
            for name in names:
                logger = logging.getLogger(name)
                count, level = _silenced.get(name, (0, logger.level))
                _silenced[name] = count + 1, level
                entered.append(name)
                logger.setLevel(logging.CRITICAL)
        yield
    finally:
        with _silencing:
            for name in entered:
                count, level = _silenced.pop(name)
                if count > 1:
                    _silenced[name] = count - 1, level
                else:
                    logging.getLogger(name).setLevel(level)


def _user_error(error: BaseException) -> ValueError | Unavailable | None:
    """The ValueError or Unavailable at the bottom of a Ray error; None where there is neither."""
    from ray.exceptions import RayError

    todo, seen = [error], set[int]()
    while todo:
        error = todo.pop()
        if isinstance(error, ValueError | Unavailable) and not isinstance(
                error, RayError | pa.ArrowException | UnicodeError):
            return error
        seen.add(id(error))
        inside = [getattr(error, "cause", None), error.__cause__, *error.args]
        todo += [item for item in inside if isinstance(item, BaseException) and id(item) not in seen]
    return None


# Finding

@dataclass(frozen=True)
class _Place:
    """A path in a file system; `before` and `after` a path of that system make it a URI again."""

    system: fs.FileSystem
    root: str
    before: str = ""
    after: str = ""

    def uri(self, path: str) -> str:
        return f"{self.before}{path}{self.after}"


def _open(path: str) -> _Place:
    scheme, mark, rest = path.partition("://")
    if not mark:
        return _Place(fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(path)))
    if scheme == "file":
        return _Place(fs.LocalFileSystem(), urllib.parse.unquote(rest))
    query = OPTIONS.search(path)
    after = query.group() if query else ""
    path = path.removesuffix(after)
    base = re.split(r"/[^/]*[*?[]", path)[0]            # file systems parse no globs
    for spelling in (base, f"fsspec+{base}"):           # pyarrow's own file system where it has one
        try:
            system, root = fs.FileSystem.from_uri(spelling + after)
        except (pa.ArrowInvalid, ImportError, ValueError) as error:
            reason = str(error)
        except OSError as error:
            raise Unavailable(f"{path} cannot be reached: {error}; "
                              f"check the address, the credentials and the network") from error
        else:
            before = base.removesuffix(root) if base.endswith(root) else f"{scheme}://"
            return _Place(system, root + path[len(base):], before, after)
    raise ValueError(f"{path}: no file system is known for {scheme}:// ({reason}); "
                     f"install the fsspec package that serves it, or use a local path")


def _in_folder(place: _Place, suffixes: Collection[str]) -> list[fs.FileInfo]:
    files = _walk(place.system, place.root, recursive=True)
    if not files:
        raise ValueError(f"the folder {place.uri(place.root)} holds no files")
    kept = [item for item in files if not suffixes or item.path.lower().endswith(tuple(suffixes))]
    if not kept:
        names = ", ".join(sorted(item.base_name for item in files)[:5])
        raise ValueError(f"the folder {place.uri(place.root)} holds no {' or '.join(suffixes)} file, only {names}; "
                         f"name a file or a glob to say what to read")
    return kept


def _in_glob(place: _Place) -> list[fs.FileInfo]:
    fixed = posixpath.dirname(re.split(r"[*?[]", place.root)[0]) or "/"
    deep = "**" in place.root or "/" in place.root[len(fixed):].strip("/")
    pattern = _glob_regex(place.root.strip("/"))
    kept = [item for item in _walk(place.system, fixed, recursive=deep) if pattern.fullmatch(item.path.strip("/"))]
    if not kept:
        raise ValueError(f"nothing matches {place.uri(place.root)}{_nearest(place)}")
    return kept


def _walk(system: fs.FileSystem, root: str, *, recursive: bool) -> list[fs.FileInfo]:
    """Files below `root`, hidden ones left out."""
    selector = fs.FileSelector(root, recursive=recursive, allow_not_found=True)
    return [item for item in system.get_file_info(selector) if item.type == fs.FileType.File
            and not re.search(r"/[._]", "/" + item.path.strip("/")[len(root.strip("/")):].lstrip("/"))]


def _glob_regex(glob: str) -> re.Pattern[str]:
    """`**/` any folders, `*` and `?` anything but a slash, `[...]` one of, `[!...]` none of."""
    rules = {"**/": r"(?:.*/)?", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", glob)
    return re.compile("".join(
        rules.get(part) or (part.replace("[!", "[^", 1) if i % 2 else re.escape(part)) for i, part in enumerate(parts)),
        re.DOTALL)


def _nearest(place: _Place) -> str:
    """The end of an error: the nearest name that does exist, or what the deepest existing folder holds."""
    folder, name, names = place.root.rstrip("/"), "", list[str]()
    while not names and folder not in ("", "/"):
        folder, name = posixpath.split(folder)
        with contextlib.suppress(OSError):
            selector = fs.FileSelector(folder, allow_not_found=True)
            names = sorted(item.base_name for item in place.system.get_file_info(selector))
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f"; did you mean {place.uri(posixpath.join(folder, near[0]))}?"
    return f"; {place.uri(folder)} holds {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"


# Reading

Bad = dict[int, dict[str, str]]                         # row of the block -> field and reason
Blocks = Iterator[tuple[pa.Array, pa.Table, Bad]]       # numbers of the rows, from 0; the rows; what is wrong in them


def suffix(uri: str) -> str:
    """The ending that says the format, in small letters, without the ending of a compression: ".csv"."""
    name = OPTIONS.sub("", uri).lower() if "://" in uri else uri.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return posixpath.splitext(name)[1]


def _reader(uri: str) -> Callable[[str, list[str] | None, bool], Blocks]:
    readers = {PARQUET: _parquet_blocks, CSV: _csv_blocks, JSON: _json_blocks, LINES: _line_blocks}
    for endings, reader in readers.items():
        if suffix(uri) in endings:
            return reader
    raise ValueError(f"{uri}: the ending is none of {', '.join(CSV + JSON + LINES + PARQUET)} (all but the last two "
                     f"also with {', '.join(COMPRESSED)}); rename the file or convert it")


@in_task
def _read_listed(batch: pa.Table, columns: list[str] | None, lenient: bool, whole: bool) -> Iterator[pa.Table]:
    for uri in batch["uri"].to_pylist():
        yield from read_blocks(uri, columns, lenient=lenient, whole=whole)


def _parquet_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    with open_file(uri) as source, pq.ParquetFile(source) as file:
        wanted = _checked(uri, file.schema_arrow.names, columns)
        rows = min(BLOCK_ROWS, max(1, BLOCK_MEMORY * file.metadata.num_rows // max(1, _memory(file, wanted))))
        row = 0
        for batch in file.iter_batches(batch_size=rows, columns=wanted):
            bad: Bad = {}
            table = _decoded(pa.Table.from_batches([batch]).select(wanted), bad)
            yield _numbers(row, len(batch)), table, bad
            row += len(batch)


def _memory(file: pq.ParquetFile, wanted: Collection[str]) -> int:
    """Bytes of these columns, decompressed, about: their share is that of the first rows.

    The metadata would tell it, but to ask a damaged file's for one column ends the process (pyarrow 25).
    """
    total: int = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    if not set(file.schema_arrow.names) <= set(wanted):
        for first in file.iter_batches(batch_size=16):
            sizes: dict[str, int] = {name: first.column(name).nbytes for name in first.schema.names}
            return total * sum(sizes[name] for name in wanted) // max(1, sum(sizes.values()))
    return total


def _csv_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    delimiter = "\t" if suffix(uri) == ".tsv" else ","
    with open_stream(uri) as stream:
        names = _header(uri, stream, delimiter)
    wanted = _checked(uri, names, columns)
    broken: dict[int, str] = {}                         # number of a row that has no place in the columns -> why
    long: set[int] = set()                              # of them, those that go over several lines

    def note(row: pa_csv.InvalidRow) -> str:
        values = f"{row.actual_columns} value{'s' * (row.actual_columns != 1)}"
        broken[row.number - 2] = f"{values} where the header names {row.expected_columns}"
        if lines := row.text.count("\n"):
            broken[row.number - 2] += f", over {lines + 1} lines: is there a quote (\") that is never closed?"
            long.add(row.number - 2)
        return "skip"

    with open_stream(uri) as stream:
        row, suspect = 0, None
        for batch in _csv_batches(uri, stream, names, delimiter, note):
            bad: Bad = {}
            numbers = _numbers_without(row, len(batch), broken)
            table = _decoded(pa.Table.from_batches([batch]), bad)
            row = int(numbers[-1].as_py()) + 1 if len(batch) else row
            blank = _blank(table)
            if blank is not None:
                kept = np.flatnonzero(~blank.to_numpy(zero_copy_only=False))
                bad = {i: bad[int(k)] for i, k in enumerate(kept) if int(k) in bad}
                numbers, table = numbers.take(pa.array(kept)), table.take(pa.array(kept))
            if len(table):
                last = table.slice(len(table) - 1).to_pylist()[0]
                suspect = int(numbers[-1].as_py()) + 2 if any("\n" in (x or "") for x in last.values()) else None
            yield numbers, table.select(wanted), {i: why for i, why in bad.items() if why["field"] in wanted}
    if broken and max(broken) >= row:                   # the file's last row
        suspect = max(broken) + 2 if max(broken) in long else None
    if suspect is not None:
        _check_quotes(uri, suspect)
    if broken and wanted:
        nulls = pa.table([pa.nulls(len(broken), pa.string())] * len(wanted), names=wanted)
        yield (pa.array(sorted(broken), pa.int64()), nulls,
               {i: {"field": "", "reason": broken[k]} for i, k in enumerate(sorted(broken))})


def _csv_batches(uri: str, stream: pa.NativeFile, names: list[str], delimiter: str,
                 note: Callable[[pa_csv.InvalidRow], str]) -> Iterator[pa.RecordBatch]:
    """The rows that fit the header, in blocks, all values as bytes; `note` is told of the others beforehand."""
    try:
        yield from pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            # Blank lines are read, as rows of empty strings, to keep the count of lines. Where there are several
            # columns they are left out later; in a single column they are missing values.
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False,
                                              invalid_row_handler=note),
            convert_options=pa_csv.ConvertOptions(column_types={name: pa.binary() for name in names}))
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise ValueError(f"{uri}: no end of a row is found in {BLOCK_BYTES:,} bytes; look for a quote (\") that is "
                         f"never closed, or convert the file to Parquet") from None


def _json_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    wanted: list[str] | None = None                     # once rows have told that the file has the columns
    for numbers, lines in _lines(uri):
        rows, bad = list[dict[str, Any]](), Bad()
        for place, line in enumerate(lines):
            row, reason = _json_row(line)
            rows.append(row)
            if reason:
                bad[place] = {"field": "", "reason": reason}
        told = [row for place, row in enumerate(rows) if place not in bad]
        if told and wanted is None:                     # a key that only some rows lack is those rows' fault
            wanted = _checked(uri, list(dict.fromkeys(key for row in told for key in row)), columns)
        names = wanted or columns
        if names is None:
            reason = bad[0]["reason"] if 0 in bad else "an object without keys"
            raise ValueError(f"{uri}, row {numbers[0] + 1}: {reason}; give one JSON object a line")
        for place, row in enumerate(rows):
            absent = [name for name in names if name not in row]
            if absent and place not in bad:
                bad[place] = {"field": absent[0], "reason": "missing"}
        table = pa.table([_column(name, [row.get(name) for row in rows], bad) for name in names], names=names)
        yield pa.array(numbers, pa.int64()), table, bad


def _json_row(line: bytes) -> tuple[dict[str, Any], str]:
    """(the object of a line, "") or ({}, what is wrong with it)."""
    try:
        row = json.loads(line.rstrip().decode())
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg} (character {error.pos + 1})"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    return (row, "") if isinstance(row, dict) else ({}, f"a JSON object was expected, not {type(row).__name__}")


def _column(name: str, values: list[Any], bad: Bad) -> pa.Array:
    """The values as Arrow; one of another kind than most is null, and bad."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    kinds = [_kind(value) for value in values]
    counts = Counter(kind for kind in kinds if kind[:1] != "!")
    fits = {kind: sum(count for other, count in counts.items() if kind.startswith(other)) for kind in counts}
    usual = max(fits, key=lambda kind: (fits[kind], kind), default="")
    for place, kind in enumerate(kinds):
        if not usual.startswith(kind):
            reason = kind[1:] if kind[0] == "!" else f"{kind.strip()} where other rows have {usual}"
            bad.setdefault(place, {"field": name, "reason": reason})
            values[place] = None
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):          # whole numbers among others, or larger than int64
        return pa.array([_floats(value) for value in values])


def _kind(value: Any) -> str:
    """What a value of JSON is; of a value that fits this kind too, but says less, the beginning: "list of ".

    What cannot be stored is "!" and the reason.
    """
    if isinstance(value, str):
        return "text" if value.isascii() or not SURROGATE.search(value) else "!half a character (a lone surrogate)"
    if isinstance(value, list):
        kinds = {_kind(item) for item in value}
        inner = max(kinds, key=len, default="")
        wrong = next((kind for kind in kinds if kind[:1] == "!"), "")
        mixed = not all(inner.startswith(kind) for kind in kinds)
        return wrong or ("!a list of different things" if mixed else f"list of {inner}")
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "number" if isinstance(value, float) or abs(value) < LARGEST else "!a number that is too large"
    return "" if value is None else "!an object"


def _floats(value: Any) -> Any:
    """The same with all numbers as floats."""
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if type(value) is int else value


def _line_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    wanted = _checked(uri, ["text"], columns)
    for numbers, lines in _lines(uri):
        bad: Bad = {}
        table = _decoded(pa.table({"text": pa.array([line.rstrip(b"\r\n") for line in lines], pa.binary())}), bad)
        yield pa.array(numbers, pa.int64()), table.select(wanted), bad


def _whole_text(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    wanted = _checked(uri, ["text"], columns)
    with open_stream(uri) as stream:
        text = stream.read().removeprefix(b"\xef\xbb\xbf")
    bad: Bad = {}
    table = _decoded(pa.table({"text": pa.array([text], pa.binary())}), bad)
    yield pa.array([0], pa.int64()), table.select(wanted), bad


def _lines(uri: str) -> Iterator[tuple[list[int], list[bytes]]]:
    """Numbers (from 0) and bytes of the lines that are not blank, in blocks."""
    with open_stream(uri) as stream:
        numbers, lines, size = list[int](), list[bytes](), 0
        for number, line in enumerate(io.BufferedReader(stream, BLOCK_BYTES)):
            if number == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                numbers.append(number)
                lines.append(line)
                size += len(line)
            if len(lines) == LINE_ROWS or size > BLOCK_MEMORY:
                yield numbers, lines
                numbers, lines, size = [], [], 0
        if lines:
            yield numbers, lines


def _decoded(table: pa.Table, bad: Bad) -> pa.Table:
    """The table with its text known to be UTF-8 and stored plainly; where it is not UTF-8, it is null: a bad row."""
    for place, field in enumerate(table.schema):
        column, kind = table.column(place), field.type
        if pa.types.is_dictionary(kind) or kind == pa.string_view():
            kind = kind.value_type if pa.types.is_dictionary(kind) else pa.string()
            column = column.cast(kind)
        item = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        if item in (pa.binary(), pa.string(), pa.large_string()):
            column = _utf8(column, field.name, bad)
        if column is not table.column(place):
            table = table.set_column(place, field.name, column)
    return table


def _utf8(column: pa.ChunkedArray, name: str, bad: Bad) -> pa.ChunkedArray:
    """A column of text, or of bytes or lists of text that become that."""
    listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if column.type != pa.binary():
        with contextlib.suppress(pa.ArrowInvalid):
            column.validate(full=True)
            return column
        column = column.cast(pa.list_(pa.binary()) if listed else pa.large_binary())
    if not listed:
        with contextlib.suppress(pa.ArrowInvalid):
            return column.cast(pa.string() if column.type == pa.binary() else pa.large_string())
    given = column.to_pylist()
    values = [_text(value) for value in given]
    for row, value in enumerate(values):
        if value is None and given[row] is not None:
            bad.setdefault(row, {"field": name, "reason": "not UTF-8"})
    return pa.chunked_array([pa.array(values, pa.list_(pa.string()) if listed else pa.string())])


def _text(value: Any) -> Any:
    """The text of bytes, or of a list of them; None where some are not UTF-8."""
    try:
        if isinstance(value, list):
            return [None if item is None else item.decode() for item in value]
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _check_quotes(uri: str, row: int) -> None:
    """Refuse a file whose last value spans lines because a quote is never closed: it swallowed all rows after it."""
    quotes = 0
    with open_stream(uri) as stream:
        while block := stream.read(BLOCK_BYTES):
            quotes += block.count(b'"')
    if quotes % 2:
        raise ValueError(f"{uri}, row {row}: a quote (\") opens here that is never closed, so that all lines after it "
                         f"are read as one value; close or remove it")


def _header(uri: str, stream: pa.NativeFile, delimiter: str) -> list[str]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")   # reads on beyond
    names = next(csv.reader(text, delimiter=delimiter), [])
    for name in names:
        if SURROGATE.search(name):
            raise ValueError(f"{uri}, line 1: the name of a column is not UTF-8 ({name!a}); convert the file")
    if not any(names):
        raise ValueError(f"{uri}, line 1: blank, but names of columns were expected; write them there")
    return names


def _checked(uri: str, names: list[str], columns: list[str] | None) -> list[str]:
    """The columns to read, once it is certain that the file has each of them exactly once."""
    wanted = names if columns is None else columns
    for name in wanted:
        if name not in names:
            raise missing_column(uri, name, names)
        if names.count(name) > 1:
            raise ValueError(f"{uri} has {names.count(name)} columns named {name!r}; rename all but one")
    return wanted


def _blank(table: pa.Table) -> pa.Array | None:
    """True where all columns are empty; None (the common case, found at the first column) where no row is."""
    blank = None
    for column in table.columns if table.num_columns > 1 else ():
        empty = pc.fill_null(pc.equal(column.combine_chunks(), ""), False)
        blank = empty if blank is None else pc.and_(blank, empty)
        if not pc.any(blank).as_py():
            return None
    return blank


def _numbers_without(first: int, count: int, left_out: Collection[int]) -> pa.Array:
    """The `count` numbers from `first` on that are not left out."""
    if not left_out:
        return _numbers(first, count)
    numbers = np.arange(first, first + count + len(left_out), dtype=np.int64)
    return pa.array(numbers[~np.isin(numbers, list(left_out))][:count])


def _numbers(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count, dtype=np.int64))
