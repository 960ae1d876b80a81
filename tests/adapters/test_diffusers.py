"""Stable Diffusion pipelines as their users call them: what is heard, for whom, and that nothing changes by it."""

import accelerate
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from peft import LoraConfig
from torch import nn

from voxplain.adapters.base import as_adapter
from voxplain.tracing import attached, trace

PROMPT = "large left effusion"
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def run(pipe, prompt=PROMPT, seed=0, **options):
    """The latents of one call of the pipeline itself."""
    generator = torch.Generator().manual_seed(seed)
    common = {"num_inference_steps": 2, "output_type": "latent", "generator": generator}
    return pipe(prompt, **{**common, **options}).images


def traced(pipe, *given, adapter=None, **more):
    with trace(adapter or pipe) as tracer:
        run(pipe, *given, **more)
    return tracer


def left_behind(pipe):
    """Everything that a trace could leave on a pipeline."""
    parts = [*pipe.unet.modules(), *pipe.text_encoder.modules()]
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in parts)
    processors = [id(one) for one in pipe.unet.attn_processors.values()]
    return hooks, processors, {"encode_prompt", "_encode_prompt"} & set(vars(pipe)), "step" in vars(pipe.scheduler)


IMAGE = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
CALLS = {  # what each pipeline is called with beside the prompt; images are of 24 x 40 pixels
    "text": (tiny.sd, {"height": 24, "width": 40}),
    "version 2": (tiny.sd2, {"height": 24, "width": 40}),
    "xl": (tiny.sdxl, {"height": 24, "width": 40}),
    "img2img": (tiny.img2img, {"image": IMAGE, "strength": 0.5, "num_inference_steps": 4}),
    "inpaint": (tiny.inpaint, {"image": IMAGE, "mask_image": IMAGE[:, :1].round(), "height": 24, "width": 40}),
    "controlnet": (tiny.controlnet, {"image": IMAGE}),
    "pix2pix": (tiny.pix2pix, {"image": IMAGE}),
}


@pytest.mark.parametrize("kind", CALLS)
def test_every_pipeline_around_the_unet_is_heard_and_left_as_it_was(kind):
    make, options = CALLS[kind]
    pipe = make()
    plain, before = run(pipe, **options), left_behind(pipe)
    with trace(pipe) as tracer, attached(as_adapter(pipe), lambda call: keys.append(call.key)):
        keys: list = []
        same = run(pipe, **options)
    assert torch.equal(plain, same)
    assert left_behind(pipe) == before and not before[2] and not before[3]
    attribution = tracer.attribution()
    assert attribution.maps.shape == (5, 12, 20)
    assert attribution.image_geometry.shape == (24, 40) and not attribution.image_geometry.spacing_known
    assert np.abs(attribution.maps.sum(0) + attribution.padding - 1).max() < 1e-5
    assert len(keys) == 2 * len(as_adapter(pipe).layers)  # once a layer and step: the text, and nothing else
    adapter = as_adapter(pipe)
    context, attention = adapter.encode_prompt(adapter.tokenize(PROMPT)), pipe.unet.get_submodule(adapter.layers[0])
    expected = attention.to_k(context)[0].unflatten(-1, (attention.heads, -1)).transpose(0, 1)
    torch.testing.assert_close(keys[0], expected, atol=1e-5, rtol=1e-4)


def test_the_three_lines_of_daam_users_work():
    pipe = tiny.sd()
    with trace(pipe, recipe="daam") as tracer:
        pipe(PROMPT, num_inference_steps=2)
    attribution = tracer.attribution()
    assert attribution.maps.shape == (5, 64, 64)
    assert attribution.word("effusion").values.max() > 0


# batches, guidance, prompts ----------------------------------------------------------------------------------------


def test_prompts_and_images_of_a_batch_have_a_map_each_and_equal_those_made_alone():
    pipe, prompts = tiny.sd(), [PROMPT, "small nodule"]
    noise = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    together = traced(pipe, prompts, num_images_per_prompt=2, latents=noise).attributions()
    assert [one.prompt.text for one in together] == [PROMPT, PROMPT, "small nodule", "small nodule"]
    for number, one in enumerate(together):
        alone = traced(pipe, one.prompt.text, latents=noise[number : number + 1]).attribution()
        np.testing.assert_allclose(one.maps, alone.maps, atol=1e-4)
    assert np.abs(together[0].maps - together[1].maps).max() > 1e-3, "two images of one prompt have the same map"


def test_without_guidance_the_one_row_is_the_text():
    keys, pipe = [], tiny.sd()
    adapter = as_adapter(pipe)
    with attached(adapter, lambda call: keys.append(call.key), adapter.layers[:1]):
        run(pipe, guidance_scale=1.0)
        run(pipe, guidance_scale=5.0, negative_prompt="small nodule")
    assert len(keys) == 4
    torch.testing.assert_close(keys[0], keys[2])


def test_guidance_that_ends_on_the_way_is_followed():
    def stop_guiding(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 0.0
            return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[1]}
        return {}

    pipe, calls = tiny.sd(), []
    adapter = as_adapter(pipe)
    with attached(adapter, calls.append, adapter.layers[:1]):
        run(
            pipe,
            num_inference_steps=4,
            callback_on_step_end=stop_guiding,
            callback_on_step_end_tensor_inputs=["prompt_embeds"],
        )
    assert [call.step for call in calls] == [0, 1, 2, 3]
    assert all(torch.allclose(call.key, calls[0].key, atol=1e-5) for call in calls)


def negative(pipe, *given, **more):
    return traced(pipe, *given, adapter=as_adapter(pipe, negative=True), **more)


def test_the_negative_prompt_has_maps_on_request():
    pipe = tiny.sd()
    made = negative(pipe, [PROMPT, "nodule"], negative_prompt=["small nodule", "right"])
    assert [one.prompt.text for one in made.attributions()] == ["small nodule", "right"]
    one = negative(pipe, negative_prompt="small nodule", num_inference_steps=1).attribution()
    swapped = traced(pipe, "small nodule", negative_prompt=PROMPT, num_inference_steps=1).attribution()
    np.testing.assert_allclose(one.maps, swapped.maps, atol=1e-5)
    with pytest.raises(ValueError, match="no guidance"):
        negative(pipe, guidance_scale=1.0)
    with pytest.raises(ValueError, match="zeros, which have no words"):
        negative(tiny.sdxl())


def test_an_empty_negative_prompt_still_has_its_start_and_end():
    attribution = negative(tiny.sd()).attribution()
    assert attribution.prompt.text == "" and len(attribution.maps) == 2


def test_embeddings_need_their_prompt_told():
    pipe = tiny.sd()
    with torch.no_grad():
        text, null = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": null}

    def told(prompt):
        return traced(pipe, None, adapter=as_adapter(pipe, prompt=prompt), **embeds).attribution()

    with pytest.raises(ValueError, match=r"nobody knows the words; tell the text by .*prompt="):
        traced(pipe, None, **embeds)
    assert np.array_equal(told(PROMPT).maps, traced(pipe).attribution().maps)
    own = as_adapter(pipe).tokenize(PROMPT)
    assert told([own]).prompt == own
    with pytest.raises(ValueError, match="2 texts for 1 samples"):
        told(["left", "right"])


def test_a_second_prompt_that_differs_is_refused():
    pipe = tiny.sdxl()
    assert traced(pipe, prompt_2=PROMPT).attribution().prompt.text == PROMPT
    with pytest.raises(NotImplementedError, match="every key belongs to two texts"):
        traced(pipe, prompt_2="small nodule")


def test_rows_that_cannot_be_told_apart_are_refused():
    def mix(pipe, step, timestep, tensors):
        return {"prompt_embeds": 0.5 * tensors["prompt_embeds"]}

    with pytest.raises(ValueError, match="no row can be told from another"):
        traced(tiny.sd(), callback_on_step_end=mix, callback_on_step_end_tensor_inputs=["prompt_embeds"])


def test_what_falls_off_the_context_is_named():
    pipe = tiny.sd()
    prompt = as_adapter(pipe).tokenize(f"{PROMPT} small nodule, right thorax large left effusion pneumothorax small")
    assert len(prompt.ids) == tiny.CONTEXT and prompt.truncated == "effusion pneumothorax small"
    assert prompt.end == tiny.CONTEXT - 1


# schedulers and precision ------------------------------------------------------------------------------------------


def test_the_extra_call_of_pndm_is_counted():
    pipe = tiny.sd(levels=tiny.scheduler(PNDMScheduler, skip_prk_steps=True))
    maps = traced(pipe, num_inference_steps=4).maps()[0]
    assert maps.provenance["steps"] == 5
    assert {key.grid: count for key, count in maps.counts.items()} == {
        (16, 16): 5 * 3 * 2,  # calls, layers, heads
        (8, 8): 5 * 3 * 4,
        (4, 4): 5 * 1 * 4,
    }
    assert len(as_adapter(pipe).timesteps(4)) == 5


@pytest.mark.parametrize("kind", [None, PNDMScheduler, EulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_a_prediction_at_a_kept_state_is_the_one_of_the_run(kind):
    pipe = tiny.sd(levels=tiny.scheduler(kind) if kind else None)
    adapter, steps = as_adapter(pipe), []
    context = adapter.encode_prompt(adapter.tokenize(PROMPT))
    with adapter.on_step(steps.append):
        run(pipe, guidance_scale=1.0, num_inference_steps=4)
    levels = adapter.timesteps(4)
    assert [step.timestep for step in steps] == list(levels)
    for step in steps:
        with torch.no_grad():
            again = adapter.predict(step.latent, step.timestep, context)
        torch.testing.assert_close(again, step.prediction, atol=1e-4, rtol=1e-4)
    noisy = adapter.add_noise(steps[0].latent, torch.zeros_like(steps[0].latent), levels[-1])
    assert noisy.shape == steps[0].latent.shape and torch.isfinite(noisy).all()


def test_a_level_outside_of_a_sigma_schedule_is_refused():
    adapter = as_adapter(tiny.sd(levels=tiny.scheduler(EulerDiscreteScheduler)))
    adapter.pipe.scheduler.set_timesteps(4)
    latent = torch.zeros(1, *adapter.latent_shape)
    with pytest.raises(ValueError, match=r"EulerDiscreteScheduler knows .* 17.5 is none of them"):
        adapter.add_noise(latent, latent, 17.5)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision_models_accumulate_in_single(half):
    pipe, plain = tiny.sd().to(half), tiny.sd()
    mine, theirs = traced(pipe, num_inference_steps=1).attribution(), traced(plain, num_inference_steps=1).attribution()
    assert mine.maps.dtype == np.float32
    assert np.abs(mine.maps.sum(0) + mine.padding - 1).max() < 1e-5, "half precision would miss one by a thousandth"
    assert np.abs(mine.maps - theirs.maps).mean() < 0.05


# checkpoints -------------------------------------------------------------------------------------------------------


def lora(pipe):
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
    torch.manual_seed(3)
    pipe.unet.add_adapter(config)
    return pipe


def test_queries_and_keys_are_heard_with_their_lora():
    pipe = lora(tiny.sd())
    plain = run(pipe)
    with trace(pipe) as tracer:
        assert torch.equal(run(pipe), plain)
    assert np.abs(tracer.attribution().maps - traced(tiny.sd()).attribution().maps).max() > 0.01
    pipe.unet.set_attn_processor(AttnProcessor())
    np.testing.assert_allclose(traced(pipe).attribution().maps, tracer.attribution().maps, atol=1e-4)


def test_projections_that_are_exchanged_inside_the_block_are_noticed():
    pipe = tiny.sd()
    with pytest.raises(RuntimeError, match="exchanged or compiled while somebody"), trace(pipe):
        run(lora(pipe))


def test_words_of_a_textual_inversion_are_found():
    pipe = tiny.sd()
    pipe.load_textual_inversion(torch.randn(3, tiny.WIDTH), token="<finding>")
    attribution = traced(pipe, "left <finding> nodule").attribution()
    prompt = attribution.prompt
    assert prompt.pieces[1:6] == ("left</w>", "<finding>", "<finding>_1", "<finding>_2", "nodule</w>")
    assert prompt.spans[2:5] == ((5, 14),) * 3
    assert prompt.find("finding") == (2, 3, 4) and prompt.find("nodule") == (5,)


# refusals ----------------------------------------------------------------------------------------------------------


class Strange(AttnProcessor2_0):
    pass


def test_an_unknown_processor_is_named_with_its_layer_also_when_it_comes_late():
    pipe = tiny.sd()
    layer = as_adapter(pipe).layers[2]
    with trace(pipe):
        pipe.unet.get_submodule(layer).set_processor(Strange())
        with pytest.raises(NotImplementedError, match=f"{layer} attends by Strange"):
            run(pipe)
    with pytest.raises(NotImplementedError, match="attends by Strange.*docs/adapters.md"), trace(pipe):
        pytest.fail("the block was entered")
    assert left_behind(pipe)[0] == 0


@pytest.mark.parametrize("change", ["norm_q", "rescale_output_factor", "residual_connection"])
def test_attention_with_more_than_projections_is_named(change):
    pipe = tiny.sd()
    adapter = as_adapter(pipe)
    setattr(pipe.unet.get_submodule(adapter.layers[0]), change, nn.LayerNorm(4) if change == "norm_q" else 2)
    with pytest.raises(NotImplementedError, match=change), attached(adapter, print):
        pass


def test_other_networks_and_layers_are_named():
    pipe = tiny.sd()
    pipe.unet = nn.Identity()
    with pytest.raises(NotImplementedError, match="a Identity, and this adapter reads a UNet2DConditionModel"):
        as_adapter(pipe)
    simple = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        down_block_types=("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        cross_attention_dim=tiny.WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        layers_per_block=1,
    )
    with pytest.raises(NotImplementedError, match=r"down_blocks.0.attentions.0 is a Attention .* not known here"):
        as_adapter(tiny.sd(network=simple))
    with pytest.raises(ValueError, match="vectors of width 16, but the U-Net takes 24"):
        as_adapter(tiny.sd(network=tiny.unet((8, 16), heads=(2, 4), width=24)))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # what torch.compile imports
@pytest.mark.parametrize("how", ["whole", "in place", "a block", "a wrapped block", "after the adapter"])
def test_a_compiled_network_is_refused(how):
    pipe = tiny.sd()
    adapter = as_adapter(pipe) if how == "after the adapter" else pipe
    if how == "whole":
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    elif how == "a wrapped block":
        pipe.unet.mid_block = torch.compile(pipe.unet.mid_block, backend="eager")
    else:
        (pipe.unet.mid_block if how == "a block" else pipe.unet).compile(backend="eager")
    with pytest.raises(ValueError, match="was compiled .* trace it uncompiled"), trace(adapter):
        pytest.fail("the block was entered")


def test_offloaded_weights_are_heard_as_they_run():
    pipe = tiny.sd()
    expected = traced(pipe).attribution().maps
    accelerate.cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert np.array_equal(traced(pipe).attribution().maps, expected)


def test_a_layer_that_runs_without_its_hooks_is_an_error_and_no_partial_map():
    pipe = tiny.sd()
    layer = as_adapter(pipe).layers[2]
    attention = pipe.unet.get_submodule(layer)
    attention._call_impl = attention.forward  # whatever hides a layer does this: it runs, and none of its hooks do
    tracer = traced(pipe)
    with pytest.raises(ValueError, match=rf"{layer} was recorded 0 times in 2 steps"):
        tracer.attribution()
    del attention._call_impl
    attention.to_k._call_impl = attention.to_k.forward
    with pytest.raises(RuntimeError, match=rf"{layer} ran, but not all of it was heard"):
        traced(pipe)


def test_pipelines_that_need_an_image_do_not_generate_but_are_traced():
    adapter = as_adapter(tiny.img2img())
    with pytest.raises(NotImplementedError, match="StableDiffusionImg2ImgPipeline needs more than a prompt"):
        adapter.generate(PROMPT)
    inpainting = as_adapter(tiny.inpaint())
    context = inpainting.encode_prompt(inpainting.tokenize(PROMPT))
    with pytest.raises(NotImplementedError, match=r"reads an image .*it takes 9"):
        inpainting.predict(torch.zeros(1, *inpainting.latent_shape), 9.0, context)


def test_wrong_arguments_are_refused():
    adapter = as_adapter(tiny.sd())
    with pytest.raises(ValueError, match="the prompt is empty"):
        adapter.generate(" ")
    with pytest.raises(ValueError, match="steps = 0; give 1 to 1000"):
        adapter.generate(PROMPT, steps=0)
    with pytest.raises(ValueError, match="1 seeds for 2 samples"):
        adapter.generate(PROMPT, samples=2, seed=[3])
    with pytest.raises(ValueError, match=r"size \(25, 40\) is no multiple of 2"):
        as_adapter(adapter.pipe, size=(25, 40))
    with pytest.raises(TypeError, match="is an adapter already; give negative where it is made"):
        as_adapter(adapter, negative=True)
    xl = as_adapter(tiny.sdxl())
    with pytest.raises(ValueError, match="make contexts with encode_prompt"):
        xl.predict(torch.zeros(1, *xl.latent_shape), 9.0, torch.zeros(1, tiny.CONTEXT, 2 * tiny.WIDTH))


def test_an_adapter_generates_at_the_size_it_is_made_for():
    sample = as_adapter(tiny.sd(), size=(24, 40)).generate(PROMPT, steps=1)
    assert sample.image.shape == (3, 24, 40) and sample.unit == "intensity"
    assert sample.image.min() >= 0 and sample.image.max() <= 1
    assert sample.provenance["seed"] == 0 and sample.provenance["sampler"] == "DDIMScheduler"


# nothing is left behind --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_the_pipeline_is_as_before_after_an_exception_or_interrupt(error):
    def stop(pipe, step, timestep, tensors):
        raise error

    pipe = tiny.sd()
    run(pipe)
    before, names = left_behind(pipe), (set(vars(pipe)), set(vars(pipe.scheduler)))
    with pytest.raises(error), trace(pipe) as tracer:
        run(pipe, num_inference_steps=3, callback_on_step_end=stop)
    assert left_behind(pipe) == before
    assert (set(vars(pipe)), set(vars(pipe.scheduler))) == names
    with pytest.raises(ValueError, match="only 1 of 3 steps"):
        tracer.attribution()
    assert traced(pipe).attribution().maps.shape == (5, 16, 16)


def test_a_scheduler_that_is_exchanged_inside_the_block_is_heard_and_restored():
    pipe = tiny.sd()
    first = pipe.scheduler
    with trace(pipe) as tracer:
        pipe.scheduler = tiny.scheduler(EulerDiscreteScheduler)
        run(pipe)
    assert len(tracer.attributions()) == 1
    assert "step" not in vars(first) and "step" not in vars(pipe.scheduler)


def test_nested_traces_hear_the_same_and_each_removes_its_own():
    pipe = tiny.sd()
    with trace(pipe) as outer:
        with trace(pipe) as inner:
            run(pipe)
        run(pipe, "small nodule")
    assert np.array_equal(outer.attributions()[0].maps, inner.attribution().maps)
    assert len(outer.attributions()) == 2 and left_behind(pipe)[0] == 0


def test_a_network_that_runs_outside_of_a_pipeline_call_is_not_guessed_at():
    pipe = tiny.sd()
    latent, context = torch.zeros(1, 4, 16, 16), torch.zeros(1, tiny.CONTEXT, tiny.WIDTH)
    with pytest.raises(RuntimeError, match="not announced"), trace(pipe):
        run(pipe)
        pipe.unet(latent, 9, context)
