"""Beam search: against all texts, and of rows beside each other."""

import itertools

import pytest
import torch

from models.beam_search import beam_search

V, BEGIN, END = 4, 4, 3


class Table:
    """A model whose scores of the next token are drawn anew for each row and beginning of a text."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def after(self, row: int, text: tuple[int, ...]) -> torch.Tensor:
        seed = hash((self.seed, row, text)) % (1 << 31)
        return torch.randn(V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).log_softmax(0)

    def step(self, last, state, rows):
        texts = [
            tuple(t for t in [*text, token] if 0 <= t < END)
            for text, token in zip(state["text"].tolist(), last.tolist(), strict=True)
        ]
        scores = torch.stack([self.after(row, text) for row, text in zip(rows.tolist(), texts, strict=True)])
        return scores, {"text": torch.tensor([[*text, *[-1] * (8 - len(text))] for text in texts])}

    def search(self, rows: int, **options):
        return beam_search(self.step, {"text": torch.full((rows, 8), -1)}, rows, begin=BEGIN, end=END, **options)

    def score(self, row: int, text: tuple[int, ...], length_penalty: float) -> float:
        total = sum(self.after(row, text[:i])[token].item() for i, token in enumerate([*text, END]))
        return total / ((5 + len(text) + 1) / 6) ** length_penalty


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_search_that_keeps_everything_finds_the_best_of_all_texts(length_penalty):
    table, most = Table(), 3
    texts = [t for n in range(most + 1) for t in itertools.product(range(END), repeat=n)]
    best = [max(texts, key=lambda t, row=row: table.score(row, t, length_penalty)) for row in range(6)]
    found = table.search(6, beam=len(texts), max_length=most, length_penalty=length_penalty)
    assert [tuple(t) for t in found] == best
    assert len({len(t) for t in best}) > 1  # or the penalty would not show


def test_one_beam_takes_the_likeliest_token_every_time():
    table, expected = Table(1), []
    for row in range(5):
        text: tuple[int, ...] = ()
        while len(text) < 6 and (token := int(table.after(row, text).argmax())) != END:
            text += (token,)
        expected.append(list(text))
    assert table.search(5, beam=1, max_length=6, length_penalty=1.0) == expected


@pytest.mark.parametrize("beam", [1, 3])
def test_rows_do_not_influence_each_other(beam):
    class Alone(Table):
        def step(self, last, state, rows):
            return super().step(last, state, torch.full_like(rows, self.row))

    together = Table(2).search(8, beam=beam, max_length=6, length_penalty=1.0)
    for row in range(8):
        alone = Alone(2)
        alone.row = row
        assert alone.search(1, beam=beam, max_length=6, length_penalty=1.0) == [together[row]]


def test_what_has_not_ended_ends_after_the_most_tokens():
    class Endless(Table):
        def after(self, row, text):
            return super().after(row, text).index_fill(0, torch.tensor([END]), -50.0)

    assert [len(t) for t in Endless().search(3, beam=2, max_length=5, length_penalty=1.0)] == [5, 5, 5]


def test_a_higher_length_penalty_never_likes_shorter_texts():
    lengths = [sum(map(len, Table(3).search(20, beam=20, max_length=6, length_penalty=p))) for p in (0.0, 1.0, 2.0)]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1]
