"""Recipes of DAAM, its paper and chest-distillation on planted means: equal where theory says so, else different."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from voxplain import recipes
from voxplain.geometry import regular
from voxplain.maps import AttentionMaps, MapKey
from voxplain.resampling import resample
from voxplain.tokens import TokenizedPrompt

PROMPT = TokenizedPrompt(
    "left lung", tuple(range(6)), ("-",) * 6, (None, (0, 4), (5, 9), None, None, None), start=0, end=3
)
ROWS = 5  # start, two words, end; and the padding
CALLS = 3
GRIDS = pytest.mark.parametrize("grid", [(8, 8), (8, 12), (4, 8, 6)], ids=str)


def probabilities(grid, seed):
    """Uneven, as attention is: bicubic enlargement undershoots zero beside its peaks."""
    scores = np.exp(4 * np.random.default_rng(seed).normal(size=(ROWS, *grid)))
    return (scores / scores.sum(0)).astype(np.float32)


def recorded(layers, *, image=None, heads=2, per_head=True, native=None):
    """AttentionMaps of layers {path: grid}, each with `heads` heads (or {path: heads}) over CALLS calls."""
    means, counts = {}, {}
    for number, (layer, grid) in enumerate(layers.items()):
        count = heads if isinstance(heads, int) else heads[layer]
        each = {head: probabilities(grid, 10 * number + head) for head in range(count)}
        if per_head:
            means |= {MapKey(grid, layer, head): mean for head, mean in each.items()}
            counts |= {MapKey(grid, layer, head): CALLS for head in each}
        else:
            means[MapKey(grid, layer)] = np.mean(list(each.values()), axis=0)
            counts[MapKey(grid, layer)] = CALLS * count
    geometry = regular(image or tuple(8 * size for size in next(iter(layers.values()))), 1.0)
    return AttentionMaps(PROMPT, geometry, means, counts, {} if native is None else {"native": native})


def halves(grid):
    return tuple(size // 2 for size in grid)


def two_levels(grid, **options):
    return recorded({"down.0": grid, "down.1": halves(grid), "mid_block.0": halves(halves(grid))}, **options)


def outer(maps):
    return [key for key in maps.means if key.layer != "mid_block.0"]


def enlarged(values, shape):
    """torch's bicubic enlargement."""
    return functional.interpolate(torch.tensor(values)[None], shape, mode="bicubic", align_corners=False)[0].numpy()


@pytest.mark.parametrize("old", [(8, 8), (16, 16), (6, 10), (48, 48), (96, 96)], ids=str)
def test_the_cubic_enlargement_is_the_one_of_torch(old):
    values = probabilities(old, 1)
    np.testing.assert_allclose(resample(values, (64, 64), mode="cubic"), enlarged(values, (64, 64)), atol=2e-6)


@pytest.mark.parametrize(("grid", "shape"), [((8, 8), (64, 64)), ((32, 32), (64, 64)), ((96, 96), (96, 96))], ids=str)
def test_daam_clamps_each_head_after_the_sum_over_time_and_then_averages(grid, shape):
    maps = two_levels(grid)
    attribution = recipes.reduce(maps, "daam")
    expected = np.mean([np.maximum(0, enlarged(CALLS * maps.means[key], shape)) for key in outer(maps)], axis=0)
    assert attribution.maps.shape == (4, *shape)
    np.testing.assert_allclose(attribution.maps, expected[:-1], atol=5e-6 * expected.max())
    np.testing.assert_allclose(attribution.padding, expected[-1], atol=5e-6 * expected.max())
    assert attribution.geometry.same_as(maps.geometry.at(shape))


def test_the_clamp_does_something_and_does_not_commute_with_the_mean_over_heads():
    maps = two_levels((16, 16))
    sums = [enlarged(CALLS * maps.means[key], (64, 64)) for key in outer(maps)]
    late = np.maximum(0, np.mean(sums, axis=0))
    assert min(values.min() for values in sums) < 0
    assert np.abs(recipes.reduce(maps, "daam").maps - late[:-1]).max() > 0.02 * late.max()


@GRIDS
def test_the_reference_grid_keeps_the_proportions_and_has_64_by_64_cells_or_more(grid):
    shape = recipes.reduce(recorded({"up.0": grid}), "daam").geometry.shape
    assert np.prod(shape) == pytest.approx(64 * 64, rel=0.05)
    assert np.allclose(np.array(shape) / shape[0], np.array(grid) / grid[0], rtol=0.05)
    large = recorded({"up.0": (64, 96)})
    assert recipes.reduce(large, "daam").geometry.shape == (64, 96)


def test_bins_and_their_order_do_not_matter_to_daam():
    whole = two_levels((16, 16))
    means, counts = {}, {}
    for key, mean in whole.means.items():
        for part, calls in ((1, 2), (0, 1)):
            means[replace(key, bin=part)], counts[replace(key, bin=part)] = mean, calls
    binned = AttentionMaps(PROMPT, whole.geometry, means, counts)
    assert np.allclose(recipes.reduce(binned, "daam").maps, recipes.reduce(whole, "daam").maps, atol=1e-6)


# the quirks of the package -----------------------------------------------------------------------------------------


def test_daam_and_its_compatible_form_agree_where_the_package_is_at_home():
    maps = recorded({"down.0": (64, 64), "down.1": (32, 32), "up.0": (16, 16)}, image=(512, 512))
    plain, quirky = (recipes.reduce(maps, name) for name in ("daam", "daam_compatible"))
    assert np.array_equal(plain.maps, quirky.maps)


def test_the_compatible_form_drops_the_layers_that_the_package_drops():
    maps = recorded({"down.0": (32, 32), "down.1": (16, 16), "up.0": (8, 8)}, image=(256, 256), native=[512, 512])
    quirky = recipes.reduce(maps, "daam_compatible")
    kept = [key for key in maps.means if key.grid != (8, 8)]  # factor 8
    expected = np.mean([np.maximum(0, enlarged(CALLS * maps.means[key], (64, 64))) for key in kept], axis=0)
    np.testing.assert_allclose(quirky.maps, expected[:-1], atol=5e-6 * expected.max())
    assert quirky.provenance["counts"] == {"32x32": 6, "16x16": 6}
    assert np.abs(recipes.reduce(maps, "daam").maps - quirky.maps).max() > 0.02


def test_any_native_size_but_two_makes_a_grid_of_96_and_may_drop_everything():
    at_home = recorded({"down.0": (96, 96), "down.1": (48, 48)}, image=(768, 768))
    assert recipes.reduce(at_home, "daam_compatible").maps.shape == (4, 96, 96)
    small = recorded({"down.0": (32, 32), "down.1": (16, 16)}, image=(256, 256))
    with pytest.raises(ValueError, match=r"no heat maps .* drops \(\[3, 6\]\); use recipe 'daam'"):
        recipes.reduce(small, "daam_compatible")
    assert recipes.reduce(small, "daam").maps.shape == (4, 64, 64)


@pytest.mark.parametrize("grid", [(8, 12), (4, 4, 4)], ids=str)
def test_the_compatible_form_reads_square_images_only(grid):
    with pytest.raises(ValueError, match="square images only, .*; use recipe 'daam'"):
        recipes.reduce(recorded({"down.0": grid}), "daam_compatible")


# the paper's form, and chest-distillation --------------------------------------------------------------------------


@GRIDS
def test_the_paper_keeps_mass_so_that_a_coarse_map_counts_less_a_cell(grid):
    maps = two_levels(grid, per_head=False)
    attribution = recipes.reduce(maps, "daam_paper")
    total = sum(maps.counts[key] * maps.means[key].reshape(ROWS, -1).sum(1) for key in outer(maps))
    np.testing.assert_allclose(attribution.maps.reshape(4, -1).sum(1), total[:-1], rtol=1e-5)
    coarse = recipes.reduce(recorded({"down.0": halves(grid), "down.1": grid}, per_head=False), "daam_paper")
    assert coarse.geometry.shape == attribution.geometry.shape == grid


def test_the_paper_is_replication_over_the_squared_factor():
    maps = recorded({"down.0": (8, 12), "down.1": (4, 6)}, per_head=False)
    fine, low = (CALLS * 2 * mean.astype(np.float64) for mean in maps.means.values())
    expected = fine + np.kron(low, np.ones((1, 2, 2))) / 4
    np.testing.assert_allclose(recipes.reduce(maps, "daam_paper").maps, expected[:-1], rtol=1e-5)
    kernel = torch.ones(1, 1, 2, 2, dtype=torch.float64) / 4
    spread = functional.conv_transpose2d(torch.tensor(low)[:, None], kernel, stride=2)[:, 0].numpy()
    np.testing.assert_allclose(recipes.reduce(maps, "daam_paper").maps, (fine + spread)[:-1], rtol=1e-5)


@GRIDS
def test_chest_distillation_weighs_layers_and_not_heads(grid):
    layers, heads = {"down.0": grid, "mid_block.0": halves(grid)}, {"down.0": 1, "mid_block.0": 6}
    maps = recorded(layers, heads=heads, per_head=False)
    attribution = recipes.reduce(maps, "chest_distillation")
    fine, low = maps.means.values()
    expected = (fine + np.kron(low, np.ones((1, *(2 for _ in grid))))) / 2
    np.testing.assert_allclose(attribution.maps, expected[:-1], atol=1e-6)
    assert np.abs(attribution.maps.sum(0) + attribution.padding - 1).max() < 1e-5
    by_head = recorded(layers, heads=heads)
    np.testing.assert_allclose(recipes.reduce(by_head, "chest_distillation").maps, attribution.maps, atol=1e-6)


@GRIDS
def test_on_one_grid_that_is_the_reference_all_recipes_are_the_mean_but_for_a_factor(grid):
    grid = tuple(round(size * (4096 / np.prod(grid)) ** (1 / len(grid)) + 0.5) for size in grid)  # a cell or two more
    maps = recorded({"down.0": grid, "up.0": grid})
    mean = recipes.reduce(maps, "mean").maps
    for name, factor in {"daam": CALLS, "daam_paper": 4 * CALLS, "chest_distillation": 1}.items():
        np.testing.assert_allclose(recipes.reduce(maps, name).maps, factor * mean, rtol=1e-4, atol=1e-6)


def test_on_several_grids_the_recipes_differ():
    maps = two_levels((32, 32), image=(512, 512))
    made = {name: recipes.reduce(maps, name).maps for name in ("mean", "daam_paper", "chest_distillation")}
    shares = {name: values / values.max() for name, values in made.items()}
    for one, other in (("mean", "daam_paper"), ("mean", "chest_distillation"), ("daam_paper", "chest_distillation")):
        assert np.abs(shares[one] - shares[other]).max() > 0.1


# what is refused ---------------------------------------------------------------------------------------------------


def test_a_recording_that_is_too_coarse_names_the_option_that_would_serve():
    merged = recorded({"down.0": (8, 8)}, per_head=False)
    for name in ("daam", "daam_compatible"):
        with pytest.raises(ValueError, match="trace with per_head=True"):
            recipes.reduce(merged, name)
    key = MapKey((8, 8))
    bare = AttentionMaps(PROMPT, regular((64, 64), 1.0), {key: probabilities((8, 8), 1)}, {key: 6})
    with pytest.raises(ValueError, match="trace with per_layer=True"):
        recipes.reduce(bare, "chest_distillation")
    with pytest.raises(ValueError, match="trace with per_layer=True"):
        recipes.reduce(bare, "daam_paper")


def test_sums_are_no_probabilities():
    attribution = recipes.reduce(two_levels((8, 8)), "daam")
    assert recipes.scale(attribution, "words").maps[1:3].max() <= 1 + 1e-5
    with pytest.raises(ValueError, match="'daam' sums over steps: its maps are no probabilities"):
        recipes.scale(attribution, "log_ratio")


def test_a_renamed_recipe_is_still_reduced_by_its_formula():
    maps = two_levels((16, 16))
    own = replace(recipes.get("daam"), name="own", layers=("down.0",))
    expected = replace(recipes.get("daam"), layers=("down.0",))
    assert np.array_equal(recipes.reduce(maps, own).maps, recipes.reduce(maps, expected).maps)
