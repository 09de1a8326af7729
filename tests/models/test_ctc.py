"""CTC decoding against a sum over all paths, and the language model of counts."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from models import ctc
from models.ngrams import NGrams
from models.special_tokens import BEGIN, END


def joined(path: tuple[int, ...]) -> tuple[int, ...]:
    """The text of a path, by the definition."""
    return tuple(token for token, _ in itertools.groupby(path) if token != ctc.BLANK)


def texts(scores: np.ndarray) -> dict[tuple[int, ...], float]:
    """The probability of every text, summed over every path."""
    found: Counter = Counter()
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        found[joined(path)] += math.exp(sum(scores[t, v] for t, v in enumerate(path)))
    return found


def random_scores(seed: int, steps: int = 5, tokens: int = 4) -> np.ndarray:
    logits = 2 * np.random.default_rng(seed).normal(size=(steps, tokens))
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def counts(order: int) -> list[list[int]]:
    """Of three texts over the tokens 4 to 6."""
    found: Counter = Counter()
    for text in ([4, 5, 4], [4, 5, 6], [6]):
        tokens = [BEGIN] * (order - 1) + text + [END]
        found.update(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
    return [[*run, count] for run, count in found.items()]


@pytest.mark.parametrize(
    ("path", "text"),
    [([0, 0], []), ([1, 1, 0, 1, 2, 2, 0], [1, 1, 2]), ([3], [3]), ([2, 2, 2], [2]), ([1, 2, 1], [1, 2, 1])],
)
def test_the_greedy_text_joins_repeats_and_drops_blanks(path, text):
    assert ctc.greedy(np.array(path)) == text == list(joined(tuple(path)))


@pytest.mark.parametrize("seed", range(20))
def test_a_wide_beam_finds_the_likeliest_text(seed):
    scores = random_scores(seed)
    likely = texts(scores)
    assert sum(likely.values()) == pytest.approx(1)
    assert ctc.beam_search(scores, beam=1000) == list(max(likely, key=likely.__getitem__))


def test_the_likeliest_text_is_not_that_of_the_likeliest_path():
    scores = np.log(np.array([[0.4, 0.35, 0.25]] * 2))  # blank, 1, 2
    assert ctc.greedy(scores.argmax(1)) == []
    assert ctc.beam_search(scores, beam=10) == [1]


@pytest.mark.parametrize("seed", range(10))
def test_language_and_bonus_count_as_told(seed):
    scores = random_scores(seed, steps=4, tokens=7)
    scores[:, 1:4] = -30.0  # the special tokens but the blank
    language = NGrams(counts(2), 7)

    def worth(text: tuple[int, ...], probability: float) -> float:
        said = sum(language.score(text[:i], token) for i, token in enumerate(text)) + language.end(text)
        return math.log(probability) + 0.7 * said + 0.3 * len(text)

    worths = {text: worth(text, p) for text, p in texts(scores).items() if not {1, 2, 3} & set(text)}
    found = ctc.beam_search(scores, beam=3000, language=language, weight=0.7, bonus=0.3)
    assert worth(tuple(found), texts(scores)[tuple(found)]) == pytest.approx(max(worths.values()))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_of_all_tokens_add_up_to_one(order):
    language = NGrams(counts(order), 7)
    for context in ((), (4,), (4, 5), (6, 6, 6), (5, 4, 4)):
        assert sum(math.exp(language.score(context, token)) for token in range(7)) == pytest.approx(1)


def test_a_probability_is_that_of_witten_and_bell():
    language = NGrams(counts(2), 7)
    tokens = Counter([4, 5, 4, END, 4, 5, 6, END, 6, END])  # every token of every text
    alone = {w: (tokens[w] + len(tokens) / 7) / (10 + len(tokens)) for w in range(7)}
    # After 4 came 5 twice and END once: two different tokens.
    for token, count in ((5, 2), (END, 1), (6, 0)):
        assert math.exp(language.score((4,), token)) == pytest.approx((count + 2 * alone[token]) / (3 + 2))
    assert language.score((1,), 4) == pytest.approx(math.log(alone[4]))  # a context never seen
    assert math.exp(language.score((), 4)) == pytest.approx((2 + 2 * alone[4]) / (3 + 2))
