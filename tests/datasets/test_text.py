"""Text as tokens. Without Ray; see conftest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import datasets
from datasets.reading import formats
from datasets.shared.vocabulary import load
from datasets.text import _join
from models.special_tokens import END, FIRST_WORD, SPECIAL_TOKENS, UNKNOWN

KINDS = ("bpe", "unigram", "word", "character", "byte")
WORDS = ["the cat sat on the mat", "a cat and a dog", "the dog ran", "running is fun , said the runner !"] * 5
ROOM = {"bpe": 300, "unigram": 60, "word": 60, "character": 60, "byte": 260}


def lines(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(texts: list, **columns: list) -> list[dict]:
    return [
        {"text": one, "label": i % 2, **{name: values[i] for name, values in columns.items()}}
        for i, one in enumerate(texts)
    ]


def build(path, kind="word", **options):
    target = {} if "step_labels" in options else {"label": "label"}
    return datasets.build("text", path=path, tokenizer=kind, **{"vocabulary": ROOM[kind], **target, **options})


def trained(tmp_path, encoded, kind="word", texts=WORDS, **options):
    """(dataset, what was stored and fitted, its tokenizer)."""
    dataset = build(lines(tmp_path / "a.jsonl", rows(texts)), kind, **options)
    found = encoded(dataset)
    return dataset, found, load(found.state["fitted"]["tokenizer"])


def request(dataset, state, source):
    """[(row, tokens, why skipped)]."""
    return [
        (row["__row"], row["tokens"], row["skipped"])
        for table in dataset.encode_request(str(source), state)
        for row in table.to_pylist()
    ]


# --- tokenizers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_of_the_training_split_only(tmp_path, encoded, kind):
    paths = {
        "train": lines(tmp_path / "a.jsonl", rows(WORDS)),
        "test": lines(tmp_path / "b.jsonl", rows(["zzz zzz the", "日本"] * 200)),
    }
    found = encoded(build(paths, kind))
    fitted = found.state["fitted"]
    made = load(fitted["tokenizer"])
    assert fitted["vocabulary"] == made.get_vocab_size() <= ROOM[kind]
    assert [made.token_to_id(name) for name in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert all(made.token_to_id(name) is None for name in ("zz", "zzz", "日", "日本", "\u2581zzz"))
    tokens = found.parts["test"][0]["tokens"]
    if kind in ("bpe", "byte"):  # made of bytes: nothing is unknown
        assert UNKNOWN not in tokens and made.decode(tokens) == "zzz zzz the"
    else:
        assert UNKNOWN in tokens
        assert made.decode(tokens[-1:]).strip() == ("the" if kind == "word" else "e")


@pytest.mark.parametrize("kind", KINDS)
def test_training_again_gives_the_same_vocabulary_and_tokens(tmp_path, encoded, kind, monkeypatch):
    first = trained(tmp_path, encoded, kind)[1]
    for _ in range(5):
        again = trained(tmp_path, encoded, kind)[1]
        assert again.state == first.state and again.parts == first.parts
    monkeypatch.setattr(formats, "LINE_ROWS", 3)
    assert trained(tmp_path, encoded, kind)[1].state["fitted"] == first.state["fitted"]


@given(st.text(max_size=30))
@example("  two  blanks\n\tand [UNK] [EOS] 日本 😀 e\u0301")
@settings(max_examples=100, deadline=None)
def test_bytes_and_byte_pairs_reproduce_every_text(known, text):
    for made in known:
        ids = made.encode(text, add_special_tokens=False).ids
        assert made.decode(ids, skip_special_tokens=False) == text
        assert not ids or min(ids) >= FIRST_WORD


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("known")
    dataset = datasets.build("text", path="", label="label", tokenizer="bpe", vocabulary=300)
    pairs = dataset.fit_input(iter([WORDS]), {})["tokenizer"]
    single = datasets.build("text", path=str(folder), label="label", tokenizer="byte")
    return [load(pairs), load(single.fit_input(iter([WORDS]), {})["tokenizer"])]


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_of_special_tokens_are_ordinary_text(tmp_path, encoded, kind):
    texts = [*WORDS, *["so [UNK] and [EOS] or [PAD]"] * 200, "[BOS]x"]  # often enough to be pieces
    _, found, made = trained(tmp_path, encoded, kind, texts)
    for row in found.parts["train"]:
        assert min(row["tokens"]) >= FIRST_WORD
    if kind != "word":
        assert made.decode(found.parts["train"][-2]["tokens"], skip_special_tokens=False) == texts[-2]


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase_ignores_case(tmp_path, encoded, kind):
    texts = [*WORDS, "THE CAT", "the cat"]
    for lowercase in (True, False):
        *_, loud, quiet = trained(tmp_path, encoded, kind, texts, lowercase=lowercase)[1].parts["train"]
        assert (loud["tokens"] == quiet["tokens"]) == lowercase


def test_equal_characters_are_equal_tokens_however_they_are_composed(tmp_path, encoded):
    for kind in ("word", "character", "unigram"):
        dataset, found, _ = trained(tmp_path, encoded, kind, ["caf\u00e9 olé"] * 4)
        assert request(dataset, found.state, "cafe\u0301 ole\u0301")[0][1] == found.parts["train"][0]["tokens"]


def test_rare_words_are_unknown(tmp_path, encoded):
    texts = ["common common rare", "common"]
    assert trained(tmp_path, encoded, "word", texts)[1].state["fitted"]["vocabulary"] == 6
    _, found, made = trained(tmp_path, encoded, "word", texts, min_count=2)
    assert made.token_to_id("rare") is None
    assert [row["tokens"] for row in found.parts["train"]] == [[4, 4, UNKNOWN], [4]]
    assert found.state["notes"] == ["text: 5 tokens in the word vocabulary, 4 in all rows, 25.00% of them unknown"]


def test_the_vocabulary_holds_at_most_what_is_allowed(tmp_path, encoded):
    for kind in ("word", "character"):
        _, found, _ = trained(tmp_path, encoded, kind, vocabulary=7)
        assert found.state["fitted"]["vocabulary"] == 7


@pytest.mark.timeout(60)
@pytest.mark.parametrize("vocabulary", [8, 11])
def test_unigram_with_more_characters_than_tokens_is_refused_instead_of_never_ending(tmp_path, encoded, vocabulary):
    with pytest.raises(
        ValueError,
        match=rf"dataset.vocabulary={vocabulary} is too small for the 8 characters of the "
        r"training rows with dataset.tokenizer=unigram; use at least 12",
    ):
        trained(tmp_path, encoded, "unigram", ["hello world"] * 5, vocabulary=vocabulary)
    assert (
        trained(tmp_path, encoded, "unigram", ["hello world"] * 5, vocabulary=12)[1].state["fitted"]["vocabulary"] == 12
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tokenizer": "bpe", "vocabulary": 259},
            r"dataset.vocabulary=259 is too small for dataset.tokenizer=bpe; .* 260",
        ),
        ({"tokenizer": "byte", "vocabulary": 256}, r"dataset.vocabulary=256 is too small .* use at least 260"),
        ({"tokenizer": "word", "vocabulary": 4}, r"dataset.vocabulary=4 is too small .* use at least 5"),
        ({"min_count": 0}, r"dataset.min_count=0 is too small; use at least 1"),
        ({"tokenizer": "unigram", "min_count": 2}, r"dataset.min_count=2 has no meaning for dataset.tokenizer=unigram"),
        ({"max_length": 0}, r"dataset.max_length=0 is too small; use at least 1, or null"),
        ({"max_length": 2, "text": ["a", "b"]}, r"dataset.max_length=2 is too small; use at least 3, or null"),
        ({"text": ["a", "b", "c"]}, r"must be one column, or a list of two"),
        ({"text": ["a", "a"]}, r"must be one column, or a list of two"),
        ({"text": ["a", "b"], "label": None, "step_labels": "c"}, r"dataset.step_labels='c' are of one text; name one"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        datasets.build("text", **{"path": "a", "label": "label", **options})


# --- rows -----------------------------------------------------------------------------------------------------------


def test_empty_texts_are_quarantined(tmp_path, encoded):
    _, found, _ = trained(tmp_path, encoded, texts=["a b", "", None, " \t", "b a", "  a "])
    assert [row["tokens"] for row in found.parts["train"]] == [[4, 5], [5, 4], [4]]
    assert found.bad == [(2, "text", "empty"), (3, "text", "no text"), (4, "text", "empty")]


def test_two_texts_are_one_sequence_with_a_separator(tmp_path, encoded):
    path = lines(tmp_path / "a.jsonl", rows(["a", "b", "c"], more=["b", "", "c"]))
    dataset = build(path, text=["text", "more"])
    found = encoded(dataset)
    made = load(found.state["fitted"]["tokenizer"])
    assert [[made.id_to_token(token) for token in row["tokens"]] for row in found.parts["train"]] == [
        ["a", "[EOS]", "b"],
        ["c", "[EOS]", "c"],
    ]
    assert found.bad == [(2, "more", "empty")]
    with pytest.raises(ValueError, match=r"'a b': this model reads two texts \(text, more\); give a file with both"):
        request(dataset, found.state, "a b")


def test_long_rows_are_cut_and_counted_in_the_notes(tmp_path, encoded):
    _, found, _ = trained(tmp_path, encoded, texts=["a b c d e", "a b", "a b c"], max_length=3, vocabulary=6)
    assert [row["length"] for row in found.parts["train"]] == [3, 2, 3]
    assert found.state["notes"] == [
        "text: 6 tokens in the word vocabulary, 10 in all rows, 25.00% of them unknown",
        "text: 1 of 3 rows cut to 3 tokens, 20.0% of all tokens",
    ]


@given(st.integers(1, 30), st.integers(1, 30), st.integers(3, 70))
@settings(max_examples=100, deadline=None)
def test_of_two_texts_the_longer_is_cut_first(first, second, max_length):
    parts = [[10] * first, [20] * second]
    joined = _join(parts, max_length)
    kept = (joined.count(10), joined.count(20))
    assert joined == [10] * kept[0] + [END] + [20] * kept[1]
    assert len(joined) == min(max_length, first + second + 1)
    assert min(kept) >= 1
    if kept != (first, second):
        (low, high), (shorter, longer) = sorted(kept), sorted((first, second))
        assert low == shorter or high - low <= 1  # no text is cut while it is the shorter one
        assert high <= longer


def test_a_row_of_a_megabyte_is_read_and_cut(tmp_path, encoded):
    long = "word " * 250_000
    (tmp_path / "a.csv").write_text(f"text,label\n{long},a\nshort,b\n")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress((tmp_path / "a.csv").read_bytes()))
    for name in ("a.csv", "b.csv.gz"):
        found = encoded(build(str(tmp_path / name), "bpe", max_length=100))
        assert [row["length"] for row in found.parts["train"]] == [100, 1]
        assert found.state["notes"][1].startswith("text: 1 of 2 rows cut to 100 tokens, 100.0% of all tokens")
    path = lines(tmp_path / "c.jsonl", rows(["x" * 1_000_000, "y"]))
    assert [row["length"] for row in encoded(build(path, "bpe", max_length=7)).parts["train"]] == [7, 1]


def test_a_column_that_holds_no_text_is_an_error(tmp_path, encoded):
    for column, held in ((pa.array([1, 2]), "int64"), (pa.array([[1.0], [2.0]]), "list<.*: double>")):
        pq.write_table(pa.table({"text": column, "label": ["a", "b"]}), tmp_path / "a.parquet")
        for kind in ("bpe", "byte", "unigram"):
            with pytest.raises(ValueError, match=rf"^{tmp_path}/a.parquet: column 'text' holds {held}, not text; name"):
                encoded(build(str(tmp_path / "a.parquet"), kind))


def test_categories_and_lists_of_words_are_text_too(tmp_path, encoded):
    pq.write_table(
        pa.table(
            {
                "text": pa.array(["a b", "b"]).dictionary_encode(),
                "words": [["a", "b"], ["b", None, " "]],
                "label": ["x", "y"],
            }
        ),
        tmp_path / "a.parquet",
    )
    for column in ("text", "words"):
        found = encoded(build(str(tmp_path / "a.parquet"), text=column))
        assert [row["tokens"] for row in found.parts["train"]] == [[5, 4], [4]]


# --- a class for each word ------------------------------------------------------------------------------------------

TAGGED = [("the cat don't sit", "D N V V"), ("unbelievably it ran", "A P V"), ("New-York !", "N X")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_lists", [False, True])
def test_the_first_token_of_each_word_has_its_class(tmp_path, encoded, kind, as_lists):
    tagged = [{"text": text, "tags": tags} for text, tags in TAGGED]
    tagged = [{name: value.split() for name, value in row.items()} for row in tagged] if as_lists else tagged
    found = encoded(build(lines(tmp_path / "a.jsonl", tagged), kind, step_labels="tags"))
    made, classes = load(found.state["fitted"]["tokenizer"]), found.state["fitted"]["classes"]["step_labels"]
    assert classes == ["A", "D", "N", "P", "V", "X"]
    assert found.bad == []
    for row, (text, tags) in zip(found.parts["train"], TAGGED, strict=True):
        assert len(row["step_labels"]) == row["length"] == len(row["tokens"])
        assert [classes[step] for step in row["step_labels"] if step >= 0] == tags.split()
        start = 0
        for word, tag in zip(text.split(), tags.split(), strict=True):
            alone = made.encode([word], is_pretokenized=True, add_special_tokens=False).ids
            assert row["tokens"][start : start + len(alone)] == alone
            assert row["step_labels"][start : start + len(alone)] == [classes.index(tag)] + [-1] * (len(alone) - 1)
            start += len(alone)
        assert start == row["length"]


def test_words_learned_are_words_encoded(tmp_path, encoded):
    tagged = [{"text": "the cat sat", "tags": "D N V"}] * 50
    found = encoded(build(lines(tmp_path / "a.jsonl", tagged), "bpe", step_labels="tags"))
    pieces = load(found.state["fitted"]["tokenizer"]).get_vocab()
    assert found.parts["train"][0]["length"] == 3
    assert not any(piece.startswith("\u0120") for piece in pieces if len(piece) > 1)  # a blank and a word


def test_classes_belong_to_the_same_words_when_a_row_is_cut(tmp_path, encoded):
    tagged = [{"text": "the cat don't sit", "tags": "D N V V"}] * 3
    dataset = build(lines(tmp_path / "a.jsonl", tagged), step_labels="tags", max_length=4)
    found = encoded(dataset)
    assert [row["step_labels"] for row in found.parts["train"]] == [[0, 1, 2, -1]] * 3


def test_classes_that_do_not_fit_the_words_are_quarantined(tmp_path, encoded):
    tagged = [
        {"text": "a b", "tags": "X Y"},
        {"text": "a b", "tags": "X"},
        {"text": "a", "tags": ""},
        {"text": "", "tags": "X"},
        {"text": "a", "tags": None},
        {"text": "b a c", "tags": "Y X Y"},
    ]
    found = encoded(build(lines(tmp_path / "a.jsonl", tagged), step_labels="tags"))
    assert found.bad == [
        (2, "tags", "1 classes for 2 steps"),
        (3, "tags", "0 classes for 1 steps"),
        (4, "text", "empty"),
        (5, "tags", "no value"),
    ]
    assert len(found.parts["train"]) == 2
    tagged = [
        {"text": ["New York", "is"], "tags": ["X", "Y"]},
        {"text": ["a", " "], "tags": ["X", "Y"]},
        {"text": ["a", None], "tags": ["X", "Y"]},
        {"text": ["a", "b"], "tags": ["X", None]},
    ]  # null: none
    found = encoded(build(lines(tmp_path / "a.jsonl", tagged), step_labels="tags"))
    assert [row["step_labels"] for row in found.parts["train"]] == [[0, -1, 1], [0, -1]]
    assert found.bad == [(2, "text", "a word without a token in it"), (3, "text", "a word without a token in it")]


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path, encoded):
    dataset, found, made = trained(tmp_path, encoded)
    return dataset, found.state, {word: made.token_to_id(word) for word in ("the", "cat", "dog")}


@pytest.mark.parametrize(
    "sentence",
    [
        "the cat",
        "the * cat",
        "http://x the cat",
        "the cat " + "the " * 300,
        "and/or",
        "see the cat . And txt",
        "the\ncat",
        "what is in /tmp ?",
    ],
)
def test_a_sentence_is_encoded_as_it_is(served, sentence):
    dataset, state, ids = served
    [(row, tokens, skipped)] = request(dataset, state, sentence)
    assert (row, skipped) == (1, None)
    assert [token for token in tokens if token in ids.values()] == [ids[w] for w in sentence.split() if w in ids]


def test_a_sentence_without_a_token_is_skipped(served):
    assert request(served[0], served[1], "   ") == [(1, None, "text: empty")]


@pytest.mark.parametrize(
    "source",
    [
        "missing.csv",
        "in a folder/missing.txt",
        "./missing",
        "/nowhere/at/all",
        "*.none",
        "memory://box/missing.txt",
        "missing.txt.gz",
    ],
)
def test_a_missing_file_is_an_error_not_a_sentence(served, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"(there is no file or folder|nothing matches) \S*"):
        request(served[0], served[1], source)


def test_a_file_is_encoded_row_by_row_and_unusable_rows_have_a_reason(served, tmp_path, monkeypatch):
    dataset, state, ids = served
    monkeypatch.setattr("datasets.shared.records.REQUEST_ROWS", 2)
    (tmp_path / "new.csv").write_bytes(b"id,text\n1,the cat\n2,\n3,\xff\n4,x,y\n5,cat the\n")
    assert sorted(request(dataset, state, tmp_path / "new.csv")) == [
        (2, [ids["the"], ids["cat"]], None),
        (3, None, "text: empty"),
        (4, None, "text: not UTF-8"),
        (5, None, "3 values where the header names 2"),
        (6, [ids["cat"], ids["the"]], None),
    ]
    (tmp_path / "new.txt").write_text("the cat\n\nthe\n")
    assert request(dataset, state, tmp_path / "new.txt") == [
        (1, [ids["the"], ids["cat"]], None),
        (3, [ids["the"]], None),
    ]
    (tmp_path / "bad.jsonl").write_text("{\n[]\n")
    found = request(dataset, state, tmp_path / "bad.jsonl")
    assert [(row, tokens) for row, tokens, _ in found] == [(1, None), (2, None)]


def test_a_request_needs_no_label(served, tmp_path):
    dataset, state, ids = served
    path = lines(tmp_path / "new.jsonl", [{"text": "dog"}])
    assert request(dataset, state, path) == [(1, [ids["dog"]], None)]


def test_a_request_for_classes_of_words_marks_the_first_token_of_each(tmp_path, encoded):
    dataset = build(
        lines(tmp_path / "a.jsonl", [{"text": text, "tags": tags} for text, tags in TAGGED]), step_labels="tags"
    )
    state = encoded(dataset).state
    [table] = dataset.encode_request("it don't run", state)
    assert table["__step"].to_pylist() == [[0, 1, -1, -1, 2]]


def test_a_shared_vocabulary_is_learnt_from_both_texts(tmp_path, encoded):
    (tmp_path / "a.csv").write_text("text,other\n" + "abc,xyz\n" * 30)
    made = datasets.build(
        "text", path=str(tmp_path / "a.csv"), target="other", tokenizer="character", target_tokenizer="shared"
    )
    table = pa.table({"text": ["abc"], "other": ["xyz"], "__file": ["f"], "__row": [1]})
    _, texts = made.tally_input(table, [0])
    assert texts == ["abc", "xyz"]
    spec = made.spec(None, {"target": "target"})
    assert spec["shared"] and spec["tokens"] == spec["vocabulary"]
    with pytest.raises(ValueError, match=r"dataset\.target; name its column"):
        datasets.build("text", path="", target_tokenizer="shared")
    with pytest.raises(ValueError, match=r"dataset\.target_lowercase is dataset\.lowercase"):
        datasets.build("text", path="", target="b", target_tokenizer="shared", target_lowercase=True)
    with pytest.raises(ValueError, match=r"target_tokenizer=shared: the input of dataset\.kind='audio'"):
        datasets.build("audio", path="", target="text", target_tokenizer="shared")
