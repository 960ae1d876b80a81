"""What a network saw in a set of images: one row an image, with the name of the network and how images got into it."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from voxplain.metrics.base import finite

FIELDS = ("network", "preprocessing")


@dataclass(frozen=True, slots=True, eq=False)
class Features:
    """Features of N images, `values` [cases, dim]; two sets can be compared only if network and preprocessing agree.

    `network` names architecture, weights and layer; `preprocessing` says size, crop, value range and channels in words.
    """

    values: Float[np.ndarray, "cases dim"]
    network: str
    preprocessing: str

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or 0 in self.values.shape:
            raise ValueError(f"features of {self.network!r}: expected [cases, dim], got shape {self.values.shape}")
        for field in FIELDS:
            if not getattr(self, field).strip():
                raise ValueError(f"features need a {field}: a distance between features means nothing without it")
        finite(self.values, f"the features of {self.network!r}", "find the image that caused it")
        values = np.array(self.values, np.float64)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)


def save_features(features: Features, path: Path | str) -> Path:
    """Write `PATH.npy` and beside it `PATH.json` with network and preprocessing; gives the array's path back."""
    path = Path(path).with_suffix(".npy")
    np.save(path, features.values.astype(np.float32))
    path.with_suffix(".json").write_text(json.dumps({field: getattr(features, field) for field in FIELDS}, indent=1))
    return path


def load_features(path: Path | str) -> Features:
    """Read `PATH.npy`, made by any environment, with `PATH.json` beside it; the JSON file is required."""
    path = Path(path).with_suffix(".npy")
    beside = path.with_suffix(".json")
    example = '{"network": "densenet121-res224-all, pooled", "preprocessing": "512 center crop, grey, -1024 to 1024"}'
    if not beside.exists():
        raise FileNotFoundError(f"{beside} is missing: write there which network made {path.name}, such as {example}")
    said = json.loads(beside.read_text())
    if not isinstance(said, dict) or any(not isinstance(said.get(field), str) for field in FIELDS):
        raise ValueError(f"{beside} must name network and preprocessing, such as {example}")
    values = np.load(path, allow_pickle=False)
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{path} holds {values.dtype}, expected floating-point features")
    return Features(values, said["network"], said["preprocessing"])
