"""The network and its sampler against numbers of the public code."""

import json

import numpy as np
import pytest
import torch
from medsyn_models import CONTEXT, SHARED, WIDTH, needs_shared, small_encoder, small_model, small_network
from safetensors.torch import load_file

from voxplain.models.events import Step
from voxplain.models.medsyn import UP_ORDERS, MedSyn, MedSynNetwork
from voxplain.models.medsyn.sampling import alpha_bar, timesteps


@pytest.fixture(scope="module")
def numbers():
    with np.load(SHARED / "parity_small.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def published(up_order):
    """The network of random weights that the numbers were made with."""
    network = MedSynNetwork(8, (1, 2, 4), channels=3, cond_dim=24, attn_heads=4, up_order=up_order)
    state = load_file(SHARED / "parity_small.safetensors")
    network.load_state_dict({name.removeprefix("denoise_fn."): value for name, value in state.items()})
    return network.eval().requires_grad_(False)


@needs_shared
def test_names_and_shapes_of_the_full_size_are_the_published_ones_in_their_order():
    facts = json.loads((SHARED / "state_dict_keys.json").read_text())
    with torch.device("meta"):
        network = MedSynNetwork()
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == facts["keys"]
    assert list(network.state_dict()) == list(facts["keys"])
    assert sum(parameter.numel() for parameter in network.parameters()) == facts["n_unique_parameters"]
    for group in facts["aliased_groups"]:
        assert len({id(network.get_parameter(name)) for name in group}) == 1


@needs_shared
@pytest.mark.parametrize("up_order", UP_ORDERS)
def test_a_forward_equals_the_public_code_with_text_and_without(numbers, up_order):
    network = published(up_order)
    found = network(numbers["fwd_x"], numbers["fwd_time"], numbers["fwd_cond"])
    torch.testing.assert_close(found, numbers[f"fwd_{up_order}_out"], atol=1e-4, rtol=0)
    null = network(numbers["fwd_x"], numbers["fwd_time"], network.null_cond_emb.expand(2, -1, -1))
    torch.testing.assert_close(null, numbers[f"fwd_{up_order}_out_null"], atol=1e-4, rtol=0)
    assert (found - null).abs().max() > 1e-3


@needs_shared
@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("up_order", UP_ORDERS)
def test_trajectories_equal_the_public_code(numbers, up_order, scale):
    pipeline = MedSyn(published(up_order), small_encoder(192, 24), shape=(3, 16, 16))
    steps, noise = [], numbers["ddim_noise"]
    with pipeline.watching(lambda event: steps.append(event) if isinstance(event, Step) else None), torch.no_grad():
        last = pipeline.denoise(noise, numbers["ddim_cond"], pipeline.network.null_cond_emb, 5, float(scale))
    assert [step.timestep for step in steps] == numbers["ddim_times"].tolist()
    states = torch.stack([*(step.latent for step in steps[1:]), last])
    torch.testing.assert_close(states, numbers[f"ddim_{up_order}_w{scale}_traj"], atol=2e-3, rtol=0)
    torch.testing.assert_close((last + 1) / 2, numbers[f"ddim_{up_order}_w{scale}_final"], atol=1e-3, rtol=0)


@needs_shared
def test_the_noise_schedule_equals_the_public_code(numbers):
    found = torch.stack([alpha_bar(time) for time in range(0, 1001, 20)])
    torch.testing.assert_close(found, numbers["alpha_bar_t_over_1000_every_20"], atol=1e-6, rtol=1e-5)


def test_fifty_steps_are_fifty_one_evaluations():
    times = timesteps(51)
    assert times == tuple(float(time) for time in range(1000, -1, -20))
    assert timesteps(1) == (1000.0,)
    with pytest.raises(ValueError, match="steps = 0"):
        timesteps(0)


def test_the_orders_share_attention_up_to_the_middle_and_differ_after_it():
    volume = torch.randn(1, 4, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    text, time, outputs, middles = torch.randn(1, CONTEXT, WIDTH), torch.tensor([300.0]), [], []
    for up_order in UP_ORDERS:
        network = small_network(up_order=up_order)
        network.mid_block2.register_forward_hook(lambda *event: middles.append(event[2]))
        outputs.append(network(volume, time, text))
    assert torch.equal(*middles)
    assert not torch.allclose(*outputs, atol=0.01)


def test_slices_meet_by_convolution_only_and_frames_are_never_merged():
    network = small_network()
    cross = network.mid_cross_attn1
    volume = torch.randn(2, 16, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    text = torch.randn(2, CONTEXT, WIDTH, generator=torch.Generator().manual_seed(0))
    whole = cross(volume, text)
    alone = torch.cat([cross(volume[:, :, frame : frame + 1], text) for frame in range(3)], dim=2)
    torch.testing.assert_close(whole, alone)
    torch.testing.assert_close(whole[1:], cross(volume[1:], text[1:]))


@pytest.mark.parametrize("shape", [(3, 5, 6), (3, 4, 7)])
def test_sizes_that_cannot_be_halved_are_refused(shape):
    with pytest.raises(ValueError, match="multiples of 2"):
        small_network()(torch.zeros(1, 4, *shape), torch.zeros(1), torch.zeros(1, CONTEXT, WIDTH))
    with pytest.raises(ValueError, match="multiples of 2"):
        small_model(shape)


def test_wrong_sizes_and_a_text_encoder_of_another_model_are_refused():
    with pytest.raises(ValueError, match="multiple of the 8 groups"):
        MedSynNetwork(12)
    with pytest.raises(ValueError, match="makes 12 features of width 16, but the network reads 12 of width 20"):
        MedSyn(small_network(cond_dim=20), small_encoder())
    with pytest.raises(ValueError, match="5 channels"):
        MedSyn(small_network(channels=5), small_encoder())
