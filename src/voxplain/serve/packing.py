"""Arrays as the page gets them: NIfTI, gzipped; maps as uint8 with a scale, and what is known of them in the header."""

import gzip
import json
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float, UInt8
from nibabel.nifti1 import Nifti1Extension

from voxplain.geometry import Geometry
from voxplain.maps import Sample
from voxplain.resampling import resample

COMMENT = 6  # the code of a plain text extension of the header
FLIP = np.array([-1.0, -1.0, 1.0, 1.0])  # LPS <-> RAS


def map_file(values: Float[np.ndarray, "*grid"], geometry: Geometry, facts: Mapping[str, Any]) -> bytes:
    """A map as uint8 with slope and intercept; the header's comment is JSON: `facts`, and `levels`.

    `levels[p]` is the value from which on the top p % of the positive cells start (p from 0 to 100); null if there are
    none. Stored values are off by at most half a slope, 1/510 of the map's range.
    """
    low, high = min(0.0, float(values.min())), float(values.max())
    slope = (high - low) / 255 or 1.0
    data = np.rint((values - low) / slope).astype(np.uint8)
    return _file(data, geometry, slope, low, {**facts, "maximum": high, "levels": levels(values)})


def levels(values: Float[np.ndarray, "*grid"]) -> list[float] | None:
    """The thresholds of the top 0, 1, ... 100 % of the positive values, as `masks.top_fraction` has them."""
    positive = values[values > 0]
    if not positive.size:
        return None
    return [float(f"{level:.6g}") for level in np.quantile(positive, 1 - np.arange(101) / 100)]


def sample_file(sample: Sample, limit: int | None = None) -> tuple[bytes, int]:
    """The sample for the page, and by how much it was made coarser to have no axis longer than `limit`.

    HU are whole numbers of int16, other units are scaled into int16, three channels become colors of 8 bits.
    """
    image, geometry, factor = sample.image, sample.geometry, 1
    longest = max(geometry.shape)
    if limit and longest > limit:
        factor = -(-longest // limit)
        geometry = geometry.at(tuple(max(1, size // factor) for size in geometry.shape))
        image = resample(image, geometry.shape, mode="area")
    if len(image) == 3:
        return _file(_colors(image), geometry, 1.0, 0.0, {}), factor
    values = image[0]
    if sample.unit == "HU":
        return _file(np.rint(np.clip(values, -32768, 32767)).astype(np.int16), geometry, 1.0, 0.0, {}), factor
    low, high = float(values.min()), float(values.max())
    slope = (high - low) / 65534 or 1.0
    data = np.rint((values - low) / slope - 32767).astype(np.int16)
    return _file(data, geometry, slope, low + 32767 * slope, {}), factor


def shown_range(sample: Sample) -> tuple[float, float]:
    """The values that become black and white where no window of HU applies: 1 to 99 %."""
    low, high = np.percentile(sample.image[0], (1, 99))
    return float(low), float(max(high, low + 1e-6))


def to_ras(geometry: Geometry) -> Float[np.ndarray, "4 4"]:
    """From array indices, slowest first and with a slice axis for an image too, to RAS millimeters."""
    affine, extra = np.zeros((4, 4)), 3 - geometry.ndim
    affine[3, 3] = 1.0
    affine[: geometry.ndim, extra:3] = geometry.affine[:-1, :-1]
    affine[: geometry.ndim, 3] = geometry.affine[:-1, -1]
    if extra:
        affine[:3, 0] = (0.0, 0.0, 1.0)
    return FLIP[:, None] * affine


def _colors(image: Float[np.ndarray, "3 *spatial"]) -> UInt8[np.ndarray, "3 *spatial"]:
    low, high = np.percentile(image, (0.5, 99.5))
    return (np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def _file(data: np.ndarray, geometry: Geometry, slope: float, intercept: float, facts: Mapping[str, Any]) -> bytes:
    """A gzipped NIfTI-1 of `data` [*spatial], or of colors [3, *spatial]."""
    color = data.ndim > geometry.ndim
    shape = (1,) * (3 - geometry.ndim) + tuple(geometry.shape)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]) if color else data.dtype)
    header.set_data_shape(shape[::-1])
    affine = to_ras(geometry)[:, [2, 1, 0, 3]]  # NIfTI counts the fastest axis first
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    header.set_xyzt_units("mm" if geometry.spacing_known else "unknown")
    header.set_slope_inter(slope, intercept)
    if facts:
        text = json.dumps(facts, ensure_ascii=True, allow_nan=False).encode()
        header.extensions.append(Nifti1Extension(COMMENT, text))
    header["magic"] = b"n+1"
    header["vox_offset"] = header.single_vox_offset + header.extensions.get_sizeondisk()
    pixels = np.moveaxis(data, 0, -1) if color else data
    return gzip.compress(_head(header) + np.ascontiguousarray(pixels).tobytes(), 6, mtime=0)


def _head(header: nib.Nifti1Header) -> bytes:
    extensions: Sequence[Nifti1Extension] = header.extensions
    blocks = []
    for extension in extensions:
        content = extension.get_content()
        raw = content if isinstance(content, bytes) else str(content).encode()
        size = extension.get_sizeondisk()
        blocks.append(np.array([size, extension.get_code()], "<i4").tobytes() + raw.ljust(size - 8, b"\0"))
    header["magic"] = b"n+1"
    return header.binaryblock + bytes([1 if blocks else 0, 0, 0, 0]) + b"".join(blocks)
