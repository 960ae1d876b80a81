"""MedSyn in miniature under observation: what is heard, at which grid, and that it equals the public code."""

import numpy as np
import pytest
import torch
from medsyn_models import CONTEXT, SHARED, WIDTH, needs_shared, small_encoder, small_model
from safetensors.torch import load_file
from torch import nn

from voxplain.adapters.base import as_adapter
from voxplain.adapters.medsyn import MedSynAdapter
from voxplain.adapters.slices import Parts, merge, sliced_projections, split
from voxplain.models.events import Call, Step
from voxplain.models.medsyn import UP_ORDERS, MedSyn, MedSynNetwork
from voxplain.testing import check_adapter
from voxplain.tracing import attached, trace

LAYERS = tuple(f"mid_cross_attn{stage}.fn.fn" for stage in (1, 2, 3, 4))
PROMPT = "large left effusion"


def test_the_pipeline_keeps_all_promises():
    assert len(check_adapter(as_adapter(small_model()))) == 17


def test_layers_are_the_four_text_attentions_and_no_self_attention():
    adapter = as_adapter(small_model())
    assert isinstance(adapter, MedSynAdapter)
    assert adapter.layers == LAYERS and adapter.localizing_layers == ()


def test_the_grid_is_slices_by_coarse_rows_and_columns():
    adapter, calls = MedSynAdapter(small_model((3, 4, 6))), []
    with attached(adapter, calls.append):
        adapter.generate(PROMPT, steps=1)
    assert {call.grid for call in calls} == {(3, 2, 3)}
    assert {call.key.shape for call in calls} == {(2, CONTEXT, 32)}
    with trace(adapter) as tracer:
        sample = adapter.generate(PROMPT, steps=2)
    attribution = tracer.attribution()
    assert attribution.maps.shape == (5, 3, 2, 3)
    assert attribution.geometry.spacing == pytest.approx((292 / 3, 316 / 2, 316 / 3))
    assert attribution.word("effusion").resize(sample.geometry, "nearest").values.shape == (3, 4, 6)
    assert attribution.padding.mean() > 0.1, "padding positions are keys like any other"


@needs_shared
@pytest.mark.parametrize("up_order", UP_ORDERS)
def test_probabilities_equal_the_public_code(up_order):
    network = MedSynNetwork(8, (1, 2, 4), channels=3, cond_dim=24, attn_heads=4, up_order=up_order)
    state = load_file(SHARED / "parity_small.safetensors")
    network.load_state_dict({name.removeprefix("denoise_fn."): value for name, value in state.items()})
    numbers = {name: torch.from_numpy(array) for name, array in np.load(SHARED / "parity_small.npz").items()}
    network.eval().requires_grad_(False)
    encoder = small_encoder(192, 24)

    adapter, heard = MedSynAdapter(MedSyn(network, encoder, shape=(4, 16, 24))), {}
    with attached(adapter, lambda call: heard.update({(call.layer, call.sample): call.probs()})):
        for row, time in enumerate(numbers["fwd_time"].tolist()):
            one = slice(row, row + 1)
            adapter.predict(numbers["fwd_x"][one], time, numbers["fwd_cond"][one], rows=[(row, "text")])
    found = torch.stack([torch.stack([heard[layer, row] for row in (0, 1)]) for layer in LAYERS])
    # [layers, batch, heads, tokens, frames, rows, columns] -> [layers, batch, frames, heads, cells, tokens]
    torch.testing.assert_close(found.flatten(5).permute(0, 1, 4, 2, 5, 3), numbers["fwd_attn"], atol=1e-4, rtol=0)

    pipeline = MedSyn(network, encoder, shape=(3, 16, 16))
    adapter, sums, states = MedSynAdapter(pipeline), {1: [], 3: [], "null": []}, []
    for scale in (1, 3):
        states.clear()
        with (
            attached(adapter, lambda call, to=sums[scale]: to.append(call.probs().mean(0))),
            pipeline.watching(lambda event: states.append(event) if isinstance(event, Step) else None),
        ):
            pipeline.denoise(numbers["ddim_noise"], numbers["ddim_cond"], network.null_cond_emb, 5, float(scale))
    with attached(adapter, lambda call: sums["null"].append(call.probs().mean(0))):
        for state in states:
            adapter.predict(state.latent, state.timestep, network.null_cond_emb)
    for key, name in ((1, "w1_attn_agg"), (3, "w3_attn_agg"), ("null", "w3_attn_null_agg")):
        assert len(sums[key]) == 5 * 4, "one call a layer and evaluation, of the text alone"
        maps = torch.stack(sums[key])  # [calls, tokens, frames, rows, columns]
        torch.testing.assert_close(
            maps.mean(0).flatten(2).permute(1, 2, 0)[None], numbers[f"ddim_{up_order}_{name}"], atol=2e-3, rtol=0
        )
        if key != "null":
            each = numbers[f"ddim_{up_order}_w{key}_attn_headmean"]  # [steps, layers, 1, frames, cells, tokens]
            ours = maps.unflatten(0, (5, 4)).flatten(4).permute(0, 1, 3, 4, 2)[:, :, None]
            torch.testing.assert_close(ours, each, atol=2e-3, rtol=0)


def test_what_is_heard_is_what_the_layer_mixes():
    adapter, calls, seen = MedSynAdapter(small_model()), [], {}
    own = adapter.pipeline.network.get_submodule(LAYERS[1])
    own.to_kv.register_forward_hook(lambda *event: seen.update(value=event[2]))
    own.to_out.register_forward_pre_hook(lambda *event: seen.update(mixed=event[1][0]))
    latent = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    context = torch.cat([adapter.encode_prompt(adapter.tokenize(text)) for text in (PROMPT, "small nodule")])
    with torch.no_grad(), attached(adapter, calls.append, LAYERS[1:2]):
        adapter.predict(latent, 400.0, context)
    for call in calls:
        probs = call.probs()  # [heads, tokens, frames, rows, columns]
        assert probs.amax(1).mean() > 1.5 / CONTEXT, "uniform attention would prove nothing"
        value = seen["value"][call.sample].chunk(2, -1)[1].unflatten(-1, (2, -1))  # [tokens, heads, dim]
        mixed = torch.einsum("htfrc,thd->fhdrc", probs, value).flatten(1, 2)
        torch.testing.assert_close(mixed, seen["mixed"].unflatten(0, (2, 3))[call.sample], atol=1e-5, rtol=1e-4)


def test_an_edit_of_one_sample_and_slice_stays_there():
    adapter = MedSynAdapter(small_model())
    own, outputs = adapter.pipeline.network.get_submodule(LAYERS[0]), []
    own.register_forward_hook(lambda *event: outputs.append(event[2]))
    latent = torch.randn(2, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    context = adapter.encode_prompt(adapter.tokenize(PROMPT))

    def only_first_token_in_slice_one(call):
        if call.sample == 0:
            return None
        probs = call.probs()
        probs[:, :, 1] = 0
        probs[:, 0, 1] = 1
        return probs

    with torch.no_grad():
        adapter.predict(latent, 400.0, context)
        with adapter.edit(LAYERS[0], only_first_token_in_slice_one):
            adapter.predict(latent, 400.0, context)
    changed = (outputs[0] - outputs[1]).abs().amax((1, 3, 4)) > 1e-4  # [batch, frames]
    assert changed.tolist() == [[False] * 3, [False, True, False]]


def test_removing_after_the_encoder_is_masking_with_minus_infinity():
    adapter = MedSynAdapter(small_model())
    prompt = adapter.tokenize(PROMPT)
    rows = prompt.find("left effusion")
    latent = torch.randn(1, *adapter.latent_shape, generator=torch.Generator().manual_seed(1))
    gone = [prompt.kept[row] for row in rows]

    def masked(call):
        probs = call.probs()
        probs[:, gone] = 0
        return probs / probs.sum(1, keepdim=True)

    with torch.no_grad():
        less = adapter.predict(latent, 400.0, adapter.remove(prompt, rows))
        edits = [adapter.edit(layer, masked) for layer in LAYERS]
        for edit in edits:
            edit.__enter__()
        edited = adapter.predict(latent, 400.0, adapter.encode_prompt(prompt))
        for edit in edits:
            edit.__exit__(None, None, None)
    torch.testing.assert_close(edited, less, atol=1e-4, rtol=1e-4)


def test_the_maps_know_nothing_of_guidance_after_the_first_step():
    """The first evaluation has the same input whatever the guidance, so its maps are equal to the last bit."""
    adapter, maps = MedSynAdapter(small_model()), []
    for scale in (1.0, 3.0):
        with trace(adapter, window=(0, 0)) as tracer:
            adapter.generate(PROMPT, seed=2, guidance_scale=scale)
        maps.append(tracer.attribution().maps)
    assert np.array_equal(*maps)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # what torch.compile imports
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_after_an_exception_on_the_way(error):
    model = small_model()
    plain = model.generate(PROMPT, steps=2).image

    def stop(*_):
        raise error

    with pytest.raises(error), trace(model) as tracer:
        model.generate(PROMPT, steps=2, progress=stop)
    assert sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.network.modules()) == 0
    assert not model._watchers
    with pytest.raises(ValueError, match="only 1 of 2 steps"):
        tracer.attribution()
    assert np.array_equal(model.generate(PROMPT, steps=2).image, plain)


def test_a_compiled_network_is_refused():
    model = small_model()
    model.network.mid_cross_attn1.compile(backend="eager")
    with pytest.raises(ValueError, match="^mid_cross_attn1.* was compiled .*trace it uncompiled"), trace(model):
        pytest.fail("the block was entered")


def test_a_batch_that_nobody_announced_is_refused():
    adapter = MedSynAdapter(small_model())
    volume, text = torch.zeros(1, *adapter.latent_shape), torch.zeros(1, CONTEXT, WIDTH)
    with pytest.raises(RuntimeError, match="3 slices that were not announced"), attached(adapter, print):
        adapter.pipeline.network(volume, torch.zeros(1), text)


# the same code for any attention that folds slices into its batch ---------------------------------------------------


class Linear(nn.Module):
    """Projections as in diffusers: linear, keys repeated for every slice."""

    def __init__(self, heads=2, dim=4, width=8):
        super().__init__()
        self.heads, self.norm = heads, nn.Identity()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(width, heads * dim) for _ in range(4))

    def forward(self, slices, text):  # [slices, channels, rows, columns], [slices, tokens, width]
        line = self.norm(slices).flatten(2).mT
        parts = [make(given) for make, given in ((self.to_q, line), (self.to_k, text), (self.to_v, text))]
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        mixed = (query @ key.mT * 0.5).softmax(-1) @ value
        return self.to_out(mixed.transpose(1, 2).flatten(2))


def test_linear_projections_with_keys_a_slice_are_read_and_edited_alike():
    torch.manual_seed(0)
    adapter, attention, calls = MedSynAdapter(small_model()), Linear(), []
    parts = Parts(attention.norm, attention.to_q, attention.to_k, attention.to_v, attention.to_out, 2, 0.5)
    slices, text = torch.randn(6, 8, 2, 5), torch.randn(2, 7, 8).repeat_interleave(3, 0)
    call = Call(((0, "null"), (0, "text")), 4, 300.0)
    with torch.no_grad():
        plain = attention(slices, text)
        with sliced_projections(adapter, "layer", parts, calls.append, edit=False):
            adapter.pipeline.announce(call)
            assert torch.equal(attention(slices, text), plain)
        with sliced_projections(adapter, "layer", parts, lambda call: call.probs().flip(1), edit=True):
            adapter.pipeline.announce(call)
            edited = attention(slices, text)
        reversed_keys = attention(slices, text)
    assert [(one.sample, one.branch, one.grid, one.step) for one in calls] == [(0, "text", (3, 2, 5), 4)]
    key = attention.to_k(text[3]).unflatten(-1, (2, 4)).transpose(0, 1)
    torch.testing.assert_close(calls[0].key, key)
    query = attention.to_q(slices[3:].flatten(2).mT).unflatten(-1, (2, 4)).permute(2, 0, 1, 3).flatten(1, 2)
    torch.testing.assert_close(calls[0].query, query)
    assert torch.equal(edited[:3], plain[:3]) and not torch.allclose(edited[3:], plain[3:], atol=1e-3)
    assert torch.equal(reversed_keys, plain)


@pytest.mark.parametrize("shape", [(3, 10, 8), (3, 8, 2, 5)], ids=["linear", "convolution"])
def test_splitting_undoes_merging(shape):
    given = torch.randn(shape)
    assert merge(given, 2).shape == (2, 30, 4)
    assert torch.equal(split(merge(given, 2), given), given)
