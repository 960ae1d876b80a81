"""From one grid to another: one weight matrix an axis, so images and volumes are the same lines.

Modes, each with cell centers at (i + 1/2) (PyTorch's align_corners=False):
linear   two neighbors, edges clamped; never negative; equals F.interpolate
cubic    four neighbors, a = -0.75; equals F.interpolate(mode="bicubic") in any number of axes; can undershoot
area     the mean over what the new cell covers; equals F.interpolate(mode="area") for integer factors
nearest  the cell that holds the new center; equals F.interpolate(mode="nearest-exact")
"""

from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from voxplain.geometry import Geometry

Mode = Literal["linear", "nearest", "area", "cubic"]


def resample(
    maps: Float[np.ndarray, "tokens *grid"], shape: tuple[int, ...], *, mode: Mode = "linear"
) -> Float[np.ndarray, "tokens *spatial"]:
    """The maps on another grid over the same field of view, as float32."""
    if len(shape) != maps.ndim - 1 or min(shape, default=1) < 1:
        raise ValueError(f"cannot bring a grid of {maps.shape[1:]} to {shape}: give {maps.ndim - 1} positive sizes")
    maps = np.asarray(maps, np.float32)
    for axis, (old, new) in enumerate(zip(maps.shape[1:], shape, strict=True), start=1):
        maps = _along(maps, axis, (np.arange(new) + 0.5) * old / new - 0.5, old / new, mode)
    return maps


def resample_to(
    values: Float[np.ndarray, "*grid"], source: Geometry, target: Geometry, mode: Mode = "linear"
) -> Float[np.ndarray, "*spatial"]:
    """The values at the cells of another geometry, through world coordinates, as float32.

    Cells whose center lies outside the source's field of view are 0. Oblique grids know only linear and nearest.
    """
    if values.shape != source.shape or source.ndim != target.ndim:
        raise ValueError(f"values {values.shape}, source geometry {source.shape}, target {target.shape}: they disagree")
    step = np.linalg.solve(source.affine, target.affine)  # target index -> source index
    linear, offset = step[:-1, :-1], step[:-1, -1]
    drift = np.abs(linear - np.diag(np.diag(linear))) @ np.array(target.shape, float)
    if drift.max() > 1e-3:
        return _oblique(values, linear, offset, target.shape, mode)
    maps = np.asarray(values, np.float32)[None]
    for axis, new in enumerate(target.shape):
        scale = linear[axis, axis]
        maps = _along(maps, axis + 1, np.arange(new) * scale + offset[axis], abs(scale), mode)
    return maps[0]


def _along(
    maps: Float[np.ndarray, "tokens *grid"], axis: int, centers: Float[np.ndarray, " new"], width: float, mode: Mode
) -> Float[np.ndarray, "tokens *partly"]:
    """Resample one axis at fractional source indices; centers outside the source give 0."""
    old, new = maps.shape[axis], len(centers)
    if old == new and np.abs(centers - np.arange(old)).max() < 1e-4:
        return maps
    outside = (centers < -0.5 - 1e-3) | (centers > old - 0.5 + 1e-3)
    if mode == "nearest":
        taken = maps.take(np.clip(np.floor(centers + 0.5 + 1e-6).astype(int), 0, old - 1), axis)  # a tie goes up
        taken[(slice(None),) * axis + (outside,)] = 0
        return taken
    weights = np.where(outside[:, None], 0, _weights(old, centers, width, mode)).astype(np.float32)  # [new, old]
    before, after = maps.shape[:axis], maps.shape[axis + 1 :]
    if not after:
        return maps @ weights.T
    flat = weights @ maps.reshape(-1, old, int(np.prod(after)))  # [before, new, after]
    return flat.reshape(*before, new, *after)


def _weights(old: int, centers: Float[np.ndarray, " new"], width: float, mode: Mode) -> Float[np.ndarray, "new old"]:
    """How much each old cell gives to each new one; rows sum to one."""
    cells = np.arange(old)
    if mode == "linear":
        return np.maximum(0, 1 - np.abs(np.clip(centers, 0, old - 1)[:, None] - cells))
    if mode == "area":
        low, high = centers[:, None] - width / 2, centers[:, None] + width / 2
        shared = np.maximum(0, np.minimum(high, cells + 0.5) - np.maximum(low, cells - 0.5))
        return shared / np.maximum(shared.sum(1, keepdims=True), 1e-12)
    if mode == "cubic":
        taps = np.floor(centers)[:, None] + np.arange(-1, 3)  # [new, 4]
        weights = np.zeros((len(centers), old))
        new = np.arange(len(centers))[:, None]
        np.add.at(weights, (new, np.clip(taps, 0, old - 1).astype(int)), _keys_kernel(centers[:, None] - taps))
        return weights
    raise ValueError(f"unknown mode {mode!r}; give linear, nearest, area or cubic")


def _keys_kernel(distance: Float[np.ndarray, "new taps"], a: float = -0.75) -> Float[np.ndarray, "new taps"]:
    """Keys's cubic convolution kernel (IEEE Trans. ASSP 1981, equation 4), with PyTorch's a."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0))


def _oblique(
    values: Float[np.ndarray, "*grid"],
    linear: Float[np.ndarray, "axes axes"],
    offset: Float[np.ndarray, " axes"],
    shape: tuple[int, ...],
    mode: Mode,
) -> Float[np.ndarray, "*spatial"]:
    if mode not in ("linear", "nearest"):
        raise ValueError(f"the grids are turned against each other; give linear or nearest, not {mode!r}")

    def turned(array: np.ndarray, order: int, edge: str) -> np.ndarray:
        shift: Any = offset  # its stub knows a number only
        return ndimage.affine_transform(array, linear, shift, output_shape=shape, order=order, mode=edge)

    inside = turned(np.ones(values.shape, np.float32), 0, "grid-constant")
    return inside * turned(np.asarray(values, np.float32), 1 if mode == "linear" else 0, "nearest")
