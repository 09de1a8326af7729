"""The record of runs: exactly once, whatever dies. Real sqlite stores and a real MLflow server."""

import fcntl
import http.server
import json
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults import Proxy, Server
from workflows.tracking import mlflow
from workflows.tracking import spool as spool_module
from workflows.tracking.mlflow import _server, absolute, check, connect, find
from workflows.tracking.recorder import cut
from workflows.tracking.remote import RemoteTracker, start
from workflows.tracking.spool import Tracker
from workflows.tracking.system import SystemMetrics

ROOT = Path(__file__).parents[3]
WAIT = 40.0  # seconds for a delivery that must come; it comes in 1 or 2


@pytest.fixture(scope="module")
def starting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.stop()


@pytest.fixture
def server(starting: Server) -> Server:
    starting.ready()
    return starting


@pytest.fixture(scope="module", autouse=True)
def _start_the_server_while_other_tests_run(starting: Server) -> None: ...


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One sqlite store: making one takes 2 s. Tests use keys of their own."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


def begin(tracker: Any, key: str, **more: Any) -> None:
    tracker.begin(key, **{"experiment": "tests", "run_name": key, "params": {}, "tags": {}, **more})


def spooled(spool: Path, name: str) -> list[tuple[float, int, int]]:
    records = [json.loads(line) for line in spool.read_text().splitlines()]
    return [(r["values"][name], r["time"], r["step"]) for r in records if name in r.get("values", ())]


def delivered(uri: str, key: str, name: str) -> list[tuple[float, int, int]]:
    """Value, time, step of each point, in order of steps."""
    client = connect(uri)
    found = client.get_metric_history(find(uri, key), name)
    return [(m.value, m.timestamp, m.step) for m in sorted(found, key=lambda m: m.step)]


def run_of(uri: str, key: str) -> Any:
    return connect(uri).get_run(find(uri, key))


# Without a store.


def test_check_says_what_is_wrong_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database at all")
    with pytest.raises(ValueError, match=r"no MLflow server answers there .*refused.*`mlflow server") as caught:
        check("http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)
    with pytest.raises(ValueError, match="no MLflow server answers there"):
        check("http://127.0.0.1:port")
    with pytest.raises(ValueError, match=r"folder .*nowhere does not exist; create it"):
        check(f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    with pytest.raises(ValueError, match="not a SQLite database"):
        check(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(ValueError, match="is a folder"):
        check(f"sqlite:///{tmp_path}")
    for unknown in ("mlruns", "file:///mlruns", "postgresql://db/x", "sqlite:///:memory:"):
        with pytest.raises(ValueError, match=r"use sqlite:///FILE .*or the http"):
            check(unknown)
    check(f"sqlite:///{tmp_path}/new.db")


@pytest.mark.parametrize("password", ["ab/cd", "p@ss/word", "a?b", "a#b/c"])
def test_check_refuses_a_password_that_would_be_taken_for_a_host_and_shows_no_part_of_it(password: str) -> None:
    with pytest.raises(ValueError, match=r"a / \? or # in it; write them as %2F .*MLFLOW_TRACKING_PASSWORD") as caught:
        check(f"http://me:{password}@127.0.0.1:9")
    assert str(caught.value).startswith("tracking.uri=http://me:***@127.0.0.1:9: the password")


class Redirecting(http.server.BaseHTTPRequestHandler):
    """Answers OK, or redirects to what `server.to` has for the path; keeps the credentials it was sent."""

    def do_GET(self) -> None:
        asked: Any = self.server
        asked.seen.append((self.path, self.headers.get("Authorization")))
        to = asked.to.get(self.path)
        self.send_response(200 if to is None else asked.code)
        if to is not None:
            self.send_header("Location", to)
        self.end_headers()
        self.wfile.write(b"OK" if to is None else b"")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def two_servers() -> Iterator[list[Any]]:
    made: list[Any] = []
    for _ in range(2):
        one: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirecting)
        one.seen, one.to, one.code, one.uri = [], {}, 302, f"127.0.0.1:{one.server_address[1]}"
        threading.Thread(target=one.serve_forever, args=(0.01,), daemon=True).start()
        made.append(one)
    yield made
    for one in made:
        one.shutdown()
        one.server_close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("given", ["uri", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN", "nothing"])
def test_check_sends_no_credentials_to_a_server_that_it_is_redirected_to(
    two_servers: list[Any], monkeypatch: pytest.MonkeyPatch, given: str, code: int
) -> None:
    named, other = two_servers
    named.to, named.code = {"/health": f"http://you:hidden@{other.uri}/a/health?state=hidden"}, code
    user = "me:secret@" if given == "uri" else ""
    if given.startswith("MLFLOW"):
        monkeypatch.setenv(given, "secret")
    there = rf"redirects to http://{other.uri}/a/health; .*http://{other.uri}/a, "
    with pytest.raises(ValueError, match=there) as caught:
        check(f"http://{user}{named.uri}")
    assert "secret" not in str(caught.value) and "hidden" not in str(caught.value)
    assert (named.seen[0][1] is None, other.seen) == (given == "nothing", [])


def test_check_follows_a_redirect_within_the_server_with_its_credentials(two_servers: list[Any]) -> None:
    server = two_servers[0]
    server.to = {"/health": "/mlflow/health", "/mlflow/health": f"http://{server.uri}/mlflow/health/"}
    check(f"http://me:secret@{server.uri}")
    assert [path for path, _ in server.seen] == ["/health", "/mlflow/health", "/mlflow/health/"]
    assert len({sent for _, sent in server.seen}) == 1 and server.seen[0][1] is not None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("http://host/a", "http://HOST:80/b", True),
        ("https://host", "https://host:443/", True),
        ("http://host", "https://host", False),
        ("https://host", "http://host:443", False),
        ("http://host", "http://host:8080", False),
        ("http://host", "http://sub.host", False),
    ],
)
def test_a_server_is_a_scheme_a_host_and_a_port(one: str, other: str, same: bool) -> None:
    assert (_server(one) == _server(other)) is same


def test_check_needs_no_mlflow() -> None:
    code = "import sys\nfrom workflows.tracking.mlflow import check\ncheck('sqlite:///x.db')\n"
    code += "print({'mlflow', 'ray'} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize("name", ["a@b", "/a", "a//b", "../a", "a/", "", "a\n", "x" * 251])
def test_names_that_mlflow_refuses_are_refused_at_once(tmp_path: Path, name: str) -> None:
    tracker = Tracker("sqlite:///unused.db", tmp_path / "spool")
    with pytest.raises(ValueError, match="MLflow takes"):
        tracker.metrics("run", {name: 1.0}, 0)
    with pytest.raises(ValueError, match="MLflow takes"):
        begin(tracker, "run", params={name: 1})
    with pytest.raises(ValueError, match="run key"):
        begin(tracker, "it's")
    tracker.close()


def test_cut_says_that_it_cut() -> None:
    assert cut("short", 10) == "short"
    assert len(cut("x" * 7000, 6000)) == 6000
    assert cut("x" * 7000, 6000).endswith("x... [cut from 7,000 characters]")


def test_a_relative_store_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("sqlite:///mlflow.db?timeout=5") == f"sqlite:///{tmp_path}/mlflow.db?timeout=5"
    assert absolute("http://host/x") == "http://host/x"


def test_one_spool_has_one_tracker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.tracking.spool.LOCK_TIMEOUT", 0.2)
    tracker = Tracker("sqlite:///unused.db", tmp_path / "spool")
    with pytest.raises(RuntimeError, match="in use by another tracker"):
        Tracker("sqlite:///unused.db", tmp_path / "spool")
    tracker.close()
    Tracker("sqlite:///unused.db", tmp_path / "spool").close()


def test_samples_tell_of_gpus_when_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert set(SystemMetrics().sample()) == {"system/cpu_percent", "system/memory_gb", "system/memory_percent"}
    gpu = types.SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda gpu: types.SimpleNamespace(used=2e9),
        nvmlDeviceGetPowerUsage=lambda gpu: 250_000,
        nvmlDeviceGetUtilizationRates=lambda gpu: types.SimpleNamespace(gpu=70),
    )
    monkeypatch.setitem(sys.modules, "pynvml", gpu)
    sample = SystemMetrics().sample()
    assert [sample[f"system/gpu_0_{name}"] for name in ("memory_gb", "watts", "percent")] == [2, 250, 70]


# With a sqlite store.


def test_points_arrive_once_with_the_times_of_the_spool(store: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    tracker = Tracker(store, spool)
    begin(tracker, "once")
    for step in range(2500):
        tracker.metrics("once", {"loss/train": 1 / (step + 1)}, step)
    tracker.metrics("once", {"explicit": 1.0}, 7, time_ms=1234)
    tracker.metrics("once", {"odd": math.nan}, 0)
    tracker.metrics("once", {"odd": math.inf}, 1)
    tracker.end("once", "FINISHED")
    assert tracker.close(WAIT)
    assert tracker.problem() is None
    assert len(spooled(spool, "loss/train")) == 2500
    assert delivered(store, "once", "loss/train") == spooled(spool, "loss/train")
    assert delivered(store, "once", "explicit") == [(1.0, 1234, 7)]
    odd = [value for value, _, _ in delivered(store, "once", "odd")]
    assert math.isnan(odd[0])
    assert odd[1] == sys.float_info.max
    run = run_of(store, "once")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "once")
    assert run.data.tags["mlflow.user"]
    assert run.data.tags["mlflow.source.name"]


def test_a_second_tracker_on_the_spool_adds_nothing(store: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    first = Tracker(store, spool)
    begin(first, "again")
    first.metrics("again", {"loss": 1.0}, 1)
    assert first.close(WAIT)
    second = Tracker(store, spool)
    assert second.flush(0)
    assert second.run_id("again") == find(store, "again")
    second.metrics("again", {"loss": 1.5}, 1)  # a replay, known from the spool
    assert second.close(WAIT)
    assert [value for value, _, _ in delivered(store, "again", "loss")] == [1.0]
    (tmp_path / "spool.ack").unlink()  # and delivered from the start once more
    third = Tracker(store, spool)
    assert third.close(WAIT)
    assert delivered(store, "again", "loss") == spooled(spool, "loss")
    client = connect(store)
    experiment = client.get_experiment_by_name("tests").experiment_id
    assert len(client.search_runs([experiment], "tags.`rondo.key` = 'again'")) == 1


def test_steps_replayed_after_a_failure_are_dropped(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, tmp_path / "spool")
    begin(tracker, "replay")
    for step, value in [(1, 10.0), (2, 20.0), (3, 30.0), (2, 21.0), (3, 31.0), (4, 40.0)]:
        tracker.metrics("replay", {"loss": value}, step)
    tracker.metrics("replay", {"loss": 0.0, "accuracy": 0.5}, 3)  # another metric has its own steps
    assert tracker.close(WAIT)
    losses = [(value, step) for value, _, step in delivered(store, "replay", "loss")]
    assert losses == [(10, 1), (20, 2), (30, 3), (40, 4)]
    assert [(value, step) for value, _, step in delivered(store, "replay", "accuracy")] == [(0.5, 3)]


def test_a_spool_moves_to_another_store_as_a_whole(store: str, server: Server, tmp_path: Path) -> None:
    for uri in (store, server.uri):
        tracker = Tracker(uri, tmp_path / "spool")
        begin(tracker, "moved")
        tracker.metrics("moved", {"loss": 1.0}, 1)
        assert tracker.close(WAIT)
        assert delivered(uri, "moved", "loss") == spooled(tmp_path / "spool", "loss")


def test_a_torn_last_line_is_cut_off(store: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    tracker = Tracker(store, spool)
    begin(tracker, "torn")
    tracker.metrics("torn", {"loss": 1.0}, 1)
    assert tracker.close(WAIT)
    with open(spool, "ab") as file:
        file.write(b'{"op": "metrics", "key": "torn", "ti')
    tracker = Tracker(store, spool)
    tracker.metrics("torn", {"loss": 2.0}, 2)
    assert tracker.close(WAIT)
    assert [value for value, _, _ in delivered(store, "torn", "loss")] == [1.0, 2.0]


def test_a_killed_writer_loses_nothing_that_it_spooled(store: str, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    code = f"""
from workflows.tracking.spool import Tracker
tracker = Tracker({store!r}, {str(spool)!r})
tracker.begin("killed", experiment="tests", run_name="killed", params={{}}, tags={{}})
for step in range(10**9):
    tracker.metrics("killed", {{"loss": float(step)}}, step)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + 30
    while not (tmp_path / "spool.ack").exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # until the delivery is under way, so that the kill falls in the middle of it
    time.sleep(0.05)
    writer.kill()
    writer.wait()
    before = json.loads((tmp_path / "spool.ack").read_text())["offset"]
    assert before < spool.stat().st_size, "the kill came after everything was delivered"
    _keep_lines(spool, 5_000, at_least=before)
    tracker = Tracker(store, spool)
    begin(tracker, "killed")
    tracker.end("killed", "FINISHED")
    assert tracker.close(WAIT)
    points = spooled(spool, "loss")
    assert [step for _, _, step in points] == list(range(len(points)))
    assert delivered(store, "killed", "loss") == points
    assert run_of(store, "killed").info.status == "FINISHED"


def _keep_lines(spool: Path, count: int, *, at_least: int) -> None:
    """Shorten a spool, never below the offset: the writer may have been far ahead, and the test would be long."""
    size = 0
    with open(spool, "rb") as lines:
        for number, line in enumerate(lines):
            if number >= count and size > at_least:
                break
            size += len(line)
    os.truncate(spool, size)


def test_a_resumed_run_reopens_and_tells_which_params_changed(store: str, tmp_path: Path) -> None:
    for lr, status in [(0.1, "FAILED"), (0.2, "FINISHED")]:
        tracker = Tracker(store, tmp_path / "spool")
        begin(tracker, "resumed", params={"lr": lr, "seed": 0, f"only {lr}": "x" * 7000, "uri": "http://a:b@c"})
        assert tracker.flush(WAIT)
        assert run_of(store, "resumed").info.status == "RUNNING"
        tracker.end("resumed", status)  # type: ignore[arg-type]
        assert tracker.close(WAIT)
        assert tracker.problem() is None
        assert run_of(store, "resumed").info.status == status
    run = run_of(store, "resumed")
    assert run.data.params["lr"] == "0.1"
    assert len(run.data.params["only 0.2"]) == 6000
    assert run.data.params["uri"] == "http://a:***@c"
    assert json.loads(run.data.tags["rondo.params_changed"]) == {"lr": ["0.1", "0.2"]}


def test_children_nest_under_their_parent_in_any_order_of_arrival(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, tmp_path / "spool")
    tracker.metrics("child", {"loss": 1.0}, 1)
    begin(tracker, "child", parent_key="search")
    assert not tracker.flush(0)
    assert "never began: child, search" in str(tracker.problem())
    begin(tracker, "search")
    assert tracker.close(WAIT)
    assert run_of(store, "child").data.tags["mlflow.parentRunId"] == find(store, "search")
    assert len(delivered(store, "child", "loss")) == 1


def test_many_params_and_the_dataset_arrive(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, tmp_path / "spool")
    dataset = {"name": "etth1", "digest": "0" * 64, "source": "s3://data/etth1", "profile": {"rows": 5}}
    begin(tracker, "rich", params={f"p{i}": i for i in range(250)}, tags={"mlflow.user": "me"}, dataset=dataset)
    assert tracker.close(WAIT)
    run = run_of(store, "rich")
    assert len(run.data.params) == 250
    assert run.data.tags["mlflow.user"] == "me"
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.profile) == ("etth1", "0" * 36, '{"rows": 5}')


@pytest.mark.parametrize("kind", ["store", "server"])
def test_a_bundle_becomes_one_version_of_a_model_however_often_it_is_delivered(
    kind: str, store: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    uri = store if kind == "store" else request.getfixturevalue("server").uri
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    for name, versions in (("first", 1), ("second", 2)):
        spool = tmp_path / f"spool-{name}"
        for _ in range(2):
            tracker = Tracker(uri, spool)
            begin(tracker, f"{kind}-{name}")
            tracker.artifact(f"{kind}-{name}", tmp_path / "bundle", "bundle")
            tracker.register(f"{kind}-{name}", f"model {kind}", "bundle")
            tracker.end(f"{kind}-{name}", "FAILED", tags={"rondo.reason": "x" * 9000})
            assert tracker.close(WAIT) and tracker.problem() is None
            (tmp_path / f"spool-{name}.ack").unlink()
        client = connect(uri)
        assert len(client.search_model_versions(f"name = 'model {kind}'")) == versions
        run = run_of(uri, f"{kind}-{name}")
        assert client.get_model_version_by_alias(f"model {kind}", "champion").run_id == run.info.run_id
        assert run.info.status == "FAILED" and "[cut from 9,000 characters]" in run.data.tags["rondo.reason"]


def test_a_refused_record_is_told_and_skipped(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, tmp_path / "spool")
    begin(tracker, "refused")
    assert tracker.flush(WAIT)
    connect(store).delete_run(find(store, "refused"))
    tracker.metrics("refused", {"loss": 1.0}, 1)
    (tmp_path / "gone.txt").write_text("x")
    tracker.artifact("accepted", tmp_path / "gone.txt")
    (tmp_path / "gone.txt").unlink()
    begin(tracker, "accepted")
    tracker.metrics("accepted", {"loss": 1.0}, 1)
    assert tracker.close(WAIT)
    assert "MLflow refused 2 records: metrics of run 'refused'" in str(tracker.problem())
    assert "artifact of run 'accepted': FileNotFoundError" in str(tracker.problem())
    assert len(delivered(store, "accepted", "loss")) == 1
    with pytest.raises(FileNotFoundError, match="no such file or folder on this node"):
        tracker.artifact("accepted", tmp_path / "never.txt")


def test_a_record_that_always_fails_is_given_up_in_the_end(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(client: Any, run_id: str, group: list[dict[str, Any]], limit: int) -> None:
        if group[0]["op"] == "artifact":
            raise OSError("the artifact store is away")
        deliver(client, run_id, group, limit)

    deliver = mlflow.send
    monkeypatch.setattr(spool_module, "send", send)
    tracker = Tracker(store, tmp_path / "spool")
    begin(tracker, "stuck")
    tracker.artifact("stuck", __file__)
    tracker.end("stuck", "FINISHED")
    assert not tracker.flush(1.5)
    assert "the artifact store is away" in str(tracker.problem())
    monkeypatch.setattr(spool_module, "GIVE_UP", 0.5)
    assert tracker.close(WAIT)
    assert "MLflow refused 1 records: artifact of run 'stuck'" in str(tracker.problem())
    assert run_of(store, "stuck").info.status == "FINISHED"


def test_system_metrics_are_sampled_while_the_run_is_open(store: str, tmp_path: Path) -> None:
    tracker = Tracker(store, tmp_path / "spool", system_metrics=0.4)
    begin(tracker, "sampled")
    begin(tracker, "inner", parent_key="sampled")
    time.sleep(2)
    tracker.end("sampled", "FINISHED")
    count = len(spooled(tmp_path / "spool", "system/cpu_percent"))
    time.sleep(1.2)
    assert tracker.close(WAIT)
    points = spooled(tmp_path / "spool", "system/cpu_percent")
    assert 1 <= count == len(points)
    assert delivered(store, "sampled", "system/cpu_percent") == points
    assert not delivered(store, "inner", "system/cpu_percent")


def test_a_new_store_is_opened_by_one_process_at_a_time(store: str, tmp_path: Path) -> None:
    connect(store)  # so that mlflow is imported, and nothing but the lock keeps the tracker from the new store
    with open(tmp_path / "mlflow.db.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as another process does while it makes the tables
        tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "spool")
        begin(tracker, "new")
        assert tracker.run_id("new", 1.5) is None
        assert not (tmp_path / "mlflow.db").exists()
    assert tracker.close(WAIT)
    assert run_of(tracker._uri, "new").info.run_name == "new"


def test_a_store_whose_maker_was_killed_is_made_again(tmp_path: Path) -> None:
    uri, beside = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "mlflow.db.new"
    code = f"from workflows.tracking.mlflow import connect; connect({uri!r})"
    maker = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    deadline = time.monotonic() + WAIT
    while not (beside.exists() and beside.stat().st_size > 100_000):  # some tables of many
        assert time.monotonic() < deadline and maker.poll() is None
        time.sleep(0.001)
    maker.kill()
    maker.wait()
    assert not (tmp_path / "mlflow.db").exists()
    assert [e.name for e in connect(uri).search_experiments()] == ["Default"]
    assert not beside.exists()


# With a server.


def test_check_and_urls_of_a_server(server: Server, tmp_path: Path) -> None:
    check(server.uri)
    check(server.uri.replace("http://", "http://me:secret@") + "/")
    tracker = Tracker(server.uri.replace("http://", "http://me:secret@"), tmp_path / "spool")
    begin(tracker, "linked")
    run_id = tracker.run_id("linked", WAIT)
    assert run_id == find(server.uri, "linked")
    url = str(tracker.url("linked"))
    assert url.startswith(f"{server.uri}/#/experiments/")
    assert url.endswith(f"/runs/{run_id}")
    assert tracker.close(WAIT)


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_files_and_folders_arrive(kind: str, store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    uri = store if kind == "sqlite" else request.getfixturevalue("server").uri
    (tmp_path / "bundle" / "inner").mkdir(parents=True)
    (tmp_path / "bundle" / "inner" / "a.json").write_text("1")
    (tmp_path / "plot.html").write_text("<p>")
    tracker = Tracker(uri, tmp_path / "spool")
    begin(tracker, "files")
    tracker.artifact("files", tmp_path / "plot.html", "plots")
    tracker.artifact("files", tmp_path / "bundle", "model")
    assert tracker.close(WAIT)
    assert tracker.problem() is None
    client, run_id = connect(uri), find(uri, "files")
    assert [file.path for file in client.list_artifacts(run_id, "plots")] == ["plots/plot.html"]
    assert [file.path for file in client.list_artifacts(run_id, "model/inner")] == ["model/inner/a.json"]
    if kind == "sqlite":
        place = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts" / str(run_id)
        assert (place / "artifacts" / "plots" / "plot.html").read_text() == "<p>"


def test_an_outage_of_the_server_loses_and_doubles_nothing(server: Server, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    tracker = Tracker(server.uri.replace("http://", "http://me:secret@"), spool)
    begin(tracker, "outage")
    for step in range(3000):
        tracker.metrics("outage", {"loss": float(step)}, step)
        if step == 1500:
            tracker.run_id("outage", WAIT)  # the delivery is under way: stop the server in it
            server.stop()
    assert not tracker.flush(1.5)
    assert "cannot deliver" in str(tracker.problem())
    assert "secret" not in str(tracker.problem())
    server.launch()
    server.ready()
    tracker.end("outage", "FINISHED")
    assert tracker.close(WAIT)
    assert tracker.problem() is None
    assert len(spooled(spool, "loss")) == 3000
    assert delivered(server.uri, "outage", "loss") == spooled(spool, "loss")


@pytest.mark.parametrize("behaviour", ["500", "lose", "slow"])
def test_a_server_that_fails_or_loses_answers_gets_everything_once(
    behaviour: str, server: Server, tmp_path: Path
) -> None:
    proxy = Proxy(server.uri, behaviour, delay=0.5)
    try:
        tracker, key = Tracker(proxy.uri, tmp_path / "spool"), f"broken-{behaviour}"
        begin(tracker, key, params={"a": 1})
        (tmp_path / "file.txt").write_text("text")
        tracker.artifact(key, tmp_path / "file.txt")
        began = time.monotonic()
        for step in range(2000):
            tracker.metrics(key, {"loss": float(step)}, step)
        assert time.monotonic() - began < 1.0, "recording must not wait for the server"
        if behaviour != "slow":
            assert not tracker.flush(3.0)
            asked, proxy.behaviour = proxy.asked, "pass"
            assert asked > 1
        tracker.end(key, "FINISHED")
        assert tracker.close(WAIT)
    finally:
        proxy.stop()
    assert tracker.problem() is None
    assert delivered(server.uri, key, "loss") == spooled(tmp_path / "spool", "loss")
    client = connect(server.uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()], f"tags.`rondo.key` = '{key}'")
    assert [r.info.status for r in found] == ["FINISHED"] and found[0].data.params == {"a": "1"}
    assert [a.path for a in client.list_artifacts(found[0].info.run_id)] == ["file.txt"]


# In an actor.


def test_workers_reach_the_tracker_through_its_actor(server: Server, tmp_path: Path, shared_ray: None) -> None:
    import ray

    began = time.monotonic()
    tracker = start(server.uri, tmp_path / "spool", actor=True)
    begin(tracker, "remote")
    assert time.monotonic() - began < 1.0, "the start must not wait for the actor"
    assert isinstance(tracker, RemoteTracker)
    packed = pickle.dumps(tracker)

    @ray.remote(num_cpus=1)
    def train() -> bool:
        handle = pickle.loads(packed)
        for step in range(200):
            handle.metrics("remote", {"loss": float(step)}, step)
        with pytest.raises(ValueError, match="MLflow takes"):
            handle.metrics("remote", {"a@b": 1.0}, 0)
        return bool(handle.flush(WAIT))

    assert ray.get(train.remote())
    tracker.end("remote", "FINISHED")
    assert tracker.flush(WAIT)
    assert tracker.run_id("remote") == find(server.uri, "remote")
    assert tracker.problem() is None
    ray.kill(tracker._actor, no_restart=False)  # it starts again on its spool
    tracker.metrics("remote", {"loss": 200.0}, 200)
    assert tracker.close(WAIT)
    assert delivered(server.uri, "remote", "loss") == spooled(tmp_path / "spool", "loss")
    assert len(spooled(tmp_path / "spool", "loss")) == 201
    assert run_of(server.uri, "remote").info.status == "FINISHED"
    tracker.metrics("remote", {"loss": 201.0}, 201)  # an actor that is gone stops no training
    assert not tracker.flush(0.5)
    assert "does not answer" in str(tracker.problem())
