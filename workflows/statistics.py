"""How sure a comparison of families is, over seeds and over test rows.

Each family was trained with K seeds, and each of these models measured on the same G groups of rows. Another seed would
give another model, and other rows another measurement, so a difference is held against both:

- rows: groups are drawn with replacement (Efron & Tibshirani 1993), the same ones for all models and baselines, so
  that what makes a row hard for all of them cancels out. The metric may be any function of the sums of the groups.
- seeds: the variance over seeds is computed, not drawn: resampling K = 5 seeds would find only (K - 1) / K of it
  (Davison & Hinkley 1997, section 3.8, on hierarchical data). Where seeds differ more on some rows than on others, both
  find that part; it is estimated, and counted once.

Intervals and p-values are those of Student's t, with the degrees of freedom of Satterthwaite (1946) for the two parts.
If rows did not matter, that would be Welch's test. Holm (1979) keeps the chance of any false claim in the whole
comparison below 1 - level.

Shapes: K seeds of one method, G groups of rows, R resamples. A method is a family or a baseline. What cannot be known
is nan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
Sums = Mapping[str, Floats]                             # by name, of each group: (G, ...)
Metric = Callable[[Mapping[str, Floats]], float]        # of the sums of all groups: by name, (...)

ALIKE = 1e-12           # relative differences below it are rounding
AT_ONCE = 1 << 22       # numbers that resampled sums of one name may hold at a time


@dataclass(frozen=True)
class Estimate:
    """A method on the whole test split.

    Attributes:
        mean: over the seeds that did not fail.
        low, high: the interval of what the mean of many seeds on many rows would be, within the metric's bounds; of a
            baseline, over rows only.
        seeds: the metric of each seed, in the order given; one for a baseline. Not finite where a training failed.
    """

    mean: float
    low: float
    high: float
    seeds: list[float]


@dataclass(frozen=True)
class Difference:
    """Between a family and another, or the best baseline.

    Attributes:
        a, b: names; of two families, a has the better mean.
        difference: the mean of a less that of b, in units of the metric.
        low, high: its interval, for this difference alone.
        p: of a difference at least as large if there were none; nan if that is unknown.
        adjusted: p after Holm's correction over all differences.
        significant: whether adjusted is below 1 - level.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    adjusted: float
    significant: bool


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
        families, baselines: by name, best first.
        differences: of every pair of families, and of every family from the best baseline.
        best: the family with the best mean; empty if all trainings failed.
        tied: families that are not significantly different from it.
        decided: whether it is significantly better than every other family.
        baseline: the best baseline; empty without any.
        beats: families that are significantly better than that.
        text: the verdict, one sentence.
    """

    families: dict[str, Estimate]
    baselines: dict[str, Estimate]
    differences: list[Difference]
    best: str
    tied: list[str]
    decided: bool
    baseline: str
    beats: list[str]
    text: str


def compare(families: Mapping[str, Sequence[Sums | None]], metric: Metric, *, maximise: bool,
            bounds: tuple[float, float] = (-math.inf, math.inf), baselines: Mapping[str, Sums] | None = None,
            name: str = "", resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Comparison:
    """Estimates of all methods, all differences, and what may be claimed of them.

    A seed without sums, or whose metric is not finite, is a training that failed. It is left out of means, so its
    family looks better than it is: such a family may be found worse than another method, but not better.

    Args:
        families: by name, the sums of each seed's model, over the same groups, or None where its training failed. Each
            family has at least one seed.
        metric: of sums over groups; it is called (seeds + baselines) x (resamples + 1) times.
        maximise: whether the highest metric is best.
        bounds: values that the metric cannot go beyond; intervals of methods end there.
        baselines: by name, the sums of a method without seeds, over the same groups.
        name: of the metric, for the verdict.
        resamples: R; standard errors are known to about 1 / sqrt(2 R) of themselves.
        level: of intervals and claims.
        seed: of the resampling.
    """
    assert families and resamples >= 2 and 0 < level < 1
    every = [sums for sums in itertools.chain(*families.values(), (baselines or {}).values()) if sums is not None]
    groups = len(next(iter(every[0].values()))) if every else 1
    assert groups and all(len(x) == groups for sums in every for x in sums.values()), "groups are the same for all"
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)
    sign = 1.0 if maximise else -1.0

    def measured(methods: Mapping[str, Sequence[Sums | None]], *, trained: bool) -> list[_Method]:
        found = [_Method.measure(key, sums, metric, drawn, trained=trained) for key, sums in methods.items()]
        return sorted(found, key=lambda m: (not m.finite, -sign * m.mean if m.finite else 0.0, m.name))

    ranked = measured(families, trained=True)
    simple = measured({key: [sums] for key, sums in (baselines or {}).items()}, trained=False)
    pairs = [*itertools.combinations(ranked, 2), *itertools.product(ranked, [m for m in simple if m.finite][:1])]
    differences = _differences(pairs, groups, sign=sign, level=level)
    return _verdict(ranked, simple, differences, groups, sign=sign, level=level, bounds=bounds, name=name)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for being several (Holm 1979); nan, which nothing was tested by, counts for nothing."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    adjusted, least = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


@dataclass(frozen=True)
class _Method:
    """A family or a baseline, measured.

    Attributes:
        seeds: (K,) metrics on all rows.
        finite: those of seeds that did not fail.
        resampled: (len(finite), R) their metrics on resampled rows.
        trained: whether another seed would give another model.
    """

    name: str
    seeds: list[float]
    finite: list[float]
    resampled: Floats
    trained: bool

    @classmethod
    def measure(cls, name: str, seeds: Sequence[Sums | None], metric: Metric, drawn: Floats, *,
                trained: bool) -> _Method:
        """From the sums of each seed, and how often each group was drawn (R, G)."""
        assert seeds, f"{name} has no seed"
        everything = np.ones((1, drawn.shape[1]))
        values = [math.nan if sums is None else float(_resampled(sums, metric, everything)[0]) for sums in seeds]
        kept = [sums for sums, value in zip(seeds, values, strict=True) if sums is not None and math.isfinite(value)]
        resampled = np.array([_resampled(sums, metric, drawn) for sums in kept]).reshape(len(kept), len(drawn))
        return cls(name, values, [value for value in values if math.isfinite(value)], resampled, trained)

    @property
    def mean(self) -> float:
        return float(np.mean(self.finite)) if self.finite else math.nan

    @property
    def failed(self) -> int:
        return len(self.seeds) - len(self.finite)


def _resampled(sums: Sums, metric: Metric, drawn: Floats) -> Floats:
    """(R,) metrics of the groups as often as each was drawn, (R, G)."""
    flat = {name: np.asarray(x, dtype=np.float64).reshape(len(x), -1) for name, x in sums.items()}
    rows = max(1, AT_ONCE // max(1, *(x.shape[1] for x in flat.values()), 1))
    out = []
    with np.errstate(all="ignore"):                         # a metric of sums that are 0, or of a model that diverged
        for start in range(0, len(drawn), rows):
            part = drawn[start:start + rows]
            totals = {name: (part @ x).reshape(-1, *np.shape(sums[name])[1:]) for name, x in flat.items()}
            out += [metric({name: x[i] for name, x in totals.items()}) for i in range(len(part))]
    return np.array(out, dtype=np.float64)


def _error(methods: Sequence[_Method], groups: int) -> tuple[float, float]:
    """(Standard error, degrees of freedom) of the mean of one method, or of the difference of two.

    With S^2 the variance over a family's seeds, S^2 / K holds what seeds differ by on all rows alike, and what they
    differ by on some rows. The resampled means hold the latter, too; it shows in how the seeds' resampled metrics vary
    about their mean, and is subtracted.

    Satterthwaite's degrees of freedom are too many where few seeds happen to agree, and so seem not to matter.
    Therefore the family with the fewest seeds speaks for both, and there are never more than trained models: on made
    tables of four equal families, at most 4 % then held a false claim, up to 9 % before.
    """
    random = [m for m in methods if m.trained]
    if groups < 2 or any(len(m.finite) < 2 for m in random) or not all(m.finite for m in methods):
        return math.nan, math.nan
    defined = np.isfinite(np.concatenate([m.resampled for m in methods])).all(0)        # (R,)
    if defined.sum() < max(2, len(defined) / 2):
        return math.nan, math.nan
    unbiased = groups / (groups - 1)                        # a bootstrap divides by G
    means = [m.resampled[:, defined].mean(0) for m in methods]
    rows = float(np.var(means[0] - means[1] if len(means) > 1 else means[0], ddof=1)) * unbiased
    fewest = min((len(m.finite) for m in random), default=0)
    seeds = twice = below = 0.0
    for m in random:
        count = len(m.finite)
        whole = float(np.var(m.finite, ddof=1)) / count
        apart = m.resampled[:, defined] - m.resampled[:, defined].mean(0)               # (K, R)
        twice += float(np.var(apart, axis=1, ddof=1).mean()) / (count - 1) * unbiased
        seeds += whole
        below += whole ** 2 / (fewest - 1)
    variance = rows + max(0.0, seeds - twice)
    below += rows ** 2 / (groups - 1)
    models = sum(len(m.finite) for m in random) or math.inf
    return math.sqrt(variance), min(models, variance ** 2 / below if below > 0 else math.inf)


def _interval(methods: Sequence[_Method], value: float, groups: int, level: float) -> tuple[float, float, float]:
    """(low, high, p) of a mean or a difference."""
    error, freedom = _error(methods, groups)
    if math.isnan(error):
        return math.nan, math.nan, math.nan
    tiny = ALIKE * max(abs(x) for m in methods for x in m.finite)
    if error <= tiny:                                       # nothing varies: t is 0 / 0, or infinite
        return value, value, 1.0 if abs(value) <= tiny else _least(methods, groups)
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return value - half, value + half, 2 * float(special.stdtr(freedom, -abs(value) / error))


def _least(methods: Sequence[_Method], groups: int) -> float:
    """The least p that permutations could find: of the signs of the groups' differences, and of the seeds."""
    counts = [len(m.finite) for m in methods if m.trained]
    return max(0.5 ** (groups - 1), 2 / math.comb(sum(counts), counts[0]) if len(counts) > 1 else 0.0)


def _differences(pairs: Sequence[tuple[_Method, _Method]], groups: int, *, sign: float,
                 level: float) -> list[Difference]:
    found = []
    for a, b in pairs:
        difference = a.mean - b.mean
        low, high, p = _interval([a, b], difference, groups, level)
        better = a if sign * difference > 0 else b
        found.append((a.name, b.name, difference, low, high, math.nan if better.failed else p))
    adjusted = holm([one[-1] for one in found])
    return [Difference(*one, p, p < 1 - level) for one, p in zip(found, adjusted, strict=True)]


def _verdict(ranked: Sequence[_Method], simple: Sequence[_Method], differences: Sequence[Difference], groups: int, *,
             sign: float, level: float, bounds: tuple[float, float], name: str) -> Comparison:
    def estimates(methods: Sequence[_Method]) -> dict[str, Estimate]:
        found = {}
        for m in methods:
            low, high, _ = _interval([m], m.mean, groups, level)
            found[m.name] = Estimate(m.mean, float(np.clip(low, *bounds)), float(np.clip(high, *bounds)), m.seeds)
        return found

    alive = [m for m in ranked if m.finite]
    best = alive[0].name if alive else ""
    by_pair = {(d.a, d.b): d for d in differences}
    tied = [m.name for m in alive[1:] if not by_pair[best, m.name].significant]
    baseline = next((m.name for m in simple if m.finite), "")
    against = [by_pair[m.name, baseline] for m in alive if baseline]
    beats = [d.a for d in against if d.significant and sign * d.difference > 0]
    families, baselines = estimates(ranked), estimates(simple)
    on = f" on {name}" if name else ""
    parts = [_unknown(alive, by_pair, groups) or _claim(alive, tied, by_pair, on)]
    if any(not math.isnan(d.p) for d in against):
        parts.append(_beside(baseline, baselines[baseline].mean, beats, [m.name for m in alive]))
    parts += [f"{m.failed} of {len(m.seeds)} seeds of {m.name} failed" for m in ranked if m.failed]
    return Comparison(families, baselines, list(differences), best, tied, len(alive) > 1 and not tied, baseline, beats,
                      "; ".join(parts))


def _unknown(alive: Sequence[_Method], by_pair: Mapping[tuple[str, str], Difference], groups: int) -> str:
    """Why it is not known whether the best family differs from the others; empty if it is."""
    if not alive:
        return "undecided: every training failed"
    best, others = alive[0], alive[1:]
    if not any(math.isnan(by_pair[best.name, m.name].p) for m in others):
        return ""
    single = [m.name for m in alive if len(m.finite) < 2]
    if len(single) == len(alive):
        return "undecided: one seed; to know how much seeds differ, train at least two"
    if single:
        return f"undecided: one seed of {_listed(single)}; to know how much seeds differ, train at least two"
    if groups < 2:
        return "undecided: one group of test rows, so that it is not known how much rows differ"
    if best.failed:
        return f"undecided: {best.name} has the best mean ({best.mean:.3g}) only without its failed seeds"
    return "undecided: the metric is not defined on parts of the test rows"


def _claim(alive: Sequence[_Method], tied: Sequence[str], by_pair: Mapping[tuple[str, str], Difference],
           on: str) -> str:
    """What is significant among families, of which the best and those tied with it come first."""
    best, names = alive[0].name, [m.name for m in alive]
    if len(names) == 1:
        return f"{best} is the only family{on} ({alive[0].mean:.3g})"
    others = [name for name in names[1:] if name not in tied]
    if not tied:
        told = f"difference from {others[0]} is" if len(others) == 1 else f"differences from {_listed(others)} are"
        return f"{best} is best{on} ({alive[0].mean:.3g}; the {told} significant)"
    top = [best, *tied]
    text = f"no significant difference between {_listed(top) if others else _all(names)}{on}"
    worse = {name: [o for o in names if o != name and (name, o) in by_pair and by_pair[name, o].significant]
             for name in names}
    if not others and any(worse.values()):                  # the best is sure of nothing, another one is
        text = f"{best} has the best mean{on}, but is not significantly different from {_listed(tied)}"
    if others and all(set(others) <= set(worse[name]) for name in top):
        return f"{text}; {'both' if len(top) == 2 else 'all'} are better than {_listed(others)}"
    return "; ".join([text, *(f"{name} is better than {_listed(worse[name])}" for name in top if worse[name])])


def _beside(baseline: str, value: float, beats: Sequence[str], names: Sequence[str]) -> str:
    """What is significant about the best baseline."""
    told, others = f"the baseline {baseline} ({value:.3g})", [name for name in names if name not in beats]
    if not beats:
        return f"no family is significantly better than {told}"
    if not others:
        who = f"{names[0]} beats" if len(names) == 1 else f"{'both' if len(names) == 2 else 'all'} beat"
        return f"{who} {told}"
    return (f"{_listed(beats)} beat{'s' if len(beats) == 1 else ''} {told}, "
            f"{_listed(others)} do{'es' if len(others) == 1 else ''} not")


def _listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _all(names: Sequence[str]) -> str:
    words = {3: "three", 4: "four", 5: "five", 6: "six"}
    return _listed(names) if len(names) == 2 else f"the {words.get(len(names), len(names))} families"
