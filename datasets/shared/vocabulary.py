"""Vocabularies of tokens, learnt from training texts with the tokenizers library."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, trainers
from tokenizers import models as kinds

from models.special_tokens import SPECIAL_TOKENS, UNKNOWN

Kind = Literal["bpe", "unigram", "word", "character", "byte"]
SPACE = "\u2581"  # represents a blank in unigram pieces
PIECES = re.compile(
    r"(?s).{1,1000}(?!\S)|.{1,1000}"
)  # texts to learn from; without a limit, a long text without blanks takes extremely long


@dataclass(frozen=True)
class Vocabulary:
    """Settings of a vocabulary to learn.

    Attributes:
        kind: what a token is.
        size: maximum number of tokens, including special ones; byte always has 260.
        min_count: how often a token must occur; not for unigram and byte.
        lowercase: whether texts are converted to lower case.
        prefix: of the names of these options in messages: ``dataset.<prefix>vocabulary``.

    Raises:
        ValueError: a size or count is out of range.
    """

    kind: Kind
    size: int
    min_count: int = 1
    lowercase: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        minimum = len(SPECIAL_TOKENS) + (256 if self.kind in ("bpe", "byte") else 1)
        key = f"dataset.{self.prefix}"
        if self.size < minimum:
            raise ValueError(
                f"{key}vocabulary={self.size} is too small for {key}tokenizer={self.kind}; use at least {minimum}"
            )
        if self.min_count < 1:
            raise ValueError(f"{key}min_count={self.min_count} is too small; use at least 1")
        if self.min_count > 1 and self.kind in ("unigram", "byte"):
            raise ValueError(
                f"{key}min_count={self.min_count} has no meaning for {key}tokenizer={self.kind}; leave it out"
            )

    def learn(self, texts: Iterator[list[str]]) -> dict[str, Any]:
        """Learn a vocabulary.

        Args:
            texts: lists of texts; read to the end.

        Returns:
            {"tokenizer": its JSON, "vocabulary": its number of tokens}.

        Raises:
            ValueError: the size is too small for the characters of the texts.
        """
        tokenizer, trainer = self._untrained()
        if trainer is None:
            for _ in texts:
                pass
            return {"tokenizer": tokenizer.to_str(), "vocabulary": tokenizer.get_vocab_size()}
        if self.kind == "unigram":
            tokenizer.train_from_iterator(self._check_characters(texts), trainer)
            learnt = _reproducible(tokenizer.to_str())
        else:
            tokenizer.train_from_iterator(texts, trainer)
            learnt = tokenizer.to_str()
        return {"tokenizer": learnt, "vocabulary": load(learnt).get_vocab_size()}

    def _check_characters(self, texts: Iterator[list[str]]) -> Iterator[list[str]]:
        """The same texts; ValueError at the end if they have more characters than the vocabulary may have tokens.

        The trainer would never end in this case.
        """
        known = set(SPACE)
        normalizer = self._untrained()[0].normalizer
        for block in texts:
            known.update(*(normalizer.normalize_str(text) for text in block))
            yield block
        needed = len(SPECIAL_TOKENS) + len(known - {" "})
        if needed > self.size:
            key = f"dataset.{self.prefix}"
            raise ValueError(
                f"{key}vocabulary={self.size} is too small for the {needed - len(SPECIAL_TOKENS):,} characters "
                f"of the training rows with {key}tokenizer=unigram; use at least {needed}, or the "
                "tokenizer bpe, which needs 260 for any text"
            )

    def _untrained(self) -> tuple[tokenizers.Tokenizer, Any]:
        """A tokenizer without a vocabulary, and its trainer (None for bytes)."""
        special = [AddedToken(name, special=True) for name in SPECIAL_TOKENS]
        shared: dict[str, Any] = {"vocab_size": self.size, "special_tokens": special, "show_progress": False}
        trainer: Any = None
        steps: list[Any] = [] if self.kind in ("bpe", "byte") else [normalizers.NFC()]
        if self.kind in ("bpe", "byte"):
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            known = {name: i for i, name in enumerate((*SPECIAL_TOKENS, *alphabet))}
            tokenizer = tokenizers.Tokenizer(kinds.BPE(vocab=known, merges=[]) if self.kind == "byte" else kinds.BPE())
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
            if self.kind == "bpe":
                trainer = trainers.BpeTrainer(min_frequency=self.min_count, initial_alphabet=alphabet, **shared)
            else:
                tokenizer.add_special_tokens(special)
        elif self.kind == "unigram":
            tokenizer = tokenizers.Tokenizer(kinds.Unigram())
            # Brackets are pieces by themselves, so that no piece is "[EOS]".
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Metaspace(), pre_tokenizers.Split(Regex(r"\["), "isolated")]
            )
            tokenizer.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(unk_token=SPECIAL_TOKENS[UNKNOWN], **shared)
        else:
            tokenizer = tokenizers.Tokenizer(kinds.WordLevel(unk_token=SPECIAL_TOKENS[UNKNOWN]))
            tokenizer.pre_tokenizer = (
                pre_tokenizers.Whitespace()
                if self.kind == "word"
                else pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
            )
            if self.kind == "character":
                tokenizer.decoder = decoders.Fuse()
            trainer = trainers.WordLevelTrainer(min_frequency=self.min_count, **shared)
        if self.lowercase:
            steps.append(normalizers.Lowercase())
        if steps:
            tokenizer.normalizer = normalizers.Sequence(steps)
        return tokenizer, trainer


def _reproducible(tokenizer: str) -> str:
    """A unigram tokenizer's JSON, changed so that each training on the same texts gives the same one.

    The trainer adds numbers in the order of a hash table: so the last digits of scores differ, and characters that no
    piece needed get scores in steps of 0.0001 above the lowest one, in any order.
    """
    content = json.loads(tokenizer)
    first, pieces = content["model"]["vocab"][: len(SPECIAL_TOKENS)], content["model"]["vocab"][len(SPECIAL_TOKENS) :]
    lowest = min((score for _, score in pieces), default=0.0)
    edge = lowest + 0.0001 * len([piece for piece, _ in pieces if len(piece) == 1]) + 1e-9
    scores = {piece: round(lowest if len(piece) == 1 and score <= edge else score, 9) for piece, score in pieces}
    content["model"]["vocab"] = [*first, *(list(one) for one in sorted(scores.items(), key=lambda x: (-x[1], x[0])))]
    return json.dumps(content, ensure_ascii=False)


@functools.lru_cache(maxsize=4)
def load(text: str) -> tokenizers.Tokenizer:
    """The tokenizer with this JSON; the names of special tokens in texts are ordinary text."""
    tokenizer = tokenizers.Tokenizer.from_str(text)
    tokenizer.encode_special_tokens = True
    return tokenizer
