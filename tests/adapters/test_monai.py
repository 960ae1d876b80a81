"""A pipeline of stub parts around a small but real `DiffusionModelUNet`; its grids are no cubes and no squares."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import nn
from torch.nn import functional

from voxplain.adapters.base import as_adapter
from voxplain.adapters.monai import MonaiAdapter
from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.studies.effect import passes
from voxplain.studies.grounding import renoise
from voxplain.testing import check_adapter
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import attached, trace

CONTEXT, WIDTH = 8, 12
WORDS = ("large", "left", "effusion", "small", "nodule")
GRIDS = {2: (6, 8), 3: (4, 6, 8)}


class Words:
    """A word of the list is a piece; nothing else is known."""

    def tokenize(self, text):
        words = text.split()
        starts = [text.index(word) for word in words]
        free = CONTEXT - 2 - len(words)
        return TokenizedPrompt(
            text=text,
            ids=(1, *(3 + WORDS.index(word) for word in words), 2, *(0,) * free),
            pieces=("[S]", *words, "[E]", *("[P]",) * free),
            spans=(
                None,
                *((at, at + len(word)) for at, word in zip(starts, words, strict=True)),
                None,
                *(None,) * free,
            ),
            start=0,
            end=len(words) + 1,
        )

    def unknown_words(self, text):
        return []


class Halves(nn.Module):
    """Images are their latents' first channel at twice the resolution."""

    def encode(self, image):
        small = functional.interpolate(image, scale_factor=0.5).expand(-1, 2, *(-1 for _ in image.shape[2:]))
        return small, torch.zeros_like(small)

    def decode(self, latent):
        return functional.interpolate(latent[:, :1], scale_factor=2.0)


def make(dims=3, *, flash=True, channels=(8, 8), head=(4, 8), maisi=False):
    grid = GRIDS[dims]
    torch.manual_seed(0)
    unet = (DiffusionModelUNetMaisi if maisi else DiffusionModelUNet)(
        dims,
        2,
        2,
        num_res_blocks=1,
        **{"num_channels" if maisi else "channels": channels},
        attention_levels=(True,) * len(channels),
        norm_num_groups=4,
        num_head_channels=head,
        with_conditioning=True,
        cross_attention_dim=WIDTH,
    ).eval()
    for module in unet.modules():
        if hasattr(module, "use_flash_attention"):  # Maisi's constructor takes it only where there is a GPU
            module.use_flash_attention = flash
    for name, parameter in unet.named_parameters():
        if not parameter.any():  # MONAI starts its last layers at zero, so that no text would reach the output
            nn.init.normal_(parameter, std=0.1)
        if ".attn2.to_q" in name:
            nn.init.normal_(parameter, std=1.0)  # an untrained layer attends to everything alike
    config = {
        "name": "tiny",
        "image_shape": [2 * size for size in grid],
        "spacing": [5.0] * dims,
        "unit": "HU",
        "intensity": [-1000.0, 1000.0],
        "latent_shape": [2, *grid],
        "latent_shift": 0.0,
        "latent_scale": 1.0,
        "coordinates": False,
        "schedule": {"kind": "cosine", "steps": 1000},
        "prediction": "v",
        "steps": 4,
        "guidance_scale": 3.0,
        "localizing_layers": ["middle_block.attention.transformer_blocks.0.attn2"],
    }
    return LatentDiffusion(unet, Halves(), nn.Embedding(3 + len(WORDS), WIDTH), Words(), config)


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "explicit"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_pipeline_keeps_all_promises(dims, flash):
    assert len(check_adapter(MonaiAdapter(make(dims, flash=flash)))) == 17


@pytest.mark.parametrize("flash", [True, False], ids=["flash", "explicit"])
@pytest.mark.parametrize("dims", [2, 3])
def test_maisi_is_heard_at_every_layer_and_left_as_it_was(dims, flash):
    pipeline = make(dims, flash=flash, maisi=True)
    plain = pipeline.generate("large left effusion", seed=2, steps=2)
    with trace(pipeline, per_layer=True) as tracer:
        sample = pipeline.generate("large left effusion", seed=2, steps=2)
    assert np.array_equal(sample.image, plain.image)
    assert len({key.layer for key in tracer.maps()[0].means}) == 7
    attribution = tracer.attribution()
    assert attribution.maps.shape == (5, *GRIDS[dims])
    np.testing.assert_allclose(attribution.maps.sum(0) + attribution.padding, 1, atol=1e-5)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in pipeline.unet.modules())


def test_layers_are_the_paths_of_all_cross_attention_blocks():
    pipeline = make()
    adapter = as_adapter(pipeline)
    assert isinstance(adapter, MonaiAdapter)
    assert adapter.layers == (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "middle_block.attention.transformer_blocks.0.attn2",
        "up_blocks.0.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.0.attentions.1.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    )
    assert all(pipeline.unet.get_submodule(layer).to_k is not None for layer in adapter.layers)
    assert adapter.localizing_layers == adapter.layers[2:3]


@pytest.mark.parametrize("dims", [2, 3])
def test_what_is_heard_is_what_the_explicit_kernel_computes(dims):
    pipeline = make(dims, flash=False)
    adapter, heard = MonaiAdapter(pipeline), {}
    for layer in adapter.layers:
        pipeline.unet.get_submodule(layer).save_attn = True
    prompt = adapter.tokenize("large left effusion")
    latent = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad(), attached(adapter, lambda call: heard.update({(call.layer, call.sample): call})):
        adapter.predict(latent, 400.0, adapter.encode_prompt(prompt))
    for layer in adapter.layers:
        computed = pipeline.unet.get_submodule(layer).att_mat  # [batch, heads, queries, tokens]
        assert computed.std(-1).mean() > 0.01, "uniform attention would prove nothing"
        for sample in (0, 1):
            ours = heard[layer, sample].probs()  # [heads, tokens, *grid]
            assert torch.allclose(ours.flatten(2).mT, computed[sample], atol=1e-6)


def test_the_grid_is_that_of_the_layer_and_not_a_root():
    adapter, grids = MonaiAdapter(make()), {}
    with attached(adapter, lambda call: grids.update({call.layer: call.grid})):
        adapter.generate("small nodule", steps=1)
    assert grids[adapter.layers[0]] == grids[adapter.layers[-1]] == (4, 6, 8)
    assert grids[adapter.layers[1]] == grids[adapter.layers[2]] == (2, 3, 4)


def test_cells_are_in_the_order_of_the_latent():
    adapter, calls = MonaiAdapter(make(channels=(8,), head=(8,))), []
    pipeline = adapter.pipeline
    block = pipeline.unet.get_submodule("down_blocks.0.attentions.0")
    attention = pipeline.unet.get_submodule(adapter.layers[0])
    seen = []
    handle = block.transformer_blocks[0].norm2.register_forward_hook(lambda *event: seen.append(event[2]))
    inputs = []
    before = block.proj_in.register_forward_hook(lambda *event: inputs.append(event[2]))
    with attached(adapter, calls.append, adapter.layers[:1]):
        adapter.generate("small nodule", steps=1, guidance_scale=1.0)
    handle.remove()
    before.remove()
    volume = inputs[0]  # [1, channels, *grid]: what the grid's cells are, before they were put in a line
    assert calls[0].grid == tuple(volume.shape[2:])
    line = volume.permute(0, 2, 3, 4, 1).reshape(1, -1, volume.shape[1])
    transformer = block.transformer_blocks[0]
    at_attention = transformer.norm2(transformer.attn1(transformer.norm1(line)) + line)
    assert torch.allclose(at_attention, seen[0], atol=1e-5)
    query = attention.to_q(at_attention)[0].unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
    assert torch.allclose(calls[0].query, query, atol=1e-5)


def test_layers_of_other_head_counts_weigh_by_their_heads():
    adapter = MonaiAdapter(make())
    with trace(adapter) as merged:
        adapter.generate("large left effusion", steps=2)
    with trace(adapter, per_head=True) as apart:
        adapter.generate("large left effusion", steps=2)
    counts = merged.maps()[0].counts
    assert {key.grid: count for key, count in counts.items()} == {(4, 6, 8): 2 * 3 * 2, (2, 3, 4): 2 * 4 * 1}
    assert len(apart.maps()[0].means) == 3 * 2 + 4 * 1
    np.testing.assert_allclose(merged.attribution().maps, apart.attribution().maps, atol=1e-6)


def test_a_trace_of_the_pipeline_itself_hears_its_generate():
    pipeline = make()
    with trace(pipeline) as tracer:
        sample = pipeline.generate("large left effusion", seed=2, steps=2)
    attribution = tracer.attribution()
    assert attribution.maps.shape == (5, 4, 6, 8)
    assert attribution.word("effusion").resize(sample.geometry).values.shape == (8, 12, 16)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in pipeline.unet.modules())


def test_the_adapter_names_its_weights_and_unknown_words_as_the_pipeline_does():
    pipeline = make()
    adapter = MonaiAdapter(pipeline)
    pipeline.weights_hash = "abc"
    assert adapter.weights_hash == "abc"
    pipeline.tokenizer.unknown_words = lambda text: [f"{text}!"]
    assert adapter.unknown_words("odd") == ["odd!"]


def test_rows_of_several_noise_levels_are_heard_at_their_own(monkeypatch):
    adapter, heard, batches = MonaiAdapter(make()), [], []
    sample = adapter.generate("large left effusion", seed=2, steps=2)
    prompt = adapter.tokenize("large left effusion")
    states = renoise(adapter, sample, steps=20, used=10)
    with attached(adapter, heard.append, adapter.layers[:1]), adapter.watching(batches.append):
        together = list(passes(adapter, prompt, states, [prompt.find("left")], branch="text"))
    assert [call.timestep for call in heard] == list(states.timesteps)
    assert [len(call.rows) for call in batches] == [8, 8, 2, 2]  # of two lengths
    monkeypatch.setattr(MonaiAdapter, "mixes_levels", False)
    alone = list(passes(adapter, prompt, states, [prompt.find("left")]))
    for first, second in zip(together, alone, strict=True):
        for one, other in zip(first, second, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="one a batch"):
        adapter.predict(torch.zeros(2, *adapter.latent_shape), [400.0, 200.0], adapter.encode_prompt(prompt))
    with pytest.raises(ValueError, match="3 timesteps from 400 to 100 for a batch of 2"):
        adapter.predict(torch.zeros(2, *adapter.latent_shape), [400.0, 200.0, 100.0], adapter.encode_prompt(prompt))


def test_an_effect_inside_a_trace_does_not_confuse_it():
    adapter = MonaiAdapter(make())
    prompt = adapter.tokenize("large left effusion")
    with trace(adapter) as tracer:
        adapter.generate("large left effusion", seed=2, steps=2)
    latent = torch.zeros(1, *adapter.latent_shape)
    whole = tracer.attribution().maps
    with torch.no_grad():
        less = adapter.predict(latent, 400.0, adapter.remove(prompt, prompt.find("left")))
        full = adapter.predict(latent, 400.0, adapter.encode_prompt(prompt))
    assert not torch.allclose(less, full)
    assert np.array_equal(tracer.attribution().maps, whole)


def test_removing_after_the_encoder_is_masking_with_minus_infinity():
    adapter, calls = MonaiAdapter(make()), []
    prompt = adapter.tokenize("large left effusion")
    rows = prompt.find("left effusion")
    latent = torch.randn(1, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))

    def masked(call):
        probs = call.probs()
        probs[:, [prompt.kept[row] for row in rows]] = 0
        calls.append(call)
        return probs / probs.sum(1, keepdim=True)

    with torch.no_grad():
        less = adapter.predict(latent, 400.0, adapter.remove(prompt, rows))
        with ExitStack() as edits:
            for layer in adapter.layers:
                edits.enter_context(adapter.edit(layer, masked))
            edited = adapter.predict(latent, 400.0, adapter.encode_prompt(prompt))
    assert len(calls) == len(adapter.layers)
    assert torch.allclose(edited, less, atol=1e-5)


def test_a_network_without_text_and_a_layer_with_a_mask_are_refused():
    pipeline = make()
    adapter = MonaiAdapter(pipeline)
    pipeline.unet.get_submodule(adapter.layers[0]).causal = True
    with pytest.raises(NotImplementedError, match="causal mask"), attached(adapter, print):
        pass
    flash = make()
    flash.unet.get_submodule(adapter.layers[1]).dropout_rate = 0.1
    with (
        pytest.raises(NotImplementedError, match="drops out 0.1 of its attention"),
        attached(MonaiAdapter(flash), print),
    ):
        pass
    pipeline.unet = nn.Identity()
    with pytest.raises(ValueError, match="no cross-attention block"):
        MonaiAdapter(pipeline)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # what torch.compile imports
def test_a_compiled_network_is_refused():
    whole, part = make(), make()
    whole.unet = torch.compile(whole.unet, backend="eager")
    part.unet.middle_block.compile(backend="eager")
    for pipeline, where in ((whole, "OptimizedModule"), (part, "middle_block")):
        with pytest.raises(ValueError, match=f"^{where} was compiled .*trace it uncompiled"), trace(pipeline):
            pytest.fail("the block was entered")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_exception_on_the_way(error):
    pipeline = make()
    plain = pipeline.generate("large effusion", steps=2).image

    def stop(done, steps):
        raise error

    with pytest.raises(error), trace(pipeline) as tracer:
        pipeline.generate("large effusion", steps=2, progress=stop)
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in pipeline.modules()) == 0
    assert not pipeline._watchers
    with pytest.raises(ValueError, match="only 1 of 2 steps"):
        tracer.attribution()
    assert np.array_equal(pipeline.generate("large effusion", steps=2).image, plain)


def test_an_unknown_model_is_refused_with_what_is_known():
    with pytest.raises(TypeError, match="no adapter for Identity; known: .*LatentDiffusion.*docs/adapters.md"):
        as_adapter(nn.Identity())
