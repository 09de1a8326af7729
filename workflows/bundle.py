"""The bundle: the portable result of a run. safetensors weights + JSON (experiment, fitted state); no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import models
from models.sequence import SequenceModel
from workflows.checkpoint import Folder, load_weights, read_files, write_files

FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A trained model and all that is needed to use it.

    Attributes:
        experiment: as plain values.
        spec: what the model was told of its rows.
        state: fitted on the training split (scalers, names, ...).
        metrics: of the run that made it; None for one that is not finite.
        run: its name.
        model: with the best weights, in evaluation mode, on the CPU.
    """

    experiment: dict[str, Any]
    spec: dict[str, Any]
    state: dict[str, Any]
    metrics: dict[str, float | None]
    run: str
    model: SequenceModel


def save(folder: Folder, name: str, weights: bytes, *, experiment: Mapping[str, Any], spec: Mapping[str, Any],
         state: Mapping[str, Any], metrics: Mapping[str, float | None], run: str) -> None:
    """Write a bundle below `name`."""
    told = {"format": FORMAT, "run": run, "experiment": experiment, "spec": spec, "state": state, "metrics": metrics}
    write_files(folder, name, {"model.safetensors": weights, "bundle.json": json.dumps(told, indent=1).encode()})


def load(folder: Folder, name: str = "") -> Bundle:
    """Read a bundle below `name`, or that the folder itself is.

    Raises:
        ValueError: not a bundle, or a damaged one, or one of another version of Rondo.
    """
    where = f"{folder.uri}/{name}".rstrip("/")
    files = read_files(folder, name)
    if not {"bundle.json", "model.safetensors"} <= files.keys():
        raise ValueError(f"{where}: not a bundle: bundle.json or model.safetensors is not in its manifest")
    try:
        told = json.loads(files["bundle.json"])
        if told.get("format") != FORMAT:
            raise ValueError(f"bundle format {told.get('format')!r}; this version of Rondo reads {FORMAT}")
        parts = told["spec"], told["experiment"]["model"], told["experiment"]["task"]
        with torch.device("meta"):                     # in no memory: what is told may be of any size
            _check_shapes(models.build(*parts), files["model.safetensors"])
        model: SequenceModel = models.build(*parts)
        if told["experiment"].get("training", {}).get("precision") == "fp64":
            model.double()
        load_weights(model, files["model.safetensors"])
        return Bundle(told["experiment"], told["spec"], told["state"], told["metrics"], told["run"], model.eval())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except Exception as error:                         # a bundle is made by whoever gave it
        raise ValueError(f"{where}: bundle.json does not describe a model ({type(error).__name__}: {error}); use "
                         "another copy") from error


def _check_shapes(model: SequenceModel, weights: bytes) -> None:
    """Raise ValueError if the weights are not those of such a model."""
    header = json.loads(weights[8:8 + int.from_bytes(weights[:8], "little")])       # the format of safetensors
    found = {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if found != wanted:
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ValueError(f"the weights belong to another model: {differ[0]} is {found.get(differ[0], 'not there')}, "
                         f"{wanted.get(differ[0], 'not wanted')} expected, and {len(differ) - 1} more differ")
