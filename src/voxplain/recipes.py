"""How recorded attention becomes one map a token: a named, recorded choice.

A recipe is reduced as its formula says: those written here each have their own function, any other is the mean.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import isqrt, prod

import numpy as np
from jaxtyping import Float

from voxplain.maps import AttentionMaps, Attribution, MapKey, Recipe, Scaling
from voxplain.resampling import resample

DAAM = (
    "sum over calls at the native grid S = sum_t P; map = 1/|K| sum over keys (layer, head) of max(0, bicubic(S)), "
    "bicubic with a = -0.75; all layers outside the middle block"
)
COMPATIBLE = f"{DAAM}; DAAM's own reference grid and its choice of factors, square images only"
PAPER = (
    "sum over layers, heads and calls of P, each map enlarged by a transposed convolution that keeps its mass (one "
    "cell's value spread evenly over the cells it covers); all layers outside the middle block"
)
CHEST = "mean over layers of the mean over heads and calls of P, each layer replicated to the finest grid"
OUTER = ("[!m]*",)  # all but mid_block and middle_block, whatever a family calls its other blocks
REFERENCE = 64 * 64  # cells of DAAM's reference grid

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
        Recipe(
            "support",
            "ours, after Kong et al., ICLR 2024",
            "max(0, smoothed mean over noisy states of <z - z_t(c without the word), z_t(c) - z_t(c without the word)> "
            "/ their sizes): where the word brings the clean estimate nearer to the image",
            needs_attention=False,
        ),
        Recipe(
            "daam",
            "the package daam 0.2.0 (Tang et al., ACL 2023); departs from it in that the reference grid follows the "
            "run: the finest recorded one, enlarged to 64 x 64 cells where it has fewer, and that no factor is dropped",
            DAAM,
            accumulate=frozenset({"layer", "head"}),
            layers=OUTER,
        ),
        Recipe(
            "daam_compatible",
            "the package daam 0.2.0 with its quirks: 64 x 64 for a native size of 512 or 1024 pixels, 96 x 96 for any "
            "other; layers are dropped whose grid goes into that 8 times, or by a factor such as 3, 5, 6 or 7",
            COMPATIBLE,
            accumulate=frozenset({"layer", "head"}),
            layers=OUTER,
        ),
        Recipe(
            "daam_paper",
            "Tang et al., ACL 2023, equations 6 to 8; departs from them in that heads, left out there, are summed, and "
            "that the sum stays on the finest recorded grid (the rest of the way to the image only replicates cells)",
            PAPER,
            accumulate=frozenset({"layer"}),
            layers=OUTER,
        ),
        Recipe(
            "chest_distillation",
            "Dombrowski et al. 2024 (code chest-distillation); departs from it in that Z is the finest recorded grid, "
            "64 in the original, and that the map is not stretched to 0..1 (a word is the mean of its pieces in both)",
            CHEST,
            accumulate=frozenset({"layer"}),
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
    """The recipe's map of every token, on the finest recorded grid or the recipe's own reference grid.

    Raises ValueError where the recording cannot serve the recipe, and names the
    option of `trace` that would.
    """
    recipe = get(recipe)
    if not recipe.needs_attention:
        raise ValueError(f"recipe {recipe.name!r} is no mean of attention; voxplain.explain measures it")
    rows, keys = _REDUCTIONS.get(recipe.formula, _mean)(maps, _chosen(maps, recipe))
    scaling = recipe.scaling
    attribution = Attribution(
        maps=rows[:-1],
        padding=rows[-1],
        prompt=maps.prompt,
        geometry=maps.geometry.at(rows.shape[1:]),
        recipe=replace(recipe, scaling="raw"),
        image_geometry=maps.geometry,
        provenance={
            **maps.provenance,
            "grids": [list(grid) for grid in dict.fromkeys(key.grid for key in keys)],
            "counts": _counts(maps, keys),
        },
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
    if scaling == "log_ratio" and attribution.recipe.formula in (DAAM, COMPATIBLE, PAPER):
        raise ValueError(f"recipe {attribution.recipe.name!r} sums over steps: its maps are no probabilities")
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


_Rows = Float[np.ndarray, "rows *grid"]
_Sums = dict[Hashable, tuple[tuple[int, ...], np.ndarray]]


def _apart(keys: list[MapKey]) -> None:
    if any(key.layer is None or key.head is None for key in keys):
        raise ValueError("daam clamps each head of each layer apart, but they were merged; trace with per_head=True")


def _mean(maps: AttentionMaps, keys: list[MapKey]) -> tuple[_Rows, list[MapKey]]:
    """Every (layer, head, step) weighs once; coarse grids are brought linearly to the finest."""
    sums, total = _sums(maps, keys, lambda key: key.grid), sum(maps.counts[key] for key in keys)
    finest = max((grid for grid, _ in sums.values()), key=prod)
    return np.sum([resample(part / total, finest) for _, part in sums.values()], axis=0), keys


def _daam(maps: AttentionMaps, keys: list[MapKey]) -> tuple[_Rows, list[MapKey]]:
    """The reference grid is the finest one, enlarged in proportion to 64 x 64 cells where it has fewer."""
    _apart(keys)
    finest = max((key.grid for key in keys), key=prod)
    factor = max(1.0, (REFERENCE / prod(finest)) ** (1 / len(finest)))
    return _clamped(maps, keys, tuple(round(factor * size) for size in finest)), keys


def _daam_compatible(maps: AttentionMaps, keys: list[MapKey]) -> tuple[_Rows, list[MapKey]]:
    """DAAM's grid and factors: floor(sqrt(x^2 // cells)) must be 0 or a power of two other than 8, up to 64."""
    _apart(keys)
    native = tuple(maps.provenance.get("native", maps.geometry.shape))
    if len(native) != 2 or any(key.grid[0] != key.grid[-1] for key in keys):
        raise ValueError(f"daam reads square images only, and this is of {maps.geometry.shape}; use recipe 'daam'")
    side = 64 if native in ((512, 512), (1024, 1024)) else 96
    factors = {key: isqrt(side * side // prod(key.grid)) for key in keys}
    kept = [key for key in keys if factors[key] in (0, 1, 2, 4, 16, 32, 64)]
    if not kept:
        raise ValueError(
            f"daam finds no heat maps here: all factors to its {side} x {side} grid are ones that it drops "
            f"({sorted(set(factors.values()))}); use recipe 'daam'"
        )
    return _clamped(maps, kept, (side, side)), kept


def _clamped(maps: AttentionMaps, keys: list[MapKey], shape: tuple[int, ...]) -> _Rows:
    """The mean over (layer, head) of max(0, bicubic(sum over calls)), one enlarged map at a time."""
    bins = defaultdict(list)
    for key in keys:
        bins[key.layer, key.head, key.grid].append(key)
    total = np.zeros((len(maps.prompt.kept) + 1, *shape), np.float32)
    for same in bins.values():
        over_calls = np.sum([maps.means[key] * np.float32(maps.counts[key]) for key in same], axis=0)
        total += np.maximum(0, resample(over_calls, shape, mode="cubic"))
    return total / np.float32(len(bins))


def _daam_paper(maps: AttentionMaps, keys: list[MapKey]) -> tuple[_Rows, list[MapKey]]:
    sums = _sums(maps, keys, lambda key: key.grid)
    finest = max((grid for grid, _ in sums.values()), key=prod)
    parts = [resample(part * (prod(grid) / prod(finest)), finest, mode="area") for grid, part in sums.values()]
    return np.sum(parts, axis=0), keys


def _chest(maps: AttentionMaps, keys: list[MapKey]) -> tuple[_Rows, list[MapKey]]:
    if any(key.layer is None for key in keys):
        raise ValueError("chest_distillation weighs layers, but they were merged; trace with per_layer=True")
    sums, counts = _sums(maps, keys, lambda key: (key.layer, key.grid)), defaultdict(int)
    for key in keys:
        counts[key.layer, key.grid] += maps.counts[key]
    grids: dict[tuple[int, ...], np.ndarray] = {}
    for name, (grid, part) in sums.items():
        mean = part / (counts[name] * len(sums))
        grids[grid] = grids[grid] + mean if grid in grids else mean
    finest = max(grids, key=prod)
    return np.sum([resample(part, finest, mode="area") for part in grids.values()], axis=0), keys


_REDUCTIONS: dict[str, Callable[[AttentionMaps, list[MapKey]], tuple[np.ndarray, list[MapKey]]]] = {
    DAAM: _daam,
    COMPATIBLE: _daam_compatible,
    PAPER: _daam_paper,
    CHEST: _chest,
}


def _sums(maps: AttentionMaps, keys: list[MapKey], group: Callable[[MapKey], Hashable]) -> _Sums:
    """For each group of keys its grid, and the sum over all recorded calls and heads in it, float64."""
    sums: _Sums = {}
    for key in keys:
        weighed = maps.means[key] * np.float64(maps.counts[key])
        name = group(key)
        sums[name] = key.grid, sums[name][1] + weighed if name in sums else weighed
    return sums


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
