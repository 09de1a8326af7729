"""The result of a comparison: the figures of each family, and the verdict."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import safetensors.numpy
import torch

from models.horizon import memory_horizon
from models.sequence import Task
from workflows import strict_json
from workflows.config.experiment import Experiment, flatten
from workflows.config.settings import Search
from workflows.errors import NothingFound
from workflows.reporting import pictures
from workflows.runs import local_folder
from workflows.tracking.recorder import is_name
from workflows.training import bundle
from workflows.training.data import Data
from workflows.training.groups import GroupSums
from workflows.training.worker import make_model
from workflows.training.worker_group import WorkerGroup
from workflows.tuning.ledger import TrialRecord, trial_folder
from workflows.tuning.queue import Assignment, FinalStage
from workflows.tuning.sampler import importance
from workflows.tuning.session import SearchSession, run_on_worker
from workflows.tuning.space import Settings, with_settings
from workflows.tuning.statistics import Comparison, Floats, Sums
from workflows.tuning.statistics import compare as compare_methods
from workflows.tuning.trial import TrialContext, data_key

HORIZON_ROWS = 64  # of the last split, whose gradients show how far back a model looks
WARM_UP_CALLS, TIMED_CALLS = 5, 100  # of one row each


def across_setting(experiment: Experiment) -> Settings:
    """The value that the experiment itself has for the key of `search.across`."""
    values = dict(flatten(experiment.plain()))
    return {key: values.get(key) for key in experiment.search.across}


@dataclass
class ComparisonResult:
    """Measures the final trainings of a comparison, and decides and saves its result.

    Attributes:
        session: the comparison.
        finals: the final trainings, by family.
    """

    session: SearchSession
    finals: dict[str, FinalStage]

    def records(self, family: str, setting: Settings | None = None) -> list[TrialRecord]:
        """The final trainings of a family with its best settings, or also with a value of `search.across`."""
        best = self.finals[family].best()
        if best is None:
            return []
        differs = setting is not None and setting != across_setting(self.session.experiment)
        wanted = {**best.settings, **(setting if setting and differs else {})}
        return [
            r
            for r in self.session.ledger.select(family, "final")
            if {k: v for k, v in r.settings.items() if k != "training.seed"}
            == {k: v for k, v in wanted.items() if k != "training.seed"}
        ]

    @property
    def judged(self) -> str:
        """The metric that decides, on the last split."""
        return f"{self.session.splits[-1]}/{self.session.primary}"

    def save(self) -> dict[str, Any]:
        """Compute the result and write compare.json, the bundle and the page.

        Raises:
            NothingFound: no family has a finished training.
        """
        session, tracker = self.session, self.session.tracker
        trained = [s.name for s in session.studies if any(r.status == "finished" for r in self.records(s.name))]
        session.save_run_ids()
        figures: dict[str, Any] = {"families": {}, "baselines": {}, "differences": [], "verdict": "", "pictures": {}}
        if trained:
            comparison = self.decide([s.name for s in session.studies], None)
            figures |= self._figures(comparison, trained)
            lengths = {
                str(value): {f: asdict(e) for f, e in self.decide(trained, {key: value}).families.items()}
                for key, values in session.experiment.search.across.items()
                for value in values
            }
            figures |= {"lengths": lengths, "across": next(iter(session.experiment.search.across), None)}
            self._log_metrics(figures)
            self._save_bundle(comparison.best)
        search = session.experiment.search
        summary = {
            **session.summary(),
            **figures,
            "judged": self.judged,
            "space": {k: v for s in reversed(session.studies) for k, v in s.experiment.search.space.items()},
            "importance": self._importance(),
            "repeatable": repeatable(search, session.concurrent),
        }
        session.folder.write("compare.json", strict_json.dumps(summary).encode())
        page = session.report()
        if not trained:
            reasons = "\n".join(
                dict.fromkeys(f"{r.study}: {r.reason}" for r in session.ledger.records if r.status == "failed")
            )
            raise NothingFound(f"no family has a finished training:\n{reasons}\n{page}")
        if search.register_as:
            tracker.register(session.name, search.register_as, "bundle")
        ranking = [f for f in figures["families"] if f in trained]
        return {
            **{
                k: summary[k]
                for k in (
                    "verdict",
                    "families",
                    "baselines",
                    "differences",
                    "judged",
                    "repeatable",
                    "run_id",
                    "seconds",
                    "used",
                    "primary",
                    "maximise",
                )
            },
            "run": session.name,
            "report": page,
            "bundle": (session.folder / "bundle").uri,
            "ranking": ranking,
            "best_reachable": figures["best_reachable"],
            "metrics": {f: {k: v["mean"] for k, v in figures["families"][f]["metrics"].items()} for f in ranking},
            "runs": {f: [s["run_id"] for s in figures["families"][f]["seeds"]] for f in ranking},
        }

    def decide(self, families: list[str], setting: Settings | None) -> Comparison:
        """Compare families by the metric that decides, with their best settings.

        Args:
            families: at least one of them has a final training.
            setting: a value of `search.across` that the trainings have, too; None: none.
        """
        task = self._task(next(f for f in families if self.records(f, setting)), setting)

        def metric(sums: Mapping[str, Floats]) -> float:
            result = task.result({k: torch.as_tensor(v) for k, v in sums.items()})
            return float(result.get(self.session.primary, float("nan")))

        sums: dict[str, list[Sums | None]] = {}
        baseline_sums: dict[str, Sums] = {}
        for family in families:
            sums[family] = []
            for record in self.records(family, setting):
                by_method = self._group_sums(record) if record.status == "finished" else {}
                sums[family].append(by_method.pop("model", None))  # None: a training that failed
                baseline_sums = baseline_sums or dict(by_method)
        totals = {method: {k: v.sum(0) for k, v in groups.items()} for method, groups in baseline_sums.items()}
        return compare_methods(
            {f: s for f, s in sums.items() if s},
            metric,
            baselines={m: groups for m, groups in baseline_sums.items() if np.isfinite(metric(totals[m]))},
            name=self.judged,
            maximise=self.session.maximise,
            bounds=task.bounds,
            seed=self.session.experiment.search.seed,
        )

    def _task(self, family: str, setting: Settings | None) -> Task:
        study = self.session.study(family)
        experiment = with_settings(study.options, self.records(family, setting)[0].settings)
        return make_model(experiment, self.session.context.prepared[data_key(experiment)], torch.device("cpu"))[0].task

    def _group_sums(self, record: TrialRecord) -> dict[str, Sums]:
        """The sums of each group of rows that a final training saved: method -> name -> (G, ...)."""
        saved = safetensors.numpy.load(trial_folder(self.session.folder, record.number).read(GroupSums.FILE))
        by_method: dict[str, dict[str, Floats]] = {}
        for name, value in saved.items():
            method, _, sum_name = name.partition("/")
            by_method.setdefault(method, {})[sum_name] = value
        return dict(by_method)

    def _figures(self, comparison: Comparison, trained: list[str]) -> dict[str, Any]:
        """The comparison as plain values, for compare.json and the page; the best family is first."""
        sign = -1 if self.session.maximise else 1
        means = {name: sign * estimate.mean for name, estimate in comparison.families.items()}
        studies = sorted(self.session.studies, key=lambda s: (s.name not in means, means.get(s.name, 0)))
        families: dict[str, Any] = {}
        for study in studies:
            families[study.name] = self._family(study.name)
            if study.name in means:
                families[study.name]["metrics"][self.judged] = asdict(comparison.families[study.name])
        first = next(r for r in self.records(trained[0]) if r.status == "finished")
        baselines: dict[str, Any] = {m: dict(values) for m, values in first.baselines.items()}
        for method, estimate in comparison.baselines.items():
            baselines[method][self.judged] = asdict(estimate)
        return {
            "families": families,
            "baselines": baselines,
            "verdict": comparison.text,
            "best": comparison.best,
            "best_reachable": self._reachable(trained[0]),
            "differences": [asdict(d) for d in comparison.differences],
            "pictures": {f: f"pictures/{f}" for f in trained},
        }

    def _reachable(self, family: str) -> dict[str, float]:
        """The best value of each metric that any model can reach, if that is known of the dataset."""
        record = next(r for r in self.records(family) if r.status == "finished")
        result = json.loads(trial_folder(self.session.folder, record.number).read("result.json"))
        reachable: dict[str, float] = strict_json.none_to_nan(result["best_reachable"])
        return reachable

    def _family(self, family: str) -> dict[str, Any]:
        """The figures of one family: costs and metrics of its trainings, and what is measured on one of its models."""
        session, records = self.session, self.records(family)
        done, best = [r for r in records if r.status == "finished"], self.finals[family].best()
        row: dict[str, Any] = {
            "settings": best.settings if best else {},
            "metrics": {},
            "horizon": None,
            "latency_ms": None,
            "seeds": [
                {
                    "seed": r.settings["training.seed"],
                    "number": r.number,
                    "run_id": r.run_id,
                    "status": r.status,
                    "reason": r.reason,
                    "metrics": r.metrics,
                }
                for r in records
            ],
            "trials": len(session.ledger.select(family, "search")),
        }
        if not done:
            failed = [r for r in session.ledger.records if r.study == family and r.status == "failed"]
            return {**row, "failed": failed[-1].reason if failed else "no trial finished"}
        row["metrics"] = {
            name: {"mean": statistics.fmean(r.metrics[name] for r in done)}
            for name in done[0].metrics
            if all(name in r.metrics for r in done)
        }
        with session.console.busy(f"measuring {family}"):
            row |= run_on_worker(session, measure, Assignment(done[0].number, family, done[0].settings))
        self._save_pictures(done[0], family)
        speeds = [h["train/epoch_rows_per_second"] for r in done for h in r.history]
        return {
            **row,
            "parameters": done[0].parameters,
            "seconds": statistics.fmean(r.seconds for r in done),
            "rows_per_second": statistics.median(speeds),
            "failed": "",
            "memory": max((r.memory for r in done if r.memory is not None), default=None),
        }

    def _save_pictures(self, record: TrialRecord, family: str) -> None:
        session, run = self.session, trial_folder(self.session.folder, record.number)
        study = session.study(family)
        experiment = with_settings(study.options, record.settings)
        folder = local_folder(session.folder) / "pictures" / family
        folder.mkdir(parents=True, exist_ok=True)
        pictures.predictions(experiment, session.context.prepared[data_key(experiment)], run, folder)
        if session.folder.local is None:
            session.folder.put(folder, f"pictures/{family}")
        session.tracker.artifact(session.name, folder, f"pictures/{family}")

    def _importance(self) -> dict[str, float]:
        """The importance of each setting, on average over families."""
        shares: dict[str, list[float]] = {}
        for study in self.session.studies:
            trials = [
                (r.settings, r.best) for r in self.session.ledger.select(study.name, "search") if r.best is not None
            ]
            for key, share in importance(study.axes, trials, maximise=self.session.maximise).items():
                shares.setdefault(key, []).append(share)
        averages = {key: sum(values) / len(values) for key, values in shares.items()}
        return dict(sorted(averages.items(), key=lambda item: -item[1]))

    def _log_metrics(self, figures: dict[str, Any]) -> None:
        """Log the figures of the comparison to its MLflow run."""
        session = self.session
        values: dict[str, float] = {}
        for family, row in figures["families"].items():
            for metric, estimate in row["metrics"].items():
                values |= {f"{family}/{metric}/{k}": v for k, v in estimate.items() if isinstance(v, float)}
            for name in ("parameters", "seconds", "rows_per_second", "memory"):
                if row.get(name) is not None:
                    values[f"{family}/{name}"] = row[name]
            values |= {f"{family}/latency_ms/{k}": v for k, v in (row["latency_ms"] or {}).items()}
            if row["horizon"]:
                values[f"{family}/memory_horizon"] = row["horizon"]["reach"]
        for method, metrics in figures["baselines"].items():
            values |= {f"baseline/{method}/{k}": v["mean"] if isinstance(v, dict) else v for k, v in metrics.items()}
        session.tracker.metrics(
            session.name, {k: v for k, v in values.items() if is_name(k)}, len(session.ledger.records)
        )

    def _save_bundle(self, best: str) -> None:
        """Copy the bundle of the best family's first finished training into the comparison's folder."""
        session = self.session
        done = next(r for r in self.records(best) if r.status == "finished")
        bundle = trial_folder(session.folder, done.number) / "bundle"
        local = local_folder(session.folder) / "bundle"
        local.mkdir(parents=True, exist_ok=True)
        for file in sorted(
            bundle.names(), key=lambda n: n == "manifest.json"
        ):  # the manifest last: it completes the bundle
            data = bundle.read(file)
            (local / file).write_bytes(data)
            if session.folder.local is None:
                session.folder.write(f"bundle/{file}", data)
        session.tracker.artifact(session.name, local, "bundle")


def measure(context: TrialContext, assignment: Assignment) -> dict[str, Any]:
    """Measure a model's latency for one row and how far back it looks, on one CPU thread or on the GPU.

    The task generate has no prediction of bounded length; there the latency is the time to read one row.

    Returns:
        latency_ms: p50 and p95, in milliseconds. horizon: None if it is not defined for the model.
    """
    torch.set_num_threads(1)
    trained = bundle.load(trial_folder(context.folder, assignment.number), "bundle")
    experiment = with_settings(context.options[assignment.study], assignment.settings)
    key = data_key(experiment)
    device = torch.device("cuda" if experiment.workers.gpus and torch.cuda.is_available() else "cpu")
    model = trained.model.to(device).eval()
    data = Data(experiment, context.prepared[key], context.cached[key], WorkerGroup(torch.device("cpu")))
    steps = itertools.islice(data.evaluation(data.splits[-1], 1), HORIZON_ROWS)
    rows = [step.micro[0].to(device) for step in steps]
    horizon = memory_horizon(model, rows)
    run = model.task.predict if type(model.task).predict is not Task.predict else model.task.metrics
    seconds = []
    with torch.inference_mode():
        for call in range(WARM_UP_CALLS + TIMED_CALLS):
            row = rows[call % len(rows)]
            start = time.perf_counter()
            run(model, row)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    p50, p95 = np.percentile(np.array(seconds[WARM_UP_CALLS:]) * 1000, [50, 95])
    return {"latency_ms": {"p50": float(p50), "p95": float(p95)}, "horizon": asdict(horizon) if horizon else None}


def repeatable(search: Search, concurrent: int) -> str:
    """Why the same seed may give other figures, for the user; "" if it gives the same."""
    reasons = []
    if search.seconds is not None:
        reasons.append("search.seconds limits trials by the clock")
    if concurrent > 1:
        reasons.append(
            f"{concurrent} trials at a time end in an order that varies, and the searcher learns in that order"
        )
    if search.scheduler != "none":
        reasons.append(f"scheduler {search.scheduler} stops trials depending on the results of others so far")
    if not reasons:
        return ""
    return (
        f"Another run may give slightly different figures: {'; '.join(reasons)}. With search.trials alone, "
        "search.concurrent=1 and search.scheduler=none the figures are the same."
    )
