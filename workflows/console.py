"""What a person sees: one line an epoch, and on a terminal a progress bar. All of it goes to stderr."""

from __future__ import annotations

import math
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from rich.console import Console as Rich
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from datasets.storage import mask

if TYPE_CHECKING:
    from pathlib import Path

    from datasets.prepare import Prepared
    from workflows.tuner import Ledger, Record


class Console:
    """Lines and a bar; with ``show=False`` nothing."""

    def __init__(self, *, show: bool = True) -> None:
        self.rich = Rich(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        if not self.rich.is_terminal:
            self.rich.width = 120                 # in a log; 80 would cut tables
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
        """One line."""
        self.rich.print(mask(text), markup=False)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Say what takes time, when it takes longer than a moment."""
        timer = threading.Timer(1.0, lambda: self.say(f"{text} ..."))
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def notes(self, prepared: Prepared) -> None:
        """What is to be known of prepared data: what was cut, what was set aside and where it is listed."""
        for note in prepared.state.get("notes", []):
            self.say(note)
        aside = prepared.quarantine
        if aside.rows:
            first, total = aside.first[0], aside.rows + aside.kept
            self.say(f"{aside.rows:,} of {total:,} records cannot be used (the first: {first['uri']}, row "
                     f"{first['row']}: {first['reason']}); all are in {aside.uri}")

    def undelivered(self, problem: str | None, spool: Path, run: str) -> None:
        """What MLflow has not got when a run ends, and how it gets there."""
        self.say(f"the record is not delivered yet ({problem or 'slow'}); it waits in {spool}. Deliver it later with: "
                 f"python -m workflows sync {run}")

    def event(self, event: dict[str, Any]) -> None:
        """Something a worker tells: start, step, epoch, note."""
        getattr(self, f"_{event['event']}")(event)

    def _start(self, event: dict[str, Any]) -> None:
        self.epochs, self.rows, self.streams = event["epochs"], event["rows"], event["streams"]
        self.checkpoint_steps = event["checkpoint_steps"]
        self.say(f"{event['parameters']:,} parameters, {self.rows:,} rows an epoch, {event['workers']} "
                 f"worker{'s' if event['workers'] > 1 else ''}{', streamed' if event['streams'] else ''}"
                 + (f", from step {event['step']}" if event["step"] else ""))
        self._end_bar()
        if self.rich.is_terminal:
            self.bar = Progress(TextColumn("epoch {task.fields[epoch]}"), BarColumn(),
                                TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn(),
                                console=self.rich, transient=True)
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
        self.say(f"epoch {event['epoch']}/{self.epochs}  {'  '.join(shown)}  "
                 f"{metrics['train/epoch_rows_per_second']:,.0f} rows/s  {metrics['train/epoch_seconds']:.1f} s"
                 + ("  best" if event["best"] else ""))
        if self.bar is not None and self.task is not None:
            self.bar.reset(self.task, total=self.rows, epoch=f"{min(event['epoch'] + 1, self.epochs)}/{self.epochs}")

    def result(self, result: dict[str, Any]) -> None:
        """The final table: the model beside the baselines; before it, why training was slow, if it was."""
        self._end_bar()
        within = 0 < self.checkpoint_steps < result["steps"] / max(1, len(result["history"]))
        if slow := diagnosis(self.epoch_metrics, streams=self.streams, within=within):
            self.say(slow)
        self.rich.print(metrics_table({"model": result["metrics"], **result["baselines"], **best_row(result)}))
        self.signatures(result["signatures"])
        self._places(result)

    def signatures(self, told: Mapping[str, str]) -> None:
        """How exactly metrics are computed, where their library says so."""
        for name, signature in told.items():
            self.say(f"{name}: {signature}")

    def trial(self, record: Record, ledger: Ledger, *, primary: str, maximise: bool, total: int | None) -> None:
        """A trial of a search that moved on, or ended: a line when it has ended."""
        from workflows.space import described
        from workflows.tuner import ranked

        if not record.over:
            return
        own = [r for r in ledger.records if r.study == record.study and r.phase == "search" and r.over]
        best = ranked(own, maximise=maximise)
        done = f"{sum(r.over for r in ledger.records)}{f'/{total}' if total else ''}"
        phase = ["final"] if record.phase == "final" else []
        name = " ".join([done, *([record.study] if record.study else []), *phase, f"trial {record.number}"])
        reached = "-" if record.best is None else f"{record.best:.4g}"
        mark = "  best" if best and best[0] is record else ""
        if record.status == "failed":
            self.say(f"{name}  failed: {record.reason.splitlines()[0][:200]}  "
                     f"{described(record.settings)}")
            return
        stopped = " stopped" if record.status == "stopped" else ""
        self.say(f"{name}  {primary} {reached}  {len(record.history)} epochs{stopped}  "
                 f"{record.seconds:.1f} s  {described(record.settings)}{mark}")

    def leaderboard(self, records: list[Record], *, primary: str, maximise: bool, most: int = 10) -> None:
        """The best trials of a search, and why others failed."""
        from workflows.tuner import ranked

        best = ranked(records, maximise=maximise)
        keys = list(dict.fromkeys(key for r in records for key in r.settings))
        made = Table(box=None, pad_edge=False)
        for heading in ("trial", primary, "epochs", "seconds", *(k.rpartition(".")[2] for k in keys)):
            made.add_column(heading, justify="right", no_wrap=True)
        for r in best[:most]:
            stopped = " (stopped)" if r.status == "stopped" else ""
            made.add_row(str(r.number), f"{r.best:.4g}", f"{len(r.history)}{stopped}", f"{r.seconds:.1f}",
                         *(str(r.settings.get(k, "")) for k in keys))
        self.rich.print(made)
        failed = [r for r in records if r.status == "failed"]
        for r in failed[:most]:
            self.say(f"trial {r.number} failed: {r.reason}")

    def found(self, result: dict[str, Any]) -> None:
        """What a search leaves."""
        self.say(f"\nthe best, trial {result['best']['number']}:")
        self.rich.print(metrics_table({"model": result["metrics"], **result["baselines"], **best_row(result)}))
        self.signatures(result["signatures"])
        self._places(result)

    def compared(self, result: dict[str, Any]) -> None:
        """What a comparison found: families beside baselines, and the verdict."""
        sign, judged = -1 if result["maximise"] else 1, result["judged"]
        methods = {**result["metrics"], **{m: {k: v["mean"] if isinstance(v, dict) else v for k, v in values.items()}
                                           for m, values in result["baselines"].items()}}
        ordered = dict(sorted(methods.items(), key=lambda item: sign * item[1].get(judged, sign * math.inf)))
        rows = {f: result["families"][f] for f in result["ranking"]}
        more = {
            "95 % interval": {f: "-" if math.isnan(r["metrics"][judged]["low"]) else
                              f"{r['metrics'][judged]['low']:.4f} to {r['metrics'][judged]['high']:.4f}"
                              for f, r in rows.items()},
            "seconds": {f: f"{r['seconds']:.1f}" for f, r in rows.items()},
            "ms a row": {f: f"{r['latency_ms']['p50']:.1f}" for f, r in rows.items()}}
        first = {f: {judged: values[judged]} if judged in values else {} for f, values in ordered.items()}
        self.rich.print(metrics_table({**first, **best_row({"best_reachable": {
            k: v for k, v in result["best_reachable"].items() if judged.endswith(f"/{k}")}})}, more))
        self.say(result["verdict"])
        self._places(result)

    def _places(self, result: dict[str, Any]) -> None:
        """Where to find what was made."""
        self.say(f"report: {result['report']}\nbundle: {result['bundle']}\n"
                 f"MLflow run: {result['run_id'] or 'not delivered yet'}")

    def _end_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = self.task = None


def best_row(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """A row of the table for the best that can be reached, where that is known."""
    reachable = {f"{split}/{name}": value for split in ("validation", "test")
                 for name, value in result["best_reachable"].items()}
    return {"best reachable": reachable} if reachable else {}


def metrics_table(methods: dict[str, dict[str, float]], more: dict[str, dict[str, str]] | None = None) -> Table:
    """Methods by metrics, the test split's where there is one; the columns are those of the first method.

    `more` adds columns: heading -> method -> text.
    """
    first = next(iter(methods.values()))
    split = next((s for s in ("test", "validation") if any(k.startswith(f"{s}/") for k in first)), "train")
    names = [k for k in first if k.startswith(f"{split}/")]
    made = Table(box=None, pad_edge=False)
    made.add_column(split, no_wrap=True)
    for name in names:
        made.add_column(name.removeprefix(f"{split}/"), justify="right", no_wrap=True)
    more = more or {}
    for heading in more:
        made.add_column(heading, justify="right", no_wrap=True)
    for method, values in methods.items():
        made.add_row(method, *(f"{values[n]:.4f}" if n in values else "" for n in names),
                     *(column.get(method, "") for column in more.values()))
    return made


MUCH = 25.0                   # percent of the time, or more than the median worker, that is worth a word
REMEDIES = {
    "data": ("waiting for data", "larger batches, or more workers, prepare it faster"),
    "streamed data": ("waiting for data", "a larger dataset.cache_bytes keeps all of it in memory"),
    "communication": ("exchanges between workers", "fewer workers, or a larger training.batch_size, exchange less"),
    "checkpoint": ("writing checkpoints", "a larger training.checkpoint_steps writes fewer"),
    "epoch's checkpoint": ("writing checkpoints", "each epoch ends with one, and epochs are short in comparison: "
                           "faster storage, or fewer epochs of more rows, spend less on them"),
}


def diagnosis(epochs: Sequence[Mapping[str, float]], *, streams: bool, within: bool) -> str:
    """What made training slow, in one line; empty where computing took the time.

    Args:
        epochs: their metrics.
        streams: whether the rows do not fit in memory.
        within: whether checkpoints are written inside epochs, not only at their ends.
    """
    if not epochs:
        return ""
    shares = {part: statistics.median(e.get(f"time/{part}_percent", 0.0) for e in epochs)
              for part in ("data", "communication", "checkpoint")}
    worst = max(shares, key=lambda part: shares[part])
    said = []
    if shares[worst] >= MUCH:
        case = {"data": "streamed data" if streams else "data",
                "checkpoint": "checkpoint" if within else "epoch's checkpoint"}.get(worst, worst)
        what, remedy = REMEDIES[case]
        said.append(f"{shares[worst]:.0f} % of the time went into {what}; {remedy}")
    uneven = statistics.median(e.get("time/slowest_worker_percent", 0.0) for e in epochs)
    ranks = {e.get("time/slowest_worker") for e in epochs}
    if uneven >= MUCH and len(ranks) == 1:
        said.append(f"worker {ranks.pop():.0f} computes {uneven:.0f} % longer than the median worker, and all wait for "
                    "it: its machine is slower, or busy with something else")
    return f"slow: {'; '.join(said)}" if said else ""


class _Mailbox:
    """Holds what workers tell until the driver asks, and whether they are to stop; lives in a zero-CPU actor."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.stops = False
        self.heard = -math.inf

    def put(self, event: dict[str, Any]) -> bool:
        self.events.append(event)
        return self.stops

    def ask(self) -> None:
        self.stops = True

    def asked(self) -> bool:
        return self.stops

    def beat(self) -> None:
        self.heard = time.monotonic()

    def silence(self) -> float:
        """Seconds since a worker was there."""
        return time.monotonic() - self.heard

    def take(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events


QUIET = 0.5          # seconds without a word after which a worker asks
BEAT = 1.0           # seconds between two signs of life


class Line:
    """Between workers and the one who watches; may be pickled. Nothing here waits."""

    def __init__(self, box: Any) -> None:
        self.box = box
        self.replies: list[Any] = []                   # to what was told, that are still on their way
        self.last = -math.inf                          # when something was told
        self.asked = False

    def __call__(self, event: dict[str, Any]) -> None:
        """Tell what happened."""
        self.replies.append(self.box.put.remote(event))
        self.last = time.monotonic()

    def stops(self) -> bool:
        """Whether the one who watches has asked to stop, as far as has been heard: each reply to an event says so.

        Where nothing has been told for a while, the question itself is sent.
        """
        import ray

        if not self.replies and time.monotonic() - self.last > QUIET:
            self.replies.append(self.box.asked.remote())
            self.last = time.monotonic()
        if self.replies:
            come, self.replies = ray.wait(self.replies, num_returns=len(self.replies), timeout=0)
            with suppress(ray.exceptions.RayError):    # nobody watches any more
                self.asked = self.asked or any(ray.get(come))
        return self.asked

    def ask(self) -> None:
        """Ask the workers to stop."""
        self.box.ask.remote()

    @contextmanager
    def present(self) -> Iterator[None]:
        """Of a worker: let the one who watches know that it is there."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(BEAT):
                self.box.beat.remote()

        threading.Thread(target=beat, daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def deserted(self) -> bool:
        """Whether no worker is there, and none will hear that it is asked to stop."""
        import ray

        try:
            silence: float = ray.get(self.box.silence.remote(), timeout=10)
        except ray.exceptions.RayError:
            return False
        return silence > 10 * BEAT


@contextmanager
def relay(console: Console) -> Iterator[Line]:
    """Shows here what workers tell elsewhere."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    kind: Any = ray.remote(_Mailbox)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)      # others may go
    box = kind.options(num_cpus=0, scheduling_strategy=here).remote()
    done = threading.Event()

    def watch() -> None:
        while True:
            last = done.is_set()
            try:
                for event in ray.get(box.take.remote(), timeout=10):
                    console.event(event)
            except ray.exceptions.RayError as error:
                print(f"progress is no longer shown: {error}", file=sys.stderr)
                return
            if last:
                return
            done.wait(0.3)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    left = False
    try:
        yield Line(box)
    except KeyboardInterrupt:                          # workers that are left behind may still ask whether to stop
        left = True
        raise
    finally:
        done.set()
        if not left:
            thread.join(10)
            kill: Any = ray.kill
            kill(box)
