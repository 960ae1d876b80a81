"""Other ways to the same map, each with its price: what attention has to beat, and how much dearer that would be.

Methods of `studies.owing` (occlusion, gradients, layers), controls that know nothing of the model (random, center, the
region that the text names), and the recipes themselves, all as attributions in the frame of the image.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voxplain import recipes
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.attention import RunningMeans
from voxplain.maps import AttentionMaps, Attribution, Mask, Recipe, Sample, Trajectory
from voxplain.metrics.controls import center_prior, random_half, region_lit
from voxplain.models.events import TEXT, Call, Event
from voxplain.resampling import resample_to
from voxplain.studies import grounding
from voxplain.studies.effect import KEPT, PROBE, Pass, changed, kept_steps, passes, removal
from voxplain.studies.owing import LIMIT, METHODS, Facts, Maps, Owed, explained
from voxplain.studies.support import borne_out
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import attached

HELD = 2**28  # bytes of predictions that are kept for several recipes
STATES = {"occlusion": 2, "integrated_gradients": 2}  # as good as `KEPT` on `dev` (bench/states.py), at a quarter of it
CHANGING = ("occlusion", "integrated_gradients")  # methods that take the image out of its states
CONTROLS = ("random", "center", "region")
RECIPES = {
    name: Recipe(name, source, formula, whole_spans=name in METHODS, needs_attention=False)
    for name, source, formula in (
        ("occlusion", "ours, after Zeiler and Fergus, ECCV 2014", "max(0, E_w - E_w with a block of the image filled)"),
        ("gradient", "ours, after Simonyan et al., ICLR workshop 2014", "|dE_w / dx|"),
        ("integrated_gradients", "ours, after Sundararajan et al., ICML 2017", "|x * mean of dE_w / dx|"),
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


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The states of an image that all methods look at, what to remember of them, and what it took to make them.

    `attention` was recorded once for several recipes, and `passes` were made once at some states (by their number) for
    `spans`, at the price of `reading`: each recipe is charged for the rows that it alone would need.
    """

    states: Trajectory
    facts: Mapping[str, Any]
    cost: Cost
    attention: AttentionMaps | None = None
    passes: Mapping[int, Pass] = field(default_factory=dict)
    spans: Sequence[tuple[int, ...]] = ()
    reading: Cost = Cost(0, 0, 0.0)

    def price(self, rows: int) -> Cost:
        """What so many of the rows took that were read."""
        return Cost(rows, 0, self.reading.cpu_seconds * rows / self.reading.forward)


def see(
    model: object,
    sample: Sample,
    text: str,
    methods: Sequence[str] = (),
    *,
    spans: Sequence[tuple[int, ...]] | None = None,
    profile: str = "renoise",
    seed: int = 0,
    steps: int = grounding.STEPS,
    used: int = grounding.USED,
) -> Seen:
    """The states of a profile, to be shared by several methods of `measure`; what can be shared is made once.

    If two or more of `methods` are recipes, each state is read once for all of them: with the text, and where a recipe
    takes it away (at all states for "support", at `KEPT` of them for "effect") without each of `spans`, as long as the
    predictions fit into `HELD`.
    """
    adapter = as_adapter(model)
    prompt = adapter.tokenize(text)
    with _counting(adapter) as spent:
        states, facts = grounding.states_of(adapter, sample, prompt, profile, seed=seed, steps=steps, used=used)
    cost, known = spent(), [recipes.get(name) for name in methods if name in recipes.RECIPES]
    if len(known) < 2:
        return Seen(states, facts, cost)
    every, names = len(states.timesteps), {recipe.name for recipe in known}
    attentive = [recipe for recipe in known if recipe.needs_attention]
    chosen = range(every) if "support" in names else kept_steps(every) if "effect" in names else ()
    asked = _asked(prompt, spans)
    if len(chosen) * (2 + len(asked)) * states.latents[0].size * 4 > HELD:
        chosen = ()  # each recipe that takes text away makes its own passes, and holds one state at a time
    rest = [number for number in range(every) if number not in chosen] if attentive else []
    kinds = frozenset[str]().union(*(recipe.accumulate for recipe in attentive))
    means = RunningMeans([prompt], per_layer="layer" in kinds, per_head="head" in kinds)
    layers, branch = (adapter.layers, TEXT) if attentive else ((), PROBE)
    with _counting(adapter) as spent, attached(adapter, means.update, layers):
        made: dict[int, Pass] = {}
        for numbers, away in ((chosen, asked), (rest, ())):
            if numbers:
                made |= zip(numbers, passes(adapter, prompt, states.at(numbers), away, branch=branch), strict=True)
    origin = {"model": adapter.name, "layers": list(layers), "timesteps": list(states.timesteps)}
    maps = means.maps(0, adapter.geometry, origin) if attentive else None
    return Seen(states, facts, cost, maps, {number: made[number] for number in chosen}, asked, spent())


def measure(
    model: object,
    sample: Sample,
    text: str,
    method: str,
    *,
    spans: Sequence[tuple[int, ...]] | None = None,
    seen: Seen | None = None,
    profile: str = "renoise",
    seed: int = 0,
    kept: int | None = None,
    region: Mask | None = None,
    **options: Any,
) -> Measured:
    """The maps of words by a method of `METHODS`, a control of `CONTROLS`, or any recipe that `ground` reads.

    Methods look at `kept` of the states, evenly spaced (by default `STATES`, else 8, as the effect does; "support" at
    all of them); what it took to make the states is in the price of each map. `spans` are the rows of the words and
    phrases that are asked for (default: every word): where a method takes text away, each is taken away as a whole, and
    of other words there is nothing (zero). `seen` are states that were made before; without it they are made by
    `profile` and `seed`, and by `steps` and `used` among the options. `region` is what "region" lights up, in the
    sample's frame. Other options are those of the method (`points`, `blocks`, `layers`, `limit`, and `explains`, see
    `studies.owing`).

    Raises ValueError for an unknown method, a region that is missing or in another frame, and a method that changes the
    image, or evidence, under a profile (that of `seen`, where they are given) that does not read it; ImportError where
    Captum is missing.
    """
    adapter = as_adapter(model)
    prompt = adapter.tokenize(text)
    if not prompt.words:
        raise ValueError(f"the text {text!r} has no word whose map could be measured")
    levels = {name: options.pop(name) for name in ("steps", "used") if name in options}
    check(method, profile if seen is None else seen.facts.get("readout", profile))
    if method in CONTROLS:
        with _counting(adapter) as spent:
            made = _control(adapter, sample, prompt, method, seed, region)
        return Measured(made, spent())
    seen = seen or see(adapter, sample, text, profile=profile, seed=seed, **levels)
    kept = kept or STATES.get(method, KEPT)
    backward, before = 0, Cost(0, 0, 0.0)
    with _counting(adapter) as spent:
        if method in METHODS:
            made, backward = _by_method(adapter, sample, prompt, method, spans, seen, kept, options)
        else:
            made, before = _by_recipe(adapter, sample, prompt, recipes.get(method), spans, seen, kept, options)
    parts = [seen.cost, before, spent()]
    forward, seconds = sum(part.forward for part in parts), sum(part.cpu_seconds for part in parts)
    return Measured(made, Cost(forward, backward, seconds))


def check(method: str, profile: str = "renoise") -> None:
    """Raise ValueError for a method or profile that does not exist, and for two that do not go together."""
    if method not in (known := [*METHODS, *CONTROLS, *recipes.RECIPES]):
        raise ValueError(f"unknown method {method!r}; there are {', '.join(known)}")
    if profile not in grounding.PROFILES:
        raise ValueError(f"unknown profile {profile!r}; there are {', '.join(grounding.PROFILES)}")
    if profile == "generate" and method in CHANGING:
        raise ValueError(f"{method} changes the given image, which the profile 'generate' does not read")
    if method in recipes.RECIPES:
        grounding.check_read(profile, method)


@contextmanager
def _counting(adapter: Adapter) -> Iterator[Callable[[], Cost]]:
    """Count the rows of the denoiser and the CPU seconds inside the block."""
    heard: list[int] = []

    def hear(event: Event) -> None:
        if isinstance(event, Call):
            heard.append(len(event.rows))

    began = time.process_time()
    with adapter.watching(hear):
        yield lambda: Cost(sum(heard), 0, time.process_time() - began)


def _by_method(
    adapter: Adapter,
    sample: Sample,
    prompt: TokenizedPrompt,
    method: str,
    spans: Sequence[tuple[int, ...]] | None,
    seen: Seen,
    kept: int,
    options: Mapping[str, Any],
) -> tuple[Attribution, int]:
    """The attribution, and how many rows gradients ran through."""
    few = grounding.thinned(seen.states, kept)
    rest = {name: value for name, value in options.items() if name not in ("limit", "explains")}
    readout = seen.facts.get("readout", "")
    what = options.get("explains") or explained(adapter, readout)
    if what == "evidence" and readout == "generate":
        raise ValueError("evidence is measured against the given image, which the profile 'generate' does not read")
    owed = Owed(adapter, prompt, _asked(prompt, spans), sample, few, options.get("limit", LIMIT), what)
    maps, more = METHODS[method](owed, **rest)
    facts = {**seen.facts, "explains": what, **more, "removed": owed.how, "timesteps": list(few.timesteps)}
    return _attributed(adapter, sample, prompt, RECIPES[method], maps, facts, spans), owed.backward


def _by_recipe(
    adapter: Adapter,
    sample: Sample,
    prompt: TokenizedPrompt,
    recipe: Recipe,
    spans: Sequence[tuple[int, ...]] | None,
    seen: Seen,
    kept: int,
    options: Mapping[str, Any],
) -> tuple[Attribution, Cost]:
    """What `ground` reads, and the price of what was read before; a recipe that takes text away measures the asked
    spans alone.
    """
    every, nothing = len(seen.states.timesteps), Cost(0, 0, 0.0)
    if recipe.needs_attention and seen.attention and not options:
        made = recipes.reduce(seen.attention, grounding.resolved(adapter, recipe))
        return grounding.framed(made, sample, seen.facts), seen.price(every)
    if recipe.needs_attention:
        (made,) = grounding.read(adapter, [prompt], [seen.states], recipe, **options)
        return grounding.framed(made, sample, seen.facts), nothing
    how, asked = removal(adapter, prompt), _asked(prompt, spans)
    chosen = range(every) if recipe.name == "support" else kept_steps(every, kept)
    states = seen.states.at(chosen)
    if {*chosen} <= {*seen.passes} and list(asked) == list(seen.spans) and not options:
        done, price = [seen.passes[number] for number in chosen], seen.price(len(chosen) * (1 + len(asked)))
    else:
        done, price = passes(adapter, prompt, states, asked, how=how, **options), nothing
    maps = borne_out(adapter, sample, done)[0] if recipe.name == "support" else changed(done)
    facts = {**seen.facts, "removed": how, "timesteps": list(states.timesteps)}
    return _attributed(adapter, sample, prompt, recipe, maps, facts, spans), price


def _asked(prompt: TokenizedPrompt, spans: Sequence[tuple[int, ...]] | None) -> Sequence[tuple[int, ...]]:
    return [word.rows for word in prompt.words] if spans is None else spans


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
    return _attributed(adapter, sample, prompt, RECIPES[method], np.stack(maps), facts)


def _attributed(
    adapter: Adapter,
    sample: Sample,
    prompt: TokenizedPrompt,
    recipe: Recipe,
    maps: Maps,
    facts: Mapping[str, Any],
    spans: Sequence[tuple[int, ...]] | None = None,
) -> Attribution:
    """Maps in the sample's frame: pieces carry the map of their word; asked spans are kept whole; all else is zero."""
    rows = np.zeros((len(prompt.kept), *maps.shape[1:]), np.float32)
    if spans is None:
        for word, values in zip(prompt.words, maps, strict=True):
            rows[list(word.rows)] = values
    geometry, empty = sample.geometry.at(maps.shape[1:]), np.zeros(maps.shape[1:], np.float32)
    phrases = {} if spans is None else dict(zip(map(tuple, spans), maps, strict=True))
    origin = {"model": adapter.name, "method": recipe.name, **facts}
    return Attribution(rows, empty, prompt, geometry, recipe, sample.geometry, origin, phrases)
