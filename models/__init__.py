"""Models: a front end, a family and a task, in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["build"]


def build(spec: Mapping[str, Any], model: Mapping[str, Any], task: Mapping[str, Any]) -> Any:
    """Make a SequenceModel.

    Args:
        spec: what the dataset says of its rows: ``frontend`` (its name), ``channels``, ``targets``, ...
        model: ``family`` and the options of family and front end together.
        task: ``kind`` and the task's options.

    Raises:
        ValueError: an option out of range, or a combination that cannot be.
    """
    from models import families, frontends, options, tasks
    from models.sequence import SequenceModel

    chosen = dict(model)
    family_name = chosen.pop("family")
    front_module = frontends.module(spec["frontend"])
    front = frontends.build(spec["frontend"], spec, **options.only(front_module.build, chosen))
    family = families.build(family_name, front.size, **options.only(families.module(family_name).build, chosen))
    encoder = {"size": family.size, "steps": front.steps, "sequences": front.sequences,
               "changes_steps": front.changes_steps}
    settings = {k: v for k, v in task.items() if k != "kind"}
    return SequenceModel(front, family, tasks.build(task["kind"], spec, encoder, **settings))
