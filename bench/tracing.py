"""What listening costs, beside a plain run and beside other packages; and parity with the package daam.

    python bench/tracing.py                     all parts below, then bench/results/tracing.json
    python bench/tracing.py parity sd15         these parts
    python bench/tracing.py --small             all parts on small shapes, to try it out; writes no result

Parts: parity, sd15 (the U-Net of Stable Diffusion 1.5 at 256 and 512 pixels), medsyn, thorax, summary. The packages of
others are in an environment of their own, which `make peers` builds; sd15 runs in it, Voxplain included, so that all
ways are measured in one process, in interleaved rounds, on one thread. Without it only our ways are measured.

Each round is a line in bench/runs/, and a run that was cut short goes on with the rounds that are missing; `--fresh`
measures all of them again. Process CPU time counts: wall time on a shared machine swings more than the differences.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from record import write
from tracing_summary import aims, digest, table

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "bench" / "runs"
PEERS = Path(os.environ.get("VOXPLAIN_PEERS", ROOT / ".peers")) / "bin" / "python"
ALONE = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
COMMON = ("plain", "plain again", "voxplain mean", "voxplain daam", "query store")


@dataclass(frozen=True, slots=True)
class Plan:
    """One network: how many steps a run has, how often each way is measured, and which ways."""

    title: str
    steps: int
    rounds: int
    ways: tuple[str, ...]


PLANS = {
    "sd15-256": Plan(
        "SD 1.5, 256 px",
        2,
        3,
        (*COMMON, "daam", "attention-map-diffusers", "attention-map-diffusers, all steps"),
    ),
    "sd15-512": Plan("SD 1.5, 512 px", 2, 2, (COMMON[0], *COMMON[2:], "daam", "attention-map-diffusers")),
    "medsyn": Plan("MedSyn, narrow", 2, 3, ("plain", "voxplain mean", "query store")),
    "thorax": Plan("MONAI 3D (thorax)", 6, 5, COMMON),
}
PARTS = {"sd15": ("sd15-256", "sd15-512"), "medsyn": ("medsyn",), "thorax": ("thorax",)}

PARITY = {  # native size in latent cells, scheduler, pixels, steps, recipe
    "512 px, DDIM": (64, "DDIMScheduler", 512, 3, "daam"),
    "512 px, PNDM": (64, "PNDMScheduler", 512, 3, "daam"),
    "256 of 512 px": (64, "DDIMScheduler", 256, 3, "daam_compatible"),  # the package leaves out the coarsest layers
    "768 px": (96, "DDIMScheduler", 768, 1, "daam"),
}


# measuring ------------------------------------------------------------------------------------------------------------


def subjects(names: list[str], small: bool) -> Iterator[tuple[str, Any]]:
    """Each network by name; those of one family share their weights."""
    import tracing_models as models

    pipe = None
    for name in names:
        if name.startswith("sd15"):
            pipe = pipe or models.stable_diffusion(**(models.SMALL if small else models.SD15))
            yield name, models.drawn(pipe, int(name.partition("-")[2]))
        elif name == "medsyn":
            yield name, models.medsyn(8, (8, 16, 16)) if small else models.medsyn(32, (32, 64, 64))
        else:
            yield name, models.thorax()


def counted(way: Any) -> dict[str, Any]:
    """Operations and bytes of a run of one step and of PyTorch in the map step, and by how much that one grows."""
    from tracing_costs import Counted, with_peak
    from tracing_ways import QueryStore

    with Counted() as run, way.listening():
        way.subject.generate(1)
    with Counted() as maps:
        _, peak = with_peak(way.maps)
    found = {"flops": run.flops, "bytes": run.nbytes, "map_flops": maps.flops, "map_bytes": maps.nbytes, "peak": peak}
    if isinstance(way, QueryStore):
        found |= {"floor": way.floor(), "cells": way.cells(), "rows": way.subject.rows}
    return found


def timed(way: Any, steps: int) -> dict[str, float]:
    """CPU seconds of a run from before listening begins until it has ended, and of the parts of it; bytes kept."""
    from tracing_costs import Clock, inside, registering

    hooks, attention, maps = Clock(), Clock(), Clock()
    gc.collect()
    start = time.process_time()
    with ExitStack() as listening:
        with registering(hooks):
            listening.enter_context(way.listening())
        with inside(way.subject.attention, attention):
            way.subject.generate(steps)
    call, kept = time.process_time() - start, way.kept
    maps.around(way.maps)()
    return {"call": call, "attention": attention.seconds, "hooks": hooks.seconds, "maps": maps.seconds, "kept": kept}


def measure(names: list[str], small: bool, rounds: int | None = None) -> None:
    """Every round that is missing: round 0 counts, in one step, and warms up; the others take the time."""
    import torch
    from tracing_ways import WAYS, missing

    torch.set_num_threads(1)
    for name, subject in subjects(names, small):
        plan = PLANS[name]
        whole = [row for row in rows(name, small) if not any(come(way, one) for way, one in row["ways"].items())]
        done, last = {row["round"] for row in whole}, plan.rounds if rounds is None else rounds
        for number in [one for one in range(last + 1) if one not in done]:
            row: dict[str, Any] = {"round": number, "ways": {}, "versions": versions()}
            start = number % len(plan.ways)
            for way in plan.ways[start:] + plan.ways[:start]:
                print(f"{plan.title}, round {number} of {last}: {way}", file=sys.stderr, flush=True)
                if reason := missing(way):
                    row["ways"][way] = {"error": reason, "missing": True}
                    continue
                try:
                    made = WAYS[way](subject)
                    row["ways"][way] = timed(made, plan.steps) if number else counted(made)
                except Exception as error:  # of another package: no reason to lose the round
                    if WAYS[way].package is None:
                        raise
                    row["ways"][way] = {"error": f"{type(error).__name__}: {error}"}
            with path(name, small).open("a") as file:
                file.write(json.dumps(row) + "\n")


def come(way: str, found: dict[str, Any]) -> bool:
    """Whether a way could not be measured for want of its package, which is here by now."""
    from tracing_ways import missing

    return "missing" in found and missing(way) is None


def path(name: str, small: bool) -> Path:
    RUNS.mkdir(exist_ok=True)
    return RUNS / f"tracing{'-small' if small else ''}-{name}.jsonl"


def rows(name: str, small: bool) -> list[dict[str, Any]]:
    """What was measured, each round or case once: what was measured last counts."""
    file = path(name, small)
    found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return list({row["case" if "case" in row else "round"]: row for row in found}.values())


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "diffusers", "transformers", "monai", "daam", "attention-map-diffusers"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "-"
    return found


# parity ---------------------------------------------------------------------------------------------------------------


def parity(small: bool) -> None:
    """Recipe `daam` and the package daam, each in its own process, on one pipeline in a folder."""
    import tracing_models as models

    for case, (native, scheduler, *run) in list(PARITY.items())[: 1 if small else None]:
        if case in {row["case"] for row in rows("parity", small) if "error" not in row}:
            continue
        print(f"parity: {case}", file=sys.stderr, flush=True)
        if PEERS.exists():
            with tempfile.TemporaryDirectory() as folder:
                shape = {**models.SMALL, "native": native, "scheduler": scheduler, "sharp": True}
                models.stable_diffusion(**shape).save_pretrained(folder)
                row = {"case": case, **compared(folder, *run)}
        else:
            row = {"case": case, "error": f"{PEERS} is missing; make peers, and run again"}
        with path("parity", small).open("a") as file:
            file.write(json.dumps(row) + "\n")


def compared(folder: str, pixels: int, steps: int, recipe: str) -> dict[str, Any]:
    """The largest differences between our maps and those of the package, in shares of the maximum.

    The package attends by a kernel of its own, which changes the image in its last digits and with it all later maps.
    So our run is compared twice: on the same kernel, where only the maps can differ, and on the stock one.
    """
    import numpy as np
    import torch
    from diffusers.models.attention_processor import AttnProcessor
    from tracing_models import PROMPT

    import voxplain
    from voxplain.adapters.diffusers import load_pipeline

    script, out = Path(__file__).parent / "peers" / "daam_parity.py", Path(folder, "daam.npz")
    arguments = ["--prompt", PROMPT, "--pixels", str(pixels), "--steps", str(steps)]
    environment = {**os.environ, **ALONE, "XDG_CACHE_HOME": folder}
    subprocess.run([str(PEERS), str(script), folder, str(out), *arguments], check=True, env=environment)
    theirs = np.load(out)
    maps, found = theirs["maps"], {"recipe": recipe, "keys": int(theirs["keys"])}
    torch.set_num_threads(1)  # as the other process: products are summed in another order on two
    pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    for kernel in ("stock", "same"):
        if kernel == "same":
            for name, module in pipe.unet.named_modules():
                if name.endswith("attn2") and not name.startswith("mid"):  # those that the package takes over
                    module.set_processor(AttnProcessor())
        with voxplain.trace(pipe, recipe=recipe) as tracer:
            options = {"num_inference_steps": steps, "height": pixels, "width": pixels, "output_type": "latent"}
            latents = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **options).images
        ours = tracer.attribution().maps
        if ours.shape != maps.shape:
            raise ValueError(f"our maps are {ours.shape}, those of daam {maps.shape}")
        found[f"error_{kernel}_kernel"] = float(np.abs(ours - maps).max() / maps.max())
        found[f"latents_differ_{kernel}_kernel"] = float(np.abs(latents.numpy() - theirs["latents"]).max())
    return {**found, "maps": list(maps.shape), "spread": float(maps.std() / maps.max())}


# summary --------------------------------------------------------------------------------------------------------------


def summary(small: bool) -> None:
    """bench/results/tracing.json, and its table on the screen."""
    from tracing_ways import OURS

    networks = {
        name: digest(found, PLANS[name].title, PLANS[name].ways, PLANS[name].steps)
        for name in PLANS
        if (found := rows(name, small)) or not small
    }
    figures = {
        "networks": networks,
        "aims": {
            name: {way: aims(way, found["ways"][way], found) for way in OURS if way in found["ways"]}
            for name, found in networks.items()
        },
        "parity": rows("parity", small),
    }
    lines = table(figures)
    for line in lines:
        print(
            "  ".join(f"{name} {value:.4g}" if isinstance(value, float) else str(value) for name, value in line.items())
        )
    if not small:
        print(write("tracing", "python bench/tracing.py", figures, lines).relative_to(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="by default all of them")
    parser.add_argument("--small", action="store_true", help="small shapes, no result written")
    parser.add_argument("--fresh", action="store_true", help="forget the rounds that were measured before")
    parser.add_argument("--rounds", type=int, help="of each network; by default 2 to 5, which takes about 20 minutes")
    parser.add_argument("--here", nargs="+", choices=list(PLANS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        measure(options.here, options.small, options.rounds)
        return
    known = ["parity", *PARTS, "summary"]
    if unknown := set(options.parts) - set(known):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for part in options.parts or known:
        names = PARTS.get(part, (part,))
        if options.fresh and part != "summary":
            for name in names:
                path(name, options.small).unlink(missing_ok=True)
        if part == "parity":
            parity(options.small)
        elif part == "summary":
            summary(options.small)
        else:
            python = PEERS if part == "sd15" and PEERS.exists() else sys.executable
            more = ["--small"] * options.small + (["--rounds", str(options.rounds)] if options.rounds else [])
            with tempfile.TemporaryDirectory() as cache:  # daam makes a folder there
                env = {**os.environ, **ALONE, "XDG_CACHE_HOME": cache}
                subprocess.run([str(python), __file__, *more, "--here", *names], check=True, env=env)


if __name__ == "__main__":
    main()
