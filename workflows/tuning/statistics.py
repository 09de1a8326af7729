"""How certain the differences between families are, given that results vary with the seed and with the test rows.

Each family was trained with K seeds, and each of these models measured on the same G groups of rows. Another seed would
give another model, and other rows another measurement, so a difference is compared with both kinds of variation:

- rows: groups are drawn with replacement (Efron & Tibshirani 1993), the same ones for all models and baselines, so
  that what makes a row hard for all of them cancels out. The metric may be any function of the sums of the groups.
- seeds: the variance over seeds is computed, not drawn: resampling K = 5 seeds would find only (K - 1) / K of it
  (Davison & Hinkley 1997, section 3.8, on hierarchical data). Where seeds differ more on some rows than on others, both
  kinds contain that part; it is estimated, and counted once.

Intervals and p-values are those of Student's t, with the degrees of freedom of Satterthwaite (1946) for the two parts.
If rows did not matter, that would be Welch's test. Holm's correction (1979) keeps the probability of any false claim in
the whole comparison below 1 - level.

Shapes: K seeds of one method, G groups of rows, R resamples. A method is a family or a baseline. Unknown values are
nan.
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
Sums = Mapping[str, Floats]  # by name, of each group: (G, ...)
Metric = Callable[[Mapping[str, Floats]], float]  # of the sums of all groups: by name, (...)
ROUNDING = 1e-12  # relative differences below it are rounding errors
MAX_ELEMENTS = 1 << 22  # numbers that the resampled sums of one name may hold at a time


@dataclass(frozen=True)
class Estimate:
    """A method on the whole test split.

    Attributes:
        mean: over the seeds that did not fail.
        low, high: the confidence interval of the mean over many seeds and many rows, within the metric's bounds; of a
            baseline, over rows only.
        seeds: the metric of each seed, in the order of the arguments; one for a baseline. Not finite if the training
            failed.
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
        p: probability of a difference at least as large if there were none; nan if that is unknown.
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
    """The result of a comparison.

    Attributes:
        families, baselines: by name, best first.
        differences: of every pair of families, and of every family from the best baseline.
        best: the family with the best mean; empty if all trainings failed.
        tied: families that are not significantly different from the best.
        decided: whether it is significantly better than every other family.
        baseline: the best baseline; empty without any.
        beats: families that are significantly better than the best baseline.
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


def compare(
    families: Mapping[str, Sequence[Sums | None]],
    metric: Metric,
    *,
    maximise: bool,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    baselines: Mapping[str, Sums] | None = None,
    name: str = "",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Estimate all methods and their differences, and say which differences are significant.

    A seed without sums, or whose metric is not finite, is a training that failed. It is left out of means, so its
    family looks better than it is: such a family may be found worse than another method, but not better.

    Args:
        families: by name, the sums of each seed's model, over the same groups, or None if its training failed. Each
            family has at least one seed.
        metric: of sums over groups; it is called (seeds + baselines) x (resamples + 1) times.
        maximise: whether the highest metric is best.
        bounds: lowest and highest possible value of the metric; intervals of methods end there.
        baselines: by name, the sums of a method without seeds, over the same groups.
        name: of the metric, for the verdict.
        resamples: R; standard errors are known to about 1 / sqrt(2 R) of themselves.
        level: of intervals and claims.
        seed: of the resampling.
    """
    assert families and resamples >= 2 and 0 < level < 1
    all_sums = [sums for sums in itertools.chain(*families.values(), (baselines or {}).values()) if sums is not None]
    groups = len(next(iter(all_sums[0].values()))) if all_sums else 1
    assert groups and all(len(x) == groups for sums in all_sums for x in sums.values()), "groups are the same for all"
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), resamples).astype(np.float64)
    sign = 1.0 if maximise else -1.0

    def measure(methods: Mapping[str, Sequence[Sums | None]], *, trained: bool) -> list[_Method]:
        measured = [_Method.measure(key, sums, metric, drawn, trained=trained) for key, sums in methods.items()]
        return sorted(measured, key=lambda m: (not m.finite, -sign * m.mean if m.finite else 0.0, m.name))

    ranked = measure(families, trained=True)
    ranked_baselines = measure({key: [sums] for key, sums in (baselines or {}).items()}, trained=False)
    best_baseline = [m for m in ranked_baselines if m.finite][:1]
    pairs = [*itertools.combinations(ranked, 2), *itertools.product(ranked, best_baseline)]
    differences = _differences(pairs, groups, sign=sign, level=level)
    return _verdict(ranked, ranked_baselines, differences, groups, sign=sign, level=level, bounds=bounds, name=name)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for the number of tests (Holm 1979); a nan stands for no test and is not counted."""
    order = sorted((i for i, value in enumerate(p) if not math.isnan(value)), key=lambda i: p[i])
    adjusted, largest = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        adjusted[i] = largest
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
    def measure(
        cls, name: str, seeds: Sequence[Sums | None], metric: Metric, drawn: Floats, *, trained: bool
    ) -> _Method:
        """Compute the metrics from the sums of each seed and how often each group was drawn (R, G)."""
        assert seeds, f"{name} has no seed"
        once_each = np.ones((1, drawn.shape[1]))
        values = [math.nan if sums is None else float(_resampled(sums, metric, once_each)[0]) for sums in seeds]
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
    """(R,) metrics of resamples in which each group occurs as often as it was drawn, (R, G)."""
    flat = {name: np.asarray(x, dtype=np.float64).reshape(len(x), -1) for name, x in sums.items()}
    rows = max(1, MAX_ELEMENTS // max(1, *(x.shape[1] for x in flat.values()), 1))
    metrics = []
    with np.errstate(all="ignore"):  # a metric of sums that are 0, or of a model that diverged
        for start in range(0, len(drawn), rows):
            part = drawn[start : start + rows]
            totals = {name: (part @ x).reshape(-1, *np.shape(sums[name])[1:]) for name, x in flat.items()}
            metrics += [metric({name: x[i] for name, x in totals.items()}) for i in range(len(part))]
    return np.array(metrics, dtype=np.float64)


def _error(methods: Sequence[_Method], groups: int) -> tuple[float, float]:
    """(Standard error, degrees of freedom) of the mean of one method, or of the difference of two.

    With S^2 the variance over a family's seeds, S^2 / K contains both how seeds differ on all rows alike and how they
    differ on some rows only. The variance of the resampled means contains the latter, too. It is estimated from how the
    seeds' resampled metrics vary about their mean, and subtracted.

    Satterthwaite's degrees of freedom are too many if a few seeds happen to agree, and so seem not to matter. Therefore
    the family with the fewest seeds counts for both, and there are never more degrees of freedom than trained models:
    on simulated tables of four equal families, at most 4 % then had a false claim, up to 9 % before.
    """
    random = [m for m in methods if m.trained]
    if groups < 2 or any(len(m.finite) < 2 for m in random) or not all(m.finite for m in methods):
        return math.nan, math.nan
    defined = np.isfinite(np.concatenate([m.resampled for m in methods])).all(0)  # (R,)
    if defined.sum() < max(2, len(defined) / 2):
        return math.nan, math.nan
    unbiased = groups / (groups - 1)  # a bootstrap divides by G
    means = [m.resampled[:, defined].mean(0) for m in methods]
    rows = float(np.var(means[0] - means[1] if len(means) > 1 else means[0], ddof=1)) * unbiased
    fewest = min((len(m.finite) for m in random), default=0)
    seeds = counted_twice = denominator = 0.0  # the denominator of Satterthwaite's formula
    for m in random:
        count = len(m.finite)
        family_seeds = float(np.var(m.finite, ddof=1)) / count
        deviations = m.resampled[:, defined] - m.resampled[:, defined].mean(0)  # (K, R)
        counted_twice += float(np.var(deviations, axis=1, ddof=1).mean()) / (count - 1) * unbiased
        seeds += family_seeds
        denominator += family_seeds**2 / (fewest - 1)
    variance = rows + max(0.0, seeds - counted_twice)
    denominator += rows**2 / (groups - 1)
    models = sum(len(m.finite) for m in random) or math.inf
    return math.sqrt(variance), min(models, variance**2 / denominator if denominator > 0 else math.inf)


def _interval(methods: Sequence[_Method], value: float, groups: int, level: float) -> tuple[float, float, float]:
    """(low, high, p) of a mean or a difference."""
    error, freedom = _error(methods, groups)
    if math.isnan(error):
        return math.nan, math.nan, math.nan
    tiny = ROUNDING * max(abs(x) for m in methods for x in m.finite)
    if error <= tiny:  # nothing varies: t is 0 / 0, or infinite
        return value, value, 1.0 if abs(value) <= tiny else _smallest_p(methods, groups)
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * error
    return value - half, value + half, 2 * float(special.stdtr(freedom, -abs(value) / error))


def _smallest_p(methods: Sequence[_Method], groups: int) -> float:
    """The smallest p of a permutation test: of the signs of the groups' differences, and of the seeds."""
    counts = [len(m.finite) for m in methods if m.trained]
    return max(0.5 ** (groups - 1), 2 / math.comb(sum(counts), counts[0]) if len(counts) > 1 else 0.0)


def _differences(
    pairs: Sequence[tuple[_Method, _Method]], groups: int, *, sign: float, level: float
) -> list[Difference]:
    tested = []
    for a, b in pairs:
        difference = a.mean - b.mean
        low, high, p = _interval([a, b], difference, groups, level)
        better = a if sign * difference > 0 else b
        tested.append((a.name, b.name, difference, low, high, math.nan if better.failed else p))
    adjusted = holm([test[-1] for test in tested])
    return [Difference(*test, p, p < 1 - level) for test, p in zip(tested, adjusted, strict=True)]


def _verdict(
    ranked: Sequence[_Method],
    ranked_baselines: Sequence[_Method],
    differences: Sequence[Difference],
    groups: int,
    *,
    sign: float,
    level: float,
    bounds: tuple[float, float],
    name: str,
) -> Comparison:
    def estimates(methods: Sequence[_Method]) -> dict[str, Estimate]:
        by_name = {}
        for m in methods:
            low, high, _ = _interval([m], m.mean, groups, level)
            by_name[m.name] = Estimate(m.mean, float(np.clip(low, *bounds)), float(np.clip(high, *bounds)), m.seeds)
        return by_name

    succeeded = [m for m in ranked if m.finite]
    best = succeeded[0].name if succeeded else ""
    by_pair = {(d.a, d.b): d for d in differences}
    tied = [m.name for m in succeeded[1:] if not by_pair[best, m.name].significant]
    baseline = next((m.name for m in ranked_baselines if m.finite), "")
    from_baseline = [by_pair[m.name, baseline] for m in succeeded if baseline]
    beats = [d.a for d in from_baseline if d.significant and sign * d.difference > 0]
    families, baselines = estimates(ranked), estimates(ranked_baselines)
    on_metric = f" on {name}" if name else ""
    parts = [_undecided(succeeded, by_pair, groups) or _claim(succeeded, tied, by_pair, on_metric)]
    if any(not math.isnan(d.p) for d in from_baseline):
        parts.append(_baseline_claim(baseline, baselines[baseline].mean, beats, [m.name for m in succeeded]))
    parts += [f"{m.failed} of {len(m.seeds)} seeds of {m.name} failed" for m in ranked if m.failed]
    return Comparison(
        families,
        baselines,
        list(differences),
        best,
        tied,
        len(succeeded) > 1 and not tied,
        baseline,
        beats,
        "; ".join(parts),
    )


def _undecided(succeeded: Sequence[_Method], by_pair: Mapping[tuple[str, str], Difference], groups: int) -> str:
    """Why it is unknown whether the best family differs from the others; "" if it is known."""
    if not succeeded:
        return "undecided: every training failed"
    best, others = succeeded[0], succeeded[1:]
    if not any(math.isnan(by_pair[best.name, m.name].p) for m in others):
        return ""
    single = [m.name for m in succeeded if len(m.finite) < 2]
    if len(single) == len(succeeded):
        return "undecided: one seed; to know how much seeds differ, train at least two"
    if single:
        return f"undecided: one seed of {_join(single)}; to know how much seeds differ, train at least two"
    if groups < 2:
        return "undecided: one group of test rows, so it is not known how much rows differ"
    if best.failed:
        return f"undecided: {best.name} has the best mean ({best.mean:.3g}) only without its failed seeds"
    return "undecided: the metric is not defined on parts of the test rows"


def _claim(
    succeeded: Sequence[_Method], tied: Sequence[str], by_pair: Mapping[tuple[str, str], Difference], on_metric: str
) -> str:
    """Which differences between families are significant; `succeeded` is ranked, best first."""
    best, names = succeeded[0].name, [m.name for m in succeeded]
    if len(names) == 1:
        return f"{best} is the only family{on_metric} ({succeeded[0].mean:.3g})"
    others = [name for name in names[1:] if name not in tied]
    if not tied:
        subject = f"difference from {others[0]} is" if len(others) == 1 else f"differences from {_join(others)} are"
        return f"{best} is best{on_metric} ({succeeded[0].mean:.3g}; the {subject} significant)"
    top = [best, *tied]
    text = f"no significant difference between {_join(top) if others else _join_all(names)}{on_metric}"
    worse = {
        name: [o for o in names if o != name and (name, o) in by_pair and by_pair[name, o].significant]
        for name in names
    }
    if not others and any(worse.values()):  # only for the best one nothing is significant
        text = f"{best} has the best mean{on_metric}, but is not significantly different from {_join(tied)}"
    if others and all(set(others) <= set(worse[name]) for name in top):
        return f"{text}; {'both' if len(top) == 2 else 'all'} are better than {_join(others)}"
    return "; ".join([text, *(f"{name} is better than {_join(worse[name])}" for name in top if worse[name])])


def _baseline_claim(baseline: str, value: float, beats: Sequence[str], names: Sequence[str]) -> str:
    """Which families are significantly better than the best baseline."""
    target, others = f"the baseline {baseline} ({value:.3g})", [name for name in names if name not in beats]
    if not beats:
        return f"no family is significantly better than {target}"
    if not others:
        subject = f"{names[0]} beats" if len(names) == 1 else f"{'both' if len(names) == 2 else 'all'} beat"
        return f"{subject} {target}"
    return (
        f"{_join(beats)} beat{'s' if len(beats) == 1 else ''} {target}, "
        f"{_join(others)} do{'es' if len(others) == 1 else ''} not"
    )


def _join(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _join_all(names: Sequence[str]) -> str:
    """Two names, or the number of families."""
    words = {3: "three", 4: "four", 5: "five", 6: "six"}
    return _join(names) if len(names) == 2 else f"the {words.get(len(names), len(names))} families"
