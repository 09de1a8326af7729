"""Text: sentences or documents with targets, stored as tokens of a vocabulary that is learnt from the training rows."""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import tokenizers
from numpy.typing import NDArray

from datasets.pipeline.chunks import ChunkView
from datasets.reading import errors, find, formats
from datasets.reading.find import SourceFile
from datasets.shared.columns import BadRows, list_array
from datasets.shared.labels import CUT, RAW_LENGTH, STEP
from datasets.shared.options import SPLITS, RecordOptions
from datasets.shared.records import Records
from datasets.shared.request import RequestRows, encoded_rows
from datasets.shared.splits import SplitFiles, part_of
from datasets.shared.sums import State
from datasets.shared.targets import target_texts
from datasets.shared.vocabulary import PIECES, Kind, Vocabulary, load
from models.special_tokens import BEGIN, END, UNKNOWN

if TYPE_CHECKING:
    import ray.data

    from datasets.pipeline.prepared import Prepared
    from datasets.pipeline.views import View

TEXT_FILES = (*formats.LINES, *(text + end for text in formats.LINES for end in formats.COMPRESSED))
LONG = 1 << 20  # longer texts (in characters) are tokenized in pieces
PIECES_OF_LONG = re.compile(rf"(?s).{{1,{LONG}}}(?!\S)|.{{1,{LONG}}}")
TEXTS_TOGETHER = 1000  # texts that are tokenized together


def build(
    common: RecordOptions,
    *,
    text: str | list[str] = "text",
    tokenizer: Kind = "bpe",
    vocabulary: int = 8000,
    min_count: int = 1,
    lowercase: bool = False,
    max_length: int | None = None,
    whole_files: bool = False,
) -> Text:
    """Texts in CSV, JSON Lines, Parquet or plain text files (one text per line, in a column named text).

    Args:
        common: the options of all records.
        text: the column of the text, or two columns, whose texts are joined to one sequence.
        tokenizer: what a token is: bpe (byte-level byte pairs, Sennrich et al. 2016; no text has unknown tokens),
            unigram (pieces of words, Kudo 2018), word (words, and sequences of punctuation), character, or byte. All
            but byte learn their vocabulary from the training rows. With step_labels, texts are words separated by
            blanks, or lists of words; the first token of each word has its class.
        vocabulary: maximum number of tokens in the vocabulary, including 4 special ones; byte always has 260.
        min_count: how often a token must occur in the training rows to be in the vocabulary; not for unigram and byte.
        lowercase: whether to convert texts to lower case.
        max_length: maximum number of tokens of a row; the end is cut off, of two texts first that of the longer one.
            null keeps all.
        whole_files: whether each .txt file is one text, instead of each line (task generate). The shares of
            dataset.split are then taken from the characters at the end of each file: first validation, then test.

    Raises:
        ValueError: an option is out of its range.
    """
    columns = [text] if isinstance(text, str) else list(text)
    if len(columns) not in (1, 2) or len(set(columns)) < len(columns):
        raise ValueError(f"dataset.text={text!r} must be one column, or a list of two")
    shortest = 2 * len(columns) - 1  # one token of each text, and the separator between two
    if max_length is not None and max_length < shortest:
        raise ValueError(f"dataset.max_length={max_length} is too small; use at least {shortest}, or null")
    return Text(
        common=common,
        text=columns,
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        min_count=min_count,
        lowercase=lowercase,
        max_length=max_length,
        whole_files=whole_files,
    )


@dataclass(kw_only=True)
class Text(Records):
    """See `build`."""

    text: list[str]
    tokenizer: Kind
    vocabulary: int
    min_count: int
    lowercase: bool
    max_length: int | None
    whole_files: bool = False
    kind: ClassVar[str] = "text"
    frontend: ClassVar[str] = "tokens"
    suffixes: ClassVar[tuple[str, ...]] = (*formats.TABLES, *TEXT_FILES)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vocabulary_to_learn()  # raises for values that are out of range
        if self.common.step_labels is not None and len(self.text) > 1:
            raise ValueError(
                f"dataset.step_labels={self.common.step_labels!r} are of one text; name one column in "
                f"dataset.text, not {len(self.text)}"
            )
        if self.common.shared and self.common.target_lowercase != self.lowercase:
            raise ValueError(
                "dataset.target_lowercase is dataset.lowercase where both texts share a vocabulary; give "
                "both the same value"
            )
        if self.whole_files and (self.common.columns or self.text != ["text"]):
            raise ValueError(
                "dataset.whole_files: such a text has no other columns; leave dataset.text and "
                f"{', '.join(map(repr, self.common.columns)) or 'other columns'} out"
            )

    @property
    def available_targets(self) -> tuple[str, ...]:
        """The targets of the options; and of a single text its own tokens (task generate)."""
        return (*self.common.available_targets, *(["tokens"] if len(self.text) == 1 else []))

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        if task["target"] == "tokens":
            if self.max_length is not None:
                raise ValueError(
                    f"dataset.max_length={self.max_length} would teach task generate that texts end where "
                    "they were cut; leave it out, and set task.window"
                )
            fitted = None if state is None else state["fitted"]
            return {"frontend": self.frontend, **self.input_spec(fitted), "tokenizer": fitted and fitted["tokenizer"]}
        return super().spec(state, task)

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        if task["target"] == "tokens":
            return ChunkView(part_of(prepared, split), "tokens", 0, task["window"], (BEGIN, END))
        return super().view(prepared, split, task)

    def vocabulary_to_learn(self) -> Vocabulary:
        """The vocabulary to learn from the training rows."""
        return Vocabulary(self.tokenizer, self.vocabulary, self.min_count, self.lowercase)

    def input_columns(self) -> list[str]:
        return self.text

    def find_files(self, path: str) -> list[SourceFile]:
        return find.resolve(path, suffixes=TEXT_FILES if self.whole_files else self.suffixes)

    def files_with_splits(self) -> SplitFiles:
        files = super().files_with_splits()
        for source, _ in files if self.whole_files else ():
            if formats.suffix(source.uri) not in formats.LINES:
                raise ValueError(
                    f"{source.uri}: dataset.whole_files reads text files, {', '.join(formats.LINES)}; leave "
                    "it out for tables"
                )
        return files

    def raw_rows(self, sources: Sequence[SourceFile]) -> ray.data.Dataset:
        if not self.whole_files:
            return super().raw_rows(sources)
        task = functools.partial(
            _cut_files,
            {source.uri for source, split in self.files_with_splits() if split == "train"},
            [self.common.split_shares.get(split, 0.0) for split in SPLITS[1:]],
        )
        return formats.read(sources, ["text"], lenient=True, whole=True).map_batches(
            task, batch_size=None, batch_format="pyarrow", num_cpus=formats.TASK_CPUS
        )

    def rows_in_split(self, files: SplitFiles, split: str, table: pa.Table) -> NDArray[np.int64]:
        if not self.whole_files:
            return super().rows_in_split(files, split, table)
        by_uri = {source.uri: SPLITS.index(of_file) for source, of_file in files}
        first = np.array([by_uri[uri] for uri in table["__file"].to_pylist()], np.int64)
        return np.flatnonzero(first + table["__row"].to_numpy() - 1 == SPLITS.index(split))

    def tally_input(self, table: pa.Table, rows: Sequence[int]) -> tuple[State, list[str]]:
        texts = [text for column in self.text for text in self._texts(table, column, rows) if text]
        if self.common.step_labels is not None:  # words are encoded one by one, so learn from single words
            texts = [word for words in texts for word in words if word]
        if self.common.shared:
            texts += target_texts(self.common, table, rows)
        return {}, [piece for text in texts for piece in PIECES.findall(text)]

    def fit_input(self, texts: Iterator[list[str]], tally: State) -> State:
        """``tokenizer``, as the JSON of the tokenizers library, and ``vocabulary``, its number of tokens."""
        return self.vocabulary_to_learn().learn(texts)

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: BadRows) -> tuple[dict[str, pa.Array], State]:
        assert self.fitted is not None
        tokenizer = load(self.fitted["tokenizer"])
        texts_of_row: list[list[list[int]]] = [[] for _ in rows]  # of each row, the tokens of each of its texts
        columns: dict[str, pa.Array] = {}
        for column in self.text:
            texts = self._texts(table, column, rows)
            for i, text in zip(rows, texts, strict=True):
                if not text:
                    bad.setdefault(i, (column, "no text" if text is None else "empty"))
            if self.common.step_labels is None:
                tokens = _tokens(tokenizer, [text or "" for text in texts])
            else:  # of one column, see __post_init__
                tokens, steps = _tokens_of_words(tokenizer, [words or [] for words in texts])
                counts = [len(words or []) for words in texts]
                for i, row_steps, count in zip(rows, steps, counts, strict=True):
                    if len(set(row_steps) - {-1}) < count:
                        bad.setdefault(i, (column, "a word without a token in it"))
                steps = [row_steps[: self.max_length] for row_steps in steps]
                columns |= {STEP: pa.array(steps, pa.list_(pa.int32())), RAW_LENGTH: pa.array(counts, pa.int32())}
            for i, of_row, ids in zip(rows, texts_of_row, tokens, strict=True):
                of_row.append(ids)
                if not ids:
                    bad.setdefault(i, (column, "no token in it"))
        lists = [_join(of_row, self.max_length) for of_row in texts_of_row]
        lengths = np.array([len(tokens) for tokens in lists], np.int32)
        flat = np.array([token for tokens in lists for token in tokens], np.int32)
        uncut = [sum(map(len, of_row)) + len(of_row) - 1 for of_row in texts_of_row]  # with separators
        cut = [before - len(tokens) for before, tokens in zip(uncut, lists, strict=True)]
        columns |= {"length": pa.array(lengths), "tokens": list_array(flat, lengths), CUT: pa.array(cut, pa.int32())}
        return columns, {
            "tokens": sum(uncut),
            "cut": sum(cut),
            "cut_rows": sum(count > 0 for count in cut),
            "unknown": int((flat == UNKNOWN).sum()),
            "rows": len(rows),
        }

    def input_state(self, tally: State) -> State:
        """``tokens``: the tally; and notes on the vocabulary and on rows that were cut."""
        assert self.fitted is not None
        total = max(1, tally.get("tokens", 0))
        kept = max(1, tally.get("tokens", 0) - tally.get("cut", 0))
        notes = [
            f"text: {self.fitted['vocabulary']:,} tokens in the {self.tokenizer} vocabulary, {total:,} in all "
            f"rows, {tally.get('unknown', 0) / kept:.2%} of them unknown"
        ]
        if tally.get("cut"):
            notes.append(
                f"text: {tally['cut_rows']:,} of {tally['rows']:,} rows cut to {self.max_length} tokens, "
                f"{tally['cut'] / total:.1%} of all tokens"
            )
        return {"notes": notes, "tokens": tally}

    def input_spec(self, fitted: State | None) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary if fitted is None else fitted["vocabulary"]}

    def stored_inputs(self, fitted: State) -> dict[str, int]:
        return {"tokens": 0}

    def raw_tables(self, source: str) -> Iterator[pa.Table]:
        """The rows of files; a source that is no path of a file is a text itself."""
        if _names_a_file(source, self.suffixes):
            for file in self.find_files(source):
                whole = self.whole_files and formats.suffix(file.uri) in formats.LINES
                yield from formats.read_blocks(file.uri, self.input_columns(), lenient=True, whole=whole)
        elif len(self.text) > 1:
            raise ValueError(f"{source!r}: this model reads two texts ({', '.join(self.text)}); give a file with both")
        else:
            yield pa.table(
                {self.text[0]: [source], "__file": ["text"], "__row": [1], "__bad": pa.nulls(1, formats.BAD)}
            )

    def read_request(self, source: str, state: State, task: Mapping[str, Any]) -> Iterator[RequestRows]:
        """As other records; but a text can also be generated from its beginning: "" is then a row without a token."""
        if source or task["target"] != "tokens":
            yield from super().read_request(source, state, task)
            return
        empty = {"length": pa.array([0], pa.int32()), "tokens": pa.array([[]], pa.list_(pa.int32()))}
        identity = {"__file": ["text"], "__row": [1], "skipped": pa.nulls(1, pa.string())}
        yield encoded_rows(pa.table({**empty, **identity}), self.stored_inputs(state["fitted"]))

    def _texts(self, table: pa.Table, column: str, rows: Sequence[int]) -> list[Any]:
        """The texts of these rows, stripped unless they are whole files; with step_labels their lists of words.

        A missing text is None.
        """
        kind, values = table.schema.field(column).type, table[column].to_pylist()
        words = self.common.step_labels is not None
        if _is_list(kind) and (_is_text(kind.value_type) or pa.types.is_null(kind.value_type)):
            lists = [values[i] and [(word or "").strip() for word in values[i]] for i in rows]
            return lists if words else [text and " ".join(filter(None, text)) for text in lists]
        if _is_text(kind) or pa.types.is_null(kind):
            return [
                values[i] and (values[i].split() if words else values[i] if self.whole_files else values[i].strip())
                for i in rows
            ]
        raise ValueError(
            f"{table['__file'][0].as_py()}: column {column!r} holds {kind}, not text; name another "
            "column in dataset.text"
        )


@errors.in_task
def _cut_files(training: Collection[str], shares: Sequence[float], table: pa.Table) -> Iterator[pa.Table]:
    """Cut each whole file of `training` into rows 1, 2 and 3, for training, validation and test; no empty ones."""
    for row in table.to_pylist():
        text, origin = row["text"], {"__file": row["__file"], "__bad": row["__bad"]}
        if text is None or row["__file"] not in training:
            parts = [text]
        else:
            ends = [int(len(text) * (1 - sum(shares[i:]))) for i in range(len(shares))]
            parts = [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]
        yield pa.Table.from_pylist(
            [{"text": part, "__row": i + 1, **origin} for i, part in enumerate(parts) if part or i == 0], table.schema
        )


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names_a_file(source: str, suffixes: Sequence[str]) -> bool:
    """Whether a source is a path, a glob or a URI, of existing files or not; otherwise it is a text itself."""
    if source.lower().endswith(tuple(suffixes)) or re.match(r"[A-Za-z][\w+.-]*://\S+$", source):
        return True
    if not re.search(r"\s", source) and ("*" in source or re.match(r"~?/|\.\.?/", source)):
        return True
    try:
        return Path(source).exists()
    except OSError:  # longer than a name can be
        return False


def _tokens(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text; long ones are tokenized in pieces: the tokenizer needs about 300 bytes a character."""
    tokens = []
    for start in range(0, len(texts), TEXTS_TOGETHER):
        short = [text if len(text) <= LONG else "" for text in texts[start : start + TEXTS_TOGETHER]]
        tokens += [encoding.ids for encoding in tokenizer.encode_batch_fast(short, add_special_tokens=False)]
    for i, text in enumerate(texts):
        if len(text) > LONG:
            tokens[i] = [
                token
                for piece in PIECES_OF_LONG.findall(text)
                for token in tokenizer.encode(piece, add_special_tokens=False).ids
            ]
    return tokens


def _tokens_of_words(
    tokenizer: tokenizers.Tokenizer, texts: Sequence[list[str]]
) -> tuple[list[list[int]], list[list[int]]]:
    """(the tokens of each list of words, and for each token the word of which it is the first one, or -1)."""
    tokens, steps = [], []
    for start in range(0, len(texts), TEXTS_TOGETHER):
        some = texts[start : start + TEXTS_TOGETHER]
        for encoding in tokenizer.encode_batch(some, is_pretokenized=True, add_special_tokens=False):
            tokens.append(encoding.ids)
            steps.append(_first_tokens(encoding.word_ids))
    return tokens, steps


def _join(texts: list[list[int]], max_length: int | None) -> list[int]:
    """One sequence of the tokens of one or two texts, at most `max_length` long; the longer text is cut first."""
    if len(texts) == 1:
        return texts[0] if max_length is None else texts[0][:max_length]
    a, b = texts
    if max_length is not None and len(a) + len(b) + 1 > max_length:
        available = max_length - 1  # without the separator
        short = min(len(a), len(b), available // 2)
        a, b = (a[:short], b[: available - short]) if len(a) <= len(b) else (a[: available - short], b[:short])
    return [*a, END, *b]


def _first_tokens(words: list[int | None]) -> list[int]:
    """For each token the word of which it is the first one, or -1; `words` are the words of the tokens."""
    return [-1 if word is None or (i and words[i - 1] == word) else word for i, word in enumerate(words)]
