import pytest
import torch

from voxplain.models.schedule import alpha_bars, ddim_step, estimates


@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
@pytest.mark.parametrize("shift", [0.2, 1.0, 3.0])
def test_a_shift_multiplies_the_signal_to_noise_ratio_by_its_square(kind, shift):
    plain, shifted = alpha_bars(kind, 1000).double(), alpha_bars(kind, 1000, shift).double()
    ratio = (shifted / (1 - shifted)) / (plain / (1 - plain))
    middle = (plain > 1e-3) & (plain < 1 - 1e-3)  # elsewhere float32 has no digits left
    assert torch.allclose(ratio[middle], torch.tensor(shift**2).double(), rtol=1e-3)


@pytest.mark.parametrize("shift", [0.2, 1.0])
def test_the_signal_falls_from_almost_all_to_almost_none(shift):
    alphas = alpha_bars("cosine", 1000, shift)
    assert (alphas.diff() < 0).all()
    assert alphas[0] > 0.99
    assert alphas[-1] < 1e-3


@pytest.mark.parametrize("level", [10, 400, 950])
@pytest.mark.parametrize("clip", [None, (-0.5, 0.5)])
def test_one_step_from_each_prediction_of_the_same_clean_latent_gives_the_same_latent(level, clip):
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 1, 3, 4, 5).double()
    clean, noise, alphas = clean[None], noise[None], alpha_bars("cosine", 1000).double()
    alpha, following = alphas[level], alphas[level // 2]
    latent = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    predictions = {"v": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean, "epsilon": noise, "sample": clean}
    expected = following.sqrt() * clean.clamp(*(clip or (None, 9))) + (1 - following).sqrt() * noise
    for kind, prediction in predictions.items():
        torch.testing.assert_close(estimates(latent, prediction, alpha, kind), (clean, noise), rtol=1e-8, atol=1e-8)
        step = ddim_step(latent, prediction, alpha, following, kind=kind, clip=clip)
        torch.testing.assert_close(step, expected, rtol=1e-8, atol=1e-8)
