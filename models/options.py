"""A builder's options: its annotated keyword-only arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def only(builder: Callable[..., Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `chosen` that `builder` takes."""
    return {k: v for k, v in chosen.items() if k in names(builder)}


def names(builder: Callable[..., Any]) -> set[str]:
    """The builder's options."""
    parameters = inspect.signature(builder).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
