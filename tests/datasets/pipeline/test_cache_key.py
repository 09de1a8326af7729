"""The keys of prepared data, byte for byte: with another key, all data that users have prepared is prepared again."""

from __future__ import annotations

import json

import pytest

import datasets
from datasets.pipeline.prepare import cache_key
from datasets.pipeline.storage import sha256

GENERATED = {
    "adding": "adding-dafc40076243c311",
    "chorales": "chorales-8335cbacc45bf0dd",
    "copy_memory": "copy_memory-27cffca52fa477f5",
    "dialled_digits": "dialled_digits-ebd590bb15586f60",
    "generated": "generated-8c1b26a3704d25c7",
    "gestures": "gestures-c18c612f3faf4872",
    "number_words": "number_words-66f0a7eb580a176f",
    "random_sequences": "random_sequences-b1ed799ca0a40613",
    "recall": "recall-d9ee747ad4d1c9d5",
    "reviews": "reviews-438934dcae3350fb",
    "telephone_numbers": "telephone_numbers-593081e7de1e8547",
}


@pytest.mark.parametrize("kind", sorted(GENERATED))
def test_the_key_of_generated_data_is_the_one_of_version_0_1(kind):
    assert cache_key(datasets.build(kind)) == GENERATED[kind]


@pytest.mark.parametrize(
    ("kind", "options", "digest"),
    [
        ("timeseries", {"targets": ["y"], "split": {"validation": 10, "test": 10}}, "76563a992026b78b"),
        (
            "timeseries",
            {
                "path": {"train": "a.csv", "test": "b.csv"},
                "targets": ["y"],
                "time": "t",
                "series": "z",
                "calendar": ["hour"],
                "split": {"validation": 0.2},
                "missing": "mask",
            },
            "e4f3a7c7e4ac4c40",
        ),
        (
            "text",
            {"path": {"train": "a.csv", "test": "b.csv"}, "label": "y", "split": {"validation": 0.1}},
            "54e1101846ee3bc2",
        ),
        (
            "text",
            {
                "text": ["y", "z"],
                "target": "t",
                "target_tokenizer": "shared",
                "max_length": 9,
                "split_column": "t",
                "split_values": {"test": ["u"]},
            },
            "96d3ea5b753a3a5a",
        ),
        ("audio", {"target": "y", "target_ngrams": 2}, "b61703e907a93f4d"),
        (
            "sequences",
            {"path": {"train": "a.csv", "test": "b.csv"}, "step_labels": "y", "scale": "none"},
            "fcaae9d089a3857d",
        ),
        (
            "music",
            {"path": {"train": "a.csv", "test": "b.csv"}, "numbers": ["y", "z"], "quarters": 1.0},
            "4644b5c0799fdbbb",
        ),
    ],
)
def test_the_options_in_the_key_of_files_are_those_of_version_0_1(tmp_path, monkeypatch, kind, options, digest):
    """The rest of such a key is the files' addresses, sizes and times, which differ between machines."""
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("path,t,y,z\n")
    monkeypatch.chdir(tmp_path)
    dataset = datasets.build(kind, **{"path": "a.csv", **options})
    assert sha256(json.dumps(dataset.options(), sort_keys=True, default=str).encode())[:16] == digest
