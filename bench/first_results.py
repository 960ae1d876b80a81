"""How well maps point: every shipped model on phantoms and on real images, by `voxplain evaluate`'s own functions.

    python bench/first_results.py --split dev --count 4          # a trial; choices are made on dev alone
    python bench/first_results.py phantoms                       # 1,000 test phantoms, 200 for what is costly
    python bench/first_results.py generated                      # 300 generated volumes, truth by the rule segmenter
    python bench/first_results.py shift                          # anatomy out of the range of training
    python bench/first_results.py real       # the open CT volumes and chest films (VOXPLAIN_SHARED, default ../shared)
    python bench/first_results.py summary                        # bench/results/first_results.json

Each job is a report folder below bench/runs/first-results/ and goes on where it was stopped. What cannot be run, such
as a model that does not ship, is skipped with the reason, which the summary keeps. Jobs on the split `test` append a
line to bench/results/test_log.jsonl: test seeds report, they never choose.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from first_results_cases import READ, RUNS, Drawn, Made, made_runs, opened, shown
from record import RESULTS, write

from voxplain.adapters import as_adapter
from voxplain.datasets.opening import build
from voxplain.datasets.shared import VARIABLE
from voxplain.models.thorax.weights import SHIPPED
from voxplain.runner import read_rows
from voxplain.studies.benchmark import Settings, evaluate
from voxplain.studies.benchmark_cases import Records, Runs, Source
from voxplain.studies.benchmark_tables import PLAIN, SWAPPED, WEIGHTED
from voxplain.studies.grounding import PROFILES

VOLUMES, FLAT = ("thorax",), ("thorax-2d", "thorax-2d-seed1", "thorax-2d-seed2")
CHEAP = ("mean", "selected", "effect", "support")
COSTLY = (*CHEAP, "gradient", "integrated_gradients", "grad_cam", "occlusion")
EVIDENCE = ("support",)  # by inversion
WAYS = ("renoise", "invert", "generate", "evidence", "costly", "made")
PARTS = ["phantoms", "generated", "shift", "real", "summary"]
SHOWN = ("auc_roc_inside", "auc_roc", "cnr", "pointing_game")
PRICE = ("rows forward", "rows backward", "CPU seconds")  # of a map, a case
CHESTS = ("lungdx_a0001", "cip_ct64", "totalseg_mediastinum")  # the last is cropped: of it, the heart alone is read


@dataclass(frozen=True)
class Job:
    """One report: a model, cases, and how they are read. `texts` says how labels are read by other words."""

    model: str
    data: str
    count: int
    methods: tuple[str, ...] = CHEAP
    profile: str = "renoise"
    split: str = "test"
    labels: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    @property
    def way(self) -> str:
        if self.data == "generated":
            return "made"
        return {COSTLY: "costly", EVIDENCE: "evidence"}.get(self.methods, self.profile)

    @property
    def name(self) -> str:
        read = "".join(f"-as-{text}" for text in self.texts.values())
        return f"{Path(self.model).name}-{self.data}-{self.split}-{self.way}{read}".replace(" ", "_")

    def source(self) -> Source:
        """The cases; FileNotFoundError where the open images are not there."""
        if self.data == "phantoms":
            return Drawn(self.count, self.split)
        if self.data == "generated":
            return Made(made_runs(self.model, self.split, self.count), model=self.model, split=self.split)
        built = build(self.data)
        if self.data == "shared-ct-structures":
            kept = tuple(record for record in built.records if record.patient in CHESTS)
            built = replace(built, records=kept)
        return Records(built, None, self.count, labels=self.labels, texts=self.texts)


def phantoms(models: tuple[str, ...], split: str, count: int, few: int) -> Iterator[Job]:
    """The default read-out on many cases; inversion, generation and the costly baselines on fewer."""
    for model in models:
        yield Job(model, "phantoms", count, READ, split=split)
        if split != "shift":
            yield Job(model, "phantoms", few, READ, profile="invert", split=split)
            yield Job(model, "phantoms", few, READ, profile="generate", split=split)
            yield Job(model, "phantoms", few, EVIDENCE, profile="invert", split=split)
            yield Job(model, "phantoms", few, COSTLY, split=split)


def flat(model: str) -> bool:
    """Whether it makes pictures, by its name."""
    return "2d" in Path(model).name


def real(models: tuple[str, ...], count: int, profile: str) -> Iterator[Job]:
    """Chest CT by the models of volumes, films by those of pictures; findings by words that the models know."""
    common: dict[str, Any] = {"count": count, "split": "all", "profile": profile}
    for model in models:
        if flat(model):
            yield Job(model, "shared-cxr-lungs", **common)
            for text in ("consolidation", "opacity"):
                labels = {"labels": ("pneumonia",), "texts": {"pneumonia": text}}
                yield Job(model, "shared-nih_cxr-boxes", **labels, **common)
        else:
            organs = ("left lung", "right lung", "heart")
            yield Job(model, "shared-ct-structures", labels=organs, **common)
            yield Job(model, "shared-ct-structures", labels=("mass",), texts={"mass": "nodule"}, **common)


def done(job: Job, steps: int, used: int) -> str:
    """Run a job, or go on with it; the reason why it cannot be run, or ""."""
    try:
        opened(job.model)
        source = job.source()
        cases = len(source.cases())
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    named = as_adapter(opened(job.model)).localizing_layers  # a model that names none has no recipe "selected"
    methods = tuple(name for name in job.methods if named or name != "selected")
    folder, settings = RUNS / job.name, Settings(methods, job.profile, steps=steps, used=used)
    before = _finished(folder)
    began = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    options = {"opener": None if isinstance(source, Runs) else partial(opened, job.model), "settings": settings}
    try:
        evaluate(source, folder, command=_command(), model=job.model, progress=shown(job.name), **options)
    except ValueError as error:  # no case could be scored, as by a model that cannot be inverted
        return str(error)
    print(f"\r{job.name}: {cases} cases, {time.monotonic() - began:.0f} s", file=sys.stderr)
    new = _finished(folder) - before
    if job.split == "test" and new:
        weights = json.loads((folder / "results.json").read_text())["weights"]
        line = {"stage": f"first_results {job.name}", "weights": weights, "cases": cases, "new": new}
        with (RESULTS / "test_log.jsonl").open("a") as file:
            file.write(json.dumps({**line, "date": time.strftime("%Y-%m-%d")}) + "\n")
    return ""


def summarize(skipped: Mapping[str, str]) -> Path:
    """All reports in one file, and a table of the main figures: a row for each job, map and group of cases.

    Jobs of an earlier summary stay where their weights still ship and they were not run anew.
    """
    figures = _earlier()
    for path in RUNS.glob("*/results.json"):
        made = json.loads(path.read_text())
        kept = ("command", "weights", "scored", "failed", "methods", "profile", "steps", "used", "source", "left_out")
        figures[path.parent.name] = {name: made[name] for name in (*kept, "tables") if name in made}
    table = []
    for job in sorted(figures, key=lambda job: ("-shared-" in job, job)):  # phantoms first, then real images
        made, tables = figures[job], {one["name"]: one for one in figures[job]["tables"]}
        for name in made["methods"]:
            row: dict[str, Any] = {"job": job, "map": name, "n": made["scored"]}
            for metric in SHOWN:
                if metric in tables:
                    row[metric] = _cell(tables[metric], PLAIN, name)
                    row[f"{metric}, all cases"] = _cell(tables[metric], WEIGHTED, name)
                    row[f"{metric}, best control"] = _best(tables[metric], made["methods"])
            row[f"{SHOWN[0]}, less another case's truth"] = _swapped(tables, name, made["methods"][0])
            groups = tables.get("groups", {"rows": []})
            for line in groups["rows"]:
                if line[0].startswith(f"{SHOWN[0]}, "):
                    row[line[0]] = _cell(groups, line[0], name) if name in groups["columns"] else None
                    row[f"{line[0]}, best control"] = _best(groups, made["methods"], line[0])
            shift = figures.get(job.replace("-test-", "-shift-")) if "-phantoms-test-" in job else None
            if shift is not None and name in shift["methods"]:
                inside = next(one for one in shift["tables"] if one["name"] == SHOWN[0])
                row[f"{SHOWN[0]}, out of range"] = _cell(inside, PLAIN, name)
                row[f"{SHOWN[0]}, out of range, best control"] = _best(inside, shift["methods"])
            row |= {price: _cell(tables["cost"], name, price) for price in PRICE if "cost" in tables}
            table.append(row)
    own = f"python bench/{Path(__file__).name} summary"
    command = " && ".join([*dict.fromkeys(job["command"] for job in figures.values()), own])
    short = ("job", "map", "n", *(f"{metric}{end}" for metric in SHOWN[:2] for end in ("", ", best control")))
    brief = [{name: row.get(name) for name in (*short, SHOWN[-1], *PRICE[-1:])} for row in table]
    kept = [row for row in brief if "-seed" not in row["job"]]
    return write("first_results", command, {"jobs": figures, "skipped": dict(skipped)}, table, kept)


def _earlier() -> dict[str, Any]:
    """Jobs of the summary that is there, of models that still have the same weights."""
    path = RESULTS / "first_results.json"
    if not path.is_file():
        return {}
    shipped = {opened(name).weights_hash for name in (*VOLUMES, *FLAT) if (SHIPPED / name).is_dir()}
    jobs = json.loads(path.read_text())["figures"]["jobs"]
    return {name: job for name, job in jobs.items() if job["weights"] in shipped}


def _cell(table: Mapping[str, Any], line: str, column: str) -> Any:
    (row,) = [row for row in table["rows"] if row[0] == line]
    return row[table["columns"].index(column)]


def _swapped(tables: Mapping[str, Any], name: str, lead: str) -> Any:
    """What a map finds of its own case beyond what another case of the same text has; rows of old have the first's."""
    rows = {row[0]: row[1] for row in tables["swapped"]["rows"]} if "swapped" in tables else {}
    if "gains" in tables and tables["gains"]["columns"][1].startswith(f"{SHOWN[0]}:"):
        old = {row[0]: row[1] for row in tables["gains"]["rows"]}
        rows.setdefault(lead, old.get(lead + SWAPPED))
    return rows.get(name)


def _best(table: Mapping[str, Any], methods: list[str], line: str = PLAIN) -> str | None:
    """The highest control that knows neither the model nor the truth, with its mean over findings."""
    oracles = ("oracle of the grid", "chance", "n", "without a value", "finding", "metric and group")
    own = f"{methods[0]}, "  # its first sub-token, and its score against another case's truth
    names = [name for name in table["columns"] if name not in (*methods, *oracles) and not name.startswith(own)]
    found = {name: _cell(table, line, name) for name in names}
    means = {name: cell[0] for name, cell in found.items() if cell}
    best = max(means, key=lambda name: means[name], default=None)
    return None if best is None else f"{best}: {means[best]:.3f}"


def _finished(folder: Path) -> int:
    rows = folder / "rows.jsonl"
    return sum(1 for _ in read_rows(rows)) if rows.is_file() else 0


def _command() -> str:
    return shlex.join(["python", f"bench/{Path(__file__).name}", *sys.argv[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["phantoms"], choices=PARTS)
    parser.add_argument("--models", nargs="+", default=[*VOLUMES, *FLAT])
    parser.add_argument("--split", default="test", choices=["dev", "test"])
    parser.add_argument("--count", type=int, help="cases (1,000; generated and shift 300; real: all)")
    parser.add_argument("--few", type=int, help="cases of what is costly (200)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, help="of reading (all; real: renoise)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--used", type=int, default=40)
    options = parser.parse_args()
    os.environ.setdefault(VARIABLE, str(Path(__file__).resolve().parents[2] / "shared"))
    torch.manual_seed(0)
    jobs: list[Job] = []
    count, models = options.count or 1000, tuple(options.models)
    few = options.few or min(200, count)
    if "phantoms" in options.parts:
        jobs += phantoms(models, options.split, count, few)
    if "shift" in options.parts:
        jobs += phantoms(models, "shift", min(count, 300), few)
    if "generated" in options.parts:
        some = options.count or 300
        jobs += [Job(model, "generated", some, READ, split=options.split) for model in models if not flat(model)]
    if "real" in options.parts:
        for way in options.ways or ("renoise",):
            jobs += real(models, options.count or 10**6, way) if way in PROFILES else ()
    kept = RUNS / "skipped.json"
    skipped = json.loads(kept.read_text()) if kept.is_file() else {}
    for job in (job for job in jobs if job.way in (options.ways or WAYS)):
        skipped.pop(job.name, None)
        if reason := done(job, options.steps, options.used):
            skipped[job.name] = reason
            print(f"{job.name}: skipped: {reason}", file=sys.stderr)
    RUNS.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(skipped, indent=1) + "\n")
    if "summary" in options.parts:
        print(summarize(skipped))


if __name__ == "__main__":
    main()
