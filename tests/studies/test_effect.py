"""The toy's words act in boxes of their own and nowhere else, so what each word changed is known beforehand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from voxplain.adapters.toy import ToyAdapter
from voxplain.maps import Explanation, Trajectory
from voxplain.studies import effect
from voxplain.tracing import trace

PROMPT = "large left effusion and small pneumothorax"
GRIDS = ((8, 24), (4, 8, 12))  # images and volumes


@pytest.fixture(params=GRIDS, ids=["2D", "3D"])
def adapter(request):
    return ToyAdapter(request.param)


def states_of(adapter, prompt=PROMPT, steps=5, seed=0):
    with effect.keeping(adapter) as kept:
        adapter.generate(prompt, steps=steps, seed=seed)
    return kept()[0]


class Counting(ToyAdapter):
    """Notes the size of each batch that the network gets."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.batches = []

    def predict(self, latent, timestep, context, **options):
        self.batches.append(len(latent))
        return super().predict(latent, timestep, context, **options)


@given(st.integers(1, 1000), st.integers(1, 20))
def test_kept_steps_are_evenly_spaced_and_inside_the_run(steps, count):
    kept = effect.kept_steps(steps, count)
    assert len(kept) == min(steps, count)
    assert 0 <= kept[0] <= kept[-1] < steps
    gaps = np.diff(kept)
    assert gaps.size == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert abs(kept[0] - (steps - 1 - kept[-1])) <= 1  # no more room before than after


def test_keeping_states_leaves_the_image_as_it_is_and_takes_the_latents_that_went_in(adapter):
    plain = adapter.generate(PROMPT, seed=3, steps=5)
    seen = []
    with effect.keeping(adapter, count=2) as kept, adapter.on_step(lambda step: seen.append(step.latent[0].numpy())):
        watched = adapter.generate(PROMPT, seed=3, steps=5)
    (states,) = kept()
    assert np.array_equal(plain.image, watched.image)
    assert states.steps == (1, 3)
    assert states.timesteps == (adapter.timesteps(5)[1], adapter.timesteps(5)[3])
    assert np.array_equal(states.latents, np.stack([seen[1], seen[3]]))
    assert np.array_equal(seen[0], torch.randn(adapter.latent_shape, generator=torch.Generator().manual_seed(3)))


def test_each_sample_of_a_batch_has_a_trajectory_of_its_own(adapter):
    with effect.keeping(adapter) as kept:
        adapter.generate(["small nodule", "left opacity"], seed=4, steps=3)
    for number, (made, prompt) in enumerate(zip(kept(), ("small nodule", "left opacity"), strict=True)):
        alone = states_of(adapter, prompt, steps=3, seed=4 + number)
        np.testing.assert_allclose(made.latents, alone.latents, atol=1e-5)


@pytest.mark.parametrize("how", ["after", "before"])
def test_the_effect_of_a_word_is_in_its_box_and_exactly_zero_outside(adapter, how):
    prompt = adapter.tokenize(PROMPT)
    made = effect.measure_words(adapter, prompt, states_of(adapter), how=how)
    for word in ("large", "left", "effusion", "small"):
        values = made.word(word).values
        assert (values[adapter.box(word)] > 0.01).all()
        assert (values[~adapter.box(word)] == 0).all()
    both = adapter.box("pneumo") | adapter.box("##thorax")
    assert np.array_equal(made.word("pneumothorax").values > 0, both)
    assert (made.word("and").values == 0).all()
    assert made.provenance["removed"] == how


def test_every_piece_of_a_word_carries_its_map_and_special_rows_are_zero(adapter):
    prompt = adapter.tokenize(PROMPT)
    made = effect.measure_words(adapter, prompt, states_of(adapter))
    first, second = prompt.find("pneumothorax")
    assert np.array_equal(made.maps[first], made.maps[second])
    assert not made.maps[0].any()
    assert not made.maps[-1].any()
    assert not made.padding.any()
    assert made.geometry.same_as(adapter.geometry.at(adapter.latent_shape[1:]))


@torch.no_grad()
def test_the_effect_is_the_documented_formula(adapter):
    prompt, states = adapter.tokenize(PROMPT), states_of(adapter)
    expected = np.zeros(adapter.latent_shape[1:])
    for latent, level in zip(states.latents, states.timesteps, strict=True):
        z = torch.tensor(latent)[None]
        full = adapter.predict(z, level, adapter.encode_prompt(prompt))[0].numpy().astype(float)
        context = adapter.encode_prompt(prompt)
        position = prompt.kept[prompt.find("effusion")[0]]
        kept = [index for index in range(context.shape[1]) if index != position]
        rest = adapter.predict(z, level, context[:, kept])[0].numpy().astype(float)
        size = np.sqrt((full**2).sum(0).mean())
        expected += np.sqrt(((full - rest) ** 2).sum(0)) / size / len(states.timesteps)
    made = effect.measure_words(adapter, prompt, states).word("effusion")
    np.testing.assert_allclose(made.values, expected, atol=1e-6)


def test_small_batches_give_the_same_maps_as_large_ones(adapter):
    prompt, states = adapter.tokenize(PROMPT), states_of(adapter)
    together = effect.measure_words(adapter, prompt, states).maps
    one_by_one = effect.measure_words(adapter, prompt, states, limit=1).maps
    np.testing.assert_allclose(one_by_one, together, atol=1e-6)


def test_the_words_of_a_step_run_in_one_batch_up_to_the_limit():
    adapter = Counting()
    prompt, states = adapter.tokenize("large left small mild severe"), states_of(adapter)
    for limit, batches in ((16, [1, 5]), (2, [1, 2, 2, 1])):
        adapter.batches.clear()
        effect.measure_words(adapter, prompt, states, limit=limit)
        assert adapter.batches == batches * len(states.timesteps)


def test_a_model_with_one_text_vector_loses_words_before_its_encoder(adapter):
    single = ToyAdapter(adapter.latent_shape[1:], single_key=True)
    prompt, states = single.tokenize(PROMPT), states_of(single)
    made = effect.measure_words(single, prompt, states)
    assert made.provenance["removed"] == "before"
    assert np.array_equal(made.word("effusion").values > 0, single.box("effusion"))
    with pytest.raises(ValueError, match="how='before'"):
        effect.measure_words(single, prompt, states, how="after")


def test_a_model_can_say_where_its_words_are_best_taken_out(adapter):
    prompt = adapter.tokenize(PROMPT)
    assert effect.removal(adapter, prompt) == "after"
    adapter.words_removed = "before"
    assert effect.measure_words(adapter, prompt, states_of(adapter)).provenance["removed"] == "before"


def test_a_phrase_is_removed_as_a_whole(adapter):
    prompt, states = adapter.tokenize(PROMPT), states_of(adapter)
    heatmap = effect.measure_phrase(adapter, states, "LEFT effusion", prompt=prompt)
    assert heatmap.label == "left effusion"
    assert np.array_equal(heatmap.values > 0, adapter.box("left") | adapter.box("effusion"))


def test_a_phrase_can_be_measured_later_from_an_explanation_and_kept_in_it(adapter):
    prompt, states = adapter.tokenize(PROMPT), states_of(adapter)
    words = effect.measure_words(adapter, prompt, states, how="before")
    explanation = Explanation(adapter.generate(PROMPT, steps=2), prompt, {"effect": words}, states=states)
    with pytest.raises(ValueError, match="not measured"):
        explanation.word("left effusion", recipe="effect")
    heatmap = effect.measure_phrase(adapter, explanation, "left effusion")
    expected = effect.measure_phrase(adapter, states, "left effusion", prompt=prompt, how="before")
    assert np.array_equal(heatmap.values, expected.values)
    kept = effect.with_phrase(explanation, heatmap, prompt.find("left effusion"))
    assert np.array_equal(kept.word("left effusion", recipe="effect").values, heatmap.values)


def test_an_explanation_without_states_says_what_to_do(adapter):
    explanation = Explanation(adapter.generate(PROMPT, steps=1), adapter.tokenize(PROMPT), {})
    with pytest.raises(ValueError, match="keeps no states; explain it again"):
        effect.measure_phrase(adapter, explanation, "left")
    with pytest.raises(ValueError, match="give the prompt"):
        effect.measure_phrase(adapter, states_of(adapter), "left")


def test_a_prediction_of_zero_is_refused_since_nothing_is_relative_to_it(adapter):
    states = Trajectory(np.zeros((1, *adapter.latent_shape), np.float32), (500.0,), (0,))
    with pytest.raises(ValueError, match="nothing to be relative to"):
        effect.measure_words(adapter, adapter.tokenize("mystery"), states)


def test_a_prompt_without_words_is_refused(adapter):
    with pytest.raises(ValueError, match="no word"):
        effect.measure_words(adapter, adapter.tokenize("..."), states_of(adapter))


def test_an_unknown_way_of_removing_is_refused(adapter):
    with pytest.raises(Exception, match="sideways"):
        effect.measure_words(adapter, adapter.tokenize(PROMPT), states_of(adapter), how="sideways")


def test_a_trace_around_it_hears_nothing_of_the_measuring(adapter):
    with trace(adapter) as tracer:
        states = states_of(adapter)
        effect.measure_words(adapter, adapter.tokenize(PROMPT), states)
    with trace(adapter) as plain:
        adapter.generate(PROMPT, steps=5)
    assert np.array_equal(tracer.attribution().maps, plain.attribution().maps)


def test_progress_ends_at_the_number_of_states(adapter):
    seen = []
    states = states_of(adapter, steps=20)
    effect.measure_words(adapter, adapter.tokenize(PROMPT), states, progress=lambda *at: seen.append(at))
    assert seen == [(number, 8) for number in range(1, 9)]


def test_the_total_effect_is_the_difference_of_two_volumes_from_the_same_noise(adapter):
    made = effect.total(adapter, PROMPT, "left effusion", seed=5, steps=3)
    assert made.sample.prompt == PROMPT
    assert made.without.prompt == "large and small pneumothorax"
    assert np.array_equal(made.heatmap.values, np.abs(made.sample.image - made.without.image)[0])
    assert np.array_equal(made.sample.image, adapter.generate(PROMPT, seed=5, steps=3).image)
    box = adapter.box("left") | adapter.box("effusion")
    for axis in range(box.ndim):
        box = box.repeat(2, axis)  # a cell of the latent is two voxels wide
    assert made.heatmap.values[box].min() > 100  # HU
    assert np.abs(made.heatmap.values[~box]).max() < 1e-3


def test_a_phrase_that_is_the_whole_prompt_has_no_total_effect(adapter):
    with pytest.raises(ValueError, match="nothing is left of the prompt"):
        effect.total(adapter, "left effusion.", "left effusion", steps=2)
