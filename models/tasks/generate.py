"""Generate: each step of a sequence from the ones before it. Shapes: B rows, T steps, V tokens or notes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import sampling as sample
from models.batch import Batch
from models.families import step_mask
from models.options import check_least, check_share
from models.sampling import Sampling
from models.sequence import SequenceModel, Sums, Task, full, mean
from models.writing import BEGIN, END, PADDING, UNKNOWN, Writer, characters

READS = ("tokens", "notes")
SILENT = -3.0               # where each note's score begins: most do not sound
CAUSAL = True               # an encoder that saw later steps would know the answer


class Generate(Task):
    """A linear layer on every step tells the next one: one token of V, or which of V notes sound, each by itself.

    Metrics: ``loss``, the negative log likelihood of a step in nats (of music that of all its notes together). Of text
    also ``perplexity``, its exponential, and for bytes, byte pairs and characters ``bits_per_character``: the sum over
    all tokens and ends of texts by the characters that they stand for.
    """

    primary = "loss"

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float,
                 window: int | None) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        if window is not None:
            check_least("task.window", window, 1)
        if not encoder["causal"]:
            raise ValueError("task.kind='generate' tells each step from the ones before it, but this encoder sees "
                             "later ones, too; use model.bidirectional=false or model.causal=null")
        if encoder["changes_steps"]:
            raise ValueError(f"task.kind='generate' tells every step of a row, but {encoder['changes_steps']}")
        self.music = "notes" in spec
        self.window = window
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder["size"], spec["notes" if self.music else "vocabulary"])
        if self.music:
            nn.init.constant_(self.head.bias, SILENT)
        self.writer = None if self.music or spec["tokenizer"] is None else Writer(spec["tokenizer"])
        sizes = None if self.music or spec["tokenizer"] is None else characters(spec["tokenizer"])
        self.register_buffer("characters", None if sizes is None else torch.tensor(sizes), persistent=False)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, T, V) in at least fp32, before the softmax over tokens, or the sigmoid of each note."""
        return full(self.head(self.dropout(model.encode(batch).y)))

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Steps, by the weights of their rows."""
        lengths = next(iter(batch.lengths.values())).to(batch.weights.device)
        return (lengths * batch.weights).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x negative log likelihood, sum over rows of weight x steps)."""
        return self._loss(model, batch), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        sums = {"loss": mean(self._loss(model, batch), self.weight(model, batch))}
        if isinstance(self.characters, Tensor):
            told = batch.targets["next"]
            written = (self.characters[told] * self._mask(batch)).sum(1)
            sums["characters"] = mean((written * batch.weights).sum(), batch.weights.sum())
        return sums

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().result({"loss": sums["loss"]})
        if not self.music:
            found["perplexity"] = math.exp(min(found["loss"], 700.0))
        if "characters" in sums:
            found["bits_per_character"] = float(sums["loss"][0] / sums["characters"][0] / math.log(2))
        return found

    def go_on(self, model: SequenceModel, start: Tensor, length: int, *, sampling: Sampling, keys: Tensor) -> Tensor:
        """What comes after the beginning of each row.

        A family that carries a state reads each step once; another one reads its last `window` steps again for each.

        Args:
            model: that this is the task of, in evaluation.
            start: (B, T) tokens, the first of them BEGIN, or (B, T, N) notes.
            length: most steps to add.
            sampling: how each is drawn.
            keys: (B,) of the rows.

        Returns:
            (B, U) tokens, U <= length; after the end of a text all are END. Or (B, length, N) notes.
        """
        read, state, ended = start, None, torch.zeros(len(start), dtype=torch.bool, device=start.device)
        out: list[Tensor] = []
        for step in range(length):
            if not model.family.carries:
                read = torch.cat([start, *out], 1)
                read = read[:, -self.window:] if self.window else read
            encoded = model.encode(self._to_read(read), state)
            scores = full(self.head(encoded.y[:, -1]))
            if self.music:
                read = sample.notes(scores, sampling, keys, step)[:, None].to(start.dtype)
            else:
                scores[:, [PADDING, UNKNOWN, BEGIN]] = -torch.inf
                chosen = sample.token(scores, sampling, keys, step).masked_fill(ended, END)
                ended = ended | (chosen == END)
                read = chosen[:, None].to(start.dtype)
            state = encoded.state
            out.append(read)
            if bool(ended.all()):
                break
        return torch.cat(out, 1)

    def _to_read(self, steps: Tensor) -> Batch:
        rows, name = len(steps), "values" if self.music else "tokens"
        return Batch({name: steps}, {name: torch.full((rows,), steps.shape[1])}, {}, steps.new_ones(rows),
                     torch.arange(rows))

    def _mask(self, batch: Batch) -> Tensor:
        """(B, T) True where a step is told."""
        return step_mask(batch.targets["next"], next(iter(batch.lengths.values())))

    def _loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        out, told = self.outputs(model, batch), batch.targets["next"]
        if self.music:
            each = F.binary_cross_entropy_with_logits(out, told.to(out.dtype), reduction="none").sum(-1)
        else:
            each = F.cross_entropy(out.flatten(0, 1), told.flatten(), reduction="none").reshape(told.shape)
        return (each.masked_fill(~self._mask(batch), 0).sum(1) * batch.weights).sum()


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float = 0.0,
          window: int | None = None) -> Task:
    """Go on with a text or with music: tell each step from the ones before it.

    Args:
        dropout: probability that an input of the head is dropped.
        window: steps that are read at a time. rnn, lstm and gru go on from where the window before left their state,
            through which no gradient goes back (truncated back-propagation through time); a batch has
            training.batch_size lanes, each a place in the documents. The transformer sees one window only. null reads
            whole texts and pieces; of the transformer, `predict` then reads all again for each step that it adds.

    Raises:
        ValueError: an option is out of its range, or the encoder sees later steps.
    """
    return Generate(spec, encoder, dropout=dropout, window=window)
