import pytest
import torch

from voxplain.models.schedule import alpha_bars


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
