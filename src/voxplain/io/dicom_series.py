"""One CT series of DICOM files as a volume in HU. What is not one whole, straight, evenly spaced series is refused."""

import os
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from voxplain.geometry import Geometry
from voxplain.io.dicom_objects import needed
from voxplain.io.nifti import read_volume

if TYPE_CHECKING:
    from pydicom import Dataset

CT = "1.2.840.10008.5.1.4.1.1.2"
DIRECTORY = "1.2.840.10008.1.3.10"
NEEDED = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept")
SAME = ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient", "FrameOfReferenceUID")
AIR = -1000.0  # HU, for pixels that the scanner marks as holding no measurement
TOUCHING = 1e-3  # mm between slices that lie at the same place
UNEVEN = 0.02  # of the spacing, that a step may differ
SHEAR, ROUNDING = 2e-3, 0.02  # the sideways drift that a straight stack may have: of its height, and mm
BROKEN = (AttributeError, EOFError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError, struct.error)


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """A file and its header."""

    path: Path
    header: "Dataset"

    @property
    def position(self) -> Float[np.ndarray, "3"]:
        """The center of the first pixel, LPS mm."""
        return np.array([float(value) for value in self.header.ImagePositionPatient])


def read_image(path: str | os.PathLike, ndim: int = 3) -> tuple[Shaped[np.ndarray, "*values"], Geometry]:
    """A folder as a CT series, a file as NIfTI: the values in physical units and their geometry."""
    path = Path(path)
    if path.is_dir():
        if ndim != 3:
            raise ValueError(f"{path} is a folder, which is read as a CT series, and the model reads {ndim}D images")
        return read_series(path)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                raise ValueError(f"{path} is one DICOM file; give the folder that holds its series")
    return read_volume(path, ndim)


def read_series(folder: str | os.PathLike) -> tuple[Float[np.ndarray, "slices rows columns"], Geometry]:
    """The CT series in a folder and in those below it, in HU, slices in ascending order along the planes' normal.

    The order and the names of the files do not matter; rescaling is applied slice by slice, and padding becomes air.
    Raises FileNotFoundError for an absent folder, ImportError without the extra `dicom`, and ValueError, saying what
    is wrong, for a folder without DICOM files, other objects than CT, several series, scouts, slices that differ, a
    tilted gantry, slices that are missing, doubled or unevenly spaced, and pixels that cannot be read.
    """
    needed()
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder")
    found = _found(folder)
    _check_kind(folder, found)
    _check_equal(folder, found)
    ordered, geometry = _placed(folder, found)
    return np.stack([_hounsfield(one.path) for one in ordered]), geometry


def _found(folder: Path) -> list[Slice]:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = dcmread(path, stop_before_pixels=True)
            if header.file_meta.get("MediaStorageSOPClassUID") == DIRECTORY:
                continue  # DICOMDIR, the table of contents of a disc
        except InvalidDicomError:
            continue  # a note, a license, a file of the system
        except BROKEN as error:
            raise ValueError(f"{path} is damaged: {error}") from error
        if not header.get("SOPClassUID"):
            raise ValueError(f"{path} is damaged or cut short: it does not say what kind of object it is")
        found.append(Slice(path, header))
    if not found:
        raise ValueError(f"{folder} holds no DICOM files")
    return found


def _check_kind(folder: Path, found: list[Slice]) -> None:
    from pydicom.uid import UID

    other = Counter(UID(one.header.SOPClassUID).name for one in found if one.header.SOPClassUID != CT)
    if other:
        names = ", ".join(f"{count} of {name}" for name, count in other.items())
        raise ValueError(
            f"{folder} holds files that are no CT slices: {names}. Give a folder that holds one CT series alone"
            + ("; turn enhanced CT into single slices first" if any("Enhanced CT" in name for name in other) else "")
        )
    series = Counter((str(one.header.get("SeriesInstanceUID")), one.header.get("SeriesNumber")) for one in found)
    if len({name for name, _ in series}) > 1:
        names = ", ".join(f"number {number} with {count} slices" for (_, number), count in series.items())
        raise ValueError(f"{folder} holds several series: {names}. Give a folder that holds one of them alone")
    for one in found:
        if "LOCALIZER" in (one.header.get("ImageType") or ()):
            raise ValueError(f"{one.path} is a localizer (scout), and no slice of a volume; take it out of the folder")
        if int(one.header.get("NumberOfFrames") or 1) != 1:
            raise ValueError(f"{one.path} holds several frames; turn it into single slices first")
        if missing := [name for name in NEEDED if one.header.get(name) in (None, "")]:
            raise ValueError(f"{one.path} does not say its {', '.join(missing)}; a slice of a CT volume must")
        if (unit := one.header.get("RescaleType") or "HU") != "HU":
            raise ValueError(f"{one.path} rescales to {unit!r}, and not to HU")


def _check_equal(folder: Path, found: list[Slice]) -> None:
    first = found[0]
    for one in found[1:]:
        for name in SAME:
            ours, theirs = one.header.get(name), first.header.get(name)
            alike = ours == theirs
            if not alike and name in ("PixelSpacing", "ImageOrientationPatient"):
                alike = np.allclose(np.array(ours, float), np.array(theirs, float), atol=1e-4)
            if not alike:
                raise ValueError(f"{one.path} and {first.path} differ in {name}: {ours} and {theirs}; {_apart(folder)}")


def _placed(folder: Path, found: list[Slice]) -> tuple[list[Slice], Geometry]:
    if len(found) < 2:
        raise ValueError(f"{folder} holds a single slice, which is no volume")
    header = found[0].header
    axes = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 1e-3:
        raise ValueError(f"{folder}: rows and columns are not perpendicular ({header.ImageOrientationPatient})")
    row, column = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    normal = np.cross(row, column)
    ordered = sorted(found, key=lambda one: float(one.position @ normal))
    away = np.stack([one.position for one in ordered]) - ordered[0].position
    height = away @ normal
    _check_steps(folder, ordered, np.diff(height))
    aside = np.linalg.norm(away - height[:, None] * normal, axis=1)
    if (aside > SHEAR * height[-1] + ROUNDING).any():
        angle = np.degrees(np.arctan2(aside[-1], height[-1]))
        raise ValueError(
            f"{folder}: the slices drift sideways by {aside.max():.1f} mm, as with a gantry tilted by {angle:.1f} "
            "degrees; such a stack is no straight volume: resample it first"
        )
    spacing = [float(value) for value in header.PixelSpacing]
    affine = np.eye(4)
    affine[:3, :3] = np.stack([normal * height[-1] / (len(found) - 1), column * spacing[0], row * spacing[1]], axis=1)
    affine[:3, 3] = ordered[0].position
    return ordered, Geometry((len(found), int(header.Rows), int(header.Columns)), affine)


def _check_steps(folder: Path, ordered: list[Slice], steps: Float[np.ndarray, " steps"]) -> None:
    if steps.min() < TOUCHING:
        at = int(steps.argmin())
        names = f"{ordered[at].path.name} and {ordered[at + 1].path.name}"
        raise ValueError(
            f"{folder}: {names} lie at the same place (another phase or reconstruction?); {_apart(folder)}"
        )
    usual = float(np.median(steps))
    wide = np.flatnonzero(steps > 1.5 * usual)
    lost = np.rint(steps[wide] / usual) - 1
    if len(wide) and np.abs(steps[wide] / usual - 1 - lost).max() < 0.1:
        names = ", ".join(ordered[at].path.name for at in wide[:3])
        raise ValueError(
            f"{folder}: {int(lost.sum())} slices are missing, after {names}; slices are {usual:g} mm apart"
        )
    if np.abs(steps - usual).max() > UNEVEN * usual:
        raise ValueError(
            f"{folder}: slices are {steps.min():g} to {steps.max():g} mm apart; resample the series to even steps first"
        )


def _hounsfield(path: Path) -> Float[np.ndarray, "rows columns"]:
    from pydicom import dcmread

    try:
        one = dcmread(path)
        stored = one.pixel_array
    except BROKEN as error:
        raise ValueError(
            f"the pixels of {path} cannot be read; if they are compressed, unpack them: {error}"
        ) from error
    values = stored.astype(np.float32) * np.float32(one.RescaleSlope) + np.float32(one.RescaleIntercept)
    if (padding := one.get("PixelPaddingValue")) is not None:
        ends = sorted((int(padding), int(one.get("PixelPaddingRangeLimit", padding))))
        values[(stored >= ends[0]) & (stored <= ends[1])] = AIR
    return values


def _apart(folder: Path) -> str:
    return f"give a folder that holds one volume alone, not {folder.name}"
