"""Sequence to sequence from raw files to predictions, in one Ray: translation, continued text and music."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import mido
import numpy as np
import pyarrow.csv
import pytest
from click.testing import CliRunner

from workflows.__main__ import main
from workflows.cluster.stopping import StopSignal
from workflows.errors import Interrupted
from workflows.evaluate import evaluate
from workflows.train import train


@pytest.fixture(scope="module")
def folder(shared_ray, tmp_path_factory):
    return tmp_path_factory.mktemp("generate")


def experiment(folder, name, dataset, task, **sections):
    return {
        "name": name,
        "dataset": dataset,
        "task": task,
        "model": {"family": "gru", "hidden_size": 32},
        "training": {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2},
        "workers": {"cpus": 1},
        "storage": f"{folder}/runs",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "system_seconds": 0},
        **sections,
    }


def predict(bundle, source, *more):
    done = CliRunner().invoke(main, ["predict", bundle, str(source), *more])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def weights(result):
    return (Path(result["bundle"]) / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def book(folder):
    """An experiment on a file of lines, some words of which follow each other."""
    rng = np.random.default_rng(0)
    lines = ["".join(rng.choice(["the cat sat ", "on a mat ", "and so "], 6)) for _ in range(120)]
    (folder / "book.txt").write_text("\n".join(lines))
    return experiment(
        folder,
        "book",
        {
            "kind": "text",
            "path": f"{folder}/book.txt",
            "whole_files": True,
            "tokenizer": "character",
            "split": {"validation": 0.1, "test": 0.1},
        },
        {"kind": "generate", "window": 16},
    )


@pytest.fixture(scope="module")
def text(book):
    return train(book, progress=False)


def test_text_is_learnt_and_measured(folder, text):
    found = text["metrics"]
    assert found["test/loss"] < 0.9  # 27 letters, equally likely: 3.3
    assert found["test/perplexity"] == pytest.approx(np.exp(found["test/loss"]))
    assert found["test/bits_per_character"] == pytest.approx(found["test/loss"] / np.log(2), rel=0.01)
    assert evaluate(text["bundle"])["metrics"] == pytest.approx({k: v for k, v in found.items() if "test/" in k})


def test_a_prompt_goes_on_the_same_for_the_same_seed(folder, text):
    more = ["--length", "40", "--samples", "2", "--temperature", "0.5"]
    out = predict(text["bundle"], "the cat", *more)
    texts = out.split("\n\n")
    assert all(one.startswith("the cat") and len(one) <= 47 for one in texts[:2]) and texts[0] != texts[1]
    assert out == predict(text["bundle"], "the cat", *more)
    assert out != predict(text["bundle"], "the cat", *more, "--seed", "1")
    assert predict(text["bundle"], "the cat", *more[:2], "--temperature", "0.5").strip() == texts[0].strip()
    assert predict(text["bundle"], "", "--length", "5").strip("\n")


def test_prompts_in_a_file_go_on_each(folder, text):
    (folder / "prompts.csv").write_text('text\nthe cat sat\n""\non a\n')
    done = json.loads(
        predict(
            text["bundle"],
            folder / "prompts.csv",
            "-o",
            f"{folder}/out.csv",
            "--samples",
            "2",
            "--prompt",
            "3",
            "--length",
            "9",
            "--json",
        ).splitlines()[-1]
    )
    rows = pyarrow.csv.read_csv(folder / "out.csv").to_pylist()
    assert (done["rows"], done["skipped"]) == (5, 1)
    assert [(r["row"], r["sample"]) for r in rows] == [(2, 1), (2, 2), (3, None), (4, 1), (4, 2)]
    assert all(r["text"].startswith("the" if r["row"] == 2 else "on ") for r in rows if r["sample"])
    assert rows[2]["skipped"] == "text: empty"


def test_a_stopped_stateful_run_ends_in_the_same_weights(folder, book, text, monkeypatch):
    steps = text["steps"]
    for place in (steps // 2, steps // 3 * 2 + 1):  # in the middle of epochs: lanes have states
        asked = iter([False] * (place - 1) + [True])
        stop = StopSignal()
        monkeypatch.setattr(StopSignal, "__call__", lambda self, asked=asked: next(asked, False))
        monkeypatch.setattr("workflows.cluster.launch.stop_signals", lambda stop=stop: nullcontext(stop))
        with pytest.raises(Interrupted):
            train({**book, "name": f"stopped-{place}"}, progress=False)
        monkeypatch.undo()
        again = train({**book, "name": f"stopped-{place}"}, resume="latest", progress=False)
        assert weights(again) == weights(text)


def test_streamed_lanes_end_in_the_weights_of_cached_ones(book, text):
    streamed = train({**book, "dataset": {**book["dataset"], "cache_bytes": 0}}, progress=False)
    assert weights(streamed) == weights(text)


def test_a_budget_of_tokens_is_refused_with_a_window(book):
    with pytest.raises(ValueError, match=r"training\.batch_tokens has no meaning for windows"):
        train({**book, "training": {**book["training"], "batch_tokens": 100}}, progress=False)


@pytest.mark.soak
def test_two_workers_reach_what_one_reaches(folder, book, text):
    two = train({**book, "workers": {"count": 2, "cpus": 1}}, progress=False)
    assert two["metrics"]["test/loss"] == pytest.approx(text["metrics"]["test/loss"], rel=0.02)


def test_music_goes_on_as_midi_files(folder):
    options = experiment(folder, "music", {"kind": "chorales", "rows": 150}, {"kind": "generate"})
    result = train(options, progress=False)
    assert result["best_reachable"]["loss"] < result["metrics"]["test/loss"] < 15
    pieces = [[[48, 60, 64, 67]] * 4 + [[53, 60, 65, 69]] * 4, [[48]], [[60], [62]] * 9]
    (folder / "pieces.jsonl").write_text("".join(json.dumps({"notes": piece}) + "\n" for piece in pieces))
    done = json.loads(
        predict(
            result["bundle"],
            folder / "pieces.jsonl",
            "-o",
            f"{folder}/out.mid",
            "--prompt",
            "2",
            "--length",
            "10",
            "--samples",
            "2",
            "--json",
        ).splitlines()[-1]
    )
    assert [Path(p).name for p in done["output"]] == ["out-1-1.mid", "out-1-2.mid", "out-3-1.mid", "out-3-2.mid"]
    assert done["skipped"] == 1
    file = mido.MidiFile(folder / "out-1-1.mid")
    first = [m.note for m in file.tracks[0] if m.type == "note_on"][:4]
    assert sorted(first) == [48, 60, 64, 67]
    refused = CliRunner().invoke(main, ["predict", result["bundle"], str(folder / "pieces.jsonl")])
    assert refused.exit_code == 2 and "-o chorale.mid" in refused.stderr


@pytest.mark.parametrize("tokenizer", ["shared", "word"])
def test_sentences_are_translated(folder, tokenizer):
    words = {"eins": "one", "zwei": "two", "drei": "three", "vier": "four"}
    rng = np.random.default_rng(1)
    rows = [rng.choice(list(words), 5) for _ in range(300)]
    pairs = [f"{' '.join(row)},{' '.join(words[word] for word in row)}" for row in rows]
    (folder / "pairs.csv").write_text("\n".join(["de,en", *pairs]))
    options = experiment(
        folder,
        f"pairs-{tokenizer}",
        {
            "kind": "text",
            "path": f"{folder}/pairs.csv",
            "text": "de",
            "target": "en",
            "tokenizer": "word",
            "target_tokenizer": tokenizer,
            "split": {"validation": 0.1, "test": 0.1},
        },
        {"kind": "translate", "longest": 8, "beam": 2},
        training={"epochs": 12, "batch_size": 16, "learning_rate": 1e-2},
    )
    result = train(options, progress=False)
    assert result["metrics"]["test/bleu"] > 90 and result["metrics"]["test/perplexity"] < 1.5
    assert "tok:13a" in result["signatures"]["bleu"]
    assert (Path(result["bundle"]).parent / "pictures/translations.png").stat().st_size > 10_000
    out = predict(result["bundle"], "drei eins vier eins zwei")
    assert out.splitlines()[1].split(",")[2].strip('"') == "three one four one two"
    refused = CliRunner().invoke(main, ["predict", result["bundle"], "eins", "--samples", "2"])
    assert refused.exit_code == 2 and "task is translate" in refused.stderr
