"""Where a text is seen in an image that was not generated: the read-out on a real volume, a film or a phantom.

A profile says which noisy states of the image are read; the read-out itself is the same for all of them: the
conditional pass alone, no guidance, all cross-attention layers, the 40 least noisy of 50 evenly spaced noise levels.

renoise   z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) e_t, e_t drawn anew for every t: independent passes, as in
          Dombrowski et al. (2024, code chest-distillation). Departures: z_0 is the mean of the encoder's posterior and
          not a draw, coarse maps are resampled linearly (as everywhere in Voxplain), and the noise comes from a seed
invert    the states of a DDIM inversion (`studies.inverting`): nothing is drawn, and the round trip is measured
generate  the states of a generation from the same text: the given image is not read, for comparison
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from voxplain import recipes
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.attention import RunningMeans
from voxplain.maps import AttentionMaps, Attribution, Recipe, Sample, Trajectory
from voxplain.models.events import TEXT
from voxplain.studies.effect import KEPT, batched, keeping, kept_steps, measure_words
from voxplain.studies.fitting import check_channels
from voxplain.studies.honesty import spread
from voxplain.studies.inverting import invert
from voxplain.studies.support import support_words
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import attached, choose_layers

PROFILES = ("renoise", "invert", "generate")
STEPS, USED = 50, 40  # noise levels of the schedule, and how many of them, the least noisy, are read
EVERY = 10**6  # more states than any generation has
BATCH = 8  # images that the network takes at once

Progress = Callable[[int, int], None]  # (done, total)


def renoise(adapter: Adapter, sample: Sample, *, steps: int = STEPS, used: int = USED, seed: int = 0) -> Trajectory:
    """The image's latent at the `used` least noisy of `steps` noise levels, with noise drawn for each."""
    _check_levels(steps, used)
    check_channels(adapter, sample.image)
    levels = adapter.timesteps(steps)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        latent = adapter.encode_image(sample.image)  # [1, channels, *grid]

        def at(level: float) -> np.ndarray:
            noise = torch.randn(latent.shape, generator=generator).to(latent)
            return adapter.add_noise(latent, noise, level)[0].float().cpu().numpy()

        latents = np.stack([at(level) for level in levels[-used:]])
    return Trajectory(latents, levels[-used:], tuple(range(steps - used, steps)))


def generated(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    *,
    steps: int = STEPS,
    used: int = USED,
    seed: int = 0,
    progress: Progress | None = None,
) -> Trajectory:
    """The latents that went into the last `used` of the `steps` steps of a generation, at the model's own guidance."""
    with keeping(adapter, count=EVERY) as kept:
        adapter.generate(prompt.text, seed=seed, steps=steps, progress=progress)
    (states,) = kept()
    return Trajectory(states.latents[-used:], states.timesteps[-used:], states.steps[-used:])


def states_of(
    adapter: Adapter,
    sample: Sample,
    prompt: TokenizedPrompt,
    profile: str = "renoise",
    *,
    seed: int = 0,
    steps: int = STEPS,
    used: int = USED,
    progress: Progress | None = None,
) -> tuple[Trajectory, dict[str, Any]]:
    """The states that a profile reads, and what to remember of them: "readout", "noise_levels", and the "seed" of what
    was drawn or the "round_trip" of an inversion.
    """
    _check_levels(steps, used)
    facts: dict[str, Any] = {"readout": profile, "noise_levels": f"{used} of {steps}"}
    if profile == "renoise":
        return renoise(adapter, sample, steps=steps, used=used, seed=seed), {**facts, "seed": seed}
    if profile == "generate":
        states = generated(adapter, prompt, steps=steps, used=used, seed=seed, progress=progress)
        return states, {**facts, "seed": seed}
    if profile == "invert":
        check_channels(adapter, sample.image)
        made = invert(adapter, sample, prompt, steps=steps, used=used, progress=progress)
        return made.states, {**facts, "round_trip": dict(made.round_trip)}
    raise ValueError(f"unknown profile {profile!r}; there are {', '.join(PROFILES)}")


def attend(
    adapter: Adapter,
    prompts: Sequence[TokenizedPrompt],
    states: Sequence[Trajectory],
    recipe: str | Recipe = "mean",
    **options: Any,
) -> list[Attribution]:
    """The attention of each prompt at its own given states; `options` are those of `record`."""
    recipe = resolved(adapter, recipe)
    return [recipes.reduce(maps, recipe) for maps in record(adapter, prompts, states, recipe, **options)]


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
    """What was recorded of each prompt at its own given states: one conditional pass a state, nothing is generated.

    All states share their noise levels; prompts whose contexts are equally long run together, `limit` at a time. What
    `recipe` accumulates is kept apart, so that several recipes can be read from one pass; `layers` take the place of
    its own. Where the adapter `mixes_levels`, states of several noise levels fill up a batch.
    """
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
            size = max(1, limit // len(group)) if adapter.mixes_levels else 1
            with attached(adapter, means.update, chosen):
                for first in range(0, len(levels), size):
                    numbers = range(first, min(first + size, len(levels)))
                    latents = torch.cat([_states(states, group, number) for number in numbers]).to(context)
                    rows = [(row, TEXT) for _ in numbers for row in range(len(group))]
                    each = [levels[number] for number in numbers for _ in group]
                    adapter.predict(latents, each, context.repeat(len(numbers), 1, 1), rows=rows, step=first)
                    if progress:
                        progress(place * len(levels) + numbers[-1] + 1, len(groups) * len(levels))
            provenance = {"model": adapter.name, "layers": list(chosen), "timesteps": list(levels)}
            for row, index in enumerate(group):
                made[index] = means.maps(row, adapter.geometry, provenance)
    return [made[index] for index in range(len(prompts))]


def read(
    adapter: Adapter,
    prompts: Sequence[TokenizedPrompt],
    states: Sequence[Trajectory],
    recipe: str | Recipe = "mean",
    *,
    samples: Sequence[Sample] = (),
    progress: Progress | None = None,
    **options: Any,
) -> list[Attribution]:
    """Any recipe at given states: attention at all of them (`options` of `record`), the effect at 8, evenly spaced.

    `support` compares all of them with the `samples` that they are noisy states of. Raises ValueError for `layers` and
    a recipe that reads no attention.
    """
    recipe = recipes.get(recipe)
    _check_layers(recipe, options.get("layers"))
    if recipe.needs_attention:
        return attend(adapter, prompts, states, recipe, progress=progress, **options)
    if recipe.name == "support" and len(samples) != len(prompts):
        raise ValueError(f"support is measured against the image; give the sample of each of {len(prompts)} prompts")
    made = []
    for number, (prompt, trajectory) in enumerate(zip(prompts, states, strict=True)):
        if recipe.name == "support":
            made.append(support_words(adapter, prompt, samples[number], trajectory))
        else:
            made.append(measure_words(adapter, prompt, thinned(trajectory)))
        if progress:
            progress(len(made), len(prompts))
    return made


def ground(
    model: object,
    sample: Sample,
    prompt: str,
    recipe: str | Recipe = "mean",
    *,
    profile: str = "renoise",
    seed: int = 0,
    steps: int = STEPS,
    used: int = USED,
    layers: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Where each word of a text is attended to in a given image, or, by recipe "effect", where the prediction owes it,
    or, by "support", where the image bears it out.

    The sample must have the shape that the model makes; `fitted` brings another image to it. The maps lie in the
    sample's frame. `seed` draws the noise of "renoise" and "generate"; "invert" draws nothing, and its round trip is in
    the provenance. `layers` are for recipes that read attention, and refused (ValueError) with others.
    """
    options: dict[str, Any] = {"seed": seed, "steps": steps, "used": used, "layers": layers, "progress": progress}
    return ground_all(model, [sample], [prompt], recipe, profile=profile, **options)[0]


def ground_all(
    model: object,
    samples: Sequence[Sample],
    prompts: Sequence[str],
    recipe: str | Recipe = "mean",
    *,
    profile: str = "renoise",
    seed: int = 0,
    steps: int = STEPS,
    used: int = USED,
    layers: Sequence[str] | None = None,
    limit: int = BATCH,
    progress: Progress | None = None,
) -> list[Attribution]:
    """As `ground`, for many images with a text each; image i is noised from seed + i, `limit` of them share a batch."""
    adapter = as_adapter(model)
    check_read(profile, recipe)
    _check_layers(recipes.get(recipe), layers)
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("the text is empty; give the words to look for")
    tokenized = [adapter.tokenize(prompt) for prompt in prompts]
    numbered = enumerate(zip(samples, tokenized, strict=True), start=seed)
    found = [states_of(adapter, *one, profile, seed=number, steps=steps, used=used) for number, one in numbered]
    states = [trajectory for trajectory, _ in found]
    options: dict[str, Any] = {"layers": layers, "limit": limit, "progress": progress}
    made = read(adapter, tokenized, states, recipe, samples=samples, **options)
    return [framed(one, sample, facts) for one, sample, (_, facts) in zip(made, samples, found, strict=True)]


def framed(attribution: Attribution, sample: Sample, facts: Mapping[str, Any]) -> Attribution:
    """The attribution in the frame of the image that was read (a model's own lies around its origin), with facts."""
    return replace(
        attribution,
        geometry=sample.geometry.at(attribution.geometry.shape),
        image_geometry=sample.geometry,
        provenance={**attribution.provenance, **facts},
    )


def ground_repeated(
    model: object,
    sample: Sample,
    prompt: str,
    recipe: str | Recipe = "mean",
    *,
    profile: str = "renoise",
    seeds: int = 5,
    seed: int = 0,
    **options: Any,
) -> tuple[Attribution, Attribution]:
    """Mean and standard deviation, cell by cell, of the read-out from `seeds` seeds of noise (two or more).

    `options` are those of `ground`.
    """
    check_repeats(profile, seeds)
    numbers = range(seed, seed + seeds)
    return spread([ground(model, sample, prompt, recipe, profile=profile, seed=one, **options) for one in numbers])


def check_read(profile: str, recipe: str | Recipe) -> None:
    """Raise ValueError where a recipe looks at the given image and the profile does not."""
    if profile == "generate" and recipes.get(recipe).name == "support":
        raise ValueError("support compares words with the given image, which the profile 'generate' does not read")


def check_repeats(profile: str, seeds: int) -> None:
    """Raise ValueError where more seeds would only repeat the same maps."""
    if profile == "invert" and seeds > 1:
        raise ValueError(f"seeds = {seeds}, but the profile 'invert' draws no noise: one is all there is")


def thinned(states: Trajectory, count: int = KEPT) -> Trajectory:
    """`count` of the states, evenly spaced; all of them if there are fewer."""
    return states.at(kept_steps(len(states.timesteps), count))


def resolved(adapter: Adapter, recipe: str | Recipe) -> Recipe:
    """The recipe, with the layers that the model names as localizing where it leaves them to the model."""
    recipe = recipes.get(recipe)
    if recipe.layers != ():
        return recipe
    if not adapter.localizing_layers:
        raise ValueError(f"{adapter.name} names no localizing layers, so recipe {recipe.name!r} has none; use 'mean'")
    return replace(recipe, layers=tuple(adapter.localizing_layers))


def _check_layers(recipe: Recipe, layers: Sequence[str] | None) -> None:
    if layers is not None and not recipe.needs_attention:
        raise ValueError(
            f"recipe {recipe.name!r} reads no attention, so layers = {list(layers)} would change nothing; leave them "
            "out, or take a recipe that does, as 'mean'"
        )


def _check_levels(steps: int, used: int) -> None:
    if not 1 <= used <= steps:
        raise ValueError(f"used = {used} of {steps} noise levels; give 1 to {steps}")


def _states(states: Sequence[Trajectory], group: Sequence[int], number: int) -> Tensor:
    return torch.from_numpy(np.stack([states[index].latents[number] for index in group]))
