"""What several values need of a bare array: a checked, frozen copy, and the paper's two formulas."""

import numpy as np
from jaxtyping import Float


def top_level(values: Float[np.ndarray, "*spatial"], fraction: float) -> float:
    """The value from which on the top fraction of the positive values starts; infinite if there are none."""
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction}: expected more than 0 and at most 1 (0.25 keeps the top quarter)")
    positive = values[values > 0]
    return float(np.quantile(positive, 1 - fraction)) if positive.size else float("inf")


def active_mean(values: Float[np.ndarray, "words *spatial"], fraction: float) -> Float[np.ndarray, "*spatial"]:
    """The mean over only those words whose value is in their top fraction at the cell; 0 where none is."""
    active = np.stack([word >= top_level(word, fraction) for word in values])
    count = active.sum(0)  # [*spatial]
    return np.where(active, values, 0).sum(0) / np.maximum(count, 1)


def frozen(array: np.ndarray, kind: type[np.generic]) -> np.ndarray:
    """A copy that nobody can write to: the caller's array stays the caller's."""
    array = np.array(array, kind, order="C")
    array.flags.writeable = False
    return array


def settled(
    array: np.ndarray, shape: tuple[int, ...], what: str, leading: int = 0, kind: type[np.generic] = np.float32
) -> np.ndarray:
    """A frozen copy, if it is finite and has the shape behind its `leading` axes; else a ValueError that names it."""
    if array.ndim != leading + len(shape) or array.shape[leading:] != shape:
        raise ValueError(f"{what}: array {array.shape} but geometry {shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{what}: holds NaN or infinite values")
    return frozen(array, kind)
