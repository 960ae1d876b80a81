import pytest
import torch

from voxplain.studies import weighing


def test_families_weigh_less_the_more_their_siblings_differ_and_only_so_far():
    clean = torch.zeros(4, 4, 1, 4)
    for family, root in enumerate((1.0, 2.0, 0.0, 100.0)):
        clean[family, :2] = 2 * root * weighing.TYPICAL**0.5  # half of the siblings: by `root` from their mean
    weights = weighing.evening(clean)
    assert weights.shape == (4, 1, 1, 1)
    assert weights.flatten().tolist() == pytest.approx([1, 1 / 2, weighing.EVENED, 1 / weighing.EVENED])


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
