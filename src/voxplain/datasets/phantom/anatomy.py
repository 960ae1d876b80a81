"""A procedural chest: coordinates, organs and their Hounsfield units, drawn from a random generator.

Everything is written in a canonical frame (mm; x to the patient's left, y posterior, z superior; origin in the middle
of the chest) that a random pose carries into the volume, so that no shape below ever speaks of voxels.
"""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

LOBES = ("right upper lobe", "right middle lobe", "right lower lobe", "left upper lobe", "left lower lobe")
AIR, FAT, MUSCLE, BLOOD, LIVER = -1000.0, -100.0, 50.0, 42.0, 60.0


@dataclass(frozen=True)
class Chest:
    """Sizes of one chest in mm, HU where said; `Chest.draw` picks them, wider ones with `stretch` above 1."""

    scale: float
    shift: tuple[float, float, float]
    angles: tuple[float, float, float]
    width: float
    depth: float
    wall: float
    fat: float
    mediastinum: float
    apex: float
    domes: tuple[float, float]  # right, left: height of the top of each diaphragm dome
    heart: tuple[float, float, float]
    heart_axes: tuple[float, float, float]
    fissure: tuple[float, float]  # height of the oblique fissure at y = 0: right, left
    fissure_slope: float
    horizontal: float
    rib_pitch: float
    rib_phase: float
    parenchyma: float  # HU
    noise: float  # HU, standard deviation

    @staticmethod
    def draw(rng: np.random.Generator, stretch: float = 1.0) -> "Chest":
        def around(middle: float, half: float) -> float:
            return float(middle + stretch * half * rng.uniform(-1, 1))

        return Chest(
            scale=around(0.95, 0.06),
            shift=(around(0, 8), around(0, 8), around(0, 10)),
            angles=(around(0, 4), around(0, 3), around(0, 5)),
            width=around(116, 8),
            depth=around(82, 7),
            wall=around(14, 3),
            fat=around(12, 7),
            mediastinum=around(24, 4),
            apex=around(120, 8),
            domes=(around(-58, 10), around(-66, 10)),
            heart=(around(20, 7), around(-22, 6), around(-32, 6)),
            heart_axes=(around(49, 4), around(40, 4), around(42, 4)),
            fissure=(around(2, 10), around(8, 10)),
            fissure_slope=around(0.95, 0.2),
            horizontal=around(10, 10),
            rib_pitch=around(27, 3),
            rib_phase=float(rng.uniform(0, 2 * np.pi)),
            parenchyma=around(-840, 35),
            noise=around(9, 3) if stretch == 1 else around(24, 3),
        )


@dataclass(frozen=True)
class Frame:
    """Canonical coordinates of every voxel, and the way back from millimeters to voxels."""

    x: Float[np.ndarray, "slices rows columns"]
    y: Float[np.ndarray, "slices rows columns"]
    z: Float[np.ndarray, "slices rows columns"]
    to_voxel: Float[np.ndarray, "3 4"]
    spacing: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def box(self, points: Float[np.ndarray, "points 3"], margin: float) -> tuple[slice, ...]:
        """The block of voxels around some canonical points (x, y, z), `margin` mm wider on every side."""
        voxels = points @ self.to_voxel[:, :3].T + self.to_voxel[:, 3]
        pad = margin * 1.15 / np.asarray(self.spacing) + 1
        low = np.maximum(np.floor(voxels.min(0) - pad).astype(int), 0)
        high = np.minimum(np.ceil(voxels.max(0) + pad).astype(int) + 1, self.shape)
        return tuple(slice(int(a), int(max(a, b))) for a, b in zip(low, high, strict=True))

    def distance(self, box: tuple[slice, ...], a: np.ndarray, b: np.ndarray) -> Float[np.ndarray, "i j k"]:
        """Distance in mm of every voxel of a block from the segment a-b."""
        along = b - a
        px, py, pz = self.x[box] - a[0], self.y[box] - a[1], self.z[box] - a[2]
        t = np.clip((px * along[0] + py * along[1] + pz * along[2]) / max(float(along @ along), 1e-6), 0, 1)
        return np.sqrt((px - t * along[0]) ** 2 + (py - t * along[1]) ** 2 + (pz - t * along[2]) ** 2)


def frame(chest: Chest, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Frame:
    """Lay the canonical frame of a chest over a volume; the pose is a shift, three small turns and a size."""
    turn = np.eye(3)
    for axis, degrees in enumerate(chest.angles):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        one = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        one[i, i], one[i, j], one[j, i], one[j, j] = c, -s, s, c
        turn = turn @ one
    matrix = turn.T / chest.scale  # world (x, y, z) to canonical (x, y, z)
    axes = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    world = (axes[2][None, None, :], axes[1][None, :, None], axes[0][:, None, None])
    world = [w - o for w, o in zip(world, chest.shift, strict=True)]
    x, y, z = (np.float32(a) * world[0] + np.float32(b) * world[1] + np.float32(c) * world[2] for a, b, c in matrix)
    back = turn * chest.scale  # canonical to world
    steps = np.array(spacing)[::-1]
    to_xyz = np.concatenate(
        [back / steps[:, None], ((np.array(chest.shift) / steps) + (np.array(shape)[::-1] - 1) / 2)[:, None]], 1
    )
    return Frame(x, y, z, to_xyz[::-1].copy(), spacing)


@dataclass
class Body:
    """A chest under construction: HU volume, organ masks and the boundary fields that findings need."""

    frame: Frame
    chest: Chest
    hu: Float[np.ndarray, "slices rows columns"]
    organs: dict[str, Bool[np.ndarray, "slices rows columns"]]
    rim: Float[np.ndarray, "slices rows columns"]  # 0 in the middle of the cavity, 1 at its wall
    occupied: Bool[np.ndarray, "slices rows columns"] = field(init=False)

    def __post_init__(self) -> None:
        self.occupied = np.zeros(self.hu.shape, bool)


def waves(rng: np.random.Generator, at: Frame, wavelength: float, count: int = 5) -> Float[np.ndarray, "i j k"]:
    """A smooth random field of about unit variance: a few plane waves of random direction."""
    total = np.zeros(at.shape, np.float32)
    for _ in range(count):
        k = rng.normal(size=3)
        k *= 2 * np.pi / (wavelength * rng.uniform(0.7, 1.4)) / np.linalg.norm(k)
        phase = np.float32(rng.uniform(0, 2 * np.pi))
        total += np.cos(np.float32(k[0]) * at.x + np.float32(k[1]) * at.y + np.float32(k[2]) * at.z + phase)
    return total * np.float32(np.sqrt(2 / count))


def build(rng: np.random.Generator, chest: Chest, shape: tuple[int, int, int], spacing: tuple[float, float, float],
          *, heart_scale: float = 1.0, raised: tuple[float, float] = (0.0, 0.0)) -> Body:  # fmt: skip
    """Draw the healthy anatomy; `heart_scale` enlarges the heart, `raised` lifts the two domes by so many mm."""
    at = frame(chest, shape, spacing)
    x, y, z = at.x, at.y, at.z
    narrowing = np.sqrt(np.clip(1 - (np.maximum(z - 15, 0) / (chest.apex - 15)) ** 2, 0.0, 1))
    taper = np.maximum(narrowing, 0.15)
    u, v = np.abs(x) / chest.width, np.abs(y) / chest.depth
    flat = u**2 * np.sqrt(u) + v**2 * np.sqrt(v)  # the cross-section is a superellipse of exponent 2.5
    rim = flat / (taper**2 * np.sqrt(taper))
    shoulder = np.where(z > 105, 1 + ((z - 105) / 70) ** 2, 1).astype(np.float32)
    outer = 1 + (chest.wall + chest.fat) / 90
    body = flat * shoulder < outer**2.5
    muscle = flat * shoulder < (1 + chest.wall / 90) ** 2.5

    right, left = x < 0, x >= 0
    hu = np.full(shape, AIR, np.float32)
    hu[body] = FAT
    hu[muscle] = MUSCLE
    domes = [chest.domes[0] + raised[0], chest.domes[1] + raised[1]]
    top = np.where(right, np.float32(domes[0]), np.float32(domes[1]))
    middle = np.where(right, np.float32(-58), np.float32(60))
    dome = top - 62 * (((x - middle) / 62) ** 2 + ((y + 8) / 92) ** 2)
    cavity = (rim < 0.86) & (z > dome) & (z > -140)

    heart = _ellipsoid(at, chest.heart, tuple(a * heart_scale for a in chest.heart_axes))
    heart &= z > np.maximum(dome - 12, min(domes) - 6)
    heart &= rim < 0.84
    spine_y = 0.80 * chest.depth
    column = (x**2 + (y - spine_y) ** 2) < 19**2
    spine = (x**2 + (y - spine_y) ** 2 < 17**2) | ((np.abs(x) < 6) & (y > spine_y) & (y < chest.depth + 16))
    width = chest.mediastinum * (0.75 + 0.35 * np.clip((y + 60) / 100, 0, 1)) + 8 * np.clip(-z / 60, 0, 1)
    between = np.abs(x - 3) < width
    lungs = cavity & ~between & ~heart & ~column
    below = (rim < 0.9) & (z <= dome)
    liver = below & (x < 25 - 0.25 * (z + 80)) & (z < dome - 3)
    hu[(rim < 0.9) & ~lungs] = 35
    hu[between & (rim < 0.84) & (y < -45)] = -70  # anterior mediastinal fat
    hu[below] = 45
    hu[liver] = LIVER
    hu[heart] = BLOOD

    aorta = _tube(at, np.array([[17, 44, -150], [17, 44, 48], [13, 22, 66], [-2, -4, 60], [-6, -12, 6]], float), 12.0)
    aorta &= (rim < 0.9) & ~(z <= -150)
    hu[aorta] = BLOOD + 8
    lungs &= ~aorta
    hu[lungs] = 0  # set below, parenchyma
    carina = 42.0
    airway = _tube(at, np.array([[0, 8, 165], [0, 16, carina]], float), 8.5)
    for side in (-1, 1):
        airway |= _tube(at, np.array([[0, 16, carina], [side * 36, 18, carina - 26]], float), 6.0)
    lungs &= ~airway

    dependent = 45 * np.clip(y / chest.depth, -1, 1)
    hu[lungs] = (chest.parenchyma + dependent + 22 * waves(rng, at, 60))[lungs]
    lobes = _lobes(chest, x, y, z, lungs)
    vessels = _vessels(rng, at, lungs, hu)
    phase = 2 * np.pi * (z - 0.45 * y) / chest.rib_pitch + chest.rib_phase
    ribs = (rim > 0.90) & (rim < 1.16) & (np.cos(phase) > 0.35) & (np.abs(x) > 16) & (z > -125) & muscle
    ribs &= narrowing > 0.25
    hu[ribs] = 320
    discs = np.cos(2 * np.pi * z / 30 + chest.rib_phase) < -0.72
    hu[spine & body] = 210
    hu[spine & discs & (y < spine_y + 17)] = 75
    hu[(np.abs(x) < 5) & (np.abs(y - spine_y - 22) < 6)] = 30  # spinal canal
    sternum = (np.abs(x) < 13) & (np.abs(y + 0.93 * chest.depth + 4) < 6) & (z > -25) & (z < 90)
    hu[sternum] = 190
    hu[airway & body] = AIR
    organs = {
        "body": body, "lungs": lungs, "right lung": lungs & right, "left lung": lungs & left, "heart": heart,
        "aorta": aorta & ~heart, "trachea": airway & body, "liver": liver, "spine": spine & body, "ribs": ribs,
        "vessels": vessels, "mediastinum": (rim < 0.86) & (z > dome) & ~lungs & ~column, **lobes,
    }  # fmt: skip
    return Body(at, chest, hu, organs, rim)


def finish(rng: np.random.Generator, body: Body) -> Float[np.ndarray, "slices rows columns"]:
    """Partial volume, noise and clipping: the scanner's part."""
    hu = ndimage.gaussian_filter(body.hu, 0.45, mode="nearest", truncate=3)
    hu += rng.standard_normal(hu.shape, dtype=np.float32) * np.float32(body.chest.noise)
    return np.clip(hu, -1024, 1500)


def _ellipsoid(at: Frame, center: tuple[float, ...], axes: tuple[float, ...]) -> Bool[np.ndarray, "i j k"]:
    turned = 0.35 * (at.x - center[0])  # the long axis points down to the left
    return (
        ((at.x - center[0]) / axes[0]) ** 2
        + ((at.y - center[1] + 0.15 * (at.x - center[0])) / axes[1]) ** 2
        + ((at.z - center[2] + turned) / axes[2]) ** 2
    ) < 1


def _tube(at: Frame, points: Float[np.ndarray, "points 3"], radius: float) -> Bool[np.ndarray, "i j k"]:
    mask = np.zeros(at.shape, bool)
    for a, b in zip(points[:-1], points[1:], strict=True):
        box = at.box(np.stack([a, b]), radius + 5)
        mask[box] |= at.distance(box, a, b) < radius
    return mask


def _lobes(chest: Chest, x, y, z, lungs) -> dict[str, Bool[np.ndarray, "i j k"]]:
    right = x < 0
    oblique = np.where(right, np.float32(chest.fissure[0]), np.float32(chest.fissure[1])) + chest.fissure_slope * y
    lower = z < oblique
    middle = right & ~lower & (z < chest.horizontal)
    return {
        "right upper lobe": lungs & right & ~lower & ~middle,
        "right middle lobe": lungs & middle,
        "right lower lobe": lungs & right & lower,
        "left upper lobe": lungs & ~right & ~lower,
        "left lower lobe": lungs & ~right & lower,
    }


def _vessels(rng: np.random.Generator, at: Frame, lungs, hu) -> Bool[np.ndarray, "i j k"]:
    """A branching tree from each hilum, painted with partial volume; the mask is where it fills half a voxel."""
    mask = np.zeros(at.shape, bool)
    size = float(np.mean(at.spacing))
    for side in (-1.0, 1.0):
        trunks = np.array([[0.55, -0.35, 0.9], [0.9, -0.5, -0.1], [0.7, 0.55, -0.55], [0.5, 0.2, -0.95]])
        stack = [(np.array([side * 34.0, 14, 14]), trunk * [side, 1, 1], 5.0, 0) for trunk in trunks]
        while stack:
            start, heading, radius, level = stack.pop()
            heading = heading / np.linalg.norm(heading)
            stop = start + heading * rng.uniform(22, 34) * 0.86**level
            box = at.box(np.stack([start, stop]), radius + size)
            if mask[box].size == 0:
                continue
            cover = np.clip((radius + size / 2 - at.distance(box, start, stop)) / size, 0, 1) * lungs[box]
            hu[box] += cover * (BLOOD - hu[box])
            mask[box] |= cover > 0.5
            if level < 3:
                for _ in range(2):
                    stack.append((stop, heading + 0.62 * rng.normal(size=3), radius * 0.72, level + 1))
    return mask
