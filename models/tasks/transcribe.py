"""Transcribe: sound, or frames made of it, to text. Shapes: B rows, T steps, V tokens, U tokens of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import ctc
from models.batch import Batch
from models.ngrams import NGrams
from models.options import check_least, check_share
from models.sequence import Columns, Encoded, SequenceModel, Sums, Task, full, mean
from models.writing import Writer, errors, padded

READS = ("target",)


class Transcribe(Task):
    """A linear layer over the tokens and the blank at every step, trained by CTC (Graves et al. 2006).

    The loss is the negative logarithm of the text's probability; its mean is by tokens of the right texts. A row whose
    text needs more steps than it has cannot be learnt: its weight is 0, and ``too_long`` counts such rows.

    Metrics: ``wer`` and ``cer``, the word and the character error rate (while training goes on, of the likeliest token
    of each step); ``loss``; ``too_long``, a share of the rows.
    """

    primary = "wer"

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float, beam: int,
                 language_weight: float, token_bonus: float) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        check_least("task.beam", beam, 1)
        if encoder["steps"] is not None:
            raise ValueError("task.kind='transcribe' reads sequences with steps of their own lengths, not windows")
        if not language_weight >= 0:
            raise ValueError(f"task.language_weight={language_weight} is too small; use at least 0")
        ordered = len(spec["ngrams"][0]) - 1 if spec["ngrams"] else 0
        if language_weight and (beam == 1 or not ordered):
            raise ValueError(f"task.language_weight={language_weight} needs a beam search (task.beam=8 or more) and "
                             "counts of the texts (dataset.target_ngrams=4 or so)")
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder["size"], spec["tokens"])
        self.beam, self.weight_of_language, self.token_bonus = beam, language_weight, token_bonus
        self.language = NGrams(spec["ngrams"], spec["tokens"]) if language_weight else None
        self.writer = None if spec["tokenizer"] is None else Writer(spec["tokenizer"])

    def scores(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Encoded]:
        """(log probabilities (B, T, V) in at least fp32, what the family gave)."""
        encoded = model.encode(batch)
        return full(self.head(self.dropout(encoded.y))).log_softmax(-1), encoded

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Tokens of the texts that fit their steps, by the weights of their rows."""
        return self._weight(batch, self._fits(batch, model.frontend.lengths(batch)))

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x negative log probability of the text, sum over rows of weight x tokens), both over
        the rows whose text fits their steps."""
        scores, encoded = self.scores(model, batch)
        fits = self._fits(batch, encoded.lengths)
        return self._loss(scores, encoded, batch, fits), self._weight(batch, fits)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        scores, encoded = self.scores(model, batch)
        fits = self._fits(batch, encoded.lengths)
        total = self._loss(scores, encoded, batch, fits)
        rows = [i for i, weight in enumerate(batch.weights.tolist()) if weight]
        truth = batch.targets["target"].tolist()
        found = self.decode(scores, encoded.lengths)
        assert self.writer is not None
        words, characters = errors(self.writer([truth[i] for i in rows]), self.writer([found[i] for i in rows]))
        device = scores.device
        return {"loss": mean(total, self._weight(batch, fits)), "wer": torch.tensor(words, device=device).double(),
                "cer": torch.tensor(characters, device=device).double(),
                "too_long": mean((~fits * batch.weights).sum(), batch.weights.sum())}

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """tokens (B, U), padded with -1."""
        scores, encoded = self.scores(model, batch)
        return {"tokens": padded(self.decode(scores, encoded.lengths))}

    def written(self, found: Mapping[str, Tensor], names: Sequence[str], steps: Sequence[Sequence[int]]) -> Columns:
        """text."""
        assert self.writer is not None
        return {"text": self.writer(found["tokens"].tolist())}

    def decode(self, scores: Tensor, lengths: Tensor) -> list[list[int]]:
        """The tokens of each row, from log probabilities (B, T, V); without a beam search where it has to be quick."""
        if self.beam == 1 or self.quick:
            best = scores.argmax(-1).cpu().numpy()
            return [ctc.greedy(row[:steps]) for row, steps in zip(best, lengths.tolist(), strict=True)]
        table = scores.double().cpu().numpy()
        return [ctc.beam_search(row[:steps], beam=self.beam, language=self.language, weight=self.weight_of_language,
                                bonus=self.token_bonus) for row, steps in zip(table, lengths.tolist(), strict=True)]

    def _fits(self, batch: Batch, lengths: Tensor) -> Tensor:
        """(B,) bool, whether each text fits its steps, of which there are `lengths` (B,): one for every token, and one
        for a blank between two that are equal."""
        target = batch.targets["target"]
        repeats = ((target[:, 1:] == target[:, :-1]) & (target[:, 1:] >= 0)).sum(1)
        fits: Tensor = (target >= 0).sum(1) + repeats <= lengths.to(target.device, non_blocking=True)
        return fits

    def _weight(self, batch: Batch, fits: Tensor) -> Tensor:
        return ((batch.targets["target"] >= 0).sum(1) * fits * batch.weights).sum()

    def _loss(self, scores: Tensor, encoded: Encoded, batch: Batch, fits: Tensor) -> Tensor:
        """The sum of the weighted losses of rows that fit."""
        target = batch.targets["target"]
        sizes = (target >= 0).sum(1)
        each = F.ctc_loss(scores.transpose(0, 1), target.clamp(min=0), encoded.lengths, sizes.cpu(), blank=ctc.BLANK,
                          reduction="none", zero_infinity=True)
        return (each * batch.weights * fits).sum()


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, dropout: float = 0.0, beam: int = 1,
          language_weight: float = 0.0, token_bonus: float = 0.0) -> Task:
    """Write the text of a sound, by connectionist temporal classification.

    Args:
        dropout: probability that an input of the head is dropped.
        beam: beginnings of a text that a prefix beam search keeps; 1 takes the likeliest token of each step.
        language_weight: how much a language model of the training texts counts beside the sound in the beam search;
            it needs dataset.target_ngrams.
        token_bonus: for each token that a beam search writes, against the language model's liking of short texts.

    Raises:
        ValueError: an option is out of its range, or needs another.
    """
    return Transcribe(spec, encoder, dropout=dropout, beam=beam, language_weight=language_weight,
                      token_bonus=token_bonus)
