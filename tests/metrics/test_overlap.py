import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxplain.geometry import regular
from voxplain.maps import Heatmap
from voxplain.masks import relative_threshold
from voxplain.metrics import (
    Undefined,
    chance_level,
    coverage,
    daam_iou,
    daam_mask,
    dice,
    foreground_background_iou,
    intensity,
    iou,
    mean_iou,
    mixture_mask,
    mixture_threshold,
    oracle_iou,
)

PREDICTION = np.array([[True, True], [False, False]])
TRUTH = np.array([[True, False], [True, False]])
SCORES = np.array([0.05, 0.15, 0.35, 0.9])
LAST_TWO = np.array([False, False, True, True])
OF_MASKS = (iou, dice, foreground_background_iou)
OF_SCORES = (daam_iou, oracle_iou, lambda s, t: mean_iou(s, t, scale="raw"))


def drawn(seed: int, levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=(4, 5, 3)).astype(float) if levels else rng.random((4, 5, 3))
    truth = rng.random(scores.shape) < 0.3
    truth.flat[0], truth.flat[-1] = True, False
    return scores, truth


def test_masks_that_share_one_of_three_cells():
    assert iou(PREDICTION, TRUTH) == pytest.approx(1 / 3)
    assert dice(PREDICTION, TRUTH) == pytest.approx(1 / 2)
    assert foreground_background_iou(PREDICTION, TRUTH) == pytest.approx(1 / 3)


def test_a_small_truth_makes_an_empty_prediction_look_half_right_with_its_background():
    truth = np.zeros((10, 10), bool)
    truth[0, 0] = True
    nothing = np.zeros_like(truth)
    assert iou(nothing, truth) == dice(nothing, truth) == 0
    assert foreground_background_iou(nothing, truth) == pytest.approx(0.495)


@pytest.mark.parametrize("metric", OF_MASKS)
def test_equal_masks_score_one_and_opposite_masks_zero(metric):
    assert metric(TRUTH, TRUTH) == 1
    assert metric(~TRUTH, TRUTH) == 0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_dice_follows_from_iou_and_a_region_equals_cutting(seed):
    scores, truth = drawn(seed)
    found, overlap = scores > 0.5, iou(scores > 0.5, truth)
    assert dice(found, truth) == pytest.approx(2 * overlap / (1 + overlap))
    region = np.zeros(truth.shape, bool)
    region[:3, 1:], truth[1, 1, 1], truth[1, 1, 2] = True, True, False
    for metric in OF_MASKS:
        assert metric(found, truth, region) == metric(found[:3, 1:], truth[:3, 1:])
    assert oracle_iou(scores, truth, region) == oracle_iou(scores[:3, 1:], truth[:3, 1:])


def test_iou_over_thresholds_depends_on_the_scale_unless_the_map_is_brought_to_one():
    assert mean_iou(SCORES, LAST_TWO, scale="raw") == pytest.approx((2 / 3 + 1 + 1 + 1 / 2 + 1 / 2) / 5)
    assert mean_iou(10 * SCORES, LAST_TWO, scale="raw") == pytest.approx((4 * 2 / 4 + 2 / 3) / 5)
    minmax = mean_iou(SCORES, LAST_TWO, scale="minmax")
    assert mean_iou(10 * SCORES + 3, LAST_TWO, scale="minmax") == pytest.approx(minmax)
    assert mean_iou(SCORES, LAST_TWO, scale="raw", thresholds=(0.35,)) == 0.5, "a cell at the threshold is left out"
    assert mean_iou(-SCORES, LAST_TWO, scale="raw") == 0
    with pytest.raises(Undefined, match="constant"):
        mean_iou(np.ones(4), LAST_TWO, scale="minmax")
    with pytest.raises(ValueError, match="at least one threshold"):
        mean_iou(SCORES, LAST_TWO, scale="raw", thresholds=())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 3]))
def test_the_oracle_is_the_best_of_all_thresholds(seed, levels):
    scores, truth = drawn(seed, levels)
    assert oracle_iou(scores, truth) == max(iou(scores >= level, truth) for level in np.unique(scores))
    assert oracle_iou(np.exp(scores), truth) == oracle_iou(scores, truth)
    assert oracle_iou(np.zeros(truth.shape), truth) == chance_level(truth)


def test_the_daam_rule_keeps_ties_with_its_threshold_and_needs_a_positive_score():
    scores, truth = np.array([0.3, 0.5, 1.0, 0.41]), np.array([False, True, True, False])
    assert [daam_iou(scores, truth, tau=tau) for tau in (0.3, 0.4, 0.5)] == [2 / 4, 2 / 3, 1]
    assert coverage(scores) == 3 / 4
    assert intensity(scores) == pytest.approx(0.5525)
    assert coverage(-scores) == daam_iou(-scores, truth) == 0
    assert coverage(np.ones(4)) == 1 and intensity(np.ones(4)) == 1
    assert daam_iou(scores, truth, np.array([True, True, False, True])) == 1 / 2, "the maximum is the whole map's"
    with pytest.raises(ValueError, match="tau"):
        daam_mask(scores, tau=1.1)


def test_the_daam_rule_is_the_one_for_heatmaps():
    scores = drawn(3)[0].astype(np.float32)
    heatmap = Heatmap("x", scores, regular(scores.shape, (1.0, 1.0, 1.0)))
    np.testing.assert_array_equal(daam_mask(scores, tau=0.3), relative_threshold(heatmap, 0.3).values)


def test_a_mixture_of_two_levels_is_parted_in_the_middle_and_follows_the_scale():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0.2, 0.05, 3000), rng.normal(0.8, 0.05, 1096)]).reshape(64, 64)
    assert mixture_threshold(scores) == pytest.approx(0.5, abs=0.01)
    assert mixture_threshold(40 * scores - 7) == pytest.approx(40 * mixture_threshold(scores) - 7, abs=1e-6)
    assert mixture_threshold(TRUTH.astype(float)) == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(Undefined, match="constant"):
        mixture_threshold(np.full((3, 3), 0.1))


@pytest.mark.parametrize("depth", [(), (1,)])
def test_the_majority_takes_lone_cells_and_fills_holes_but_leaves_the_border(depth):
    scores = np.zeros((9, 12))
    scores[2:7, 2:7] = 1
    scores[4, 4], scores[4, 9], scores[0, 11] = 0, 1, 1
    found = mixture_mask(scores.reshape(depth + scores.shape)).reshape(scores.shape)
    assert found[4, 4] and not found[4, 9] and found[0, 11]
    assert found[2:7, 2:7].sum() == 21, "the corners have four of nine"
    assert found.sum() == 22


@pytest.mark.parametrize("metric", [*OF_MASKS, *OF_SCORES])
def test_an_empty_truth_has_no_overlap(metric):
    given_first = TRUTH if metric in OF_MASKS else np.ones((2, 2))
    with pytest.raises(Undefined, match="truth is empty"):
        metric(given_first, np.zeros((2, 2), bool))


def test_a_truth_that_fills_the_region_has_no_background():
    assert iou(PREDICTION, np.ones((2, 2), bool)) == 0.5
    with pytest.raises(Undefined, match="fills"):
        foreground_background_iou(PREDICTION, np.ones((2, 2), bool))
    with pytest.raises(Undefined, match="region is empty"):
        iou(PREDICTION, TRUTH, np.zeros((2, 2), bool))


@pytest.mark.parametrize("metric", [*OF_SCORES, lambda s, t: coverage(s), lambda s, t: intensity(s)])
def test_nan_is_an_error_and_no_low_score(metric):
    with pytest.raises(ValueError, match="NaN") as error:
        metric(np.full((2, 2), np.nan), TRUTH)
    assert not isinstance(error.value, Undefined)


@pytest.mark.parametrize("metric", [*OF_MASKS, *OF_SCORES])
def test_other_shapes_are_an_error_and_never_resized(metric):
    given_first = np.ones((2, 1), bool) if metric in OF_MASKS else np.ones((2, 1))
    with pytest.raises((ValueError, TypeError)) as error:  # TypeError where the tests check shapes by annotation
        metric(given_first, TRUTH)
    assert not isinstance(error.value, Undefined)
