"""Tasks: what is predicted, one a file; the file's name is the task's name, as with families."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from models.sequence import Task


def names() -> list[str]:
    """The known tasks, sorted: the names of this folder's files."""
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def module(name: str) -> ModuleType:
    """The file of a task.

    Raises:
        ValueError: no such file; the message lists the known tasks and the nearest one.
    """
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"task.kind={name!r} is not known; {hint}known tasks: {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name}")


def build(name: str, spec: Mapping[str, Any], encoder: Mapping[str, Any], **options: Any) -> Task:
    """Make a task.

    Args:
        name: of the task.
        spec: what the dataset says of its rows.
        encoder: ``size`` H, ``steps`` T where it is fixed (else None), ``sequences`` that each row became.
        options: those of the file's own ``build``.
    """
    return cast(Task, module(name).build(spec, encoder, **options))
