"""What holds for front ends of every kind; frames, tokens. Shapes: B rows, T time."""

import inspect
import types
import typing

import numpy as np
import pytest
import torch

from models import frontends
from models.batch import Batch
from models.sequence import Frontend

torch.set_num_threads(1)

LENGTHS = [7, 1, 4]


def batch(inputs, lengths=LENGTHS, keys=None):
    [name] = inputs
    return Batch(
        inputs, {name: torch.tensor(lengths)}, {}, torch.ones(len(lengths)), torch.arange(len(lengths)), keys=keys
    )


def keys(rows, seed=0):
    return torch.randint(-(1 << 62), 1 << 62, (rows,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", frontends.names())
def test_options_are_documented_and_of_types_a_schema_can_express(name):
    build = frontends.module(name).build
    hints, documentation = typing.get_type_hints(build), inspect.getdoc(build).split("Args:")[1]
    options = [p for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert next(iter(inspect.signature(build).parameters)) == "spec" and hints["return"] is Frontend
    for option in options:
        hint = hints[option.name]
        parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        assert all(
            part in (int, float, bool, str, type(None)) or typing.get_origin(part) is typing.Literal for part in parts
        ), option
        assert f"\n    {option.name}: " in documentation
        assert option.default is not option.empty


def test_options_of_the_same_name_are_the_same_in_every_front_end():
    seen = {}
    for name in frontends.names():
        for option in inspect.signature(frontends.module(name).build).parameters.values():
            if option.kind is option.KEYWORD_ONLY:
                assert seen.setdefault(option.name, option) == option


def test_an_unknown_front_end_lists_the_known_ones_and_the_nearest():
    with pytest.raises(
        ValueError,
        match=r"frontend='frame' is not known; did you mean 'frames'\? known front ends: "
        "frames, logmel, patches, tokens",
    ):
        frontends.build("frame", {})


KINDS = {
    "tokens": ({"vocabulary": 20}, {"token_dropout": 0.5}, "tokens", (7,)),
    "frames": ({"channels": 2}, {"stack": 3, "time_masks": 1}, "values", (7, 2)),
    "logmel": ({"rate": 8000}, {"mels": 20, "stack": 2, "speed": 0.4, "tempo": 0.5}, "samples", (7000,)),
    "patches": ({"lookback": 7, "channels": 2, "targets": 2, "observed": False}, {"patch": 1}, "values", (7, 2)),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", frontends.names())
def test_lengths_are_known_without_computing_features(name, training):
    spec, options, field, shape = KINDS[name]
    front = frontends.build(name, spec, **options).train(training)
    x = torch.randint(4, 20, (3, *shape), dtype={"tokens": torch.int32, "samples": torch.int16}.get(field))
    lengths = [7] * 3 if name == "patches" else [n * shape[0] // 7 for n in LENGTHS]
    data = batch({field: x.float() if field == "values" else x}, lengths, keys(3))
    found = front(data)[1]
    assert torch.equal(front.lengths(data), found) and front.lengths(data).device.type == "cpu"
    if name == "logmel":
        assert training != torch.equal(found, front.eval()(data)[1])  # augmentation changes them


# --- frames ------------------------------------------------------------------------------------------------------


def test_frames_pass_through():
    data = batch({"values": torch.randn(3, 7, 3)})
    front = frontends.build("frames", {"channels": 3})
    x, lengths, context = front(data)
    assert front.size == 3
    assert x is data.inputs["values"]
    assert lengths is data.lengths["values"]
    assert context == {}


@pytest.mark.parametrize("stack", [2, 3, 7, 9])
def test_stacked_frames_stand_side_by_side_and_what_is_missing_is_0(stack):
    values = torch.randn(3, 7, 2)
    data = batch(
        {"values": values.masked_fill((torch.arange(7) >= torch.tensor(LENGTHS)[:, None])[..., None], torch.nan)}
    )
    front = frontends.build("frames", {"channels": 2}, stack=stack)
    x, lengths, _ = front(data)
    assert lengths.tolist() == [-(-n // stack) for n in LENGTHS]
    assert (front.size, x.shape) == (2 * stack, (3, -(-7 // stack), 2 * stack))
    for b, n in enumerate(LENGTHS):
        flat = np.zeros((x.shape[1] * stack, 2), np.float32)
        flat[:n] = values[b, :n]
        np.testing.assert_array_equal(x[b], flat.reshape(-1, stack * 2))


def test_frames_are_masked_before_they_are_stacked_in_training_only():
    data = batch({"values": torch.ones(40, 20, 6)}, [20] * 40, keys(40))
    options = {"time_masks": 1, "time_mask": 0.5, "frequency_masks": 1, "frequency_mask": 0.5}
    front = frontends.build("frames", {"channels": 6}, stack=4, **options)
    plain = frontends.build("frames", {"channels": 6}, **options)
    x = front(data)[0].reshape(40, 20, 6)
    assert torch.equal(x, plain(data)[0])
    steps, bins = (x == 0).all(2).sum(1), (x == 0).all(1).sum(1)
    assert (steps.max(), bins.max()) == (10, 3)
    assert (steps % 4 > 0).any()  # a mask may end inside a step of the family
    assert (front.eval()(data)[0] == 1).all()
    data.keys = None
    assert (front.train()(data)[0] == 1).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stack": 0}, r"model\.stack=0 is too small; use at least 1"),
        ({"time_masks": -1}, r"model\.time_masks=-1 is too small; use at least 0"),
        ({"frequency_masks": -1}, r"model\.frequency_masks=-1 is too small; use at least 0"),
        ({"time_mask": 1.5}, r"model\.time_mask=1\.5 is no share of a row; use a value in \[0, 1\]"),
        ({"frequency_mask": float("nan")}, r"model\.frequency_mask=nan is no share"),
    ],
)
def test_options_of_frames_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        frontends.build("frames", {"channels": 3}, **options)
    with pytest.raises(ValueError, match=said):
        frontends.build("logmel", {"rate": 8000}, **{"mels": 10} | options)


# --- tokens ------------------------------------------------------------------------------------------------------


def tokens(rows=3, steps=7, vocabulary=50):
    return torch.randint(4, vocabulary, (rows, steps), dtype=torch.int32, generator=torch.Generator().manual_seed(0))


def test_a_token_is_its_vector_and_padding_is_0():
    front = frontends.build("tokens", {"vocabulary": 50}, embedding_size=16)
    ids = tokens()
    ids[0, 5:] = 0
    x, lengths, context = front(batch({"tokens": ids}))
    assert (front.size, x.shape, lengths.tolist(), context) == (16, (3, 7, 16), LENGTHS, {})
    torch.testing.assert_close(x, front.embedding.weight[ids.long()])
    assert (x[0, 5:] == 0).all()
    (x**2).sum().backward()
    assert (front.embedding.weight.grad[0] == 0).all()


def test_vectors_begin_small():
    front = frontends.build("tokens", {"vocabulary": 2000}, embedding_size=16)
    assert front.embedding.weight.std().item() == pytest.approx(0.1, rel=0.05)


def test_token_dropout_makes_words_unknown_at_its_rate_in_training_only():
    front = frontends.build("tokens", {"vocabulary": 50}, embedding_size=8, token_dropout=0.2)
    ids = tokens(200, 100)
    ids[:, 0], ids[:, 99], ids[:, 98] = 2, 0, 3
    data = batch({"tokens": ids}, [99] * 200, keys(200))
    x, _, _ = front(data)
    unknown = (x == front.embedding.weight[1]).all(-1)
    kept = (x == front.embedding.weight[ids.long()]).all(-1)
    assert (unknown ^ kept).all()
    assert unknown[:, 1:98].float().mean().item() == pytest.approx(0.2, abs=0.01)
    assert not unknown[:, [0, 98, 99]].any()  # begin, end and padding stay
    plain = front.embedding(ids)
    assert torch.equal(front.eval()(data)[0], plain)
    data.keys = None
    assert torch.equal(front.train()(data)[0], plain)


def test_a_row_loses_the_same_tokens_in_any_batch():
    front = frontends.build("tokens", {"vocabulary": 50}, embedding_size=8, token_dropout=0.5)
    ids, own = tokens(6, 20), keys(6)
    whole = front(batch({"tokens": ids}, [20] * 6, own))[0]
    part = front(batch({"tokens": ids[[4, 1], :11]}, [11] * 2, own[[4, 1]]))[0]
    assert torch.equal(part, whole[[4, 1], :11])
    assert not torch.equal(front(batch({"tokens": ids}, [20] * 6, own + 1))[0], whole)


def test_embedding_dropout_drops_units_in_training_only():
    front = frontends.build("tokens", {"vocabulary": 50}, embedding_size=400, embedding_dropout=0.25)
    data = batch({"tokens": tokens()})
    assert (front(data)[0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not (front.eval()(data)[0] == 0).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"embedding_size": 0}, r"model\.embedding_size=0 is too small; use at least 1"),
        ({"embedding_dropout": 1.0}, r"model\.embedding_dropout=1\.0 is no probability below 1"),
        ({"token_dropout": -0.1}, r"model\.token_dropout=-0\.1 is no probability below 1"),
    ],
)
def test_options_of_tokens_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        frontends.build("tokens", {"vocabulary": 50}, **options)
