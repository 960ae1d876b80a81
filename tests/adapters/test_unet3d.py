"""Text-to-video pipelines: volumes are read frame by frame, and nothing changes by it."""

import numpy as np
import pytest
import tiny_transformers as tiny
import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from voxplain.adapters.base import as_adapter
from voxplain.adapters.unet3d import UNet3DAdapter
from voxplain.testing import check_adapter
from voxplain.tracing import attached, trace

PROMPT = "large left effusion"
SIZE = {"num_frames": 3, "height": 8, "width": 24}  # pixels, two a cell: a grid of 3 x 4 x 12


def run(pipe, prompt=PROMPT, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    common = {"num_inference_steps": 2, "output_type": "latent", "generator": generator, **SIZE}
    return pipe(prompt, **{**common, **options}).frames


def traced(pipe, *given, **more):
    with trace(pipe) as tracer:
        run(pipe, *given, **more)
    return tracer


def left_behind(pipe):
    hooks = sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in pipe.unet.modules())
    processors = [id(one) for one in pipe.unet.attn_processors.values()]
    return hooks, processors, "encode_prompt" in vars(pipe), "step" in vars(pipe.scheduler)


def test_all_promises_are_kept():
    assert len(check_adapter(UNet3DAdapter(tiny.video(), frames=2, size=(8, 24)))) == 17


def test_a_traced_video_is_the_same_and_its_maps_are_volumes():
    pipe = tiny.video()
    plain, before = run(pipe), left_behind(pipe)
    with trace(pipe) as tracer:
        same = run(pipe)
    assert torch.equal(plain, same)
    assert left_behind(pipe) == before and before[0] == 0 and not before[2] and not before[3]
    attribution = tracer.attribution()
    assert attribution.maps.shape == (5, 3, 4, 12)
    assert attribution.image_geometry.shape == (3, 8, 24) and not attribution.image_geometry.spacing_known
    assert np.abs(attribution.maps.sum(0) + attribution.padding - 1).max() < 1e-5
    assert set(key.grid for key in tracer.maps()[0].means) == {(3, 4, 12), (3, 2, 6)}


def test_attention_over_time_is_not_recorded():
    layers = as_adapter(tiny.video()).layers
    assert len(layers) == 4 and all(".attentions." in layer and layer.endswith("attn2") for layer in layers)


def test_each_frame_is_what_softmax_of_its_own_queries_gives():
    pipe, calls, seen = tiny.video(), [], {}
    adapter = as_adapter(pipe)
    attention = pipe.unet.get_submodule(adapter.layers[0])

    def keep(module, args, kwargs):
        seen["query"], seen["context"] = args[0], kwargs["encoder_hidden_states"]

    hook = attention.register_forward_pre_hook(keep, with_kwargs=True)
    with attached(adapter, calls.append, adapter.layers[:1]):
        run(pipe, num_inference_steps=1)
    hook.remove()
    query, key = attention.to_q(seen["query"][4]), attention.to_k(seen["context"][4])  # rows: 3 null, then 3 text
    scores = torch.einsum("qhd,khd->hkq", *(x.unflatten(-1, (attention.heads, -1)) for x in (query, key)))
    expected = (scores * attention.scale).softmax(1).unflatten(-1, (4, 12))
    torch.testing.assert_close(calls[0].probs()[:, :, 1], expected, atol=1e-5, rtol=1e-4)


def test_a_batch_of_two_equals_two_singles():
    pipe, prompts = tiny.video(), [PROMPT, "small nodule"]
    noise = torch.randn(2, 4, 3, 4, 12, generator=torch.Generator().manual_seed(5))
    together = traced(pipe, prompts, latents=noise).attributions()
    for number, one in enumerate(together):
        alone = traced(pipe, prompts[number], latents=noise[number : number + 1]).attribution()
        assert one.prompt.text == prompts[number]
        np.testing.assert_allclose(one.maps, alone.maps, atol=1e-4)


def test_nothing_stays_after_an_exception_on_the_way():
    def stop(step, timestep, latents):
        raise KeyboardInterrupt

    pipe = tiny.video()
    before = left_behind(pipe)
    with pytest.raises(KeyboardInterrupt), trace(pipe) as tracer:
        run(pipe, callback=stop)
    assert left_behind(pipe) == before
    with pytest.raises(ValueError, match="only 1 of 2 steps"):
        tracer.attribution()


def test_embeddings_need_their_prompt_told():
    pipe = tiny.video()
    with torch.no_grad():
        text, null = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    embeds = {"prompt_embeds": text, "negative_prompt_embeds": null}
    with pytest.raises(ValueError, match="tell the text by"):
        traced(pipe, None, **embeds)
    with trace(as_adapter(pipe, prompt=PROMPT)) as tracer:
        run(pipe, None, **embeds)
    assert np.array_equal(tracer.attribution().maps, traced(pipe).attribution().maps)


class Strange(AttnProcessor):
    pass


def test_what_is_not_read_is_refused_by_name():
    pipe = tiny.video()
    layer = as_adapter(pipe).layers[0]
    pipe.unet.get_submodule(layer).set_processor(Strange())
    with pytest.raises(NotImplementedError, match=rf"{layer} attends by Strange"), trace(pipe):
        pass
    pipe = tiny.video()
    with pytest.raises(NotImplementedError, match="attends by Strange"), trace(pipe):
        pipe.unet.get_submodule(layer).set_processor(Strange())
        run(pipe)
    pipe = tiny.video()
    pipe.unet = nn.Linear(1, 1)
    with pytest.raises(NotImplementedError, match="denoiser is a Linear"):
        as_adapter(pipe)
    with pytest.raises(ValueError, match="no multiple of 2"):
        UNet3DAdapter(tiny.video(), size=(9, 8))
