"""Translate: another text for each row, whatever its front end reads.

Shapes: B rows, U tokens of a text, V tokens in the vocabulary, S steps of the encoded row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import beam_search
from models.batch import Batch
from models.family import State
from models.options import check_least, check_share
from models.sequence import Artifact, Columns, SequenceModel, Sums, Task, full, mean
from models.special_tokens import BEGIN, END, PADDING, UNKNOWN
from models.texts import Detokenizer, bleu, chrf, padded

TARGETS = ("target",)
NONE = -1  # padding of targets


class Translate(Task):
    """A decoder of the model's family, which attends to the encoded row.

    In training its input are the tokens of the reference (teacher forcing, Williams & Zipser 1989). The scores of the
    next token are products with the tokens' embeddings (Press & Wolf 2017), which are those of the input if both texts
    share a vocabulary.

    Metrics: ``bleu`` and ``chrf`` of a beam search (during training, of greedy decoding); ``loss``, the negative log
    probability of a token without label smoothing, and ``perplexity``, its exponential.
    """

    primary = "bleu"
    maximise = True
    bounds = (0.0, 100.0)

    def __init__(
        self,
        spec: Mapping[str, Any],
        encoder: Mapping[str, Any],
        *,
        embedding_size: int | None,
        dropout: float,
        decoder_layers: int,
        label_smoothing: float,
        beam: int,
        length_penalty: float,
        longest: int,
    ) -> None:
        super().__init__()
        check_share("task.dropout", dropout)
        check_share("task.label_smoothing", label_smoothing)
        check_least("task.beam", beam, 1)
        check_least("task.longest", longest, 1)
        if not 0 <= length_penalty < math.inf:
            raise ValueError(f"task.length_penalty={length_penalty} is out of range; use at least 0")
        if spec["shared"] and embedding_size is not None:
            raise ValueError(
                f"task.embedding_size={embedding_size} has no meaning where both texts share a "
                "vocabulary; leave it out, and set model.embedding_size"
            )
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
        self.detokenizer = None if spec["tokenizer"] is None else Detokenizer(spec["tokenizer"])
        self.bleu, self.chrf = bleu(), chrf()
        self.signatures = {"bleu": self.bleu.signature, "chrf": self.chrf.signature}

    def scores(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log probabilities (B, U + 1, V) of the next token after each prefix of the targets; the attention (B, U + 1,
        S)."""
        memory = self._memory(model, batch)
        inputs = F.pad(batch.targets["target"].clamp(min=PADDING), (1, 0), value=BEGIN)  # (B, U + 1)
        scores, _, attention = self._step(model, inputs, self.decoder.begin(memory), memory)
        return scores, attention

    def weight(self, model: SequenceModel, batch: Batch) -> Tensor:
        """Tokens of the texts and their ends, by the weights of their rows."""
        return (((batch.targets["target"] != NONE).sum(1) + 1) * batch.weights).sum()

    def loss(self, model: SequenceModel, batch: Batch) -> tuple[Tensor, Tensor]:
        """(sum over rows of weight x smoothed negative log probability of the text, sum over rows of weight x tokens).

        Label smoothing (Szegedy et al. 2016) spreads a share of the target's probability evenly over all tokens.
        """
        scores, _ = self.scores(model, batch)
        return self._loss(scores, batch, self.smoothing), self.weight(model, batch)

    def metrics(self, model: SequenceModel, batch: Batch) -> Sums:
        scores, _ = self.scores(model, batch)
        rows = [i for i, weight in enumerate(batch.weights.tolist()) if weight]
        assert self.detokenizer is not None
        targets, decoded = batch.targets["target"].tolist(), self.decode(model, batch)
        references = self.detokenizer([targets[i] for i in rows])
        predicted = self.detokenizer([decoded[i] for i in rows])
        device = scores.device
        return {
            "loss": mean(self._loss(scores, batch, 0.0), self.weight(model, batch)),
            "bleu": torch.tensor(self.bleu.sums(references, predicted), device=device).double(),
            "chrf": torch.tensor(self.chrf.sums(references, predicted), device=device).double(),
        }

    def result(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        metrics = super().result({"loss": sums["loss"]})
        return {
            **metrics,
            "perplexity": math.exp(min(metrics["loss"], 700.0)),
            "bleu": self.bleu.score(sums["bleu"].tolist()),
            "chrf": self.chrf.score(sums["chrf"].tolist()),
        }

    def predict(self, model: SequenceModel, batch: Batch) -> dict[str, Tensor]:
        """tokens (B, U), padded with -1."""
        return {"tokens": padded(self.decode(model, batch))}

    def format_predictions(
        self, predictions: Mapping[str, Tensor], names: Sequence[str], context: Mapping[str, Sequence[Any]]
    ) -> Columns:
        """text."""
        assert self.detokenizer is not None
        return {"text": self.detokenizer(predictions["tokens"].tolist())}

    def examples(self, model: SequenceModel, rows: Iterable[Batch]) -> list[Artifact]:
        """attention: of each row ``matrix`` (U + 1, S), the attention of each predicted token and of the end to the
        steps of the input; the predicted ``tokens``; the text (``predicted``) and its ``reference``; the token ids of
        the input (``source``) if it is a text."""
        assert self.detokenizer is not None
        arrays: dict[str, list[Any]] = {name: [] for name in ("matrix", "tokens", "reference", "predicted")}
        for batch in rows:
            decoded = self.decode(model, batch)
            with_decoded = replace(batch, targets={"target": torch.tensor(decoded, dtype=torch.int64)})
            arrays["matrix"].append(self.scores(model, with_decoded)[1][0].float().tolist())
            arrays["tokens"].append(self.detokenizer.pieces(decoded[0]))
            arrays["reference"] += self.detokenizer(batch.targets["target"].tolist())
            arrays["predicted"] += self.detokenizer(decoded)
            if "tokens" in batch.inputs:
                arrays.setdefault("source", []).append(batch.inputs["tokens"][0].tolist())
        return [Artifact("attention", arrays)]

    def decode(self, model: SequenceModel, batch: Batch) -> list[list[int]]:
        """The tokens of each row, by a beam search; if `quick`, by greedy decoding."""
        memory = self._memory(model, batch)
        excluded = torch.tensor([PADDING, UNKNOWN, BEGIN], device=self.bias.device)
        selected, memory_of_rows = torch.arange(len(batch.weights)), memory  # kept while the search has the same rows

        def step(last: Tensor, state: State, rows: Tensor) -> tuple[Tensor, State]:
            nonlocal selected, memory_of_rows
            if not torch.equal(rows, selected):
                selected = rows
                memory_of_rows = {name: value[rows.to(value.device)] for name, value in memory.items()}
            scores, state, _ = self._step(model, last[:, None].to(self.bias.device), state, memory_of_rows)
            return scores[:, 0].index_fill(1, excluded, -torch.inf), state

        return beam_search.beam_search(
            step,
            self.decoder.begin(memory),
            len(batch.weights),
            beam=1 if self.quick else self.beam,
            max_length=self.longest,
            length_penalty=self.length_penalty,
            begin=BEGIN,
            end=END,
        )

    def _memory(self, model: SequenceModel, batch: Batch) -> State:
        encoded = model.encode(batch)
        memory: State = self.decoder.remember(encoded.y, encoded.lengths)
        return memory

    def _step(self, model: SequenceModel, tokens: Tensor, state: State, memory: State) -> tuple[Tensor, State, Tensor]:
        """(log probabilities (B, U, V) of the tokens after `tokens` (B, U), in at least float32; state; attention)."""
        vectors = (model.frontend if self.embedding is None else self).get_parameter("embedding.weight")
        y, state, attention = self.decoder(self.dropout(F.embedding(tokens, vectors)), state, memory)
        out = F.linear(self.project(self.dropout(y)), vectors, self.bias)
        return full(out).log_softmax(-1), state, attention

    def _loss(self, scores: Tensor, batch: Batch, smoothing: float) -> Tensor:
        """The sum over rows of weight x negative log probability."""
        target = batch.targets["target"]
        lengths = (target != NONE).sum(1)
        next_tokens = F.pad(target, (0, 1), value=NONE).scatter(1, lengths[:, None], END)  # (B, U + 1)
        each = -scores.gather(2, next_tokens.clamp(min=0)[..., None])[..., 0]
        if smoothing:
            each = (1 - smoothing) * each - smoothing * scores.mean(-1)
        return (each.masked_fill(next_tokens == NONE, 0).sum(1) * batch.weights).sum()


def build(
    spec: Mapping[str, Any],
    encoder: Mapping[str, Any],
    *,
    embedding_size: int | None = None,
    dropout: float = 0.0,
    decoder_layers: int = 1,
    label_smoothing: float = 0.0,
    beam: int = 5,
    length_penalty: float = 1.0,
    longest: int = 128,
) -> Task:
    """Translate each row to another text, by a decoder that attends to the row.

    Args:
        embedding_size: size of the target tokens' embeddings; null: the size of the family's output. With
            dataset.target_tokenizer=shared the embeddings are those of the input, of model.embedding_size.
        dropout: probability that an element of an embedding, or of the decoder's output, is dropped.
        decoder_layers: layers of the decoder; its other options are those of the model.
        label_smoothing: share of the target's probability that is spread evenly over all tokens in training.
        beam: number of texts that the beam search keeps; 1 is greedy decoding, as in validation during training.
        length_penalty: 0 prefers short texts; the higher, the longer the texts that the beam search prefers.
        longest: maximum number of tokens of a predicted text.

    Raises:
        ValueError: an option is out of its range.
    """
    return Translate(
        spec,
        encoder,
        embedding_size=embedding_size,
        dropout=dropout,
        decoder_layers=decoder_layers,
        label_smoothing=label_smoothing,
        beam=beam,
        length_penalty=length_penalty,
        longest=longest,
    )
