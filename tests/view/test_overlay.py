"""Pictures show the right voxels at the right side of the screen, in two and three dimensions."""

import numpy as np
import pytest

from voxplain.geometry import Geometry, regular
from voxplain.maps import Heatmap, Mask, Sample
from voxplain.view.overlay import OKABE_ITO, UNSURE, colors, edge, gray, limits, mosaic, overlay, planes

VOLUME = regular((4, 6, 8), (5.0, 3.0, 2.0))  # superior, posterior, left


def sample(geometry: Geometry, at: tuple[int, ...], unit: str = "HU") -> Sample:
    values = np.full((1, *geometry.shape), -1350.0)
    values[0][at] = 150.0
    return Sample(values, geometry, "x", unit=unit)


def brightest(rgb: np.ndarray) -> tuple[float, float]:
    """Where the brightest pixel is, from 0 (top, left) to 1 (bottom, right)."""
    row, column = np.unravel_index(rgb.sum(-1).argmax(), rgb.shape[:2])
    return row / rgb.shape[0], column / rgb.shape[1]


def test_a_volume_has_three_planes_and_an_image_one():
    assert {name: plane.letters for name, plane in planes(VOLUME).items()} == {
        "axial": ("R", "L", "A", "P"),
        "coronal": ("R", "L", "S", "I"),
        "sagittal": ("A", "P", "S", "I"),
    }
    assert {name: plane.letters for name, plane in planes(regular((6, 8), 1.0)).items()} == {
        "frontal": ("R", "L", "S", "I")
    }


@pytest.mark.parametrize(
    ("plane", "index", "top", "left"),
    [("axial", 3, True, False), ("coronal", 0, True, False), ("sagittal", 7, True, True)],
)
def test_a_point_high_in_front_on_the_left_is_where_radiologists_expect_it(plane, index, top, left):
    rgb = overlay(sample(VOLUME, (3, 0, 7)), plane=plane, index=index)  # superior, anterior, patient left
    row, column = brightest(rgb)
    assert (row < 0.5) == top and (column < 0.5) == left


def test_the_order_and_direction_of_the_axes_do_not_change_the_picture():
    straight = sample(VOLUME, (3, 0, 7))
    flip = np.diag([-1.0, 1, -1, 1])
    flip[:3, 3] = (3, 0, 7)
    swap = np.eye(4)[[1, 2, 0, 3]]  # index of the straight array from that of the other
    affine = VOLUME.affine @ flip @ swap
    image = straight.image[0][::-1, :, ::-1].transpose(2, 0, 1)
    turned = Sample(image[None], Geometry(image.shape, affine), "x")
    for name, index in {"axial": (3, 0), "coronal": (0, 0), "sagittal": (7, 0)}.items():
        first = overlay(straight, plane=name, index=index[0])
        np.testing.assert_array_equal(first, overlay(turned, plane=name, index=index[1]))


def test_a_volume_of_depth_one_gives_the_picture_of_the_image():
    rng = np.random.default_rng(0)
    flat, deep = regular((6, 8), (3.0, 2.0)), regular((1, 6, 8), (5.0, 3.0, 2.0))
    image, heat = rng.uniform(-1000, 0, (1, 6, 8)), rng.uniform(size=(6, 8))
    first = overlay(Sample(image, flat, "x"), Heatmap("w", heat, flat))
    second = overlay(Sample(image[None], deep, "x"), Heatmap("w", heat[None], deep), plane="axial", index=0)
    np.testing.assert_array_equal(first, second)


def test_pixels_are_square_in_millimeters():
    assert overlay(sample(VOLUME, (0, 0, 0)), plane="axial").shape == (9, 8, 3)
    assert overlay(sample(VOLUME, (0, 0, 0)), plane="coronal", pixels=80).shape == (80, 64, 3)


@pytest.mark.parametrize("geometry", [VOLUME, regular((6, 8), 2.0)])
def test_color_is_where_the_top_of_the_heatmap_is_and_nowhere_else(geometry):
    heat = np.full(geometry.shape, 0.1)
    corner = tuple(slice(size // 2) for size in geometry.shape)
    heat[corner] = 1.0
    heat[tuple(0 for _ in geometry.shape)] = 2.0
    rgb = overlay(sample(geometry, (0,) * geometry.ndim), Heatmap("w", heat, geometry), index=0, fraction=0.05)
    colored = rgb.max(-1) > rgb.min(-1)
    assert colored[0, 0]
    assert not colored[-1].any() and not colored[:, -1].any()


def test_a_slice_of_a_coarse_heatmap_equals_that_of_the_enlarged_one():
    geometry = regular((8, 12, 16), (5.0, 3.0, 2.0))
    coarse = Heatmap("w", np.random.default_rng(0).uniform(size=(4, 6, 8)), geometry.at((4, 6, 8)))
    image = sample(geometry, (0, 0, 0))
    fine = coarse.resize(geometry)
    whole = {"fraction": 1.0, "plane": "coronal", "index": 5}
    low, high = limits(coarse, 1.0)
    first, second = overlay(image, coarse, **whole), overlay(image, fine, **whole)
    assert limits(fine, 1.0)[0] >= low and limits(fine, 1.0)[1] <= high
    assert np.abs(first.astype(int) - second).mean() < 12  # only the ends of the color scale differ


def test_a_flat_or_empty_heatmap_colors_nothing():
    image = sample(VOLUME, (0, 0, 0))
    for value in (0.0, 0.3):
        heat = Heatmap("w", np.full(VOLUME.shape, value), VOLUME)
        np.testing.assert_array_equal(overlay(image, heat), overlay(image))


def test_what_is_not_distinguishable_has_one_color():
    heat = Heatmap("w", np.random.default_rng(0).uniform(size=VOLUME.shape), VOLUME)
    assert not np.array_equal(
        overlay(sample(VOLUME, (0, 0, 0)), heat), overlay(sample(VOLUME, (0, 0, 0)), heat, sure=False)
    )
    assert np.allclose(colors(np.linspace(0, 1, 9), sure=False), UNSURE)


def test_the_color_scale_grows_brighter_all_the_way():
    brightness = colors(np.linspace(0, 1, 64)) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > 0).all()


def test_masks_are_outlined_in_their_own_colors():
    inside = np.zeros(VOLUME.shape, bool)
    inside[:, 1:4, 1:5] = True
    masks = [Mask("a", inside, VOLUME), Mask("b", np.roll(inside, 3, 2), VOLUME)]
    rgb = overlay(sample(VOLUME, (0, 0, 0)), plane="axial", index=2, masks=masks)
    for color in OKABE_ITO[:2]:
        assert (rgb == np.array(color)).all(-1).any()


def test_an_edge_is_the_rim_of_a_shape():
    inside = np.zeros((5, 5), bool)
    inside[1:4, 1:4] = True
    rim = edge(inside)
    assert rim.sum() == 8 and not rim[2, 2]


def test_windows_span_what_they_say():
    values = np.array([-1350.0, -600.0, 150.0])
    np.testing.assert_allclose(gray(values, "lung"), [0, 0.5, 1])
    np.testing.assert_allclose(gray(values, None), [0, 0.5, 1])
    np.testing.assert_allclose(gray(np.array([-160.0, 40.0, 240.0]), "soft tissue"), [0, 0.5, 1])
    np.testing.assert_allclose(gray(np.array([1.0, 3.0]), (2.0, 4.0)), [0.25, 0.75])
    np.testing.assert_allclose(gray(np.linspace(0, 1, 101), None, unit="attenuation")[[0, 50, 100]], [0, 0.5, 1])


def test_unknown_windows_and_planes_are_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match="'brain'; there are lung, soft tissue, bone"):
        gray(np.zeros(3), "brain")
    with pytest.raises(ValueError, match="'axial'; this sample has frontal"):
        overlay(sample(regular((6, 8), 1.0), (0, 0)), plane="axial")
    with pytest.raises(IndexError):
        overlay(sample(VOLUME, (0, 0, 0)), plane="axial", index=4)


def test_a_mosaic_keeps_every_picture():
    pictures = [np.full((3, 2 + number, 3), 40 * (number + 1), np.uint8) for number in range(3)]
    whole = mosaic(pictures, columns=2, gap=1)
    assert whole.shape == (7, 9, 3)
    for number, picture in enumerate(pictures):
        assert (whole[..., 0] == 40 * (number + 1)).sum() == picture[..., 0].size
