"""A rule-based reader of phantom chests: it sees the voxels and nothing else, neither the prompt nor the seed.

`register` finds the anatomy, then each finding has a rule on Hounsfield units, shape and place. The rules know how
phantoms are built (shapes of the chest, HU ranges of the findings, that fluid and air lie along gravity), so they
are no reader of patients; they do not know what was drawn in the volume at hand. All thresholds were chosen on `dev`
seeds.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from voxplain.datasets.phantom.registration import Anatomy, register
from voxplain.datasets.phantom.shapes import (
    BALL,
    CROSS,
    CUBE,
    ballness,
    dilated,
    eroded,
    grown,
    layer,
    local_mean,
    opened,
    pieces,
    slabness,
    standing_out,
)

VOXEL_ML = 0.125
SMALLEST_ML = {
    "consolidation": 5.0, "ground_glass": 6.0, "nodule": 1.4, "effusion": 12.0, "pneumothorax": 12.0,
    "cardiomegaly": 50.0, "atelectasis": 6.0, "emphysema": 60.0, "pericardial_effusion": 15.0, "fibrosis": 40.0,
}  # fmt: skip
ALONE = 430.0  # HU by which a small nodule stands out of the lung on both sides, along every line
HEART_MM = 52.0  # geometric mean of the half axes above which a heart is large


@dataclass(frozen=True, eq=False)
class Found:
    """One finding that the rules see; `count` tells how many nodules the mask holds."""

    kind: str
    side: str | None
    lobe: str | None
    volume_ml: float
    mask: Bool[np.ndarray, "*spatial"]
    count: int = 1


def segment(volume: Float[np.ndarray, "slices rows columns"]) -> dict[str, Bool[np.ndarray, "slices rows columns"]]:
    """Which voxels belong to which kind of finding; only kinds that are there. `volume`: HU, 64^3 voxels of 5 mm."""
    masks: dict[str, np.ndarray] = {}
    for found in findings(volume):
        masks[found.kind] = masks.get(found.kind, np.zeros(volume.shape, bool)) | found.mask
    return masks


def findings(volume: Float[np.ndarray, "slices rows columns"]) -> list[Found]:
    """Every finding that the rules see, each with side, lobe, volume and mask.

    Side and lobe are None where the kind has none; effusions and ground glass on both sides are one bilateral finding.
    """
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise ValueError(f"expected finite HU on three axes, got shape {volume.shape}")
    if (volume > -500).mean() < 0.05:
        return []  # no body, so no chest
    reading = Reading(np.clip(volume, -1024, 1500).astype(np.float32))
    found = []
    for rule in (_effusions, _pneumothoraces, _pericardial, _hearts, _fibrosis, _dense, _ground_glass, _emphysema):
        found += rule(reading)
    return found


class Reading:
    """A volume being read: its anatomy, its local statistics, and which voxels are already explained."""

    def __init__(self, volume: Float[np.ndarray, "slices rows columns"]) -> None:
        self.hu = volume
        self.anatomy: Anatomy = register(volume)
        self.mean = local_mean(volume)
        self.spread = np.sqrt(np.maximum(local_mean(volume**2) - self.mean**2, 0))
        self.metal = dilated(volume > 420, CUBE) & dilated(self.anatomy.lungs)
        self.core = eroded(self.anatomy.lungs, CROSS)
        self.dense = self.anatomy.lungs & (volume > -300) & ~self.metal
        self.taken = np.zeros(volume.shape, bool)
        self.fluid = np.zeros(volume.shape, bool)  # effusions, part of what is taken
        self.lobes = self.anatomy.lobes()

    def make(
        self, kind: str, mask: np.ndarray, side: str | None, *, lobar: bool = False, count: int = 1
    ) -> list[Found]:
        """One finding, unless it is too small to count."""
        volume = float(mask.sum()) * VOXEL_ML
        if volume < SMALLEST_ML[kind]:
            return []
        lobe = max(self.lobes, key=lambda name: int((mask & self.lobes[name]).sum())) if lobar else None
        return [Found(kind, lobe.split()[0] if lobe else side, lobe, volume, mask, count)]


def _effusions(reading: Reading) -> list[Found]:
    masks = {}
    for side in ("right", "left"):
        mask, gain = layer(reading.anatomy, reading.core, side, reading.dense, fluid=True)
        fluid = mask & reading.dense
        inner = eroded(fluid, CROSS)
        if gain < 25 or not inner.any():
            continue
        level = float(np.median(reading.mean[inner]))
        near = opened(reading.dense & reading.anatomy.side(side), CROSS)
        alike = (near & mask & reading.core).sum() / max(1, int(((near | mask) & reading.core).sum()))
        if level > 19.5 and (gain < 150 or alike < 0.55):  # too dense for water, unless a large layer is all there is
            continue
        other = opened(fluid & (reading.mean > level + 16), CUBE)  # denser tissue drowned in it
        masks[side] = _joined(fluid & ~other, near, level, reading.hu)
        reading.fluid |= masks[side]
    reading.taken |= reading.fluid
    return _paired(reading, "effusion", masks)


def _joined(fluid: np.ndarray, dense: np.ndarray, level: float, hu: np.ndarray) -> np.ndarray:
    """Fluid with the pieces that touch it and are no denser: the layer's edge is a plane, the real one bends."""
    labels, count = pieces(dense & ~fluid)
    touching = np.unique(labels[dilated(fluid, CROSS)])
    for k in touching[touching > 0]:
        piece = labels == k
        inner = eroded(piece, CROSS)
        if np.median(hu[inner if inner.any() else piece]) < level + 9:
            fluid = fluid | piece
    return fluid


def _pneumothoraces(reading: Reading) -> list[Found]:
    masks = {}
    for side in ("right", "left"):
        mask, gain = layer(reading.anatomy, reading.core, side, reading.hu < -935, fluid=False)
        if gain >= 9 and np.median(reading.hu[mask & (reading.hu < -935)]) < -973:  # holes of emphysema are denser
            air = mask & (reading.hu < -900)  # its edge is a plane, the real one bends: let pure air grow on
            pure = reading.anatomy.side(side) & ((reading.mean < -978) | air)
            masks[side] = dilated(grown(air, pure), CROSS)
            masks[side] &= reading.anatomy.side(side) & (reading.hu < -930) | air
            reading.taken |= masks[side]
    return _paired(reading, "pneumothorax", masks)


def _paired(reading: Reading, kind: str, masks: dict[str, np.ndarray]) -> list[Found]:
    """One finding of one side, or one bilateral finding."""
    masks = {side: mask for side, mask in masks.items() if mask.sum() * VOXEL_ML >= SMALLEST_ML[kind]}
    if not masks:
        return []
    side = "bilateral" if len(masks) == 2 else next(iter(masks))
    return reading.make(kind, np.logical_or.reduce(list(masks.values())), side)


def _hearts(reading: Reading) -> list[Found]:
    p = reading.anatomy.parameters
    heart = reading.anatomy.heart
    muscle = 1 - float((heart & reading.taken).sum()) / max(1, int(heart.sum()))  # without the fluid around it
    size = (p["heart_a"] * p["heart_b"] * p["heart_c"] * muscle) ** (1 / 3)
    return reading.make("cardiomegaly", heart & ~reading.taken, None) if size > HEART_MM else []


def _pericardial(reading: Reading) -> list[Found]:
    """Fluid around the heart: a connected sheet along the fitted surface that is darker than the heart's middle."""
    a, p = reading.anatomy, reading.anatomy.parameters
    hx, hz = a.x - p["heart_x"], a.z - p["heart_z"]
    hy = a.y - p["heart_y"] + 0.15 * hx
    radius = (p["heart_a"] + p["heart_b"] + p["heart_c"]) / 3
    out = np.sqrt((hx / p["heart_a"]) ** 2 + (hy / p["heart_b"]) ** 2 + ((hz + 0.35 * hx) / p["heart_c"]) ** 2)
    out = (out - 1) * radius  # mm outside the surface
    soft = eroded((reading.hu > -40) & (reading.hu < 250) & ~reading.taken, CROSS)
    inner = soft & (out < -18)
    if not inner.any():
        return []
    blood, noise = float(np.median(reading.hu[inner])), float(reading.hu[inner].std())
    smooth = local_mean(reading.hu, CROSS)
    dark = (smooth < blood - max(16.0, 0.75 * noise)) & (smooth > blood - 55)
    band = soft & (out > -12) & (out < 14) & (hz > -15) & (hx < 0)  # there mediastinum is next to it, not pleura
    labels, count = pieces(band & dark)
    if count == 0 or np.bincount(labels.ravel())[1:].max() < 42:
        return []
    shell = (out > -15) & (out < 20) & (reading.hu > -300) & (reading.hu < blood - 12) & ~reading.taken & (hz > -40)
    shell &= a.mediastinum | a.heart | a.lungs
    reading.taken |= shell
    return reading.make("pericardial_effusion", shell, None)


def _dense(reading: Reading) -> list[Found]:
    """Soft tissue where lung is expected: balls are nodules, slabs at the hilum collapse, the rest consolidation."""
    a = reading.anatomy
    inside = np.where(a.lungs & ~reading.metal & ~reading.taken, reading.hu, np.float32(-800))
    ball = local_mean(inside, BALL)
    solid = eroded(inside > -430, CROSS)
    sure = dilated(solid & (ball > -235), BALL) & (inside > -430)
    alone = standing_out(ball)
    faint = (alone > ALONE) & (ball > -330) & ~dilated(sure, CUBE)  # the smallest nodules, nothing else
    faint = dilated(faint, BALL) & (inside > -520)
    labels, count = pieces(sure | faint)
    found: list[Found] = []
    masks: dict[tuple[str, str], list[np.ndarray]] = {}
    for k in range(1, count + 1):
        mask = labels == k
        lobe = max(reading.lobes, key=lambda name: int((mask & reading.lobes[name]).sum()))
        kind = _kind(reading, mask, lobe, float(ball[mask].max()), float(alone[mask].max()))
        if kind is not None:
            masks.setdefault((kind, lobe), []).append(mask)
    for (kind, lobe), parts in masks.items():
        mask = np.logical_or.reduce(parts)
        reading.taken |= mask
        found += reading.make(kind, mask, lobe.split()[0], lobar=True, count=len(parts) if kind == "nodule" else 1)
    return found


def _kind(reading: Reading, mask: np.ndarray, lobe: str, peak: float, alone: float) -> str | None:
    """What a piece of dense tissue is; None for scraps at the wall, vessels in ground glass and ends of an effusion."""
    a, size, side = reading.anatomy, int(mask.sum()), lobe.split()[0]
    if size < 12 or (size < 40 and (mask & ~reading.core).sum() / size > 0.6):
        return None
    if size < 45:
        return "nodule" if alone > ALONE else None
    round_ = ballness(a, a.side(side), mask)
    slab = slabness(a, reading.lobes[lobe], mask, -1 if side == "right" else 1)
    if size < 330 and round_ > 0.815 and slab < 0.5:
        return "nodule"
    inner = eroded(mask, CROSS)
    level = float(np.percentile(reading.mean[inner if inner.any() else mask], 75))
    beside = (dilated(mask, CUBE, times=2) & reading.fluid).any()
    if peak < -60 or (beside and level < 15 and inner.any() and float(reading.hu[inner].std()) < 10.5):
        return None
    return "atelectasis" if slab - round_ + max((level - 33) / 90, -0.15) > -0.03 else "consolidation"


def _ground_glass(reading: Reading) -> list[Found]:
    """Hazy lung: every voxel and its neighbors are denser than lung, and it is as wide as no vessel is."""
    a = reading.anatomy
    busy = dilated(reading.taken | reading.metal, CROSS)
    core = reading.core & ~busy & eroded(reading.hu > -640, CROSS) & (reading.mean < -320)
    core &= grown(local_mean(core.astype(np.float32)) > 0.5, core)
    labels, count = pieces(core)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    core = (sizes >= 24)[labels]
    mask = dilated(core, CUBE) & (reading.hu > -660) & a.lungs & ~reading.taken
    halves = {side: mask & a.side(side) for side in ("right", "left")}
    halves = {side: half for side, half in halves.items() if half.sum() * VOXEL_ML >= SMALLEST_ML["ground_glass"]}
    if len(halves) == 2:
        return reading.make("ground_glass", mask, "bilateral")
    return [f for side, half in halves.items() for f in reading.make("ground_glass", half, side, lobar=True)]


def _fibrosis(reading: Reading) -> list[Found]:
    """A mesh under the pleura of the lower lungs: neighbors differ nearly everywhere, and the lung is denser."""
    a = reading.anatomy
    solid = opened(reading.dense, CUBE)
    busy = dilated(solid | reading.metal | reading.taken, CUBE)
    zone = reading.core & ~busy & (a.rim > 0.5) & (a.z < 5)
    rough = reading.spread > 75
    lung = a.parameters["parenchyma"]
    parts = [part for side in ("right", "left") if (part := zone & a.side(side)).sum() > 50]
    if not any(rough[part].mean() > 0.5 and np.median(reading.mean[part]) > lung + 100 for part in parts):
        return []
    mask = a.lungs & ~busy & rough & (a.rim > 0.35) & (a.z < 25)
    reading.taken |= mask
    return reading.make("fibrosis", mask, "bilateral")


def _emphysema(reading: Reading) -> list[Found]:
    """Holes darker than the lung around them, on both sides; wider than noise, so that their neighborhood is dark."""
    a, p = reading.anatomy, reading.anatomy.parameters
    expected = np.float32(p["parenchyma"]) + 45 * np.clip(a.y / np.float32(p["depth"]), -1, 1)
    free = reading.core & ~reading.taken
    sure, hole = (free & (hu < -925) & (hu - expected < -45) for hu in (reading.mean, reading.hu))
    shares = [(sure & a.side(side)).sum() / max(1, int((free & a.side(side)).sum())) for side in ("right", "left")]
    if float(np.mean(shares)) < 0.02 or min(shares) < 0.01:
        return []
    return reading.make("emphysema", dilated(hole, CROSS) & (reading.hu < -915) & free, "bilateral")
