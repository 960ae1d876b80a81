"""From the rows of an evaluation to its tables: every figure with its interval, its n, its controls and its chance."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voxplain.metrics.base import Undefined
from voxplain.metrics.significance import holm, sign_flip
from voxplain.metrics.statistics import paired_gain
from voxplain.scoring import CHANCE, LOWER, NEITHER, Scores, Summary, overall, scored, summarize
from voxplain.view.tables import Cell, Spread, Table

Row = Mapping[str, Any]

MAIN = (
    "auc_roc_inside",
    "auc_roc",
    "cnr",
    "cnr_inside",
    "average_precision",
    "pointing_game",
    "pointing_game_inside",
    "mass_inside",
    "daam_iou_0.3",
    "daam_iou_0.4",
    "daam_iou_0.5",
)
"""Metrics that are shown finding by finding, with all controls; of all others the methods' overall means are."""
GAINS = ("auc_roc_inside", "auc_roc", "cnr")
SWAPPED = ", truth of a case with the same text"  # a map against what it cannot know: another case's truth
PLAIN, WEIGHTED = "mean over findings", "all cases"


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of the cases that could be scored; `methods` are the maps that are judged, all others are controls."""

    rows: tuple[Row, ...]
    methods: tuple[str, ...]

    @property
    def maps(self) -> tuple[str, ...]:
        """The names of all maps, methods first, as far as any case has them; the swapped truth of the first alone."""
        every = dict.fromkeys(name for row in self.rows for name in row["maps"])
        found = [name for name in every if not name.endswith(SWAPPED) or name == self.methods[0] + SWAPPED]
        return tuple(sorted(found, key=lambda name: (name not in self.methods, found.index(name))))

    @property
    def labels(self) -> tuple[str, ...]:
        """The findings, in order of appearance."""
        return tuple(dict.fromkeys(row["label"] for row in self.rows))

    def scores(self, name: str, metrics: Iterable[str] | None = None, column: str = "label") -> Scores:
        """The scores of a map, under the finding (or another column) of each case."""
        wanted = None if metrics is None else set(metrics)
        return Scores(
            tuple(
                scored(row["case"], row[column], metric, value)
                for row in self.rows
                for metric, value in row["maps"].get(name, {}).items()
                if wanted is None or metric in wanted
            )
        )

    def patients(self) -> dict[str, str]:
        """Whose each case is."""
        return {row["case"]: row["patient"] or row["case"] for row in self.rows}

    def summaries(self, name: str) -> tuple[Summary, ...]:
        """Each metric of a map by finding, and both ways to average: all metrics of a method, `MAIN` of a control."""
        chosen = self.scores(name, None if name in self.methods else MAIN)
        both = [
            Summary(PLAIN if one.word == "mean over words" else WEIGHTED, one.metric, one.interval, one.undefined)
            for one in overall(chosen, clusters=self.patients())
        ]
        return (*summarize(chosen, clusters=self.patients()), *both)


Found = Mapping[str, Mapping[tuple[str, str], Summary]]  # map -> (finding, metric) -> summary


def found_of(measured: Measured) -> Found:
    """Every summary of every map."""
    return {name: {(one.word, one.metric): one for one in measured.summaries(name)} for name in measured.maps}


def spread(summary: Summary | None) -> Spread | None:
    """The mean with its interval; None where no case had a value."""
    if summary is None or summary.interval is None:
        return None
    return summary.interval.mean, summary.interval.low, summary.interval.high


def count(summary: Summary | None) -> int:
    return 0 if summary is None or summary.interval is None else summary.interval.n


def chance(found: Mapping[tuple[str, str], Summary], finding: str, metric: str) -> float | None:
    """What a constant map earns, on average over the cases of a finding; None where nobody can say."""
    known = CHANCE.get(metric)
    if isinstance(known, str):
        mean = spread(found.get((finding, known)))
        return None if mean is None else mean[0]
    return known


def finding_tables(measured: Measured, found: Found) -> list[Table]:
    """One table for each main metric: findings down, methods and controls across, with n and chance."""
    lead, tables = measured.methods[0], []
    for metric in MAIN:
        if spread(found[lead].get((WEIGHTED, metric))) is None:
            continue
        lines: list[tuple[Cell, ...]] = []
        for finding in (*measured.labels, PLAIN, WEIGHTED):
            of = found[lead].get((finding, metric))
            used = count(of)
            without = sum(of.undefined.values()) if of is not None else 0
            cells = [spread(found[name].get((finding, metric))) for name in measured.maps]
            lines.append((finding, used, without, *cells, chance(found[lead], finding, metric)))
        counts = {name: count(found[name].get((WEIGHTED, metric))) for name in measured.maps}
        fewer = ", ".join(f"{name} {n}" for name, n in counts.items() if 0 < n < counts[lead])
        note = (
            f"n counts cases with a value, {lead}; intervals of 95% draw whole patients. {PLAIN!r} weighs each finding "
            f"once, {WEIGHTED!r} each case.{f' Of fewer cases: {fewer}.' if fewer else ''}"
        )
        columns = ("finding", "n", "without a value", *measured.maps, "chance")
        tables.append(Table(metric, f"{metric} ({direction(metric)})", columns, tuple(lines), note))
    return tables


def direction(metric: str) -> str:
    """Which way is better, in words."""
    return "neither way is better" if metric in NEITHER else f"{'lower' if metric in LOWER else 'higher'} is better"


def overview(measured: Measured, found: Found) -> Table:
    """Every metric of every method, averaged both ways."""
    lead = measured.methods[0]
    metrics = dict.fromkeys(metric for _, metric in found[lead])
    columns = ["metric", "better", "n", "without a value"]
    columns += [f"{name}, {way}" for name in measured.methods for way in (PLAIN, WEIGHTED)]
    lines: list[tuple[Cell, ...]] = []
    for metric in metrics:
        of = found[lead][WEIGHTED, metric]
        better = direction(metric).removesuffix(" is better")
        cells = [spread(found[name].get((way, metric))) for name in measured.methods for way in (PLAIN, WEIGHTED)]
        without = sum(of.undefined.values())
        lines.append((metric, better, count(of), without, *cells, chance(found[lead], WEIGHTED, metric)))
    note = (
        "oracle_iou chooses its threshold with the truth in hand: a bound and no result. mean_iou is of the map "
        "brought to 0 to 1. mixture, box and center figures are of the mask that a mixture of two Gaussians cuts out."
    )
    return Table("overview", "All metrics", (*columns, "chance"), tuple(lines), note)


def gain_table(measured: Measured) -> Table | None:
    """What the first method has over every other map, case by case, and whether that could be chance."""
    lead = measured.methods[0]
    pairs = {name: (lead, name) for name in measured.maps if name != lead}
    note = f"Differences case by case, {lead} less the other map; {_TESTED}"
    return _gains("gains", f"{lead} over everything else", "over", measured, pairs, note)


def swap_table(measured: Measured) -> Table | None:
    """What each method finds of its own case beyond what the text says: less its score against another case's truth."""
    known = {name for row in measured.rows for name in row["maps"]}
    pairs = {name: (name, name + SWAPPED) for name in measured.methods if name + SWAPPED in known}
    note = (
        "Each map against the truth of its case, less the same map against the truth of another case of the very same "
        f"text: 0 is what the text alone could tell. {_TESTED[0].upper()}{_TESTED[1:]}"
    )
    return _gains("swapped", "Own truth over another's", "method", measured, pairs, note)


_TESTED = "p by flipping signs of the patients' mean differences, adjusted for all rows of a column (Holm)."


def _gains(
    name: str, title: str, first: str, measured: Measured, pairs: Mapping[str, tuple[str, str]], note: str
) -> Table | None:
    """For each pair of maps the paired difference of the scores of `GAINS`; None where there is no pair or score."""
    patients, columns = measured.patients(), [first]
    cells: list[list[Cell]] = [[one] for one in pairs]
    for metric in GAINS if pairs else ():
        if not any(_values(measured, ours, metric) for ours, _ in pairs.values()):
            continue
        columns += [f"{metric}: gain", f"{metric}: n", f"{metric}: p (Holm)"]
        chances = []
        for line, names in zip(cells, pairs.values(), strict=True):
            ours, theirs = (_values(measured, one, metric) for one in names)
            both = [case for case in ours if case in theirs]
            owners = [patients[case] for case in both]
            gain = paired_gain([ours[c] for c in both], [theirs[c] for c in both], clusters=owners) if both else None
            line += [None if gain is None else (gain.mean, gain.low, gain.high), len(both), None]
            chances.append(_p([ours[case] - theirs[case] for case in both], owners))
        tested = [place for place, p in enumerate(chances) if p is not None]
        for place, p in zip(tested, holm([chances[place] or 0.0 for place in tested]) if tested else (), strict=True):
            cells[place][-1] = float(p)
    return Table(name, title, tuple(columns), tuple(map(tuple, cells)), note) if len(columns) > 1 else None


def group_table(measured: Measured) -> Table | None:
    """The main metrics by group of cases, such as pairs that training never showed; None for one group."""
    groups = dict.fromkeys(row["group"] for row in measured.rows)
    if len(groups) < 2:
        return None
    lines: list[tuple[Cell, ...]] = []
    for metric in MAIN:
        scores = {name: measured.scores(name, (metric,), "group") for name in measured.maps}
        of = {
            name: {one.word: one for one in summarize(each, clusters=measured.patients())}
            for name, each in scores.items()
        }
        for group in groups:
            lead = of[measured.methods[0]].get(group)
            if lead is not None and lead.interval is not None:
                cells = [spread(of[name].get(group)) for name in measured.maps]
                lines.append((f"{metric}, {group or 'no group'}", lead.interval.n, *cells))
    return Table("groups", "By group of cases", ("metric and group", "n", *measured.maps), tuple(lines))


def cost_table(measured: Measured) -> Table | None:
    """What a map took, a case, on average; None where maps were made before."""
    names = [name for name in measured.methods if any(name in row.get("cost", {}) for row in measured.rows)]
    if not names:
        return None
    lines = []
    for name in names:
        costs = np.array([row["cost"][name] for row in measured.rows if name in row["cost"]], float)
        lines.append((name, len(costs), *(float(mean) for mean in costs.mean(0))))
    columns = ("method", "cases", "rows forward", "rows backward", "CPU seconds")
    note = "Rows of the denoiser (one state with one text each), and CPU seconds of the process that ran it, a case."
    return Table("cost", "What a map took", columns, tuple(lines), note)


def excluded_table(measured: Measured, failed: Iterable[Row], left_out: Mapping[str, int]) -> Table:
    """Everything that was not scored, by reason."""
    lines: list[tuple[Cell, ...]] = [("left out of the data set", reason, n) for reason, n in left_out.items()]
    lines += [("case not scored", reason, n) for reason, n in Counter(row["failed"] for row in failed).most_common()]
    lead = measured.methods[0]
    for one in overall(measured.scores(lead)):
        if one.word == "all rows":
            lines += [(f"{one.metric} without a value", reason, n) for reason, n in one.undefined.items()]
    return Table("excluded", "What was not scored", ("what", "reason", "cases"), tuple(lines))


def _values(measured: Measured, name: str, metric: str) -> dict[str, float]:
    return {row.case: row.value for row in measured.scores(name, (metric,)).rows if not math.isnan(row.value)}


def _p(differences: Sequence[float], owners: Sequence[str]) -> float | None:
    """The chance of patients' mean differences as far from 0 as these; None where it cannot be tested."""
    groups: dict[str, list[float]] = {}
    for gap, owner in zip(differences, owners, strict=True):
        groups.setdefault(owner, []).append(gap)
    try:
        return sign_flip([float(np.mean(gaps)) for gaps in groups.values()]).p
    except Undefined:
        return None
