"""Families: the sequence encoders, one in each file. Shapes: B rows, T time, D input size, H output size.

A family is a file of this folder with a function ``build(input_size, *, option: type = default, ...)``.
The file's name is the family's name; the annotated keyword-only arguments are its options.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, cast

from models import folders
from models.family import Family


def names() -> list[str]:
    """The known families, sorted: the names of this folder's files."""
    return folders.names(__path__)


def module(name: str) -> ModuleType:
    """The file of a family.

    Raises:
        ValueError: no such file; the message lists the known families and the nearest one.
    """
    return folders.module(__name__, __path__, name, key="model.family", kind="families")


def build(name: str, input_size: int, **options: Any) -> Family:
    """Make a family for inputs of `input_size` features; `options` are those of the file's `build`."""
    return cast(Family, module(name).build(input_size, **options))
