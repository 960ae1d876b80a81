"""The main job: generate inside a trace, make a map of every word by each recipe, and say how far to believe it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from voxplain import recipes as known
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.maps import AttentionMaps, Attribution, Explanation, Heatmap, Recipe, Sample, Trajectory
from voxplain.studies import effect, fitting, grounding, honesty, support
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import trace

Progress = Callable[[str, int, int], None]  # (stage, done, total)


@dataclass(frozen=True, slots=True)
class _Job:
    """What is asked of every seed."""

    adapter: Adapter
    recipes: tuple[Recipe, ...]
    steps: int
    guidance_scale: float | None
    layers: Sequence[str] | None
    progress: Progress | None
    negative_prompt: str | None = None
    parts: int | None = None
    per_layer: bool = False
    removed: effect.How | None = None
    timings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[[int, int], None] | None]:
        """Time a stage under its name, and hand its progress on."""
        began, report = time.perf_counter(), self.progress
        yield report and (lambda done, total: report(name, done, total))
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - began


def explain(
    model: Any,
    prompt: str,
    *,
    seed: int = 0,
    steps: int = 50,
    guidance_scale: float | None = None,
    recipes: Sequence[str | Recipe] = ("mean", "effect"),
    phrases: Sequence[str] = (),
    seeds: int = 1,
    layers: Sequence[str] | None = None,
    negative_prompt: str | None = None,
    parts: int | None = None,
    per_layer: bool = False,
    removed: effect.How | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Generate one image and, for every word of its prompt, the voxels it attended to and the voxels it changed.

    `model` is a pipeline or an `Adapter`. Each recipe gives one `Attribution` under its name; `phrases` are spans whose
    effect is measured as a whole at once (others are measured when `Explanation.word` asks for them). `layers` are
    module paths or patterns, by default those of the recipe. With `parts` the steps are cut into that many, and beside
    each attention recipe stand the maps of each, "<recipe> part 1 of 4" and so on; with `per_layer` those of every
    layer alone, on its own grid, "<recipe> layer <module path>". `removed` says where effect and support take a word
    out: "after" the text encoder or "before" it (default: `effect.removal`). With `seeds` > 1 the next seeds are
    generated too: beside each recipe stand "<recipe> over seeds" (mean) and "<recipe> spread over seeds" (standard
    deviation), and `honesty` says how the words' maps correlate between seeds; everything else is that of the first.
    `progress` is called with (stage, done, total). `provenance` holds timings (s) and warnings: words that training
    never showed, words cut off.

    Raises ValueError for a blank prompt, numbers out of range, unknown recipes, phrases that the prompt does not hold,
    and an attention recipe on a model whose text is a single key (ask for recipes=("effect",) there).
    """
    adapter = as_adapter(model)
    chosen = tuple(grounding.resolved(adapter, recipe) for recipe in recipes)
    tokens = _checked(adapter, prompt, chosen, seeds, removed)
    spans = {tokens.find(phrase): phrase for phrase in phrases}
    if parts is not None and not 1 <= parts <= steps:
        raise ValueError(f"parts = {parts} of {steps} steps; give 1 to {steps}")
    if parts and not any(recipe.needs_attention for recipe in chosen):
        raise ValueError("parts of the steps are kept of attention; add a recipe that reads it, as 'mean'")
    if per_layer and not any(recipe.needs_attention for recipe in chosen):
        raise ValueError("layers are told apart in attention; add a recipe that reads it, as 'mean'")
    if spans and "effect" not in (recipe.name for recipe in chosen):
        raise ValueError("phrases are measured by the recipe 'effect'; add it to `recipes`")
    job = _Job(adapter, chosen, steps, guidance_scale, layers, progress, negative_prompt, parts, per_layer, removed)
    runs = [_generate(job, prompt, tokens, seed + number) for number in range(seeds)]
    return _explanation(job, tokens, spans, runs, seed)


def explain_image(
    model: Any,
    sample: Sample,
    text: str,
    *,
    profile: str = "renoise",
    seed: int = 0,
    recipes: Sequence[str | Recipe] = ("mean", "effect"),
    seeds: int = 1,
    layers: Sequence[str] | None = None,
    removed: effect.How | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """As `explain`, for an image that was not generated: the read-out of `grounding` by a profile and every recipe.

    The sample is first brought to the model's grid (`fitting.fitted`). `seeds` repeat the read-out with other noise,
    and are refused by "invert", which draws none. `provenance` says what was read: "readout", "noise_levels", and the
    "seed" of what was drawn or the "round_trip" of an inversion.
    """
    grounding.check_repeats(profile, seeds)
    adapter = as_adapter(model)
    chosen = tuple(grounding.resolved(adapter, recipe) for recipe in recipes)
    for recipe in chosen:
        grounding.check_read(profile, recipe)
    tokens = _checked(adapter, text, chosen, seeds, removed)
    job = _Job(adapter, chosen, grounding.STEPS, None, layers, progress, removed=removed)
    facts = {"model": adapter.name, "weights": adapter.weights_hash, "unknown_words": adapter.unknown_words(text)}
    sample = fitting.fitted(sample, adapter.geometry)
    sample = replace(sample, prompt=text, provenance={**sample.provenance, **facts})
    runs = [_ground(job, sample, tokens, profile, seed + number) for number in range(seeds)]
    return _explanation(job, tokens, {}, runs, seed)


def measurable(explanation: Explanation, model: Any) -> Explanation:
    """The explanation with `measure` in place: `word(span, recipe="effect")` runs the model where no map is kept yet.

    For an explanation that was loaded from a run folder; `model` has to be the one that made it.
    """
    adapter, kept = as_adapter(model), {}

    def measure(phrase: str) -> Heatmap:
        if phrase not in kept:
            kept[phrase] = effect.measure_phrase(adapter, explanation, phrase)
        return kept[phrase]

    return replace(explanation, measure=measure)


def warnings_of(sample: Sample, prompt: TokenizedPrompt) -> list[str]:
    """What the user should know about the prompt, one sentence each: unknown words by name, words that fell off."""
    found = []
    if unknown := sample.provenance.get("unknown_words"):
        found.append(f"the model never saw these words in training: {', '.join(unknown)}")
    if prompt.truncated:
        found.append(f"the prompt is longer than the model's context; these words fell off: {prompt.truncated}")
    if sample.provenance.get("readout") == "generate":
        found.append("these maps are of an image that the model made of the text, and not of the one that is shown")
    return found


def _checked(
    adapter: Adapter, prompt: str, recipes: Sequence[Recipe], seeds: int, removed: effect.How | None
) -> TokenizedPrompt:
    names = [recipe.name for recipe in recipes]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"recipes = {names}; give one or more, each once, of {', '.join(known.RECIPES)}")
    if removed is not None and not {"effect", "support"} & set(names):
        raise ValueError(f"removed = {removed!r} is about the recipes 'effect' and 'support'; add one to `recipes`")
    if seeds < 1:
        raise ValueError(f"seeds = {seeds}; give 1 or more")
    if not prompt.strip():
        raise ValueError("the prompt is empty; say what the image should show, as in 'large left pleural effusion'")
    if not prompt.isascii() and prompt.encode("utf-8", "replace").decode() != prompt:
        raise ValueError(f"the prompt {prompt!r} holds bytes that are no text in UTF-8; type it again")
    tokens = adapter.tokenize(prompt)
    if not tokens.words:
        raise ValueError(f"the prompt {prompt!r} holds no word that this model can read")
    if "support" in names:
        support.check(adapter)  # before any work
    return tokens


_Made = tuple[Sample, Trajectory, dict[str, Attribution], Trajectory]
"""Of one seed: the sample, the states that are kept, the attributions, and the states that `support` is read at."""


def _owed(
    job: _Job,
    recipe: Recipe,
    tokens: TokenizedPrompt,
    sample: Sample,
    states: tuple[Trajectory, Trajectory],
    report: Callable[[int, int], None] | None,
) -> Attribution:
    """A recipe that takes words away: the effect at the kept `states`, or the support at the noisy ones."""
    kept, noisy = states
    options: dict[str, Any] = {"how": job.removed, "progress": report}
    if recipe.name == "support":
        return support.support_words(job.adapter, tokens, sample, noisy, **options)
    return effect.measure_words(job.adapter, tokens, kept, **options)


def _generate(job: _Job, prompt: str, tokens: TokenizedPrompt, seed: int) -> _Made:
    """One generation, listened to by every attention recipe, and then the effects at its kept states."""
    attentive = [recipe for recipe in job.recipes if recipe.needs_attention]
    with ExitStack() as hooks:
        traces = {
            one.name: hooks.enter_context(
                trace(job.adapter, one, layers=job.layers, per_layer=job.per_layer, bins=job.parts)
            )
            for one in attentive
        }
        kept = hooks.enter_context(effect.keeping(job.adapter))
        report = hooks.enter_context(job.stage("generate"))
        sample = job.adapter.generate(
            prompt,
            seed=seed,
            steps=job.steps,
            guidance_scale=job.guidance_scale,
            negative_prompt=job.negative_prompt,
            progress=report,
        )
    assert isinstance(sample, Sample)
    (states,) = kept()
    supported = "support" in (recipe.name for recipe in job.recipes)
    noisy = grounding.renoise(job.adapter, sample, seed=seed) if supported else states
    made = {}
    for recipe in job.recipes:
        with job.stage(recipe.name) as report:
            if recipe.needs_attention:
                (maps,) = traces[recipe.name].maps()
                whole = known.reduce(maps, recipe)
                alone = _layers(maps, whole) if job.per_layer else {}
                found = {recipe.name: whole, **_parts(maps, recipe, job.parts or 0), **alone}
            else:
                found = {recipe.name: _owed(job, recipe, tokens, sample, (states, noisy), report)}
        made |= {name: replace(one, provenance={**one.provenance, "seed": seed}) for name, one in found.items()}
    return sample, states, made, noisy


def _parts(maps: AttentionMaps, recipe: Recipe, parts: int) -> dict[str, Attribution]:
    """The recipe's attribution of each part of the steps, under its name."""
    made = {}
    for part in range(parts):
        keys = [key for key in maps.means if key.bin == part]
        means, counts = ({key: kept[key] for key in keys} for kept in (maps.means, maps.counts))
        name = f"part {part + 1} of {parts}"
        one = known.reduce(replace(maps, means=means, counts=counts), recipe)
        made[f"{recipe.name} {name}"] = replace(one, provenance={**one.provenance, "statistic": f"{name} of the steps"})
    return made


def _layers(maps: AttentionMaps, whole: Attribution) -> dict[str, Attribution]:
    """The attribution of each layer that the recipe took in, alone and on the layer's own grid, under its name."""
    made, patterns = {}, whole.recipe.layers or ("*",)
    grids = {tuple(grid) for grid in whole.provenance["grids"]}
    taken = dict.fromkeys(key.layer or "" for key in maps.means if key.grid in grids)
    for layer in (layer for layer in taken if any(fnmatchcase(layer, pattern) for pattern in patterns)):
        one = known.reduce(maps, replace(whole.recipe, layers=(layer,)))
        facts = {**one.provenance, "layers": [layer], "statistic": f"layer {layer}"}
        made[f"{whole.recipe.name} layer {layer}"] = replace(one, provenance=facts)
    return made


def _ground(job: _Job, sample: Sample, tokens: TokenizedPrompt, profile: str, seed: int) -> _Made:
    """One read-out of a given image: the states of the profile, and every recipe at them."""
    with job.stage(profile) as report:
        states, facts = grounding.states_of(job.adapter, sample, tokens, profile, seed=seed, progress=report)
    made = {}
    for recipe in job.recipes:
        with job.stage(recipe.name) as report:
            if recipe.needs_attention:
                options = {"layers": job.layers, "progress": report}
                (one,) = grounding.read(job.adapter, [tokens], [states], recipe, **options)
            else:
                one = _owed(job, recipe, tokens, sample, (grounding.thinned(states), states), report)
        made[recipe.name] = grounding.framed(one, sample, facts)
    read = replace(sample, provenance={**sample.provenance, **facts})
    return read, grounding.thinned(states), made, states


def _explanation(
    job: _Job, tokens: TokenizedPrompt, spans: Mapping[tuple[int, ...], str], runs: Sequence[_Made], seed: int
) -> Explanation:
    """What the runs of all seeds come to: controls, phrases, honesty and provenance; the first seed leads."""
    sample, states, attributions, noisy = runs[0]
    attributions = _controlled(job, tokens, sample, (states, noisy), attributions)
    if spans:
        with job.stage("phrases") as report:
            maps = effect.differences(job.adapter, tokens, states, list(spans), how=job.removed, progress=report)
        phrase_maps = dict(zip(spans, maps, strict=True))
        attributions["effect"] = replace(attributions["effect"], phrases=phrase_maps)
    judged = honesty.judge(attributions)
    attributions = {**runs[0][2], **attributions}
    if len(runs) > 1:
        _compare_seeds([made for _, _, made, _ in runs], attributions, judged)
    provenance = {
        **sample.provenance,
        "recipes": [recipe.name for recipe in job.recipes],
        "seeds": [seed + number for number in range(len(runs))],
        "null_words": list(honesty.null_words(tokens)),
        "timings": {stage: round(seconds, 3) for stage, seconds in job.timings.items()},
        "warnings": warnings_of(sample, tokens),
    }
    explanation = Explanation(sample, tokens, attributions, provenance, states, judged)
    return measurable(explanation, job.adapter)


def _controlled(
    job: _Job,
    tokens: TokenizedPrompt,
    sample: Sample,
    states: tuple[Trajectory, Trajectory],
    attributions: Mapping[str, Attribution],
) -> dict[str, Attribution]:
    """The attributions with the maps of two null words as controls, read at the kept states, or at the noisy ones."""
    kept, noisy = states
    longer = honesty.with_null_words(tokens, job.adapter.tokenize)
    nulls, made = longer.words[-2:], {}
    with job.stage("null words"):
        for recipe in job.recipes:
            maps: Sequence[np.ndarray] | np.ndarray
            facts: dict[str, Any] = {}
            rows = [word.rows for word in nulls]
            if recipe.needs_attention:
                (read,) = grounding.attend(job.adapter, [longer], [kept], recipe, layers=job.layers)
                maps = [read.maps[list(each)].mean(0) for each in rows]
            elif recipe.name == "support":
                maps, evidence = support.supports(job.adapter, longer, sample, noisy, rows, how=job.removed)
                facts = {"null_evidence": {word.text: float(e) for word, e in zip(nulls, evidence, strict=True)}}
            else:
                maps = list(effect.differences(job.adapter, longer, kept, rows, how=job.removed))
            controls = {word.text: values for word, values in zip(nulls, maps, strict=True)}
            own = attributions[recipe.name]
            made[recipe.name] = replace(own, controls=controls, provenance={**own.provenance, **facts})
    return made


def _compare_seeds(
    runs: Sequence[Mapping[str, Attribution]], attributions: dict[str, Attribution], judged: dict[str, dict[str, Any]]
) -> None:
    """Add mean and spread beside each recipe, and each word's correlation between seeds to what is known of it."""
    for name in [name for name, one in runs[0].items() if "statistic" not in one.provenance]:
        same = [run[name] for run in runs]
        attributions[f"{name} over seeds"], attributions[f"{name} spread over seeds"] = honesty.spread(same)
        for word, value in honesty.stability(same).items():
            seen = judged[word].setdefault("seeds", {"mean_correlation": value, "recipes": {}})  # the first recipe's
            seen["recipes"][name] = value
