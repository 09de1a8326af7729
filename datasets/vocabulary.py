"""Vocabularies: what the tokens of a text are, learnt from training texts by the tokenizers library."""

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

Kind = Literal["bpe", "unigram", "word", "character", "byte"]

SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")       # ids 0 to 3; the last also stands between two texts
UNKNOWN, BEGIN, END = 1, 2, 3
SPACE = "\u2581"                                     # of unigram pieces, for a blank
PIECES = re.compile(r"(?s).{1,1000}(?!\S)|.{1,1000}")       # to learn from: a megabyte without a blank takes for ever


@dataclass(frozen=True)
class Vocabulary:
    """How a vocabulary is learnt.

    Attributes:
        kind: what a token is.
        size: most tokens, special ones included; byte always has 260.
        min_count: times that a token must occur; not for unigram and byte.
        lowercase: whether capital letters are made small.
        prefix: of the options that told this, for messages: ``dataset.<prefix>vocabulary``.

    Raises:
        ValueError: a size or count is out of range.
    """

    kind: Kind
    size: int
    min_count: int = 1
    lowercase: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        least = len(SPECIAL) + (256 if self.kind in ("bpe", "byte") else 1)
        key = f"dataset.{self.prefix}"
        if self.size < least:
            raise ValueError(f"{key}vocabulary={self.size} is too small for {key}tokenizer={self.kind}; "
                             f"use at least {least}")
        if self.min_count < 1:
            raise ValueError(f"{key}min_count={self.min_count} is too small; use at least 1")
        if self.min_count > 1 and self.kind in ("unigram", "byte"):
            raise ValueError(f"{key}min_count={self.min_count} has no meaning for {key}tokenizer={self.kind}; "
                             "leave it out")

    def learn(self, texts: Iterator[list[str]]) -> dict[str, Any]:
        """{"tokenizer": its JSON, "vocabulary": tokens in it}, from texts that are read to the end.

        Raises:
            ValueError: the vocabulary has no room for the characters of the texts.
        """
        made, trainer = self._untrained()
        if trainer is None:
            for _ in texts:
                pass
            return {"tokenizer": made.to_str(), "vocabulary": made.get_vocab_size()}
        if self.kind == "unigram":
            made.train_from_iterator(self._roomy(texts), trainer)
            told = _in_order(made.to_str())
        else:
            made.train_from_iterator(texts, trainer)
            told = made.to_str()
        return {"tokenizer": told, "vocabulary": load(told).get_vocab_size()}

    def _roomy(self, texts: Iterator[list[str]]) -> Iterator[list[str]]:
        """The same texts; ValueError at the end if the vocabulary has no room for their characters.

        Without room for them the trainer goes on for ever.
        """
        known = set(SPACE)
        normalizer = self._untrained()[0].normalizer
        for some in texts:
            known.update(*(normalizer.normalize_str(text) for text in some))
            yield some
        needed = len(SPECIAL) + len(known - {" "})
        if needed > self.size:
            key = f"dataset.{self.prefix}"
            raise ValueError(f"{key}vocabulary={self.size} is too small for the {needed - len(SPECIAL):,} characters "
                             f"of the training rows with {key}tokenizer=unigram; use at least {needed}, or the "
                             "tokenizer bpe, which needs 260 for any text")

    def _untrained(self) -> tuple[tokenizers.Tokenizer, Any]:
        """A tokenizer without a vocabulary, and what trains it (nothing for bytes)."""
        special = [AddedToken(name, special=True) for name in SPECIAL]
        shared: dict[str, Any] = {"vocab_size": self.size, "special_tokens": special, "show_progress": False}
        trainer: Any = None
        steps: list[Any] = [] if self.kind in ("bpe", "byte") else [normalizers.NFC()]
        if self.kind in ("bpe", "byte"):
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            known = {name: i for i, name in enumerate((*SPECIAL, *alphabet))}
            made = tokenizers.Tokenizer(kinds.BPE(vocab=known, merges=[]) if self.kind == "byte" else kinds.BPE())
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            if self.kind == "bpe":
                trainer = trainers.BpeTrainer(min_frequency=self.min_count, initial_alphabet=alphabet, **shared)
            else:
                made.add_special_tokens(special)
        elif self.kind == "unigram":
            made = tokenizers.Tokenizer(kinds.Unigram())
            # No piece has a bracket and more: so none is "[EOS]".
            made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(),
                                                          pre_tokenizers.Split(Regex(r"\["), "isolated")])
            made.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(unk_token=SPECIAL[UNKNOWN], **shared)
        else:
            made = tokenizers.Tokenizer(kinds.WordLevel(unk_token=SPECIAL[UNKNOWN]))
            made.pre_tokenizer = (pre_tokenizers.Whitespace() if self.kind == "word"
                                  else pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"))
            if self.kind == "character":
                made.decoder = decoders.Fuse()
            trainer = trainers.WordLevelTrainer(min_frequency=self.min_count, **shared)
        if self.lowercase:
            steps.append(normalizers.Lowercase())
        if steps:
            made.normalizer = normalizers.Sequence(steps)
        return made, trainer


def _in_order(told: str) -> str:
    """A unigram tokenizer's JSON, the same for each training on the same texts.

    The trainer adds in the order of a hash table: scores differ in their last digits, those of characters that no
    piece needed by steps of 0.0001 above the least of all, and with them the order of the pieces.
    """
    made = json.loads(told)
    first, pieces = made["model"]["vocab"][:len(SPECIAL)], made["model"]["vocab"][len(SPECIAL):]
    least = min((score for _, score in pieces), default=0.0)
    edge = least + 0.0001 * len([piece for piece, _ in pieces if len(piece) == 1]) + 1e-9
    scores = {piece: round(least if len(piece) == 1 and score <= edge else score, 9) for piece, score in pieces}
    made["model"]["vocab"] = [*first, *(list(one) for one in sorted(scores.items(), key=lambda x: (-x[1], x[0])))]
    return json.dumps(made, ensure_ascii=False)


@functools.lru_cache(maxsize=4)
def load(text: str) -> tokenizers.Tokenizer:
    """The tokenizer of its JSON; special names in a text are ordinary text."""
    made = tokenizers.Tokenizer.from_str(text)
    made.encode_special_tokens = True
    return made
