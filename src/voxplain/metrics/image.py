"""How alike two images are, 2D or 3D: one channel, two arrays of one shape, a float out.

`data_range` is the width of the scale that the values live on (255, 1.0, or 2000 for HU from -1000 to 1000). It is
never guessed from the images: a guess would change from pair to pair.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.ndimage import correlate1d

from voxplain.metrics.base import Undefined, finite, same_shape

SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""The weights of Wang et al. (2003), finest scale first."""


def psnr(first: Float[np.ndarray, "*spatial"], second: Float[np.ndarray, "*spatial"], *, data_range: float) -> float:
    """Peak signal-to-noise ratio 10 log10(data_range^2 / mean squared difference), in decibels; higher is more alike.

    Undefined for equal images, where it is infinite and no mean could hold it.
    """
    a, b = _pair(first, second, data_range)
    error = float(np.mean((a - b) ** 2))
    if error == 0:
        raise Undefined("the images are equal")
    return 10 * math.log10(data_range**2 / error)


def ssim(
    first: Float[np.ndarray, "*spatial"],
    second: Float[np.ndarray, "*spatial"],
    *,
    data_range: float,
    window: int = 11,
    sigma: float = 1.5,
) -> float:
    """Structural similarity (Wang et al., 2004): Gaussian window, K1 = 0.01, K2 = 0.03, only where the window fits.

    -1 to 1, higher is more alike, 1 for equal images only; defined on flat ones. `window` is its width in cells (odd),
    `sigma` its standard deviation (cells, above 0). An axis of one cell is left out: a volume of one slice is an image.
    """
    a, b = _pair(first, second, data_range)
    _fits(a.shape, window, 1)
    return _similarity(a, b, data_range, window, sigma)[0]


def ms_ssim(
    first: Float[np.ndarray, "*spatial"],
    second: Float[np.ndarray, "*spatial"],
    *,
    data_range: float,
    scales: int = 5,
    window: int = 11,
    sigma: float = 1.5,
) -> float:
    """Multi-scale structural similarity (Wang et al., 2003), each scale the average over blocks of 2 cells an axis.

    0 to 1, higher is more alike. With fewer than five `scales` the weights of the finest are brought to a sum of 1. A
    scale whose similarity is negative counts as 0, so opposite images score 0 instead of NaN. An odd axis loses its
    last cell when it is halved. Every axis longer than one cell needs window * 2^(scales - 1) cells or more.
    """
    if not 1 <= scales <= len(SCALES):
        raise ValueError(f"scales must lie in 1 to {len(SCALES)}, got {scales}")
    a, b = _pair(first, second, data_range)
    _fits(a.shape, window, scales)
    weights = np.array(SCALES[:scales]) / sum(SCALES[:scales])
    parts = []
    for scale in range(scales):
        whole, structure = _similarity(a, b, data_range, window, sigma)
        parts.append(whole if scale == scales - 1 else structure)
        a, b = _halved(a), _halved(b)
    return float(np.prod(np.maximum(parts, 0) ** weights))


def over_pairs(
    metric: Callable[[np.ndarray, np.ndarray], float],
    images: Sequence[np.ndarray],
    pairs: Sequence[tuple[int, int]],
) -> Float[np.ndarray, " pairs"]:
    """The metric of each pair of images, given by their indices; Undefined without a pair.

    Diversity is one minus the mean over pairs of the same prompt. `bootstrap` with the prompts as clusters gives the
    interval, since pairs of one prompt share images.
    """
    if not pairs:
        raise Undefined("no pairs")
    return np.array([metric(images[a], images[b]) for a, b in pairs])


def pairs_within(prompts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Every pair of images with the same prompt; 4 images of each of 100 prompts give 600 pairs."""
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    return tuple((a, b) for group in groups.values() for place, a in enumerate(group) for b in group[place + 1 :])


def pairs_across(prompts: Sequence[str], count: int, *, seed: int = 0) -> tuple[tuple[int, int], ...]:
    """`count` different pairs of images of different prompts, drawn at random: what diversity is to be read against."""
    total = len(prompts) * (len(prompts) - 1) // 2 - len(pairs_within(prompts))
    if count > total:
        raise ValueError(f"{count} pairs asked for, but only {total} pairs have different prompts")
    rng, found = np.random.default_rng(seed), dict[tuple[int, int], None]()
    while len(found) < count:
        a, b = sorted(rng.integers(len(prompts), size=2).tolist())
        if prompts[a] != prompts[b]:
            found[a, b] = None
    return tuple(found)


def _pair(
    first: Float[np.ndarray, "*spatial"], second: Float[np.ndarray, "*spatial"], data_range: float
) -> tuple[Float[np.ndarray, "*spatial"], Float[np.ndarray, "*spatial"]]:
    same_shape(first, second)
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be more than 0 and finite, got {data_range}")
    for image in (first, second):
        finite(image, "the images", "leave such images out and count them")
    return first.astype(np.float64), second.astype(np.float64)


def _fits(shape: tuple[int, ...], window: int, scales: int) -> None:
    if window % 2 == 0 or window < 1:
        raise ValueError(f"window must be odd and positive, got {window}")
    needed = window * 2 ** (scales - 1)
    if any(1 < size < needed for size in shape) or max(shape) == 1:
        raise ValueError(
            f"an image of shape {shape} is too small for a window of {window} at {scales} scales: "
            f"each axis needs {needed} cells (or one); take a smaller window or fewer scales"
        )


def _similarity(
    a: Float[np.ndarray, "*spatial"], b: Float[np.ndarray, "*spatial"], data_range: float, window: int, sigma: float
) -> tuple[float, float]:
    """The mean over places of the whole similarity, and of its contrast-and-structure part."""
    if not sigma > 0:
        raise ValueError(f"sigma must be more than 0 cells, got {sigma}; the papers take 1.5")
    offset = np.arange(window) - window // 2
    kernel = np.exp(-0.5 * (offset / sigma) ** 2)
    kernel /= kernel.sum()
    axes = [axis for axis, size in enumerate(a.shape) if size > 1]
    edge = window // 2
    valid = tuple(slice(edge, size - edge) if axis in axes else slice(None) for axis, size in enumerate(a.shape))

    def local(image: np.ndarray) -> np.ndarray:
        for axis in axes:
            image = correlate1d(image, kernel, axis)
        return image[valid]

    mean_a, mean_b = local(a), local(b)
    spread = local(a * a) + local(b * b) - mean_a**2 - mean_b**2
    shared = local(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    structure = (2 * shared + c2) / (spread + c2)
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * structure).mean()), float(structure.mean())


def _halved(image: Float[np.ndarray, "*spatial"]) -> Float[np.ndarray, "*coarse"]:
    for axis, size in enumerate(image.shape):
        if size > 1:
            line = np.moveaxis(image, axis, 0)[: size // 2 * 2]
            image = np.moveaxis((line[::2] + line[1::2]) / 2, 0, axis)
    return image
