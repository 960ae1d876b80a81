import pytest
import torch

from voxplain.studies import weighing


def test_pairs_weigh_less_the_more_they_differ_and_only_so_far():
    clean = torch.zeros(1, 5, 1, 4)
    for sibling, factor in enumerate((1.0, 2.0, 0.0, 1000.0), start=1):
        clean[:, sibling] = factor * 2 * weighing.TYPICAL
    apart = weighing.apart(clean)  # [1, 4]
    assert apart[0].tolist() == pytest.approx([2 * weighing.TYPICAL * factor for factor in (1, 2, 0, 1000)])
    weights = weighing.evening(apart, clean[0, 0].numel())[0].tolist()
    assert weights == pytest.approx([1, 2**-1.5, weighing.EVENED, 1 / weighing.EVENED])


def test_a_contrast_is_heard_where_noise_hides_what_a_pair_differs_by():
    noise = torch.tensor([0.01, 0.1, 0.3, 0.8, 8.0, 1.0]).log()[:, None]
    heard = weighing.heard(noise, torch.tensor([1.0, 1.0, 1.0, 1.0, 10.0, 0.0])[:, None])[:, 0]
    assert heard[:2].tolist() == [0, 0] and 0 < heard[2] < 1
    assert heard[3:].tolist() == pytest.approx([1, 1, 1])


def test_what_two_siblings_err_by_alike_is_no_contrast():
    error = torch.randn(2, 4, 3, 5)
    error[0, 1:] = error[0, :1]  # the first family errs alike
    made = weighing.contrast(error, torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]))
    assert (made[0] == 0).all() and (made[1, 0] == 0).all()
    assert torch.allclose(made[1, 1], 2 * (error[1, 2] - error[1, 0]).square() / 4)


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
