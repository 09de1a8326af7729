"""Tokens to text, and how far a text is from the right one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor

from models import sacrebleu_private

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

PADDING, UNKNOWN, BEGIN, END = 0, 1, 2, 3       # ids of every vocabulary
LOST = "\ufffd"                                 # is written for an unknown token


class Writer:
    """Writes token ids as text, by the tokenizer that the training rows gave.

    Args:
        tokenizer: its JSON.
    """

    def __init__(self, tokenizer: str) -> None:
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        self.unknown = self.tokenizer.id_to_token(UNKNOWN) or ""

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids: unknown tokens as LOST, other special ones and padding (-1) not at all."""
        kept = [[token for token in row if token == UNKNOWN or token > END] for row in rows]
        texts = self.tokenizer.decode_batch(kept, skip_special_tokens=False)
        return [text.replace(self.unknown, LOST) if UNKNOWN in row else text
                for text, row in zip(texts, kept, strict=True)]


    def pieces(self, row: Sequence[int]) -> list[str]:
        """What each token of a row of ids is called; blanks are seen."""
        raw = [self.tokenizer.id_to_token(token) or "" for token in row]
        return [self([[token]])[0].replace(" ", "\u2423").replace("\n", "\u21b5") or name
                for token, name in zip(row, raw, strict=True)]


def padded(rows: Sequence[list[int]]) -> Tensor:
    """Rows of ids as one tensor, the shorter ones padded with -1; at least one wide."""
    width = max(1, *map(len, rows))
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])


def errors(truth: Sequence[str], written: Sequence[str]) -> tuple[list[int], list[int]]:
    """What is wrong in texts: ([errors, words of the truth], [errors, characters of the truth]), summed over texts.

    An error is a word or a character left out, put in, or put in place of another (Levenshtein 1966); the sums give
    the word and the character error rate.
    """
    pairs = list(zip(truth, written, strict=True))
    words = sum(Levenshtein.distance(a.split(), b.split()) for a, b in pairs), sum(len(a.split()) for a in truth)
    characters = sum(Levenshtein.distance(a, b) for a, b in pairs), sum(map(len, truth))
    return list(words), list(characters)


class CorpusScore:
    """A metric of sacrebleu (Post 2018) over many texts, as sums that add up over batches and workers.

    Attributes:
        signature: how exactly it is computed.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        metric.corpus_score(["a"], [["a"]])             # a signature knows the number of references from a first use
        self.signature = str(metric.get_signature())

    def sums(self, truth: Sequence[str], written: Sequence[str]) -> list[float]:
        """Counts over texts, each with one reference."""
        return sacrebleu_private.counts(self.metric, truth, written)

    def score(self, sums: Sequence[float]) -> float:
        """0 to 100."""
        return sacrebleu_private.score(self.metric, sums)


def bleu() -> CorpusScore:
    """Papineni et al. (2002), with sacrebleu's own tokens."""
    from sacrebleu.metrics.bleu import BLEU
    return CorpusScore(BLEU(force=True))


def chrf() -> CorpusScore:
    """Popovic (2015)."""
    from sacrebleu.metrics.chrf import CHRF
    return CorpusScore(CHRF())


def characters(tokenizer: str) -> list[float] | None:
    """The characters that each token of a tokenizer (its JSON) stands for; of tokens of bytes, those that begin in it.

    Special tokens stand for none, but an unknown one for a character. None where blanks are not told as they stand in
    the text (of words and their pieces), so that these would not add up.
    """
    import tokenizers

    made = tokenizers.Tokenizer.from_str(tokenizer)
    pieces = [made.id_to_token(i) or "" for i in range(made.get_vocab_size())]
    if isinstance(made.pre_tokenizer, tokenizers.pre_tokenizers.ByteLevel):     # a letter stands for a byte
        inner = set(map(_letter_of_byte, range(0x80, 0xC0)))                    # of UTF-8: no character's first
        sizes = [float(sum(letter not in inner for letter in piece)) for piece in pieces]
    elif isinstance(made.pre_tokenizer, tokenizers.pre_tokenizers.Split):
        sizes = [float(len(piece)) for piece in pieces]
    else:
        return None
    return [0.0, 1.0, 0.0, 0.0, *sizes[END + 1:]]


def _letter_of_byte(byte: int) -> str:
    """GPT-2's letter for a byte (Radford et al. 2019): itself where it can be seen, else the next from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return chr(byte) if byte in seen else chr(256 + [b for b in range(256) if b not in seen].index(byte))
