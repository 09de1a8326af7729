"""Ray clusters on this machine, in sessions of their own, for tests that submit jobs to them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

BIN = Path(sys.executable).parent


@dataclass
class Finished:
    """A job that ended: exit status of the client, what the client printed, what the job printed."""

    code: int
    said: str
    log: str

    def json(self) -> Any:
        assert self.code == 0, self.said
        return json.loads(self.log.splitlines()[-1])


@dataclass
class Head:
    """A cluster's first node, with token authentication, on loopback.

    Attributes:
        folder: of everything; source: what jobs are submitted from.
        environment: of the head; a client needs more.
        port: of the cluster; dashboard: its port.
        session: of the processes that the head started; more: of nodes that joined.
    """

    folder: Path
    source: Path
    environment: dict[str, str]
    port: int
    dashboard: int
    session: int = 0
    more: list[int] = field(default_factory=list)

    def start(self, *words: Any) -> None:
        """Start it, with more words for `ray start`."""
        agent, client = free_ports(2)
        words = (
            BIN / "ray",
            "start",
            "--head",
            "--node-ip-address",
            "127.0.0.1",
            "--port",
            self.port,
            "--dashboard-host",
            "127.0.0.1",
            "--dashboard-port",
            self.dashboard,
            "--disable-usage-stats",
            "--dashboard-agent-listen-port",
            agent,
            "--ray-client-server-port",
            client,
            "--min-worker-port",
            0,
            "--max-worker-port",
            0,
            *words,
        )
        for _ in range(3):  # Ray waits 30 s for its parts: too little on a busy machine
            with open(self.folder / "start.log", "a") as log:
                process = subprocess.Popen(
                    [str(w) for w in words], stdout=log, stderr=log, env=self.environment, start_new_session=True
                )
                self.session = process.pid
                with suppress(subprocess.TimeoutExpired):
                    if process.wait(timeout=150) == 0:
                        return
            self.stop()
        raise AssertionError((self.folder / "start.log").read_text())

    def submit(self, name: str, *words: str, timeout: float = 200) -> Finished:
        """Submit from the source as README says, and wait for the end."""
        done = self.job(
            "submit",
            "--submission-id",
            name,
            "--working-dir",
            ".",
            "--",
            "python",
            "-m",
            "workflows",
            *words,
            timeout=timeout,
        )
        return Finished(done.returncode, done.stdout, self.log(name))

    def job(self, *words: str, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        """What `ray job` says to these words."""
        environment = {
            **self.environment,
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
        }
        return subprocess.run(
            [str(BIN / "ray"), "job", *words],
            cwd=self.source,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )

    def log(self, name: str) -> str:
        """What a job printed."""
        log = self.folder / f"ray/session_latest/logs/job-driver-{name}.log"
        return log.read_text() if log.exists() else ""

    def ask(self, path: str, token: str | None) -> Any:
        """What the dashboard answers."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"http://127.0.0.1:{self.dashboard}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    @property
    def token(self) -> str:
        return (self.folder / "token").read_text()

    def processes(self) -> set[psutil.Process]:
        """All that the head started and that still runs; jobs' drivers are in sessions of their own below it."""
        found: set[psutil.Process] = set()
        if not self.session:  # it never started; threads of the kernel have session 0
            return found
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) in (self.session, *self.more):
                    found |= {process, *process.children(recursive=True)}
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return {p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE}

    def stop(self) -> None:
        """End what it started and nothing else, which `ray stop` would."""
        end = time.monotonic() + 20
        while left := self.processes():
            assert time.monotonic() < end, left
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)


@contextmanager
def head_in_a_folder(source: Path | None = None) -> Iterator[Head]:
    """A head that is yet to be started, with a folder and a token of its own; at the end nothing of it is left.

    Args:
        source: what jobs are submitted from; None: the folder `source` in the head's folder, which is not made here.
    """
    folder = Path(tempfile.mkdtemp(prefix="rondo-job-", dir="/tmp")).resolve()  # short: sockets' names are limited
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RONDO_", "PYTHON"))}
    environment |= {
        "RAY_AUTH_TOKEN_PATH": str(token),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    head = Head(folder, source or folder / "source", environment, *free_ports(2))
    try:
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
