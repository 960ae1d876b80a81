"""Tests of a difference and of its absence, and what many tests at once cost.

SciPy does the counting; step-down and two one-sided tests are here because it has neither.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy import stats

from voxplain.metrics.base import Undefined, sample

Alternative = Literal["two-sided", "less", "greater"]
EXACT = 1 << 16
"""Up to so many arrangements, all of them are counted: 16 signs, or 9 against 9 values."""

ONE = "one difference cannot be tested: give two or more"


@dataclass(frozen=True, slots=True)
class Significance:
    """A test of `effect` over n values; `smallest` is the smallest p that the test could have given with so few.

    `exact` is False where arrangements were drawn at random or a distribution was assumed.
    """

    effect: float
    p: float
    n: int
    exact: bool
    smallest: float


def sign_flip(
    differences: Sequence[float] | Float[np.ndarray, " n"],
    *,
    alternative: Alternative = "two-sided",
    resamples: int = 9999,
    seed: int = 0,
) -> Significance:
    """Is the mean of paired differences 0? Fisher's randomization test: each sign could as well be the other.

    p is 0 to 1, and at least 2 / 2^n for two sides: five pairs can never reach 0.05. Exact up to 16 differences, else
    over `resamples` random flips. Differences of 0 stay what they are. Undefined for one difference, whose p is 1
    whatever it is.
    """
    values = sample(differences)
    if values.size == 1:
        raise Undefined(ONE)
    return _permuted((values,), "samples", 2**values.size, alternative, resamples, seed)


def permutation(
    first: Sequence[float] | Float[np.ndarray, " first"],
    second: Sequence[float] | Float[np.ndarray, " second"],
    *,
    alternative: Alternative = "two-sided",
    resamples: int = 9999,
    seed: int = 0,
) -> Significance:
    """Is the mean of `first` that of `second`? Fisher's and Pitman's test: each value could as well be the other's.

    The values need not be paired. Exact up to 65,536 ways to divide them, else over `resamples` random ones. Undefined
    where a group has one value: two such groups have p = 1 whatever they are, and SciPy refuses one.
    """
    groups = sample(first), sample(second)
    sizes = [group.size for group in groups]
    if min(sizes) == 1:
        raise Undefined(f"groups of {sizes[0]} and {sizes[1]} values cannot be tested: give each two or more")
    ways = math.comb(sum(sizes), sizes[0])
    return _permuted(groups, "independent", ways, alternative, resamples, seed)


def equivalence(
    differences: Sequence[float] | Float[np.ndarray, " n"],
    low: float,
    high: float,
    *,
    test: Literal["t", "sign-flip"] = "t",
) -> Significance:
    """Do paired differences lie within (low, high)? Two one-sided tests (Schuirmann, 1987); a small p says yes.

    p is the larger of the two: that the mean is not above `low`, and that it is not below `high`. "t" assumes normal
    differences, "sign-flip" only symmetric ones. The bounds are the smallest effects that count, named in advance.
    Undefined for one difference, and with "t" for equal ones, which have no spread.
    """
    if not low < high:
        raise ValueError(f"the bounds must satisfy low < high, got {low} and {high}")
    values = sample(differences)
    if values.size == 1:
        raise Undefined(ONE)
    if test == "sign-flip":
        sides = sign_flip(values - low, alternative="greater"), sign_flip(values - high, alternative="less")
        worse = max(sides, key=lambda side: side.p)
        return Significance(float(values.mean()), worse.p, values.size, worse.exact, worse.smallest)
    if values.min() == values.max():
        raise Undefined("equal differences have no spread")
    above = stats.ttest_1samp(values, low, alternative="greater")
    below = stats.ttest_1samp(values, high, alternative="less")
    p = float(np.max([above[1], below[1]]))
    return Significance(float(values.mean()), p, values.size, False, 0.0)


def holm(p_values: Sequence[float] | Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values adjusted so that the chance of *any* false claim stays below the level (Holm, 1979), in given order."""
    p = _probabilities(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)).clip(max=1)
    return adjusted


def benjamini_hochberg(p_values: Sequence[float] | Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """p-values adjusted so that the *share* of false claims stays below the level (1995), in given order."""
    return stats.false_discovery_control(_probabilities(p_values), method="bh")


def _permuted(
    groups: tuple[Float[np.ndarray, " _"], ...],
    kind: Literal["samples", "independent"],
    ways: int,
    alternative: Alternative,
    resamples: int,
    seed: int,
) -> Significance:
    exact, n = ways <= EXACT, sum(group.size for group in groups)
    found = stats.permutation_test(
        groups,
        _mean if kind == "samples" else _mean_difference,
        permutation_type=kind,
        vectorized=True,
        axis=-1,
        n_resamples=ways if exact else resamples,
        batch=max(1, 2_000_000 // n),
        alternative=alternative,
        rng=np.random.default_rng(seed),
    )
    smallest = (2 if alternative == "two-sided" else 1) / (ways if exact else resamples + 1)
    return Significance(float(found.statistic), float(found.pvalue), n, exact, min(1.0, smallest))


def _mean(values: np.ndarray, axis: int) -> np.ndarray | np.floating:
    return values.mean(axis)


def _mean_difference(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray | np.floating:
    return first.mean(axis) - second.mean(axis)


def _probabilities(p_values: Sequence[float] | Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    p = sample(p_values)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p-values lie between 0 and 1, got {p.min():.3g} to {p.max():.3g}")
    return p
