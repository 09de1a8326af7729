"""Errors raised inside Ray's tasks, which the user should see as plain messages."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import pyarrow as pa

from datasets.pipeline.ray_data_private import LOUD, user_code_error
from datasets.pipeline.storage import Unavailable

P = ParamSpec("P")
T = TypeVar("T")

_silenced: dict[str, tuple[int, int]] = {}  # logger: number of blocks that silence it, its level before
_silencing = threading.Lock()


@contextlib.contextmanager
def silenced(*names: str) -> Iterator[None]:
    """Set loggers to CRITICAL while any thread is in such a block; the last one to leave restores their levels."""
    entered = []
    try:
        with _silencing:
            for name in names:
                logger = logging.getLogger(name)
                count, level = _silenced.get(name, (0, logger.level))
                _silenced[name] = count + 1, level
                entered.append(name)
                logger.setLevel(logging.CRITICAL)
        yield
    finally:
        with _silencing:
            for name in entered:
                count, level = _silenced.pop(name)
                if count > 1:
                    _silenced[name] = count - 1, level
                else:
                    logging.getLogger(name).setLevel(level)


def in_task(function: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
    """Decorate a generator that Ray Data runs, so that `user_errors` finds its ValueErrors and Unavailable."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        try:
            yield from function(*args, **kwargs)
        except (ValueError, Unavailable) as error:
            raise user_code_error(error) from error

    return run


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """ValueErrors and Unavailable, raised inside Ray tasks (see `in_task`), leave the block with only their message.

    Use it around whatever makes a dataset run (`take_all`, `iter_batches`, `write_parquet`, ...). Other errors pass
    unchanged, with their tracebacks.
    """
    try:
        with silenced(*LOUD):
            yield
    except Exception as error:
        found = _user_error(error)
        if found is None:
            raise
        logging.getLogger(__name__).debug("raised in a Ray task", exc_info=error)
        raise (Unavailable if isinstance(found, Unavailable) else ValueError)(str(found)) from None


def _user_error(error: BaseException) -> ValueError | Unavailable | None:
    """The ValueError or Unavailable that caused a Ray error; None if neither did."""
    from ray.exceptions import RayError

    todo, seen = [error], set[int]()
    while todo:
        error = todo.pop()
        if isinstance(error, ValueError | Unavailable) and not isinstance(
            error, RayError | pa.ArrowException | UnicodeError
        ):
            return error
        seen.add(id(error))
        inside = [getattr(error, "cause", None), error.__cause__, *error.args]
        todo += [item for item in inside if isinstance(item, BaseException) and id(item) not in seen]
    return None
