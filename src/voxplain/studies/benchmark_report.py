"""The folder of an evaluation: from its rows to results.json, tables, figures and the page."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voxplain.datasets.base import RULE
from voxplain.io.folders import write_file
from voxplain.runner import read_rows
from voxplain.studies import benchmark_tables as tables
from voxplain.studies.benchmark_cases import Source
from voxplain.studies.benchmark_published import published_tables
from voxplain.studies.benchmark_words import MINIMUM, TAU, by_part, part_table, word_tables
from voxplain.view import charts
from voxplain.view.scoreboard import scoreboard
from voxplain.view.tables import as_csv, as_latex, as_plain

ROWS = "rows.jsonl"
SPEECH = "parts of speech"


def write_report(
    folder: Path, source: Source, about: Mapping[str, Any], *, minimum: int = MINIMUM, command: str = ""
) -> None:
    """Write everything but the rows anew, from the rows; ValueError where no case could be scored."""
    scored, failed = _rows(folder, source, reads="profile" in about)
    measured = tables.Measured(tuple(scored), tuple(about["methods"]))
    found = tables.found_of(measured)
    each = tables.finding_tables(measured, found)
    rest = [tables.overview(measured, found), tables.gain_table(measured), tables.swap_table(measured)]
    rest += [tables.group_table(measured), tables.cost_table(measured)]
    rest += [tables.excluded_table(measured, failed, source.left_out)]
    others = [table for table in rest if table is not None]
    parts = by_part(scored)
    words = [*word_tables(scored, minimum), *([part_table(parts, about["parts_of_speech"])] if parts else [])]
    beside = published_tables(measured, found, about["source"]["data"])
    figures = _figures(measured, found, parts)
    shown = {name: kinds["svg"] for name, kinds in figures.items()}
    sections = [
        ("By finding", (), each, {name: svg for name, svg in shown.items() if name != SPEECH}),
        ("Everything else", (), others, {}),
        ("Words", _of_words(minimum), words, {name: svg for name, svg in shown.items() if name == SPEECH}),
    ]
    sections += [("Beside published figures", _banner(about, len(scored), paper), own, {}) for paper, own in beside]
    weights = ", ".join(dict.fromkeys(row["weights"] for row in scored if row["weights"])) or None
    facts = {**about, "weights": weights, "scored": len(scored), "failed": len(failed)}
    title = f"{about['model'] or 'run folders'} on {source.name}"
    page = scoreboard(title, sections, facts, cautions=_cautions(source, scored, measured), command=command)
    listed = [*each, *others, *words, *(one for _, own in beside for one in own)]
    results = {
        "command": command,
        **facts,
        "left_out": dict(source.left_out),
        "summaries": {name: [one.to_dict() for one in of.values()] for name, of in found.items()},
        "tables": as_plain(listed),
    }
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    _write(folder, {"results.json": text, "report.html": page}, source.credentialed)
    made = {f"{one.name}.{kind}": to(one) for one in listed for kind, to in (("csv", as_csv), ("tex", as_latex))}
    _write(folder / "tables", made, source.credentialed)
    drawn = {f"{name.replace(' ', '-')}.{kind}": one for name, kinds in figures.items() for kind, one in kinds.items()}
    _write(folder / "figures", drawn, source.credentialed)


def _rows(folder: Path, source: Source, *, reads: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of scored cases and of failed ones, in the order of the source."""
    known = {row["case"]: row for row in read_rows(folder / ROWS)}
    every = [known[name] for name, _ in source.cases() if name in known]
    scored, failed = [row for row in every if "failed" not in row], [row for row in every if "failed" in row]
    if not scored:
        reasons = "; ".join(dict.fromkeys(row["failed"] for row in failed))
        raise ValueError(f"none of {len(every)} cases could be scored: {reasons}")
    if reads and len(weights := {row["weights"] for row in scored}) > 1:
        raise ValueError(f"the rows in {folder} were made with {len(weights)} different weights; begin anew")
    return scored, failed


def _write(folder: Path, contents: Mapping[str, str | bytes], private: bool) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in contents.items():
        encoded = content if isinstance(content, bytes) else content.encode("utf-8", "replace")
        write_file(folder / name, encoded, mode=0o600 if private else None)


def _figures(
    measured: tables.Measured, found: tables.Found, parts: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, bytes]]:
    groups, drawn = [*measured.labels, tables.PLAIN, tables.WEIGHTED], {}
    for metric in ("auc_roc_inside", "auc_roc"):
        series = {name: [tables.spread(found[name].get((group, metric))) for group in groups] for name in measured.maps}
        if any(one is not None for one in series[measured.methods[0]]):
            drawn[metric] = charts.files(charts.dots(f"{metric}, 95% intervals", series, groups, 0.5))
    if parts:
        figure = charts.boxes(f"coverage at tau = {TAU}, by part of speech", parts, "share of the map's cells")
        drawn[SPEECH] = charts.files(figure)
    return drawn


def _of_words(minimum: int) -> list[str]:
    return [
        f"Every word against the truth of its case, words that occur more than {minimum} times. The first sub-token "
        "alone is the rule of the per-word tables of Dombrowski et al.; start, end and padding are no words."
    ]


def _banner(about: Mapping[str, Any], scored: int, paper: Mapping[str, Any]) -> list[str]:
    """What differs between the published figures and these."""
    return [
        "These are two different measurements, shown side by side for orientation: no row here reproduces one there.",
        f"Published: {paper['source']}; {paper['setting']}.",
        f"Here: {about['model'] or 'runs made before'} on {about['source']['data']}, {scored} cases; other weights, "
        "other images and another kind of truth, unless you know that they are the same.",
        f"Read-out there: {paper['readout']}. Here: {_readout(about)}, coarse maps linear, whole words.",
        *paper["remarks"],
        "Here, brackets are 95% intervals over patients, and both averages are given.",
    ]


def _readout(about: Mapping[str, Any]) -> str:
    if "profile" not in about:
        return "as the runs were made"
    latent = "" if about["profile"] == "generate" else ", the posterior's mean"
    return f"{about['profile']}, {about['used']} of {about['steps']} levels{latent}"


def _cautions(source: Source, scored: Sequence[Mapping[str, Any]], measured: tables.Measured) -> list[str]:
    found = [
        "A map can score well by lighting up the right organ: believe the figures inside the region that the text "
        "names, and the gains over the controls.",
    ]
    cases = len(scored)
    if partly := sum(row["share"] < 1 for row in scored):
        found.append(f"In {partly} of {cases} cases part of the truth lies outside of the frame and is not scored.")
    unseen = Counter(word for row in scored for word in row.get("unknown", ()))
    for word, count in unseen.most_common():
        found.append(
            f"The model never saw {word!r} in training, which names the truth in {count} of {cases} cases; --as reads "
            "such a finding by another text."
        )
    if unnamed := sum(row["rule"] == "all" for row in scored):
        found.append(f"In {unnamed} of {cases} cases no word names the truth, so the mean over all words was read.")
    if "mean training mask" not in measured.maps:
        found.append("There is no location prior here: no masks of training cases with these findings are at hand.")
    found += [f"{label!r} is read by the text {text!r}, which is another word." for label, text in source.texts.items()]
    return [*found, *([RULE] if source.credentialed else [])]
