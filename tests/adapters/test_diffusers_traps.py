"""What could go wrong without a word: precision, schedulers, what the U-Net reads beside the text, NaN."""

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers import (
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
)

from voxplain.adapters.base import as_adapter
from voxplain.attention import attention_probs
from voxplain.models.events import Call
from voxplain.tracing import attached, trace

PROMPT = "large left effusion"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def run(pipe, prompt=PROMPT, **options):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, **{"num_inference_steps": 2, "output_type": "latent", "generator": generator, **options}).images


def agrees(pipe, count, **options):
    """Whether `predict` makes of each kept state what the run made of it, in `count` calls of the network."""
    adapter, steps = as_adapter(pipe), []
    context = adapter.encode_prompt(adapter.tokenize(PROMPT))
    with adapter.on_step(steps.append), trace(adapter) as tracer:
        run(pipe, num_inference_steps=3, **options)
    assert len(steps) == count == tracer.maps()[0].provenance["steps"] and tracer.attribution()
    for step in steps:
        with torch.no_grad():
            made = adapter.predict(step.latent, step.timestep, context)
        torch.testing.assert_close(made, step.prediction, atol=1e-4, rtol=1e-4)


# schedulers ---------------------------------------------------------------------------------------------------------


def test_a_scheduler_with_two_evaluations_a_step_counts_each():
    agrees(tiny.sd(levels=tiny.scheduler(HeunDiscreteScheduler)), 5, guidance_scale=1.0)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_a_scheduler_that_evaluates_between_its_levels_is_traced_but_not_predicted():
    with pytest.raises(NotImplementedError, match=r"KDPM2DiscreteScheduler evaluates between .* exchange it"):
        agrees(tiny.sd(levels=tiny.scheduler(KDPM2DiscreteScheduler)), 5, guidance_scale=1.0)


def test_the_levels_are_those_of_the_scheduler_that_the_pipeline_has_now():
    pipe = tiny.sd()
    adapter = as_adapter(pipe)
    before = adapter.timesteps(4)
    pipe.scheduler = tiny.scheduler(EulerDiscreteScheduler, timestep_spacing="trailing")
    assert adapter.timesteps(4) != before
    pipe.scheduler.set_timesteps(4)
    assert adapter.timesteps(4) == tuple(float(level) for level in pipe.scheduler.timesteps)


# what the U-Net reads beside the text -------------------------------------------------------------------------------


def test_a_network_that_reads_its_guidance_scale_is_told_it():
    agrees(tiny.sd(network=tiny.unet(time_cond_proj_dim=8)), 3)


def test_a_prediction_without_the_control_network_is_refused():
    adapter = as_adapter(tiny.controlnet())
    context = adapter.encode_prompt(adapter.tokenize(PROMPT))
    with pytest.raises(NotImplementedError, match="those of a control network"):
        adapter.predict(torch.zeros(1, *adapter.latent_shape), 9.0, context)


def test_pooled_text_is_found_where_encoders_and_network_differ_in_precision():
    pipe = tiny.sdxl()
    adapter = as_adapter(pipe)
    context = adapter.encode_prompt(adapter.tokenize(PROMPT))
    pipe.unet.to(torch.bfloat16)
    with torch.no_grad():
        assert adapter.predict(torch.zeros(1, *adapter.latent_shape), 9.0, context).isfinite().all()


def test_a_refiner_reads_one_text_and_an_aesthetic_score():
    parts = tiny.sdxl()
    network = tiny.unet(
        (8, 16),
        heads=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=5 * 4 + tiny.WIDTH,
    )
    pipe = StableDiffusionXLImg2ImgPipeline(
        vae=parts.vae,
        text_encoder=None,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=None,
        tokenizer_2=parts.tokenizer_2,
        unet=network,
        scheduler=parts.scheduler,
        add_watermarker=False,
        requires_aesthetics_score=True,
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    given = {"image": image, "strength": 1.0, "original_size": (32, 32), "aesthetic_score": 6.0}
    agrees(pipe, 3, guidance_scale=1.0, **given)


def test_two_tokenizers_that_take_a_text_apart_differently_are_refused():
    pipe = tiny.sdxl()
    vectors = torch.randn(2, tiny.WIDTH)
    second = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
    pipe.load_textual_inversion(vectors, token="<finding>", **second)
    with pytest.raises(NotImplementedError, match="into both text encoders"), trace(pipe):
        run(pipe, "left <finding> nodule")
    pipe.load_textual_inversion(vectors, token="<finding>", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    with trace(pipe) as tracer:
        run(pipe, "left <finding> nodule.")  # the second one's padding is a full stop
    assert tracer.attribution().prompt.find("finding") == (2, 3)


def test_fused_projections_are_refused_by_name():
    pipe = tiny.sd()
    pipe.fuse_qkv_projections()
    with pytest.raises(NotImplementedError, match="FusedAttnProcessor2_0 with fused_projections"), trace(pipe):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("negative", [False, True])
def test_rows_are_announced_as_what_they_are(negative):
    calls, pipe = [], tiny.sd()
    with as_adapter(pipe, negative=negative).watching(calls.append):
        run(pipe, num_inference_steps=1)
    (call,) = [event for event in calls if isinstance(event, Call)]
    assert [branch for _, branch in call.rows] == (["text", "other"] if negative else ["null", "text"])


# precision ----------------------------------------------------------------------------------------------------------


def test_probabilities_are_single_precision_under_autocast():
    pipe, made = tiny.sd(), []

    def listen(call):
        own, whole = call.probs(), attention_probs(call.query.double(), call.key.double(), call.scale)
        made.append((call.query.dtype, own.dtype, (own.flatten(2) - whole).abs().max()))

    with attached(as_adapter(pipe), listen), trace(pipe) as tracer, torch.autocast("cpu", torch.bfloat16):
        run(pipe, num_inference_steps=1)
    assert {query for query, _, _ in made} == {torch.bfloat16} and {own for _, own, _ in made} == {torch.float32}
    assert max(away for *_, away in made) < 1e-5
    attribution = tracer.attribution()
    assert np.abs(attribution.maps.sum(0) + attribution.padding - 1).max() < 1e-5


def test_a_run_that_came_to_nan_has_no_maps():
    pipe = tiny.sd()
    with torch.no_grad():
        pipe.unet.conv_out.bias.fill_(float("nan"))
    with trace(pipe) as tracer:
        run(pipe)
    with pytest.raises(FloatingPointError, match=r"for sample 0 does not sum to one: the network computed NaN"):
        tracer.attribution()
