"""From the rows of an evaluation to its tables: every figure with its interval, its n, its controls and its chance."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
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
)
"""Metrics that are shown finding by finding, with all controls; of all others the methods' overall means are."""
GAINS = ("auc_roc_inside", "auc_roc", "cnr")
PLAIN, WEIGHTED = "mean over findings", "all cases"
ALIKE = {  # what the published tables call a kind of phantom finding
    "effusion": "Pleural Effusion",
    "consolidation": "Consolidation",
    "pneumothorax": "Pneumothorax",
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of the cases that could be scored; `methods` are the maps that are judged, all others are controls."""

    rows: tuple[Row, ...]
    methods: tuple[str, ...]

    @property
    def maps(self) -> tuple[str, ...]:
        """The names of all maps, methods first, as far as any case has them."""
        found = dict.fromkeys(name for row in self.rows for name in row["maps"])
        return tuple(sorted(found, key=lambda name: (name not in self.methods, list(found).index(name))))

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
            used = of.interval.n if of is not None and of.interval else 0
            without = sum(of.undefined.values()) if of is not None else 0
            cells = [spread(found[name].get((finding, metric))) for name in measured.maps]
            lines.append((finding, used, without, *cells, chance(found[lead], finding, metric)))
        note = (
            f"n counts cases with a value, {lead}; intervals of 95% draw whole patients. {PLAIN!r} weighs each finding "
            f"once, {WEIGHTED!r} each case."
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
        used = of.interval.n if of.interval else 0
        lines.append((metric, better, used, sum(of.undefined.values()), *cells, chance(found[lead], WEIGHTED, metric)))
    note = (
        "oracle_iou chooses its threshold with the truth in hand: a bound and no result. mean_iou is of the map "
        "brought to 0 to 1. mixture, box and center figures are of the mask that a mixture of two Gaussians cuts out."
    )
    return Table("overview", "All metrics", (*columns, "chance"), tuple(lines), note)


def gain_table(measured: Measured) -> Table | None:
    """What the first method has over every other map, case by case, and whether that could be chance."""
    lead, patients = measured.methods[0], measured.patients()
    metrics = [metric for metric in GAINS if _values(measured, lead, metric)]
    others = [name for name in measured.maps if name != lead]
    if not others or not metrics:
        return None
    columns: list[str] = ["over"]
    cells: list[list[Cell]] = [[name] for name in others]
    for metric in metrics:
        ours, chances = _values(measured, lead, metric), []
        columns += [f"{metric}: gain", f"{metric}: n", f"{metric}: p (Holm)"]
        for line, name in zip(cells, others, strict=True):
            theirs = _values(measured, name, metric)
            both = [case for case in ours if case in theirs]
            owners = [patients[case] for case in both]
            gain = paired_gain([ours[c] for c in both], [theirs[c] for c in both], clusters=owners) if both else None
            line += [None if gain is None else (gain.mean, gain.low, gain.high), len(both), None]
            chances.append(_p([ours[case] - theirs[case] for case in both], owners))
        tested = [place for place, p in enumerate(chances) if p is not None]
        for place, p in zip(tested, holm([chances[place] or 0.0 for place in tested]) if tested else (), strict=True):
            cells[place][-1] = float(p)
    note = (
        f"Differences case by case, {lead} less the other map; p by flipping signs of the patients' mean differences, "
        "adjusted for all rows of a column (Holm)."
    )
    return Table("gains", f"{lead} over everything else", tuple(columns), tuple(map(tuple, cells)), note)


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


def published_tables(measured: Measured, found: Found, data: str) -> list[tuple[Mapping[str, Any], list[Table]]]:
    """Papers whose figures can stand beside ours, as `benchmark_published.json` has them, and a table a metric of each.

    A paper that names its `data` stands beside that data only; others beside findings that they have, too.
    """
    text = files("voxplain.studies").joinpath("benchmark_published.json").read_text("utf-8")
    papers = [paper for paper in json.loads(text)["papers"] if data.startswith(paper.get("data", ""))]
    made = [(paper, list(_beside(paper, measured, found[measured.methods[0]]))) for paper in papers]
    return [(paper, tables) for paper, tables in made if tables]


def _beside(paper: Mapping[str, Any], measured: Measured, lead: Mapping[tuple[str, str], Summary]) -> Iterator[Table]:
    names = {label: ALIKE.get(label, label.title()) for label in measured.labels}
    for metric, models in paper["figures"].items():
        shared = [label for label, name in names.items() if any(name in figures for figures in models.values())]
        if not (shared or "data" in paper) or spread(lead.get((WEIGHTED, metric))) is None:
            continue
        rows = {label: names[label] for label in shared} | dict.fromkeys((PLAIN, WEIGHTED), "Average")
        lines = [
            (label, spread(lead.get((label, metric))), *(figures.get(name) for figures in models.values()))
            for label, name in rows.items()
        ]
        columns = ("finding", f"this run, {measured.methods[0]}", *models)
        title = f"{metric}; published: {paper['tables'][metric]}"
        yield Table(f"published-{paper['name']}-{metric}", title, columns, tuple(lines))


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
