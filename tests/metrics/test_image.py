import numpy as np
import pytest

from voxplain.metrics import Undefined, ms_ssim, over_pairs, pairs_across, pairs_within, psnr, ssim


def picture(seed: int = 0, shape: tuple[int, ...] = (40, 36)) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def test_psnr_of_a_shift_by_a_tenth_is_twenty_decibels():
    image = picture()
    assert psnr(image, image + 0.1, data_range=1.0) == pytest.approx(20)
    assert psnr(255 * image, 255 * image + 25.5, data_range=255) == pytest.approx(20)
    assert psnr(image, image + 1, data_range=1.0) == pytest.approx(0)
    with pytest.raises(Undefined, match="equal"):
        psnr(image, image, data_range=1.0)


def test_ssim_of_one_window_is_its_formula():
    a, b = picture(1, (11, 11)), picture(2, (11, 11))
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
    shared = (window * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * shared + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    assert ssim(a, b, data_range=1.0) == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(32, 40), (24, 28, 32)])
def test_equal_images_score_one_and_noise_lowers_the_score(shape):
    image, noise = picture(3, shape), 0.2 * picture(4, shape)
    for metric in (ssim, lambda a, b, data_range: ms_ssim(a, b, data_range=data_range, scales=3, window=5)):
        assert metric(image, image, data_range=1.0) == pytest.approx(1)
        one, two = (metric(image, image + k * noise, data_range=1.0) for k in (1, 2))
        assert 1 > one > two > 0
        assert metric(image + noise, image, data_range=1.0) == pytest.approx(one)
        assert metric(255 * image, 255 * (image + noise), data_range=255.0) == pytest.approx(one)


def test_a_volume_of_one_slice_is_an_image():
    a, b = picture(5), picture(6)
    for metric in (ssim, lambda a, b, data_range: ms_ssim(a, b, data_range=data_range, scales=3, window=7)):
        assert metric(a[None], b[None], data_range=1.0) == pytest.approx(metric(a, b, data_range=1.0))


def test_flat_images_have_a_value_and_opposite_ones_are_no_nan():
    flat, image = np.full((40, 40), 0.5), picture(7, (40, 40))
    assert ssim(flat, flat, data_range=1.0) == pytest.approx(1)
    assert ssim(flat, np.zeros_like(flat), data_range=1.0) == pytest.approx(1e-4 / (0.25 + 1e-4))
    assert ssim(image, 1 - image, data_range=1.0) < 0
    assert ms_ssim(image, 1 - image, data_range=1.0, scales=2) == 0
    assert ms_ssim(flat, flat, data_range=1.0, scales=2) == pytest.approx(1)


def test_one_scale_is_plain_similarity_and_the_size_is_checked():
    a, b = picture(8), picture(9)
    assert ms_ssim(a, b, data_range=1.0, scales=1) == pytest.approx(max(ssim(a, b, data_range=1.0), 0))
    assert 0 <= ms_ssim(a[:28, :28], b[:28, :28], data_range=1.0, scales=3, window=7) <= 1
    with pytest.raises(ValueError, match="needs 28 cells"):
        ms_ssim(a[:27], b[:27], data_range=1.0, scales=3, window=7)
    with pytest.raises(ValueError, match="needs 176 cells"):
        ms_ssim(a, b, data_range=1.0)
    with pytest.raises(ValueError, match="odd"):
        ssim(a, b, data_range=1.0, window=4)
    with pytest.raises(ValueError, match="scales"):
        ms_ssim(a, b, data_range=1.0, scales=6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_wrong_input_is_an_error(metric):
    image = picture()
    for first, second, width in (
        (image, image[:, :-1], 1.0),
        (image, np.where(image > 0.9, np.nan, image), 1.0),
        (image, image + 1, 0.0),
        (image, image + 1, float("inf")),
        (image, image + 1, float("nan")),
    ):
        with pytest.raises((ValueError, TypeError)) as error:  # TypeError where the tests check shapes by annotation
            metric(first, second, data_range=width)
        assert not isinstance(error.value, Undefined)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_a_window_needs_a_width(sigma):
    image = picture()
    for metric in (ssim, lambda *pair, **options: ms_ssim(*pair, scales=1, **options)):
        with pytest.raises(ValueError, match="sigma must be more than 0 cells, got"):
            metric(image, 1 - image, data_range=1.0, sigma=sigma)


def test_pairs_are_explicit_within_a_prompt_and_across_prompts():
    prompts = ["a", "b", "a", "a", "b"]
    within = pairs_within(prompts)
    assert sorted(within) == [(0, 2), (0, 3), (1, 4), (2, 3)]
    assert len(pairs_within([f"{index // 4}" for index in range(400)])) == 600
    across = pairs_across(prompts, 6)
    assert len(set(across)) == 6 and all(prompts[a] != prompts[b] and a < b for a, b in across)
    assert across == pairs_across(prompts, 6)
    with pytest.raises(ValueError, match="only 6 pairs"):
        pairs_across(prompts, 7)


def test_a_metric_over_pairs_keeps_their_order():
    images = [np.zeros((2, 2)), np.full((2, 2), 0.1), np.full((2, 2), 1.0)]
    found = over_pairs(lambda a, b: psnr(a, b, data_range=1.0), images, [(0, 1), (0, 2)])
    np.testing.assert_allclose(found, [20, 0], atol=1e-9)
    with pytest.raises(Undefined, match="no pairs"):
        over_pairs(lambda a, b: 0.0, images, [])
