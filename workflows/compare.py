"""RNN, LSTM, GRU or Transformer, for this data? The same budget for each, several seeds, and how sure the answer is.

For each family: a search with the budget of the experiment's section `search`, then trainings of the best settings with
`search.seeds` other seeds, measured on the test rows. Families differ where that is more than seeds and rows explain
(``workflows.statistics``).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflows import strict_json
from workflows.experiment import Experiment, flatten, load, read
from workflows.search import Hunt, NothingFound, Study, hunt, on_a_worker
from workflows.space import Settings, changed, importance

if TYPE_CHECKING:
    from workflows.statistics import Comparison, Sums
    from workflows.trial import Assignment, Shared
    from workflows.tuner import Finals, Record

AROUND = 5.0           # without a space, learning rates up to so many times lower and higher than the experiment's
FEW = 6                # trials of each family, then
ROWS = 64              # of the last split, whose gradients show how far back a model looks
CALLS = 100            # of one row each, whose times are measured


def compare(source: str | Path | Mapping[str, Any] | None = None, overrides: list[str] | None = None, *,
            families: list[str], resume: str | None = None, verbose: bool = False,
            progress: bool = True) -> dict[str, Any]:
    """Search each family with the same budget, train the best settings again, and say which family is best.

    Args:
        source: a YAML file, a mapping, or None for the default on embedded data.
        overrides: ``section.key=value``, for all families.
        families: to compare.
        resume: a comparison's name or folder to continue, or "latest".
        verbose: leave Ray's own messages on.
        progress: show progress on stderr.

    Returns:
        verdict, ranking (best first), metrics by family, baselines, run, run_id, report and more.

    Raises:
        ValueError: the user's mistakes; all families are checked before the first one is trained. Interrupted: Ctrl-C.
        NothingFound: no family has a training that came to its end.
    """
    from workflows import tuner

    families = [f for family in families if (f := family.strip())]
    if not families:
        raise ValueError("--families names none; give some by commas, such as gru,transformer")
    experiment = load(source, [*(overrides or []), f"model.family={families[0]}"])
    experiment = replace(experiment, overrides=tuple(overrides or ()))
    search = experiment.search
    if search.scheduler == "pbt":
        raise ValueError("search.scheduler=pbt changes settings while a trial trains, so that there are none to train "
                         "again; compare with asha, median or none")
    studies = [_study(family, source, overrides, families) for family in dict.fromkeys(families)]
    search = replace(search, trials=studies[0].experiment.search.trials)
    experiment = replace(experiment, search=search)
    with hunt("compare", studies, experiment, resume=resume, verbose=verbose, progress=progress) as opened:
        stages: list[Any] = []
        for study in studies:
            stages.append(tuner.Searching(
                study.name, study.axes, search, told=study.told, ledger=opened.ledger, primary=opened.primary,
                maximise=opened.maximise, concurrent=opened.concurrent, after=stages[-1] if stages else None))
        seed = experiment.training.seed + 1              # other seeds than the one that the search has seen
        across = {k: [v for v in values if {k: v} != _own_place(experiment)] for k, values in search.across.items()}
        finals = [tuner.Finals(stage, range(seed, seed + search.seeds), across) for stage in stages]
        opened.run([*stages, *finals])
        result = _Result(opened, {f.study: f for f in finals}).leave()
    opened.console.compared(result)
    return result


def _study(family: str, source: Any, overrides: list[str] | None, families: list[str]) -> Study:
    """The search of one family: its own keys of the space, or without a space its learning rate.

    Raises:
        ValueError: what is wrong with the experiment or the space.
    """
    told = read(source, [*(overrides or []), f"model.family={family}"])[1]
    section = told.get("search") or {}
    space = section.get("space") if isinstance(section, dict) else None
    if not space:
        rate = load(told).training.learning_rate
        space = {"training.learning_rate": {"loguniform": [rate / AROUND, rate * AROUND]}}
        section = {"trials": FEW, **section} if isinstance(section, dict) else section
    if isinstance(space, dict):
        space = {key: axis for key, given in space.items() if (axis := _own(key, given, family, told, families))}
    start = [{k: v for k, v in s.items() if k in space} for s in section.get("start", [])]
    return Study.of(family, {**told, "search": {**section, "space": space, "start": [s for s in start if s]}})


def _own(key: str, given: Any, family: str, told: dict[str, Any], families: list[str]) -> Any:
    """What a key of the space is for one family; None where it has no meaning."""
    if key == "model.family":
        return None
    when = given.get("when") if isinstance(given, dict) else None
    if isinstance(when, dict) and "model.family" in when:
        allowed = when["model.family"] if isinstance(when["model.family"], list) else [when["model.family"]]
        if family not in allowed:
            return None
        rest = {k: v for k, v in when.items() if k != "model.family"}
        given = {k: v for k, v in given.items() if k != "when"} | ({"when": rest} if rest else {})
    if key.startswith("model.") and not _known(key, family, told) and any(_known(key, f, told) for f in families):
        return None
    return given


def _own_place(experiment: Experiment) -> Settings:
    """Where the experiment itself stands on `search.across`."""
    told = dict(flatten(experiment.plain()))
    return {key: told.get(key) for key in experiment.search.across}


def _known(key: str, family: str, told: dict[str, Any]) -> bool:
    """Whether a family's model has this option."""
    try:
        changed(told, {"model.family": family, key: {}})               # no option is a mapping: the message tells
    except ValueError as error:
        return f"{key}={{}} is not known" not in str(error)
    return True


@dataclass
class _Result:
    """What a comparison found.

    Attributes:
        opened: the comparison; finals: by family.
    """

    opened: Hunt
    finals: dict[str, Finals]

    def records(self, family: str, place: Settings | None = None) -> list[Record]:
        """The final trainings of a family, at its own settings or at a value of `search.across`."""
        best = self.finals[family].best()
        if best is None:
            return []
        elsewhere = place is not None and place != _own_place(self.opened.experiment)
        wanted = {**best.settings, **(place if place and elsewhere else {})}
        return [r for r in self.opened.ledger.of(family, "final")
                if {k: v for k, v in r.settings.items() if k != "training.seed"} ==
                {k: v for k, v in wanted.items() if k != "training.seed"}]

    @property
    def split(self) -> str:
        return self.opened.splits[-1]

    def leave(self) -> dict[str, Any]:
        """Measure, decide, and leave bundle, page and record."""
        opened, tracker = self.opened, self.opened.tracker
        trained = [s.name for s in opened.studies if any(r.status == "finished" for r in self.records(s.name))]
        opened.run_ids()
        told: dict[str, Any] = {"families": {}, "baselines": {}, "differences": [], "verdict": "", "pictures": {}}
        if trained:
            found = self.decide([s.name for s in opened.studies], None)
            told |= self._told(found, trained)
            lengths = {str(value): {f: asdict(e) for f, e in self.decide(trained, {key: value}).families.items()}
                       for key, values in opened.experiment.search.across.items() for value in values}
            told |= {"lengths": lengths, "across": next(iter(opened.experiment.search.across), None)}
            self._record(told)
            self._keep(found.best)
        first = opened.experiment.search
        summary = {**opened.told(), **told, "judged": f"{self.split}/{opened.primary}",
                   "space": {k: v for s in reversed(opened.studies) for k, v in s.experiment.search.space.items()},
                   "importance": self._importance(),
                   "repeatable": _repeatable(first, opened.concurrent)}
        opened.folder.write("compare.json", strict_json.dumps(summary).encode())
        page = opened.report()
        if not trained:
            reasons = "\n".join(dict.fromkeys(f"{r.study}: {r.reason}" for r in opened.ledger.records
                                              if r.status == "failed"))
            raise NothingFound(f"no family has a training that came to its end:\n{reasons}\n{page}")
        if first.register_as:
            tracker.register(opened.name, first.register_as, "bundle")
        ranking = [f for f in told["families"] if f in trained]
        return {**{k: summary[k] for k in ("verdict", "families", "baselines", "differences", "judged", "repeatable",
                                           "run_id", "seconds", "used", "primary", "maximise")},
                "run": opened.name, "report": page, "bundle": (opened.folder / "bundle").uri, "ranking": ranking,
                "best_reachable": told["best_reachable"],
                "metrics": {f: {k: v["mean"] for k, v in told["families"][f]["metrics"].items()} for f in ranking},
                "runs": {f: [s["run_id"] for s in told["families"][f]["seeds"]] for f in ranking}}

    def decide(self, families: list[str], place: Settings | None) -> Comparison:
        """The statistics of the metric that decides, at the tuned settings or at a value of `search.across`."""
        import torch

        from workflows import statistics as sure

        task = self._task(next(f for f in families if self.records(f, place)), place)

        def metric(sums: Mapping[str, Any]) -> float:
            result = task.result({k: torch.as_tensor(v) for k, v in sums.items()})
            return float(result.get(self.opened.primary, float("nan")))

        sums: dict[str, list[Sums | None]] = {}
        simple: dict[str, dict[str, Any]] = {}
        for family in families:
            sums[family] = []
            for record in self.records(family, place):
                by_method = self._groups(record) if record.status == "finished" else {}
                sums[family].append(by_method.pop("model", None))              # None: a training that failed
                simple = simple or dict(by_method)
        whole = {method: {k: v.sum(0) for k, v in own.items()} for method, own in simple.items()}
        judged: dict[str, Sums] = {method: simple[method] for method in simple if np.isfinite(metric(whole[method]))}
        return sure.compare({f: s for f, s in sums.items() if s}, metric, baselines=judged,
                            name=f"{self.split}/{self.opened.primary}", maximise=self.opened.maximise,
                            bounds=task.bounds, seed=self.opened.experiment.search.seed)

    def _task(self, family: str, place: Settings | None) -> Any:
        import torch

        from workflows.trial import data_key
        from workflows.worker import make_model

        study = self.opened.study(family)
        experiment = changed(study.told, self.records(family, place)[0].settings)
        return make_model(experiment, self.opened.shared.prepared[data_key(experiment)], torch.device("cpu"))[0].task

    def _groups(self, record: Record) -> dict[str, dict[str, Any]]:
        """By method, the sums of each group of rows that a final training left."""
        import safetensors.numpy

        from workflows.trial import folder_of
        from workflows.worker import Groups

        told = safetensors.numpy.load(folder_of(self.opened.folder, record.number).read(Groups.FILE))
        found: dict[str, dict[str, Any]] = {}
        for name, value in told.items():
            method, _, of = name.partition("/")
            found.setdefault(method, {})[of] = value
        return found

    def _told(self, found: Comparison, trained: list[str]) -> dict[str, Any]:
        """Plain values of the comparison, for the page."""
        judged = f"{self.split}/{self.opened.primary}"
        sign = -1 if self.opened.maximise else 1
        families: dict[str, Any] = {}
        for study in sorted(self.opened.studies, key=lambda s: (
                s.name not in found.families,
                sign * found.families[s.name].mean if s.name in found.families else 0)):
            families[study.name] = self._family(study.name)
            if study.name in found.families:
                families[study.name]["metrics"][judged] = asdict(found.families[study.name])
        first = next(r for r in self.records(trained[0]) if r.status == "finished")
        baselines: dict[str, Any] = {m: dict(values) for m, values in first.baselines.items()}
        for method, estimate in found.baselines.items():
            baselines[method][judged] = asdict(estimate)
        return {"families": families, "baselines": baselines, "verdict": found.text, "best": found.best,
                "best_reachable": self._reachable(trained[0]),
                "differences": [asdict(d) for d in found.differences],
                "pictures": {f: f"pictures/{f}" for f in trained}}

    def _reachable(self, family: str) -> dict[str, float]:
        """What no model can beat, where the data says so."""
        from workflows.trial import folder_of
        record = next(r for r in self.records(family) if r.status == "finished")
        result = json.loads(folder_of(self.opened.folder, record.number).read("result.json"))
        told: dict[str, float] = strict_json.none_to_nan(result["best_reachable"])
        return told

    def _family(self, family: str) -> dict[str, Any]:
        """One family's row: what its trainings cost and reached, and what is measured on one of its models."""
        from workflows.trial import Assignment

        opened, records = self.opened, self.records(family)
        done, best = [r for r in records if r.status == "finished"], self.finals[family].best()
        told: dict[str, Any] = {
            "settings": best.settings if best else {}, "metrics": {}, "horizon": None, "latency_ms": None,
            "seeds": [{"seed": r.settings["training.seed"], "number": r.number, "run_id": r.run_id, "status": r.status,
                       "reason": r.reason, "metrics": r.metrics} for r in records],
            "trials": len(opened.ledger.of(family, "search"))}
        if not done:
            failed = [r for r in opened.ledger.records if r.study == family and r.status == "failed"]
            return {**told, "failed": failed[-1].reason if failed else "no trial came to its end"}
        told["metrics"] = {name: {"mean": statistics.fmean(r.metrics[name] for r in done)}
                           for name in done[0].metrics if all(name in r.metrics for r in done)}
        with opened.console.busy(f"measuring {family}"):
            told |= on_a_worker(opened, measure, Assignment(done[0].number, family, done[0].settings))
        self._draw(done[0], family)
        speeds = [h["train/epoch_rows_per_second"] for r in done for h in r.history]
        return {**told, "parameters": done[0].parameters, "seconds": statistics.fmean(r.seconds for r in done),
                "rows_per_second": statistics.median(speeds), "failed": "",
                "memory": max((r.memory for r in done if r.memory is not None), default=None)}

    def _draw(self, record: Record, family: str) -> None:
        from workflows import pictures
        from workflows.train import local_folder
        from workflows.trial import data_key, folder_of

        opened, run = self.opened, folder_of(self.opened.folder, record.number)
        study = opened.study(family)
        experiment = changed(study.told, record.settings)
        made = local_folder(opened.folder) / "pictures" / family
        made.mkdir(parents=True, exist_ok=True)
        pictures.predictions(experiment, opened.shared.prepared[data_key(experiment)], run, made)
        if opened.folder.local is None:
            opened.folder.put(made, f"pictures/{family}")
        opened.tracker.artifact(opened.name, made, f"pictures/{family}")

    def _importance(self) -> dict[str, float]:
        """What matters among the settings, on average over families."""
        shares: dict[str, list[float]] = {}
        for study in self.opened.studies:
            trials = [(r.settings, r.best) for r in self.opened.ledger.of(study.name, "search") if r.best is not None]
            for key, share in importance(study.axes, trials, maximise=self.opened.maximise).items():
                shares.setdefault(key, []).append(share)
        told = {key: sum(of) / len(of) for key, of in shares.items()}
        return dict(sorted(told.items(), key=lambda item: -item[1]))

    def _record(self, told: dict[str, Any]) -> None:
        """Figures of the comparison, on the record of its run."""
        from workflows.tracking import is_name

        opened = self.opened
        values: dict[str, float] = {}
        for family, row in told["families"].items():
            for metric, estimate in row["metrics"].items():
                values |= {f"{family}/{metric}/{k}": v for k, v in estimate.items() if isinstance(v, float)}
            for name in ("parameters", "seconds", "rows_per_second", "memory"):
                if row.get(name) is not None:
                    values[f"{family}/{name}"] = row[name]
            values |= {f"{family}/latency_ms/{k}": v for k, v in (row["latency_ms"] or {}).items()}
            if row["horizon"]:
                values[f"{family}/memory_horizon"] = row["horizon"]["reach"]
        for method, metrics in told["baselines"].items():
            values |= {f"baseline/{method}/{k}": v["mean"] if isinstance(v, dict) else v for k, v in metrics.items()}
        opened.tracker.metrics(opened.name, {k: v for k, v in values.items() if is_name(k)}, len(opened.ledger.records))

    def _keep(self, best: str) -> None:
        """The best family's bundle, as that of the comparison."""
        from workflows.train import local_folder
        from workflows.trial import folder_of

        opened = self.opened
        done = next(r for r in self.records(best) if r.status == "finished")
        bundle = folder_of(opened.folder, done.number) / "bundle"
        local = local_folder(opened.folder) / "bundle"
        local.mkdir(parents=True, exist_ok=True)
        for file in sorted(bundle.names(), key=lambda n: n == "manifest.json"):    # the manifest completes it
            data = bundle.read(file)
            (local / file).write_bytes(data)
            if opened.folder.local is None:
                opened.folder.write(f"bundle/{file}", data)
        opened.tracker.artifact(opened.name, local, "bundle")


def measure(shared: Shared, assignment: Assignment) -> dict[str, Any]:
    """How long a model takes to answer (of task generate: to read) one row, and how far back it looks, on one thread of
    a CPU or on the GPU.

    Returns:
        latency_ms with p50 and p95, in milliseconds; horizon, or None where it has no meaning.
    """
    import torch

    from models.horizon import memory_horizon
    from models.sequence import Task
    from workflows import bundle, loop
    from workflows.trial import data_key, folder_of
    from workflows.worker import Data

    torch.set_num_threads(1)
    told = bundle.load(folder_of(shared.folder, assignment.number), "bundle")
    experiment = changed(shared.told[assignment.study], assignment.settings)
    key = data_key(experiment)
    device = torch.device("cuda" if experiment.workers.gpus and torch.cuda.is_available() else "cpu")
    model = told.model.to(device).eval()
    data = Data(experiment, shared.prepared[key], shared.cached[key], loop.Workers(torch.device("cpu")))
    rows = [step.micro[0].to(device) for step, _ in zip(data.evaluation(data.splits[-1], 1), range(ROWS), strict=False)]
    horizon = memory_horizon(model, rows)
    seconds = []
    answers = type(model.task).predict is not Task.predict         # else it goes on with texts, of any length
    with torch.inference_mode():
        for call in range(CALLS + 5):
            row = rows[call % len(rows)]
            start = time.perf_counter()
            if answers:
                model.task.predict(model, row)
            else:
                model.task.metrics(model, row)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(np.array(seconds[5:]) * 1000, [50, 95])           # the first calls warm up
    return {"latency_ms": {"p50": float(p50), "p95": float(p95)}, "horizon": asdict(horizon) if horizon else None}


def _repeatable(search: Any, concurrent: int) -> str:
    """Why the same seed may give other figures; "" where it gives the same."""
    why = []
    if search.seconds is not None:
        why.append("search.seconds bounds trials by the clock")
    if concurrent > 1:
        why.append(f"{concurrent} trials at a time end in an order that varies, and the searcher learns in that order")
    if search.scheduler != "none":
        why.append(f"scheduler {search.scheduler} stops trials by what others have reached so far")
    return "" if not why else (
        f"Run again, the figures may differ a little: {'; '.join(why)}. search.trials alone, search.concurrent=1 and "
        "search.scheduler=none repeat them.")

