"""The phantoms that a training draws once and keeps: families of cases that share a chest."""

import hashlib
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxplain.datasets.phantom.cases import Case, draw, plan_case, plan_siblings, radiograph
from voxplain.datasets.phantom.findings import Finding
from voxplain.geometry import regular

FAMILY = len(plan_siblings(np.random.default_rng(0)))  # cases in a row that share a chest
ALIKE_FROM = 1_000_000  # chests of families whose siblings are alike


class Pool:
    """`cases` training phantoms on disk, with what a text needs to know of them; `FAMILY` in a row share a chest.

    Siblings have findings of their own; with `alike`, they are laid out by `plan_siblings`.
    """

    def __init__(self, folder: Path, cases: int, workers: int, *, volumes: bool, alike: bool = False) -> None:
        self.folder, self.size, self.workers = folder, cases, workers
        self.volumes, self.alike = volumes, alike
        self.cases: list[Case] = []

    def fill(self, progress: Callable[[str, int, int, float, float], None] | None = None) -> None:
        """Draw what is not on disk yet, in blocks of 100 cases that are renamed when complete."""
        self.folder.mkdir(parents=True, exist_ok=True)
        blocks = [b for b in range(0, self.size, 100) if not (self.folder / f"{b:07d}.npy").exists()]
        jobs = [(self.folder, b, min(100, self.size - b), self.volumes, self.alike) for b in blocks]
        begun = time.monotonic()
        with multiprocessing.get_context("spawn").Pool(self.workers) if jobs else _nothing() as workers:
            for done, _ in enumerate(workers.imap(_draw_block, jobs) if jobs else (), start=1):
                if progress:
                    left = (time.monotonic() - begun) / done * (len(jobs) - done)
                    progress("phantoms", 100 * done, 100 * len(jobs), float("nan"), left)
        starts = range(0, self.size, 100)
        self.images = [np.load(self.folder / f"{b:07d}.npy", mmap_mode="r") for b in starts]
        lines = [line for b in starts for line in (self.folder / f"{b:07d}.jsonl").read_text().splitlines()]
        self.cases = [_light(json.loads(line)) for line in lines[: self.size]]

    def batch(self, indices: np.ndarray) -> Float[Tensor, "batch 1 *spatial"]:
        """Images in physical units."""
        rows = [np.asarray(self.images[i // 100][i % 100], np.float32) for i in indices]
        return torch.from_numpy(np.stack(rows))[:, None]

    def hash(self) -> str:
        """SHA-256 over the images of the first block and what its texts are made from."""
        digest = hashlib.sha256(np.ascontiguousarray(self.images[0]).tobytes())
        digest.update((self.folder / "0000000.jsonl").read_bytes())
        return digest.hexdigest()


def _draw_block(job: tuple[Path, int, int, bool, bool]) -> None:
    folder, first, count, volumes, alike = job
    cases = []
    for number in range(first, first + count):
        family, member = divmod(number, FAMILY)
        if alike:
            plans = plan_siblings(np.random.default_rng((4, family)))[member]
        else:
            plans = plan_case(np.random.default_rng((3, number)), allow_held_out=False)
        cases.append((draw if volumes else radiograph)(ALIKE_FROM * alike + family, "train", plans, alike=alike))
    images = np.stack([case.image[0] for case in cases])
    stored = np.round(images).astype(np.int16) if volumes else images.astype(np.float16)
    lines = [json.dumps({"seed": c.seed, "findings": [_facts(f) for f in c.findings]}) for c in cases]
    (folder / f"{first:07d}.jsonl").write_text("\n".join(lines) + "\n")
    partial = folder / f"{first:07d}.part.npy"
    np.save(partial, stored)
    partial.rename(folder / f"{first:07d}.npy")


def _facts(finding: Finding) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in ("kind", "side", "lobe", "severity", "count", "size_mm")}


def _light(facts: dict[str, Any]) -> Case:
    """A case of one empty pixel: enough to compose its text."""
    none = np.zeros((1, 1), bool)
    findings = tuple(Finding(mask=none, **finding) for finding in facts["findings"])
    image, geometry = np.zeros((1, 1, 1), np.float32), regular((1, 1), (1.0, 1.0))
    return Case(facts["seed"], "train", image, geometry, findings, defaultdict(lambda: none), None)


@contextmanager
def _nothing() -> Iterator[Any]:
    yield None
