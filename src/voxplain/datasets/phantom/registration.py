"""Find the anatomy of a phantom chest in its voxels: a parametric chest is fitted to the Hounsfield units.

The fit sees nothing but the volume. Its shapes and prior ranges are those of `anatomy`, so it knows how phantoms are
built (not how this one was drawn); the fissures, which no phantom shows, are put at their mean place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.optimize import least_squares

SPACING = 5.0
SOFT = 3.5  # mm, width of the fitted model's edges
PRIORS = {  # name: (middle, half range)
    "scale": (0.95, 0.06), "x": (0, 8), "y": (0, 8), "z": (0, 10), "tilt_x": (0, 4), "tilt_y": (0, 3), "turn": (0, 5),
    "width": (116, 8), "depth": (82, 7), "wall": (14, 3), "fat": (12, 7), "mediastinum": (24, 4), "apex": (120, 8),
    "dome_right": (-56, 12), "dome_left": (-64, 12), "heart_x": (20, 7), "heart_y": (-22, 6), "heart_z": (-32, 6),
    "heart_a": (57, 16), "heart_b": (47, 13), "heart_c": (49, 13), "parenchyma": (-840, 40),
}  # fmt: skip
NAMES = tuple(PRIORS)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """A fitted chest: canonical coordinates in mm (x to the left, y posterior, z superior) and expected organs."""

    parameters: dict[str, float]
    x: Float[np.ndarray, "*spatial"]
    y: Float[np.ndarray, "*spatial"]
    z: Float[np.ndarray, "*spatial"]
    rim: Float[np.ndarray, "*spatial"]
    lungs: Bool[np.ndarray, "*spatial"]
    heart: Bool[np.ndarray, "*spatial"]
    airway: Bool[np.ndarray, "*spatial"]
    mediastinum: Bool[np.ndarray, "*spatial"]

    def side(self, name: str) -> Bool[np.ndarray, "*spatial"]:
        """The expected lung of one side, "left" or "right"."""
        return self.lungs & (self.x >= 0 if name == "left" else self.x < 0)

    def lobes(self) -> dict[str, Bool[np.ndarray, "*spatial"]]:
        """The five expected lobes, cut by fissures at their mean place."""
        right = self.x < 0
        lower = self.z < np.where(right, np.float32(2), np.float32(8)) + 0.95 * self.y
        middle = right & ~lower & (self.z < 10)
        return {
            "right upper lobe": self.lungs & right & ~lower & ~middle,
            "right middle lobe": self.lungs & middle,
            "right lower lobe": self.lungs & right & lower,
            "left upper lobe": self.lungs & ~right & ~lower,
            "left lower lobe": self.lungs & ~right & lower,
        }


def register(volume: Float[np.ndarray, "slices rows columns"]) -> Anatomy:
    """The chest that fits the volume best, robust against tissue that findings have replaced."""
    lattice = np.indices(volume.shape)[:, 1::3, 1::3, 1::3].reshape(3, -1)
    world = _world(list(lattice.astype(np.float32)), volume.shape)
    observed = np.clip(volume[tuple(lattice)], -1000, 100).astype(np.float32)
    trust = np.where(_fluid(volume)[tuple(lattice)], np.float32(0.1), np.float32(1))
    middle, half = (np.array([PRIORS[name][i] for name in NAMES], np.float64) for i in (0, 1))

    def residuals(u: np.ndarray) -> np.ndarray:
        model, weight = _render(dict(zip(NAMES, (middle + half * u).tolist(), strict=True)), *world)
        miss = (model - observed) / 150
        robust = np.sign(miss) * np.sqrt(2 * np.log1p(miss**2 / 2))  # Cauchy
        return np.concatenate([trust * weight * robust, 5 * u**3])

    def slopes(u: np.ndarray) -> np.ndarray:
        here, step = residuals(u), 0.06  # of a prior's half range: well above the noise of float32
        return np.stack([(residuals(u + step * row) - here) / step for row in np.eye(u.size)], 1)

    start = np.zeros(len(NAMES))
    _place(volume, start, middle, half)
    options = {"jac": slopes, "method": "lm", "max_nfev": 25, "xtol": 1e-3, "ftol": 1e-4}
    found = least_squares(residuals, start, **options)
    p = dict(zip(NAMES, (middle + half * found.x).tolist(), strict=True))
    return _anatomy(p, volume.shape)


def _fluid(volume: np.ndarray) -> np.ndarray:
    """Homogeneous tissue close to water: effusions, which the fit must not take for heart or diaphragm."""
    smooth = ndimage.uniform_filter(volume, 3)
    return ndimage.binary_dilation(ndimage.binary_erosion((smooth > -20) & (smooth < 26)), iterations=2)


def _place(volume: np.ndarray, start: np.ndarray, middle: np.ndarray, half: np.ndarray) -> None:
    """A first guess of the shift from the middle of the body."""
    body = volume > -400
    for name, axis in (("x", 2), ("y", 1)):
        profile = body.sum(axis=tuple(i for i in range(3) if i != axis))
        offset = (profile @ np.arange(profile.size) / max(profile.sum(), 1) - (profile.size - 1) / 2) * SPACING
        i = NAMES.index(name)
        start[i] = np.clip((offset - middle[i]) / half[i], -2, 2)


def _world(index: Sequence[np.ndarray], shape: tuple[int, ...]) -> list[np.ndarray]:
    """World x, y, z in mm around the middle of the volume."""
    return [np.float32(SPACING) * (index[axis] - np.float32((shape[axis] - 1) / 2)) for axis in (2, 1, 0)]


def _canonical(p: dict[str, float], wx: np.ndarray, wy: np.ndarray, wz: np.ndarray) -> list[np.ndarray]:
    turn = np.eye(3)
    for axis, name in enumerate(("tilt_x", "tilt_y", "turn")):
        c, s = np.cos(np.radians(p[name])), np.sin(np.radians(p[name]))
        one = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        one[i, i], one[i, j], one[j, i], one[j, j] = c, -s, s, c
        turn = turn @ one
    rows = (turn.T / p["scale"]).astype(np.float32)
    shifted = [wx - np.float32(p["x"]), wy - np.float32(p["y"]), wz - np.float32(p["z"])]
    return [row[0] * shifted[0] + row[1] * shifted[1] + row[2] * shifted[2] for row in rows]


def _fields(p: dict[str, float], x: np.ndarray, y: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distances in mm, about, positive inside: wall, dome, gap beside the mediastinum, heart, column."""
    f = {name: np.float32(value) for name, value in p.items()}
    taper = np.sqrt(np.clip(1 - (np.maximum(z - 15, 0) / (f["apex"] - 15)) ** 2, 0.0225, 1))
    flat = (np.abs(x) / f["width"]) ** 2.5 + (np.abs(y) / f["depth"]) ** 2.5
    shoulder = np.where(z > 105, 1 + ((z - 105) / 70) ** 2, 1)
    radius = (flat + np.float32(1e-6)) ** np.float32(0.4)
    mean = (f["width"] + f["depth"]) / 2
    right = x < 0
    blend = _step(x, 4)  # smooth across the midline
    top = f["dome_right"] * (1 - blend) + f["dome_left"] * blend
    dome = top - 62 * (((x - np.where(right, np.float32(-58), np.float32(60))) / 62) ** 2 + ((y + 8) / 92) ** 2)
    slope = np.sqrt(1 + (2 * (x - np.where(right, np.float32(-58), np.float32(60))) / 62) ** 2)
    width = f["mediastinum"] * (0.75 + 0.35 * np.clip((y + 60) / 100, 0, 1)) + 8 * np.clip(-z / 60, 0, 1)
    hx, hy, hz = x - f["heart_x"], y - f["heart_y"], z - f["heart_z"]
    heart = np.sqrt(
        (hx / f["heart_a"]) ** 2 + ((hy + 0.15 * hx) / f["heart_b"]) ** 2 + ((hz + 0.35 * hx) / f["heart_c"]) ** 2
    )
    outer = radius * shoulder ** np.float32(0.4)
    rim = radius / taper
    return {
        "rim": rim**2.5, "dome_height": dome,
        "body": (1 + (f["wall"] + f["fat"]) / 90 - outer) * mean, "muscle": (1 + f["wall"] / 90 - outer) * mean,
        "inner": (np.float32(0.9**0.4) - rim) * mean * taper, "wall": (np.float32(0.86**0.4) - rim) * mean * taper,
        "dome": (z - dome) / slope, "gap": np.abs(x - 3) - width, "bottom": z + 140,
        "heart": np.minimum((1 - heart) * (f["heart_a"] + f["heart_b"] + f["heart_c"]) / 3, (z - dome) / slope + 12),
        "column": 19 - np.sqrt(x**2 + (y - 0.8 * f["depth"]) ** 2),
        "aorta": 12 - np.sqrt((x - 17) ** 2 + (y - 44) ** 2) - 40 * (z > 48),
    }  # fmt: skip


def _render(p: dict[str, float], wx: np.ndarray, wy: np.ndarray, wz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected HU (at most 100) with soft edges, and how much each voxel is to be trusted."""
    x, y, z = _canonical(p, wx, wy, wz)
    f = _fields(p, x, y, z)
    hu = -1000 + 900 * _step(f["body"]) + 150 * _step(f["muscle"])
    air = _step(f["wall"]) * _step(f["dome"]) * _step(f["gap"]) * _step(f["bottom"])
    air = air * (1 - _step(f["heart"])) * (1 - _step(f["column"])) * (1 - _step(f["aorta"]))
    tissue = np.float32(p["parenchyma"]) + 45 * np.clip(y / np.float32(p["depth"]), -1, 1)
    hu = hu + air * (tissue - hu)
    trust = np.where((np.abs(x) < 20) & (f["dome"] > 0) & (z > 0), np.float32(0.3), np.float32(1))  # airways, unmodeled
    return hu, trust


def _step(distance: np.ndarray, soft: float = SOFT) -> np.ndarray:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(distance * np.float32(1 / soft))


def _anatomy(p: dict[str, float], shape: tuple[int, ...]) -> Anatomy:
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    wx, wy, wz = _world([a.astype(np.float32) for a in axes], shape)
    x, y, z = _canonical(p, wx, wy, wz)
    f = _fields(p, x, y, z)
    t = np.clip((165 - z) / 123, 0, 1)
    airway = (x**2 + (y - 8 - 8 * t) ** 2 < 12**2) & (z > 42)
    t = np.clip(np.abs(x) / 36, 0, 1)
    airway |= ((y - 16 - 2 * t) ** 2 + (z - 42 + 26 * t) ** 2 < 10**2) & (np.abs(x) < 40)
    cavity = (f["wall"] > 0) & (f["dome"] > 0) & (f["bottom"] > 0)
    heart = (f["heart"] > 0) & (f["inner"] > 0)
    lungs = cavity & (f["gap"] > 0) & ~heart & (f["column"] <= 0) & (f["aorta"] <= 0)
    middle = (f["inner"] > 0) & (f["dome"] > 0) & ~lungs & (f["column"] <= 0)
    return Anatomy(p, x, y, z, f["rim"], lungs & ~airway, heart, airway, middle)
