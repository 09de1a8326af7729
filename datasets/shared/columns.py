"""Values of raw columns: names, lists of names, numbers.

Functions return one value per row; a missing value is None, or NaN in arrays. A column of a type that can hold no such
value raises ValueError.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets.reading import formats

BadRows = dict[int, tuple[str, str]]  # row of a table -> the field that makes it unusable, and why
Names = list[str | None]


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists, of one size or of any."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def list_array(flat: NDArray[Any], lengths: NDArray[Any]) -> pa.ListArray:
    """Lists of these lengths, one after the other in `flat`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def unreadable_rows(table: pa.Table) -> BadRows:
    """The rows that could not be parsed (see `formats.read`)."""
    numbers = np.flatnonzero(table["__bad"].is_valid().to_numpy(zero_copy_only=False))
    entries = {int(i): table["__bad"][int(i)].as_py() for i in numbers}
    return {i: (entry["field"], entry["reason"]) for i, entry in entries.items()}


def text_values(table: pa.Table, name: str) -> Names:
    """Names: text without blanks at its ends, or numbers or truth values as text; None where the value is missing."""
    kind = table.schema.field(name).type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise _wrong_type(table, name, "names or numbers")
    return [_name(value) for value in table[name].to_pylist()]


def _name(value: Any) -> str | None:
    if isinstance(value, float):
        if math.isnan(value):  # pandas writes missing numbers as NaN
            return None
        value = int(value) if value.is_integer() else value  # 1.0 in one block may be 1 in another
    return None if value is None else str(value).strip() or None


def list_values(table: pa.Table, name: str) -> list[Names | None]:
    """Lists of names: a list, or a text of names separated by blanks; None where the value is missing."""
    kind = table.schema.field(name).type
    if is_list(kind):
        if pa.types.is_nested(kind.value_type) or pa.types.is_binary(kind.value_type):
            raise _wrong_type(table, name, "lists of names or numbers")
        return [None if value is None else [_name(x) for x in value] for value in table[name].to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if value is None else value.split() for value in table[name].to_pylist()]
    return [None if value is None else [value] for value in text_values(table, name)]


def number_values(table: pa.Table, name: str) -> NDArray[np.float64]:
    """(rows,) float64, NaN where the value is missing or not a number."""
    kind = table.schema.field(name).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        numbers = (formats.number(value) if value else None for value in table[name].to_pylist())
        return np.array([math.nan if number is None else number for number in numbers])
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise _wrong_type(table, name, "numbers")
    values: NDArray[np.float64] = pc.fill_null(table[name].cast(pa.float64(), safe=False), math.nan).to_numpy()
    return values


def _wrong_type(table: pa.Table, name: str, wanted: str) -> ValueError:
    return ValueError(
        f"{table['__file'][0].as_py()}: column {name!r} holds {table.schema.field(name).type}, where "
        f"{wanted} are expected; name another column"
    )
