import math

import numpy as np
import pytest
import torch

from voxplain.models.events import Call, Run, Step
from voxplain.models.schedule import alpha_bars, ddim_step, estimates, even_steps, log_noise, timesteps
from voxplain.models.thorax.network import NoSelfAttention, PatchAutoencoder

PROMPT = "large left effusion"


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_prompt_gives_an_image_in_physical_units(tiny, spatial_dims):
    sample = tiny(spatial_dims).generate(PROMPT, seed=3, steps=2)
    assert sample.image.shape == (1, *(16,) * spatial_dims)
    assert sample.unit == "HU" and sample.geometry.spacing == (5.0,) * spatial_dims
    assert sample.image.min() >= -1024 and sample.image.max() <= 1024
    expected = {"model": "tiny", "weights": "untrained", "prompt": PROMPT, "seed": 3, "steps": 2, "guidance_scale": 3.0}
    assert expected.items() <= sample.provenance.items()


def test_a_sample_does_not_depend_on_its_batch(pipeline):
    alone = pipeline.generate("severe consolidation", seed=6, steps=3)
    batch = pipeline.generate([PROMPT, "severe consolidation"], seed=5, steps=3)
    np.testing.assert_allclose(batch[1].image, alone.image, atol=0.05)  # HU
    assert batch[1].provenance["seed"] == 6


def test_samples_of_one_prompt_differ_and_seeds_can_be_named(pipeline):
    first, second = pipeline.generate(PROMPT, seed=1, steps=2, samples=2)
    assert np.abs(first.image - second.image).max() > 1
    again = pipeline.generate([PROMPT], seed=[2], steps=2)[0]
    np.testing.assert_allclose(again.image, second.image, atol=0.05)


def test_the_same_call_gives_the_same_image_to_the_last_bit(pipeline):
    assert np.array_equal(pipeline.generate(PROMPT, steps=2).image, pipeline.generate(PROMPT, steps=2).image)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_a_batch_of_one_is_convolved_by_another_kernel_to_the_same_values_and_gradients(
    tiny, spatial_dims, monkeypatch
):
    pipeline = tiny(spatial_dims)
    context = pipeline.encode_prompt(pipeline.tokenize(PROMPT))
    latent = torch.randn(1, *pipeline.latent_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    asked = [latent, *(p for p in pipeline.unet.parameters() if p.ndim > 2)]

    def run():
        made = pipeline.to_image(pipeline.predict(latent, 500, context))
        return made, torch.autograd.grad(made.square().mean(), asked)

    made, gradients = run()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain, expected = run()
    torch.testing.assert_close(made, plain, rtol=1e-4, atol=0.01)  # HU
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_guidance_doubles_the_batch_with_the_text_rows_first(pipeline):
    calls = []
    with pipeline.watching(lambda event: calls.append(event) if isinstance(event, Call) else None):
        pipeline.generate([PROMPT, "no pneumothorax"], steps=1, guidance_scale=2)
        pipeline.generate(PROMPT, steps=1, guidance_scale=1)
    assert calls[0].rows == ((0, "text"), (1, "text"), (0, "null"), (1, "null"))
    assert calls[1].rows == ((0, "text"),)


def test_the_guided_prediction_is_null_plus_scale_times_the_difference(pipeline):
    steps = []
    with pipeline.watching(lambda event: steps.append(event) if isinstance(event, Step) else None):
        pipeline.generate(PROMPT, steps=2, guidance_scale=2.5, negative_prompt="pneumothorax")
    text, null = (pipeline.encode_prompt(pipeline.tokenize(one)) for one in (PROMPT, "pneumothorax"))
    for step in steps:
        given = pipeline.predict(step.latent, step.timestep, text)
        without = pipeline.predict(step.latent, step.timestep, null)
        torch.testing.assert_close(step.prediction, without + 2.5 * (given - without), rtol=1e-4, atol=1e-5)


def test_the_null_prompt_is_the_empty_text(pipeline):
    plain = pipeline.generate(PROMPT, steps=2)
    assert np.array_equal(plain.image, pipeline.generate(PROMPT, steps=2, negative_prompt="").image)
    assert not np.array_equal(plain.image, pipeline.generate(PROMPT, steps=2, negative_prompt="effusion").image)


def test_watchers_see_the_run_then_a_call_and_a_step_each_and_none_after_the_block(pipeline):
    events = []
    with pytest.raises(KeyboardInterrupt), pipeline.watching(events.append):
        pipeline.generate(PROMPT, steps=2)
        raise KeyboardInterrupt
    pipeline.generate(PROMPT, steps=2)
    assert [type(event) for event in events] == [Run, Call, Step, Call, Step]
    assert events[0].prompts[0].text == PROMPT and events[0].geometry.shape == (16, 16)
    assert [event.timestep for event in events[1:]] == [966, 966, 0, 0]


def test_a_perfect_denoiser_brings_noise_back_to_the_image_it_knows():
    truth, latent = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    alphas = torch.cat([alpha_bars("cosine", 1000), torch.ones(1)])
    levels = [int(level) for level in timesteps(10, 1000)]
    for level, following in zip(levels, [*levels[1:], -1], strict=True):
        alpha = alphas[level]
        velocity = (alpha.sqrt() * latent - truth) / (1 - alpha).sqrt()  # the v for which x0 is the truth
        latent = ddim_step(latent, velocity, alpha, alphas[following])
    torch.testing.assert_close(latent, truth, rtol=1e-4, atol=1e-4)


def test_one_step_from_a_noised_latent_with_its_true_velocity_gives_the_latent(pipeline):
    latent, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    levels = torch.tensor([100.0, 700.0])
    noisy, velocity = pipeline.add_noise(latent, noise, levels), pipeline.velocity(latent, noise, levels)
    for row, level in enumerate(levels):
        step = ddim_step(noisy[row], velocity[row], pipeline.alpha_bar(level), pipeline.alpha_bar(-1))
        torch.testing.assert_close(step, latent[row], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["cosine", "scaled_linear"])
def test_schedules_fall_from_almost_one_to_almost_zero(kind):
    alphas = alpha_bars(kind, 1000)
    assert alphas[0] > 0.99 and 0 < alphas[-1] < 0.01 and (alphas.diff() < 0).all()


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="cosine"):
        alpha_bars("linear", 10)


def test_levels_end_at_the_finest_that_may_be_visited():
    assert timesteps(4, 1000) == (999, 749, 499, 249)
    assert timesteps(4, 1000, 200) == (999, 799, 599, 399)
    assert timesteps(800, 1000, 200)[-1] == 200
    with pytest.raises(ValueError, match="1 to 800"):
        timesteps(801, 1000, 200)


def test_quieting_keeps_less_noise_and_leaves_the_image():
    latent, prediction = torch.randn(2, 1, 2, 4, 4).unbind(0)
    alpha, following = torch.tensor(0.2), torch.tensor(0.8)  # noise over signal: 2, then 1/2
    clean, noise = estimates(latent, prediction, alpha)
    kept = ddim_step(latent, prediction, alpha, following, quieting=0.5) - following.sqrt() * clean
    assert torch.allclose(kept, (1 - following).sqrt() * noise / 2, atol=1e-6)
    last = [ddim_step(latent, prediction, alpha, torch.tensor(1.0), quieting=one) for one in (0.0, 0.5)]
    assert torch.equal(*last)  # the clean image itself has no noise to keep


def test_quieting_does_as_much_in_many_steps_as_in_few():
    alphas = torch.tensor([0.1, 0.3, 0.6, 0.9])
    noise = torch.ones(1, 1, 2, 2)

    def down(visited):  # a network that always predicts the same noise, and no image
        kept = noise * (1 - visited[0]).sqrt()
        for alpha, following in zip(visited[:-1], visited[1:], strict=True):
            kept = ddim_step(kept, kept / (1 - alpha).sqrt(), alpha, following, kind="epsilon", quieting=0.3)
        return kept / (1 - visited[-1]).sqrt()

    assert torch.allclose(down(alphas), down(alphas[[0, 3]]), atol=1e-6)
    assert down(alphas).max().item() == pytest.approx((1 / 9) ** 0.3)


def test_the_sampler_quiets_as_its_configuration_says(tiny):
    plain, quiet = tiny(2), tiny(2, quieting=0.2)
    assert "quieting 0.2" in quiet.generate(PROMPT, steps=3).provenance["sampler"]
    assert not np.allclose(plain.generate(PROMPT, steps=3).image, quiet.generate(PROMPT, steps=3).image)


def test_even_steps_divide_the_noise_by_one_factor_from_the_loudest_to_the_finest():
    alphas = alpha_bars("cosine", 1000, 0.13)
    levels = even_steps(12, alphas, 15, 150.0)
    noise = log_noise(alphas)[torch.tensor(levels).long()].exp()
    assert levels[-1] == 15 and noise[0].item() == pytest.approx(150, rel=0.03)
    factors = noise[:-1] / noise[1:]
    assert factors.max() / factors.min() < 1.1
    uniform = log_noise(alphas)[torch.tensor(timesteps(12, 1000, 15)).long()].exp()
    apart = uniform[1:-1] / uniform[2:]
    assert apart.max() / apart.min() > 1.5  # evenly spaced levels would not do


def test_even_steps_never_visit_a_level_twice():
    alphas = alpha_bars("cosine", 1000, 0.13)
    for steps in (1, 2, 400, 985):
        levels = even_steps(steps, alphas, 15, 150.0)
        assert len(set(levels)) == steps and list(levels) == sorted(levels, reverse=True) and min(levels) >= 15
    assert even_steps(985, alphas, 15, 150.0) == tuple(map(float, range(999, 14, -1)))
    with pytest.raises(ValueError, match="give 1 to 985"):
        even_steps(986, alphas, 15, 150.0)


@pytest.mark.parametrize("steps", [1, 7, 50, 999, 1000])
def test_a_sampler_visits_as_many_levels_as_steps_from_the_last_one_down(steps):
    levels = timesteps(steps, 1000)
    assert len(set(levels)) == steps and levels[0] == 999 and min(levels) >= 0 and list(levels) == sorted(levels)[::-1]


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "empty"),
        (" \n", {}, "empty"),
        ([], {}, "empty"),
        (["effusion", ""], {}, "empty"),
        ("effusion", {"steps": 0}, "1 to 1000"),
        ("effusion", {"steps": 1001}, "1 to 1000"),
        ("effusion", {"guidance_scale": -0.1}, "0 to 30"),
        ("effusion", {"guidance_scale": 30.1}, "0 to 30"),
        ("effusion", {"guidance_scale": math.nan}, "0 to 30"),
        ("effusion", {"seed": -1}, "0 or more"),
        ("effusion", {"seed": [1, 2]}, "2 seeds for 1"),
        ("effusion", {"samples": 0}, "1 or more"),
    ],
)
def test_bad_input_is_refused_with_what_to_give_instead(pipeline, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate(prompt, **options)


def test_words_beyond_the_context_are_named_and_recorded(pipeline):
    with pytest.warns(UserWarning, match="upper lobe"):
        sample = pipeline.generate("large " * 22 + "upper lobe", steps=1)
    assert sample.provenance["truncated"].strip() == "upper lobe"


def test_words_that_training_never_showed_are_recorded(pipeline):
    assert pipeline.generate("large zebra", steps=1).provenance["unknown_words"] == ["zebra"]


@pytest.mark.parametrize(
    "module",
    ["unet.middle_block.attention.transformer_blocks.0.attn2.to_q", "text_encoder.blocks.0.out", "unet.conv_in.conv"],
)
def test_a_nan_is_traced_to_the_module_that_made_it(tiny, module):
    pipeline = tiny()
    with torch.no_grad():
        pipeline.get_submodule(module).weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=rf"step 1 of 2 .*'{module}'"):
        pipeline.generate(PROMPT, steps=2)
    assert not any(part._forward_hooks for part in pipeline.modules())


def test_a_nan_in_the_decoder_is_traced_too(tiny):
    pipeline = tiny()
    with torch.no_grad():
        pipeline.autoencoder.refine[0].conv.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"decoding.*autoencoder.refine.0.conv"):
        pipeline.generate(PROMPT, steps=1)


def test_progress_counts_every_step(pipeline):
    seen = []
    pipeline.generate(PROMPT, steps=3, progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_denoiser_knows_where_it_is_only_through_coordinates(tiny):
    pipeline = tiny()
    assert pipeline.places.shape == (2, 4, 4)
    assert pipeline.places[0, 0, 0] == -1 and pipeline.places[0, -1, 0] == 1 and pipeline.places[1, 0, -1] == 1
    assert tiny(coordinates=False).places.shape == (0, 4, 4)


def test_latents_are_shifted_and_scaled_and_come_back(tiny):
    pipeline = tiny()
    image = np.random.default_rng(0).uniform(-1000, 1000, (1, 16, 16)).astype(np.float32)
    plain, before = pipeline.encode_image(image), pipeline.decode(pipeline.encode_image(image))
    pipeline.calibrate([0.1, -0.2, 0.3], [2.0, 3.0, 4.0])
    shift, scale = torch.tensor([0.1, -0.2, 0.3]), torch.tensor([2.0, 3.0, 4.0])
    torch.testing.assert_close(pipeline.encode_image(image), (plain - shift[:, None, None]) * scale[:, None, None])
    np.testing.assert_allclose(pipeline.decode(pipeline.encode_image(image)), before, atol=0.1)


def test_an_image_of_another_shape_is_refused(pipeline):
    with pytest.raises(ValueError, match="resample"):
        pipeline.encode_image(np.zeros((1, 12, 16), np.float32))


OPTIONS = {"patch": 4, "channels": [8], "num_res_blocks": 1, "norm_num_groups": 8, "refinement": 2}


@pytest.mark.parametrize(("spatial_dims", "pool"), [(2, torch.nn.AvgPool2d(4)), (3, torch.nn.AvgPool3d(4))])
def test_a_cell_of_the_latent_holds_its_own_patch(spatial_dims, pool):
    autoencoder = PatchAutoencoder(spatial_dims, latent_channels=1, **OPTIONS).eval()
    image = torch.rand(2, 1, *(4 * size for size in range(2, 2 + spatial_dims)))
    with torch.no_grad():
        autoencoder.code.conv.weight.fill_(4**-spatial_dims)
        autoencoder.code.conv.bias.zero_()
        latent, deviation = autoencoder.encode(image)  # the network beside the linear code starts silent
    torch.testing.assert_close(latent, pool(image))
    assert deviation.max() < 0.1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_an_autoencoder_that_starts_from_principal_components_knows_what_is_linear(spatial_dims):
    torch.manual_seed(0)
    autoencoder = PatchAutoencoder(spatial_dims, latent_channels=2, **OPTIONS).eval()
    grid = tuple(range(3, 3 + spatial_dims))
    tiles, amounts = torch.randn(2, *(4,) * spatial_dims), torch.randn(8, 2, *grid)
    image = 0.3 + sum(torch.kron(amounts[:, part], tiles[part][None]) for part in range(2))[:, None]
    autoencoder.start_from(image)
    with torch.no_grad():
        torch.testing.assert_close(autoencoder.decode(autoencoder.encode(image)[0]), image, rtol=1e-3, atol=1e-3)
        assert (autoencoder.decode(autoencoder.encode(image.flip(-1))[0]) - image.flip(-1)).abs().mean() > 0.1


def test_self_attention_is_left_out_on_fine_grids_only(tiny):
    names = {name: module for name, module in tiny().unet.named_modules() if name.endswith("attn1")}
    fine = {name for name, module in names.items() if isinstance(module, NoSelfAttention)}
    assert fine == {name for name in names if name.startswith(("down_blocks.0", "up_blocks.1"))}
    assert len(fine) == 3 and len(names) == 7


def test_an_image_that_patches_do_not_fill_is_refused(tiny):
    with pytest.raises(ValueError, match="cells of 4"):
        tiny(image_shape=[16, 18])
