"""The main job on real text: 157 chest CT impressions, none of which the model was made for.

    VOXPLAIN_SHARED=../shared python bench/impressions.py      resumes where it was stopped
    python bench/impressions.py --keep 12 --keep 97            also writes run folders of these lines, to be read

The impressions (CT-RATE, CC BY-NC-SA 4.0) are read in place and never copied: rows and summary name lines by number and
hold no text. Rows go to bench/runs, the summary to bench/results/impressions.json. A run folder made with --keep holds
the text and stays on your disk, in runs/impressions.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from record import write

import voxplain
from voxplain.tokens import label

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("VOXPLAIN_SHARED", ROOT.parent / "shared"))
SOURCE = SHARED / "data" / "ct_reports" / "impressions_test.txt"
FOLDER, RUNS = ROOT / "runs" / "impressions", ROOT / "bench" / "runs"
STEPS = 10


def measure(model: Any, text: str, line: int, recipes: Sequence[str], keep: bool) -> dict[str, Any]:
    """What became of one impression; counts and shares only, no text."""
    start = time.perf_counter()
    row: dict[str, Any] = {"case": line, "characters": len(text)}
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            result = voxplain.explain(model, text, seed=line, steps=STEPS, recipes=recipes)
            if keep:
                voxplain.io.save_run(result, FOLDER / f"line-{line:03}", overwrite=True)
        row["warnings"] = sorted({kind.category.__name__ for kind in raised})
        row |= describe(result)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        row["failed"] = f"{type(error).__name__} in {Path(where.filename).name}, line {where.lineno}"
        if keep:
            traceback.print_exc()
    return row | {"seconds": round(time.perf_counter() - start, 2)}


def describe(result: Any) -> dict[str, Any]:
    """Known and unknown words, what fell off, and where the attention went."""
    prompt, made = result.prompt, result.sample.provenance
    unknown = {word.casefold() for word in made["unknown_words"]}
    known = [label(word) for word in prompt.words if unknown.isdisjoint(re.findall(r"[^\W_]+", word.text.casefold()))]
    row = {
        "words": len(prompt.words),
        "known_words": len(known),
        "unknown_words_named": len(unknown),
        "cut_words": len(re.findall(r"[^\W_]+", prompt.truncated)),
        "cut_text_named": made["truncated"] == prompt.truncated,
        "not_distinguishable": sum(entry.get("distinguishable") is False for entry in result.honesty.values()),
    }
    if "mean" in result.attributions:
        mass = result.attributions["mean"].mass()
        row["mass"] = {
            name: round(float(mass.get(f"[{name}]", 0.0)), 4) for name in ("start", "end", "padding", "other")
        }
        row["mass"]["known words"] = round(sum(mass[name] for name in known), 4)
        row["mass"]["unknown words"] = round(float(1 - sum(row["mass"].values())), 4)
    return row


def read(log: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log, without the last one if it was cut short."""
    for line in log.read_text().splitlines() if log.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    done = [row for row in rows if "failed" not in row]
    words = sum(row["words"] for row in done) or 1
    shares = {row["case"]: row["known_words"] / max(row["words"], 1) for row in done}
    masses = [row["mass"] for row in done if "mass" in row]
    return {
        "impressions": len(rows),
        "failed": {row["case"]: row["failed"] for row in rows if "failed" in row},
        "known_share": sum(row["known_words"] for row in done) / words,
        "lines_with_unknown_words": sum(row["unknown_words_named"] > 0 for row in done),
        "lines_cut": [row["case"] for row in done if row["cut_words"]],
        "lines_cut_without_saying_so": [row["case"] for row in done if not row["cut_text_named"]],
        "not_distinguishable_share": sum(row["not_distinguishable"] for row in done) / words,
        "mass": {name: statistics.mean(mass[name] for mass in masses) for name in (masses[0] if masses else ())},
        "seconds_median": statistics.median(row["seconds"] for row in rows),
        "seconds_longest": max(row["seconds"] for row in rows),
        "worst_lines": sorted(shares, key=lambda line: (shares[line], line))[:10],  # fewest known words: read these
    }


def table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[tuple[str, Any]] = [
        ("impressions run", figures["impressions"]),
        ("failed", len(figures["failed"])),
        ("words known to the model, share", figures["known_share"]),
        ("longer than the context (said so by name)", len(figures["lines_cut"])),
        ("words not distinguishable from a null word, share", figures["not_distinguishable_share"]),
        *((f"attention on {name}, share", share) for name, share in figures["mass"].items()),
    ]
    return [{"157 real impressions, 10 steps": what, "measured": value} for what, value in rows]


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--keep", type=int, action="append", default=[], help="write a run folder of this line")
    options.add_argument("--recipe", action="append", help="default: mean and effect")
    options.add_argument(
        "--lines", nargs=2, type=int, metavar=("FIRST", "LAST"), help="only these, with no summary: side by side"
    )
    options.add_argument("--fresh", action="store_true", help="forget the rows that are there")
    given = options.parse_args()
    if not SOURCE.is_file():
        print(
            f"skipped: {SOURCE.name} is not in {SHARED}; set VOXPLAIN_SHARED to the folder that holds data/ct_reports"
        )
        return 0

    recipes = tuple(given.recipe or ("mean", "effect"))
    for folder in (FOLDER, RUNS):
        folder.mkdir(parents=True, exist_ok=True)
    log = RUNS / f"impressions-{'-'.join(recipes)}.jsonl"
    if given.fresh:
        log.unlink(missing_ok=True)
    model = voxplain.load("thorax")
    weights = getattr(model, "weights_hash", None)
    rows = {row["case"]: row for row in read(log) if row.get("weights") == weights and "failed" not in row}

    texts = SOURCE.read_text(encoding="utf-8").splitlines()
    for line, text in enumerate(texts, start=1):
        first, last = given.lines or (1, len(texts))
        if not first <= line <= last or (line in rows and line not in given.keep):
            continue
        rows[line] = measure(model, text, line, recipes, line in given.keep) | {"weights": weights}
        with log.open("a") as file:
            file.write(json.dumps(rows[line]) + "\n")
        print(f"{line}/{len(texts)}  {rows[line].get('failed', 'ok')}  {rows[line]['seconds']} s", flush=True)

    if given.lines:
        return 0
    figures = summary([rows[line] for line in sorted(rows)]) | {"weights": weights, "recipes": recipes}
    path = write("impressions", shlex.join(["python", "bench/impressions.py", *sys.argv[1:]]), figures, table(figures))
    print(f"written to {path.relative_to(ROOT)}; read these: python bench/impressions.py --keep N for N in", end=" ")
    print(*figures["worst_lines"], sep=", ")
    return int(bool(figures["failed"]))


if __name__ == "__main__":
    sys.exit(main())
