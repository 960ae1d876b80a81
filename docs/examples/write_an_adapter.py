"""Teach Voxplain a network of your own: an adapter, and the check that says whether it keeps its promises.

The network is a small home-made denoiser of volumes. All that Voxplain asks of it is in the class `PainterAdapter`.
"""

import re
import zlib
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import voxplain
from voxplain.adapters.base import Adapter, announced_rows, projections
from voxplain.geometry import regular
from voxplain.maps import Sample
from voxplain.models.events import Call, Run, Step
from voxplain.testing import check_adapter, describe
from voxplain.tokens import TokenizedPrompt

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


class PainterAdapter(Adapter):
    name, layers, localizing_layers = "painter", ("block.attention",), ()
    latent_shape, geometry = (1, *GRID), regular(GRID, 5.0)

    def __init__(self, model):
        self.model, self.watchers = model, []

    def observe(self, layer, listener):
        return self.hear(layer, listener, edit=False)

    def edit(self, layer, editor):
        return self.hear(layer, editor, edit=True)

    def hear(self, layer, use, edit):  # hooks on to_q, to_k and to_v; the block is where the grid is still a grid
        if layer not in self.layers:
            raise KeyError(f"painter has no layer {layer!r}; it has {', '.join(self.layers)}")
        return projections(self, layer, self.model.block, self.model.get_submodule(layer), use, edit)

    @contextmanager
    def watching(self, callback):
        self.watchers.append(callback)
        try:
            yield
        finally:
            self.watchers.remove(callback)

    def announce(self, event):
        for watcher in tuple(self.watchers):
            watcher(event)

    def tokenize(self, prompt):
        words = list(re.finditer(r"\w+", prompt))[:CONTEXT]
        free = CONTEXT - len(words)
        ids = (*(1 + zlib.crc32(word.group().lower().encode()) % 49 for word in words), *(0,) * free)
        pieces = (*(word.group() for word in words), *("[PAD]",) * free)
        return TokenizedPrompt(prompt, ids, pieces, (*(word.span() for word in words), *(None,) * free), start=None)

    def encode_prompt(self, prompt):
        return self.model.words(torch.tensor([prompt.ids]))

    def predict(self, latent, timestep, context, *, rows=None, step=0):
        self.announce(Call(announced_rows(rows, len(latent)), step, float(timestep)))  # whose rows are about to run
        return self.model(latent, timestep, context.expand(len(latent), -1, -1))

    def encode_image(self, image):  # this model works on the voxels; the image is its own latent
        return torch.tensor(image)[None]

    def decode(self, latent):
        return latent.numpy()

    def add_noise(self, latent, noise, timestep):
        return latent + timestep / 1000 * noise

    def timesteps(self, steps):
        return tuple(1000.0 * (steps - step) / steps for step in range(steps))

    @torch.no_grad()
    def generate(
        self,
        prompt,
        *,
        seed=0,
        steps=None,
        guidance_scale=None,
        negative_prompt=None,
        samples=1,
        progress=None,
    ):
        steps, scale = steps or 4, 2.0 if guidance_scale is None else guidance_scale
        texts = [text for text in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(samples)]
        seeds = [seed + number for number in range(len(texts))] if isinstance(seed, int) else seed
        prompts = tuple(self.tokenize(text) for text in texts)
        context = torch.cat([self.encode_prompt(one) for one in prompts])
        null = self.encode_prompt(self.tokenize(negative_prompt or ""))
        latent = torch.stack([torch.randn(1, *GRID, generator=torch.Generator().manual_seed(one)) for one in seeds])
        rows = {branch: [(number, branch) for number in range(len(texts))] for branch in ("text", "null")}

        self.announce(Run(prompts, self.geometry, steps))
        for step, level in enumerate(self.timesteps(steps)):
            given = self.predict(latent, level, context, rows=rows["text"], step=step)
            free = self.predict(latent, level, null, rows=rows["null"], step=step)  # a pass that no listener hears
            guided = free + scale * (given - free)
            self.announce(Step(step, level, latent, guided, tuple(range(len(texts)))))
            latent = latent + (guided - latent) / (steps - step)
            if progress:
                progress(step + 1, steps)
        made = [Sample(image, self.geometry, text) for image, text in zip(self.decode(latent), texts, strict=True)]
        return made[0] if isinstance(prompt, str) and samples == 1 else made


# --- what it gives ---

torch.manual_seed(0)
adapter = PainterAdapter(Painter().eval())

kept = check_adapter(adapter)  # raises with the name of every promise that is broken
print(f"{len(kept)} promises kept: {', '.join(kept)}")
assert len(kept) == 16

facts = describe(adapter)
print("layers:", facts["layers"], "guidance:", facts["guidance"]["with"])
assert facts["layers"] == [{"layer": "block.attention", "grid": list(GRID), "heads": HEADS, "keys": CONTEXT}]

with voxplain.trace(adapter) as tracer:
    adapter.generate("large left effusion", seed=1)
heatmap = tracer.attribution().word("effusion")
print("the map of 'effusion' has the grid", heatmap.values.shape)
assert heatmap.values.shape == GRID
