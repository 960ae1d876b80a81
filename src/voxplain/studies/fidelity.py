"""Generated images against real ones, and a generator's images against each other: every figure with its n.

Features come from any network, as files (`metrics.load_features`), or from our own small reader, which was trained on
phantoms and is a yardstick for phantoms alone.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.datasets.phantom.cases import SPACING
from voxplain.datasets.phantom.findings import KINDS
from voxplain.datasets.reading import NIFTI, read_image
from voxplain.datasets.tables import rows
from voxplain.metrics.base import Undefined
from voxplain.metrics.classification import TORCHXRAYVISION, finding_auc
from voxplain.metrics.distribution import Distance, fid, kid, precision_recall
from voxplain.metrics.features import Features, described
from voxplain.metrics.image import ms_ssim, pairs_across, pairs_within, psnr, ssim
from voxplain.metrics.statistics import bootstrap
from voxplain.studies.judging import LearnedReader, see
from voxplain.view.tables import Cell, Table

IMAGES = (*NIFTI, ".png", ".jpg", ".jpeg", ".tif", ".tiff")
HEALTHY = "No Finding"
Names = Mapping[str, str]  # a finding -> what the classifier calls it
Pair = Callable[[np.ndarray, np.ndarray], float]


def distances(real: Features, generated: Features, *, allow_few: bool = False, seed: int = 0) -> list[Distance]:
    """FID, KID, precision and recall; each says what it depends on. Refusals are those of `metrics.distribution`."""
    options = {"seed": seed}
    return [
        fid(real, generated, allow_few=allow_few, **options),
        kid(real, generated, **options),
        *precision_recall(real, generated, **options),
    ]


def reader_features(reader: LearnedReader, folder: Path) -> Features:
    """What the reader's last block sees in each volume of a folder (NIfTI, HU, voxels of 5 mm), the mean over places.

    Raises ValueError for a folder without volumes, and for a volume whose shape the reader does not take or whose file
    says that its voxels are of another size.
    """
    made = [pooled(reader.network, _volume(path)) for path in _images(folder, NIFTI)]
    network = f"voxplain reader {reader.weights_hash[:12]}, last block, mean over places"
    return Features(np.stack(made), network, "HU in voxels of 5 mm, as stored; the reader's own windows")


def pooled(network: nn.Module, volume: Float[np.ndarray, "slices rows columns"]) -> Float[np.ndarray, " width"]:
    """The mean over places of what goes into the head of a `models.reader.Reader`."""
    kept: list[Tensor] = []
    handle = network.get_submodule("head").register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    try:
        with torch.no_grad():
            network(torch.from_numpy(np.asarray(volume, np.float32))[None, None])
    finally:
        handle.remove()
    return kept[0][0].flatten(1).mean(1).numpy()


def pair_table(
    real: Path, generated: Path, *, data_range: float, scales: int = 5, window: int = 11, resamples: int = 9999
) -> Table:
    """PSNR, SSIM and MS-SSIM of the images that have one name in both folders; all others are counted.

    `data_range` is the width of the values' scale: 1 for pictures, 2000 for CT from -1000 to 1000 HU.
    Raises ValueError where no name is in both folders, and for a pair of two shapes.
    """
    ours, theirs = ({path.name: path for path in _images(folder, IMAGES)} for folder in (real, generated))
    both = [name for name in ours if name in theirs]
    if not both:
        raise ValueError(f"no image of {real} has its name in {generated}; pairs are made by name")
    images = [(_image(ours[name]), _image(theirs[name])) for name in both]
    lines = []
    for name, metric in _metrics(data_range, scales, window).items():
        lines.append(_line(name, metric, images, None, resamples))
    alone = len(ours) + len(theirs) - 2 * len(both)
    note = f"{len(both)} pairs by name, {alone} images without a partner; data range {data_range:g}, window {window}, "
    return Table("pairs", "Image by image", _COLUMNS, tuple(lines), f"{note}{scales} scales")


def diversity_table(
    table: Path, *, data_range: float, scales: int = 5, window: int = 11, seed: int = 0, resamples: int = 9999
) -> Table:
    """MS-SSIM within and across prompts, by a CSV file with the columns image and prompt (paths relative to it).

    All pairs of one prompt, and as many pairs of different prompts, drawn at random: a generator that makes one image
    of every prompt is alike in both. Lower is more diverse. Raises ValueError where no prompt has two images.
    """
    listed = [(table.parent / row["image"], row["prompt"]) for _, row in rows(table, ("image", "prompt"))]
    prompts = [prompt for _, prompt in listed]
    within = pairs_within(prompts)
    if not within:
        raise ValueError(f"{table}: no prompt has two images, so nothing can be said about how they differ")
    image = lru_cache(maxsize=64)(lambda at: _image(listed[at][0]))
    possible = len(prompts) * (len(prompts) - 1) // 2 - len(within)
    across = pairs_across(prompts, min(len(within), possible), seed=seed)
    metric = _metrics(data_range, scales, window)["MS-SSIM"]
    owners = [prompts[a] for a, _ in within]
    lines = [
        _line("within prompts", metric, ((image(a), image(b)) for a, b in within), owners, resamples),
        _line("across prompts", metric, ((image(a), image(b)) for a, b in across), None, resamples),
    ]
    note = f"{len(listed)} images of {len(set(prompts))} prompts; data range {data_range:g}, window {window}, "
    note += f"{scales} scales; the first interval draws whole prompts, pairs of the second share images"
    return Table("diversity", "MS-SSIM, lower is more diverse", _COLUMNS, tuple(lines), note)


def scored_files(scores: Path, *, names: Names = TORCHXRAYVISION, healthy: str = HEALTHY) -> Table:
    """`auc_table` of `NAME.npy`, [images, outputs], and of `NAME.json` beside it.

    That file holds {"network": ..., "outputs": [...], "labels": [...]}, a label for each image. Raises
    FileNotFoundError and ValueError for what lacks.
    """
    example = '{"network": ..., "outputs": [...], "labels": [...]}'
    values, said = described(scores, example)
    if not {"network", "outputs", "labels"} <= said.keys():
        raise ValueError(f"{scores.with_suffix('.json')} must hold {example}")
    outputs, labels = (list(map(str, said[name])) for name in ("outputs", "labels"))
    return auc_table(values.astype(np.float64), outputs, labels, str(said["network"]), names=names, healthy=healthy)


def reader_auc(
    reader: LearnedReader, folder: Path, labels: Path, *, names: Names = TORCHXRAYVISION, healthy: str = HEALTHY
) -> Table:
    """`auc_table` of what the reader says of the volumes of a folder, labeled by a CSV file (file, label).

    The score of a kind of finding is its highest probability anywhere. Labels are kinds such as "effusion", or
    "No Finding". Raises ValueError for a volume without a label or with voxels of another size than 5 mm.
    """
    said = {row["file"]: row["label"] for _, row in rows(labels, ("file", "label"))}
    paths, made = _images(folder, NIFTI), []
    if missing := [path.name for path in paths if path.name not in said]:
        raise ValueError(f"{labels} has no label for {missing[0]} and {len(missing) - 1} others")
    for path in paths:
        seen = see(reader.network, _volume(path))
        made.append([float(seen[kind].max()) for kind in KINDS])
    network = f"voxplain reader {reader.weights_hash[:12]}"
    return auc_table(np.array(made), KINDS, [said[path.name] for path in paths], network, names=names, healthy=healthy)


def auc_table(
    scores: Float[np.ndarray, "images outputs"],
    outputs: Sequence[str],
    labels: Sequence[str],
    network: str,
    *,
    names: Names = TORCHXRAYVISION,
    healthy: str = HEALTHY,
) -> Table:
    """The AUC of a classifier's output for each finding: images of it alone against those labeled `healthy`.

    `names` maps a finding to its output where the two are called otherwise. Raises ValueError for a finding that has no
    output.
    """
    lines: list[tuple[Cell, ...]] = []
    for finding in dict.fromkeys(label for label in labels if label != healthy and "|" not in label):
        counts = labels.count(finding), labels.count(healthy)
        try:
            made = finding_auc(scores, outputs, labels, finding, healthy=healthy, names=names)
            lines.append((finding, made, *counts))
        except Undefined as error:
            lines.append((finding, error.reason, *counts))
    found = [line[1] for line in lines if isinstance(line[1], float)]
    lines.append(("mean over findings", float(np.mean(found)) if found else None, None, None))
    note = f"classifier: {network}; images of one finding alone against {healthy!r}; chance is 0.5"
    if read := [f"{label} by {names[label]}" for label in dict.fromkeys(labels) if label in names]:
        note += f"; read {', '.join(read)}"
    return Table("classifier", "AUC by finding", ("finding", "AUC", "positives", "healthy"), tuple(lines), note)


_COLUMNS = ("metric", "mean", "n", "without a value")


def _metrics(data_range: float, scales: int, window: int) -> dict[str, Pair]:
    return {
        "PSNR": lambda a, b: psnr(a, b, data_range=data_range),
        "SSIM": lambda a, b: ssim(a, b, data_range=data_range, window=window),
        "MS-SSIM": lambda a, b: ms_ssim(a, b, data_range=data_range, scales=scales, window=window),
    }


def _line(
    name: str,
    metric: Pair,
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    clusters: Sequence[str] | None,
    resamples: int,
) -> tuple[Cell, ...]:
    """The mean over pairs with its interval, how many there were, and why others have no value."""
    values, owners, undefined = [], [], Counter()
    for number, (a, b) in enumerate(pairs):
        try:
            values.append(metric(a, b))
            owners.append(clusters[number] if clusters else number)
        except Undefined as error:
            undefined[error.reason] += 1
    reasons = "; ".join(f"{reason} {count}" for reason, count in undefined.items()) or "0"
    if not values:
        return name, None, 0, reasons
    found = bootstrap(values, clusters=owners if clusters else None, resamples=resamples)
    return name, (found.mean, found.low, found.high), found.n, reasons


def _images(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; give one that holds images ({', '.join(endings)})")
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(endings))
    if not found:
        raise ValueError(f"{folder} holds no image ({', '.join(endings)})")
    return found


def _image(path: Path) -> Float[np.ndarray, "*spatial"]:
    """The mean over its channels."""
    return read_image(path)[0].mean(0)


def _volume(path: Path) -> Float[np.ndarray, "slices rows columns"]:
    """The mean over its channels, in the voxels that the reader was trained on (or of a size that nobody stated)."""
    image, geometry, _ = read_image(path)
    if geometry.ndim != 3:
        raise ValueError(f"{path} has shape {geometry.shape}; the reader reads volumes")
    if geometry.spacing_known and not np.allclose(geometry.spacing, SPACING, rtol=0.01):
        found, expected = (" x ".join(f"{step:.3g}" for step in steps) for steps in (geometry.spacing, SPACING))
        raise ValueError(
            f"{path} has voxels of {found} mm, but the reader reads voxels of {expected} mm: resample the volume first"
        )
    return image.mean(0)
