"""Text files that are one text each, to learn to generate from. Without Ray; see conftest."""

from __future__ import annotations

import re

import pytest

import datasets
from datasets.shared.vocabulary import load


def request(dataset, state, source):
    """[(row, tokens, why skipped)]."""
    return [
        (row["__row"], row["tokens"], row["skipped"])
        for table in dataset.encode_request(str(source), state)
        for row in table.to_pylist()
    ]


def whole(path, **options):
    return datasets.build("text", path=str(path), tokenizer="character", whole_files=True, **options)


def texts_by_split(found):
    """The texts of each split's stored rows, in the order of the files."""
    tokenizer = load(found.state["fitted"]["tokenizer"])
    return {part: [tokenizer.decode(row["tokens"]) for row in rows] for part, rows in found.parts.items()}


def test_a_whole_file_is_cut_by_characters_into_splits(tmp_path, encoded):
    text = "".join(chr(97 + i % 26) if i % 7 else "\n" for i in range(1, 1001))
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.txt").write_text("z" * 50)
    found = texts_by_split(encoded(whole(tmp_path, split={"validation": 0.1, "test": 0.05})))
    assert found["train"] == [text[:850], "z" * 42]
    assert found["validation"] == [text[850:950], "z" * 5]
    assert found["test"] == [text[950:], "z" * 3]


def test_whole_files_of_each_split_are_rows_with_all_their_lines(tmp_path, encoded):
    for name in ("train", "test"):
        (tmp_path / f"{name}.txt").write_text("abc\n\ncba abcabcabcabc\n")
    dataset = datasets.build(
        "text",
        path={n: f"{tmp_path}/{n}.txt" for n in ("train", "test")},
        tokenizer="character",
        whole_files=True,
        split={"validation": 0.4},
    )
    found = texts_by_split(encoded(dataset))
    assert found["test"] == ["abc\n\ncba abcabcabcabc\n"]
    assert found["train"] == ["abc\n\ncba abca"] and found["validation"] == ["bcabcabc\n"]


def test_whole_files_have_no_columns_and_are_utf8(tmp_path, encoded):
    with pytest.raises(ValueError, match=r"dataset\.whole_files.*'kind'"):
        whole(tmp_path, label="kind")
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    found = encoded(whole(tmp_path))
    assert texts_by_split(found) == {"train": ["good"]}
    assert [(row, field) for row, field, _ in found.bad] == [(1, "text")]


def test_a_long_text_tokenized_in_pieces_has_the_same_tokens(tmp_path, encoded, monkeypatch):
    text = "the cat sat on a mat, and so did I. " * 40
    (tmp_path / "a.txt").write_text(text)
    for kind in ("character", "bpe"):
        dataset = datasets.build("text", path=str(tmp_path / "a.txt"), tokenizer=kind, vocabulary=300, whole_files=True)
        whole_one = encoded(dataset).parts["train"][0]["tokens"]
        with monkeypatch.context() as patched:
            patched.setattr("datasets.text.LONG", 100)
            patched.setattr("datasets.text.PIECES_OF_LONG", re.compile(r"(?s).{1,100}(?!\S)|.{1,100}"))
            again = datasets.build(
                "text", path=str(tmp_path / "a.txt"), tokenizer=kind, vocabulary=300, whole_files=True
            )
            assert encoded(again).parts["train"][0]["tokens"] == whole_one


def test_a_prompt_is_read_like_a_whole_file(tmp_path, encoded):
    (tmp_path / "a.txt").write_text("ab\n\ncd\n")
    dataset = whole(tmp_path / "a.txt")
    state = encoded(dataset).state
    decode = load(state["fitted"]["tokenizer"]).decode
    assert [decode(tokens) for _, tokens, _ in request(dataset, state, tmp_path / "a.txt")] == ["ab\n\ncd\n"]
    assert [decode(tokens) for _, tokens, _ in request(dataset, state, "ab\n")] == ["ab\n"]
    (tmp_path / "b.csv").write_text("text\nab\n")
    with pytest.raises(ValueError, match=r"b\.csv: dataset\.whole_files reads text files"):
        whole(tmp_path / "b.csv").sources()


def test_texts_to_generate_from_are_single_and_not_cut(tmp_path):
    two = datasets.build("text", path="", text=["a", "b"])
    assert "tokens" not in two.available_targets
    with pytest.raises(ValueError, match=r"dataset\.max_length=5 would teach"):
        datasets.build("text", path="", max_length=5).spec(None, {"target": "tokens"})
