"""The bundle: the portable result of a run. safetensors weights + JSON (experiment, fitted state); no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

import models
from models.sequence import SequenceModel
from workflows.errors import UserError
from workflows.training.checkpoint import Folder, load_weights, read_files, write_files

FORMAT = 1


@dataclass(frozen=True)
class Bundle:
    """A trained model and all that is needed to use it.

    Attributes:
        experiment: as plain values.
        spec: of the rows, from which the model is built.
        state: fitted on the training split (scalers, names, ...).
        metrics: of the run that trained it; None for one that is not finite.
        run: its name.
        model: with the best weights, in evaluation mode, on the CPU.
    """

    experiment: dict[str, Any]
    spec: dict[str, Any]
    state: dict[str, Any]
    metrics: dict[str, float | None]
    run: str
    model: SequenceModel


def save(
    folder: Folder,
    name: str,
    weights: bytes,
    *,
    experiment: Mapping[str, Any],
    spec: Mapping[str, Any],
    state: Mapping[str, Any],
    metrics: Mapping[str, float | None],
    run: str,
) -> None:
    """Write a bundle below `name`."""
    contents = {
        "format": FORMAT,
        "run": run,
        "experiment": experiment,
        "spec": spec,
        "state": state,
        "metrics": metrics,
    }
    write_files(folder, name, {"model.safetensors": weights, "bundle.json": json.dumps(contents, indent=1).encode()})


def load(folder: Folder, name: str = "") -> Bundle:
    """Read a bundle below `name`, or that the folder itself is.

    Raises:
        ValueError: not a bundle, or a damaged one, or one of another version of Rondo.
    """
    where = f"{folder.uri}/{name}".rstrip("/")
    files = read_files(folder, name)
    if not {"bundle.json", "model.safetensors"} <= files.keys():
        raise UserError(f"{where}: not a bundle: bundle.json or model.safetensors is not in its manifest")
    try:
        contents = json.loads(files["bundle.json"])
        if contents.get("format") != FORMAT:
            raise UserError(f"bundle format {contents.get('format')!r}; this version of Rondo reads {FORMAT}")
        parts = contents["spec"], contents["experiment"]["model"], contents["experiment"]["task"]
        with torch.device("meta"):  # without memory: a hostile bundle may describe a model of any size
            _check_shapes(models.build(*parts), files["model.safetensors"])
        model: SequenceModel = models.build(*parts)
        if contents["experiment"].get("training", {}).get("precision") == "fp64":
            model.double()
        load_weights(model, files["model.safetensors"])
        return Bundle(
            contents["experiment"],
            contents["spec"],
            contents["state"],
            contents["metrics"],
            contents["run"],
            model.eval(),
        )
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # the content of a bundle may be anything
        raise UserError(
            f"{where}: bundle.json does not describe a model ({type(error).__name__}: {error}); use another copy"
        ) from error


def _check_shapes(model: SequenceModel, weights: bytes) -> None:
    """Raise ValueError if the names and shapes of the weights are not the model's."""
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])  # the format of safetensors
    shapes = {name: tuple(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    if shapes != wanted:
        differ = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
        raise UserError(
            f"the weights belong to another model: {differ[0]} is {shapes.get(differ[0], 'not there')}, "
            f"{wanted.get(differ[0], 'not wanted')} expected, and {len(differ) - 1} more differ"
        )
