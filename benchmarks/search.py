"""Compare a search of 32 short trials, two at a time, with the same trainings in two plain processes without Ray.

python -m benchmarks.search [rounds] [trials]      (embedded data; from the project's root)

The time of the search is measured from the start of its first trial to the end of its last one: it does not include
preparing the data, starting Ray and measuring the best trial. The plain processes share the trainings evenly, read the
same prepared data, train with the same loop, validate after each epoch, and write nothing; the time of their imports is
not included either.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

EPOCHS = 5
EXPERIMENT = {
    "name": "bench",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 120},
    "task": {"kind": "forecast", "lookback": 168, "horizon": 24, "loss": "quantile"},
    "model": {"family": "gru", "hidden_size": 64, "patch": 24},
    "training": {"epochs": EPOCHS, "batch_size": 64},
    "search": {
        "scheduler": "none",
        "searcher": "random",
        "space": {"training.learning_rate": {"loguniform": [1e-3, 1e-2]}},
    },
}


def run_search(folder: str, trials: int) -> tuple[float, list[dict], float]:
    """Seconds from the start of the first trial to the end of the last one, the trials, and the seconds in total."""
    from workflows.search import search

    start = time.time()
    result = search(
        {**EXPERIMENT, "storage": f"{folder}/runs", "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}},
        overrides=[f"search.trials={trials}"],
        progress=False,
    )
    done = result["trials"]
    return max(t["ended"] for t in done) - min(t["started"] for t in done), done, time.time() - start


def train_all(folder: str, settings: list[dict], ready: Barrier, start: Barrier, spans: Queue) -> None:
    """Train with each of these settings, one after the other; puts (start, end) in seconds into `spans`."""
    import numpy as np
    import pyarrow as pa
    import torch

    from datasets.pipeline.ingest import MicroBatch
    from datasets.pipeline.plan import checksum, checksum_range
    from datasets.pipeline.prepare import prepare
    from datasets.pipeline.prepared import read_rows
    from datasets.pipeline.storage import Storage
    from workflows.config.load import load
    from workflows.training import evaluation, loop
    from workflows.training.data import Data, to_batch
    from workflows.training.loop import Hooks
    from workflows.training.progress import Progress, Step
    from workflows.training.worker import make_model
    from workflows.training.worker_group import WorkerGroup
    from workflows.tuning.space import with_settings

    torch.set_num_threads(1)
    prepared = prepare(load(EXPERIMENT).raw_dataset, Storage(folder) / "runs/prepared")
    tables = {
        name: pa.concat_tables([read_rows(prepared.storage, part.shards, [None] * len(part.shards))])
        for name, part in prepared.parts.items()
    }

    def train(experiment) -> None:
        workers = WorkerGroup(torch.device("cpu"))
        data = Data(experiment, prepared, {}, workers)

        def steps(split: str, training: bool, epochs: int):
            view = data.view(split)
            plan, table = data.plan(view, training=training), tables["series"]
            reader = view.reader(np.arange(table.num_rows), table)
            for epoch in range(epochs):
                for cursor, _, ids in plan.epoch(epoch):
                    fields, weights = reader.read(ids), np.ones(ids.size, np.float32)
                    micro = MicroBatch(fields["inputs"], fields["lengths"], fields["targets"], weights, ids)
                    batch = to_batch(micro, pin=False)
                    yield Step(cursor.epoch, (cursor.group, cursor.batch), ids.size, [batch], ids.size, checksum(ids))

        model, _ = make_model(experiment, prepared, torch.device("cpu"))
        total = data.ingest("train", training=True).plan.total
        hooks = Hooks(lambda metrics, step: None, lambda metrics, progress: None, lambda progress, best: None)
        for _ in loop.epochs(
            model,
            loop.make_optimizer(model, experiment.training),
            experiment.training,
            lambda epoch, position: steps("train", True, EPOCHS),
            rows=total,
            expected_checksum=checksum_range(total),
            workers=workers,
            progress=Progress(),
            hooks=hooks,
            validate=lambda: evaluation.evaluate(model, steps("validation", False, 1), workers, quick=True).metrics[
                "model"
            ],
        ):
            pass

    experiments = [with_settings({**EXPERIMENT, "search": {}}, s) for s in settings]
    ready.wait()
    start.wait()
    begin = time.time()
    for experiment in experiments:
        train(experiment)
    spans.put((begin, time.time()))


def run_plain(folder: str, settings: list[dict]) -> float:
    """Seconds that two processes need for the same trainings, both at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, start, queue = context.Barrier(3), context.Barrier(3), context.Queue()
    processes = [
        context.Process(target=train_all, args=(folder, settings[i::2], ready, start, queue)) for i in range(2)
    ]
    for process in processes:
        process.start()
    ready.wait()
    start.wait()
    spans = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in spans) - min(begin for begin, _ in spans)


def main(rounds: int, trials: int) -> None:
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            search_seconds, done, total = run_search(folder, trials)
            plain_seconds = run_plain(folder, [t["settings"] for t in done])
            ratios.append(search_seconds / plain_seconds)
            mean = sum(t["seconds"] for t in done) / trials
            print(
                f"{trials} trials of {mean:.2f} s: search {search_seconds:.1f} s ({total:.1f} s in total), plain "
                f"{plain_seconds:.1f} s, ratio {ratios[-1]:.3f}; overhead per trial "
                f"{2 * (search_seconds - plain_seconds) / trials:.2f} s",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, int(sys.argv[2]) if len(sys.argv) > 2 else 32)
