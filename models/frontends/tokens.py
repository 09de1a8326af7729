"""Embedded tokens. Shapes: B rows, T time, V vocabulary, E embedding size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from models import augment
from models.batch import Batch
from models.options import check_least, check_share
from models.sequence import Frontend
from models.special_tokens import FIRST_WORD, PADDING, UNKNOWN


class Tokens(Frontend):
    """A learned vector for each token. See `build`.

    Vectors begin small, N(0, 0.1^2): with torch's N(0, 1) the vectors of rare words stay near where they began, and
    families learn them by heart.
    """

    def __init__(self, vocabulary: int, *, embedding_size: int, embedding_dropout: float, token_dropout: float) -> None:
        super().__init__()
        check_least("model.embedding_size", embedding_size, 1)
        check_share("model.embedding_dropout", embedding_dropout)
        check_share("model.token_dropout", token_dropout)
        self.size, self.token_dropout = embedding_size, token_dropout
        self.embedding = nn.Embedding(vocabulary, embedding_size, padding_idx=PADDING)
        self.dropout = nn.Dropout(embedding_dropout)
        nn.init.normal_(self.embedding.weight, std=0.1)
        nn.init.zeros_(self.embedding.weight.detach()[PADDING])

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """tokens (B, T) int32 -> x (B, T, E), their lengths, nothing."""
        tokens = batch.inputs["tokens"]
        if self.token_dropout and self.training and batch.keys is not None:
            dropped = augment.uniform(batch.keys, tokens.shape[1], augment.TOKEN) < self.token_dropout
            dropped = dropped.to(tokens.device, non_blocking=True)
            tokens = tokens.masked_fill(dropped & (tokens >= FIRST_WORD), UNKNOWN)
        x: Tensor = self.embedding(tokens)
        return self.dropout(x), self.lengths(batch), {}

    def lengths(self, batch: Batch) -> Tensor:
        """Those of the tokens."""
        return batch.lengths["tokens"]


def build(
    spec: Mapping[str, Any], *, embedding_size: int = 128, embedding_dropout: float = 0.0, token_dropout: float = 0.0
) -> Frontend:
    """Tokens, each embedded as a learned vector; ``spec["vocabulary"]`` ids in all.

    Args:
        embedding_size: numbers of each token's vector.
        embedding_dropout: probability that a number of an embedded token is dropped.
        token_dropout: probability that a word becomes the unknown token in training, so that a text is also read
            without it; padding, begin and end stay.

    Raises:
        ValueError: an option is out of its range.
    """
    return Tokens(
        spec["vocabulary"],
        embedding_size=embedding_size,
        embedding_dropout=embedding_dropout,
        token_dropout=token_dropout,
    )
