"""Generate: each step of a sequence from the previous ones. Shapes: B rows, T steps, V tokens or notes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import sampling as sample
from models.batch import Batch
from models.family import step_mask
from models.generation import GenerativeTask
from models.options import check_least, check_share
from models.sampling import Sampling
from models.sequence import Columns, SequenceModel, Sums, Task, full, mean
from models.special_tokens import BEGIN, END, PADDING, UNKNOWN
from models.texts import Detokenizer, characters_per_token

TARGETS = ("tokens", "notes")
SILENT = -3.0  # initial score of each note: most notes do not sound
CAUSAL = True  # an encoder that saw later steps would see the target


class Generate(GenerativeTask):
    """A linear layer on every step predicts the next one: one of V tokens, or independently for V notes whether they
    sound.

    Metrics: ``loss``, the negative log likelihood of a step in nats (for music, of all its notes). For text also
    ``perplexity``, its exponential, and with tokens of bytes, byte pairs or characters ``bits_per_character``: the sum
    over all tokens and ends of texts, divided by the number of characters.
    """

    primary = "loss"

    def __init__(
        self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float, window: int | None
    ) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        if window is not None:
            check_least("task.window", window, 1)
        if not encoder["causal"]:
            raise ValueError(
                "task.kind='generate' predicts each step from the previous ones, but this encoder also sees "
                "later ones; use model.bidirectional=false or model.causal=null"
            )
        if encoder["changes_steps"]:
            raise ValueError(f"task.kind='generate' predicts every step of a row, but {encoder['changes_steps']}")
        self.music = "notes" in spec
        self.output = "notes" if self.music else "text"
        self.window = window
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder["size"], spec["notes" if self.music else "vocabulary"])
        if self.music:
            nn.init.constant_(self.head.bias, SILENT)
        self.detokenizer = None if self.music or spec["tokenizer"] is None else Detokenizer(spec["tokenizer"])
        counts = None if self.music or spec["tokenizer"] is None else characters_per_token(spec["tokenizer"])
        self.register_buffer("characters", None if counts is None else torch.tensor(counts), persistent=False)

    def outputs(self, model: SequenceModel, batch: Batch) -> Tensor:
        """(B, T, V) in at least float32, before the softmax over tokens, or the sigmoid of each note."""
        return full(self.head(self.dropout(model.encode(batch).y)))

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """The sum over rows of weight x steps."""
        lengths = next(iter(batch.lengths.values())).to(batch.weights.device)
        return (lengths * batch.weights).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x negative log likelihood, sum over rows of weight x steps)."""
        return self._loss(model, batch), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        sums = {"loss": mean(self._loss(model, batch), self.weight(model, batch))}
        if isinstance(self.characters, Tensor):
            characters = (self.characters[batch.targets["next"]] * self._mask(batch)).sum(1)  # (B,)
            sums["characters"] = mean((characters * batch.weights).sum(), batch.weights.sum())
        return sums

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        metrics = super().result({"loss": sums["loss"]})
        if not self.music:
            metrics["perplexity"] = math.exp(min(metrics["loss"], 700.0))
        if "characters" in sums:
            metrics["bits_per_character"] = float(sums["loss"][0] / sums["characters"][0] / math.log(2))
        return metrics

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """text, or notes: the names of the notes that sound in each step."""
        if self.music:
            rolls = predictions["steps"].bool().tolist()
            return {
                "notes": [[[n for n, on in zip(names, step, strict=True) if on] for step in roll] for roll in rolls]
            }
        assert self.detokenizer is not None
        return {"text": self.detokenizer(predictions["steps"].tolist())}

    def prompt(self, inputs: Mapping[str, Tensor], steps: int | None) -> Tensor:
        """(B, T) tokens, the first of them BEGIN, or (B, T, N) notes."""
        if self.music:
            return inputs["values"][:, :steps].to(self.head.weight.dtype)
        return F.pad(inputs["tokens"][:, :steps], (1, 0), value=BEGIN)

    def check_sampling(self, sampling: Sampling) -> None:
        if self.music and sampling.top_p < 1:
            raise ValueError(
                "--top-p is for tokens; of notes, each is drawn by itself: use --top-k, as many as may sound"
            )

    def generate(self, model: SequenceModel, start: Tensor, length: int, *, sampling: Sampling, keys: Tensor) -> Tensor:
        """The steps after the beginning of each row; see ``GenerativeTask``.

        A family with a state reads each step once; one without reads the last `window` steps again for every new step.

        Returns:
            (B, U) tokens, U <= length, all END after the end of a text; or (B, length, N) notes.
        """
        inputs, state, has_ended = start, None, torch.zeros(len(start), dtype=torch.bool, device=start.device)
        out: list[Tensor] = []
        for step in range(length):
            if not model.family.stateful:
                inputs = torch.cat([start, *out], 1)
                inputs = inputs[:, -self.window :] if self.window else inputs
            encoded = model.encode(self._batch(inputs), state)
            scores = full(self.head(encoded.y[:, -1]))
            if self.music:
                inputs = sample.notes(scores, sampling, keys, step)[:, None].to(start.dtype)
            else:
                scores[:, [PADDING, UNKNOWN, BEGIN]] = -torch.inf
                tokens = sample.token(scores, sampling, keys, step).masked_fill(has_ended, END)
                has_ended = has_ended | (tokens == END)
                inputs = tokens[:, None].to(start.dtype)
            state = encoded.state
            out.append(inputs)
            if bool(has_ended.all()):
                break
        return torch.cat(out, 1)

    def _batch(self, steps: Tensor) -> Batch:
        rows, name = len(steps), "values" if self.music else "tokens"
        return Batch(
            {name: steps}, {name: torch.full((rows,), steps.shape[1])}, {}, steps.new_ones(rows), torch.arange(rows)
        )

    def _mask(self, batch: Batch) -> Tensor:
        """(B, T), True for steps that are not padding."""
        return step_mask(batch.targets["next"], next(iter(batch.lengths.values())))

    def _loss(self, model: SequenceModel, batch: Batch) -> Tensor:
        out, target = self.outputs(model, batch), batch.targets["next"]
        if self.music:
            each = F.binary_cross_entropy_with_logits(out, target.to(out.dtype), reduction="none").sum(-1)
        else:
            each = F.cross_entropy(out.flatten(0, 1), target.flatten(), reduction="none").reshape(target.shape)
        return (each.masked_fill(~self._mask(batch), 0).sum(1) * batch.weights).sum()


def build(
    spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float = 0.0, window: int | None = None
) -> Task:
    """Continue a text or a piece of music: predict each step from the previous ones.

    Args:
        dropout: probability that an input of the head is dropped.
        window: steps that are read at a time. rnn, lstm and gru continue from their state at the end of the previous
            window, without gradients through it (truncated back-propagation through time); a batch has
            training.batch_size lanes, each a position in the documents. The transformer sees one window only. null
            reads whole texts and pieces; with a transformer, `predict` then reads everything again for each new step.

    Raises:
        ValueError: an option is out of its range, or the encoder sees later steps.
    """
    return Generate(spec, encoder, dropout=dropout, window=window)
