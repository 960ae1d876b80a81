"""Inverting and generating against noising anew: differences on the same test phantoms, case by case.

python bench/first_results.py phantoms                    # makes the rows, or
python bench/rows.py unpack && python bench/ways.py       # of those that are committed: bench/results/ways.json
"""

from typing import Any

import numpy as np
from first_results import FLAT, SHOWN, VOLUMES
from first_results_cases import READ, RUNS
from record import write

from voxplain.metrics.statistics import bootstrap
from voxplain.runner import read_rows

ABOUT = {"auc_roc_inside": "inside", "auc_roc": "whole", "cnr": "CNR", "pointing_game": "Top-1"}


def rows_of(model: str, way: str) -> dict[str, Any]:
    """The row of every scored case."""
    path = RUNS / f"{model}-phantoms-test-{way}" / "rows.jsonl"
    return {row["case"]: row for row in read_rows(path) if "failed" not in row} if path.is_file() else {}


def main() -> None:
    base, others = "renoise", ("invert", "generate")
    table: list[dict[str, Any]] = []
    weights: dict[str, str] = {}
    for model in (*VOLUMES, *FLAT):
        noised = rows_of(model, base)
        for way in others:
            made = rows_of(model, way)
            both = [case for case in made if case in noised]
            if not both:
                continue
            weights[model] = made[both[0]]["weights"]
            for name in READ:
                row: dict[str, Any] = {"model": model, "way": way, "map": name, "n": len(both)}
                for metric in SHOWN:
                    pairs = [[rows[case]["maps"][name].get(metric) for rows in (made, noised)] for case in both]
                    kept = np.array([pair for pair in pairs if all(isinstance(one, (int, float)) for one in pair)])
                    found = bootstrap(kept[:, 0] - kept[:, 1])
                    row[ABOUT[metric]] = float(kept[:, 0].mean())
                    row[f"{ABOUT[metric]}, minus that of {base}"] = [found.mean, found.low, found.high]
                table.append(row)
    if not table:
        raise SystemExit("there are no rows yet: python bench/rows.py unpack brings those that are committed")
    print(write("ways", "python bench/rows.py unpack && python bench/ways.py", {"weights": weights}, table))


if __name__ == "__main__":
    main()
