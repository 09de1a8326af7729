"""Search an experiment's hyperparameters and save the best trial's bundle.

>>> from workflows.search import search
>>> result = search("workflows/experiments/etth1.yaml", overrides=["search.trials=8"])
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workflows import strict_json
from workflows.config.load import load, read
from workflows.errors import NothingFound, UserError
from workflows.tuning.ledger import ranked
from workflows.tuning.open import open_session
from workflows.tuning.queue import Assignment
from workflows.tuning.sampler import importance
from workflows.tuning.space import with_settings
from workflows.tuning.study import Study

if TYPE_CHECKING:
    from workflows.tuning.session import SearchSession

EXAMPLE = "search: {space: {training.learning_rate: {loguniform: [1.0e-4, 1.0e-2]}}}"


def search(
    source: str | Path | Mapping[str, Any] | None = None,
    *,
    overrides: list[str] | None = None,
    resume: str | None = None,
    verbose: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Search an experiment's hyperparameters as its section `search` describes.

    Args:
        source: a YAML file, a mapping, or None for the default on synthetic data.
        overrides: ``section.key=value``.
        resume: name or folder of a search to continue, or "latest".
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Returns:
        run, run_id, bundle, report, best (number and settings), metrics, baselines, trials and more.

    Raises:
        ValueError: the user's mistakes.
        Interrupted: Ctrl-C.
        NothingFound: every trial failed.
    """
    experiment = load(source, overrides)
    options = read(source, overrides)[1]
    if not experiment.search.space:
        raise UserError(f"{experiment.source}: search.space is empty: give the keys to search, such as {EXAMPLE}")
    studies = [Study.of("", options)]
    with open_session("search", studies, experiment, resume=resume, verbose=verbose, progress=progress) as session:
        session.run([session.search_stage(studies[0], experiment.search)])
        result = _save_best(session)
    session.console.leaderboard(session.ledger.records, primary=session.primary, maximise=session.maximise)
    session.console.search_result(result)
    return result


def _save_best(session: SearchSession) -> dict[str, Any]:
    """Measure the best trial; save its bundle and pictures, search.json and the page. Returns the result of the search.

    Raises:
        NothingFound: no trial has a result.
    """
    from workflows.reporting.results import save_results
    from workflows.tuning.session import run_on_worker  # imports Ray, torch and Tune: done while Ray started
    from workflows.tuning.trial import data_key, evaluate_best

    study, context, tracker = session.studies[0], session.context, session.tracker
    trials = ranked(session.ledger.records, maximise=session.maximise)
    best = trials[0] if trials else None
    result: dict[str, Any] = {"metrics": {}, "baselines": {}, "best_reachable": {}}
    if best is not None:
        with session.console.busy("measuring the best trial"):
            evaluated = run_on_worker(session, evaluate_best, Assignment(best.number, best.study, best.settings))
        experiment = with_settings(study.options, best.settings)
        prepared = context.prepared[data_key(experiment)]
        save_results(evaluated, experiment, prepared, session.folder, tracker, session.name)
        result = {k: evaluated[k] for k in ("metrics", "baselines", "best_reachable", "signatures", "parameters")}
        tracker.metrics(
            session.name,
            {f"best/validation/{session.primary}": best.best or 0.0, "best/trial": best.number},
            len(session.ledger.records),
        )
        if session.experiment.search.register_as:
            tracker.register(session.name, session.experiment.search.register_as, "bundle")
    session.save_run_ids()
    values = [(r.settings, r.best) for r in trials if r.best is not None]
    summary = {
        **session.summary(),
        **result,
        "best": None if best is None else best.number,
        "importance": importance(study.axes, values, maximise=session.maximise),
    }
    session.folder.write("search.json", strict_json.dumps(summary).encode())
    page = session.report()
    if best is None:
        reasons = "\n".join(dict.fromkeys(f"trial {r.number}: {r.reason}" for r in session.ledger.records[:10]))
        raise NothingFound(f"none of the {len(session.ledger.records)} trials has a result:\n{reasons}\n{page}")
    return {
        **result,
        "run": session.name,
        "run_id": summary["run_id"],
        "bundle": (session.folder / "bundle").uri,
        "report": page,
        "best": {
            "number": best.number,
            "settings": best.settings,
            f"validation/{session.primary}": best.best,
        },
        "primary": session.primary,
        "maximise": session.maximise,
        "trials": summary["trials"],
        "seconds": summary["seconds"],
        "used": summary["used"],
    }
