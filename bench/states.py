"""What the dear methods are to explain, and at how many noisy states: quality and price on `dev` alone.

    python bench/states.py                                   # bench/results/states.json: thorax-2d, 24 phantoms
    python bench/states.py --explains share --states 8       # bench/results/states_share.json

Every number of states is read of the same cases with the same noise, so the table gives differences to the most states
case by case, with their intervals. What is chosen goes by hand into `STATES` of studies/baselines.py.
"""

import argparse
import sys
from collections import defaultdict
from functools import partial
from typing import Any

import numpy as np
from first_results_cases import RUNS, Drawn, opened, shown
from record import write

from voxplain.adapters import as_adapter
from voxplain.metrics.base import Undefined
from voxplain.metrics.localization import auc_roc
from voxplain.metrics.statistics import bootstrap
from voxplain.runner import read_rows, run
from voxplain.studies import rules
from voxplain.studies.baselines import measure, see
from voxplain.studies.benchmark import read
from voxplain.studies.owing import EXPLAINED, METHODS


def case(
    model: str, explains: str, methods: tuple[str, ...], counts: tuple[int, ...], source: Drawn, number: int
) -> dict[str, Any]:
    """AUC over the image and inside the named region, rows of the network and seconds, by method and states."""
    adapter = as_adapter(opened(model))
    trial = source.trial(number, adapter)
    spans = rules.spans(adapter.tokenize(trial.text), trial.words)
    seen = see(adapter, trial.sample, trial.text, spans=spans, seed=number)
    scores: dict[str, list[float | None]] = {}
    for method in methods:
        for count in counts:
            options: dict[str, Any] = {"spans": spans, "seen": seen, "kept": count, "explains": explains}
            made = measure(adapter, trial.sample, trial.text, method, **options)
            heat = read(made.attribution, "words", trial.words).resize(trial.truth.geometry).values
            found: list[float | None] = []
            for region in (None, trial.region):
                try:
                    found.append(auc_roc(heat, trial.truth.values, region and region.values))
                except Undefined:  # the finding fills its region
                    found.append(None)
            scores[f"{method} {count}"] = [*found, made.cost.forward + made.cost.backward, made.cost.cpu_seconds]
    return {"label": trial.label, "scores": scores}


def interval(values: np.ndarray) -> list[float | None]:
    found = bootstrap(values)
    return [found.mean, found.low, found.high]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="thorax-2d")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--explains", default="evidence", choices=EXPLAINED)
    parser.add_argument("--states", type=int, nargs="+", default=[2, 4, 8])
    options = parser.parse_args()
    source, methods, counts = Drawn(options.count, "dev"), tuple(options.methods), tuple(sorted(options.states))
    about = {"model": options.model, "methods": methods, "states": counts, "explains": options.explains}
    about["weights"] = opened(options.model).weights_hash
    own = [vars(options)[name] for name in ("model", "explains") if vars(options)[name] != parser.get_default(name)]
    name = "_".join(["states", *own, *(methods if methods != tuple(METHODS) else ())])
    path = RUNS.parent / f"{name}.jsonl"
    run(
        source.cases(),
        lambda: partial(case, options.model, options.explains, methods, counts, source),
        path,
        about=about,
        progress=shown(options.model),
    )
    figures: dict[str, list[list[float | None]]] = defaultdict(list)
    for row in read_rows(path):
        for key, values in row.get("scores", {}).items():
            figures[key].append(values)
    table = []
    for method in methods:
        most = np.array(figures[f"{method} {counts[-1]}"], float)  # [cases, 4]; None becomes NaN
        for count in counts:
            made = np.array(figures[f"{method} {count}"], float)
            line: dict[str, Any] = {"method": method, "states": count, "cases": len(made)}
            for column, title in enumerate(("whole", "inside")):
                line[title] = float(np.nanmean(made[:, column]))
                less = (made - most)[:, column]
                less = less[np.isfinite(less)]
                line[f"{title}, minus that at {counts[-1]}"] = interval(less) if less.any() else None
            table.append(line | dict(zip(("rows", "seconds"), made[:, 2:].mean(0).tolist(), strict=True)))
    print(write(name, " ".join(["python", "bench/states.py", *sys.argv[1:]]), about, table))


if __name__ == "__main__":
    main()
