"""A run folder: everything one explanation holds, readable by people and by `load_run`.

`run.json` says what was done and carries the hash of each array file; `sample.nii.gz` is the image in physical units,
`attribution.npz` the maps and kept states, `overlay.png` and `report.html` are for looking at. Nothing is pickled.
"""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from voxplain.io.encoding import Arrays, decode, encode, phrase_key, plain
from voxplain.io.folders import new_folder, write_file
from voxplain.io.nifti import read_volume, write_volume
from voxplain.maps import Explanation
from voxplain.view.figure import figure
from voxplain.view.page import report

SCHEMA = 1
ARRAY_FILES = ("sample.nii.gz", "attribution.npz")
PACKAGES = ("voxplain", "numpy", "scipy", "torch", "monai", "transformers", "tokenizers", "diffusers", "nibabel")


class RunError(ValueError):
    """A run folder that cannot be read: the message names the file and what is wrong with it."""


def save_run(explanation: Explanation, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write the explanation as a run folder and give its path back.

    The folder is written beside and renamed when complete, so an interruption leaves nothing behind, and with
    `overwrite` the old run stays until then. Raises `FileExistsError` for a folder that may not be replaced.
    """
    with new_folder(folder, overwrite=overwrite, marker="run.json") as place:
        document, arrays = encode(explanation)
        write_volume(place / "sample.nii.gz", explanation.sample.image, explanation.sample.geometry)
        write_file(place / "attribution.npz", _packed(arrays))
        files = {name: _hash((place / name).read_bytes()) for name in ARRAY_FILES}
        header = {"schema": SCHEMA, "created": datetime.now(UTC).isoformat(timespec="seconds"), "packages": _packages()}
        _write_json(place, {**header, "files": files, **document})
        figure(explanation).savefig(place / "overlay.png")
        write_file(place / "report.html", report(explanation).encode("utf-8", "replace"))
    return Path(folder)


def load_run(folder: str | os.PathLike) -> Explanation:
    """The explanation that `save_run` wrote; `RunError` names the file if the folder is damaged or too new."""
    folder = Path(folder)
    document = _read_json(folder)
    try:
        listed = {name: document["files"][name] for name in ARRAY_FILES} | document["files"]
        content = {name: _checked(folder, name, expected) for name, expected in listed.items()}
        arrays: Arrays = {}
        for name in (name for name in content if name.endswith(".npz")):
            arrays.update(_unpacked(folder / name, content[name]))
        ndim = len(document["sample"]["geometry"]["shape"])
        values, _ = read_volume(folder / "sample.nii.gz", ndim)
        return decode(document, arrays, values.reshape(document["sample"]["channels"], *values.shape[-ndim:]))
    except RunError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{folder / 'run.json'} is damaged: {type(error).__name__}: {error}") from error


def add_to_run(
    folder: str | os.PathLike,
    recipe: str,
    phrases: Mapping[tuple[int, ...], Float[np.ndarray, "*grid"]],
    honesty: Mapping[str, Mapping[str, Any]] | None = None,
) -> Explanation:
    """Keep maps of phrases (by their rows) measured later; gives the explanation with them back.

    The maps go into a file of their own, then `run.json` is replaced in one step: at any moment the folder is a
    complete run. `honesty` entries are added by label. The report is written anew.
    """
    folder = Path(folder)
    old = load_run(folder)
    if recipe not in old.attributions:
        raise ValueError(f"{folder} has no recipe {recipe!r}; it has {', '.join(old.attributions)}")
    attribution = old.attributions[recipe]
    added = {tuple(rows): np.asarray(values, np.float32) for rows, values in phrases.items()}
    attribution = replace(attribution, phrases={**attribution.phrases, **added})
    new = replace(
        old,
        attributions={**old.attributions, recipe: attribution},
        honesty={**old.honesty, **plain(honesty or {}, "honesty")},
    )
    content = _packed({phrase_key(recipe, rows): values for rows, values in added.items()})
    name = f"phrases-{_hash(content)[:12]}.npz"
    write_file(folder / name, content)
    document = _read_json(folder)
    files = {key: value for key, value in document["files"].items() if key != name}
    _write_json(folder, {**document, **encode(new)[0], "files": {**files, name: _hash(content)}})  # the last one wins
    write_file(folder / "report.html", report(new).encode("utf-8", "replace"))
    return new


def _write_json(folder: Path, document: Mapping) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_file(folder / "run.json", text.encode("utf-8", "surrogatepass"))


def _read_json(folder: Path) -> dict:
    path = folder / "run.json"
    if not path.is_file():
        raise RunError(f"{folder} is not a run folder: it has no run.json; make one with `voxplain explain`")
    try:
        document = json.loads(path.read_bytes())
        schema = document["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {type(error).__name__}: {error}") from error
    if not isinstance(schema, int) or not 1 <= schema <= SCHEMA:
        raise RunError(f"{path} has schema version {schema!r}; this voxplain reads up to {SCHEMA}: upgrade voxplain")
    return document


def _checked(folder: Path, name: str, expected: str) -> bytes:
    path = folder / Path(name).name  # never outside of the folder
    if not path.is_file():
        raise RunError(f"{path} is missing; run.json lists it")
    content = path.read_bytes()
    if _hash(content) != expected:
        raise RunError(f"{path} is damaged or was changed: its SHA-256 is not the one in run.json")
    return content


def _packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{key: np.asarray(value) for key, value in arrays.items()})
    return buffer.getvalue()


def _unpacked(path: Path, content: bytes) -> Arrays:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is damaged: {error}") from error


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _packages() -> dict[str, str | None]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
