"""Random sequences and a number to tell from each; made from a seed, with a known best result."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from datasets.views import RowView

if TYPE_CHECKING:
    import ray.data

    from datasets.files import Source
    from datasets.prepare import Prepared

FADE = 0.8                                    # weight of a step, relative to the step after it
NOISE = 0.1                                   # standard deviation of what cannot be told from the sequence
SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
TASK_ROWS = 4096                              # made by one task


def build(*, rows: int = 4000, shortest: int = 10, longest: int = 20, seed: int = 0) -> RandomSequences:
    """Sequences of standard normal numbers; the target is their fading sum plus noise.

    With x_1 .. x_T the target is the sum over k of 0.8^k x_{T-k}, plus noise of standard deviation 0.1, so that the
    best mean squared error is 0.01.

    Args:
        rows: sequences in all; 80 % for training, 10 % for validation, 10 % for the test.
        shortest: least steps of a sequence.
        longest: most steps of a sequence.
        seed: another seed, other data.

    Raises:
        ValueError: an option is out of its range.
    """
    if seed < 0:
        raise ValueError(f"dataset.seed={seed} is too small; use at least 0")
    if rows < 10:
        raise ValueError(f"dataset.rows={rows} is too small; use at least 10")
    if not 1 <= shortest <= longest:
        raise ValueError(f"dataset.shortest={shortest} and dataset.longest={longest}; use 1 <= shortest <= longest")
    return RandomSequences(rows, shortest, longest, seed)


@dataclass(frozen=True)
class RandomSequences:
    """See ``build``."""

    rows: int
    shortest: int
    longest: int
    seed: int
    kind: ClassVar[str] = "random_sequences"
    offers: ClassVar[tuple[str, ...]] = ("numbers",)
    frontend: ClassVar[str] = "frames"

    def sources(self) -> list[Source]:
        """None: the options say everything."""
        return []

    def options(self) -> dict[str, Any]:
        return asdict(self)

    def encode(self) -> dict[str, ray.data.Dataset]:
        """Stored rows by split: ``length``, ``values`` (length,), ``numbers`` (1,), ``summary``."""
        import ray.data

        def part(split: str, number: int) -> ray.data.Dataset:
            count = max(1, round(self.rows * SHARES[split]))
            items = [{"start": start, "count": min(TASK_ROWS, count - start)} for start in range(0, count, TASK_ROWS)]
            return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
                functools.partial(_make, self, split, number), batch_size=None, batch_format="pyarrow")

        return {split: part(split, number) for number, split in enumerate(SHARES)}

    def state(self, summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Mean and deviation of the training rows' targets, and the best reachable error."""
        training = [s for s in summaries if s["split"] == "train"]
        rows, total, squares = (sum(s[k] for s in training) for k in ("rows", "sum", "squares"))
        return {"mean": total / rows, "std": (squares / rows - (total / rows) ** 2) ** 0.5,
                "best": {"mse": NOISE ** 2, "mae": NOISE * (2 / np.pi) ** 0.5}}

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        """One channel, one target."""
        told = {"mean": None, "std": None} if state is None else {k: [state[k]] for k in ("mean", "std")}
        return {"frontend": self.frontend, "channels": 1, "targets": 1, **told}

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> RowView:
        return RowView(prepared.parts[split], {"values": 1}, {"numbers": "row"})


def _make(dataset: RandomSequences, split: str, number: int, batch: pa.Table) -> Iterator[pa.Table]:
    for start, count in zip(batch["start"].to_pylist(), batch["count"].to_pylist(), strict=True):
        rng = np.random.default_rng([dataset.seed, number, start])
        lengths = rng.integers(dataset.shortest, dataset.longest + 1, count)
        values = rng.normal(size=(count, dataset.longest))
        back = lengths[:, None] - 1 - np.arange(dataset.longest)                  # steps from the end; negative: none
        weights = np.where(back >= 0, FADE ** np.maximum(back, 0), 0.0)
        target = (values * weights).sum(1) + rng.normal(scale=NOISE, size=count)
        summary = json.dumps({"split": split, "rows": count, "sum": float(target.sum()),
                              "squares": float(np.square(target).sum())})
        flat = values[back >= 0].astype(np.float32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        yield pa.table({"length": pa.array(lengths.astype(np.int32)),
                        "values": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
                        "numbers": pa.FixedSizeListArray.from_arrays(pa.array(target.astype(np.float32)), 1),
                        "summary": [summary] + [""] * (count - 1)})
