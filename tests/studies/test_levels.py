import pytest
import torch

from voxplain.studies import levels, training


@pytest.fixture(scope="module")
def pipeline():
    return training.build(training.THORAX_2D, training.build_tokenizer(["a"]))


def test_numbers_are_levels_evenly_in_the_logarithm_of_the_noise(pipeline):
    sampled, numbers = levels.Levels(pipeline), torch.linspace(0, 1, 9)
    made = sampled.at(numbers)
    noise = sampled.noise[made]
    assert made[0] == pipeline.config["finest"] and noise[-1].exp().item() == pytest.approx(150, rel=0.03)
    assert noise.diff().std() < 0.05 * noise.diff().mean()
    assert sampled.number(noise) == pytest.approx(numbers, abs=0.02)
    assert sampled.number(torch.tensor([-99.0, 99.0])).tolist() == [0, 1]


def test_every_other_family_has_noise_near_what_a_pair_of_it_differs_by(pipeline):
    sampled, pairs = levels.Levels(pipeline), torch.full((2000, 3), 10.0)
    drawn = sampled.draw(1, pairs, torch.Generator().manual_seed(0))  # step 1: the first of every two
    noise = (sampled.low + drawn[::2] * (sampled.high - sampled.low)).exp()
    assert noise.min().item() == pytest.approx(10 * levels.NEAR[0], rel=0.1)
    assert noise.max().item() == pytest.approx(10 * levels.NEAR[1], rel=0.1)
    assert drawn[1::2].min() < 0.01 and drawn[1::2].max() > 0.99  # the others: any
    same = sampled.draw(0, torch.zeros(2, 3), torch.Generator().manual_seed(0))
    assert same[1] == 0 and same[0] > 0  # siblings that are alike have no noise near them
