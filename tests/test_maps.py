"""The values: checked once, frozen ever after, and never upsampled as a whole."""

import pickle
import time
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest

from voxplain import masks, recipes
from voxplain.geometry import Geometry, regular
from voxplain.maps import (
    AttentionMaps,
    Attribution,
    Explanation,
    Heatmap,
    MapKey,
    Mask,
    Recipe,
    Sample,
    Trajectory,
    UnmeasuredError,
)
from voxplain.tokens import PhraseError, TokenizedPrompt

TEXT = "left pleural effusion, no right effusion."
#        start left ple  ural eff  usion ,    no right eff usion .  end padding
SPANS = (None, (0, 4), (5, 8), (8, 12), (13, 16), (16, 21), (21, 22), (23, 25), (26, 31), (32, 35), (35, 40), (40, 41))
PROMPT = TokenizedPrompt(TEXT, tuple(range(16)), ("-",) * 16, (*SPANS, None, None, None, None), 0, 12)
ROWS = 13


def attribution(grid: tuple[int, ...] = (4, 4, 4), recipe: str = "mean", **given: Any) -> Attribution:
    """Rows and padding that sum to one at every cell, over a field of view of 64 mm."""
    drawn = np.random.default_rng(0).random((ROWS + 1, *grid)).astype(np.float32)
    drawn /= drawn.sum(0)
    image = regular((64,) * len(grid), 1.0)
    of = recipes.get(recipe)
    return replace(Attribution(drawn[:-1], drawn[-1], PROMPT, image.at(grid), of, image), **given)


GRIDS = pytest.mark.parametrize("grid", [(4, 6), (2, 4, 6)])


@GRIDS
def test_a_word_is_the_mean_of_its_pieces(grid):
    maps = attribution(grid)
    heatmap = maps.word("pleural")
    assert np.allclose(heatmap.values, maps.maps[2:4].mean(0))
    assert heatmap.label == "pleural" and heatmap.geometry.same_as(maps.geometry)


@GRIDS
def test_a_phrase_is_the_mean_of_all_its_pieces(grid):
    maps = attribution(grid)
    assert np.allclose(maps.word("Pleural effusion").values, maps.maps[2:6].mean(0))


def test_a_repeated_word_has_a_map_for_each_occurrence():
    maps = attribution()
    with pytest.raises(PhraseError, match="2 times"):
        maps.word("effusion")
    assert np.allclose(maps.word("effusion", 1).values, maps.maps[9:11].mean(0))
    assert np.array_equal(maps.word("effusion#2").values, maps.word("effusion", 1).values)
    assert [heatmap.label for heatmap in maps.words()] == ["left", "pleural", "effusion#1", "no", "right", "effusion#2"]


@GRIDS
def test_every_map_of_words_is_that_of_its_label(grid):
    maps = attribution(grid)
    for heatmap in maps.words():
        assert np.array_equal(heatmap.values, maps.word(heatmap.label).values)


@GRIDS
def test_permuting_tokens_permutes_maps(grid):
    maps, order = attribution(grid), np.random.default_rng(1).permutation(ROWS)
    mixed = replace(maps, maps=maps.maps[order])
    assert np.array_equal(mixed.word("left").values, maps.maps[order[1]])


@GRIDS
def test_mass_is_a_share_of_everything(grid):
    maps = attribution(grid)
    mass = maps.mass()
    assert list(mass)[:3] == ["[start]", "[end]", "left"]
    assert sum(mass.values()) == pytest.approx(1)
    assert mass["pleural"] == pytest.approx(maps.maps[2:4].sum() / np.prod(grid), rel=1e-5)
    assert mass["[padding]"] == pytest.approx(maps.padding.mean(), rel=1e-5)
    assert mass["[other]"] == pytest.approx((maps.maps[6] + maps.maps[11]).mean(), rel=1e-5)  # the comma and the stop


def test_a_prompt_may_say_start_end_and_padding():
    prompt = TokenizedPrompt("end start", (0, 1, 2, 3), ("",) * 4, (None, (0, 3), (4, 9), None), 0, 3)
    rows = np.ones((4, 2, 2), np.float32) * np.array([1, 2, 3, 4], np.float32)[:, None, None] / 10
    maps = attribution((2, 2))
    mass = replace(maps, maps=rows, padding=np.zeros((2, 2), np.float32), prompt=prompt).mass()
    assert [mass[name] for name in ("[start]", "end", "start", "[end]")] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_maps_of_zeros_have_no_mass_and_maps_with_negative_values_are_refused_one():
    zeros = attribution(maps=np.zeros((ROWS, 4, 4, 4), np.float32), padding=np.zeros((4, 4, 4), np.float32))
    assert set(zeros.mass().values()) == {0.0}
    with pytest.raises(ValueError, match="logarithmic"):
        recipes.scale(attribution(), "log_ratio").mass()


@GRIDS
def test_joint_is_that_of_masks_on_the_native_grid(grid):
    maps = attribution(grid)
    expected = masks.joint([maps.word("left"), maps.word("pleural effusion")], 0.3)
    found = maps.joint(["left", "pleural effusion"], 0.3)
    assert np.array_equal(found.values, expected.values) and found.label == "left + pleural effusion"
    with pytest.raises(ValueError, match="at least one phrase"):
        maps.joint([])


def test_a_span_that_is_measured_as_a_whole_is_never_a_mean_of_its_words():
    effect = attribution(recipe="effect")
    assert np.allclose(effect.word("pleural").values, effect.maps[2:4].mean(0))  # one word of two pieces
    with pytest.raises(UnmeasuredError, match="'pleural effusion' was not measured"):
        effect.word("pleural effusion")
    whole = np.full((4, 4, 4), 3.0, np.float32)
    measured = replace(effect, phrases={PROMPT.find("pleural effusion"): whole})
    assert np.array_equal(measured.word("pleural effusion").values, whole)


def explanation(**given: Any) -> Explanation:
    image = regular((64,) * 3, 1.0)
    sample = Sample(np.zeros((1, 64, 64, 64), np.float32), image, TEXT)
    return replace(
        Explanation(sample, PROMPT, {"mean": attribution(), "effect": attribution(recipe="effect")}), **given
    )


def test_an_explanation_delegates_to_the_recipe_that_is_asked_for():
    result = explanation()
    assert np.array_equal(result.word("left").values, result.attributions["mean"].word("left").values)
    assert np.array_equal(result.word("effusion", 1, "effect").values, attribution().maps[9:11].mean(0))
    with pytest.raises(ValueError, match="no recipe 'median' here; there are mean, effect"):
        result.word("left", recipe="median")


def test_an_explanation_measures_an_unmeasured_span_if_it_can():
    with pytest.raises(UnmeasuredError):
        explanation().word("right effusion", recipe="effect")
    asked = []

    def measure(phrase: str) -> Heatmap:
        asked.append(phrase)
        return Heatmap(phrase, np.ones((4, 4, 4), np.float32), attribution().geometry)

    able = explanation(measure=measure)
    assert able.word("RIGHT  effusion", recipe="effect").values.min() == 1
    able.word("right effusion")  # attention needs no pass of its own
    with pytest.raises(PhraseError):
        able.word("absent", recipe="effect")
    assert asked == ["right effusion"]


def test_the_notebook_table_escapes_the_prompt_and_marks_what_cannot_be_told_apart():
    prompt = TokenizedPrompt("<b> left", (0, 1), ("", ""), ((1, 2), (4, 8)), None)
    maps = replace(attribution(), prompt=prompt, maps=np.ones((2, 4, 4, 4), np.float32))
    result = explanation(prompt=prompt, attributions={"mean": maps}, honesty={"left": {"distinguishable": False}})
    html = result._repr_html_()
    assert "&lt;b&gt; left" in html and "<b> left" not in html
    assert html.count("(not distinguishable)") == 1 and "left (not distinguishable)" in html
    assert "no segmentation" in html


def test_a_phrase_is_sure_if_any_of_its_words_is_and_statistics_go_by_all_recipes():
    apart, alike = {"distinguishable": True}, {"distinguishable": False}
    honesty = {"left": {**alike, "recipes": {"mean": alike, "effect": apart}}, "pleural": {**apart, "recipes": {}}}
    result = explanation(honesty=honesty)
    assert not result.sure("left") and not result.sure("left", "mean") and result.sure("left", "effect")
    assert not result.sure("left", "mean over seeds")
    assert result.sure("left pleural") and result.sure("pleural effusion#1")
    assert result.sure("right")  # not tested


def test_warnings_are_shown_in_the_notebook_as_text():
    html = explanation(provenance={"warnings": ["never saw <i>"]})._repr_html_()
    assert "<p>never saw &lt;i&gt;</p>" in html


def test_arrays_are_copied_then_frozen():
    values = np.zeros((4, 4), np.float32)
    heatmap = Heatmap("word", values, regular((4, 4), 1.0))
    values[0, 0] = 9
    assert heatmap.values[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        heatmap.values[0, 0] = 9
    with pytest.raises(FrozenInstanceError):
        heatmap.label = "other"  # pyright: ignore[reportAttributeAccessIssue]


@GRIDS
def test_the_peak_is_the_index_of_the_maximum(grid):
    values = np.zeros(grid, np.float32)
    place = tuple(size - 1 - i for i, size in enumerate(grid))
    values[place] = 1
    assert Heatmap("word", values, regular(grid, 1.0)).peak == place


@GRIDS
def test_a_resized_heatmap_keeps_its_place_in_the_world(grid):
    values = np.zeros(grid, np.float32)
    values[(1,) * len(grid)] = 1
    heatmap = Heatmap("word", values, regular(grid, 8.0))
    large = heatmap.resize(heatmap.geometry.at(tuple(size * 5 for size in grid)))
    here = heatmap.geometry.world(np.ones((1, len(grid))))
    there = large.geometry.world(np.array([large.peak], float))
    assert np.abs(here - there).max() < 1e-6
    assert large.values.shape == large.geometry.shape


@GRIDS
def test_a_mask_survives_enlarging_and_stays_boolean(grid):
    rng = np.random.default_rng(0)
    mask = Mask("word", rng.random(grid) > 0.5, regular(grid, 8.0))
    large = mask.resize(mask.geometry.at(tuple(size * 3 for size in grid)))
    assert large.values.dtype == np.bool_ and large.values.mean() == pytest.approx(mask.values.mean())
    assert np.array_equal(large.resize(mask.geometry).values, mask.values)


def test_wrong_shapes_and_infinite_values_are_refused():
    grid = regular((4, 4), 1.0)
    with pytest.raises(ValueError, match=r"word: array \(4, 5\) but geometry \(4, 4\)"):
        Heatmap("word", np.zeros((4, 5), np.float32), grid)
    with pytest.raises(ValueError, match="NaN"):
        Heatmap("word", np.full((4, 4), np.nan, np.float32), grid)
    with pytest.raises(ValueError, match="NaN"):
        Sample(np.full((1, 4, 4), np.inf, np.float32), grid, "left")
    with pytest.raises(ValueError, match="geometry"):
        Sample(np.zeros((4, 4), np.float32), regular((4,) * 3, 1.0), "left")
    with pytest.raises(ValueError, match="prompt keeps 13"):
        attribution(maps=np.zeros((ROWS - 1, 4, 4, 4), np.float32))
    with pytest.raises(ValueError, match="differ in their axes"):
        attribution(image_geometry=grid)
    with pytest.raises(ValueError, match=r"phrases \(1, 2\): array \(2, 2\)"):
        attribution(phrases={(1, 2): np.zeros((2, 2), np.float32)})


@pytest.mark.parametrize(
    ("means", "counts", "message"),
    [
        ({}, {}, "0 means"),
        ({(4, 4): np.ones((ROWS + 1, 4, 4))}, {}, "one count for each"),
        ({(4, 4): np.ones((ROWS, 4, 4))}, {(4, 4): 1}, r"expected \(14, 4, 4\)"),
        ({(4, 4): np.ones((ROWS + 1, 4, 4))}, {(4, 4): 0}, "at least one"),
        ({(4,): np.ones((ROWS + 1, 4))}, {(4,): 1}, "MapKey"),
    ],
)
def test_a_recording_that_contradicts_itself_is_refused(means, counts, message):
    keyed = {MapKey(grid): mean.astype(np.float32) for grid, mean in means.items()}
    with pytest.raises(ValueError, match=message):
        AttentionMaps(PROMPT, regular((8, 8), 1.0), keyed, {MapKey(grid): n for grid, n in counts.items()})


def test_a_trajectory_and_a_recipe_are_checked():
    with pytest.raises(ValueError, match="2 latents, 1 timesteps"):
        Trajectory(np.zeros((2, 1, 4, 4), np.float32), (1.0,), (0, 1))
    with pytest.raises(ValueError, match="can be layer, head, bin"):
        Recipe("odd", "ours", "", accumulate=frozenset({"token"}))


def test_values_can_be_pickled():
    back = pickle.loads(pickle.dumps(attribution()))
    assert np.array_equal(back.maps, attribution().maps) and back.prompt == PROMPT
    assert back.geometry.same_as(attribution().geometry)


def fastest(work, repeats=5):
    """Processor seconds of the quickest run."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    ("shape", "limit", "phrases"), [((64,) * 3, 0.005, 1), ((64,) * 3, 0.010, 3), ((256,) * 3, 0.3, 1)]
)
def test_a_heatmap_reaches_image_size_in_time(shape, limit, phrases):
    maps, words = attribution((16, 16, 16)), ["left", "no", "right"][:phrases]
    image = Geometry(shape, maps.image_geometry.at(shape).affine)
    assert fastest(lambda: maps.joint(words).resize(image)) < 4 * limit  # the aim with room for a busy machine
