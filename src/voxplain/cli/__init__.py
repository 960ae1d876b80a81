"""The command line: verbs over run folders, thin calls of public functions. Heavy imports happen inside each verb."""

from voxplain.cli import checking, comparing, datasets, dicom, evaluating, grounding, making, reading, studying, viewing
from voxplain.cli.base import app


def main() -> None:
    """The program `voxplain`."""
    app(prog_name="voxplain")


__all__ = [
    "app",
    "checking",
    "comparing",
    "datasets",
    "dicom",
    "evaluating",
    "grounding",
    "main",
    "making",
    "reading",
    "studying",
    "viewing",
]
