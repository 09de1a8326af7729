"""Transcribe: the text of a sound, or of frames of it. Shapes: B rows, T steps, V tokens, U tokens of a text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import ctc
from models.batch import Batch
from models.ngrams import NGrams
from models.options import check_least, check_share
from models.sequence import Artifact, Columns, Encoded, SequenceModel, Sums, Task, full, mean
from models.texts import Detokenizer, count_errors, padded

TARGETS = ("target",)


class Transcribe(Task):
    """A linear layer over the tokens and the blank at every step, trained by CTC (Graves et al. 2006).

    The loss is the negative logarithm of the text's probability; its mean is by tokens of the reference texts. A row
    whose text needs more steps than it has cannot be learnt: its weight is 0, and ``too_long`` counts such rows.

    Metrics: ``wer`` and ``cer``, the word and the character error rate (during training, of the likeliest token of each
    step); ``loss``; ``too_long``, a share of the rows.
    """

    primary = "wer"

    def __init__(
        self,
        spec: Mapping[str, Any],
        encoder: Mapping[str, Any],
        *,
        dropout: float,
        beam: int,
        language_weight: float,
        token_bonus: float,
    ) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        check_least("task.beam", beam, 1)
        if encoder["steps"] is not None:
            raise ValueError("task.kind='transcribe' reads sequences with steps of their own lengths, not windows")
        if not language_weight >= 0:
            raise ValueError(f"task.language_weight={language_weight} is too small; use at least 0")
        order = len(spec["ngrams"][0]) - 1 if spec["ngrams"] else 0  # 0 without dataset.target_ngrams
        if language_weight and (beam == 1 or not order):
            raise ValueError(
                f"task.language_weight={language_weight} needs a beam search (task.beam=8 or more) and "
                "counts of the texts (dataset.target_ngrams=4 or so)"
            )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(encoder["size"], spec["tokens"])
        self.beam, self.language_weight, self.token_bonus = beam, language_weight, token_bonus
        self.language = NGrams(spec["ngrams"], spec["tokens"]) if language_weight else None
        self.detokenizer = None if spec["tokenizer"] is None else Detokenizer(spec["tokenizer"])

    def scores(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Encoded]:
        """(log probabilities (B, T, V) in at least float32, the output of the family)."""
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
        decoded = self.decode(scores, encoded.lengths)
        assert self.detokenizer is not None
        references = self.detokenizer([truth[i] for i in rows])
        words, characters = count_errors(references, self.detokenizer([decoded[i] for i in rows]))
        device = scores.device
        return {
            "loss": mean(total, self._weight(batch, fits)),
            "wer": torch.tensor(words, device=device).double(),
            "cer": torch.tensor(characters, device=device).double(),
            "too_long": mean((~fits * batch.weights).sum(), batch.weights.sum()),
        }

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """tokens (B, U), padded with -1."""
        scores, encoded = self.scores(model, batch)
        return {"tokens": padded(self.decode(scores, encoded.lengths))}

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """text."""
        assert self.detokenizer is not None
        return {"text": self.detokenizer(predictions["tokens"].tolist())}

    def examples(self, model: SequenceModel, rows: Iterable[Batch]) -> list[Artifact]:
        """transcript: of each row the ``frames`` (T, F) that the family reads, the ``steps`` at which the likeliest
        path has a new token and these ``tokens``, the text (``predicted``) and its ``reference``."""
        assert self.detokenizer is not None
        arrays: dict[str, list[Any]] = {name: [] for name in ("frames", "steps", "tokens", "reference", "predicted")}
        for batch in rows:
            scores, encoded = self.scores(model, batch)
            best = scores[0].argmax(-1).cpu().numpy()
            steps = np.flatnonzero((best != ctc.BLANK) & (np.diff(best, prepend=ctc.BLANK) != 0))
            arrays["frames"].append(model.frontend(batch)[0][0].float().tolist())
            arrays["steps"].append(steps.tolist())
            arrays["tokens"].append(self.detokenizer([[token] for token in best[steps].tolist()]))
            arrays["reference"] += self.detokenizer(batch.targets["target"].tolist())
            arrays["predicted"] += self.detokenizer(self.decode(scores, encoded.lengths))
        return [Artifact("transcript", arrays)]

    def decode(self, scores: Tensor, lengths: Tensor) -> list[list[int]]:
        """The tokens of each row, from log probabilities (B, T, V); if `quick`, without a beam search."""
        if self.beam == 1 or self.quick:
            best = scores.argmax(-1).cpu().numpy()
            return [ctc.greedy(row[:steps]) for row, steps in zip(best, lengths.tolist(), strict=True)]
        table = scores.double().cpu().numpy()
        return [
            ctc.beam_search(
                row[:steps],
                beam=self.beam,
                language=self.language,
                weight=self.language_weight,
                bonus=self.token_bonus,
            )
            for row, steps in zip(table, lengths.tolist(), strict=True)
        ]

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
        each = F.ctc_loss(
            scores.transpose(0, 1),
            target.clamp(min=0),
            encoded.lengths,
            sizes.cpu(),
            blank=ctc.BLANK,
            reduction="none",
            zero_infinity=True,
        )
        return (each * batch.weights * fits).sum()


def build(
    spec: Mapping[str, Any],
    encoder: Mapping[str, Any],
    *,
    dropout: float = 0.0,
    beam: int = 1,
    language_weight: float = 0.0,
    token_bonus: float = 0.0,
) -> Task:
    """Transcribe a sound by connectionist temporal classification.

    Args:
        dropout: probability that an input of the head is dropped.
        beam: number of prefixes that a prefix beam search keeps; 1 takes the likeliest token of each step.
        language_weight: weight of a language model of the training texts relative to the sound in the beam search; it
            needs dataset.target_ngrams.
        token_bonus: score added for each token in a beam search, as the language model prefers short texts.

    Raises:
        ValueError: an option is out of its range, or needs another one.
    """
    return Transcribe(
        spec, encoder, dropout=dropout, beam=beam, language_weight=language_weight, token_bonus=token_bonus
    )
