"""Checkpoints and bundles: what is restored is what was saved, bit for bit, or it is refused."""

import contextlib
import copy
import hashlib
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import models
from datasets.pipeline.storage import Storage, Unavailable
from models.batch import Batch
from tests.faults import unreadable
from workflows.config.settings import Training
from workflows.training import bundle, checkpoint, loop
from workflows.training.checkpoint import latest, load_weights, read_files, restore, save, weights, write_files
from workflows.training.job import WorkerContext
from workflows.training.progress import Progress
from workflows.training.worker import _hooks

torch.set_num_threads(1)

SPEC = {
    "frontend": "patches",
    "targets": 2,
    "channels": 3,
    "known": 0,
    "observed": False,
    "season": 1,
    "lookback": 8,
    "horizon": 3,
}
TASK = {"kind": "forecast", "lookback": 8, "horizon": 3, "dropout": 0.1}


def make(family="gru", seed=0, **options):
    """A small model and its optimizer, as training makes them."""
    torch.manual_seed(seed)
    model = models.build(SPEC, {"family": family, "hidden_size": 8, "patch": 4, **options}, TASK)
    return model, loop.make_optimizer(model, Training())


def train(model, optimizer, first: int, last: int) -> None:
    """Steps of training, each with data, dropout and learning rate that its number says."""
    for step in range(first, last):
        torch.manual_seed(step)
        values = torch.randn(4, 11, 3)
        batch = Batch(
            {"values": values[:, :8]},
            {"values": torch.full((4,), 8)},
            {"target": values[:, 8:, :2]},
            torch.ones(4),
            torch.arange(4),
        )
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step)
        optimizer.zero_grad(set_to_none=True)
        model(batch)[0].backward()
        optimizer.step()


def bits(model) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def moments(optimizer) -> dict[str, bytes]:
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.numpy().tobytes() for i, one in state.items() for name, value in one.items()}


def flip(path, at=-1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


# --- saving and restoring ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru", "transformer"])
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path, family):
    undisturbed = make(family)
    train(*undisturbed, 0, 6)
    model, optimizer = make(family)
    train(model, optimizer, 0, 3)
    folder = Storage(tmp_path)
    state = {"progress": Progress(step=3, epoch=1, position=(2, 5), best=0.25, history=[{"x": 0.1}]).plain()}
    name = save(folder, 3, model, optimizer, state)

    fresh = make(family, seed=99)  # of another seed: nothing of it may remain
    found = latest(folder)
    assert found[0] == name == "step-000000003"
    restored = restore(found[1], *fresh)
    assert Progress.from_plain(restored["progress"]) == Progress.from_plain(state["progress"])
    assert bits(fresh[0]) == bits(model)
    assert moments(fresh[1]) == moments(optimizer) != {}
    train(*fresh, 3, 6)
    assert bits(fresh[0]) == bits(undisturbed[0])
    assert moments(fresh[1]) == moments(undisturbed[1])


def test_a_checkpoint_before_the_first_step_restores_too(tmp_path):
    model, optimizer = make()
    save(Storage(tmp_path), 0, model, optimizer, {})
    fresh = make(seed=1)
    assert restore(latest(Storage(tmp_path))[1], *fresh) == {}
    train(model, optimizer, 0, 2)
    train(*fresh, 0, 2)
    assert bits(fresh[0]) == bits(model)


def test_parameters_without_a_gradient_so_far_have_no_moments_after_restoring(tmp_path):
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    model = nn.ParameterDict({"a_unused": unused, "b_used": used})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    (used**2).sum().backward()
    optimizer.step()
    save(Storage(tmp_path), 1, model, optimizer, {})
    other = nn.ParameterDict({"a_unused": nn.Parameter(torch.zeros(2, 2)), "b_used": nn.Parameter(torch.zeros(2, 2))})
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    restore(latest(Storage(tmp_path))[1], other, fresh)
    assert [p in fresh.state for p in other.parameters()] == [p in optimizer.state for p in model.parameters()]
    assert torch.equal(fresh.state[other["b_used"]]["exp_avg"], optimizer.state[used]["exp_avg"])


def test_double_precision_stays_double(tmp_path):
    model, optimizer = make()
    model.double()
    save(Storage(tmp_path), 0, model, optimizer, {})
    other, fresh = make(seed=1)
    restore(latest(Storage(tmp_path))[1], other.double(), fresh)
    assert bits(other) == bits(model)


# --- whole or not there ------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 1 and 2."""
    model, optimizer = make()
    for step in (1, 2):
        train(model, optimizer, step - 1, step)
        save(Storage(tmp_path), step, model, optimizer, {"step": step})
    return tmp_path


FILES = ["model.safetensors", "optimizer.safetensors", "state.json"]


@pytest.mark.parametrize("file", [*FILES, "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "empty", "changed"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(two, file, damage):
    path = two / "step-000000002" / file
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        flip(path, 1)
    name, files = latest(Storage(two))
    assert (name, json.loads(files["state.json"])) == ("step-000000001", {"step": 1})


def test_without_a_whole_checkpoint_there_is_none(two):
    assert latest(Storage(two / "nowhere")) is None
    for name in ("step-000000001", "step-000000002"):
        (two / name / "manifest.json").unlink()
    assert latest(Storage(two)) is None


def test_a_checkpoint_is_complete_only_with_its_manifest_which_comes_last(tmp_path):
    written = []

    class Watched(Storage):
        def write(self, name, data):
            written.append(name)
            super().write(name, data)

    save(Watched(tmp_path), 7, *make(), {})
    assert written == [f"step-000000007/{file}" for file in [*FILES, "manifest.json"]]


def test_a_save_that_is_cut_off_leaves_the_checkpoint_before(two):
    class Full(Storage):
        def write(self, name, data):
            if name.endswith("state.json"):
                raise OSError("no space left on device")
            super().write(name, data)

    with pytest.raises(OSError, match="no space"):
        save(Full(two), 3, *make(), {})
    assert latest(Storage(two))[0] == "step-000000002"
    assert Storage(two).names() == ["step-000000001", "step-000000002"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_last_few_are_kept(tmp_path, keep):
    model, optimizer = make()
    folder = Storage(tmp_path)
    folder.write("best-000000002/model.safetensors", b"")
    for step in (1, 2, 5, 10):
        save(folder, step, model, optimizer, {}, keep=keep)
    names = [f"step-{step:09d}" for step in (1, 2, 5, 10)]
    assert folder.names() == ["best-000000002", *names[-keep:]]


def test_reading_names_the_file_that_is_wrong(two):
    folder, name = Storage(two), "step-000000002"
    (two / name / "state.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match=f"{two}/{name}/state.json: damaged: 2 bytes, 11 expected"):
        read_files(folder, name)
    (two / name / "state.json").unlink()
    with pytest.raises(ValueError, match=f"{two}/{name}/state.json: missing, though the manifest names it"):
        read_files(folder, name)
    with pytest.raises(ValueError, match=f"{two}/nothing: no readable manifest.json"):
        read_files(folder, "nothing")


@pytest.mark.parametrize("file", ["manifest.json", "state.json"])
def test_a_disk_that_fails_makes_no_earlier_checkpoint_the_newest(two, file):
    folder, name = Storage(two), "step-000000002"
    with unreadable(two / name / file):
        for read in (lambda: read_files(folder, name), lambda: latest(folder)):
            with pytest.raises(Unavailable, match=f"^{two}/{name}/{file} cannot be read now"):
                read()
    assert latest(folder)[0] == name


# --- weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", "..", "", "manifest.json"])
def test_a_manifest_names_no_file_elsewhere(tmp_path, name):
    (tmp_path / "secret").write_bytes(b"text")
    inside = Storage(tmp_path / "inside")
    entry = {"bytes": 4, "sha256": hashlib.sha256(b"text").hexdigest()}
    inside.write("manifest.json", json.dumps({"format": 1, "files": {name: entry}}).encode())
    with pytest.raises(ValueError, match=r"no readable manifest\.json"):
        read_files(inside)


def test_weights_go_round_bit_for_bit_and_in_any_layout():
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.randn(3, 2).T)  # not contiguous
    other = nn.Linear(3, 2)
    load_weights(other, weights(model))
    assert torch.equal(other.weight, model.weight)
    assert other.weight.requires_grad


@pytest.mark.parametrize(
    "other",
    [lambda: make("lstm")[0], lambda: make(hidden_size=9)[0], lambda: make(layers=2)[0], lambda: nn.Linear(2, 2)],
)
def test_weights_of_another_model_are_refused(other):
    model = make()[0]
    with pytest.raises(ValueError, match="the weights belong to another model"):
        load_weights(model, weights(other()))


def test_what_are_no_weights_is_refused():
    with pytest.raises(ValueError, match="the weights belong to another model"):
        load_weights(make()[0], b"no weights at all")


# --- bundles -----------------------------------------------------------------------------------------------------


def saved(folder, model, **changes):
    contents = {
        "experiment": {"model": {"family": "gru", "hidden_size": 8, "patch": 4}, "task": TASK},
        "spec": SPEC,
        "state": {"names": ["é"]},
        "metrics": {"test/mse": 0.1},
        "run": "tiny-x",
        **changes,
    }
    bundle.save(folder, "bundle", weights(model), **contents)


def test_a_bundle_gives_the_same_model_ready_to_use(tmp_path):
    model = make()[0]
    saved(Storage(tmp_path), model)
    loaded = bundle.load(Storage(tmp_path), "bundle")
    assert bits(loaded.model) == bits(model)
    assert not loaded.model.training
    assert (loaded.run, loaded.metrics) == ("tiny-x", {"test/mse": 0.1})
    assert (loaded.state, loaded.spec) == ({"names": ["é"]}, SPEC)
    assert sorted(Storage(tmp_path / "bundle").names()) == ["bundle.json", "manifest.json", "model.safetensors"]


def test_a_bundle_with_weights_of_another_model_is_refused(tmp_path):
    saved(Storage(tmp_path), make(hidden_size=16)[0])
    with pytest.raises(ValueError, match="the weights belong to another model"):
        bundle.load(Storage(tmp_path), "bundle")


@pytest.mark.parametrize(
    "change",
    [
        lambda contents: contents["experiment"]["model"].update(hidden_size=10**12),
        lambda contents: contents.pop("spec"),
        lambda contents: contents["spec"].update(frontend="../../os"),
        lambda contents: contents["experiment"]["model"].update(family="os"),
        lambda contents: contents.update(experiment=[]),
    ],
    ids=["huge", "nothing contents", "frontend", "family", "list"],
)
def test_a_bundle_that_describes_something_else_is_refused_before_memory_is_taken(tmp_path, change):
    folder = Storage(tmp_path)
    saved(folder, make()[0])
    files = read_files(folder, "bundle")
    contents = json.loads(files["bundle.json"])
    change(contents)
    write_files(folder, "bundle", {**files, "bundle.json": json.dumps(contents).encode()})
    with pytest.raises(ValueError, match=r"bundle: "):
        bundle.load(folder, "bundle")


def test_a_bundle_of_another_format_is_refused(tmp_path):
    folder = Storage(tmp_path)
    write_files(folder, "bundle", {"model.safetensors": b"", "bundle.json": json.dumps({"format": 99}).encode()})
    with pytest.raises(ValueError, match=f"{tmp_path}/bundle: bundle format 99; this version of Rondo reads 1"):
        bundle.load(folder, "bundle")


def test_a_checkpoint_is_no_bundle(tmp_path):
    save(Storage(tmp_path), 1, *make(), {})
    with pytest.raises(ValueError, match=r"not a bundle: bundle\.json or model.safetensors is not in its manifest"):
        bundle.load(Storage(tmp_path), "step-000000001")


def test_nothing_is_pickled(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 0, 1)
    save(Storage(tmp_path), 1, model, optimizer, {})
    saved(Storage(tmp_path), model)
    for path in tmp_path.rglob("*.*"):
        data = path.read_bytes()
        assert path.suffix in (".json", ".safetensors")
        if path.suffix == ".json":
            json.loads(data)
        else:  # 8 bytes of length, then JSON, then raw numbers
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            assert all(set(one) == {"dtype", "shape", "data_offsets"} for one in header.values())


def test_saving_changes_nothing(tmp_path):
    model, optimizer = make()
    train(model, optimizer, 0, 2)
    before = copy.deepcopy((bits(model), moments(optimizer)))
    save(Storage(tmp_path), 2, model, optimizer, {})
    checkpoint.weights(model)
    assert (bits(model), moments(optimizer)) == before


def test_what_was_recorded_is_on_disk_before_the_checkpoint_that_stands_after_it():
    """Else a kill between the two would lose it: nobody takes the steps before a checkpoint again."""
    done = []
    tracker = SimpleNamespace(
        metrics=lambda name, metrics, step: done.append("record"), flush_to_disk=lambda: done.append("on disk")
    )
    context = WorkerContext(tracker, 1, lambda event: None, in_ray_train=False)
    task = SimpleNamespace(primary="mse", maximise=False)
    model = SimpleNamespace(recurrent_state=SimpleNamespace(lanes=None), task=task)
    saver = SimpleNamespace(save=lambda progress, best, lanes: done.append("checkpoint"))
    meter = SimpleNamespace(total=lambda progress: None, epoch=dict, saving=contextlib.nullcontext)
    workers = SimpleNamespace(rank=0)
    loop._end_epoch(
        model,
        Training(),
        Progress(epoch_weight=1.0),
        meter,
        workers,
        _hooks("run", context, model, saver, workers),
        lambda: {"mse": 1.0, "loss": 1.0},
        0,
        0,
    )
    assert done == ["record", "on disk", "checkpoint"]
