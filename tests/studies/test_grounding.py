"""The toy attends to a word's box whatever it sees, and a text read on any image has to find it there."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from voxplain.adapters.toy import ToyAdapter
from voxplain.attention import AttentionCall
from voxplain.geometry import Geometry, regular
from voxplain.maps import Sample
from voxplain.models.placing import placed
from voxplain.studies import fitting, grounding
from voxplain.tracing import attached


@pytest.fixture(params=((8, 24), (4, 8, 12)), ids=["2D", "3D"])
def adapter(request):
    return ToyAdapter(request.param)


def image(adapter, seed=0):
    values = np.random.default_rng(seed).normal(-500, 100, (1, *adapter.geometry.shape))
    return Sample(values.astype(np.float32), adapter.geometry, "")


def test_the_re_noised_states_are_the_documented_formula(adapter):
    states = grounding.renoise(adapter, image(adapter), steps=5, used=3, seed=7)
    latent = adapter.encode_image(image(adapter).image)
    generator = torch.Generator().manual_seed(7)
    assert states.timesteps == adapter.timesteps(5)[2:]
    assert states.steps == (2, 3, 4)
    for made, level in zip(states.latents, states.timesteps, strict=True):
        noise = torch.randn(latent.shape, generator=generator)
        np.testing.assert_array_equal(made, adapter.add_noise(latent, noise, level)[0].numpy())


def test_by_default_the_40_least_noisy_of_50_levels_are_read():
    adapter = ToyAdapter((8, 24))
    states = grounding.renoise(adapter, image(adapter))
    assert states.timesteps == adapter.timesteps(50)[10:]


def test_a_word_is_attended_to_in_its_box(adapter):
    made = grounding.ground(adapter, image(adapter), "small effusion and left", steps=5, used=4)
    values = made.word("effusion").values
    assert adapter.box("effusion")[made.word("effusion").peak]
    assert values[adapter.box("effusion")].min() > 3 * values[adapter.box("nodule")].max()
    np.testing.assert_allclose(made.maps.sum(0) + made.padding, 1, atol=1e-5)
    assert made.provenance["readout"] == "renoise"
    assert made.provenance["noise_levels"] == "4 of 5"


def test_the_read_out_is_the_mean_over_independent_passes(adapter):
    calls: list[AttentionCall] = []
    with attached(adapter, calls.append, adapter.layers[:1]):
        made = grounding.ground(adapter, image(adapter), "left nodule", steps=5, used=4, layers=adapter.layers[:1])
    assert len(calls) == 4  # one conditional pass a level, none without the text
    probs = torch.stack([call.probs().mean(0) for call in calls]).mean(0).numpy()  # [tokens, *grid]
    np.testing.assert_allclose(made.maps, probs[list(made.prompt.kept)], atol=1e-6)


def test_a_given_image_can_be_read_by_effect_too(adapter):
    made = grounding.ground(adapter, image(adapter), "left nodule", "effect", steps=5, used=4)
    assert np.array_equal(made.word("nodule").values > 0, adapter.box("nodule"))
    assert made.recipe.name == "effect"


def test_many_images_give_what_each_gives_alone(adapter):
    images, texts = [image(adapter, seed) for seed in range(3)], ["left nodule", "mild effusion", "small opacity"]
    for recipe in ("mean", "effect"):
        together = grounding.ground_all(adapter, images, texts, recipe, seed=5, steps=4, used=2, limit=2)
        for number, (one, sample, text) in enumerate(zip(together, images, texts, strict=True)):
            alone = grounding.ground(adapter, sample, text, recipe, seed=5 + number, steps=4, used=2)
            np.testing.assert_allclose(one.maps, alone.maps, atol=1e-6)
            assert one.prompt.text == text


def test_repeats_give_mean_and_spread_of_the_read_outs(adapter):
    given, options = (adapter, image(adapter), "left nodule", "effect"), {"steps": 4, "used": 3}
    mean, spread = grounding.ground_repeated(*given, seeds=3, **options)
    runs = [grounding.ground(*given, seed=seed, **options).maps for seed in range(3)]
    np.testing.assert_allclose(mean.maps, np.mean(runs, 0), atol=1e-6)
    np.testing.assert_allclose(spread.maps, np.std(runs, 0), atol=1e-6)
    assert spread.maps.max() > 0


def test_a_read_out_of_a_generation_takes_the_states_of_its_last_steps(adapter):
    seen = []
    with adapter.on_step(lambda step: seen.append(step.latent[0].numpy().copy())):
        adapter.generate("left nodule", seed=3, steps=5)
    prompt = adapter.tokenize("left nodule")
    states, facts = grounding.states_of(adapter, image(adapter), prompt, "generate", seed=3, steps=5, used=2)
    assert np.array_equal(states.latents, np.stack(seen[3:]))
    assert (states.steps, states.timesteps) == ((3, 4), adapter.timesteps(5)[3:])
    assert facts == {"readout": "generate", "noise_levels": "2 of 5", "seed": 3}
    made = [
        grounding.ground(adapter, image(adapter, number), "left nodule", profile="generate", steps=5, used=2)
        for number in range(2)
    ]
    assert np.array_equal(made[0].maps, made[1].maps)  # the given image is not read


def test_maps_lie_in_the_frame_of_the_image_that_was_read(adapter):
    geometry = adapter.geometry
    affine = geometry.affine.copy()
    affine[:-1, -1] += 100.0
    away = replace(image(adapter), geometry=replace(geometry, affine=affine))
    for recipe in ("mean", "effect"):
        found = grounding.ground(adapter, away, "left nodule", recipe, steps=4, used=2)
        plain = grounding.ground(adapter, image(adapter), "left nodule", recipe, steps=4, used=2)
        assert found.image_geometry is away.geometry
        both = [one.word("nodule").resize(frame).values for one, frame in ((found, away.geometry), (plain, geometry))]
        np.testing.assert_allclose(*both, atol=1e-5)


def test_an_unknown_profile_and_repeats_of_one_without_noise_are_refused(adapter):
    with pytest.raises(ValueError, match="unknown profile 'magic'; there are renoise, invert, generate"):
        grounding.ground(adapter, image(adapter), "left", profile="magic")
    with pytest.raises(ValueError, match="'invert' draws no noise"):
        grounding.ground_repeated(adapter, image(adapter), "left", profile="invert")


def test_layers_of_a_recipe_that_reads_no_attention_are_refused_before_any_work(adapter, monkeypatch):
    monkeypatch.setattr(grounding, "states_of", lambda *given, **options: pytest.fail("states were made"))
    for recipe in ("effect", "support"):
        with pytest.raises(ValueError, match=f"recipe '{recipe}' reads no attention, so layers = .* 'mean'"):
            grounding.ground(adapter, image(adapter), "left", recipe, layers=adapter.layers[:1])


@pytest.mark.parametrize("profile", ["renoise", "invert"])
def test_an_image_of_other_channels_is_refused_before_it_is_encoded(adapter, profile, monkeypatch):
    two = replace(image(adapter), image=np.repeat(image(adapter).image, 2, 0))
    monkeypatch.setattr(adapter, "encode_image", lambda values: pytest.fail("it was encoded"))
    monkeypatch.setattr(adapter, "prediction", "sample")
    with pytest.raises(ValueError, match="the image holds 2 channels, and toy reads 1; give one of them"):
        grounding.ground(adapter, two, "left", profile=profile, steps=3, used=2)


def test_the_layers_that_localize_are_the_models_choice(adapter):
    made = grounding.ground(adapter, image(adapter), "left nodule", "selected", steps=4, used=2)
    assert made.provenance["layers"] == list(adapter.localizing_layers)
    silent = ToyAdapter(adapter.latent_shape[1:])
    silent.localizing_layers = ()
    with pytest.raises(ValueError, match="names no localizing layers.*use 'mean'"):
        grounding.ground(silent, image(adapter), "left nodule", "selected")


def test_no_listener_stays_behind(adapter):
    grounding.ground(adapter, image(adapter), "left nodule", steps=3, used=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapter.network.modules())


def test_an_empty_text_and_an_impossible_number_of_levels_are_refused(adapter):
    with pytest.raises(ValueError, match="text is empty"):
        grounding.ground(adapter, image(adapter), "  ")
    with pytest.raises(ValueError, match="used = 6 of 5"):
        grounding.ground(adapter, image(adapter), "left", steps=5, used=6)


def test_a_volume_of_other_spacing_is_brought_to_the_models_grid_around_its_center(adapter):
    shape = tuple(4 * size for size in adapter.geometry.shape)  # at half the spacing: twice the field of view
    fine = regular(shape, 2.5, origin=[70.0] * len(shape))
    values = np.full((1, *shape), -1000.0, np.float32)
    middle = tuple(slice(size // 2 - 2, size // 2 + 2) for size in shape)
    values[(0, *middle)] = 40
    made = fitting.fitted(Sample(values, fine, ""), adapter.geometry)
    assert made.image.shape[1:] == adapter.geometry.shape
    assert made.geometry.spacing == adapter.geometry.spacing
    inner = tuple(slice(size // 2 - 1, size // 2 + 1) for size in adapter.geometry.shape)
    assert (made.image[(0, *inner)] > -1000).all()
    assert made.image.max() == pytest.approx(40, abs=1)
    assert (made.image > -999).sum() == 2 ** len(shape)
    center = (np.array([shape]) - 1) / 2
    ours = (np.array([made.geometry.shape]) - 1) / 2
    np.testing.assert_allclose(made.geometry.world(ours), fine.world(center))


def test_outside_of_a_smaller_volume_is_its_lowest_value(adapter):
    small = regular(tuple(size // 2 for size in adapter.geometry.shape), 5.0)
    made = fitting.fitted(Sample(np.full((1, *small.shape), 7.0, np.float32), small, ""), adapter.geometry)
    assert (made.image == 7).all()


def test_axes_are_turned_to_those_of_the_model():
    shape, spacing = (4, 6, 8), [5.0, 5.0, 5.0]
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    given = Sample(values, regular(shape, spacing, [7.0, 8.0, 9.0]), "")
    made = fitting.fitted(given, placed((8, 6, 4), spacing, "RAS"))
    assert np.array_equal(made.image[0], values[0].transpose(2, 1, 0)[::-1, ::-1])
    corner = np.array([[0.0, 0.0, 0.0]])
    last = np.array([[0.0, shape[1] - 1, shape[2] - 1]])  # the first voxel of made is here in given
    np.testing.assert_allclose(made.geometry.world(corner), given.geometry.world(last))


def test_cells_that_are_much_smaller_than_the_models_are_averaged():
    values = np.random.default_rng(0).normal(size=(1, 32, 48)).astype(np.float32)
    made = fitting.fitted(Sample(values, regular((32, 48), 0.5), ""), regular((8, 12), 2.0))
    np.testing.assert_allclose(made.image[0], values[0].reshape(8, 4, 12, 4).mean((1, 3)), atol=1e-5)


def test_of_unknown_spacing_only_what_has_the_models_shape_or_field_of_view_is_taken(adapter):
    sample, model = image(adapter), adapter.geometry
    assert fitting.fitted(sample, model) is sample

    def unknown(geometry):
        return Geometry(geometry.shape, geometry.affine, spacing_known=False)

    same = replace(sample, geometry=unknown(regular(model.shape, 1.0)))
    assert fitting.fitted(same, model) is same
    fine = tuple(2 * size for size in model.shape)
    large = Sample(np.ones((1, *fine), np.float32), unknown(model.at(fine)), "")
    made = fitting.fitted(large, model)
    assert made.image.shape[1:] == model.shape and made.geometry.same_as(model)
    with pytest.raises(ValueError, match="spacing of the image is not known, so the image .* header"):
        fitting.fitted(replace(large, geometry=unknown(regular(fine, 1.0))), model)
    with pytest.raises(ValueError, match="spacing of the model is not known"):
        fitting.fitted(replace(large, geometry=regular(fine, 1.0)), unknown(regular(model.shape, 1.0)))
    flipped = model.affine.copy()
    flipped[:-1, 0] *= -1
    with pytest.raises(ValueError, match="not known"):
        fitting.fitted(replace(same, geometry=unknown(replace(model, affine=flipped))), model)


def test_an_image_with_another_number_of_axes_is_refused():
    with pytest.raises(ValueError, match="has 2 axes .* makes \\(4, 8, 12\\); choose a model of pictures"):
        fitting.fitted(Sample(np.ones((1, 8, 12), np.float32), regular((8, 12), 1.0), ""), regular((4, 8, 12), 1.0))
