"""A tiny model whose attention and whose effects are planted, so that every answer is known beforehand.

Each word of the vocabulary has a box of its own (`ToyAdapter.box`). Its attention lies inside that box and almost
nowhere else; what it adds to the image lies inside that box and nowhere else (to float32's rounding).
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from voxplain.adapters.base import Adapter, Use
from voxplain.adapters.hooks import projections
from voxplain.geometry import regular
from voxplain.maps import Sample
from voxplain.models.events import NULL, TEXT, Announcing, Event, Run
from voxplain.models.requests import asked_for
from voxplain.tokens import TokenizedPrompt

PIECES = ("left", "right", "small", "large", "effusion", "nodule", "opacity", "severe", "pneumo", "##thorax", "mild")
CONTEXT = 16
FAR = 30.0  # e^-30 is nothing beside one in float32
NEAR = 4.0  # a word's score above the start token's, inside its box
GAIN, OFFSET = 1000.0, -1000.0  # image = GAIN * latent + OFFSET, in HU


class ToyAttention(nn.Module):
    """Cross-attention with planted projections: a cell of box p asks for words of box p."""

    def __init__(self, places: int, heads: int) -> None:
        super().__init__()
        width = places + 1  # one channel a box, and one that every cell asks for
        self.num_heads, self.scale = heads, 1.0
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, heads * width, bias=False) for _ in range(3))
        self.out_proj = nn.Linear(heads * width, width, bias=False)
        with torch.no_grad():
            eye = torch.eye(width)
            sharp = [torch.cat([(FAR + NEAR - head) * eye[:-1], eye[-1:]]) for head in range(heads)]
            self.to_q.weight.copy_(torch.cat(sharp))
            self.to_k.weight.copy_(eye.repeat(heads, 1))
            self.to_v.weight.copy_(eye.repeat(heads, 1))
            self.out_proj.weight.copy_(eye.repeat(1, heads) / heads)

    def forward(self, x: Float[Tensor, "batch queries dim"], context: Float[Tensor, "batch tokens dim"]) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class ToyBlock(nn.Module):
    """One attention layer over a grid of cells."""

    def __init__(self, places: int, heads: int) -> None:
        super().__init__()
        self.attn2 = ToyAttention(places, heads)

    def forward(
        self, x: Float[Tensor, "batch channels *grid"], context: Tensor
    ) -> Float[Tensor, "batch channels *grid"]:
        return self.attn2(x.flatten(2).mT, context).mT.unflatten(-1, x.shape[2:])


class ToyPaint(nn.Module):
    """What the words of each box put there, summed; NaN everywhere while `failing`."""

    failing = False

    def forward(self, made: Float[Tensor, "batch places *grid"], boxes: Tensor) -> Float[Tensor, "batch 1 *grid"]:
        return (made * boxes).sum(1, keepdim=True) * (math.nan if self.failing else 1.0)


class ToyNetwork(nn.Module):
    """A denoiser that predicts the clean latent: what the words put into their boxes, and a tenth of what it sees.

    Layers alternate between the grid of the latent and one of half its resolution.
    """

    def __init__(self, boxes: Float[Tensor, "places *grid"], layers: int) -> None:
        super().__init__()
        everywhere = torch.ones_like(boxes[:1])
        self.register_buffer("boxes", torch.cat([boxes, everywhere]))
        self.layers = nn.ModuleList(ToyBlock(len(boxes), heads=2 - number % 2) for number in range(layers))
        self.paint = ToyPaint()

    boxes: Tensor

    def forward(self, latent: Float[Tensor, "batch 2 *grid"], context: Tensor) -> Float[Tensor, "batch 2 *grid"]:
        fine = self.boxes.expand(len(latent), *self.boxes.shape)
        steps = (2,) * (fine.ndim - 2)
        pool = functional.avg_pool2d if len(steps) == 2 else functional.avg_pool3d
        made = torch.zeros_like(fine[:, :-1])  # [batch, places, *grid]
        for number, block in enumerate(self.layers):
            if number % 2:
                made = made + functional.interpolate(block(pool(fine, 2), context), scale_factor=2.0)[:, :-1]
            else:
                made = made + block(fine, context)[:, :-1]
        painted = self.paint(made / len(self.layers), fine[:, :-1])
        return torch.cat([painted, 0.5 * painted], dim=1) + 0.1 * latent


class ToyAdapter(Announcing, Adapter):
    """The planted model, with the whole interface of an adapter.

    `grid` is the latent's: two or three even sizes. `guidance` runs the unconditional branch in the same batch
    ("doubled") or on its own ("two_passes"). With `single_key` the text is one pooled vector, so attention is one
    everywhere while words still act in their boxes. `nan_at` makes the network fail at that step.
    """

    def __init__(
        self,
        grid: tuple[int, ...] = (4, 8, 12),
        *,
        layers: int = 2,
        guidance: Literal["doubled", "two_passes"] = "doubled",
        single_key: bool = False,
        nan_at: int | None = None,
    ) -> None:
        self.name, self.latent_shape = "toy", (2, *grid)
        self.geometry = regular(tuple(2 * size for size in grid), 5.0)
        self.guidance, self.single_key, self.nan_at = guidance, single_key, nan_at
        self.network = ToyNetwork(torch.stack([_box(place, grid) for place in range(len(PIECES))]), layers).eval()
        self.layers = tuple(f"layers.{number}.attn2" for number in range(layers))
        self.localizing_layers = self.layers[:1]
        self._watchers: list[Callable[[Event], None]] = []

    def box(self, piece: str) -> np.ndarray:
        """Where a piece of the vocabulary attends and acts, boolean `[*grid]`; "pneumothorax" has two pieces."""
        return self.network.boxes[PIECES.index(piece)].bool().numpy()

    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        attention = self.network.get_submodule(layer)
        return projections(self, layer, self.network.get_submodule(layer.removesuffix(".attn2")), attention, use, edit)

    # the model ----------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        """Known pieces, longest first; any other word is one piece of no place."""
        found = [part for word in re.finditer(r"\w+", prompt) for part in _split(word.group().lower(), word.start())]
        pieces, spans = [piece for piece, _ in found], [span for _, span in found]
        room = CONTEXT - 2
        cut = spans[room][0] if len(spans) > room else None
        pieces, spans, free = pieces[:room], spans[:room], max(0, room - len(spans))
        ids = [3 + PIECES.index(piece) if piece in PIECES else 3 + len(PIECES) for piece in pieces]
        return TokenizedPrompt(
            text=prompt,
            ids=(1, *ids, 2, *(0,) * free),
            pieces=("[START]", *pieces, "[END]", *("[PAD]",) * free),
            spans=(None, *spans, None, *(None,) * free),
            start=0,
            end=len(ids) + 1,
            cut=cut,
        )

    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        context = torch.zeros(1, CONTEXT, len(PIECES) + 1)
        padding = prompt.ids.count(0)
        for position, token in enumerate(prompt.ids):
            if 3 <= token < 3 + len(PIECES):
                context[0, position, token - 3] = 1
            # the score that the token gets from every cell; padding gets a twentieth in all, however long it is
            context[0, position, -1] = {0: math.log(0.05 / max(padding, 1)), 1: 0.0, 2: -2.0}.get(token, -FAR)
        return context.sum(1, keepdim=True) if self.single_key else context

    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        return self.network(latent, context)

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        latent = (torch.tensor(image[None], dtype=torch.float32) - OFFSET) / GAIN
        pool = functional.avg_pool2d if latent.ndim == 4 else functional.avg_pool3d
        small = pool(latent, 2)
        return torch.cat([small, 0.5 * small], dim=1)

    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch 1 *spatial"]:
        return (GAIN * functional.interpolate(latent[:, :1], scale_factor=2.0) + OFFSET).numpy()

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        signal = 1 - timestep / 1000
        return math.sqrt(signal) * latent + math.sqrt(1 - signal) * noise

    def timesteps(self, steps: int) -> tuple[float, ...]:
        return tuple(float(level) for level in np.linspace(990, 0, steps))

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        samples: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample | list[Sample]:
        steps, scale = 4 if steps is None else steps, 2.0 if guidance_scale is None else guidance_scale
        texts, seeds = asked_for(prompt, seed, samples, steps, 1000, scale)
        prompts = tuple(self.tokenize(text) for text in texts)
        text = torch.cat([self.encode_prompt(one) for one in prompts])
        null = self.encode_prompt(self.tokenize(negative_prompt or "")).expand_as(text)
        noise = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(one)) for one in seeds]

        def guided(latent: Tensor, level: float, step: int) -> Tensor:
            self.network.paint.failing = step == self.nan_at
            rows, free = ([(number, branch) for number in range(len(latent))] for branch in (TEXT, NULL))
            if scale == 1:
                return self.predict(latent, level, text, rows=rows, step=step)
            if self.guidance == "two_passes":
                unconditional = self.predict(latent, level, null, rows=free, step=step)
                conditional = self.predict(latent, level, text, rows=rows, step=step)
            else:  # the unconditional half first, as many pipelines have it
                both = torch.cat([latent, latent]), level, torch.cat([null, text])
                unconditional, conditional = self.predict(*both, rows=free + rows, step=step).chunk(2)
            return unconditional + scale * (conditional - unconditional)

        self.announce(Run(prompts, self.geometry, steps))
        latent = self.descend(
            torch.stack(noise),
            self.timesteps(steps),
            guided,
            lambda latent, made, step: latent + (made - latent) / (steps - step),  # the last step lands on what is made
            network=self.network,
            encode=lambda: None,
            progress=progress,
        )
        common = {"model": self.name, "steps": steps, "guidance_scale": scale, "negative_prompt": negative_prompt or ""}
        made = [
            Sample(image, self.geometry, one, {**common, "prompt": one, "seed": start})
            for image, one, start in zip(self.decode(latent), texts, seeds, strict=True)
        ]
        return made[0] if isinstance(prompt, str) and samples == 1 else made


def _box(place: int, grid: tuple[int, ...]) -> Tensor:
    """One block of a lattice: two cells along the first axis, four along the others, so half-size cells fit in."""
    size = (2, *(4,) * (len(grid) - 1))
    lattice = tuple(cells // edge for cells, edge in zip(grid, size, strict=True))
    if place >= math.prod(lattice) or any(cells % 2 for cells in grid):
        raise ValueError(f"grid {grid} has no room for {len(PIECES)} boxes of {size}; give even sizes, as (4, 8, 12)")
    box, corner = torch.zeros(grid), np.unravel_index(place, lattice)
    box[tuple(slice(int(at) * edge, (int(at) + 1) * edge) for at, edge in zip(corner, size, strict=True))] = 1
    return box


def _split(word: str, start: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """A word of two pieces falls apart into them; any other is one piece."""
    heads = (piece for piece in PIECES if word.startswith(piece) and f"##{word.removeprefix(piece)}" in PIECES)
    head = next(heads, word)
    yield head, (start, start + len(head))
    if head != word:
        yield f"##{word.removeprefix(head)}", (start + len(head), start + len(word))
