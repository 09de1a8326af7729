"""Events from workers to the driver, and the request to stop from the driver to the workers."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from workflows.training.job import Event

POLL_AFTER = 0.5  # seconds without an event after which a worker asks whether to stop
HEARTBEAT = 1.0  # seconds between two heartbeats of a worker


class Mailbox:
    """Keeps the workers' events until the driver takes them, and the request to stop; lives in a zero-CPU actor."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.stop = False
        self.last_heartbeat = -math.inf

    def put(self, event: Event) -> bool:
        """Keep an event; whether workers should stop."""
        self.events.append(event)
        return self.stop

    def request_stop(self) -> None:
        self.stop = True

    def stop_requested(self) -> bool:
        return self.stop

    def heartbeat(self) -> None:
        self.last_heartbeat = time.monotonic()

    def seconds_since_heartbeat(self) -> float:
        return time.monotonic() - self.last_heartbeat

    def take(self) -> list[Event]:
        """The events since the last call."""
        events, self.events = self.events, []
        return events


class EventChannel:
    """A worker's and the driver's ends of a mailbox; may be pickled. Only `no_worker_alive` waits for an answer."""

    def __init__(self, mailbox: ActorHandle) -> None:
        self.mailbox = mailbox
        self.replies: list[Any] = []  # references to answers that have not arrived
        self.last_sent = -math.inf
        self.stop = False

    def __call__(self, event: Event) -> None:
        """Send an event."""
        self.replies.append(self.mailbox.put.remote(event))
        self.last_sent = time.monotonic()

    def stop_requested(self) -> bool:
        """Whether the driver has asked to stop, as far as answers have arrived: that to each event says so.

        Where no event was sent for a while, the question itself is sent.
        """
        if not self.replies and time.monotonic() - self.last_sent > POLL_AFTER:
            self.replies.append(self.mailbox.stop_requested.remote())
            self.last_sent = time.monotonic()
        if self.replies:
            arrived, self.replies = ray.wait(self.replies, num_returns=len(self.replies), timeout=0)
            with suppress(RayError):  # the driver has closed the mailbox
                self.stop = self.stop or any(ray.get(arrived))
        return self.stop

    def request_stop(self) -> None:
        """Ask the workers to stop."""
        self.mailbox.request_stop.remote()

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Send heartbeats from a worker while the block runs."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT):
                self.mailbox.heartbeat.remote()

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def no_worker_alive(self) -> bool:
        """Whether no worker is there that could receive the request to stop."""
        try:
            seconds: float = ray.get(self.mailbox.seconds_since_heartbeat.remote(), timeout=10)
        except RayError:
            return False
        return seconds > 10 * HEARTBEAT


@contextmanager
def relay(on_event: Callable[[Event], None]) -> Iterator[EventChannel]:
    """Call `on_event` in this process with each event that workers send into the channel."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may go
    mailbox = ray.remote(Mailbox).options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()

    def watch() -> None:
        while True:
            last = done.is_set()
            try:
                for event in ray.get(mailbox.take.remote(), timeout=10):
                    on_event(event)
            except RayError as error:
                print(f"progress is no longer shown: {error}", file=sys.stderr)
                return
            if last:
                return
            done.wait(0.3)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    abandoned = False
    try:
        yield EventChannel(mailbox)
    except KeyboardInterrupt:  # workers that were left running may still ask whether to stop
        abandoned = True
        raise
    finally:
        done.set()
        if not abandoned:
            thread.join(10)
            ray.kill(mailbox)
