"""What the page is told of a run before it asks for any map: words, recipes, the image, what to be careful about."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from voxplain.geometry import Geometry
from voxplain.io.nifti import SPREAD
from voxplain.maps import CAVEAT, Attribution, Explanation, Heatmap, UnmeasuredError
from voxplain.recipes import COMPATIBLE, DAAM, PAPER
from voxplain.serve.packing import shown_range, to_ras
from voxplain.tokens import label
from voxplain.view.markup import flat
from voxplain.view.overlay import WINDOWS
from voxplain.view.words import (
    UNSURE_TEXT,
    attention_mass,
    detail,
    image_note,
    measured_phrases,
    nearest_voxel,
    origin,
    recipe_title,
    unknown_labels,
    warnings_of,
)

SUMS = (DAAM, COMPATIBLE, PAPER)  # formulas that add up attention: no probabilities come of it
SCALES = {
    "raw": "share of attention, a probability",
    "words": "share of the attention that all words together have",
    "log_ratio": "logarithm of the attention over that of an even spread",
}
SPECIALS = ("[start]", "[end]", "[padding]")


def describe(explanation: Explanation) -> dict[str, Any]:
    """The run as plain values for JSON. Array indices are (slice, row, column); an image has the slice 0."""
    facts, prompt = origin(explanation), explanation.prompt
    spans = [list(word.span) for word in prompt.words]
    return {
        "prompt": prompt.text,
        "cut": prompt.text.rindex(prompt.truncated) if prompt.truncated else None,
        "words": [{**entry, "span": span} for entry, span in zip(_words(explanation), spans, strict=True)],
        "phrases": [_entry(explanation, name) for name in measured_phrases(explanation)],
        "specials": [name for name in SPECIALS if name in specials(explanation)],
        "recipes": [_recipe(explanation, name) for name in explanation.attributions],
        "sample": _sample(explanation),
        "notes": {
            "image": image_note(explanation),
            "caveat": CAVEAT,
            "unsure": UNSURE_TEXT,
            "warnings": warnings_of(explanation),
        },
        "facts": flat({key: value for key, value in facts.items() if key != "warnings"}),
        "generated": "readout" not in facts,
    }


def heatmap(explanation: Explanation, recipe: str, name: str) -> tuple[Heatmap, dict[str, Any]]:
    """The recipe's map of a word, a measured phrase, or a special token, and what the page says of it.

    Raises ValueError for a recipe or name that the run does not hold, and UnmeasuredError for a phrase that this recipe
    has not measured.
    """
    attribution = explanation.attributions.get(recipe)
    if attribution is None:
        raise ValueError(f"there is no recipe {recipe!r}; there are {', '.join(explanation.attributions)}")
    if name in SPECIALS:
        found = specials(explanation)
        if name not in found:
            raise ValueError(f"this prompt has no {name}")
        row = found[name]
        values = attribution.padding if row is None else attribution.maps[row]
        return Heatmap(name, values, attribution.geometry), {"label": name, "recipe": recipe, "sure": True}
    known = attribution.word(name)
    return known, {"label": known.label, "recipe": recipe, "sure": explanation.sure(name, recipe)}


def specials(explanation: Explanation) -> dict[str, int | None]:
    """Start and end token by their row, and padding (None) where the context holds any."""
    prompt = explanation.prompt
    at = {"[start]": prompt.start, "[end]": prompt.end}
    rows: dict[str, int | None] = {name: prompt.kept.index(i) for name, i in at.items() if i is not None}
    return rows | ({"[padding]": None} if prompt.padding else {})


def ranking(explanation: Explanation, recipe: str, inside: np.ndarray) -> list[dict[str, Any]]:
    """All words by their mean over a region of the sample, highest first; `inside` is boolean, [*spatial].

    A region is read at the cells of the map's own grid that hold its voxels, each as often as it is hit.
    """
    geometry, attribution = explanation.sample.geometry, explanation.attributions[recipe]
    points = np.argwhere(inside)
    if not len(points):
        raise ValueError("the region is empty; draw some voxels")
    return ranked(explanation, recipe, attribution.geometry.index(geometry.world(points.astype(float))))


def ranked(explanation: Explanation, recipe: str, cells: np.ndarray) -> list[dict[str, Any]]:
    """All words by their mean over fractional cells `[points, axes]` of the recipe's grid, linearly, highest first."""
    attribution = explanation.attributions[recipe]
    means = _linear(attribution.maps, cells)
    found = [
        {
            "word": label(word),
            "value": float(means[list(word.rows)].mean()),
            "sure": explanation.sure(label(word), recipe),
        }
        for word in explanation.prompt.words
    ]
    return sorted(found, key=lambda entry: -entry["value"])


def _linear(maps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The mean over the cells of `maps` [rows, *grid], between cells linearly, at the border as the border: [rows]."""
    size = np.array(maps.shape[1:])
    inside = ((cells > -0.5) & (cells < size - 0.5)).all(1)  # 0 outside of the field of view
    cells = np.clip(cells, 0, size - 1)
    low = np.minimum(cells.astype(int), size - 1)
    share = cells - low
    total = np.zeros(len(maps))
    for corner in np.ndindex(*(2,) * len(size)):
        step = np.array(corner)
        weight = np.where(step, share, 1 - share).prod(1) * inside
        used = weight > 0
        index = np.minimum(low[used] + step, size - 1)
        total += maps[(slice(None), *index.T)] @ weight[used]
    return total / len(cells)


def _words(explanation: Explanation) -> Iterator[dict[str, Any]]:
    mass = attention_mass(explanation)
    unknown = unknown_labels(explanation)
    top = max((mass.get(label(word), 0.0) for word in explanation.prompt.words), default=0.0) or 1.0
    for word in explanation.prompt.words:
        share = mass.get(label(word), explanation.honesty.get(label(word), {}).get("mass"))
        yield {
            **_entry(explanation, label(word)),
            "text": word.text,
            "mass": share,
            "strength": min(1.0, (share or 0.0) / top),
            "unknown": label(word) in unknown,
        }


def _entry(explanation: Explanation, name: str) -> dict[str, Any]:
    geometry, recipes = explanation.sample.geometry, {}
    for recipe, attribution in explanation.attributions.items():
        try:
            found = attribution.word(name)
        except UnmeasuredError:
            continue
        peak = nearest_voxel(geometry, found.geometry, found.peak)
        known = explanation.honesty.get(name, {})
        facts = (known.get("recipes") or {}).get(recipe, known)
        recipes[recipe] = {
            "sure": explanation.sure(name, recipe),
            "peak": [0] * (3 - geometry.ndim) + list(peak),
            "maximum": float(found.values.max()),
            "distinctness": facts.get("distinctness"),
        }
    return {"label": name, "recipes": recipes}


def _recipe(explanation: Explanation, name: str) -> dict[str, Any]:
    attribution = explanation.attributions[name]
    recipe, statistic = attribution.recipe, attribution.provenance.get("statistic")
    found = detail(name, attribution)
    even = recipe.needs_attention and recipe.scaling == "raw" and recipe.formula not in SUMS and statistic != SPREAD
    return {
        "name": name,
        "title": recipe_title(attribution),
        "formula": recipe.formula,
        "source": recipe.source,
        "unit": _unit(attribution),
        "statistic": statistic,
        "part": {"of": found["of"], "number": int(found["part"])} if found and found["part"] else None,
        "layer": {"of": found["of"], "name": found["layer"]} if found and found["layer"] else None,
        "uniform": 1 / len(explanation.prompt.ids) if even else None,
        "specials": recipe.needs_attention,
        "grid": _three(attribution.geometry),
        "layers": list(attribution.provenance.get("layers") or ()),
        "cells": _cells(explanation.sample.geometry, attribution),
    }


def _unit(attribution: Attribution) -> str:
    """What the values of a map are, for its legend."""
    recipe, statistic = attribution.recipe, attribution.provenance.get("statistic")
    if recipe.name == "support":
        unit = "how far the image bears out the change; the mean, negative parts included, is a cosine"
    elif not recipe.needs_attention:
        unit = "change, as a part of the prediction's size"
    elif recipe.formula in SUMS:
        unit = "attention added up over steps, no probability"
    else:
        unit = SCALES[recipe.scaling]
    return f"{unit}; {statistic}" if statistic else unit


def _cells(geometry: Geometry, attribution: Attribution) -> list[list[float]]:
    """From the sample's indices to the map's, [3, 4] with slices first."""
    there = np.linalg.inv(to_ras(attribution.geometry)) @ to_ras(geometry)
    return np.round(there[:3], 9).tolist()


def _three(geometry: Geometry) -> list[int]:
    return [1] * (3 - geometry.ndim) + list(geometry.shape)


def _sample(explanation: Explanation) -> dict[str, Any]:
    sample = explanation.sample
    geometry = sample.geometry
    named = {name: [center - width / 2, center + width / 2] for name, (center, width) in WINDOWS.items()}
    windows = named if sample.unit == "HU" else {"1 to 99 %": list(shown_range(sample))}
    return {
        "shape": _three(geometry),
        "ndim": geometry.ndim,
        "unit": sample.unit,
        "channels": len(sample.image),
        "spacing": [round(step, 4) for step in geometry.spacing],
        "spacing_known": geometry.spacing_known,
        "windows": windows,
        "ras": to_ras(geometry).tolist(),
    }
