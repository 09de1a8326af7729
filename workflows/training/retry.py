"""Repeats what failed because storage could not be read or written."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, TypeVar

from datasets.pipeline.storage import mask
from workflows.errors import WorkersLost

T = TypeVar("T")
PAUSE = 2.0  # seconds before the first retry, and as much more before each later one


def retry(function: Callable[[], T], max_failures: int, send_event: Callable[[dict[str, Any]], None]) -> T:
    """Call a function, again up to `max_failures` times after an OSError, as Ray Train would replace a worker.

    Args:
        function: may be called several times.
        max_failures: ``workers.failures``.
        send_event: gets a note about each failure.

    Returns:
        The function's result.

    Raises:
        WorkersLost: storage failed more often. Other errors of the function are raised as they are.
    """
    for failures in itertools.count(1):
        try:
            return function()
        except OSError as error:
            if failures > max_failures:
                raise WorkersLost(
                    f"{mask(str(error))}; it was tried {failures} times (workers.failures={max_failures}). Start again "
                    "once storage is back, a training with --resume"
                ) from error
            send_event({"event": "note", "text": f"{mask(str(error))}; it is tried again in {failures * PAUSE:g} s"})
            time.sleep(failures * PAUSE)
    raise AssertionError  # not reached
