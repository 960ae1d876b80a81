import numpy as np
import pytest
import torch

from voxplain.models.reader import Reader, _coordinates

SHAPES = [(16, 24), (8, 16, 12)]


def build(spatial_dims, outputs=5, windows=((-1000, 1000), (-100, 100)), moved=True):
    torch.manual_seed(0)
    reader = Reader(spatial_dims, outputs, windows=windows, width=16, dilations=(1, 2))
    for parameter in reader.blocks.parameters() if moved else ():
        if not parameter.any():  # blocks start as the identity; here they shall do something
            torch.nn.init.normal_(parameter, std=0.1)
    return reader.eval().requires_grad_(False)


@pytest.mark.parametrize("shape", SHAPES)
def test_one_code_path_answers_for_images_and_volumes_at_half_resolution(shape):
    answer = build(len(shape))(torch.randn(2, 1, *shape) * 500)
    assert answer.shape == (2, 5, *(size // 2 for size in shape))
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_lies_where_its_voxels_lie(shape):
    reader = build(len(shape), moved=False)  # without the blocks nobody looks beyond a patch
    image = torch.zeros(1, 1, *shape)
    changed = image.clone()
    changed[(0, 0, *(size - 1 for size in shape))] = 900.0
    difference = (reader(changed) - reader(image)).abs().sum((0, 1)) > 0
    expected = torch.zeros_like(difference)
    expected[tuple(slice(-2, None) for _ in shape)] = True  # the last patch of four voxels is two cells wide
    assert torch.equal(difference, expected)


def test_the_coordinates_are_the_centers_of_the_patches():
    rows, columns = _coordinates(torch.zeros(3, 7, 2, 4))[1]
    assert rows[:, 0].tolist() == [-0.5, 0.5]
    assert columns[0].tolist() == [-0.75, -0.25, 0.25, 0.75]


def test_what_lies_outside_all_windows_is_not_seen():
    reader = build(2)
    image = torch.full((1, 1, 16, 16), 2000.0)
    assert torch.equal(reader(image), reader(image + 500))
    assert not torch.equal(reader(image), reader(image - 1500))


def test_a_dilated_block_sees_far():
    torch.manual_seed(0)
    reader = build(2)
    image = torch.zeros(1, 1, 64, 64)
    changed = image.clone()
    changed[..., :4, :4] = 900.0
    moved = (reader(changed) - reader(image)).abs().amax((0, 1))
    assert np.array_equal(np.asarray(moved[8:12, 8:12] > 0), np.ones((4, 4), bool))


def test_a_shape_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="multiples of 4"):
        build(2)(torch.zeros(1, 1, 18, 16))
    with pytest.raises((ValueError, TypeError)):
        build(3)(torch.zeros(1, 1, 16, 16))
