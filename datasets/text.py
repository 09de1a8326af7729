"""Text: sentences or documents with what to tell from them, as tokens of a vocabulary that the training rows gave."""

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

from datasets import files
from datasets.chunks import ChunkView
from datasets.files import Source
from datasets.records import CUT, PARTS, RAW_LENGTH, STEP, Bad, Options, Records, State, list_array, part_of
from datasets.vocabulary import BEGIN, END, PIECES, UNKNOWN, Kind, Vocabulary, load

if TYPE_CHECKING:
    import ray.data

    from datasets.prepare import Prepared
    from datasets.views import View

TXT = (*files.LINES, *(text + end for text in files.LINES for end in files.COMPRESSED))
LONG = 1 << 20                                       # characters of a text that is tokenized piece by piece
PIECES_OF_LONG = re.compile(rf"(?s).{{1,{LONG}}}(?!\S)|.{{1,{LONG}}}")
SLICE = 1000                                         # texts that are tokenized together


def build(told: Options, *, text: str | list[str] = "text", tokenizer: Kind = "bpe", vocabulary: int = 8000,
          min_count: int = 1, lowercase: bool = False, max_length: int | None = None,
          whole_files: bool = False) -> Text:
    """Texts in CSV, JSON Lines, Parquet or plain text files (a text a line, in a column named text).

    Args:
        told: the options of all records.
        text: the column of the text, or two of them, which are read as one sequence.
        tokenizer: what a token is: bpe (byte-level byte pairs, Sennrich et al. 2016; knows every text), unigram (pieces
            of words, Kudo 2018), word (words and runs of punctuation), character, or byte. All but byte learn their
            vocabulary from the training rows. With step_labels, texts are words with blanks between, or lists of
            words; the first token of each word has its class.
        vocabulary: most tokens in the vocabulary, 4 special ones included; byte always has 260.
        min_count: times that a token must occur in the training rows to be in the vocabulary; not for unigram and byte.
        lowercase: whether capital letters are made small.
        max_length: tokens that are kept of a row, from its start; of two texts the longer is cut first. null keeps all.
        whole_files: each .txt file is one text, lines and all, instead of each line (task generate). Shares in
            dataset.split are then of the characters of each file, from its end: validation, and last test.

    Raises:
        ValueError: an option is out of its range.
    """
    columns = [text] if isinstance(text, str) else list(text)
    if len(columns) not in (1, 2) or len(set(columns)) < len(columns):
        raise ValueError(f"dataset.text={text!r} must be one column, or a list of two")
    shortest = 2 * len(columns) - 1                     # a token of each, and the mark between two
    if max_length is not None and max_length < shortest:
        raise ValueError(f"dataset.max_length={max_length} is too small; use at least {shortest}, or null")
    return Text(told=told, text=columns, tokenizer=tokenizer, vocabulary=vocabulary, min_count=min_count,
                lowercase=lowercase, max_length=max_length, whole_files=whole_files)


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
    suffixes: ClassVar[tuple[str, ...]] = (*files.TABLES, *TXT)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.words()                                            # refuses what is out of range
        if self.told.step_labels is not None and len(self.text) > 1:
            raise ValueError(f"dataset.step_labels={self.told.step_labels!r} are of one text; name one column in "
                             f"dataset.text, not {len(self.text)}")
        if self.told.shared and self.told.target_lowercase != self.lowercase:
            raise ValueError("dataset.target_lowercase is dataset.lowercase where both texts share a vocabulary; give "
                             "both the same value")
        if self.whole_files and (self.told.columns or self.text != ["text"]):
            raise ValueError("dataset.whole_files: such a text has no columns beside it; leave dataset.text and "
                             f"{', '.join(map(repr, self.told.columns)) or 'other columns'} out")

    @property
    def offers(self) -> tuple[str, ...]:
        """What is told, and the tokens of a single text themselves, to go on with."""
        return (*self.told.offers, *(["tokens"] if len(self.text) == 1 else []))

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        if task["target"] == "tokens":
            if self.max_length is not None:
                raise ValueError(f"dataset.max_length={self.max_length} would teach task generate that texts end where "
                                 "they were cut; leave it out, and set task.window")
            fitted = None if state is None else state["fitted"]
            return {"frontend": self.frontend, **self.input_spec(fitted), "tokenizer": fitted and fitted["tokenizer"]}
        return super().spec(state, task)

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        if task["target"] == "tokens":
            return ChunkView(part_of(prepared, split), "tokens", 0, task["window"], (BEGIN, END))
        return super().view(prepared, split, task)

    def words(self) -> Vocabulary:
        """How the vocabulary is learnt."""
        return Vocabulary(self.tokenizer, self.vocabulary, self.min_count, self.lowercase)

    def input_columns(self) -> list[str]:
        return self.text

    def find(self, path: str) -> list[Source]:
        return files.resolve(path, suffixes=TXT if self.whole_files else self.suffixes)

    def listed(self) -> list[tuple[Source, str]]:
        found = super().listed()
        for source, _ in found if self.whole_files else ():
            if files.suffix(source.uri) not in files.LINES:
                raise ValueError(f"{source.uri}: dataset.whole_files reads text files, {', '.join(files.LINES)}; leave "
                                 "it out for tables")
        return found

    def raw_rows(self, sources: Sequence[Source]) -> ray.data.Dataset:
        if not self.whole_files:
            return super().raw_rows(sources)
        task = functools.partial(_cut, {source.uri for source, part in self.listed() if part == "train"},
                                 [self.told.shares.get(part, 0.0) for part in PARTS[1:]])
        return files.read(sources, ["text"], lenient=True, whole=True).map_batches(
            task, batch_size=None, batch_format="pyarrow", num_cpus=files.TASK_CPUS)

    def in_part(self, listed: list[tuple[Source, str]], part: str, table: pa.Table) -> NDArray[np.int64]:
        if not self.whole_files:
            return super().in_part(listed, part, table)
        own = {source.uri: PARTS.index(named) for source, named in listed}
        first = np.array([own[uri] for uri in table["__file"].to_pylist()], np.int64)
        return np.flatnonzero(first + table["__row"].to_numpy() - 1 == PARTS.index(part))

    def tally(self, table: pa.Table, rows: Sequence[int]) -> tuple[State, list[str]]:
        texts = [text for column in self.text for text in self._texts(table, column, rows) if text]
        if self.told.step_labels is not None:                   # each word is encoded by itself: learn from such
            texts = [word for words in texts for word in words if word]
        if self.told.shared:
            texts += self.targets(table, rows)
        return {}, [piece for text in texts for piece in PIECES.findall(text)]

    def fit(self, texts: Iterator[list[str]], sums: State) -> State:
        """The tokenizer, as the JSON of the tokenizers library."""
        return self.words().learn(texts)

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: Bad) -> tuple[dict[str, pa.Array], State]:
        assert self.fitted is not None
        made = load(self.fitted["tokenizer"])
        words = self.told.step_labels is not None
        tokens: list[list[list[int]]] = [[] for _ in rows]           # of each text of each row
        steps: list[list[int]] = [[] for _ in rows]
        raw = [0] * len(rows)
        for column in self.text:
            texts = self._texts(table, column, rows)
            for place, text in enumerate(texts):
                if not text:
                    bad.setdefault(rows[place], (column, "no text" if text is None else "empty"))
            for start in range(0, len(rows), SLICE):
                some: list[Any] = [text or ([] if words else "") for text in texts[start:start + SLICE]]
                if words:
                    for place, encoded in enumerate(made.encode_batch(some, is_pretokenized=True,
                                                                      add_special_tokens=False), start):
                        tokens[place].append(encoded.ids)
                        steps[place], raw[place] = _first_tokens(encoded.word_ids), len(some[place - start])
                        if len(set(encoded.word_ids)) < raw[place]:
                            bad.setdefault(rows[place], (column, "a word without a token in it"))
                else:
                    for place, ids in enumerate(_ids(made, some), start):
                        tokens[place].append(ids)
                for place in range(start, start + len(some)):
                    if not tokens[place][-1]:
                        bad.setdefault(rows[place], (column, "no token in it"))
        lists = [_joined(one, self.max_length) for one in tokens]
        whole = sum(len(part) for one in tokens for part in one) + len(rows) * (len(self.text) - 1)
        lengths = np.array([len(one) for one in lists], np.int32)
        flat = np.array([token for one in lists for token in one], np.int32)
        columns = {"length": pa.array(lengths), "tokens": list_array(flat, lengths)}
        if words:
            kept = [step[:count] for step, count in zip(steps, lengths, strict=True)]
            columns |= {STEP: pa.array(kept, pa.list_(pa.int32())), RAW_LENGTH: pa.array(raw, pa.int32())}
        left_out = [sum(map(len, one)) + len(one) - 1 - len(left) for one, left in zip(tokens, lists, strict=True)]
        columns[CUT] = pa.array(left_out, pa.int32())
        return columns, {"tokens": whole, "cut": sum(left_out), "cut_rows": sum(one > 0 for one in left_out),
                         "unknown": int((flat == UNKNOWN).sum()), "rows": len(rows)}

    def input_state(self, sums: State) -> State:
        assert self.fitted is not None
        total = max(1, sums.get("tokens", 0))
        kept = max(1, sums.get("tokens", 0) - sums.get("cut", 0))
        notes = [f"text: {self.fitted['vocabulary']:,} tokens in the {self.tokenizer} vocabulary, {total:,} in all "
                 f"rows, {sums.get('unknown', 0) / kept:.2%} of them unknown"]
        if sums.get("cut"):
            notes.append(f"text: {sums['cut_rows']:,} of {sums['rows']:,} rows cut to {self.max_length} tokens, "
                         f"{sums['cut'] / total:.1%} of all tokens")
        return {"notes": notes, "tokens": sums}

    def input_spec(self, state: State | None) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary if state is None else state["vocabulary"]}

    def inputs(self, state: State) -> dict[str, int]:
        return {"tokens": 0}

    def raw_tables(self, source: str) -> Iterator[pa.Table]:
        """Rows of files; what names none and looks like none is itself a text."""
        if _names_a_file(source, self.suffixes):
            for one in self.find(source):
                whole = self.whole_files and files.suffix(one.uri) in files.LINES
                yield from files.read_blocks(one.uri, self.input_columns(), lenient=True, whole=whole)
        elif len(self.text) > 1:
            raise ValueError(f"{source!r}: this model reads two texts ({', '.join(self.text)}); give a file with both")
        else:
            yield pa.table({self.text[0]: [source], "__file": ["text"], "__row": [1], "__bad": pa.nulls(1, files.BAD)})

    def _texts(self, table: pa.Table, column: str, rows: Sequence[int]) -> list[Any]:
        """The texts of these rows, without blanks at their ends unless they are whole files; with step_labels the words
        of each; None without."""
        kind, values = table.schema.field(column).type, table[column].to_pylist()
        words = self.told.step_labels is not None
        if _is_list(kind) and (_is_text(kind.value_type) or pa.types.is_null(kind.value_type)):
            lists = [values[i] and [(word or "").strip() for word in values[i]] for i in rows]
            return lists if words else [one and " ".join(filter(None, one)) for one in lists]
        if _is_text(kind) or pa.types.is_null(kind):
            return [values[i] and (values[i].split() if words else values[i] if self.whole_files else values[i].strip())
                    for i in rows]
        raise ValueError(f"{table['__file'][0].as_py()}: column {column!r} holds {kind}, not text; name another "
                         "column in dataset.text")


@files.in_task
def _cut(training: Collection[str], shares: Sequence[float], table: pa.Table) -> Iterator[pa.Table]:
    """Each whole file of `training` as rows 1, 2 and 3, for training, validation and test, where they are not empty."""
    for row in table.to_pylist():
        text, place = row["text"], {"__file": row["__file"], "__bad": row["__bad"]}
        if text is None or row["__file"] not in training:
            parts = [text]
        else:
            ends = [int(len(text) * (1 - sum(shares[i:]))) for i in range(len(shares))]
            parts = [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]
        yield pa.Table.from_pylist([{"text": part, "__row": i + 1, **place} for i, part in enumerate(parts)
                                    if part or i == 0], table.schema)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _names_a_file(source: str, suffixes: Sequence[str]) -> bool:
    """Whether a source is a path, a glob or a URI, there or not; else it is a text itself."""
    if source.lower().endswith(tuple(suffixes)) or re.match(r"[A-Za-z][\w+.-]*://\S+$", source):
        return True
    if not re.search(r"\s", source) and ("*" in source or re.match(r"~?/|\.\.?/", source)):
        return True
    try:
        return Path(source).exists()
    except OSError:                                                 # longer than a name can be
        return False


def _ids(made: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of each text; of long ones piece by piece, as the tokenizer takes some 300 bytes a character."""
    short = [text if len(text) <= LONG else "" for text in texts]
    out = [one.ids for one in made.encode_batch_fast(short, add_special_tokens=False)]      # which knows of no words
    for place, text in enumerate(texts):
        if len(text) > LONG:
            out[place] = [token for piece in PIECES_OF_LONG.findall(text)
                          for token in made.encode(piece, add_special_tokens=False).ids]
    return out


def _joined(parts: list[list[int]], most: int | None) -> list[int]:
    """One sequence of one or two texts, at most `most` tokens, the longer one cut first."""
    if len(parts) == 1:
        return parts[0] if most is None else parts[0][:most]
    a, b = parts
    if most is not None and len(a) + len(b) + 1 > most:
        left = most - 1
        short = min(len(a), len(b), left // 2)
        a, b = (a[:short], b[:left - short]) if len(a) <= len(b) else (a[:left - short], b[:short])
    return [*a, END, *b]


def _first_tokens(words: list[int | None]) -> list[int]:
    """The word of each token that is the first of its word; -1 for the others."""
    return [-1 if word is None or (i and words[i - 1] == word) else word for i, word in enumerate(words)]
