"""Values to pictures and pages: arrays to RGB, labeled figures, the report."""

from voxplain.view.figure import figure
from voxplain.view.overlay import Plane, mosaic, overlay, planes
from voxplain.view.page import report
from voxplain.view.words import word_rows

__all__ = ["Plane", "figure", "mosaic", "overlay", "planes", "report", "word_rows"]
