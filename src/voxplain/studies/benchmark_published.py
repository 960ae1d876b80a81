"""The figures of papers beside ours: different measurements, which the page says above them."""

import json
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from voxplain.scoring import Summary
from voxplain.studies.benchmark_tables import PLAIN, WEIGHTED, Found, Measured, chance, count, spread
from voxplain.view.tables import Table

ALIKE = {  # what the published tables call a kind of phantom finding
    "effusion": "Pleural Effusion",
    "consolidation": "Consolidation",
    "pneumothorax": "Pneumothorax",
    "atelectasis": "Atelectasis",
    "cardiomegaly": "Cardiomegaly",
}


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
        ours = f"this run, {measured.methods[0]}{'' if metric == 'cnr' else ' (0 to 1)'}"
        columns = ("finding", ours, "n", "chance", *models)
        lines = []
        for label in (*shared, PLAIN, WEIGHTED):
            of = lead.get((label, metric))
            theirs = [
                _average(figures, label, paper, model) if label in (PLAIN, WEIGHTED) else figures.get(names[label])
                for model, figures in models.items()
            ]
            lines.append((label, spread(of), count(of), chance(lead, label, metric), *theirs))
        title = f"{metric}; published: {paper['tables'][metric]}"
        note = "Averages here and there are over different findings."
        yield Table(f"published-{paper['name']}-{metric}", title, columns, tuple(lines), note)


def _average(figures: Mapping[str, str], way: str, paper: Mapping[str, Any], model: str) -> str | None:
    """The printed average where it was made this way; a plain mean that was not printed, of the printed figures."""
    printed = figures["Average"]
    if (way == WEIGHTED) == (model in paper["weighted"]):
        return printed
    each = [float(figure.partition("±")[0]) for name, figure in figures.items() if name != "Average"]
    if way == WEIGHTED or not each:
        return None
    digits = len(printed.partition("±")[0].partition(".")[2]) or 1
    return f"{np.mean(each):.{digits}f} (our mean)"
