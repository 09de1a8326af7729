"""Pictures of a run: learning curve, predictions. Files are PNG; colours are safe for colour-blind readers.

What there is to draw comes from the task as plain data (``Artifact``): ``DRAWINGS`` has a function for each kind of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from datasets.pipeline.prepared import read_rows
from datasets.pipeline.storage import Storage
from datasets.pipeline.views import Fields
from models.batch import Batch
from models.texts import Detokenizer
from workflows.config.experiment import Experiment
from workflows.training import bundle

if TYPE_CHECKING:
    from datasets.pipeline.prepared import Prepared

Arrays = Mapping[str, list[Any]]  # of an artifact
MAX_CLASSES = 60  # that a picture can show
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # of the palette of Okabe & Ito (2008)


def learning_curve(history: list[dict[str, float]], primary: str, best_step: int, file: Path) -> None:
    """Loss on training and validation rows by epoch, and below it the primary metric on validation rows."""
    figure, (loss, primary_axis) = _figure(7, 5.5, rows=2)
    epochs = [h["epoch"] + 1 for h in history]
    metric = [h[f"validation/{primary}"] for h in history]
    loss.plot(epochs, [h["train/loss"] for h in history], "o-", color=GREY, label="train/loss (while it learns)")
    loss.plot(epochs, [h["validation/loss"] for h in history], "o-", color=BLUE, label="validation/loss")
    primary_axis.plot(epochs, metric, "o-", color=BLUE, label=f"validation/{primary}")
    best = next(i for i, h in enumerate(history) if h["step"] == best_step)
    label = "best, kept"
    primary_axis.plot(epochs[best], metric[best], "o", color=ORANGE, markersize=11, fillstyle="none", label=label)
    primary_axis.set(xlabel="epoch")
    for axis in (loss, primary_axis):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=9)
    loss.set_title("Learning curve", fontsize=9, loc="left")
    _save(figure, file)


@dataclass(frozen=True)
class Labels:
    """Names in pictures that come from the dataset, not from the task.

    Attributes:
        split: of the rows.
        names: of the classes or of the columns of numbers, in the order of their indices.
        series: names of the series, in the order of their indices; empty for other data.
        input_tokens: names the tokens of the input; None if the input is not text.
    """

    split: str
    names: list[str]
    series: list[str]
    input_tokens: Detokenizer | None


def predictions(experiment: Experiment, prepared: Prepared, run: Storage, folder: Path) -> None:
    """Draw the last split: examples of predictions, and the data that came with the metrics (artifacts.json)."""
    task = experiment.resolved_task
    splits = prepared.parts if "series" not in prepared.state else prepared.state["series"][0]["bounds"]
    split = "test" if "test" in splits else "validation"
    model = bundle.load(run, "bundle").model
    dtype = next(model.parameters()).dtype
    rows = (Batch.from_arrays(row, dtype) for row in _some_rows(experiment, prepared, split))
    with torch.inference_mode():
        examples = model.task.examples(model, rows)
    for artifact in examples:
        known = ", ".join(DRAWINGS)
        assert artifact.kind in DRAWINGS, f"a task's example of kind {artifact.kind!r} cannot be drawn; known: {known}"
    artifacts = [{"split": split, **asdict(artifact)} for artifact in examples]
    artifacts += [artifact for artifact in json.loads(run.read("artifacts.json")) if artifact["kind"] in DRAWINGS]
    tokenizer = prepared.state.get("fitted", {}).get("tokenizer")
    for drawn in artifacts:
        labels = Labels(
            drawn["split"],
            experiment.raw_dataset.names(prepared.state, task["target"]),
            [series["name"] for series in prepared.state.get("series", [])],
            None if tokenizer is None else Detokenizer(tokenizer),
        )
        draw, name = DRAWINGS[drawn["kind"]]
        draw(drawn["arrays"], labels, folder / name)


def confusion(arrays: Arrays, labels: Labels, file: Path) -> None:
    """A confusion matrix: counts, coloured by the share of each true class; none of more than MAX_CLASSES."""
    matrix, classes = np.array(arrays["matrix"]), labels.names
    if len(classes) > MAX_CLASSES:
        return
    side = 2.2 + 0.45 * len(classes)
    figure, (axis,) = _figure(side + 1, side, rows=1)
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for i, j in np.ndindex(*matrix.shape):
            axis.text(
                j,
                i,
                str(matrix[i, j]),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if share[i, j] > 0.5 else "black",
            )
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    correct = int(matrix.trace())
    axis.set_title(f"{labels.split}: {correct:,} of {matrix.sum():,} right", fontsize=9, loc="left")
    _save(figure, file)


def decisions(arrays: Arrays, labels: Labels, file: Path) -> None:
    """Precision and recall of each class, if rows may have several; none of more than MAX_CLASSES."""
    classes = labels.names
    if len(classes) > MAX_CLASSES:
        return
    correct, false, missed = (np.array(arrays[k]) for k in ("true_positive", "false_positive", "false_negative"))
    figure, (axis,) = _figure(7, 1.2 + 0.3 * len(classes), rows=1)
    bars = np.arange(len(classes))
    axis.barh(bars - 0.2, correct / np.maximum(1, correct + false), height=0.38, color=BLUE, label="precision")
    axis.barh(bars + 0.2, correct / np.maximum(1, correct + missed), height=0.38, color=ORANGE, label="recall")
    axis.set_yticks(bars, [f"{name} ({n:,})" for name, n in zip(classes, correct + missed, strict=True)], fontsize=8)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.set_title(f"{labels.split}, each class and how often it is true", fontsize=9, loc="left")
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, file)


def forecasts(arrays: Arrays, labels: Labels, file: Path) -> None:
    """History, truth and forecast of some windows, in raw units, with the interval."""
    count = len(arrays["forecast"])
    figure, axes = _figure(9, 2.6 * count, rows=count)
    for number, axis in enumerate(axes):
        row = {name: values[number] for name, values in arrays.items()}
        ahead = np.arange(len(row["truth"]))
        axis.plot(np.arange(-len(row["history"]), 0), row["history"], color=GREY, linewidth=1, label="history")
        axis.plot(ahead, row["truth"], color="black", linewidth=1, label="truth")
        axis.plot(ahead, row["forecast"], color=ORANGE, linewidth=1.6, label="forecast")
        if "low" in row:
            interval = f"{100 * row['probability']:.0f} % interval"
            axis.fill_between(ahead, row["low"], row["high"], color=ORANGE, alpha=0.25, linewidth=0, label=interval)
        series = labels.series[row["series"]] if labels.series else ""
        words = [labels.split, *([f"series {series}"] if series else []), *labels.names[:1]]
        axis.set_title(", ".join(words), fontsize=9, loc="left")
        if number == 0:
            figure.legend(
                *axis.get_legend_handles_labels(), frameon=False, ncols=4, fontsize=9, loc="outside upper right"
            )
    axes[-1].set_xlabel("steps from the start of the forecast")
    _save(figure, file)


def transcripts(arrays: Arrays, labels: Labels, file: Path) -> None:
    """The frames of some rows, and the frames at which each token was recognised."""
    count = len(arrays["frames"])
    figure, axes = _figure(9, 2.6 * count, rows=count)
    for number, axis in enumerate(axes):
        row = {name: values[number] for name, values in arrays.items()}
        frames = np.array(row["frames"], np.float32)  # (T, F)
        axis.imshow(frames.T, aspect="auto", origin="lower", cmap="Greys", interpolation="nearest")
        for step, token in zip(row["steps"], row["tokens"], strict=True):
            axis.axvline(step, color=ORANGE, linewidth=0.6)
            axis.text(
                step,
                frames.shape[1],
                token if token.strip() else "\u2423",
                color=ORANGE,
                fontsize=7,
                ha="center",
                va="bottom",
            )
        title = f"{labels.split}, right: {row['reference']}\nwritten: {row['predicted']}\n"
        axis.set_title(title, fontsize=8, loc="left")
        axis.set_yticks([])
    axes[-1].set_xlabel("steps, and where each token is heard")
    _save(figure, file)


def attention(arrays: Arrays, labels: Labels, file: Path) -> None:
    """The attention of each predicted token to the tokens of its row."""
    heights = [1.4 + 0.17 * len(matrix) for matrix in arrays["matrix"]]
    figure, axes = _figure(9, sum(heights), rows=len(heights), heights=heights)
    for number, axis in enumerate(axes):
        row = {name: values[number] for name, values in arrays.items()}
        axis.imshow(
            np.array(row["matrix"], np.float32), aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest"
        )
        if "source" in row and labels.input_tokens is not None:
            names = labels.input_tokens.pieces(row["source"])
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(row["tokens"]) + 1), [*row["tokens"], "(end)"], fontsize=7)
        axis.set_title(
            f"{labels.split}, right: {row['reference']}\nwritten: {row['predicted']}", fontsize=8, loc="left"
        )
    _save(figure, file)


DRAWINGS: dict[str, tuple[Callable[[Arrays, Labels, Path], None], str]] = {  # kind of artifact -> (drawing, file name)
    "forecast": (forecasts, "forecasts.png"),
    "transcript": (transcripts, "transcripts.png"),
    "attention": (attention, "translations.png"),
    "confusion": (confusion, "confusion.png"),
    "decisions": (decisions, "confusion.png"),
}


def _some_rows(experiment: Experiment, prepared: Prepared, split: str, *, count: int = 3) -> Iterator[Fields]:
    """The fields of `count` rows at equal distances in a split, each read from its shard."""
    view = experiment.raw_dataset.view(prepared, split, experiment.resolved_task)
    for row in np.unique(np.linspace(0, int(view.rows.sum()) - 1, count).astype(np.int64)):
        shard = int(np.searchsorted(np.cumsum(view.rows), row, side="right"))
        stored = view.stored_rows(np.array([shard]))
        number = view.part.shard_of[stored]
        wanted = {int(s): stored[number == s] - view.part.first[s] for s in np.unique(number)}  # by shard
        table = read_rows(prepared.storage, [view.part.shards[s] for s in wanted], list(wanted.values()))
        yield view.reader(stored, table).read(np.array([row]))


def _figure(width: float, height: float, *, rows: int, heights: list[float] | None = None) -> Any:
    """A figure and its axes, one below the other; without pyplot, whose state is that of the whole process."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, file: Path) -> None:
    """Write a PNG. A name with a "$" in it is a name, no formula."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.savefig(file, format="png")
