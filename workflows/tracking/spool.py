"""The tracker: an append-only spool on disk, and one thread that delivers it to MLflow.

Training never waits for MLflow: a call appends one line to the spool (JSON Lines) and returns. The sender thread reads
the spool, and keeps in `SPOOL.ack` the offset up to which MLflow has everything. A crash, a killed process or a server
that is down for a day loses nothing: the next tracker of the spool delivers the rest. Metrics keep the time of their
line, so that MLflow drops those it receives twice; runs are found again by the tag `rondo.key`. To deliver a whole
spool once more, delete its `.ack` file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import urlsplit, urlunsplit

from datasets.pipeline.storage import mask
from workflows.tracking.mlflow import (
    absolute,
    answers,
    connect,
    find_experiment,
    find_run,
    is_refusal,
    send,
    send_dataset,
    send_details,
    set_timeout,
)
from workflows.tracking.recorder import (
    KEY_TAG,
    MAX_METRICS,
    MAX_TAG,
    Record,
    Recorder,
    Status,
    cut,
    now_ms,
    process_tags,
)
from workflows.tracking.system import SystemMetrics

if TYPE_CHECKING:
    from mlflow import MlflowClient

IDLE = 5.0  # seconds between deliveries: metrics are sent in batches, and the cores are left to training
RETRY = 0.2  # seconds before the first retry after a failure; each further retry waits twice as long
MAX_PAUSE = 15.0  # seconds between retries
LOCK_TIMEOUT = 5.0  # seconds for the last user of a spool to release it
GIVE_UP = 120.0  # seconds that one record may fail while the server answers other calls


class Tracker(Recorder):
    """Records a run, or all runs of a search, through a spool.

    The constructor neither imports mlflow nor uses the network. A file lock makes it the only user of the spool, so
    that no two trackers deliver the same lines.

    Args:
        uri: `sqlite:///FILE` or `http(s)://HOST:PORT`, user and password allowed; see `check`.
        spool: file; created with its folders, continued if it exists.
        system_metrics: seconds between samples of this machine, for every open run without a parent; None: none.
        source: tags to use in place of those of this process.

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
        _lock(self._file.fileno(), self._path)
        self._changed = threading.Condition()  # guards the attributes below
        self._begin_records: dict[str, Record] = {}  # key: first begin record
        self._open: set[str] = set()  # keys of runs without an end
        self._highest: dict[tuple[str, str], int] = {}  # (key, metric): step
        self._waiting: dict[str, list[Record]] = {}  # key: records that arrived before that run began
        self._unwritten: list[bytes] = []  # lines for which the disk is full
        self._size = self._recover()  # bytes of complete lines in the spool
        self._sent, self._runs = self._acknowledged()  # bytes delivered; key: (run id, experiment id)
        self._delivery_error: str | None = None  # why the last delivery failed
        self._refused: list[str] = []  # the first messages of records that MLflow refused
        self._refusals = 0
        self._wake, self._stop = threading.Event(), threading.Event()
        self._sender = threading.Thread(target=self._send_all, name="rondo-tracker", daemon=True)
        if self._size > self._sent:
            self._sender.start()
        self._sampler = threading.Thread(target=self._sample_all, args=(system_metrics,), daemon=True)
        if system_metrics is not None:
            self._sampler.start()

    # Recording, in any thread.

    def source(self) -> dict[str, str]:
        return process_tags() if self._source is None else self._source

    def put(self, record: Record) -> None:
        """Append a record to the spool. The kernel has it on return, so that a killed process loses nothing.

        Calls from different processes may arrive out of order: records that arrive before their run begins wait for it.
        """
        required = record["parent"] if record["op"] == "begin" else record["key"]
        with self._changed:
            if required is not None and required not in self._begin_records:
                self._waiting.setdefault(required, []).append(record)
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
                for late in self._waiting.pop(record["key"], []):
                    self.put(late)

    def flush_to_disk(self) -> None:
        with self._changed:
            self._write_lines()
        with contextlib.suppress(OSError):
            os.fsync(self._file.fileno())

    def _append(self, line: bytes) -> None:
        self._unwritten.append(line)
        self._write_lines()

    def _write_lines(self) -> bool:
        """Write the lines that wait; False if the disk is full: then they keep waiting, in order."""
        while self._unwritten:
            line = self._unwritten[0]
            try:
                complete = self._file.write(line) == len(line)
            except OSError:
                complete = False
            if not complete:
                self._file.truncate(self._size)
                return False
            self._size += len(line)
            del self._unwritten[0]
        if self._sender.ident is None:
            self._sender.start()
        self._changed.notify_all()
        return True

    def _note(self, record: Record) -> None:
        """Remember what `put` needs to know of the records in the spool."""
        key = record["key"]
        if record["op"] == "begin":
            self._begin_records.setdefault(key, record)
            self._open.add(key)
        elif record["op"] == "end":
            self._open.discard(key)
        elif record["op"] == "metrics":
            for name in record["values"]:
                self._highest[key, name] = max(record["step"], self._highest.get((key, name), record["step"]))

    def _recover(self) -> int:
        """Read what an earlier tracker wrote, and remove a last line that a crash left incomplete."""
        size = 0
        with open(self._path, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    self._file.truncate(size)
                    break
                size += len(line)
                if (record := parse_line(line)) is not None:
                    self._note(record)
        return size

    def _sample_all(self, seconds: float) -> None:
        sampler = SystemMetrics()
        while not self._stop.wait(seconds):
            values = sampler.sample()
            with self._changed:
                roots = [self._begin_records[key] for key in self._open if self._begin_records[key]["parent"] is None]
            for begin in roots:  # step: seconds since the run first began
                self.metrics(begin["key"], values, step=(now_ms() - begin["time"]) // 1000)

    def open_runs(self) -> list[str]:
        """Keys of the runs that have begun and not ended, children first."""
        with self._changed:
            return sorted(self._open, key=lambda key: self._begin_records[key]["parent"] is None)

    # Delivery, in the sender thread.

    def _send_all(self) -> None:
        client: MlflowClient | None = None
        attempts = 0  # failures in a row
        stuck: float | None = None  # since when delivery fails although the server answers
        with open(self._path, "rb") as spool:
            while not self._stop.is_set():
                try:
                    # After a failure: smaller batches and longer timeouts, in case the server is slow and not down.
                    limit = max(1, MAX_METRICS >> attempts)
                    records, end = read_records(spool, self._sent, limit)
                    if end > self._sent:
                        client = client or connect(self._uri)
                        set_timeout(attempts)
                        last_try = stuck is not None and time.monotonic() > stuck + GIVE_UP
                        self._deliver(client, records, limit, last_try)
                        self._acknowledge(end)
                        attempts, stuck = 0, None
                        if self._size > end:
                            continue
                    else:
                        with self._changed:
                            self._changed.wait_for(lambda: self._stop.is_set() or self._size > self._sent)
                except Exception as error:  # of any kind: the spool keeps the records, so retry
                    self._delivery_error = mask(f"{type(error).__name__}: {error}")
                    attempts = min(attempts + 1, 10)
                    answering = client is not None and "disk is full" not in str(error) and answers(client)
                    stuck = (stuck or time.monotonic()) if answering else None
                pause = min(MAX_PAUSE, RETRY * 2**attempts) if attempts else IDLE
                if self._wake.wait(pause) and attempts:
                    time.sleep(RETRY)

    def _deliver(self, client: MlflowClient, records: list[Record], limit: int, last_try: bool) -> None:
        """Deliver one record, or metrics of any runs; may be repeated. Records that MLflow refuses are counted."""
        groups: dict[str, list[Record]] = {}
        for record in records:
            groups.setdefault(record["key"], []).append(record)
        for key, group in groups.items():
            try:
                if group[0]["op"] == "begin":
                    self._send_begin(client, group[0])
                elif key in self._runs:  # else its begin was refused, and is counted
                    send(client, self._runs[key][0], group, limit)
            except Exception as error:
                if not (last_try or is_refusal(error)):
                    raise
                self._refusals += len(group)
                if len(self._refused) < 3:
                    self._refused.append(mask(f"{group[0]['op']} of run {key!r}: {type(error).__name__}: {error}"))

    def _send_begin(self, client: MlflowClient, record: Record) -> None:
        key, start = record["key"], record["time"]
        experiment_id = find_experiment(client, record["experiment"], self._uri)
        tags = {**record["tags"], KEY_TAG: key}
        if record["parent"] in self._runs:
            tags["mlflow.parentRunId"] = self._runs[record["parent"]][0]
        run_id = find_run(client, key, [experiment_id])
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
        send_details(client, run_id, tags, {n: v for n, v in record["params"].items() if n not in known})
        if record["dataset"] is not None:
            send_dataset(client, run_id, record["dataset"])
        with self._changed:
            self._runs[key] = (run_id, experiment_id)
            self._changed.notify_all()

    def _acknowledge(self, end: int) -> None:
        os.fsync(self._file.fileno())  # the offset must never be ahead of the lines, not even after a power cut
        state = {"uri": mask(self._uri), "offset": end, "runs": self._runs}
        new = self._path.with_name(self._path.name + ".ack.new")
        with open(new, "w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._path.with_name(self._path.name + ".ack"))
        with self._changed:
            self._sent, self._delivery_error = end, None
            self._changed.notify_all()

    def _acknowledged(self) -> tuple[int, dict[str, tuple[str, str]]]:
        """The offset and runs in the `.ack` file; the start of the spool if the file is about another server."""
        try:
            state = json.loads(self._path.with_name(self._path.name + ".ack").read_text())
            if state["uri"] != mask(self._uri):
                return 0, {}
            runs = {key: (run_id, experiment_id) for key, (run_id, experiment_id) in state["runs"].items()}
            return min(state["offset"], self._size), runs
        except (OSError, ValueError, KeyError):
            return 0, {}

    # Queries, in any thread.

    def flush(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._write_lines():
                if time.monotonic() > deadline:
                    return False
                self._changed.wait(0.2)
            goal, timeout = self._size, max(0.0, deadline - time.monotonic())
            self._wake.set()
            try:
                return self._changed.wait_for(lambda: self._sent >= goal and not self._waiting, timeout)
            finally:
                if not self._stop.is_set():
                    self._wake.clear()

    def close(self, timeout: float = 30.0) -> bool:
        if self._file.closed:
            return self._sent >= self._size
        done = self.flush(timeout)
        with self._changed:
            self._stop.set()
            self._wake.set()
            self._changed.notify_all()
        for thread in (self._sampler, self._sender):
            if thread.ident is not None:
                thread.join(10)  # it may be in a call to a server that does not answer
        self._file.close()  # releases the lock; after this a sender still in its call cannot acknowledge anything
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
            problems = []
            if self._delivery_error:
                problems.append(
                    f"cannot deliver to {mask(self._uri)}; {self._path} keeps the records ({self._delivery_error})"
                )
            if self._unwritten:
                problems.append(f"{len(self._unwritten)} records wait, as the disk is full, for {self._path}")
            if self._refusals:
                problems.append(f"MLflow refused {self._refusals} records: " + "; ".join(self._refused))
            if self._waiting:
                problems.append(f"records wait for runs that never began: {', '.join(sorted(self._waiting))}")
            return "\n".join(problems) or None


def is_in_use(spool: Path) -> bool:
    """Whether the tracker of a running run uses the spool; one that was just killed gets time to release it."""
    if not spool.exists():
        return False
    with open(spool, "ab") as file:
        try:
            _lock(file.fileno(), spool)
        except RuntimeError:
            return True
    return False


def is_delivered(spool: Path, uri: str | None = None, *, status: Status | None = None) -> bool:
    """Whether a spool's last run has ended and everything is delivered; True if there is no spool.

    With `uri`, whether it is delivered there; with `status`, whether it ended with that status.
    """
    if not spool.exists():
        return True
    lines = spool.read_bytes().splitlines()
    last = parse_line(lines[-1]) if lines else None
    try:
        state = json.loads(spool.with_name(f"{spool.name}.ack").read_bytes())
        if state["offset"] < spool.stat().st_size or (uri is not None and state["uri"] != mask(absolute(uri))):
            return False
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return last is not None and last["op"] == "end" and status in (None, last.get("status"))


def parse_line(line: bytes) -> Record | None:
    """One line of the spool; None if it is damaged, as after a power cut."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "op" in record and "key" in record else None


def read_records(spool: BinaryIO, offset: int, limit: int) -> tuple[list[Record], int]:
    """Read from `offset`: metrics of at most `limit` values, or one record of another kind; and the next offset."""
    spool.seek(offset)
    records: list[Record] = []
    count = 0
    for line in spool:
        if not line.endswith(b"\n"):
            break
        record = parse_line(line)
        if record is not None:
            count += len(record.get("values", ()))
            if records and (record["op"] != "metrics" or records[0]["op"] != "metrics" or count > limit):
                break
            records.append(record)
        offset += len(line)
    return records, offset


def _lock(descriptor: int, path: Path) -> None:
    """Lock the spool; a tracker that was just killed may need a moment to release it."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{path} is in use by another tracker; stop that run first") from None
            time.sleep(0.1)
