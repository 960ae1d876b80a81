"""A volume from elsewhere under the maps of a run, such as one that was enlarged by another program."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from voxplain.geometry import Geometry
from voxplain.io.nifti import read_volume
from voxplain.maps import Explanation, Sample

PLACES = {
    "file": "where the file says that its voxels are",
    "run": "the volume covers what the run's own image covers, axis by axis, whatever the file says",
    "medsyn": "the same with rows that run backward: what MedSyn's script for super-resolution writes",
}
LATTICE = 17  # points along each axis that coverage is counted on


def on_volume(explanation: Explanation, path: str | os.PathLike, place: str = "file") -> Explanation:
    """The explanation with the volume of a NIfTI file in the place of its image; maps stay on their own grids.

    Each map is brought to the volume when it is asked for, through world coordinates, and is 0 outside of the run's
    field of view. `place` is one of `PLACES`. Values are taken to be in the unit of the run. The provenance says under
    "shown_on" which file it was and which share of the run's field of view it covers.

    Raises FileNotFoundError for an absent file, and ValueError for one that is no volume of as many axes, that does not
    say where its voxels are (no affine, or a run without millimeters) or that lies outside of the run's field of view.
    """
    own = explanation.sample.geometry
    if place not in PLACES:
        raise ValueError(f"place = {place!r}; give {', '.join(f'{name} ({what})' for name, what in PLACES.items())}")
    believed = place == "file"
    if believed and not own.spacing_known:
        raise ValueError(
            "nobody knows the size of this run's voxels, so no file can say in millimeters where they are; if the "
            "volume covers the whole image, say so by place 'run'"
        )
    values, geometry = read_volume(path, own.ndim, need_affine=believed)
    if not believed:
        geometry = replace(own.at(geometry.shape), spacing_known=own.spacing_known)
    if place == "medsyn":
        geometry = turned(geometry, own.ndim - 2)
    share = coverage(geometry, own)
    if share == 0 and coverage(own, geometry) == 0:
        raise ValueError(
            f"{path} lies outside of the run's field of view: it spans {_span(geometry)} mm LPS, the run {_span(own)}. "
            "If its affine is not true and it covers the whole image, say so by place 'run', or 'medsyn' for a file "
            "of MedSyn's own script"
        )
    image = values.reshape(-1, *geometry.shape).astype(np.float32)
    facts = {"file": Path(path).name, "place": place, "covered": round(share, 3)}
    origin = explanation.sample
    sample = Sample(image, geometry, origin.prompt, {**origin.provenance, "shown_on": facts}, origin.unit)
    return replace(explanation, sample=sample, provenance={**explanation.provenance, "shown_on": facts})


def coverage(geometry: Geometry, other: Geometry) -> float:
    """Which share of the field of view of `other` lies in that of `geometry`, counted on a lattice of points."""
    steps = (np.arange(LATTICE) + 0.5) / LATTICE
    axes = [steps * size - 0.5 for size in other.shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, other.ndim)
    return float(_inside(geometry, other.world(points)).mean())


def turned(geometry: Geometry, axis: int) -> Geometry:
    """The same field of view with the cells of one axis counted from its other end."""
    affine = geometry.affine.copy()
    affine[:, -1] += affine[:, axis] * (geometry.shape[axis] - 1)
    affine[:, axis] *= -1
    return Geometry(geometry.shape, affine, geometry.spacing_known)


def _inside(geometry: Geometry, world: Float[np.ndarray, "points axes"]) -> Bool[np.ndarray, " points"]:
    index = geometry.index(world)
    return np.asarray(((index >= -0.5) & (index <= np.array(geometry.shape) - 0.5)).all(1))


def _span(geometry: Geometry) -> str:
    """The box around a field of view, x first."""
    ends = np.stack(np.meshgrid(*[(-0.5, size - 0.5) for size in geometry.shape]), -1).reshape(-1, geometry.ndim)
    world = geometry.world(ends)
    return " x ".join(f"{low:.0f}..{high:.0f}" for low, high in zip(world.min(0), world.max(0), strict=True))
