"""Values to files and back: run folders, NIfTI, PNG."""

from voxplain.io.nifti import export, read_volume, write_volume
from voxplain.io.placing import on_volume
from voxplain.io.png import read_png, write_png
from voxplain.io.run import RunError, add_to_run, load_run, save_run

__all__ = [
    "RunError",
    "add_to_run",
    "export",
    "load_run",
    "on_volume",
    "read_png",
    "read_volume",
    "save_run",
    "write_png",
    "write_volume",
]
