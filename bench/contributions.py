"""What layers, noise levels, heads, scalings and guidance contribute to a word's map: every part by itself.

    python bench/contributions.py parts --split dev --count 60
    python bench/contributions.py guidance --split dev --count 30
    python bench/contributions.py summary --split dev            # bench/results/contributions_dev.json

`parts` reads phantoms by the read-out `renoise` at 16 noise levels in four bands, and scores the finding's word against
its mask: of attention each layer, grid, band and head alone, and three scalings of all; of `effect` each band, with the
word taken out after and before the text encoder. `guidance` generates from one prompt at several scales and scores
against what the rules find in the volume, which is not the same volume at every scale. Choices are made on `dev`; the
same command on `test` reports.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from record import RESULTS, write
from thorax import CORE, PER_LAYER, RUNS, Bench, map_of, named_region, rows_of

from voxplain.datasets.phantom import segmenter
from voxplain.datasets.phantom.cases import plan_finding
from voxplain.datasets.phantom.impressions import request
from voxplain.datasets.phantom.registration import register
from voxplain.maps import AttentionMaps, Heatmap, MapKey, Recipe, Sample
from voxplain.metrics.base import Undefined
from voxplain.metrics.localization import auc_roc
from voxplain.metrics.statistics import bootstrap
from voxplain.recipes import reduce, scale
from voxplain.runner import read_rows, run
from voxplain.studies.effect import differences
from voxplain.studies.grounding import record, renoise, thinned
from voxplain.tracing import trace

BANDS, STATES = 4, 16  # of the 40 least noisy of 50 levels
SCALES = (1.0, 2.0, 4.0)
STAGES = ("parts", "guidance")
MADE = "attention of generations"
APART = Recipe(
    "apart", "ours", "as mean, every layer and head apart", accumulate=frozenset({"layer", "head"}), layers=("*",)
)
SCALINGS = ("raw", "words", "log_ratio")


def parts(bench: Bench, index: int) -> dict[str, Any]:
    """AUC over the volume and inside the named region, of every part of the recording alone."""
    case, text, mention = bench.mentioned(index)
    if mention is None or mention.mask is None or not mention.mask.any():
        return {}
    tokens, adapter = bench.adapter.tokenize(text), bench.adapter
    states = thinned(renoise(adapter, Sample(case.image, case.geometry, text), seed=index), STATES)
    region, mask = case.organs[mention.region], mention.mask
    scores: dict[str, list[float]] = {}

    def scored(name: str, values: np.ndarray) -> None:
        try:
            scores[name] = [auc_roc(values, mask), auc_roc(values, mask, region)]
        except Undefined:  # the finding fills its region
            return

    means: dict[MapKey, np.ndarray] = {}
    counts: dict[MapKey, int] = {}
    rows = tuple(rows_of(tokens, mention.span))
    effects: dict[str, list[np.ndarray]] = defaultdict(list)
    for band, picked in enumerate(np.array_split(np.arange(STATES), BANDS)):
        some = states.at(picked)
        made = record(adapter, [tokens], [some], APART)[0]
        means |= {replace(key, bin=band): mean for key, mean in made.means.items()}
        counts |= {replace(key, bin=band): count for key, count in made.counts.items()}
        name = f"band {some.timesteps[0]:.0f} to {some.timesteps[-1]:.0f}"
        for how in ("after", "before"):
            change = differences(adapter, tokens, some, [rows], how=how)[0]
            effects[how].append(change)
            scored(f"effect, {how}: {name}", _spread(change, case.geometry))
        mine = _only(made, lambda key: True)
        scored(f"attention: {name}", map_of(reduce(mine, "mean"), tokens, mention.span, case.geometry))
    for how, changes in effects.items():
        scored(f"effect, {how}: all bands", _spread(np.mean(changes, axis=0), case.geometry))
    maps = AttentionMaps(tokens, made.geometry, means, counts, made.provenance)
    for name, chosen in _choices(maps):
        scored(name, map_of(reduce(_only(maps, chosen), "mean"), tokens, mention.span, case.geometry))
    everything = reduce(_only(maps, lambda key: True), "mean")
    for scaling in SCALINGS:
        scaled = scale(everything, scaling)
        scored(f"attention, all: scaled {scaling}", map_of(scaled, tokens, mention.span, case.geometry))
    return {"kind": mention.kind, "scores": scores}


def _choices(maps: AttentionMaps) -> Iterator[tuple[str, Callable[[MapKey], bool]]]:
    """Every grid, layer and head of a layer, by a name that says where it is."""
    for grid in sorted({key.grid for key in maps.means}):
        yield f"attention: grid {'x'.join(map(str, grid))}", lambda key, grid=grid: key.grid == grid
    for layer in dict.fromkeys(key.layer for key in maps.means):
        short = (layer or "").replace(".transformer_blocks.0.attn2", "")
        yield f"attention: layer {short}", lambda key, layer=layer: key.layer == layer
        heads = sorted({key.head for key in maps.means if key.layer == layer and key.head is not None})
        for head in heads if len(heads) > 1 else ():
            yield (
                f"attention: head {head} of {short}",
                lambda key, layer=layer, head=head: (key.layer, key.head) == (layer, head),
            )


def _only(maps: AttentionMaps, chosen: Callable[[MapKey], bool]) -> AttentionMaps:
    keys = [key for key in maps.means if chosen(key)]
    return replace(maps, means={key: maps.means[key] for key in keys}, counts={key: maps.counts[key] for key in keys})


def _spread(change: np.ndarray, geometry: Any) -> np.ndarray:
    return Heatmap("", change, geometry.at(change.shape)).resize(geometry).values


def guidance(bench: Bench, index: int) -> dict[str, Any]:
    """One finding asked for, generated at every scale: whether the rules find it, and where attention lay."""
    rng = np.random.default_rng((84, {"dev": 1, "test": 2}[bench.options.split], index))
    plan = plan_finding(rng, CORE[index % len(CORE)])
    asked = request([plan], rng, plain=True)
    mention, scores = asked.findings[0], {}
    for weight in SCALES:
        with trace(bench.adapter, PER_LAYER) as tracer:
            sample = bench.model.generate(asked.text, seed=index, guidance_scale=weight)
        assert isinstance(sample, Sample)
        seen = [f for f in segmenter.findings(sample.image[0]) if f.kind == mention.kind]
        masks = [f.mask for f in seen if mention.side in (None, f.side) or f.side == "bilateral"]
        figures: dict[str, Any] = {"found": bool(masks)}
        if masks:
            truth, anatomy = np.logical_or.reduce(masks), register(sample.image[0])
            region = named_region(anatomy, mention.region, sample.image[0])
            maps = tracer.maps()[0]
            heat = map_of(reduce(maps, PER_LAYER), maps.prompt, mention.span, sample.geometry)
            with suppress(Undefined):
                figures |= {"auc": auc_roc(heat, truth), "auc_region": auc_roc(heat, truth, region)}
        scores[f"guidance {weight:g}"] = figures
    return {"kind": mention.kind, "scores": scores}


def summarize(bench: Bench) -> None:
    """A row a part: mean AUC over cases, with its interval, and the one inside the region by kind.

    A stage without rows stays as it was measured before, where that was with the same weights.
    """
    path, rows = RESULTS / f"contributions_{bench.options.split}.json", {one: _rows(bench, one) for one in STAGES}
    old = json.loads(path.read_text()) if path.is_file() else {}
    same = old.get("figures", {}).get("weights") == bench.model.weights_hash
    before = [row for row in old.get("table", []) if same and not rows[_stage(row)]]
    commands = [one for one in old.get("command", "").split(" && ") if same and not rows.get(one.split()[2], [0])]
    table: list[dict[str, Any]] = [row for row in before if _stage(row) == "parts"]
    by_part: dict[str, list[tuple[str, list[float]]]] = defaultdict(list)
    for row in rows["parts"]:
        for name, score in row.get("scores", {}).items():
            by_part[name].append((row["kind"], score))
    for name, scores in by_part.items():
        kinds = {kind: [inside for other, (_, inside) in scores if other == kind] for kind in CORE}
        table.append(
            {
                "part": name,
                "n": len(scores),
                "AUC, volume": _interval([whole for _, (whole, _) in scores]),
                "AUC, region": _interval([inside for _, (_, inside) in scores]),
                **{kind: float(np.mean(some)) for kind, some in kinds.items() if some},
            }
        )
    by_scale: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows["guidance"]:
        for name, figures in row.get("scores", {}).items():
            by_scale[name].append(figures)
    for name, figures in by_scale.items():
        table.append(
            {
                "part": f"{MADE}: {name}, where the rules find the finding",
                "n": sum("auc" in one for one in figures),
                "AUC, volume": _interval([one["auc"] for one in figures if "auc" in one]),
                "AUC, region": _interval([one["auc_region"] for one in figures if "auc_region" in one]),
                "found, of all": float(np.mean([one["found"] for one in figures])),
            }
        )
    for less, more in pairwise(by_scale):
        both = [pair for pair in zip(by_scale[more], by_scale[less], strict=True) if all("auc" in one for one in pair)]
        change = {
            name: _interval([a[key] - b[key] for a, b in both if key in a and key in b])
            for name, key in (("AUC, volume", "auc"), ("AUC, region", "auc_region"))
        }
        table.append({"part": f"{MADE}: {more} less {less}, where found at both", "n": len(both), **change})
    table += [row for row in before if _stage(row) == "guidance"]
    tail = f"--split {bench.options.split}"
    commands += [f"python bench/contributions.py {s} {tail} --count {len(made)}" for s, made in rows.items() if made]
    command = " && ".join([*sorted(commands, reverse=True), f"python bench/contributions.py summary {tail}"])
    facts = {"weights": bench.model.weights_hash, "states": STATES, "bands": BANDS}
    print(write(f"contributions_{bench.options.split}", command, facts, table))


def _stage(row: dict[str, Any]) -> str:
    """Which stage a row of the table is of."""
    return "guidance" if row["part"].startswith(MADE) else "parts"


def _interval(values: list[float]) -> list[float] | float | None:
    """The mean and its interval; nothing of fewer than three values."""
    if len(values) < 3:
        return None
    found = bootstrap(values)
    return found.mean if found.low is None or found.high is None else [found.mean, found.low, found.high]


def _path(bench: Bench, stage: str) -> Any:
    return RUNS / f"contributions-{stage}-{bench.label}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "summary"])
    parser.add_argument("--model", default="thorax")
    parser.add_argument("--split", default="dev", choices=["dev", "test"])
    parser.add_argument("--count", type=int, default=60)
    options = parser.parse_args()
    bench = Bench(options)
    for stage in options.stages:
        if stage == "summary":
            summarize(bench)
            continue
        measure = {"parts": parts, "guidance": guidance}[stage]
        cases = [(f"{number:04d}", number) for number in range(options.count)]

        def show(finished: int, total: int, left: float, stage: str = stage) -> None:
            print(f"\r{stage} {finished}/{total}, {left:.0f} s left ", end="", file=sys.stderr)

        before = len(_rows(bench, stage))
        run(cases, partial(partial, measure, bench), _path(bench, stage), progress=show)
        new = len(_rows(bench, stage)) - before
        if options.split == "test" and new:
            line = {"stage": f"contributions {stage}", "weights": bench.model.weights_hash, "cases": options.count}
            with (RESULTS / "test_log.jsonl").open("a") as file:
                file.write(json.dumps({**line, "new": new, "date": time.strftime("%Y-%m-%d")}) + "\n")


def _rows(bench: Bench, stage: str) -> list[Any]:
    path = _path(bench, stage)
    return list(read_rows(path)) if path.is_file() else []


if __name__ == "__main__":
    main()
