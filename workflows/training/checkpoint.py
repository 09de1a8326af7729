"""Checkpoints: safetensors and JSON, complete only with a manifest of sizes and sha256 that is written last."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import Tensor, nn

from workflows.errors import UserError

FORMAT = 1
ABSENT = FileNotFoundError, NotADirectoryError
MAX_NAME = 200  # characters of a file's name


class Folder(Protocol):
    """Where files go; names may hold ``/``."""

    uri: str

    def write(self, name: str, data: bytes) -> None: ...
    def read(self, name: str) -> bytes: ...
    def names(self) -> list[str]: ...
    def exists(self, name: str) -> bool: ...
    def delete(self, name: str) -> None: ...


def write_files(folder: Folder, name: str, files: dict[str, bytes]) -> None:
    """Write `files` below `name`, and then the manifest that makes them complete.

    Raises:
        OSError: storage refused one; if the checkpoint is new, the others are removed, if storage lets
            that be done.
    """
    new = not folder.exists(f"{name}/manifest.json")
    entries = {file: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for file, data in files.items()}
    try:
        for file, data in files.items():
            folder.write(f"{name}/{file}", data)
        folder.write(f"{name}/manifest.json", json.dumps({"format": FORMAT, "files": entries}).encode())
    except OSError:
        if new:
            with suppress(OSError):
                folder.delete(name)
        raise


def read_files(folder: Folder, name: str = "") -> dict[str, bytes]:
    """All files below `name`, or of the folder itself, each checked against the manifest.

    Raises:
        ValueError: no manifest, or a file that is missing, cut short or changed.
        OSError: one cannot be read now.
    """
    where, prefix = (f"{folder.uri}/{name}", f"{name}/") if name else (folder.uri, "")
    try:
        manifest = folder.read(f"{prefix}manifest.json")
    except ABSENT:
        manifest = b""  # refused below; another OSError says nothing about the files
    try:
        entries = {file: (int(one["bytes"]), str(one["sha256"])) for file, one in json.loads(manifest)["files"].items()}
        if any("/" in file or len(file) > MAX_NAME or file in ("", ".", "..", "manifest.json") for file in entries):
            raise UserError("a name that leads elsewhere")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        raise UserError(f"{where}: no readable manifest.json; this is not a complete checkpoint or bundle") from None
    files = {}
    for file, (size, checksum) in entries.items():
        try:
            data = folder.read(f"{prefix}{file}")
        except ABSENT:
            raise UserError(f"{where}/{file}: missing, though the manifest names it; use another copy") from None
        if len(data) != size or hashlib.sha256(data).hexdigest() != checksum:
            raise UserError(
                f"{where}/{file}: damaged: {len(data)} bytes, {size} expected, or other content; use another copy"
            )
        files[file] = data
    return files


def weights(model: nn.Module) -> bytes:
    """A model's parameters and buffers as safetensors."""
    return safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()})


def load_weights(model: nn.Module, data: bytes) -> None:
    """Put saved weights into a model of the same shape.

    Raises:
        ValueError: the weights belong to another model.
    """
    try:
        model.load_state_dict(safetensors.torch.load(data))
    except (RuntimeError, ValueError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"the weights belong to another model: {error}") from None


def save(
    folder: Folder,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    lanes: Mapping[str, Tensor] = MappingProxyType({}),
    keep: int = 2,
) -> str:
    """Write checkpoint `step`, complete or not at all, and delete all but the last `keep`; its name.

    `lanes` is the recurrent state of all lanes, where there are any (``models.sequence.RecurrentState``).
    """
    name = f"step-{step:09d}"
    files = {
        "model.safetensors": weights(model),
        "optimizer.safetensors": _optimizer_tensors(optimizer),
        "state.json": json.dumps(state).encode(),
    }
    if lanes:
        files["carried.safetensors"] = safetensors.torch.save(dict(lanes))
    write_files(folder, name, files)
    for old in [n for n in folder.names() if n.startswith("step-") and n < name][: -(keep - 1) or None]:
        folder.delete(old)
    return name


def latest(folder: Folder) -> tuple[str, dict[str, bytes]] | None:
    """The newest checkpoint whose files are all whole, with its files; None where there is none.

    Raises:
        OSError: one cannot be read now: an earlier one would cost the steps since.
    """
    for name in sorted((n for n in folder.names() if n.startswith("step-")), reverse=True):
        try:
            return name, read_files(folder, name)
        except ValueError:
            continue  # unfinished or damaged: use the one before
    return None


def restore(files: dict[str, bytes], model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Load a checkpoint's tensors into model and optimizer; return the rest of its state."""
    load_weights(model, files["model.safetensors"])
    tensors = safetensors.torch.load(files["optimizer.safetensors"])
    places = _places(optimizer)
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        parameter = places[int(number)]
        kept = value if name == "step" else value.to(parameter.device, parameter.dtype)
        optimizer.state[parameter][name] = kept
    state: dict[str, Any] = json.loads(files["state.json"])
    return state


def recurrent_state(files: dict[str, bytes]) -> dict[str, Tensor]:
    """The state of all lanes that a checkpoint holds."""
    data = files.get("carried.safetensors")
    return safetensors.torch.load(data) if data else {}


def _places(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> bytes:
    """The optimizer's tensors by the parameter's number; learning rates are set at each step and not kept."""
    tensors = {
        f"{i}.{name}": value.detach().cpu().contiguous()
        for i, p in enumerate(_places(optimizer))
        for name, value in optimizer.state.get(p, {}).items()
    }
    return safetensors.torch.save(tensors)
