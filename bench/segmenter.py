"""How well a judge reads phantoms whose findings are known: the rules of `datasets.phantom.segmenter`, or the reader.

    python bench/segmenter.py                        300 dev phantoms, the split on which the thresholds were chosen
    python bench/segmenter.py --first 300            300 dev phantoms that no threshold has seen
    python bench/segmenter.py --through-autoencoder  the same phantoms, encoded and decoded by --model before reading
    python bench/segmenter.py --judge reader         the learned reader instead of the rules; with all of the above
    python bench/segmenter.py --split test           reports only; adds a line to results/test_log.jsonl

A finding counts as found when the judge reports its kind in the case; side and lobe are scored among the found ones,
on the reported finding that overlaps the true mask most. A false positive is a kind reported in a case without it.
What falls short of `AIMS` is named in the last column. Through the autoencoder, one more figure: of the kinds that the
judge reports in a phantom, how many it reports again after encoding and decoding.
"""

import argparse
import json
import sys
import time
from collections import defaultdict

from record import RESULTS, write

import voxplain
from voxplain.datasets.phantom.cases import Case, draw
from voxplain.datasets.phantom.findings import KINDS
from voxplain.datasets.phantom.segmenter import Found, findings
from voxplain.metrics.statistics import wilson
from voxplain.studies.judging import load_reader

AIMS = {"recall": 0.95, "specificity": 0.95, "side": 0.98, "lobe": 0.95}
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
    parser.add_argument("--through-autoencoder", action="store_true", help="read what the model's autoencoder keeps")
    parser.add_argument("--model", default="thorax", help="whose autoencoder: a name or a folder")
    parser.add_argument("--judge", default="rules", choices=["rules", "reader"])
    options = parser.parse_args()
    judge = findings if options.judge == "rules" else load_reader().read
    model = voxplain.load(options.model) if options.through_autoencoder else None
    hits: dict[tuple[str, str], list[bool]] = defaultdict(list)
    again: list[bool] = []
    seconds = 0.0
    for index in range(options.first, options.first + options.cases):
        case = draw(index, options.split)
        volume = case.image[0] if model is None else model.decode(model.encode_image(case.image))[0, 0]
        start = time.process_time()
        found = judge(volume)
        seconds += time.process_time() - start
        compare(case, found, hits)
        if model is not None:
            again += [any(f.kind == kind for f in found) for kind in {f.kind for f in judge(case.image[0])}]
        print(f"\r{index - options.first + 1}/{options.cases} ", end="", file=sys.stderr)
    print(file=sys.stderr)
    rows = []
    for kind in (*KINDS, "all"):
        row, short = {"finding": kind}, []
        for question, aim in AIMS.items():
            answers = [a for (k, q), some in hits.items() if q == question and kind in (k, "all") for a in some]
            if answers:
                share = wilson(sum(answers), len(answers))
                row[question] = [share.mean, share.low, share.high]
                row[f"n {question}"] = share.n
                short += [question] if share.mean < aim else []
        rows.append({**row, "short of the aim": ", ".join(short)})
        shares = [f"{q} {row[q][0]:.3f} ({row['n ' + q]})" for q in AIMS if q in row]
        print(f"{kind:22s}{'  '.join(shares)}{'  short: ' if short else ''}{', '.join(short)}")
    print(f"{seconds / options.cases:.2f} s of processor time a volume")
    command = f"python bench/segmenter.py --split {options.split} --first {options.first} --cases {options.cases}"
    figures = {"cases": options.cases, "split": options.split, "seconds": seconds / options.cases, "findings": rows}
    name = "segmenter" if options.judge == "rules" else "reader"
    if options.judge != "rules":
        command += f" --judge {options.judge}"
    if model is not None:
        name += "_decoded"
        command += f" --through-autoencoder --model {options.model}"
        figures["model"] = model.weights_hash
        share = wilson(sum(again), len(again))
        figures["found again"] = [share.mean, share.low, share.high]
        print(f"found again {share.mean:.3f} ({share.n})")
    name += f"_{options.split}" if options.split != "dev" else "_unseen" if options.first else ""
    write(name, command, figures, rows)
    if options.split == "test":
        with (RESULTS / "test_log.jsonl").open("a") as file:
            line = {"stage": name, "cases": options.cases, "date": time.strftime("%Y-%m-%d")}
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
