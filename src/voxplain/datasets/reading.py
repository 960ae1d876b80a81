"""A record in, its image and its truth in one recorded frame out."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image, UnidentifiedImageError

from voxplain.datasets.base import Box, Boxes, Dataset, Excluded, MaskFile, Record, Truth, counted
from voxplain.datasets.frames import Frame, Orient, Step, frame_of
from voxplain.datasets.shapes import paint
from voxplain.geometry import Geometry, regular
from voxplain.io.nifti import read_volume
from voxplain.maps import Mask, Sample

NIFTI = (".nii", ".nii.gz")
DEFAULT = (Orient(),)
BITS = {"1": 1, "L": 255, "LA": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535}  # white, by mode
COLOR = ("RGB", "RGBA", "P", "PA", "CMYK", "YCbCr")


@dataclass(frozen=True, slots=True, eq=False)
class Framed:
    """A record's image and truth in one frame, ready to be read by a model and scored.

    `truth` and `boxes` are None and () for a record without any. `share` says how much of the stored truth lies inside
    of the frame: below 1 a score speaks of a part.
    """

    record: Record
    sample: Sample
    frame: Frame
    truth: Mask | None = None
    boxes: tuple[Box, ...] = ()
    share: float = 1.0


def read(record: Record, steps: Sequence[Step] | Callable[[Geometry], Sequence[Step]] = DEFAULT) -> Framed:
    """The record's image and truth, through the same steps; a function tells them by where the stored cells lie.

    Pictures (PNG, JPEG, TIFF by pillow) become gray or RGB channels from 0 to 1, exactly as the pixels are stored (a
    rotation noted in EXIF is not applied, since annotations count stored pixels); volumes are NIfTI.

    Raises `Excluded` where nothing of the truth is left in the frame, FileNotFoundError for an absent file, and
    ValueError for an image whose size is not what the annotation says, a mask on another grid, or a box that leaves
    the image.
    """
    if record.image is None:
        raise ValueError(f"record {record.id!r} has no image: it is a text to generate from")
    image, geometry, unit = read_image(record.image, record.index)
    if record.size is not None and tuple(record.size) != geometry.shape[::-1]:
        said, found = (" x ".join(map(str, size)) for size in (record.size, geometry.shape[::-1]))
        raise ValueError(
            f"record {record.id!r}: its annotation is for an image of {said} (x first), but the file holds {found}; "
            "was it resized? Boxes fit the original only"
        )
    framed = frame_of(geometry, steps(geometry) if callable(steps) else steps)
    provenance = {"record": record.id, "frame": framed.facts()}
    sample = Sample(framed.image(image), framed.target, record.prompt, provenance, record.unit or unit)
    if record.truth is None:
        return Framed(record, sample, framed)
    stored = _located(record.id, record.truth, geometry)
    boxes = framed.boxes(record.truth.boxes) if isinstance(record.truth, Boxes) else ()
    values, share = framed.mask(stored), framed.share(stored)
    if not values.any():
        reason = "the truth is empty" if not stored.any() else "the truth lies outside of the frame"
        raise Excluded(reason if share == 0 else "the truth is thinner than a cell of the frame", record.id)
    mask = Mask(record.label or " ".join(record.words) or record.prompt, values, framed.target)
    return Framed(record, sample, framed, mask, boxes, share)


def readable(dataset: Dataset, steps: Sequence[Step] = DEFAULT) -> Dataset:
    """The set without the records that `read` excludes; they are counted by reason. Every file is read once."""
    kept, left_out = [], Counter(dataset.left_out)
    for record in dataset:
        try:
            read(record, steps)
        except Excluded as excluded:
            left_out[excluded.reason] += 1
        else:
            kept.append(record)
    return replace(dataset, records=tuple(kept), left_out=counted(left_out))


def read_image(path: Path, index: int | None = None) -> tuple[Float[np.ndarray, "channels *spatial"], Geometry, str]:
    """The image of a file, float32, with where its cells are and the unit of its values.

    An `index` is the place in an `.npz` file of one array `images` [n, rows, columns] of bytes.
    """
    if path.suffix == ".npz":
        return _gray(_from_stack(path, index))
    if index is not None:
        raise ValueError(f"{path} holds one image, and no number {index}; only .npz files hold several")
    if path.name.endswith(NIFTI):
        values, geometry = read_volume(path)
        return values.reshape(-1, *geometry.shape).astype(np.float32), geometry, "HU"
    with _opened(path) as picture:
        if picture.mode in COLOR:
            channels = np.moveaxis(np.asarray(picture.convert("RGB"), np.float32) / 255, -1, 0)
            return np.ascontiguousarray(channels), _plane(channels.shape[1:]), "0 to 1"
        if picture.mode not in BITS:
            raise ValueError(f"{path} is a picture of mode {picture.mode}; give 8 or 16 bit gray, or RGB")
        white, plain = BITS[picture.mode], picture.convert("L") if picture.mode == "LA" else picture
        return _gray(np.asarray(plain, np.float32) / white)


def _located(name: str, truth: Truth, geometry: Geometry) -> Bool[np.ndarray, "*spatial"]:
    """The truth on the grid of the stored image."""
    try:
        return _stored(truth, geometry) if isinstance(truth, MaskFile) else paint(truth, geometry.shape)
    except ValueError as error:
        raise ValueError(f"record {name!r}: {error}") from error


def _stored(truth: MaskFile, geometry: Geometry) -> Bool[np.ndarray, "*spatial"]:
    if truth.path.name.endswith(NIFTI):
        values, place = read_volume(truth.path)
        if not place.same_as(geometry):
            raise ValueError(
                f"mask {truth.path.name} has shape {place.shape} and image {geometry.shape}, or they lie elsewhere: "
                "bring the mask to the image's grid; it is never resized silently"
            )
    else:
        with _opened(truth.path) as picture:
            values = np.asarray(picture)
        if values.shape != geometry.shape:
            raise ValueError(
                f"mask {truth.path.name} has shape {values.shape}, but the image {geometry.shape}; it has to be a gray "
                "picture of the same size, and is never resized silently"
            )
    return np.isin(values, truth.values) if truth.values else values != 0


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    return picture


@lru_cache(maxsize=1)
def _stack(path: Path) -> Shaped[np.ndarray, "images rows columns"]:
    with np.load(path, allow_pickle=False) as arrays:
        if "images" not in arrays:
            raise ValueError(f"{path} holds {', '.join(arrays)}; expected one array 'images' [n, rows, columns]")
        images = arrays["images"]
    if images.ndim != 3 or images.dtype != np.uint8:
        raise ValueError(f"{path}: images {images.shape} of {images.dtype}; expected bytes [n, rows, columns]")
    return images


def _from_stack(path: Path, index: int | None) -> Float[np.ndarray, "rows columns"]:
    images = _stack(path)
    if index is None or not 0 <= index < len(images):
        raise ValueError(f"{path} holds {len(images)} images; give an index from 0 to {len(images) - 1}, not {index}")
    return images[index].astype(np.float32) / 255


def _gray(values: Float[np.ndarray, "rows columns"]) -> tuple[Float[np.ndarray, "1 rows columns"], Geometry, str]:
    return values[None], _plane(values.shape), "0 to 1"


def _plane(shape: tuple[int, ...]) -> Geometry:
    return replace(regular(shape, 1.0), spacing_known=False)
