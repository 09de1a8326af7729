"""Generate: the loss, the state of lanes, sampling."""

import math

import pytest
import torch

import models
from datasets.shared.vocabulary import Vocabulary
from models.batch import Batch
from models.sampling import Sampling, notes, token
from models.sequence import RecurrentState
from models.special_tokens import BEGIN, END
from models.texts import characters_per_token

FITTED = Vocabulary("character", 20).learn(iter([["abcdef "]]))
V = FITTED["vocabulary"]
TEXT = {"frontend": "tokens", "vocabulary": V, "tokenizer": FITTED["tokenizer"]}
MUSIC = {"frontend": "frames", "channels": 5, "notes": 5}
RECURRENT = ["rnn", "lstm", "gru"]


def make(family="gru", spec=TEXT, window=None, **options):
    torch.manual_seed(0)
    model = {"family": family, "hidden_size": 8, "layers": 2, **options}
    if spec is TEXT:
        model["embedding_size"] = 6
    return models.build(spec, model, {"kind": "generate", "window": window}).double().eval()


def batch(tokens, lengths=None, weights=None, lanes=None, reset=None):
    """A batch of tokens (B, T + 1): T inputs, T targets."""
    rows = len(tokens)
    lengths = torch.full((rows,), tokens.shape[1] - 1) if lengths is None else torch.tensor(lengths)
    return Batch(
        {"tokens": tokens[:, :-1].int()},
        {"tokens": lengths},
        {"next": tokens[:, 1:]},
        torch.tensor(weights or [1.0] * rows).double(),
        torch.arange(rows),
        None if lanes is None else torch.tensor(lanes),
        None if reset is None else torch.tensor(reset),
    )


def stream(rows=3, steps=12, seed=1):
    return torch.randint(4, V, (rows, steps + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", [*RECURRENT, "transformer"])
def test_the_loss_is_a_sum_over_steps_without_padding(family):
    model, tokens = make(family), stream()
    data = batch(tokens, [12, 5, 9], [1.0, 2.0, 0.0])
    loss, weight = model(data)
    scores = model.task.outputs(model, data).log_softmax(-1)
    expected = -sum(
        w * scores[i, t, tokens[i, t + 1]].item()
        for i, (n, w) in enumerate(((12, 1.0), (5, 2.0), (9, 0.0)))
        for t in range(n)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert weight.item() == 12 + 2 * 5 == model.task.weight(model, data)
    tokens[1, 6:] = 4
    assert model(batch(tokens, [12, 5, 9], [1.0, 2.0, 0.0]))[0].item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("family", [*RECURRENT, "transformer"])
def test_a_step_is_predicted_from_the_previous_ones_only(family):
    model, tokens = make(family), stream()
    before = model.task.outputs(model, batch(tokens))
    tokens[:, 7] = tokens[:, 7] % 4 + 4
    after = model.task.outputs(model, batch(tokens))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


def test_the_likelihood_of_a_step_of_music_is_that_of_all_its_notes():
    model = make(spec=MUSIC)
    roll = (torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    data = Batch(
        {"values": roll[:, :-1]},
        {"values": torch.tensor([6, 3])},
        {"next": roll[:, 1:]},
        torch.ones(2).double(),
        torch.arange(2),
    )
    p = model.task.outputs(model, data).sigmoid()
    each = -(roll[:, 1:] * p.log() + (1 - roll[:, 1:]) * (1 - p).log()).sum(-1)
    loss, weight = model(data)
    assert loss.item() == pytest.approx((each[0].sum() + each[1, :3].sum()).item(), rel=1e-12)
    assert weight.item() == 9
    with torch.no_grad():
        assert list(model.task.result(model.task.metrics(model, data))) == ["loss"]


def test_perplexity_and_bits_per_character():
    model, tokens = make(), stream()
    tokens[0, -1], tokens[1, 3] = END, 1  # an end has no character, an unknown token has one
    with torch.no_grad():
        sums = model.task.metrics(model, batch(tokens, weights=[1.0, 1.0, 0.0]))
    metrics = model.task.result(sums)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["loss"]))
    assert metrics["bits_per_character"] == pytest.approx(metrics["loss"] * 24 / 23 / math.log(2))


@pytest.mark.parametrize("kind", ["bpe", "byte", "character"])
def test_the_characters_of_tokens_add_up_to_those_of_the_text(kind):
    text = "über den Straßen – 漢字 and 😀 words"
    fitted = Vocabulary(kind, 400 if kind == "bpe" else 260).learn(iter([[text] * 3]))
    import tokenizers

    ids = tokenizers.Tokenizer.from_str(fitted["tokenizer"]).encode(text, add_special_tokens=False).ids
    assert sum(characters_per_token(fitted["tokenizer"])[i] for i in ids) == len(text)


@pytest.mark.parametrize("kind", ["unigram", "word"])
def test_tokens_without_spaces_have_no_bits_per_character(kind):
    fitted = Vocabulary(kind, 60).learn(iter([["some words of a text"] * 3]))
    assert characters_per_token(fitted["tokenizer"]) is None
    model = make(spec={"frontend": "tokens", "vocabulary": fitted["vocabulary"], "tokenizer": fitted["tokenizer"]})
    with torch.no_grad():
        metrics = model.task.result(model.task.metrics(model, batch(stream() % 4 + 4)))
    assert set(metrics) == {"loss", "perplexity"}


@pytest.mark.parametrize("family", RECURRENT)
def test_lanes_continue_from_the_state_at_the_end_of_the_previous_window(family):
    model, tokens = make(family), stream()
    whole = model.task.outputs(model, batch(tokens))
    order = [2, 0, 1]  # lanes may be in any order
    for start in (0, 4, 8):
        part = batch(tokens[order, start : start + 5], lanes=order, reset=[start == 0] * 3)
        got = model.task.outputs(model, part)
        assert (got - whole[order, start : start + 4]).abs().max() < 1e-12
    last = batch(tokens[:, 4:9], lanes=[0, 1, 2], reset=[False, True, False])
    fresh = model.task.outputs(model, batch(tokens[1:2, 4:9]))
    assert (model.task.outputs(model, last)[1] - fresh[0]).abs().max() < 1e-12  # a document begins: no state


def test_no_gradient_goes_back_through_a_carried_state():
    model, tokens = make("lstm"), stream()
    model(batch(tokens[:, :5], lanes=[0, 1, 2], reset=[True] * 3))
    loss, _ = model(batch(tokens[:, 4:9], lanes=[0, 1, 2], reset=[False] * 3))
    loss.backward()  # would fail if it went through the freed graph of the first batch
    assert not any(value.requires_grad for value in model.recurrent_state.lanes.values())


def test_a_filler_row_does_not_change_its_lane():
    model, tokens = make(), stream()
    model(batch(tokens[:, :5], lanes=[0, 1, 2], reset=[True] * 3))
    before = model.recurrent_state.lanes["h"].clone()
    model(batch(tokens[:1, 4:9], weights=[0.0], lanes=[1], reset=[False]))
    assert torch.equal(model.recurrent_state.lanes["h"], before)


def test_the_transformer_sees_its_window_only():
    model, tokens = make("transformer"), stream()
    model(batch(tokens[:, :5], lanes=[0, 1, 2], reset=[True] * 3))
    assert model.recurrent_state.lanes == {}


def test_the_lanes_of_all_workers_are_gathered():
    parts = []
    for rank in range(2):
        one = RecurrentState()
        one.lanes = {
            "h": torch.tensor([[1.0], [2.0], [3.0]])[: 3 - rank] * (10**rank)
        }  # those of the other worker are not valid
        parts.append(one)
    sums = iter([torch.tensor([3, 2]), None])

    def add(x):
        counts = next(sums)
        if counts is not None:
            return counts
        return x + torch.tensor([[0.0], [20.0], [0.0]])

    assert parts[0].gather(add, 0, 2)["h"].tolist() == [[1.0], [20.0], [3.0]]


@pytest.mark.parametrize("spec", [TEXT, MUSIC], ids=["text", "music"])
@pytest.mark.parametrize("family", [*RECURRENT, "transformer"])
def test_samples_depend_on_all_previous_steps_and_not_on_other_rows(family, spec):
    model = make(family, spec)
    sampling = Sampling(seed=5)
    keys = sampling.keys(0, 4)
    start = torch.tensor([[BEGIN, 5, 6]] * 4).int()
    if spec is MUSIC:
        start = torch.zeros(4, 2, 5).double()
    with torch.no_grad():
        drawn = model.task.generate(model, start, 9, sampling=sampling, keys=keys)
        alone = [model.task.generate(model, start[:1], 9, sampling=sampling, keys=keys[i : i + 1]) for i in range(4)]
        for i, one in enumerate(alone):
            assert torch.equal(one[0], drawn[i, : one.shape[1]])
        name = "values" if spec is MUSIC else "tokens"
        for step in range(drawn.shape[1]):  # reading everything again gives the same samples
            read = torch.cat([start, drawn[:, :step]], 1)
            whole = Batch({name: read}, {name: torch.full((4,), read.shape[1])}, {}, torch.ones(4), torch.arange(4))
            scores = model.task.head(model.encode(whole).y[:, -1])
            if spec is MUSIC:
                assert torch.equal(notes(scores, sampling, keys, step), drawn[:, step])
            else:
                scores[:, :END] = -math.inf
                continues = ~(drawn[:, :step] == END).any(1)
                assert torch.equal(token(scores, sampling, keys, step)[continues], drawn[continues, step].long())
    assert len({tuple(row.flatten().tolist()) for row in drawn}) == 4
    other = model.task.generate(model, start, 9, sampling=Sampling(seed=6), keys=Sampling(seed=6).keys(0, 4))
    assert not torch.equal(other[:, :3], drawn[:, :3])


def test_the_transformer_reads_its_last_window():
    model = make("transformer", window=4)
    sampling, start = Sampling(temperature=0.0), torch.tensor([[BEGIN, *range(4, 10)]]).int()
    with torch.no_grad():
        a = model.task.generate(model, start, 5, sampling=sampling, keys=torch.zeros(1, dtype=torch.int64))
        b = model.task.generate(model, start[:, -4:], 5, sampling=sampling, keys=torch.zeros(1, dtype=torch.int64))
    assert torch.equal(a, b)


def frequencies(scores, sampling, count=20_000):
    tokens = token(scores.expand(count, -1), sampling, sampling.keys(0, count), 0)
    return torch.bincount(tokens, minlength=scores.shape[1]).double() / count


def test_tokens_are_sampled_with_the_probabilities_of_the_model():
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0, -math.inf]]).double()
    for temperature in (0.5, 1.0, 3.0):
        shares = frequencies(scores, Sampling(temperature=temperature))
        assert (shares - (scores[0] / temperature).softmax(-1)).abs().max() < 0.015
    top_two = frequencies(scores, Sampling(top_k=2))
    assert (
        top_two - scores[0].masked_fill(torch.tensor([False, True, True, False, True]), -math.inf).softmax(-1)
    ).abs().max() < 0.015
    p = scores[0].softmax(-1)
    nucleus = frequencies(scores, Sampling(top_p=float(p[3] + p[0]) - 0.01))
    assert nucleus[1] == nucleus[2] == 0 < nucleus[0]
    assert frequencies(scores, Sampling(top_p=1e-9))[3] == 1
    assert token(scores, Sampling(temperature=0), torch.tensor([0]), 0).item() == 3


def test_notes_are_sampled_independently():
    scores = torch.tensor([[2.0, 0.0, -2.0]]).double()
    drawn = notes(scores.expand(20_000, -1), Sampling(), Sampling().keys(0, 20_000), 3)
    assert (drawn.mean(0) - scores[0].sigmoid()).abs().max() < 0.015
    assert abs((drawn[:, 0] * drawn[:, 1]).mean() - scores[0].sigmoid()[:2].prod()) < 0.015
    assert notes(scores, Sampling(temperature=0), torch.tensor([0]), 0).tolist() == [[1, 0, 0]]
    assert notes(scores.expand(500, -1), Sampling(top_k=1), Sampling().keys(0, 500), 0).sum(0)[1:].tolist() == [0, 0]


def test_a_text_ends_when_its_end_is_sampled():
    model = make()
    with torch.no_grad():
        model.task.head.bias[END] = 50.0
        drawn = model.task.generate(
            model, torch.tensor([[BEGIN]] * 2).int(), 9, sampling=Sampling(), keys=Sampling().keys(0, 2)
        )
    assert drawn.tolist() == [[END], [END]]


def test_a_prompt_begins_with_the_begin_token_and_may_be_empty():
    task, rows = make().task, {"tokens": torch.tensor([[5, 6, 7]]).int()}
    assert task.prompt(rows, None).tolist() == [[BEGIN, 5, 6, 7]]
    assert task.prompt(rows, 2).tolist() == [[BEGIN, 5, 6]]
    assert task.prompt({"tokens": torch.zeros((1, 0), dtype=torch.int32)}, None).tolist() == [[BEGIN]]
    assert task.format_predictions({"steps": torch.tensor([[BEGIN, 4, 5, END, END]])}, [], {}) == {
        "text": task.detokenizer([[4, 5]])
    }


def test_music_is_formatted_as_the_names_of_the_notes_that_sound():
    task = make(spec=MUSIC).task
    roll = torch.tensor([[[1, 0, 0, 0, 1], [0] * 5, [0, 1, 0, 0, 0]]], dtype=torch.int8)
    prompt = task.prompt({"values": roll}, 2)
    assert prompt.dtype == torch.float64 and torch.equal(prompt, roll[:, :2].double())
    assert task.format_predictions({"steps": roll.double()}, list("abcde"), {}) == {"notes": [[["a", "e"], [], ["b"]]]}
    assert task.output == "notes" and make().task.output == "text"
    with pytest.raises(ValueError, match="--top-p is for tokens"):
        task.check_sampling(Sampling(top_p=0.5))
    make().task.check_sampling(Sampling(top_p=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "--temperature -1"),
        ({"top_k": 0}, "--top-k 0"),
        ({"top_p": 0.0}, r"--top-p 0"),
        ({"top_p": 1.5}, r"--top-p 1\.5"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_sampling_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_an_encoder_that_sees_later_steps_is_refused():
    with pytest.raises(ValueError, match=r"sees later ones.*model\.bidirectional=false"):
        make("gru", bidirectional=True)
    with pytest.raises(ValueError, match="sees later ones"):
        make("transformer", causal=False)
    assert make("transformer").family.causal
    with pytest.raises(ValueError, match=r"model\.stack=2"):
        make(spec=MUSIC, stack=2)
    with pytest.raises(ValueError, match=r"task\.window=0"):
        make(window=0)
