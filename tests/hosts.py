"""Two hosts in one: network namespaces with addresses of their own, and a second that sees no files of the first's."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.faults import ACCESS, wait_until
from tests.heads import BIN

FIRST, SECOND = "10.231.0.1", "10.231.0.2"
# A command of the second host: `folder` is empty there but for folder/shared, and /dev/shm, for objects, is its own.
ALONE = """
mount --bind {folder}/shared /mnt && mount -t tmpfs tmpfs {folder} && mount -t tmpfs tmpfs /dev/shm &&
mkdir {folder}/shared && mount --bind /mnt {folder}/shared && exec "$@"
"""


class Hosts:
    """Two connected hosts, each a node of one Ray cluster with a CPU.

    Attributes:
        folder: of the first host; folder/shared is of both.
        environment: of all commands.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rondo"))  # short: names of sockets have 107 characters
        (self.folder / "shared").mkdir()
        names = f"rondo{os.getpid()}"
        self.names, self.started = (f"{names}a", f"{names}b"), list[subprocess.Popen[bytes]]()
        self.environment = {
            **os.environ,
            **ACCESS,
            "HOME": str(self.folder / "shared"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ADDRESS": f"{FIRST}:6379",
        }

    def connect(self) -> None:
        """Make the hosts and the wire between them.

        Raises:
            OSError: it may not be done here.
        """
        one, other = self.names
        for words in (
            ["netns", "add", one],
            ["netns", "add", other],
            ["link", "add", "wire", "netns", one, "type", "veth", "peer", "name", "wire", "netns", other],
            ["-n", one, "address", "add", f"{FIRST}/24", "dev", "wire"],
            ["-n", other, "address", "add", f"{SECOND}/24", "dev", "wire"],
            *(["-n", name, "link", "set", device, "up"] for name in self.names for device in ("lo", "wire")),
        ):
            self._ip(*words)

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")

    def on_first(self, *words: object) -> list[str]:
        """A command there."""
        return ["ip", "netns", "exec", self.names[0], *map(str, words)]

    def on_second(self, *words: object) -> list[str]:
        """A command there."""
        return [
            "ip",
            "netns",
            "exec",
            self.names[1],
            "unshare",
            "-m",
            "sh",
            "-c",
            ALONE.format(folder=self.folder),
            "sh",
            *map(str, words),
        ]

    def start(self, words: Sequence[str], said: str = "") -> subprocess.Popen[bytes]:
        """Start something that stays; wait until it has said so."""
        log = self.folder / f"log-{len(self.started)}"
        with open(log, "wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file, env=self.environment, start_new_session=True)
        self.started.append(process)
        wait_until(lambda: said in log.read_text() or process.poll() is not None, self.folder)
        assert process.poll() is None, log.read_text()
        return process

    def join(self, host: str) -> None:
        """Start Ray on a host; the first begins the cluster."""
        words: list[object] = [
            BIN / "ray",
            "start",
            "--block",
            "--node-ip-address",
            host,
            "--num-cpus",
            1,
            "--disable-usage-stats",
            "--min-worker-port",
            0,
            "--max-worker-port",
            0,
        ]
        if host == FIRST:
            words += ["--head", "--port", 6379, "--include-dashboard", "false", "--temp-dir", self.folder / "ray"]
            self.start(self.on_first(*words), "To terminate the Ray runtime")
        else:
            self.start(self.on_second(*words, "--address", f"{FIRST}:6379"), "To terminate the Ray runtime")

    def wire(self, state: str) -> None:
        """Set it up or down: down, no packet crosses it, without any notice."""
        self._ip("-n", self.names[0], "link", "set", "wire", state)

    def processes(self, *hosts: str) -> list[psutil.Process]:
        """All that run on these hosts."""
        names = [self.names[host == SECOND] for host in hosts]
        pids = [subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True).stdout for name in names]
        found = []
        for pid in " ".join(pids).split():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(int(pid)))
        return found

    def stop(self) -> None:
        """End all that runs on them, and the hosts."""
        while left := self.processes(FIRST, SECOND):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=5)
        for started in self.started:
            started.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)
