"""RGB arrays to PNG and back."""

import io
import os

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from voxplain.io.folders import write_file


def write_png(path: str | os.PathLike, rgb: UInt8[np.ndarray, "rows columns 3"]) -> None:
    """Write the picture to `path`, in one step."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG")
    write_file(path, buffer.getvalue())


def read_png(path: str | os.PathLike) -> UInt8[np.ndarray, "rows columns 3"]:
    """The picture at `path`, as RGB."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
