"""Reading raw files as tables, block by block: CSV, JSON Lines, Parquet, and text.

A reader yields blocks: the numbers of the rows (from 0), a table of the rows, and which rows cannot be used and why. A
row that cannot be used has nulls in its place, so that one bad record does not end the reading of a file.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import functools
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as pa_csv
from pyarrow import parquet as pq

from datasets.pipeline.storage import Unavailable, reading, watched
from datasets.reading.errors import in_task
from datasets.reading.find import OPTIONS, SourceFile, open_location

if TYPE_CHECKING:
    import ray.data


CSV, JSON, LINES, PARQUET = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".txt",), (".parquet", ".pq")
COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4", ".br": "brotli"}  # of all but Parquet
TABLES = (*CSV, *JSON, *(text + end for text in CSV + JSON for end in COMPRESSED), *PARQUET)
TASK_CPUS = 0.5  # of a task that reads; Ray Data runs the next step in the same task if it has the same number
BLOCK_BYTES = 4 << 20  # of CSV text parsed at a time
BLOCK_ROWS = 65_536  # maximum of Parquet rows decoded at a time
BLOCK_MEMORY = 32 << 20  # approximate bytes of Parquet decoded at a time
SURROGATE = re.compile("[\ud800-\udfff]")  # half a character in a str, which UTF-8 cannot store
LARGEST = 2.0**1023  # bound of whole numbers in JSON
LINE_ROWS = 4096  # lines of text or JSON parsed at a time
# A number as CSV has it, for Python and for Arrow (RE2): Python's float also reads 1_000 and the digits of any script,
# and Arrow reads nan(a).
NUMERAL = r"^[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:nan|inf|infinity))$"
BAD = pa.struct([("field", pa.string()), ("reason", pa.string())])  # type of column `__bad`

Bad = dict[int, dict[str, str]]  # row of the block -> field and reason
Blocks = Iterator[tuple[pa.Array, pa.Table, Bad]]  # numbers of the rows, from 0; the rows; those that cannot be used


def open_stream(uri: str) -> pa.NativeFile:
    """Open the file at the `uri` of a SourceFile for reading in order, decompressed by its ending; see `open_file`."""
    location = open_location(uri)
    with reading(uri):
        plain = watched(uri, location.system.open_input_stream(location.root, compression=None))
    codec = COMPRESSED.get(posixpath.splitext(location.root.lower())[1])
    return pa.CompressedInputStream(plain, codec) if codec else plain


def open_file(uri: str) -> pa.NativeFile:
    """Open the file at the `uri` of a SourceFile for reading at any position.

    Failures of storage, now and while the file is read, are raised as `Unavailable`. Another OSError means that there
    is no such file or, if a parser raises it, that the content is damaged.
    """
    location = open_location(uri)
    with reading(uri):
        return watched(uri, location.system.open_input_file(location.root))


def read(
    sources: Sequence[SourceFile], columns: list[str] | None, *, lenient: bool = False, whole: bool = False
) -> ray.data.Dataset:
    """Rows of tables as a lazy Ray Data dataset: one task per file, streamed in blocks.

    Args:
        sources: files; the ending gives the format: .csv, .tsv, .jsonl, .ndjson, .txt (one column, ``text``, a row for
            each line that is not blank), all of them also compressed, as in .csv.gz; .parquet, .pq.
        columns: columns to read, in this order; None reads all.
        lenient: a row that cannot be parsed is kept, with nulls, and `__bad` gives the reason.
        whole: a text file is one row, instead of one for each line.

    Returns:
        Rows with the requested columns, `__file` (string, the source's uri) and `__row` (int64); if lenient also
        `__bad`, a struct of field and reason, null in good rows. CSV values are all strings, so that an error message
        can quote a bad one; JSON and Parquet values keep their types. `__row` is the number that an editor shows: in
        CSV the header is line 1 and the first row line 2 (a record that spans several lines counts as one), elsewhere
        the first row is 1.

    Raises:
        ValueError: (while the dataset runs, see `user_errors`) a file cannot be read or has no such column.
    """
    import ray.data

    for source in sources:
        _reader(source.uri)  # raises for an unknown ending now, not in a task
    rows = ray.data.from_items([{"uri": source.uri} for source in sources], override_num_blocks=len(sources))
    return rows.map_batches(
        functools.partial(_read_files, columns=columns, lenient=lenient, whole=whole),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=TASK_CPUS,
    )


def read_blocks(
    uri: str, columns: list[str] | None, *, lenient: bool = False, whole: bool = False
) -> Iterator[pa.Table]:
    """The blocks of one file, as `read` describes them, in this process.

    Raises:
        ValueError: the file is damaged or has no such column; if not lenient, also for a row that cannot be parsed.
        Unavailable: storage cannot be read now.
    """
    reader = _whole_text if whole else _reader(uri)
    first = pa.scalar(2 if reader is _csv_blocks else 1, pa.int64())
    try:
        for numbers, table, bad in reader(uri, columns, lenient):
            row_numbers = pc.add(numbers, first)
            names = pa.array([uri]).take(pa.array(np.zeros(len(table), dtype=np.int64)))
            table = table.append_column("__file", names).append_column("__row", row_numbers)
            if lenient:
                reasons: list[dict[str, str] | None] = [None] * len(table)
                for row, reason in bad.items():
                    reasons[row] = reason
                table = table.append_column("__bad", pa.array(reasons, BAD))
            elif bad:
                row, reason = min(bad.items())
                raise ValueError(f"{uri}, row {row_numbers[row]}: {_describe(reason)}; correct or remove it")
            yield table
    except Unavailable:
        raise
    except (OSError, pa.ArrowException, UnicodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"there is no file {uri} any more; restore it, or name another") from error
        message = " ".join(str(error).split())
        raise ValueError(f"{uri} cannot be read: {message}; repair or remove the file") from error


def _describe(reason: dict[str, str]) -> str:
    return f"column {reason['field']!r}: {reason['reason']}" if reason["field"] else reason["reason"]


def number(text: str) -> float | None:
    """The number in a text, without the blanks around it; None if it is not a number.

    >>> number(" -1.5e3 "), number("1_000"), number("\u0661")
    (-1500.0, None, None)
    """
    text = text.strip()
    return float(text) if re.fullmatch(NUMERAL, text) else None


def missing_column(uri: str, wanted: str, names: Sequence[str]) -> ValueError:
    """The error for a column that a file does not have; it lists the file's columns and the most similar one."""
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f", did you mean {near[0]!r}?" if near else "."
    return ValueError(f"{uri} has no column {wanted!r}{hint} Its columns: {', '.join(names)}")


def suffix(uri: str) -> str:
    """The ending that gives the format, in lower case, without the ending of a compression: ".csv"."""
    name = OPTIONS.sub("", uri).lower() if "://" in uri else uri.lower()
    for ending in COMPRESSED:
        name = name.removesuffix(ending)
    return posixpath.splitext(name)[1]


def _reader(uri: str) -> Callable[[str, list[str] | None, bool], Blocks]:
    readers = {PARQUET: _parquet_blocks, CSV: _csv_blocks, JSON: _json_blocks, LINES: _line_blocks}
    for endings, reader in readers.items():
        if suffix(uri) in endings:
            return reader
    raise ValueError(
        f"{uri}: the ending is none of {', '.join(CSV + JSON + LINES + PARQUET)} (all but the last two "
        f"also with {', '.join(COMPRESSED)}); rename the file or convert it"
    )


@in_task
def _read_files(batch: pa.Table, columns: list[str] | None, lenient: bool, whole: bool) -> Iterator[pa.Table]:
    for uri in batch["uri"].to_pylist():
        yield from read_blocks(uri, columns, lenient=lenient, whole=whole)


# Parquet


def _parquet_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    with open_file(uri) as source, pq.ParquetFile(source) as file:
        wanted = _checked_columns(uri, file.schema_arrow.names, columns)
        rows = min(BLOCK_ROWS, max(1, BLOCK_MEMORY * file.metadata.num_rows // max(1, _memory(file, wanted))))
        row = 0
        for batch in file.iter_batches(batch_size=rows, columns=wanted):
            bad: Bad = {}
            table = _decoded(pa.Table.from_batches([batch]).select(wanted), bad)
            yield _numbers(row, len(batch)), table, bad
            row += len(batch)


def _memory(file: pq.ParquetFile, wanted: Collection[str]) -> int:
    """Approximate decompressed bytes of these columns, by their share in the first rows.

    The metadata has the size of each column, but reading it from a damaged file ends the process (pyarrow 25).
    """
    total: int = sum(file.metadata.row_group(number).total_byte_size for number in range(file.metadata.num_row_groups))
    if not set(file.schema_arrow.names) <= set(wanted):
        for first in file.iter_batches(batch_size=16):
            sizes: dict[str, int] = {name: first.column(name).nbytes for name in first.schema.names}
            return total * sum(sizes[name] for name in wanted) // max(1, sum(sizes.values()))
    return total


# CSV


def _csv_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    delimiter = "\t" if suffix(uri) == ".tsv" else ","
    with open_stream(uri) as stream:
        names = _header(uri, stream, delimiter)
    wanted = _checked_columns(uri, names, columns)
    broken: dict[int, str] = {}  # number of a row with too many or too few values -> reason
    long: set[int] = set()  # of them, those that span several lines

    def note(row: pa_csv.InvalidRow) -> str:
        values = f"{row.actual_columns} value{'s' * (row.actual_columns != 1)}"
        broken[row.number - 2] = f"{values} where the header names {row.expected_columns}"
        if lines := row.text.count("\n"):
            broken[row.number - 2] += f', over {lines + 1} lines: is there a quote (") that is never closed?'
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
            yield numbers, table.select(wanted), {i: reason for i, reason in bad.items() if reason["field"] in wanted}
    if broken and max(broken) >= row:  # the file's last row
        suspect = max(broken) + 2 if max(broken) in long else None
    if suspect is not None:
        _check_quotes(uri, suspect)
    if broken and wanted:
        nulls = pa.table([pa.nulls(len(broken), pa.string())] * len(wanted), names=wanted)
        yield (
            pa.array(sorted(broken), pa.int64()),
            nulls,
            {i: {"field": "", "reason": broken[k]} for i, k in enumerate(sorted(broken))},
        )


def _csv_batches(
    uri: str, stream: pa.NativeFile, names: list[str], delimiter: str, note: Callable[[pa_csv.InvalidRow], str]
) -> Iterator[pa.RecordBatch]:
    """The rows that fit the header, in blocks, all values as bytes; `note` is called with each of the others first."""
    try:
        yield from pa_csv.open_csv(
            stream,
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            # Blank lines are read, as rows of empty strings, to keep the count of lines. In tables of several columns
            # they are removed later; in a single column they are missing values.
            parse_options=pa_csv.ParseOptions(
                delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=False, invalid_row_handler=note
            ),
            convert_options=pa_csv.ConvertOptions(column_types={name: pa.binary() for name in names}),
        )
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):
            raise
        raise ValueError(
            f'{uri}: no end of a row is found in {BLOCK_BYTES:,} bytes; look for a quote (") that is '
            f"never closed, or convert the file to Parquet"
        ) from None


# JSON Lines


def _json_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    wanted: list[str] | None = None  # known once a block has shown that the file has the columns
    for numbers, lines in _lines(uri):
        rows, bad = list[dict[str, Any]](), Bad()
        for i, line in enumerate(lines):
            row, reason = _json_row(line)
            rows.append(row)
            if reason:
                bad[i] = {"field": "", "reason": reason}
        parsed = [row for i, row in enumerate(rows) if i not in bad]
        if parsed and wanted is None:  # a key that only some rows lack makes those rows bad, not the file
            wanted = _checked_columns(uri, list(dict.fromkeys(key for row in parsed for key in row)), columns)
        names = wanted or columns
        if names is None:
            reason = bad[0]["reason"] if 0 in bad else "an object without keys"
            raise ValueError(f"{uri}, row {numbers[0] + 1}: {reason}; give one JSON object a line")
        for i, row in enumerate(rows):
            absent = [name for name in names if name not in row]
            if absent and i not in bad:
                bad[i] = {"field": absent[0], "reason": "missing"}
        table = pa.table([_json_column(name, [row.get(name) for row in rows], bad) for name in names], names=names)
        yield pa.array(numbers, pa.int64()), table, bad


def _json_row(line: bytes) -> tuple[dict[str, Any], str]:
    """(the object of a line, "") or ({}, the reason why it cannot be used)."""
    try:
        row = json.loads(line.rstrip().decode())
    except UnicodeDecodeError:
        return {}, "not UTF-8"
    except json.JSONDecodeError as error:
        return {}, f"not JSON: {error.msg} (character {error.pos + 1})"
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    return (row, "") if isinstance(row, dict) else ({}, f"a JSON object was expected, not {type(row).__name__}")


def _json_column(name: str, values: list[Any], bad: Bad) -> pa.Array:
    """The values as Arrow; a value of another kind than the most common one becomes null, and its row bad."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError):
        pass
    kinds = [_kind(value) for value in values]
    counts = Counter(kind for kind in kinds if kind[:1] != "!")
    fits = {kind: sum(count for other, count in counts.items() if kind.startswith(other)) for kind in counts}
    usual = max(fits, key=lambda kind: (fits[kind], kind), default="")
    for i, kind in enumerate(kinds):
        if not usual.startswith(kind):
            reason = kind[1:] if kind[0] == "!" else f"{kind.strip()} where other rows have {usual}"
            bad.setdefault(i, {"field": name, "reason": reason})
            values[i] = None
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):  # whole numbers mixed with others, or larger than int64
        return pa.array([_floats(value) for value in values])


def _kind(value: Any) -> str:
    """The kind of a JSON value in words.

    A value that fits several kinds has their common beginning: an empty list is "list of ". The kind of a value that
    cannot be stored is "!" and the reason.
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
    """The same value with all its numbers as floats."""
    if isinstance(value, list):
        return [_floats(item) for item in value]
    return float(value) if type(value) is int else value


# Text


def _line_blocks(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    wanted = _checked_columns(uri, ["text"], columns)
    for numbers, lines in _lines(uri):
        bad: Bad = {}
        table = _decoded(pa.table({"text": pa.array([line.rstrip(b"\r\n") for line in lines], pa.binary())}), bad)
        yield pa.array(numbers, pa.int64()), table.select(wanted), bad


def _whole_text(uri: str, columns: list[str] | None, lenient: bool) -> Blocks:
    wanted = _checked_columns(uri, ["text"], columns)
    with open_stream(uri) as stream:
        text = b"".join(iter(lambda: stream.read(BLOCK_BYTES), b"")).removeprefix(b"\xef\xbb\xbf")
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


# UTF-8


def _decoded(table: pa.Table, bad: Bad) -> pa.Table:
    """The table with bytes and dictionaries as plain text; text that is not UTF-8 becomes null, and its row bad."""
    for number, field in enumerate(table.schema):
        column, kind = table.column(number), field.type
        if pa.types.is_dictionary(kind) or kind == pa.string_view():
            kind = kind.value_type if pa.types.is_dictionary(kind) else pa.string()
            column = column.cast(kind)
        item = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
        if item in (pa.binary(), pa.string(), pa.large_string()):
            column = _utf8(column, field.name, bad)
        if column is not table.column(number):
            table = table.set_column(number, field.name, column)
    return table


def _utf8(column: pa.ChunkedArray, name: str, bad: Bad) -> pa.ChunkedArray:
    """Text, bytes or lists of these, as text; values that are not UTF-8 become null, and their rows bad."""
    has_lists = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
    if column.type != pa.binary():
        with contextlib.suppress(pa.ArrowInvalid):
            column.validate(full=True)
            return column
        column = column.cast(pa.list_(pa.binary()) if has_lists else pa.large_binary())
    if not has_lists:
        with contextlib.suppress(pa.ArrowInvalid):
            return column.cast(pa.string() if column.type == pa.binary() else pa.large_string())
    given = column.to_pylist()
    values = [clean_text(value) for value in given]
    for row, value in enumerate(values):
        if value is None and given[row] is not None:
            bad.setdefault(row, {"field": name, "reason": "not UTF-8"})
    return pa.chunked_array([pa.array(values, pa.list_(pa.string()) if has_lists else pa.string())])


def clean_text(value: Any) -> Any:
    """The text of bytes, or of a list of bytes; None if any of it is not UTF-8."""
    try:
        if isinstance(value, list):
            return [None if item is None else item.decode() for item in value]
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _check_quotes(uri: str, row: int) -> None:
    """Raise for a file whose last value spans lines because a quote is never closed: it contains all later rows."""
    quotes = 0
    with open_stream(uri) as stream:
        while block := stream.read(BLOCK_BYTES):
            quotes += block.count(b'"')
    if quotes % 2:
        raise ValueError(
            f'{uri}, row {row}: a quote (") opens here that is never closed, so that all lines after it '
            f"are read as one value; close or remove it"
        )


def _header(uri: str, stream: pa.NativeFile, delimiter: str) -> list[str]:
    text = io.TextIOWrapper(
        stream, encoding="utf-8-sig", errors="surrogateescape", newline=""
    )  # reads beyond the header
    names = next(csv.reader(text, delimiter=delimiter), [])
    for name in names:
        if SURROGATE.search(name):
            raise ValueError(f"{uri}, line 1: the name of a column is not UTF-8 ({name!a}); convert the file")
    if not any(names):
        raise ValueError(f"{uri}, line 1: blank, but names of columns were expected; write them there")
    return names


# Columns and rows


def _checked_columns(uri: str, names: list[str], columns: list[str] | None) -> list[str]:
    """The columns to read, all of `names` by default.

    Raises:
        ValueError: the file has not exactly one column of such a name.
    """
    wanted = names if columns is None else columns
    for name in wanted:
        if name not in names:
            raise missing_column(uri, name, names)
        if names.count(name) > 1:
            raise ValueError(f"{uri} has {names.count(name)} columns named {name!r}; rename all but one")
    return wanted


def _blank(table: pa.Table) -> pa.Array | None:
    """(rows,) whether all columns are empty; None, which the first column shows mostly, if no row is blank."""
    blank = None
    for column in table.columns if table.num_columns > 1 else ():
        empty = pc.fill_null(pc.equal(column.combine_chunks(), ""), False)
        blank = empty if blank is None else pc.and_(blank, empty)
        if not pc.any(blank).as_py():
            return None
    return blank


def _numbers_without(first: int, count: int, excluded: Collection[int]) -> pa.Array:
    """The first `count` numbers from `first` on that are not excluded."""
    if not excluded:
        return _numbers(first, count)
    numbers = np.arange(first, first + count + len(excluded), dtype=np.int64)
    return pa.array(numbers[~np.isin(numbers, list(excluded))][:count])


def _numbers(first: int, count: int) -> pa.Array:
    return pa.array(np.arange(first, first + count, dtype=np.int64))
