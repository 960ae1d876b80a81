from dataclasses import replace

import numpy as np
import pytest

from voxplain import recipes
from voxplain.adapters.toy import ToyAdapter
from voxplain.maps import Sample
from voxplain.studies import effect, grounding
from voxplain.studies.explaining import explain, explain_image, measurable
from voxplain.tokens import PhraseError
from voxplain.tracing import trace

PROMPT = "large left effusion and small pneumothorax"


@pytest.fixture(params=((8, 24), (4, 8, 12)), ids=["2D", "3D"])
def adapter(request):
    return ToyAdapter(request.param)


class Counting(ToyAdapter):
    """Counts the rows that the network evaluates."""

    rows = 0

    def predict(self, latent, timestep, context, **options):
        self.rows += len(latent)
        return super().predict(latent, timestep, context, **options)


class Naming(ToyAdapter):
    """Says which words it never saw, as shipped models do."""

    def generate(self, prompt, **options):
        made = super().generate(prompt, **options)
        return Sample(made.image, made.geometry, prompt, {**made.provenance, "unknown_words": ["mystery"]})


def test_the_explained_image_is_the_one_that_plain_generation_makes(adapter):
    result = explain(adapter, PROMPT, seed=3, steps=4, guidance_scale=1.5)
    assert np.array_equal(result.sample.image, adapter.generate(PROMPT, seed=3, steps=4, guidance_scale=1.5).image)


def test_every_recipe_gives_the_maps_that_it_gives_alone(adapter):
    result = explain(adapter, PROMPT, steps=4, recipes=("mean", "selected", "effect"))
    assert list(result.attributions) == ["mean", "selected", "effect"]
    for name in ("mean", "selected"):
        with trace(adapter, grounding.resolved(adapter, name)) as tracer, effect.keeping(adapter) as kept:
            adapter.generate(PROMPT, steps=4)
        assert np.array_equal(result.attributions[name].maps, tracer.attribution().maps)
    alone = effect.measure_words(adapter, adapter.tokenize(PROMPT), kept()[0])
    assert np.array_equal(result.attributions["effect"].maps, alone.maps)
    assert result.attributions["selected"].recipe.layers == adapter.localizing_layers


def test_words_are_found_where_they_were_planted_and_function_words_nowhere(adapter):
    result = explain(adapter, PROMPT, steps=4)
    for word in ("large", "left", "effusion", "small"):
        for recipe in ("mean", "effect"):
            assert adapter.box(word)[result.word(word, recipe=recipe).peak]
        assert result.honesty[word]["distinguishable"] is True
        assert result.honesty[word]["agreement"]["top10_overlap"] > 0.3
    assert result.honesty["and"]["distinguishable"] is False


def test_null_words_are_controls_and_never_reach_the_sample_or_its_maps(adapter):
    result = explain(adapter, PROMPT, steps=4)
    assert result.provenance["null_words"] == ["of", "the"]
    assert result.prompt.text == PROMPT
    for attribution in result.attributions.values():
        assert list(attribution.controls) == ["of", "the"]
        assert attribution.prompt.text == PROMPT
    assert not any(values.any() for values in result.attributions["effect"].controls.values())


def test_ten_words_cost_at_most_twice_the_generation():
    adapter = Counting()
    prompt = "large left effusion small right nodule mild opacity severe pneumothorax"
    adapter.generate(prompt, steps=50)
    generation, adapter.rows = adapter.rows, 0
    explain(adapter, prompt, steps=50, recipes=("mean",))
    without, adapter.rows = adapter.rows, 0
    result = explain(adapter, prompt, steps=50)
    assert generation == 100  # guided: two rows a step
    assert len(result.prompt.words) == 10
    assert adapter.rows - generation <= 2 * generation
    assert adapter.rows - without == 8 * (10 + 1) + 8 * (2 + 1)  # words and null words, each with a baseline
    assert without - generation == 8  # null words by attention


def test_each_layer_alone_stands_beside_its_recipe_on_its_own_grid(adapter):
    recorded = {"steps": 3, "recipes": ("mean", "effect")}
    plain, apart = (explain(adapter, PROMPT, per_layer=one, **recorded) for one in (False, True))
    np.testing.assert_allclose(apart.attributions["mean"].maps, plain.attributions["mean"].maps, atol=1e-6)
    names = [f"mean layer {layer}" for layer in adapter.layers]
    assert list(apart.attributions) == ["mean", *names, "effect"]
    for name, layer in zip(names, adapter.layers, strict=True):
        alone = explain(adapter, PROMPT, layers=[layer], steps=3, recipes=("mean",)).attributions["mean"]
        np.testing.assert_allclose(apart.attributions[name].maps, alone.maps, atol=1e-6)
        assert apart.attributions[name].provenance["layers"] == [layer]


def test_phrases_are_measured_at_once_or_when_they_are_asked_for(adapter):
    result = explain(adapter, PROMPT, steps=3, phrases=["left effusion"])
    box = adapter.box("left") | adapter.box("effusion")
    assert np.array_equal(result.attributions["effect"].word("left effusion").values > 0, box)
    later = result.word("small pneumothorax", recipe="effect")
    expected = effect.measure_phrase(adapter, result, "small pneumothorax")
    assert np.array_equal(later.values, expected.values)
    assert result.word("left effusion").values.shape == adapter.latent_shape[1:]  # attention: the mean of the words


@pytest.mark.parametrize("how", ["after", "before"])
def test_words_null_words_and_phrases_are_removed_where_it_was_asked(adapter, monkeypatch, how):
    asked, remove = [], adapter.remove
    monkeypatch.setattr(adapter, "remove", lambda tokens, rows, at: asked.append(at) or remove(tokens, rows, at))
    result = explain(adapter, PROMPT, steps=2, phrases=["left effusion"], removed=how)
    result.word("small pneumothorax", recipe="effect")
    assert asked == [how] * (6 + 2 + 1 + 1)
    alone = effect.measure_words(adapter, result.prompt, result.states, how=how)
    assert np.array_equal(result.attributions["effect"].maps, alone.maps)
    asked.clear()
    read = explain_image(adapter, result.sample, "left effusion", recipes=("effect",), removed=how)
    assert asked == [how] * (2 + 2)
    assert read.attributions["effect"].provenance["removed"] == how


def test_a_phrase_is_measured_only_once(adapter, monkeypatch):
    result, asked = explain(adapter, PROMPT, steps=2), []
    measure = effect.measure_phrase
    monkeypatch.setattr(effect, "measure_phrase", lambda *given: asked.append(given[2]) or measure(*given))
    first, second = (result.word("LEFT effusion", recipe="effect") for _ in range(2))
    assert asked == ["left effusion"]
    assert np.array_equal(first.values, second.values)


def test_a_loaded_explanation_becomes_measurable_again(adapter):
    result = explain(adapter, PROMPT, steps=2)
    again = measurable(result, adapter).word("left effusion", recipe="effect")
    assert np.array_equal(again.values, result.word("left effusion", recipe="effect").values)


def test_several_seeds_give_mean_spread_and_correlation_beside_the_first(adapter):
    result = explain(adapter, PROMPT, seed=4, steps=2, seeds=3)
    single = [explain(adapter, PROMPT, seed=4 + number, steps=2) for number in range(3)]
    assert np.array_equal(result.sample.image, single[0].sample.image)
    assert result.provenance["seeds"] == [4, 5, 6]
    for recipe in ("mean", "effect"):
        maps = np.stack([one.attributions[recipe].maps for one in single])
        assert np.array_equal(result.attributions[recipe].maps, maps[0])
        np.testing.assert_allclose(result.attributions[f"{recipe} over seeds"].maps, maps.mean(0), atol=1e-6)
        np.testing.assert_allclose(result.attributions[f"{recipe} spread over seeds"].maps, maps.std(0), atol=1e-6)
    assert result.honesty["effusion"]["seeds"]["mean_correlation"] > 0.99  # planted: the seed does not matter
    assert set(result.honesty["effusion"]["seeds"]["recipes"]) == {"mean", "effect"}


def test_a_model_with_a_single_text_key_refuses_attention_and_offers_effect(adapter):
    single = ToyAdapter(adapter.latent_shape[1:], single_key=True)
    with pytest.raises(ValueError, match="single text key.*use recipe 'effect'"):
        explain(single, PROMPT, steps=2)
    result = explain(single, PROMPT, steps=2, recipes=("effect",))
    assert np.array_equal(result.word("effusion", recipe="effect").values > 0, single.box("effusion"))
    assert result.attributions["effect"].provenance["removed"] == "before"
    assert result.honesty["effusion"]["distinguishable"] is True


def test_unknown_and_cut_off_words_are_named():
    words = " ".join(["left", "right"] * 8)
    result = explain(Naming(), f"{words} mystery", steps=2)
    unknown, cut = result.provenance["warnings"]
    assert "never saw" in unknown and "mystery" in unknown
    assert "fell off" in cut and "left right mystery" in cut
    assert explain(ToyAdapter(), PROMPT, steps=2).provenance["warnings"] == []


def test_unknown_words_are_named_on_a_given_image_too(monkeypatch):
    adapter = ToyAdapter()
    monkeypatch.setattr(adapter, "unknown_words", lambda text: [word for word in text.split() if word == "mystery"])
    result = explain_image(adapter, adapter.generate("nodule", steps=2), "left mystery", recipes=("mean",))
    assert result.provenance["warnings"] == ["the model never saw these words in training: mystery"]


def test_every_scaling_can_be_explained(adapter):
    for scaling in ("words", "log_ratio"):
        result = explain(adapter, PROMPT, steps=2, recipes=(replace(recipes.get("mean"), scaling=scaling),))
        assert result.attributions["mean"].recipe.scaling == scaling
        values = result.word("effusion").values
        assert values[adapter.box("effusion")].min() > np.median(values)
        assert (result.honesty["effusion"]["mass"] is None) == (scaling == "log_ratio")
        assert result.honesty["effusion"]["distinguishable"] is True


def test_provenance_holds_what_it_takes_to_do_it_again(adapter):
    result = explain(adapter, PROMPT, seed=2, steps=3)
    known = result.provenance
    assert (known["model"], known["seed"], known["steps"], known["guidance_scale"]) == ("toy", 2, 3, 2.0)
    assert known["recipes"] == ["mean", "effect"]
    assert set(known["timings"]) == {"generate", "mean", "effect", "null words"}


def test_progress_names_each_stage_and_finishes_it(adapter):
    seen = {}
    explain(adapter, PROMPT, steps=3, phrases=["left effusion"], progress=lambda stage, *at: seen.update({stage: at}))
    assert seen == {"generate": (3, 3), "effect": (3, 3), "phrases": (3, 3)}


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prompt": " \n"}, "prompt is empty"),
        ({"prompt": "..."}, "no word"),
        ({"prompt": "\udcff effusion"}, "no text in UTF-8"),
        ({"recipes": ()}, "one or more"),
        ({"recipes": ("mean", "mean")}, "each once"),
        ({"recipes": ("magic",)}, "unknown recipe 'magic'"),
        ({"seeds": 0}, "seeds = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"guidance_scale": -1.0}, "guidance_scale = -1"),
        ({"layers": ("nowhere.*",)}, "no layer"),
        ({"recipes": ("mean",), "phrases": ("left",)}, "recipe 'effect'"),
        ({"recipes": ("mean",), "removed": "before"}, "about the recipes 'effect' and 'support'"),
    ],
)
def test_bad_input_is_refused_in_words(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        explain(ToyAdapter(), **{"prompt": PROMPT, "steps": 2, **options})


def test_an_absent_phrase_is_refused_before_anything_is_generated():
    adapter = Counting()
    with pytest.raises(PhraseError, match="nearest.*effusion"):
        explain(adapter, PROMPT, phrases=["effusions"])
    assert adapter.rows == 0


@pytest.mark.parametrize("at", ["generate", "effect"])
def test_an_interrupted_explanation_leaves_no_hook_behind(adapter, at):
    def interrupt(stage, *_):
        if stage == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explain(adapter, PROMPT, steps=2, progress=interrupt)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapter.network.modules())
    assert adapter._watchers == []


def test_a_given_image_is_explained_by_the_re_noise_read_out(adapter):
    given = adapter.generate("small nodule", steps=2)
    result = explain_image(adapter, given, PROMPT, seed=1, seeds=2)
    assert np.array_equal(result.sample.image, given.image)
    assert result.sample.prompt == PROMPT
    assert result.provenance["readout"] == "renoise"
    expected = grounding.ground(adapter, given, PROMPT, seed=1)
    assert np.array_equal(result.attributions["mean"].maps, expected.maps)
    assert adapter.box("effusion")[result.word("effusion", recipe="effect").peak]
    assert len(result.states.timesteps) == 8
    assert result.honesty["effusion"]["distinguishable"] is True
    assert "mean spread over seeds" in result.attributions
    box = adapter.box("left") | adapter.box("effusion")
    assert np.array_equal(result.word("left effusion", recipe="effect").values > 0, box)


def test_a_recipe_of_the_users_own_works_like_a_named_one(adapter):
    own = recipes.Recipe("first layer", "test", "mean over the first layer", frozenset({"layer"}), adapter.layers[:1])
    result = explain(adapter, PROMPT, steps=2, recipes=(own,))
    assert adapter.box("effusion")[result.word("effusion", recipe="first layer").peak]
