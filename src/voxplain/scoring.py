"""Many cases times many metrics: a table of scores, and its summary with counts and intervals."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from voxplain.maps import Heatmap, Mask
from voxplain.metrics.base import Undefined
from voxplain.metrics.localization import (
    auc_roc,
    chance_level,
    cnr,
    mass_inside,
    pointing_game,
)
from voxplain.metrics.statistics import Interval, bootstrap, mean_of_groups

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray | None], float]
"""(scores, truth, region or None) -> value; raises `Undefined` where it has none."""


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
}
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


def score(
    cases: Iterable[tuple[str, Heatmap, Mask, Mask | None]],
    metrics: Iterable[str] | Mapping[str, Metric] = DEFAULT,
) -> Scores:
    """One row per (case, metric), in order; the truth's label is the word.

    `cases` holds (case id, heatmap, truth, region that the text names or None). A heatmap on a coarser grid is brought
    to the truth's geometry first. `metrics` are names from `METRICS` or a mapping from names to functions. A metric
    without a value gives a row with value NaN, n = 0 and the reason; `summarize` counts such rows apart.
    """
    chosen = metrics if isinstance(metrics, Mapping) else {name: _named(name) for name in metrics}
    rows = []
    for case, heatmap, truth, region in cases:
        scores = (heatmap if heatmap.geometry.same_as(truth.geometry) else heatmap.resize(truth.geometry)).values
        if region is not None and not region.geometry.same_as(truth.geometry):
            raise ValueError(f"case {case!r}: region {region.label!r} and truth {truth.label!r} differ in geometry")
        inside = None if region is None else region.values
        for name, metric in chosen.items():
            try:
                rows.append(Score(case, truth.label, name, metric(scores, truth.values, inside)))
            except Undefined as error:
                rows.append(Score(case, truth.label, name, math.nan, n=0, reason=error.reason))
    return Scores(tuple(rows))


def summarize(scores: Scores, *, confidence: float = 0.95, seed: int = 0) -> tuple[Summary, ...]:
    """One `Summary` per (word, metric) in order of appearance, with a bootstrap interval over cases."""
    found = []
    for (word, metric), rows in _grouped(scores).items():
        values = _defined(rows)
        interval = bootstrap(values, confidence=confidence, seed=seed) if values else None
        found.append(Summary(word, metric, interval, _reasons(rows)))
    return tuple(found)


def overall(scores: Scores, *, confidence: float = 0.95, seed: int = 0) -> tuple[Summary, ...]:
    """Two `Summary` rows per metric: "mean over words" (each word weighs once) and "all rows" (each case weighs once).

    Shown together, since a common finding can carry the second alone.
    """
    found = []
    groups = _grouped(scores)
    for metric in dict.fromkeys(metric for _, metric in groups):
        rows = [row for (_, name), group in groups.items() if name == metric for row in group]
        words = [values for (_, name), group in groups.items() if name == metric and (values := _defined(group))]
        plain = mean_of_groups(words, confidence=confidence, seed=seed) if words else None
        values = _defined(rows)
        weighted = bootstrap(values, confidence=confidence, seed=seed) if values else None
        found += [
            Summary("mean over words", metric, plain, _reasons(rows)),
            Summary("all rows", metric, weighted, _reasons(rows)),
        ]
    return tuple(found)


def _named(name: str) -> Metric:
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def _grouped(scores: Scores) -> dict[tuple[str, str], list[Score]]:
    groups: dict[tuple[str, str], list[Score]] = {}
    for row in scores.rows:
        groups.setdefault((row.word, row.metric), []).append(row)
    return groups


def _defined(rows: Iterable[Score]) -> list[float]:
    return [row.value for row in rows if not math.isnan(row.value)]


def _reasons(rows: Iterable[Score]) -> dict[str, int]:
    return dict(Counter(row.reason or "no reason given" for row in rows if math.isnan(row.value)))
