"""Apply a bundle to new raw data, in this process."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from datasets.music import Music
from datasets.pipeline.storage import split_options, write_file
from datasets.shared.request import RequestDataset, RequestRows
from models.batch import Batch
from models.generation import GenerativeTask
from models.sampling import Sampling
from models.sequence import Columns, SequenceModel
from workflows.config.experiment import Experiment
from workflows.config.load import load
from workflows.errors import UserError, check_each, user_mistakes
from workflows.reporting import midi
from workflows.runs import open_bundle
from workflows.training import bundle as bundles
from workflows.training.bundle import Bundle


@dataclass(frozen=True)
class GenerationOptions:
    """How a bundle of a task that generates continues rows.

    Attributes:
        samples: continuations of each prompt.
        length: maximum number of steps (tokens) of each.
        prompt: steps of each row that are the prompt, from its start; None takes all.
        sampling: how steps are sampled.

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
                raise UserError(f"--{name} {value} is too small; use at least 1")


def predict(
    bundle: str | Path,
    source: str | Path,
    output: str | Path | None = None,
    *,
    generation: GenerationOptions | None = None,
) -> dict[str, Any] | None:
    """Apply a bundle to raw input, as it was trained to.

    Args:
        bundle: its folder or URI.
        source: what to read: a table with the columns that the model was trained on; for audio also a sound file or a
            folder of them; for text also the text itself. Files may be folders, globs and URIs.
        output: CSV or Parquet file to write; None prints CSV. Generated texts are printed as they are; generated music
            is written to MIDI files and needs a name (.mid).
        generation: for a task that generates; None takes the defaults.

    Returns:
        rows, skipped and output; None if the predictions were printed.

    Raises:
        ValueError: what is wrong with the bundle or the source. A single row that cannot be used is skipped; its column
            ``skipped`` has the reason.
    """
    loaded = bundles.load(open_bundle(bundle))
    task = loaded.model.task
    _check_output(task.output, output)
    if generation is not None and not isinstance(task, GenerativeTask):
        raise UserError(
            f"this bundle's task is {loaded.experiment['task']['kind']}; --samples, --length, --prompt and what goes "
            "with them are for task generate"
        )
    experiment = load(loaded.experiment)
    table = _predictions(loaded, experiment, str(source), generation or GenerationOptions())
    if task.output == "notes":
        assert isinstance(experiment.raw_dataset, Music)
        return _write_music(table, str(source), str(output), quarters=experiment.raw_dataset.quarters)
    skipped = _report_skipped(table["skipped"].to_pylist()) if "skipped" in table.column_names else 0
    if output is None and task.output == "text":
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
    with user_mistakes():
        written = write_file(str(output), sink.getvalue())
    return {"rows": table.num_rows, "skipped": skipped, "output": written}


def _check_output(form: str, output: str | Path | None) -> None:
    """Raise ValueError unless predictions of this form can be written to a file of this name."""
    if form == "notes" and (output is None or _ending(output) != ".mid"):
        raise UserError("this bundle writes music; name a MIDI file for it with -o, such as -o chorale.mid")
    if form != "notes" and output is not None and _ending(output) not in (".csv", ".parquet"):
        raise UserError(f"{output}: the output is CSV or Parquet; name it .csv or .parquet")


def _ending(output: str | Path) -> str:
    """Of a file's name, such as .csv."""
    return Path(split_options(str(output))[0]).suffix


def _predictions(loaded: Bundle, experiment: Experiment, source: str, generation: GenerationOptions) -> pa.Table:
    """The predictions for all rows of a source, after the columns that identify the rows; of records, ``skipped``."""
    dataset, task, model = experiment.raw_dataset, experiment.resolved_task, loaded.model
    if not isinstance(dataset, RequestDataset):
        raise UserError(f"{loaded.run}: dataset.kind={dataset.kind!r} has no raw input to predict from")
    names = dataset.names(loaded.state, task["target"])
    if isinstance(model.task, GenerativeTask):
        with user_mistakes():
            model.task.check_sampling(generation.sampling)
    tables: list[pa.Table] = []
    count = cut = 0
    for rows in check_each(dataset.read_request(source, loaded.state, task)):
        if isinstance(model.task, GenerativeTask):
            columns = _continuations(model, model.task, rows, names, generation, count)
        else:
            columns = _answers(model, rows, names)
        tables.append(_to_table(rows, columns))
        count, cut = count + rows.total, cut + rows.cut
    if cut:
        print(
            f"{cut:,} rows were longer than dataset.max_length={experiment.dataset['max_length']} of the bundle; of "
            "those only the beginning was read",
            file=sys.stderr,
        )
    if not tables:
        raise UserError(f"{source} holds no rows")
    return pa.concat_tables(tables, promote_options="default")


def _answers(model: SequenceModel, rows: RequestRows, names: Sequence[str]) -> dict[str, pa.Array]:
    """The task's columns for the usable rows; rows of similar length go through the model together."""
    order = np.argsort(rows.lengths, kind="stable")
    dtype = next(model.parameters()).dtype
    formatted: Columns = {}
    for start in range(0, len(order), rows.batch_rows):
        ids = order[start : start + rows.batch_rows]
        with torch.inference_mode():
            predictions = model.task.predict(model, Batch.from_arrays(rows.reader.read(ids), dtype))
        context = {name: [values[i] for i in ids] for name, values in rows.context.items()}
        for name, values in model.task.format_predictions(predictions, names, context).items():
            formatted.setdefault(name, []).extend(values)
    position = np.argsort(order)  # of each row in `order`
    columns = {}
    for name, values in formatted.items():
        entries = len(values) // len(order)  # of each row
        columns[name] = pa.array([values[i] for i in (position[:, None] * entries + np.arange(entries)).ravel()])
    return columns


def _continuations(
    model: SequenceModel,
    task: GenerativeTask,
    rows: RequestRows,
    names: Sequence[str],
    generation: GenerationOptions,
    first: int,
) -> dict[str, pa.Array]:
    """``sample`` and the task's column: `samples` continuations of each usable row.

    Args:
        first: the number of the first of these rows in the source, from which random numbers depend.
    """
    samples, dtype = generation.samples, next(model.parameters()).dtype
    formatted: list[Any] = []
    for i, number in enumerate(rows.usable.tolist()):
        inputs = Batch.from_arrays(rows.reader.read(np.array([i])), dtype).inputs
        with torch.inference_mode():
            start = torch.cat([task.prompt(inputs, generation.prompt)] * samples)
            keys = generation.sampling.keys(first + number, samples)
            added = task.generate(model, start, generation.length, sampling=generation.sampling, keys=keys)
        formatted += task.format_predictions({"steps": torch.cat([start, added], 1)}, names, {})[task.output]
    kind = pa.string() if task.output == "text" else pa.list_(pa.list_(pa.string()))
    return {
        "sample": pa.array([*range(1, samples + 1)] * len(rows.usable), pa.int64()),
        task.output: pa.array(formatted, kind),
    }


def _to_table(rows: RequestRows, columns: dict[str, pa.Array]) -> pa.Table:
    """The output for some rows: a usable row has as many output rows as entries in its predictions, another one has one
    output row without predictions."""
    entries = max((len(column) for column in columns.values()), default=0)
    counts = np.ones(rows.total, np.int64)
    if columns and rows.usable.size:
        counts[rows.usable] = entries // rows.usable.size
    row = np.repeat(np.arange(rows.total), counts)
    has_entry = np.isin(row, rows.usable)
    entry = pa.array(np.cumsum(has_entry) - 1, pa.int64(), mask=~has_entry)
    table = {name: column.take(pa.array(row)) for name, column in rows.identity.items()}
    table |= {name: column.take(entry) for name, column in columns.items()}
    return pa.table(table if rows.skipped is None else {**table, "skipped": rows.skipped.take(pa.array(row))})


def _write_music(table: pa.Table, source: str, output: str, *, quarters: float) -> dict[str, Any]:
    """Write a MIDI file for each continuation. With several ones, the names have the numbers of piece and sample."""
    pieces = table.filter(pc.equal(pc.fill_null(table["sample"], 1), 1))  # one row for each piece of the source
    reasons = pieces["skipped"].to_pylist()
    if None not in reasons:
        raise UserError(f"{source} holds no piece that can be used: {reasons[0]}")
    skipped = _report_skipped(reasons)
    is_single = len(table) - table["notes"].null_count == 1
    path, options = split_options(output)
    stem = path.removesuffix(".mid")
    files, piece = [], 0
    for sample, notes in zip(table["sample"].to_pylist(), table["notes"].to_pylist(), strict=True):
        piece += sample in (None, 1)
        if notes is not None:
            data = midi.write([[int(note) for note in step] for step in notes], quarters=quarters)
            with user_mistakes():
                files.append(write_file(output if is_single else f"{stem}-{piece}-{sample}.mid{options}", data))
    return {"rows": len(reasons), "skipped": skipped, "output": files}


def _report_skipped(reasons: Sequence[str | None]) -> int:
    """Print and return how many rows were skipped; `reasons` has an entry for each row, None for one that was not."""
    skipped = [reason for reason in reasons if reason is not None]
    if skipped:
        print(f"{len(skipped):,} of {len(reasons):,} rows were skipped (the first: {skipped[0]})", file=sys.stderr)
    return len(skipped)
