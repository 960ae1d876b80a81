"""Which layers to average so that a word's map lies where its finding is: every set of up to four, on `dev` alone.

    python bench/choose_layers.py --count 96
    python bench/choose_layers.py --count 96 --model thorax-2d        # bench/results/choose_layers_thorax-2d.json

The best set is the one with the highest sum of two AUCs, over the whole volume and inside the named region (each the
mean over core findings); runners-up and all layers stand beside it. Chosen figures flatter: bench/thorax.py measures
the set on `test`. The choice goes by hand into `localizing_layers` of the model's config.json, which its hash leaves
out.
"""

import argparse
import sys
from itertools import combinations
from typing import Any

import numpy as np
from record import write
from thorax import PER_LAYER, Bench, map_of, replace, rows_of

from voxplain.maps import Mask, Sample
from voxplain.metrics.localization import auc_roc
from voxplain.recipes import reduce
from voxplain.studies.benchmark_phantoms import carried
from voxplain.studies.fitting import fitted
from voxplain.studies.grounding import record, renoise, thinned

MOST, VOXELS = 4, 4000  # layers in a set; voxels of a volume, or of a region, that are enough to rank sets
Drawn = tuple[np.ndarray, np.ndarray]  # maps [layers, voxels], truth [voxels]
Case = tuple[str, Drawn, Drawn]  # kind, over the volume, inside the region


def read(bench: Bench, index: int) -> Case | None:
    """The maps of one mention by layer, at voxels drawn from the volume and from the region that its text names."""
    case, text, mention = bench.mentioned(index)
    if mention is None or mention.mask is None or not mention.mask.any():
        return None
    tokens = bench.adapter.tokenize(text)
    if not rows_of(tokens, mention.span):
        return None
    sample = fitted(Sample(case.image, case.geometry, text), bench.adapter.geometry)
    states = thinned(renoise(bench.adapter, sample, seed=index), 16)
    masks = (mention.mask, case.organs[mention.region])
    truth, region = (carried(Mask("", mask, case.geometry), sample.geometry).values for mask in masks)
    maps = record(bench.adapter, [tokens], [states], PER_LAYER)[0]
    made = [reduce(maps, replace(PER_LAYER, layers=(layer,))) for layer in bench.adapter.layers]
    heats = np.stack([map_of(one, tokens, mention.span, sample.geometry).ravel() for one in made])
    drawn, rng = [], np.random.default_rng(index)
    for place in (np.ones_like(truth), region):
        voxels = rng.permutation(np.flatnonzero(place))[:VOXELS]
        drawn.append((heats[:, voxels], truth.ravel()[voxels]))
    defined = all(truth.any() and not truth.all() for _, truth in drawn)
    return (mention.kind, *drawn) if defined else None


def score(cases: list[Case], layers: tuple[int, ...]) -> dict[str, float]:
    """Mean AUCs of the averaged layers over kinds, and the one inside the region by kind."""
    whole: dict[str, list[float]] = {}
    inside: dict[str, list[float]] = {}
    for kind, *both in cases:
        for values, (heats, truth) in zip((whole, inside), both, strict=True):
            values.setdefault(kind, []).append(auc_roc(heats[list(layers)].mean(0), truth))
    kinds = {kind: float(np.mean(some)) for kind, some in sorted(inside.items())}
    volume = float(np.mean([np.mean(some) for some in whole.values()]))
    return {"volume": volume, "region": float(np.mean(list(kinds.values()))), **kinds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="thorax")
    parser.add_argument("--count", type=int, default=96)
    options = parser.parse_args()
    options.split, options.part = "dev", "0/1"
    bench = Bench(options)
    cases = []
    for index in range(options.count):
        if case := read(bench, index):
            cases.append(case)
        print(f"\rcase {index + 1}/{options.count} ", end="", file=sys.stderr)
    print(file=sys.stderr)
    layers = bench.adapter.layers
    sets = [some for size in range(1, MOST + 1) for some in combinations(range(len(layers)), size)]
    figures = {some: score(cases, some) for some in (*sets, tuple(range(len(layers))))}
    ranked = sorted(sets, key=lambda some: -figures[some]["volume"] - figures[some]["region"])
    table: list[dict[str, Any]] = []
    for some in [*ranked[:5], tuple(range(len(layers)))]:
        names = ", ".join(layers[i].replace(".transformer_blocks.0.attn2", "") for i in some)
        table.append({"layers": names if len(some) <= MOST else "all", **figures[some]})
        print(table[-1])
    facts = {
        "weights": bench.model.weights_hash,
        "cases": len(cases),
        "best": [layers[i] for i in ranked[0]],
    }
    own = options.model != "thorax"
    command = f"python bench/choose_layers.py --count {options.count}" + f" --model {options.model}" * own
    print(write("choose_layers" + f"_{options.model}" * own, command, facts, table))


if __name__ == "__main__":
    main()
