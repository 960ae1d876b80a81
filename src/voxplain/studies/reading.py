"""Training of the learned judge: phantoms drawn on the fly, their exact masks as targets.

It learns from phantoms alone, never from the generator's images, and no generator ever learns from it. How it then
reads is in `studies.judging`.
"""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float, UInt8
from scipy import ndimage
from torch import Tensor, nn

from voxplain.datasets.phantom.cases import BLOCK, Case, draw, plan_case
from voxplain.models.reader import CELL, Reader
from voxplain.studies.judging import OUTPUTS, LearnedReader, choose_smallest, load_reader, round_to_half, save_reader
from voxplain.studies.loop import CHANNELS_LAST, Checkpoint, Log, descend, interruptible, set_rate

WINDOWS = [(-1024.0, 1024.0), (-1024.0, -300.0), (-120.0, 120.0)]  # HU: all there is, lung, soft tissue
DEV_CASES = 300  # the same dev phantoms on which the rules' thresholds were chosen
RATE, WARMUP, DECAY = 2e-3, 100, 1e-4
SHARPNESS = 0.8  # voxels; half of the images are blurred by up to this much, so that a soft image is read, too
Progress = Callable[[str, int, int, float, float], None]


def train_reader(
    out: str | os.PathLike[str] = "checkpoints",
    *,
    steps: int = 3000,
    batch: int = 4,
    seed: int = 0,
    workers: int = 1,
    dev_cases: int = DEV_CASES,
    weights: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Path:
    """Train a reader of volumes in the folder `out`/reader, from where it stopped; the folder of its weights.

    `workers` processes draw the phantoms (0: this one does), `progress(stage, done, steps, loss, seconds left)` is
    called at every step. Everything but `workers` must stay the same between resumptions. CUDA where there is one.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"{steps} steps of batch {batch}: both must be at least 1")
    folder = Path(out) / ("reader" if seed == 0 else f"reader-seed{seed}")
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(seed)
    config = {"spatial_dims": 3, "outputs": len(OUTPUTS), "windows": WINDOWS}
    network = Reader(**config)
    network.to(device).to(memory_format=CHANNELS_LAST[3])  # type: ignore[call-overload]
    log = Log(folder / "log.jsonl", progress)
    with interruptible() as stopped:
        _fit(network, folder / "reader.pt", log, stopped, steps, partial(_draw_batch, seed, batch), workers)
    round_to_half(network.cpu())
    smallest, figures = choose_smallest(network, dev_cases, log)
    facts = {
        "command": f"voxplain train reader --steps {steps} --seed {seed}",
        "seed": seed, "steps": steps, "batch": batch, "dev_cases": dev_cases, "dev": figures,
        "parameters": sum(p.numel() for p in network.parameters()),
    }  # fmt: skip
    return save_reader(network, Path(weights) if weights else folder / "weights", config, smallest, facts)


def _fit(network: Reader, path: Path, log: Log, stopped, steps: int, job, workers: int) -> None:
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    state = Checkpoint(path, {"network": network, "optimizer": optimizer})
    first = state.load()
    log.begin("reader", first, steps)
    with closing(_ahead(job, range(first, steps), workers)) as batches:
        for step, (images, targets) in enumerate(batches, start=first):
            set_rate(optimizer, RATE, step, steps, WARMUP)
            with torch.autocast(device.type, torch.bfloat16):
                logits = network(torch.from_numpy(images).to(device))
            loss = objective(logits.float(), torch.from_numpy(targets).to(device).float() / CELL ** (logits.ndim - 2))
            descend(loss, optimizer, network)
            log.step(step, loss.item())
            state.settle(step, steps, stopped)


def objective(logits: Float[Tensor, "batch outputs *half"], shares: Float[Tensor, "batch outputs *half"]) -> Tensor:
    """Cross-entropy with the share of each cell that is covered, plus 1 - soft Dice of the outputs that are there.

    Soft Dice: Milletari et al., 3DV 2016; here over the whole batch, so that an output absent from one image counts.
    The cross-entropy, a mean over mostly empty cells, is weighted tenfold to be of the size of the other.
    """
    axes = [0, *range(2, logits.ndim)]
    made = logits.sigmoid()
    common, both = (made * shares).sum(axes), (made.square() + shares.square()).sum(axes)
    there = shares.sum(axes) > 0
    dice = (1 - (2 * common + 1) / (both + 1))[there].sum() / there.sum().clamp(min=1)
    return dice + 10 * nn.functional.binary_cross_entropy_with_logits(logits, shares)


def _draw_batch(
    seed: int, batch: int, step: int
) -> tuple[Float[np.ndarray, "batch 1 *spatial"], UInt8[np.ndarray, "batch outputs *half"]]:
    """Images, and how many voxels of each cell each output covers. A judge must not share the generator's blind spots:
    the pairs that are held out from the generator's training are drawn here, too."""
    images, targets = [], []
    for row in range(batch):
        rng = np.random.default_rng((seed, 3, step, row))
        plans = plan_case(rng, allow_held_out=True)
        case = draw(int(rng.integers(BLOCK)), "train", plans)
        blur = float(rng.uniform(0, SHARPNESS)) if rng.random() < 0.5 else 0.0
        images.append(ndimage.gaussian_filter(case.image, (0, *[blur] * case.geometry.ndim)))
        targets.append(covered(case))
    return np.stack(images).astype(np.float32), np.stack(targets)


def covered(case: Case) -> UInt8[np.ndarray, "outputs *half"]:
    """How many voxels of each cell each output covers: findings by their exact masks, lungs and lobes as drawn."""
    masks = {name: case.organs[name] for name in OUTPUTS if name in case.organs}
    masks |= {finding.kind: finding.mask for finding in case.findings}
    none = np.zeros(case.image.shape[1:], bool)
    stacked = np.stack([masks.get(name, none) for name in OUTPUTS]).astype(np.uint8)
    axes = range(none.ndim)
    fine, coarse = " ".join(f"(g{axis} p{axis})" for axis in axes), " ".join(f"g{axis}" for axis in axes)
    return reduce(stacked, f"o {fine} -> o {coarse}", "sum", **{f"p{axis}": CELL for axis in axes}).astype(np.uint8)


def _ahead(job: Callable[[int], Any], steps: range, workers: int) -> Generator[Any, None, None]:
    """The job's results in order, drawn by processes a few steps ahead."""
    if workers == 0 or not steps:
        yield from map(job, steps)
        return
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        waiting: deque[Any] = deque()
        for step in steps:
            waiting.append(pool.apply_async(job, (step,)))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().get()
        while waiting:
            yield waiting.popleft().get()


__all__ = ["LearnedReader", "covered", "load_reader", "objective", "train_reader"]
