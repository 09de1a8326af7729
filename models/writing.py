"""Tokens to text, and how far a text is from the right one."""

from __future__ import annotations

from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein


class Writer:
    """Writes token ids as text, by the tokenizer that the training rows gave.

    Args:
        tokenizer: its JSON.
    """

    def __init__(self, tokenizer: str) -> None:
        import tokenizers

        self.tokenizer = tokenizers.Tokenizer.from_str(tokenizer)

    def __call__(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The text of each row of ids; special tokens are not written."""
        texts: list[str] = self.tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        return texts


def errors(truth: Sequence[str], written: Sequence[str]) -> tuple[list[int], list[int]]:
    """What is wrong in texts: ([errors, words of the truth], [errors, characters of the truth]), summed over texts.

    An error is a word or a character left out, put in, or put in place of another (Levenshtein 1966); the sums give
    the word and the character error rate.
    """
    pairs = list(zip(truth, written, strict=True))
    words = sum(Levenshtein.distance(a.split(), b.split()) for a, b in pairs), sum(len(a.split()) for a in truth)
    characters = sum(Levenshtein.distance(a, b) for a, b in pairs), sum(map(len, truth))
    return list(words), list(characters)
