"""The tight box around a mask: where it lies, and how far it is from the truth's. Any number of axes."""

import math

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from voxplain.metrics.base import Undefined, boolean, same_shape, some
from voxplain.metrics.overlap import iou


def tight_box(mask: Bool[np.ndarray, "*spatial"]) -> tuple[slice, ...]:
    """The smallest box that holds the mask, as one slice an axis (the end is one past the last cell).

    Undefined for an empty mask.
    """
    boolean(mask)
    spans = []
    for axis in range(mask.ndim):
        (hit,) = np.nonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if hit.size == 0:
            raise Undefined("an empty mask has no box")
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(spans)


def boxed(mask: Bool[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*spatial"]:
    """The mask with its `tight_box` filled. An empty mask stays empty."""
    boolean(mask)
    filled = np.zeros_like(mask)
    if mask.any():
        filled[tight_box(mask)] = True
    return filled


def box_iou(prediction: Bool[np.ndarray, "*spatial"], truth: Bool[np.ndarray, "*spatial"]) -> float:
    """IoU of the tight boxes around the two masks (Dombrowski et al., AAAI 2024); 0 to 1, higher is better.

    An empty prediction scores 0, an empty truth is undefined. Boxes hold their last row and column, which the released
    code of that paper loses. `foreground_background_iou(boxed(a), boxed(b))` is their "box mIoU".
    """
    boolean(prediction, truth)
    same_shape(prediction, truth)
    some(truth)
    return iou(boxed(prediction), boxed(truth))


def center_distance(
    prediction: Bool[np.ndarray, "*spatial"],
    truth: Bool[np.ndarray, "*spatial"],
    spacing: tuple[float, ...] | None = None,
) -> float:
    """Distance between the centers of the two tight boxes (Dombrowski et al., AAAI 2024), 0 or more, lower is better.

    In millimeters with the `spacing` of each axis, else in cells. Undefined where one of the masks is empty, and where
    the truth falls into pieces that do not touch by their faces: the center of a box around all of them lies nowhere.
    """
    boolean(prediction, truth)
    same_shape(prediction, truth)
    some(truth)
    steps = spacing if spacing is not None else (1.0,) * truth.ndim
    if len(steps) != truth.ndim:
        raise ValueError(f"a truth of shape {truth.shape} needs {truth.ndim} spacings, got {steps}")
    if not prediction.any():
        raise Undefined("the prediction is empty")
    box = tight_box(truth)
    if ndimage.label(truth[box])[1] > 1:  # pyright: ignore[reportIndexIssue]
        raise Undefined("the truth has more than one piece")
    ends = zip(tight_box(prediction), box, steps, strict=True)
    return math.hypot(*((a.start + a.stop - b.start - b.stop) / 2 * step for a, b, step in ends))
