import numpy as np
import pytest

from voxplain.geometry import regular
from voxplain.models.placing import placed

SHAPE, SPACING = (4, 6, 8), (5.0, 3.0, 2.0)


def test_without_an_orientation_an_image_lies_as_a_regular_grid():
    assert placed(SHAPE, SPACING).same_as(regular(SHAPE, SPACING))
    assert placed(SHAPE, SPACING, "SPL").same_as(regular(SHAPE, SPACING))


@pytest.mark.parametrize(
    ("orientation", "corner"),  # the world point (x to the left, y to posterior, z up) of the last voxel
    [("RAS", (-15, -15, 14)), ("LPS", (15, 15, 14)), ("IPL", (14, 15, -15)), ("ASR", (-14, -15, 15))],
)
def test_an_orientation_says_toward_which_side_each_axis_grows(orientation, corner):
    geometry = placed(SHAPE, SPACING, orientation)
    last = np.array([[size - 1.0 for size in SHAPE]])
    np.testing.assert_allclose(geometry.world(last)[0], corner)
    assert geometry.spacing == SPACING and geometry.spacing_known


def test_unknown_spacing_is_marked_and_an_impossible_orientation_refused():
    assert not placed((4, 6), None).spacing_known
    for wrong in ("RA", "RAL", "XYZ", "ras"):
        with pytest.raises(ValueError, match="a letter for each of 3 axes"):
            placed(SHAPE, SPACING, wrong)
