"""Tasks: what is predicted, one a file; the file's name is the task's name, as with families.

``READS`` says which of what a dataset offers a task can learn from, the first that is there: ``label`` (a class a row),
``labels`` (any number of them), ``step_labels`` (a class a step), ``numbers``, ``target`` (a text), ``tokens`` or
``notes`` (the row itself, to go on with), ``series``. A task whose file says ``CAUSAL = True`` gets an encoder that
sees no later steps, where the user leaves that open.
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
        spec: what the dataset says of its rows.
        encoder: ``input_size`` D and ``size`` H of the family, how many units of H are ``backward`` (see ``Family``)
            and whether it is ``causal``; ``steps`` T where it is fixed (else None), ``sequences`` that each row became,
            and ``changes_steps`` (see ``Frontend``); ``decoder``, (input size, layers) -> a ``Decoder`` of the same
            family that attends to its output.
        options: those of the file's own ``build``.
    """
    return cast(Task, module(name).build(spec, encoder, **options))
