"""The bundle: the portable result of a run. safetensors weights + JSON (experiment, fitted state); no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        metrics: of the run that made it.
        run: its name.
        model: with the best weights, in evaluation mode, on the CPU.
    """

    experiment: dict[str, Any]
    spec: dict[str, Any]
    state: dict[str, Any]
    metrics: dict[str, float]
    run: str
    model: SequenceModel


def save(folder: Folder, name: str, weights: bytes, *, experiment: Mapping[str, Any], spec: Mapping[str, Any],
         state: Mapping[str, Any], metrics: Mapping[str, float], run: str) -> None:
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
    told = json.loads(files["bundle.json"])
    if told.get("format") != FORMAT:
        raise ValueError(f"{where}: bundle format {told.get('format')!r}; this version of Rondo reads {FORMAT}")
    model: SequenceModel = models.build(told["spec"], told["experiment"]["model"], told["experiment"]["task"])
    if told["experiment"].get("training", {}).get("precision") == "fp64":
        model.double()
    load_weights(model, files["model.safetensors"])
    return Bundle(told["experiment"], told["spec"], told["state"], told["metrics"], told["run"], model.eval())
