"""How well the rules of `datasets.phantom.segmenter` read phantoms whose findings are known.

    python bench/segmenter.py                        300 dev phantoms, the split on which the thresholds were chosen
    python bench/segmenter.py --first 300            300 dev phantoms that no threshold has seen
    python bench/segmenter.py --split test           reports only; adds a line to results/test_log.jsonl

A finding counts as found when the rules report its kind in the case; side and lobe are scored among the found ones,
on the reported finding that overlaps the true mask most. A false positive is a kind reported in a case without it.
"""

import argparse
import json
import sys
import time
from collections import defaultdict

from record import RESULTS, write

from voxplain.datasets.phantom.cases import Case, draw
from voxplain.datasets.phantom.findings import KINDS
from voxplain.datasets.phantom.segmenter import Found, findings
from voxplain.metrics.statistics import wilson

QUESTIONS = ("recall", "specificity", "side", "lobe")
PLACELESS = ("emphysema", "fibrosis")  # always on both sides: their side is no answer


def compare(case: Case, found: list[Found], hits: dict[tuple[str, str], list[bool]]) -> None:
    """Add one case to the yes-and-no lists, keyed (kind, question)."""
    truth = {f.kind: f for f in case.findings}
    for kind in KINDS:
        seen = [f for f in found if f.kind == kind]
        if kind not in truth:
            hits[kind, "specificity"].append(not seen)
            continue
        hits[kind, "recall"].append(bool(seen))
        if not seen:
            continue
        real = truth[kind]
        best = max(seen, key=lambda f: int((f.mask & real.mask).sum()))
        if real.side is not None and kind not in PLACELESS:
            hits[kind, "side"].append(best.side == real.side)
        if real.lobe is not None:
            hits[kind, "lobe"].append(best.lobe == real.lobe)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument("--cases", type=int, default=300)
    options = parser.parse_args()
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    seconds = 0.0
    for index in range(options.first, options.first + options.cases):
        case = draw(index, options.split)
        start = time.process_time()
        found = findings(case.image[0])
        seconds += time.process_time() - start
        compare(case, found, hits)
        print(f"\r{index - options.first + 1}/{options.cases} ", end="", file=sys.stderr)
    print(file=sys.stderr)
    rows = []
    for kind in (*KINDS, "all"):
        row = {"finding": kind}
        for question in QUESTIONS:
            answers = [a for (k, q), some in hits.items() if q == question and kind in (k, "all") for a in some]
            if answers:
                share = wilson(sum(answers), len(answers))
                row[question] = [share.mean, share.low, share.high]
                row[f"n {question}"] = share.n
        rows.append(row)
        shares = [f"{q} {row[q][0]:.3f} ({row['n ' + q]})" for q in QUESTIONS if q in row]
        print(f"{kind:22s}{'  '.join(shares)}")
    print(f"{seconds / options.cases:.2f} s of processor time a volume")
    name = "segmenter" + (f"_{options.split}" if options.split != "dev" else "_unseen" if options.first else "")
    command = f"python bench/segmenter.py --split {options.split} --first {options.first} --cases {options.cases}"
    figures = {"cases": options.cases, "split": options.split, "seconds": seconds / options.cases, "findings": rows}
    write(name, command, figures, rows)
    if options.split == "test":
        with (RESULTS / "test_log.jsonl").open("a") as file:
            line = {"stage": "segmenter", "cases": options.cases, "date": time.strftime("%Y-%m-%d")}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
