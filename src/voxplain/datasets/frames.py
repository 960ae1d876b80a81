"""From the image as it is stored to the image as it is scored: one recorded way for image, boxes and masks.

A step changes where the cells of an image lie, and nothing else: it takes a geometry and gives another one in the same
world. So a frame is two geometries and the steps between them, in two and three axes alike, and a heatmap in the frame
comes back to the stored image by `heatmap.resize(frame.source)`.
"""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from voxplain.datasets.base import Box
from voxplain.geometry import Geometry, regular
from voxplain.resampling import resample_to

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """What is done to an image, on the way to the frame that it is scored in."""

    @abstractmethod
    def on(self, geometry: Geometry) -> Geometry:
        """Where the cells lie afterwards."""


@dataclass(frozen=True, slots=True)
class Orient(Step):
    """Turn and flip the axes, so that columns run to the patient's left, rows to posterior, slices to superior.

    Pictures are stored that way; volumes often are not.
    """

    def on(self, geometry: Geometry) -> Geometry:
        ndim, direction = geometry.ndim, geometry.affine[:-1, :-1]
        order = _order(np.abs(direction[::-1]))  # rows: wanted axes, slowest first
        turned = _turned(geometry, order)
        along = np.diag(turned.affine[ndim - 1 :: -1, :-1])
        return _flipped(turned, [axis for axis in range(ndim) if along[axis] < 0])


@dataclass(frozen=True, slots=True)
class Resize(Step):
    """To this shape, whatever becomes of the proportions."""

    shape: Shape

    def on(self, geometry: Geometry) -> Geometry:
        return geometry.at(_fits(self.shape, geometry, self))


@dataclass(frozen=True, slots=True)
class Cover(Step):
    """Resize in proportion until the image just covers the shape: (512, 512) brings the shorter side to 512."""

    shape: Shape

    def on(self, geometry: Geometry) -> Geometry:
        sizes, wanted = np.array(geometry.shape), np.array(_fits(self.shape, geometry, self))
        found = np.maximum(np.rint(sizes * (wanted / sizes).max()).astype(int), wanted)
        return geometry.at(tuple(found.tolist()))


@dataclass(frozen=True, slots=True)
class Contain(Step):
    """Resize in proportion until the image just fits into the shape."""

    shape: Shape

    def on(self, geometry: Geometry) -> Geometry:
        sizes, wanted = np.array(geometry.shape), np.array(_fits(self.shape, geometry, self))
        found = np.clip(np.rint(sizes * (wanted / sizes).min()).astype(int), 1, wanted)
        return geometry.at(tuple(found.tolist()))


@dataclass(frozen=True, slots=True)
class Crop(Step):
    """Cut what is larger than the shape: around the center, or from a `corner` on (slowest axis first)."""

    shape: Shape
    corner: Shape | None = None

    def on(self, geometry: Geometry) -> Geometry:
        shape = tuple(map(min, geometry.shape, _fits(self.shape, geometry, self)))
        slack = tuple(size - new for size, new in zip(geometry.shape, shape, strict=True))
        if self.corner is None:
            return _window(geometry, tuple(round(rest / 2) for rest in slack), shape)  # as torchvision centers
        if len(self.corner) != geometry.ndim or not all(
            0 <= at <= rest for at, rest in zip(self.corner, slack, strict=True)
        ):
            raise ValueError(f"{self}: the corner must lie from 0 to {slack} in an image of {geometry.shape}")
        return _window(geometry, self.corner, shape)


@dataclass(frozen=True, slots=True)
class Pad(Step):
    """Add cells on both sides where the image is smaller than the shape."""

    shape: Shape

    def on(self, geometry: Geometry) -> Geometry:
        shape = tuple(map(max, geometry.shape, _fits(self.shape, geometry, self)))
        corner = tuple(-((new - size) // 2) for size, new in zip(geometry.shape, shape, strict=True))
        return _window(geometry, corner, shape)


@dataclass(frozen=True, slots=True)
class Grid(Step):
    """A grid of this shape and spacing (mm, slowest axis first) around the image's own center.

    `axes` are the directions of its axes in the world, as rows of a matrix one after the other (slowest axis first,
    x, y, z of each); () stands for slices to superior, rows to posterior, columns to the left.
    """

    shape: Shape
    spacing: tuple[float, ...]
    axes: tuple[float, ...] = ()

    def on(self, geometry: Geometry) -> Geometry:
        if not geometry.spacing_known:
            raise ValueError(f"{self}: the image does not say how large its voxels are; set it in the file's header")
        shape = _fits(self.shape, geometry, self)
        affine = regular(shape, self.spacing).affine.copy()
        if self.axes:
            affine[:-1, :-1] = np.reshape(self.axes, (len(shape), len(shape))).T * np.array(self.spacing)
        middle, center = ((np.array(size, float) - 1) / 2 for size in (shape, geometry.shape))
        affine[:-1, -1] = geometry.world(center[None])[0] - affine[:-1, :-1] @ middle
        return Geometry(shape, affine)


def grid_like(geometry: Geometry) -> Grid:
    """The step that brings a volume to the shape, the spacing and the axes of a model's grid."""
    directions = geometry.affine[:-1, :-1] / geometry.spacing
    usual = np.eye(geometry.ndim)[::-1]
    axes = () if np.allclose(directions, usual) else tuple(directions.T.ravel().tolist())
    return Grid(geometry.shape, geometry.spacing, axes)


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """Where an image is scored: `source` is its geometry as stored, `target` after the steps."""

    source: Geometry
    target: Geometry
    steps: tuple[Step, ...]

    def image(self, values: Float[np.ndarray, "channels *spatial"]) -> Float[np.ndarray, "channels *framed"]:
        """The image in the frame, float32: the mean over what a cell covers along axes that shrink, else linear.

        What lies outside of the stored image gets its lowest value (black, or air).
        """
        low = values.min()
        found = [_carried(channel - low, self.source, self.target, smooth=True) + low for channel in values]
        return np.stack(found).astype(np.float32)

    def mask(self, values: Bool[np.ndarray, "*spatial"]) -> Bool[np.ndarray, "*framed"]:
        """The mask in the frame, by nearest cell; False outside of the stored image."""
        return _carried(values.astype(np.float32), self.source, self.target, smooth=False) > 0.5

    def boxes(self, boxes: Sequence[Box]) -> tuple[Box, ...]:
        """The boxes in cells of the frame, cut at its edge; one that lies outside of it is dropped."""
        found, axes = [], self.source.ndim
        for box in boxes:
            if len(box) != 2 * axes:
                raise ValueError(f"box {box} has {len(box)} numbers; an image {self.source.shape} needs {2 * axes}")
            low = np.array(box[:axes])[::-1] - 0.5  # index of the edge, slowest first
            high = low + np.array(box[axes:])[::-1]
            corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
            index = self.target.index(self.source.world(corners)) + 0.5
            first, last = np.clip([index.min(0), index.max(0)], 0, self.target.shape)
            if (last - first > 1e-6).all():
                found.append((*first[::-1].tolist(), *(last - first)[::-1].tolist()))
        return tuple(found)

    def share(self, mask: Bool[np.ndarray, "*spatial"]) -> float:
        """Which share of a stored mask lies inside of the frame; 0 for an empty one."""
        cells = np.argwhere(mask).astype(float)
        if not len(cells):
            return 0.0
        index = self.target.index(self.source.world(cells))
        return float(((index >= -0.5 - 1e-6) & (index <= np.array(self.target.shape) - 0.5 + 1e-6)).all(1).mean())

    def facts(self) -> dict[str, Any]:
        """The frame as JSON types: shapes and steps, from which `frame_of` makes it again."""
        steps = [{"step": type(step).__name__, **asdict(step)} for step in self.steps]
        return {"stored": list(self.source.shape), "scored": list(self.target.shape), "steps": steps}


STEPS = {step.__name__: step for step in (Orient, Resize, Cover, Contain, Crop, Pad, Grid)}


def frame_of(source: Geometry, steps: Sequence[Step]) -> Frame:
    """The frame that the steps, one after the other, lead to."""
    target = source
    for step in steps:
        target = step.on(target)
    return Frame(source, target, tuple(steps))


def read_steps(facts: Sequence[Mapping[str, Any]]) -> tuple[Step, ...]:
    """The steps of `Frame.facts`, also after a way through JSON."""
    found = []
    for fact in facts:
        if fact.get("step") not in STEPS:
            raise ValueError(f"step {fact.get('step')!r}: expected one of {', '.join(STEPS)}")
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in fact.items()}
        del given["step"]
        found.append(STEPS[fact["step"]](**given))
    return tuple(found)


def _fits(shape: Shape, geometry: Geometry, step: Step) -> Shape:
    if len(shape) != geometry.ndim or min(shape) < 1:
        raise ValueError(f"{step}: an image of {geometry.shape} needs {geometry.ndim} positive sizes")
    return shape


def _window(geometry: Geometry, corner: Shape, shape: Shape) -> Geometry:
    affine = geometry.affine.copy()
    affine[:-1, -1] += affine[:-1, :-1] @ np.array(corner, float)
    return Geometry(shape, affine, geometry.spacing_known)


def _order(strength: Float[np.ndarray, "new old"]) -> tuple[int, ...]:
    """For each new axis the old one that runs most along it, each used once."""
    rows = np.arange(len(strength))
    return max(itertools.permutations(rows.tolist()), key=lambda order: strength[rows, list(order)].prod())


def _turned(geometry: Geometry, order: tuple[int, ...]) -> Geometry:
    """The geometry of `values.transpose(order)`."""
    affine = geometry.affine[:, [*order, geometry.ndim]]
    return Geometry(tuple(geometry.shape[axis] for axis in order), affine, geometry.spacing_known)


def _flipped(geometry: Geometry, axes: Sequence[int]) -> Geometry:
    """The geometry of `np.flip(values, axes)`."""
    affine = geometry.affine.copy()
    for axis in axes:
        affine[:-1, -1] += affine[:-1, axis] * (geometry.shape[axis] - 1)
        affine[:-1, axis] *= -1
    return Geometry(geometry.shape, affine, geometry.spacing_known)


def _carried(
    values: Float[np.ndarray, "*spatial"], source: Geometry, target: Geometry, *, smooth: bool
) -> Float[np.ndarray, "*framed"]:
    if values.shape != source.shape:
        raise ValueError(f"values {values.shape}, but the frame starts from {source.shape}: they are not of one image")
    step = np.linalg.solve(source.affine, target.affine)[:-1, :-1]  # source index for each target index
    order = _order(np.abs(step).T)
    back = [axis for axis, old in enumerate(order) if step[old, axis] < 0]
    values, source = np.flip(values.transpose(order), tuple(back)), _flipped(_turned(source, order), back)
    if not smooth:
        return resample_to(values, source, target, "nearest")
    middle = _shrunk(source, target)
    if middle is not None:
        values, source = resample_to(values, source, middle, "area"), middle
    return resample_to(values, source, target, "linear")


def _shrunk(source: Geometry, target: Geometry) -> Geometry | None:
    """The source with the cells of the target along the axes where those are larger; None if there is none.

    None also for grids that are turned against each other: they are read linearly.
    """
    step = np.linalg.solve(source.affine, target.affine)
    scale, offset = np.diag(step)[:-1], step[:-1, -1]
    drift = np.abs(step[:-1, :-1] - np.diag(scale)) @ np.array(target.shape, float)
    larger = np.abs(scale) > 1 + 1e-6
    if drift.max() > 1e-3 or not larger.any():
        return None
    change = np.eye(len(step))
    change[:-1, :-1] = np.diag(np.where(larger, scale, 1))
    change[:-1, -1] = np.where(larger, offset, 0)
    shape = tuple(np.where(larger, target.shape, source.shape).tolist())
    return Geometry(shape, source.affine @ change, source.spacing_known)
