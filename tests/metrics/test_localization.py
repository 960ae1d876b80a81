import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxplain.metrics import (
    Undefined,
    auc_roc,
    average_precision,
    chance_level,
    cnr,
    mass_inside,
    native_oracle,
    pointing_game,
    rank_correlation,
    region_lit,
    top_overlap,
)

SCORES = np.array([[1.0, 3.0], [0.0, 2.0]])
TRUTH = np.array([[True, True], [False, False]])


def drawn(seed: int, shape: tuple[int, ...] = (5, 6, 7), levels: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (with ties where `levels` is given) and a truth that neither is empty nor fills the grid."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=shape).astype(float) if levels else rng.normal(size=shape)
    truth = rng.random(shape) < 0.3
    truth.flat[:3], truth.flat[-3:] = True, False
    return scores, truth


def brute_auc(scores: np.ndarray, truth: np.ndarray) -> float:
    wins = scores[truth][:, None] - scores[~truth][None, :]
    return float(((wins > 0) + 0.5 * (wins == 0)).mean())


def test_the_worked_example_of_the_specification():
    assert cnr(SCORES, TRUTH) == pytest.approx(0.5)
    assert auc_roc(SCORES, TRUTH) == 0.75
    assert pointing_game(SCORES, TRUTH) == 1.0


def test_the_worked_example_with_sides_swapped():
    assert cnr(SCORES, ~TRUTH) == pytest.approx(-0.5)
    assert cnr(SCORES, ~TRUTH, signed=False) == pytest.approx(0.5)
    assert auc_roc(SCORES, ~TRUTH) == 0.25
    assert pointing_game(SCORES, ~TRUTH) == 0.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 2, 5]), ndim=st.integers(1, 3))
def test_auc_equals_the_count_over_all_pairs(seed, levels, ndim):
    scores, truth = drawn(seed, (6, 5, 4)[:ndim] if ndim > 1 else (40,), levels)
    assert auc_roc(scores, truth) == pytest.approx(brute_auc(scores, truth), abs=1e-12)


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 1, 3]), share=st.sampled_from([0.05, 0.5, 0.95]))
def test_auc_is_the_exact_fraction_whichever_side_is_smaller(seed, levels, share):
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=60).astype(float) if levels else rng.random(60)
    truth = rng.random(60) < share
    truth[0], truth[-1] = True, False
    gaps = scores[truth][:, None] - scores[~truth]
    assert auc_roc(scores, truth) == (2 * int((gaps > 0).sum()) + int((gaps == 0).sum())) / (2 * gaps.size)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 4]))
def test_auc_is_unchanged_by_increasing_maps_and_reflected_by_decreasing_ones(seed, levels):
    scores, truth = drawn(seed, levels=levels)
    assert auc_roc(np.exp(scores / 2) + 3, truth) == auc_roc(scores, truth)
    assert auc_roc(-scores, truth) == pytest.approx(1 - auc_roc(scores, truth), abs=1e-12)
    assert auc_roc(scores, ~truth) == pytest.approx(1 - auc_roc(scores, truth), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 3]))
def test_average_precision_is_the_area_under_the_steps_of_precision_and_recall(seed, levels):
    scores, truth = drawn(seed, levels=levels)
    area, recall = 0.0, 0.0
    for threshold in np.unique(scores)[::-1]:
        found = scores >= threshold
        reached = (found & truth).sum() / truth.sum()
        area, recall = area + (reached - recall) * (found & truth).sum() / found.sum(), reached
    assert average_precision(scores, truth) == pytest.approx(area, abs=1e-12)


def test_average_precision_of_a_worked_example_and_of_a_constant_map():
    assert average_precision(np.array([0.05, 0.15, 0.35, 0.9]), np.array([True, False, False, True])) == 0.75
    assert average_precision(np.zeros(4), np.array([True, False, False, False])) == 0.25
    assert average_precision(SCORES, np.ones_like(TRUTH)) == 1.0


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), a=st.floats(0.01, 100), b=st.floats(-50, 50))
def test_cnr_is_unchanged_by_affine_maps_and_flips_with_the_sign(seed, a, b):
    scores, truth = drawn(seed)
    assert cnr(a * scores + b, truth) == pytest.approx(cnr(scores, truth), rel=1e-6, abs=1e-9)
    assert cnr(-a * scores + b, truth) == pytest.approx(-cnr(scores, truth), rel=1e-6, abs=1e-9)


def test_a_region_equals_cutting_the_arrays():
    scores, truth = drawn(3)
    region = np.zeros(scores.shape, bool)
    region[1:4, :, 2:] = True
    box = (slice(1, 4), slice(None), slice(2, None))
    for metric in (auc_roc, pointing_game, lambda s, t, r=None: cnr(s, t, region=r)):
        assert metric(scores, truth, region) == pytest.approx(metric(scores[box], truth[box]))
    assert auc_roc(scores, truth, region) != auc_roc(scores, truth)


def test_a_lit_region_scores_exactly_half_inside_itself_and_well_outside():
    truth = np.zeros((8, 8, 8), bool)
    region = truth.copy()
    region[:, :, :4], truth[2:4, 2:4, 1:3] = True, True
    lit = region_lit(region)
    assert auc_roc(lit, truth, region) == 0.5
    assert auc_roc(lit, truth) > 0.7
    assert pointing_game(lit, truth, region) == chance_level(truth, region) == 8 / 256


def test_ties_at_the_maximum_count_as_their_mean():
    scores = np.array([1.0, 5.0, 5.0, 5.0])
    truth = np.array([True, True, False, False])
    assert pointing_game(scores, truth) == pytest.approx(1 / 3)


def test_a_constant_map_is_chance_where_it_has_a_value_and_undefined_elsewhere():
    flat, truth = np.full(SCORES.shape, 0.1), np.array([[True, True], [True, False]])
    assert auc_roc(flat, truth) == 0.5
    assert pointing_game(flat, truth) == chance_level(truth) == 0.75
    assert mass_inside(flat, truth) == pytest.approx(0.75)
    with pytest.raises(Undefined, match="constant"):
        cnr(np.full((9, 9), 0.1), np.arange(81).reshape(9, 9) < 30)
    with pytest.raises(Undefined, match="constant"):
        rank_correlation(flat, SCORES)


@pytest.mark.parametrize("metric", [auc_roc, average_precision, cnr, pointing_game, mass_inside])
def test_an_empty_truth_is_undefined_and_not_zero(metric):
    with pytest.raises(Undefined, match="empty") as error:
        metric(SCORES, np.zeros_like(TRUTH))
    assert error.value.reason == "the truth is empty"


def test_a_truth_outside_the_region_is_empty_and_one_that_fills_it_has_no_auc():
    with pytest.raises(Undefined, match="truth is empty"):
        auc_roc(SCORES, TRUTH, ~TRUTH)
    with pytest.raises(Undefined, match="fills"):
        auc_roc(SCORES, TRUTH, TRUTH)
    with pytest.raises(Undefined, match="region is empty"):
        auc_roc(SCORES, TRUTH, np.zeros_like(TRUTH))
    assert pointing_game(SCORES, TRUTH, TRUTH) == 1.0


def test_a_side_of_one_cell_has_no_cnr():
    with pytest.raises(Undefined, match="one cell"):
        cnr(np.arange(4.0), np.array([True, False, False, False]))


def test_variances_that_round_to_zero_have_no_cnr():
    with pytest.raises(Undefined, match="rounds to 0"):
        cnr(np.array([1e-200, 3e-200, 0.0, 2e-200]), np.array([True, True, False, False]))


def test_a_perfect_two_valued_map_has_no_cnr_but_an_auc_of_one():
    with pytest.raises(Undefined, match="both sides"):
        cnr(TRUTH.astype(float), TRUTH)
    assert auc_roc(TRUTH.astype(float), TRUTH) == 1.0


def test_wrong_input_is_an_error_and_no_undefined_case():
    for bad in (np.full(SCORES.shape, np.nan), SCORES[:, :1]):
        with pytest.raises((ValueError, TypeError)) as error:  # TypeError where the tests check shapes by annotation
            auc_roc(bad, TRUTH)
        assert not isinstance(error.value, Undefined)


def test_mass_is_a_share_and_refuses_negative_scores():
    assert mass_inside(SCORES, TRUTH) == pytest.approx(4 / 6)
    with pytest.raises(ValueError, match="minimum of -1"):
        mass_inside(SCORES - 1, TRUTH)
    with pytest.raises(Undefined, match="zero everywhere"):
        mass_inside(np.zeros(SCORES.shape), TRUTH)


def test_overlap_of_the_top_fraction_runs_from_none_to_all():
    ramp = np.arange(100.0)
    assert top_overlap(ramp, ramp, fraction=0.1) == 1.0
    assert top_overlap(ramp, -ramp, fraction=0.1) == 0.0
    assert top_overlap(ramp, np.roll(ramp, 5), fraction=0.1) == pytest.approx(0.5)
    assert top_overlap(ramp, np.zeros(100), fraction=0.1) == pytest.approx(0.1)


def test_rank_correlation_sees_order_only_and_agrees_with_scipy():
    from scipy.stats import spearmanr

    first, _ = drawn(1, levels=4)
    second, _ = drawn(2)
    assert rank_correlation(first, second + 0.3 * first) == pytest.approx(
        float(spearmanr(first.ravel(), (second + 0.3 * first).ravel())[0])
    )
    assert rank_correlation(second, np.exp(second)) == pytest.approx(1)
    assert rank_correlation(second, -second) == pytest.approx(-1)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_oracle_is_perfect_on_the_own_grid_and_loses_small_truths_on_a_coarse_one(ndim):
    truth = np.zeros((16,) * ndim, bool)
    truth[(slice(5, 8),) * ndim] = True
    same, coarse = native_oracle(truth, truth.shape), native_oracle(truth, (4,) * ndim)
    assert coarse.shape == truth.shape
    assert auc_roc(same, truth) == 1.0
    assert 0.8 < auc_roc(coarse, truth) < 1.0
    assert coarse.min() >= 0 and coarse.max() < 1
    with pytest.raises(ValueError, match="axes"):
        native_oracle(truth, (4,))
