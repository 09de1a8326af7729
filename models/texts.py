"""Tokens to text, and metrics that compare texts with their references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from models import sacrebleu_private
from models.special_tokens import FIRST_WORD, UNKNOWN

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric


REPLACEMENT = "\ufffd"  # the text of an unknown token


class Detokenizer:
    """Converts token ids to text, with the tokenizer that was fitted on the training rows.

    Args:
        tokenizer: its JSON.
    """

    def __init__(self, tokenizer: str) -> None:
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        self.unknown = self.tokenizer.id_to_token(UNKNOWN) or ""

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids, without special tokens and padding (-1); unknown tokens become REPLACEMENT."""
        kept = [[token for token in row if token == UNKNOWN or token >= FIRST_WORD] for row in rows]
        texts = self.tokenizer.decode_batch(kept, skip_special_tokens=False)
        return [
            text.replace(self.unknown, REPLACEMENT) if UNKNOWN in row else text
            for text, row in zip(texts, kept, strict=True)
        ]

    def pieces(self, row: Sequence[int]) -> list[str]:
        """A name for each token of a row of ids: its text with visible spaces, or the tokenizer's own name."""
        raw = [self.tokenizer.id_to_token(token) or "" for token in row]
        return [
            self([[token]])[0].replace(" ", "\u2423").replace("\n", "\u21b5") or name
            for token, name in zip(row, raw, strict=True)
        ]


def padded(rows: Sequence[list[int]]) -> Tensor:
    """Rows of ids as one tensor (B, U), the shorter ones padded with -1; U is at least 1."""
    width = max(1, *map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def count_errors(references: Sequence[str], predictions: Sequence[str]) -> tuple[list[int], list[int]]:
    """The sums of the word and of the character error rate over texts.

    An error is a deletion, an insertion or a substitution of a word or a character (Levenshtein 1966).

    Returns:
        [errors, words of the references], [errors, characters of the references].
    """
    pairs = list(zip(references, predictions, strict=True))
    words = sum(Levenshtein.distance(a.split(), b.split()) for a, b in pairs), sum(len(a.split()) for a in references)
    characters = sum(Levenshtein.distance(a, b) for a, b in pairs), sum(map(len, references))
    return list(words), list(characters)


class CorpusScore:
    """A metric of sacrebleu (Post 2018) over a corpus, in the form of counts that are added over batches and workers.

    Attributes:
        signature: its exact definition, as sacrebleu prints it.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        metric.corpus_score(["a"], [["a"]])  # the signature has the number of references only after a first use
        self.signature = str(metric.get_signature())

    def sums(self, references: Sequence[str], predictions: Sequence[str]) -> list[float]:
        """Counts over texts with one reference each."""
        return sacrebleu_private.counts(self.metric, references, predictions)

    def score(self, sums: Sequence[float]) -> float:
        """The metric, 0 to 100, from counts."""
        return sacrebleu_private.score(self.metric, sums)


def bleu() -> CorpusScore:
    """BLEU (Papineni et al. 2002), with sacrebleu's tokenization."""
    from sacrebleu.metrics.bleu import BLEU

    return CorpusScore(BLEU(force=True))


def chrf() -> CorpusScore:
    """chrF (Popovic 2015)."""
    from sacrebleu.metrics.chrf import CHRF

    return CorpusScore(CHRF())


def characters_per_token(tokenizer: str) -> list[float] | None:
    """The number of characters in each token of a tokenizer (its JSON); of byte tokens, those that begin in it.

    Special tokens have none, except that an unknown one counts as one character. None for tokenizers that do not keep
    the spaces of a text (words and their pieces): their tokens do not add up to its characters.
    """
    import tokenizers

    loaded = tokenizers.Tokenizer.from_str(tokenizer)
    pieces = [loaded.id_to_token(i) or "" for i in range(loaded.get_vocab_size())]
    if isinstance(loaded.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel):  # a letter represents a byte
        inner = set(map(_letter_of_byte, range(0x80, 0xC0)))  # UTF-8 bytes that do not begin a character
        sizes = [float(sum(letter not in inner for letter in piece)) for piece in pieces]
    elif isinstance(loaded.pre_tokenizer, tokenizers.pre_tokenizers.Split):
        sizes = [float(len(piece)) for piece in pieces]
    else:
        return None
    return [0.0, 1.0, 0.0, 0.0, *sizes[FIRST_WORD:]]


def _letter_of_byte(byte: int) -> str:
    """GPT-2's letter for a byte (Radford et al. 2019): the byte itself if it is visible, else the next from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in visible else chr(256 + [b for b in range(256) if b not in visible].index(byte))
