"""Transcribe: the loss against a sum over all paths, texts that are too long, error rates, decoding."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import models
from datasets.shared.vocabulary import Vocabulary
from models.batch import Batch
from models.texts import count_errors

LETTERS = "abc "
FITTED = Vocabulary("character", 20).learn(iter([[LETTERS]]))
V = FITTED["vocabulary"]


def ids(text: str) -> list[int]:
    known = json.loads(FITTED["tokenizer"])["model"]["vocab"]
    return [known[letter] for letter in text]


def make(**options):
    torch.manual_seed(0)
    spec = {"frontend": "frames", "channels": 3, "tokens": V, "tokenizer": FITTED["tokenizer"], "ngrams": []}
    spec["ngrams"] = options.pop("ngrams", [])
    return (
        models.build(
            spec,
            {"family": "gru", "hidden_size": 8, "stack": options.pop("stack", 1)},
            {"kind": "transcribe", **options},
        )
        .double()
        .eval()
    )


def batch(texts=("ab", "a", "cab"), steps=(5, 4, 5), weights=None, seed=0):
    rng = np.random.default_rng(seed)
    width = max(map(len, texts))
    target = torch.tensor([ids(text) + [-1] * (width - len(text)) for text in texts])
    return Batch(
        {"values": torch.from_numpy(rng.normal(size=(len(texts), max(steps), 3)))},
        {"values": torch.tensor(steps)},
        {"target": target},
        torch.tensor(weights or [1.0] * len(texts)).double(),
        torch.arange(len(texts)),
    )


def likelihood(scores: np.ndarray, text: str) -> float:
    """The probability of a text, summed over every path, from log probabilities (T, V)."""
    letters = ids(text)
    used = sorted({0, *letters})
    return sum(
        math.exp(sum(scores[t, v] for t, v in enumerate(path)))
        for path in itertools.product(used, repeat=len(scores))
        if [v for v, _ in itertools.groupby(path) if v] == letters
    )


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 1.0]])
def test_the_loss_is_a_sum_over_all_paths(weights):
    model, data = make(), batch(weights=weights)
    with torch.no_grad():
        loss, weight = model(data)
        scores = model.task.scores(model, data)[0].numpy()
    texts, row_weights = ("ab", "a", "cab"), weights or [1.0] * 3
    expected = -sum(
        w * math.log(likelihood(scores[i, :steps], text))
        for i, (text, steps, w) in enumerate(zip(texts, (5, 4, 5), row_weights, strict=True))
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert weight.item() == sum(w * len(text) for w, text in zip(row_weights, texts, strict=True))
    assert weight == model.task.weight(model, data)


@pytest.mark.parametrize("text", ["abcab", "aab"])  # five letters in four steps; three and a blank in three
def test_a_text_longer_than_its_steps_allow_adds_nothing_and_is_counted(text):
    model = make()
    whole, alone = batch((text, "ab"), (4 if len(text) == 5 else 3, 5)), batch((text, "ab"), (9, 5))
    with torch.no_grad():
        sums = model.task.metrics(model, whole)
    assert sums["too_long"].tolist() == [1, 2]
    loss, _ = model(whole)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.task.metrics(model, alone)["too_long"].tolist() == [0, 2]


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("text", ["abcab", "aab"])
def test_a_text_longer_than_its_steps_allow_does_not_dilute_the_loss_of_the_others(text, stack):
    model, others = make(stack=stack), batch(("ab", "cab"), (4, 7))
    data = batch(("ab", text, "cab"), (4, 3, 7))
    data.inputs["values"][[0, 2]] = others.inputs["values"]
    with torch.no_grad():
        expected = model(others)
        assert torch.equal(torch.stack(model(data)), torch.stack(expected))
        found = model.task.metrics(model, data)["loss"]
    assert model.task.weight(model, data) == expected[1] == 5
    assert found.tolist() == [x.item() for x in expected]


def test_a_text_counts_where_the_speed_drawn_for_its_row_leaves_it_enough_steps():
    torch.manual_seed(0)
    spec = {"frontend": "logmel", "rate": 8000, "tokens": V, "tokenizer": FITTED["tokenizer"], "ngrams": []}
    model = models.build(
        spec, {"family": "gru", "hidden_size": 8, "mels": 20, "speed": 0.5}, {"kind": "transcribe"}
    ).train()
    rows = 40
    data = Batch(
        {"samples": torch.randint(-9000, 9000, (rows, 1000), dtype=torch.int16)},
        {"samples": torch.full((rows,), 1000)},
        {"target": torch.tensor([ids("abcabcabcab")] * rows)},
        torch.ones(rows),
        torch.arange(rows),
        keys=torch.arange(rows) << 40,
    )  # 11 tokens and 11 frames
    _, weight = model(data)
    assert weight == model.task.weight(model, data)
    assert 0 < weight.item() < rows * 11
    model.eval()
    assert model(data)[1] == model.task.weight(model, data) == rows * 11


def test_error_rates_count_words_and_characters():
    assert count_errors(["a b", "abc"], ["a c b", "abd"]) == ([2, 3], [3, 6])
    assert count_errors(["", "a"], ["a", ""]) == ([2, 1], [2, 1])


def test_filler_rows_count_in_no_metric():
    model, data = make(), batch(weights=[1.0, 0.0, 1.0])
    with torch.no_grad():
        metrics = model.task.metrics(model, data)
    assert (metrics["wer"][1], metrics["cer"][1], metrics["too_long"][1]) == (2, 5, 2)


@pytest.mark.parametrize("beam", [1, 4])
def test_texts_do_not_depend_on_the_other_rows(beam):
    model, data = make(beam=beam), batch(steps=(5, 2, 4))
    for p in model.parameters():
        p.data.mul_(3)
    with torch.no_grad():
        together = model.task.format_predictions(model.task.predict(model, data), [], {})["text"]
        for i in range(3):
            one = Batch(
                {"values": data.inputs["values"][i : i + 1, : data.lengths["values"][i]]},
                {"values": data.lengths["values"][i : i + 1]},
                {},
                data.weights[:1],
                data.row_ids[:1],
            )
            assert model.task.format_predictions(model.task.predict(model, one), [], {})["text"] == [together[i]]


def test_a_language_model_needs_a_beam_and_counts():
    with pytest.raises(ValueError, match=r"task\.language_weight=0\.5 needs a beam search"):
        make(beam=8, language_weight=0.5)
    with pytest.raises(ValueError, match=r"needs a beam search"):
        make(language_weight=0.5, ngrams=[[4, 5, 1]])
    make(beam=8, language_weight=0.5, ngrams=[[4, 5, 1]])
    for option, value in (("beam", 0), ("language_weight", -1.0), ("dropout", 1.0)):
        with pytest.raises(ValueError, match=rf"task\.{option}={value}"):
            make(**{option: value})


def test_examples_have_each_token_at_its_step():
    model = make()
    for p in model.parameters():
        p.data.mul_(3)
    rows = [batch((text,), (steps,)) for text, steps in (("ab", 5), ("cab", 4))]
    with torch.inference_mode():
        [artifact] = model.task.examples(model, iter(rows))
    arrays = artifact.arrays
    assert artifact.kind == "transcript" and json.loads(json.dumps(arrays)) == arrays
    assert arrays["reference"] == ["ab", "cab"] and [len(frames) for frames in arrays["frames"]] == [5, 4]
    assert any(arrays["predicted"])
    for i, row in enumerate(rows):
        with torch.inference_mode():
            [text] = model.task.format_predictions(model.task.predict(model, row), [], {})["text"]
            best = model.task.scores(model, row)[0][0].argmax(-1).tolist()
        assert arrays["predicted"][i] == text == "".join(arrays["tokens"][i])
        assert arrays["tokens"][i] == model.task.detokenizer([[best[step]] for step in arrays["steps"][i]])
