"""Thresholds and what they keep: shares, ties, empty maps, joint maps of several words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voxplain.geometry import regular
from voxplain.maps import Heatmap, Mask
from voxplain.masks import joint, largest_component, relative_threshold, top_fraction

GRIDS = st.lists(st.integers(1, 6), min_size=2, max_size=3).map(tuple)
VALUES = GRIDS.flatmap(lambda grid: arrays(np.float32, grid, elements=st.floats(0, 1, width=32)))
FRACTIONS = st.floats(0.01, 1)


def heat(values, label="word"):
    values = np.asarray(values, np.float32)
    return Heatmap(label, values, regular(values.shape, 2.0))


@given(grid=GRIDS, fraction=FRACTIONS, seed=st.integers(0, 99))
def test_without_ties_the_kept_share_is_the_fraction(grid, fraction, seed):
    values = np.random.default_rng(seed).permutation(np.arange(1, np.prod(grid) + 1)).reshape(grid)
    kept = top_fraction(heat(values), fraction).values.sum()
    assert max(1, fraction * values.size - 1) - 1e-6 <= kept <= fraction * values.size + 1 + 1e-6


def test_a_quarter_is_the_75th_percentile_of_the_nonzero_values():
    values = np.arange(25.0).reshape(5, 5)  # one zero and 24 values
    mask = top_fraction(heat(values), 0.25)
    assert mask.values.sum() == 6
    assert np.array_equal(mask.values, values >= np.percentile(values[values > 0], 75))


@given(values=VALUES, small=FRACTIONS, large=FRACTIONS)
def test_a_mask_shrinks_with_its_fraction_and_holds_the_peak(values, small, large):
    small, large = sorted((small, large))
    inner, outer = top_fraction(heat(values), small).values, top_fraction(heat(values), large).values
    assert not (inner & ~outer).any()
    assert inner.any() == values.any() and not (outer & (values == 0)).any()
    assert not values.any() or inner[heat(values).peak]


@given(values=VALUES, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_mask_shrinks_as_its_threshold_grows(values, low, high):
    low, high = sorted((low, high))
    inner, outer = relative_threshold(heat(values), high).values, relative_threshold(heat(values), low).values
    assert not (inner & ~outer).any()
    assert inner.any() == values.any()


def test_all_of_the_nonzero_values_are_the_fraction_one():
    values = np.array([[0, 1], [2, 3]])
    assert np.array_equal(top_fraction(heat(values), 1.0).values, values > 0)


def test_ties_with_the_last_kept_value_are_kept():
    assert top_fraction(heat([[1, 1, 1], [1, 1, 1]]), 0.25).values.all()
    assert top_fraction(heat([[1, 2, 2, 2]]), 0.25).values.tolist() == [[False, True, True, True]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_on_the_native_grid_ties_of_enlarging_do_not_shift_the_share(shape):
    native = heat(np.random.default_rng(0).random(shape))
    mask = top_fraction(native, 0.25)
    large = mask.resize(native.geometry.at(tuple(4 * size for size in shape)))
    assert large.values.mean() == pytest.approx(mask.values.mean()) == pytest.approx(0.25)


@pytest.mark.parametrize("level", [0.0, -1.0])
def test_a_map_without_a_positive_value_gives_an_empty_mask(level):
    flat = heat(np.full((3, 3), level))
    assert not top_fraction(flat).values.any()
    assert not relative_threshold(flat, 0.0).values.any()
    assert not joint([flat, flat]).values.any()


def test_the_relative_threshold_is_a_share_of_the_maximum():
    assert relative_threshold(heat([[1, 3.9, 4, 10]]), 0.4).values.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match="expected more than 0"):
        top_fraction(heat([[1, 2]]), fraction)
    if fraction != 0:
        with pytest.raises(ValueError, match="expected 0 to 1"):
            relative_threshold(heat([[1, 2]]), fraction)


def test_joint_takes_the_mean_of_the_active_words_only():
    one = heat([[8, 6, 1, 1, 1, 1, 1, 1]], "one")
    two = heat([[4, 1, 6, 1, 1, 1, 1, 1]], "two")
    both = joint([one, two], 0.25)
    assert both.values.tolist() == [[6, 6, 6, 0, 0, 0, 0, 0]]  # both active, one alone, two alone, neither
    assert both.label == "one + two"


@given(values=VALUES, fraction=FRACTIONS)
def test_joint_of_one_word_is_the_word_where_it_is_active(values, fraction):
    word = heat(values)
    expected = np.where(top_fraction(word, fraction).values, word.values, 0)
    assert np.array_equal(joint([word], fraction).values, expected)
    assert np.allclose(joint([word, word, word], fraction).values, expected, rtol=1e-5)


@given(grid=GRIDS, fraction=FRACTIONS, seed=st.integers(0, 99))
def test_joint_does_not_depend_on_the_order_and_covers_the_union(grid, fraction, seed):
    words = [heat(each) for each in np.random.default_rng(seed).random((3, *grid)) + 0.1]
    found = joint(words, fraction).values
    assert np.allclose(found, joint(words[::-1], fraction).values, rtol=1e-5)
    assert np.array_equal(found > 0, np.any([top_fraction(word, fraction).values for word in words], axis=0))


def test_joint_needs_maps_on_one_grid():
    with pytest.raises(ValueError, match="'a' and 'b' lie on different grids"):
        joint([heat(np.ones((2, 2)), "a"), heat(np.ones((2, 3)), "b")])
    with pytest.raises(ValueError, match="at least one"):
        joint([])


@pytest.mark.parametrize("depth", [(), (1,)])
def test_the_largest_component_is_kept_and_corners_do_not_connect(depth):
    drawing = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
    mask = Mask("word", drawing.reshape(*depth, 3, 4), regular((*depth, 3, 4), 1.0))
    expected = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]], bool)
    assert np.array_equal(largest_component(mask).values.reshape(3, 4), expected)


def test_the_largest_component_of_nothing_is_nothing():
    empty = Mask("word", np.zeros((2, 2), bool), regular((2, 2), 1.0))
    assert not largest_component(empty).values.any()


@given(values=GRIDS.flatmap(lambda grid: arrays(np.bool_, grid)))
def test_the_largest_component_is_a_part_and_taking_it_again_changes_nothing(values):
    mask = Mask("word", values, regular(values.shape, 1.0))
    once = largest_component(mask)
    assert not (once.values & ~mask.values).any() and once.values.any() == mask.values.any()
    assert np.array_equal(largest_component(once).values, once.values)
