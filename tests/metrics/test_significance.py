from itertools import combinations, product

import numpy as np
import pytest

from voxplain.metrics import Undefined, benjamini_hochberg, equivalence, holm, permutation, sign_flip


def test_eight_pairs_that_agree_give_the_smallest_p_there_is():
    found = sign_flip([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert found.p == found.smallest == 2 / 2**8
    assert found.exact and found.n == 8 and found.effect == pytest.approx(0.45)
    assert sign_flip([0.1, 0.2, 0.3, 0.4, 0.5]).p == pytest.approx(0.0625), "five pairs never reach 0.05"


def test_a_sign_flip_counts_all_signs():
    values = np.array([1.0, -0.5, 2.0, 0.3, 0.0])
    means = [np.mean(values * signs) for signs in product([1, -1], repeat=5)]
    upper = np.mean(np.array(means) >= values.mean() - 1e-12)
    assert sign_flip(values, alternative="greater").p == pytest.approx(upper)
    assert sign_flip(values).p == pytest.approx(2 * upper)
    assert sign_flip(-values, alternative="less").p == pytest.approx(upper)
    assert sign_flip([0.0, 0.0, 0.0]).p == 1


def test_a_permutation_counts_all_divisions():
    first, second = np.array([3.0, 4.0, 7.0]), np.array([1.0, 2.0, 3.5, 0.0])
    both = np.concatenate([first, second])
    gaps = [both[list(c)].mean() - np.delete(both, c).mean() for c in combinations(range(7), 3)]
    upper = np.mean(np.array(gaps) >= first.mean() - second.mean() - 1e-12)
    found = permutation(first, second, alternative="greater")
    assert found.p == pytest.approx(upper) and found.smallest == 1 / 35 and found.exact
    assert found.effect == pytest.approx(first.mean() - second.mean())
    assert permutation([1.0, 1.0], [1.0, 1.0]).p == 1


def test_many_values_are_tested_at_random_and_repeatably():
    rng = np.random.default_rng(0)
    shifted = rng.normal(0.5, 1, 60)
    found = sign_flip(shifted, resamples=999)
    assert not found.exact and found.p == found.smallest == 2 / 1000
    assert found == sign_flip(shifted, resamples=999)
    assert permutation(shifted, rng.normal(0.5, 1, 60), resamples=999).p > 0.05


def test_chance_alone_is_called_significant_as_often_as_it_should_be():
    rng = np.random.default_rng(1)
    p = [sign_flip(rng.normal(size=8)).p for _ in range(300)]
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.03)


def test_groups_that_cannot_be_tested_are_undefined():
    for hopeless in (
        lambda: permutation([1.0], [2.0]),
        lambda: permutation([1.0], [2.0, 3.0]),
        lambda: sign_flip([1.0]),
        lambda: equivalence([0.0], -1, 1),
    ):
        with pytest.raises(Undefined, match="cannot be tested: give .*two or more"):
            hopeless()
    with pytest.raises(Undefined, match="groups of 3 and 1 values"):
        permutation([2.0, 3.0, 4.0], [1.0])
    fewest = permutation([1.0, 2.0], [3.0, 4.0])
    assert fewest.p == fewest.smallest == pytest.approx(1 / 3), "four values can never be significant"
    with pytest.raises(Undefined, match="no values"):
        permutation([], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        sign_flip([1.0, float("nan")])


def test_equivalence_needs_both_sides_and_equals_the_wider_interval():
    values = np.array([0.01, -0.02, 0.03, 0.0, 0.01, -0.01, 0.02, 0.0])
    found = equivalence(values, -0.05, 0.05)
    mean, half = values.mean(), 1.894579 * values.std(ddof=1) / np.sqrt(8)  # t with 7 degrees, one-sided 0.05
    assert found.p < 0.05 and mean - half > -0.05 and mean + half < 0.05
    assert equivalence(values, -0.05, mean + half).p == pytest.approx(0.05, abs=1e-6), "the bound on the 90 % interval"
    assert equivalence(values + 0.05, -0.05, 0.05).p > 0.5
    assert equivalence(values, -0.05, 0.05, test="sign-flip").p == 1 / 2**8


def test_equivalence_of_equal_differences_and_of_crossed_bounds():
    with pytest.raises(Undefined, match="no spread"):
        equivalence([0.0, 0.0, 0.0], -1, 1)
    assert equivalence([0.0, 0.0, 0.0], -1, 1, test="sign-flip").p == 1 / 8
    with pytest.raises(ValueError, match="low < high"):
        equivalence([0.0, 0.1], 1, -1)


def test_holm_and_benjamini_hochberg_on_a_worked_example():
    p = [0.01, 0.04, 0.03, 0.005]
    np.testing.assert_allclose(holm(p), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.02, 0.04, 0.04, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.2]), [0.2])
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(ValueError, match="between 0 and 1"):
            adjust([0.5, 1.5])
        with pytest.raises(Undefined, match="no values"):
            adjust([])
