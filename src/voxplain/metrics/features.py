"""What a network saw in a set of images: one row an image, with the name of the network and how images got into it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Write `PATH.npy` and beside it `PATH.json` with network and preprocessing; gives the array's path back.

    A path that ends in .npy stays as it is; other dots are part of the name ("step0.1" becomes "step0.1.npy").
    """
    path = _array(path)
    np.save(path, features.values.astype(np.float32))
    path.with_suffix(".json").write_text(json.dumps({field: getattr(features, field) for field in FIELDS}, indent=1))
    return path


def load_features(path: Path | str) -> Features:
    """Read `PATH.npy`, made by any environment, with `PATH.json` beside it; both are required.

    Raises FileNotFoundError where one is missing, and ValueError where one cannot be read or does not hold what it has
    to.
    """
    path = _array(path)
    example = '{"network": "densenet121-res224-all, pooled", "preprocessing": "512 center crop, grey, -1024 to 1024"}'
    values, said = described(path, example)
    if any(not isinstance(said.get(field), str) for field in FIELDS):
        raise ValueError(f"{path.with_suffix('.json')} must name network and preprocessing, such as {example}")
    if not np.issubdtype(values.dtype, np.floating):
        raise ValueError(f"{path} holds {values.dtype}, expected floating-point features")
    return Features(values, said["network"], said["preprocessing"])


def described(path: Path, example: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The array `NAME.npy` and what `NAME.json` beside it says of it; `example` shows what that has to look like.

    Raises FileNotFoundError where one of the two is missing, and ValueError where one cannot be read.
    """
    beside = path.with_suffix(".json")
    for file, content in ((path, "the array (numpy.save)"), (beside, f"what made {path.name}, such as {example}")):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: write there {content}")
    try:
        said = json.loads(beside.read_text())
    except ValueError as error:
        raise ValueError(f"{beside} is no JSON ({error}): write there {example}") from error
    if not isinstance(said, dict):
        raise ValueError(f"{beside} holds a {type(said).__name__}: write there {example}")
    try:
        return np.load(path, allow_pickle=False), said
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no array that can be read ({error}): write it by numpy.save") from error


def _array(path: Path | str) -> Path:
    path = Path(path)
    return path if path.suffix == ".npy" else path.with_name(f"{path.name}.npy")
