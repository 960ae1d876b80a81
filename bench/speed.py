"""Speed and memory of the main job, as ratios within one run where that is possible: `make bench`.

Process CPU time where two ways are compared (wall time on a shared machine swings far more than the difference), in
interleaved pairs; wall time where a user waits. Nothing here fails on a slow machine: a bound that is not met says so
in the table.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from record import write

import voxplain
from voxplain.geometry import regular
from voxplain.maps import Attribution

PROMPT = "Large left pleural effusion. Severe consolidation in the right upper lobe."  # make demo's
SPARE = 64 * 1024  # bytes of bookkeeping that kept state may add to rows x cells x 4


def cpu_seconds(job: Callable[[], Any]) -> float:
    gc.collect()
    start = time.process_time()
    job()
    return time.process_time() - start


def wall_seconds(job: Callable[[], Any], repeats: int) -> float:
    """The median of `repeats`, after one run that does not count."""
    job()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def overhead(model: Any, pairs: int, steps: int) -> dict[str, Any]:
    """Traced over untraced generation; the two of a pair run one after the other, in alternating order."""

    def plain() -> None:
        model.generate(PROMPT, seed=0, steps=steps)

    def traced() -> None:
        with voxplain.trace(model):
            plain()

    def traced_and_read() -> None:
        with voxplain.trace(model) as tracer:
            plain()
        tracer.attribution()

    plain(), traced_and_read()  # warm up
    ratios, read = [], []
    for _, first in zip(range(pairs), cycle([True, False])):
        before = cpu_seconds(plain) if first else None
        with_trace, with_reading = cpu_seconds(traced), cpu_seconds(traced_and_read)
        without = cpu_seconds(plain) if before is None else before
        ratios.append(with_trace / without)
        read.append(with_reading / without)
    return {
        "pairs": pairs,
        "steps": steps,
        "ratio": statistics.median(ratios),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "ratio_with_reading": statistics.median(read),
    }


def kept_state(model: Any) -> dict[str, Any]:
    """Bytes that a trace keeps after 10 and after 100 steps, and what rows x cells x 4 allows."""
    kept = {}
    for steps in (10, 100):
        with voxplain.trace(model) as tracer:
            model.generate(PROMPT, seed=0, steps=steps)
        kept[steps] = tracer.nbytes
    (maps,) = tracer.maps()
    cells = {key.grid: mean[0].size for key, mean in maps.means.items()}
    rows = len(maps.prompt.kept)
    allowed = rows * sum(cells.values()) * 4 + SPARE
    return {
        "rows": rows,
        "cells": sum(cells.values()),
        "bytes_10": kept[10],
        "bytes_100": kept[100],
        "allowed": allowed,
    }


def reading(attribution: Attribution) -> dict[str, float]:
    """From stored maps to one word in the image, to three words at once, and to a volume of 256^3."""
    image = attribution.image_geometry
    words = ["left", "effusion", "consolidation"]
    spacing = tuple(size * step / 256 for size, step in zip(image.shape, image.spacing, strict=True))
    large = regular((256,) * image.ndim, spacing)
    figures = {
        "word_ms": 1e3 * wall_seconds(lambda: attribution.word("effusion").resize(image), 50),
        "joint_ms": 1e3 * wall_seconds(lambda: attribution.joint(words).resize(image), 50),
        "large_s": wall_seconds(lambda: attribution.word("effusion").resize(large), 7),
    }
    tracemalloc.start()
    heatmap = attribution.word("effusion").resize(large)
    figures["large_peak_over_one_map"] = tracemalloc.get_traced_memory()[1] / heatmap.values.nbytes
    tracemalloc.stop()
    return figures


def command_line(*arguments: str) -> Callable[[], Any]:
    program = Path(sys.executable).with_name("voxplain")
    return lambda: subprocess.run([program, *arguments], check=True, capture_output=True)


def end_to_end(steps: int) -> dict[str, float]:
    """Seconds that a user waits, import and model load included; the second run counts (files are cached)."""
    with tempfile.TemporaryDirectory() as folder:
        explain = ["explain", PROMPT, "--out", f"{folder}/run", "--overwrite", "--steps", str(steps)]
        return {
            "help_s": wall_seconds(command_line("--help"), 5),
            "explain_mean_s": wall_seconds(command_line(*explain, "--recipe", "mean"), 1),
            "explain_both_s": wall_seconds(command_line(*explain), 1),
        }


def table(figures: dict[str, Any]) -> list[dict[str, Any]]:
    trace, state, read, wait = (figures[part] for part in ("overhead", "state", "reading", "end_to_end"))
    rows = [
        ("traced / untraced generation, CPU time", trace["ratio"], 1.03, ""),
        ("kept state after 10 steps", state["bytes_10"], state["allowed"], " bytes"),
        ("kept state after 100 steps", state["bytes_100"], state["allowed"], " bytes"),
        ("`voxplain --help`", wait["help_s"], 0.5, " s"),
        ("`voxplain explain`, recipe mean, 50 steps", wait["explain_mean_s"], 30, " s"),
        ("`voxplain explain`, both recipes, 11 words, 50 steps", wait["explain_both_s"], 60, " s"),
        ("one word to the image (64^3)", read["word_ms"], 5, " ms"),
        ("joint map of three words", read["joint_ms"], 10, " ms"),
        ("one word to 256^3", read["large_s"], 0.3, " s"),
    ]
    return [
        {"speed and memory": what, "measured": f"{value:.4g}{unit}", "bound": f"{bound:g}{unit}", "met": value <= bound}
        for what, value, bound, unit in rows
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--pairs", type=int, default=11, help="interleaved pairs of traced and untraced runs (9 or more)"
    )
    options.add_argument("--steps", type=int, default=20, help="steps of each run of a pair")
    given = options.parse_args()

    figures: dict[str, Any] = {"prompt": PROMPT, "end_to_end": end_to_end(50)}  # first, while all cores are free
    torch.set_num_threads(1)
    model = voxplain.load("thorax")
    figures["overhead"] = overhead(model, given.pairs, given.steps)
    figures["state"] = kept_state(model)
    with voxplain.trace(model) as tracer:
        model.generate(PROMPT, seed=0, steps=4)
    figures["reading"] = reading(tracer.attribution())

    rows = table(figures)
    path = write("speed", "make bench", figures, rows)
    for row in rows:
        print("  ".join(str(value) for value in row.values()))
    print(f"written to {path.relative_to(Path(__file__).parents[1])}")


if __name__ == "__main__":
    main()
