"""A builder's options: its annotated keyword-only arguments, and what they may be."""

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


def filled(builder: Callable[..., Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """All options of `builder`: as `chosen` has them, else its defaults."""
    parameters = inspect.signature(builder).parameters
    return {name: chosen.get(name, parameters[name].default) for name in parameters if name in names(builder)}


def check_share(key: str, value: float) -> None:
    """Raise ValueError unless `value` lies in [0, 1); for dropout and other probabilities."""
    if not 0 <= value < 1:
        raise ValueError(f"{key}={value} is no probability below 1; use a value in [0, 1), 0 for none")


def check_least(key: str, value: int, least: int) -> None:
    """Raise ValueError unless `value` is at least `least`."""
    if value < least:
        raise ValueError(f"{key}={value} is too small; use at least {least}")
