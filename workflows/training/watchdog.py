"""Ends a process in which training hangs."""

from __future__ import annotations

import faulthandler
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

from workflows.training.job import Event


class Watchdog:
    """Ends this process if it is not reset for `seconds`, so that another one replaces it; 0 never ends it.

    Shortly before, `send_event` gets a note. At the end the stacks of all threads go to stderr, which is the worker's
    log. The timer is that of faulthandler, which works while the interpreter is blocked.
    """

    def __init__(self, seconds: float, send_event: Callable[[Event], None]) -> None:
        self.seconds, self.send_event = seconds, send_event
        self.last = self.set = -math.inf  # times of the last reset, and of setting the timer
        self.warning: threading.Thread | None = None

    def reset(self) -> None:
        """Start the time anew. Setting a timer takes 0.1 ms, so it is set at most twenty times in `seconds`."""
        if not self.seconds:
            return
        self.last = time.monotonic()
        if self.last - self.set > self.seconds / 20:
            self.set = self.last
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=sys.__stderr__ or sys.stderr)
        if self.warning is None or not self.warning.is_alive():
            self.warning = threading.Thread(target=self._warn, daemon=True)
            self.warning.start()

    def pause(self) -> None:
        """Stop the timer until the next reset."""
        if self.seconds:
            faulthandler.cancel_dump_traceback_later()
            self.last, self.set = math.inf, -math.inf

    def _warn(self) -> None:
        warned = -math.inf
        while (last := self.last) < math.inf:  # when paused, this thread ends
            time.sleep(self.seconds / 20)
            if warned != last == self.last and time.monotonic() - last > 0.8 * self.seconds:
                warned = last
                self.send_event(
                    {
                        "event": "note",
                        "text": f"a worker (process {os.getpid()} on {socket.gethostname()}) has "
                        f"made no progress for {0.8 * self.seconds:g} s; at {self.seconds:g} s it is ended "
                        "and replaced (workers.timeout)",
                    }
                )
