"""Translate: a text, or whatever a front end reads, to another text. Shapes: B rows, U tokens, V of them known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import search
from models.batch import Batch
from models.families import State
from models.options import check_least, check_share
from models.sequence import Columns, SequenceModel, Sums, Task, full, mean
from models.writing import BEGIN, END, PADDING, UNKNOWN, Writer, bleu, chrf, padded

READS = ("target",)
NONE = -1                   # padding of targets


class Translate(Task):
    """A decoder of the model's family, which attends to what the family made of the input.

    Training shows it the right tokens before each that it has to tell (Williams & Zipser 1989). Scores of the next
    token are products with the tokens' own vectors (Press & Wolf 2017), which are those of the input where both share
    a vocabulary.

    Metrics: ``bleu`` and ``chrf``, of a beam search (while training goes on, of the likeliest token every time);
    ``loss``, the negative log probability of a token without smoothing, and ``perplexity``, its exponential.
    """

    primary = "bleu"
    maximise = True
    bounds = (0.0, 100.0)

    def __init__(self, spec: Mapping[str, Any], encoder: Mapping[str, Any], *, embedding_size: int | None,
                 dropout: float, decoder_layers: int, label_smoothing: float, beam: int, length_penalty: float,
                 longest: int) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        check_share("task.label_smoothing", label_smoothing)
        check_least("task.beam", beam, 1)
        check_least("task.longest", longest, 1)
        if not 0 <= length_penalty < math.inf:
            raise ValueError(f"task.length_penalty={length_penalty} is out of range; use at least 0")
        if spec["shared"] and embedding_size is not None:
            raise ValueError(f"task.embedding_size={embedding_size} has no meaning where both texts share a "
                             "vocabulary; leave it out, and set model.embedding_size")
        if embedding_size is not None:
            check_least("task.embedding_size", embedding_size, 1)
        self.beam, self.length_penalty, self.longest, self.smoothing = beam, length_penalty, longest, label_smoothing
        width = encoder["input_size"] if spec["shared"] else embedding_size or encoder["size"]
        self.decoder = encoder["decoder"](width, decoder_layers)
        self.embedding = None if spec["shared"] else nn.Embedding(spec["tokens"], width, padding_idx=PADDING)
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=0.1)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(self.decoder.size, width)
        self.bias = nn.Parameter(torch.zeros(spec["tokens"]))
        self.writer = None if spec["tokenizer"] is None else Writer(spec["tokenizer"])
        self.bleu, self.chrf = bleu(), chrf()
        self.signatures = {"bleu": self.bleu.signature, "chrf": self.chrf.signature}

    def scores(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, U + 1, V) of each token after the right ones, and of the end; the attention (B, U + 1,
        S)."""
        memory = self._memory(model, batch)
        target = batch.targets["target"]
        given = F.pad(target.clamp(min=PADDING), (1, 0), value=BEGIN)
        scores, _, attention = self._step(model, given, self.decoder.begin(memory), memory)
        return scores, attention

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Tokens of the texts and their ends, by the weights of their rows."""
        return (((batch.targets["target"] != NONE).sum(1) + 1) * batch.weights).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x smoothed negative log probability of the text, sum over rows of weight x tokens).

        Label smoothing (Szegedy et al. 2016) gives all tokens an equal share of the probability that is right.
        """
        scores, _ = self.scores(model, batch)
        return self._loss(scores, batch, self.smoothing), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        scores, _ = self.scores(model, batch)
        rows = [i for i, weight in enumerate(batch.weights.tolist()) if weight]
        assert self.writer is not None
        right = self.writer([row for i, row in enumerate(batch.targets["target"].tolist()) if i in rows])
        written = self.writer(self.decode(model, batch))
        written = [written[i] for i in rows]
        device = scores.device
        return {"loss": mean(self._loss(scores, batch, 0.0), self.weight(model, batch)),
                "bleu": torch.tensor(self.bleu.sums(right, written), device=device).double(),
                "chrf": torch.tensor(self.chrf.sums(right, written), device=device).double()}

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        found = super().result({"loss": sums["loss"]})
        return {**found, "perplexity": math.exp(min(found["loss"], 700.0)),
                "bleu": self.bleu.score(sums["bleu"].tolist()), "chrf": self.chrf.score(sums["chrf"].tolist())}

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """tokens (B, U), padded with -1."""
        return {"tokens": padded(self.decode(model, batch))}

    def written(self, found: Mapping[str, Tensor], names: Sequence[str], steps: Sequence[Sequence[int]]) -> Columns:
        """text."""
        assert self.writer is not None
        return {"text": self.writer(found["tokens"].tolist())}

    def decode(self, model: SequenceModel, batch: Batch) -> list[list[int]]:
        """The tokens of each row, by a beam search; without one where it has to be quick."""
        memory = self._memory(model, batch)
        never = torch.tensor([PADDING, UNKNOWN, BEGIN], device=self.bias.device)
        at, own = torch.arange(len(batch.weights)), memory                       # the rows whose memory `own` is

        def step(last: Tensor, state: State, rows: Tensor) -> tuple[Tensor, State]:
            nonlocal at, own
            if not torch.equal(rows, at):
                at, own = rows, {name: value[rows.to(value.device)] for name, value in memory.items()}
            scores, state, _ = self._step(model, last[:, None].to(self.bias.device), state, own)
            return scores[:, 0].index_fill(1, never, -torch.inf), state

        return search.beam_search(step, self.decoder.begin(memory), len(batch.weights),
                                  beam=1 if self.quick else self.beam, most=self.longest,
                                  length_penalty=self.length_penalty, begin=BEGIN, end=END)

    def _memory(self, model: SequenceModel, batch: Batch) -> State:
        encoded = model.encode(batch)
        memory: State = self.decoder.remember(encoded.y, encoded.lengths)
        return memory

    def _step(self, model: SequenceModel, tokens: Tensor, state: State,
              memory: State) -> tuple[Tensor, State, Tensor]:
        """(log probabilities of the token after each of tokens (B, U), (B, U, V) in at least fp32; state; attention)"""
        vectors = (model.frontend if self.embedding is None else self).get_parameter("embedding.weight")
        y, state, attention = self.decoder(self.dropout(F.embedding(tokens, vectors)), state, memory)
        out = F.linear(self.project(self.dropout(y)), vectors, self.bias)
        return full(out).log_softmax(-1), state, attention

    def _loss(self, scores: Tensor, batch: Batch, smoothing: float) -> Tensor:
        """The sum over rows of weight x negative log probability."""
        target = batch.targets["target"]
        ends = (target != NONE).sum(1)
        right = F.pad(target, (0, 1), value=NONE).scatter(1, ends[:, None], END)                # (B, U + 1)
        used = right != NONE
        each = -scores.gather(2, right.clamp(min=0)[..., None])[..., 0]
        if smoothing:
            each = (1 - smoothing) * each - smoothing * scores.mean(-1)
        return (each.masked_fill(~used, 0).sum(1) * batch.weights).sum()


def build(spec: Mapping[str, Any], encoder: Mapping[str, Any], *, embedding_size: int | None = None,
          dropout: float = 0.0, decoder_layers: int = 1, label_smoothing: float = 0.0, beam: int = 5,
          length_penalty: float = 1.0, longest: int = 128) -> Task:
    """Write another text of each row, by a decoder that attends to the row.

    Args:
        embedding_size: numbers of each written token's vector; null: as many as the family's output has. With
            dataset.target_tokenizer=shared the vectors are those of the input, of model.embedding_size.
        dropout: probability that a number of a token's vector, or of the decoder's output, is dropped.
        decoder_layers: layers of the decoder; its other options are those of the model.
        label_smoothing: share of the probability that is spread evenly over all tokens in training.
        beam: texts that the search keeps; 1 takes the likeliest token every time, as validation while training does.
        length_penalty: the higher, the longer the texts that a beam search likes; 0 likes short ones.
        longest: most tokens of a text that is written.

    Raises:
        ValueError: an option is out of its range.
    """
    return Translate(spec, encoder, embedding_size=embedding_size, dropout=dropout, decoder_layers=decoder_layers,
                     label_smoothing=label_smoothing, beam=beam, length_penalty=length_penalty, longest=longest)
