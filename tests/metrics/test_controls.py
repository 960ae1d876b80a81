from inspect import unwrap

import numpy as np
import pytest

from voxplain.metrics import (
    Undefined,
    abs_from_mean,
    auc_roc,
    center_prior,
    gradient_magnitude,
    mean_mask,
    random_half,
    region_lit,
    same_text_partners,
)


def test_a_mean_mask_is_the_share_of_masks_that_cover_a_cell():
    masks = [np.array([True, True, False]), np.array([True, False, False])]
    np.testing.assert_allclose(mean_mask(iter(masks)), [1, 0.5, 0])
    with pytest.raises(Undefined, match="no training case"):
        mean_mask([])
    with pytest.raises(ValueError, match="shape"):
        mean_mask([masks[0], np.ones(2, bool)])


def test_distance_from_the_mean_takes_its_mean_from_the_region_a_number_or_an_image():
    image = np.array([[-800.0, -800.0], [-500.0, 40.0]], np.float32)
    region = np.array([[True, True], [True, False]])
    np.testing.assert_allclose(abs_from_mean(image, region=region), [[100, 100], [200, 740]])
    np.testing.assert_allclose(abs_from_mean(image, -800.0), [[0, 0], [300, 840]])
    np.testing.assert_allclose(abs_from_mean(image, image), 0)
    with pytest.raises(Undefined, match="region"):
        abs_from_mean(image, region=np.zeros_like(region))
    with pytest.raises(ValueError, match="the mean image"):
        abs_from_mean(image, image[:1])


def test_whole_numbers_do_not_wrap_around():
    image = np.array([[-1000, 3000]], np.int16)
    plain = unwrap(abs_from_mean)  # the annotation, which the tests check, asks for floating-point numbers
    np.testing.assert_array_equal(plain(image, np.array([[32000, -32000]], np.int16)), [[33000, 35000]])
    np.testing.assert_array_equal(plain(np.array([[1, 2]], np.uint8), np.array([[2, 1]], np.uint8)), [[1, 1]])


def test_nan_in_an_image_is_an_error_with_a_remedy():
    image = np.array([[1.0, np.nan], [2.0, 3.0]])
    for control in (abs_from_mean, gradient_magnitude):
        with pytest.raises(ValueError, match="the voxels hold NaN or infinity; give each a number first"):
            control(image)


@pytest.mark.parametrize("shape", [(9, 8), (5, 7, 6), (1, 6, 6)])
def test_the_gradient_of_a_ramp_is_its_slope_in_units_per_millimeter(shape):
    ramp = np.broadcast_to(3 * np.arange(shape[-1], dtype=np.float32), shape)
    spacing = (2.0,) * (len(shape) - 1) + (0.5,)
    np.testing.assert_allclose(gradient_magnitude(ramp, spacing), 6, rtol=1e-6)
    np.testing.assert_allclose(gradient_magnitude(ramp), 3, rtol=1e-6)


def test_a_random_half_is_half_repeatable_and_blind():
    first = random_half((8, 8, 8), 1)
    assert first.sum() == 256
    np.testing.assert_array_equal(first, random_half((8, 8, 8), 1))
    assert (first != random_half((8, 8, 8), 2)).any()
    truth = np.zeros((8, 8, 8), bool)
    truth[:4] = True
    assert np.mean([auc_roc(random_half((8, 8, 8), seed), truth) for seed in range(40)]) == pytest.approx(0.5, abs=0.02)


def test_the_center_prior_is_highest_in_the_middle_and_symmetric():
    hill = center_prior((5, 9, 7))
    assert hill[2, 4, 3] == hill.max() == 1
    np.testing.assert_allclose(hill, hill[::-1, ::-1, ::-1], rtol=1e-6)


def test_a_lit_region_is_the_region():
    region = np.array([True, False])
    np.testing.assert_array_equal(region_lit(region), [1.0, 0.0])


def test_masks_are_swapped_only_between_cases_of_identical_text_and_each_is_used_once():
    texts = ["left effusion", "nodule", "left effusion", "Left effusion", "left effusion", "nodule"]
    partners = same_text_partners(texts)
    assert partners[3] is None, "another letter is another text"
    assert all(
        partner is None or (texts[partner] == texts[case] and partner != case) for case, partner in enumerate(partners)
    )
    assert sorted(p for p in partners if p is not None) == [0, 1, 2, 4, 5]
    assert partners == same_text_partners(texts)
    assert same_text_partners([]) == ()


@pytest.mark.parametrize("seed", range(5))
def test_a_partner_is_another_patient_whenever_nobody_owns_more_than_half(seed):
    patients = ["a", "a", "a", "b", "b", "c"]
    partners = same_text_partners(["x"] * 6, patients, seed=seed)
    assert sorted(partners) == list(range(6))
    assert all(patients[case] != patients[partner] for case, partner in enumerate(partners))
    alone = same_text_partners(["x"] * 4, ["a", "a", "a", "b"], seed=seed)
    assert sum(partner is not None for partner in alone) == 2
    assert same_text_partners(["x"] * 3, ["a"] * 3, seed=seed) == (None, None, None)
    with pytest.raises(ValueError, match="6 texts but 1 patients"):
        same_text_partners(["x"] * 6, ["a"])
