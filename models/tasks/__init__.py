"""Tasks: what is predicted. Each file is a task; its name is the task's name, as for families.

A file's ``TARGETS`` are the targets that the task can learn; it learns the first one that the dataset has: ``label`` (a
class for each row), ``labels`` (any number of classes for each row), ``step_labels`` (a class for each step),
``numbers``, ``target`` (a text), ``tokens`` or ``notes`` (the row itself, which the model continues), ``series``. With
``CAUSAL = True`` in the file, the encoder sees no later steps unless the user chooses otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

from models import folders
from models.sequence import Task


def names() -> list[str]:
    """The known tasks, sorted: the names of this folder's files."""
    return folders.names(__path__)


def module(name: str) -> ModuleType:
    """The file of a task.

    Raises:
        ValueError: no such file; the message lists the known tasks and the nearest one.
    """
    return folders.module(__name__, __path__, name, key="task.kind", kind="tasks")


def build(name: str, spec: Mapping[str, Any], encoder: Mapping[str, Any], **options: Any) -> Task:
    """Make a task.

    Args:
        name: of the task.
        spec: properties of the dataset's rows.
        encoder: ``input_size`` D and ``size`` H of the family, how many units of H are ``backward`` (see ``Family``)
            and whether it is ``causal``; ``steps`` T if it is fixed (else None), ``sequences`` and ``changes_steps`` of
            the front end (see ``Frontend``); ``decoder``, a function (input size, layers) -> a ``Decoder`` of the same
            family that attends to the encoder's output.
        options: of the file's ``build``.
    """
    return cast(Task, module(name).build(spec, encoder, **options))
