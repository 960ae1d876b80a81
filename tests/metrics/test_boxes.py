import numpy as np
import pytest

from voxplain.metrics import Undefined, box_iou, boxed, center_distance, foreground_background_iou, tight_box


def mask(shape: tuple[int, ...], *cells: tuple[int, ...]) -> np.ndarray:
    found = np.zeros(shape, bool)
    for cell in cells:
        found[cell] = True
    return found


def test_a_box_holds_its_last_row_and_column():
    corners = mask((4, 5), (1, 2), (3, 4))
    assert tight_box(corners) == (slice(1, 4), slice(2, 5))
    assert boxed(corners).sum() == 9 and boxed(corners)[3, 4]
    assert box_iou(corners, boxed(corners)) == 1
    with pytest.raises(Undefined, match="no box"):
        tight_box(mask((2, 2)))


@pytest.mark.parametrize("depth", [(), (1,), (3,)])
def test_boxes_that_share_a_third_in_any_number_of_axes(depth):
    first, second = np.zeros((*depth, 2, 6), bool), np.zeros((*depth, 2, 6), bool)
    first[..., :4], second[..., 2:] = True, True
    assert box_iou(first, second) == pytest.approx(2 / 6)
    assert center_distance(first, second) == 2
    assert foreground_background_iou(boxed(first), boxed(second)) == pytest.approx((2 / 6 + 0) / 2)


def test_the_distance_is_in_millimeters_with_a_spacing():
    first, second = mask((9, 9), (0, 0)), mask((9, 9), (3, 4))
    assert center_distance(first, second) == 5
    assert center_distance(first, second, (1.0, 2.0)) == pytest.approx(np.hypot(3, 8))
    assert center_distance(second, first, (1.0, 2.0)) == pytest.approx(np.hypot(3, 8))
    assert center_distance(first, first) == 0
    with pytest.raises(ValueError, match="needs 2 spacings"):
        center_distance(first, second, (1.0,))


def test_empty_masks_and_truths_in_pieces():
    one, none, two = mask((4, 4), (1, 1)), mask((4, 4)), mask((4, 4), (0, 0), (3, 3))
    assert box_iou(none, one) == 0
    for metric in (box_iou, center_distance):
        with pytest.raises(Undefined, match="truth is empty"):
            metric(one, none)
    with pytest.raises(Undefined, match="prediction is empty"):
        center_distance(none, one)
    with pytest.raises(Undefined, match="more than one piece"):
        center_distance(one, two)
    assert center_distance(two, one) == pytest.approx(np.hypot(0.5, 0.5)), "a prediction may fall into pieces"
    assert box_iou(one, two) == 1 / 16
