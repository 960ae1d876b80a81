"""Means with an interval and a count, and proportions with theirs."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from voxplain.metrics.base import Undefined


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
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The mean and its bias-corrected, accelerated bootstrap interval (BCa; Efron, 1987).

    One value has no interval (None). Equal values have one of no width, which says nothing about the next case: the
    note tells. Where BCa breaks down, the percentile interval stands in, with a note. Undefined without values.
    """
    sample = _sample(values)
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(1, mean, None, None, "one value has no interval")
    if sample.min() == sample.max():
        same = float(sample[0])
        return Interval(sample.size, same, same, same, "all values are equal: the width 0 is no certainty")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # seen and answered below
            found = stats.bootstrap(
                (sample,),
                np.mean,
                vectorized=True,
                axis=-1,
                n_resamples=resamples,
                batch=max(1, 2_000_000 // sample.size),
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            note = "" if method == "BCa" else "BCa broke down; percentile interval"
            return Interval(sample.size, mean, float(found.low), float(found.high), note)
    raise Undefined("no finite interval")  # cannot happen for finite values; better loud than NaN


def paired_gain(
    ours: Sequence[float] | Float[np.ndarray, " n"],
    theirs: Sequence[float] | Float[np.ndarray, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The mean of ours - theirs over the same cases in the same order, with its interval; above 0: ours is higher."""
    first, second = _sample(ours), _sample(theirs)
    if first.size != second.size:
        raise ValueError(f"a paired gain needs the same cases on both sides, got {first.size} and {second.size} values")
    return bootstrap(first - second, confidence=confidence, resamples=resamples, seed=seed)


def mean_of_groups(
    groups: Sequence[Sequence[float]],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Interval:
    """The plain mean of the groups' means (each finding weighs once), with a percentile interval; n counts all values.

    Cases are resampled within their group, so the interval speaks for more cases of these groups, not for new groups.
    """
    samples = [_sample(group) for group in groups]
    if not samples:
        raise Undefined("no values")
    rng = np.random.default_rng(seed)
    total = np.zeros(resamples)
    for sample in samples:
        rows = max(1, 2_000_000 // sample.size)
        for start in range(0, resamples, rows):
            stop = min(start + rows, resamples)
            total[start:stop] += sample[rng.integers(sample.size, size=(stop - start, sample.size))].mean(1)
    n, mean = sum(sample.size for sample in samples), float(np.mean([sample.mean() for sample in samples]))
    if all(sample.size == 1 for sample in samples):
        return Interval(n, mean, None, None, "one value a group has no interval")
    low, high = np.quantile(total / len(samples), [(1 - confidence) / 2, (1 + confidence) / 2])
    single = sum(sample.size == 1 for sample in samples)
    note = f"{single} of {len(samples)} groups have one value and add no spread" if single else ""
    return Interval(n, mean, float(low), float(high), note)


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Interval:
    """A proportion and its score interval (Wilson, 1927), which stays inside 0 to 1 and is not empty at 0 or n of n."""
    if n == 0:
        raise Undefined("no values")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must lie in 0 to n = {n}, got {successes}")
    found = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Interval(n, successes / n, float(found.low), float(found.high))


def _sample(values: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1:
        raise ValueError(f"expected one axis of values, got shape {sample.shape}")
    if sample.size == 0:
        raise Undefined("no values")
    if not np.isfinite(sample).all():
        raise ValueError("the values hold NaN or infinity; count undefined cases apart, do not average them")
    return sample
