"""New rows for a trained model, in the form that every kind of dataset gives them to `predict`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.pipeline.views import Fields, Ids, Reader, RowReader
from datasets.shared.labels import CUT, STEP
from datasets.shared.series import Request, known_future

RECORD_ROWS, SERIES_ROWS = 64, 256  # maximum rows that go through the model together


@dataclass(frozen=True)
class RequestRows:
    """Some new rows: R in all, of which U can be used.

    Attributes:
        identity: output columns that say which row is which, (R,) each: its file and number, or its series.
        usable: (U,) which of the rows can be used, ascending.
        lengths: (U,) their steps; rows of similar length go through the model together.
        reader: reads the usable rows, which it numbers 0 to U - 1.
        context: what a task needs beyond tensors to write predictions, by name, (U,) each; see
            ``Task.format_predictions``.
        skipped: (R,) why a row cannot be used, null for the usable ones; None where such rows are errors.
        cut: rows whose end was left out because they were too long.
        batch_rows: maximum number of rows that go through the model together.
    """

    identity: Mapping[str, pa.Array | pa.ChunkedArray]
    usable: Ids
    lengths: Ids
    reader: Reader
    context: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    skipped: pa.Array | pa.ChunkedArray | None = None
    cut: int = 0
    batch_rows: int = RECORD_ROWS

    @property
    def total(self) -> int:
        """R."""
        return self.usable.size if self.skipped is None else len(self.skipped)


@runtime_checkable
class RequestDataset(Protocol):
    """A dataset that reads new raw rows for a trained model; one without this can only be trained on."""

    kind: ClassVar[str]

    def read_request(self, source: str, state: Mapping[str, Any], task: Mapping[str, Any]) -> Iterator[RequestRows]:
        """New raw rows, checked and encoded as the training rows were; in this process and in bounded memory.

        Args:
            source: file, folder, glob or URI, or what else the kind reads.
            state: of the prepared data that the model was trained on.
            task: ``kind``, options and ``target`` of the model's task.

        Raises:
            ValueError: what is wrong with the source as a whole.
        """


def encoded_rows(table: pa.Table, inputs: Mapping[str, int]) -> RequestRows:
    """The rows of a table of ``Records.encode_request``.

    Args:
        table: ``length``, the input's columns, ``__file``, ``__row`` and ``skipped``.
        inputs: the input's columns, as ``RowView`` has them.
    """
    usable = np.flatnonzero(table["skipped"].is_null().to_numpy())
    rows = table.take(pa.array(usable))
    return RequestRows(
        identity={"file": table["__file"], "row": table["__row"]},
        usable=usable,
        lengths=rows["length"].to_numpy(),
        reader=RowReader(np.arange(len(rows)), rows, inputs, {}),
        context={"steps": _raw_steps(rows)},
        skipped=table["skipped"],
        cut=int(np.count_nonzero(rows[CUT].to_numpy())) if CUT in rows.column_names else 0,
    )


def _raw_steps(table: pa.Table) -> list[list[int]]:
    """The stored steps of each row that are steps of the raw row: all of them, or of a word's tokens the first."""
    if STEP not in table.column_names:
        return [list(range(length)) for length in table["length"].to_pylist()]
    return [[i for i, step in enumerate(steps) if step >= 0] for steps in table[STEP].to_pylist()]


class _Windows:
    """Rows of equal length in memory: each input (R, steps, channels)."""

    def __init__(self, inputs: dict[str, NDArray[np.float32]]) -> None:
        self.inputs = inputs

    def read(self, ids: Ids) -> Fields:
        values = self.inputs["values"]
        return {
            "inputs": {name: array[ids] for name, array in self.inputs.items()},
            "targets": {},
            "lengths": {"values": np.full(ids.size, values.shape[1], np.int64)},
        }


def series_rows(
    requests: Sequence[Request], lookback: int, horizon: int, *, targets: int, column: str | None
) -> RequestRows:
    """A row for each series: its last steps, and what is known of the horizon after them.

    Args:
        requests: of series with at least `lookback` steps.
        lookback, horizon: steps that the model reads and forecasts.
        targets: columns that are forecast, N.
        column: the name of the column of series; None where there is one series without a name.
    """
    futures = [known_future(request, horizon) for request in requests]
    inputs = {"values": np.stack([request.values[-lookback:] for request in requests])}
    known = np.stack([channels for channels, _ in futures])  # (R, Z, K)
    if known.shape[2]:
        inputs["known"] = known
    return RequestRows(
        identity={} if column is None else {column: pa.array([request.series for request in requests])},
        usable=np.arange(len(requests)),
        lengths=np.full(len(requests), lookback),
        reader=_Windows(inputs),
        context={
            "times": [times for _, times in futures],
            "mean": [request.mean[:targets] for request in requests],
            "std": [request.std[:targets] for request in requests],
        },
        batch_rows=SERIES_ROWS,
    )
