"""Checks of a search space before its first trial: can its trials be compared, and can they change while they train?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from datasets.pipeline.prepared import Prepared
from models.sequence import SequenceModel
from workflows.config.experiment import Experiment
from workflows.errors import UserError
from workflows.training.data import Data
from workflows.training.worker import make_model
from workflows.training.worker_group import WorkerGroup
from workflows.tuning.space import Settings, format_settings, with_settings
from workflows.tuning.study import Study, variants
from workflows.tuning.trial import data_key


def model_without_weights(experiment: Experiment, prepared: Prepared) -> SequenceModel:
    """An experiment's model, without memory for its weights."""
    with torch.device("meta"):
        return make_model(experiment, prepared, torch.device("meta"))[0]


def check_same_measure(studies: Sequence[Study], prepared_data: Mapping[str, Prepared]) -> None:
    """Check that all trials are measured on the same rows and by the same metric.

    Args:
        studies: of the search or comparison.
        prepared_data: by `data_key`, the prepared data.

    Raises:
        ValueError: they are not; the message names the settings that cause it.
    """

    def measure(experiment: Experiment) -> tuple[str, bool, dict[str, int]]:
        """(primary metric, whether its highest value is best, rows of each split that is measured)."""
        prepared = prepared_data[data_key(experiment)]
        task = model_without_weights(experiment, prepared).task
        data = Data(experiment, prepared, {}, WorkerGroup(torch.device("cpu")))
        rows = {split: int(data.view(split).rows.sum()) for split in dict.fromkeys(("validation", data.splits[-1]))}
        return task.primary, task.maximise, rows

    first: tuple[str, bool, dict[str, int]] | None = None
    for study in studies:
        data_variants = list(variants(study, across=False))
        task_settings = [{a.key: value} for a in study.axes if a.key.startswith("task.") for value in a.values]
        for settings in [*data_variants, *({**data_variants[0], **one} for one in task_settings)]:
            try:
                measured = measure(with_settings(study.options, settings))
            except (KeyError, ValueError):  # not valid alone; a trial that has such a setting fails with the reason
                continue
            first = first or measured
            if measured != first:
                raise UserError(
                    f"search.space: with {format_settings(settings)} trials are judged by {measured[0]} on "
                    f"{measured[2]} rows, otherwise by {first[0]} on {first[2]}, so they could not be compared; "
                    "set it in the experiment instead"
                )


def check_shapes(study: Study, prepared: Prepared) -> None:
    """Check that population-based training can change every key of the space while a trial trains.

    Args:
        study: of the search.
        prepared: its data.

    Raises:
        ValueError: it cannot: a key depends on another one, or changes the data, the length of the training or the
            shapes of the weights.
    """

    def shapes(settings: Settings) -> dict[str, torch.Size]:
        model = model_without_weights(with_settings(study.options, settings), prepared)
        return {name: value.shape for name, value in model.state_dict().items()}

    conditional = [a.key for a in study.axes if a.when]
    if conditional:
        raise UserError(
            f"search.scheduler=pbt changes every setting while a trial trains, so "
            f"{', '.join(conditional)} cannot depend on others (when); use another scheduler, or leave "
            "the condition out"
        )
    unchangeable = [
        a.key
        for a in study.axes
        if a.key.startswith("dataset.")
        or a.key in ("training.epochs", "training.seed")
        or len({str(shapes({a.key: v})) for v in a.values}) > 1
    ]
    if unchangeable:
        raise UserError(
            f"search.scheduler=pbt changes settings while a trial trains, and {', '.join(unchangeable)} cannot "
            "be changed then; use another scheduler, or leave them out of search.space"
        )
