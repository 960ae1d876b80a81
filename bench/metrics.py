"""How long the localization metrics take on one map, and AUC beside scikit-learn's: one core, process CPU time.

python bench/metrics.py              64^3 and 512^2, each with a small and a large truth, medians of 31 runs, to
                                     bench/results/metrics.json
python bench/metrics.py --repeats 3  a trial

The two ways to AUC run one after the other, in alternating order; the ratio is the median over pairs.
"""

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))  # before NumPy

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from itertools import cycle  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from record import write  # noqa: E402

from voxplain import metrics  # noqa: E402
from voxplain.resampling import resample  # noqa: E402

LIMIT = 30  # ms, all metrics of one map
CASES = {  # image, native grid, and the radius of the truth as a share of the image
    "64^3": ((64, 64, 64), (16, 16, 16), 0.15),
    "512^2": ((512, 512), (64, 64), 0.15),
    "64^3, large truth": ((64, 64, 64), (16, 16, 16), 0.53),  # 40 % of the cells
    "512^2, large truth": ((512, 512), (64, 64), 0.38),  # 40 %
}


def case(image: tuple[int, ...], grid: tuple[int, ...], radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map enlarged from its native grid, a ball of truth in it, and the half of the image that holds its center."""
    rng = np.random.default_rng(0)
    scores = resample(rng.random((1, *grid), np.float32), image, mode="linear")[0]
    place = np.meshgrid(*(np.linspace(0, 1, size) for size in image), indexing="ij")
    truth = np.sum([(axis - 0.3) ** 2 for axis in place], axis=0) < radius**2
    return scores + 0.3 * truth.astype(np.float32), truth, place[-1] < 0.5


def jobs(scores: np.ndarray, truth: np.ndarray, region: np.ndarray) -> dict[str, Callable[[], float]]:
    """Every localization metric of one map, over the image and, where the text names a region, inside it."""
    mask = metrics.mixture_mask(scores)
    found: dict[str, Callable[[], float]] = {
        "auc_roc": lambda: metrics.auc_roc(scores, truth),
        "auc_roc inside a region": lambda: metrics.auc_roc(scores, truth, region),
        "average_precision": lambda: metrics.average_precision(scores, truth),
        "cnr": lambda: metrics.cnr(scores, truth),
        "cnr inside a region": lambda: metrics.cnr(scores, truth, region=region),
        "pointing_game": lambda: metrics.pointing_game(scores, truth),
        "chance_level": lambda: metrics.chance_level(truth),
        "mass_inside": lambda: metrics.mass_inside(scores, truth),
        "mixture_mask": lambda: float(metrics.mixture_mask(scores).mean()),
        "iou": lambda: metrics.iou(mask, truth),
        "dice": lambda: metrics.dice(mask, truth),
        "foreground_background_iou": lambda: metrics.foreground_background_iou(mask, truth),
        "mean_iou of 5 thresholds": lambda: metrics.mean_iou(scores, truth, scale="minmax"),
        "oracle_iou": lambda: metrics.oracle_iou(scores, truth),
        "coverage": lambda: metrics.coverage(scores),
        "intensity": lambda: metrics.intensity(scores),
        "box_iou": lambda: metrics.box_iou(mask, truth),
        "center_distance": lambda: metrics.center_distance(mask, truth),
    }
    return found | {
        f"daam_iou at {tau}": lambda tau=tau: metrics.daam_iou(scores, truth, tau=tau) for tau in (0.3, 0.4, 0.5)
    }


def milliseconds(job: Callable[[], float]) -> float:
    start = time.process_time()
    job()
    return 1e3 * (time.process_time() - start)


def timed(found: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The median of each job, after one run that does not count."""
    return {name: statistics.median([milliseconds(job) for _ in range(repeats + 1)][1:]) for name, job in found.items()}


def beside_scikit_learn(scores: np.ndarray, truth: np.ndarray, repeats: int) -> dict[str, Any]:
    """CPU time of our AUC over scikit-learn's on the same flat arrays, and how far the two figures are apart."""
    if importlib.util.find_spec("sklearn") is None:
        print("scikit-learn is not installed: its AUC is not measured (pip install scikit-learn)")
        return {"ratio": None}
    from sklearn.metrics import roc_auc_score  # pyright: ignore[reportMissingImports]

    flat, labels = scores.ravel(), truth.ravel()

    def ours() -> float:
        return metrics.auc_roc(flat, labels)

    def theirs() -> float:
        return float(roc_auc_score(labels, flat))

    apart = abs(ours() - theirs())
    ratios, taken = [], []
    for _, first in zip(range(repeats), cycle([True, False])):
        before = milliseconds(ours) if first else None
        other = milliseconds(theirs)
        taken.append(other)
        ratios.append((milliseconds(ours) if before is None else before) / other)
    return {"ratio": statistics.median(ratios), "theirs_ms": statistics.median(taken), "apart": apart}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--repeats", type=int, default=31, help="runs of each metric (31)")
    repeats = options.parse_args().repeats

    figures: dict[str, Any] = {"repeats": repeats}
    rows = []
    for name, (image, grid, radius) in CASES.items():
        scores, truth, region = case(image, grid, radius)
        each, auc = timed(jobs(scores, truth, region), repeats), beside_scikit_learn(scores, truth, repeats)
        total = sum(each.values())
        figures[name] = {"ms": each, "total_ms": total, "auc": auc}
        rows.append((f"all {len(each)} localization metrics, {name}", f"{total:.3g} ms", f"{LIMIT} ms", total <= LIMIT))
        if auc["ratio"] is not None:
            rows.append((f"AUC / scikit-learn's, {name}", f"{auc['ratio']:.3g}", "1", auc["ratio"] <= 1))
    columns = ("metrics, CPU time on one core", "measured", "bound", "met")
    table: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in rows]
    path = write("metrics", "python bench/metrics.py", figures, table)
    for row in table:
        print("  ".join(str(value) for value in row.values()))
    print(f"written to {path.relative_to(Path(__file__).parents[1])}")


if __name__ == "__main__":
    main()
