"""Translate: the loss against sums over tokens, metrics against sacrebleu, decoding."""

import json

import pytest
import sacrebleu
import torch

import models
from datasets.shared.vocabulary import Vocabulary
from models.batch import Batch
from models.special_tokens import BEGIN, END

FITTED = Vocabulary("character", 20).learn(iter([["abcdef "]]))
V = FITTED["vocabulary"]
SPEC = {"frontend": "tokens", "vocabulary": V, "shared": False, "tokens": V, "tokenizer": FITTED["tokenizer"]}
TEXTS = [[5, 6, 7], [8], [4, 4, 9, 10, 6], [7, 5]]
LENGTHS = [4, 2, 3, 6]


def make(family="gru", spec=SPEC, **task):
    torch.manual_seed(0)
    model = {"family": family, "hidden_size": 8, "embedding_size": 8}
    return models.build(spec, model, {"kind": "translate", **task}).double().eval()


def batch(rows=range(4), weights=None):
    rows = list(rows)
    tokens = torch.randint(4, V, (4, max(LENGTHS)), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    width, longest = max(len(TEXTS[i]) for i in rows), max(LENGTHS[i] for i in rows)
    target = torch.tensor([TEXTS[i] + [-1] * (width - len(TEXTS[i])) for i in rows])
    return Batch(
        {"tokens": tokens[rows, :longest]},
        {"tokens": torch.tensor([LENGTHS[i] for i in rows])},
        {"target": target},
        torch.tensor(weights or [1.0] * len(rows)).double(),
        torch.arange(len(rows)),
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("family", ["rnn", "lstm", "gru", "transformer"])
def test_the_loss_is_a_sum_over_the_tokens_and_the_end(family, smoothing):
    model, weights = make(family, label_smoothing=smoothing), [1.0, 0.0, 1.0, 2.0]
    loss, weight = model(batch(weights=weights))
    expected = 0.0
    for i, text in enumerate(TEXTS):
        alone = batch([i])
        encoded = model.encode(alone)
        memory = model.task.decoder.remember(encoded.y, encoded.lengths)
        state = model.task.decoder.begin(memory)
        for given, target in zip([BEGIN, *text], [*text, END], strict=True):
            scores, state, _ = model.task._step(model, torch.tensor([[given]]), state, memory)
            smoothed = torch.full((V,), smoothing / V, dtype=torch.float64)
            smoothed[target] += 1 - smoothing
            expected -= weights[i] * (smoothed * scores[0, 0]).sum().item()
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert weight.item() == sum(w * (len(t) + 1) for w, t in zip(weights, TEXTS, strict=True))
    assert model.task.weight(model, batch(weights=weights)) == weight


def test_metrics_of_two_batches_are_those_of_sacrebleu_on_all_texts():
    model = make(beam=2, longest=8)
    with torch.no_grad():
        sums = [model.task.metrics(model, batch(rows)) for rows in ([0, 1], [2, 3])]
        metrics = model.task.result({k: sums[0][k] + sums[1][k] for k in sums[0]})
        texts = model.task.detokenizer(model.task.decode(model, batch()))
    references = model.task.detokenizer(TEXTS)
    assert metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert metrics["chrf"] == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    assert metrics["perplexity"] == pytest.approx(torch.tensor(metrics["loss"]).exp().item())
    version = sacrebleu.__version__
    assert model.task.signatures["bleu"] == f"nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:{version}"


def test_texts_equal_to_their_references_have_the_highest_scores():
    task = make().task
    words = ["a quick brown fox", "jumps over the lazy dog"]
    assert task.bleu.score(task.bleu.sums(words, words)) == pytest.approx(100)
    assert task.chrf.score(task.chrf.sums(words, words)) == pytest.approx(100)
    assert task.bleu.sums([], []) == [0.0] * 10  # a worker without a row


def test_filler_rows_count_in_no_metric():
    model = make(longest=6)
    with torch.no_grad():
        some = model.task.metrics(model, batch(weights=[1.0, 0.0, 1.0, 0.0]))
        alone = model.task.metrics(model, batch([0, 2]))
    assert all(torch.allclose(some[k], alone[k]) for k in some)


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru", "transformer"])
def test_a_beam_search_does_not_depend_on_the_other_rows(family):
    model = make(family, beam=3, longest=7)
    with torch.no_grad():
        for p in model.parameters():  # initially all texts are about equally likely
            p.normal_(std=0.7)
        together = model.task.decode(model, batch())
        assert together == [model.task.decode(model, batch([i]))[0] for i in range(4)]
        assert any(together) and all(len(text) <= 7 for text in together)
        model.task.quick = True
        greedy = model.task.decode(model, batch())
    assert greedy != together  # else this would not test the search


def test_an_lstm_trains_under_autocast_where_the_cpu_has_no_bf16(monkeypatch):
    monkeypatch.setattr("models.recurrent.cpu_has_bf16", lambda: False)
    model, data = make("lstm", decoder_layers=2).float().train(), batch()
    data.weights = data.weights.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = model(data)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_shared_vocabulary_has_one_table_of_embeddings():
    shared = make(spec={**SPEC, "shared": True})
    separate = make()
    assert sum(p.numel() for p in separate.parameters()) == sum(p.numel() for p in shared.parameters()) + V * 8
    loss, _ = shared(batch())
    loss.backward()
    assert shared.frontend.embedding.weight.grad[END].abs().max() > 0  # of the target text
    with pytest.raises(ValueError, match=r"task\.embedding_size=8 has no meaning"):
        make(spec={**SPEC, "shared": True}, embedding_size=8)


@pytest.mark.parametrize("family", ["rnn", "lstm", "gru", "transformer"])
def test_a_small_model_learns_to_reverse_a_text(family):
    torch.manual_seed(0)
    model = models.build(
        SPEC,
        {"family": family, "hidden_size": 32, "embedding_size": 16},
        {"kind": "translate", "longest": 6, "beam": 2},
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)

    def rows(count):
        tokens = torch.randint(4, V, (count, 3), generator=generator)
        return Batch(
            {"tokens": tokens.int()},
            {"tokens": torch.full((count,), 3)},
            {"target": tokens.flip(1)},
            torch.ones(count),
            torch.arange(count),
        )

    for _ in range(150):
        loss, weight = model(rows(64))
        (loss / weight).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    data = rows(50)
    with torch.no_grad():
        decoded = model.task.decode(model, data)
    assert sum(a == b for a, b in zip(decoded, data.targets["target"].tolist(), strict=True)) >= 45


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, r"task\.beam=0"),
        ({"longest": 0}, r"task\.longest=0"),
        ({"dropout": 1.0}, r"task\.dropout=1\.0"),
        ({"label_smoothing": -0.1}, r"task\.label_smoothing=-0\.1"),
        ({"length_penalty": -1.0}, r"task\.length_penalty=-1"),
        ({"embedding_size": 0}, r"task\.embedding_size=0"),
        ({"decoder_layers": 0}, r"task\.decoder_layers=0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_unknown_tokens_are_visible_in_texts():
    assert make().task.detokenizer([[5, 1, 6, -1]])[0].count("�") == 1


def test_examples_have_a_row_of_attention_for_each_token_and_the_end():
    model, rows = make(longest=4), [batch([i]) for i in range(3)]
    with torch.inference_mode():
        [artifact] = model.task.examples(model, iter(rows))
    arrays = artifact.arrays
    assert artifact.kind == "attention" and json.loads(json.dumps(arrays)) == arrays
    assert arrays["reference"] == model.task.detokenizer(TEXTS[:3])
    for i, row in enumerate(rows):
        with torch.inference_mode():
            [text] = model.task.format_predictions(model.task.predict(model, row), [], {})["text"]
        assert arrays["predicted"][i] == text
        assert arrays["source"][i] == row.inputs["tokens"][0].tolist()
        matrix = torch.tensor(arrays["matrix"][i])
        assert matrix.shape == (len(arrays["tokens"][i]) + 1, LENGTHS[i])
        torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))
