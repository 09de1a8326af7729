"""Classes: their order, and their indices in stored rows.

An index is built from the training rows; a name that it does not have makes a row unusable.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa

from datasets.shared.columns import BadRows, Names

MAX_CLASSES = 10_000  # a column with more is probably one of numbers or texts
NO_CLASS = -1  # the class of a step that has none

# Columns that Records.encode_input may return in addition to those that are stored:
STEP = "__step"  # for each stored step the raw step that it begins, or -1
RAW_LENGTH = "__steps"  # the number of raw steps, where it is not ``length``
CUT = "__cut"  # the number of steps that were cut off


def labels_by_step(
    classes: list[list[int] | None], rows: Sequence[int], columns: Mapping[str, pa.Array], name: str, bad: BadRows
) -> list[list[int] | None]:
    """The class of each stored step; NO_CLASS where a stored step begins no raw step.

    Args:
        classes: for each of `rows`, the classes of its raw steps.
        rows: of the raw table.
        columns: of `Records.encode_input`, for the same rows.
        name: of the raw column of classes.
        bad: gets the rows whose number of classes is not that of their steps.
    """
    steps = columns[STEP].to_pylist() if STEP in columns else [None] * len(rows)
    raw = columns[RAW_LENGTH if RAW_LENGTH in columns else "length"].to_pylist()
    out: list[list[int] | None] = []
    for i, of_row, raw_steps, expected in zip(rows, classes, steps, raw, strict=True):
        if of_row is not None and expected is not None and len(of_row) != expected:
            bad.setdefault(i, (name, f"{len(of_row)} classes for {expected} steps"))
        if i in bad or of_row is None:
            out.append(None)
        else:
            out.append(of_row if raw_steps is None else [of_row[step] if step >= 0 else NO_CLASS for step in raw_steps])
    return out


def class_index(
    name: str | None, column: str, index: Mapping[str, Mapping[str, int]], row: int, bad: BadRows
) -> int | None:
    """The index of a row's class; None, with the reason in `bad`, if it has none or one that training rows have not."""
    if name is None:
        bad.setdefault(row, (column, "no value"))
    elif name not in index[column]:
        bad.setdefault(row, (column, f"{name!r} is no class of the training rows"))
    else:
        return index[column][name]
    return None


def class_indices(
    names: Names | None,
    column: str,
    index: Mapping[str, Mapping[str, int]],
    row: int,
    bad: BadRows,
    *,
    missing: int | None = None,
) -> list[int] | None:
    """The indices of a row's classes; null among the names is `missing`, or makes the row unusable if that is None."""
    if names is None:
        bad.setdefault(row, (column, "no value"))
        return None
    indices = [
        missing if name is None and missing is not None else class_index(name, column, index, row, bad)
        for name in names
    ]
    return None if row in bad else [x for x in indices if x is not None]


def class_order(column: str, counts: Mapping[str, int]) -> list[str]:
    """The classes in the order of their names; whole numbers in numeric order.

    Args:
        column: the name of the raw column.
        counts: training rows of each class.

    Raises:
        ValueError: the number of classes is below 2 or above MAX_CLASSES.
    """
    if len(counts) < 2:
        classes = f"one class only, {next(iter(counts))!r}," if counts else "no class"
        raise ValueError(f"column {column!r} has {classes} in the training rows; at least two are needed")
    if len(counts) > MAX_CLASSES:
        raise ValueError(
            f"column {column!r} has {len(counts):,} classes in the training rows, more than "
            f"{MAX_CLASSES:,}; is it a column of numbers? Then name it in dataset.numbers"
        )
    whole = all(re.fullmatch(r"-?[0-9]+", name) for name in counts)
    return sorted(counts, key=(lambda name: (int(name), name)) if whole else None)
