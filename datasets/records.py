"""Records: tables whose rows are examples, each with an input and what to tell from it.

What text, audio and sequences share: where the rows come from, which split each is in, what is told (a class, several
classes, a class a step, numbers), and what becomes of rows that cannot be used. A kind of dataset adds its input:
which columns it reads, what is fitted on the training rows, and how a row is encoded.

Data is read twice by Ray Data: once to fit (training rows only), once for each split to encode.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from datasets import files
from datasets.files import Source
from datasets.plan import mixed
from datasets.storage import sha256
from datasets.views import RowView
from datasets.vocabulary import BEGIN, END, PIECES, Kind, Vocabulary, load

if TYPE_CHECKING:
    import ray.data

    from datasets.prepare import Part, Prepared
    from datasets.views import View

State = dict[str, Any]                       # JSON-able
Bad = dict[int, tuple[str, str]]             # row of a table -> field, what is wrong with it
PARTS = ("train", "validation", "test")
REQUEST_ROWS = 512                           # of new data encoded at a time
MOST_NGRAMS = 8
MAX_CLASSES = 10_000                         # more is most likely a column of numbers or of texts


@dataclass(frozen=True)
class Options:
    """Where records come from, how they are split, and what is told of each.

    Attributes:
        path: file, folder, glob or URI; or one of these for each split ({train: ..., test: ...}).
        split: shares of the training rows that are drawn for validation and test ({validation: 0.1}); which rows is a
            function of their place in the files.
        split_column: the column that says which split a row is in.
        split_values: the values of split_column that stand for a split ({test: [george]}); rows of other values are
            for training. Without it the values are train, validation and test themselves.
        label: the column that has each row's class (task classify).
        labels: the column that has each row's classes, any number of them: a list, or names separated by spaces
            (task classify, each class decided by itself).
        step_labels: the column that has a class for each step: a list, or names separated by spaces (task label). A
            null in a list is a step without one, of which nothing is learnt.
        numbers: the columns of numbers to predict (task regress).
        target: the column of the text to make of each row (tasks transcribe and translate).
        target_tokenizer: what a token of that text is: bpe, unigram, word, character or byte (see the tokenizer of
            text); the vocabulary is learnt from the training rows. Of text also shared: the vocabulary of the
            input (tokenizer, vocabulary, ...), then learnt from both texts, serves both.
        target_vocabulary: most tokens in it, 4 special ones included; byte always has 260. Not for shared.
        target_lowercase: whether its capital letters are made small; metrics then compare small letters.
        target_ngrams: how many tokens in a row the training rows' texts are counted by, for a language model that a
            beam search can listen to (task.language_weight); 0 counts none.
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
        _check_parts("path", self.path if isinstance(self.path, dict) else {})
        _check_parts("split", self.shares)
        _check_parts("split_values", self.values)
        self._check_split()
        if not 0 <= self.target_ngrams <= MOST_NGRAMS:
            raise ValueError(f"dataset.target_ngrams={self.target_ngrams} is out of range; use 0 to {MOST_NGRAMS}")
        self.words()                                                # refuses what is out of range

    @property
    def shared(self) -> bool:
        """Whether the target has the vocabulary of the input."""
        return self.target_tokenizer == "shared"

    def words(self) -> Vocabulary | None:
        """How the target's vocabulary is learnt; None where it is the input's."""
        if self.target_tokenizer == "shared":
            return None
        return Vocabulary(self.target_tokenizer, self.target_vocabulary, lowercase=self.target_lowercase,
                          prefix="target_")

    @property
    def shares(self) -> dict[str, float]:
        """`split`, or none of it."""
        return self.split or {}

    @property
    def values(self) -> dict[str, list[str]]:
        """`split_values`, or none of them."""
        return {part: [str(value) for value in values] for part, values in (self.split_values or {}).items()}

    @property
    def class_columns(self) -> dict[str, str]:
        """The columns of classes that are given, by what they tell: ``label``, ``labels`` or ``step_labels``."""
        given = {"label": self.label, "labels": self.labels, "step_labels": self.step_labels}
        return {target: column for target, column in given.items() if column is not None}

    @property
    def number_columns(self) -> list[str]:
        """`numbers`, or none of them."""
        return self.numbers or []

    def _check_split(self) -> None:
        for part, share in self.shares.items():
            if part == "train" or not 0 < share < 1:
                raise ValueError(f"dataset.split={self.split}: give validation and test a share of the training rows "
                                 "between 0 and 1; what is left is for training")
        if sum(self.shares.values()) >= 1:
            raise ValueError(f"dataset.split={self.split} leaves nothing for training; use smaller shares")
        if self.values and self.split_column is None:
            raise ValueError("dataset.split_values says what the values of dataset.split_column mean; name that column")
        if self.split_column is not None and isinstance(self.path, dict):
            raise ValueError(f"dataset.split_column={self.split_column!r} and a path for each split contradict each "
                             "other; leave one of them out")
        given = [*self.shares, *(self.path if isinstance(self.path, dict) else ())]
        for part in PARTS[1:]:
            if given.count(part) > 1 or (part in self.shares and part in self.values):
                raise ValueError(f"dataset.split gives {part} a share, and rows of its own are named too; "
                                 "leave one of them out")
        values = [value for listed in self.values.values() for value in listed]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"dataset.split_values has {value!r} twice; a row can be in one split only")

    @property
    def columns(self) -> list[str]:
        """The columns of what is told, and of the split."""
        given = [self.split_column, *self.class_columns.values(), *self.number_columns, self.target]
        return [name for name in given if name is not None]

    @property
    def offers(self) -> tuple[str, ...]:
        """What is told: those of label, labels, step_labels, numbers and target that are given."""
        return tuple(name for name in ("label", "labels", "step_labels", "numbers", "target") if getattr(self, name))


def _check_parts(key: str, given: Mapping[str, Any]) -> None:
    for part in given:
        if part not in PARTS:
            raise ValueError(f"dataset.{key} has {part!r}; the splits are {', '.join(PARTS)}")


@dataclass(kw_only=True)
class Records:
    """A dataset of records; subclasses add the input. See the module.

    Attributes:
        told: the shared options.
        fitted: what the training rows gave; `encode` finds it, unless it was given by `reuse`.
    """

    told: Options
    fitted: State | None = field(default=None, init=False)
    reused: bool = field(default=False, init=False)
    unsaid: int = field(default=0, init=False)      # the split in which rows count that do not say theirs
    kind: ClassVar[str]
    frontend: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = files.TABLES

    def __post_init__(self) -> None:
        if self.told.label is not None and self.told.labels is not None:
            raise ValueError("dataset.label (one class a row) and dataset.labels (any number of them) contradict each "
                             "other; leave one of them out")
        if self.told.shared and self.told.target is None:
            raise ValueError("dataset.target_tokenizer=shared shares the vocabulary with the text in dataset.target; "
                             "name its column")
        if self.told.shared and self.frontend != "tokens":
            raise ValueError(f"dataset.target_tokenizer=shared: the input of dataset.kind={self.kind!r} is no text; "
                             "use character, bpe, unigram, word or byte")

    # What a kind of dataset says of its input

    def input_columns(self) -> list[str]:
        """The columns that the input is read from."""
        raise NotImplementedError

    def tally(self, table: pa.Table, rows: Sequence[int]) -> tuple[State, list[str]]:
        """What fitting needs of these training rows of a table: sums that `merge` can add, and texts to learn from."""
        return {}, []

    def fit(self, texts: Iterator[list[str]], sums: State) -> State:
        """Fitted state of the input.

        Args:
            texts: of all `tally` calls, in any order; must be read to the end.
            sums: of all tallies, complete once the texts are read.
        """
        for _ in texts:
            pass
        return {}

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: Bad) -> tuple[dict[str, pa.Array], State]:
        """The input of these rows.

        Returns:
            (columns with an entry for each of `rows`, null where it was added to `bad`; among them ``length`` int32),
            and sums that `merge` can add, for `input_state`.
        """
        raise NotImplementedError

    def input_state(self, sums: State) -> State:
        """What state says of the input beside what was fitted, from the sums of `encode_input`; may have "notes"."""
        return {}

    def input_spec(self, state: State | None) -> dict[str, Any]:
        """What a model must know of the input."""
        raise NotImplementedError

    def inputs(self, state: State) -> dict[str, int]:
        """Columns of the stored input, as RowView has them."""
        raise NotImplementedError

    # RawDataset

    @property
    def offers(self) -> tuple[str, ...]:
        return self.told.offers

    def listed(self) -> list[tuple[Source, str]]:
        """The raw files in order, each with its split ("train" where the rows say)."""
        paths = self.told.path if isinstance(self.told.path, dict) else {"train": self.told.path}
        found = [(source, part) for part in PARTS if part in paths for source in self.find(paths[part])]
        part_of: dict[str, str] = {}
        for source, part in found:
            if part_of.setdefault(source.uri, part) != part:
                raise ValueError(f"dataset.path: {source.uri} is in both {part_of[source.uri]} and {part}; "
                                 "each file can be in one split only")
        return found

    @property
    def splits(self) -> set[str] | None:
        """The splits that there will be; None where only the rows can say."""
        told = self.told
        if told.split_column is not None and not told.values:
            return None
        return {"train", *told.shares, *told.values} if isinstance(told.path, str) else {*told.path, *told.shares}

    def find(self, path: str) -> list[Source]:
        """The raw files that a path stands for."""
        return files.resolve(path, suffixes=self.suffixes)

    def sources(self) -> list[Source]:
        return [source for source, _ in self.listed()]

    def options(self) -> dict[str, Any]:
        own = {item.name: getattr(self, item.name) for item in fields(self)
               if item.name not in ("told", "fitted", "reused", "unsaid")}
        told = {k: v for k, v in asdict(self.told).items() if k != "path"}
        fitted = sha256(json.dumps(self.fitted, sort_keys=True).encode()) if self.reused else None
        return {**own, **told, "parts": [part for _, part in self.listed()], "fitted": fitted}

    def reuse(self, state: State) -> None:
        """Encode by the fitted state of data that was prepared before, and fit nothing.

        Raises:
            ValueError: something else was told of those rows.
        """
        there, here = set(state["fitted"]["classes"]), set(self.told.class_columns)
        if here - there:
            raise ValueError(f"dataset.{min(here - there)} is not what the bundle tells ("
                             f"{', '.join(f'dataset.{one}' for one in sorted(there)) or 'numbers'}); give that instead")
        self.fitted, self.reused = state["fitted"], True

    def encode(self) -> dict[str, ray.data.Dataset]:
        """Stored rows by split: ``length``, the input, what is told, ``summary`` and ``quarantine``.

        Raises:
            ValueError: for what is wrong with the whole; a single bad record is quarantined.
        """
        listed = self.listed()
        with files.user_errors():
            if not self.reused:
                self.fitted = self._fit(listed)
            parts = self._parts(listed)
        return {part: self._encoded(listed, part) for part in parts}

    def state(self, summaries: Sequence[State]) -> State:
        """{"fitted": of the training rows: count, classes, moments of numbers, the input's own; and input_state's}."""
        assert self.fitted is not None
        total = functools.reduce(merge, summaries, State())
        told = self.input_state(total.get("input", {}))
        return {"fitted": self.fitted, **told}

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        fitted = None if state is None else state["fitted"]
        told: dict[str, Any] = {"frontend": self.frontend, **self.input_spec(fitted)}
        target = task["target"]
        if target == "target":
            return {**told, "shared": self.told.shared, "tokenizer": fitted and fitted["target"]["tokenizer"],
                    "tokens": fitted["target"]["vocabulary"] if fitted else
                    told["vocabulary"] if self.told.shared else self.told.target_vocabulary,
                    "ngrams": fitted["target"]["ngrams"] if fitted else [[0] * (self.told.target_ngrams + 1)]}
        if target == "numbers":
            return {**told, "targets": len(self.told.number_columns), "mean": fitted and fitted["numbers"]["mean"],
                    "std": fitted and fitted["numbers"]["std"]}
        return {**told, "classes": len(fitted["classes"][target]) if fitted else 2, "rows": fitted and fitted["rows"],
                "counts": fitted and fitted["counts"][target], "several": target == "labels"}

    def names(self, state: Mapping[str, Any], target: str) -> list[str]:
        """What the numbers of a target stand for: classes in the order of their numbers, or columns of numbers."""
        if target not in (*self.told.class_columns, "numbers"):
            return []
        if target == "numbers":
            return self.told.number_columns
        names: list[str] = state["fitted"]["classes"][target]
        return names

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        kinds: dict[str, str | int] = {"label": "row", "step_labels": "step", "numbers": "row", "target": "list"}
        target = task["target"]
        kind = kinds.get(target, len(self.names(prepared.state, target)))
        return RowView(part_of(prepared, split), self.inputs(prepared.state["fitted"]), {target: kind})

    def encode_request(self, source: str, state: State) -> Iterator[pa.Table]:
        """New raw rows, encoded by a fitted state, in this process and in bounded memory.

        Yields:
            ``length`` and the input, ``__file``, ``__row``; in rows that cannot be used the former are null, and
            ``skipped`` says why.
        """
        self.fitted = state["fitted"]
        for table in self.raw_tables(source):
            for start in range(0, len(table), REQUEST_ROWS):
                raw = table.slice(start, REQUEST_ROWS)
                bad = _bad_of(raw)
                rows = [i for i in range(len(raw)) if i not in bad]
                columns, _ = self.encode_input(raw, rows, bad)
                place = np.full(len(raw), -1)
                place[rows] = np.arange(len(rows))
                place[list(bad)] = -1
                index = pa.array(np.maximum(place, 0), mask=place < 0)
                why = [": ".join(filter(None, bad[i])) if i in bad else None for i in range(len(raw))]
                yield pa.table({**{name: column.take(index) for name, column in columns.items()},
                                "__file": raw["__file"], "__row": raw["__row"], "skipped": pa.array(why, pa.string())})

    def raw_tables(self, source: str) -> Iterator[pa.Table]:
        """The rows of a file, folder, glob or URI with the input's columns."""
        for one in self.find(source):
            yield from files.read_blocks(one.uri, self.input_columns(), lenient=True)

    def spread(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """The raw rows in blocks that are encoded each by a task."""
        return rows

    def raw_rows(self, sources: Sequence[Source]) -> ray.data.Dataset:
        """All columns that are used, of raw files."""
        return files.read(sources, list(dict.fromkeys([*self.input_columns(), *self.told.columns])), lenient=True)

    # Splits

    def _parts(self, listed: list[tuple[Source, str]]) -> list[str]:
        """The splits that there are."""
        there = {part for _, part in listed}
        if "train" in there:                                        # files whose rows may be in any split
            there |= set(self.told.shares) | set(self.told.values)
            if self.told.split_column is not None and not self.told.values:
                assert self.fitted is not None
                found = self._split_values(listed) if self.reused else set(self.fitted["split_values"])
                there = set(self.told.shares) | found
        parts = [part for part in PARTS if part in there]
        self.unsaid = PARTS.index(parts[0])
        return parts

    def _split_values(self, listed: list[tuple[Source, str]]) -> set[str]:
        """What the split column says, of data that nothing is fitted on."""
        task = functools.partial(_split_block, self)
        rows = self.raw_rows([source for source, part in listed if part == "train"]).map_batches(
            task, batch_size=None, batch_format="pyarrow", num_cpus=files.TASK_CPUS)
        return {value for block in rows.iter_batches(batch_size=None, batch_format="pyarrow")
                for value in block["value"].to_pylist()}

    def in_part(self, listed: list[tuple[Source, str]], part: str, table: pa.Table) -> NDArray[np.int64]:
        """Rows of the table that are in a split; rows that do not say theirs count in the first there is."""
        names = {source.uri: (number, PARTS.index(own)) for number, (source, own) in enumerate(listed)}
        files_ = table["__file"].combine_chunks().dictionary_encode()
        found = np.array([names[uri] for uri in files_.dictionary.to_pylist()], np.int64)[files_.indices.to_numpy()]
        number, parts = found.T
        if self.told.split_column is not None:
            parts = self._by_column(table, parts)
        train = parts == 0
        draw = _draws(number, table["__row"].to_numpy())
        low = 0.0
        for name, share in self.told.shares.items():
            parts[train & (draw >= low) & (draw < low + share)] = PARTS.index(name)
            low += share
        return np.flatnonzero(parts == PARTS.index(part))

    def bad_of(self, table: pa.Table) -> Bad:
        """Rows that reading found wrong, and rows that ought to say in which split they are and do not."""
        bad = _bad_of(table)
        if self.told.split_column is not None and (not self.told.values or "train" in self.told.values):
            for i, value in enumerate(_texts(table, self.told.split_column)):
                if value is None:
                    bad.setdefault(i, (self.told.split_column, "no value"))
        return bad

    def _by_column(self, table: pa.Table, parts: NDArray[np.int64]) -> NDArray[np.int64]:
        column = self.told.split_column or ""
        of = {value: PARTS.index(part) for part, values in self.told.values.items() for value in values}
        of = of or {part: i for i, part in enumerate(PARTS)}
        for i, value in enumerate(_texts(table, column)):
            if value is None or value in of:
                parts[i] = self.unsaid if value is None else of[value]
            elif not self.told.values:
                at = f"{table['__file'][i].as_py()}, row {table['__row'][i].as_py()}"
                raise ValueError(f"{at}: column {column!r} is {value!r}, which is no split; say by "
                                 f"dataset.split_values which values mean which, such as {{validation: [{value}]}}")
            elif "train" in self.told.values:
                parts[i] = -1                                       # of no split
        return parts

    # Fitting

    def _fit(self, listed: list[tuple[Source, str]]) -> State:
        training = [source for source, part in listed if part == "train"]
        if not training:
            raise ValueError(f"dataset.path={self.told.path}: there are no training files; name some under train")
        total: State = {"input": {}}

        def texts() -> Iterator[list[str]]:
            task = functools.partial(_tally_block, self, listed)
            rows = self.raw_rows(training).map_batches(task, batch_size=None, batch_format="pyarrow",
                                                       num_cpus=files.TASK_CPUS)
            for block in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                for told, some in zip(block["tally"].to_pylist(), block["texts"].to_pylist(), strict=True):
                    added = json.loads(told)
                    total["input"].update(merge(total["input"], added.pop("input")))
                    total.update(merge({k: v for k, v in total.items() if k != "input"}, added))
                    yield some

        fitted = self.fit(texts(), total["input"])
        if not total.get("rows"):
            raise ValueError(f"{', '.join(source.uri for source in training[:3])}: there are no training rows that can "
                             "be used; look at the split and at the first rows")
        counts = {target: total.get("classes", {}).get(target, {}) for target in self.told.class_columns}
        classes = {target: _class_order(self.told.class_columns[target], found) for target, found in counts.items()}
        told: State = {"rows": total["rows"], "classes": classes,
                       "counts": {target: [found[c] for c in classes[target]] for target, found in counts.items()},
                       "split_values": list(total.get("split_values", {}))}
        if self.told.number_columns:
            told["numbers"] = moments(total["numbers"])
        if self.told.target is not None:
            told["target"] = self._fit_target(listed, training, fitted)
        return {**told, **fitted}

    def _fit_target(self, listed: list[tuple[Source, str]], training: Sequence[Source], fitted: State) -> State:
        """The vocabulary of the training rows' targets (or `fitted`'s), and how often tokens follow each other."""
        def passes(task: Any, *more: Any) -> Iterator[Any]:
            rows = self.raw_rows(training).map_batches(functools.partial(task, self, listed, *more), batch_size=None,
                                                       batch_format="pyarrow", num_cpus=files.TASK_CPUS)
            for block in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from block["found"].to_pylist()

        words = self.told.words()
        learnt = {name: fitted[name] for name in ("tokenizer", "vocabulary")} if words is None else words.learn(
            passes(_target_texts))
        counts: Counter[tuple[int, ...]] = Counter()
        if self.told.target_ngrams:
            for found in passes(_target_ngrams, learnt["tokenizer"]):
                counts.update({tuple(ngram): count for *ngram, count in found})
        return {**learnt, "ngrams": [[*ngram, count] for ngram, count in sorted(counts.items())]}

    def targets(self, table: pa.Table, rows: Sequence[int]) -> list[str]:
        """The targets of these rows that are not empty."""
        texts = _texts(table, self.told.target or "")
        return [text for i in rows if (text := texts[i])]

    def tally_told(self, table: pa.Table, rows: Sequence[int]) -> State:
        """Sums over training rows of what is told: rows a class, and moments of the numbers."""
        told, out = self.told, State({"rows": len(rows), "classes": {}})
        for target, column in told.class_columns.items():
            values = [[one] for one in _texts(table, column)] if target == "label" else _several(table, column)
            found = [values[i] or () for i in rows]
            names = (x for some in found for x in (set(some) if target == "labels" else some))     # twice counts once
            out["classes"][target] = Counter(x for x in names if x is not None)
        if told.number_columns:
            numbers = self._told_numbers(table, rows)
            out["numbers"] = tally_moments(numbers[np.isfinite(numbers).all(1)])
        return out

    # Encoding

    def _encoded(self, listed: list[tuple[Source, str]], part: str) -> ray.data.Dataset:
        by_part = {name: [source for source, named in listed if named == name] for name in PARTS}
        own = by_part[part] or by_part["train"]                     # whose rows say in which split they are
        task = functools.partial(_encode_block, self, listed, part)
        return self.spread(self.raw_rows(own)).map_batches(task, batch_size=None, batch_format="pyarrow",
                                                           num_cpus=files.TASK_CPUS)

    def encode_told(self, table: pa.Table, rows: Sequence[int], columns: Mapping[str, pa.Array],
                    bad: Bad) -> dict[str, pa.Array]:
        """The stored columns of what is told of these rows; an entry each, null where it was added to `bad`."""
        assert self.fitted is not None
        told, out = self.told, dict[str, pa.Array]()
        index = {column: {name: i for i, name in enumerate(self.fitted["classes"][target])}
                 for target, column in told.class_columns.items()}
        if told.label is not None:
            names = _texts(table, told.label)
            out["label"] = pa.array([_index(names[i], told.label, index, i, bad) for i in rows], pa.int32())
        if told.labels is not None:
            lists = _several(table, told.labels)
            out["labels"] = pa.array([_indices(lists[i], told.labels, index, i, bad) for i in rows],
                                     pa.list_(pa.int32()))
        if told.step_labels is not None:
            lists = _several(table, told.step_labels)
            found = [_indices(lists[i], told.step_labels, index, i, bad, missing=NONE) for i in rows]
            out["step_labels"] = pa.array(_by_step(found, rows, columns, told.step_labels, bad), pa.list_(pa.int32()))
        if told.number_columns:
            numbers = self._told_numbers(table, rows)
            for place, column in np.argwhere(~np.isfinite(numbers)):
                given = table[told.number_columns[column]][rows[place]].as_py()
                bad.setdefault(rows[place], (told.number_columns[column], f"{given!r} is no finite number"))
            out["numbers"] = pa.FixedSizeListArray.from_arrays(pa.array(numbers.ravel()), numbers.shape[1])
        if told.target is not None:
            out["target"] = pa.array(self._target_tokens(table, rows, told.target, bad), pa.list_(pa.int32()))
        return out

    def _target_tokens(self, table: pa.Table, rows: Sequence[int], column: str, bad: Bad) -> list[list[int]]:
        """The tokens of the target of each of these rows."""
        assert self.fitted is not None
        texts = _texts(table, column)
        made = load(self.fitted["target"]["tokenizer"])
        out = [one.ids for one in made.encode_batch_fast([texts[i] or "" for i in rows], add_special_tokens=False)]
        for i, tokens in zip(rows, out, strict=True):
            if not tokens:
                bad.setdefault(i, (column, "no token in it" if texts[i] else "no value"))
        return out

    def _told_numbers(self, table: pa.Table, rows: Sequence[int]) -> NDArray[np.float32]:
        """(rows, N): the numbers of these rows; not finite where there is none that float32 can hold."""
        numbers = np.stack([_numbers(table, name)[rows] for name in self.told.number_columns], 1)
        with np.errstate(over="ignore"):
            return numbers.astype(np.float32)


class Made(Records):
    """Records made from a seed, in place of files; comes before the kind of record among a class's bases.

    Attributes:
        rows: of all splits: 80 % for training, 10 % for validation, 10 % for the test.
        seed: another seed, other data.
        wrong: share of the classes that are replaced by another one.
    """

    rows: int
    seed: int
    wrong: float = 0.0

    def make(self, rng: np.random.Generator, count: int) -> dict[str, Any]:
        """`count` records: columns by name."""
        raise NotImplementedError

    @property
    def splits(self) -> set[str]:
        return set(PARTS)

    @property
    def best(self) -> dict[str, float]:
        """The metrics that no model can beat in expectation."""
        return {"accuracy": 1 - self.wrong}

    def listed(self) -> list[tuple[Source, str]]:
        """A source that is no file for each split."""
        return [(Source(f"{self.kind}/{part}", 0, 0), part) for part in PARTS]

    def sources(self) -> list[Source]:
        """None: the options say everything."""
        return []

    def raw_rows(self, sources: Sequence[Source]) -> ray.data.Dataset:
        import ray.data

        items = []
        for source in sources:
            count = max(1, round(self.rows * MADE[source.uri.rpartition("/")[2]]))
            items += [{"uri": source.uri, "start": start, "count": min(MADE_ROWS, count - start)}
                      for start in range(0, count, MADE_ROWS)]
        return ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            functools.partial(_make_block, self), batch_size=None, batch_format="pyarrow", num_cpus=files.TASK_CPUS)

    def state(self, summaries: Sequence[State]) -> State:
        return {**super().state(summaries), "best": self.best}


MADE = {"train": 0.8, "validation": 0.1, "test": 0.1}       # shares of records that are made
MADE_ROWS = 1024                                            # made by one task


@files.in_task
def _make_block(dataset: Made, items: pa.Table) -> Iterator[pa.Table]:
    for item in items.to_pylist():
        rng = np.random.default_rng([dataset.seed, list(MADE).index(item["uri"].rpartition("/")[2]), item["start"]])
        count = item["count"]
        rows = np.arange(item["start"] + 1, item["start"] + count + 1)
        yield pa.table({**dataset.make(rng, count), "__file": [item["uri"]] * count, "__row": rows,
                        "__bad": pa.nulls(count, files.BAD)})


def check_made(rows: int, seed: int, *, wrong: float = 0.0, noise: float = 0.0) -> None:
    """Raise ValueError for less than 100 rows, a negative seed, half of the classes wrong, or noise not in [0, 10]."""
    if rows < 100:
        raise ValueError(f"dataset.rows={rows} is too small; use at least 100")
    if seed < 0:
        raise ValueError(f"dataset.seed={seed} is too small; use at least 0")
    if not 0 <= wrong < 0.5:
        raise ValueError(f"dataset.wrong={wrong} must be in [0, 0.5); with half of the classes wrong there is nothing "
                         "to learn")
    if not 0 <= noise <= 10:
        raise ValueError(f"dataset.noise={noise} must be in [0, 10]")


@files.in_task
def _tally_block(dataset: Records, listed: list[tuple[Source, str]], table: pa.Table) -> Iterator[pa.Table]:
    if not len(table):
        return
    bad = dataset.bad_of(table)
    rows = [int(i) for i in dataset.in_part(listed, "train", table) if i not in bad]
    told = dataset.tally_told(table, rows)
    if dataset.told.split_column is not None:
        told["split_values"] = Counter(x for x in _texts(table, dataset.told.split_column) if x is not None)
    told["input"], texts = dataset.tally(table, rows)
    yield pa.table({"tally": [json.dumps(told)], "texts": pa.array([texts], pa.list_(pa.string()))})


def _training_targets(dataset: Records, listed: list[tuple[Source, str]], table: pa.Table) -> list[str]:
    bad = dataset.bad_of(table)
    return dataset.targets(table, [int(i) for i in dataset.in_part(listed, "train", table) if i not in bad])


@files.in_task
def _target_texts(dataset: Records, listed: list[tuple[Source, str]], table: pa.Table) -> Iterator[pa.Table]:
    if len(table):
        texts = [piece for text in _training_targets(dataset, listed, table) for piece in PIECES.findall(text)]
        yield pa.table({"found": pa.array([texts], pa.list_(pa.string()))})


@files.in_task
def _target_ngrams(dataset: Records, listed: list[tuple[Source, str]], tokenizer: str,
                   table: pa.Table) -> Iterator[pa.Table]:
    """How often each run of `target_ngrams` tokens occurs: [tokens and the count].

    Each text begins with as many BEGIN as a run holds more than one token, and ends with END: so every token ends one
    run, and shorter runs can be counted from these.
    """
    if not len(table):
        return
    order, counts = dataset.told.target_ngrams, Counter[tuple[int, ...]]()
    for encoded in load(tokenizer).encode_batch_fast(_training_targets(dataset, listed, table),
                                                     add_special_tokens=False):
        tokens = [BEGIN] * (order - 1) + encoded.ids + [END]
        counts.update(tuple(tokens[i:i + order]) for i in range(len(tokens) - order + 1))
    found = [[*ngram, count] for ngram, count in counts.items()]
    yield pa.table({"found": pa.array([found], pa.list_(pa.list_(pa.int64())))})


@files.in_task
def _split_block(dataset: Records, table: pa.Table) -> Iterator[pa.Table]:
    found = {value for value in _texts(table, dataset.told.split_column or "") if value is not None}
    yield pa.table({"value": pa.array(sorted(found), pa.string())})


@files.in_task
def _encode_block(dataset: Records, listed: list[tuple[Source, str]], part: str, table: pa.Table) -> Iterator[pa.Table]:
    if not len(table):
        return
    own, bad = [int(i) for i in dataset.in_part(listed, part, table)], dataset.bad_of(table)
    if not own:
        return
    rows = [i for i in own if i not in bad]
    columns, sums = dataset.encode_input(table, rows, bad)
    columns |= dataset.encode_told(table, rows, columns, bad)
    columns = {name: column for name, column in columns.items() if name not in (STEP, RAW_LENGTH, CUT)}
    kept = [place for place, i in enumerate(rows) if i not in bad]
    stored = pa.table(columns)
    if len(kept) < len(rows):
        stored = stored.take(pa.array(kept, pa.int64()))
    wrong = [json.dumps({"uri": table["__file"][i].as_py(), "row": table["__row"][i].as_py(), "field": bad[i][0],
                         "reason": bad[i][1]}) for i in own if i in bad]
    summary = json.dumps({"input": sums})
    stored = pa.concat_tables([stored.append_column("quarantine", pa.nulls(len(kept), pa.string())),
                               pa.table({"quarantine": pa.array(wrong, pa.string())})], promote_options="default")
    yield stored.append_column("summary", pa.array([summary, *[""] * (len(stored) - 1)], pa.string()))


NONE = -1                   # the class of a step without one
STEP = "__step"             # a column of encode_input: for each stored step, the raw step it stands for, or -1
RAW_LENGTH = "__steps"      # and how many raw steps there were, where that is not ``length``
CUT = "__cut"               # and how many stored steps were left out of each row


def _by_step(found: list[list[int] | None], rows: Sequence[int], columns: Mapping[str, pa.Array], name: str,
             bad: Bad) -> list[list[int] | None]:
    """The class of each stored step; -1 where a stored step stands for no raw one."""
    steps = columns[STEP].to_pylist() if STEP in columns else [None] * len(rows)
    raw = columns[RAW_LENGTH if RAW_LENGTH in columns else "length"].to_pylist()
    out: list[list[int] | None] = []
    for i, classes, mapped, expected in zip(rows, found, steps, raw, strict=True):
        if classes is not None and expected is not None and len(classes) != expected:
            bad.setdefault(i, (name, f"{len(classes)} classes for {expected} steps"))
        if i in bad or classes is None:
            out.append(None)
        else:
            out.append(classes if mapped is None else [classes[step] if step >= 0 else NONE for step in mapped])
    return out


def _index(name: str | None, column: str, index: Mapping[str, Mapping[str, int]], row: int, bad: Bad) -> int | None:
    if name is None:
        bad.setdefault(row, (column, "no value"))
    elif name not in index[column]:
        bad.setdefault(row, (column, f"{name!r} is no class of the training rows"))
    else:
        return index[column][name]
    return None


def _indices(names: Names | None, column: str, index: Mapping[str, Mapping[str, int]], row: int, bad: Bad, *,
             missing: int | None = None) -> list[int] | None:
    """The numbers of a row's classes; `missing` where a name is null, which is wrong without it."""
    if names is None:
        bad.setdefault(row, (column, "no value"))
        return None
    found = [missing if name is None and missing is not None else _index(name, column, index, row, bad)
             for name in names]
    return None if row in bad else [x for x in found if x is not None]


def is_list(kind: pa.DataType) -> bool:
    """Whether a column holds lists, of one size or of any."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def list_array(flat: NDArray[Any], lengths: NDArray[Any]) -> pa.ListArray:
    """Lists of these lengths, one after the other in `flat`."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat))


def part_of(prepared: Prepared, split: str) -> Part:
    """The stored rows of a split; ValueError where there is none."""
    if split not in prepared.parts:
        raise no_split(split, prepared.parts)
    return prepared.parts[split]


def no_split(split: str, there: Iterable[str]) -> ValueError:
    """The error of data without a split that is needed."""
    return ValueError(f"the data has no {split} split, only {', '.join(there)}; give it a file (dataset.path), or a "
                      f"share of the training rows (dataset.split={{{split}: 0.1}})")


# Values of raw columns

def _bad_of(table: pa.Table) -> Bad:
    """What reading found wrong."""
    where = np.flatnonzero(table["__bad"].is_valid().to_numpy(zero_copy_only=False))
    return {int(i): (told["field"], told["reason"]) for i in where for told in [table["__bad"][int(i)].as_py()]}


Names = list[str | None]


def _texts(table: pa.Table, name: str) -> Names:
    """Names: text without blanks at its ends, or numbers or truth values as text; None where there is nothing."""
    kind = table.schema.field(name).type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise _wrong_type(table, name, "names or numbers")
    return [_name(value) for value in table[name].to_pylist()]


def _name(value: Any) -> str | None:
    if isinstance(value, float):
        if math.isnan(value):                               # of pandas, which has no other null in a column of numbers
            return None
        value = int(value) if value.is_integer() else value         # 1.0 in one block is 1 in another
    return None if value is None else str(value).strip() or None


def _several(table: pa.Table, name: str) -> list[Names | None]:
    """Lists of names: a list, or a text of names with blanks between; None where there is nothing."""
    kind = table.schema.field(name).type
    if is_list(kind):
        if pa.types.is_nested(kind.value_type) or pa.types.is_binary(kind.value_type):
            raise _wrong_type(table, name, "lists of names or numbers")
        return [None if value is None else [_name(x) for x in value] for value in table[name].to_pylist()]
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return [None if value is None else value.split() for value in table[name].to_pylist()]
    return [None if value is None else [value] for value in _texts(table, name)]


def _numbers(table: pa.Table, name: str) -> NDArray[np.float64]:
    """(rows,) float64, NaN where there is no number."""
    kind = table.schema.field(name).type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = (files.number(value) if value else None for value in table[name].to_pylist())
        return np.array([math.nan if number is None else number for number in found])
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise _wrong_type(table, name, "numbers")
    values: NDArray[np.float64] = pc.fill_null(table[name].cast(pa.float64(), safe=False), math.nan).to_numpy()
    return values


def _wrong_type(table: pa.Table, name: str, wanted: str) -> ValueError:
    return ValueError(f"{table['__file'][0].as_py()}: column {name!r} holds {table.schema.field(name).type}, where "
                      f"{wanted} are expected; name another column")


def _class_order(column: str, counts: Mapping[str, int]) -> list[str]:
    """The classes in the order of their names; whole numbers by value."""
    if len(counts) < 2:
        found = f"one class only, {next(iter(counts))!r}," if counts else "no class"
        raise ValueError(f"column {column!r} has {found} in the training rows; at least two are needed to tell one "
                         "from another")
    if len(counts) > MAX_CLASSES:
        raise ValueError(f"column {column!r} has {len(counts):,} classes in the training rows, more than "
                         f"{MAX_CLASSES:,}; is it a column of numbers? Then name it in dataset.numbers")
    whole = all(re.fullmatch(r"-?[0-9]+", name) for name in counts)
    return sorted(counts, key=(lambda name: (int(name), name)) if whole else None)


# Sums

def merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> State:
    """Sums of two tallies: numbers and lists of numbers added, moments combined, mappings key by key."""
    if "m2" in a and "m2" in b:
        return _merged_moments(a, b)
    out: State = dict(a)
    for key, value in b.items():
        if key not in out:
            out[key] = value
        elif isinstance(value, Mapping):
            out[key] = merge(out[key], value)
        else:
            out[key] = out[key] + value
    return out


def tally_moments(values: NDArray[Any]) -> State:
    """Count, mean and sum of squared deviations of each column of values (rows, C)."""
    if not len(values):
        return {"count": 0, "mean": [0.0] * values.shape[1], "m2": [0.0] * values.shape[1]}
    wide = values.astype(np.float64)
    mean = wide.mean(0)
    return {"count": len(values), "mean": mean.tolist(), "m2": np.square(wide - mean).sum(0).tolist()}


def _merged_moments(a: Mapping[str, Any], b: Mapping[str, Any]) -> State:
    """Chan, Golub & LeVeque (1983)."""
    count = a["count"] + b["count"]
    if not count:
        return dict(a)
    mean_a, mean_b = np.array(a["mean"]), np.array(b["mean"])
    gap = mean_b - mean_a
    m2 = np.array(a["m2"]) + np.array(b["m2"]) + gap ** 2 * a["count"] * b["count"] / count
    return {"count": count, "mean": (mean_a + gap * b["count"] / count).tolist(), "m2": m2.tolist()}


def moments(tally: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and deviation (1 where there is none) of each column."""
    std = np.sqrt(np.array(tally["m2"]) / max(1, tally["count"]))
    mean = np.array(tally["mean"])
    return {"mean": mean.tolist(), "std": np.where(std > 1e-12 * np.abs(mean), std, 1.0).tolist()}


def _draws(file: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(R,) a number in [0, 1) for each row, by its file and its place there."""
    return mixed((file.astype(np.uint64) << np.uint64(40)) + rows.astype(np.uint64)).astype(np.float64) / 2.0 ** 64
