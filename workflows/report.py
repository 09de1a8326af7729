"""A run as one page of HTML that a person wants to look at: it opens offline, on a phone, in light and dark, in print.

>>> from datasets.storage import Storage
>>> from workflows.report import write
>>> write(Storage("runs/demand-20260101-120000-abcd"))
'/home/me/rondo/runs/demand-20260101-120000-abcd/report.html'
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import yaml

from datasets.storage import Storage, without_secrets
from workflows import charts
from workflows.charts import AGAINST, PLAIN, REFERENCE, Chart, Key, Line, Look, Point, Row, finite, looks, number
from workflows.experiment import parse

Told = dict[str, Any]                                     # what a run has left, read from its JSON
FILES = {"compare": "compare.json", "search": "search.json", "train": "result.json"}
OTHER, STOPPED = Look(charts.MUTED), Look(charts.MUTED, "x")
NOTHING: Told = {"metrics": {}, "baselines": {}, "best_reachable": {}, "importance": {}, "signatures": {}, "notes": []}
BAD = ("failed", "unfinished")
MANY = 40                                                 # settings that a page shows in columns at most
ALTERNATIVES = {
    "forecasts": "Forecasts of windows of the last split: the past, what happened, the forecast and its interval.",
    "confusion": "Which classes of the last split are taken for which.",
    "decisions": "Precision and recall of each class.",
    "transcripts": "Sounds of the last split, and where in them each token was heard.",
    "translations": "To which tokens of the source each written token attends.",
}


@dataclass(frozen=True)
class Cell:
    """What stands in a table: text, what it is sorted by, more to read when pointed at, a class of the style sheet."""

    text: str
    sort: float | None = None
    title: str = ""
    style: str = ""


@dataclass(frozen=True)
class Words:
    """A paragraph."""

    part: ClassVar[str] = "words"
    text: str


@dataclass(frozen=True)
class Table:
    """Rows under headings; those in `strong` stand out. With `tall` it scrolls in a box of its own."""

    part: ClassVar[str] = "table"
    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    strong: frozenset[int] = frozenset()
    tall: bool = False

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold figures, and are set to the right."""
        return [any(c.sort is not None for c in column) for column in zip(*self.rows, strict=True)] or \
            [False] * len(self.columns)


@dataclass(frozen=True)
class Charts:
    """Charts side by side where there is room."""

    part: ClassVar[str] = "charts"
    charts: Sequence[Chart]


@dataclass(frozen=True)
class Pictures:
    """PNG files: (data URI, what is to be seen, width in pixels)."""

    part: ClassVar[str] = "pictures"
    pictures: Sequence[tuple[str, str, int]]


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    part: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Folded:
    """Parts to open."""

    part: ClassVar[str] = "folded"
    title: str
    parts: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """One chapter of the page; one without parts is left out."""

    id: str
    title: str
    parts: Sequence[Any]


@dataclass(frozen=True)
class Page:
    """All that the template shows: of which experiment and run, and `facts`, which are (what, figure, remark)."""

    name: str
    run: str
    kind: str
    verdict: str
    facts: Sequence[tuple[str, str, str]] = ()
    sections: Sequence[Section] = field(default_factory=list)


def write(run: Storage) -> str:
    """Build the page and write it into the run's folder as report.html; its path or URI."""
    run.write("report.html", build(run).encode())
    return (run / "report.html").uri


def build(run: Storage) -> str:
    """The page of a finished training, search or comparison.

    Raises:
        ValueError: the folder holds no finished run; the message says what is missing.
    """
    from jinja2 import Environment, StrictUndefined

    kind, told = _told(run)
    page = {"train": _train, "search": _search, "compare": _compare}[kind](told, run)
    source = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    made = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return made.from_string(source).render(page=page, sections=[s for s in page.sections if s.parts], digest=_digest)


def _digest(script: str) -> str:
    """What a page's policy calls a script by; no other one runs, should any text ever pass for one."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _told(run: Storage) -> tuple[str, Told]:
    """The kind of run, and what it left, with user names and passwords taken out."""
    kind = next((k for k, file in FILES.items() if run.exists(file)), None)
    if kind is None or (kind == "train" and not run.exists("experiment.yaml")):
        missing = "experiment.yaml" if kind else ", ".join(FILES.values())
        raise ValueError(f"{run.uri}: no finished run: it has {'no' if kind else 'none of'} {missing}; name the folder "
                         "of a training, search or comparison that came to its end")
    try:
        told = json.loads(run.read(FILES[kind]), parse_constant=lambda _: None)     # NaN, of older versions
    except ValueError as error:
        raise ValueError(f"{run.uri}: {FILES[kind]} cannot be read ({error}); run it again, or resume it") from None
    if kind == "train":
        try:
            told["experiment"] = parse(run.read("experiment.yaml"))
        except ValueError as error:
            raise ValueError(f"{run.uri}: experiment.yaml cannot be read ({error}); restore it") from None
        told["name"] = run.name
        told["command"] = "python -m workflows train experiment.yaml"
        told["tracking"] = told["experiment"].get("tracking", {}).get("uri", "")
    return kind, {**NOTHING, **_clean(told)}


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {without_secrets(str(k)): _clean(v) for k, v in value.items()}
    return [_clean(v) for v in value] if isinstance(value, list) else value


# One training.


def _train(told: Told, run: Storage) -> Page:
    judged = _judged(told, told["metrics"])
    value = told["metrics"].get(judged)
    history = told["history"]
    best = next((h for h in history if h["step"] == told["best_step"]), None)
    speeds = finite(h.get("train/epoch_rows_per_second") for h in history)
    facts = [(judged, number(value), _held_against(told, judged, value)),
             ("best epoch", f"{best['epoch'] + 1:.0f} of {len(history)}" if best else "–",
              f"step {told['best_step']:,}"),
             ("trained for", _seconds(told["seconds"]), f"{told['steps']:,} steps"),
             ("parameters", number(told["parameters"]), _model(told["experiment"])),
             ("speed", number(max(speeds)) if speeds else "–", "rows a second")]
    record = told.get("run_id") or "look it up by its tag, rondo.run"
    return Page(told["experiment"]["name"], told["name"], "training", _train_verdict(told, judged, value), facts, [
        Section("scores", "Scores", _scores(told, judged)),
        Section("learning", "Learning curves", _learning(told, history)),
        Section("examples", "Example predictions", _examples(run, {"": "pictures"})),
        Section("runs", "Runs", [Words(_recorded(told)), Table(
            "runs", ["run", "MLflow run"], [[Cell(told["name"]), Cell(record, style="id")]])]),
        _reproduce(told),
        Section("notes", "Notes", _notes(told)),
    ])


def _train_verdict(told: Told, judged: str, value: Any) -> str:
    split, _, metric = judged.rpartition("/")
    if not finite([value]):
        return f"There is no {judged}: the run ended without it."
    text = f"{metric} {number(value)} on {split}"
    against = _held_against(told, judged, value)
    text += f", {against}." if against else ". There was no simple method to hold it against."
    reach = told["best_reachable"].get(metric)
    return f"{text} The best that can be reached is {number(reach)}." if finite([reach]) else text


def _scores(told: Told, judged: str) -> list[Any]:
    """The model's metrics beside the baselines', and the judged one as bars."""
    methods = {"the model": told["metrics"], **told["baselines"]}
    split = judged.rpartition("/")[0]
    others = [s for s in dict.fromkeys(k.rpartition("/")[0] for k in told["metrics"]) if s not in (split, "train")]
    shown = {m: v[judged] for m, v in methods.items() if finite([v.get(judged)])} | _reachable(told, judged)
    parts: list[Any] = [_scores_table(told, split, methods)]
    if len(shown) > 1:
        caption = (f"{judged} of the model beside simple methods"
                   f"{', and the best that can be reached' if 'best reachable' in shown else ''}; "
                   f"{_better(told['maximise'])}.")
        ordered = dict(sorted(shown.items(), key=lambda i: -i[1] if told["maximise"] else i[1]))
        parts.append(Charts([charts.bars("scores", ordered, axis_name=judged, caption=caption, strong=["the model"])]))
    if others:
        parts.append(Folded("On other splits", [_scores_table(told, s, methods) for s in others]))
    return parts


def _scores_table(told: Told, split: str, methods: Mapping[str, Told]) -> Table:
    prefix = f"{split}/" if split else ""
    names = [k for k in told["metrics"] if k.rpartition("/")[0] == split]
    names.sort(key=lambda n: n != prefix + told["primary"])
    rows = [[Cell(method), *(_metric(values.get(n)) for n in names)] for method, values in methods.items()]
    if told["best_reachable"]:
        reach = told["best_reachable"]
        rows.append([Cell("best reachable"), *(_metric(reach.get(n.removeprefix(prefix))) for n in names)])
    return Table(f"scores-{split}", [f"on {split}", *(n.removeprefix(prefix) for n in names)], rows, frozenset([0]))


def _learning(told: Told, history: list[Told]) -> list[Any]:
    if not history:
        return []
    primary = f"validation/{told['primary']}"
    best = next((i for i, h in enumerate(history) if h["step"] == told["best_step"]), None)
    levels = _levels(told, primary)
    return [Charts([
        charts.lines("loss", [_curve(history, "train/loss", AGAINST), _curve(history, "validation/loss", PLAIN)],
                     x="epoch", y="loss", keys=[Key("validation", PLAIN), Key("training", AGAINST)],
                     caption="Loss by epoch. That on training rows is measured while the model learns, with dropout; "
                     "where validation rises again, it learns by heart."),
        charts.lines("judged", [replace(_curve(history, primary, PLAIN), ring=best)], x="epoch", y=primary,
                     levels=levels, maximise=told["maximise"],
                     keys=[Key("the model", PLAIN), *([Key("simple methods", REFERENCE)] if levels else [])],
                     caption=f"{primary} by epoch; {_better(told['maximise'])}. The ringed epoch was kept."),
    ])]


# A search.


def _search(told: Told, run: Storage) -> Page:
    trials = told["trials"]
    best = next((t for t in trials if t["number"] == told["best"]), None)
    judged = _judged(told, told["metrics"])
    facts = [("trials", number(len(trials)), _counts(trials)), ("by the clock", _seconds(told["seconds"]), ""),
             ("training", _seconds(told["used"]), "all trials together")]
    if best is not None:
        value = told["metrics"].get(judged)
        facts = [(f"validation/{told['primary']}", number(best["best"]), f"best, of trial {best['number']}"),
                 (judged, number(value), _held_against(told, judged, value)), *facts]
    return Page(told["experiment"]["name"], told["name"], "search", _search_verdict(told, best, judged), facts, [
        Section("leaderboard", "Leaderboard", [*_leaderboard(told, trials), *_failures(trials)]),
        Section("scores", "The best model", _scores(told, judged) if best is not None else []),
        Section("learning", "Learning curves", _trial_curves(told, trials, best)),
        Section("settings", "What matters", _settings(told, trials)),
        Section("costs", "What it costs", _trial_costs(told, trials)),
        Section("examples", "Example predictions", _examples(run, told.get("pictures") or {"": "pictures"})),
        Section("budget", "Budget and space", _budget(told)),
        Section("runs", "Runs", [Words(_recorded(told)), _trial_runs(told, trials)]),
        _reproduce(told),
        Section("notes", "Notes", _notes(told)),
    ])


def _search_verdict(told: Told, best: Told | None, judged: str) -> str:
    trials = told["trials"]
    if best is None:
        if not trials:
            return "No trial was started, so there is nothing to choose from."
        reason = next((t["reason"] for t in trials if t["status"] == "failed" and t["reason"]), "")
        text = f"None of the {len(trials)} trials came to a result."
        return f"{text} The first failure: {reason}" if reason else text
    values = sorted(finite(t["best"] for t in _ran(trials)))
    text = (f"Trial {best['number']} is the best of {len(trials)}: validation/{told['primary']} {number(best['best'])}"
            + (f" with {_some(best['settings'])}." if best["settings"] else "."))
    if len(values) > 2:
        text += f" That is {_than(best['best'], values[len(values) // 2], told['maximise'])} the median trial"
        value = told["metrics"].get(judged)
        against = _held_against(told, judged, value)
        text += f"; {judged} is {number(value)}{f', {against}' if against else ''}." if finite([value]) else "."
    return text


def _leaderboard(told: Told, trials: list[Told]) -> list[Any]:
    """The trials that came to a result, best first, with their settings."""
    ran = _ranked(trials, told["maximise"])
    if not ran:
        return [Words("No trial came to a result.")]
    keys = list(dict.fromkeys(k for t in ran for k in t["settings"]))[:MANY]
    study = any(t["study"] for t in ran)
    rows = []
    for place, t in enumerate(ran, 1):
        link = f"MLflow run {t['run_id'] or 'not delivered'}"
        rows.append([Cell(str(place), place), Cell(f"#{t['number']}", t["number"], link),
                     *([Cell(t["study"])] if study else []), _metric(t["best"], link),
                     Cell(t["status"], title=t["reason"], style=f"chip {t['status']}"),
                     *(_setting_cell(t["settings"], k) for k in keys),
                     _figure(len(t["history"])), _figure(t["parameters"]), _duration(t["seconds"]),
                     _size(t["memory"])])
    columns = ["", "trial", *(["family"] if study else []), f"validation/{told['primary']}", "status",
               *_short_names(keys).values(), "epochs", "parameters", "trained", "memory"]
    return [Table("trials", columns, rows, frozenset([0]), tall=len(rows) > 15)]


def _failures(trials: list[Told]) -> list[Any]:
    bad = [t for t in trials if t["status"] in BAD or t not in _ran(trials)]
    if not bad:
        return []
    study = any(t["study"] for t in bad)
    rows = [[Cell(f"#{t['number']}", t["number"]), *([Cell(t["study"])] if study else []),
             Cell(t["status"], style=f"chip {t['status']}"),
             Cell(t["reason"] or "no reason is known", style="long"), Cell(_some(t["settings"], 50), style="long")]
            for t in bad]
    columns = ["trial", *(["family"] if study else []), "status", "reason", "settings"]
    return [Folded(f"{len(bad)} without a result, and why", [Table("failures", columns, rows, tall=len(rows) > 15)])]


def _trial_curves(told: Told, trials: list[Told], best: Told | None) -> list[Any]:
    primary = f"validation/{told['primary']}"
    levels = _levels(told, primary)
    drawn = [_curve(t["history"], primary, STOPPED if t["status"] == "stopped" else OTHER, strong=False)
             for t in trials if t["history"] and t is not best]
    if best is not None and best["history"]:
        drawn.append(_curve(best["history"], primary, PLAIN))
    if not drawn:
        return []
    keys = [*([Key(f"trial {best['number']}", PLAIN)] if best is not None else []), Key("other trials", OTHER),
            *([Key("stopped early", replace(STOPPED, dash=""))] if any(x.look == STOPPED for x in drawn) else []),
            *([Key("simple methods", REFERENCE)] if levels else [])]
    return [Charts([charts.lines(
        "curves", drawn, x="epoch", y=primary, maximise=told["maximise"], levels=levels, keys=keys,
        caption=f"{primary} of every trial by epoch; {_better(told['maximise'])}."
        + (f" Trial {best['number']}, the best, is thick." if best is not None else ""))])]


def _settings(told: Told, trials: list[Told]) -> list[Any]:
    """Which settings lead where: parallel coordinates, and how much each matters."""
    primary = f"validation/{told['primary']}"
    ran = _ranked(trials, told["maximise"])
    studies = list(dict.fromkeys(t["study"] for t in ran))
    given = [{**({"family": t["study"]} if len(studies) > 1 else {}), **t["settings"]} for t in ran]
    made = []
    if len(ran) > 1 and any(given):
        scales = {k: any("log" in name for name in v) for k, v in told["space"].items() if "choice" not in v}
        made.append(charts.parallel(
            "parallel", given, [float(t["best"]) for t in ran], metric=primary, maximise=told["maximise"],
            scales=scales,
            caption=f"Every line is a trial, from its settings on the left to its {primary} on the right, where the "
            "best is at the top. “not set”: a setting that has no part in that trial."))
    found = {k: float(v) for k, v in told["importance"].items() if finite([v])}
    if found:
        names = _short_names(found)
        ordered = {names[k]: v for k, v in sorted(found.items(), key=lambda item: -item[1])[:12]}
        made.append(charts.bars(
            "importance", ordered, axis_name="importance", share=True, strong=ordered,
            caption="How much of the differences between trials each setting explains"
            f"{', on average over families' if len(studies) > 1 else ''}. With few trials this is a hint, no proof."))
    wide = [Charts([c]) for c in made if c.wide]
    words = [] if found or not made else [Words("There were too few trials to tell how much each setting matters.")]
    return [*wide, *([Charts(rest)] if (rest := [c for c in made if not c.wide]) else []), *words]


def _trial_costs(told: Told, trials: list[Told]) -> list[Any]:
    primary = f"validation/{told['primary']}"
    ran = _ranked(trials, told["maximise"])
    shown = looks(dict.fromkeys(t["study"] for t in ran if t["study"]))
    keys = [Key(family, Look(look.colour, look.marker, "")) for family, look in (shown or {"a trial": PLAIN}).items()]
    made = []
    for key, cost in (("seconds", "seconds of training"), ("parameters", "parameters")):
        points = [Point(float(t[key]), float(t["best"]), f"#{t['number']}", shown.get(t["study"], PLAIN))
                  for t in ran if finite([t[key]]) and t[key] > 0]
        if len({p.cost for p in points}) > 1:
            made.append(charts.costs(
                f"trials-{key}", points, cost=cost, metric=primary, maximise=told["maximise"], keys=keys,
                ring=points[0].name, caption=f"{primary} of each trial against its {cost}. The line is the front: no "
                "trial on it is beaten in both. The best is ringed."))
    return [Charts(made)] if made else []


# A comparison.


def _compare(told: Told, run: Storage) -> Page:
    good = _by_merit(told)
    verdict = f"{good[0]} is the best by {told['judged']}." if good else "No family came to a result."
    final = [t for t in told["trials"] if t["phase"] == "final"]
    searched = [t for t in told["trials"] if t["phase"] != "final"]
    board = [Folded(f"All {len(searched)} trials of the search", _leaderboard(told, searched))] if searched else []
    if told["verdict"]:
        verdict = told["verdict"] + ("" if told["verdict"].endswith((".", "!", "?")) else ".")
    return Page(told["experiment"]["name"], told["name"], "comparison", verdict, _compare_facts(told, good), [
        Section("leaderboard", "Leaderboard", [_families_table(told), *_repeats(told), *_failures(told["trials"])]),
        Section("differences", "How sure the ranking is", _differences(told)),
        Section("lengths", "By length", _lengths(told)),
        Section("learning", "Learning curves", _family_curves(told, final)),
        Section("horizon", "How far each remembers", _horizon(told)),
        Section("costs", "What it costs", [*_family_costs(told), *_trial_costs(told, searched)]),
        Section("settings", "What matters", [*_tuned(told), *_settings(told, searched), *board]),
        Section("examples", "Example predictions", _examples(run, _by_rank(told, told.get("pictures") or {}))),
        Section("budget", "Budget and space", _budget(told)),
        Section("runs", "Runs", [Words(_recorded(told)), *_seed_runs(told),
                                 Folded("All trials", [_trial_runs(told, told["trials"])])]),
        _reproduce(told),
        Section("notes", "Notes", _notes(told)),
    ])


def _compare_facts(told: Told, good: list[str]) -> list[tuple[str, str, str]]:
    families, judged = told["families"], told["judged"]
    seeds = max((len(f["seeds"]) for f in families.values()), default=0)
    facts = [("families", number(len(families)), f"{seeds} seed{'' if seeds == 1 else 's'} each"),
             ("trials", number(len(told["trials"])), _counts(told["trials"])),
             ("by the clock", _seconds(told["seconds"]), f"{_seconds(told['used'])} of training")]
    if not good:
        return facts
    value = _mean(families[good[0]], judged)
    return [("best family", good[0], _some(families[good[0]]["settings"], 3)),
            (judged, number(value), _held_against(told, judged, value)), *facts]


def _families_table(told: Told) -> Table:
    """Families by merit, simple methods, what can be reached; a figure names its MLflow runs when pointed at."""
    judged, families = told["judged"], told["families"]
    split, _, metric = judged.rpartition("/")
    more = [k for k in dict.fromkeys(k for f in families.values() for k in f["metrics"])
            if k != judged and k.rpartition("/")[0] == split]
    rows = []
    good = _by_merit(told)
    for family in good:
        f = families[family]
        runs = "MLflow runs: " + ", ".join(str(s["run_id"]) for s in f["seeds"])
        rows.append([Cell(family, title=runs), _metric(_mean(f, judged), runs), _interval(f["metrics"].get(judged)),
                     _duration(f["seconds"]), _figure(f["parameters"]), _figure(f["rows_per_second"]),
                     *(_figure((f["latency_ms"] or {}).get(q)) for q in ("p50", "p95")), _size(f["memory"]),
                     *(_metric(_mean(f, k), runs) for k in more)])
    empty = [Cell("")] * 6
    for family in [f for f in families if f not in good]:
        reason = families[family]["failed"] or "no result"
        rows.append([Cell(family), Cell("failed", title=reason, style="chip failed"), Cell(reason, style="long"),
                     *empty, *[Cell("")] * len(more)])
    for method, values in _baselines_by_merit(told):
        rows.append([Cell(method, style="quiet"), _metric(_middle(values.get(judged))), _interval(values.get(judged)),
                     *empty, *(_metric(_middle(values.get(k))) for k in more)])
    if told["best_reachable"]:
        reach = told["best_reachable"]
        rows.append([Cell("best reachable", style="quiet"), _metric(reach.get(metric)), Cell(""),
                     *empty, *(_metric(reach.get(k.rpartition("/")[2])) for k in more)])
    columns = ["family", judged, "interval", "trained", "parameters", "rows/s", "latency p50, ms", "p95, ms",
               "peak memory", *(k.rpartition("/")[2] for k in more)]
    return Table("families", columns, rows, frozenset([0] if good else []))


def _repeats(told: Told) -> list[Any]:
    return [Words(told["repeatable"])] if told["repeatable"] else []


def _differences(told: Told) -> list[Any]:
    """The families' intervals, and each pair's difference."""
    judged, families = told["judged"], told["families"]
    shown = looks(families)
    rows = [Row(f, _mean(families[f], judged), *_ends(families[f]["metrics"].get(judged)),
                finite(_seeds(families[f], judged)), shown[f]) for f in _by_merit(told)]
    parts: list[Any] = []
    if rows:
        held = [Row(m, v) for m, v in {**_levels(told, judged), **_reachable(told, judged)}.items()]
        held.sort(key=lambda row: -row.value if told["maximise"] else row.value)
        parts.append(Charts([charts.intervals(
            "intervals", [*rows, *held], metric=judged, maximise=told["maximise"],
            caption=f"{judged} of each family on its best settings: every seed, their mean, and its interval. "
            "What stands at the edge with an arrow lies beyond it.")]))
    if told["differences"]:
        parts.append(Table("differences", ["pair", "difference", "interval", "p", "p adjusted", "reading"], [
            [Cell(f"{d['a']} − {d['b']}"), _figure(d["difference"]), _interval(d, full=False), _chance(d["p"]),
             _chance(d["adjusted"]), Cell(_reading(d, told["maximise"]))] for d in told["differences"]]))
    return parts


def _reading(d: Told, maximise: bool) -> str:
    if not finite([d["adjusted"]]) or not finite([d["difference"]]):
        return "cannot be told"
    if not d["significant"]:
        return "may be chance"
    return f"{d['a'] if (d['difference'] > 0) == maximise else d['b']} is better"


def _lengths(told: Told) -> list[Any]:
    lengths, judged = told.get("lengths") or {}, told["judged"]
    families = [f for f in told["families"] if any(f in v for v in lengths.values())]
    if not families:
        return []
    shown = looks(told["families"])
    order = sorted(lengths, key=lambda n: (not finite([_as_number(n)]), _as_number(n), n))
    numeric = all(finite([_as_number(n)]) for n in order)
    drawn = []
    for family in families:
        points = [(_as_number(n) if numeric else i, lengths[n][family]) for i, n in enumerate(order, 1)
                  if family in lengths[n]]
        drawn.append(Line([x for x, _ in points], [_middle(v) for _, v in points], shown[family],
                          error=[_ends(v) for _, v in points]))
    xs = [v for line in drawn for v in line.x]
    return [Charts([charts.lines(
        "lengths", drawn, x=told["across"], y=judged, keys=[Key(f, shown[f]) for f in families],
        log_x=numeric and min(xs) > 0 and max(xs) > 8 * min(xs), maximise=told["maximise"],
        levels=_reachable(told, judged),
        caption=f"{judged} for each {told['across']}, with its interval; {_better(told['maximise'])}.")])]


def _family_curves(told: Told, final: list[Told]) -> list[Any]:
    primary = f"validation/{told['primary']}"
    shown = looks(told["families"])
    drawn = [_curve(t["history"], primary, shown[t["study"]]) for t in final if t["history"] and t["study"] in shown]
    if not drawn:
        return []
    there = [f for f in told["families"] if any(t["study"] == f for t in final)]
    return [Charts([charts.lines(
        "curves", drawn, x="epoch", y=primary, maximise=told["maximise"], keys=[Key(f, shown[f]) for f in there],
        levels=_levels(told, primary),
        caption=f"{primary} by epoch of each family's best settings, a line a seed; {_better(told['maximise'])}.")])]


def _horizon(told: Told) -> list[Any]:
    shown = looks(told["families"])
    there = {f: v["horizon"] for f, v in told["families"].items() if v.get("horizon") and v["horizon"]["norms"]}
    if not there:
        return []
    drawn = [Line([i * h["scale"] for i in range(len(h["norms"]))], h["norms"], shown[f]) for f, h in there.items()]
    keys = [Key(f"{f}: reach {_reach(h)}", shown[f]) for f, h in there.items()]
    return [Charts([charts.lines(
        "horizon", drawn, x="steps back in the data", y="influence on the output, the largest being 1", log_y=True,
        keys=keys, caption="How much the output still depends on an input that lies so many steps back: the size of "
        "its gradient, averaged over rows. 95 % of all influence lies within a family's reach.")])]


def _reach(horizon: Told) -> str:
    """In steps of the model, and of the data where those are others."""
    reach, scale = horizon["reach"], horizon["scale"]
    steps = f"{number(reach)} step{'' if reach == 1 else 's'}"
    whole = f"{steps} of {number(scale)}, {number(reach * scale)} of the data" if finite([reach]) else steps
    return steps if scale == 1 else whole


def _family_costs(told: Told) -> list[Any]:
    """The judged metric of each family against what it costs to train, to keep and to ask."""
    judged, families = told["judged"], told["families"]
    shown = looks(families)
    made = []
    costs: dict[str, Callable[[Told], Any]] = {
        "seconds of training": lambda f: f["seconds"], "parameters": lambda f: f["parameters"],
        "latency p50, ms": lambda f: (f["latency_ms"] or {}).get("p50")}
    for name, cost in costs.items():
        there = [f for f in _by_merit(told) if finite([cost(families[f])]) and cost(families[f]) > 0]
        points = [Point(float(cost(families[f])), _mean(families[f], judged), "", shown[f],
                        *_ends(families[f]["metrics"].get(judged))) for f in there]
        if len(points) > 1:
            keys = [Key(f, replace(shown[f], dash="")) for f in there]
            made.append(charts.costs(
                f"families-{name}", points, cost=name, metric=judged, maximise=told["maximise"], keys=keys,
                caption=f"{judged} of each family, with its interval, against {name}. No family on the line is beaten "
                "in both."))
    return [Charts(made)] if made else []


def _tuned(told: Told) -> list[Any]:
    """What the search chose for each family."""
    families = {f: v["settings"] for f, v in told["families"].items() if v["settings"]}
    keys = list(dict.fromkeys(k for s in families.values() for k in s))[:MANY]
    if not keys:
        return []
    rows = [[Cell(k), *(_setting_cell(s, k) for s in families.values())] for k in keys]
    return [Words("What the search chose for each family:"), Table("tuned", ["setting", *families], rows)]


def _seed_runs(told: Told) -> list[Any]:
    rows = [[Cell(family), Cell(str(s["seed"]), _sortable(s["seed"])), Cell(f"#{s['number']}", _sortable(s["number"])),
             _metric(s["metrics"].get(told["judged"])), Cell(s["run_id"] or "not delivered", style="id")]
            for family, f in told["families"].items() for s in f["seeds"]]
    columns = ["family", "seed", "trial", told["judged"], "MLflow run"]
    return [Table("seeds", columns, rows, tall=len(rows) > 15)] if rows else []


# What the kinds share.


def _examples(run: Storage, folders: Mapping[str, str]) -> list[Any]:
    """The PNG files of the folders, whole, inside the page; learning curves are charts here already."""
    found = []
    for owner, folder in folders.items():
        for name in (run / folder).names():
            stem = name.removesuffix(".png")
            if name.endswith(".png") and stem != "learning_curve":
                data = run.read(f"{folder}/{name}")
                text = ALTERNATIVES.get(stem, f"{stem.replace('_', ' ')}.")
                found.append((f"data:image/png;base64,{base64.b64encode(data).decode()}",
                              f"{owner}: {text[0].lower()}{text[1:]}" if owner else text,
                              int.from_bytes(data[16:20], "big")))           # where a PNG says how wide it is
    more = [Folded(f"{len(found) - 1} more", [Pictures(found[1:])])] if len(found) > 1 else []
    return [Pictures(found[:1]), *more] if found else []


def _curve(history: list[Told], metric: str, look: Look, *, strong: bool = True) -> Line:
    return Line([h["epoch"] + 1 for h in history], [_middle(h.get(metric)) for h in history], look, strong)


def _budget(told: Told) -> list[Any]:
    budget = dict(told["budget"])
    said = []
    if budget.get("trials") is not None:
        said.append(f"{budget['trials']:,} trials at most" + (" for each family" if "families" in told else ""))
    if budget.get("seconds") is not None:
        said.append(f"{_seconds(budget['seconds'])} at most")
    for key, text in (("searcher", "settings proposed by {}"), ("scheduler", "bad trials stopped early by {}"),
                      ("concurrent", "{} at a time"), ("seed", "seed {}")):
        if budget.get(key) is not None:
            said.append(text.format(budget[key]))
    known = {"trials", "seconds", "searcher", "scheduler", "concurrent", "seed"}
    said += [f"{k.replace('_', ' ')} {_value(v)}" for k, v in budget.items() if k not in known and v is not None]
    text = f"The budget: {', '.join(said)}. " if said else ""
    text += (f"Of {len(told['trials']):,} trials, {_counts(told['trials'])}. They trained for "
             f"{_seconds(told['used'])} in all; the whole took {_seconds(told['seconds'])} by the clock.")
    rows = [[Cell(k), Cell(_choice(v), style="long"), Cell(_when(v), style="long")] for k, v in told["space"].items()]
    if not rows:
        return [Words(text), Words("No settings were tuned.")]
    return [Words(text), Words("What was tuned, and where it was looked for; all else stood as in the experiment:"),
            Table("space", ["setting", "from", "only when"], rows)]


def _choice(distribution: Told) -> str:
    name, given = next(((k, v) for k, v in distribution.items() if k != "when"), ("", None))
    if name == "choice" and isinstance(given, list):
        return f"one of {', '.join(_value(v) for v in given)}"
    if isinstance(given, list) and len(finite(given)) == len(given) >= 2:
        step = f", in steps of {_value(given[2])}" if len(given) > 2 else ""
        whole = ", whole numbers" if "int" in name else ""
        return f"{_value(given[0])} to {_value(given[1])}{step}{whole}{', logarithmic' if 'log' in name else ''}"
    return f"{name} {_value(given)}".strip()


def _when(distribution: Told) -> str:
    return ", ".join(f"{k} is {' or '.join(_value(x) for x in v) if isinstance(v, list) else _value(v)}"
                     for k, v in (distribution.get("when") or {}).items())


def _trial_runs(told: Told, trials: list[Told]) -> Table:
    study = any(t["study"] for t in trials)
    rows = [[Cell(f"#{t['number']}", t["number"]), *([Cell(t["study"])] if study else []), Cell(t["phase"]),
             Cell(t["status"], title=t["reason"], style=f"chip {t['status']}"), _metric(t["best"]), Cell(t["node"]),
             Cell(t["run_id"] or "not delivered", style="id")] for t in trials]
    columns = ["trial", *(["family"] if study else []), "phase", "status", f"validation/{told['primary']}", "node",
               "MLflow run"]
    return Table("runs", columns, rows, tall=len(rows) > 15)


def _recorded(told: Told) -> str:
    whole = f" The record of the whole is run {told['run_id']}." if told.get("run_id") and "trials" in told else ""
    return f"Every figure here stands in MLflow, at {told['tracking']}, under the run that it comes from.{whole}"


def _reproduce(told: Told) -> Section:
    """The command, the experiment that it needs, and the versions it ran with."""
    text = yaml.safe_dump(told["experiment"], sort_keys=False, allow_unicode=True, width=100)
    versions = told.get("versions") or {}
    lead = "The same again, with the experiment below saved as experiment.yaml:" if "trials" not in told else \
        "The command that made this:"
    parts: list[Any] = [Words(lead), Code(told["command"])]
    if told["tracking"].startswith("sqlite:"):
        parts += [Words("To look into the record:"), Code(f"mlflow ui --backend-store-uri {told['tracking']}")]
    parts.append(Folded("The experiment, every option written out", [Code(text)]))
    if versions:
        parts.append(Folded("Versions", [Table("versions", ["package", "version"],
                                               [[Cell(k), Cell(str(v))] for k, v in versions.items()])]))
    return Section("reproduce", "Do it again", parts)


def _notes(told: Told) -> list[Any]:
    """What came up on the way, and how exactly metrics are computed where their library says so."""
    return [Words(n) for n in [*told["notes"], *(f"{k}: {v}" for k, v in told["signatures"].items())]]


def _judged(told: Told, metrics: Told) -> str:
    return next((f"{s}/{told['primary']}" for s in ("test", "validation") if f"{s}/{told['primary']}" in metrics),
                f"test/{told['primary']}")


def _levels(told: Told, metric: str) -> dict[str, float]:
    """The baselines that have this metric."""
    return {m: _middle(v.get(metric)) for m, v in told["baselines"].items() if finite([_middle(v.get(metric))])}


def _reachable(told: Told, metric: str) -> dict[str, float]:
    """The best value of a metric that can be reached, where that is known."""
    found = finite([told["best_reachable"].get(metric.rpartition("/")[2])])
    return {"best reachable": found[0]} if found else {}


def _baselines_by_merit(told: Told) -> list[tuple[str, Told]]:
    sign = -1 if told["maximise"] else 1
    return sorted(told["baselines"].items(), key=lambda item: sign * v[0] if (v := finite([_middle(item[1].get(
        told["judged"]))])) else math.inf)


def _held_against(told: Told, judged: str, value: Any) -> str:
    """The value against the best simple method, in words; "" where there is none."""
    levels = _levels(told, judged)
    if not levels or not finite([value]):
        return ""
    best = (max if told["maximise"] else min)(levels, key=lambda m: levels[m])
    return f"{_than(value, levels[best], told['maximise'])} {best}"


def _than(value: float, other: float, maximise: bool) -> str:
    """How a value lies to another: "32 % below", "0.12 above"."""
    if value == other:
        return "the same as"
    side = "below" if value < other else "above"
    if maximise or other <= 0 or value < 0 or value > 10 * other:
        return f"{number(abs(value - other))} {side}"
    share = 100 * abs(1 - value / other)
    return f"{share:.0f} % {side}" if share >= 1 else f"{share:.1g} % {side}"


def _better(maximise: bool) -> str:
    return "higher is better" if maximise else "lower is better"


def _ran(trials: Iterable[Told]) -> list[Told]:
    return [t for t in trials if finite([t["best"]]) and t["status"] not in BAD]


def _ranked(trials: Iterable[Told], maximise: bool) -> list[Told]:
    return sorted(_ran(trials), key=lambda t: -t["best"] if maximise else t["best"])


def _counts(trials: Sequence[Told]) -> str:
    said = {"finished": "finished", "stopped": "stopped early", "failed": "failed", "unfinished": "unfinished"}
    counted = {text: sum(t["status"] == status for t in trials) for status, text in said.items()}
    return ", ".join(f"{n:,} {text}" for text, n in counted.items() if n) or "none came to an end"


def _mean(family: Told, metric: str) -> float:
    return _middle(family["metrics"].get(metric))


def _middle(value: Any) -> float:
    """A plain number, or the mean of one with an interval; NaN where there is none."""
    found = finite([value.get("mean") if isinstance(value, dict) else value])
    return found[0] if found else math.nan


def _ends(value: Any) -> tuple[float | None, float | None]:
    if not isinstance(value, dict) or len(finite([value.get("low"), value.get("high")])) < 2:
        return None, None
    return float(value["low"]), float(value["high"])


def _seeds(family: Told, metric: str) -> list[Any]:
    value = family["metrics"].get(metric)
    return list(value.get("seeds") or []) if isinstance(value, dict) else []


def _by_merit(told: Told) -> list[str]:
    """The families that came to a result, best first."""
    means = {f: _mean(v, told["judged"]) for f, v in told["families"].items() if not v["failed"]}
    return sorted((f for f in means if finite([means[f]])), key=lambda f: -means[f] if told["maximise"] else means[f])


def _by_rank(told: Told, folders: Told) -> dict[str, str]:
    good = _by_merit(told)
    return dict(sorted(folders.items(), key=lambda item: good.index(item[0]) if item[0] in good else len(good)))


def _model(experiment: Told) -> str:
    """The model in a few words."""
    model = experiment.get("model", {})
    family, size, layers = (model.get(k) for k in ("family", "hidden_size", "layers"))
    told = [str(family) if family else "", f"{layers} × {size}" if layers and size else f"width {size}" if size else ""]
    return ", ".join(t for t in told if t)


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last word of each setting's name, where it is not that of another one, too."""
    keys = list(keys)
    last = [k.rpartition(".")[2] for k in keys]
    return {k: name if last.count(name) == 1 else k for k, name in zip(keys, last, strict=True)}


def _some(settings: Told, most: int = 6) -> str:
    """Settings in a line."""
    said = [f"{k.rpartition('.')[2]} {_value(v)}" for k, v in settings.items() if v is not None]
    return ", ".join(said[:most]) + (f" and {len(said) - most} more" if len(said) > most else "")


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, list):
        return f"[{', '.join(_value(v) for v in value)}]"
    return number(value)


def _figure(value: Any, title: str = "", *, full: bool = False) -> Cell:
    return Cell(number(value, full=full), _sortable(value), title)


def _metric(value: Any, title: str = "") -> Cell:
    """A figure with as many digits as those above and below it."""
    return _figure(value, title, full=True)


def _setting_cell(settings: Told, key: str) -> Cell:
    if key not in settings:
        return Cell("not set", style="quiet")
    value = settings[key]
    return Cell(_value(value), _sortable(value))


def _chance(value: Any) -> Cell:
    return Cell(f"{value:.3f}" if value >= 0.0005 else "< 0.001", value) if finite([value]) else Cell("–")


def _interval(value: Any, *, full: bool = True) -> Cell:
    low, high = _ends(value)
    return Cell(f"{number(low, full=full)} to {number(high, full=full)}" if low != high else "", low)


def _sortable(value: Any) -> float | None:
    found = finite([value])
    return found[0] if found else None


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _duration(value: Any) -> Cell:
    return Cell(_seconds(value), _sortable(value))


def _seconds(value: Any) -> str:
    if not finite([value]):
        return "–"
    if value < 60:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _size(value: Any) -> Cell:
    """Bytes, to read."""
    found = finite([value])
    if not found:
        return Cell("–")
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if found[0] >= size:
            return Cell(f"{found[0] / size:.3g} {unit}", found[0])
    return Cell(f"{found[0]:.0f} B", found[0])
