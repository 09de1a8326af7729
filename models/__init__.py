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
    from models import decoders, families, frontends, options, tasks
    from models.sequence import SequenceModel

    chosen = dict(model)
    name = chosen.pop("family")
    front = frontends.build(spec["frontend"], spec, **options.only(frontends.module(spec["frontend"]).build, chosen))
    family_options = options.filled(families.module(name).build, chosen)
    if family_options.get("causal", True) is None:
        family_options["causal"] = getattr(tasks.module(task["kind"]), "CAUSAL", False)
    family = families.build(name, front.size, **family_options)

    def decoder(input_size: int, layers: int) -> Any:
        return decoders.decoder(name, input_size, family.size, **{**family_options, "layers": layers})

    encoder = {
        "input_size": front.size,
        "size": family.size,
        "backward": family.backward,
        "steps": front.steps,
        "sequences": front.sequences,
        "changes_steps": front.changes_steps,
        "causal": family.causal,
        "decoder": decoder,
    }
    settings = {k: v for k, v in task.items() if k != "kind"}
    return SequenceModel(front, family, tasks.build(task["kind"], spec, encoder, **settings))
