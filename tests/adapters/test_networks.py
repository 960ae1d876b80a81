"""An adapter of a network of one's own: three methods are written, and all promises are kept."""

import ast
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from voxplain.adapters.networks import NetworkAdapter
from voxplain.adapters.pieces import read_words
from voxplain.geometry import regular
from voxplain.models.schedule import PREDICTIONS, alpha_bars
from voxplain.testing import check_adapter
from voxplain.tracing import trace

WIDTH, HEADS, ROOM = 8, 2, 5
PLACES = {"image": (4, 6), "volume": (2, 4, 6)}


class Attention(nn.Module):
    num_heads, scale = HEADS, (WIDTH / HEADS) ** -0.5

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, cells, text):
        parts = self.to_q(cells), self.to_k(text), self.to_v(text)
        mixed = scaled_dot_product_attention(*(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"attend": Attention()})

    def forward(self, image, text):
        return image + self.inner["attend"](image.flatten(2).mT, text).mT.unflatten(-1, image.shape[2:])


class Painter(nn.Module):
    def __init__(self, axes):
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[axes - 2]
        self.words, self.block = nn.Embedding(50, WIDTH), Block()
        self.enter, self.leave = convolution(1, WIDTH, 3, padding=1), convolution(WIDTH, 1, 3, padding=1)

    def forward(self, noisy, level, text):
        return self.leave(self.block(self.enter(noisy) + level / 1000, text))


class PainterAdapter(NetworkAdapter):
    def __init__(self, grid=(4, 6), **options):
        torch.manual_seed(0)
        given = {"layers": ["block.inner.attend"], "prediction": "sample", "steps": 3, "guidance_scale": 2.0} | options
        places = {"latent_shape": (1, *grid), "geometry": regular(grid, 2.0), "alphas": alpha_bars("cosine", 1000)}
        super().__init__(Painter(len(grid)).eval(), name="painter", **places, **given)

    def tokenize(self, prompt):
        return read_words(prompt, lambda word: 1 + zlib.crc32(word.encode()) % 49, ROOM)

    def encode_prompt(self, prompt):
        return self.network.words(torch.tensor([prompt.ids]))

    def denoise(self, latent, timestep, context):
        return self.network(latent, timestep, context)

    def block(self, layer):  # one level above the dictionary that holds the layer
        return self.network.block


@pytest.mark.parametrize("grid", PLACES.values(), ids=PLACES)
def test_all_promises_are_kept(grid):
    assert len(check_adapter(PainterAdapter(grid))) == 17


def test_the_map_is_softmax_of_the_layers_own_projections():
    adapter = PainterAdapter()
    prompt, latent = adapter.tokenize("large left effusion"), torch.randn(1, 1, 4, 6)
    context, seen = adapter.encode_prompt(prompt), []
    with adapter.observe("block.inner.attend", lambda call: seen.append(call.probs())), torch.no_grad():
        adapter.predict(latent, 500.0, context)
        cells, own = (adapter.network.enter(latent) + 0.5).flatten(2).mT, adapter.network.block.inner["attend"]
        query, key = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)[0] for part in (own.to_q(cells), own.to_k(context))
        )
    expected = (query @ key.mT * own.scale).softmax(-1).mT.unflatten(-1, (4, 6))  # [heads, tokens, rows, columns]
    torch.testing.assert_close(seen, [expected])


class Knowing(PainterAdapter):
    """Knows the image, whatever it is given, and predicts what brings it there."""

    truth = torch.linspace(-1, 1, 24).reshape(1, 1, 4, 6)

    def denoise(self, latent, timestep, context):
        alpha = self.alphas[round(timestep)]
        noise = (latent - alpha.sqrt() * self.truth) / (1 - alpha).sqrt()
        speed = alpha.sqrt() * noise - (1 - alpha).sqrt() * self.truth
        return {"v": speed, "epsilon": noise, "sample": self.truth.expand_as(latent)}[self.prediction]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_denoiser_arrives_at_the_image_that_it_knows(prediction):
    adapter = Knowing(prediction=prediction)
    made = adapter.generate(["left", "right"], steps=8, guidance_scale=3.0)
    assert [sample.prompt for sample in made] == ["left", "right"]
    for sample in made:
        np.testing.assert_allclose(sample.image, Knowing.truth[0], atol=1e-4)
        assert sample.provenance["steps"] == 8 and prediction in sample.provenance["sampler"]


def test_a_level_keeps_its_share_of_the_variance():
    adapter = PainterAdapter()
    latent, noise, alpha = torch.ones(1, 1, 4, 6), torch.full((1, 1, 4, 6), 2.0), adapter.alphas[600]
    torch.testing.assert_close(
        adapter.add_noise(latent, noise, 600.0), alpha.sqrt() + 2 * (1 - alpha).sqrt() + 0 * latent
    )
    assert adapter.timesteps(4) == (999.0, 749.0, 499.0, 249.0)


def test_the_second_pass_is_spared_without_guidance_and_no_listener_hears_it():
    adapter, runs = PainterAdapter(), []
    adapter.network.register_forward_hook(lambda *_: runs.append(None))
    for scale, passes in ((1.0, 3), (2.0, 6)):
        runs.clear()
        with trace(adapter) as tracer:
            adapter.generate("large left effusion", guidance_scale=scale, negative_prompt="small")
        assert len(runs) == passes
        assert set(tracer.maps()[0].counts.values()) == {3 * HEADS}


def test_a_bad_output_is_traced_to_its_module():
    adapter = PainterAdapter()
    adapter.network.block.inner["attend"].to_v.weight.data[0, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"step 1 of 3 \(timestep 999\).*'block.inner.attend.to_v'"):
        adapter.generate("left")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"prediction": "noise"}, "prediction = 'noise'; give one of v, epsilon, sample"),
        ({"layers": []}, "painter names no layers"),
        ({"layers": ["block.inner.attend", "block.attn2"]}, "Painter has no module block.attn2"),
    ],
    ids=str,
)
def test_what_does_not_fit_the_network_is_refused_when_it_is_made(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        PainterAdapter(**options)


@pytest.mark.parametrize(
    "wrong", [{"prompt": " "}, {"steps": 0}, {"steps": 1001}, {"samples": 0}, {"seed": [1, 2]}], ids=str
)
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(ValueError, match="give|empty"):
        PainterAdapter().generate(**{"prompt": "left", **wrong})


def test_a_compiled_network_is_refused():
    adapter = PainterAdapter()
    adapter.network.block.compile(backend="eager")
    with pytest.raises(ValueError, match="^block was compiled"), trace(adapter):
        adapter.generate("left")


def test_words_are_pieces_and_what_does_not_fit_is_named():
    prompt = read_words("Large, left effusion.", len, 4, padding=7)
    assert prompt.ids == (5, 4, 8, 7) and prompt.pieces == ("Large", "left", "effusion", "[PAD]")
    assert prompt.find("effusion") == (2,) and prompt.padding == (3,) and prompt.truncated == ""
    assert read_words("Large, left effusion.", len, 2).truncated == "effusion."


def test_the_adapter_that_the_page_teaches_has_30_lines_and_is_the_one_that_runs():
    docs = Path(__file__).parents[2] / "docs"
    source = (docs / "examples" / "write_an_adapter.py").read_text()
    [taught] = [node for node in ast.walk(ast.parse(source)) if getattr(node, "name", "") == "PainterAdapter"]
    code = ast.get_source_segment(source, taught)
    assert code is not None and len(code.splitlines()) <= 30
    assert code in (docs / "adapters.md").read_text()
