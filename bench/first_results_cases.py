"""Where the cases of the first results come from: phantoms, and volumes that a model made of a prompt each."""

import csv
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from thorax import named_region

import voxplain
from voxplain import recipes
from voxplain.adapters import as_adapter
from voxplain.adapters.base import Adapter
from voxplain.datasets.base import Excluded
from voxplain.datasets.phantom import segmenter
from voxplain.datasets.phantom.cases import SPLITS, held_out, plan_finding
from voxplain.datasets.phantom.findings import CORE, Plan
from voxplain.datasets.phantom.impressions import Mention, request
from voxplain.datasets.phantom.registration import register
from voxplain.io.nifti import write_volume
from voxplain.runner import read_rows, run
from voxplain.studies import rules
from voxplain.studies.baselines import Cost, Seen, measure
from voxplain.studies.benchmark_cases import Runs, Trial
from voxplain.studies.benchmark_phantoms import Phantoms, numbered
from voxplain.studies.effect import keeping

RUNS = Path(__file__).parent / "runs" / "first-results"
READ = ("mean", "selected", "effect")  # on many cases: support, at every state, takes half as long again


@cache
def opened(model: str) -> Any:
    """The model, loaded once, on the GPU where there is one."""
    return voxplain.load(model, device="cuda" if torch.cuda.is_available() else None)


def shown(name: str) -> Callable[[int, int, float], None]:
    """Progress on the error stream."""

    def report(finished: int, total: int, left: float) -> None:
        print(f"\r{name} {finished}/{total}, {left:.0f} s left ", end="", file=sys.stderr)

    return report


@dataclass(frozen=True)
class Drawn(Phantoms):
    """Phantoms whose training masks are drawn once for all jobs."""

    def masks(self, prior: Any, adapter: Adapter | None) -> Iterator[np.ndarray]:
        axes = as_adapter(adapter).geometry.ndim
        path = RUNS / "masks" / f"{'-'.join(prior)}-{axes}d.npz".replace(" ", "_")
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(f".{os.getpid()}.npz")
            np.savez_compressed(beside, masks=np.stack(list(super().masks(prior, adapter))))
            beside.rename(path)
        yield from np.load(path)["masks"]


@dataclass(frozen=True)
class Made(Runs):
    """Generated volumes in which the rules find what was asked for; the others are counted, with the reason."""

    model: str = ""
    split: str = "test"

    @property
    def left_out(self) -> Mapping[str, int]:  # pyright: ignore[reportIncompatibleVariableOverride]
        rows = read_rows(Path(self.table).with_name("made.jsonl"))
        return Counter(row["failed"] for row in rows if "failed" in row)

    def prior(self, trial: Trial) -> tuple[str, str]:
        return trial.label, asked(self.split, int(trial.patient))[2].region

    def masks(self, prior: Any, adapter: Adapter | None) -> Iterator[np.ndarray]:
        yield from Drawn(1, self.split).masks(prior, as_adapter(opened(self.model)))


def asked(split: str, number: int) -> tuple[Plan, str, Mention]:
    """The finding that a prompt asks for, the prompt, and where it says so."""
    rng = np.random.default_rng((83, SPLITS[split], number))
    plan = plan_finding(rng, CORE[number % len(CORE)])
    said = request([plan], rng)
    return plan, said.text, next(one for one in said.findings if not one.negated)


def made_runs(model: str, split: str, count: int) -> Path:
    """A table of run folders, one for each prompt with one finding, with the masks that the rules see in the volume."""
    folder = RUNS / f"{Path(model).name}-made-{split}"
    cases = [(f"{number:04d}", number) for number in range(count)]

    def prepare() -> Callable[[int], dict[str, str]]:
        return partial(made_run, opened(model), folder, split)

    rows = run(
        cases, prepare, folder / "made.jsonl", about={"model": model, "split": split}, progress=shown(folder.name)
    )
    table = folder / "runs.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, ("run", "mask", "words", "label", "region", "patient", "group"))
        writer.writeheader()
        for row in sorted(read_rows(rows), key=lambda row: row["case"]):
            if "failed" not in row:
                writer.writerow({name: row[name] for name in writer.fieldnames})
    return table


def made_run(model: Any, folder: Path, split: str, number: int) -> dict[str, str]:
    """Generate one volume with every recipe, and find in it what was asked for; `Excluded` where it is not there."""
    plan, text, mention = asked(split, number)
    adapter = as_adapter(model)
    tokens = adapter.tokenize(text)
    words = numbered(tokens, mention.span)
    attentive = [name for name in READ if recipes.get(name).needs_attention]
    with keeping(adapter) as kept:
        made = voxplain.explain(adapter, text, seed=number, recipes=attentive)
    seen = Seen(kept()[0], {}, Cost(0, 0, 0.0))
    effect = measure(adapter, made.sample, text, "effect", spans=rules.spans(tokens, (words,)), seen=seen)
    made = replace(made, attributions={**made.attributions, "effect": effect.attribution})
    volume, geometry = made.sample.image[0], made.sample.geometry
    found = [one for one in segmenter.findings(volume) if one.kind == mention.kind]
    masks = [one.mask for one in found if mention.side in (None, one.side) or one.side == "bilateral"]
    if not masks:
        raise Excluded("the rules do not find in the volume what was asked for")
    place = folder / f"{number:04d}"
    voxplain.io.save_run(made, place, overwrite=True)
    region = named_region(register(volume), mention.region, volume)
    write_volume(place / "truth.nii.gz", np.logical_or.reduce(masks), geometry, np.uint8)
    write_volume(place / "region.nii.gz", region, geometry, np.uint8)
    group = "held out" if held_out(plan) else "seen"
    paths = {"run": place.name, "mask": f"{place.name}/truth.nii.gz"}
    inside = f"{place.name}/region.nii.gz"
    return {**paths, "words": words, "label": mention.kind, "region": inside, "patient": place.name, "group": group}
