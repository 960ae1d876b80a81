"""Parity: recipe `daam` on whole pipelines against DAAM's algorithm written down plainly, with explicit attention."""

from math import sqrt

import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from diffusers import EulerDiscreteScheduler, PNDMScheduler
from diffusers.models.attention_processor import AttnProcessor2_0
from torch.nn import functional

from voxplain.recipes import get
from voxplain.tracing import trace

PROMPT = "large left pneumothorax"
KEPT = 6  # start, four pieces, end
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


class Summing(AttnProcessor2_0):
    """The stock processor, and beside it softmax(QK^T / sqrt d) of the last half of the batch, summed over calls."""

    def __init__(self):
        super().__init__()
        self.sums, self.calls = 0.0, 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs):
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
        scores = torch.einsum("bqd,bkd->bqk", query, key) / sqrt(query.shape[-1])
        probs = scores.softmax(-1)  # [batch * heads, cells, tokens]
        self.sums, self.calls = self.sums + probs[len(probs) // 2 :], self.calls + 1
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask)


def plain_daam(pipe, grids, side, drop=(), **options):
    """DAAM's global map, cell by cell as its paper's code has it; `grids` are {cells: (rows, columns)}."""
    layers = [path for path, _ in pipe.unet.named_modules() if path.endswith("attn2") and "mid_block" not in path]
    stock = {path: pipe.unet.get_submodule(path).processor for path in layers}
    summing = {path: Summing() for path in layers}
    for path in layers:
        pipe.unet.get_submodule(path).set_processor(summing[path])
    call(pipe, **options)
    maps = []
    for path in layers:
        pipe.unet.get_submodule(path).set_processor(stock[path])
        for head in summing[path].sums:  # [cells, tokens]
            if len(head) in drop:
                continue
            square = head.T.reshape(1, -1, *grids[len(head)])
            maps.append(functional.interpolate(square, side, mode="bicubic", align_corners=False).clamp(min=0)[0])
    return torch.stack(maps).mean(0)[:KEPT].numpy(), {one.calls for one in summing.values()}


def call(pipe, **options):
    common = {"num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
    return pipe(PROMPT, **{**common, **options}).images


def sd64(levels=None):
    """Native size 512 pixels: latents of 64 cells, attention at 64, 32 and 16 (and in the middle at 8)."""
    network = tiny.unet((4, 8, 8, 8), heads=(1, 2, 4, 4), sample=64)
    return tiny.sd(network=network, levels=levels, scale=8)


SQUARE = {size * size: (size, size) for size in (4, 8, 16, 32, 64)}
CASES = {  # pipeline, recipe, grids by their cells, the reference grid, cells of layers that are dropped, call
    "ddim": (tiny.sd, "daam", SQUARE, (64, 64), (), {}),
    "pndm": (
        lambda: tiny.sd(levels=tiny.scheduler(PNDMScheduler, skip_prk_steps=True)),
        "daam",
        SQUARE,
        (64, 64),
        (),
        {"num_inference_steps": 4},
    ),
    "euler": (lambda: tiny.sd(levels=tiny.scheduler(EulerDiscreteScheduler)), "daam", SQUARE, (64, 64), (), {}),
    "xl": (tiny.sdxl, "daam", SQUARE, (64, 64), (), {}),
    "wide": (
        tiny.sd,
        "daam",
        {16 * 24: (16, 24), 8 * 12: (8, 12)},
        (52, 78),
        (),
        {"height": 32, "width": 48},
    ),
    "native 512": (sd64, "daam", SQUARE, (64, 64), (), {"num_inference_steps": 1}),
    "native 512, as the package": (sd64, "daam_compatible", SQUARE, (64, 64), (), {"num_inference_steps": 1}),
    "256 of native 512, as the package": (
        sd64,
        "daam_compatible",
        SQUARE,
        (64, 64),
        (8 * 8,),
        {"height": 256, "width": 256},
    ),
    "native 32, as the package": (  # 96 / 16 is 6, and 96 / 8 is 12: both are dropped, and nothing is left
        tiny.sd,
        "daam_compatible",
        SQUARE,
        None,
        (),
        {},
    ),
    "pixels of a latent of 48 cells, as the package": (
        lambda: tiny.sd(network=tiny.unet((8, 8), heads=(2, 2), sample=48)),
        "daam_compatible",
        {48 * 48: (48, 48)},
        (96, 96),
        (),
        {"num_inference_steps": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_daam_equals_the_plain_algorithm(case):
    make, recipe, grids, side, drop, options = CASES[case]
    pipe = make()
    with trace(pipe, recipe=recipe) as tracer:
        latents = call(pipe, **options)
    if side is None:
        with pytest.raises(ValueError, match="daam finds no heat maps here"):
            tracer.attribution()
        return
    attribution = tracer.attribution()
    expected, calls = plain_daam(pipe, grids, side, drop, **options)
    assert torch.equal(latents, call(pipe, **options))
    assert attribution.maps.shape == expected.shape == (KEPT, *side)
    assert np.abs(attribution.maps - expected).max() <= 5e-6 * expected.max()
    steps = options.get("num_inference_steps", 3)
    assert calls == {steps + 1 if case == "pndm" else steps} == {tracer.maps()[0].provenance["steps"]}
    assert expected.std() > 0.01 * expected.max(), "even maps would prove nothing"


def test_what_is_kept_does_not_grow_with_the_steps():
    pipe = tiny.sd()
    kept = []
    for steps in (1, 3):
        with trace(pipe, recipe="daam") as tracer:
            call(pipe, num_inference_steps=steps)
        kept.append(tracer.nbytes)
    assert kept[0] == kept[1]
    assert {key.layer.partition("_")[0] for key in tracer.maps()[0].means} == {"down", "up"}
    assert tracer.attribution().recipe == get("daam")
