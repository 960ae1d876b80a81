"""Which cells a box, a polygon or a run length covers."""

import numpy as np
import pytest

from voxplain.datasets.base import Boxes, Outlines, Polygon, Runs
from voxplain.datasets.shapes import paint, runs_of


def test_x_counts_columns_and_y_rows():
    mask = paint(Boxes(((1, 2, 3, 1),)), (4, 6))
    assert np.argwhere(mask).tolist() == [[2, 1], [2, 2], [2, 3]]
    volume = paint(Boxes(((1, 2, 0, 2, 1, 3),)), (3, 4, 6))
    assert np.argwhere(volume).min(0).tolist() == [0, 2, 1]
    assert np.argwhere(volume).max(0).tolist() == [2, 2, 2]


def test_boxes_are_a_union():
    mask = paint(Boxes(((0, 0, 2, 2), (1, 1, 2, 2))), (4, 4))
    assert mask.sum() == 7


def test_a_cell_belongs_to_a_box_by_its_center_and_a_thin_box_takes_one():
    assert np.argwhere(paint(Boxes(((0.6, 0, 1.9, 1),)), (1, 4))).tolist() == [[0, 1]]
    assert np.argwhere(paint(Boxes(((1.6, 0, 0.2, 1),)), (1, 4))).tolist() == [[0, 1]]
    assert np.argwhere(paint(Boxes(((3.9, 0, 0.1, 1),)), (1, 4))).tolist() == [[0, 3]]


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (3, 0, 2, 2), (0, 2, 1, 3)])
def test_a_box_that_leaves_the_image_is_refused(box):
    with pytest.raises(ValueError, match="leaves the image, which is 4 x 4"):
        paint(Boxes((box,)), (4, 4))


@pytest.mark.parametrize(
    ("boxes", "complaint"),
    [((), "no box"), (((0, 0, 0, 3),), "no area"), (((0, 0, 3),), "4 numbers"), (((0, 0, np.inf, 3),), "4 numbers")],
)
def test_what_is_no_box_is_refused(boxes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Boxes(boxes)


def test_a_polygon_covers_the_cells_whose_centers_it_holds():
    square = paint(Outlines((Polygon((1, 1, 4, 1, 4, 3, 1, 3)),)), (5, 6))
    np.testing.assert_array_equal(square, paint(Boxes(((1, 1, 3, 2),)), (5, 6)))
    points = np.array([[3, 2], [27, 8], [20, 22], [9, 17]], float)
    found = paint(Outlines((Polygon(tuple(points.ravel())),)), (24, 30))
    edges = np.roll(points, -1, 0) - points
    for row, column in np.ndindex(24, 30):
        away = np.array([column + 0.5, row + 0.5]) - points
        distance = (edges[:, 0] * away[:, 1] - edges[:, 1] * away[:, 0]) / np.linalg.norm(edges, axis=1)
        if abs(distance).min() > 0.3:  # on the line itself, a fifth of a pixel decides
            assert found[row, column] == (distance > 0).all()


def test_runs_go_down_the_columns():
    mask = paint(Outlines((Runs((1, 2, 4, 1, 1), (3, 3)),)), (3, 3))
    assert np.argwhere(mask.T).tolist() == [[0, 1], [0, 2], [2, 1]]
    with pytest.raises(ValueError, match="add up to 8"):
        Runs((1, 7), (3, 3))
    with pytest.raises(ValueError, match="run lengths for an image"):
        paint(Outlines((Runs((9,), (3, 3)),)), (3, 4))


def packed(counts):
    """An independent writer of COCO's compressed run lengths."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            low, value = value & 31, value >> 5
            last = value == (-1 if low & 16 else 0)
            text += chr(48 + low + (0 if last else 32))
            if last:
                break
    return text


def test_compressed_runs_are_read():
    rng = np.random.default_rng(0)
    for size in (3, 40, 700):
        mask = (
            rng.random((size, size)) > 0.5 if size < 100 else np.arange(size * size).reshape(size, size) % 9000 > 4000
        )
        flat = np.concatenate([[False], mask.T.ravel(), [not mask.T.ravel()[-1]]])
        ends = np.flatnonzero(flat[1:] != flat[:-1])
        counts = np.diff(np.concatenate([[0], ends])).tolist()
        runs = runs_of(packed(counts), (size, size))
        np.testing.assert_array_equal(paint(Outlines((runs,)), (size, size)), mask)
    with pytest.raises(ValueError, match="no part of"):
        runs_of("é", (1, 1))
