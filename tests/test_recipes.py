"""Each (layer, head, step) weighs once, whatever the grids and however finely it was recorded."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain import recipes
from voxplain.geometry import regular
from voxplain.maps import AttentionMaps, MapKey, Recipe
from voxplain.resampling import resample
from voxplain.tokens import TokenizedPrompt

PROMPT = TokenizedPrompt(
    "left lung.",
    tuple(range(8)),
    ("-",) * 8,
    (None, (0, 4), (5, 7), (7, 9), (9, 10), None, None, None),
    0,
    5,
)
ROWS = 6
GRIDS = pytest.mark.parametrize("grid", [(4, 6), (2, 4, 6)])


def probabilities(grid, seed=0):
    """A softmax over the positions of the context: kept rows, then summed padding."""
    scores = np.exp(np.random.default_rng(seed).normal(size=(8, *grid)) * 2)
    scores /= scores.sum(0)
    return np.concatenate([scores[:ROWS], scores[ROWS:].sum(0, keepdims=True)]).astype(np.float32)


def recorded(parts, ndim):
    """AttentionMaps of (key, mean, count) triples."""
    means, counts = {key: mean for key, mean, _ in parts}, {key: count for key, _, count in parts}
    return AttentionMaps(PROMPT, regular((12,) * ndim, 1.0), means, counts)


@GRIDS
def test_the_mean_sums_to_one_with_the_padding_over_several_grids(grid):
    coarse = tuple(size // 2 for size in grid)
    parts = [(MapKey(grid), probabilities(grid, 1), 3), (MapKey(coarse), probabilities(coarse, 2), 5)]
    attribution = recipes.reduce(recorded(parts, len(grid)), "mean")
    assert attribution.maps.shape == (ROWS, *grid)
    assert np.abs(attribution.maps.sum(0) + attribution.padding - 1).max() < 1e-5
    assert sum(attribution.mass().values()) == pytest.approx(1)


@GRIDS
def test_counts_weigh_and_coarse_grids_are_brought_to_the_finest(grid):
    coarse = tuple(size // 2 for size in grid)
    fine, low = probabilities(grid, 1), probabilities(coarse, 2)
    attribution = recipes.reduce(recorded([(MapKey(coarse), low, 5), (MapKey(grid), fine, 3)], len(grid)), "mean")
    expected = (3 * fine + 5 * resample(low, grid)) / 8
    assert np.allclose(attribution.maps, expected[:-1], atol=1e-6)
    assert np.allclose(attribution.padding, expected[-1], atol=1e-6)
    assert attribution.geometry.same_as(attribution.image_geometry.at(grid))


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_finer_recordings_reduce_to_the_same_mean_in_any_order(counts, seed):
    grids = [(4, 4), (2, 2)]
    parts = [(grids[i % 2], probabilities(grids[i % 2], seed + i), count) for i, count in enumerate(counts)]
    finer = [(MapKey(grid, f"layer{i}", i, i), mean, count) for i, (grid, mean, count) in enumerate(parts)]
    merged = []
    for grid in dict.fromkeys(grid for grid, _, _ in parts):
        same = [(mean, count) for of, mean, count in parts if of == grid]
        total = sum(count for _, count in same)
        merged.append((MapKey(grid), sum(mean * count for mean, count in same) / total, total))
    one, two = recipes.reduce(recorded(finer[::-1], 2)), recipes.reduce(recorded(merged, 2))
    assert np.allclose(one.maps, two.maps, atol=1e-6)


@GRIDS
def test_one_recorded_mean_comes_back_untouched(grid):
    mean = probabilities(grid)
    attribution = recipes.reduce(recorded([(MapKey(grid), mean, 100)], len(grid)))
    assert np.allclose(attribution.maps, mean[:-1], atol=1e-7)
    assert attribution.recipe == recipes.RECIPES["mean"]
    assert attribution.provenance["counts"] == {"x".join(map(str, grid)): 100}


def layered():
    names = ("down.0.attn2", "up.0.attn2", "up.1.attn2")
    return recorded([(MapKey((4, 4), name), probabilities((4, 4), i), 2) for i, name in enumerate(names)], 2)


def test_selected_layers_are_chosen_by_pattern():
    recipe = replace(recipes.get("selected"), layers=("up.*",))
    expected = (probabilities((4, 4), 1) + probabilities((4, 4), 2)) / 2
    assert np.allclose(recipes.reduce(layered(), recipe).maps, expected[:-1], atol=1e-6)


def test_a_recording_that_cannot_serve_a_recipe_says_what_would():
    merged = recorded([(MapKey((4, 4)), probabilities((4, 4)), 1)], 2)
    with pytest.raises(ValueError, match="per_layer=True"):
        recipes.reduce(merged, replace(recipes.get("selected"), layers=("up.*",)))
    with pytest.raises(ValueError, match="localizing_layers"):
        recipes.reduce(layered(), "selected")
    with pytest.raises(ValueError, match=r"recorded were down\.0\.attn2, up\.0\.attn2"):
        recipes.reduce(layered(), replace(recipes.get("selected"), layers=("mid.*",)))
    with pytest.raises(ValueError, match="explain measures it"):
        recipes.reduce(merged, "effect")
    with pytest.raises(ValueError, match="unknown recipe 'median'; there are mean, selected, effect"):
        recipes.get("median")


def test_a_recipe_of_ones_own_is_taken_as_it_is():
    own = Recipe("words only", "ours", "mean over words", scaling="words")
    assert recipes.get(own) is own
    assert recipes.reduce(recorded([(MapKey((4, 4)), probabilities((4, 4)), 1)], 2), own).recipe == own


@GRIDS
def test_words_sum_to_one_where_the_scale_is_words(grid):
    raw = recipes.reduce(recorded([(MapKey(grid), probabilities(grid), 1)], len(grid)))
    scaled = recipes.scale(raw, "words")
    assert np.allclose(scaled.maps[[1, 2, 3]].sum(0), 1, atol=1e-5)  # left, lu, ng; neither the stop nor start nor end
    assert np.allclose(scaled.maps[2] * raw.maps[1], raw.maps[2] * scaled.maps[1], atol=1e-6)
    assert scaled.recipe.scaling == "words" and raw.recipe.scaling == "raw"


def test_a_cell_without_attention_on_words_stays_zero_on_that_scale():
    mean = np.zeros((ROWS + 1, 2, 2), np.float32)
    mean[0] = 1
    scaled = recipes.scale(recipes.reduce(recorded([(MapKey((2, 2)), mean, 1)], 2)), "words")
    assert not scaled.maps.any()


@GRIDS
def test_the_uniform_level_is_zero_on_the_logarithmic_scale(grid):
    mean = np.full((ROWS + 1, *grid), 1 / 8, np.float32)
    mean[-1] = 2 / 8  # two positions of padding
    mean[1], mean[2] = 2 / 8, 0
    scaled = recipes.scale(recipes.reduce(recorded([(MapKey(grid), mean, 1)], len(grid))), "log_ratio")
    assert np.allclose(scaled.maps[[0, 3, 4, 5]], 0, atol=1e-6) and np.allclose(scaled.padding, 0, atol=1e-6)
    assert np.allclose(scaled.maps[1], math.log(2), atol=1e-6)
    assert np.isfinite(scaled.maps[2]).all() and scaled.maps[2].max() < -20


def test_only_raw_attention_can_be_scaled():
    raw = recipes.reduce(recorded([(MapKey((4, 4)), probabilities((4, 4)), 1)], 2))
    assert recipes.scale(raw, "raw") is raw
    with pytest.raises(ValueError, match="only raw attention"):
        recipes.scale(recipes.scale(raw, "words"), "log_ratio")
    with pytest.raises(ValueError, match="only raw attention"):
        recipes.scale(replace(raw, recipe=recipes.get("effect")), "words")


def test_every_recipe_names_its_formula_and_its_source():
    daam = {"daam", "daam_compatible", "daam_paper", "chest_distillation"}
    assert set(recipes.RECIPES) == {"mean", "selected", "effect", "support", *daam}
    for name, recipe in recipes.RECIPES.items():
        assert recipe.name == name and recipe.formula and recipe.source
    assert recipes.get("effect").source == recipes.get("selected").source == "ours"
    assert recipes.get("support").source.startswith("ours, after ")
