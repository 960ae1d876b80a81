"""A record in, its image and its truth in one recorded frame out."""

import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image

from voxplain.datasets.base import Box, Boxes, Dataset, Excluded, Faulty, Gone, MaskFile, Record, Truth, counted
from voxplain.datasets.frames import Frame, Orient, Step, frame_of
from voxplain.datasets.shapes import paint
from voxplain.geometry import Geometry, regular
from voxplain.io.nifti import read_volume
from voxplain.maps import Mask, Sample

NIFTI = (".nii", ".nii.gz")
DEFAULT = (Orient(),)
BITS = {"1": 1, "L": 255, "LA": 255, "I;16": 65535, "I;16B": 65535, "I;16L": 65535, "I": 65535}  # white, by mode
PALETTE = ("P", "PA")
COLOR = ("RGB", "RGBA", "CMYK", "YCbCr", *PALETTE)
LOSSY = ("JPEG", "MPO")  # formats that blur the edges of a mask
KINDS = "NIfTI (.nii or .nii.gz), PNG, JPEG or TIFF"
ORIENTATION = 274  # EXIF: 1 for a picture that is shown as it is stored


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
    rotation noted in EXIF is warned of and not applied, since annotations count stored pixels); volumes are NIfTI.

    Raises `Excluded` where nothing of the truth is left in the frame, `Gone` for an absent file, and `Faulty` for an
    image whose size is not what the annotation says or that holds NaN, a mask that `read_mask`
    refuses, or a box that leaves the image.
    """
    if record.image is None:
        raise ValueError(f"record {record.id!r} has no image: it is a text to generate from")
    image, geometry, unit = read_image(record.image, record.index)
    check_finite(image, record.image)
    if record.size is not None and tuple(record.size) != geometry.shape[::-1]:
        said, found = (" x ".join(map(str, size)) for size in (record.size, geometry.shape[::-1]))
        raise Faulty(
            "the file's size is not the annotation's",
            f"record {record.id!r}: its annotation is for an image of {said} (x first), but the file holds {found}; "
            "was it resized? Boxes fit the original only",
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
    check_file(path)
    if path.suffix == ".npz":
        return _gray(_from_stack(path, index))
    if index is not None:
        raise ValueError(f"{path} holds one image, and no number {index}; only .npz files hold several")
    if path.name.endswith(NIFTI):
        try:
            values, geometry = read_volume(path)
        except (OSError, ValueError) as error:
            raise Faulty("the file is no readable volume", f"{path} cannot be read: {error}") from error
        return values.reshape(-1, *geometry.shape).astype(np.float32), geometry, "HU"
    with _opened(path) as picture:
        if picture.mode in COLOR:
            channels = np.moveaxis(np.asarray(picture.convert("RGB"), np.float32) / 255, -1, 0)
            return np.ascontiguousarray(channels), _plane(channels.shape[1:]), "0 to 1"
        if picture.mode not in BITS:
            raise ValueError(f"{path} is a picture of mode {picture.mode}; give 8 or 16 bit gray, or RGB")
        white, plain = BITS[picture.mode], picture.convert("L") if picture.mode == "LA" else picture
        return _gray(np.asarray(plain, np.float32) / white)


def read_nifti(path: Path, ndim: int) -> tuple[Shaped[np.ndarray, "*values"], Geometry]:
    """As `read_volume`; a file that does not have `ndim` axes comes with those that it has, two or three."""
    try:
        return read_volume(path, ndim)
    except ValueError:
        try:
            return read_volume(path, 5 - ndim)
        except ValueError:
            pass
        raise


def read_mask(path: Path, geometry: Geometry, values: Sequence[int] = ()) -> Bool[np.ndarray, "*spatial"]:
    """The truth that a file holds on the grid of an image: where it has one of `values`; without any, all but 0.

    The values of a gray picture are those that it stores, of one with a palette the indices; a picture in RGB is gray
    where its channels are equal. Raises FileNotFoundError for an absent file, and ValueError for another grid (a mask
    is never resized), several channels, colors, a JPEG, NaN, and a palette that leaves open what counts.
    """
    check_file(path, "mask ")
    place = None
    if path.name.lower().endswith(NIFTI):
        stored, place = read_nifti(path, geometry.ndim)
        if stored.ndim > place.ndim:
            raise ValueError(f"mask {path.name} holds {len(stored)} channels; give one of them")
    else:
        stored = _labels(path, bool(values))
    wrong = "" if stored.shape == geometry.shape else f"has shape {stored.shape}, but the image {geometry.shape}"
    if not wrong and place is not None and not place.same_as(geometry):
        wrong = f"has the shape of the image, {geometry.shape}, but lies elsewhere"
    if wrong:
        message = f"mask {path.name} {wrong}; give it on the image's own grid: it is never resized silently"
        raise Faulty("the mask is on another grid", message)
    if count := int(np.isnan(stored).sum()):
        raise ValueError(f"mask {path.name} holds NaN in {count} cells; write 0 there")
    return np.isin(stored, values) if values else stored != 0


def check_file(path: Path, what: str = "") -> None:
    """Raise `Faulty` for a folder and `Gone` for nothing at all; `what` stands before the path."""
    if path.is_dir():
        message = f"{what}{path} is a folder; give one file, NIfTI or a picture"
        raise Faulty(f"the {what or 'image '}is a folder", message)
    if not path.is_file():
        raise Gone(f"the {what or 'image '}is gone", f"{what}{path} is not there; give the path of a file that is")


def check_finite(image: Float[np.ndarray, "channels *spatial"], path: Path) -> None:
    """Raise `Faulty` where the image of a file holds what no model can read."""
    if count := int((~np.isfinite(image)).sum()):
        raise Faulty(
            "the image holds NaN or infinity",
            f"{path.name} holds {count} NaN or infinite values of {image.size}; replace them (air is -1000 HU) and try "
            "again",
        )


def _located(name: str, truth: Truth, geometry: Geometry) -> Bool[np.ndarray, "*spatial"]:
    """The truth on the grid of the stored image."""
    try:
        if isinstance(truth, MaskFile):
            return read_mask(truth.path, geometry, truth.values)
        return paint(truth, geometry.shape)
    except FileNotFoundError:
        raise
    except ValueError as error:
        reason = error.reason if isinstance(error, Faulty) else "the truth cannot be read"
        raise Faulty(reason, f"record {name!r}: {error}") from error


def _labels(path: Path, named: bool) -> Shaped[np.ndarray, "rows columns"]:
    """What a picture stores; `named` says that the values which count are known."""
    with _opened(path) as picture:
        mode = picture.mode
        if picture.format in LOSSY:
            raise ValueError(f"mask {path.name} is a JPEG, which blurs the edges of a mask; give it as PNG or NIfTI")
        if mode not in (*BITS, *COLOR, "F"):
            raise ValueError(f"mask {path.name} is a picture of mode {mode}; give it in gray")
        stored = np.asarray(picture.getchannel(0) if len(picture.getbands()) == 2 else picture)
        if mode not in COLOR or (named and mode in PALETTE):
            return stored
        opaque = picture.convert("RGBA") if mode in PALETTE else picture
        colors = np.asarray(opaque.convert("RGB"))  # [rows, columns, 3]
    if (colors == colors[..., :1]).all():
        return colors[..., 0]
    if mode not in PALETTE:
        raise ValueError(f"mask {path.name} is a picture in color; give it in gray, as black and white or by a palette")
    if ((stored != 0) != colors.any(-1)).any():
        raise ValueError(
            f"mask {path.name} has a palette in which index 0 is not black, or another one is; name the indices that "
            "count as the mask's values"
        )
    return stored


def _opened(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        pages = getattr(picture, "n_frames", 1)
        picture.load()
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        message = f"{path} is no picture that can be read: {error}; give {KINDS}"
        raise Faulty("the file is no readable picture", message) from error
    if pages > 1 and picture.format != "MPO":  # in an MPO the others are previews
        picture.close()
        message = f"{path} holds {pages} pictures; save the one that is meant as a file of its own"
        raise Faulty("the file holds several pictures", message)
    if _turned(picture):
        warnings.warn(f"{path.name} says by EXIF that it is shown turned; it is read as it is stored", stacklevel=1)
    return picture


def _turned(picture: Image.Image) -> bool:
    try:
        return picture.getexif().get(ORIENTATION, 1) in range(2, 9)
    except (KeyError, OSError, SyntaxError, TypeError, ValueError, struct.error):
        return False  # damaged notes say nothing


@lru_cache(maxsize=1)
def _stack(path: Path) -> Shaped[np.ndarray, "images rows columns"]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            names, images = tuple(arrays), arrays.get("images")
    except (BadZipFile, EOFError, OSError, TypeError, ValueError, zlib.error) as error:
        raise Faulty("the file is no readable picture", f"{path} is no .npz file of arrays: {error}") from error
    if images is None:
        raise ValueError(f"{path} holds {', '.join(names)}; expected one array 'images' [n, rows, columns]")
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
