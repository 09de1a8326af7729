"""Records: datasets of tables whose rows are examples, each with an input and targets.

`Records` does what text, audio, sequences and music have in common: finding and splitting rows (``splits.py``),
encoding their targets (``targets.py``), and setting aside rows that cannot be used. A kind of dataset derives from it
and adds the input: which columns it reads, what is fitted on the training rows, and how a row is encoded.

Ray Data reads the raw files once to fit (training rows only), and once for each split to encode. A tally has the sums
over a block of rows that fitting needs; see ``sums.py``.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from datasets.pipeline.storage import sha256
from datasets.pipeline.views import RowView
from datasets.reading import errors, find, formats
from datasets.reading.find import SourceFile
from datasets.shared.columns import BadRows, text_values, unreadable_rows
from datasets.shared.labels import CUT, RAW_LENGTH, STEP
from datasets.shared.options import SPLITS, RecordOptions
from datasets.shared.request import RequestRows, encoded_rows
from datasets.shared.splits import SplitFiles, files_of_paths, part_of, rows_in_split, unusable_rows
from datasets.shared.sums import State, merge
from datasets.shared.targets import encode_targets, fit_targets, tally_targets, target_texts
from datasets.shared.vocabulary import PIECES, load
from models.special_tokens import BEGIN, END

if TYPE_CHECKING:
    import ray.data

    from datasets.pipeline.prepared import Prepared
    from datasets.pipeline.views import View


REQUEST_ROWS = 512  # rows of new data that are encoded together


@dataclass(kw_only=True)
class Records:
    """Base class of datasets of records; see the module.

    Attributes:
        common: the options of all records.
        fitted: the fitted state of the training rows; set by `encode` or `reuse`.
        reused: whether `fitted` comes from `reuse`.
        default_split: the split of rows whose split column is empty.
        suffixes: endings of raw files that are taken from a folder.
    """

    common: RecordOptions
    fitted: State | None = field(default=None, init=False)
    reused: bool = field(default=False, init=False)
    default_split: str = field(default=SPLITS[0], init=False)
    kind: ClassVar[str]
    frontend: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = formats.TABLES

    def __post_init__(self) -> None:
        if self.common.label is not None and self.common.labels is not None:
            raise ValueError(
                "dataset.label (one class a row) and dataset.labels (any number of them) contradict each "
                "other; leave one of them out"
            )
        if self.common.shared and self.common.target is None:
            raise ValueError(
                "dataset.target_tokenizer=shared shares the vocabulary with the text in dataset.target; name its column"
            )
        if self.common.shared and self.frontend != "tokens":
            raise ValueError(
                f"dataset.target_tokenizer=shared: the input of dataset.kind={self.kind!r} is no text; "
                "use character, bpe, unigram, word or byte"
            )

    # The input, which a kind of dataset implements

    def input_columns(self) -> list[str]:
        """The raw columns of the input."""
        raise NotImplementedError

    def tally_input(self, table: pa.Table, rows: Sequence[int]) -> tuple[State, list[str]]:
        """What `fit_input` needs of these training rows of a table: a tally, and texts to learn a vocabulary from."""
        return {}, []

    def fit_input(self, texts: Iterator[list[str]], tally: State) -> State:
        """The fitted state of the input.

        Args:
            texts: of all calls of `tally_input`, in any order; must be read to the end.
            tally: the sum of all tallies, complete once the texts are read.
        """
        for _ in texts:
            pass
        return {}

    def encode_input(self, table: pa.Table, rows: Sequence[int], bad: BadRows) -> tuple[dict[str, pa.Array], State]:
        """Encode the input of these rows of a raw table.

        Returns:
            (columns with an entry for each of `rows`, among them ``length`` int32; null where the row was added to
            `bad`), and a tally for `input_state`.
        """
        raise NotImplementedError

    def input_state(self, tally: State) -> State:
        """Further state of the input, from the sum of the tallies of `encode_input`; it may have "notes"."""
        return {}

    def input_spec(self, fitted: State | None) -> dict[str, Any]:
        """The facts about the input that a front end needs; see `RawDataset.spec`."""
        raise NotImplementedError

    def stored_inputs(self, fitted: State) -> dict[str, int]:
        """The stored columns of the input, as of `RowView.inputs`."""
        raise NotImplementedError

    # The contract; see RawDataset

    @property
    def available_targets(self) -> tuple[str, ...]:
        return self.common.available_targets

    @property
    def splits(self) -> set[str] | None:
        """The splits that the data will have; None where this depends on the values of the split column."""
        options = self.common
        if options.split_column is not None and not options.values_by_split:
            return None
        named = {"train", *options.values_by_split} if isinstance(options.path, str) else set(options.path)
        return {*named, *options.split_shares}

    def files_with_splits(self) -> SplitFiles:
        """The raw files in order, each with its split ("train" where the rows decide)."""
        return files_of_paths(
            self.common.path if isinstance(self.common.path, dict) else {"train": self.common.path}, self.find_files
        )

    def find_files(self, path: str) -> list[SourceFile]:
        """The raw files at a path."""
        return find.resolve(path, suffixes=self.suffixes)

    def sources(self) -> list[SourceFile]:
        return [source for source, _ in self.files_with_splits()]

    def options(self) -> dict[str, Any]:
        not_options = ("common", "fitted", "reused", "default_split")
        of_kind = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in not_options}
        common = {k: v for k, v in asdict(self.common).items() if k != "path"}
        fitted = sha256(json.dumps(self.fitted, sort_keys=True).encode()) if self.reused else None
        return {**of_kind, **common, "parts": [split for _, split in self.files_with_splits()], "fitted": fitted}

    def reuse(self, state: State) -> None:
        """Encode with the fitted state of other data, and fit nothing.

        Raises:
            ValueError: that data has other targets.
        """
        available, wanted = set(state["fitted"]["classes"]), set(self.common.class_columns)
        if wanted - available:
            raise ValueError(
                f"dataset.{min(wanted - available)} is not what the bundle predicts ("
                f"{', '.join(f'dataset.{one}' for one in sorted(available)) or 'numbers'}); give that instead"
            )
        self.fitted, self.reused = state["fitted"], True

    def encode(self) -> dict[str, ray.data.Dataset]:
        files = self.files_with_splits()
        with errors.user_errors():
            if not self.reused:
                self.fitted = self._fit(files)
            splits = self._existing_splits(files)
        self.default_split = splits[0]
        return {split: self._encoded(files, split) for split in splits}

    def state(self, summaries: Sequence[State]) -> State:
        """``fitted``, see `targets.fit_targets` and `fit_input`; and what `input_state` returns."""
        assert self.fitted is not None
        total = functools.reduce(merge, summaries, State())
        return {"fitted": self.fitted, **self.input_state(total.get("input", {}))}

    def spec(self, state: Mapping[str, Any] | None, task: Mapping[str, Any]) -> dict[str, Any]:
        fitted = None if state is None else state["fitted"]
        spec: dict[str, Any] = {"frontend": self.frontend, **self.input_spec(fitted)}
        target = task["target"]
        if target == "target":
            tokens = spec["vocabulary"] if self.common.shared else self.common.target_vocabulary
            return {
                **spec,
                "shared": self.common.shared,
                "tokenizer": fitted and fitted["target"]["tokenizer"],
                "tokens": fitted["target"]["vocabulary"] if fitted else tokens,
                "ngrams": fitted["target"]["ngrams"] if fitted else [[0] * (self.common.target_ngrams + 1)],
            }
        if target == "numbers":
            return {
                **spec,
                "targets": len(self.common.number_columns),
                "mean": fitted and fitted["numbers"]["mean"],
                "std": fitted and fitted["numbers"]["std"],
            }
        return {
            **spec,
            "classes": len(fitted["classes"][target]) if fitted else 2,
            "rows": fitted and fitted["rows"],
            "counts": fitted and fitted["counts"][target],
            "several": target == "labels",
        }

    def names(self, state: Mapping[str, Any], target: str) -> list[str]:
        """The names of a target's numbers: the classes in order, or the columns of numbers; [] for other targets."""
        if target not in (*self.common.class_columns, "numbers"):
            return []
        if target == "numbers":
            return self.common.number_columns
        names: list[str] = state["fitted"]["classes"][target]
        return names

    def view(self, prepared: Prepared, split: str, task: Mapping[str, Any]) -> View:
        kinds: dict[str, str | int] = {"label": "row", "step_labels": "step", "numbers": "row", "target": "list"}
        target = task["target"]
        kind = kinds.get(target, len(self.names(prepared.state, target)))
        return RowView(part_of(prepared, split), self.stored_inputs(prepared.state["fitted"]), {target: kind})

    # New data, to predict from

    def encode_request(self, source: str, state: State) -> Iterator[pa.Table]:
        """Encode new raw rows with a fitted state, in this process and in bounded memory.

        Args:
            source: file, folder, glob or URI.
            state: of the prepared data on which the model was trained.

        Yields:
            ``length`` and the input, ``__file``, ``__row``, and ``skipped``: why a row cannot be used, else null. The
            former two are null in rows that cannot be used.
        """
        self.fitted = state["fitted"]
        for table in self.raw_tables(source):
            for start in range(0, len(table), REQUEST_ROWS):
                raw = table.slice(start, REQUEST_ROWS)
                bad = unreadable_rows(raw)
                rows = [i for i in range(len(raw)) if i not in bad]
                columns, _ = self.encode_input(raw, rows, bad)
                position = np.full(len(raw), -1)  # of each raw row among the encoded ones
                position[rows] = np.arange(len(rows))
                position[list(bad)] = -1
                index = pa.array(np.maximum(position, 0), mask=position < 0)
                reasons = [": ".join(filter(None, bad[i])) if i in bad else None for i in range(len(raw))]
                yield pa.table(
                    {
                        **{name: column.take(index) for name, column in columns.items()},
                        "__file": raw["__file"],
                        "__row": raw["__row"],
                        "skipped": pa.array(reasons, pa.string()),
                    }
                )

    def read_request(self, source: str, state: State, task: Mapping[str, Any]) -> Iterator[RequestRows]:
        """New raw rows for a trained model; see ``RequestDataset``."""
        for table in self.encode_request(source, state):
            yield encoded_rows(table, self.stored_inputs(state["fitted"]))

    def raw_tables(self, source: str) -> Iterator[pa.Table]:
        """The rows at a path, with the input's columns, in this process."""
        for file in self.find_files(source):
            yield from formats.read_blocks(file.uri, self.input_columns(), lenient=True)

    # Reading and splitting

    def raw_rows(self, sources: Sequence[SourceFile]) -> ray.data.Dataset:
        """The rows of raw files, with all columns that are used."""
        return formats.read(sources, list(dict.fromkeys([*self.input_columns(), *self.common.columns])), lenient=True)

    def repartition(self, rows: ray.data.Dataset) -> ray.data.Dataset:
        """The raw rows in blocks of a size that one task can encode."""
        return rows

    def rows_in_split(self, files: SplitFiles, split: str, table: pa.Table) -> NDArray[np.int64]:
        """The rows of a raw table that are in a split, ascending."""
        return rows_in_split(self.common, files, split, table, default=self.default_split)

    def usable_rows(self, files: SplitFiles, split: str, table: pa.Table) -> list[int]:
        """The rows of a raw table that are in a split and not known to be unusable, ascending."""
        bad = unusable_rows(self.common, table)
        return [int(i) for i in self.rows_in_split(files, split, table) if i not in bad]

    def _existing_splits(self, files: SplitFiles) -> list[str]:
        """The splits of the data, in order; what was fitted says which values the split column has."""
        names = {split for _, split in files}
        if "train" in names:  # files whose rows may be in any split
            names |= set(self.common.split_shares) | set(self.common.values_by_split)
            if self.common.split_column is not None and not self.common.values_by_split:
                assert self.fitted is not None
                values = self._split_values(files) if self.reused else set(self.fitted["split_values"])
                names = set(self.common.split_shares) | values
        return [split for split in SPLITS if split in names]

    def _split_values(self, files: SplitFiles) -> set[str]:
        """The values of the split column, of data on which nothing is fitted."""
        blocks = self._map_blocks([source for source, split in files if split == "train"], _split_block, self)
        return {value for block in blocks for value in block["value"].to_pylist()}

    def _map_blocks(self, sources: Sequence[SourceFile], task: Any, *arguments: Any) -> Iterator[pa.Table]:
        """The tables that task(*arguments, table) yields for the tables of raw files, in tasks of Ray Data."""
        rows = self.raw_rows(sources).map_batches(
            functools.partial(task, *arguments),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=formats.TASK_CPUS,
        )
        yield from rows.iter_batches(batch_size=None, batch_format="pyarrow")

    # Fitting

    def _fit(self, files: SplitFiles) -> State:
        training = [source for source, split in files if split == "train"]
        if not training:
            raise ValueError(f"dataset.path={self.common.path}: there are no training files; name some under train")
        total: State = {"input": {}}

        def texts() -> Iterator[list[str]]:
            for block in self._map_blocks(training, _tally_block, self, files):
                for tally, of_block in zip(block["tally"].to_pylist(), block["texts"].to_pylist(), strict=True):
                    added = json.loads(tally)
                    total["input"].update(merge(total["input"], added.pop("input")))
                    total.update(merge({k: v for k, v in total.items() if k != "input"}, added))
                    yield of_block

        fitted = self.fit_input(texts(), total["input"])
        if not total.get("rows"):
            raise ValueError(
                f"{', '.join(source.uri for source in training[:3])}: there are no training rows that can "
                "be used; look at the split and at the first rows"
            )
        of_targets = fit_targets(self.common, total)
        if self.common.target is not None:
            of_targets["target"] = self._fit_target(files, training, fitted)
        return {**of_targets, **fitted}

    def _fit_target(self, files: SplitFiles, training: Sequence[SourceFile], fitted: State) -> State:
        """The vocabulary of the training rows' target texts (or that of `fitted`), and their n-grams with counts."""

        def results(task: Any, *arguments: Any) -> Iterator[Any]:
            for block in self._map_blocks(training, task, self, files, *arguments):
                yield from block["result"].to_pylist()

        vocabulary = self.common.target_vocabulary_to_learn()
        learnt = (
            {name: fitted[name] for name in ("tokenizer", "vocabulary")}
            if vocabulary is None
            else vocabulary.learn(results(_target_texts))
        )
        counts: Counter[tuple[int, ...]] = Counter()
        if self.common.target_ngrams:
            for ngrams in results(_target_ngrams, learnt["tokenizer"]):
                counts.update({tuple(ngram): count for *ngram, count in ngrams})
        return {**learnt, "ngrams": [[*ngram, count] for ngram, count in sorted(counts.items())]}

    # Encoding

    def _encoded(self, files: SplitFiles, split: str) -> ray.data.Dataset:
        """The stored rows of a split, as of `RawDataset.encode`."""
        sources = [source for source, of_file in files if of_file == split]
        sources = sources or [source for source, of_file in files if of_file == "train"]  # rows say their split
        task = functools.partial(_encode_block, self, files, split)
        return self.repartition(self.raw_rows(sources)).map_batches(
            task, batch_size=None, batch_format="pyarrow", num_cpus=formats.TASK_CPUS
        )


# Tasks of Ray Data, on one block of raw rows each


@errors.in_task
def _tally_block(dataset: Records, files: SplitFiles, table: pa.Table) -> Iterator[pa.Table]:
    """The tally of the training rows, as JSON, and texts to learn a vocabulary from."""
    if not len(table):
        return
    rows = dataset.usable_rows(files, "train", table)
    tally = tally_targets(dataset.common, table, rows)
    if dataset.common.split_column is not None:
        tally["split_values"] = Counter(x for x in text_values(table, dataset.common.split_column) if x is not None)
    tally["input"], texts = dataset.tally_input(table, rows)
    yield pa.table({"tally": [json.dumps(tally)], "texts": pa.array([texts], pa.list_(pa.string()))})


def _training_targets(dataset: Records, files: SplitFiles, table: pa.Table) -> list[str]:
    return target_texts(dataset.common, table, dataset.usable_rows(files, "train", table))


@errors.in_task
def _target_texts(dataset: Records, files: SplitFiles, table: pa.Table) -> Iterator[pa.Table]:
    """The target texts of the training rows, in pieces that a tokenizer can learn from."""
    if len(table):
        texts = [piece for text in _training_targets(dataset, files, table) for piece in PIECES.findall(text)]
        yield pa.table({"result": pa.array([texts], pa.list_(pa.string()))})


@errors.in_task
def _target_ngrams(dataset: Records, files: SplitFiles, tokenizer: str, table: pa.Table) -> Iterator[pa.Table]:
    """The n-grams of `target_ngrams` tokens in the training rows' targets: lists of the tokens and their count.

    Each text is preceded by n - 1 times BEGIN and followed by END. So every token is the last one of exactly one
    n-gram, and the counts of shorter n-grams follow from these.
    """
    if not len(table):
        return
    order, counts = dataset.common.target_ngrams, Counter[tuple[int, ...]]()
    texts = _training_targets(dataset, files, table)
    for encoding in load(tokenizer).encode_batch_fast(texts, add_special_tokens=False):
        tokens = [BEGIN] * (order - 1) + encoding.ids + [END]
        counts.update(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
    ngrams = [[*ngram, count] for ngram, count in counts.items()]
    yield pa.table({"result": pa.array([ngrams], pa.list_(pa.list_(pa.int64())))})


@errors.in_task
def _split_block(dataset: Records, table: pa.Table) -> Iterator[pa.Table]:
    """The values of the split column."""
    values = {value for value in text_values(table, dataset.common.split_column or "") if value is not None}
    yield pa.table({"value": pa.array(sorted(values), pa.string())})


@errors.in_task
def _encode_block(dataset: Records, files: SplitFiles, split: str, table: pa.Table) -> Iterator[pa.Table]:
    """The stored rows of a split, and after them its rows that cannot be used, in column ``quarantine``."""
    if not len(table):
        return
    in_split, bad = [int(i) for i in dataset.rows_in_split(files, split, table)], unusable_rows(dataset.common, table)
    if not in_split:
        return
    assert dataset.fitted is not None
    rows = [i for i in in_split if i not in bad]
    columns, tally = dataset.encode_input(table, rows, bad)
    columns |= encode_targets(dataset.common, dataset.fitted, table, rows, columns, bad)
    columns = {name: column for name, column in columns.items() if name not in (STEP, RAW_LENGTH, CUT)}
    kept = [position for position, i in enumerate(rows) if i not in bad]
    stored = pa.table(columns)
    if len(kept) < len(rows):
        stored = stored.take(pa.array(kept, pa.int64()))
    quarantine = [
        json.dumps(
            {
                "uri": table["__file"][i].as_py(),
                "row": table["__row"][i].as_py(),
                "field": bad[i][0],
                "reason": bad[i][1],
            }
        )
        for i in in_split
        if i in bad
    ]
    stored = pa.concat_tables(
        [
            stored.append_column("quarantine", pa.nulls(len(kept), pa.string())),
            pa.table({"quarantine": pa.array(quarantine, pa.string())}),
        ],
        promote_options="default",
    )
    summary = json.dumps({"input": tally})
    yield stored.append_column("summary", pa.array([summary, *[""] * (len(stored) - 1)], pa.string()))
