"""Many cases times many metrics: a table of scores, and its summary with counts and intervals."""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from voxplain.maps import Heatmap, Mask
from voxplain.metrics.base import Undefined
from voxplain.metrics.boxes import box_iou, center_distance
from voxplain.metrics.localization import (
    auc_roc,
    average_precision,
    chance_level,
    cnr,
    mass_inside,
    pointing_game,
)
from voxplain.metrics.overlap import (
    coverage,
    daam_iou,
    dice,
    foreground_background_iou,
    intensity,
    iou,
    mean_iou,
    mixture_mask,
    oracle_iou,
)
from voxplain.metrics.statistics import Interval, bootstrap, mean_of_groups

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
"""(scores, truth, region or None) -> value; raises `Undefined` where it has none."""
MaskMetric = Callable[[Mask, Mask], float]
"""(prediction, truth) in one geometry -> value; raises `Undefined` where it has none."""


@dataclass(frozen=True, slots=True)
class Score:
    """One figure of one word in one case, over `n` observations, with an interval where there is one.

    A metric that has no value for the case gives NaN, n = 0 and the `reason`.
    """

    case: str
    word: str
    metric: str
    value: float
    n: int = 1
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Scores:
    """A table of figures."""

    rows: tuple[Score, ...]

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary a row, ready for JSON."""
        return [asdict(row) for row in self.rows]

    def mean(self) -> dict[str, float]:
        """The plain mean of each metric over its rows that have a value; `scoring.summarize` counts the others."""
        values: dict[str, list[float]] = {}
        for row in self.rows:
            if not np.isnan(row.value):
                values.setdefault(row.metric, []).append(row.value)
        return {metric: float(np.mean(each)) for metric, each in values.items()}


def _inside(metric: Metric) -> Metric:
    def inside(scores: np.ndarray, truth: np.ndarray, region: np.ndarray | None) -> float:
        if region is None:
            raise Undefined("the case names no region")
        return metric(scores, truth, region)

    return inside


METRICS: Mapping[str, Metric] = {
    "auc_roc": lambda scores, truth, region: auc_roc(scores, truth),
    "auc_roc_inside": _inside(auc_roc),
    "cnr": lambda scores, truth, region: cnr(scores, truth),
    "cnr_inside": _inside(lambda scores, truth, region: cnr(scores, truth, region=region)),
    "cnr_abs": lambda scores, truth, region: cnr(scores, truth, signed=False),
    "pointing_game": lambda scores, truth, region: pointing_game(scores, truth),
    "pointing_game_inside": _inside(pointing_game),
    "chance_level": lambda scores, truth, region: chance_level(truth),
    "chance_level_inside": _inside(lambda scores, truth, region: chance_level(truth, region)),
    "mass_inside": lambda scores, truth, region: mass_inside(scores, truth),
    "average_precision": lambda scores, truth, region: average_precision(scores, truth),
    "mean_iou": lambda scores, truth, region: mean_iou(scores, truth, scale="minmax"),
    "oracle_iou": lambda scores, truth, region: oracle_iou(scores, truth),
    "daam_iou_0.3": lambda scores, truth, region: daam_iou(scores, truth, tau=0.3),
    "daam_iou_0.4": lambda scores, truth, region: daam_iou(scores, truth, tau=0.4),
    "daam_iou_0.5": lambda scores, truth, region: daam_iou(scores, truth, tau=0.5),
    "coverage": lambda scores, truth, region: coverage(scores),
    "intensity": lambda scores, truth, region: intensity(scores),
}
MASK_METRICS: Mapping[str, MaskMetric] = {
    "mixture_iou": lambda found, truth: iou(found.values, truth.values),
    "mixture_dice": lambda found, truth: dice(found.values, truth.values),
    "foreground_background_iou": lambda found, truth: foreground_background_iou(found.values, truth.values),
    "box_iou": lambda found, truth: box_iou(found.values, truth.values),
    "center_distance": lambda found, truth: center_distance(found.values, truth.values, _millimeters(truth)),
}
"""Of the mask that `metrics.mixture_mask` cuts out of the heatmap on its own grid, brought to the truth afterwards."""
LOWER = frozenset({"center_distance"})
NEITHER = frozenset({"coverage", "intensity", "chance_level", "chance_level_inside"})
"""Metrics of which less is better, and of which neither is; of all others more is better."""
CHANCE: Mapping[str, float | str] = {
    "auc_roc": 0.5,
    "auc_roc_inside": 0.5,
    "cnr": 0.0,
    "cnr_inside": 0.0,
    "pointing_game": "chance_level",
    "pointing_game_inside": "chance_level_inside",
    "mass_inside": "chance_level",
    "average_precision": "chance_level",
    "oracle_iou": "chance_level",
    "daam_iou_0.3": "chance_level",
    "daam_iou_0.4": "chance_level",
    "daam_iou_0.5": "chance_level",
}
"""What a constant map earns (of CNR, which it has not, a map that does not know the truth on average): a number, or the
metric that says it case by case."""
DEFAULT = ("auc_roc", "auc_roc_inside", "cnr", "pointing_game", "chance_level")


@dataclass(frozen=True, slots=True)
class Summary:
    """One (word, metric) over its cases: the mean with its interval, and how many cases had no value, by reason.

    `interval` is None where no case had a value.
    """

    word: str
    metric: str
    interval: Interval | None
    undefined: Mapping[str, int]

    def to_dict(self) -> dict:
        """Plain numbers and texts, fit for JSON."""
        found = self.interval
        return {
            "word": self.word,
            "metric": self.metric,
            "n": found.n if found else 0,
            "mean": found.mean if found else None,
            "low": found.low if found else None,
            "high": found.high if found else None,
            "note": found.note if found else "no case has a value",
            "undefined": dict(self.undefined),
        }


def values(
    heatmap: Heatmap,
    truth: Mask,
    region: Mask | None = None,
    metrics: Iterable[str] | Mapping[str, Metric] = DEFAULT,
) -> dict[str, float | str]:
    """For each metric its value, or the reason why it has none.

    A heatmap on another grid over the same field of view is brought to the truth's first; `MASK_METRICS` cut their mask
    before that. `metrics` are names from `METRICS` and `MASK_METRICS`, or a mapping from names to functions. Raises
    ValueError where map, truth and region do not cover the same place.
    """
    chosen = metrics if isinstance(metrics, Mapping) else {name: _named(name) for name in metrics}
    if region is not None and not region.geometry.same_as(truth.geometry):
        raise ValueError(f"region {region.label!r} and truth {truth.label!r} differ in geometry")
    if not heatmap.geometry.at(truth.geometry.shape).same_as(truth.geometry):
        raise ValueError(
            f"map {heatmap.label!r} {heatmap.geometry.shape} and truth {truth.label!r} {truth.geometry.shape} do not "
            "cover the same field of view; bring both to one frame first"
        )
    scores = (heatmap if heatmap.geometry.same_as(truth.geometry) else heatmap.resize(truth.geometry)).values
    inside, predicted = None if region is None else region.values, cache(partial(_mixture, heatmap, truth))
    found: dict[str, float | str] = {}
    for name, metric in chosen.items():
        try:
            if metric is None:
                found[name] = MASK_METRICS[name](predicted(), truth)
            else:
                found[name] = metric(scores, truth.values, inside)
        except Undefined as error:
            found[name] = error.reason
    return found


def score(
    cases: Iterable[tuple[str, Heatmap, Mask, Mask | None]],
    metrics: Iterable[str] | Mapping[str, Metric] = DEFAULT,
) -> Scores:
    """One row per (case, metric), in order; the truth's label is the word.

    `cases` holds (case id, heatmap, truth, region that the text names or None), scored as by `values`. A metric
    without a value gives a row with value NaN, n = 0 and the reason; `summarize` counts such rows apart.
    """
    chosen, rows = metrics if isinstance(metrics, Mapping) else tuple(metrics), []
    for case, heatmap, truth, region in cases:
        try:
            found = values(heatmap, truth, region, chosen)
        except ValueError as error:
            raise ValueError(f"case {case!r}: {error}") from error
        rows += [scored(case, truth.label, name, value) for name, value in found.items()]
    return Scores(tuple(rows))


def scored(case: str, word: str, metric: str, value: float | str) -> Score:
    """A row of a value, or of the reason why there is none."""
    if isinstance(value, str):
        return Score(case, word, metric, math.nan, n=0, reason=value)
    return Score(case, word, metric, value)


def summarize(
    scores: Scores, *, clusters: Mapping[str, Hashable] | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[Summary, ...]:
    """One `Summary` per (word, metric) in order of appearance, with a bootstrap interval over cases.

    `clusters` says to which patient a case belongs: whole patients are drawn then. A case that it does not name is a
    patient of its own.
    """
    found = []
    for (word, metric), rows in _grouped(scores).items():
        defined = _defined(rows)
        options = {"clusters": _owners(rows, clusters), "confidence": confidence, "seed": seed}
        found.append(Summary(word, metric, bootstrap(defined, **options) if defined else None, _reasons(rows)))
    return tuple(found)


def overall(
    scores: Scores, *, clusters: Mapping[str, Hashable] | None = None, confidence: float = 0.95, seed: int = 0
) -> tuple[Summary, ...]:
    """Two `Summary` rows per metric: "mean over words" (each word weighs once) and "all rows" (each case weighs once).

    Shown together, since a common finding can carry the second alone. `clusters` as in `summarize`.
    """
    found, groups = [], _grouped(scores)
    for metric in dict.fromkeys(metric for _, metric in groups):
        each = [group for (_, name), group in groups.items() if name == metric]
        rows, some = [row for group in each for row in group], [group for group in each if _defined(group)]
        plain = weighted = None
        if some:
            owners = None if clusters is None else [_owners(group, clusters) or [] for group in some]
            options = {"confidence": confidence, "seed": seed}
            plain = mean_of_groups([_defined(group) for group in some], clusters=owners, **options)
            weighted = bootstrap(_defined(rows), clusters=_owners(rows, clusters), **options)
        found += [
            Summary("mean over words", metric, plain, _reasons(rows)),
            Summary("all rows", metric, weighted, _reasons(rows)),
        ]
    return tuple(found)


def _named(name: str) -> Metric | None:
    """The metric of that name; None for one of `MASK_METRICS`."""
    if name not in METRICS and name not in MASK_METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join([*METRICS, *MASK_METRICS])}")
    return METRICS.get(name)


def _mixture(heatmap: Heatmap, truth: Mask) -> Mask:
    return Mask(heatmap.label, mixture_mask(heatmap.values), heatmap.geometry).resize(truth.geometry)


def _millimeters(mask: Mask) -> tuple[float, ...] | None:
    return mask.geometry.spacing if mask.geometry.spacing_known else None


def _owners(rows: Iterable[Score], clusters: Mapping[str, Hashable] | None) -> list[Hashable] | None:
    """Whose each row with a value is."""
    if clusters is None:
        return None
    return [clusters.get(row.case, ("case", row.case)) for row in rows if not math.isnan(row.value)]


def _grouped(scores: Scores) -> dict[tuple[str, str], list[Score]]:
    groups: dict[tuple[str, str], list[Score]] = {}
    for row in scores.rows:
        groups.setdefault((row.word, row.metric), []).append(row)
    return groups


def _defined(rows: Iterable[Score]) -> list[float]:
    return [row.value for row in rows if not math.isnan(row.value)]


def _reasons(rows: Iterable[Score]) -> dict[str, int]:
    return dict(Counter(row.reason or "no reason given" for row in rows if math.isnan(row.value)))
