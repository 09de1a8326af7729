"""Ctrl-C and SIGTERM: the first ends work after its step, with a checkpoint; a second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Whether a signal has asked to stop, and which."""

    def __init__(self) -> None:
        self.signal = 0

    def __bool__(self) -> bool:
        return self.signal > 0

    def __call__(self) -> bool:
        return self.signal > 0

    @property
    def code(self) -> int:
        """Exit code of the process."""
        return 128 + (self.signal or signal.SIGINT)


@contextmanager
def stop_signals() -> Iterator[StopSignal]:
    """Listen for signals while the block runs; a second one raises KeyboardInterrupt in it.

    Only the main thread receives signals; in another thread the result never changes.
    """
    stop = StopSignal()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop:
            raise KeyboardInterrupt
        stop.signal = number
        with suppress(OSError):
            os.write(2, b"stopping after this step; a second signal stops at once\n")  # print is not safe here

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = [signal.signal(number, on_signal) for number in SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)


def run_interruptibly(
    work: Callable[[], None], stop: StopSignal, request_stop: Callable[[], None], no_worker_alive: Callable[[], bool]
) -> None:
    """Run `work` in a thread, so that this thread receives signals; call `request_stop` at the first one.

    After that, work for which `no_worker_alive` is true is abandoned, as no worker could receive the request.

    Raises:
        Exception: raised by `work`. KeyboardInterrupt: a second signal; then `work` is abandoned.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    requested = False
    while thread.is_alive():
        thread.join(0.1)
        if stop and not requested:
            requested = True
            request_stop()
        if requested and no_worker_alive():
            break
    if raised:
        raise raised[0]
