"""What the segmenter measures with: neighborhoods, and the shapes of findings (layers along gravity, balls, slabs)."""

from itertools import product

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from voxplain.datasets.phantom.registration import Anatomy

CROSS = np.array(ndimage.generate_binary_structure(3, 1), bool)  # 7 voxels
BALL = np.array(ndimage.generate_binary_structure(3, 2), bool)  # 19 voxels: the smallest nodule
CUBE = np.ones((3, 3, 3), bool)

Volume = Float[np.ndarray, "slices rows columns"]
Where = Bool[np.ndarray, "slices rows columns"]


def dilated(mask: Where, by: np.ndarray = CROSS, times: int = 1) -> Where:
    """The mask and its neighbors."""
    return np.asarray(ndimage.binary_dilation(mask, by, iterations=times), bool)


def eroded(mask: Where, by: np.ndarray = CROSS) -> Where:
    """The mask without its rim; what lies at the end of the volume counts as rim."""
    return np.asarray(ndimage.binary_erosion(mask, by), bool)


def opened(mask: Where, by: np.ndarray = CROSS) -> Where:
    """What of the mask the shape `by` covers while staying inside it."""
    return np.asarray(ndimage.binary_opening(mask, by), bool)


def grown(seed: Where, within: Where) -> Where:
    """All of `within` that is connected to the seed, and the seed."""
    return np.asarray(ndimage.binary_propagation(seed, mask=within | seed), bool)


def pieces(mask: Where) -> tuple[np.ndarray, int]:
    """Connected pieces: a volume of labels from 1 on, and how many there are."""
    labels = np.zeros(mask.shape, np.int32)
    return labels, int(np.asarray(ndimage.label(mask, output=labels)).item())


def local_mean(volume: Volume, by: np.ndarray = CUBE) -> Volume:
    """The mean of the neighborhood of each voxel."""
    if by.all():
        return np.asarray(ndimage.uniform_filter(volume, by.shape[0]))
    return np.asarray(ndimage.convolve(volume, by / np.float32(by.sum())))


def standing_out(volume: Volume, reach: float = 3.0) -> Volume:
    """How far each voxel exceeds the mean of its two sides, `reach` voxels away, along the line where it does least.

    A ball stands out along every line; a vessel does not along its own, a wall not along its plane.
    """
    least = np.full(volume.shape, np.inf, np.float32)
    for way in product((-1, 0, 1), repeat=3):
        if way > (0, 0, 0):  # one of each two opposite directions
            step = np.rint(reach * np.array(way) / np.linalg.norm(way)).astype(int)
            ends = np.roll(volume, step, (0, 1, 2)) + np.roll(volume, -step, (0, 1, 2))
            least = np.minimum(least, volume - ends / 2)
    return least


def layer(a: Anatomy, tissue: np.ndarray, side: str, like: np.ndarray, *, fluid: bool) -> tuple[np.ndarray, float]:
    """The best layer of one side along any direction of gravity: its mask, and a score for how many voxels fit.

    `like` says which voxels look right, `tissue` which of them may vote: a voxel that does counts 1/4, one that does
    not -3/4. Fluid runs down and air rises, both with a meniscus along the wall; gravity points from back to front.
    """
    cells = np.flatnonzero(a.side(side) & tissue)
    whole = np.flatnonzero(a.side(side))
    if cells.size < 200:
        return np.zeros(like.shape, bool), 0.0
    vote = like.ravel()[cells].astype(np.float32) - np.float32(0.75)
    meniscus = (30 if fluid else 22) * np.square(np.minimum(a.rim, 1))
    best, mask = 0.0, np.zeros(like.size, bool)
    for turn in np.linspace(0, np.pi, 13):
        for tilt in (-0.2, 0.0, 0.2):
            up = np.array([tilt, -np.cos(turn), np.sin(turn)], np.float32) * np.float32(-1 if fluid else 1)
            height = (up[0] * a.x + up[1] * a.y + up[2] * a.z + meniscus).ravel()
            order = np.argsort(-height[cells])
            gain = np.cumsum(vote[order])
            top = int(gain.argmax())
            if gain[top] > best:
                best = float(gain[top])
                mask = np.zeros(like.size, bool)
                mask[whole] = height[whole] >= height[cells[order[top]]]
    return mask.reshape(like.shape), best


def ballness(a: Anatomy, tissue: np.ndarray, mask: np.ndarray) -> float:
    """Overlap (IoU) of a mask with the ball of its size around its middle, both inside the tissue."""
    cells = np.flatnonzero(tissue | mask)
    inside = mask.ravel()[cells]
    points = np.stack([np.broadcast_to(axis, mask.shape).ravel()[cells] for axis in (a.x, a.y, a.z)])
    middle = points[:, inside].mean(1)
    near = ((points - middle[:, None]) ** 2).sum(0) < 70**2
    points, inside = points[:, near], inside[near]
    best = 0.0
    for step in (5.0, 5.0, 2.5, 2.5):  # the middle of a ball cut by the wall is not the middle of what is left
        moves = middle + step * np.concatenate([np.zeros((1, 3)), np.eye(3), -np.eye(3)]).astype(np.float32)
        fits = [overlap(((points - move[:, None]) ** 2).sum(0), inside) for move in moves]
        best, middle = max(best, max(fits)), moves[int(np.argmax(fits))]
    return best


def slabness(a: Anatomy, lobe: np.ndarray, mask: np.ndarray, side: int) -> float:
    """Overlap (IoU) of a mask with the best slab of its size at the hilar face of a lobe."""
    cells = np.flatnonzero(lobe)
    inside = mask.ravel()[cells]
    x, y, z = (np.broadcast_to(axis, mask.shape).ravel()[cells] for axis in (a.x, a.y, a.z))
    tilts = np.linspace(-1.2, 1.2, 7, dtype=np.float32)
    return max(overlap(np.abs(x - side * 30) + ty * y + tz * z, inside) for ty in tilts for tz in tilts)


def overlap(order: np.ndarray, inside: np.ndarray) -> float:
    """Overlap (IoU) of some cells with as many cells that come first in an order; ties come along."""
    size = int(inside.sum())
    if size == 0:
        return 0.0
    best = inside[order <= np.partition(order, size - 1)[size - 1]]
    common = int(best.sum())
    return common / (size + best.size - common)
