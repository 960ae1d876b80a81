"""Volumes as NIfTI. Our world is LPS, NIfTI's is RAS: the two signs change here and nowhere else."""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Integer, Shaped
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from voxplain import masks
from voxplain.geometry import Geometry
from voxplain.io.encoding import plain
from voxplain.io.folders import new_folder, safe_name, write_file
from voxplain.maps import CAVEAT, Explanation, Heatmap, UnmeasuredError

Values = Float[np.ndarray, "*values"] | Integer[np.ndarray, "*values"] | Bool[np.ndarray, "*values"]

SPREAD = "standard deviation over seeds"  # the `statistic` of an attribution that is no map of a word
FLIP = np.array([-1.0, -1.0, 1.0])  # LPS <-> RAS


def write_volume(path: str | os.PathLike, values: Values, geometry: Geometry, dtype: type = np.float32) -> None:
    """Write `values` [*spatial] or [channels, *spatial] as NIfTI-1; `.nii.gz` or `.nii`.

    A 2D image becomes one slice of 1 mm in the plane of the first two world axes; channels become the fourth axis.
    The affine is set as sform and qform with code 1; a spacing that is not known is written as unknown units.
    """
    shape = tuple(values.shape)
    if shape not in (tuple(geometry.shape), (*shape[:1], *geometry.shape)):
        raise ValueError(f"values {shape} do not fit the geometry {geometry.shape}; expected it, or channels before it")
    channels = values.reshape(-1, *(1,) * (3 - geometry.ndim), *geometry.shape)  # [channels, slices, rows, columns]
    data = channels.astype(dtype).T  # [columns, rows, slices, channels]
    image = nib.Nifti1Image(data[..., 0] if len(channels) == 1 else data, None)
    affine = _to_ras(geometry.affine)
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm" if geometry.spacing_known else "unknown")
    content = image.to_bytes()
    write_file(path, gzip.compress(content, mtime=0) if str(path).endswith(".gz") else content)


def read_volume(
    path: str | os.PathLike, ndim: int = 3, *, need_affine: bool = False
) -> tuple[Shaped[np.ndarray, "*values"], Geometry]:
    """The values [*spatial] or [channels, *spatial] and their geometry; `ndim=2` reads a one-slice file as an image.

    Raises FileNotFoundError for an absent file and ValueError for one that is no NIfTI volume of numbers, or has
    another number of axes. With `need_affine` a file that does not say where its voxels are (neither sform nor qform)
    is refused, too; without, its voxels lie around the origin.
    """
    try:
        image = nib.Nifti1Image.from_filename(path)
        data = np.asarray(image.dataobj).T
    except (ImageFileError, HeaderDataError, WrapStructError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} is no NIfTI volume (.nii or .nii.gz): {error}") from error
    if data.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {data.dtype} (colors?), and no intensities")
    if data.ndim < ndim:
        raise ValueError(f"{path} has shape {data.shape}, which is no {ndim}D volume")
    if need_affine and not any(int(image.header[f"{kind}form_code"]) for kind in "sq"):
        raise ValueError(f"{path} does not say where its voxels are: it has neither an sform nor a qform (no affine)")
    data = data.reshape((1,) * (3 - data.ndim) + data.shape)
    channels = data.reshape(-1, *data.shape[-3:])
    spatial = channels.shape[1 + 3 - ndim :]
    if np.prod(spatial, dtype=int) != channels[0].size:
        raise ValueError(f"{path} has shape {channels.shape[1:]}, which is no {ndim}D image; read it with ndim=3")
    affine = _from_ras(np.asarray(image.affine), ndim)
    known = image.header.get_xyzt_units()[0] == "mm"
    values = channels.reshape(channels.shape[0], *spatial)
    return (values[0] if len(values) == 1 else values), Geometry(spatial, affine, spacing_known=known)


def _to_ras(affine: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "4 4"]:
    """From (slices, rows, columns) -> LPS to (columns, rows, slices) -> RAS."""
    ndim = len(affine) - 1
    ras = np.eye(4)
    ras[:ndim, :ndim] = affine[:ndim, :ndim][:, ::-1]
    ras[:ndim, 3] = affine[:ndim, ndim]
    ras[:3] *= FLIP[:, None]
    return ras


def _from_ras(ras: Float[np.ndarray, "4 4"], ndim: int) -> Float[np.ndarray, "n n"]:
    lps = ras[:3] * FLIP[:, None]
    affine = np.eye(ndim + 1)
    affine[:ndim, :ndim] = lps[:ndim, :ndim][:, ::-1]
    affine[:ndim, ndim] = lps[:ndim, 3]
    return affine


def export(
    explanation: Explanation,
    out: str | os.PathLike,
    words: Sequence[str] | None = None,
    fraction: float = 0.25,
    *,
    overwrite: bool = False,
) -> Path:
    """Write the sample, one map and one mask a word for each recipe, and `export.json`; the folder comes back.

    Maps are on the image's grid (linear), masks are the top `fraction` on the map's own grid (nearest). A word that
    is not distinguishable gets a map but no mask, nor does a spread over seeds; a phrase that a recipe did not measure
    gets neither. The sidecar says so, and how far each word can be believed. `words` are words or phrases of the prompt
    (else `PhraseError`); None takes every word.
    """
    geometry = explanation.sample.geometry
    with new_folder(out, overwrite=overwrite, marker="export.json") as folder:
        write_volume(folder / "sample.nii.gz", explanation.sample.image, geometry)
        entries = []
        for recipe in explanation.attributions:
            place = folder / safe_name(recipe)
            place.mkdir()
            for number, (word, heatmap) in enumerate(_heatmaps(explanation, recipe, words)):
                if heatmap is None:
                    entries.append({"word": word, "recipe": recipe, "map": None, "mask": None, "note": "not measured"})
                    continue
                sure = explanation.sure(heatmap.label, recipe)
                name = f"{place.name}/{number:02d}-{safe_name(heatmap.label)}"
                write_volume(folder / f"{name}.nii.gz", heatmap.resize(geometry).values, geometry)
                masked = sure and explanation.attributions[recipe].provenance.get("statistic") != SPREAD
                if masked:
                    mask = masks.top_fraction(heatmap, fraction).resize(geometry)
                    write_volume(folder / f"{name}.mask.nii.gz", mask.values, geometry, np.uint8)
                entries.append(_entry(heatmap, recipe, name, sure, masked))
        origin = explanation.provenance
        sidecar = {
            "prompt": explanation.prompt.text,
            "image": origin.get("shown_on") or ("given to the model" if "readout" in origin else "synthetic"),
            "caution": f"{CAVEAT} Not for diagnosis.",
            "unit": {"sample": explanation.sample.unit, "maps": "relative within one recipe"},
            "mask": f"top {fraction:g} of the nonzero values on the map's own grid",
            "honesty": plain(explanation.honesty, "honesty"),
            "files": entries,
        }
        write_file(folder / "export.json", json.dumps(sidecar, indent=2, ensure_ascii=False).encode())
    return Path(out)


def _heatmaps(
    explanation: Explanation, recipe: str, words: Sequence[str] | None
) -> Iterator[tuple[str, Heatmap | None]]:
    for word in words if words is not None else explanation.attributions[recipe].words():
        if isinstance(word, Heatmap):
            yield word.label, word
            continue
        try:
            yield word, explanation.word(word, recipe=recipe)
        except UnmeasuredError:
            yield word, None


def _entry(heatmap: Heatmap, recipe: str, name: str, sure: bool, masked: bool) -> dict:
    return {
        "word": heatmap.label,
        "recipe": recipe,
        "map": f"{name}.nii.gz",
        "mask": f"{name}.mask.nii.gz" if masked else None,
        "distinguishable": sure,
        "maximum": float(heatmap.values.max()),
        "native_grid": list(heatmap.geometry.shape),
    }
