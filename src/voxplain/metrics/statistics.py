"""Means with an interval and a count, and proportions with theirs."""

import math
import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from voxplain.metrics.base import Undefined, sample


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of n values with its confidence interval; `low` and `high` are None where none can be given.

    `note` says what is special: the method fell back, there is no spread, or there is one value only.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    note: str = ""

    def above(self, bound: float) -> bool:
        """Whether the whole interval lies above the bound; an absent interval never does."""
        return self.low is not None and self.low > bound


def bootstrap(
    values: Sequence[float] | Float[np.ndarray, " n"],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The mean and its bias-corrected, accelerated bootstrap interval (BCa; Efron, 1987).

    `clusters` names what each value belongs to (a patient, a prompt): whole clusters are drawn then, since values of
    one patient are no news to each other. One value, or one cluster, has no interval (None). Equal values have one of
    no width, which says nothing about the next case: the note tells. Where BCa breaks down, the percentile interval
    stands in, with a note. Undefined without values.
    """
    _level(confidence)
    drawn = sample(values)
    n, mean = drawn.size, float(drawn.mean())
    if n == 1:
        return Interval(1, mean, None, None, "one value has no interval")
    data, levels, notes = (drawn,), drawn, []
    if clusters is not None:
        codes = _codes(clusters, n)
        data = np.bincount(codes, drawn), np.bincount(codes).astype(np.float64)
        levels = data[0] / data[1]
        if levels.size == 1:
            return Interval(n, mean, None, None, "one cluster has no interval")
        notes.append(f"{levels.size} clusters drawn whole")
    if np.allclose(levels, levels[0], rtol=1e-12, atol=0):
        same = float(levels[0])
        what = "values" if clusters is None else "clusters"
        return Interval(n, same, same, same, "; ".join([*notes, f"all {what} are equal: the width 0 is no certainty"]))
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # seen and answered below
            found = stats.bootstrap(
                data,
                np.mean if clusters is None else _ratio,
                vectorized=True,
                paired=clusters is not None,
                axis=-1,
                n_resamples=resamples,
                batch=max(1, 2_000_000 // levels.size),
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            notes += [] if method == "BCa" else ["BCa broke down; percentile interval"]
            return Interval(n, mean, float(found.low), float(found.high), "; ".join(notes))
    raise Undefined("no finite interval")  # cannot happen for finite values; better loud than NaN


def paired_gain(
    ours: Sequence[float] | Float[np.ndarray, " n"],
    theirs: Sequence[float] | Float[np.ndarray, " n"],
    *,
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The mean of ours - theirs over the same cases in the same order, with its interval; above 0: ours is higher."""
    first, second = sample(ours), sample(theirs)
    if first.size != second.size:
        raise ValueError(f"a paired gain needs the same cases on both sides, got {first.size} and {second.size} values")
    return bootstrap(first - second, clusters=clusters, confidence=confidence, resamples=resamples, seed=seed)


def mean_of_groups(
    groups: Sequence[Sequence[float]],
    *,
    clusters: Sequence[Sequence[Hashable]] | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The plain mean of the groups' means (each finding weighs once), with a percentile interval; n counts all values.

    Cases are resampled within their group, so the interval speaks for more cases of these groups, not for new groups.
    With `clusters`, one list a group, whole clusters are drawn instead, through all groups at once (a patient may have
    several findings); a group that a draw misses is left out of that draw's mean. An interval of no width has a
    note, as in `bootstrap`.
    """
    _level(confidence)
    samples = [sample(group) for group in groups]
    if not samples:
        raise Undefined("no values")
    n, mean = sum(each.size for each in samples), float(np.mean([each.mean() for each in samples]))
    rng, notes = np.random.default_rng(seed), []
    if clusters is None:
        if all(each.size == 1 for each in samples):
            return Interval(n, mean, None, None, "one value a group has no interval")
        single = sum(each.size == 1 for each in samples)
        notes += [f"{single} of {len(samples)} groups have one value and add no spread"] if single else []
        means = _redrawn_cases(samples, resamples, rng)
    else:
        if [len(each) for each in clusters] != [each.size for each in samples]:
            raise ValueError("clusters need one name for each value of each group")
        codes = _codes([name for each in clusters for name in each], n)
        if codes.max() == 0:
            return Interval(n, mean, None, None, "one cluster has no interval")
        notes.append(f"{codes.max() + 1} clusters drawn whole")
        means = _redrawn_clusters(samples, codes, resamples, rng)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    if np.isclose(low, high, rtol=1e-12, atol=0):
        notes.append("the draws agree: the width 0 is no certainty")
    return Interval(n, mean, float(low), float(high), "; ".join(notes))


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """A proportion and its score interval (Wilson, 1927), which stays inside 0 to 1 and is not empty at 0 or n of n."""
    _level(confidence)
    if n == 0:
        raise Undefined("no values")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0 to n = {n}, got {successes}")
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(n, successes / n, float(found.low), float(found.high))


def _level(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}; 95 % is 0.95")


def _codes(names: Sequence[Hashable], n: int) -> Int[np.ndarray, " n"]:
    """Each name as the number of its first appearance."""
    if len(names) != n:
        raise ValueError(f"{n} values but {len(names)} names of clusters")
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names])


def _ratio(totals: np.ndarray, counts: np.ndarray, axis: int) -> np.ndarray | np.floating:
    """The mean over all values of the clusters drawn."""
    return totals.sum(axis) / counts.sum(axis)


def _redrawn_cases(
    samples: Sequence[Float[np.ndarray, " _"]], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, " resamples"]:
    total = np.zeros(resamples)
    for each in samples:
        rows = max(1, 2_000_000 // each.size)
        for start in range(0, resamples, rows):
            stop = min(start + rows, resamples)
            total[start:stop] += each[rng.integers(each.size, size=(stop - start, each.size))].mean(1)
    return total / len(samples)


def _redrawn_clusters(
    samples: Sequence[Float[np.ndarray, " _"]], codes: Int[np.ndarray, " n"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, " resamples"]:
    size = int(codes.max()) + 1
    parts = np.split(codes, np.cumsum([each.size for each in samples])[:-1])
    totals = np.stack([np.bincount(part, each, size) for part, each in zip(parts, samples, strict=True)])
    counts = np.stack([np.bincount(part, minlength=size) for part in parts])  # [groups, clusters]
    times = rng.multinomial(size, np.full(size, 1 / size), size=resamples)  # how often each cluster is drawn
    present = times @ counts.T
    means = (times @ totals.T) / np.maximum(present, 1)
    return means.sum(1) / (present > 0).sum(1)  # a missing group adds 0 above and does not count below
