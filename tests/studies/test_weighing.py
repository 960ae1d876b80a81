import pytest
import torch

from voxplain.studies import weighing


def test_families_weigh_less_the_more_their_siblings_differ_and_only_so_far():
    clean = torch.zeros(4, 4, 1, 4)
    for family, factor in enumerate((1.0, 2.0, 0.0, 100.0)):
        clean[family, :2] = factor * weighing.TYPICAL  # half of the siblings: every cell half of that from the mean
    apart = weighing.apart(clean)
    assert apart.tolist() == pytest.approx([weighing.TYPICAL * factor for factor in (1, 2, 0, 100)])
    assert weighing.evening(apart).tolist() == pytest.approx([1, 2**-1.5, weighing.EVENED, 1 / weighing.EVENED])


def test_a_contrast_is_heard_where_noise_hides_what_siblings_differ_by():
    noise = torch.tensor([0.01, 0.05, 0.2, 0.5, 5.0, 1.0]).log()
    heard = weighing.heard(noise, torch.tensor([1.0, 1.0, 1.0, 1.0, 10.0, 0.0]))
    assert heard[:2].tolist() == [0, 0] and 0 < heard[2] < 1
    assert heard[3:].tolist() == pytest.approx([1, 1, 1])


def test_cells_that_err_more_weigh_less_and_faint_channels_too():
    spread = torch.tensor([3.0, 1.0]).reshape(2, 1, 1)
    precision = weighing.Precision(spread, (2, 4, 4))
    error = torch.full((1, 4, 2, 4, 4), 0.1)
    error[..., 0] = 0.5  # a column that nobody can know
    for _ in range(500):
        weights = precision.weigh(error, torch.tensor([3]))  # [1, 1, 2, 4, 4]
    assert weights.mean().item() == pytest.approx(1)
    assert weights[0, 0, 0, 0, 1] / weights[0, 0, 0, 0, 0] == pytest.approx((0.25 + 0.02) / (0.01 + 0.02), rel=0.02)
    assert weights[0, 0, 0, 0, 1] / weights[0, 0, 1, 0, 1] == pytest.approx(3, rel=0.02)
    assert (precision.usual[4] == 1).all()  # other noise levels were not touched
