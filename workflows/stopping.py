"""Ctrl-C and SIGTERM, the notice of a scheduler: work ends after its step, with a checkpoint; asked twice, at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """Work was stopped from outside; the message says how to go on.

    Attributes:
        code: that the process should end with: 130 after Ctrl-C, 143 after SIGTERM.
    """

    def __init__(self, text: str, code: int = 130) -> None:
        super().__init__(text)
        self.code = code


class Stop:
    """Whether one was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal > 0

    def __call__(self) -> bool:
        return self.signal > 0

    @property
    def code(self) -> int:
        """What the process should end with."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def listening() -> Iterator[Stop]:
    """What these signals say, while the block runs; a second one raises KeyboardInterrupt in it.

    Only the main thread hears signals; elsewhere nothing is ever asked.
    """
    stop = Stop()

    def ask(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal = number
        with suppress(OSError):
            os.write(2, b"stopping after this step; the same again stops at once\n")      # print may be in use

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = [signal.signal(number, ask) for number in SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def beside(work: Callable[[], None], stop: Stop, ask: Callable[[], None], deserted: Callable[[], bool]) -> None:
    """Run `work` in a thread, so that this one hears signals; at the first, `ask` is called, once.

    After it, work that is `deserted` - nobody is there who could hear of it - is left behind.

    Raises:
        Exception: what `work` raised. KeyboardInterrupt: a second signal; then `work` is left behind.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    asked = False
    while thread.is_alive():
        thread.join(0.1)
        if stop and not asked:
            asked = True
            ask()
        if asked and deserted():
            break
    if raised:
        raise raised[0]
