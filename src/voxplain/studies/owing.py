"""Maps of what is owed to a word, by taking the image apart: occlusion, gradients, and layers.

Each explains one number for a word w at a state z of an image, the share of the prediction that the word makes up
(ours; at guidance 1 the guided prediction is the conditional one, and the difference is what guidance by this word
alone would add):

    S_w(z') = |f(z', c) - f(z', c without w)|^2 / |f(z, c)|^2,   sums over channels and cells

z' is z where nothing was changed. All maps are means over the given states. `backward` counts rows of the network.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from voxplain.resampling import resample
from voxplain.studies.effect import PROBE, batched, removal
from voxplain.tokens import TokenizedPrompt

LIMIT = 16  # rows that the network takes at once
POINTS = 16  # on the path of integrated gradients
BLOCKS = 4  # along each axis, for occlusion

Maps = Float[np.ndarray, "words *grid"]
Facts = dict[str, Any]


class Owed:
    """S_w of words or phrases of a prompt, given by their rows, at the states of an image.

    Those whose contexts are equally long run together.
    """

    def __init__(
        self,
        adapter: Adapter,
        prompt: TokenizedPrompt,
        spans: Sequence[tuple[int, ...]],
        sample: Sample,
        states: Trajectory,
        limit: int = LIMIT,
    ) -> None:
        self.adapter, self.states, self.limit, self.backward = adapter, states, limit, 0
        self.words, self.grid = len(spans), tuple(states.latents.shape[2:])
        self.how = removal(adapter, prompt)
        with torch.no_grad():
            self.whole = adapter.encode_prompt(prompt)
            self.less = [adapter.remove(prompt, rows, self.how) for rows in spans]
            self.latent = adapter.encode_image(sample.image).float()  # [1, channels, *grid]
        self.groups = batched([context.shape[1] for context in self.less], limit)

    def each(self) -> Iterator[tuple[Float[Tensor, "1 channels *grid"], float, Tensor]]:
        """Each state with its noise level and the squared size of its prediction."""
        for values, level in zip(self.states.latents, self.states.timesteps, strict=True):
            state = torch.tensor(values, device=self.latent.device)[None]
            with torch.no_grad():
                size = self.predict(state, level, self.whole).square().sum()
            if not size > 0:  # NaN fails this too
                raise ValueError(f"the prediction at timestep {level:g} has size {size:g}: nothing to be relative to")
            yield state, level, size

    def predict(
        self, states: Float[Tensor, "rows channels *grid"], level: float, context: Tensor, branch: str = PROBE
    ) -> Float[Tensor, "rows channels *grid"]:
        """The prediction for each row, float32; a context of one row serves all."""
        self.backward += len(states) * torch.is_grad_enabled()
        rows = [(number, branch) for number in range(len(states))]
        return self.adapter.predict(states.to(self.whole), level, context, rows=rows).float()

    def lessened(self, words: Sequence[int]) -> Float[Tensor, "words tokens dim"]:
        """The contexts without each of these words."""
        return torch.cat([self.less[word] for word in words])

    def signal(self, level: float) -> float:
        """How much of the image's latent is left at a noise level."""
        one = torch.ones_like(self.latent)
        return float(self.adapter.add_noise(one, torch.zeros_like(one), level).mean())


def occlusion(owed: Owed, *, blocks: int = BLOCKS) -> tuple[Maps, Facts]:
    """How much S_w falls when a block of the image becomes the mean of the rest of it, under the noise that was there.

    After Zeiler and Fergus (2014). No text takes part in the filling. `blocks` along each axis, one at a time; a rise
    counts as no fall. Costs (words + 1) * (blocks^axes + 1) rows a state.
    """
    if blocks < 2:
        raise ValueError(f"blocks = {blocks}; give 2 or more along each axis")
    edges = [np.linspace(0, size, min(blocks, size) + 1).astype(int) for size in owed.grid]
    regions = [(slice(None), *block) for block in product(*([slice(*pair) for pair in pairwise(e)] for e in edges))]
    latent = owed.latent[0]
    change = torch.zeros(len(regions) + 1, *latent.shape, device=latent.device)  # the last one: nothing is occluded
    for changed, region in zip(change, regions, strict=False):
        rest = torch.ones_like(latent)
        rest[region] = 0
        fill = (latent * rest).flatten(1).sum(1) / rest.flatten(1).sum(1).clamp(min=1)  # [channels]
        changed[region] = fill.view(-1, *(1,) * len(owed.grid)) - latent[region]
    falls = torch.zeros(owed.words, len(regions), device=latent.device)
    with torch.no_grad():
        for state, level, size in owed.each():
            shares = []
            for rows in (state + owed.signal(level) * change).split(owed.limit):
                full = owed.predict(rows, level, owed.whole)
                shares.append(torch.stack([_share(full, owed.predict(rows, level, one), size) for one in owed.less]))
            made = torch.cat(shares, 1)  # [words, regions + 1]
            falls += (made[:, -1:] - made[:, :-1]) / len(owed.states.timesteps)
    maps = np.zeros((owed.words, *owed.grid), np.float32)
    for fall, region in zip(falls.clamp(min=0).T.cpu().numpy(), regions, strict=True):
        maps[region] = fall.reshape(-1, *(1,) * len(owed.grid))
    return maps, {"blocks": blocks, "regions": len(regions)}


def gradient(owed: Owed) -> tuple[Maps, Facts]:
    """|dS_w / dz|, norm over channels (Simonyan et al. 2014); 2 * words rows a state, forward and backward."""
    made = torch.zeros(owed.words, *owed.grid, device=owed.latent.device)
    for state, level, size in owed.each():
        for group in owed.groups:
            given = state.expand(len(group), *state.shape[1:]).clone().requires_grad_()
            with torch.enable_grad():
                full = owed.predict(given, level, owed.whole)
                shares = _share(full, owed.predict(given, level, owed.lessened(group)), size)
                (slope,) = torch.autograd.grad(shares.sum(), given)
            made[group] += slope.norm(dim=1) / len(owed.states.timesteps)
    return made.cpu().numpy(), {}


def integrated_gradients(owed: Owed, *, points: int = POINTS) -> tuple[Maps, Facts]:
    """From the state's noise without the image to the state, by Captum; sum over channels, then absolute.

    Sundararajan et al. (2017). Costs 2 * words * (points + 2) rows a state. "completeness" is the error of the sums
    over cells as a share of what S_w rises by on the way: 0 is exact.
    """
    try:
        integrate = import_module("captum.attr").IntegratedGradients
    except ImportError as error:
        raise ImportError("integrated gradients need Captum; run `pip install 'voxplain[captum]'`") from error
    made, off, risen = torch.zeros(owed.words, *owed.grid, device=owed.latent.device), 0.0, 0.0
    for state, level, size in owed.each():

        def shares(given: Tensor, less: Tensor, level: float = level, size: Tensor = size) -> Tensor:
            return _share(owed.predict(given, level, owed.whole), owed.predict(given, level, less), size)

        empty = state - owed.signal(level) * owed.latent
        for group in owed.groups:
            parts, delta = integrate(shares).attribute(
                state.expand(len(group), *state.shape[1:]),
                empty.expand(len(group), *state.shape[1:]),
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
    """relu(sum over heads and tokens of A * mean over cells of dS_w / dA), mean over layers.

    Grad-CAM (Selvaraju et al. 2017) with the attention probabilities A of a layer in place of its channels, and
    f(z, c without w) held fixed. `layers` are by default those that localize, else all. For each of them and each state
    2 * words rows forward and words rows backward.
    """
    adapter = owed.adapter
    chosen = tuple(layers or adapter.localizing_layers or adapter.layers)
    sums: dict[tuple[int, ...], np.ndarray] = {}
    for state, level, size in owed.each():
        for layer, group in product(chosen, owed.groups):
            probs: dict[int, Tensor] = {}  # [heads, tokens, *grid] of each row

            def keep(call: AttentionCall, probs: dict[int, Tensor] = probs) -> Tensor:
                probs[call.sample] = call.probs().detach().requires_grad_()
                return probs[call.sample]

            given = state.expand(len(group), *state.shape[1:])
            with torch.no_grad():
                less = owed.predict(given, level, owed.lessened(group))
            with torch.enable_grad(), adapter.edit(layer, keep):
                shares = _share(owed.predict(given, level, owed.whole, TEXT), less, size)
                slopes = torch.autograd.grad(shares.sum(), [probs[row] for row in range(len(group))])
            for row, (word, slope) in enumerate(zip(group, slopes, strict=True)):
                weights = slope.flatten(2).mean(2).unflatten(1, (-1, *(1,) * (slope.ndim - 2)))  # [heads, tokens, 1..]
                values = (weights * probs[row].detach()).sum((0, 1)).relu().cpu().numpy()  # [*grid]
                total = sums.setdefault(values.shape, np.zeros((owed.words, *values.shape), np.float32))
                total[word] += values / (len(chosen) * len(owed.states.timesteps))
    finest = max(sums, key=np.prod)
    return np.sum([resample(total, finest) for total in sums.values()], axis=0), {"layers": list(chosen)}


METHODS: Mapping[str, Callable[..., tuple[Maps, Facts]]] = {
    "occlusion": occlusion,
    "gradient": gradient,
    "integrated_gradients": integrated_gradients,
    "grad_cam": grad_cam,
}


def _share(
    full: Float[Tensor, "rows channels *grid"], less: Float[Tensor, "rows channels *grid"], size: Float[Tensor, ""]
) -> Float[Tensor, " rows"]:
    return (full - less).square().flatten(1).sum(1) / size
