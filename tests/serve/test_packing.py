import gzip
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from synthetic import explained

from voxplain import recipes
from voxplain.geometry import regular
from voxplain.maps import Heatmap, Sample
from voxplain.masks import top_fraction
from voxplain.serve import describing, packing, page

NIIVUE = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"


def opened(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


@pytest.mark.parametrize("shape", [(5, 7, 9), (6, 8)])
def test_a_map_comes_back_within_half_a_step_and_in_its_place(shape):
    values = np.random.default_rng(0).exponential(size=shape).astype(np.float32)
    geometry = regular(shape, 4.0, [3.0, -2.0, 5.0][: len(shape)])
    image = opened(packing.map_file(values, geometry, {"label": "a “word”"}))
    read = image.get_fdata().T.reshape(shape)
    assert image.get_data_dtype() == np.uint8
    assert np.abs(read - values).max() <= values.max() / 510 + 1e-6
    facts = json.loads(image.header.extensions[0].get_content())
    assert facts["label"] == "a “word”"
    assert facts["maximum"] == pytest.approx(values.max())
    far = np.array([[0.0] * (3 - len(shape)) + [1.0, 2.0, 3.0][-len(shape) :]])
    there = geometry.world(far[:, -len(shape) :])[0]
    expected = np.zeros(3)
    expected[: len(shape)] = there * [-1, -1, 1][: len(shape)]
    np.testing.assert_allclose((image.affine @ [*far[0, ::-1], 1.0])[:3], expected, atol=1e-4)


@pytest.mark.parametrize("percent", [1, 25, 80])
def test_levels_are_the_thresholds_of_masks(percent):
    values = np.random.default_rng(1).gamma(0.3, size=(8, 8, 8)).astype(np.float32)
    values[:3] = 0
    level = packing.levels(values)[percent]
    mask = top_fraction(Heatmap("w", values, regular(values.shape, 1.0)), percent / 100)
    assert ((values >= level * (1 - 1e-5)) == mask.values).mean() > 0.999


def test_a_map_of_nothing_has_no_levels_and_a_negative_one_keeps_its_sign():
    geometry = regular((2, 2, 2), 1.0)
    zero = opened(packing.map_file(np.zeros((2, 2, 2), np.float32), geometry, {}))
    assert json.loads(zero.header.extensions[0].get_content())["levels"] is None
    signed = np.linspace(-1, 2, 8, dtype=np.float32).reshape(2, 2, 2)
    np.testing.assert_allclose(opened(packing.map_file(signed, geometry, {})).get_fdata().T, signed, atol=0.01)


def test_the_sample_is_whole_hu_or_scaled_or_colored():
    sample = explained().sample
    content, factor = packing.sample_file(sample)
    image = opened(content)
    assert factor == 1
    np.testing.assert_array_equal(image.get_fdata().T, np.rint(sample.image[0]))
    other = Sample(sample.image / 5000, sample.geometry, "p", unit="relative")
    np.testing.assert_allclose(opened(packing.sample_file(other)[0]).get_fdata().T, other.image[0], atol=1e-4)
    color = Sample(np.zeros((3, 4, 6)), regular((4, 6), 1.0), "p", unit="relative")
    assert opened(packing.sample_file(color)[0]).get_data_dtype().names == ("R", "G", "B")


def test_a_large_sample_is_made_coarser_over_the_same_place():
    sample = explained((8, 12, 16)).sample
    content, factor = packing.sample_file(sample, 8)
    image = opened(content)
    assert factor == 2
    assert image.shape == (8, 6, 4)
    corner = image.affine @ [-0.5, -0.5, -0.5, 1]
    whole = opened(packing.sample_file(sample)[0]).affine @ [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(corner, whole, atol=1e-4)


@pytest.mark.parametrize("shape", [(8, 12, 16), (12, 16)])
def test_the_ranking_at_a_voxel_is_that_of_the_enlarged_maps(shape):
    explanation = explained(shape)
    voxel = tuple(size // 3 for size in shape)
    cells = explanation.attributions["mean"].geometry.index(explanation.sample.geometry.world(np.array([voxel], float)))
    found = describing.ranked(explanation, "mean", cells)
    for entry in found:
        heatmap = explanation.word(entry["word"]).resize(explanation.sample.geometry)
        assert entry["value"] == pytest.approx(float(heatmap.values[voxel]), abs=1e-6)
    assert [entry["value"] for entry in found] == sorted((entry["value"] for entry in found), reverse=True)
    assert {entry["word"] for entry in found if not entry["sure"]} == {"the"}


def test_a_region_ranks_by_the_mean_and_an_empty_one_is_refused():
    explanation = explained()
    inside = np.zeros(explanation.sample.geometry.shape, bool)
    with pytest.raises(ValueError, match="empty"):
        describing.ranking(explanation, "mean", inside)
    inside[2:4, 2:6, 2:6] = True
    found = {entry["word"]: entry["value"] for entry in describing.ranking(explanation, "mean", inside)}
    whole = explanation.word("left").resize(explanation.sample.geometry).values
    assert found["left"] == pytest.approx(float(whole[inside].mean()), rel=1e-4)


def test_the_description_is_json_and_says_what_is_not_distinguishable():
    case = describing.describe(explained())
    json.dumps(case, allow_nan=False)
    words = {entry["label"]: entry for entry in case["words"]}
    assert words["the"]["recipes"]["mean"]["sure"] is False
    assert words["effusion#2"]["text"] == "effusion"
    assert case["specials"] == ["[start]", "[end]", "[padding]"]
    assert case["recipes"][0]["uniform"] == pytest.approx(1 / len(explained().prompt.ids))
    assert [phrase["label"] for phrase in case["phrases"]] == ["left lung"]
    assert list(case["phrases"][0]["recipes"]) == ["mean", "effect"]


@pytest.mark.parametrize(
    ("name", "scaling", "unit", "even"),
    [
        ("mean", "raw", "share of attention, a probability", True),
        ("mean", "words", "share of the attention that all words together have", False),
        ("mean", "log_ratio", "logarithm of the attention over that of an even spread", False),
        ("daam", "raw", "attention added up over steps, no probability", False),
        ("effect", "raw", "change, as a part of the prediction's size", False),
    ],
)
def test_the_legend_says_what_the_values_are(name, scaling, unit, even):
    made = explained()
    recipe = replace(recipes.get(name), scaling=scaling)
    one = replace(made.attributions["mean"], recipe=recipe, controls={})
    (found,) = describing.describe(replace(made, attributions={name: one}))["recipes"]
    assert found["unit"] == unit
    assert (found["uniform"] is not None) == even


def test_parts_of_the_steps_and_layers_are_told_apart_from_recipes():
    made = explained()
    mean = made.attributions["mean"]
    parts = {
        name: replace(mean, provenance={"statistic": name.removeprefix("mean ")})
        for name in ("mean part 2 of 5", "mean layer up.0.attn2", "mean over seeds")
    }
    found = describing.describe(replace(made, attributions={"mean": mean, **parts}))["recipes"]
    assert [one["part"] for one in found] == [None, {"of": "mean", "number": 2}, None, None]
    assert [one["layer"] for one in found] == [None, None, {"of": "mean", "name": "up.0.attn2"}, None]
    assert found[3]["unit"] == "share of attention, a probability; over seeds"


def test_the_vendored_script_is_the_pinned_one_and_its_license_ships_with_it():
    static = Path(packing.__file__).parent / "static"
    assert hashlib.sha256((static / "niivue.umd.js").read_bytes()).hexdigest() == NIIVUE
    notice = (static / "THIRD_PARTY.txt").read_text()
    assert NIIVUE in notice
    assert "Redistributions in binary form must reproduce" in notice
    assert set(page.SCRIPTS) | {page.STYLE, "viewer.html", "icon.svg", "THIRD_PARTY.txt"} == {
        path.name for path in static.iterdir() if path.stem != "study"
    }
