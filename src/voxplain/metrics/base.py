"""What every metric shares: the way to say that a case has no answer, and the checks of what comes in."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int


class Undefined(ValueError):
    """A metric has no value for this case; `reason` is a short, countable text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def same_shape(first: np.ndarray, second: np.ndarray) -> None:
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {first.shape} and {second.shape}; resize the map to the image first")


def finite(values: np.ndarray, what: str, remedy: str) -> None:
    if not np.isfinite(values).all():
        raise ValueError(f"{what} hold NaN or infinity; {remedy}")


def boolean(*masks: np.ndarray) -> None:
    """Raises TypeError for a mask of 0 and 1: NumPy would take them for indices, and their inverse for -1 and -2."""
    for mask in masks:
        if mask.dtype != np.bool_:
            raise TypeError(f"a mask is boolean, got {mask.dtype}: compare it first, such as mask > 0")


def cells(
    scores: Float[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    region: Bool[np.ndarray, "*spatial"] | None,
) -> tuple[Float[np.ndarray, " cells"], Bool[np.ndarray, " cells"]]:
    """Scores and truth of the cells that count, flat; checked."""
    boolean(truth)
    values, inside = _cut(scores, truth, region)
    finite(values, "the scores", "leave such cells out with `region`")
    return values, inside


def both(
    first: np.ndarray, second: np.ndarray, region: Bool[np.ndarray, "*spatial"] | None
) -> tuple[Bool[np.ndarray, " cells"], Bool[np.ndarray, " cells"]]:
    """Two masks of one shape, cut to the region and flat; checked."""
    boolean(first, second)
    return _cut(first, second, region)


def some(inside: Bool[np.ndarray, "*cells"]) -> int:
    """How many cells the truth covers. Undefined for none."""
    hits = int(np.count_nonzero(inside))
    if hits == 0:
        raise Undefined("the truth is empty")
    return hits


def both_sides(inside: Bool[np.ndarray, "*cells"]) -> tuple[int, int]:
    """How many cells lie inside and outside of the truth. Undefined for none on a side."""
    hits = some(inside)
    if hits == inside.size:
        raise Undefined("the truth fills the region")
    return hits, inside.size - hits


def at_each_hit(
    values: Float[np.ndarray, " cells"], inside: Bool[np.ndarray, " cells"]
) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"]]:
    """For a threshold at each truth cell's score: how many cells inside and outside the truth reach it.

    No other threshold matters: one between two hits adds or drops cells outside only. Undefined for an empty truth.
    """
    some(inside)
    hits, misses = np.sort(values[inside]), np.sort(values[~inside])
    order = np.argsort(np.concatenate([hits, misses]), kind="stable")  # merges them, faster than a search for each hit
    place = np.arange(hits.size)
    below = np.flatnonzero(order < hits.size) - place
    place[1:][hits[1:] == hits[:-1]] = 0  # hits that tie count from the first of them on
    return hits.size - np.maximum.accumulate(place), misses.size - below


def sample(values: Sequence[float] | Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Values as one finite axis. Undefined for none."""
    found = np.asarray(values, np.float64)
    if found.ndim != 1:
        raise ValueError(f"expected one axis of values, got shape {found.shape}")
    if found.size == 0:
        raise Undefined("no values")
    finite(found, "the values", "count undefined cases apart, do not average them")
    return found


def _cut(
    first: np.ndarray, second: np.ndarray, region: Bool[np.ndarray, "*spatial"] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of one shape, cut to the region and flat. Undefined for an empty region."""
    same_shape(first, second)
    if region is not None:
        boolean(region)
        same_shape(first, region)
        first, second = first[region], second[region]
    if first.size == 0:
        raise Undefined("the region is empty")
    return first.ravel(), second.ravel()
