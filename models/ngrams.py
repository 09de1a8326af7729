"""A language model of counts: how likely a token is after the ones before it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from models.special_tokens import BEGIN, END


class NGrams:
    """Witten & Bell (1991): p(w | h) = (c(hw) + n(h) p(w | h')) / (c(h) + n(h)).

    c counts runs of tokens, n(h) is the number of different tokens seen after h, and h' is h without its first token;
    below the empty h all tokens are equally likely.

    Args:
        counts: [tokens ..., count] for each run of `order` tokens, where every token of every text, its END included,
            ends one run, and `order` - 1 BEGINs stand before a text.
        tokens: that there are.
    """

    def __init__(self, counts: Iterable[Sequence[int]], tokens: int) -> None:
        self.tokens, self.order = tokens, 1
        self.seen: dict[tuple[int, ...], dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for *run, count in counts:
            self.order = len(run)
            for start in range(len(run)):
                self.seen[tuple(run[start:-1])][run[-1]] += count
        self.totals = {context: sum(after.values()) for context, after in self.seen.items()}
        self.known: dict[tuple[tuple[int, ...], int], float] = {}

    def score(self, prefix: Sequence[int], token: int) -> float:
        """The natural logarithm of p(token | prefix), for a prefix that begins a text."""
        context = ((BEGIN,) * (self.order - 1) + tuple(prefix))[-(self.order - 1) :] if self.order > 1 else ()
        key = context, token
        if key not in self.known:
            self.known[key] = math.log(self._probability(context, token))
        return self.known[key]

    def end(self, prefix: Sequence[int]) -> float:
        """The natural logarithm of the probability that the text ends here."""
        return self.score(prefix, END)

    def _probability(self, context: tuple[int, ...], token: int) -> float:
        shorter = self._probability(context[1:], token) if context else 1 / self.tokens
        after = self.seen.get(context)
        if after is None:
            return shorter
        return (after.get(token, 0) + len(after) * shorter) / (self.totals[context] + len(after))
