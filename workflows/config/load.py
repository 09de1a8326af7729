"""Reads an experiment from its file, with overrides, and checks it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import models
from datasets.shared.records import Records
from models import tasks
from workflows.config.experiment import Experiment
from workflows.config.sections import check_sections
from workflows.config.yaml import apply_override, expand_variables, parse, plain_copy
from workflows.errors import OptionError, UserError, user_mistakes

FOLDER = Path(__file__).parents[1] / "experiments"
DEFAULT = FOLDER / "demand.yaml"


@user_mistakes()
def load(source: str | Path | Mapping[str, Any] | None = None, overrides: list[str] | None = None) -> Experiment:
    """Read and check an experiment.

    Args:
        source: a YAML file, a mapping of its content, or None for the default experiment on synthetic data.
        overrides: ``section.key=value``, the value in YAML; ``section.key=null`` sets a key to none.

    Raises:
        ValueError: every mistake, a line each: key, value, file, what is allowed, and the nearest known name.
    """
    where, options = read(source, overrides)
    problems: list[str] = []
    conflicts: list[str] = []
    chosen = check_sections(options, problems, conflicts)
    if problems or conflicts:
        kind = OptionError if problems else UserError
        raise kind("\n".join(f"{where}: {p}" for p in problems + conflicts))
    try:
        experiment = Experiment(**chosen, source=where, overrides=tuple(overrides or ()))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    _check_combinations(experiment, where)
    return experiment


@user_mistakes()
def read(
    source: str | Path | Mapping[str, Any] | None = None, overrides: list[str] | None = None
) -> tuple[str, dict[str, Any]]:
    """Where it was read from, and what an experiment says before it is checked: overrides and variables put in.

    Raises:
        ValueError: no such file, not a mapping, or an override without a key and a value.
    """
    where, options = _read(source)
    for override in overrides or []:
        apply_override(options, override)
        _drop_for_families(options, override.partition("=")[0].strip())
    return where, expand_variables(options, where)


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    if isinstance(source, Mapping):
        return "experiment", plain_copy(source)
    path = Path(source) if source is not None else DEFAULT
    if not path.is_file():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        near = difflib.get_close_matches(path.stem, known, n=1)
        hint = f"; did you mean {FOLDER.parent.name}/{FOLDER.name}/{near[0]}.yaml?" if near else ""
        raise UserError(f"{path}: no such experiment file{hint}")
    try:
        options = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(options, dict):
        raise UserError(f"{path}: an experiment is a mapping of sections, not {type(options).__name__}")
    return str(path), options


def _drop_for_families(options: dict[str, Any], key: str) -> None:
    """An override of a model's option holds for every family, also where the file has a value for that one."""
    section, _, option = key.partition(".")
    model = options.get("model")
    if section == "model" and isinstance(model, dict) and isinstance(model.get("families"), dict):
        for family_options in model["families"].values():
            if isinstance(family_options, dict):
                family_options.pop(option, None)


def _check_combinations(experiment: Experiment, where: str) -> None:
    """Raise on choices that cannot go together, before anything starts: builds the model without memory."""

    try:
        dataset, _ = experiment.raw_dataset, experiment.storing
        reads = tasks.module(experiment.task["kind"]).TARGETS
        if (
            isinstance(dataset, Records)
            and not dataset.common.available_targets
            and not set(dataset.available_targets) & set(reads)
        ):
            raise UserError(
                "the dataset says nothing of what to predict; name a column in dataset.label (one class a "
                "row), dataset.labels (several), dataset.step_labels (a class a step), dataset.numbers or "
                "dataset.target (a text)"
            )
        spec = dataset.spec(None, experiment.resolved_task)
        with torch.device("meta"):
            models.build(spec, experiment.model, experiment.task)
        for key, other, wrong in (
            ("batch_seconds", "batch_tokens", "rate" not in spec),
            ("batch_tokens", "batch_seconds", "rate" in spec),
        ):
            if wrong and getattr(experiment.training, key) is not None:
                raise UserError(
                    f"training.{key} has no meaning for dataset.kind={experiment.dataset['kind']}; use training.{other}"
                )
        windows = "series" in dataset.available_targets or experiment.task.get("window") is not None
        if windows and experiment.training.batch_tokens is not None:
            raise UserError(
                "training.batch_tokens has no meaning for windows, which are all equally long; use training.batch_size"
            )
        if experiment.training.batch_size < experiment.workers.most:
            raise UserError(
                f"training.batch_size={experiment.training.batch_size} is smaller than workers.count="
                f"{experiment.workers.most}; use at least {experiment.workers.most}, or fewer workers"
            )
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    except RuntimeError as error:  # torch: no tensor can be that large
        raise UserError(f"{where}: a model of these sizes cannot be built: {error}") from None
