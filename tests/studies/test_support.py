"""A model whose words act in boxes of their own, and images that bear a word out or contradict it."""

import math

import numpy as np
import pytest
import torch

import voxplain
from voxplain.adapters.toy import ToyAdapter
from voxplain.maps import Sample
from voxplain.metrics.localization import auc_roc
from voxplain.models.schedule import estimates
from voxplain.studies import effect, grounding
from voxplain.studies.baselines import measure
from voxplain.studies.explaining import explain_image
from voxplain.studies.support import SMOOTH, support_words, supports

TEXT = "left effusion and small nodule"


class Telling(ToyAdapter):
    """Takes the clean latent for 0 but for the boxes of the words in the text, where it takes it for 1."""

    prediction = "sample"

    def denoise(self, latent, timestep, context):
        made = torch.zeros_like(latent)
        for row, words in zip(made, context[..., 0].round().long().tolist(), strict=True):
            for word in {self.words[number] for number in words if number}:
                row[:, torch.from_numpy(self.box(word))] = 1
        return made

    words = ("", "effusion", "nodule")

    def encode_prompt(self, prompt):
        known = [self.words.index(piece) if piece in self.words else 0 for piece in prompt.pieces]
        return torch.tensor(known, dtype=torch.float32)[None, :, None].expand(1, -1, 2)

    def encode_image(self, image):
        return torch.from_numpy(np.ascontiguousarray(image[:, ::2, ::2] if self.flat else image[:, ::2, ::2, ::2]))[
            None
        ].expand(1, 2, *self.latent_shape[1:])

    @property
    def flat(self):
        return len(self.latent_shape) == 3


@pytest.fixture(params=((8, 24), (4, 8, 12)), ids=["2D", "3D"])
def adapter(request):
    return Telling(request.param)


def image(adapter, **boxes):
    """An image of 0 with a value in the boxes of some words."""
    values = np.zeros(adapter.latent_shape[1:], np.float32)
    for word, value in boxes.items():
        values[adapter.box(word)] = value
    for axis in range(values.ndim):
        values = values.repeat(2, axis)
    return Sample(values[None], adapter.geometry, TEXT)


def supported(adapter, sample, used=3):
    states = grounding.renoise(adapter, sample, steps=5, used=used)
    return support_words(adapter, adapter.tokenize(TEXT), sample, states)


def test_a_word_that_the_image_bears_out_is_supported_in_its_place_and_another_nowhere(adapter):
    made = supported(adapter, image(adapter, effusion=1.0))
    assert auc_roc(made.word("effusion").values, adapter.box("effusion")) == 1
    # it brings all that was missing in its box; in the other box, the text says too much with it and without it
    assert made.provenance["evidence"]["effusion"] == pytest.approx(math.sqrt(0.5))
    assert not made.word("nodule").values.any()  # it moves away from the image
    assert made.provenance["evidence"]["nodule"] == pytest.approx(0, abs=1e-6)  # where nothing was missing


def test_a_word_that_the_image_contradicts_has_evidence_below_zero_where_its_effect_is_as_large_as_ever(adapter):
    against = image(adapter, effusion=-1.0, nodule=1.0)
    made = supported(adapter, against)
    assert not made.word("effusion").values.any()
    assert made.provenance["evidence"]["effusion"] == pytest.approx(-1)
    states = grounding.renoise(adapter, against, steps=5, used=3)
    changed = effect.measure_words(adapter, adapter.tokenize(TEXT), states).word("effusion").values
    assert auc_roc(changed, adapter.box("effusion")) == 1


def test_a_word_that_changes_nothing_has_none(adapter):
    made = supported(adapter, image(adapter, effusion=1.0))
    for word in ("left", "small"):
        assert not made.word(word).values.any()
        assert made.provenance["evidence"][word] == 0


def test_evidence_is_shared_where_half_of_what_is_missing_is_another_words(adapter):
    made = supported(adapter, image(adapter, effusion=1.0, nodule=1.0))
    # without either word the other's box is right already, so each brings all that is missing
    assert made.provenance["evidence"]["effusion"] == pytest.approx(1)
    faint = supported(adapter, image(adapter, effusion=0.5, nodule=1.0))
    assert faint.provenance["evidence"]["effusion"] == pytest.approx(1)  # the right way, if too far


@torch.no_grad()
@pytest.mark.parametrize("kind", ["epsilon", "v", "sample"])
def test_it_is_the_documented_formula_for_each_kind_of_prediction(kind):
    from scipy.ndimage import gaussian_filter

    class Seen(ToyAdapter):
        prediction = kind

    toy = Seen((8, 24))
    prompt = toy.tokenize("left nodule")
    sample = Sample(
        np.random.default_rng(0).normal(-500, 100, (1, 16, 48)).astype(np.float32), toy.geometry, "left nodule"
    )
    states = grounding.renoise(toy, sample, steps=6, used=4, seed=1)
    rows = prompt.find("nodule")
    maps, evidence = supports(toy, prompt, sample, states, [rows], how="after")
    clean, expected = toy.encode_image(sample.image)[0].numpy().astype(float), np.zeros((8, 24))
    for latent, level in zip(states.latents, states.timesteps, strict=True):
        z, alpha = torch.tensor(latent)[None], torch.tensor(1 - level / 1000)
        contexts = (toy.encode_prompt(prompt), toy.remove(prompt, rows, "after"))
        told, untold = (
            estimates(z, toy.predict(z, level, one), alpha, kind)[0][0].numpy().astype(float) for one in contexts
        )
        missing, change = clean - untold, told - untold
        sizes = [math.sqrt((one**2).sum(0).mean()) for one in (missing, change)]
        if sizes[1] > 0:  # at a level without noise, epsilon and v leave the latent as it is
            expected += (missing * change).sum(0) / math.prod(sizes) / len(states.timesteps)
    assert evidence[0] == pytest.approx(expected.mean(), abs=1e-5)
    smooth = np.maximum(gaussian_filter(expected, (8 * SMOOTH, 24 * SMOOTH), mode="nearest"), 0)
    np.testing.assert_allclose(maps[0], smooth, atol=1e-4)


def test_explain_grounding_and_evaluation_read_the_same_maps(adapter):
    sample = image(adapter, effusion=1.0)
    result = explain_image(adapter, sample, TEXT, recipes=("effect", "support"))
    alone = grounding.ground(adapter, sample, TEXT, "support")
    np.testing.assert_allclose(result.attributions["support"].maps, alone.maps, atol=1e-6)
    assert set(result.attributions["support"].controls) == set(result.provenance["null_words"])
    spans = [alone.prompt.find("effusion")]
    one = measure(adapter, sample, TEXT, "support", spans=spans).attribution
    np.testing.assert_allclose(one.word("effusion").values, alone.word("effusion").values, atol=1e-6)
    assert alone.provenance["noise_levels"] == "40 of 50"


def test_explain_compares_the_words_with_the_image_that_was_made():
    toy = Telling((8, 24))
    toy.decode = lambda latent: np.asarray(latent[:, :1]).repeat(2, -1).repeat(2, -2)
    result = voxplain.explain(toy, TEXT, steps=3, recipes=("support",))
    states = grounding.renoise(toy, result.sample, seed=0)
    again = support_words(toy, result.prompt, result.sample, states)
    np.testing.assert_allclose(result.attributions["support"].maps, again.maps, atol=1e-6)


def test_what_does_not_go_together_is_refused(adapter):
    sample = image(adapter)
    for read in (grounding.ground, measure):
        with pytest.raises(ValueError, match="'generate' does not read"):
            read(adapter, sample, TEXT, "support", profile="generate")
    states = grounding.renoise(adapter, sample, steps=5, used=3)
    with pytest.raises(ValueError, match="give the sample of each of 1 prompts"):
        grounding.read(adapter, [adapter.tokenize(TEXT)], [states], "support")
    with pytest.raises(ValueError, match="no word whose effect"):
        support_words(adapter, adapter.tokenize("..."), sample, states)
    adapter.prediction = None
    with pytest.raises(ValueError, match="nor tell what supports a word: its denoiser predicts nothing"):
        support_words(adapter, adapter.tokenize(TEXT), sample, states)
    adapter.generate = lambda *args, **options: pytest.fail("it was known before that this cannot be measured")
    with pytest.raises(ValueError, match="nor tell what supports a word"):
        voxplain.explain(adapter, TEXT, recipes=("support",))


def test_a_schedule_that_does_not_keep_the_variance_is_refused_before_any_work(adapter):
    adapter.add_noise = lambda latent, noise, timestep: latent + timestep * noise
    with pytest.raises(ValueError, match="nor tell what supports a word: at timestep .* no schedule of DDIM"):
        voxplain.explain(adapter, TEXT, recipes=("support",))


def test_a_prediction_that_is_not_finite_is_an_error_and_no_empty_map(adapter):
    sample = image(adapter, effusion=1.0)
    states = grounding.renoise(adapter, sample, steps=5, used=3)
    adapter.denoise = lambda latent, timestep, context: torch.full_like(latent, math.nan)
    with pytest.raises(FloatingPointError, match="toy: the prediction at timestep .* is not finite"):
        support_words(adapter, adapter.tokenize(TEXT), sample, states)
