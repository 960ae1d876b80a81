"""What a picture or a page needs to know of each word: its maps, where to cut, and how far to trust it."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from voxplain.geometry import Geometry
from voxplain.maps import Attribution, Explanation, Heatmap, UnmeasuredError
from voxplain.tokens import TokenizedPrompt, label

UNSURE_TEXT = "not distinguishable"
TITLES = {"support": "borne out"}  # what recipes show that read no attention; the others, what was changed
FIRST = ("peak", "distinctness", "null_distinctness", "nearest")  # what a row of the table has of its first recipe
DETAIL = re.compile(r"(?P<of>.+?) (?:part (?P<part>\d+) of (?P<count>\d+)|layer (?P<layer>\S+))")


@dataclass(frozen=True, slots=True)
class WordView:
    """One word: its heatmap by recipe (None where a phrase was not measured), the voxel to cut at, its honesty.

    `verdicts` is `Explanation.sure` by recipe, and under None that of any recipe.
    """

    label: str
    heatmaps: Mapping[str, Heatmap | None]
    point: tuple[int, ...]  # index into the sample where the recipes together are highest
    honesty: Mapping[str, Any]
    verdicts: Mapping[str | None, bool]

    def sure(self, recipe: str | None = None) -> bool:
        """False if the recipe's map is no more distinct than that of a word that means nothing; None: any recipe's."""
        return self.verdicts[recipe]


def word_views(explanation: Explanation, words: Sequence[str] | None = None) -> Iterator[WordView]:
    """One view a word or phrase, in the order given; None takes every word of the prompt."""
    for each in _labels(explanation) if words is None else words:
        name = explanation.prompt.name(each)
        heatmaps = {recipe: _heatmap(explanation, name, recipe) for recipe in explanation.attributions}
        verdicts = {recipe: explanation.sure(name, recipe) for recipe in (None, *heatmaps)}
        yield WordView(name, heatmaps, _point(explanation, heatmaps), explanation.honesty.get(name, {}), verdicts)


def main_recipes(explanation: Explanation) -> list[str]:
    """The recipes of the sample that is shown, without those that are statistics over seeds."""
    every = explanation.attributions.items()
    return [name for name, attribution in every if "statistic" not in attribution.provenance]


def detail(name: str, attribution: Attribution) -> re.Match | None:
    """What a name says of a map of some of the steps ("mean part 1 of 4") or of one layer ("mean layer PATH")."""
    return DETAIL.fullmatch(name) if "statistic" in attribution.provenance else None


def measured_phrases(explanation: Explanation) -> list[str]:
    """The names of the phrases of several words that some recipe measured as a whole, in the order of the prompt."""
    prompt = explanation.prompt
    single = {word.rows for word in prompt.words}
    rows = {rows for item in explanation.attributions.values() for rows in item.phrases if rows not in single}
    return [_phrase(prompt, each) for each in sorted(rows)]


def best_words(explanation: Explanation, most: int, *, fill: bool = False) -> list[str]:
    """The labels of the `most` most distinct words that are distinguishable, in the order of the prompt.

    `fill` takes the most distinct of the others where there are too few. By what words changed, where that was
    measured: words of no content may be looked at in places of their own, but change little.
    """
    labels, recipes = _labels(explanation), main_recipes(explanation)
    recipes = ["effect"] if "effect" in recipes else recipes

    def score(label: str) -> float:
        known = explanation.honesty.get(label, {})
        return max((_facts(known, recipe).get("distinctness") or 0.0 for recipe in recipes), default=0.0)

    some = labels if fill else [one for one in labels if explanation.sure(one)] or labels
    ranked = sorted(some, key=lambda label: (not explanation.sure(label), -score(label)))[:most]
    return [label for label in labels if label in ranked]


def word_rows(explanation: Explanation) -> list[dict[str, Any]]:
    """The table of words, as plain values; None where something was not measured.

    `mass` is the word's share of the attention; `recipes` holds for each recipe the `peak` (LPS mm, x first),
    `distinctness`, `null_distinctness` (that of a word that means nothing), `distinguishable`, `nearest` (the word
    whose map is most like this one's, and their correlation) and `evidence` (-1 to 1, of recipe `support`); the first
    recipe's stand beside it, but
    `distinguishable` there is that of all; then the agreement of the recipes and the correlation between seeds.
    `unknown` is a word that training never showed.
    """
    mass, rows, unknown = attention_mass(explanation), [], unknown_labels(explanation)
    for view in word_views(explanation):
        agreement = view.honesty.get("agreement") or {}
        each = {}
        for recipe in main_recipes(explanation):
            facts, heatmap = _facts(view.honesty, recipe), view.heatmaps[recipe]
            near = facts.get("nearest") or {}
            each[recipe] = {
                "peak": heatmap and [round(float(x), 1) for x in _world(heatmap.geometry, heatmap.peak)],
                "distinctness": _number(facts.get("distinctness")),
                "null_distinctness": _number(facts.get("null_distinctness")),
                "distinguishable": facts.get("distinguishable"),
                "nearest": {"word": near.get("word"), "correlation": _number(near.get("correlation"))},
                "evidence": _number(_evidence(explanation, recipe).get(view.label)),
            }
        rows.append(
            {
                "word": view.label,
                "unknown": view.label in unknown,
                "mass": _number(mass.get(view.label, view.honesty.get("mass"))),
                **{key: next(iter(each.values()))[key] for key in FIRST},
                "distinguishable": view.honesty.get("distinguishable"),
                "recipes": each,
                "rank_correlation": _number(agreement.get("rank_correlation")),
                "top10_overlap": _number(agreement.get("top10_overlap")),
                "seed_correlation": _number((view.honesty.get("seeds") or {}).get("mean_correlation")),
            }
        )
    return rows


def _evidence(explanation: Explanation, recipe: str) -> Mapping[str, float]:
    """What the image says for each word, where the recipe `support` was measured."""
    return explanation.attributions[recipe].provenance.get("evidence", {})


def attention_mass(explanation: Explanation) -> dict[str, float]:
    """The share of attention on each word, "[start]", "[end]", "[other]", "[padding]"; empty without raw attention."""
    recipes = ((item.recipe, item) for item in explanation.attributions.values())
    return next((item.mass() for recipe, item in recipes if recipe.needs_attention and recipe.scaling == "raw"), {})


def image_note(explanation: Explanation) -> str:
    """Whether the image was made by the model, given to it or laid under its maps, as a sentence."""
    if elsewhere := explanation.provenance.get("shown_on"):
        return f"This image is {elsewhere['file']}; the maps were made with another one of the same place."
    given = "readout" in explanation.provenance
    return (
        "This image was given to the model, not made by it."
        if given
        else "This image is synthetic; it shows no patient."
    )


def origin(explanation: Explanation) -> dict[str, Any]:
    """How the image and its maps were made, by name."""
    return {**explanation.sample.provenance, **explanation.provenance}


def warnings_of(explanation: Explanation) -> list[str]:
    """What the reader should know about the prompt, one sentence each."""
    cut = explanation.prompt.truncated
    return list(origin(explanation).get("warnings", [f"The model never saw: {cut}"] if cut else []))


def unknown_labels(explanation: Explanation) -> set[str]:
    """The labels of the words that training never showed."""
    unknown = {str(word).casefold() for word in origin(explanation).get("unknown_words") or ()}
    return {label(word) for word in explanation.prompt.words if word.text.casefold() in unknown}


def recipe_title(attribution: Attribution) -> str:
    """What a recipe shows, in a word or two."""
    return "attended to" if attribution.recipe.needs_attention else TITLES.get(attribution.recipe.name, "changed")


def nearest_voxel(geometry: Geometry, source: Geometry, index: Sequence[int]) -> tuple[int, ...]:
    """The voxel of `geometry` that holds a cell's center of another geometry."""
    found = np.rint(geometry.index(_world(source, index)[None])[0]).astype(int)
    return tuple(int(value) for value in np.clip(found, 0, np.array(geometry.shape) - 1))


def _labels(explanation: Explanation) -> list[str]:
    first = next(iter(explanation.attributions.values()), None)
    return [heatmap.label for heatmap in first.words()] if first else []


def _facts(honesty: Mapping[str, Any], recipe: str | None) -> Mapping[str, Any]:
    """What is known of the word in this recipe; of the word as such where recipes were not told apart."""
    return (honesty.get("recipes") or {}).get(recipe, honesty)


def _phrase(prompt: TokenizedPrompt, rows: tuple[int, ...]) -> str:
    spans = [span for row in rows if (span := prompt.spans[prompt.kept[row]])]
    text = prompt.text[spans[0][0] : spans[-1][1]]
    number = next(n for n in count() if prompt.find(text, n) == rows)
    return prompt.name(text, number)


def _heatmap(explanation: Explanation, label: str, recipe: str) -> Heatmap | None:
    try:
        return explanation.word(label, recipe=recipe)
    except UnmeasuredError:
        return None


def _point(explanation: Explanation, heatmaps: Mapping[str, Heatmap | None]) -> tuple[int, ...]:
    target = explanation.sample.geometry
    main = [heatmap for name in main_recipes(explanation) if (heatmap := heatmaps[name]) is not None]
    measured = [heatmap for heatmap in main if heatmap.values.max() > 0]
    if not measured:
        return tuple(size // 2 for size in target.shape)
    finest = max(measured, key=lambda heatmap: heatmap.values.size).geometry
    total = np.sum([heatmap.resize(finest).values / heatmap.values.max() for heatmap in measured], axis=0)
    peak = [int(index) for index in np.unravel_index(int(total.argmax()), total.shape)]
    return nearest_voxel(target, finest, peak)


def _world(geometry: Geometry, index: Sequence[int]) -> np.ndarray:
    return geometry.world(np.array([index], float))[0]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
