"""A trial of a search, as Ray Tune runs it: one after the other in the same process, or around workers of Ray Train.

A process that starts, and imports what it needs, costs more than many a trial. So Tune's actors take one trial after
the other, and a trial is no more than a new ``Attempt`` in them. It never raises: what went wrong is its result.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ray.tune import Trainable

from datasets.prepare import Prepared
from datasets.storage import Storage
from workflows.experiment import Experiment
from workflows.space import changed

if TYPE_CHECKING:
    from workflows.worker import Attempt, Job

JUDGED = "judged"             # in a result: the validation metric that decides
EPOCH = "epoch"
NO_MEMORY = ("not enough memory", "out of memory", "allocate memory")          # what torch says then


@dataclass
class Shared:
    """What all trials are handed, once.

    Attributes:
        told: by study, what its experiment says.
        prepared, cached: by `data_key`, the data.
        folder: of the search; a trial's own is below.
        name: of the search.
        cpus: torch threads of a trial's worker.
        tracker: the one writer of the record.
        free: keys that a trial may change while it trains.
    """

    told: dict[str, dict[str, Any]]
    prepared: dict[str, Prepared]
    cached: dict[str, dict[str, list[Any]]]
    folder: Storage
    name: str
    cpus: int
    tracker: Any
    free: tuple[str, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """One trial: what it trains.

    Attributes:
        number: within the search.
        study: the family in a comparison, else "".
        settings: dotted keys to values.
        final: whether it is also measured on the test rows.
        seconds: after which it is to stop, by the study's `clock`; None: never.
        clock: a file of the search, that holds when the first trial of the study began.
    """

    number: int
    study: str
    settings: dict[str, Any] = field(default_factory=dict)
    final: bool = False
    seconds: float | None = None
    clock: str = ""


def data_key(experiment: Experiment) -> str:
    """What its prepared data depends on."""
    return json.dumps([experiment.dataset, experiment.quarantine.limit], sort_keys=True)


def trial_key(search: str, number: int) -> str:
    """The key of a trial's MLflow run, for good."""
    return f"{search}/{number:04d}"


class Trial(Trainable):  # type: ignore[misc]
    """Runs the trials that Tune gives it; `setup` is called once, `reset_config` for each further one."""

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:
        from workflows.train import load_modules

        assert shared is not None
        load_modules()                                 # before the first trial begins
        self.shared, self.assignment = shared, Assignment(**config["trial"])
        self.run: _Run | None = None

    def reset_config(self, config: dict[str, Any]) -> bool:
        self.cleanup()
        self.assignment = Assignment(**config["trial"])
        return True

    def step(self) -> dict[str, Any]:
        """The next epoch."""
        try:
            if self.run is None:
                self.run = begin(self.shared, self.assignment)
            told = self.run.epoch()
        except Exception as error:             # a result, so that the process lives on for others
            self.cleanup()
            told = {"failed": reason(error), "over": True}
        judged = told.get(JUDGED)
        said = {"told": json.dumps(told), EPOCH: told.get(EPOCH, 0), "done": told["over"]}
        return said if judged is None else {**said, JUDGED: judged}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy the trial's newest checkpoint and its best weights, for others to go on from."""
        own = self._folder()
        best = [n for n in own.names() if n.startswith("best-")][-1:]
        for name in [*[n for n in own.names() if n.startswith("step-")][-1:], *best]:
            for file in (own / name).names():
                Storage(checkpoint_dir).write(f"{name}/{file}", own.read(f"{name}/{file}"))

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from what another trial saved."""
        self.cleanup()
        own, other = self._folder(), Storage(checkpoint)
        names = [n for n in other.names() if n.startswith(("step-", "best-"))]
        for name in own.names():
            own.delete(name)
        for name in names:
            for file in (other / name).names():
                own.write(f"{name}/{file}", other.read(f"{name}/{file}"))

    def cleanup(self) -> None:
        """End the trial that runs, if one does."""
        if self.run is not None:
            self.run.close()
            self.run = None

    def _folder(self) -> Storage:
        return folder_of(self.shared.folder, self.assignment.number) / "checkpoints"


def folder_of(search: Storage, number: int) -> Storage:
    """Where a trial leaves its files."""
    return search / f"trials/{number:04d}"


def reason(error: BaseException) -> str:
    """Why a trial failed, in a line or two."""
    from datasets.storage import mask
    from workflows.loop import Diverged

    text = mask(str(error)).strip()
    if isinstance(error, MemoryError) or any(words in text.lower() for words in NO_MEMORY):
        return f"out of memory: {text.splitlines()[0] if text else type(error).__name__}"
    return text if isinstance(error, ValueError | Diverged) else f"{type(error).__name__}: {text}"


def finish(shared: Shared, assignment: Assignment) -> dict[str, Any]:
    """Measure a trial's best weights and leave its bundle, in the folder of the search; the result, as plain values.

    Needs no Ray Train: one process, which may be the one that was started.
    """
    from workflows.worker import Attempt

    job = replace(_job(shared, assignment), run=shared.folder, name=shared.name, alone=True, watched=False)
    attempt = Attempt(job)
    attempt.checkpoints = folder_of(shared.folder, assignment.number) / "checkpoints"
    attempt.restore()
    return attempt.finish()


class _Run(Protocol):
    """A trial that goes on."""

    def epoch(self) -> dict[str, Any]:
        """Train until the next result."""

    def close(self) -> None:
        """End it wherever it is."""


def begin(shared: Shared, assignment: Assignment) -> _Run:
    """Start a trial here, or around workers of its own.

    Raises:
        ValueError: settings that cannot be.
    """
    job = _job(shared, assignment)
    kind = _Here if job.experiment.workers.most == 1 else _Nested
    return kind(job, final=assignment.final, deadline=_deadline(shared.folder, assignment))


def _job(shared: Shared, assignment: Assignment) -> Job:
    from workflows.worker import Job

    experiment = changed(shared.told[assignment.study], assignment.settings)
    key = data_key(experiment)
    return Job(experiment, shared.prepared[key], shared.cached[key], folder_of(shared.folder, assignment.number),
               trial_key(shared.name, assignment.number), shared.cpus, shared.tracker, _nothing, entered=time.time(),
               groups=assignment.final, free=shared.free)


def _nothing(event: dict[str, Any]) -> None:
    """Nobody watches the steps of a trial."""


class _Here:
    """A trial of one worker: this process."""

    def __init__(self, job: Job, *, final: bool, deadline: float | None) -> None:
        from workflows.worker import Attempt

        _forget_peak()
        if deadline is not None:
            job.stop = lambda: time.time() > deadline
        job.alone = True
        self.final, self.attempt = final, Attempt(job)
        self.moving = self.attempt.epochs()

    def epoch(self) -> dict[str, Any]:
        from workflows.loop import Stopped, over

        attempt, late = self.attempt, False
        try:
            next(self.moving, None)
        except Stopped:
            late = True
        told = summary(attempt, late or over(attempt.settings, attempt.progress), late=late)
        if told["over"] and self.final and not late:
            attempt.job.stop = lambda: False           # the deadline is one of training
            told["final"] = attempt.finish()
        told["memory"] = peak_memory()
        return told

    def close(self) -> None:
        self.moving.close()


class _Nested:
    """A trial of several workers: a Ray Train run of its own, which waits after each epoch for leave to go on."""

    def __init__(self, job: Job, *, final: bool, deadline: float | None) -> None:
        import ray

        kind: Any = ray.remote(_Gate)
        self.gate = kind.options(num_cpus=0, max_concurrency=8).remote()
        self.waits = False                     # whether the workers wait for leave
        self.thread = threading.Thread(target=self._train, args=(job, final, deadline), daemon=True)
        self.thread.start()

    def _train(self, job: Job, final: bool, deadline: float | None) -> None:
        import ray

        from workflows.train import fit_workers

        try:
            fit_workers(job, partial(_worker, gate=self.gate, final=final, deadline=deadline))
            end: dict[str, Any] = {"over": True, "failed": "its workers ended early"}
        except BaseException as error:
            end = {"over": True, "failed": reason(error)}
        ray.get(self.gate.tell.remote(end))

    def epoch(self) -> dict[str, Any]:
        import ray

        if self.waits:
            self.gate.answer.remote(True)
        told: dict[str, Any] = ray.get(self.gate.told.remote())
        self.waits = not told["over"]
        return told

    def close(self) -> None:
        import ray

        if self.waits:
            self.gate.answer.remote(False)
        self.thread.join(60)
        ray.kill(self.gate)


class _Gate:
    """Where the workers of a nested trial tell what they did, and ask whether to go on."""

    def __init__(self) -> None:
        import asyncio
        self.tellings: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.answers: asyncio.Queue[bool] = asyncio.Queue()

    async def tell(self, told: dict[str, Any]) -> None:
        await self.tellings.put(told)

    async def told(self) -> dict[str, Any]:
        return await self.tellings.get()

    async def answer(self, go_on: bool) -> None:
        await self.answers.put(go_on)

    async def ask(self) -> bool:
        return await self.answers.get()


def _worker(job: Job, *, gate: Any, final: bool, deadline: float | None) -> None:
    """One worker of a nested trial."""
    import ray
    import torch.distributed as dist
    from ray import train

    from workflows.loop import over
    from workflows.worker import Attempt

    _forget_peak()
    attempt = Attempt(job)
    chief = attempt.workers.rank == 0

    def leave(last: bool, *, late: bool) -> bool:
        """Tell of an epoch; whether to go on. All workers hear the same."""
        told = [summary(attempt, last, late=late)] if chief else []
        made = attempt.finish() if last and final and not late else None
        asked = None
        if chief:
            ray.get(gate.tell.remote({**told[0], "memory": peak_memory(), **({"final": made} if made else {})}))
            asked = None if last else gate.ask.remote()
        go_on: list[bool | None] = [False if last else None]
        while go_on[0] is None:                # in turns: an exchange between workers has a time limit
            if asked is not None and ray.wait([asked], timeout=10)[0]:
                go_on = [bool(ray.get(asked))]
            dist.broadcast_object_list(go_on, src=0, device=attempt.workers.device)
        return go_on[0]

    told_last = False
    for metrics in attempt.epochs():
        train.report(metrics)
        late = [deadline is not None and time.time() > deadline]
        dist.broadcast_object_list(late, src=0, device=attempt.workers.device)
        told_last = over(attempt.settings, attempt.progress) or late[0]
        if not leave(told_last, late=late[0]):
            return
    if not told_last:                          # a resumed trial that had nothing left to train
        leave(True, late=False)


def began(search: Storage, clock: str) -> float | None:
    """When a study's first trial began, in seconds since 1970; None before."""
    try:
        return float(search.read(clock))
    except FileNotFoundError:
        return None


def _deadline(search: Storage, assignment: Assignment) -> float | None:
    """When a trial is to stop: the first one of its study starts the clock."""
    if assignment.seconds is None:
        return None
    start = began(search, assignment.clock)
    if start is None:
        start = time.time()
        search.write(assignment.clock, str(start).encode())
    return start + assignment.seconds


def summary(attempt: Attempt, over: bool, *, late: bool) -> dict[str, Any]:
    """What a trial has reached, as plain values."""
    import ray

    progress, task = attempt.progress, attempt.model.task
    last = progress.history[-1] if progress.history else {}
    if late and not last:
        return {"over": True, "failed": "search.seconds were over before its first epoch"}
    best = -progress.best if task.maximise else progress.best
    return {JUDGED: last[f"validation/{task.primary}"], EPOCH: progress.epoch, "over": over, "late": late,
            "history": progress.history, "best": best if math.isfinite(best) else None,
            "seconds": round(progress.seconds, 3), "started": attempt.job.entered, "parameters": attempt.parameters,
            "node": ray.util.get_node_ip_address(), "node_id": ray.get_runtime_context().get_node_id()}


def _forget_peak() -> None:
    """Begin a new measurement of this process's largest memory (Linux, proc(5): clear_refs)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:                            # not allowed here: the peak is then that of the whole process
        return


def peak_memory() -> int | None:
    """The most bytes that this process has had in memory since the trial began; None where nobody tells."""
    try:
        status = Path(f"/proc/{os.getpid()}/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), None)


