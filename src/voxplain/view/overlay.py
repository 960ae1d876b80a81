"""Arrays to RGB: windows, planes in radiological convention, heat on top of an image, outlines, mosaics.

Works for two and three axes alike: a plane is a pair of axes, so an image has one and a volume has three.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import matplotlib
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from voxplain.arrays import top_level
from voxplain.geometry import Geometry
from voxplain.maps import Heatmap, Mask, Sample
from voxplain.resampling import Mode, resample

RGB = UInt8[np.ndarray, "_ _ 3"]
WINDOWS = {"lung": (-600.0, 1500.0), "soft tissue": (40.0, 400.0), "bone": (400.0, 1800.0)}  # center, width in HU
OKABE_ITO = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
COLORMAP = "inferno"
DARKEST = 0.3  # the part of the color map that is too dark to be seen on an image is left out
UNSURE = (0.42, 0.55, 0.72)  # the one color, without any gradient, of a word that is not distinguishable

# per number of axes, the letters at the low and the high end of each world axis; a 2D image is a frontal one
LETTERS = {2: (("R", "L"), ("S", "I")), 3: (("R", "L"), ("A", "P"), ("I", "S"))}
NAMES = {(2, 0, 1): "frontal", (3, 0, 1): "axial", (3, 0, 2): "coronal", (3, 1, 2): "sagittal"}
AHEAD = "LPI"  # letters that belong at the right or at the bottom of the screen


@dataclass(frozen=True, slots=True)
class Plane:
    """A pair of axes as shown on screen: patient right on the left, anterior or superior on top.

    `rows` and `columns` are array axes, `through` the axes that are cut (none for an image), `flips` the shown axes
    that are reversed, `letters` stand at left, right, top, bottom, `spacing` is mm per row and per column.
    """

    name: str
    rows: int
    columns: int
    through: tuple[int, ...]
    flips: tuple[bool, bool]
    letters: tuple[str, str, str, str]
    spacing: tuple[float, float]

    def cut(self, values: Shaped[np.ndarray, "*spatial"], index: int) -> Shaped[np.ndarray, "rows columns"]:
        """The slice `index` of `values`, laid out for the screen; an image has nothing to cut."""
        order = (*self.through, self.rows, self.columns)
        shown = np.transpose(values, order)[(index,) * len(self.through)]
        return shown[:: -1 if self.flips[0] else 1, :: -1 if self.flips[1] else 1]

    def through_point(self, point: Sequence[int]) -> int:
        """The slice that holds the array index `point`."""
        return int(sum(point[axis] for axis in self.through))


def planes(geometry: Geometry) -> dict[str, Plane]:
    """The planes of the geometry by name: axial, coronal and sagittal, or frontal for an image."""
    ndim = geometry.ndim
    steps = geometry.affine[:ndim, :ndim]
    world = np.abs(steps).argmax(0)  # the world axis that each array axis follows most
    found = {}
    for pair in combinations(range(ndim), 2):
        columns, rows = sorted(pair, key=lambda axis: world[axis])
        ends = [LETTERS[ndim][world[axis]][:: 1 if steps[world[axis], axis] > 0 else -1] for axis in (rows, columns)]
        flips = tuple(high not in AHEAD for _, high in ends)
        (top, bottom), (left, right) = (end[:: -1 if flip else 1] for end, flip in zip(ends, flips, strict=True))
        name = NAMES[(ndim, int(world[columns]), int(world[rows]))]
        through = tuple(axis for axis in range(ndim) if axis not in pair)
        spacing = (geometry.spacing[rows], geometry.spacing[columns])
        found[name] = Plane(name, rows, columns, through, (flips[0], flips[1]), (left, right, top, bottom), spacing)
    order = ("axial", "coronal", "sagittal", "frontal")
    return {name: found[name] for name in order if name in found}


def gray(
    values: Float[np.ndarray, "*spatial"], window: str | tuple[float, float] | None, unit: str = "HU"
) -> Float[np.ndarray, "*spatial"]:
    """Brightness in 0..1 by a named window, by (center, width), or, for None, by the unit: HU lung, else 1 to 99 %."""
    if window is None and unit != "HU":
        low, high = np.percentile(values, (1, 99))
    else:
        chosen = window or "lung"
        if isinstance(chosen, str) and chosen not in WINDOWS:
            raise ValueError(f"no window {chosen!r}; there are {', '.join(WINDOWS)}, or give (center, width)")
        center, width = WINDOWS[chosen] if isinstance(chosen, str) else chosen
        low, high = center - width / 2, center + width / 2
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def limits(heatmap: Heatmap, fraction: float = 0.25) -> tuple[float, float]:
    """The values that the color map spans: the threshold of the top `fraction` of the nonzero cells, the maximum."""
    high = float(heatmap.values.max())
    return (top_level(heatmap.values, fraction), high) if high > 0 else (0.0, 0.0)


def overlay(
    sample: Sample,
    heatmap: Heatmap | None = None,
    *,
    plane: str | None = None,
    index: int | None = None,
    opacity: float = 0.65,
    fraction: float = 0.25,
    window: str | tuple[float, float] | None = None,
    masks: Sequence[Mask] = (),
    pixels: int | None = None,
    sure: bool = True,
) -> RGB:
    """One slice of the sample with the top `fraction` of the heatmap in color and masks outlined.

    `plane` is a name of `planes(...)` (default the first), `index` the slice (default the middle), `pixels` the
    longer edge of the picture (default one pixel per voxel of the finer axis). Pixels are square in mm. Color goes
    from the threshold, transparent, to the maximum, at `opacity`; `sure=False` shows one faint flat color instead.
    """
    geometry = sample.geometry
    shown = planes(geometry)
    if plane is not None and plane not in shown:
        raise ValueError(f"no plane {plane!r}; this sample has {', '.join(shown)}")
    view = shown[plane or next(iter(shown))]
    at = view.through_point([size // 2 for size in geometry.shape]) if index is None else index
    shape = _shape(view, geometry.shape, pixels)
    base = gray(_fit(view.cut(sample.image[0], at), shape), window, sample.unit)
    rgb = np.repeat(base[..., None], 3, axis=-1)
    if heatmap is not None:
        low, high = limits(heatmap, fraction)
        heat = _fit(_slice(heatmap, geometry, view, at), shape)
        strength = np.clip((heat - low) / max(high - low, 1e-12), 0, 1)
        soft = np.clip(strength / 0.12, 0, 1) if sure else 0.6  # a soft edge, then the full opacity
        alpha = opacity * soft * (heat > low)
        rgb += alpha[..., None] * (colors(strength, sure) - rgb)
    for number, mask in enumerate(masks):
        inside = _fit(_slice(mask, geometry, view, at), shape, "nearest") > 0.5
        rgb[edge(inside)] = np.array(OKABE_ITO[number % len(OKABE_ITO)]) / 255
    return (rgb * 255 + 0.5).astype(np.uint8)


def colors(strength: Float[np.ndarray, "*shape"], sure: bool = True) -> Float[np.ndarray, "*shape 3"]:
    """The color of a strength in 0..1; always the same one for what is not distinguishable."""
    if not sure:
        return np.broadcast_to(np.array(UNSURE), (*np.shape(strength), 3))
    return matplotlib.colormaps[COLORMAP](DARKEST + (1 - DARKEST) * np.asarray(strength))[..., :3]


def edge(inside: Bool[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "rows columns"]:
    """The pixels of a shape that touch its outside or the border of the picture."""
    padded = np.pad(inside, 1)
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core


def mosaic(pictures: Sequence[RGB], columns: int, gap: int = 4) -> RGB:
    """The pictures side by side, `columns` a row, on black; smaller ones are padded."""
    rows, wide = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    lines = -(-len(pictures) // columns)
    canvas = np.zeros((lines * (rows + gap) - gap, columns * (wide + gap) - gap, 3), np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (rows + gap), (number % columns) * (wide + gap)
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def _slice(value: Heatmap | Mask, geometry: Geometry, view: Plane, index: int) -> Shaped[np.ndarray, "rows columns"]:
    """One slice of `geometry` out of a value on any grid; the rest is never resampled."""
    start = np.zeros((1, geometry.ndim))
    start[0, list(view.through)] = index
    shape = tuple(1 if axis in view.through else size for axis, size in enumerate(geometry.shape))
    affine = geometry.affine.copy()
    affine[:-1, -1] = geometry.world(start)[0]
    return view.cut(value.resize(Geometry(shape, affine)).values, 0)


def _shape(view: Plane, shape: Sequence[int], pixels: int | None) -> tuple[int, int]:
    extent = np.array([shape[view.rows] * view.spacing[0], shape[view.columns] * view.spacing[1]])  # mm
    scale = 1 / min(view.spacing) if pixels is None else pixels / extent.max()
    rows, columns = np.maximum(1, np.rint(extent * scale).astype(int))
    return int(rows), int(columns)


def _fit(
    values: Shaped[np.ndarray, "rows columns"], shape: tuple[int, int], mode: Mode = "linear"
) -> Float[np.ndarray, "new_rows new_columns"]:
    return resample(np.ascontiguousarray(values, np.float32)[None], shape, mode=mode)[0]
