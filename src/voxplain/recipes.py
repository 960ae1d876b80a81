"""How recorded attention becomes one map a token: a named, recorded choice."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import prod

import numpy as np
from jaxtyping import Float

from voxplain.maps import AttentionMaps, Attribution, MapKey, Recipe, Scaling
from voxplain.resampling import resample

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "mean",
            "Bradshaw et al., MIDL 2025, section 2.2",
            "mean of softmax(QK^T / sqrt d) over heads, layers and steps; coarse grids linearly to the finest",
        ),
        Recipe(
            "selected",
            "ours",
            "as mean, over the layers that the model names as localizing (chosen on dev seeds)",
            accumulate=frozenset({"layer"}),
            layers=(),
        ),
        Recipe(
            "effect",
            "ours",
            "|f(z_t, c) - f(z_t, c without the word)| / |f(z_t, c)|, norms over channels, mean over stored steps",
            whole_spans=True,
            needs_attention=False,
        ),
    )
}


def get(recipe: str | Recipe) -> Recipe:
    """The recipe of that name; a Recipe is handed back as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; there are {', '.join(RECIPES)}, or give a Recipe")
    return RECIPES[recipe]


def reduce(maps: AttentionMaps, recipe: str | Recipe = "mean") -> Attribution:
    """The recipe's map of every token on the finest recorded grid.

    Each (layer, head, step) weighs once. Raises ValueError where the recording cannot serve the recipe, and names the
    option of `trace` that would.
    """
    recipe = get(recipe)
    if not recipe.needs_attention:
        raise ValueError(f"recipe {recipe.name!r} is no mean of attention; voxplain.explain measures it")
    keys = _chosen(maps, recipe)
    sums: dict[tuple[int, ...], np.ndarray] = {}
    for key in keys:
        weighed = maps.means[key] * np.float64(maps.counts[key])
        sums[key.grid] = sums[key.grid] + weighed if key.grid in sums else weighed
    finest = max(sums, key=prod)
    total = sum(maps.counts[key] for key in keys)
    rows = np.sum([resample(part / total, finest) for part in sums.values()], axis=0)  # [rows + 1, *grid]
    scaling = recipe.scaling
    attribution = Attribution(
        maps=rows[:-1],
        padding=rows[-1],
        prompt=maps.prompt,
        geometry=maps.geometry.at(finest),
        recipe=replace(recipe, scaling="raw"),
        image_geometry=maps.geometry,
        provenance={**maps.provenance, "grids": [list(grid) for grid in sums], "counts": _counts(maps, keys)},
    )
    return attribution if scaling == "raw" else scale(attribution, scaling)


def scale(attribution: Attribution, scaling: Scaling) -> Attribution:
    """The same attribution on another scale.

    "words": every row divided, cell by cell, by the sum over the rows of words (0 where that is 0).
    "log_ratio": log of probability over the uniform level 1 / context length; 0 means no more than chance, and
    probabilities below 1e-12 count as 1e-12. The padding's uniform level is its share of the context. A word of
    several pieces is the mean of their logarithms.
    """
    if scaling == "raw":
        return attribution
    if attribution.recipe.scaling != "raw" or not attribution.recipe.needs_attention:
        raise ValueError(
            f"only raw attention can be scaled, not recipe {attribution.recipe.name!r} on scale "
            f"{attribution.recipe.scaling!r}"
        )
    prompt = attribution.prompt
    if scaling == "words":
        rows = sorted({row for word in prompt.words for row in word.rows})
        total = attribution.maps[rows].sum(0)  # [*grid]
        share = np.divide(1, total, out=np.zeros_like(total), where=total > 0)
        maps, padding = attribution.maps * share, attribution.padding * share
        extra = {name: values * share for name, values in attribution.controls.items()}
    elif scaling == "log_ratio":
        context, padded = len(prompt.ids), max(1, len(prompt.padding))
        maps = _log(attribution.maps * context)
        padding = _log(attribution.padding * (context / padded)) if prompt.padding else attribution.padding
        extra = {name: _log(values * context) for name, values in attribution.controls.items()}
    else:
        raise ValueError(f"unknown scaling {scaling!r}; give raw, words or log_ratio")
    recipe = replace(attribution.recipe, scaling=scaling)
    return replace(attribution, maps=maps, padding=padding, controls=extra, phrases={}, recipe=recipe)


def _log(ratio: Float[np.ndarray, "*grid"]) -> Float[np.ndarray, "*grid"]:
    return np.log(np.maximum(ratio, 1e-12))


def _chosen(maps: AttentionMaps, recipe: Recipe) -> list[MapKey]:
    """The recorded keys that the recipe takes in."""
    keys = list(maps.means)
    if recipe.layers is None:
        return keys
    if not recipe.layers:
        raise ValueError(
            f"recipe {recipe.name!r} names no layers yet; fill them in: "
            "dataclasses.replace(recipe, layers=adapter.localizing_layers)"
        )
    if any(key.layer is None for key in keys):
        raise ValueError(f"recipe {recipe.name!r} chooses layers, but they were merged; trace with per_layer=True")
    chosen = [key for key in keys if any(fnmatchcase(key.layer or "", pattern) for pattern in recipe.layers)]
    if not chosen:
        layers = ", ".join(sorted({key.layer or "" for key in keys}))
        raise ValueError(f"recipe {recipe.name!r} asks for layers {recipe.layers}, recorded were {layers}")
    return chosen


def _counts(maps: AttentionMaps, keys: list[MapKey]) -> Mapping[str, int]:
    """How many (layer, head, step) maps each grid holds."""
    counts: dict[str, int] = defaultdict(int)
    for key in keys:
        counts["x".join(map(str, key.grid))] += maps.counts[key]
    return dict(counts)
