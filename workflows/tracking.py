"""The record of runs: an append-only spool on disk, and one thread that delivers it to MLflow.

Training never waits for MLflow: a call appends one line to the spool (JSON Lines) and returns. The
sender thread reads the spool and keeps the offset up to which MLflow has everything in `SPOOL.ack`. A
crash, a killed process or a server that is away for a day costs nothing: whoever opens the spool next
delivers the rest. Points keep the time of their line, so MLflow drops those that it gets twice; runs
are found again by the tag `rondo.key`. To deliver a whole spool once more, delete its `.ack` file.

Nothing else in Rondo imports mlflow, and here only functions do: the import takes 1.5 s and 170 MB.
"""

import base64
import contextlib
import fcntl
import functools
import getpass
import http.client
import importlib
import json
import logging
import os
import posixpath
import re
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypedDict
from urllib.parse import unquote, urlsplit, urlunsplit

from datasets.storage import ENDS_EARLY, ends_early, mask
from workflows import strict_json

Status = Literal["FINISHED", "FAILED", "KILLED"]
Record = dict[str, Any]  # one line of the spool: op (begin, metrics, artifact, register, end), key, time in ms, ...

KEY_TAG = "rondo.key"
MAX_METRICS, MAX_PARAMS = 1000, 100  # in one log_batch
MAX_PARAM, MAX_TAG, MAX_DIGEST, MAX_SOURCE = 6000, 8000, 36, 65535  # characters of a value
LINGER = 5.0  # seconds after all is delivered: points come in batches, and the sender leaves the cores to training
RETRY = 0.2  # seconds before the first attempt after a failure; each further one waits twice as long
LONGEST_PAUSE = 15.0  # seconds between attempts when the store is away
PATIENCE = 5.0  # seconds for the last user of a spool to be gone
GIVE_UP = 120.0  # seconds that one record may fail while the store answers other calls


class _DeletedError(Exception):
    """What the record belongs to was deleted in MLflow."""


class _RedirectError(Exception):
    """A server answers with the address of another one, which is the message."""


class DatasetInfo(TypedDict):
    """What MLflow shows as a run's dataset; `digest` is cut at 36 characters, what is no text becomes JSON."""

    name: str
    digest: str
    source: str | Mapping[str, Any]
    profile: str | Mapping[str, Any]


class Recorder(ABC):
    """What a run can put on record. `key` names the run for good: the same key is the same MLflow run, always."""

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
        _check_names("param", params)
        _check_names("tag", tags)
        self.put({
            "op": "begin",
            "key": key,
            "time": _now(),
            "experiment": experiment,
            "name": run_name,
            "params": {name: cut(mask(str(value)), MAX_PARAM) for name, value in params.items()},
            "tags": {name: cut(mask(str(value)), MAX_TAG) for name, value in {**self.source(), **tags}.items()},
            "parent": parent_key,
            "dataset": None if dataset is None else {name: _text(value) for name, value in dataset.items()},
        })

    def metrics(self, key: str, values: Mapping[str, float], step: int, time_ms: int | None = None) -> None:
        """Record values at a step. A step at or below the highest recorded of that metric is a replay: dropped.

        NaN arrives as NaN, an infinity as the largest double (MLflow's way).

        Raises:
            ValueError: a metric name that MLflow does not take.
        """
        _check_names("metric", values)
        numbers = {name: float(value) for name, value in values.items()}
        stamp = _now() if time_ms is None else int(time_ms)
        self.put({"op": "metrics", "key": key, "time": stamp, "step": int(step), "values": numbers})

    def artifact(self, key: str, path: str | Path, folder: str = "") -> None:
        """Upload a local file into `folder`, or what a local folder holds; it must stay there until delivered."""
        path = os.path.abspath(path)
        if not os.path.exists(path):
            raise FileNotFoundError(f"artifact {path}: no such file or folder on this node")
        self.put({"op": "artifact", "key": key, "time": _now(), "path": path, "folder": folder})

    def register(self, key: str, name: str, folder: str) -> None:
        """Make the run's artifact folder a version of a registered model, with the alias ``champion``."""
        self.put({"op": "register", "key": key, "time": _now(), "name": name, "folder": folder})

    def end(
        self,
        key: str,
        status: Status,
        *,
        tags: Mapping[str, Any] = MappingProxyType({}),
        time_ms: int | None = None,
        wait: bool = True,
    ) -> None:
        """Close the run. Returns when that is on disk, unless told not to `wait`; `flush` waits until MLflow has it."""
        _check_names("tag", tags)
        told = {name: cut(mask(str(value)), MAX_TAG) for name, value in tags.items()}
        stamp = _now() if time_ms is None else time_ms
        self.put({"op": "end", "key": key, "time": stamp, "status": status, "tags": told})
        if wait:
            self.settle()

    @abstractmethod
    def settle(self) -> None:
        """Wait until what was recorded before is on disk, where the disk has room for it."""

    @abstractmethod
    def source(self) -> dict[str, str]:
        """Tags that say who started this, how, and from which commit."""

    @abstractmethod
    def put(self, record: Record) -> None:
        """Take one record."""

    @abstractmethod
    def flush(self, timeout: float) -> bool:
        """Wait until all that was recorded before is delivered; False after `timeout` seconds."""

    @abstractmethod
    def close(self, timeout: float = 30.0) -> bool:
        """Flush and stop. False when something is left: it stays in the spool for the next tracker."""

    @abstractmethod
    def run_id(self, key: str, timeout: float = 0.0) -> str | None:
        """The MLflow run of `key`; None when it does not exist after `timeout` seconds."""

    @abstractmethod
    def url(self, key: str) -> str | None:
        """The run's page, without credentials; None without a server or before the run exists."""

    @abstractmethod
    def problem(self) -> str | None:
        """What stands, or stood, in the way of delivery, with passwords hidden; None if nothing does."""


class Tracker(Recorder):
    """The one writer of the record of a run, or of all runs of a search.

    The constructor neither imports mlflow nor touches the network. Of the spool it is the only user (a file
    lock), so that no two trackers deliver the same lines.

    Args:
        uri: `sqlite:///FILE` or `http(s)://HOST:PORT`, user and password allowed; see `check`.
        spool: file; made with its folders, continued if it exists.
        system_metrics: seconds between samples of this machine, for every open run without a parent; None: none.
        source: replaces what `Recorder.source` would find out in this process.

    Raises:
        RuntimeError: another process uses the spool.
    """

    def __init__(
        self,
        uri: str,
        spool: str | Path,
        *,
        system_metrics: float | None = None,
        source: dict[str, str] | None = None,
    ) -> None:
        self._uri, self._source = absolute(uri), source
        self._path = Path(os.path.abspath(spool))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - open as long as the tracker
        _own(self._file.fileno(), self._path)
        self._changed = threading.Condition()  # guards what follows
        self._begun: dict[str, Record] = {}  # key: its first begin record
        self._open: set[str] = set()  # keys begun and not ended
        self._highest: dict[tuple[str, str], int] = {}  # (key, metric): step
        self._early: dict[str, list[Record]] = {}  # records that overtook the begin of the run they need
        self._held: list[bytes] = []  # lines that the disk had no room for
        self._size = self._recover()  # bytes of whole lines in the spool
        self._sent, self._runs = self._acknowledged()  # bytes delivered; key: (run id, experiment id)
        self._away: str | None = None  # why the last delivery failed
        self._refused: list[str] = []  # what MLflow would not take: the first messages
        self._refusals = 0
        self._hurry, self._stop = threading.Event(), threading.Event()
        self._sender = threading.Thread(target=self._send_all, name="rondo-tracker", daemon=True)
        if self._size > self._sent:
            self._sender.start()
        self._sampler = threading.Thread(target=self._sample_all, args=(system_metrics,), daemon=True)
        if system_metrics is not None:
            self._sampler.start()

    # Recording: any thread.

    def source(self) -> dict[str, str]:
        return _source() if self._source is None else self._source

    def put(self, record: Record) -> None:
        """Append a record to the spool: in the kernel's hands on return, so a killed process loses nothing.

        Calls from different processes may overtake each other: what comes before the begin of its run waits for it.
        """
        needs = record["parent"] if record["op"] == "begin" else record["key"]
        with self._changed:
            if needs is not None and needs not in self._begun:
                self._early.setdefault(needs, []).append(record)
                return
            if record["op"] == "metrics":
                fresh = {
                    name: value
                    for name, value in record["values"].items()
                    if record["step"] > self._highest.get((record["key"], name), record["step"] - 1)
                }
                if not fresh:
                    return
                record = {**record, "values": fresh}
            self._append(json.dumps(record).encode() + b"\n")
            self._note(record)
            if record["op"] == "begin":
                for late in self._early.pop(record["key"], []):
                    self.put(late)

    def settle(self) -> None:
        with self._changed:
            self._write_held()
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def _append(self, line: bytes) -> None:
        self._held.append(line)
        self._write_held()

    def _write_held(self) -> bool:
        """Write what waits; False while the disk is full: then it goes on waiting here, in order."""
        while self._held:
            line = self._held[0]
            try:
                whole = self._file.write(line) == len(line)
            except OSError:
                whole = False
            if not whole:
                self._file.truncate(self._size)
                return False
            self._size += len(line)
            del self._held[0]
        if self._sender.ident is None:
            self._sender.start()
        self._changed.notify_all()
        return True

    def _note(self, record: Record) -> None:
        """Keep what `put` must know of the lines in the spool."""
        key = record["key"]
        if record["op"] == "begin":
            self._begun.setdefault(key, record)
            self._open.add(key)
        elif record["op"] == "end":
            self._open.discard(key)
        elif record["op"] == "metrics":
            for name in record["values"]:
                self._highest[key, name] = max(record["step"], self._highest.get((key, name), record["step"]))

    def _recover(self) -> int:
        """Read what an earlier tracker wrote, and cut off a last line torn by a crash."""
        size = 0
        with open(self._path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    self._file.truncate(size)
                    break
                size += len(line)
                if (record := _parse(line)) is not None:
                    self._note(record)
        return size

    def _sample_all(self, seconds: float) -> None:
        sampler = SystemMetrics()
        while not self._stop.wait(seconds):
            values = sampler.sample()
            with self._changed:
                roots = [self._begun[key] for key in self._open if self._begun[key]["parent"] is None]
            for begin in roots:  # step: seconds since the run first began
                self.metrics(begin["key"], values, step=(_now() - begin["time"]) // 1000)

    def open_runs(self) -> list[str]:
        """Keys of the runs that were begun and not ended, children first."""
        with self._changed:
            return sorted(self._open, key=lambda key: self._begun[key]["parent"] is None)

    # Delivery: the sender thread.

    def _send_all(self) -> None:
        client: Any = None
        attempts = 0  # failures in a row
        stuck: float | None = None  # since when there are failures although the store answers
        with open(self._path, "rb") as spool:
            while not self._stop.is_set():
                try:
                    # After a failure: smaller batches and more patience, in case the store is slow, not away.
                    limit = max(1, MAX_METRICS >> attempts)
                    records, end = _read(spool, self._sent, limit)
                    if end > self._sent:
                        client = client or connect(self._uri)
                        _set_patience(attempts)
                        last_try = stuck is not None and time.monotonic() > stuck + GIVE_UP
                        self._deliver(client, records, limit, last_try)
                        self._acknowledge(end)
                        attempts, stuck = 0, None
                        if self._size > end:
                            continue
                    else:
                        with self._changed:
                            self._changed.wait_for(lambda: self._stop.is_set() or self._size > self._sent)
                except Exception as error:  # whatever it is: the spool keeps the record, so try again
                    self._away = mask(f"{type(error).__name__}: {error}")
                    attempts = min(attempts + 1, 10)
                    stays = client is not None and "disk is full" not in str(error) and _answers(client)
                    stuck = (stuck or time.monotonic()) if stays else None
                pause = min(LONGEST_PAUSE, RETRY * 2**attempts) if attempts else LINGER
                if self._hurry.wait(pause) and attempts:
                    time.sleep(RETRY)

    def _deliver(self, client: Any, records: list[Record], limit: int, last_try: bool) -> None:
        """Deliver one record, or metrics of any runs. May be repeated. What MLflow refuses is noted and skipped."""
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(record["key"], []).append(record)
        for key, group in groups.items():
            try:
                if group[0]["op"] == "begin":
                    self._send_begin(client, group[0])
                elif key in self._runs:  # else its begin was refused, which has been said
                    _send(client, self._runs[key][0], group, limit)
            except Exception as error:
                if not (last_try or _is_refusal(error)):
                    raise
                self._refusals += len(group)
                if len(self._refused) < 3:
                    self._refused.append(mask(f"{group[0]['op']} of run {key!r}: {type(error).__name__}: {error}"))

    def _send_begin(self, client: Any, record: Record) -> None:
        key, start = record["key"], record["time"]
        experiment_id = _experiment(client, record["experiment"], self._uri)
        tags = {**record["tags"], KEY_TAG: key}
        if record["parent"] in self._runs:
            tags["mlflow.parentRunId"] = self._runs[record["parent"]][0]
        run_id = _find(client, key, [experiment_id])
        known: dict[str, str] = {}
        if run_id is None:
            run = client.create_run(experiment_id, start_time=start, tags=tags, run_name=record["name"])
            run_id = run.info.run_id
        else:
            client.update_run(run_id, status="RUNNING", name=record["name"])
            known = client.get_run(run_id).data.params
            changed = {n: [known[n], v] for n, v in record["params"].items() if known.get(n, v) != v}
            if changed:
                tags["rondo.params_changed"] = cut(json.dumps(changed), MAX_TAG)
        _send_details(client, run_id, tags, {n: v for n, v in record["params"].items() if n not in known})
        if record["dataset"] is not None:
            _send_dataset(client, run_id, record["dataset"])
        with self._changed:
            self._runs[key] = (run_id, experiment_id)
            self._changed.notify_all()

    def _acknowledge(self, end: int) -> None:
        os.fsync(self._file.fileno())  # the offset must never be ahead of the lines, not even after a power cut
        state = {"uri": mask(self._uri), "offset": end, "runs": self._runs}
        beside = self._path.with_name(self._path.name + ".ack.new")
        with open(beside, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._path.with_name(self._path.name + ".ack"))
        with self._changed:
            self._sent, self._away = end, None
            self._changed.notify_all()

    def _acknowledged(self) -> tuple[int, dict[str, tuple[str, str]]]:
        """What the `.ack` file says; the start of the spool when it speaks of another store."""
        try:
            state = json.loads(self._path.with_name(self._path.name + ".ack").read_text())
            if state["uri"] != mask(self._uri):
                return 0, {}
            runs = {key: (run_id, experiment_id) for key, (run_id, experiment_id) in state["runs"].items()}
            return min(state["offset"], self._size), runs
        except (OSError, ValueError, KeyError):
            return 0, {}

    # Asking: any thread.

    def flush(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._write_held():
                if time.monotonic() > deadline:
                    return False
                self._changed.wait(0.2)
            goal, timeout = self._size, max(0.0, deadline - time.monotonic())
            self._hurry.set()
            try:
                return self._changed.wait_for(lambda: self._sent >= goal and not self._early, timeout)
            finally:
                if not self._stop.is_set():
                    self._hurry.clear()

    def close(self, timeout: float = 30.0) -> bool:
        if self._file.closed:
            return self._sent >= self._size
        done = self.flush(timeout)
        with self._changed:
            self._stop.set()
            self._hurry.set()
            self._changed.notify_all()
        for thread in (self._sampler, self._sender):
            if thread.ident is not None:
                thread.join(10)  # it may be in a call to a server that is away
        self._file.close()  # gives the lock back; a sender still in its call can acknowledge nothing after this
        return done

    def run_id(self, key: str, timeout: float = 0.0) -> str | None:
        with self._changed:
            self._changed.wait_for(lambda: key in self._runs, timeout)
            return self._runs[key][0] if key in self._runs else None

    def url(self, key: str) -> str | None:
        parts = urlsplit(self._uri)
        if key not in self._runs or parts.scheme not in ("http", "https"):
            return None
        run_id, experiment_id = self._runs[key]
        server = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))
        return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"

    def problem(self) -> str | None:
        with self._changed:
            found = []
            if self._away:
                found.append(f"cannot deliver to {mask(self._uri)}; {self._path} keeps the record ({self._away})")
            if self._held:
                found.append(f"{len(self._held)} records wait for room on the disk of {self._path}")
            if self._refusals:
                found.append(f"MLflow refused {self._refusals} records: " + "; ".join(self._refused))
            if self._early:
                found.append(f"records wait for runs that never began: {', '.join(sorted(self._early))}")
            return "\n".join(found) or None


class RemoteTracker(Recorder):
    """A tracker in a zero-CPU actor; may be pickled and used in any worker of the job.

    begin, metrics and artifact return at once; the others wait. Nothing raises when the actor is gone:
    training goes on, and `problem` tells.
    """

    def __init__(self, actor: Any, source: dict[str, str]) -> None:
        self._actor, self._source = actor, source

    def __reduce__(self) -> Any:
        return RemoteTracker, (self._actor, self._source)

    def source(self) -> dict[str, str]:
        return self._source

    def put(self, record: Record) -> None:
        self._actor.put.remote(record)

    def settle(self) -> None:
        self._wait(self._actor.settle.remote(), 60.0)

    def _wait(self, answer: Any, timeout: float) -> Any:
        """The actor's answer; None when there is none in time."""
        import ray
        from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError

        try:
            return ray.get(answer, timeout=timeout)
        except (GetTimeoutError, RayActorError, OutOfMemoryError):
            return None

    def _poll(self, method: str, *arguments: Any, timeout: float) -> Any:
        """Ask in short slices: the actor has one thread, and metrics of others must not wait behind a question."""
        deadline = time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            answer = self._wait(getattr(self._actor, method).remote(*arguments, min(left, 0.2)), left + 1.0)
            if answer or time.monotonic() >= deadline:
                return answer
            time.sleep(0.02)  # an actor that is gone answers at once

    def flush(self, timeout: float) -> bool:
        return bool(self._poll("flush", timeout=timeout))

    def close(self, timeout: float = 30.0) -> bool:
        import ray

        deadline = time.monotonic() + timeout
        self.flush(timeout)  # first, in slices: workers may still be sending
        left = max(0.0, deadline - time.monotonic())
        done = bool(self._wait(self._actor.close.remote(left), left + 15.0))
        kill: Any = ray.kill
        kill(self._actor)
        return done

    def run_id(self, key: str, timeout: float = 0.0) -> str | None:
        answer: str | None = self._poll("run_id", key, timeout=timeout)
        return answer

    def url(self, key: str) -> str | None:
        answer: str | None = self._wait(self._actor.url.remote(key), 10.0)
        return answer

    def problem(self) -> str | None:
        import ray
        from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError

        try:
            answer: str | None = ray.get(self._actor.problem.remote(), timeout=10.0)
        except (GetTimeoutError, RayActorError, OutOfMemoryError) as error:
            return mask(f"the tracker's actor does not answer: {error}")
        return answer


def start(uri: str, spool: str | Path, *, actor: bool, system_metrics: float | None = None) -> Recorder:
    """A tracker in this process, or in an actor on this node that all workers can reach.

    Returns at once: the actor starts, and imports mlflow, while the caller goes on.
    """
    if not actor:
        return Tracker(uri, spool, system_metrics=system_metrics)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # All calls may be repeated: an actor that dies starts again on the same spool.
    options = {"num_cpus": 0, "max_restarts": 3, "max_task_retries": 3, "scheduling_strategy": here}
    kind: Any = ray.remote(Tracker)
    source = _source()
    made = kind.options(**options).remote(
        absolute(uri), os.path.abspath(spool), system_metrics=system_metrics, source=source
    )
    return RemoteTracker(made, source)


class SystemMetrics:
    """Samples of this machine; MLflow shows keys under `system/` on a page of their own."""

    def __init__(self) -> None:
        import psutil

        psutil.cpu_percent()  # the first call has nothing to compare with and returns 0
        self._nvml: Any = None
        self._gpus: list[Any] = []
        try:
            self._nvml = importlib.import_module("pynvml")
            self._nvml.nvmlInit()
            self._gpus = [self._nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self._nvml.nvmlDeviceGetCount())]
        except Exception:  # no package, no driver, no device: then there are no values of a GPU
            logging.getLogger(__name__).debug("no GPU to sample", exc_info=True)

    def sample(self) -> dict[str, float]:
        """Percentages (of the CPUs: since the last sample), memory in use in GB (10**9 bytes), power in watts."""
        import psutil

        memory = psutil.virtual_memory()
        values = {
            "system/cpu_percent": psutil.cpu_percent(),
            "system/memory_gb": (memory.total - memory.available) / 1e9,
            "system/memory_percent": memory.percent,
        }
        for index, gpu in enumerate(self._gpus):
            with contextlib.suppress(self._nvml.NVMLError):  # a slice of a GPU has no percentage
                values[f"system/gpu_{index}_memory_gb"] = self._nvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e9
                values[f"system/gpu_{index}_watts"] = self._nvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
                values[f"system/gpu_{index}_percent"] = float(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        return values


def busy(spool: Path) -> bool:
    """Whether the tracker of a run that goes on uses the spool; one killed a moment ago is given time to be gone."""
    if not spool.exists():
        return False
    with open(spool, "ab") as file:
        try:
            _own(file.fileno(), spool)
        except RuntimeError:
            return True
    return False


def settled(spool: Path, uri: str | None = None, *, status: Status | None = None) -> bool:
    """Whether a spool's last run has ended and all is delivered; True where there is no spool.

    With `uri`, whether it is delivered there; with `status`, whether it has ended so.
    """
    if not spool.exists():
        return True
    lines = spool.read_bytes().splitlines()
    last = _parse(lines[-1]) if lines else None
    try:
        told = json.loads(spool.with_name(f"{spool.name}.ack").read_bytes())
        if told["offset"] < spool.stat().st_size or (uri is not None and told["uri"] != mask(absolute(uri))):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return last is not None and last["op"] == "end" and status in (None, last.get("status"))


def absolute(uri: str) -> str:
    """The URI with a relative sqlite path made absolute: another process has another working folder."""
    if not uri.startswith("sqlite:///"):
        return uri
    path, mark, query = uri.removeprefix("sqlite:///").partition("?")
    return f"sqlite:///{os.path.abspath(path)}{mark}{query}"


def _database(uri: str) -> Path | None:
    """The file of an absolute sqlite URI."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(uri.removeprefix("sqlite:///").partition("?")[0])


def check(uri: str) -> None:
    """See in seconds, without mlflow, whether a record can be kept at `uri`.

    Raises:
        ValueError: it cannot; the message says why and what to do.
    """
    shown = f"tracking.uri={mask(uri)}"
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        if ends_early(uri):  # part of it would be taken for the host's name
            raise ValueError(
                f"{shown}: {ENDS_EARLY}, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        try:
            reason = _ask_health(uri)
        except _RedirectError as error:
            raise ValueError(
                f"{shown}: it redirects to {error}; users, passwords and tokens are only sent to the scheme, host and "
                f"port that you name. Set tracking.uri to the address of the MLflow server itself, such as "
                f"{str(error).removesuffix('/health')}, if that is yours"
            ) from None
        if reason is not None:
            raise ValueError(
                f"{shown}: no MLflow server answers there ({reason}); "
                "start one with `mlflow server --host HOST --port PORT`, or use sqlite:///mlflow.db"
            )
    elif uri.startswith("sqlite:///") and not uri.endswith((":memory:", "/")):
        _check_database(shown, Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    else:
        raise ValueError(
            f"{shown}: not a place for the record; use sqlite:///FILE (sqlite:////ABSOLUTE/FILE) or the http:// or "
            "https:// address of an MLflow server, which can have any database behind it"
        )


def _check_database(shown: str, file: Path) -> None:
    folder = file.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{shown}: the folder {folder} does not exist; create it, or name another file")
    if not os.access(folder, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise ValueError(f"{shown}: no permission to write in {folder}; name a file in a folder of yours")
    if file.is_dir():
        raise ValueError(f"{shown}: {file} is a folder; name a file in it, as in sqlite:///{file}/mlflow.db")
    if file.exists():
        with open(file, "rb") as data:
            header = data.read(16)
        if header not in (b"", b"SQLite format 3\0"):
            raise ValueError(f"{shown}: {file} is a file of another kind, not a SQLite database; name another file")


def _ask_health(uri: str) -> str | None:
    """Why no MLflow server is at `uri`; None when one is. Credentials as MLflow's own client takes them."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(urlunsplit((parts.scheme, host, parts.path.rstrip("/") + "/health", "", "")))
    user = unquote(parts.username or "") or os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = unquote(parts.password or "") or os.environ.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        trust = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
        if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
            trust.check_hostname, trust.verify_mode = False, ssl.CERT_NONE
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust), _SameServer)
        with opener.open(request, timeout=3) as answer:
            body = answer.read(100)
        return None if body.strip() == b"OK" else "something else does: its /health is not MLflow's"
    except urllib.error.HTTPError as error:
        return mask(f"the answer to /health is {error.code} {error.reason}")
    except (OSError, ValueError, http.client.HTTPException) as error:  # the latter two: no such host or port can be
        return mask(str(getattr(error, "reason", None) or error))


class _SameServer(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one server only: urllib would repeat the header ``Authorization`` to any other."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        there = urlsplit(newurl)
        if _server(newurl) != _server(req.full_url):
            host = there.netloc.rpartition("@")[2]
            raise _RedirectError(urlunsplit((there.scheme, host, there.path, "", "")))  # a query may hold a token
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _server(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, with the scheme's own port where none is written."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


# Talking to MLflow.


def connect(uri: str) -> Any:
    """An MlflowClient for `uri`, with no global state but the settings of mlflow's own environment."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # its retries repeat create_run; ours do not
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    _set_patience(0)
    from mlflow import MlflowClient

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # it announces each new table
    logging.getLogger("alembic").setLevel(logging.WARNING)
    uri = absolute(uri)
    database = _database(uri)
    if database is None:
        return MlflowClient(uri, uri)
    with open(f"{database}.lock", "w") as lock:  # processes that open a new store at once would corrupt it
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not database.exists():
            _create(database)
        client = MlflowClient(uri, uri)
        client.search_experiments(max_results=1)
        return client


def _create(database: Path) -> None:
    """Make a store whole or not at all: MLflow cannot open one whose maker was killed among its tables."""
    from mlflow import MlflowClient

    beside = database.with_name(f"{database.name}.new")
    beside.unlink(missing_ok=True)
    uri = f"sqlite:///{beside}"
    MlflowClient(uri, uri).search_experiments(max_results=1)
    os.replace(beside, database)


def find(uri: str, key: str) -> str | None:
    """The id of the run with this key, in whatever experiment; None when there is none."""
    client = connect(uri)
    return _find(client, key, [experiment.experiment_id for experiment in client.search_experiments()])


def _find(client: Any, key: str, experiment_ids: list[str]) -> str | None:
    oldest_first = ["attributes.start_time ASC"]
    runs = client.search_runs(experiment_ids, f"tags.`{KEY_TAG}` = '{key}'", order_by=oldest_first, max_results=1)
    return runs[0].info.run_id if runs else None


def _experiment(client: Any, name: str, uri: str) -> str:
    """The id of the experiment, created if need be; several trackers may try at once."""
    found = client.get_experiment_by_name(name)
    if found is None:
        database = _database(uri)  # without a place of its own, artifacts would go to the working folder
        place = None if database is None else str(database.parent / "mlartifacts")
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except Exception:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise _DeletedError(
            f"the experiment {name!r} is deleted in MLflow; "
            f"restore it (`mlflow experiments restore -x {found.experiment_id}`), or choose another name"
        )
    return str(found.experiment_id)


def _send(client: Any, run_id: str, group: list[Record], limit: int) -> None:
    """Deliver metrics, or one artifact or end, of one run that exists."""
    from mlflow.entities import Metric

    record = group[0]
    if record["op"] == "metrics":
        points = [Metric(n, v, line["time"], line["step"]) for line in group for n, v in line["values"].items()]
        for first in range(0, len(points), limit):
            client.log_batch(run_id, metrics=points[first : first + limit])
    elif record["op"] == "artifact":
        deliver = client.log_artifacts if os.path.isdir(record["path"]) else client.log_artifact
        deliver(run_id, record["path"], record["folder"] or None)
    elif record["op"] == "register":
        _register(client, run_id, record["name"], record["folder"])
    else:
        for name, value in record.get("tags", {}).items():
            client.set_tag(run_id, name, value)
        client.set_terminated(run_id, record["status"], end_time=record["time"])


def _register(client: Any, run_id: str, name: str, folder: str) -> None:
    """A version of the model for this run, made once, and the alias; may be repeated."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = client.search_model_versions(f"run_id = '{run_id}'")
    known = [version for version in versions if version.name == name]
    source = f"{client.get_run(run_id).info.artifact_uri}/{folder}"
    version = known[0] if known else client.create_model_version(name, source, run_id)
    client.set_registered_model_alias(name, "champion", version.version)


def _send_details(client: Any, run_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    items = [Param(name, value) for name, value in params.items()]
    for first in range(0, len(items), MAX_PARAMS):
        client.log_batch(run_id, params=items[first : first + MAX_PARAMS])


def _send_dataset(client: Any, run_id: str, info: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=info["name"],
        digest=info["digest"][:MAX_DIGEST],
        source_type="local",
        source=cut(info["source"], MAX_SOURCE),
        profile=info["profile"],
    )
    client.log_inputs(run_id, [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "train")])])


def _is_refusal(error: Any) -> bool:
    """Whether repeating is useless: the store answered and said no, or what we send is not there."""
    if hasattr(error, "get_http_status_code"):  # MlflowException
        status = 503 if error.error_code == "ENDPOINT_NOT_FOUND" else error.get_http_status_code()
    elif (response := getattr(error, "response", None)) is not None:  # requests, in an upload
        status = response.status_code
    else:
        return isinstance(error, (FileNotFoundError, _DeletedError))
    return bool(400 <= status < 500 and status not in (401, 403, 408, 429))  # those are for people to repair


def _answers(client: Any) -> bool:
    try:
        client.search_experiments(max_results=1)
    except Exception:
        return False
    return True


@functools.cache
def _patience_is_set() -> bool:
    return "MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ


def _set_patience(attempts: int) -> None:
    """Seconds that mlflow waits for an answer, read at each request; the user's own setting stays."""
    if not _patience_is_set():
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(min(60, 5 << min(attempts, 4)))


# Small things.


def cut(text: str, length: int) -> str:
    """At most `length` characters; what is cut is said at the end."""
    if len(text) <= length:
        return text
    mark = f"... [cut from {len(text):,} characters]"
    return text[: length - len(mark)] + mark


def _text(value: object) -> str:
    return mask(value if isinstance(value, str) else strict_json.dumps(value))


def _now() -> int:
    return time.time_ns() // 1_000_000


@functools.lru_cache(maxsize=10_000)
def is_name(name: str) -> bool:
    """Whether MLflow takes it as the name of a param, metric or tag."""
    path_like = posixpath.normpath(name) == name and name != "." and not name.startswith(("/", ".."))
    return path_like and re.fullmatch(r"[\w.\-: /]{1,250}", name) is not None


def _check_names(kind: str, names: Mapping[str, Any]) -> None:
    for name in names:
        if not is_name(name):
            raise ValueError(
                f"{kind} name {name!r}: MLflow takes 1 to 250 letters, digits, spaces and _ - . : / "
                "that read as a relative path (no leading, trailing or double slash, no '..')"
            )


def _parse(line: bytes) -> Record | None:
    """One line of the spool; None for what a power cut may leave instead."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op" in record and "key" in record else None


def _read(spool: Any, offset: int, limit: int) -> tuple[list[Record], int]:
    """From `offset` on: metrics up to `limit` values, or one record of another kind; and the offset after them."""
    spool.seek(offset)
    records: list[Record] = []
    count = 0
    for line in spool:
        if not line.endswith(b"\n"):
            break
        record = _parse(line)
        if record is not None:
            count += len(record.get("values", ()))
            if records and (record["op"] != "metrics" or records[0]["op"] != "metrics" or count > limit):
                break
            records.append(record)
        offset += len(line)
    return records, offset


def _own(descriptor: int, path: Path) -> None:
    """Lock the spool; a tracker killed a moment ago may need a moment to be gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} is in use by another tracker; stop that run first") from None
            time.sleep(0.1)


@functools.cache
def _source() -> dict[str, str]:
    """Who, how and from which commit."""
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
