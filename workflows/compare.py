"""Compare model families on the same data: the same budget for each, several seeds, and how certain the result is.

For each family: a search with the budget of the experiment's section `search`, then trainings of the best settings with
`search.seeds` other seeds, measured on the test rows. Two families differ if the difference is larger than seeds and
rows explain (``workflows.tuning.statistics``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from workflows.config.load import load, read
from workflows.config.sections import model_options
from workflows.errors import UserError
from workflows.tuning.open import open_session
from workflows.tuning.queue import FinalStage, SearchStage
from workflows.tuning.study import Study

DEFAULT_RATE_FACTOR = 5.0  # without a space: learning rates from the experiment's divided to multiplied by this
DEFAULT_TRIALS = 6  # of each family, if no space and no number of trials is given


def compare(
    source: str | Path | Mapping[str, Any] | None = None,
    overrides: list[str] | None = None,
    *,
    families: list[str],
    resume: str | None = None,
    verbose: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Search each family with the same budget, train its best settings with several seeds, and say which is best.

    Args:
        source: a YAML file, a mapping, or None for the default on synthetic data.
        overrides: ``section.key=value``, for all families.
        families: names of the model families to compare.
        resume: name or folder of a comparison to continue, or "latest".
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Returns:
        verdict, ranking (best first), metrics by family, baselines, run, run_id, report and more.

    Raises:
        ValueError: the user's mistakes; all families are checked before the first one is trained.
        Interrupted: Ctrl-C.
        NothingFound: no family has a finished training.
    """
    families = [f for family in families if (f := family.strip())]
    if not families:
        raise UserError("--families names none; separate families by commas, such as gru,transformer")
    experiment = load(source, [*(overrides or []), f"model.family={families[0]}"])
    experiment = replace(experiment, overrides=tuple(overrides or ()))
    search = experiment.search
    if search.scheduler == "pbt":
        raise UserError(
            "search.scheduler=pbt changes settings while a trial trains, so there are no settings to train "
            "again; compare with asha, median or none"
        )
    studies = [_study(family, source, overrides, families) for family in dict.fromkeys(families)]
    search = replace(search, trials=studies[0].experiment.search.trials)
    experiment = replace(experiment, search=search)
    with open_session("compare", studies, experiment, resume=resume, verbose=verbose, progress=progress) as session:
        from workflows.tuning.comparison import ComparisonResult, across_setting  # imports Ray and torch

        searches: list[SearchStage] = []
        for study in studies:
            searches.append(session.search_stage(study, search, after=searches[-1] if searches else None))
        seed = experiment.training.seed + 1  # final trainings have other seeds than the search
        across = {k: [v for v in values if {k: v} != across_setting(experiment)] for k, values in search.across.items()}
        finals = [FinalStage(stage, range(seed, seed + search.seeds), across) for stage in searches]
        session.run([*searches, *finals])
        result = ComparisonResult(session, {f.study: f for f in finals}).save()
    session.console.comparison(result)
    return result


def _study(
    family: str, source: str | Path | Mapping[str, Any] | None, overrides: list[str] | None, families: list[str]
) -> Study:
    """The search of one family, over those keys of the space that apply to it; without a space, its learning rate.

    Raises:
        ValueError: the experiment or the space has a mistake.
    """
    options = read(source, [*(overrides or []), f"model.family={family}"])[1]
    section = options.get("search") or {}
    space = section.get("space") if isinstance(section, dict) else None
    if not space:
        rate = load(options).training.learning_rate
        space = {"training.learning_rate": {"loguniform": [rate / DEFAULT_RATE_FACTOR, rate * DEFAULT_RATE_FACTOR]}}
        section = {"trials": DEFAULT_TRIALS, **section} if isinstance(section, dict) else section
    if isinstance(space, dict):
        entries = {key: _entry_for(family, key, entry, options, families) for key, entry in space.items()}
        space = {key: entry for key, entry in entries.items() if entry}
    start = [{k: v for k, v in s.items() if k in space} for s in section.get("start", [])]
    return Study.of(family, {**options, "search": {**section, "space": space, "start": [s for s in start if s]}})


def _entry_for(family: str, key: str, entry: object, options: dict[str, Any], families: list[str]) -> object:
    """The distribution of a key of the space for one family; None if the key does not apply to it."""
    if key == "model.family":
        return None
    when = entry.get("when") if isinstance(entry, dict) else None
    if isinstance(entry, dict) and isinstance(when, dict) and "model.family" in when:
        allowed = when["model.family"] if isinstance(when["model.family"], list) else [when["model.family"]]
        if family not in allowed:
            return None
        other_conditions = {k: v for k, v in when.items() if k != "model.family"}
        entry = {k: v for k, v in entry.items() if k != "when"}
        if other_conditions:
            entry["when"] = other_conditions
    section, _, option = key.partition(".")
    if section == "model":
        have = [f for f in families if option in model_options(f, options.get("dataset"))]
        if have and family not in have:
            return None
    return entry
