"""A study: the search of an experiment, or of one family in a comparison."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from workflows.config.experiment import Experiment
from workflows.config.load import load
from workflows.errors import UserError, user_mistakes
from workflows.tuning.space import Axis, Settings, check_space, parse_space, with_settings


@dataclass
class Study:
    """The search of an experiment, or of one family in a comparison.

    Attributes:
        name: the family, or "".
        options: the contents of the experiment file, without `search`.
        experiment: the checked experiment.
        axes: of its space.
    """

    name: str
    options: dict[str, Any]
    experiment: Experiment
    axes: list[Axis]

    @classmethod
    def of(cls, name: str, options: dict[str, Any]) -> Study:
        """Check an experiment and its space.

        Args:
            name: the family, or "".
            options: the contents of the experiment file.

        Raises:
            ValueError: the experiment or the space has a mistake.
        """
        experiment = load(options)
        with user_mistakes():
            axes = parse_space(experiment.search.space)
            check_space(options, axes, experiment.search)
        ranges = [a.key for a in axes if a.key.startswith("dataset.") and a.kind != "choice"]
        if ranges:
            raise UserError(
                f"search.space: {', '.join(ranges)}: the data is prepared once for each value; give the "
                "values as choice: [...]"
            )
        return cls(name, {**options, "search": {}}, experiment, axes)

    def epochs(self) -> int:
        """The largest number of epochs that a trial may have."""
        searched: list[int] = [v for a in self.axes if a.key == "training.epochs" for v in a.values]
        return max([self.experiment.training.epochs, *searched])


def variants(study: Study, *, across: bool = True) -> Iterator[Settings]:
    """Every combination of the settings of the dataset, for each of which data has to be prepared.

    Args:
        study: its axes with a key of `dataset` are combined.
        across: whether the values of `search.across` are included.
    """
    unset = object()
    choices = {a.key: [*a.values, *([unset] if a.when else [])] for a in study.axes}
    if across:
        choices |= {key: [*values, unset] for key, values in study.experiment.search.across.items()}
    keys = [key for key in choices if key.startswith("dataset.")]
    for values in itertools.product(*(choices[key] for key in keys)):
        settings = {k: v for k, v in zip(keys, values, strict=True) if v is not unset}
        try:
            with_settings(study.options, settings)
        except ValueError:  # no trial can have this combination
            continue
        yield settings
