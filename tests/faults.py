"""Commands in processes of their own, for tests that watch and kill them, and faults at moments that a seed chooses."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

T = TypeVar("T")
WORKER = "RayTrainWorker"
LAUNCHED: list[subprocess.Popen[str]] = []


def alone() -> dict[str, str]:
    """The environment, without the address of a Ray."""
    return {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")}


def launch(folder: Path, words: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Start a command, which by itself knows no Ray but its own; what it says goes to `folder`/stderr."""
    environment = alone() if environment is None else environment
    with open(folder / "stderr", "a") as errors:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
    LAUNCHED.append(process)
    return process


def kill_launched() -> None:
    """End what a test has launched and left, as one that fails does."""
    while LAUNCHED:
        LAUNCHED.pop().kill()  # nothing happens to one that has ended


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[Callable[[], None]]:
    """The file's disk fails (EIO) in this block, or until what it yields is called; its content is kept."""
    if not Path("/proc/self/mem").exists():
        pytest.skip("a file that cannot be read is one of Linux")
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    path.symlink_to("/proc/self/mem")  # can be opened, and nothing can be read at its beginning

    def mend() -> None:
        if aside.exists():
            aside.replace(path)

    try:
        yield mend
    finally:
        mend()


def finish(process: subprocess.Popen[str], folder: Path, seconds: float = 400) -> Any:
    """What the command printed last, as JSON, once it has ended well."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said(folder)
    return json.loads(out.splitlines()[-1])


def wait_until(what: Callable[[], T], folder: Path, seconds: float = 400) -> T:
    """The first answer that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"it never came: {said(folder)}")


def said(folder: Path) -> str:
    """The end of what was said."""
    return "".join(file.read_text()[-3000:] for file in (folder / "stderr", folder / "log") if file.exists())


def below(driver: subprocess.Popen[str], name: str) -> list[psutil.Process]:
    """Processes that a driver started whose command has `name` in it."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it may be gone
            if process.is_running() and name in " ".join(process.cmdline()):
                found.append(process)
    return found


class Run:
    """A training by tests/lineage.py: watched, hurt, and resumed when its driver is gone.

    Attributes:
        folder: of the log of steps, and of what it said.
        storage: of the run.
        process: the driver.
        restarts: seconds between each fault and the first step of the attempt that followed it.
    """

    def __init__(self, folder: Path, storage: Path, overrides: Sequence[str]) -> None:
        self.folder, self.storage, self.overrides = folder, storage, [*overrides, f"storage={storage}"]
        self.log, self.restarts = folder / "steps", 0.0
        self.log.touch()
        self.launch()

    def launch(self, *more: str) -> None:
        words = [sys.executable, "-m", "tests.lineage", str(self.log), *more, *self.overrides]
        self.process = launch(self.folder, words, {**alone(), "RONDO_TEST": str(self.folder)})

    def finish(self, seconds: float) -> Any:
        return finish(self.process, self.folder, seconds)

    def end(self) -> list[int]:
        """Kill what is left of it; which processes those were."""
        killed = []
        while left := self.processes():
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            killed += [process.pid for process in left]
            psutil.wait_procs(left, timeout=5)
        return killed

    def step(self) -> int:
        """The last that was trained."""
        with open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - 10_000))
            entries = [json.loads(line) for line in file.read().split(b"\n")[1:-1]]
        return next((one["step"] for one in reversed(entries) if "step" in one), 0)

    def workers(self) -> list[psutil.Process]:
        return below(self.process, WORKER)

    def processes(self) -> list[psutil.Process]:
        """All that it started and that still run, whoever their parents are now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("RONDO_TEST") == str(self.folder) and process.pid != os.getpid():
                    found.append(process)
        return found

    def newest(self) -> Path:
        """Of the checkpoints that are complete."""
        return max(self.storage.glob("*/checkpoints/step-*/manifest.json")).parent

    def recover(self, size: int, *, resume: bool) -> None:
        """Wait until an attempt that began after the log had `size` bytes has taken a step."""
        if resume:
            self.process.communicate(timeout=120)
            self.launch("--resume")

        def goes_on() -> bool:
            with open(self.log, "rb") as file:
                file.seek(size)
                entries = [json.loads(line) for line in file.read().splitlines() if line.endswith(b"}")]
            began = [number for number, one in enumerate(entries) if "begins" in one]
            return bool(began) and "step" in entries[-1]

        wait_until(lambda: goes_on() or self.process.poll() is not None, self.folder)
        assert goes_on(), f"it ended with {self.process.returncode}: {said(self.folder)}"


class Injector:
    """Faults of a run, at steps that a seed chooses.

    Args:
        seed: of the choice; run: to be hurt; faults: names of methods of this class, all of which are caused.
        steps: of the whole run.
    """

    def __init__(self, seed: int, run: Run, faults: Sequence[str], steps: int) -> None:
        self.random, self.run = random.Random(seed), run
        moments = sorted(self.random.randrange(steps // 20, steps * 19 // 20) for _ in faults)
        self.plan = list(zip(moments, self.random.sample(faults, len(faults)), strict=True))

    def hurt(self) -> None:
        """Cause all of them, each once the run has recovered from the one before; the run is not waited for."""
        for step, fault in self.plan:
            wait_until(lambda at=step: self.run.step() >= at, self.run.folder)  # type: ignore[misc]
            begin = time.monotonic()
            resume = getattr(self, fault)()
            if resume is not None:
                self.run.recover(self.run.log.stat().st_size, resume=resume)
                self.run.restarts += time.monotonic() - begin

    # Each returns whether the run has to be resumed by hand; None: it has to continue as if nothing had happened.

    def worker_killed(self) -> bool:
        self.random.choice(self.run.workers()).kill()
        return False

    def worker_killed_again(self) -> bool:
        """And then one of those that replace them, while they start or meet."""
        before = {p.pid for p in self.run.workers()}
        self.worker_killed()
        wait_until(lambda: any(p.pid not in before for p in self.run.workers()), self.run.folder)
        time.sleep(self.random.uniform(0, 5))
        return self.worker_killed()

    def worker_hangs(self) -> bool:
        self.random.choice(self.run.workers()).suspend()
        return False

    def driver_killed(self) -> bool:
        self.run.process.kill()
        return True

    def driver_told(self) -> bool:
        number = self.random.choice([signal.SIGTERM, signal.SIGINT])
        self.run.process.send_signal(number)
        self.run.process.communicate(timeout=120)
        assert self.run.process.returncode == 128 + number, said(self.run.folder)
        return True

    def raylet_killed(self) -> bool:
        below(self.run.process, "raylet/raylet")[0].kill()
        return True

    def record_killed(self) -> None:
        """The process that writes the record."""
        below(self.run.process, "ray::Tracker")[0].kill()

    def checkpoint_damaged(self) -> bool:
        """The newest checkpoint is cut short, and then needed."""
        for worker in self.run.workers():
            worker.suspend()  # so that none newer is written
        file = self.random.choice(sorted(self.run.newest().iterdir()))
        file.write_bytes(file.read_bytes()[:-10])
        return self.worker_killed()

    def disk_full(self) -> None:
        """Of storage, until that is noticed."""
        before = (self.run.folder / "stderr").read_text().count("could be written")
        filler = self.run.storage.parent / "filler"
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1024))
        wait_until(lambda: (self.run.folder / "stderr").read_text().count("could be written") > before, self.run.folder)
        filler.unlink()


class Server:
    """`mlflow server` on a port of its own, in its own session: to stop it is to kill the whole group."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.uri = folder, f"http://127.0.0.1:{self.port}"
        self.launch()

    def launch(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True
            )

    def ready(self) -> None:
        deadline = time.monotonic() + 200
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1).read()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}  # who uses an ObjectStore needs these


class ObjectStore:
    """A server that speaks S3, with one bucket, on a port of its own; forgets all when it ends.

    Args:
        folder: of its log; host: its address.
        there: what begins a command on the host that it is to run on.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", there: Sequence[str] = ()) -> None:
        begin = "from moto.server import main; import sys; main(sys.argv[1:])"
        with open(folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                [*there, sys.executable, "-u", "-c", begin, "-H", host, "-p", "0"],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            found = wait_until(lambda: re.findall(r"Running on http://(\S+)", (folder / "log").read_text()), folder, 60)
            make = f"import urllib.request as r; r.urlopen(r.Request('http://{found[0]}/bucket', method='PUT'))"
            subprocess.run([*there, sys.executable, "-c", make], check=True)
        except BaseException:
            self.stop()
            raise
        self.options = f"?scheme=http&endpoint_override={found[0]}&region=us-east-1"

    def uri(self, name: str) -> str:
        """Of a folder in the bucket."""
        return f"s3://bucket/{name}{self.options}"

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Proxy:
    """Stands before a server, on a port of its own, and behaves as `behaviour` says.

    pass: as if it were not there; 500: that is the answer, and nothing is done; lose: the server does what it was
    asked, but its answer never arrives; slow: it arrives after `delay` seconds.
    """

    def __init__(self, server: str, behaviour: str = "pass", delay: float = 1.0) -> None:
        self.behaviour, self.asked = behaviour, 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                proxy.asked += 1
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                now = proxy.behaviour
                status, answer, kind = 500, b"broken", "text/plain"
                if now != "500":
                    request = urllib.request.Request(
                        f"{server}{self.path}", body or None, dict(self.headers), method=self.command
                    )
                    try:
                        with urllib.request.urlopen(request) as reply:
                            status, answer = reply.status, reply.read()
                            kind = reply.headers.get("Content-Type", kind)
                    except urllib.error.HTTPError as error:
                        status, answer, kind = error.code, error.read(), error.headers.get("Content-Type", kind)
                if now == "slow":
                    time.sleep(delay)
                if now == "lose":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - names of http.server

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
