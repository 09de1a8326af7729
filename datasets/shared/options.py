"""The options that all kinds of records share (text, audio, sequences, music), and the names of the splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from datasets.shared.vocabulary import Kind, Vocabulary

SPLITS = ("train", "validation", "test")
MAX_NGRAMS = 8


@dataclass(frozen=True)
class RecordOptions:
    """Where records come from, how they are split, and which columns are the targets.

    Attributes:
        path: file, folder, glob or URI; or one of these for each split ({train: ..., test: ...}).
        split: shares of the training rows to use for validation and test ({validation: 0.1}). The choice is random, but
            depends only on the positions of the rows in the files.
        split_column: the column that names the split of each row.
        split_values: the values of split_column that mean a split ({test: [george]}); rows with other values are for
            training. Without it the values must be train, validation and test themselves.
        label: the column with the class of each row (task classify).
        labels: the column with the classes of each row, any number of them: a list, or names separated by spaces
            (task classify, which then predicts each class independently).
        step_labels: the column with a class for each step: a list, or names separated by spaces (task label). A null in
            a list is a step without a class, from which nothing is learnt.
        numbers: the columns of numbers to predict (task regress).
        target: the column of the text to produce from each row (tasks transcribe and translate).
        target_tokenizer: what a token of that text is: bpe, unigram, word, character or byte (see the option tokenizer
            of text); the vocabulary is learnt from the training rows. For text also shared: input and target then share
            one vocabulary (tokenizer, vocabulary, ...), learnt from both.
        target_vocabulary: maximum number of tokens in it, including 4 special ones; byte always has 260. Not for
            shared.
        target_lowercase: whether to convert the text to lower case; metrics then compare lower case too.
        target_ngrams: length of the n-grams of tokens to count in the training rows, for a language model that the beam
            search can use (task.language_weight); 0 counts none.
    """

    path: str | dict[str, str]
    split: dict[str, float] | None = None
    split_column: str | None = None
    split_values: dict[str, list[str | int]] | None = None
    label: str | None = None
    labels: str | None = None
    step_labels: str | None = None
    numbers: list[str] | None = None
    target: str | None = None
    target_tokenizer: Kind | Literal["shared"] = "character"
    target_vocabulary: int = 8000
    target_lowercase: bool = False
    target_ngrams: int = 0

    def __post_init__(self) -> None:
        check_split_names("path", self.path if isinstance(self.path, dict) else {})
        check_split_names("split", self.split_shares)
        check_split_names("split_values", self.values_by_split)
        self._check_split()
        if not 0 <= self.target_ngrams <= MAX_NGRAMS:
            raise ValueError(f"dataset.target_ngrams={self.target_ngrams} is out of range; use 0 to {MAX_NGRAMS}")
        self.target_vocabulary_to_learn()  # raises for values that are out of range

    @property
    def shared(self) -> bool:
        """Whether the target and the input share a vocabulary."""
        return self.target_tokenizer == "shared"

    def target_vocabulary_to_learn(self) -> Vocabulary | None:
        """The vocabulary to learn for the target; None where it is the input's."""
        if self.target_tokenizer == "shared":
            return None
        return Vocabulary(
            self.target_tokenizer, self.target_vocabulary, lowercase=self.target_lowercase, prefix="target_"
        )

    @property
    def split_shares(self) -> dict[str, float]:
        """`split`; empty where it is not set."""
        return self.split or {}

    @property
    def values_by_split(self) -> dict[str, list[str]]:
        """`split_values` as texts; empty where it is not set."""
        return {split: [str(value) for value in values] for split, values in (self.split_values or {}).items()}

    @property
    def class_columns(self) -> dict[str, str]:
        """The columns of classes, by the option that names them: ``label``, ``labels`` or ``step_labels``."""
        given = {"label": self.label, "labels": self.labels, "step_labels": self.step_labels}
        return {target: column for target, column in given.items() if column is not None}

    @property
    def number_columns(self) -> list[str]:
        """`numbers`; empty where it is not set."""
        return self.numbers or []

    def _check_split(self) -> None:
        for split, share in self.split_shares.items():
            if split == "train" or not 0 < share < 1:
                raise ValueError(
                    f"dataset.split={self.split}: give validation and test a share of the training rows "
                    "between 0 and 1; what is left is for training"
                )
        if sum(self.split_shares.values()) >= 1:
            raise ValueError(f"dataset.split={self.split} leaves nothing for training; use smaller shares")
        if self.values_by_split and self.split_column is None:
            raise ValueError("dataset.split_values says what the values of dataset.split_column mean; name that column")
        if self.split_column is not None and isinstance(self.path, dict):
            raise ValueError(
                f"dataset.split_column={self.split_column!r} and a path for each split contradict each "
                "other; leave one of them out"
            )
        given = [*self.split_shares, *(self.path if isinstance(self.path, dict) else ())]
        for split in SPLITS[1:]:
            if given.count(split) > 1 or (split in self.split_shares and split in self.values_by_split):
                raise ValueError(
                    f"dataset.split gives {split} a share, but {split} also has files or values; leave one of them out"
                )
        values = [value for group in self.values_by_split.values() for value in group]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"dataset.split_values has {value!r} twice; a row can be in one split only")

    @property
    def columns(self) -> list[str]:
        """The columns of the targets, and of the split."""
        given = [self.split_column, *self.class_columns.values(), *self.number_columns, self.target]
        return [name for name in given if name is not None]

    @property
    def available_targets(self) -> tuple[str, ...]:
        """Those of label, labels, step_labels, numbers and target that are set."""
        return tuple(name for name in ("label", "labels", "step_labels", "numbers", "target") if getattr(self, name))


def check_split_names(key: str, given: Mapping[str, Any]) -> None:
    """Raise ValueError if a key of the option `key` is no split."""
    for name in given:
        if name not in SPLITS:
            raise ValueError(f"dataset.{key} has {name!r}; the splits are {', '.join(SPLITS)}")
