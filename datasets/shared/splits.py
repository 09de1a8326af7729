"""Splits: which raw files, and which of their rows, are in train, validation and test.

A file is in the split under which its path is given. The rows of training files may also be in another split: by a
share that is drawn at random, or by the value of a column.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.reading.find import SourceFile
from datasets.shared.columns import BadRows, text_values, unreadable_rows
from datasets.shared.options import SPLITS, RecordOptions
from models.splitmix64 import mix

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Part, Prepared

SplitFiles = list[tuple[SourceFile, str]]  # raw files in order, each with its split


def files_of_paths(paths: Mapping[str, str], find: Callable[[str], list[SourceFile]]) -> SplitFiles:
    """The files of each split, in the order of the splits.

    Args:
        paths: by split; "" is the split of files whose rows are split later.
        find: returns the files of a path.

    Raises:
        ValueError: a file is in two splits, or `find` raises it.
    """
    files = [(source, split) for split in ("", *SPLITS) if split in paths for source in find(paths[split])]
    split_of: dict[str, str] = {}
    for source, split in files:
        if source.uri in split_of:
            raise ValueError(
                f"dataset.path: {source.uri} is in both {split_of[source.uri]} and {split}; "
                "each file can be in one split only"
            )
        split_of[source.uri] = split
    return files


def rows_in_split(
    options: RecordOptions, files: SplitFiles, split: str, table: pa.Table, *, default: str
) -> NDArray[np.int64]:
    """The rows of a raw table that are in a split, ascending.

    Args:
        options: with the shares, or the column of the split.
        files: all raw files, in order.
        split: one of SPLITS.
        table: rows of these files.
        default: the split of rows without a value in the column of the split.

    Raises:
        ValueError: a value in that column is no split.
    """
    by_uri = {source.uri: (number, SPLITS.index(of_file)) for number, (source, of_file) in enumerate(files)}
    uris = table["__file"].combine_chunks().dictionary_encode()
    number, splits = np.array([by_uri[uri] for uri in uris.dictionary.to_pylist()], np.int64)[uris.indices.to_numpy()].T
    if options.split_column is not None:
        splits = _by_column(options, table, splits, SPLITS.index(default))
    train = splits == 0
    draw = _draws(number, table["__row"].to_numpy())
    low = 0.0
    for name, share in options.split_shares.items():
        splits[train & (draw >= low) & (draw < low + share)] = SPLITS.index(name)
        low += share
    return np.flatnonzero(splits == SPLITS.index(split))


def _by_column(options: RecordOptions, table: pa.Table, splits: NDArray[np.int64], default: int) -> NDArray[np.int64]:
    """`splits` (rows,), numbers in SPLITS, changed by the values of the column of the split; -1 is no split."""
    column = options.split_column or ""
    split_of = {value: SPLITS.index(split) for split, values in options.values_by_split.items() for value in values}
    split_of = split_of or {split: i for i, split in enumerate(SPLITS)}
    for i, value in enumerate(text_values(table, column)):
        if value is None or value in split_of:
            splits[i] = default if value is None else split_of[value]
        elif not options.values_by_split:
            row = f"{table['__file'][i].as_py()}, row {table['__row'][i].as_py()}"
            raise ValueError(
                f"{row}: column {column!r} is {value!r}, which is no split; say by "
                f"dataset.split_values which values mean which, such as {{validation: [{value}]}}"
            )
        elif "train" in options.values_by_split:
            splits[i] = -1
    return splits


def unusable_rows(options: RecordOptions, table: pa.Table) -> BadRows:
    """Rows that could not be parsed, and rows that name no split where each has to."""
    bad = unreadable_rows(table)
    if options.split_column is not None and (not options.values_by_split or "train" in options.values_by_split):
        for i, value in enumerate(text_values(table, options.split_column)):
            if value is None:
                bad.setdefault(i, (options.split_column, "no value"))
    return bad


def part_of(prepared: Prepared, split: str) -> Part:
    """The stored rows of a split; ValueError where there is no such split."""
    if split not in prepared.parts:
        raise no_split(split, prepared.parts)
    return prepared.parts[split]


def no_split(split: str, available: Iterable[str]) -> ValueError:
    """The error for data without a split that is needed."""
    return ValueError(
        f"the data has no {split} split, only {', '.join(available)}; give it a file (dataset.path), or a "
        f"share of the training rows (dataset.split={{{split}: 0.1}})"
    )


def _draws(file: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) a random number in [0, 1) for each row, a function of the number of its file and its number there."""
    return mix((file.astype(np.uint64) << np.uint64(40)) + rows.astype(np.uint64)).astype(np.float64) / 2.0**64
