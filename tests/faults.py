"""Commands in processes of their own, for tests that watch and kill them."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def launch(folder: Path, words: Sequence[str], address: str = "") -> subprocess.Popen[str]:
    """Start a command that knows no Ray but its own, or the one at `address`; what it says goes to `folder`/stderr."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")}
    if address:
        environment["RAY_ADDRESS"] = address
    with open(folder / "stderr", "a") as errors:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)


def finish(process: subprocess.Popen[str], folder: Path, seconds: float = 240) -> Any:
    """What the command printed last, as JSON, once it has ended well."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said(folder)
    return json.loads(out.splitlines()[-1])


def wait_until(what: Callable[[], T], folder: Path, seconds: float = 200) -> T:
    """The first answer that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"it never came: {said(folder)}")


def said(folder: Path) -> str:
    """The end of what was said."""
    return (folder / "stderr").read_text()[-3000:]


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
        deadline = time.monotonic() + 60
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
                    request = urllib.request.Request(f"{server}{self.path}", body or None, dict(self.headers),
                                                     method=self.command)
                    try:
                        with urllib.request.urlopen(request) as told:
                            status, answer = told.status, told.read()
                            kind = told.headers.get("Content-Type", kind)
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
