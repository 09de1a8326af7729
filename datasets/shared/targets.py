"""The targets of records: sums over training rows to fit them, and their stored columns.

The stored columns are ``label`` (a class), ``labels`` (a list of classes), ``step_labels`` (a class for each step),
``numbers`` (a fixed-size list) and ``target`` (the tokens of a text), as far as the options name raw columns for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.shared.columns import BadRows, list_values, number_values, text_values
from datasets.shared.labels import NO_CLASS, class_index, class_indices, class_order, labels_by_step
from datasets.shared.options import RecordOptions
from datasets.shared.sums import State, moments, tally_moments
from datasets.shared.vocabulary import load


def tally_targets(options: RecordOptions, table: pa.Table, rows: Sequence[int]) -> State:
    """Sums over training rows that `sums.merge` can add: rows of each class, and moments of the numbers."""
    tally: State = {"rows": len(rows), "classes": {}}
    for target, column in options.class_columns.items():
        values = [[one] for one in text_values(table, column)] if target == "label" else list_values(table, column)
        names_by_row = [values[i] or () for i in rows]
        # a class that is listed twice in labels counts once
        names = (x for of_row in names_by_row for x in (set(of_row) if target == "labels" else of_row))
        tally["classes"][target] = Counter(x for x in names if x is not None)
    if options.number_columns:
        numbers = _float32_numbers(options, table, rows)
        tally["numbers"] = tally_moments(numbers[np.isfinite(numbers).all(1)])
    return tally


def fit_targets(options: RecordOptions, tally: State) -> State:
    """The fitted state of classes and numbers from the sum of all tallies.

    Returns:
        rows; classes by target, in order; counts of each class; split_values; and ``numbers``: their moments.

    Raises:
        ValueError: a column has too few or too many classes.
    """
    counts = {target: tally.get("classes", {}).get(target, {}) for target in options.class_columns}
    classes = {target: class_order(options.class_columns[target], of_class) for target, of_class in counts.items()}
    fitted: State = {
        "rows": tally["rows"],
        "classes": classes,
        "counts": {target: [of_class[c] for c in classes[target]] for target, of_class in counts.items()},
        "split_values": list(tally.get("split_values", {})),
    }
    if options.number_columns:
        fitted["numbers"] = moments(tally["numbers"])
    return fitted


def encode_targets(
    options: RecordOptions,
    fitted: State,
    table: pa.Table,
    rows: Sequence[int],
    columns: Mapping[str, pa.Array],
    bad: BadRows,
) -> dict[str, pa.Array]:
    """The stored columns of the targets.

    Args:
        options: which targets there are.
        fitted: the fitted state.
        table: raw rows.
        rows: of the table, to encode.
        columns: the encoded input of these rows, see `Records.encode_input`.
        bad: gets the rows whose targets cannot be used.

    Returns:
        Columns with an entry for each of `rows`, null where the row is in `bad`.
    """
    encoded = dict[str, pa.Array]()
    index = {
        column: {name: i for i, name in enumerate(fitted["classes"][target])}
        for target, column in options.class_columns.items()
    }
    if options.label is not None:
        names = text_values(table, options.label)
        encoded["label"] = pa.array([class_index(names[i], options.label, index, i, bad) for i in rows], pa.int32())
    if options.labels is not None:
        lists = list_values(table, options.labels)
        encoded["labels"] = pa.array(
            [class_indices(lists[i], options.labels, index, i, bad) for i in rows], pa.list_(pa.int32())
        )
    if options.step_labels is not None:
        lists = list_values(table, options.step_labels)
        classes = [class_indices(lists[i], options.step_labels, index, i, bad, missing=NO_CLASS) for i in rows]
        encoded["step_labels"] = pa.array(
            labels_by_step(classes, rows, columns, options.step_labels, bad), pa.list_(pa.int32())
        )
    if options.number_columns:
        numbers = _float32_numbers(options, table, rows)
        for i, column in np.argwhere(~np.isfinite(numbers)):
            value = table[options.number_columns[column]][rows[i]].as_py()
            bad.setdefault(rows[i], (options.number_columns[column], f"{value!r} is no finite number"))
        encoded["numbers"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
    if options.target is not None:
        tokens = _target_tokens(fitted["target"]["tokenizer"], table, rows, options.target, bad)
        encoded["target"] = pa.array(tokens, pa.list_(pa.int32()))
    return encoded


def target_texts(options: RecordOptions, table: pa.Table, rows: Sequence[int]) -> list[str]:
    """The texts in the target column of these rows that are not empty."""
    texts = text_values(table, options.target or "")
    return [text for i in rows if (text := texts[i])]


def _target_tokens(tokenizer: str, table: pa.Table, rows: Sequence[int], column: str, bad: BadRows) -> list[list[int]]:
    texts = text_values(table, column)
    encodings = load(tokenizer).encode_batch_fast([texts[i] or "" for i in rows], add_special_tokens=False)
    tokens = [encoding.ids for encoding in encodings]
    for i, of_row in zip(rows, tokens, strict=True):
        if not of_row:
            bad.setdefault(i, (column, "no token in it" if texts[i] else "no value"))
    return tokens


def _float32_numbers(options: RecordOptions, table: pa.Table, rows: Sequence[int]) -> NDArray[np.float32]:
    """(rows, N): the numbers of these rows; not finite where one is missing or too large for float32."""
    numbers = np.stack([number_values(table, name)[rows] for name in options.number_columns], 1)
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)
