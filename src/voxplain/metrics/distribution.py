"""How far a set of generated images is from a set of real ones, measured on given features.

`frechet_distance`, `kernel_distance` and `covered` are the bare formulas. `fid`, `kid` and `precision_recall` compare
two `Features`, and say with every figure which network, how many images, how many dimensions, what preprocessing, and
the floor: the same figure between two random halves of the real set. Without these no figure compares with another.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from voxplain.metrics.base import Undefined, finite
from voxplain.metrics.features import Features

AGAIN = "extract both with one network and one preprocessing"


@dataclass(frozen=True, slots=True)
class Distance:
    """A figure between real and generated features, with all that it depends on; `str` prints it in one line.

    `floor` is the figure between two halves of the real set, of `floor_n` images each; None below two images a half.
    """

    metric: str
    value: float
    floor: float | None
    floor_n: int
    network: str
    preprocessing: str
    dimension: int
    n_real: int
    n_generated: int
    note: str = ""

    def __str__(self) -> str:
        size = f"at {self.floor_n} against {self.floor_n}"
        floor = "no real-real floor" if self.floor is None else f"real-real floor {self.floor:.4g} {size}"
        note = f"; {self.note}" if self.note else ""
        return (
            f"{self.metric} {self.value:.4g} ({floor}; {self.n_real} real and {self.n_generated} generated images, "
            f"{self.dimension} dimensions of {self.network}; {self.preprocessing}{note})"
        )


def fid(real: Features, generated: Features, *, allow_few: bool = False, seed: int = 0) -> Distance:
    """Frechet distance of the features (Heusel et al., NeurIPS 2017), 0 or more, lower is better.

    It falls with the number of images, also between equal sets, so compare at equal N only. Fewer images than
    dimensions, on either side, leave the covariance without full rank: that is refused unless `allow_few` is set, and
    then noted.
    """
    _comparable(real, generated)
    few = min(len(real.values), len(generated.values))
    dimension = real.values.shape[1]
    if few < dimension and not allow_few:
        raise ValueError(
            f"FID of {few} images in {dimension} dimensions is dominated by bias: take more images, `kid`, "
            "or a network with fewer features; allow_few=True (--allow-few) computes it all the same"
        )
    notes = [f"{few} images are fewer than {dimension} dimensions"] if few < dimension else []
    half = len(real.values) // 2
    notes += [f"the floor's {half} images are too, so it is too high"] if half < dimension <= few else []
    return _distance("FID", frechet_distance, real, generated, seed, "; ".join(notes))


def kid(real: Features, generated: Features, *, seed: int = 0) -> Distance:
    """Kernel distance of the features (Binkowski et al., ICLR 2018). About 0 for equal sets, lower is better.

    Unbiased at any N, so it can be below 0, and the floor shows its noise. Over all images at once, where the published
    form averages over random subsets.
    """
    _comparable(real, generated)
    return _distance("KID", kernel_distance, real, generated, seed, "")


def precision_recall(
    real: Features, generated: Features, *, neighbors: int = 3, seed: int = 0
) -> tuple[Distance, Distance]:
    """Improved precision and recall (Kynkaanniemi et al., NeurIPS 2019); each 0 to 1, higher is better.

    Precision is the share of generated images that look like some real one, recall the share of real images that look
    like some generated one; to look like an image is to lie within the distance of its k-th neighbor in its own set.
    """
    _comparable(real, generated)

    def precision(reference: np.ndarray, found: np.ndarray) -> float:
        return float(covered(reference, found, neighbors=neighbors).mean())

    note = f"{neighbors} neighbors"
    return (
        _distance("precision", precision, real, generated, seed, note),
        _distance("recall", lambda reference, found: precision(found, reference), real, generated, seed, note),
    )


def frechet_distance(first: Float[np.ndarray, "first dim"], second: Float[np.ndarray, "second dim"]) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) of the sample means and covariances (n - 1). 0 or more.

    The root comes from two symmetric eigenvalue problems, so a singular covariance needs no addition to its diagonal.
    Undefined for fewer than two rows on a side.
    """
    first, second = _rows(first, second, 2)
    gap = first.mean(0) - second.mean(0)
    covariances = [np.atleast_2d(np.cov(each, rowvar=False)) for each in (first, second)]
    levels, axes = np.linalg.eigh(covariances[0])
    root = (axes * np.sqrt(levels.clip(min=0))) @ axes.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    spread = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.sqrt(product.clip(min=0)).sum()
    return float(max(gap @ gap + spread, 0.0))


def kernel_distance(first: Float[np.ndarray, "first dim"], second: Float[np.ndarray, "second dim"]) -> float:
    """Squared maximum mean discrepancy with the kernel (x . y / dim + 1)^3, the unbiased estimate; about 0 or more.

    Undefined for fewer than two rows on a side.
    """
    first, second = _rows(first, second, 2)
    within = 0.0
    for rows in (first, second):
        within += (_kernel_sum(rows, rows) - _kernel_own(rows)) / (len(rows) * (len(rows) - 1))
    return within - 2 * _kernel_sum(first, second) / (len(first) * len(second))


def covered(
    reference: Float[np.ndarray, "first dim"], found: Float[np.ndarray, "second dim"], *, neighbors: int = 3
) -> Bool[np.ndarray, " second"]:
    """Which rows of `found` lie within reach of some row of `reference`: the distance to its k-th neighbor there.

    Ties and equal rows are within reach. Undefined with `neighbors` rows or fewer in `reference`.
    """
    if neighbors < 1:
        raise ValueError(f"neighbors must be 1 or more, got {neighbors}")
    reference, found = _rows(reference, found, 1)
    if len(reference) <= neighbors:
        raise Undefined(f"{len(reference)} images have no {neighbors} neighbors each")
    reach = np.concatenate(  # the nearest of its own set is the row itself
        [np.partition(_squared(block, reference), neighbors, axis=1)[:, neighbors] for block in _blocks(reference)]
    )
    return np.concatenate([(_squared(block, reference) <= reach).any(1) for block in _blocks(found)])


def _distance(
    metric: str,
    formula: Callable[[np.ndarray, np.ndarray], float],
    real: Features,
    generated: Features,
    seed: int,
    note: str,
) -> Distance:
    half = len(real.values) // 2
    order = np.random.default_rng(seed).permutation(len(real.values))
    value = formula(real.values, generated.values)
    try:
        floor = formula(real.values[order[:half]], real.values[order[half : 2 * half]])
    except Undefined:
        floor = None
    sizes = real.values.shape[1], len(real.values), len(generated.values)
    return Distance(metric, value, floor, half, real.network, real.preprocessing, *sizes, note=note)


def _comparable(real: Features, generated: Features) -> None:
    for field in ("network", "preprocessing"):
        first, second = getattr(real, field), getattr(generated, field)
        if first != second:
            raise ValueError(f"real and generated features differ in {field}: {first!r} and {second!r}; {AGAIN}")
    if real.values.shape[1] != generated.values.shape[1]:
        dims = real.values.shape[1], generated.values.shape[1]
        raise ValueError(
            f"real and generated features of {real.network!r} have {dims[0]} and {dims[1]} dimensions; {AGAIN}"
        )


def _rows(
    first: np.ndarray, second: np.ndarray, least: int
) -> tuple[Float[np.ndarray, "first dim"], Float[np.ndarray, "second dim"]]:
    """Both sets as float64, checked: the formulas subtract large numbers, and float32 has no digits left for that."""
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"expected two arrays [cases, dim] of one dim, got shapes {first.shape} and {second.shape}")
    if min(len(first), len(second)) < least:
        raise Undefined(f"fewer than {least} images on a side")
    for rows in (first, second):
        finite(rows, "the features", "find the image that caused it")
    return first.astype(np.float64, copy=False), second.astype(np.float64, copy=False)


def _blocks(rows: Float[np.ndarray, "cases dim"]) -> list[Float[np.ndarray, "_ dim"]]:
    """Rows in parts of at most 1,024, so that no matrix of all against all is held."""
    return [rows[start : start + 1024] for start in range(0, len(rows), 1024)]


def _kernel_sum(first: Float[np.ndarray, "first dim"], second: Float[np.ndarray, "second dim"]) -> float:
    return sum(float(((block @ second.T / second.shape[1] + 1) ** 3).sum()) for block in _blocks(first))


def _kernel_own(rows: Float[np.ndarray, "cases dim"]) -> float:
    return float(((np.einsum("ij,ij->i", rows, rows) / rows.shape[1] + 1) ** 3).sum())


def _squared(
    first: Float[np.ndarray, "first dim"], second: Float[np.ndarray, "second dim"]
) -> Float[np.ndarray, "first second"]:
    """Squared distances of all rows; what is rounding only (equal rows) is 0."""
    lengths = np.einsum("ij,ij->i", first, first)[:, None] + np.einsum("ij,ij->i", second, second)
    squared = lengths - 2 * (first @ second.T)
    return np.where(squared < 1e-12 * lengths, 0, squared)
