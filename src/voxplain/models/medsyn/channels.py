"""What the channels of a MedSyn volume hold, and where its voxels are.

Every training scan was brought to one atlas of 316 x 316 x 292 voxels of 1 mm (x, y, z). Arrays run superior,
anterior, left: slices along +z, rows along -y (so LPS y falls), columns along +x. Where the atlas lies in a patient is
unknown; its first voxel is the origin of our world.
"""

import numpy as np
from jaxtyping import Float

from voxplain.geometry import Geometry, regular
from voxplain.maps import Mask, Sample

CHANNELS = ("CT", "lobes", "airway", "vessels")
ATLAS = (292.0, 316.0, 316.0)  # mm along slices, rows, columns
AIR, METAL = -1024.0, 600.0  # HU of -1 and 1
# Airway and vessels are drawn in one gray level. How five lobes share the levels is not published, so all is lobe that
# is lighter than half of the first of five equal steps.
PRESENT = {"lobes": 0.1, "airway": 0.5, "vessels": 0.5}


def volume_geometry(shape: tuple[int, int, int], *, rows_flipped: bool = False) -> Geometry:
    """Where the voxels of a volume of that many slices, rows and columns lie, whatever its resolution.

    `rows_flipped` is for a volume whose rows run to posterior, as the public super-resolution script writes them
    (with a spacing of 1 mm, which is not true).
    """
    spacing = tuple(length / size for length, size in zip(ATLAS, shape, strict=True))
    first = np.array([0.5 * step - 0.5 for step in reversed(spacing)])  # center of voxel 0, x first
    length = ATLAS[1]
    if rows_flipped:
        return regular(shape, spacing, (first[0], first[1] - length + 1, first[2]))
    affine = regular(shape, spacing, (first[0], -first[1], first[2])).affine.copy()
    affine[:, 1] *= -1
    return Geometry(shape, affine)


def to_physical(volume: Float[np.ndarray, "batch channels *grid"]) -> Float[np.ndarray, "batch channels *grid"]:
    """-1..1 (clipped to it) -> HU in the first channel, gray levels 0..1 in the others."""
    levels = (np.clip(volume, -1, 1) + 1) / 2
    levels[:, 0] = levels[:, 0] * (METAL - AIR) + AIR
    return levels


def from_physical(image: Float[np.ndarray, "channels *grid"]) -> Float[np.ndarray, "channels *grid"]:
    """The inverse of `to_physical`, for one image; values beyond the range are clipped to it."""
    levels = np.array(image, np.float32)
    levels[0] = (levels[0] - AIR) / (METAL - AIR)
    return np.clip(levels, 0, 1) * 2 - 1


def names(channels: int) -> tuple[str, ...]:
    """The channels of a model that has so many."""
    if not 1 <= channels <= len(CHANNELS):
        raise ValueError(f"{channels} channels; give 1 to {len(CHANNELS)} of {', '.join(CHANNELS)}")
    return CHANNELS[:channels]


def ct(sample: Sample) -> Sample:
    """The CT alone, one channel in HU."""
    return Sample(sample.image[:1], sample.geometry, sample.prompt, sample.provenance, sample.unit)


def label_masks(sample: Sample, present: dict[str, float] | None = None) -> dict[str, Mask]:
    """Each label channel as a mask: its gray level is above `present[name]`, by default `PRESENT`."""
    levels = {**PRESENT, **(present or {})}
    return {
        name: Mask(name, channel > levels[name], sample.geometry)
        for name, channel in zip(names(len(sample.image))[1:], sample.image[1:], strict=True)
    }
