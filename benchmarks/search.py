"""32 short trials of a search, two at a time, against the same trainings in two plain processes without Ray, in turn.

python -m benchmarks.search [rounds] [trials]      (embedded data; from the project's root)

Of the search, the time from the start of its first trial to the end of its last one counts: preparing, starting Ray and
measuring the winner do not. The plain processes share the trainings evenly, read the same prepared data, train with the
same loop, validate after each epoch, and write nothing; their imports do not count either.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
import time

EPOCHS = 5
EXPERIMENT = {
    "name": "bench",
    "dataset": {"kind": "generated", "shape": "hourly_demand", "days": 120},
    "task": {"kind": "forecast", "lookback": 168, "horizon": 24, "loss": "quantile"},
    "model": {"family": "gru", "hidden_size": 64, "patch": 24},
    "training": {"epochs": EPOCHS, "batch_size": 64},
    "search": {"scheduler": "none", "searcher": "random",
               "space": {"training.learning_rate": {"loguniform": [1e-3, 1e-2]}}},
}


def searched(folder: str, trials: int) -> tuple[float, list[dict], float]:
    """Seconds from the first trial's start to the last one's end, the trials, and how long it took altogether."""
    from workflows.search import search

    start = time.time()
    found = search({**EXPERIMENT, "storage": f"{folder}/runs", "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"}},
                   overrides=[f"search.trials={trials}"], progress=False)
    done = found["trials"]
    return max(t["ended"] for t in done) - min(t["started"] for t in done), done, time.time() - start


def plain(folder: str, settings: list[dict], ready, go, seconds) -> None:
    """One process: train each of these settings, one after the other."""
    import numpy as np
    import pyarrow as pa
    import torch

    from datasets.plan import Cursor, checksum, checksum_range, share
    from datasets.prepare import prepare, read_rows
    from datasets.storage import Storage
    from models.batch import Batch
    from workflows import loop
    from workflows.experiment import dataset_of, load
    from workflows.loop import Hooks, Progress, Step
    from workflows.space import changed
    from workflows.worker import Data, make_model

    torch.set_num_threads(1)
    prepared = prepare(dataset_of(load(EXPERIMENT)), Storage(folder) / "runs/prepared")
    tables = {name: pa.concat_tables([read_rows(prepared.storage, part.shards, [None] * len(part.shards))])
              for name, part in prepared.parts.items()}

    def train(experiment) -> None:
        workers = loop.Workers(torch.device("cpu"))
        data = Data(experiment, prepared, {}, workers)

        def steps(split: str, training: bool, epochs: int):
            view = data.view(split)
            plan, table = data.plan(view, training=training), tables["series"]
            reader, ingest = view.open(np.arange(table.num_rows), table), data.ingest(split, training=training)
            for epoch in range(epochs):
                for cursor, _, ids in plan.epoch(epoch, Cursor(epoch, 0, 0)):
                    cut = [ingest._tensors(reader.take(mine), weights, mine)
                           for mine, weights, _ in share(ids, 0, 1, 1)]
                    batches = [Batch(m.inputs, m.lengths, m.targets, m.weights, m.row_ids) for m in cut]
                    yield Step(cursor.epoch, (cursor.window, cursor.batch), ids.size, batches, ids.size, checksum(ids))

        model, _ = make_model(experiment, prepared, torch.device("cpu"))
        total = data.ingest("train", training=True).plan.total
        hooks = Hooks(lambda metrics, step: None, lambda metrics, progress: None, lambda progress, best: None)
        for _ in loop.epochs(model, loop.make_optimizer(model, experiment.training), experiment.training,
                             lambda epoch, place: steps("train", True, EPOCHS), rows=total,
                             expected_checksum=checksum_range(total), workers=workers, progress=Progress(), hooks=hooks,
                             validate=lambda: loop.evaluate(model, steps("validation", False, 1), workers,
                                                            quick=True).metrics["model"]):
            pass

    experiments = [changed({**EXPERIMENT, "search": {}}, s) for s in settings]
    ready.wait()
    go.wait()
    start = time.time()
    for experiment in experiments:
        train(experiment)
    seconds.put((start, time.time()))


def plainly(folder: str, settings: list[dict]) -> float:
    """Seconds that two processes need for the same trainings, side by side."""
    context = multiprocessing.get_context("spawn")
    ready, go, seconds = context.Barrier(3), context.Barrier(3), context.Queue()
    processes = [context.Process(target=plain, args=(folder, settings[i::2], ready, go, seconds)) for i in range(2)]
    for process in processes:
        process.start()
    ready.wait()
    go.wait()
    spans = [seconds.get() for _ in processes]
    for process in processes:
        process.join()
    return max(end for _, end in spans) - min(start for start, _ in spans)


def main(rounds: int, trials: int) -> None:
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            ours, done, altogether = searched(folder, trials)
            bare = plainly(folder, [t["settings"] for t in done])
            ratios.append(ours / bare)
            own = sum(t["seconds"] for t in done) / trials
            print(f"{trials} trials of {own:.2f} s: search {ours:.1f} s ({altogether:.1f} s with everything), plain "
                  f"{bare:.1f} s, ratio {ratios[-1]:.3f}; overhead a trial {2 * (ours - bare) / trials:.2f} s",
                  flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, int(sys.argv[2]) if len(sys.argv) > 2 else 32)
