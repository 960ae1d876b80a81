"""Baselines on a model whose words act in known boxes and in proportion to what it sees there: maps in closed form."""

from itertools import product

import numpy as np
import pytest
import torch
from medsyn_models import small_model
from models.conftest import build_tiny
from tiny_pipelines import sd

from voxplain.adapters import as_adapter
from voxplain.adapters.toy import ToyAdapter
from voxplain.geometry import regular
from voxplain.maps import Mask, Sample
from voxplain.metrics.controls import center_prior
from voxplain.models.events import Call
from voxplain.studies import baselines, grounding
from voxplain.studies.baselines import measure, see
from voxplain.studies.owing import EXPLAINED

TEXT = "left nodule"
WORDS = 2


class Looking(ToyAdapter):
    """What a word puts into its box is as strong as the first channel there."""

    prediction = "epsilon"

    def predict(self, latent, timestep, context, **options):
        seen = latent.detach()
        painted = super().predict(seen, timestep, context, **options) - 0.1 * seen
        return painted * latent[:, :1] + 1


@pytest.fixture(params=((8, 24), (4, 8, 12)), ids=["2D", "3D"])
def adapter(request):
    return Looking(request.param)


def image(adapter, bright="left"):
    """Bright where a word has its box, dark elsewhere."""
    box = adapter.box(bright)
    for axis in range(box.ndim):
        box = box.repeat(2, axis)
    return Sample(np.where(box, 4000.0, -1000.0).astype(np.float32)[None], adapter.geometry, "")


def parts(adapter, explains, kept=3, seed=0, bright="left"):
    """For each kept state: the score of "left" by cell for other images under its noise, and what it is relative to.

    What is left of the image in a prediction of noise is the error of that noise, at every level by one factor.
    """
    prompt, sample = adapter.tokenize(TEXT), image(adapter, bright)
    latent = adapter.encode_image(sample.image)
    with torch.no_grad():
        whole, less = adapter.encode_prompt(prompt), adapter.remove(prompt, prompt.find("left"))
    states = grounding.thinned(grounding.renoise(adapter, sample, seed=seed), kept)
    for values, level in zip(states.latents, states.timesteps, strict=True):
        state, signal = torch.tensor(values)[None], np.sqrt(1 - level / 1000)
        noise = (state - signal * latent) / np.sqrt(level / 1000)

        def cells(images, level=level, signal=signal, state=state, noise=noise):
            full, without = (adapter.predict(state + signal * (images - latent), level, one) for one in (whole, less))
            if explains == "share":
                return (full - without)[0].square().sum(0)
            return ((without - noise).square() - (full - noise).square())[0].sum(0)

        full = adapter.predict(state, level, whole).detach()
        yield cells, float((full - noise * (explains == "evidence")).square().sum())


@pytest.mark.parametrize("explains", EXPLAINED)
def test_the_gradient_is_that_of_what_is_explained(adapter, explains):
    made = measure(adapter, image(adapter), TEXT, "gradient", kept=3, explains=explains).attribution
    latent, slopes = adapter.encode_image(image(adapter).image).requires_grad_(), []
    for cells, size in parts(adapter, explains):
        (slope,) = torch.autograd.grad(cells(latent).sum(), latent)
        slopes.append(slope[0].norm(dim=0).numpy() / size)
    expected = np.mean(slopes, axis=0)
    np.testing.assert_allclose(made.word("left").values, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert made.recipe.name == "gradient" and made.provenance["readout"] == "renoise"
    assert made.provenance["explains"] == explains


@pytest.mark.parametrize("explains", EXPLAINED)
@torch.no_grad()
def test_integrated_gradients_are_complete_and_cell_by_cell_what_the_image_adds(adapter, explains):
    pytest.importorskip("captum", reason="Captum is not installed (voxplain[captum])")
    made = measure(adapter, image(adapter), TEXT, "integrated_gradients", kept=3, explains=explains).attribution
    latent = adapter.encode_image(image(adapter).image)
    each = [(cells(latent) - cells(0 * latent)).abs().numpy() / size for cells, size in parts(adapter, explains)]
    expected = np.mean(each, axis=0)
    np.testing.assert_allclose(made.word("left").values, expected, rtol=1e-3, atol=1e-5 * expected.max())
    assert made.provenance["completeness"] < 1e-3


@pytest.mark.parametrize(("explains", "bright"), [("share", "left"), ("evidence", "nodule")])
@torch.no_grad()
def test_occlusion_is_the_fall_when_a_block_becomes_the_mean_of_the_rest(adapter, explains, bright):
    sample = image(adapter, bright)
    made = measure(adapter, sample, TEXT, "occlusion", kept=3, blocks=4, explains=explains).attribution
    values, box, latent = made.word("left").values, adapter.box("left"), adapter.encode_image(sample.image)
    edges = [np.linspace(0, size, 5).astype(int) for size in box.shape]
    for corner in product(range(4), repeat=box.ndim):
        block = tuple(slice(edge[at], edge[at + 1]) for edge, at in zip(edges, corner, strict=True))
        inside = torch.zeros(box.shape, dtype=torch.bool)
        inside[block] = True
        filled = latent.clone()
        filled[..., inside] = latent[..., ~inside].mean(-1, keepdim=True)
        states = parts(adapter, explains, bright=bright)
        falls = [float((cells(latent) - cells(filled)).sum()) / size for cells, size in states]
        np.testing.assert_allclose(values[block], max(0, np.mean(falls)), rtol=1e-2, atol=1e-4 * values.max())
        assert (values[block].max() > values.max() / 100) == box[block].any()
    assert made.provenance["regions"] == 4**box.ndim
    if explains == "share":  # the other word's box shows nothing that could be taken away
        assert made.word("nodule").values.max() < values.max() / 10


def test_where_there_is_no_evidence_the_share_is_explained(adapter, monkeypatch):
    made = measure(adapter, image(adapter), TEXT, "gradient", kept=1, profile="generate", steps=2, used=1).attribution
    assert made.provenance["explains"] == "share"
    monkeypatch.setattr(type(adapter), "prediction", "flow")  # DDIM does not apply
    assert measure(adapter, image(adapter), TEXT, "gradient", kept=1).attribution.provenance["explains"] == "share"


def test_the_layer_map_is_high_where_the_attention_that_matters_is(adapter):
    for layers, rest in ((None, 1e-6), (adapter.layers, 0.3)):  # cells of the coarse layer reach over the edge
        made = measure(adapter, image(adapter), TEXT, "grad_cam", kept=2, layers=layers).attribution
        values, box = made.word("left").values, adapter.box("left")
        assert values.shape == box.shape
        assert values[box].min() > 0
        assert values[~box].max() < values[box].max() * rest
        assert made.provenance["layers"] == list(layers or adapter.localizing_layers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in adapter.network.modules())


@pytest.mark.parametrize(
    ("method", "options", "forward", "backward"),
    [
        ("mean", {}, lambda axes: 40, 0),
        ("effect", {}, lambda axes: 8 * (WORDS + 1), 0),
        ("gradient", {"kept": 2}, lambda axes: 2 * (1 + 2 * WORDS), 2 * 2 * WORDS),
        ("grad_cam", {"kept": 2}, lambda axes: 2 * (1 + 2 * WORDS), 2 * WORDS),
        ("occlusion", {"kept": 2, "blocks": 2}, lambda axes: 2 * (1 + (WORDS + 1) * (2**axes + 1)), 0),
        ("occlusion", {"blocks": 2}, lambda axes: 2 * (1 + (WORDS + 1) * (2**axes + 1)), 0),
        ("gradient", {"kept": 2, "profile": "invert"}, lambda axes: 2 * 39 + 2 * (1 + 2 * WORDS), 2 * 2 * WORDS),
        ("random", {}, lambda axes: 0, 0),
        ("center", {}, lambda axes: 0, 0),
    ],
)
def test_the_price_is_counted_in_rows_of_the_network(adapter, method, options, forward, backward):
    cost = measure(adapter, image(adapter), TEXT, method, **options).cost
    assert (cost.forward, cost.backward) == (forward(adapter.geometry.ndim), backward)
    assert cost.cpu_seconds >= 0


def test_small_batches_give_the_same_maps(adapter):
    for method in ("occlusion", "gradient", "grad_cam"):
        together, alone = (
            measure(adapter, image(adapter), TEXT, method, kept=1, limit=limit).attribution.maps for limit in (16, 1)
        )
        np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-6)


def test_a_recipe_is_measured_as_ground_reads_it(adapter):
    made = measure(adapter, image(adapter), TEXT, "mean", seed=3, steps=4, used=2)
    expected = grounding.ground(adapter, image(adapter), TEXT, "mean", seed=3, steps=4, used=2)
    assert np.array_equal(made.attribution.maps, expected.maps)
    assert made.cost.forward == 2


def test_recipes_of_attention_share_one_pass_at_the_full_price_of_each(adapter):
    sample, names, calls = image(adapter), ("mean", "selected", "daam"), []
    with adapter.watching(calls.append):
        seen = see(adapter, sample, TEXT, (*names, "effect"), steps=4, used=3)
        made = {name: measure(adapter, sample, TEXT, name, seen=seen) for name in names}
    whole = [call for call in calls if isinstance(call, Call) and (0, "text") in call.rows]
    assert len(whole) == 3  # one for each level, whatever the number of recipes
    made["effect"] = measure(adapter, sample, TEXT, "effect", seen=seen)
    for name in made:
        alone = measure(adapter, sample, TEXT, name, steps=4, used=3)
        np.testing.assert_allclose(made[name].attribution.maps, alone.attribution.maps, atol=1e-6)
        assert (made[name].cost.forward, made[name].cost.backward) == (alone.cost.forward, 0)


@pytest.mark.parametrize(
    ("names", "rows"),  # with the word at every state, and without it at all of them, or at 8
    [
        (("mean", "selected", "effect", "support"), 10 + 10),
        (("mean", "effect"), 10 + 8),
        (("effect", "support"), 10 + 10),
    ],
)
def test_recipes_share_passes_at_the_price_of_each_alone(adapter, names, rows):
    sample, calls = image(adapter), []
    spans = [adapter.tokenize(TEXT).find("nodule")]
    with adapter.watching(calls.append):
        seen = see(adapter, sample, TEXT, names, spans=spans, steps=12, used=10)
        made = {name: measure(adapter, sample, TEXT, name, spans=spans, seen=seen) for name in names}
    assert sum(len(call.rows) for call in calls if isinstance(call, Call)) == rows
    for name in names:
        alone = measure(adapter, sample, TEXT, name, spans=spans, steps=12, used=10)
        for found, expected in (
            (made[name].attribution.maps, alone.attribution.maps),
            (made[name].attribution.word("nodule").values, alone.attribution.word("nodule").values),
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert made[name].cost.forward == alone.cost.forward and made[name].cost.cpu_seconds > 0
    other = [adapter.tokenize(TEXT).find("left")]
    again = measure(adapter, sample, TEXT, "effect", spans=other, seen=seen)  # what was not read before is read now
    alone = measure(adapter, sample, TEXT, "effect", spans=other, steps=12, used=10)
    np.testing.assert_allclose(again.attribution.word("left").values, alone.attribution.word("left").values, atol=1e-6)


def test_predictions_that_would_fill_the_memory_are_not_shared(adapter, monkeypatch):
    sample, spans, calls = image(adapter), [adapter.tokenize(TEXT).find("nodule")], []
    monkeypatch.setattr(baselines, "HELD", 0)
    with adapter.watching(calls.append):
        seen = see(adapter, sample, TEXT, ("mean", "effect", "support"), spans=spans, steps=4, used=3)
    assert not seen.passes and sum(len(call.rows) for call in calls if isinstance(call, Call)) == 3
    for name in ("mean", "effect", "support"):
        made = measure(adapter, sample, TEXT, name, spans=spans, seen=seen)
        alone = measure(adapter, sample, TEXT, name, spans=spans, steps=4, used=3)
        np.testing.assert_allclose(made.attribution.maps, alone.attribution.maps, rtol=1e-4, atol=1e-6)
        assert made.cost.forward == alone.cost.forward


def test_asked_spans_are_taken_away_whole_by_every_method_that_takes_text_away(adapter):
    prompt = adapter.tokenize(TEXT)
    spans = [prompt.find(TEXT), prompt.find("nodule")]
    for method, rows in (("effect", 2 * 3), ("occlusion", 2 * (1 + 3 * (2**adapter.geometry.ndim + 1)))):
        options = {"blocks": 2} if method == "occlusion" else {}
        made = measure(adapter, image(adapter), TEXT, method, spans=spans, kept=2, **options)
        assert set(made.attribution.phrases) == set(spans) and made.cost.forward == rows
        both = made.attribution.word(TEXT).values
        every = measure(adapter, image(adapter), TEXT, method, kept=2, **options).attribution
        np.testing.assert_allclose(made.attribution.word("nodule").values, every.word("nodule").values, atol=1e-6)
        assert both.max() >= every.word("left").values.max() * 0.9


def test_controls_know_nothing_of_the_model(adapter):
    sample, grid = image(adapter), adapter.latent_shape[1:]
    lit = np.zeros(adapter.geometry.shape, bool)
    lit[tuple(slice(size // 2) for size in lit.shape)] = True
    region = Mask("here", lit, adapter.geometry)
    shown = measure(adapter, sample, TEXT, "region", region=region).attribution.word("left").values
    assert np.array_equal(shown == 1, lit[(slice(None, None, 2),) * lit.ndim])
    center = measure(adapter, sample, TEXT, "center").attribution
    np.testing.assert_allclose(center.word("nodule").values, center_prior(grid))
    random = [measure(adapter, sample, TEXT, "random", seed=seed).attribution for seed in (0, 0, 1)]
    assert np.array_equal(random[0].maps, random[1].maps) and not np.array_equal(random[0].maps, random[2].maps)
    assert random[0].word("left").values.mean() == 0.5
    assert not np.array_equal(random[0].word("left").values, random[0].word("nodule").values)


def test_bad_requests_are_refused_in_words(adapter):
    sample = image(adapter)
    elsewhere = Mask("here", np.ones((2,) * adapter.geometry.ndim, bool), regular((2,) * adapter.geometry.ndim, 1.0))
    for method, options, complaint in (
        ("magic", {}, "unknown method 'magic'; there are occlusion, gradient"),
        ("region", {}, "give it as region=Mask"),
        ("region", {"region": elsewhere}, "differ in geometry"),
        ("occlusion", {"profile": "generate"}, "occlusion changes the given image"),
        ("occlusion", {"blocks": 1}, "blocks = 1; give 2 or more"),
        ("gradient", {"explains": "evidence", "profile": "generate", "steps": 2, "used": 1}, "does not read"),
        ("gradient", {"explains": "magic"}, "explains = 'magic'; give evidence or share"),
    ):
        with pytest.raises(ValueError, match=complaint):
            measure(adapter, sample, TEXT, method, **options)
    with pytest.raises(ValueError, match="has no word"):
        measure(adapter, sample, "...", "gradient")


def test_states_of_a_generation_are_refused_as_their_profile_is(adapter):
    seen = see(adapter, image(adapter), TEXT, profile="generate", steps=2, used=1)
    for method, complaint in (("occlusion", "changes the given image"), ("support", "compares words with the given")):
        with pytest.raises(ValueError, match=f"{complaint}.*'generate' does not read"):
            measure(adapter, image(adapter), TEXT, method, seen=seen)
    assert measure(adapter, image(adapter), TEXT, "mean", seen=seen).attribution.provenance["readout"] == "generate"


def test_without_captum_the_way_to_it_is_named(adapter, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    with pytest.raises(ImportError, match="voxplain\\[captum\\]"):
        measure(adapter, image(adapter), TEXT, "integrated_gradients", kept=1)


FAMILIES = {
    "MONAI 2D": lambda: build_tiny(2),
    "MONAI 3D": lambda: build_tiny(3),
    "MedSyn": small_model,
    "diffusers": sd,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_gradients_and_layer_maps(family):
    adapter = as_adapter(FAMILIES[family]())
    text = "left pleural effusion" if family.startswith("MONAI") else "left effusion"
    sample = adapter.generate(text, steps=2)
    for method in ("gradient", "grad_cam"):
        made = measure(adapter, sample, text, method, kept=1)
        assert made.attribution.word("effusion").values.max() > 0
        assert made.cost.backward > 0
    assert not any(parameter.grad is not None for parameter in networks(adapter))


def networks(adapter):
    whole = getattr(adapter, "pipeline", None) or adapter.network
    return whole.parameters()
