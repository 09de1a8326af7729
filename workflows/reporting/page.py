"""The report of a run: one HTML page that opens offline, on a phone, in light and dark, and in print.

>>> from datasets.pipeline.storage import Storage
>>> from workflows.reporting.page import write
>>> write(Storage("runs/demand-20260101-120000-abcd"))
'/home/me/rondo/runs/demand-20260101-120000-abcd/report.html'
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

from datasets.pipeline.storage import Storage, without_secrets
from workflows.config.yaml import parse
from workflows.errors import UserError
from workflows.reporting.compare import build_comparison
from workflows.reporting.parts import Summary
from workflows.reporting.run import build_run
from workflows.reporting.search import build_search

FILES = {"compare": "compare.json", "search": "search.json", "train": "result.json"}
DEFAULTS: Summary = {
    "metrics": {},
    "baselines": {},
    "best_reachable": {},
    "importance": {},
    "signatures": {},
    "notes": [],
}


def write(run: Storage) -> str:
    """Build the page of a run and write it into its folder as report.html.

    Returns:
        the path or URI of the page.

    Raises:
        ValueError: see ``build``.
    """
    run.write("report.html", build(run).encode())
    return (run / "report.html").uri


def build(run: Storage) -> str:
    """The page of a finished training, search or comparison, as HTML.

    Raises:
        ValueError: the folder holds no finished run; the message says what is missing.
    """
    from jinja2 import Environment, StrictUndefined

    kind, summary = read_summary(run)
    page = {"train": build_run, "search": build_search, "compare": build_comparison}[kind](summary, run)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source).render(
        page=page, sections=[s for s in page.sections if s.parts], digest=_digest
    )


def _digest(script: str) -> str:
    """The hash by which the page's content security policy allows its one script, and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def read_summary(run: Storage) -> tuple[str, Summary]:
    """The kind of a run, and its results without user names and passwords."""
    kind = next((k for k, file in FILES.items() if run.exists(file)), None)
    if kind is None or (kind == "train" and not run.exists("experiment.yaml")):
        missing = "experiment.yaml" if kind else ", ".join(FILES.values())
        raise UserError(
            f"{run.uri}: no finished run: it has {'no' if kind else 'none of'} {missing}; give the folder "
            "of a finished training, search or comparison"
        )
    try:
        summary = json.loads(run.read(FILES[kind]), parse_constant=lambda _: None)  # NaN, of older versions
    except ValueError as error:
        raise UserError(f"{run.uri}: {FILES[kind]} cannot be read ({error}); run it again, or resume it") from None
    if kind == "train":
        try:
            summary["experiment"] = parse(run.read("experiment.yaml"))
        except ValueError as error:
            raise UserError(f"{run.uri}: experiment.yaml cannot be read ({error}); restore it") from None
        summary["name"] = run.name
        summary["command"] = "python -m workflows train experiment.yaml"
        summary["tracking"] = summary["experiment"].get("tracking", {}).get("uri", "")
    return kind, {**DEFAULTS, **_clean(summary)}


def _clean(value: Any) -> Any:
    """A JSON value without user names and passwords."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {without_secrets(str(k)): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value
