"""Diffusion transformers as their users call them: what is heard, for whom, and that nothing changes by it."""

import accelerate
import numpy as np
import pytest
import tiny_pipelines
import tiny_transformers as tiny
import torch
from diffusers import (
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    PixArtSigmaPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import nn
from torch.nn import functional

from voxplain import segments
from voxplain.adapters.base import as_adapter
from voxplain.adapters.joint import beside
from voxplain.tracing import attached, trace

PROMPT = "large left effusion"
MADE = {"pixart": tiny.pixart, "sana": tiny.sana, "sd3": tiny.sd3, "flux": tiny.flux}
JOINT = ("sd3", "flux")
SIZES = {name: (16, 24) for name in MADE} | {"sana": (32, 64)}  # pixels
GRIDS = {name: (4, 6) for name in MADE} | {"sana": (8, 16)}
ROOM = 14
# PixArt and Sana on their own sizes only choose among those of the full-size networks
MORE = {name: {"use_resolution_binning": False, "clean_caption": False} for name in ("pixart", "sana")}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


def run(name, pipe, prompt=PROMPT, seed=0, **options):
    """The latents of one call of the pipeline itself."""
    height, width = SIZES[name]
    common = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(seed)}
    common |= {"height": height, "width": width, "max_sequence_length": ROOM, **MORE.get(name, {})}
    return pipe(prompt, **{**common, **options}).images


def traced(name, pipe, *given, adapter=None, **more):
    with trace(adapter or pipe) as tracer:
        run(name, pipe, *given, **more)
    return tracer


def left_behind(pipe):
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in pipe.transformer.modules())
    processors = [id(one) for one in pipe.transformer.attn_processors.values()]
    touched = {"encode_prompt", "check_inputs"} & set(vars(pipe)), vars(pipe.image_processor).keys()
    return hooks, processors, touched[0], "classify_height_width_bin" in touched[1], "step" in vars(pipe.scheduler)


@pytest.mark.parametrize("name", MADE)
def test_a_traced_pipeline_gives_the_same_image_and_is_left_as_it_was(name):
    pipe = MADE[name]()
    plain, before = run(name, pipe), left_behind(pipe)
    with trace(pipe) as tracer:
        same = run(name, pipe)
    assert torch.equal(plain, same)
    assert left_behind(pipe) == before and before[0] == 0 and not any(before[2:])
    attribution = tracer.attribution()
    assert attribution.maps.shape[1:] == GRIDS[name] and attribution.image_geometry.shape == SIZES[name]
    assert np.abs(attribution.maps.sum(0) + attribution.padding - 1).max() < 1e-5
    assert attribution.word("effusion").values.max() > 0


@pytest.mark.parametrize("name", MADE)
def test_the_probabilities_are_those_of_the_kernel_that_ran(name, monkeypatch):
    pipe, kernel, calls = MADE[name](), [], []
    adapter, cells = as_adapter(pipe, max_sequence_length=ROOM), int(np.prod(GRIDS[name]))
    stock = functional.scaled_dot_product_attention

    def watched(query, key, value, attn_mask=None, **more):
        kernel.append((query, key, attn_mask))
        return stock(query, key, value, attn_mask=attn_mask, **more)

    with attached(adapter, calls.append):
        monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
        run(name, pipe, num_inference_steps=1)
        monkeypatch.undo()
    prompt, joint = adapter.tokenize(PROMPT), name in JOINT
    texts = len(prompt.ids) - joint
    length = texts + cells if joint else texts
    full = [run for run in kernel if run[1].shape[2] == length and run[0].shape[2] >= cells]
    assert len(full) == len(calls) == len(adapter.layers)
    for (query, key, mask), call in zip(full, calls, strict=True):
        scores = query[-1] @ key[-1].mT * query.shape[-1] ** -0.5  # the last row of the batch is the text's
        probs = (scores if mask is None else scores + mask[-1]).softmax(-1).mT  # [heads, keys, queries]
        text = slice(cells, None) if name == "sd3" else slice(texts)
        image = slice(cells) if name == "sd3" else slice(texts, None)
        expected = probs[:, text][:, :, image] if joint else probs
        order = adapter.order(prompt) or range(texts)
        torch.testing.assert_close(call.probs().flatten(2)[:, :texts], expected[:, list(order)], atol=1e-6, rtol=1e-4)
        if joint:
            rest = probs[:, image][:, :, image].sum(1)
            torch.testing.assert_close(call.probs().flatten(2)[:, -1], rest, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_a_batch_of_two_equals_two_singles(name):
    pipe, prompts = MADE[name](), [PROMPT, "small nodule"]
    images = 1 if name == "sana" else 2  # diffusers gives the masks of several images of a prompt to other rows
    noise = run(name, pipe, prompts, num_images_per_prompt=images, num_inference_steps=1)
    together = traced(name, pipe, prompts, num_images_per_prompt=images, latents=noise).attributions()
    assert [one.prompt.text for one in together] == [prompt for prompt in prompts for _ in range(images)]
    for number, one in enumerate(together):
        alone = traced(name, pipe, one.prompt.text, latents=noise[number : number + 1]).attribution()
        np.testing.assert_allclose(one.maps, alone.maps, atol=1e-4)


@pytest.mark.parametrize("name", MADE)
def test_nothing_stays_after_an_exception_on_the_way(name):
    def stop(*given):
        raise KeyboardInterrupt

    pipe = MADE[name]()
    before = left_behind(pipe)
    when = {"callback": stop} if name == "pixart" else {"callback_on_step_end": stop}
    with pytest.raises(KeyboardInterrupt), trace(pipe) as tracer:
        run(name, pipe, **when)
    assert left_behind(pipe) == before
    with pytest.raises(ValueError, match="only 1 of 2 steps"):
        tracer.attribution()


@pytest.mark.parametrize("name", JOINT)
def test_half_precision_is_accumulated_in_float32(name):
    pipe = MADE[name]()
    whole = traced(name, pipe).attribution()
    half = traced(name, pipe.to(torch.bfloat16)).attribution()
    np.testing.assert_allclose(half.maps.sum(0) + half.padding, 1, atol=1e-5)
    assert half.maps.dtype == np.float32 and np.abs(half.maps - whole.maps).mean() < 0.05


# texts and segments -------------------------------------------------------------------------------------------------


def test_clip_and_t5_are_told_apart():
    attribution = traced("sd3", tiny.sd3(), "left pneumothorax").attribution()
    pieces = [attribution.prompt.pieces[at] for at in attribution.prompt.kept]
    assert pieces == [
        "clip:<|startoftext|>",
        *("clip:left</w>", "t5:▁left", "clip:pneumo", "t5:▁pneumo", "clip:thorax</w>", "t5:thorax"),
        *("clip:<|endoftext|>", "t5:</s>", "[image]"),
    ]
    clip, t5 = (segments.segment(attribution, name) for name in ("clip", "t5"))
    words = [one.word("pneumothorax").values for one in (clip, t5, attribution)]
    np.testing.assert_allclose(words[0], attribution.maps[[3, 5]].mean(0))
    np.testing.assert_allclose(words[1], attribution.maps[[4, 6]].mean(0))
    np.testing.assert_allclose((words[0] + words[1]) / 2, words[2], rtol=1e-5)
    for one in (clip, t5):
        np.testing.assert_allclose(one.maps.sum(0) + one.padding, 1, atol=1e-5)
        np.testing.assert_array_equal(one.maps[-1], attribution.maps[-1])
    with pytest.raises(ValueError, match="no segment 'gemma'; there are clip, t5"):
        segments.segment(attribution, "gemma")


@pytest.mark.parametrize("name", MADE)
def test_text_mass_and_maps_over_text(name):
    attribution = traced(name, MADE[name]()).attribution()
    mass, over = segments.text_mass(attribution), segments.over_text(attribution)
    np.testing.assert_allclose(over.maps.sum(0) + over.padding, 1, atol=1e-5)
    np.testing.assert_allclose(over.word("left").values * mass, attribution.word("left").values, rtol=1e-4)
    if name in JOINT:
        np.testing.assert_allclose(mass, 1 - attribution.maps[-1], atol=1e-5)
        assert mass.min() > 0 and mass.max() < 1 and "[image]" not in over.prompt.pieces
    else:
        assert over is attribution
        with pytest.raises(ValueError, match="reads its text once"):
            segments.segment(attribution, "t5")


def test_the_segments_hear_what_the_others_cut_off():
    adapter = as_adapter(tiny.sd3(), max_sequence_length=40)
    text = f"{PROMPT} small nodule, right thorax large left effusion pneumothorax small"
    prompt = adapter.tokenize(text)
    assert prompt.truncated == "" and len(prompt.find("pneumothorax")) == 2
    short = as_adapter(tiny.sd3(), max_sequence_length=6).tokenize(text)
    assert short.truncated == "effusion pneumothorax small"


def test_without_t5_its_positions_are_padding():
    pipe = tiny.sd3(with_t5=False)
    attribution = traced("sd3", pipe).attribution()
    assert len(attribution.prompt.ids) == 12 + ROOM + 1 and attribution.padding.min() > 0
    assert segments.segment(attribution, "t5").maps.shape[0] == 1


def test_text_in_capitals_is_found_where_it_stands():
    adapter = as_adapter(tiny.pixart(), max_sequence_length=ROOM)
    prompt = adapter.tokenize("  Large LEFT, effusion")
    assert [prompt.text[slice(*span)] for span in prompt.spans if span] == ["Large", "LEFT", ",", "effusion"]
    assert prompt.start is None and prompt.pieces[prompt.end] == "</s>"
    assert adapter.tokenize(" ".join([PROMPT] * 5)).truncated == "left effusion"


def test_the_instruction_before_a_sana_prompt_is_no_word():
    pipe = tiny.sana()
    prompt = as_adapter(pipe, max_sequence_length=ROOM).tokenize(PROMPT)
    assert prompt.pieces[:3] == ("<bos>", "▁", "large") and prompt.spans[1] is None
    assert prompt.start == 0 and prompt.end is None
    alone = traced("sana", pipe, complex_human_instruction=None).attribution().prompt
    assert alone.pieces[:2] == ("<bos>", "large") and alone.find("effusion")


def test_embeddings_need_their_prompt_told():
    pipe = tiny.flux()
    with torch.no_grad():
        text, pooled, _ = pipe.encode_prompt(PROMPT, max_sequence_length=ROOM)
    embeds = {"prompt_embeds": text, "pooled_prompt_embeds": pooled}
    with pytest.raises(ValueError, match="tell the text by"):
        traced("flux", pipe, None, **embeds)
    made = traced("flux", pipe, None, adapter=as_adapter(pipe, prompt=PROMPT), **embeds)
    assert np.array_equal(made.attribution().maps, traced("flux", pipe).attribution().maps)
    told = as_adapter(pipe, prompt=made.attribution().prompt)  # read again, as this pipeline reads it
    again = traced("flux", pipe, None, adapter=told, **embeds).attribution()
    assert again.prompt == made.attribution().prompt and np.array_equal(again.maps, made.attribution().maps)


def test_a_text_may_be_encoded_inside_the_block():
    pipe = tiny.sd3()
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    with torch.no_grad(), trace(as_adapter(pipe, prompt=PROMPT)) as tracer:
        embeds = dict(zip(names, pipe.encode_prompt(PROMPT, None, None), strict=True))
        run("sd3", pipe, None, max_sequence_length=256, **embeds)
    assert len(tracer.attribution().prompt.ids) == tiny_pipelines.CONTEXT + 256 + 1


def test_what_the_image_gets_is_single_precision_under_autocast():
    line = [torch.randn(2, size, 4, generator=torch.Generator().manual_seed(size)) for size in (6, 3, 6)]
    expected = beside(*line, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        made = beside(*line, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


def test_words_can_be_taken_out_of_the_context():
    adapter = as_adapter(tiny.sd3(), size=SIZES["sd3"], max_sequence_length=ROOM)
    prompt, keys = adapter.tokenize(PROMPT), []
    rows = prompt.find("left")
    contexts = [adapter.encode_prompt(prompt), adapter.remove(prompt, rows)]
    with attached(adapter, lambda call: keys.append(call.key), adapter.layers[:1]), torch.no_grad():
        for context in contexts:
            adapter.predict(torch.zeros(1, *adapter.latent_shape), 500.0, context)
    stay = [at for at in range(len(prompt.ids)) if at not in [prompt.kept[row] for row in rows]]
    assert len(rows) == 2
    torch.testing.assert_close(keys[1], keys[0][:, stay], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no text"):
        adapter.remove(prompt, [len(prompt.kept) - 1])
    with pytest.raises(ValueError, match="make contexts with encode_prompt"):
        adapter.predict(torch.zeros(1, *adapter.latent_shape), 500.0, contexts[0] + 1)


# guidance and schedules ---------------------------------------------------------------------------------------------


def test_flux_is_heard_in_one_pass_of_its_two():
    pipe, calls = tiny.flux(), []
    adapter = as_adapter(pipe)
    with attached(adapter, calls.append, adapter.layers[:1]):
        run("flux", pipe, num_inference_steps=1)
        run("flux", pipe, num_inference_steps=1, true_cfg_scale=4.0, negative_prompt="small nodule")
        run("flux", pipe, num_inference_steps=1, true_cfg_scale=4.0, negative_prompt=PROMPT)
    assert len(calls) == 3
    assert all(torch.equal(call.key, calls[0].key) for call in calls)


def test_distilled_guidance_takes_one_pass_and_no_negative_prompt():
    adapter = as_adapter(tiny.flux(distilled=True), size=SIZES["flux"], max_sequence_length=ROOM)
    first, second = (adapter.generate(PROMPT, steps=1, guidance_scale=scale).image for scale in (1.0, 9.0))
    assert not np.array_equal(first, second)
    with pytest.raises(ValueError, match="reads no negative prompt"):
        adapter.generate(PROMPT, steps=1, negative_prompt="nodule")


def test_a_pass_that_skips_layers_is_not_heard():
    pipe, calls = tiny.sd3(), []
    adapter = as_adapter(pipe)
    skipping = {"skip_guidance_layers": [0], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0}
    with attached(adapter, calls.append):
        run("sd3", pipe, **skipping)
    assert len(calls) == 2 * len(adapter.layers)


def test_levels_that_move_with_the_size_are_known():
    pipe = tiny.sd3(use_dynamic_shifting=True)
    adapter, steps = as_adapter(pipe, size=SIZES["sd3"], max_sequence_length=ROOM), []
    with adapter.on_step(steps.append):
        adapter.generate(PROMPT, steps=3)
    assert tuple(step.timestep for step in steps) == adapter.timesteps(3)
    plain = as_adapter(tiny.sd3(), size=SIZES["sd3"]).timesteps(3)
    assert max(abs(a - b) for a, b in zip(plain, adapter.timesteps(3), strict=True)) > 1


def test_predictions_are_those_of_the_pipeline():
    for name in MADE:
        adapter, steps = as_adapter(MADE[name](), size=SIZES[name], max_sequence_length=ROOM), []
        with adapter.on_step(steps.append):
            adapter.generate(PROMPT, steps=2, guidance_scale=1.0)
        context = adapter.encode_prompt(adapter.tokenize(PROMPT))
        for step in steps:
            with torch.no_grad():
                made = adapter.predict(step.latent, step.timestep, context)
            torch.testing.assert_close(made, step.prediction, atol=1e-4, rtol=1e-3)


# the negative prompt ------------------------------------------------------------------------------------------------

GUIDED = {"flux": {"true_cfg_scale": 4.0}, "sana": {"complex_human_instruction": None}}


def negative(name, pipe, *given, **more):
    return traced(name, pipe, *given, adapter=as_adapter(pipe, negative=True), **{**GUIDED.get(name, {}), **more})


@pytest.mark.parametrize("name", MADE)
def test_the_negative_prompt_has_maps_on_request(name):
    pipe, other = MADE[name](), "small nodule"
    once = {"num_inference_steps": 1}
    one = negative(name, pipe, negative_prompt=other, **once).attribution()
    swapped = traced(name, pipe, other, negative_prompt=PROMPT, **{**GUIDED.get(name, {}), **once}).attribution()
    assert one.prompt == swapped.prompt and one.prompt.text == other
    np.testing.assert_allclose(one.maps, swapped.maps, atol=1e-5)  # at the first step both read the same noise
    two = negative(name, pipe, [PROMPT, PROMPT], negative_prompt=[other, "right thorax"]).attributions()
    assert [each.prompt.text for each in two] == [other, "right thorax"]


def test_a_run_without_a_negative_branch_has_no_maps_of_it():
    with pytest.raises(ValueError, match="this run has no guidance, so no negative prompt is read"):
        negative("sd3", tiny.sd3(), guidance_scale=1.0)
    with pytest.raises(ValueError, match=r"FluxPipeline read no negative prompt \(no guidance\); give true_cfg_scale"):
        negative("flux", tiny.flux(), true_cfg_scale=1.0, negative_prompt="nodule")
    pipe = tiny.flux(distilled=True)
    with pytest.raises(ValueError, match="read no negative prompt .guidance is distilled into it, in one pass without"):
        negative("flux", pipe, true_cfg_scale=1.0)
    with pytest.raises(ValueError, match="guidance is distilled into FluxPipeline, so it reads no negative prompt"):
        as_adapter(pipe, negative=True, size=SIZES["flux"], max_sequence_length=ROOM).generate(PROMPT, steps=1)
    assert negative("flux", pipe, negative_prompt="small nodule").attribution().prompt.text == "small nodule"
    assert left_behind(pipe)[0] == 0


def test_an_empty_negative_prompt_and_one_by_embeddings_are_told_apart():
    pipe = tiny.sd3()
    assert negative("sd3", pipe).attribution().prompt.text == ""
    with pytest.raises(NotImplementedError, match="negative_prompt_2 differs from negative_prompt"):
        negative("sd3", pipe, negative_prompt="left", negative_prompt_2="right")
    with torch.no_grad():
        names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        made = pipe.encode_prompt(PROMPT, None, None, negative_prompt="small nodule", max_sequence_length=ROOM)
    embeds = dict(zip(names, made, strict=True))
    with pytest.raises(ValueError, match="tell the text by"):
        negative("sd3", pipe, None, **embeds)
    told = traced("sd3", pipe, None, adapter=as_adapter(pipe, negative=True, prompt="small nodule"), **embeds)
    expected = negative("sd3", pipe, negative_prompt="small nodule").attribution()
    assert np.array_equal(told.attribution().maps, expected.maps)


# image to image -----------------------------------------------------------------------------------------------------

IMAGE = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(1))
MASK = IMAGE[:, :1].round()
FROM_IMAGES = {
    "sd3 image to image": ("sd3", StableDiffusion3Img2ImgPipeline, {"image": IMAGE}),
    "sd3 inpainting": ("sd3", StableDiffusion3InpaintPipeline, {"image": IMAGE, "mask_image": MASK}),
    "flux image to image": ("flux", FluxImg2ImgPipeline, {"image": IMAGE}),
    "flux inpainting": ("flux", FluxInpaintPipeline, {"image": IMAGE, "mask_image": MASK}),
}


@pytest.mark.parametrize("kind", FROM_IMAGES)
def test_pipelines_that_begin_with_an_image_are_heard_in_the_steps_that_run(kind):
    name, make, more = FROM_IMAGES[kind]
    parts = tiny.sd3(channels=16) if make is StableDiffusion3InpaintPipeline else MADE[name]()  # it takes no other
    pipe, levels = tiny.quiet(make(**parts.components)), []
    options = {**GUIDED.get(name, {}), **more, "strength": 0.5, "num_inference_steps": 4, "negative_prompt": "nodule"}
    plain, before = run(name, pipe, **options), left_behind(pipe)
    adapter = as_adapter(pipe, negative=True)
    with trace(pipe) as tracer, trace(adapter) as other, adapter.on_step(lambda step: levels.append(step.timestep)):
        same = run(name, pipe, **options)
    assert torch.equal(plain, same) and left_behind(pipe) == before
    assert levels == [float(level) for level in pipe.scheduler.timesteps[2:]]
    for one, text in ((tracer.attribution(), PROMPT), (other.attribution(), "nodule")):
        assert one.prompt.text == text and one.maps.shape[1:] == GRIDS[name]
        np.testing.assert_allclose(one.maps.sum(0) + one.padding, 1, atol=1e-5)
    assert tracer.maps()[0].provenance["steps"] == 2
    with pytest.raises(NotImplementedError, match=f"{make.__name__} needs more than a prompt"):
        adapter.generate(PROMPT)


# what is refused ----------------------------------------------------------------------------------------------------


class Strange(AttnProcessor2_0):
    pass


@pytest.mark.parametrize("name", MADE)
def test_what_is_not_read_is_refused_by_name(name):
    pipe = MADE[name]()
    layer = as_adapter(pipe).layers[0]
    with pytest.raises(NotImplementedError, match=rf"{layer} attends by Strange"), trace(pipe):
        pipe.transformer.get_submodule(layer).set_processor(Strange())
        run(name, pipe)
    with pytest.raises(NotImplementedError, match=rf"{layer} attends by Strange.*docs/adapters.md"), trace(pipe):
        pass
    pipe.transformer = nn.Linear(1, 1)
    with pytest.raises(NotImplementedError, match="denoiser is a Linear"):
        as_adapter(pipe)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # what torch.compile imports
def test_a_compiled_network_is_refused():
    pipe = tiny.flux()
    pipe.transformer.transformer_blocks[0].compile(backend="eager")
    with pytest.raises(ValueError, match=r"^transformer_blocks\.0 was compiled"):
        as_adapter(pipe)


@pytest.mark.parametrize("name", JOINT)
def test_offloaded_weights_are_heard_as_they_run(name):
    pipe = MADE[name]()
    expected = traced(name, pipe).attribution().maps
    accelerate.cpu_offload(pipe.transformer, execution_device=torch.device("cpu"))
    assert np.array_equal(traced(name, pipe).attribution().maps, expected)


def test_projections_that_are_exchanged_in_the_block_are_an_error():
    pipe = tiny.flux()
    with pytest.raises(RuntimeError, match="exchanged or compiled while somebody"), trace(pipe):
        attention = pipe.transformer.transformer_blocks[0].attn
        attention.to_q, attention.norm_q = nn.Linear(32, 32), nn.Identity()
        run("flux", pipe)


def test_texts_that_differ_are_refused_where_a_key_belongs_to_both():
    pipe = tiny.sd3()
    for second in ("prompt_2", "prompt_3"):
        with pytest.raises(NotImplementedError, match=f"{second} differs"):
            traced("sd3", pipe, **{second: "nodule"})
    assert traced("flux", tiny.flux(), prompt_2="small nodule").attribution().prompt.text == "small nodule"


def test_an_image_that_is_cut_afterwards_is_refused():
    pipe = tiny.pixart(PixArtSigmaPipeline)
    pipe.transformer.register_to_config(sample_size=32)
    with pytest.raises(NotImplementedError, match="use_resolution_binning=False"):
        traced("pixart", pipe, use_resolution_binning=True)


@pytest.mark.parametrize("name", MADE)
def test_a_text_encoder_of_another_width_is_refused(name):
    pipe = MADE[name]()
    wide = "joint_attention_dim" if name in JOINT else "caption_channels"
    pipe.transformer.register_to_config(**{wide: 40})
    with pytest.raises(ValueError, match=rf"text_encoder.* vectors of width \d+, but the transformer takes 40 .{wide}"):
        as_adapter(pipe)


def test_sizes_that_no_cell_fits_are_refused():
    with pytest.raises(ValueError, match="no multiple of 4"):
        as_adapter(tiny.flux(), size=(18, 24))
