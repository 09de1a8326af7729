"""Records what a run does: parameters, metrics, artifacts, its end. Subclasses say where the records go."""

from __future__ import annotations

import contextlib
import functools
import getpass
import os
import posixpath
import re
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypedDict

from datasets.pipeline.storage import mask
from workflows import strict_json

Status = Literal["FINISHED", "FAILED", "KILLED"]
Record = dict[str, Any]  # one line of the spool: op (begin, metrics, artifact, register, end), key, time in ms, values
KEY_TAG = "rondo.key"
MAX_METRICS, MAX_PARAMS = 1000, 100  # in one log_batch
MAX_PARAM, MAX_TAG, MAX_DIGEST, MAX_SOURCE = 6000, 8000, 36, 65535  # characters of a value


class DatasetInfo(TypedDict):
    """A run's dataset in MLflow; `digest` is cut to 36 characters, values that are not text become JSON."""

    name: str
    digest: str
    source: str | Mapping[str, Any]
    profile: str | Mapping[str, Any]


class Recorder(ABC):
    """Records runs. `key` identifies a run: the same key is always the same MLflow run."""

    def begin(
        self,
        key: str,
        *,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        parent_key: str | None = None,
        dataset: DatasetInfo | None = None,
    ) -> None:
        """Create the run, or reopen it if it exists; params that changed since then go to a tag.

        Args:
            parent_key: the run to nest under; it must begin on the same tracker (before or after).

        Raises:
            ValueError: a key or a name that MLflow does not take.
        """
        if not key or len(key) > 250 or set(key) & set("'\"`\\\n"):
            raise ValueError(f"run key {key!r}: use 1 to 250 characters, and no quotes or backslashes")
        check_names("param", params)
        check_names("tag", tags)
        self.put(
            {
                "op": "begin",
                "key": key,
                "time": now_ms(),
                "experiment": experiment,
                "name": run_name,
                "params": {name: cut(mask(str(value)), MAX_PARAM) for name, value in params.items()},
                "tags": {name: cut(mask(str(value)), MAX_TAG) for name, value in {**self.source(), **tags}.items()},
                "parent": parent_key,
                "dataset": None if dataset is None else {name: as_text(value) for name, value in dataset.items()},
            }
        )

    def metrics(self, key: str, values: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record values at a step. Values at a step up to the last one recorded of a metric are a replay, and dropped.

        NaN arrives as NaN, infinity as the largest double, as MLflow stores it.

        Raises:
            ValueError: a metric name that MLflow does not take.
        """
        check_names("metric", values)
        numbers = {name: float(value) for name, value in values.items()}
        stamp = now_ms() if time_ms is None else int(time_ms)
        self.put({"op": "metrics", "key": key, "time": stamp, "step": int(step), "values": numbers})

    def artifact(self, key: str, path: str | Path, folder: str = "") -> None:
        """Upload a local file, or the files of a local folder, into `folder`; they must exist until delivered."""
        path = os.path.abspath(path)
        if not os.path.exists(path):
            raise FileNotFoundError(f"artifact {path}: no such file or folder on this node")
        self.put({"op": "artifact", "key": key, "time": now_ms(), "path": path, "folder": folder})

    def register(self, key: str, name: str, folder: str) -> None:
        """Make the run's artifact folder a version of a registered model, with the alias ``champion``."""
        self.put({"op": "register", "key": key, "time": now_ms(), "name": name, "folder": folder})

    def end(
        self,
        key: str,
        status: Status,
        *,
        tags: Mapping[str, Any] = MappingProxyType({}),
        time_ms: int | None = None,
        wait: bool = True,
    ) -> None:
        """End the run. With `wait`, returns once that is on disk; `flush` waits until MLflow has it."""
        check_names("tag", tags)
        texts = {name: cut(mask(str(value)), MAX_TAG) for name, value in tags.items()}
        stamp = now_ms() if time_ms is None else time_ms
        self.put({"op": "end", "key": key, "time": stamp, "status": status, "tags": texts})
        if wait:
            self.flush_to_disk()

    @abstractmethod
    def flush_to_disk(self) -> None:
        """Wait until everything recorded so far is on disk, unless the disk is full."""

    @abstractmethod
    def source(self) -> dict[str, str]:
        """Tags: who started this process, with which command, from which commit."""

    @abstractmethod
    def put(self, record: Record) -> None:
        """Take one record."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Wait until everything recorded so far is delivered; False after `timeout` seconds."""

    @abstractmethod
    def close(self, timeout: float = 30.0) -> bool:
        """Flush and stop. False if something is not delivered: it stays in the spool for the next tracker."""

    @abstractmethod
    def run_id(self, key: str, timeout: float = 0.0) -> str | None:
        """The MLflow run of `key`; None when it does not exist after `timeout` seconds."""

    @abstractmethod
    def url(self, key: str) -> str | None:
        """The run's page, without credentials; None without a server or before the run exists."""

    @abstractmethod
    def problem(self) -> str | None:
        """What prevents delivery, or has prevented it, with passwords hidden; None if nothing does."""


def cut(text: str, length: int) -> str:
    """The first `length` characters at most, with a note if characters were cut."""
    if len(text) <= length:
        return text
    mark = f"... [cut from {len(text):,} characters]"
    return text[: length - len(mark)] + mark


def as_text(value: object) -> str:
    return mask(value if isinstance(value, str) else strict_json.dumps(value))


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@functools.lru_cache(maxsize=10_000)
def is_name(name: str) -> bool:
    """Whether MLflow accepts it as the name of a param, metric or tag."""
    path_like = posixpath.normpath(name) == name and name != "." and not name.startswith(("/", ".."))
    return path_like and re.fullmatch(r"[\w.\-: /]{1,250}", name) is not None


def check_names(kind: str, names: Mapping[str, Any]) -> None:
    for name in names:
        if not is_name(name):
            raise ValueError(
                f"{kind} name {name!r}: MLflow takes 1 to 250 letters, digits, spaces and _ - . : / "
                "that read as a relative path (no leading, trailing or double slash, no '..')"
            )


@functools.cache
def process_tags() -> dict[str, str]:
    """Tags of this process: user, command, commit."""
    program = Path(sys.argv[0])
    command = ["python -m workflows"] if program.name == "__main__.py" else [program.name]
    tags = {"mlflow.source.type": "LOCAL", "mlflow.source.name": " ".join([*command, *sys.argv[1:]])}
    with contextlib.suppress(KeyError, OSError):  # a user id without a name
        tags["mlflow.user"] = getpass.getuser()
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # no git, or no repository: as in a job
        here = Path(__file__).parent
        command = ["git", "rev-parse", "HEAD"]
        answer = subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=5)
        tags["mlflow.source.git.commit"] = answer.stdout.strip()
    return tags
