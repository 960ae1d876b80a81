"""Boxes, polygons and run lengths as masks on the grid of their image.

A cell belongs to a shape if its center does. A box that is thinner than a cell and holds no center takes the cell that
its middle lies in, so no box vanishes here.
"""

import math

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from voxplain.datasets.base import Box, Boxes, Faulty, Outlines, Polygon, Runs

FINE = 5  # polygons are drawn on a grid so many times finer (odd), and read at the cells' centers


def paint(truth: Boxes | Outlines, shape: tuple[int, ...]) -> Bool[np.ndarray, "*spatial"]:
    """The union of all parts on an image of this shape (slowest axis first). Raises ValueError for what leaves it."""
    mask = np.zeros(shape, bool)
    if isinstance(truth, Boxes):
        for box in truth.boxes:
            mask[box_slices(box, shape)] = True
        return mask
    if len(shape) != 2:
        raise ValueError(f"outlines are drawn on pictures, and this image has shape {shape}")
    for part in truth.parts:
        mask |= _polygon(part, shape) if isinstance(part, Polygon) else _runs(part, shape)
    return mask


def box_slices(box: Box, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The cells of a box, one slice an axis, slowest first."""
    axes = len(shape)
    if len(box) != 2 * axes:
        raise ValueError(f"box {box} has {len(box)} numbers, but an image of {shape} needs {2 * axes}")
    if not box_inside(box, shape):
        raise Faulty(
            "a box leaves the image",
            f"box {box} leaves the image, which is {' x '.join(map(str, shape[::-1]))} (x first); "
            "boxes are in pixels of the image as it is stored",
        )
    slices = []
    for low, length, size in zip(box[:axes][::-1], box[axes:][::-1], shape, strict=True):
        first, last = math.ceil(low - 0.5), math.ceil(low + length - 0.5)
        if first >= last:
            first = min(math.floor(low + length / 2), size - 1)
            last = first + 1
        slices.append(slice(max(first, 0), min(last, size)))
    return tuple(slices)


def box_inside(box: Box, shape: tuple[int, ...], slack: float = 1e-3) -> bool:
    """Whether the whole box lies in an image of this shape (slowest axis first)."""
    axes = len(shape)
    sides = zip(box[:axes], box[axes:], shape[::-1], strict=True)
    return all(low >= -slack and low + length <= size + slack for low, length, size in sides)


def runs_of(text: str, shape: tuple[int, int]) -> Runs:
    """COCO's compressed run lengths: six bits a character, low bits first, and from the fourth run on differences."""
    counts: list[int] = []
    value, bits = 0, 0
    for char in text:
        code = ord(char) - 48
        if not 0 <= code < 64:
            raise ValueError(f"{char!r} is no part of a compressed run length")
        value |= (code & 31) << bits
        bits += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << bits
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, bits = 0, 0
    return Runs(tuple(counts), shape)


def _polygon(part: Polygon, shape: tuple[int, ...]) -> Bool[np.ndarray, "rows columns"]:
    rows, columns = shape
    canvas = Image.new("L", (columns * FINE, rows * FINE))
    scaled = [value * FINE - 0.5 for value in part.points]
    ImageDraw.Draw(canvas).polygon(list(zip(scaled[::2], scaled[1::2], strict=True)), fill=1)
    return np.asarray(canvas)[FINE // 2 :: FINE, FINE // 2 :: FINE] > 0


def _runs(part: Runs, shape: tuple[int, ...]) -> Bool[np.ndarray, "rows columns"]:
    if part.shape != shape:
        raise ValueError(f"run lengths for an image of {part.shape}, but this one has shape {shape}")
    inside = np.arange(len(part.counts)) % 2 == 1
    return np.repeat(inside, part.counts).reshape(shape[::-1]).T  # down the columns
