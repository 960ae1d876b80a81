"""How well a thresholded map covers a truth mask, with the thresholds of the papers.

All functions take any number of axes and an optional `region`: only its cells count. A truth without a cell raises
`Undefined`; a prediction without a cell is a miss and scores 0.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from voxplain.metrics.base import Undefined, at_each_hit, both, both_sides, cells, finite, some


def iou(
    prediction: Bool[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Cells in both masks over cells in either (Jaccard, 1912); 0 to 1, higher is better."""
    found, inside = both(prediction, truth, region)
    some(inside)
    return float(np.count_nonzero(found & inside) / np.count_nonzero(found | inside))


def dice(
    prediction: Bool[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Twice the cells in both masks over the sum of their sizes (Dice, 1945), 2 iou / (1 + iou).

    0 to 1, higher is better.
    """
    found, inside = both(prediction, truth, region)
    return float(2 * np.count_nonzero(found & inside) / (some(inside) + np.count_nonzero(found)))


def foreground_background_iou(
    prediction: Bool[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """Mean of the IoU of the masks and the IoU of what they leave out: "mIoU" in Dombrowski et al. (AAAI 2024).

    0 to 1, higher is better. A small truth makes the second part nearly 1 for an empty prediction, so this figure
    starts near 0.5; show `iou` beside it. Undefined also where the truth fills the region.
    """
    both_sides(both(truth, truth, region)[0])
    return (iou(prediction, truth, region) + iou(~prediction, ~truth, region)) / 2


def mean_iou(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
    *,
    scale: Literal["raw", "minmax"],
    thresholds: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5),
) -> float:
    """Mean over thresholds of the IoU of scores > threshold: "mIoU" in BioViL (Boecking et al., ECCV 2022).

    0 to 1, higher is better; cells at a threshold are left out. It depends on the scale of the map, so the scale has to
    be said: "raw" for a cosine or a probability as it is, "minmax" for the map brought to 0 to 1 over the cells that
    count, which a constant map cannot be (undefined).
    """
    if not thresholds:
        raise ValueError("mean_iou needs at least one threshold")
    values, inside = cells(scores, truth, region)
    some(inside)
    if scale == "minmax":
        values = _minmax(values)
    return float(np.mean([iou(values > threshold, inside) for threshold in thresholds]))


def oracle_iou(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> float:
    """The best IoU that any threshold could reach, chosen with the truth in hand: an oracle, a bound and no result.

    More than 0 to 1; cells that tie are kept or dropped together, so a constant map earns `chance_level`.
    """
    hits, misses = at_each_hit(*cells(scores, truth, region))
    return float((hits / (hits[0] + misses)).max())


def daam_mask(scores: Float[np.ndarray, "*spatial"], *, tau: float = 0.4) -> Bool[np.ndarray, "*spatial"]:
    """Cells of at least `tau` (0 to 1) times the maximum (Tang et al., ACL 2023, equation 8).

    Cells that tie with the threshold are kept; without a positive score the mask is empty. `masks.relative_threshold`
    is the same rule for a `Heatmap`.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau {tau}: expected 0 to 1")
    finite(scores, "the scores", "set such cells to 0 first")
    peak = scores.max()
    return (scores >= tau * peak) & (peak > 0)


def daam_iou(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None = None,
    *,
    tau: float = 0.4,
) -> float:
    """IoU of `daam_mask`; its mean over cases is DAAM's figure (Tang et al., 2023), at tau 0.3, 0.4 and 0.5.

    0 to 1, higher is better. The first version of that paper prints the mean as AP, the later ones print the same two
    numbers as mIoU, and the released code computes mean IoU only. The maximum is the whole map's, not the region's.
    """
    return iou(daam_mask(scores, tau=tau), truth, region)


def coverage(
    scores: Float[np.ndarray, "*spatial"], region: Bool[np.ndarray, "*spatial"] | None = None, *, tau: float = 0.4
) -> float:
    """Share of the cells that `daam_mask` keeps: how far a word spreads (Tang et al., 2022, figure by part of speech).

    0 to 1, neither way is better; a constant positive map covers everything, a map without a positive score nothing.
    """
    mask = daam_mask(scores, tau=tau)
    return float(both(mask, mask, region)[0].mean())


def intensity(scores: Float[np.ndarray, "*spatial"], region: Bool[np.ndarray, "*spatial"] | None = None) -> float:
    """The mean score, in the map's own units; neither way is better.

    DAAM's evaluator calls so the mean of a map that is already 0 and 1, where it equals the coverage.
    """
    values, _ = cells(scores, np.ones(scores.shape, bool), region)
    return float(values.mean(dtype=np.float64))


def mixture_threshold(scores: Float[np.ndarray, "*spatial"]) -> float:
    """The mean of the two means of a Gaussian mixture fitted to all scores (Dombrowski et al., AAAI 2024).

    In the map's units, between its minimum and maximum, and following it under a * scores + b with a > 0. The fit runs
    on a histogram of 1,024 bins of the map brought to 0 to 1, begins with two means (no random start), adds 1e-6 to the
    variances and ends where a round gains less than 1e-3 in log likelihood a cell. Fit it on the map's native grid:
    enlarged maps repeat their cells. Undefined for a constant map.
    """
    finite(scores, "the scores", "set such cells to 0 first")
    values = _minmax(scores.ravel())
    bins = np.minimum((values * 1024).astype(np.intp), 1023)
    count, total = np.bincount(bins), np.bincount(bins, values)
    level, weight = total[count > 0] / count[count > 0], count[count > 0] / values.size
    low, high = float(scores.min()), float(scores.max())
    return low + (high - low) * float(np.mean(_two_means(level, weight)))


def mixture_mask(scores: Float[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*spatial"]:
    """Scores above `mixture_threshold`, each inner cell then set to the majority of its 3 cells an axis.

    The prediction of Dombrowski et al. (AAAI 2024) for `iou` and `foreground_background_iou`. Cells on the border stay
    as they are; an axis of one cell has no border and no neighbors.
    """
    mask = scores > mixture_threshold(scores)
    axes = [axis for axis, size in enumerate(mask.shape) if size > 1]
    votes = mask.astype(np.uint8)
    for axis in axes:
        line = np.moveaxis(votes, axis, 0)
        votes = np.moveaxis(line[:-2] + line[1:-1] + line[2:], 0, axis)
    inner = tuple(slice(1, -1) if axis in axes else slice(None) for axis in range(mask.ndim))
    smooth = mask.copy()
    smooth[inner] = votes > 3 ** len(axes) / 2
    return smooth


def _minmax(values: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    low, high = values.min(), values.max()
    if low == high:
        raise Undefined("the scores are constant")
    return (values - low) / (high - low)


def _two_means(level: Float[np.ndarray, " bins"], weight: Float[np.ndarray, " bins"]) -> Float[np.ndarray, "2"]:
    """Means of two Gaussians fitted to weighted levels between 0 and 1, by expectation and maximization."""
    means, upper = np.array([0.0, 1.0]), level > 0.5
    for _ in range(100):
        means = np.array([np.average(level[side], weights=weight[side]) for side in (~upper, upper)])
        if np.array_equal(level > means.mean(), upper):
            break
        upper = level > means.mean()
    share = np.stack([~upper, upper]).astype(np.float64)  # [2, bins]: how much of a bin belongs to each Gaussian
    before = -np.inf
    for _ in range(100):
        mass = share @ weight
        means = (share * weight) @ level / mass
        variance = np.sum(share * weight * (level - means[:, None]) ** 2, axis=1) / mass + 1e-6
        scale = np.log(mass) - 0.5 * np.log(2 * np.pi * variance)
        density = scale[:, None] - 0.5 * (level - means[:, None]) ** 2 / variance[:, None]
        likelihood = np.logaddexp(*density)
        gained, before = float(weight @ likelihood) - before, float(weight @ likelihood)
        if abs(gained) < 1e-3:
            break
        share = np.exp(density - likelihood)
    return means
