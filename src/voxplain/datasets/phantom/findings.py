"""Findings of a phantom chest: each one paints Hounsfield units into a `Body` and returns its exact mask."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from voxplain.datasets.phantom.anatomy import LOBES, Body, waves

CORE = ("consolidation", "ground_glass", "nodule", "effusion", "pneumothorax", "cardiomegaly")
KINDS = (*CORE, "atelectasis", "emphysema", "pericardial_effusion", "fibrosis")
LOBAR = ("consolidation", "ground_glass", "nodule", "atelectasis")
SIDED = (*LOBAR, "effusion", "pneumothorax")
SMALLEST = 12  # voxels of 5 mm that a finding must fill, otherwise it is not drawn
NODULE_MASS_MM = 30.0  # Fleischner Society glossary: above 3 cm it is a mass


@dataclass(frozen=True, eq=False)
class Finding:
    """One finding of a case.

    `side` is "left", "right", "bilateral" or None, `lobe` one of `LOBES` or None, `severity` "small", "moderate" or
    "large" (None where size is given in mm), `count` how many of them the mask holds.
    """

    kind: str
    side: str | None
    lobe: str | None
    severity: str | None
    count: int
    mask: Bool[np.ndarray, "*spatial"]
    size_mm: float | None = None


@dataclass(frozen=True)
class Plan:
    """What to draw, before it is drawn."""

    kind: str
    side: str | None = None
    lobe: str | None = None
    severity: str | None = None
    count: int = 1


def region(body: Body, side: str | None, lobe: str | None) -> Bool[np.ndarray, "i j k"]:
    """The lung tissue in which a finding of this side and lobe may lie."""
    if lobe is not None:
        return body.organs[lobe]
    return body.organs["lungs" if side in (None, "bilateral") else f"{side} lung"]


def paint(rng: np.random.Generator, body: Body, plan: Plan, up: Float[np.ndarray, "3"]) -> Finding | None:
    """Draw one planned finding; None where the place is already taken. `up` points away from gravity."""
    return PAINTERS[plan.kind](rng, body, plan, up)


def _blob(rng: np.random.Generator, body: Body, inside, radius: float, ragged: float) -> Bool[np.ndarray, "i j k"]:
    """A ragged ball of the given radius (mm) around a random voxel of `inside`, cut to it."""
    cells = np.flatnonzero(inside & ~body.occupied)
    if cells.size == 0:
        return np.zeros(body.hu.shape, bool)
    at = body.frame
    c = np.unravel_index(int(rng.choice(cells)), body.hu.shape)
    stretch = rng.uniform(0.8, 1.25, size=3)
    d2 = sum(((axis - axis[c]) / s) ** 2 for axis, s in zip((at.x, at.y, at.z), stretch, strict=True))
    edge = radius * (1 + ragged * waves(rng, at, 1.3 * radius, 3)) if ragged else radius
    return (d2 < np.square(edge)) & inside & ~body.occupied


def _grown(mask: Bool[np.ndarray, "i j k"], voxels: int) -> Bool[np.ndarray, "i j k"]:
    return np.asarray(ndimage.binary_dilation(mask, iterations=voxels), bool)


def _keep(body: Body, plan: Plan, mask, size_mm: float | None = None, *, solid: bool = True) -> Finding | None:
    volume = float(np.prod(body.frame.spacing)) / 125
    if mask.sum() * volume < (4 if plan.kind == "nodule" else SMALLEST):
        return None
    if solid:
        body.occupied |= mask
    return Finding(plan.kind, plan.side, plan.lobe, plan.severity, plan.count, mask, size_mm)


def _radius(rng: np.random.Generator, severity: str | None) -> float:
    low, high = {"small": (19, 25), "moderate": (26, 34), "large": (36, 46)}[severity or "moderate"]
    return float(rng.uniform(low, high))


def _opacity(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    """Consolidation (soft tissue with faint air bronchograms) or ground glass (vessels stay visible)."""
    sides = ("left", "right") if plan.side == "bilateral" else (plan.side,)
    mask = np.zeros(body.hu.shape, bool)
    for side in sides:
        mask |= _blob(rng, body, region(body, side, plan.lobe), _radius(rng, plan.severity), 0.18)
    texture = waves(rng, body.frame, 26)
    if plan.kind == "consolidation":
        body.hu[mask] = (rng.uniform(15, 45) + 14 * texture)[mask]
    else:
        lift = rng.uniform(0.36, 0.5)
        body.hu[mask] += lift * (40 - body.hu[mask]) + 25 * texture[mask]
    return _keep(body, plan, mask)


def _nodule(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    mask = np.zeros(body.hu.shape, bool)
    large = plan.severity == "large"
    diameter = float(rng.uniform(31, 40) if large else rng.uniform(15, 28))
    at = body.frame
    for _ in range(plan.count):
        tissue = region(body, plan.side, plan.lobe)
        near = _grown(mask, 4)
        deep = ndimage.binary_erosion(tissue) & ~body.occupied & ~near
        cells = np.flatnonzero(deep)
        if cells.size == 0:
            return None
        c = np.unravel_index(int(rng.choice(cells)), body.hu.shape)
        center = np.array([at.x[c], at.y[c], at.z[c]])
        box = at.box(center[None], diameter / 2 + 6)
        d = at.distance(box, center, center + [0.01, 0, 0])
        size = float(np.mean(at.spacing))
        inside = region(body, plan.side, None)[box]
        cover = np.clip((diameter / 2 + size / 2 - d) / size, 0, 1) * inside
        body.hu[box] += cover * (rng.uniform(20, 60) - body.hu[box])
        mask[box] |= (cover > 0.5) & ~body.occupied[box]
    return _keep(body, plan, mask, diameter)


def _pleural(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    """Fluid runs down, air rises: the lowest (or highest) part of the pleural space, with a meniscus."""
    fluid = plan.kind == "effusion"
    low, high = {"small": (0.07, 0.13), "moderate": (0.15, 0.25), "large": (0.28, 0.45)}[plan.severity or "moderate"]
    at = body.frame
    mask = np.zeros(body.hu.shape, bool)
    for side in ("left", "right") if plan.side == "bilateral" else (plan.side,):
        lung = body.organs[f"{side} lung"] & ~body.occupied
        if lung.sum() < 200:
            continue
        direction = np.asarray(up) * (-1 if fluid else 1)
        height = (direction[0] * at.x + direction[1] * at.y + direction[2] * at.z)[lung]
        height += (30 if fluid else 22) * np.square(np.minimum(body.rim[lung], 1))  # a meniscus along the wall
        part = np.zeros(body.hu.shape, bool)
        part[lung] = height >= np.quantile(height, 1 - rng.uniform(low, high))
        mask |= part
        if not fluid:  # what is left of the lung is denser
            rest = lung & ~part
            body.hu[rest] += 60
    body.hu[mask] = (rng.uniform(2, 18) + 4 * waves(rng, at, 40))[mask] if fluid else -1000
    return _keep(body, plan, mask)


def _cardiomegaly(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    return _keep(body, plan, body.organs["heart"].copy(), solid=False)  # the heart was drawn large: see cases.draw


def _atelectasis(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    """The part of a lobe nearest the hilum folds up; the dome of that side was raised by cases.draw."""
    lobe = region(body, plan.side, plan.lobe) & ~body.occupied
    if lobe.sum() < 100:
        return None
    at = body.frame
    side = 1 if plan.side == "left" else -1
    tilt = rng.normal(0, 0.5, size=2)
    near = np.abs(at.x - side * 30) + tilt[0] * at.y + tilt[1] * at.z
    share = {"small": 0.2, "moderate": 0.32, "large": 0.45}[plan.severity or "moderate"]
    mask = lobe.copy()
    mask[lobe] = near[lobe] <= np.quantile(near[lobe], share)
    body.hu[mask] = (rng.uniform(35, 65) + 8 * waves(rng, at, 30))[mask]
    return _keep(body, plan, mask)


def _emphysema(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    """Low-attenuation holes, thickest towards the apex."""
    lungs = region(body, plan.side, plan.lobe) & ~body.occupied
    holes = waves(rng, body.frame, 34, 7) + 0.012 * (body.frame.z - 25)
    limit = {"small": 1.0, "moderate": 0.65, "large": 0.3}[plan.severity or "moderate"]
    mask = lungs & (holes > limit) & ~body.organs["vessels"]
    body.hu[mask] = -965
    return _keep(body, plan, mask, solid=False)


def _pericardial(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    heart = body.organs["heart"]
    grown = {"small": 1, "moderate": 2, "large": 3}[plan.severity or "moderate"]
    free = (body.organs["lungs"] | body.organs["mediastinum"]) & ~body.organs["trachea"] & ~body.organs["aorta"]
    mask = _grown(heart, grown) & free & ~heart & ~body.occupied
    body.hu[mask] = rng.uniform(-2, 12)
    return _keep(body, plan, mask)


def _fibrosis(rng: np.random.Generator, body: Body, plan: Plan, up) -> Finding | None:
    """Reticulation: a mesh of bright lines under the pleura, thickest at the bases."""
    tissue = region(body, plan.side, plan.lobe) & ~body.occupied
    depth = {"small": 0.55, "moderate": 0.45, "large": 0.35}[plan.severity or "moderate"]
    mask = tissue & (body.rim > depth) & (body.frame.z < rng.uniform(-10, 25))
    mesh = np.abs(waves(rng, body.frame, 22, 6)) < 0.45
    body.hu[mask & mesh] = -260
    body.hu[mask & ~mesh] += 130
    return _keep(body, plan, mask)


PAINTERS: dict[str, Callable[[np.random.Generator, Body, Plan, np.ndarray], Finding | None]] = {
    "consolidation": _opacity,
    "ground_glass": _opacity,
    "nodule": _nodule,
    "effusion": _pleural,
    "pneumothorax": _pleural,
    "cardiomegaly": _cardiomegaly,
    "atelectasis": _atelectasis,
    "emphysema": _emphysema,
    "pericardial_effusion": _pericardial,
    "fibrosis": _fibrosis,
}


def distract(rng: np.random.Generator, body: Body) -> tuple[str, Bool[np.ndarray, "i j k"]]:
    """A bright or dark thing that no report mentions: lead, surgical clip, granuloma or bulla."""
    name = str(rng.choice(["lead", "clip", "granuloma", "bulla"]))
    at = body.frame
    free = body.organs["lungs"] & ~body.occupied
    where = {"lead": body.organs["mediastinum"], "clip": body.organs["mediastinum"]}.get(name, free)
    cells = np.flatnonzero(where if where.any() else body.organs["body"])
    c = np.unravel_index(int(rng.choice(cells)), body.hu.shape)
    start = np.array([at.x[c], at.y[c], at.z[c]])
    stop = start + (rng.normal(size=3) * [20, 10, 40] if name == "lead" else [0.01, 0, 0])
    radius = {"lead": 3.0, "clip": 4.0, "granuloma": 5.0, "bulla": float(rng.uniform(9, 15))}[name]
    box = at.box(np.stack([start, stop]), radius + 5)
    mask = np.zeros(body.hu.shape, bool)
    mask[box] = at.distance(box, start, stop) < radius
    mask[c] = True
    mask &= body.organs["body"] & ~body.occupied
    body.hu[mask] = {"lead": 1200.0, "clip": 1400.0, "granuloma": 700.0, "bulla": -995.0}[name]
    return name, mask


__all__ = ["CORE", "KINDS", "LOBAR", "LOBES", "SIDED", "Finding", "Plan", "distract", "paint", "region"]
