"""Rondo's own errors: their messages are for people, and each has the exit code of a command that ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class RondoError(Exception):
    """Base class of the errors whose message says all that a user needs: what went wrong, where, and what to do.

    Attributes:
        exit_code: of a command that ends with this error.
    """

    exit_code = 1


class UserError(RondoError, ValueError):
    """Something that the user gave is wrong: an option, a file, data, or a name."""

    exit_code = 2


class OptionError(UserError):
    """An option is unknown, or its value is not allowed, whatever the other options are."""


class Interrupted(RondoError):
    """Work was stopped by a signal; the message says how to continue it.

    Args:
        exit_code: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, message: str, exit_code: int = 130) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Diverged(RondoError):
    """The loss or a gradient is not a finite number, or the model was never better than one that is not."""


class Unwritable(RondoError):
    """Storage could not be read or written, and may be again later."""


class WorkersLost(RondoError):
    """Workers failed more often than they are replaced."""


class NothingFound(RondoError):
    """No trial of a search, or of a comparison, has a result."""


class Undelivered(RondoError):
    """MLflow did not receive all that was recorded."""


@contextmanager
def user_mistakes() -> Iterator[None]:
    """Turn ValueErrors into UserErrors, around calls of what checks the user's input.

    Checks of options and data, and the ``build`` of a dataset, family or task, raise ValueError for what is wrong with
    their input. Elsewhere a ValueError is a fault of the program.

    >>> with user_mistakes():
    ...     raise ValueError("training.epochs=0 must be at least 1")
    Traceback (most recent call last):
    workflows.errors.UserError: training.epochs=0 must be at least 1
    """
    try:
        yield
    except RondoError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def check_each(items: Iterator[T]) -> Iterator[T]:
    """The items of an iterator that checks the user's input; see ``user_mistakes``."""
    with user_mistakes():
        yield from items
