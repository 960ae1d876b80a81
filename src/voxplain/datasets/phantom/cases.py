"""Cases: a seed in, a phantom chest with findings and exact masks out; splits that cannot overlap."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float

from voxplain.datasets.phantom.anatomy import LOBES, Chest, build, finish
from voxplain.datasets.phantom.findings import KINDS, LOBAR, SIDED, Finding, Plan, distract, paint
from voxplain.geometry import Geometry, regular

SHAPE, SPACING = (64, 64, 64), (5.0, 5.0, 5.0)
RADIOGRAPH = (96, 96)
WATER_PER_MM = 0.02  # attenuation of water around 60 keV
BLOCK = 1_000_000_000
SPLITS = {"train": 0, "dev": 1, "test": 2, "shift": 3}  # split i owns the seeds i * BLOCK ... (i + 1) * BLOCK - 1
HELD_OUT_LOBES = (("nodule", "right middle lobe"), ("ground_glass", "left lower lobe"))
HELD_OUT_SIDES = (("atelectasis", "left"),)
COUNTS = (0.15, 0.37, 0.30, 0.18)  # how often a case has 0, 1, 2, 3 findings
WEIGHTS = np.array([1.25, 1.25, 1.6, 1.25, 1.25, 1.1, 0.7, 0.7, 0.7, 0.7])


@dataclass(frozen=True, eq=False)
class Case:
    """One phantom: image in HU (radiographs: 0 to 1), findings with exact masks, organs, an unmentioned distractor."""

    seed: int
    split: str
    image: Float[np.ndarray, "1 *spatial"]
    geometry: Geometry
    findings: tuple[Finding, ...]
    organs: Mapping[str, Bool[np.ndarray, "*spatial"]]
    distractor: tuple[str, Bool[np.ndarray, "*spatial"]] | None


def seed_of(index: int, split: str) -> int:
    """The global seed of the index-th case of a split; the blocks of two splits never overlap."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= index < BLOCK:
        raise ValueError(f"case {index}: expected 0 to {BLOCK - 1}")
    return SPLITS[split] * BLOCK + index


def held_out(plan: Plan) -> bool:
    """True for the (finding, lobe) and (finding, side) pairs that training never shows."""
    return (plan.kind, plan.lobe) in HELD_OUT_LOBES or (plan.kind, plan.side) in HELD_OUT_SIDES


def plan_case(rng: np.random.Generator, *, allow_held_out: bool = True) -> tuple[Plan, ...]:
    """0 to 3 findings of different kinds."""
    count = int(rng.choice(len(COUNTS), p=COUNTS))
    kinds = rng.choice(KINDS, size=count, replace=False, p=WEIGHTS / WEIGHTS.sum())
    return tuple(plan_finding(rng, str(kind), allow_held_out=allow_held_out) for kind in kinds)


def plan_siblings(rng: np.random.Generator) -> tuple[tuple[Plan, ...], ...]:
    """Plans of four cases of one chest: 0 to 2 findings; one more; that one elsewhere; another one."""
    first, other, *kinds = map(str, rng.choice(KINDS, size=4, replace=False, p=WEIGHTS / WEIGHTS.sum()))
    if first == "cardiomegaly":  # it has one place only
        first, other = other, first
    kept = tuple(plan_finding(rng, kind, allow_held_out=False) for kind in kinds[: rng.choice(3, p=(0.5, 0.3, 0.2))])
    here, there, instead = (plan_finding(rng, kind, allow_held_out=False) for kind in (first, first, other))
    while here == there:
        there = plan_finding(rng, first, allow_held_out=False)
    return kept, (*kept, here), (*kept, there), (*kept, instead)


def plan_finding(rng: np.random.Generator, kind: str, *, allow_held_out: bool = True) -> Plan:
    """Side, lobe, size and count of one finding."""
    plan = _plan(rng, kind)
    while not allow_held_out and held_out(plan):
        plan = _plan(rng, kind)
    return plan


def _plan(rng: np.random.Generator, kind: str) -> Plan:
    severity = str(rng.choice(["small", "moderate", "large"]))
    if kind == "cardiomegaly":
        return Plan(kind)  # the size of a large heart is drawn with the chest
    if kind not in SIDED:
        return Plan(kind, "bilateral" if kind in ("emphysema", "fibrosis") else None, None, severity)
    if kind in ("effusion", "ground_glass") and rng.random() < 0.18:
        return Plan(kind, "bilateral", None, severity)
    if kind not in LOBAR:
        return Plan(kind, str(rng.choice(["left", "right"])), None, severity)
    lobe = str(rng.choice(LOBES, p=(0.2, 0.15, 0.2, 0.225, 0.225)))
    if kind != "nodule":
        return Plan(kind, lobe.split()[0], lobe, severity)
    severity = "large" if rng.random() < 0.2 else "small"
    count = 2 if severity == "small" and rng.random() < 0.25 else 1
    return Plan(kind, lobe.split()[0], lobe, severity, count)


def draw(
    index: int,
    split: str = "train",
    plans: Sequence[Plan] | None = None,
    *,
    shape: tuple[int, int, int] = SHAPE,
    spacing: tuple[float, float, float] = SPACING,
    position: float | None = None,
    alike: bool = False,
) -> Case:
    """The index-th case of a split: the same arguments give the same case, bit by bit.

    `plans` fixes the findings instead of drawing them. The split "shift" has anatomy and noise out of the range of
    the others. Gravity varies from case to case, so fluid and air do not always lie in the same place; `position` fixes
    it (degrees; 0 supine, 90 upright, 180 prone). Masks are exact: what was painted, before partial volume and noise.
    With `alike`, cases of one index that differ in one plan differ in that finding and what it does to the lung: each
    thing that is drawn has random numbers of its own, and the distractor comes first.
    """
    seed = seed_of(index, split)
    rng = np.random.default_rng(seed)
    plans = plan_case(rng, allow_held_out=split != "train") if plans is None else tuple(plans)
    chest = Chest.draw(rng, 1.0 if split != "shift" else 1.8)
    large = [p for p in plans if p.kind == "cardiomegaly"]
    heart = float(rng.uniform(1.26, 1.5)) if large else float(rng.uniform(0.92, 1.04))
    raised = [0.0, 0.0]

    def numbers(thing: str) -> np.random.Generator:
        return np.random.default_rng((seed, *thing.encode())) if alike else rng

    for plan in plans:
        if plan.kind == "atelectasis":
            raised[plan.side == "left"] = float(numbers("raised").uniform(8, 20))
    body = build(rng, chest, shape, spacing, heart_scale=heart, raised=(raised[0], raised[1]))
    posture = numbers("posture")
    turn = posture.uniform(0, np.pi)
    if position is not None:
        turn = np.radians(position)
    up = np.array([posture.normal(0, 0.4), -np.cos(turn), np.sin(turn)])
    order = sorted(plans, key=lambda p: p.kind in ("consolidation", "ground_glass", "nodule", "emphysema", "fibrosis"))
    chance = numbers("distractor")
    distractor = distract(chance, body) if alike and chance.random() < 0.5 else None
    painted = {plan: paint(numbers(plan.kind), body, plan, up) for plan in order}
    findings = tuple(f for plan in plans if (f := painted[plan]) is not None)
    if not alike and rng.random() < 0.5:
        distractor = distract(rng, body)
    findings = tuple(_visible(f, distractor) for f in findings)
    image = finish(numbers("noise"), body)[None]
    return Case(seed, split, image, regular(shape, spacing), findings, body.organs, distractor)


def _visible(finding: Finding, distractor: tuple[str, np.ndarray] | None) -> Finding:
    return finding if distractor is None else replace(finding, mask=finding.mask & ~distractor[1])


def radiograph(index: int, split: str = "train", plans: Sequence[Plan] | None = None, *, alike: bool = False) -> Case:
    """A frontal radiograph of a case: attenuation summed along the rows, superior on top; masks are projected.

    Pixel values run from 0 (no tissue) to 1. A projected mask is where the finding is at least 5 mm thick.
    """
    rows, columns = RADIOGRAPH
    extent = [n * s for n, s in zip(SHAPE, SPACING, strict=True)]
    spacing = (extent[0] / rows, SPACING[1], extent[2] / columns)
    case = draw(index, split, plans, shape=(rows, SHAPE[1], columns), spacing=spacing, alike=alike)
    path = (np.clip(case.image[0], -1000, None) / 1000 + 1).sum(1) * spacing[1] * WATER_PER_MM

    def project(mask: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.any(mask, axis=1)[::-1])

    image = np.clip(path[::-1] / 6.0, 0, 1).astype(np.float32)[None]
    return replace(
        case,
        image=np.ascontiguousarray(image),
        geometry=regular(RADIOGRAPH, (spacing[0], spacing[2])),
        findings=tuple(replace(f, mask=project(f.mask)) for f in case.findings),
        organs={name: project(mask) for name, mask in case.organs.items()},
        distractor=None if case.distractor is None else (case.distractor[0], project(case.distractor[1])),
    )
