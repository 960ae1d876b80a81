"""Image, boxes and masks go the same way, and it is the way that is written down."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.datasets.base import Boxes
from voxplain.datasets.frames import Contain, Cover, Crop, Grid, Orient, Pad, Resize, frame_of, read_steps
from voxplain.datasets.shapes import paint
from voxplain.geometry import Geometry, regular
from voxplain.maps import Heatmap

RAS = np.array([[0, 0, -2.0, 50], [0, -3.0, 0, 60], [4.0, 0, 0, 7], [0, 0, 0, 1]])  # as a NIfTI in RAS+ is read
SAGITTAL = np.array([[3.0, 0, 0, 1], [0, 0, 2.0, 2], [0, -4.0, 0, 3], [0, 0, 0, 1]])  # slices run to the left


def plane(rows, columns):
    return regular((rows, columns), 1.0)


def numbered(shape):
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)


def test_no_step_leaves_every_value_as_it_is():
    image = numbered((5, 7))
    frame = frame_of(plane(5, 7), ())
    np.testing.assert_array_equal(frame.image(image), image)
    assert frame.target is frame.source


def test_crop_and_pad_move_cells_and_change_none():
    image = numbered((4, 9))
    np.testing.assert_array_equal(frame_of(plane(4, 9), [Crop((4, 4))]).image(image), image[:, :, 2:6])
    np.testing.assert_array_equal(frame_of(plane(4, 9), [Crop((2, 3), (1, 6))]).image(image), image[:, 1:3, 6:9])
    padded = frame_of(plane(4, 9), [Pad((7, 9))]).image(image)
    np.testing.assert_array_equal(padded[:, 1:5], image)
    assert (padded[:, 0] == 1).all() and (padded[:, 5:] == 1).all()  # the lowest value of the image
    assert frame_of(plane(4, 9), [Crop((6, 6)), Pad((6, 6))]).target.shape == (6, 6)


@pytest.mark.parametrize(
    ("step", "shape"),
    [
        (Cover((256, 256)), (256, 341)),
        (Contain((256, 256)), (192, 256)),
        (Resize((10, 20)), (10, 20)),
        (Crop((512, 512)), (480, 512)),
        (Pad((512, 512)), (512, 640)),
    ],
)
def test_a_step_says_which_shape_it_makes(step, shape):
    assert frame_of(plane(480, 640), [step]).target.shape == shape


def test_shrinking_takes_the_mean_of_what_a_cell_covers_and_enlarging_is_linear():
    image = numbered((4, 6))
    mean = image.reshape(1, 2, 2, 3, 2).mean((2, 4))
    np.testing.assert_allclose(frame_of(plane(4, 6), [Resize((2, 3))]).image(image), mean, rtol=1e-6)
    wide = frame_of(plane(2, 2), [Resize((2, 4))]).image(np.array([[[0, 4.0], [0, 4]]], np.float32))
    np.testing.assert_allclose(wide[0, 0], [0, 1, 3, 4], atol=1e-6)
    both = frame_of(plane(4, 2), [Resize((2, 4))]).image(np.array([[[0, 4.0]] * 2 + [[2, 6]] * 2], np.float32))
    np.testing.assert_allclose(both[0], [[0, 1, 3, 4], [2, 3, 5, 6]], atol=1e-6)


@pytest.mark.parametrize("affine", [RAS, SAGITTAL])
def test_orient_turns_a_volume_so_that_axes_run_along_the_patient(affine):
    source = Geometry((3, 4, 5), affine)
    frame = frame_of(source, [Orient()])
    columns, rows, slices = (frame.target.affine[:3, axis] for axis in (2, 1, 0))
    assert columns[0] > 0 and rows[1] > 0 and slices[2] > 0
    image = numbered((3, 4, 5))
    found = frame.image(image)
    assert sorted(found.ravel()) == sorted(image.ravel())
    for index in np.ndindex(*frame.target.shape):  # each voxel is still where the patient has it
        at = source.index(frame.target.world(np.array([index], float)))[0].round().astype(int)
        assert found[0][index] == image[0][tuple(at)]
    assert frame_of(frame.target, [Orient()]).target.same_as(frame.target)


def test_a_grid_is_laid_around_the_center_of_a_turned_volume():
    source = Geometry((6, 8, 10), RAS)
    target = frame_of(source, [Grid((4, 4, 4), (6.0, 6.0, 6.0))]).target
    centers = [place.world((np.array([place.shape], float) - 1) / 2) for place in (source, target)]
    np.testing.assert_allclose(*centers)
    image = np.zeros((1, 6, 8, 10), np.float32)
    image[0, :, :, :5] = 1  # columns run to the right, so these lie on the patient's left
    found = frame_of(source, [Grid((4, 4, 4), (6.0, 6.0, 6.0))]).image(image)[0]
    assert found[:, :, 3].mean() > 0.5 > found[:, :, 0].mean()
    with pytest.raises(ValueError, match="how large its voxels are"):
        frame_of(Geometry((6, 8, 10), RAS, spacing_known=False), [Grid((4, 4, 4), (6.0, 6.0, 6.0))])


@given(
    rows=st.integers(3, 20),
    columns=st.integers(3, 20),
    size=st.integers(2, 12),
    data=st.data(),
)
def test_a_mask_of_boxes_is_the_stored_mask_read_at_each_center(rows, columns, size, data):
    x, y = data.draw(st.integers(0, columns - 1)), data.draw(st.integers(0, rows - 1))
    box = (
        float(x),
        float(y),
        float(data.draw(st.integers(1, columns - x))),
        float(data.draw(st.integers(1, rows - y))),
    )
    source = plane(rows, columns)
    frame = frame_of(source, [Cover((size, size)), Crop((size, size))])
    stored = paint(Boxes((box,)), (rows, columns))
    slow = np.zeros((size, size), bool)
    wide = frame_of(source, [Cover((size, size))]).target.shape
    corner = [round((a - size) / 2) for a in wide]
    for i, j in np.ndindex(size, size):
        center = [
            (at + start + 0.5) * old / new
            for at, start, old, new in zip((i, j), corner, (rows, columns), wide, strict=True)
        ]
        on_edge = any(abs(c - round(c)) < 1e-6 for c in center)
        if on_edge:  # between two stored cells: the later one
            center = [c + 1e-6 for c in center]
        slow[i, j] = y <= center[0] < y + box[3] and x <= center[1] < x + box[2]
    np.testing.assert_array_equal(frame.mask(stored), slow)


@given(size=st.integers(4, 40), x=st.floats(0, 20), y=st.floats(0, 10), w=st.floats(1, 10), h=st.floats(1, 10))
def test_boxes_travel_with_the_mask(size, x, y, w, h):
    frame = frame_of(plane(20, 30), [Cover((size, size)), Crop((size, size))])
    factor = frame_of(plane(20, 30), [Cover((size, size))]).target.shape[1] / 30
    left = round((30 * factor - size) / 2)
    found = frame.boxes([(x, y, w, h)])
    low, high = np.clip([x * factor - left, (x + w) * factor - left], 0, size)
    if high - low > 1e-3:
        np.testing.assert_allclose(found[0], [low, y * size / 20, high - low, h * size / 20], atol=1e-3)
    elif high - low == 0:
        assert found == ()


def test_a_box_in_a_volume_is_turned_with_it():
    source = Geometry((4, 5, 6), RAS)  # columns run to the right, rows to anterior
    frame = frame_of(source, [Orient()])
    (found,) = frame.boxes([(0, 0, 3, 2, 1, 1)])
    np.testing.assert_allclose(found, (4, 4, 3, 2, 1, 1))
    stored = paint(Boxes(((0, 0, 3, 2, 1, 1),)), (4, 5, 6))
    np.testing.assert_array_equal(frame.mask(stored), paint(Boxes((found,)), (4, 5, 6)))


def test_what_leaves_the_frame_is_gone_and_the_share_says_how_much():
    frame = frame_of(plane(10, 30), [Crop((10, 10))])
    assert frame.boxes([(0, 0, 8, 5)]) == ()
    assert frame.share(paint(Boxes(((0, 0, 8, 5),)), (10, 30))) == 0
    assert frame.boxes([(5, 0, 10, 5)]) == ((0, 0, 5, 5),)
    assert frame.share(paint(Boxes(((5, 0, 10, 5),)), (10, 30))) == 0.5


def test_a_frame_is_made_again_from_what_it_wrote_down():
    frame = frame_of(plane(480, 640), [Orient(), Cover((64, 64)), Crop((32, 32), (1, 2)), Pad((40, 40))])
    facts = json.loads(json.dumps(frame.facts()))
    assert facts["stored"] == [480, 640] and facts["scored"] == [40, 40]
    assert read_steps(facts["steps"]) == frame.steps
    assert frame_of(plane(480, 640), read_steps(facts["steps"])).target.same_as(frame.target)
    with pytest.raises(ValueError, match="expected one of"):
        read_steps([{"step": "Shear"}])


def test_a_heatmap_in_the_frame_comes_back_to_the_stored_image():
    frame = frame_of(plane(8, 16), [Crop((8, 8)), Resize((4, 4))])
    values = np.zeros((4, 4), np.float32)
    values[1, 2] = 1
    back = Heatmap("word", values, frame.target).resize(frame.source, "nearest").values
    assert np.argwhere(back).min(0).tolist() == [2, 8] and np.argwhere(back).max(0).tolist() == [3, 9]


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        (Resize((3, 3, 3)), "needs 2 positive sizes"),
        (Crop((2, 2), (3, 0)), "the corner must lie"),
        (Pad((0, 3)), "needs 2 positive sizes"),
    ],
)
def test_a_step_that_does_not_fit_is_refused(step, complaint):
    with pytest.raises(ValueError, match=complaint):
        frame_of(plane(4, 4), [step])


def test_values_of_another_image_are_refused():
    with pytest.raises(ValueError, match="not of one image"):
        frame_of(plane(4, 4), []).image(numbered((4, 5)))
