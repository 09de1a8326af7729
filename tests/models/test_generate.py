"""Generate: the loss, the state that lanes carry, sampling."""

import math

import pytest
import torch

import models
from datasets.vocabulary import Vocabulary
from models.batch import Batch
from models.sampling import Sampling, notes, token
from models.sequence import Carried
from models.writing import BEGIN, END, characters

TOLD = Vocabulary("character", 20).learn(iter([["abcdef "]]))
V = TOLD["vocabulary"]
TEXT = {"frontend": "tokens", "vocabulary": V, "tokenizer": TOLD["tokenizer"]}
MUSIC = {"frontend": "frames", "channels": 5, "notes": 5}
RECURRENT = ["rnn", "lstm", "gru"]


def make(family="gru", spec=TEXT, window=None, **options):
    torch.manual_seed(0)
    model = {"family": family, "hidden_size": 8, "layers": 2, **options}
    if spec is TEXT:
        model["embedding_size"] = 6
    return models.build(spec, model, {"kind": "generate", "window": window}).double().eval()


def batch(tokens, lengths=None, weights=None, lanes=None, reset=None):
    """Of tokens (B, T + 1): T to read, T to tell."""
    rows = len(tokens)
    lengths = torch.full((rows,), tokens.shape[1] - 1) if lengths is None else torch.tensor(lengths)
    return Batch({"tokens": tokens[:, :-1].int()}, {"tokens": lengths}, {"next": tokens[:, 1:]},
                 torch.tensor(weights or [1.0] * rows).double(), torch.arange(rows),
                 None if lanes is None else torch.tensor(lanes), None if reset is None else torch.tensor(reset))


def stream(rows=3, steps=12, seed=1):
    return torch.randint(4, V, (rows, steps + 1), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", [*RECURRENT, "transformer"])
def test_the_loss_is_a_sum_over_steps_and_padding_has_no_part_in_it(family):
    model, tokens = make(family), stream()
    data = batch(tokens, [12, 5, 9], [1.0, 2.0, 0.0])
    loss, weight = model(data)
    scores = model.task.outputs(model, data).log_softmax(-1)
    expected = -sum(w * scores[i, t, tokens[i, t + 1]].item()
                    for i, (n, w) in enumerate(((12, 1.0), (5, 2.0), (9, 0.0))) for t in range(n))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert weight.item() == 12 + 2 * 5 == model.task.weight(model, data)
    tokens[1, 6:] = 4
    assert model(batch(tokens, [12, 5, 9], [1.0, 2.0, 0.0]))[0].item() == pytest.approx(loss.item(), rel=1e-12)


@pytest.mark.parametrize("family", [*RECURRENT, "transformer"])
def test_a_step_is_told_from_the_ones_before_it_only(family):
    model, tokens = make(family), stream()
    before = model.task.outputs(model, batch(tokens))
    tokens[:, 7] = tokens[:, 7] % 4 + 4
    after = model.task.outputs(model, batch(tokens))
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7], after[:, 7])


def test_of_music_a_step_has_the_likelihood_of_all_its_notes():
    model = make(spec=MUSIC)
    roll = (torch.rand(2, 7, 5, generator=torch.Generator().manual_seed(0)) < 0.4).double()
    data = Batch({"values": roll[:, :-1]}, {"values": torch.tensor([6, 3])}, {"next": roll[:, 1:]},
                 torch.ones(2).double(), torch.arange(2))
    p = model.task.outputs(model, data).sigmoid()
    each = -(roll[:, 1:] * p.log() + (1 - roll[:, 1:]) * (1 - p).log()).sum(-1)
    loss, weight = model(data)
    assert loss.item() == pytest.approx((each[0].sum() + each[1, :3].sum()).item(), rel=1e-12)
    assert weight.item() == 9
    with torch.no_grad():
        assert list(model.task.result(model.task.metrics(model, data))) == ["loss"]


def test_perplexity_and_bits_per_character():
    model, tokens = make(), stream()
    tokens[0, -1], tokens[1, 3] = END, 1                            # an end is no character, an unknown token is one
    with torch.no_grad():
        sums = model.task.metrics(model, batch(tokens, weights=[1.0, 1.0, 0.0]))
    found = model.task.result(sums)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_character"] == pytest.approx(found["loss"] * 24 / 23 / math.log(2))


@pytest.mark.parametrize("kind", ["bpe", "byte", "character"])
def test_the_characters_of_tokens_add_up_to_those_of_the_text(kind):
    text = "über den Straßen – 漢字 and 😀 words"
    told = Vocabulary(kind, 400 if kind == "bpe" else 260).learn(iter([[text] * 3]))
    import tokenizers
    ids = tokenizers.Tokenizer.from_str(told["tokenizer"]).encode(text, add_special_tokens=False).ids
    assert sum(characters(told["tokenizer"])[i] for i in ids) == len(text)


@pytest.mark.parametrize("kind", ["unigram", "word"])
def test_tokens_without_their_blanks_have_no_bits_per_character(kind):
    told = Vocabulary(kind, 60).learn(iter([["a few words of a text"] * 3]))
    assert characters(told["tokenizer"]) is None
    model = make(spec={"frontend": "tokens", "vocabulary": told["vocabulary"], "tokenizer": told["tokenizer"]})
    with torch.no_grad():
        found = model.task.result(model.task.metrics(model, batch(stream() % 4 + 4)))
    assert set(found) == {"loss", "perplexity"}


@pytest.mark.parametrize("family", RECURRENT)
def test_lanes_go_on_from_where_the_window_before_left_them(family):
    model, tokens = make(family), stream()
    whole = model.task.outputs(model, batch(tokens))
    order = [2, 0, 1]                                               # lanes need not come in order
    for start in (0, 4, 8):
        part = batch(tokens[order, start:start + 5], lanes=order, reset=[start == 0] * 3)
        got = model.task.outputs(model, part)
        assert (got - whole[order, start:start + 4]).abs().max() < 1e-12
    last = batch(tokens[:, 4:9], lanes=[0, 1, 2], reset=[False, True, False])
    fresh = model.task.outputs(model, batch(tokens[1:2, 4:9]))
    assert (model.task.outputs(model, last)[1] - fresh[0]).abs().max() < 1e-12     # a document begins: nothing before


def test_no_gradient_goes_back_through_a_carried_state():
    model, tokens = make("lstm"), stream()
    model(batch(tokens[:, :5], lanes=[0, 1, 2], reset=[True] * 3))
    loss, _ = model(batch(tokens[:, 4:9], lanes=[0, 1, 2], reset=[False] * 3))
    loss.backward()                                                 # else: through a graph that is gone, or kept
    assert not any(value.requires_grad for value in model.carried.lanes.values())


def test_a_filler_row_leaves_its_lane_as_it_was():
    model, tokens = make(), stream()
    model(batch(tokens[:, :5], lanes=[0, 1, 2], reset=[True] * 3))
    before = model.carried.lanes["h"].clone()
    model(batch(tokens[:1, 4:9], weights=[0.0], lanes=[1], reset=[False]))
    assert torch.equal(model.carried.lanes["h"], before)


def test_the_transformer_sees_its_window_only():
    model, tokens = make("transformer"), stream()
    model(batch(tokens[:, :5], lanes=[0, 1, 2], reset=[True] * 3))
    assert model.carried.lanes == {}


def test_the_lanes_of_all_workers_are_put_together():
    parts = []
    for rank in range(2):
        one = Carried()
        one.lanes = {"h": torch.tensor([[1.0], [2.0], [3.0]])[:3 - rank] * (10 ** rank)}    # of the other: leftovers
        parts.append(one)
    sums = iter([torch.tensor([3, 2]), None])

    def add(x):
        counted = next(sums)
        if counted is not None:
            return counted
        return x + torch.tensor([[0.0], [20.0], [0.0]])

    assert parts[0].of_all(add, 0, 2)["h"].tolist() == [[1.0], [20.0], [3.0]]


@pytest.mark.parametrize("spec", [TEXT, MUSIC], ids=["text", "music"])
@pytest.mark.parametrize("family", [*RECURRENT, "transformer"])
def test_what_is_drawn_follows_from_all_before_and_is_the_same_in_any_batch(family, spec):
    model = make(family, spec)
    sampling = Sampling(seed=5)
    keys = sampling.keys(0, 4)
    start = torch.tensor([[BEGIN, 5, 6]] * 4).int()
    if spec is MUSIC:
        start = torch.zeros(4, 2, 5).double()
    with torch.no_grad():
        found = model.task.go_on(model, start, 9, sampling=sampling, keys=keys)
        alone = [model.task.go_on(model, start[:1], 9, sampling=sampling, keys=keys[i:i + 1]) for i in range(4)]
        for i, one in enumerate(alone):
            assert torch.equal(one[0], found[i, :one.shape[1]])
        name = "values" if spec is MUSIC else "tokens"
        for step in range(found.shape[1]):                          # reading everything again gives the same draws
            read = torch.cat([start, found[:, :step]], 1)
            whole = Batch({name: read}, {name: torch.full((4,), read.shape[1])}, {}, torch.ones(4), torch.arange(4))
            scores = model.task.head(model.encode(whole).y[:, -1])
            if spec is MUSIC:
                assert torch.equal(notes(scores, sampling, keys, step), found[:, step])
            else:
                scores[:, :END] = -math.inf
                going = ~(found[:, :step] == END).any(1)
                assert torch.equal(token(scores, sampling, keys, step)[going], found[going, step].long())
    assert len({tuple(row.flatten().tolist()) for row in found}) == 4
    other = model.task.go_on(model, start, 9, sampling=Sampling(seed=6), keys=Sampling(seed=6).keys(0, 4))
    assert not torch.equal(other[:, :3], found[:, :3])


def test_the_transformer_reads_its_last_window():
    model = make("transformer", window=4)
    sampling, start = Sampling(temperature=0.0), torch.tensor([[BEGIN, *range(4, 10)]]).int()
    with torch.no_grad():
        a = model.task.go_on(model, start, 5, sampling=sampling, keys=torch.zeros(1, dtype=torch.int64))
        b = model.task.go_on(model, start[:, -4:], 5, sampling=sampling, keys=torch.zeros(1, dtype=torch.int64))
    assert torch.equal(a, b)


def frequencies(scores, sampling, count=20_000):
    drawn = token(scores.expand(count, -1), sampling, sampling.keys(0, count), 0)
    return torch.bincount(drawn, minlength=scores.shape[1]).double() / count


def test_tokens_are_drawn_as_often_as_the_model_says():
    scores = torch.tensor([[1.0, 0.0, -1.0, 2.0, -math.inf]]).double()
    for temperature in (0.5, 1.0, 3.0):
        found = frequencies(scores, Sampling(temperature=temperature))
        assert (found - (scores[0] / temperature).softmax(-1)).abs().max() < 0.015
    few = frequencies(scores, Sampling(top_k=2))
    assert (few - scores[0].masked_fill(torch.tensor([False, True, True, False, True]), -math.inf).softmax(-1)
            ).abs().max() < 0.015
    p = scores[0].softmax(-1)
    nucleus = frequencies(scores, Sampling(top_p=float(p[3] + p[0]) - 0.01))
    assert nucleus[1] == nucleus[2] == 0 < nucleus[0]
    assert frequencies(scores, Sampling(top_p=1e-9))[3] == 1
    assert token(scores, Sampling(temperature=0), torch.tensor([0]), 0).item() == 3


def test_notes_are_drawn_each_by_itself():
    scores = torch.tensor([[2.0, 0.0, -2.0]]).double()
    found = notes(scores.expand(20_000, -1), Sampling(), Sampling().keys(0, 20_000), 3)
    assert (found.mean(0) - scores[0].sigmoid()).abs().max() < 0.015
    assert abs((found[:, 0] * found[:, 1]).mean() - scores[0].sigmoid()[:2].prod()) < 0.015
    assert notes(scores, Sampling(temperature=0), torch.tensor([0]), 0).tolist() == [[1, 0, 0]]
    assert notes(scores.expand(500, -1), Sampling(top_k=1), Sampling().keys(0, 500), 0).sum(0)[1:].tolist() == [0, 0]


def test_a_text_ends_where_its_end_is_drawn():
    model = make()
    with torch.no_grad():
        model.task.head.bias[END] = 50.0
        found = model.task.go_on(model, torch.tensor([[BEGIN]] * 2).int(), 9, sampling=Sampling(),
                                 keys=Sampling().keys(0, 2))
    assert found.tolist() == [[END], [END]]


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": -1.0}, "--temperature -1"), ({"top_k": 0}, "--top-k 0"), ({"top_p": 0.0}, r"--top-p 0"),
    ({"top_p": 1.5}, r"--top-p 1\.5"), ({"seed": -1}, "--seed -1")])
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
