"""JSON that any program can read: Python's own writes NaN and Infinity, which are no JSON.

>>> dumps({"loss": float("nan"), "steps": [1, 2.5]})
'{"loss": null, "steps": [1, 2.5]}'
"""

from __future__ import annotations

import json
import math
from typing import Any


def dumps(value: object, *, indent: int | None = None) -> str:
    """Plain values as JSON; a number that is not finite becomes null."""
    return json.dumps(finite_or_none(value), indent=indent, allow_nan=False)


def finite_or_none(value: Any) -> Any:
    """Plain values with None for each number in them that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite_or_none(v) for k, v in value.items()}
    return [finite_or_none(v) for v in value] if isinstance(value, list | tuple) else value


def none_to_nan(value: Any) -> Any:
    """Numbers in mappings and lists, read from what `dumps` wrote: None stands for one that was not finite."""
    if isinstance(value, dict):
        return {k: none_to_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [none_to_nan(v) for v in value]
    return math.nan if value is None else value
