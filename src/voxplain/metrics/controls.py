"""Maps that know nothing of the prompt's attention: what a real map has to beat."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from voxplain.metrics.base import Undefined, boolean, finite

FILL = "give each a number first, such as -1000 HU for air"


def region_lit(region: Bool[np.ndarray, "*spatial"]) -> Float[np.ndarray, "*spatial"]:
    """1 inside the region that the text names, 0 elsewhere; its AUC inside that region is 0.5 by construction."""
    boolean(region)
    return region.astype(np.float32)


def mean_mask(masks: Iterable[Bool[np.ndarray, "*spatial"]]) -> Float[np.ndarray, "*spatial"]:
    """Share of the given masks that cover each cell, 0 to 1: the location prior of cases with the same text.

    Give it masks of training cases only, never the case that is scored. Undefined without any mask.
    """
    total, count = None, 0
    for count, mask in enumerate(masks, start=1):
        boolean(mask)
        if total is None:
            total = np.zeros(mask.shape, np.float64)
        if mask.shape != total.shape:
            raise ValueError(f"mask {count} has shape {mask.shape}, the ones before it {total.shape}")
        total += mask
    if total is None:
        raise Undefined("no training case has this text")
    return (total / count).astype(np.float32)


def abs_from_mean(
    image: Float[np.ndarray, "*spatial"],
    mean: Float[np.ndarray, "*any"] | float | None = None,
    region: Bool[np.ndarray, "*spatial"] | None = None,
) -> Float[np.ndarray, "*spatial"]:
    """|HU - mean|: how unusual each voxel is, in the units of the image.

    `mean` is a number or a mean image of training cases; without it, the image's own mean inside `region` (default:
    everywhere), so that inside a lung what is not air lights up. NaN is an error, also outside of the region.
    """
    finite(image, "the voxels", FILL)
    image = image.astype(np.result_type(image, np.float32), copy=False)  # whole numbers would wrap around
    if mean is None:
        if region is not None:
            boolean(region)
        cells = image if region is None else image[region]
        if cells.size == 0:
            raise Undefined("the region is empty")
        mean = float(cells.mean(dtype=np.float64))
    if isinstance(mean, np.ndarray) and mean.shape != image.shape:
        raise ValueError(f"the image has shape {image.shape}, the mean image {mean.shape}")
    return np.abs(image - np.float32(mean) if isinstance(mean, float) else image - mean).astype(np.float32)


def gradient_magnitude(
    image: Float[np.ndarray, "*spatial"], spacing: tuple[float, ...] | None = None
) -> Float[np.ndarray, "*spatial"]:
    """Length of the image's gradient by central differences, in image units a millimeter (a voxel without `spacing`).

    An edge detector; an axis of one cell adds nothing, NaN is an error.
    """
    steps = spacing if spacing is not None else (1.0,) * image.ndim
    if len(steps) != image.ndim:
        raise ValueError(f"an image of shape {image.shape} needs {image.ndim} spacings, got {steps}")
    finite(image, "the voxels", FILL)
    squared = np.zeros(image.shape, np.float32)
    for axis, step in enumerate(steps):
        if image.shape[axis] > 1:
            squared += np.gradient(image.astype(np.float32), step, axis=axis) ** 2
    return np.sqrt(squared)


def random_half(shape: tuple[int, ...], seed: int) -> Float[np.ndarray, "*spatial"]:
    """1 on a random half of the cells (rounded down), 0 on the rest; the same for the same seed."""
    flat = np.zeros(int(np.prod(shape)), np.float32)
    flat[np.random.default_rng(seed).permutation(flat.size)[: flat.size // 2]] = 1
    return flat.reshape(shape)


def center_prior(shape: tuple[int, ...]) -> Float[np.ndarray, "*spatial"]:
    """A Gaussian hill in the middle, at most 1, with a standard deviation of a quarter of each axis."""
    hill = np.ones(shape, np.float32)
    for axis, size in enumerate(shape):
        offset = (np.arange(size) - (size - 1) / 2) / (size / 4)
        hill *= np.exp(-0.5 * offset**2).reshape([-1 if i == axis else 1 for i in range(len(shape))]).astype(np.float32)
    return hill


def same_text_partners(
    texts: Sequence[str], patients: Sequence[Hashable] | None = None, *, seed: int = 0
) -> tuple[int | None, ...]:
    """For each case the index of another case of exactly the same text, whose mask it is to be scored against.

    The score against the own mask minus the one against the partner's is what the map knows beyond the text. Each mask
    is used once. With `patients` a partner is always another patient. None where there is no partner: a text that
    occurs once, or one where more than half of the cases are one patient's.
    """
    if patients is not None and len(patients) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(patients)} patients")
    owners = patients if patients is not None else range(len(texts))
    groups: dict[str, list[int]] = {}
    for case in map(int, np.random.default_rng(seed).permutation(len(texts))):
        groups.setdefault(texts[case], []).append(case)
    partners: list[int | None] = [None] * len(texts)
    for cases in groups.values():
        sizes = Counter(owners[case] for case in cases)
        turn = {owner: place for place, owner in enumerate(sizes)}
        cases.sort(key=lambda case: turn[owners[case]])  # one patient's cases side by side; others follow one block on
        step = max(sizes.values())
        for place, case in enumerate(cases):
            partner = cases[(place + step) % len(cases)]
            partners[case] = partner if owners[partner] != owners[case] else None
    return tuple(partners)
