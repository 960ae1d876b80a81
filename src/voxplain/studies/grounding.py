"""Where a text is seen in an image that was not generated: the re-noise read-out on a real volume or a phantom.

    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e_t,   e_t drawn anew for every t

Independent forward passes, as in Dombrowski et al. (2024, code chest-distillation): 50 evenly spaced noise levels, of
which the 40 least noisy are used; the conditional pass alone, no guidance; all cross-attention layers. Departures: z_0
is the mean of the encoder's posterior and not a draw, coarse maps are resampled linearly (as everywhere in Voxplain)
and not replicated, and the noise comes from a seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from voxplain import recipes
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.attention import RunningMeans
from voxplain.geometry import Geometry, regular
from voxplain.maps import AttentionMaps, Attribution, Recipe, Sample, Trajectory
from voxplain.resampling import resample_to
from voxplain.studies.effect import KEPT, batched, kept_steps, measure_words
from voxplain.studies.honesty import spread
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import attached, choose_layers

STEPS, USED = 50, 40  # noise levels of the schedule, and how many of them, the least noisy, are read
BATCH = 8  # images that the network takes at once

Progress = Callable[[int, int], None]  # (done, total)


def renoise(adapter: Adapter, sample: Sample, *, steps: int = STEPS, used: int = USED, seed: int = 0) -> Trajectory:
    """The image's latent at the `used` least noisy of `steps` noise levels, with noise drawn for each."""
    if not 1 <= used <= steps:
        raise ValueError(f"used = {used} of {steps} noise levels; give 1 to {steps}")
    levels = adapter.timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latent = adapter.encode_image(sample.image)  # [1, channels, *grid]

        def at(level: float) -> np.ndarray:
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            return adapter.add_noise(latent, noise, level)[0].float().cpu().numpy()

        latents = np.stack([at(level) for level in levels[-used:]])
    return Trajectory(latents, levels[-used:], tuple(range(steps - used, steps)))


def attend(
    adapter: Adapter,
    prompts: Sequence[TokenizedPrompt],
    states: Sequence[Trajectory],
    recipe: str | Recipe = "mean",
    *,
    layers: Sequence[str] | None = None,
    limit: int = BATCH,
    progress: Progress | None = None,
) -> list[Attribution]:
    """The attention of each prompt at its own given states: one conditional pass a state, nothing is generated.

    All states share their noise levels; prompts whose contexts are equally long run together, `limit` at a time.
    """
    recipe = resolved(adapter, recipe)
    recorded = record(adapter, prompts, states, recipe, layers=layers, limit=limit, progress=progress)
    return [recipes.reduce(maps, recipe) for maps in recorded]


def record(
    adapter: Adapter,
    prompts: Sequence[TokenizedPrompt],
    states: Sequence[Trajectory],
    recipe: Recipe,
    *,
    layers: Sequence[str] | None = None,
    limit: int = BATCH,
    progress: Progress | None = None,
) -> list[AttentionMaps]:
    """What `attend` reduces: one pass, from which several recipes can be read where `recipe` accumulates enough."""
    if len({trajectory.timesteps for trajectory in states}) != 1 or len(states) != len(prompts):
        raise ValueError("give one trajectory for each prompt, all of them at the same noise levels")
    chosen = choose_layers(adapter, recipe.layers if layers is None else layers)
    per_layer, per_head = "layer" in recipe.accumulate, "head" in recipe.accumulate
    levels, made = states[0].timesteps, {}
    with torch.no_grad():
        contexts = [adapter.encode_prompt(prompt) for prompt in prompts]
        groups = batched([context.shape[1] for context in contexts], limit)
        for place, group in enumerate(groups):
            context = torch.cat([contexts[index] for index in group])
            means = RunningMeans([prompts[index] for index in group], per_layer=per_layer, per_head=per_head)
            with attached(adapter, means.update, chosen):
                for number, level in enumerate(levels):
                    adapter.predict(_states(states, group, number).to(context), level, context, step=number)
                    if progress:
                        progress(place * len(levels) + number + 1, len(groups) * len(levels))
            provenance = {"model": adapter.name, "layers": list(chosen), "timesteps": list(levels)}
            for row, index in enumerate(group):
                made[index] = means.maps(row, adapter.geometry, provenance)
    return [made[index] for index in range(len(prompts))]


def ground(
    model: object,
    sample: Sample,
    prompt: str,
    recipe: str | Recipe = "mean",
    *,
    seed: int = 0,
    steps: int = STEPS,
    used: int = USED,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Where each word of a text is attended to in a given image, or, by recipe "effect", where the prediction owes it.

    The sample must have the shape that the model makes; `fitted` brings another volume to it. The effect is measured
    at 8 of the same states, evenly spaced.
    """
    return ground_all(
        model, [sample], [prompt], recipe, seed=seed, steps=steps, used=used, layers=layers, progress=progress
    )[0]


def ground_all(
    model: object,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    recipe: str | Recipe = "mean",
    *,
    seed: int = 0,
    steps: int = STEPS,
    used: int = USED,
    layers: Sequence[str] | None = None,
    limit: int = BATCH,
    progress: Progress | None = None,
) -> list[Attribution]:
    """As `ground`, for many images with a text each; image i is noised from seed + i, `limit` of them share a batch."""
    adapter, recipe = as_adapter(model), recipes.get(recipe)
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("the text is empty; give the words to look for")
    tokenized = [adapter.tokenize(prompt) for prompt in prompts]
    states = [
        renoise(adapter, sample, steps=steps, used=used, seed=seed + number) for number, sample in enumerate(samples)
    ]
    if recipe.needs_attention:
        made = attend(adapter, tokenized, states, recipe, layers=layers, limit=limit, progress=progress)
    else:
        made = []
        for prompt, trajectory in zip(tokenized, states, strict=True):
            made.append(measure_words(adapter, prompt, thinned(trajectory)))
            if progress:
                progress(len(made), len(tokenized))
    origin = {"readout": "renoise", "noise_levels": f"{used} of {steps}"}
    return [
        replace(one, provenance={**one.provenance, **origin, "seed": seed + number}) for number, one in enumerate(made)
    ]


def ground_repeated(
    model: object, sample: Sample, prompt: str, recipe: str | Recipe = "mean", *, seeds: int = 5, seed: int = 0
) -> tuple[Attribution, Attribution]:
    """Mean and standard deviation, cell by cell, of the read-out from `seeds` seeds of noise (two or more)."""
    numbers = range(seed, seed + seeds)
    return spread([ground(model, sample, prompt, recipe, seed=number) for number in numbers])


def thinned(states: Trajectory, count: int = KEPT) -> Trajectory:
    """`count` of the states, evenly spaced; all of them if there are fewer."""
    chosen = kept_steps(len(states.timesteps), count)
    levels, numbers = tuple(states.timesteps[i] for i in chosen), tuple(states.steps[i] for i in chosen)
    return Trajectory(states.latents[list(chosen)], levels, numbers)


def fitted(sample: Sample, geometry: Geometry) -> Sample:
    """The sample on a model's grid: spacing and shape of `geometry`, around the sample's own center, axes along LPS.

    What lies outside the sample gets its lowest value (air, in a CT).
    """
    if sample.geometry.same_as(geometry):
        return sample
    if not sample.geometry.spacing_known:
        raise ValueError(
            "the image's spacing is not known, so it cannot be brought to the model's; set it in its header"
        )
    center = sample.geometry.world((np.array([sample.geometry.shape]) - 1) / 2)[0]
    half = (np.array(geometry.shape[::-1]) - 1) / 2 * geometry.spacing[::-1]  # world order
    target = regular(geometry.shape, geometry.spacing, (center - half).tolist())
    low = sample.image.min()
    image = np.stack([resample_to(channel - low, sample.geometry, target) + low for channel in sample.image])
    return replace(sample, image=image, geometry=target)


def resolved(adapter: Adapter, recipe: str | Recipe) -> Recipe:
    """The recipe, with the layers that the model names as localizing where it leaves them to the model."""
    recipe = recipes.get(recipe)
    if recipe.layers != ():
        return recipe
    if not adapter.localizing_layers:
        raise ValueError(f"{adapter.name} names no localizing layers, so recipe {recipe.name!r} has none; use 'mean'")
    return replace(recipe, layers=tuple(adapter.localizing_layers))


def _states(states: Sequence[Trajectory], group: Sequence[int], number: int) -> Tensor:
    return torch.from_numpy(np.stack([states[index].latents[number] for index in group]))
