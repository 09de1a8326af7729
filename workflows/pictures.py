"""Pictures of a run: learning curve, predictions. Files are PNG; colours are safe for colour-blind readers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.storage import Storage
from workflows.experiment import Experiment, dataset_of, task_of

if TYPE_CHECKING:
    from datasets.prepare import Prepared

MOST_CLASSES = 60           # that a picture can show
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"      # of the palette of Okabe & Ito (2008)


def learning_curve(history: list[dict[str, float]], primary: str, best_step: int, file: Path) -> None:
    """Loss on training and validation rows, and below the validation metric that decides, by epoch."""
    figure, (loss, judged) = _figure(7, 5.5, rows=2)
    epochs = [h["epoch"] + 1 for h in history]
    metric = [h[f"validation/{primary}"] for h in history]
    loss.plot(epochs, [h["train/loss"] for h in history], "o-", color=GREY, label="train/loss (while it learns)")
    loss.plot(epochs, [h["validation/loss"] for h in history], "o-", color=BLUE, label="validation/loss")
    judged.plot(epochs, metric, "o-", color=BLUE, label=f"validation/{primary}")
    best = next(i for i, h in enumerate(history) if h["step"] == best_step)
    judged.plot(epochs[best], metric[best], "o", color=ORANGE, markersize=11, fillstyle="none", label="best, kept")
    judged.set(xlabel="epoch")
    for axis in (loss, judged):
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=9)
    loss.set_title("Learning curve", fontsize=9, loc="left")
    _save(figure, file)


def predictions(experiment: Experiment, prepared: Prepared, run: Storage, folder: Path) -> None:
    """What there is to see of the last split: a few forecasts or texts, or which classes are taken for which."""
    if experiment.task["kind"] == "forecast":
        forecasts(experiment, prepared, run, folder / "forecasts.png")
    if experiment.task["kind"] == "transcribe":
        transcripts(experiment, prepared, run, folder / "transcripts.png")
    if experiment.task["kind"] == "translate":
        translations(experiment, prepared, run, folder / "translations.png")
    artifacts = json.loads(run.read("artifacts.json"))
    draws = {"confusion": confusion, "decisions": decisions}
    for artifact in artifacts:
        if artifact["kind"] in draws:
            dataset: Any = dataset_of(experiment)
            names = dataset.names(prepared.state, task_of(experiment, dataset)["target"])
            if len(names) <= MOST_CLASSES:
                draws[artifact["kind"]](artifact["arrays"], names, artifact["split"], folder / "confusion.png")


def confusion(arrays: dict[str, Any], classes: list[str], split: str, file: Path) -> None:
    """A confusion matrix: counts, coloured by the share of each true class."""
    matrix = np.array(arrays["matrix"])
    side = 2.2 + 0.45 * len(classes)
    figure, (axis,) = _figure(side + 1, side, rows=1)
    share = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 20:
        for i, j in np.ndindex(*matrix.shape):
            axis.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=7,
                      color="white" if share[i, j] > 0.5 else "black")
    axis.set_xticks(range(len(classes)), classes, rotation=90, fontsize=8)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set(xlabel="predicted", ylabel="true")
    right = int(matrix.trace())
    axis.set_title(f"{split}: {right:,} of {matrix.sum():,} right", fontsize=9, loc="left")
    _save(figure, file)


def decisions(arrays: dict[str, Any], classes: list[str], split: str, file: Path) -> None:
    """Precision and recall of each class, where any number of classes is right."""
    right, false, missed = (np.array(arrays[f"{k}"]) for k in ("true_positive", "false_positive", "false_negative"))
    figure, (axis,) = _figure(7, 1.2 + 0.3 * len(classes), rows=1)
    places = np.arange(len(classes))
    axis.barh(places - 0.2, right / np.maximum(1, right + false), height=0.38, color=BLUE, label="precision")
    axis.barh(places + 0.2, right / np.maximum(1, right + missed), height=0.38, color=ORANGE, label="recall")
    axis.set_yticks(places, [f"{name} ({n:,})" for name, n in zip(classes, right + missed, strict=True)], fontsize=8)
    axis.set_xlim(0, 1)
    axis.invert_yaxis()
    axis.set_title(f"{split}, each class and how often it is true", fontsize=9, loc="left")
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    _save(figure, file)


def forecasts(experiment: Experiment, prepared: Prepared, run: Storage, file: Path) -> None:
    """History, truth and forecast of some windows of the last split, in raw units, with the interval."""
    import torch

    model, split, batches = _some_rows(experiment, prepared, run)
    figure, axes = _figure(9, 2.6 * len(batches), rows=len(batches))
    levels = sorted(experiment.task["quantiles"])
    interval = f"{100 * (levels[-1] - levels[0]):.0f} % interval"
    for number, (axis, batch) in enumerate(zip(axes, batches, strict=True)):
        with torch.inference_mode():
            out = model.task.predict(model, batch)["quantiles"][0].float().numpy()             # (Z, N, Q)
        target = 0
        scale = [float(batch.targets[k][0, target]) for k in ("std", "mean")]
        history = batch.inputs["values"][0, :, target].float().numpy() * scale[0] + scale[1]
        truth = batch.targets["target"][0, :, target].float().numpy() * scale[0] + scale[1]
        out = out[:, target] * scale[0] + scale[1]
        horizon = len(truth)
        back = min(len(history), 3 * horizon)
        ahead = np.arange(horizon)
        axis.plot(np.arange(-back, 0), history[-back:], color=GREY, linewidth=1, label="history")
        axis.plot(ahead, truth, color="black", linewidth=1, label="truth")
        axis.plot(ahead, out[:, out.shape[1] // 2], color=ORANGE, linewidth=1.6, label="forecast")
        if out.shape[1] > 1:
            axis.fill_between(ahead, out[:, 0], out[:, -1], color=ORANGE, alpha=0.25, linewidth=0, label=interval)
        name = prepared.state["series"][int(batch.targets["series"][0])]["name"]
        column = prepared.state["channels"]["targets"][target]
        axis.set_title(f"{split}, {f'series {name}, ' if name else ''}{column}", fontsize=9, loc="left")
        if number == 0:
            figure.legend(*axis.get_legend_handles_labels(), frameon=False, ncols=4, fontsize=9,
                          loc="outside upper right")
    axes[-1].set_xlabel("steps from the start of the forecast")
    _save(figure, file)


def transcripts(experiment: Experiment, prepared: Prepared, run: Storage, file: Path) -> None:
    """The frames of some rows of the last split, and at which of them each token was heard."""
    import torch

    from models.ctc import BLANK

    model, split, batches = _some_rows(experiment, prepared, run)
    figure, axes = _figure(9, 2.6 * len(batches), rows=len(batches))
    for axis, batch in zip(axes, batches, strict=True):
        with torch.inference_mode():
            x = model.frontend(batch)[0][0].float().numpy()                                    # (T, F)
            scores, encoded = model.task.scores(model, batch)
            written = model.task.writer(model.task.decode(scores, encoded.lengths))[0]
        best = scores[0].argmax(-1).numpy()
        axis.imshow(x.T, aspect="auto", origin="lower", cmap="Greys", interpolation="nearest")
        for step in np.flatnonzero((best != BLANK) & (np.diff(best, prepend=BLANK) != 0)):
            token = model.task.writer([[int(best[step])]])[0]
            axis.axvline(step, color=ORANGE, linewidth=0.6)
            axis.text(step, x.shape[1], token if token.strip() else "\u2423", color=ORANGE, fontsize=7, ha="center",
                      va="bottom")
        right = model.task.writer(batch.targets["target"].tolist())[0]
        axis.set_title(f"{split}, right: {right}\nwritten: {written}\n", fontsize=8, loc="left")
        axis.set_yticks([])
    axes[-1].set_xlabel("steps, and where each token is heard")
    _save(figure, file)


def translations(experiment: Experiment, prepared: Prepared, run: Storage, file: Path) -> None:
    """To which tokens of some rows of the last split each written token attends."""
    import torch

    from models.batch import Batch
    from models.writing import Writer

    model, split, batches = _some_rows(experiment, prepared, run)
    reader = Writer(prepared.state["fitted"]["tokenizer"]) if "tokens" in batches[0].inputs else None
    drawn = []
    for batch in batches:
        with torch.inference_mode():
            found = model.task.decode(model, batch)
            seen: Batch = replace(batch, targets={"target": torch.tensor(found, dtype=torch.int64)})
            attention = model.task.scores(model, seen)[1][0].float().numpy()                  # (U + 1, S)
        drawn.append((batch, found[0], attention))
    heights = [1.4 + 0.17 * len(attention) for _, _, attention in drawn]
    figure, axes = _figure(9, sum(heights), rows=len(drawn), heights=heights)
    for axis, (batch, tokens, attention) in zip(axes, drawn, strict=True):
        axis.imshow(attention, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        if reader is not None:
            names = reader.pieces(batch.inputs["tokens"][0].tolist())
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
        axis.set_yticks(range(len(tokens) + 1), [*model.task.writer.pieces(tokens), "(end)"], fontsize=7)
        right = model.task.writer(batch.targets["target"].tolist())[0]
        axis.set_title(f"{split}, right: {right}\nwritten: {model.task.writer([tokens])[0]}", fontsize=8, loc="left")
    _save(figure, file)


def _some_rows(experiment: Experiment, prepared: Prepared, run: Storage, *,
               count: int = 3) -> tuple[Any, str, list[Any]]:
    """The run's model, and `count` rows spread over the last split, whose name stands between, as a batch each."""
    import torch

    from models.batch import Batch
    from workflows import bundle

    there = prepared.parts if "series" not in prepared.state else prepared.state["series"][0]["bounds"]
    split = "test" if "test" in there else "validation"
    dataset: Any = dataset_of(experiment)
    view = dataset.view(prepared, split, task_of(experiment, dataset))
    ids = np.unique(np.linspace(0, int(view.rows.sum()) - 1, count).astype(np.int64))
    model: Any = bundle.load(run, "bundle").model
    dtype = next(model.parameters()).dtype
    batches = []
    for fields in _rows(view, prepared, ids):
        told = {k: {n: torch.from_numpy(np.ascontiguousarray(a)) for n, a in v.items()} for k, v in fields.items()}
        inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in told["inputs"].items()}
        batches.append(Batch(inputs, told["lengths"], told["targets"], torch.ones(1),
                             torch.zeros(1, dtype=torch.int64)))
    return model, split, batches


def _rows(view: Any, prepared: Prepared, ids: Any) -> list[Any]:
    """The fields of single rows, read from their shards."""
    from datasets.prepare import read_rows
    found = []
    for one in ids:
        shard = int(np.searchsorted(np.cumsum(view.rows), one, side="right"))
        stored = view.needs(np.array([shard]))
        number = view.part.shard_of[stored]
        kept = [(int(s), stored[number == s] - view.part.first[s]) for s in np.unique(number)]
        table = read_rows(prepared.storage, [view.part.shards[s] for s, _ in kept], [p for _, p in kept])
        found.append(view.open(stored, table).take(np.array([one])))
    return found


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
