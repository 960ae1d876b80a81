"""How far a word's map can be believed (ours): its mass, how distinct it is, and whether two recipes agree.

Null words mean nothing here: two function words that the prompt does not hold, appended to it and passed through the
network at the stored states, so that the sample itself never saw them. Distinctness of a map: 1 - its mean Pearson
correlation, over cells, with the maps of the null words; of a null word's own map, with those of the others. A word is
*distinguishable* if its map is more distinct than that of every null word; otherwise nothing in the map sets the word
apart from one without meaning, and no confident mask should be made of it. Words of one phrase rightly share a map, so
likeness to other words of the prompt is told (`nearest`) but does not count against a word.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float

from voxplain.maps import Attribution
from voxplain.metrics import rank_correlation, top_overlap
from voxplain.resampling import resample
from voxplain.tokens import TokenizedPrompt, Word, label

# Words that say nothing about what an image shows: they are never named as the nearest to another word.
FUNCTION_WORDS = frozenset(
    "a an and are at by for from has in is no of on or the there to with within without".split()  # noqa: SIM905
)
NULL_WORDS = ("and", "of", "the", "there", "with", "is", "for", "by")  # the first two that are free are taken


def null_words(prompt: TokenizedPrompt) -> tuple[str, str]:
    """The first two of `NULL_WORDS` that the prompt does not hold; the last two if it holds all."""
    present = {word.text.casefold() for word in prompt.words}
    free = [word for word in NULL_WORDS if word not in present]
    first, second = (free + list(NULL_WORDS[-2:]))[:2]
    return first, second


def with_null_words(prompt: TokenizedPrompt, tokenize: Any) -> TokenizedPrompt:
    """The prompt with its null words after it; where the context is full, they take the place of its last words."""
    nulls = null_words(prompt)
    ends = [word.span[1] for word in prompt.words][::-1]
    for end in [len(prompt.text) if prompt.cut is None else prompt.cut, *ends, 0]:
        longer = tokenize(f"{prompt.text[:end].rstrip()} {' '.join(nulls)}".strip())
        if not longer.truncated:
            return longer
    raise ValueError(f"a context of {len(prompt.ids)} positions cannot hold two words")


def correlations(maps: Float[np.ndarray, "maps *grid"]) -> Float[np.ndarray, "maps maps"]:
    """Pearson correlation over cells of every pair of maps; 0 where one of them is flat."""
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat - flat.mean(1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    varied = ~np.array([_is_flat(one) for one in maps])[:, None]
    flat = np.divide(flat, norms, out=np.zeros_like(flat), where=varied)
    return np.clip(flat @ flat.T, -1, 1)


def distinctness(attribution: Attribution) -> tuple[list[dict[str, float | None]], list[dict[str, float | None]]]:
    """For each word, and for each null word (`controls`): `distinctness`, 0 to 2; None without null words.

    It is 1 - the mean correlation with the maps of the null words, without itself and without flat ones. A flat map
    shows nothing and scores 0. Where all null words are flat any other map scores 1; where all others are, a null word
    scores 0: it is no bar to anything but its own copies.
    """
    values = [_map(attribution, word) for word in attribution.prompt.words]
    if not values:
        return [], []
    maps, count = np.stack([*values, *attribution.controls.values()]), len(values)  # [words + nulls, *grid]
    related, flat = correlations(maps), [_is_flat(one) for one in maps]
    found: list[dict[str, float | None]] = []
    for index in range(len(maps)):
        others = [k for k in range(count, len(maps)) if k != index and not flat[k]]
        score = float(index < count and not flat[index])
        if others and not flat[index]:
            score = round(1.0 - float(np.mean(related[index, others])), 6)  # equal maps differ by rounding
        found.append({"distinctness": score if attribution.controls else None})
    return found[:count], found[count:]


def nearest(attribution: Attribution) -> list[dict[str, Any]]:
    """For each word: the content word of the prompt whose map is most like its own, and their `correlation`, -1 to 1.

    The same word said twice is not another word. Both are None for a flat map and for a word that has no other.
    """
    words = attribution.prompt.words
    if not words:
        return []
    maps = np.stack([_map(attribution, word) for word in words])
    related, names = correlations(maps), [word.text.casefold() for word in words]
    found: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        others = [k for k, other in enumerate(names) if other not in FUNCTION_WORDS and other != name]
        best = max(others, key=lambda k: related[index, k], default=None)
        if best is None or _is_flat(maps[index]):
            found.append({"word": None, "correlation": None})
        else:
            found.append({"word": label(words[best]), "correlation": round(float(related[index, best]), 6)})
    return found


def agreement(first: Float[np.ndarray, "*grid"], second: Float[np.ndarray, "*cells"]) -> dict[str, float | None]:
    """Spearman's rank correlation (-1 to 1) of two maps, and the share (0 to 1) of their top tenth that both have.

    Maps without relation score 0 and, on average, 0.1. A coarser map is first brought to the finer grid
    (linear). Ties are as in `metrics.rank_correlation` and `metrics.top_overlap`. None for both where a map is flat: it
    ranks nothing.
    """
    finer = max(first.shape, second.shape, key=np.prod)
    a, b = (resample(values[None], finer)[0] for values in (first, second))
    if _is_flat(a) or _is_flat(b):
        return {"rank_correlation": None, "top10_overlap": None}
    return {"rank_correlation": rank_correlation(a, b), "top10_overlap": top_overlap(a, b, fraction=0.1)}


def judge(attributions: Mapping[str, Attribution]) -> dict[str, dict[str, Any]]:
    """What is known of each word, by its label, as plain values.

    `recipes` holds for each recipe `mass` (share of all mass; None on a logarithmic scale), `distinctness`, `nearest`
    (another word, and the correlation with its map), `null_distinctness` (the null words' highest) and
    `distinguishable` (None without null words): more distinct than they are, or, where `support` measured evidence,
    with more of it than the null words have for or against them. Beside it stand the first recipe's mass, distinctness
    and nearest, `distinguishable` (in every recipe), and, where "mean" and "effect" are both there, their `agreement`.
    """
    entries: dict[str, dict[str, Any]] = {}
    for recipe, attribution in attributions.items():
        shares = attribution.mass() if attribution.recipe.scaling != "log_ratio" else {}  # logarithms have no mass
        own, nulls = distinctness(attribution)
        floor = max((null["distinctness"] or 0.0 for null in nulls), default=None)
        for word, facts, near in zip(attribution.prompt.words, own, nearest(attribution), strict=True):
            known = {"mass": shares.get(label(word)), **facts, "nearest": near}
            verdict = None if floor is None else (facts["distinctness"] or 0.0) > floor
            if nothing := attribution.provenance.get("null_evidence"):
                verdict = attribution.provenance["evidence"][label(word)] > max(map(abs, nothing.values()))
            entry = entries.setdefault(label(word), {**known, "distinguishable": None, "recipes": {}})
            entry["recipes"][recipe] = {**known, "null_distinctness": floor, "distinguishable": verdict}
    for entry in entries.values():
        verdicts = [facts["distinguishable"] for facts in entry["recipes"].values()]
        entry["distinguishable"] = None if None in verdicts else all(verdicts)
    if {"mean", "effect"} <= attributions.keys():
        for mean, effect in zip(attributions["mean"].words(), attributions["effect"].words(), strict=True):
            entries[mean.label]["agreement"] = agreement(mean.values, effect.values)
    return entries


def spread(runs: Sequence[Attribution]) -> tuple[Attribution, Attribution]:
    """Mean and standard deviation (over n, not n - 1) of the maps of several seeds, cell by cell.

    The deviation of a word of several pieces is that of its map, which is not the mean of its pieces' deviations: it is
    kept as a phrase, as are the spans that every run measured as a whole. Controls are left out.
    """
    _same(runs)
    seeds = [run.provenance.get("seed") for run in runs]
    spans = [word.rows for word in runs[0].prompt.words if len(word.rows) > 1]
    whole = [rows for rows in runs[0].phrases if all(rows in run.phrases for run in runs)]
    results = []
    for name, over in (("mean over seeds", np.mean), ("standard deviation over seeds", np.std)):
        maps, padding = (over([getattr(run, part) for run in runs], axis=0) for part in ("maps", "padding"))
        phrases = {rows: over([run.maps[list(rows)].mean(0) for run in runs], axis=0) for rows in spans}
        phrases |= {rows: over([run.phrases[rows] for run in runs], axis=0) for rows in whole}
        provenance = {**runs[0].provenance, "seed": seeds, "statistic": name}
        results.append(
            replace(runs[0], maps=maps, padding=padding, provenance=provenance, phrases=phrases, controls={})
        )
    return results[0], results[1]


def stability(runs: Sequence[Attribution]) -> dict[str, float]:
    """For each word, the mean Pearson correlation of its maps between every two seeds (1: the seed does not matter)."""
    _same(runs)
    pairs = list(combinations(range(len(runs)), 2))
    found = {}
    for word in runs[0].prompt.words:
        related = correlations(np.stack([_map(run, word) for run in runs]))
        found[label(word)] = float(np.mean([related[pair] for pair in pairs]))
    return found


def _map(attribution: Attribution, word: Word) -> Float[np.ndarray, "*grid"]:
    return attribution.maps[list(word.rows)].mean(0)


def _is_flat(values: np.ndarray) -> bool:
    """Whether nothing but the rounding of float32 tells the cells apart."""
    return bool(np.ptp(values) <= 1e-6 * np.abs(values).max())


def _same(runs: Sequence[Attribution]) -> None:
    if len({(run.prompt.text, run.recipe.name, run.maps.shape) for run in runs}) != 1 or len(runs) < 2:
        raise ValueError("give two or more attributions of one prompt by one recipe")
