"""Resampling against PyTorch, its laws, and the way through world coordinates."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxplain.geometry import Geometry, regular
from voxplain.resampling import resample, resample_to

GRIDS = st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple)
SHAPES = st.lists(st.integers(1, 15), min_size=3, max_size=3).map(tuple)
MODES = ["linear", "nearest", "area", "cubic"]


def drawn(grid, tokens=2, seed=0):
    return np.random.default_rng(seed).normal(size=(tokens, *grid)).astype(np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs", "grid", "shape"),
    [
        ("linear", "bilinear", (5, 7), (20, 9)),
        ("linear", "bilinear", (9, 8), (4, 3)),
        ("linear", "trilinear", (4, 5, 6), (9, 5, 24)),
        ("linear", "trilinear", (9, 1, 6), (3, 4, 6)),
        ("area", "area", (12, 8), (4, 2)),
        ("area", "area", (8, 6, 4), (2, 3, 4)),
        ("cubic", "bicubic", (5, 7), (20, 9)),
        ("cubic", "bicubic", (9, 8), (4, 3)),
        ("nearest", "nearest-exact", (5, 7), (20, 9)),
        ("nearest", "nearest-exact", (5, 4, 7), (2, 9, 10)),
    ],
)
def test_it_equals_torch(ours, theirs, grid, shape):
    maps = drawn(grid)
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], shape, mode=theirs)[0].numpy()
    assert np.abs(resample(maps, shape, mode=ours) - expected).max() < 1e-5


@pytest.mark.parametrize("mode", MODES)
@given(grid=GRIDS, shape=SHAPES, level=st.floats(-9, 9, width=32))
def test_a_constant_stays_constant(mode, grid, shape, level):
    out = resample(np.full((1, *grid), level, np.float32), shape[: len(grid)], mode=mode)
    assert out.shape == (1, *shape[: len(grid)]) and out.dtype == np.float32
    assert np.allclose(out, level, atol=1e-4)


@pytest.mark.parametrize("mode", ["linear", "nearest", "area"])
@given(grid=GRIDS, shape=SHAPES)
def test_nothing_leaves_the_range_of_the_values(mode, grid, shape):
    maps = drawn(grid)
    out = resample(maps, shape[: len(grid)], mode=mode)
    assert maps.min() - 1e-5 <= out.min() and out.max() <= maps.max() + 1e-5


def test_cubic_does_leave_it():
    step = np.zeros((1, 4, 4), np.float32)
    step[:, :, 2:] = 1
    assert resample(step, (4, 16), mode="cubic").min() < -0.01


@pytest.mark.parametrize("mode", MODES)
@given(grid=GRIDS, shape=SHAPES)
def test_it_is_linear_so_sums_and_resizes_may_change_places(mode, grid, shape):
    one, two, shape = drawn(grid, seed=1), drawn(grid, seed=2), shape[: len(grid)]
    apart = resample(one, shape, mode=mode) + 3 * resample(two, shape, mode=mode)
    assert np.allclose(resample(one + 3 * two, shape, mode=mode), apart, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@given(grid=GRIDS)
def test_the_same_grid_gives_the_same_values(mode, grid):
    assert np.array_equal(resample(drawn(grid), grid, mode=mode), drawn(grid))


@pytest.mark.parametrize("mode", MODES)
def test_a_volume_of_depth_one_equals_the_image(mode):
    image = drawn((5, 6))
    volume = resample(image[:, None], (1, 11, 7), mode=mode)
    assert np.allclose(volume[:, 0], resample(image, (11, 7), mode=mode), atol=1e-6)


@given(grid=GRIDS, factor=st.integers(1, 3))
def test_enlarging_to_blocks_and_taking_their_mean_gives_the_values_back(grid, factor):
    maps = drawn(grid)
    large = resample(maps, tuple(size * factor for size in grid), mode="nearest")
    assert np.allclose(resample(large, grid, mode="area"), maps, atol=1e-6)


@pytest.mark.parametrize(("shape", "mode"), [((4,), "linear"), ((4, 0), "linear"), ((4, 4, 4), "nearest")])
def test_a_shape_that_does_not_fit_is_refused(shape, mode):
    with pytest.raises(ValueError, match="give 2 positive sizes"):
        resample(drawn((3, 3)), shape, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@given(grid=GRIDS, shape=SHAPES)
def test_through_the_world_and_by_shape_are_the_same_over_one_field_of_view(mode, grid, shape):
    shape = shape[: len(grid)]
    source = regular(grid, 3.0, origin=[-7.0] * len(grid))
    values = drawn(grid, tokens=1)
    through = resample_to(values[0], source, source.at(shape), mode)
    assert np.allclose(through, resample(values, shape, mode=mode)[0], atol=1e-4)


def ramp(geometry: Geometry, slope):
    """A value that is a straight line in the world, so that every right answer is known."""
    cells = np.indices(geometry.shape).reshape(geometry.ndim, -1).T.astype(float)
    return (geometry.world(cells) @ np.array(slope)).reshape(geometry.shape).astype(np.float32)


def turned(shape, angle=0.3, origin=(9.0, 4.0, 6.0)):
    affine = regular(shape, 1.0, origin=origin[: len(shape)]).affine.copy()
    spin = np.eye(len(shape))
    spin[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:-1, :-1] = spin @ affine[:-1, :-1]
    return Geometry(shape, affine)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["shifted", "flipped", "turned"])
def test_a_straight_line_in_the_world_survives_any_change_of_grid(ndim, kind):
    source, slope = regular((20,) * ndim, 1.5), [1.0, -2.0, 0.5][:ndim]
    target = turned((7,) * ndim, 0.3 if kind == "turned" else 0.0)
    if kind == "flipped":
        flip = np.eye(ndim + 1)
        flip[0, 0], flip[0, -1] = -1, target.shape[0] - 1
        target = Geometry(target.shape, target.affine @ flip)
    assert np.allclose(resample_to(ramp(source, slope), source, target), ramp(target, slope), atol=1e-3)


@pytest.mark.parametrize("angle", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_outside_the_field_of_view_is_zero(angle, mode):
    source = regular((6, 6), 2.0)  # covers -1 to 11 mm
    target = turned((40, 40), angle, origin=(-9.0, -12.0))
    out = resample_to(np.ones(source.shape, np.float32), source, target, mode)
    cells = np.indices(target.shape).reshape(2, -1).T.astype(float)
    places = target.world(cells)
    inside = ((places > -1) & (places < 11)).all(1).reshape(target.shape)
    clear = np.greater(np.abs(np.abs(places - 5).max(1) - 6), 0.01).reshape(target.shape)  # not on the very edge
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(out * clear, inside * clear)


def test_turned_grids_know_no_area_and_shapes_must_agree():
    source = regular((6, 6), 2.0)
    with pytest.raises(ValueError, match="linear or nearest"):
        resample_to(np.ones((6, 6)), source, turned((6, 6)), "area")
    with pytest.raises(ValueError, match="disagree"):
        resample_to(np.ones((6, 5)), source, source)
    with pytest.raises(ValueError, match="disagree"):
        resample_to(np.ones((6, 6)), source, regular((6, 6, 6), 2.0))
