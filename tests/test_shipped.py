"""The models that ship: they load, generate and are explained, in a few steps."""

import json

import numpy as np
import pytest
import torch

import voxplain
from voxplain.adapters import as_adapter
from voxplain.datasets.phantom.impressions import all_words
from voxplain.models.thorax.weights import SHIPPED

pytestmark = pytest.mark.weights
FLAT = ("thorax-2d", "thorax-2d-seed1", "thorax-2d-seed2")
PROMPT = "Large left pleural effusion. Severe consolidation in the right upper lobe."


@pytest.fixture(scope="module")
def model():
    return voxplain.load("thorax")


def test_the_traced_volume_equals_the_untraced_one(model):
    plain = model.generate(PROMPT, seed=3, steps=2)
    with voxplain.trace(model) as tracer:
        traced = model.generate(PROMPT, seed=3, steps=2)
    assert np.array_equal(plain.image, traced.image)
    attribution = tracer.attribution()
    total = attribution.maps.sum(0) + attribution.padding
    np.testing.assert_allclose(total, 1, atol=1e-5)
    assert attribution.maps.shape == (len(attribution.prompt.kept), 16, 16, 16)


def test_explain_gives_both_maps_of_every_word_and_of_a_phrase(model):
    result = voxplain.explain(model, PROMPT, seed=0, steps=4)
    assert set(result.attributions) == {"mean", "effect"}
    assert result.sample.image.shape == (1, 64, 64, 64)
    assert -1024 <= result.sample.image.min() < -500 < 0 < result.sample.image.max() <= 1024
    for name in ("mean", "effect"):
        for word in result.prompt.words:
            assert result.word(word.text, recipe=name).values.max() > 0
    assert result.word("pleural effusion", recipe="effect").values.max() > 0


def test_the_vocabulary_is_the_phantom_grammars_and_nothing_else(model):
    assert model.tokenizer.words == frozenset(part for word in all_words() for part in word.split("-"))
    assert model.tokenizer.unknown_words(PROMPT) == []
    assert model.tokenizer.unknown_words("Glioblastoma on the left.") == ["Glioblastoma"]


def test_the_text_changes_the_prediction_beyond_rounding(model):
    adapter = as_adapter(model)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn((1, *model.latent_shape), generator=generator)
    one, other = (adapter.encode_prompt(model.tokenize(text)) for text in (PROMPT, "Normal study."))
    with torch.no_grad():
        first, second = model.predict(latent, 700, one), model.predict(latent, 700, other)
    assert (first - second).norm() / first.norm() > 0.01


@pytest.mark.parametrize(("name", "budget"), [("thorax", 40_000_000), *((name, 10 * 2**20) for name in FLAT)])
def test_the_files_fit_their_budget_and_the_card_is_there(name, budget):
    folder = SHIPPED / name
    shards = sorted(folder.glob("*.safetensors"))
    assert shards
    assert all(path.stat().st_size <= 12_000_000 for path in shards)
    assert sum(path.stat().st_size for path in shards) <= budget
    card = (folder / "MODEL_CARD.md").read_text()
    assert "not for diagnosis" in card
    assert f"voxplain train {name.partition('-seed')[0]}" in card
    assert json.loads((folder / "config.json").read_text())["config"]["name"] == name.partition("-seed")[0]


def test_the_three_flat_models_are_three_trainings_of_one_recipe():
    models = [voxplain.load(name) for name in FLAT]
    assert len({model.weights_hash for model in models}) == 3
    assert all(model.config["words_removed"] == "before" for model in models)
    images = [model.generate("Large left pleural effusion.", seed=0, steps=2).image for model in models]
    assert {image.shape for image in images} == {(1, 96, 96)}
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[1], images[2])
