"""Teach Voxplain a network of your own: an adapter, and the check that says whether it keeps its promises.

The network is a small home-made denoiser of volumes. All that Voxplain asks of it is in the class `PainterAdapter`.
"""

import zlib

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import voxplain
from voxplain.adapters.networks import NetworkAdapter
from voxplain.adapters.pieces import read_words
from voxplain.geometry import regular
from voxplain.models.schedule import alpha_bars
from voxplain.testing import check_adapter, describe

GRID, CONTEXT, WIDTH, HEADS = (4, 6, 8), 6, 16, 2

# --- somebody's model ---


class TextAttention(nn.Module):
    num_heads, scale = HEADS, (WIDTH / HEADS) ** -0.5

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.out_proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, cells, text):  # [batch, cells, width], [batch, tokens, width]
        parts = self.to_q(cells), self.to_k(text), self.to_v(text)
        mixed = scaled_dot_product_attention(*(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts))
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = TextAttention()

    def forward(self, volume, text):  # [batch, width, *grid]
        return volume + self.attention(volume.flatten(2).mT, text).mT.unflatten(-1, volume.shape[2:])


class Painter(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.block = nn.Embedding(50, WIDTH), Block()
        self.enter, self.leave = nn.Conv3d(1, WIDTH, 3, padding=1), nn.Conv3d(WIDTH, 1, 3, padding=1)

    def forward(self, noisy, level, text):
        return self.leave(self.block(self.enter(noisy) + level / 1000, text))


# --- its adapter ---


class PainterAdapter(NetworkAdapter):
    def __init__(self, network):
        super().__init__(
            network,
            name="painter",
            layers=["block.attention"],  # module paths, in the order of the network
            latent_shape=(1, *GRID),
            geometry=regular(GRID, 5.0),  # millimeters
            alphas=alpha_bars("cosine", 1000),  # the share of signal variance at each noise level of its training
            prediction="sample",  # what it was trained to predict
            steps=4,
            guidance_scale=2.0,
        )

    def tokenize(self, prompt):  # read_text does it with a fast tokenizer of transformers
        return read_words(prompt, lambda word: 1 + zlib.crc32(word.encode()) % 49, CONTEXT)

    def encode_prompt(self, prompt):
        return self.network.words(torch.tensor([prompt.ids]))

    def denoise(self, latent, timestep, context):
        return self.network(latent, timestep, context)


# --- what it gives ---

torch.manual_seed(0)
adapter = PainterAdapter(Painter().eval())

kept = check_adapter(adapter)  # raises with the name of every promise that is broken
print(f"{len(kept)} promises kept: {', '.join(kept)}")
assert len(kept) == 17

facts = describe(adapter)
print("layers:", facts["layers"], "guidance:", facts["guidance"]["with"])
assert facts["layers"] == [{"layer": "block.attention", "grid": list(GRID), "heads": HEADS, "keys": CONTEXT}]

with voxplain.trace(adapter) as tracer:
    adapter.generate("large left effusion", seed=1)
heatmap = tracer.attribution().word("effusion")
print("the map of 'effusion' has the grid", heatmap.values.shape)
assert heatmap.values.shape == GRID
