"""Maps of what is owed to a word, by taking the image apart: occlusion, gradients, and layers.

Each explains one number for a word w, for an image whose latent is x in place of the given x0, under the noise that
made z of x0: z(x) = z + (what is left of x - x0 at this noise level).

    evidence  E_w(x) = (|x - x'(z(x), c without w)|^2 - |x - x'(z(x), c)|^2) / |x0 - x'(z, c)|^2
    share     S_w(x) = |f(z(x), c) - f(z(x), c without w)|^2 / |f(z, c)|^2

Sums over channels and cells; f is the prediction and x' the clean latent that it stands for. The evidence is how much
better the image is told from noise with the word than without it: the pointwise information of Kong et al. (ICLR 2024),
by which diffusion classifiers tell classes apart (Li et al., ICCV 2023). The share is what the word makes up of the
prediction: at guidance 1, what guidance by this word alone would add. That these are taken apart is ours. On `dev`
(bench/states.py, docs/grounding.md) occlusion and gradients find more by evidence, layers by share; where there is no
evidence, as by a model that DDIM does not apply to, or for states that are not of the image, all explain the share.

All maps are means over the given states. `backward` counts rows of the network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters.base import Adapter
from voxplain.attention import AttentionCall
from voxplain.maps import Sample, Trajectory
from voxplain.models.events import TEXT
from voxplain.models.schedule import estimates
from voxplain.resampling import resample
from voxplain.studies.effect import PROBE, batched, removal
from voxplain.studies.inverting import alpha_bar, prediction
from voxplain.studies.support import check
from voxplain.tokens import TokenizedPrompt

LIMIT = 16  # rows that the network takes at once
POINTS = 16  # on the path of integrated gradients
BLOCKS = 4  # along each axis, for occlusion
EXPLAINED = ("evidence", "share")

Maps = Float[np.ndarray, "words *grid"]
Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A state of the image, its noise level, how much of the image is left in it, and what scores are relative to."""

    state: Float[Tensor, "1 channels *grid"]
    level: float
    signal: float
    size: Tensor


class Owed:
    """The scores of words or phrases of a prompt, given by their rows, at the states of an image.

    Those whose contexts are equally long run together. `explains` is "evidence" or "share".
    """

    def __init__(
        self,
        adapter: Adapter,
        prompt: TokenizedPrompt,
        spans: Sequence[tuple[int, ...]],
        sample: Sample,
        states: Trajectory,
        limit: int = LIMIT,
        explains: str = "share",
    ) -> None:
        if explains not in EXPLAINED:
            raise ValueError(f"explains = {explains!r}; give {' or '.join(EXPLAINED)}")
        self.adapter, self.states, self.limit, self.backward = adapter, states, limit, 0
        self.words, self.grid, self.explains = len(spans), tuple(states.latents.shape[2:]), explains
        self.how = removal(adapter, prompt)
        with torch.no_grad():
            self.whole = adapter.encode_prompt(prompt)
            self.less = [adapter.remove(prompt, rows, self.how) for rows in spans]
            self.latent = adapter.encode_image(sample.image).float()  # [1, channels, *grid]
        self.groups = batched([context.shape[1] for context in self.less], limit)

    def each(self, explains: str | None = None) -> Iterator[Place]:
        """The states; ValueError where there is nothing to be relative to."""
        one, explains = torch.ones_like(self.latent), explains or self.explains
        for values, level in zip(self.states.latents, self.states.timesteps, strict=True):
            state = torch.tensor(values, device=self.latent.device)[None]
            with torch.no_grad():
                found = self.predict(state, level, self.whole)
                if explains == "evidence":
                    found = self.latent - self._clean(state, found, level)
                size = found.square().sum()
            if not size > 0:  # NaN fails this too
                what = "what it leaves of the image" if explains == "evidence" else "the prediction"
                raise ValueError(f"{what} at timestep {level:g} has size {size:g}: nothing to be relative to")
            yield Place(state, level, float(self.adapter.add_noise(one, torch.zeros_like(one), level).mean()), size)

    def predict(
        self, states: Float[Tensor, "rows channels *grid"], level: float, context: Tensor, branch: str = PROBE
    ) -> Float[Tensor, "rows channels *grid"]:
        """The prediction for each row, float32; a context of one row serves all."""
        self.backward += len(states) * torch.is_grad_enabled()
        rows = [(number, branch) for number in range(len(states))]
        return self.adapter.predict(states.to(self.whole), level, context, rows=rows).float()

    def scores(
        self, images: Float[Tensor, "rows channels *grid"], place: Place, lessened: Sequence[Tensor]
    ) -> Float[Tensor, "contexts rows"]:
        """The score of each of the contexts for each of the images (latents), which share the state's noise."""
        states = place.state + place.signal * (images - self.latent)
        full = self.predict(states, place.level, self.whole)
        made = []
        for context in lessened:
            less = self.predict(states, place.level, context)
            if self.explains == "share":
                made.append(_sum((full - less).square()))
            else:
                missing = (images - self._clean(states, one, place.level) for one in (less, full))
                before, after = (_sum(one.square()) for one in missing)
                made.append(before - after)
        return torch.stack(made) / place.size

    def lessened(self, words: Sequence[int]) -> Float[Tensor, "words tokens dim"]:
        """The contexts without each of these words."""
        return torch.cat([self.less[word] for word in words])

    def _clean(self, states: Tensor, predictions: Tensor, level: float) -> Tensor:
        alpha = alpha_bar(self.adapter, self.latent, level)
        return estimates(states, predictions, alpha, prediction(self.adapter))[0]


def explained(adapter: Adapter, profile: str) -> str:
    """What can be explained: "evidence", but "share" where DDIM does not apply or the states are not of the image."""
    if profile == "generate":
        return "share"
    try:
        check(adapter)
    except ValueError:
        return "share"
    return "evidence"


def occlusion(owed: Owed, *, blocks: int = BLOCKS) -> tuple[Maps, Facts]:
    """How much the score falls when a block of the image becomes the mean of the rest of it, under the same noise.

    After Zeiler and Fergus (2014). No text takes part in the filling. `blocks` along each axis, one at a time; a rise
    counts as no fall. Costs (words + 1) * (blocks^axes + 1) rows a state.
    """
    if blocks < 2:
        raise ValueError(f"blocks = {blocks}; give 2 or more along each axis")
    edges = [np.linspace(0, size, min(blocks, size) + 1).astype(int) for size in owed.grid]
    regions = [(slice(None), *block) for block in product(*([slice(*pair) for pair in pairwise(e)] for e in edges))]
    latent = owed.latent[0]
    images = latent.repeat(len(regions) + 1, *(1,) * latent.ndim)  # the last one: nothing is occluded
    for image, region in zip(images, regions, strict=False):
        rest = torch.ones_like(latent)
        rest[region] = 0
        fill = (latent * rest).flatten(1).sum(1) / rest.flatten(1).sum(1).clamp(min=1)  # [channels]
        image[region] = fill.view(-1, *(1,) * len(owed.grid))
    falls = torch.zeros(owed.words, len(regions), device=latent.device)
    with torch.no_grad():
        for place in owed.each():
            made = torch.cat([owed.scores(rows, place, owed.less) for rows in images.split(owed.limit)], 1)
            falls += (made[:, -1:] - made[:, :-1]) / len(owed.states.timesteps)
    maps = np.zeros((owed.words, *owed.grid), np.float32)
    for fall, region in zip(falls.clamp(min=0).T.cpu().numpy(), regions, strict=True):
        maps[region] = fall.reshape(-1, *(1,) * len(owed.grid))
    return maps, {"blocks": blocks, "regions": len(regions)}


def gradient(owed: Owed) -> tuple[Maps, Facts]:
    """The norm over channels of the score's gradient (Simonyan et al. 2014); 2 * words rows a state, both ways."""
    made = torch.zeros(owed.words, *owed.grid, device=owed.latent.device)
    for place in owed.each():
        for group in owed.groups:
            given = owed.latent.expand(len(group), *owed.latent.shape[1:]).clone().requires_grad_()
            with torch.enable_grad():
                (score,) = owed.scores(given, place, [owed.lessened(group)])
                (slope,) = torch.autograd.grad(score.sum(), given)
            made[group] += slope.norm(dim=1) / len(owed.states.timesteps)
    return made.cpu().numpy(), {}


def integrated_gradients(owed: Owed, *, points: int = POINTS) -> tuple[Maps, Facts]:
    """From the state's noise without the image to the state, by Captum; sum over channels, then absolute.

    Sundararajan et al. (2017). Costs 2 * words * (points + 2) rows a state. "completeness" is the error of the sums
    over cells as a share of what the score rises by on the way: 0 is exact.
    """
    try:
        integrate = import_module("captum.attr").IntegratedGradients
    except ImportError as error:
        raise ImportError("integrated gradients need Captum; run `pip install 'voxplain[captum]'`") from error
    made, off, risen = torch.zeros(owed.words, *owed.grid, device=owed.latent.device), 0.0, 0.0
    for place in owed.each():

        def score(given: Tensor, less: Tensor, place: Place = place) -> Tensor:
            return owed.scores(given, place, [less])[0]

        for group in owed.groups:
            image = owed.latent.expand(len(group), *owed.latent.shape[1:])
            parts, delta = integrate(score).attribute(
                image,
                torch.zeros_like(image),
                additional_forward_args=(owed.lessened(group),),
                n_steps=points,
                internal_batch_size=max(owed.limit, len(group)),
                return_convergence_delta=True,
            )
            off += float(delta.abs().sum())
            risen += float((parts.flatten(1).sum(1) - delta).abs().sum())
            made[group] += parts.sum(1).abs().float() / len(owed.states.timesteps)
    return made.cpu().numpy(), {"points": points, "completeness": off / risen if risen else None}


def grad_cam(owed: Owed, *, layers: Sequence[str] | None = None) -> tuple[Maps, Facts]:
    """relu(sum over heads and tokens of A * mean over cells of dS_w / dA), S the share, mean over layers.

    Grad-CAM (Selvaraju et al. 2017) with the attention probabilities A of a layer in place of its channels, and
    f(z, c without w) held fixed. `layers` are by default those that localize, else all. For each of them and each state
    2 * words rows forward and words rows backward.
    """
    adapter = owed.adapter
    chosen = tuple(layers or adapter.localizing_layers or adapter.layers)
    sums: dict[tuple[int, ...], np.ndarray] = {}
    for place in owed.each("share"):
        state, level = place.state, place.level
        for layer, group in product(chosen, owed.groups):
            probs: dict[int, Tensor] = {}  # [heads, tokens, *grid] of each row

            def keep(call: AttentionCall, probs: dict[int, Tensor] = probs) -> Tensor:
                probs[call.sample] = call.probs().detach().requires_grad_()
                return probs[call.sample]

            given = state.expand(len(group), *state.shape[1:])
            with torch.no_grad():
                less = owed.predict(given, level, owed.lessened(group))
            with torch.enable_grad(), adapter.edit(layer, keep):
                shares = _sum((owed.predict(given, level, owed.whole, TEXT) - less).square()) / place.size
                slopes = torch.autograd.grad(shares.sum(), [probs[row] for row in range(len(group))])
            for row, (word, slope) in enumerate(zip(group, slopes, strict=True)):
                weights = slope.flatten(2).mean(2).unflatten(1, (-1, *(1,) * (slope.ndim - 2)))  # [heads, tokens, 1..]
                values = (weights * probs[row].detach()).sum((0, 1)).relu().cpu().numpy()  # [*grid]
                total = sums.setdefault(values.shape, np.zeros((owed.words, *values.shape), np.float32))
                total[word] += values / (len(chosen) * len(owed.states.timesteps))
    finest = max(sums, key=np.prod)
    made = np.sum([resample(total, finest) for total in sums.values()], axis=0)
    return made, {"layers": list(chosen), "explains": "share"}


METHODS: Mapping[str, Callable[..., tuple[Maps, Facts]]] = {
    "occlusion": occlusion,
    "gradient": gradient,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
}


def _sum(values: Float[Tensor, "rows channels *grid"]) -> Float[Tensor, " rows"]:
    return values.flatten(1).sum(1)
