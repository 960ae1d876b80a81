"""Features of a folder of pictures, for `voxplain fidelity`: to be run in an environment of your own.

    pip install torchxrayvision      and then  python features.py xrv FOLDER NAME [--labels labels.csv]
    pip install torch-fidelity       and then  python features.py inception FOLDER NAME

Writes NAME.npy and NAME.json; `xrv` with `--labels` (a CSV file: file, label) also
NAME-scores.npy and NAME-scores.json.
Both packages fetch weights. This was written from their documentation and was NOT run by the authors of Voxplain.
"""

import argparse
import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image


def gray(path: Path) -> np.ndarray:
    """The picture in gray, 0 to 255: on 0 to 1, TorchXRayVision answers the same for every image."""
    pixels = np.asarray(Image.open(path).convert("L"), np.float32)
    if pixels.max() <= 1:
        raise SystemExit(f"{path}: values up to {pixels.max():g}; expected 0 to 255")
    return pixels


def xrv(paths: list[Path]) -> tuple[np.ndarray, str, str, np.ndarray, list[str]]:
    """FID_XRV and classifier AUC: DenseNet121, 1,024 numbers an image, pooled after the last ReLU."""
    import torch
    import torchxrayvision

    model = torchxrayvision.models.DenseNet(weights="densenet121-res224-all").eval()
    features, scores = [], []
    for path in paths:
        image = torch.from_numpy(torchxrayvision.datasets.normalize(gray(path), 255))[None, None]  # -1024 to 1024
        with torch.no_grad():
            features.append(model.features2(image)[0].numpy())
            scores.append(model(image)[0].numpy())
    said = "torchxrayvision densenet121-res224-all, pooled", "gray, -1024 to 1024, resized to 224 by the network"
    return np.stack(features), *said, np.stack(scores), list(model.targets)


def inception(paths: list[Path]) -> tuple[np.ndarray, str, str, None, list[str]]:
    """The usual FID: 2,048 numbers an image of the network that most papers use; it takes bytes and resizes to 299."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    model = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    features = []
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"), np.uint8)
        with torch.no_grad():
            features.append(model(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0][0].numpy())
    return (
        np.stack(features),
        "torch-fidelity inception-v3-compat, 2048",
        "RGB bytes, resized to 299 by the network",
        None,
        [],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("xrv", "inception"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="of the files to write, without an ending")
    parser.add_argument("--labels", type=Path, help="CSV file: file, label; 'No Finding' is healthy")
    options = parser.parse_args()
    paths = sorted(path for path in options.folder.iterdir() if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"{options.folder} holds no PNG or JPEG")
    labels = {}
    if options.labels:
        with options.labels.open(newline="") as file:
            labels = {row["file"]: row["label"] for row in csv.DictReader(file)}
        if missing := [path.name for path in paths if path.name not in labels]:
            raise SystemExit(f"{options.labels} has no label for {missing[0]} and {len(missing) - 1} others")
    features, network, preprocessing, scores, outputs = {"xrv": xrv, "inception": inception}[options.network](paths)
    np.save(f"{options.name}.npy", features.astype(np.float32))
    Path(f"{options.name}.json").write_text(json.dumps({"network": network, "preprocessing": preprocessing}))
    if scores is not None and labels:
        np.save(f"{options.name}-scores.npy", scores.astype(np.float32))
        said = {"network": network, "outputs": outputs, "labels": [labels[path.name] for path in paths]}
        Path(f"{options.name}-scores.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
