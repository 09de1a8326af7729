"""Apply a bundle to new raw data, in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from datasets.records import CUT, STEP
from datasets.storage import split_options, write_file
from models.sampling import Sampling
from workflows.bundle import Bundle

ROWS = 256      # series that go through the model together
TOGETHER = 64   # the same of records


@dataclass(frozen=True)
class Continuing:
    """How a bundle of task generate goes on.

    Attributes:
        samples: continuations of each prompt.
        length: most steps (tokens) of each.
        prompt: steps of each row that are the prompt, from its start; None takes all.
        sampling: how steps are drawn.

    Raises:
        ValueError: a value is out of its range.
    """

    samples: int = 1
    length: int = 200
    prompt: int | None = None
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        for name, value in (("samples", self.samples), ("length", self.length), ("prompt", self.prompt)):
            if value is not None and value < 1:
                raise ValueError(f"--{name} {value} is too small; use at least 1")


def predict(bundle: str | Path, source: str | Path, output: str | Path | None = None, *,
            continuing: Continuing | None = None) -> dict[str, Any] | None:
    """Apply a bundle to raw input, as it was trained to.

    Args:
        bundle: its folder or URI.
        source: what to read: a table with the columns that the model was trained on; for audio also a sound file or a
            folder of them; for text also the text itself. Files may be folders, globs and URIs.
        output: CSV or Parquet to write; None writes CSV to stdout. Of a bundle of task generate: continued texts go to
            stdout as they are, music to MIDI files, for which a name (.mid) must be given.
        continuing: for a bundle of task generate; None is the default of it.

    Returns:
        rows, skipped and output; None when stdout has the predictions.

    Raises:
        ValueError: what is wrong with the bundle or the source. A single row that cannot be used is skipped, and says
        why in its column ``skipped``.
    """
    from workflows import bundle as bundles
    from workflows.evaluate import open_bundle

    told = bundles.load(open_bundle(bundle))
    kind = told.experiment["task"]["kind"]
    music = kind == "generate" and "notes" in told.spec
    if music and (output is None or _ending(output) != ".mid"):
        raise ValueError("this bundle writes music; name a MIDI file for it with -o, such as -o chorale.mid")
    if not music and output is not None and _ending(output) not in (".csv", ".parquet"):
        raise ValueError(f"{output}: the output is CSV or Parquet; name it .csv or .parquet")
    if kind != "generate" and continuing is not None:
        raise ValueError(f"this bundle's task is {kind}; --samples, --length, --prompt and what goes with them are for "
                         "task generate")
    if music:
        return _written_music(told, str(source), str(output), continuing or Continuing())
    if kind == "generate":
        table = _continued_texts(told, str(source), continuing or Continuing())
    elif kind == "forecast":
        table = forecast(told, str(source))
    else:
        tables = list(records(told, str(source)))
        if not tables:
            raise ValueError(f"{source} holds no rows")
        table = pa.concat_tables(tables, promote_options="default")
    skipped = _say_skipped(table["skipped"].to_pylist()) if "skipped" in table.column_names else 0
    if output is None and kind == "generate":
        for text in pc.drop_null(table["text"]).to_pylist():
            print(text, end="\n" if len(table) == 1 else "\n\n")
        return None
    if output is None:
        pyarrow.csv.write_csv(table, sys.stdout.buffer)
        return None
    sink = io.BytesIO()
    if _ending(output) == ".csv":
        pyarrow.csv.write_csv(table, sink)
    else:
        pq.write_table(table, sink)
    return {"rows": table.num_rows, "skipped": skipped, "output": write_file(str(output), sink.getvalue())}


def _say_skipped(why: list[str | None]) -> int:
    """How many rows were skipped, which is said with the first reason; `why` has None for those that were not."""
    told = [reason for reason in why if reason is not None]
    if told:
        print(f"{len(told):,} of {len(why):,} rows were skipped (the first: {told[0]})", file=sys.stderr)
    return len(told)


def _ending(output: str | Path) -> str:
    """Of a file's name, such as .csv."""
    return Path(split_options(str(output))[0]).suffix


def _continued_texts(told: Bundle, source: str, how: Continuing) -> pa.Table:
    """file, row, sample and text: each prompt with what was drawn to follow it."""
    from datasets.vocabulary import BEGIN
    rows: list[dict[str, Any]] = []
    writer: Any = told.model.task.writer
    for number, (file, row, steps, why) in enumerate(_prompts(told, _dataset(told), source)):
        place = {"file": file, "row": row}
        if why is not None:
            rows.append({**place, "sample": None, "text": None, "skipped": why})
            continue
        start = np.concatenate([[BEGIN], steps[:how.prompt]]).astype(np.int32)
        rows += [{**place, "sample": i + 1, "text": text, "skipped": None}
                 for i, text in enumerate(writer(_go_on(told, start, number, how).tolist()))]
    if not rows:
        raise ValueError(f"{source} holds no rows")
    kinds = {"file": pa.string(), "row": pa.int64(), "sample": pa.int64(), "text": pa.string(), "skipped": pa.string()}
    return pa.Table.from_pylist(rows, pa.schema(list(kinds.items())))


def _written_music(told: Bundle, source: str, output: str, how: Continuing) -> dict[str, Any]:
    """A MIDI file for each sample: `output`, or where there are several, with the numbers of piece and sample in it."""
    from datasets.music import NOTES, notes_of
    from workflows import midi

    dataset = _dataset(told)
    if how.sampling.top_p < 1:
        raise ValueError("--top-p is for tokens; of notes, each is drawn by itself: use --top-k, as many as may sound")
    prompts = list(_prompts(told, dataset, source))
    usable = [(number, steps) for number, (_, _, steps, why) in enumerate(prompts) if why is None]
    if not usable:
        raise ValueError(f"{source} holds no piece that can be used" + (f": {prompts[0][3]}" if prompts else ""))
    skipped = _say_skipped([why for _, _, _, why in prompts])
    several, written = len(usable) * how.samples > 1, []
    path, options = split_options(output)
    stem = path.removesuffix(".mid")
    for number, steps in usable:
        start = steps.reshape(-1, NOTES)[:how.prompt].astype(np.float32)
        for sample, roll in enumerate(_go_on(told, start, number, how), 1):
            data = midi.write(list(notes_of(roll)), quarters=dataset.quarters)
            written.append(write_file(f"{stem}-{number + 1}-{sample}.mid{options}" if several else output, data))
    return {"rows": len(prompts), "skipped": skipped, "output": written}


def _dataset(told: Bundle) -> Any:
    """The dataset that a bundle was trained on."""
    from workflows.experiment import dataset_of, load
    return dataset_of(load(told.experiment))


def _prompts(told: Bundle, dataset: Any, source: str) -> Iterator[tuple[str, int, Any, str | None]]:
    """(file, row, the numbers of its steps, why it cannot be used) of each row of a source; "" is an empty text."""
    if not source and "notes" not in told.spec:
        yield "text", 1, np.zeros(0, np.int32), None
        return
    for table in dataset.encode_request(source, told.state):
        steps = table["values" if "notes" in told.spec else "tokens"]
        for i, why in enumerate(table["skipped"].to_pylist()):
            yield (table["__file"][i].as_py(), table["__row"][i].as_py(),
                   None if why is not None else steps[i].values.to_numpy(), why)


def _go_on(told: Bundle, start: Any, number: int, how: Continuing) -> Any:
    """(samples, steps, ...) the steps of `start`, prompt `number` of the source, and what was drawn to follow them."""
    import torch

    model: Any = told.model
    steps = torch.from_numpy(np.stack([start] * how.samples))
    if steps.is_floating_point():
        steps = steps.to(next(model.parameters()).dtype)
    with torch.inference_mode():
        more = model.task.go_on(model, steps, how.length, sampling=how.sampling,
                                keys=how.sampling.keys(number, how.samples))
        return torch.cat([steps, more], 1).numpy()


def records(told: Bundle, source: str) -> Iterator[pa.Table]:
    """Raw rows of text, audio or sequences: where each stood (file, row), what was found in it, why it was skipped."""
    from datasets.records import Records
    from workflows.experiment import dataset_of, load, task_of

    experiment = load(told.experiment)
    dataset: Any = dataset_of(experiment)
    target = task_of(experiment, dataset)["target"]
    if not isinstance(dataset, Records):
        raise ValueError(f"{told.run}: dataset.kind={dataset.kind!r} has no raw input to predict from")
    names = dataset.names(told.state, target)
    cut = 0
    for table in dataset.encode_request(source, told.state):
        cut += int(np.count_nonzero(table[CUT].to_numpy())) if CUT in table.column_names else 0
        usable = np.flatnonzero(table["skipped"].is_null().to_numpy())
        found = _found(told, dataset, names, table.take(pa.array(usable))) if usable.size else {}
        place = np.full(len(table), -1)
        place[usable] = np.arange(usable.size)
        columns = {name: [values[i] if i >= 0 else None for i in place] for name, values in found.items()}
        yield pa.table({"file": table["__file"], "row": table["__row"], **columns, "skipped": table["skipped"]})
    if cut:
        print(f"{cut:,} rows were longer than dataset.max_length={experiment.dataset['max_length']} of the bundle; of "
              "those only the beginning was read", file=sys.stderr)


def _found(told: Bundle, dataset: Any, names: list[str], table: pa.Table) -> dict[str, list[Any]]:
    """What is written of each encoded row; rows of about one length go through the model together."""
    import torch

    from datasets.views import RowReader
    from models.batch import Batch

    reader = RowReader(np.arange(len(table)), table, dataset.inputs(told.state["fitted"]), {})
    order = np.argsort(table["length"].to_numpy(), kind="stable")
    dtype = next(told.model.parameters()).dtype
    steps = _raw_steps(table)
    parts: dict[str, list[Any]] = {}
    for start in range(0, len(order), TOGETHER):
        ids = order[start:start + TOGETHER]
        fields = reader.take(ids)
        inputs = {name: torch.from_numpy(x) for name, x in fields["inputs"].items()}
        batch = Batch({name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()},
                      {name: torch.from_numpy(x) for name, x in fields["lengths"].items()}, {},
                      torch.ones(len(ids)), torch.from_numpy(ids))
        with torch.inference_mode():
            out = told.model.task.predict(told.model, batch)
        for name, values in told.model.task.written(out, names, [steps[i] for i in ids]).items():
            parts.setdefault(name, []).extend(values)
    back = np.argsort(order)
    return {name: [values[i] for i in back] for name, values in parts.items()}


def _raw_steps(table: pa.Table) -> list[list[int]]:
    """The steps of each row that stand for steps of the raw row: all, or of a word's tokens the first."""
    if STEP not in table.column_names:
        return [list(range(length)) for length in table["length"].to_pylist()]
    return [[i for i, step in enumerate(steps) if step >= 0] for steps in table[STEP].to_pylist()]


def forecast(told: Bundle, file: str) -> pa.Table:
    """The horizon after the last step of every series: series, time, a column a target, and its outer quantiles."""
    import torch

    from models.batch import Batch
    from workflows.experiment import dataset_of, load

    experiment = load(told.experiment)
    dataset: Any = dataset_of(experiment)
    task, names = experiment.task, told.state["channels"]["targets"]
    lookback, horizon = task["lookback"], task["horizon"]
    requests = dataset.encode_request(file, told.state)
    for request in requests:
        if len(request.values) < lookback:
            name = f"series {request.series!r}" if request.series else "the series"
            raise ValueError(f"{file}: {name} has {len(request.values)} rows; the model looks back {lookback} steps")
    from datasets.timeseries import future
    ahead = [future(r, horizon) for r in requests]
    tables = []
    for start in range(0, len(requests), ROWS):
        some, known = requests[start:start + ROWS], ahead[start:start + ROWS]
        inputs = {"values": torch.from_numpy(np.stack([r.values[-lookback:] for r in some]))}
        if told.spec["known"]:
            inputs["known"] = torch.from_numpy(np.stack([k for k, _ in known]))
        count = len(some)
        inputs = {name: x.to(next(told.model.parameters()).dtype) for name, x in inputs.items()}
        batch = Batch(inputs, {"values": torch.full((count,), lookback)}, {}, torch.ones(count), torch.arange(count))
        with torch.inference_mode():
            out = told.model.task.predict(told.model, batch)["quantiles"].double().numpy()      # (B, Z, N, Q)
        n = len(names)
        mean, std = (np.stack([getattr(r, k)[:n] for r in some]) for k in ("mean", "std"))
        out = out * std[:, None, :, None] + mean[:, None, :, None]
        columns: dict[str, Any] = {}
        if dataset.series:
            columns[dataset.series] = np.repeat([r.series for r in some], horizon)
        columns["time"] = [t for _, times in known for t in times]
        levels = _levels(task)
        for number, name in enumerate(names):
            columns[name] = out[:, :, number, levels.index(0.5)].ravel()
            for q, level in enumerate(levels):
                if level != 0.5:
                    columns[f"{name}_q{level:g}"] = out[:, :, number, q].ravel()
        tables.append(pa.table(columns))
    return pa.concat_tables(tables)


def _levels(task: dict[str, Any]) -> list[float]:
    return sorted(task["quantiles"]) if task["loss"] == "quantile" else [0.5]
