"""Where the cells of an array are in the patient.

Arrays are (slices, rows, columns) or (rows, columns), slowest first. The world is LPS in millimeters: x grows to the
patient's left, y to posterior, z to superior, and world coordinates are written x first. So an axis-aligned CT has
columns along +x, rows along +y and slices along +z. A radiograph's world is its own plane: x as above, y downwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True, slots=True, eq=False)
class Geometry:
    """The shape of an array and the affine from its indices (slowest first) to LPS millimeters (x first).

    `spacing_known` is False where nobody stated a voxel size; millimeters then mean nothing.
    """

    shape: tuple[int, ...]
    affine: Float[np.ndarray, "n n"]
    spacing_known: bool = True

    def __post_init__(self) -> None:
        shape = tuple(int(size) for size in self.shape)
        affine = np.array(self.affine, np.float64)
        if len(shape) not in (2, 3) or min(shape) < 1:
            raise ValueError(f"shape {self.shape}: expected two or three positive sizes")
        if affine.shape != (len(shape) + 1,) * 2:
            raise ValueError(f"affine {affine.shape}: {len(shape)} axes need {(len(shape) + 1,) * 2}")
        if not np.isfinite(affine).all() or not np.allclose(affine[-1], np.eye(len(shape) + 1)[-1]):
            raise ValueError(f"affine must be finite and end in the row 0 ... 0 1, but is {affine.tolist()}")
        columns = np.linalg.norm(affine[:-1, :-1], axis=0)
        if not columns.min() > 0 or abs(np.linalg.det(affine[:-1, :-1] / columns)) < 1e-6:
            raise ValueError(f"affine cannot be inverted: {affine.tolist()}")
        affine.flags.writeable = False
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "affine", affine)

    @property
    def ndim(self) -> int:
        """Two or three."""
        return len(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimeters between neighboring cells along each axis, slowest first."""
        return tuple(float(step) for step in np.linalg.norm(self.affine[:-1, :-1], axis=0))

    def at(self, grid: tuple[int, ...]) -> "Geometry":
        """The geometry of a coarser (or finer) grid over the same field of view.

        Cell 0 covers the first block of cells, so the origin moves by (factor - 1) / 2 cells along each axis.
        """
        if len(grid) != self.ndim or min(grid) < 1:
            raise ValueError(f"grid {grid}: the geometry {self.shape} needs {self.ndim} positive sizes")
        factors = np.array(self.shape) / np.array(grid)
        affine = self.affine.copy()
        affine[:-1, -1] += affine[:-1, :-1] @ ((factors - 1) / 2)
        affine[:-1, :-1] *= factors
        return Geometry(tuple(grid), affine, self.spacing_known)

    def world(self, indices: Float[np.ndarray, "points axes"]) -> Float[np.ndarray, "points axes"]:
        """World coordinates of cell centers; indices may be fractional."""
        return indices @ self.affine[:-1, :-1].T + self.affine[:-1, -1]

    def index(self, world: Float[np.ndarray, "points axes"]) -> Float[np.ndarray, "points axes"]:
        """Fractional indices of world points; the inverse of `world`."""
        return np.linalg.solve(self.affine[:-1, :-1], (world - self.affine[:-1, -1]).T).T

    def same_as(self, other: "Geometry") -> bool:
        """Equal shape, and every cell in the same place to a thousandth of a cell."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*[(0.0, size - 1.0) for size in self.shape]), -1).reshape(-1, self.ndim)
        away = self.index(other.world(corners)) - corners
        return bool(np.abs(away).max() < 1e-3)


def regular(
    shape: tuple[int, ...], spacing: float | Sequence[float], origin: Sequence[float] | None = None
) -> Geometry:
    """An axis-aligned grid: columns along +x, rows along +y, slices along +z.

    `spacing` in mm, one for all axes or one each (slowest first); `origin` is the world point (x first) of cell 0.
    """
    ndim = len(shape)
    steps = np.broadcast_to(np.asarray(spacing, np.float64), (ndim,))
    if not (steps > 0).all():
        raise ValueError(f"spacing {spacing} must be positive")
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = np.diag(steps)[::-1]  # index k runs along world axis ndim - 1 - k
    if origin is not None:
        affine[:-1, -1] = origin
    return Geometry(tuple(shape), affine)
