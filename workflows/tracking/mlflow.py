"""Talks to MLflow: checks, connection, and what is sent.

Only functions import mlflow: the import takes 1.5 s and 170 MB, and a check needs none of it.
"""

from __future__ import annotations

import base64
import fcntl
import functools
import http.client
import logging
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from datasets.pipeline.storage import ENDS_EARLY, ends_early, mask
from workflows.errors import UserError
from workflows.tracking.recorder import KEY_TAG, MAX_DIGEST, MAX_PARAMS, MAX_SOURCE, Record, cut

if TYPE_CHECKING:
    from http.client import HTTPMessage

    from mlflow import MlflowClient


class DeletedError(Exception):
    """The experiment of a run was deleted in MLflow."""


def absolute(uri: str) -> str:
    """The URI with a relative sqlite path made absolute, as other processes have other working folders."""
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
    """Check within seconds, without mlflow, whether runs can be tracked at `uri`.

    Raises:
        ValueError: they cannot; the message says why and what to do.
    """
    shown = f"tracking.uri={mask(uri)}"
    scheme = uri.partition(":")[0]
    if scheme in ("http", "https"):
        if ends_early(uri):  # part of it would be taken for the host's name
            raise UserError(
                f"{shown}: {ENDS_EARLY}, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        try:
            reason = _ask_health(uri)
        except RedirectError as error:
            raise UserError(
                f"{shown}: it redirects to {error}; users, passwords and tokens are only sent to the scheme, host and "
                f"port that you name. Set tracking.uri to the address of the MLflow server itself, such as "
                f"{str(error).removesuffix('/health')}, if that is yours"
            ) from None
        if reason is not None:
            raise UserError(
                f"{shown}: no MLflow server answers there ({reason}); "
                "start one with `mlflow server --host HOST --port PORT`, or use sqlite:///mlflow.db"
            )
    elif uri.startswith("sqlite:///") and not uri.endswith((":memory:", "/")):
        _check_database(shown, Path(uri.removeprefix("sqlite:///").partition("?")[0]))
    else:
        raise UserError(
            f"{shown}: MLflow cannot track runs there; use sqlite:///FILE (sqlite:////ABSOLUTE/FILE) or the http:// or "
            "https:// address of an MLflow server, which can have any database behind it"
        )


def _check_database(shown: str, file: Path) -> None:
    folder = file.absolute().parent
    if not folder.is_dir():
        raise UserError(f"{shown}: the folder {folder} does not exist; create it, or name another file")
    if not os.access(folder, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise UserError(f"{shown}: no permission to write in {folder}; name a file in a folder of yours")
    if file.is_dir():
        raise UserError(f"{shown}: {file} is a folder; name a file in it, as in sqlite:///{file}/mlflow.db")
    if file.exists():
        with open(file, "rb") as data:
            header = data.read(16)
        if header not in (b"", b"SQLite format 3\0"):
            raise UserError(f"{shown}: {file} is a file of another kind, not a SQLite database; name another file")


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
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=trust), SameServer)
        with opener.open(request, timeout=3) as answer:
            body = answer.read(100)
        return None if body.strip() == b"OK" else "something else does: its /health is not MLflow's"
    except urllib.error.HTTPError as error:
        return mask(f"the answer to /health is {error.code} {error.reason}")
    except (OSError, ValueError, http.client.HTTPException) as error:  # the last two: no such host or port is possible
        return mask(str(getattr(error, "reason", None) or error))


class RedirectError(Exception):
    """A server answers with the address of another one, which is the message."""


class SameServer(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one server only: urllib would repeat the header ``Authorization`` to any other."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        target = urlsplit(newurl)
        if _server(newurl) != _server(req.full_url):
            host = target.netloc.rpartition("@")[2]
            raise RedirectError(urlunsplit((target.scheme, host, target.path, "", "")))  # a query may hold a token
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _server(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port, with the scheme's own port where none is written."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def connect(uri: str) -> Any:
    """An MlflowClient for `uri`, with no global state but the settings of mlflow's own environment."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # its retries repeat create_run; ours do not
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    set_timeout(0)
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
    """Create a database completely or not at all: MLflow cannot open one whose creation was interrupted."""
    from mlflow import MlflowClient

    new = database.with_name(f"{database.name}.new")
    new.unlink(missing_ok=True)
    uri = f"sqlite:///{new}"
    MlflowClient(uri, uri).search_experiments(max_results=1)
    os.replace(new, database)


def find(uri: str, key: str) -> str | None:
    """The id of the run with this key, in any experiment; None if there is none."""
    client = connect(uri)
    return find_run(client, key, [experiment.experiment_id for experiment in client.search_experiments()])


def find_run(client: MlflowClient, key: str, experiment_ids: list[str]) -> str | None:
    oldest_first = ["attributes.start_time ASC"]
    runs = client.search_runs(experiment_ids, f"tags.`{KEY_TAG}` = '{key}'", order_by=oldest_first, max_results=1)
    return runs[0].info.run_id if runs else None


def find_experiment(client: MlflowClient, name: str, uri: str) -> str:
    """The id of the experiment, created if need be; several trackers may try at once."""
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        database = _database(uri)  # else artifacts would go to the working folder
        location = None if database is None else str(database.parent / "mlartifacts")
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except Exception:
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise DeletedError(
            f"the experiment {name!r} is deleted in MLflow; "
            f"restore it (`mlflow experiments restore -x {experiment.experiment_id}`), or choose another name"
        )
    return str(experiment.experiment_id)


def send(client: MlflowClient, run_id: str, group: list[Record], limit: int) -> None:
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


def _register(client: MlflowClient, run_id: str, name: str, folder: str) -> None:
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


def send_details(client: MlflowClient, run_id: str, tags: dict[str, str], params: dict[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    items = [Param(name, value) for name, value in params.items()]
    for first in range(0, len(items), MAX_PARAMS):
        client.log_batch(run_id, params=items[first : first + MAX_PARAMS])


def send_dataset(client: MlflowClient, run_id: str, info: dict[str, str]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=info["name"],
        digest=info["digest"][:MAX_DIGEST],
        source_type="local",
        source=cut(info["source"], MAX_SOURCE),
        profile=info["profile"],
    )
    client.log_inputs(run_id, [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", "train")])])


def is_refusal(error: Any) -> bool:
    """Whether a retry is useless: the server refused the record, or the file to send does not exist."""
    if hasattr(error, "get_http_status_code"):  # MlflowException
        status = 503 if error.error_code == "ENDPOINT_NOT_FOUND" else error.get_http_status_code()
    elif (response := getattr(error, "response", None)) is not None:  # requests, in an upload
        status = response.status_code
    else:
        return isinstance(error, (FileNotFoundError, DeletedError))
    return bool(400 <= status < 500 and status not in (401, 403, 408, 429))  # these may be repaired


def answers(client: MlflowClient) -> bool:
    try:
        client.search_experiments(max_results=1)
    except Exception:
        return False
    return True


@functools.cache
def timeout_is_set() -> bool:
    return "MLFLOW_HTTP_REQUEST_TIMEOUT" in os.environ


def set_timeout(attempts: int) -> None:
    """Set how long mlflow waits for an answer, which it reads at each request; a user's setting is kept."""
    if not timeout_is_set():
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(min(60, 5 << min(attempts, 4)))
