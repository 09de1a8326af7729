"""A user's mistakes: one message that says what and where, exit code 2, and nothing half-written.

Everything goes through the command line, in this process. The first tests start no Ray; the others share one.
"""

import fcntl
import json
import os
import socket
import time
import uuid
from pathlib import Path

import click.testing
import numpy as np
import pyarrow.csv
import pytest
import ray
import torch
import yaml

from workflows.__main__ import main
from workflows.config.load import load
from workflows.runs import open_bundle
from workflows.training import bundle, checkpoint
from workflows.training.data import prepare_data
from workflows.training.worker import make_model

torch.set_num_threads(1)

LOOKBACK, HORIZON = 8, 4


def rows(count: int = 60, start: int = 0) -> list[str]:
    """Lines of a CSV: hourly times, a target, a covariate."""
    return [f"2024-01-{1 + h // 24:02d} {h % 24:02d}:00:00,{h * 7 % 13},{h % 5}" for h in range(start, start + count)]


HEADER = "date,y,x"
GOOD = [HEADER, *rows()]


class Workspace:
    """A folder with a CSV, an experiment on it, and its storage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.csv, self.file = folder, folder / "data.csv", folder / "tiny.yaml"
        self.write(GOOD)
        self.file.write_text(
            yaml.safe_dump(
                {
                    "name": "tiny",
                    "dataset": {
                        "kind": "timeseries",
                        "path": str(self.csv),
                        "time": "date",
                        "targets": ["y"],
                        "covariates": ["x"],
                        "split": {"train": 36, "validation": 12, "test": 12},
                    },
                    "task": {"kind": "forecast", "lookback": LOOKBACK, "horizon": HORIZON},
                    "model": {"family": "gru", "hidden_size": 8, "patch": 4},
                    "training": {"epochs": 1, "batch_size": 8},
                    "storage": str(folder / "runs"),
                    "tracking": {"uri": f"sqlite:///{folder}/record.db", "system_seconds": 0},
                }
            )
        )

    def write(self, lines: list[str] | str) -> None:
        self.csv.write_text(lines if isinstance(lines, str) else "\n".join(lines) + "\n")

    def refused(self, command: str, *words: str) -> str:
        """Run a command on the experiment, which must end with exit code 2 and leave nothing; its error."""
        before = self.left()
        message = refused(command, str(self.file), *words)
        assert self.left() == before
        return message

    def left(self) -> list[str]:
        """Files and folders below the storage, prepared data that is complete aside; and the record."""
        runs = self.folder / "runs"
        complete = {m.parent for m in runs.glob("prepared/*/manifest.json")}
        used = complete | {parent for folder in complete for parent in folder.parents}
        found = [p for p in runs.rglob("*") if p not in used and complete.isdisjoint(p.parents)]
        return sorted(map(str, found)) + sorted(map(str, self.folder.glob("record.db*")))


def refused(*words: str) -> str:
    """The error of a command line that must end with exit code 2."""
    result = click.testing.CliRunner().invoke(main, list(words))
    assert result.exit_code == 2, (result.stderr, result.exception)
    assert result.stdout == ""
    _, error, message = result.stderr.partition("error: ")
    assert error, result.stderr
    assert "Traceback" not in result.stderr
    return message.strip()


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR"):
        monkeypatch.delenv(name, raising=False)
    return Workspace(tmp_path)


@pytest.fixture
def no_ray(without_ray, monkeypatch):
    """Fails the test when Ray is started."""
    assert not ray.is_initialized()
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))


# --- what is refused before Ray starts ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["model.family=gruu"],
            "model.family='gruu' is not known; did you mean 'gru'? known: gru, lstm, rnn, transformer",
        ),
        (["task.kind=forcast"], "task.kind='forcast' is not known; did you mean 'forecast'?"),
        (["task.lookback=10"], "model.patch=4 does not divide task.lookback=10; use a divisor such as 5"),
        (["training.epoch=3"], "training.epoch=3 is not known; did you mean training.epochs?"),
        (["workers.count=9"], "training.batch_size=8 is smaller than workers.count=9"),
        (["storage=nosuch://x"], "nosuch://x: not a folder or URI that can be opened"),
        (["tracking.uri=postgresql://x"], "tracking.uri=postgresql://x: MLflow cannot track runs there"),
        (["tracking.uri=sqlite:////nowhere/at/all/record.db"], "the folder /nowhere/at/all does not exist"),
        (["other.yaml"], "one experiment at a time, not 2"),
    ],
)
def test_a_wrong_experiment_is_refused_at_once(place, no_ray, words, said):
    assert said in place.refused("train", *words)


@pytest.mark.parametrize("command", ["train", "prepare", "compare"])
def test_a_missing_experiment_is_refused(no_ray, command):
    assert refused(command, "dmand.yaml") == (
        "dmand.yaml: no such experiment file; did you mean workflows/experiments/demand.yaml?"
    )


def test_an_unknown_family_to_compare_is_refused_before_any_is_trained(place, no_ray):
    assert "model.family='grue' is not known; did you mean 'gru'?" in place.refused("compare", "--families", "rnn,grue")


def test_more_workers_than_this_machine_has_are_refused_at_once_with_the_arithmetic(place, no_ray):
    machine = os.cpu_count() or 1
    count = machine + 1
    place.refused("train", "training.epochs=0")  # imports are done now
    start = time.monotonic()
    message = place.refused("train", f"workers.count={count}", f"training.batch_size={count}", "workers.cpus=2")
    assert time.monotonic() - start < 1
    assert message.startswith(
        f"workers.count={count} x workers.cpus=2 = {2 * count} CPUs and workers.gpus=0 = 0 GPUs "
        f"in all, but this machine has {machine} CPUs; ask for less"
    )


def test_an_mlflow_server_that_is_not_there_is_refused(place, no_ray):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    message = place.refused("train", f"tracking.uri=http://user:secret@127.0.0.1:{port}")
    assert f"127.0.0.1:{port}: no MLflow server answers there" in message
    assert "start one with `mlflow server" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["storage=runs"], "storage='runs'"),
        (["tracking.uri=sqlite:///record.db"], "tracking.uri='record.db'"),
        (["dataset.path=data/a.csv"], "dataset.path='data/a.csv'"),
        (
            ["dataset.path={train: a.csv, validation: /data/b.csv}", "dataset.split={}", "storage=runs"],
            "storage='runs', dataset.path.train='a.csv'",
        ),
    ],
)
def test_relative_paths_are_refused_under_a_job_with_the_remedy(place, no_ray, monkeypatch, words, wrong):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for command in ("train", "prepare", "compare"):
        message = place.refused(command, *words)
        assert message.startswith(f"{wrong}: relative paths are lost under `ray job submit`")
        assert "storage=/shared/runs tracking.uri=http://HOST:5000" in message


def test_absolute_paths_and_uris_are_fine_under_a_job(place, monkeypatch):
    from workflows.cluster.connect import check_paths

    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    check_paths(load(place.file))
    uris = ["storage=s3://bucket/runs", "tracking.uri=http://host:5000"]
    check_paths(load(place.file, [*uris, "dataset.path=s3://bucket/a.csv"]))
    check_paths(load(None, uris))  # embedded data has no path


# --- resume ------------------------------------------------------------------------------------------------------


def started(place: Workspace, name: str, *overrides: str, finished: bool = False) -> None:
    """A run's folder, as training leaves it."""
    run = place.folder / "runs" / name
    run.mkdir(parents=True)
    (run / "experiment.yaml").write_text(load(place.file, list(overrides)).text())
    if finished:
        (run / "result.json").write_text("{}")


def test_resuming_where_no_run_is_unfinished_is_refused(place, no_ray):
    started(place, "tiny-20240101-000000-aaaa", finished=True)
    started(place, "other-20240101-000000-aaaa")
    assert place.refused("train", "--resume") == (
        f"--resume: no unfinished run of 'tiny' in {place.folder}/runs; leave --resume out to start one"
    )


def test_resuming_a_run_that_is_not_there_is_refused(place, no_ray):
    assert place.refused("train", "--resume", "tiny-x") == (
        f"--resume tiny-x: no run of that name in {place.folder}/runs"
    )


def test_resuming_a_finished_run_is_refused_and_names_its_bundle(place, no_ray):
    started(place, "tiny-x", finished=True)
    assert place.refused("train", "--resume", f"{place.folder}/runs/tiny-x/") == (
        f"--resume {place.folder}/runs/tiny-x/: that run is finished; its bundle is {place.folder}/runs/tiny-x/bundle"
    )


@pytest.mark.parametrize("which", ["tiny-20240101-000000-aaaa", "latest"])
def test_resuming_a_run_of_another_experiment_is_refused_with_what_differs(place, no_ray, which):
    started(place, "tiny-20240101-000000-aaaa", "model.hidden_size=16", "training.seed=1")
    words = ["--resume", which] if which != "latest" else ["--resume"]
    assert place.refused("train", *words) == (
        f"--resume {which}: its checkpoints belong to another experiment (model.hidden_size: 16 there, 8 here; "
        "training.seed: 1 there, 0 here); use the same experiment and overrides"
    )


def test_the_newest_unfinished_run_is_one_of_the_same_name(place, no_ray):
    started(place, "tiny-gru-20250101-000000-aaaa")
    started(place, "tiny-20240101-000000-aaaa", "training.seed=1")
    assert "training.seed: 1 there, 0 here" in place.refused("train", "--resume")


def test_resuming_a_run_that_goes_on_is_refused(place, no_ray, monkeypatch):
    monkeypatch.setattr("workflows.tracking.spool.LOCK_TIMEOUT", 0.3)
    started(place, "tiny-x")
    with open(place.folder / "runs/tiny-x/tracking.jsonl", "w") as spool:
        fcntl.flock(spool, fcntl.LOCK_EX)  # as its tracker does
        assert "--resume tiny-x: that run is still running" in place.refused("train", "--resume", "tiny-x")


def test_a_file_whose_path_has_an_equals_sign_is_a_file(place, no_ray):
    folder = place.folder / "a=1"
    folder.mkdir()
    (folder / "e.yaml").write_text(place.file.read_text())
    message = refused("train", str(folder / "e.yaml"), "training.epoch=3")
    assert message.startswith(f"{folder}/e.yaml: training.epoch=3 is not known")


# --- data, through Ray -------------------------------------------------------------------------------------------


def replaced(number: int, line: str) -> list[str]:
    """Good lines, one of them (as a person counts: the header is 1) another."""
    return [*GOOD[: number - 1], line, *GOOD[number:]]


@pytest.mark.parametrize(
    ("lines", "words", "said"),
    [
        (
            None,
            ["dataset.path={folder}/dta.csv"],
            "there is no file or folder {folder}/dta.csv; did you mean {folder}/data.csv?",
        ),
        ("", [], "{csv} is empty (0 bytes)"),
        ([HEADER], [], "{csv}: there are no rows"),
        ("\n\n", [], "{csv}, line 1: blank, but names of columns were expected"),
        (GOOD, ["dataset.targets=[z]"], "{csv} has no column 'z'. Its columns: date, y, x"),
        (GOOD, ["dataset.time=dat"], "{csv} has no column 'dat', did you mean 'date'? Its columns: date, y, x"),
        (GOOD, ["dataset.covariates=[y2]"], "{csv} has no column 'y2', did you mean 'y'?"),
        (replaced(31, "2024-01-02 05:00:00,oops,1"), [], "{csv}, row 31: 'oops' in column 'y' is not a number"),
        (replaced(31, "2024-01-02 05:00:00,inf,1"), [], "{csv}, row 31: inf in column 'y' is infinite"),
        (
            replaced(31, "2024-01-02 05:00:00,,1"),
            [],
            "{csv}, row 31: no value in column 'y', the first of 1 missing in 60",
        ),
        (replaced(31, "yesterday,1,1"), [], "{csv}, row 31: 'yesterday' in column 'date' is no time"),
        (replaced(31, "2024-01-02 05:00:00,1"), [], "{csv}, row 31: 2 values where the header names 3"),
        (
            [*GOOD[:30], GOOD[31], GOOD[30], *GOOD[32:]],
            [],
            "{csv}, row 32: time 2024-01-02 05:00:00 comes after 2024-01-02 06:00:00 of row 31; sort the rows by time",
        ),
        (
            [*GOOD[:30], GOOD[29], *GOOD[30:]],
            [],
            "{csv}, row 31: time 2024-01-02 04:00:00 occurs twice, also in row 30; remove one of the rows",
        ),
        ([*GOOD[:30], *GOOD[31:]], [], "{csv}, row 31: 1 steps of 1h are missing between 2024-01-02 04:00:00 and"),
        (GOOD[:12], [], "the series has 11 steps, too few for dataset.split"),
        (GOOD, ["dataset.split={train: 0.99, validation: 0.005, test: 0.005}"], "leaves none for validation"),
        (GOOD, ["dataset.split={validation: 2024-01-05}"], "leaves none for validation"),
        (
            GOOD,
            ["dataset.path={folder}/tiny.yaml"],
            "the ending is none of .csv, .tsv, .jsonl, .ndjson, .txt, .parquet",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_data_that_cannot_be_used_is_refused_and_nothing_is_left(place, session, command, lines, words, said):
    if lines is not None:
        place.write(lines)
    names = {"folder": place.folder, "csv": place.csv}
    assert said.format(**names) in place.refused(command, *(w.replace("{folder}", str(place.folder)) for w in words))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["task.lookback=40"],
            "the series has no window in train: that split is steps 0 to 36 of 60, and a window needs "
            "lookback + horizon = 40 + 4 = 44 steps",
        ),
        (["task.horizon=14"], "the series has no window in validation: that split is steps 36 to 48 of 60"),
        (
            ["task.horizon=6", "dataset.split={train: 36, validation: 20, test: 4}"],
            "the series has no window in test: that split is steps 56 to 60 of 60",
        ),
    ],
)
def test_a_series_shorter_than_a_window_is_refused_before_training(place, session, words, said):
    assert said in place.refused("train", *words)


def test_a_series_too_short_is_named_and_how_many_more(place, session):
    long = [f"{line},long" for line in rows()]
    short = [f"{line},{name}" for name in ("short", "tiny") for line in rows(30)]
    place.write([f"{HEADER},name", *long, *short])
    words = ["dataset.series=name", "dataset.split={validation: 4, test: 4}", "task.lookback=20"]
    message = place.refused("train", *words)
    assert message.startswith("series 'short' (and 1 more) has no window in train: that split is steps 0 to 22 of 30")


def test_more_gpus_than_ray_has_are_refused_with_the_arithmetic(place, session):
    message = place.refused("train", "workers.gpus=99")
    assert "workers.gpus=99 = 99 GPUs in all, but Ray has 3 CPUs and" in message


# --- bundles -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(session, tmp_path_factory):
    """A place with a bundle whose model was never trained."""
    place = Workspace(tmp_path_factory.mktemp("made"))
    experiment = load(place.file)
    prepared = prepare_data(experiment)
    model, spec = make_model(experiment, prepared, torch.device("cpu"))
    from datasets.pipeline.storage import Storage

    bundle.save(
        Storage(place.folder),
        "bundle",
        checkpoint.weights(model),
        experiment=experiment.plain(),
        spec=spec,
        state=prepared.state,
        metrics={},
        run="tiny-x",
    )
    return place


@pytest.fixture
def copy(made, tmp_path):
    """The bundle's folder, to be damaged."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in (made.folder / "bundle").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


COMMANDS = {"evaluate": [], "predict": ["data.csv"]}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("model.safetensors", lambda data: data[:-9], "model.safetensors: damaged: "),
        ("model.safetensors", lambda data: b"x" + data[1:], "model.safetensors: damaged: "),
        ("bundle.json", lambda data: data[:100], "bundle.json: damaged: 100 bytes, "),
        ("bundle.json", None, "bundle.json: missing, though the manifest names it"),
        ("manifest.json", lambda data: data[:-9], "no readable manifest.json; this is not a complete"),
        ("manifest.json", lambda data: b"[]", "not a bundle, but something else with a manifest.json"),
        ("manifest.json", lambda data: b'{"files": ["bundle.json"]}', "no readable manifest.json"),
        ("manifest.json", lambda data: b'{"files": {"bundle.json": {}}}', "no readable manifest.json"),
        ("manifest.json", lambda data: b'{"files": {"state.json": {}}}', "not a bundle, but something else with"),
        ("manifest.json", None, "not a bundle: it has no manifest.json"),
    ],
)
def test_a_damaged_bundle_is_refused_by_name(copy, command, file, change, said):
    path = copy / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    message = refused(command, str(copy), *COMMANDS[command])
    assert message.startswith(str(copy))
    assert said in message


def test_a_manifest_that_leaves_the_weights_out_is_no_bundle(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest["files"]["model.safetensors"]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "not a bundle: bundle.json or model.safetensors is not in its manifest" in refused("evaluate", str(copy))


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_bundle_is_refused(place, command):
    words = COMMANDS[command]
    assert "nowhere: no such folder; a bundle is the folder that `train` names at its end" in refused(
        command, f"{place.folder}/nowhere", *words
    )
    assert "data.csv: a file, not a folder; a bundle" in refused(command, str(place.csv), *words)
    assert f"{place.folder}: not a bundle: it has no manifest.json" in refused(command, str(place.folder), *words)


def test_a_whole_bundle_is_found_by_its_own_and_by_its_runs_folder(made):
    assert open_bundle(made.folder).uri == open_bundle(made.folder / "bundle").uri == f"{made.folder}/bundle"


def test_evaluating_on_data_that_does_not_fit_is_refused(made, tmp_path):
    two = tmp_path / "two.csv"
    two.write_text("\n".join([f"{HEADER},z", *(f"{line},1" for line in rows())]))
    message = refused("evaluate", str(made.folder), f"dataset.path={two}", "dataset.covariates=[x, z]")
    assert "this data does not fit the bundle (channels: 2 in the bundle, 3 here)" in message
    assert "--split holdout: this data has train, validation, test" in refused(
        "evaluate", str(made.folder), "--split", "holdout"
    )
    assert "task.horizn=3 is not known; did you mean task.horizon?" in refused(
        "evaluate", str(made.folder), "task.horizn=3"
    )


def test_evaluating_with_an_mlflow_server_that_is_not_there_is_refused(made):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert "no MLflow server answers there" in refused("evaluate", str(made.folder), f"tracking.uri={uri}")


# --- predict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            ["date,y", *(line.rpartition(",")[0] for line in rows(20))],
            "new.csv has no column 'x'. Its columns: date, y",
        ),
        (["when,y,x", *rows(20)], "new.csv has no column 'date'. Its columns: when, y, x"),
        ([HEADER, *rows(LOOKBACK - 1)], f"the series has {LOOKBACK - 1} rows; the model looks back {LOOKBACK} steps"),
        ([HEADER, *rows(1)], "the series has 1 rows; the model looks back 8 steps"),
        ([HEADER], "new.csv holds no rows"),
        ("", "new.csv is empty (0 bytes)"),
        ([HEADER, *rows(9), "2024-01-01 09:00:00,?,1"], "new.csv, row 11: '?' in column 'y' is not a number"),
        ([HEADER, *rows(9), *rows(9)], "new.csv, row 11: time 2024-01-01 00:00:00 comes after"),
        (None, "there is no file or folder"),
    ],
)
def test_predicting_from_a_file_that_does_not_do_is_refused_and_writes_nothing(made, tmp_path, lines, said):
    new, out = tmp_path / "new.csv", tmp_path / "out.csv"
    if lines is not None:
        new.write_text(lines if isinstance(lines, str) else "\n".join(lines) + "\n")
    assert said in refused("predict", str(made.folder / "bundle"), str(new), "-o", str(out))
    assert not out.exists()


def test_json_and_predictions_do_not_share_stdout(made):
    assert "name a file for them with -o" in refused("predict", str(made.folder), str(made.csv), "--json")


def test_an_output_of_another_kind_is_refused(made, tmp_path):
    assert "out.xlsx: the output is CSV or Parquet; name it .csv or .parquet" in refused(
        "predict", str(made.folder), str(made.csv), "-o", str(tmp_path / "out.xlsx")
    )


def test_predictions_directly_below_the_root_or_a_bucket_are_not_written_elsewhere(made, tmp_path, monkeypatch):
    new, out = tmp_path / "new.csv", Path(f"/rondo-test-{uuid.uuid4().hex}.csv")
    new.write_text("\n".join([HEADER, *rows(LOOKBACK, start=100)]))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    try:
        done = click.testing.CliRunner().invoke(
            main, ["predict", str(made.folder.resolve()), str(new), "-o", str(out), "--json"]
        )
        assert out.exists() if done.exit_code == 0 else "PermissionError" in done.stderr  # an ordinary user's
    finally:
        out.unlink(missing_ok=True)
    assert "s3://out.csv?region=eu names no file in a bucket; write s3://BUCKET/out.csv" in refused(
        "predict", str(made.folder.resolve()), str(new), "-o", "s3://out.csv?region=eu"
    )
    assert not list((tmp_path / "here").iterdir())


def test_predicting_from_a_good_file_writes_the_horizon(made, tmp_path):
    """That the refusals above are for their own reasons."""
    new, out = tmp_path / "new.csv", tmp_path / "deep/out.csv"
    new.write_text("\n".join([HEADER, *rows(LOOKBACK, start=100)]))
    result = click.testing.CliRunner().invoke(main, ["predict", str(made.folder), str(new), "-o", str(out), "--json"])
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["rows"] == HORIZON
    table = pyarrow.csv.read_csv(out)
    assert table.column_names == ["time", "y"]
    assert str(table["time"][0]) == "2024-01-05 12:00:00"
    assert np.isfinite(table["y"].to_numpy()).all()
