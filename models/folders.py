"""Folders whose files are choices (families, front ends, tasks): a file's name is the name of its choice."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable
from types import ModuleType


def names(path: Iterable[str]) -> list[str]:
    """The choices of a package with this ``__path__``, sorted."""
    return sorted(found.name for found in pkgutil.iter_modules(path))


def module(package: str, path: Iterable[str], name: str, *, key: str, kind: str) -> ModuleType:
    """The file of a choice.

    Args:
        package: its dotted name.
        path: its ``__path__``.
        name: of the choice.
        key: that the choice was made with, for the message.
        kind: what the choices are called, for the message.

    Raises:
        ValueError: no such file; the message lists the known choices and the nearest one.
    """
    known = names(path)
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{key}={name!r} is not known; {hint}known {kind}: {', '.join(known)}")
    return importlib.import_module(f"{package}.{name}")
