"""How well a map points at a truth mask: arrays in, a float out.

All metrics take any number of axes and an optional `region`: only its cells count, as scores and as truth.
A case without an answer (an empty mask, a constant map) raises `Undefined`, never returns 0 or NaN.
"""

import math

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from voxplain.metrics.base import Undefined, at_each_hit, boolean, both_sides, cells, same_shape, some
from voxplain.resampling import resample


def auc_roc(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """P(a cell inside the truth scores higher than one outside) + half of P(equal): the exact Mann-Whitney statistic.

    0 to 1, higher is better, 0.5 is chance and the value of a constant map. Unchanged by any increasing map of the
    scores. Undefined where the truth, cut to the region, is empty or fills it.
    """
    values, inside = cells(scores, truth, region)
    hits, misses = both_sides(inside)
    fewer = inside if hits <= misses else ~inside  # a needle costs more than a cell that is searched
    needles, others = np.sort(values[fewer]), np.sort(values[~fewer])
    below = np.searchsorted(others, needles)
    tied = others[np.minimum(below, others.size - 1)] == needles
    ties = int(np.searchsorted(others, needles[tied], "right").sum() - below[tied].sum())
    won = 2 * int(below.sum()) + ties  # twice what is won by the smaller side, a tie counting half
    return (won if hits <= misses else 2 * hits * misses - won) / (2 * hits * misses)


def cnr(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    *,
    signed: bool = True,
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Contrast-to-noise ratio (mean inside - mean outside) / sqrt(var inside + var outside), sample variance (n - 1).

    Unbounded, higher is better, 0 is chance; unchanged by a * scores + b with a > 0. `signed=False` takes the absolute
    value (Boecking et al., ECCV 2022), which also praises a map that is high everywhere but in the truth. Undefined
    with fewer than two cells on a side, where both sides are constant, and where their variances round to 0.
    """
    values, inside = cells(scores, truth, region)
    both_sides(inside)
    sides = values[inside].astype(np.float64), values[~inside].astype(np.float64)
    if min(side.size for side in sides) < 2:
        raise Undefined("one cell on a side has no variance")
    if all(side.min() == side.max() for side in sides):  # np.var of equal numbers can round to a hair above zero
        raise Undefined("the scores are constant on both sides")
    spread = sides[0].var(ddof=1) + sides[1].var(ddof=1)
    if spread == 0:
        raise Undefined("the variance of the scores rounds to 0")
    value = float((sides[0].mean() - sides[1].mean()) / math.sqrt(spread))
    return value if signed else abs(value)


def average_precision(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Mean, over the truth's cells, of the share of truth among the cells that score as high or higher.

    The step-wise area under precision and recall, as scikit-learn computes it; cells that tie enter together. More than
    0 to 1, higher is better, a constant map earns `chance_level`. It is *not* what DAAM's first version calls AP: see
    `daam_iou`. Undefined for an empty truth.
    """
    hits, misses = at_each_hit(*cells(scores, truth, region))
    return float(np.mean(hits / (hits + misses)))


def pointing_game(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """1.0 if the highest score lies inside the truth, else 0.0 (Top-1; Zhang et al., IJCV 2018, without tolerance).

    Cells that tie at the maximum count as their mean, so a constant map earns exactly `chance_level`, which belongs
    beside every reported value. Undefined for an empty truth.
    """
    values, inside = cells(scores, truth, region)
    some(inside)
    return float(inside[values == values.max()].mean())


def chance_level(truth: Bool[np.ndarray, "*spatial"], region: Bool[np.ndarray, "*spatial"] | None = None) -> float:
    """Share of the cells that the truth covers: what the pointing game and `mass_inside` give a blind map."""
    _, inside = cells(np.zeros(truth.shape, np.float32), truth, region)
    some(inside)
    return float(inside.mean())


def mass_inside(
    scores: Float[np.ndarray, "*spatial"],
    mask: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Share of the map's total inside the mask (the energy-based pointing game; Wang et al., Score-CAM, 2020).

    0 to 1; higher is better for a truth, lower for a distractor; an even map gives `chance_level`. Scores must not be
    negative. Undefined for an empty mask and for a map that is zero everywhere.
    """
    values, inside = cells(scores, mask, region)
    some(inside)
    if values.min() < 0:
        raise ValueError(f"mass needs scores >= 0, got a minimum of {values.min():.3g}; subtract it or take a size")
    total = values.sum(dtype=np.float64)
    if total == 0:
        raise Undefined("the scores are zero everywhere")
    return float(values[inside].sum(dtype=np.float64) / total)


def top_overlap(
    first: Float[np.ndarray, "*spatial"],
    second: Float[np.ndarray, "*spatial"],
    *,
    fraction: float = 0.1,
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Share of the highest `fraction` of cells that two maps have in common.

    0 to 1, higher is more alike, chance is `fraction`. Ties at the border are drawn at random, separately in each map,
    and the expected value is returned; so a constant map shares exactly `fraction` with any map, also with itself.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must lie in (0, 1], got {fraction}")
    same_shape(first, second)
    everywhere = np.ones(first.shape, bool)
    shares = [_top_share(cells(scores, everywhere, region)[0], fraction) for scores in (first, second)]
    return float((shares[0] * shares[1]).sum() / shares[0].sum())


def rank_correlation(
    first: Float[np.ndarray, "*spatial"],
    second: Float[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Spearman's rank correlation of two maps, ties at their mean rank; -1 to 1, 0 is unrelated.

    Undefined where one of the maps is constant.
    """
    same_shape(first, second)
    everywhere = np.ones(first.shape, bool)
    ranks = [rankdata(cells(scores, everywhere, region)[0]) for scores in (first, second)]
    centered = [rank - (rank.size + 1) / 2 for rank in ranks]
    norms = [math.sqrt(float(rank @ rank)) for rank in centered]
    if min(norms) == 0:
        raise Undefined("one of the maps is constant")
    return float(np.clip(centered[0] @ centered[1] / (norms[0] * norms[1]), -1, 1))


def native_oracle(truth: Bool[np.ndarray, "*spatial"], grid: tuple[int, ...]) -> Float[np.ndarray, "*spatial"]:
    """The truth averaged into the cells of `grid` and brought back linearly, 0 to 1: a perfect map of that grid.

    Score it beside every figure: no map recorded on `grid` can be expected to do much better.
    """
    boolean(truth)
    if len(grid) != truth.ndim:
        raise ValueError(f"a truth of shape {truth.shape} needs a grid of {truth.ndim} axes, got {grid}")
    coarse = resample(truth[None].astype(np.float32), grid, mode="area")
    return resample(coarse, truth.shape, mode="linear")[0]


def _top_share(values: Float[np.ndarray, " cells"], fraction: float) -> Float[np.ndarray, " cells"]:
    """1 for cells surely in the top fraction, 0 for those surely not, the chance of being drawn for ties between."""
    count = max(1, round(fraction * values.size))
    threshold = np.partition(values, values.size - count)[values.size - count]
    above, tied = values > threshold, values == threshold
    return above + tied * ((count - np.count_nonzero(above)) / np.count_nonzero(tied))
