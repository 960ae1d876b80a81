"""Where the voxels of a model's images lie in the patient."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from voxplain.geometry import Geometry, regular

SIDES = ("LR", "PA", "SI")  # along +x and -x, +y and -y, +z and -z


def placed(shape: Sequence[int], spacing: Sequence[float] | None, orientation: str | None = None) -> Geometry:
    """The geometry of images of known spacing (mm), or of unit voxels whose size nobody knows.

    `orientation` says toward which side of the patient each axis grows, slowest first: "SPL" is what `regular` takes
    for granted, "RAS" is how MONAI's transforms often lay out arrays. A plane has none: its world is its own.
    """
    made = regular(tuple(shape), 1.0 if spacing is None else tuple(spacing))
    if orientation is not None:
        found = [(axis, pair.index(side)) for side in orientation for axis, pair in enumerate(SIDES) if side in pair]
        if sorted(axis for axis, _ in found) != list(range(made.ndim)) or len(orientation) != made.ndim:
            raise ValueError(f"orientation {orientation!r}: give a letter for each of {made.ndim} axes, as in 'RAS'")
        affine = np.eye(made.ndim + 1)[:, [*(axis for axis, _ in found), made.ndim]]
        affine[:-1, :-1] *= [step * (-1) ** side for step, (_, side) in zip(made.spacing, found, strict=True)]
        made = replace(made, affine=affine)
    return made if spacing is not None else replace(made, spacing_known=False)
