"""Other ways to the same map, each with its price: what attention has to beat, and how much dearer that would be.

Methods of `studies.owing` (occlusion, gradients, layers), controls that know nothing of the model (random, center, the
region that the text names), and the recipes themselves, all as attributions in the frame of the image.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxplain import recipes
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.maps import Attribution, Mask, Recipe, Sample
from voxplain.metrics.controls import center_prior, random_half, region_lit
from voxplain.models.events import Call, Event
from voxplain.resampling import resample_to
from voxplain.studies import grounding
from voxplain.studies.effect import KEPT
from voxplain.studies.owing import LIMIT, METHODS, Facts, Maps, Owed
from voxplain.tokens import TokenizedPrompt

CHANGING = ("occlusion", "integrated_gradients")  # methods that take the image out of its states
CONTROLS = ("random", "center", "region")
RECIPES = {
    name: Recipe(name, source, formula, whole_spans=name in METHODS, needs_attention=False)
    for name, source, formula in (
        ("occlusion", "ours, after Zeiler and Fergus, ECCV 2014", "max(0, S_w - S_w with a block of the image filled)"),
        ("gradient", "ours, after Simonyan et al., ICLR workshop 2014", "|dS_w / dz|"),
        ("integrated_gradients", "ours, after Sundararajan et al., ICML 2017", "|(z - noise) * mean of dS_w / dz|"),
        ("grad_cam", "ours, after Selvaraju et al., ICCV 2017", "relu(sum of A * mean over cells of dS_w / dA)"),
        ("random", "control", "1 on a random half of the cells, another half for each word"),
        ("center", "control", "a Gaussian hill in the middle"),
        ("region", "control", "1 inside the region that the text names"),
    )
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a map took: rows of the denoiser (one state with one text each), forward and backward, and CPU seconds of
    this process (on a GPU: of the host only).
    """

    forward: int
    backward: int
    cpu_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A map and its price."""

    attribution: Attribution
    cost: Cost


def measure(
    model: object,
    sample: Sample,
    text: str,
    method: str,
    *,
    profile: str = "renoise",
    seed: int = 0,
    kept: int = KEPT,
    region: Mask | None = None,
    **options: Any,
) -> Measured:
    """The maps of all words by a method of `METHODS`, a control of `CONTROLS`, or any recipe that `ground` reads.

    Methods look at `kept` of the profile's states, evenly spaced, as the effect does; what it took to make these states
    is in the price. `region` is what "region" lights up, in the sample's frame. `options` are those of the method
    (`points`, `blocks`, `layers`, `limit`) or of `ground`.

    Raises ValueError for an unknown method, a region that is missing or in another frame, and a method that changes the
    image under a profile that does not read it; ImportError where Captum is missing.
    """
    adapter, heard, backward = as_adapter(model), [], 0
    prompt = adapter.tokenize(text)
    if not prompt.words:
        raise ValueError(f"the text {text!r} has no word whose map could be measured")

    def hear(event: Event) -> None:
        if isinstance(event, Call):
            heard.append(len(event.rows))

    began = time.process_time()
    with adapter.watching(hear):
        if method in METHODS:
            made, backward = _by_method(adapter, sample, prompt, method, profile, seed, kept, options)
        elif method in CONTROLS:
            made = _control(adapter, sample, prompt, method, seed, region)
        elif method in recipes.RECIPES:
            made = grounding.ground(adapter, sample, text, method, profile=profile, seed=seed, **options)
        else:
            known = ", ".join([*METHODS, *CONTROLS, *recipes.RECIPES])
            raise ValueError(f"unknown method {method!r}; there are {known}")
    return Measured(made, Cost(sum(heard), backward, time.process_time() - began))


def _by_method(
    adapter: Adapter,
    sample: Sample,
    prompt: TokenizedPrompt,
    method: str,
    profile: str,
    seed: int,
    kept: int,
    options: Mapping[str, Any],
) -> tuple[Attribution, int]:
    """The attribution, and how many rows gradients ran through."""
    if profile == "generate" and method in CHANGING:
        raise ValueError(f"{method} changes the given image, which the profile 'generate' does not read")
    states, facts = grounding.states_of(adapter, sample, prompt, profile, seed=seed)
    few = grounding.thinned(states, kept)
    rest = {name: value for name, value in options.items() if name != "limit"}
    owed = Owed(adapter, prompt, sample, few, options.get("limit", LIMIT))
    maps, more = METHODS[method](owed, **rest)
    facts = {**facts, **more, "removed": owed.how, "timesteps": list(few.timesteps)}
    return _attributed(adapter, sample, prompt, method, maps, facts), owed.backward


def _control(
    adapter: Adapter, sample: Sample, prompt: TokenizedPrompt, method: str, seed: int, region: Mask | None
) -> Attribution:
    """A map that has seen nothing of the model, on the grid of its latent."""
    grid, words = tuple(adapter.latent_shape[1:]), len(prompt.words)
    facts: Facts = {}
    if method == "random":
        draws = np.random.SeedSequence(seed).generate_state(words)
        maps, facts = [random_half(grid, int(draw)) for draw in draws], {"seed": seed}
    elif method == "center":
        maps = [center_prior(grid)] * words
    elif region is None:
        raise ValueError("the control 'region' lights up the region that the text names; give it as region=Mask(...)")
    elif not region.geometry.same_as(sample.geometry):
        raise ValueError(
            f"the region {region.label!r} {region.geometry.shape} and the image {sample.geometry.shape} differ in "
            "geometry; bring the region to the image by the transform that the image went through"
        )
    else:
        lit = resample_to(region_lit(region.values), region.geometry, sample.geometry.at(grid), "area")
        maps, facts = [lit] * words, {"region": region.label}
    return _attributed(adapter, sample, prompt, method, np.stack(maps), facts)


def _attributed(
    adapter: Adapter, sample: Sample, prompt: TokenizedPrompt, method: str, maps: Maps, facts: Mapping[str, Any]
) -> Attribution:
    """One map a word in the sample's frame: pieces carry their word's map, all other rows are zero."""
    rows = np.zeros((len(prompt.kept), *maps.shape[1:]), np.float32)
    for word, values in zip(prompt.words, maps, strict=True):
        rows[list(word.rows)] = values
    geometry, empty = sample.geometry.at(maps.shape[1:]), np.zeros(maps.shape[1:], np.float32)
    origin = {"model": adapter.name, "method": method, **facts}
    return Attribution(rows, empty, prompt, geometry, RECIPES[method], sample.geometry, origin)
