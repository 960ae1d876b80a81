"""Features of a folder of pictures, for `voxplain fidelity`: to be run in an environment of your own.

    pip install torchxrayvision      and then  python features.py xrv FOLDER NAME [--labels labels.csv]
    pip install torch-fidelity       and then  python features.py inception FOLDER NAME

Writes NAME.npy and NAME.json; `xrv` with `--labels` (a CSV file: file, label) also
NAME-scores.npy and NAME-scores.json.
Pictures (PNG, JPEG; gray of 8 or 16 bits, or color) are brought to 8 bits, then their short side to 512
pixels, and of the long side the middle 512 are kept. The networks resize that to what they take.
Both packages fetch weights. This was written from their documentation and was NOT run by the authors of Voxplain.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

SIZE = 512
DEEP = ("I;16", "I;16L", "I;16B", "I")  # how pillow calls gray of 16 bits, where white is 65535
PLAIN = ("1", "L", "LA", "RGB", "RGBA", "P")
CROPPED = f"short side {SIZE} (bilinear), center crop {SIZE}"


def cropped(path: Path, mode: Literal["L", "RGB"]) -> np.ndarray:
    """The picture in gray or RGB, bytes, SIZE x SIZE: its short side brought to that, the middle of its long side."""
    with Image.open(path) as stored:
        if stored.mode not in (*DEEP, *PLAIN):
            raise SystemExit(f"{path} is a picture of mode {stored.mode}: save it as gray (8 or 16 bits) or RGB")
        white = 65535 if stored.mode in DEEP else 255
        levels = np.asarray(stored if stored.mode in DEEP else stored.convert(mode), np.float64)
    if levels.max() == 1:  # was on a scale of 0 to 1: TorchXRayVision would answer the same for every such picture
        raise SystemExit(f"{path} holds 0 and 1 alone, expected 0 to {white}: multiply it by {white} before saving")
    pixels = Image.fromarray(np.round(levels / white * 255).astype(np.uint8)).convert(mode)
    return np.asarray(ImageOps.fit(pixels, (SIZE, SIZE), Image.Resampling.BILINEAR))


def xrv(paths: list[Path]) -> tuple[np.ndarray, str, str, np.ndarray, list[str]]:
    """FID_XRV and classifier AUC: DenseNet121, 1,024 numbers an image, pooled after the last ReLU."""
    import torch
    import torchxrayvision

    model = torchxrayvision.models.DenseNet(weights="densenet121-res224-all").eval()
    features, scores = [], []
    for path in paths:
        pixels = cropped(path, "L").astype(np.float32)
        image = torch.from_numpy(torchxrayvision.datasets.normalize(pixels, 255))[None, None]  # -1024 to 1024
        with torch.no_grad():
            features.append(model.features2(image)[0].numpy())
            scores.append(model(image)[0].numpy())
    said = (
        "torchxrayvision densenet121-res224-all, pooled",
        f"gray of 8 bits, {CROPPED}, -1024 to 1024, resized to 224 by the network",
    )
    return np.stack(features), *said, np.stack(scores), list(model.targets)


def inception(paths: list[Path]) -> tuple[np.ndarray, str, str, None, list[str]]:
    """The usual FID: 2,048 numbers an image of the network that most papers use; it takes bytes and resizes to 299."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    features = []
    for path in paths:
        pixels = torch.from_numpy(cropped(path, "RGB").copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            features.append(model(pixels)[0][0].numpy())
    said = "torch-fidelity inception-v3-compat, 2048", f"RGB bytes, {CROPPED}, resized to 299 by the network"
    return np.stack(features), *said, None, []


def labeled(path: Path) -> dict[str, str]:
    """File name -> label, of a CSV file with these two columns."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if not {"file", "label"} <= set(columns):
            raise SystemExit(f"{path} has the columns {', '.join(columns) or 'none'}; expected file and label")
        return {row["file"]: row["label"] for row in reader}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("xrv", "inception"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="of the files to write, without an ending")
    parser.add_argument("--labels", type=Path, help="CSV file: file, label; 'No Finding' is healthy; for xrv alone")
    options = parser.parse_args()
    if options.labels and options.network != "xrv":
        raise SystemExit(f"--labels is for the scores of xrv, and {options.network} gives none: leave it out")
    paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{options.folder} holds no PNG or JPEG")
    labels = labeled(options.labels) if options.labels else {}
    if options.labels and (missing := [path.name for path in paths if path.name not in labels]):
        raise SystemExit(f"{options.labels} has no label for {missing[0]} and {len(missing) - 1} others")
    features, network, preprocessing, scores, outputs = {"xrv": xrv, "inception": inception}[options.network](paths)
    np.save(f"{options.name}.npy", features.astype(np.float32))
    Path(f"{options.name}.json").write_text(json.dumps({"network": network, "preprocessing": preprocessing}))
    if scores is not None and options.labels:
        np.save(f"{options.name}-scores.npy", scores.astype(np.float32))
        said = {"network": network, "outputs": outputs, "labels": [labels[path.name] for path in paths]}
        Path(f"{options.name}-scores.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
