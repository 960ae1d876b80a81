"""Cells and where they are in the patient."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain.geometry import Geometry, regular

SIZES = st.lists(st.integers(1, 9), min_size=2, max_size=3).map(tuple)
FACTORS = st.integers(1, 4)


STEPS = st.lists(st.floats(0.3, 6), min_size=3, max_size=3)
ORIGINS = st.lists(st.floats(-200, 200), min_size=3, max_size=3)


@st.composite
def geometries(draw):
    """Shape and affine of a turned, anisotropic grid of two or three axes anywhere in the world."""
    shape = draw(SIZES)
    ndim = len(shape)
    normal = np.array(draw(STEPS)[:ndim])
    mirror = np.eye(ndim) - 2 * np.outer(normal, normal) / (normal @ normal)  # a reflection: orthogonal, not diagonal
    affine = np.eye(ndim + 1)
    affine[:-1, :-1] = mirror * draw(STEPS)[:ndim]
    affine[:-1, -1] = draw(ORIGINS)[:ndim]
    return shape, affine


def test_columns_grow_to_the_left_rows_to_posterior_slices_to_superior():
    grid = regular((4, 5, 6), (2.0, 3.0, 5.0), origin=(10.0, 20.0, 30.0))
    cells = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]], float)
    assert grid.world(cells).tolist() == [[10, 20, 30], [15, 20, 30], [10, 23, 30], [10, 20, 32]]
    assert grid.spacing == (2.0, 3.0, 5.0)


def test_a_radiograph_has_x_along_columns_and_y_along_rows():
    grid = regular((5, 6), (3.0, 5.0))
    assert grid.world(np.array([[1.0, 0.0], [0.0, 1.0]])).tolist() == [[0, 3], [5, 0]]


@given(drawn=geometries())
def test_index_undoes_world(drawn):
    geometry = Geometry(*drawn)
    points = np.random.default_rng(0).uniform(-5, 20, (7, geometry.ndim))
    assert np.allclose(geometry.index(geometry.world(points)), points, atol=1e-8)


@given(drawn=geometries(), factor=FACTORS)
def test_a_coarse_cell_lies_at_the_center_of_its_block(drawn, factor):
    geometry = Geometry(*drawn)
    fine = Geometry(tuple(size * factor for size in geometry.shape), geometry.affine)
    coarse = fine.at(geometry.shape)
    block = np.stack(np.meshgrid(*[np.arange(factor, dtype=float)] * fine.ndim), -1).reshape(-1, fine.ndim)
    first = coarse.world(np.zeros((1, fine.ndim)))[0]
    assert np.allclose(first, fine.world(block).mean(0), atol=1e-8)
    assert np.allclose(coarse.spacing, np.array(fine.spacing) * factor)


@given(drawn=geometries(), grid=st.lists(st.integers(1, 20), min_size=3, max_size=3))
def test_going_to_a_grid_and_back_is_the_identity(drawn, grid):
    geometry = Geometry(*drawn)
    there = geometry.at(tuple(grid[: geometry.ndim]))
    assert there.shape == tuple(grid[: geometry.ndim])
    assert there.at(geometry.shape).same_as(geometry)
    assert np.allclose(there.at(geometry.shape).affine, geometry.affine, atol=1e-8)


@given(drawn=geometries())
def test_a_shift_of_a_tenth_of_a_cell_is_another_place(drawn):
    geometry = Geometry(*drawn)
    moved = geometry.affine.copy()
    moved[:-1, -1] += geometry.affine[:-1, 0] * 0.1
    assert geometry.same_as(Geometry(geometry.shape, geometry.affine.copy()))
    assert not geometry.same_as(Geometry(geometry.shape, moved))
    assert not geometry.same_as(Geometry((*geometry.shape[:-1], geometry.shape[-1] + 1), geometry.affine))


def test_unknown_spacing_stays_unknown_on_a_coarser_grid():
    assert not Geometry((4, 4), np.eye(3), spacing_known=False).at((2, 2)).spacing_known


def test_the_callers_affine_stays_the_callers():
    affine = np.eye(4)
    geometry = Geometry((2, 2, 2), affine)
    affine[0, 0] = 7
    assert geometry.affine[0, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        geometry.affine[0, 0] = 7


@pytest.mark.parametrize(
    ("shape", "affine", "message"),
    [
        ((4,), np.eye(2), "two or three"),
        ((4, 0), np.eye(3), "positive sizes"),
        ((4, 4, 4), np.eye(3), r"need \(4, 4\)"),
        ((4, 4), np.zeros((3, 3)), "must be finite and end in"),
        ((4, 4), np.diag([1.0, 0.0, 1.0]), "cannot be inverted"),
        ((4, 4), np.array([[1.0, 2, 0], [2, 4, 0], [0, 0, 1]]), "cannot be inverted"),
        ((4, 4), np.diag([1.0, np.nan, 1.0]), "finite"),
    ],
)
def test_a_geometry_that_maps_no_grid_is_refused(shape, affine, message):
    with pytest.raises(ValueError, match=message):
        Geometry(shape, affine)


def test_a_grid_of_other_axes_and_a_spacing_of_zero_are_refused():
    with pytest.raises(ValueError, match="3 positive sizes"):
        regular((4, 4, 4), 1.0).at((2, 2))
    with pytest.raises(ValueError, match="2 positive sizes"):
        regular((4, 4), 1.0).at((2, 0))
    with pytest.raises(ValueError, match="positive"):
        regular((4, 4), 0.0)
