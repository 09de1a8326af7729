"""Progress and results for people, on stderr: a line an epoch, and on a terminal a progress bar."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console as Rich
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from datasets.pipeline.storage import mask

if TYPE_CHECKING:
    from pathlib import Path

    from datasets.pipeline.prepared import Prepared
    from workflows.tuning.ledger import Ledger, TrialRecord


class Console:
    """Prints lines and a progress bar; nothing with ``show=False``."""

    def __init__(self, *, show: bool = True) -> None:
        self.rich = Rich(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        if not self.rich.is_terminal:
            self.rich.width = 120  # in a log; 80 would cut tables
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.epochs = self.rows = self.checkpoint_steps = 0
        self.epoch_metrics: list[Mapping[str, float]] = []
        self.streams = False
        self.since = time.monotonic()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *error: object) -> None:
        self._end_bar()

    def say(self, text: str) -> None:
        """Print a line."""
        self.rich.print(mask(text), markup=False)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Print what is being done, if it takes longer than a second."""
        timer = threading.Timer(1.0, lambda: self.say(f"{text} ..."))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def notes(self, prepared: Prepared) -> None:
        """Print the notes of prepared data: what was cut, which records are in quarantine, and where."""
        for note in prepared.state.get("notes", []):
            self.say(note)
        quarantine = prepared.quarantine
        if quarantine.rows:
            first, total = quarantine.first[0], quarantine.rows + quarantine.kept
            self.say(
                f"{quarantine.rows:,} of {total:,} records cannot be used (the first: {first['uri']}, row "
                f"{first['row']}: {first['reason']}); all are in {quarantine.uri}"
            )

    def undelivered(self, problem: str | None, spool: Path, run: str) -> None:
        """Print that MLflow has not received everything when a run ends, and how to deliver it."""
        self.say(
            f"MLflow has not received everything yet ({problem or 'slow'}); the rest is in {spool}. Deliver it with: "
            f"python -m workflows sync {run}"
        )

    def event(self, event: dict[str, Any]) -> None:
        """Show an event of a worker: start, step, epoch or note."""
        getattr(self, f"_{event['event']}")(event)

    def _start(self, event: dict[str, Any]) -> None:
        self.epochs, self.rows, self.streams = event["epochs"], event["rows"], event["streams"]
        self.checkpoint_steps = event["checkpoint_steps"]
        self.say(
            f"{event['parameters']:,} parameters, {self.rows:,} rows an epoch, {event['workers']} "
            f"worker{'s' if event['workers'] > 1 else ''}{', streamed' if event['streams'] else ''}"
            + (f", from step {event['step']}" if event["step"] else "")
        )
        self._end_bar()
        if self.rich.is_terminal:
            self.bar = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                TextColumn("{task.percentage:.0f} %"),
                TimeRemainingColumn(),
                console=self.rich,
                transient=True,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=self.rows, epoch=f"{event['epoch'] + 1}/{self.epochs}")

    def _step(self, event: dict[str, Any]) -> None:
        if self.bar is not None and self.task is not None:
            self.bar.update(self.task, advance=event["rows"], epoch=f"{event['epoch'] + 1}/{self.epochs}")

    def _note(self, event: dict[str, Any]) -> None:
        self.say(f"note: {event['text']}")

    def _epoch(self, event: dict[str, Any]) -> None:
        metrics = event["metrics"]
        self.epoch_metrics.append(metrics)
        names = dict.fromkeys(("train/loss", "validation/loss", f"validation/{event['primary']}"))
        shown = [f"{name} {metrics[name]:.4g}" for name in names]
        self.say(
            f"epoch {event['epoch']}/{self.epochs}  {'  '.join(shown)}  "
            f"{metrics['train/epoch_rows_per_second']:,.0f} rows/s  {metrics['train/epoch_seconds']:.1f} s"
            + ("  best" if event["best"] else "")
        )
        if self.bar is not None and self.task is not None:
            self.bar.reset(self.task, total=self.rows, epoch=f"{min(event['epoch'] + 1, self.epochs)}/{self.epochs}")

    def result(self, result: dict[str, Any]) -> None:
        """Print why training was slow, if it was, and the metrics of the model and the baselines."""
        self._end_bar()
        inside = 0 < self.checkpoint_steps < result["steps"] / max(1, len(result["history"]))
        if slow := diagnosis(self.epoch_metrics, streams=self.streams, inside_epochs=inside):
            self.say(slow)
        self.rich.print(metrics_table({"model": result["metrics"], **result["baselines"], **best_row(result)}))
        self.signatures(result["signatures"])
        self._locations(result)

    def signatures(self, signatures: Mapping[str, str]) -> None:
        """Print how metrics are computed, where their library has a signature for that."""
        for name, signature in signatures.items():
            self.say(f"{name}: {signature}")

    def trial(self, record: TrialRecord, ledger: Ledger, *, primary: str, maximise: bool, total: int | None) -> None:
        """Print a line for a trial that has ended."""
        from workflows.tuning.ledger import ranked
        from workflows.tuning.space import format_settings

        if not record.is_done:
            return
        completed = [r for r in ledger.records if r.study == record.study and r.phase == "search" and r.is_done]
        best = ranked(completed, maximise=maximise)
        done = f"{sum(r.is_done for r in ledger.records)}{f'/{total}' if total else ''}"
        phase = ["final"] if record.phase == "final" else []
        name = " ".join([done, *([record.study] if record.study else []), *phase, f"trial {record.number}"])
        value = "-" if record.best is None else f"{record.best:.4g}"
        mark = "  best" if best and best[0] is record else ""
        if record.status == "failed":
            self.say(f"{name}  failed: {record.reason.splitlines()[0][:200]}  {format_settings(record.settings)}")
            return
        stopped = " stopped" if record.status == "stopped" else ""
        self.say(
            f"{name}  {primary} {value}  {len(record.history)} epochs{stopped}  "
            f"{record.seconds:.1f} s  {format_settings(record.settings)}{mark}"
        )

    def leaderboard(self, records: list[TrialRecord], *, primary: str, maximise: bool, limit: int = 10) -> None:
        """Print the best trials of a search, and why others failed."""
        from workflows.tuning.ledger import ranked

        best = ranked(records, maximise=maximise)
        keys = list(dict.fromkeys(key for r in records for key in r.settings))
        table = Table(box=None, pad_edge=False)
        for heading in ("trial", primary, "epochs", "seconds", *(k.rpartition(".")[2] for k in keys)):
            table.add_column(heading, justify="right", no_wrap=True)
        for r in best[:limit]:
            stopped = " (stopped)" if r.status == "stopped" else ""
            table.add_row(
                str(r.number),
                f"{r.best:.4g}",
                f"{len(r.history)}{stopped}",
                f"{r.seconds:.1f}",
                *(str(r.settings.get(k, "")) for k in keys),
            )
        self.rich.print(table)
        failed = [r for r in records if r.status == "failed"]
        for r in failed[:limit]:
            self.say(f"trial {r.number} failed: {r.reason}")

    def search_result(self, result: dict[str, Any]) -> None:
        """Print the best trial of a search."""
        self.say(f"\nthe best, trial {result['best']['number']}:")
        self.rich.print(metrics_table({"model": result["metrics"], **result["baselines"], **best_row(result)}))
        self.signatures(result["signatures"])
        self._locations(result)

    def comparison(self, result: dict[str, Any]) -> None:
        """Print the families and baselines of a comparison, and the verdict."""
        sign, judged = -1 if result["maximise"] else 1, result["judged"]
        methods = {
            **result["metrics"],
            **{
                m: {k: v["mean"] if isinstance(v, dict) else v for k, v in values.items()}
                for m, values in result["baselines"].items()
            },
        }
        ordered = dict(sorted(methods.items(), key=lambda item: sign * item[1].get(judged, sign * math.inf)))
        rows = {f: result["families"][f] for f in result["ranking"]}
        more = {
            "95 % interval": {
                f: "-"
                if math.isnan(r["metrics"][judged]["low"])
                else f"{r['metrics'][judged]['low']:.4f} to {r['metrics'][judged]['high']:.4f}"
                for f, r in rows.items()
            },
            "seconds": {f: f"{r['seconds']:.1f}" for f, r in rows.items()},
            "ms a row": {f: f"{r['latency_ms']['p50']:.1f}" for f, r in rows.items()},
        }
        first = {f: {judged: values[judged]} if judged in values else {} for f, values in ordered.items()}
        self.rich.print(
            metrics_table(
                {
                    **first,
                    **best_row(
                        {
                            "best_reachable": {
                                k: v for k, v in result["best_reachable"].items() if judged.endswith(f"/{k}")
                            }
                        }
                    ),
                },
                more,
            )
        )
        self.say(result["verdict"])
        self._locations(result)

    def _locations(self, result: dict[str, Any]) -> None:
        """Print where report, bundle and MLflow run are."""
        self.say(
            f"report: {result['report']}\nbundle: {result['bundle']}\n"
            f"MLflow run: {result['run_id'] or 'not delivered yet'}"
        )

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = self.task = None


def best_row(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A table row of the best values that are possible, where the data has them."""
    reachable = {
        f"{split}/{name}": value for split in ("validation", "test") for name, value in result["best_reachable"].items()
    }
    return {"best reachable": reachable} if reachable else {}


def metrics_table(methods: dict[str, dict[str, float]], more: dict[str, dict[str, str]] | None = None) -> Table:
    """A table of methods and their metrics on the last split; the columns are the first method's metrics.

    Args:
        methods: method -> metric -> value.
        more: columns to add: heading -> method -> text.
    """
    first = next(iter(methods.values()))
    split = next((s for s in ("test", "validation") if any(k.startswith(f"{s}/") for k in first)), "train")
    names = [k for k in first if k.startswith(f"{split}/")]
    table = Table(box=None, pad_edge=False)
    table.add_column(split, no_wrap=True)
    for name in names:
        table.add_column(name.removeprefix(f"{split}/"), justify="right", no_wrap=True)
    more = more or {}
    for heading in more:
        table.add_column(heading, justify="right", no_wrap=True)
    for method, values in methods.items():
        table.add_row(
            method,
            *(f"{values[n]:.4f}" if n in values else "" for n in names),
            *(column.get(method, "") for column in more.values()),
        )
    return table


REPORTED_SHARE = 25.0  # percent of the time, or above the median worker, from which on it is reported
REMEDIES = {
    "data": ("waiting for data", "larger batches, or more workers, prepare it faster"),
    "streamed data": ("waiting for data", "a larger dataset.cache_bytes keeps all of it in memory"),
    "communication": (
        "communication between workers",
        "fewer workers, or a larger training.batch_size, communicate less",
    ),
    "checkpoint": ("writing checkpoints", "a larger training.checkpoint_steps writes fewer"),
    "epoch's checkpoint": (
        "writing checkpoints",
        "each epoch ends with one, and epochs are short in comparison: "
        "faster storage, or fewer epochs of more rows, spend less on them",
    ),
}


def diagnosis(epochs: Sequence[Mapping[str, float]], *, streams: bool, inside_epochs: bool) -> str:
    """What made training slow, in one line; empty where computing took the time.

    Args:
        epochs: their metrics.
        streams: whether the rows do not fit in memory.
        inside_epochs: whether checkpoints are written inside epochs, not only at their ends.
    """
    if not epochs:
        return ""
    shares = {
        part: statistics.median(e.get(f"time/{part}_percent", 0.0) for e in epochs)
        for part in ("data", "communication", "checkpoint")
    }
    worst = max(shares, key=lambda part: shares[part])
    causes = []
    if shares[worst] >= REPORTED_SHARE:
        case = {
            "data": "streamed data" if streams else "data",
            "checkpoint": "checkpoint" if inside_epochs else "epoch's checkpoint",
        }.get(worst, worst)
        what, remedy = REMEDIES[case]
        causes.append(f"{shares[worst]:.0f} % of the time went into {what}; {remedy}")
    uneven = statistics.median(e.get("time/slowest_worker_percent", 0.0) for e in epochs)
    ranks = {e.get("time/slowest_worker") for e in epochs}
    if uneven >= REPORTED_SHARE and len(ranks) == 1:
        causes.append(
            f"worker {ranks.pop():.0f} computes {uneven:.0f} % longer than the median worker, and all wait for "
            "it: its machine is slower, or busy with something else"
        )
    return f"slow: {'; '.join(causes)}" if causes else ""
