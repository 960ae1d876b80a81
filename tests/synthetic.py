"""An explanation made by hand, in two or three dimensions: one word looks at a box, another one nowhere."""

import re
from dataclasses import replace
from typing import Any

import numpy as np

from voxplain import recipes
from voxplain.geometry import regular
from voxplain.maps import Attribution, Explanation, Sample, Trajectory
from voxplain.tokens import TokenizedPrompt, Word, label

PROMPT = "Large <b>effusion</b> & effusion in the left lung"


def tokenized(text: str = PROMPT, padding: int = 3) -> TokenizedPrompt:
    """One piece a word, between a start and an end token, and some padding."""
    spans = [match.span() for match in re.finditer(r"\w+", text)]
    pieces = ("[start]", *(text[a:b] for a, b in spans), "[end]", *["[pad]"] * padding)
    every = (None, *spans, None, *[None] * padding)
    return TokenizedPrompt(text, tuple(range(len(pieces))), pieces, every, start=0, end=len(spans) + 1)


def explained(shape: tuple[int, ...] = (8, 12, 16), text: str = PROMPT, unit: str = "HU") -> Explanation:
    """The explanation: each word is bright in its own corner of a grid of half the size; "the" is uniform."""
    rng = np.random.default_rng(0)
    prompt = tokenized(text)
    geometry = regular(shape, [5.0 + axis for axis in range(len(shape))], [-30.0, 10.0, 7.5][: len(shape)])
    grid = tuple(size // 2 for size in shape)
    maps = rng.uniform(0.1, 0.2, (len(prompt.kept), *grid))
    for word in prompt.words:
        corner = tuple(
            slice(size // 2) if (word.rows[0] >> axis) & 1 else slice(size // 2, None) for axis, size in enumerate(grid)
        )
        maps[(list(word.rows), *corner)] += 0.0 if word.text == "the" else 1.0
    padding = rng.uniform(0.1, 0.2, grid)
    total = maps.sum(0) + padding
    common: dict[str, Any] = {"prompt": prompt, "geometry": geometry.at(grid), "image_geometry": geometry}
    control = {"a word/with ../odd signs": rng.uniform(0, 1, grid)}
    mean = Attribution(maps / total, padding / total, recipe=recipes.get("mean"), controls=control, **common)
    effect = Attribution(
        maps**2, np.zeros(grid), recipe=recipes.get("effect"), provenance={"removed": "after"}, **common
    )
    effect = replace(effect, phrases={prompt.words[-2].rows + prompt.words[-1].rows: rng.uniform(0, 1, grid)})
    honesty = {label(word): _honesty(word) for word in prompt.words}
    return Explanation(
        sample=Sample(rng.uniform(-1000, 400, (1, *shape)), geometry, text, {"seed": 3}, unit),
        prompt=prompt,
        attributions={"mean": mean, "effect": effect},
        provenance={"seed": 3, "model": {"name": "toy <model>", "sha256": "0" * 64}, "timings": {"generate": 1.25}},
        states=Trajectory(rng.normal(size=(2, 4, *grid)), (900.0, 100.0), (1, 7)),
        honesty=honesty,
    )


def _honesty(word: Word) -> dict[str, Any]:
    near = {"word": "left", "correlation": 0.3}
    known = {"mass": 0.1, "distinctness": 0.5 + 0.01 * word.rows[0], "nearest": near, "distinguishable": True}
    mean = {**known, "null_distinctness": 0.2}
    if word.text == "the":
        mean = {**mean, "distinctness": 0.1, "distinguishable": False}
    return {
        **known,
        "distinguishable": mean["distinguishable"],
        "recipes": {"mean": mean, "effect": {**known, "null_distinctness": None}},
        "agreement": {"rank_correlation": 0.7, "top10_overlap": None},
    }
