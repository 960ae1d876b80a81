"""How the learned judge reads a volume: blind to the prompt, with a minimum volume for each kind chosen on `dev`.

Its answers have the type of the rules' (`datasets.phantom.segmenter`), so the two can be compared finding by finding.
It shares no threshold with them and takes side and lobe from lungs and lobes that it sees itself. Training it is in
`studies.reading`.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import nn

from voxplain.datasets.phantom.anatomy import LOBES
from voxplain.datasets.phantom.cases import draw
from voxplain.datasets.phantom.findings import KINDS, LOBAR
from voxplain.datasets.phantom.segmenter import VOXEL_ML, Found
from voxplain.models.reader import SHIPPED, Reader
from voxplain.studies.loop import Log

LUNGS = {"right": "right lung", "left": "left lung"}
OUTPUTS = (*KINDS, *LUNGS.values(), *LOBES)
PAIRED = ("effusion", "pneumothorax", "ground_glass")  # on both sides they are one bilateral finding
DIFFUSE = {"cardiomegaly": None, "pericardial_effusion": None, "emphysema": "bilateral", "fibrosis": "bilateral"}
LEVEL = 0.35  # probability above which a voxel counts: below a half, since small findings fill no cell
FORMAT = 1


@dataclass(frozen=True, eq=False)
class LearnedReader:
    """A trained network with the decisions that were made on `dev`; `weights_hash` tells which file it came from."""

    network: Reader
    smallest_ml: Mapping[str, float]
    weights_hash: str

    def read(self, volume: Float[np.ndarray, "slices rows columns"]) -> list[Found]:
        """Every finding that the network sees in a volume (HU, voxels of 5 mm), each with side, lobe, volume and mask.

        Side and lobe are None where the kind has none; effusion, pneumothorax and ground glass on both sides are one
        bilateral finding.
        """
        seen = see(self.network, volume)
        return [found for kind in KINDS for found in decide(kind, seen, self.smallest_ml[kind])]


def see(
    network: Reader, volume: Float[np.ndarray, "slices rows columns"]
) -> dict[str, Float[np.ndarray, "slices rows columns"]]:
    """The probability of every output at each voxel of a volume in HU."""
    if volume.ndim != 3 or not np.isfinite(volume).all():
        raise ValueError(f"expected finite HU on three axes, got shape {volume.shape}")
    with torch.no_grad():
        logits = network(torch.from_numpy(np.asarray(volume, np.float32))[None, None])
        made = nn.functional.interpolate(logits, size=volume.shape, mode="trilinear").sigmoid()[0]
    return dict(zip(OUTPUTS, made.numpy(), strict=True))


def decide(kind: str, seen: Mapping[str, np.ndarray], smallest_ml: float) -> list[Found]:
    """The findings of one kind that are at least `smallest_ml` large, placed by the lungs and lobes that were seen."""
    pieces = [piece for piece in _pieces(kind, seen) if piece.volume_ml >= smallest_ml]
    if kind in PAIRED and len({piece.side for piece in pieces}) == 2:
        return [_found(kind, np.logical_or.reduce([piece.mask for piece in pieces]), "bilateral", None)]
    merged: dict[tuple[str | None, str | None], list[np.ndarray]] = {}
    for piece in pieces:
        merged.setdefault((piece.side, piece.lobe), []).append(piece.mask)
    return [
        _found(kind, np.logical_or.reduce(masks), side, lobe, len(masks) if kind == "nodule" else 1)
        for (side, lobe), masks in merged.items()
    ]


def _pieces(kind: str, seen: Mapping[str, np.ndarray]) -> list[Found]:
    """What is decided upon one by one: the whole of a diffuse kind, a side's fluid or air, a connected lobar piece."""
    mask = seen[kind] > LEVEL
    if not mask.any():
        return []
    if kind in DIFFUSE:
        return [_found(kind, mask, DIFFUSE[kind], None)]
    if kind not in LOBAR:
        right = seen[LUNGS["right"]] >= seen[LUNGS["left"]]
        return [_found(kind, mask & right, "right", None), _found(kind, mask & ~right, "left", None)]
    labels = np.asarray(ndimage.label(mask, np.ones((3, 3, 3), bool))[0])  # type: ignore[index]
    masks = [labels == k for k in range(1, labels.max() + 1)]
    lobes = [max(LOBES, key=lambda lobe: float(seen[lobe][piece].sum())) for piece in masks]
    return [_found(kind, piece, lobe.split()[0], lobe) for piece, lobe in zip(masks, lobes, strict=True)]


def _found(kind: str, mask: np.ndarray, side: str | None, lobe: str | None, count: int = 1) -> Found:
    return Found(kind, side, lobe, float(mask.sum()) * VOXEL_ML, mask, count)


def choose_smallest(
    network: Reader, cases: int, log: Log
) -> tuple[dict[str, float], dict[str, dict[str, float | None]]]:
    """For each kind the minimum volume (ml) that tells best who has it, with recall and specificity, on dev cases.

    The first `cases` are read; best is the largest sum of the two, and among equals the one in the middle.
    """
    largest: dict[str, list[float]] = {kind: [] for kind in KINDS}
    truth: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    log.begin("dev", 0, cases)
    for index in range(cases):
        case = draw(index, "dev")
        seen = see(network, case.image[0])
        for kind in KINDS:
            largest[kind].append(max((piece.volume_ml for piece in _pieces(kind, seen)), default=0.0))
            truth[kind].append(kind in {finding.kind for finding in case.findings})
        log.step(index, 0.0)
    chosen = {kind: _cut(np.array(largest[kind]), np.array(truth[kind], bool)) for kind in KINDS}
    figures = {
        kind: {"recall": recall, "specificity": specificity} for kind, (_, recall, specificity) in chosen.items()
    }
    return {kind: cut for kind, (cut, _, _) in chosen.items()}, figures


def _cut(
    volumes: Float[np.ndarray, "cases"], there: Bool[np.ndarray, "cases"]
) -> tuple[float, float | None, float | None]:
    """The volume that separates best, recall and specificity at it; one voxel where nothing can be learned."""
    edges = np.unique(volumes[volumes > 0])
    if not there.any() or there.all() or not edges.size:
        return VOXEL_ML, None, None
    recall = np.array([(volumes[there] >= edge).mean() for edge in edges])
    specificity = np.array([(volumes[~there] < edge).mean() for edge in edges])
    best = np.flatnonzero(np.isclose(recall + specificity, (recall + specificity).max()))
    at = best[len(best) // 2]
    below = edges[at - 1] if at else 0.0
    return float(below + edges[at]) / 2, float(recall[at]), float(specificity[at])


def round_to_half(network: Reader) -> None:
    """What half precision keeps of the weights, so that decisions are made on what is saved."""
    for name, value in network.state_dict().items():
        half = value.half()
        if not torch.isfinite(half).all():
            raise ValueError(f"{name} does not fit half precision (largest value {value.abs().max():g}); not saved")
        value.copy_(half)


def save_reader(
    network: Reader, folder: Path, config: dict[str, Any], smallest: dict[str, float], facts: dict[str, Any]
) -> Path:
    """Write reader.safetensors (fp16) and reader.json with its hash; beside, then renamed, over none but a reader."""
    if folder.exists() and not (folder / "reader.json").is_file():
        raise FileExistsError(f"{folder} exists and is not a reader's folder; give another place")
    fresh = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    tensors = {name: value.half().contiguous() for name, value in network.state_dict().items()}
    save_file(tensors, fresh / "reader.safetensors")
    described = {
        "format": FORMAT, "config": config, "names": OUTPUTS, "smallest_ml": smallest, "training": facts,
        "sha256": _sha256(fresh / "reader.safetensors"),
    }  # fmt: skip
    (fresh / "reader.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    return fresh.rename(folder)


def load_reader(folder: str | os.PathLike[str] = SHIPPED) -> LearnedReader:
    """A reader from the folder that `train_reader` wrote, in float32; without a folder, the one that ships.

    Raises FileNotFoundError where there is none, ValueError where the weights differ from their recorded hash or were
    written by another version.
    """
    folder = Path(folder)
    for name in ("reader.json", "reader.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no {name} in {folder}; train a reader with `voxplain train reader`")
    described = json.loads((folder / "reader.json").read_text(encoding="utf-8"))
    if described["format"] != FORMAT or tuple(described["names"]) != OUTPUTS:
        raise ValueError(f"{folder} was written by another version (format {described['format']}); train it again")
    if (found := _sha256(folder / "reader.safetensors")) != described["sha256"]:
        raise ValueError(
            f"{folder / 'reader.safetensors'} is not the file that was saved: sha256 {found[:12]}..., expected "
            f"{described['sha256'][:12]}...; restore it, or train the reader again"
        )
    network = Reader(**described["config"])
    network.load_state_dict({name: value.float() for name, value in load_file(folder / "reader.safetensors").items()})
    return LearnedReader(network.eval().requires_grad_(False), described["smallest_ml"], found)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
