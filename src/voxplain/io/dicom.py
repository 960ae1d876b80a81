"""A run as DICOM: its image as a CT series, its masks as SEG, its maps as Parametric Maps, all on one grid.

No object holds the prompt or a word of it unless that is asked for: a prompt may be a patient's report.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import linear_sum_assignment

from voxplain import masks
from voxplain.geometry import Geometry
from voxplain.io.dicom_objects import Study, ct_series, needed, parametric_map, segmentation
from voxplain.io.folders import new_folder, safe_name, write_file
from voxplain.maps import CAVEAT, Explanation, Heatmap, UnmeasuredError
from voxplain.view.words import main_recipes

if TYPE_CHECKING:
    from pydicom import Dataset

SQUARE = 1e-4  # the largest cosine between two axes that are still perpendicular
SEG_SERIES, MAP_SERIES = 100, 200


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A word's map of one recipe, the word's place among those exported (from 1) and whether it may be believed."""

    word: str
    number: int
    heatmap: Heatmap | None
    sure: bool


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """Where the objects of one export go, over which slices they lie, and what of each map they hold."""

    folder: Path
    study: Study
    slices: "Sequence[Dataset]"
    fraction: float
    raw: bool
    with_prompt: bool

    def label(self, one: Named) -> str:
        """What the objects call a word."""
        return one.word if self.with_prompt else f"word {one.number}"

    def mask(self, heatmap: Heatmap) -> Bool[np.ndarray, "slices rows columns"]:
        """The top part of a map, on the grid of the slices."""
        return masks.top_fraction(heatmap, self.fraction).resize(self.study.geometry).values

    def save(self, made: "Dataset", path: str) -> str:
        """Write an object below the folder; its path there comes back."""
        place = self.folder / path
        place.parent.mkdir(exist_ok=True)
        made.save_as(place, enforce_file_format=True)
        return path


def export(
    explanation: Explanation,
    out: str | os.PathLike,
    words: Sequence[str] | None = None,
    fraction: float = 0.25,
    *,
    raw: bool = False,
    with_prompt: bool = False,
    overwrite: bool = False,
) -> Path:
    """Write `ct/`, `seg/` (one object a recipe), `map/` (one a recipe and word), `export.json`; the folder comes back.

    A mask is the top `fraction` of a word's map on the map's own grid; the map beside it is 0 outside of that mask,
    since viewers paint all that is not. `raw` adds each whole map. A word that is not distinguishable gets no mask and
    only a raw map, nor does a phrase that a recipe did not measure. Statistics over seeds, which are of other images,
    parts of the steps and single layers are left out. Words are numbered in the objects, and `export.json` names them;
    `with_prompt` writes words and prompt into the objects, too.

    Raises ValueError for a run that is no volume in HU with known spacing, ImportError without the extra `dicom`.
    """
    needed()
    image, geometry = axial(explanation)
    study = Study(
        _content(explanation),
        geometry,
        synthetic=not {"readout", "shown_on"} & explanation.provenance.keys(),
        made=datetime.now(),
        comment=f"Prompt: {explanation.prompt.text}" if with_prompt else "",
    )
    with new_folder(out, overwrite=overwrite, marker="export.json") as folder:
        target = Target(folder, study, slices := [], fraction, raw, with_prompt)
        for one in ct_series(image, study):
            target.save(one, f"ct/{one.InstanceNumber:04d}.dcm")
            del one.PixelData  # the objects over the slices need their headers alone
            slices.append(one)
        entries = []
        for place, recipe in enumerate(main_recipes(explanation)):
            found = list(_named(explanation, recipe, words))
            segments = _masks(target, found, recipe, SEG_SERIES + place)
            for entry in _maps(target, found, recipe, MAP_SERIES + 2 * len(found) * place):
                entries.append({**entry, **segments.get(entry["number"], {"mask": None, "segment": None})})
        sidecar = {
            "prompt": explanation.prompt.text,
            "caution": f"{CAVEAT} Not for diagnosis.",
            "mask": f"top {fraction:g} of the nonzero values on the map's own grid",
            "in_the_objects": "words and prompt" if with_prompt else "numbers in the place of words",
            "files": entries,
        }
        write_file(folder / "export.json", json.dumps(sidecar, indent=2, ensure_ascii=False).encode())
    return Path(out)


def axial(explanation: Explanation) -> tuple[Float[np.ndarray, "slices rows columns"], Geometry]:
    """The image laid out as a scanner does it: slices toward the head, rows to the back, columns to the left.

    Values are reordered and not resampled. Raises ValueError for what cannot be a CT series.
    """
    sample, geometry = explanation.sample, explanation.sample.geometry
    if geometry.ndim != 3 or len(sample.image) != 1:
        raise ValueError(
            f"DICOM is written as CT slices, which an image of {sample.image.shape} is not; export it by --nifti, "
            "or draw it by `voxplain overlay`"
        )
    if sample.unit != "HU":
        raise ValueError(f"a CT series is in HU, and this image is in {sample.unit!r}; export it by --nifti")
    if not geometry.spacing_known:
        raise ValueError("nobody knows the size of this run's voxels, and DICOM must state it; export it by --nifti")
    steps = geometry.affine[:3, :3]
    unit = steps / geometry.spacing
    if np.abs(unit.T @ unit - np.eye(3)).max() > SQUARE:
        raise ValueError("the axes of this image are not perpendicular, which a CT series cannot say; use --nifti")
    order = linear_sum_assignment(-np.abs(unit))[1][::-1]  # the array axis that follows z, that of y, that of x
    affine, image = geometry.affine[:, [*order, 3]], np.transpose(sample.image[0], order)
    for axis, world in enumerate((2, 1, 0)):
        if affine[world, axis] < 0:
            affine[:, 3] += affine[:, axis] * (image.shape[axis] - 1)
            affine[:, axis] *= -1
            image = np.flip(image, axis)
    return np.ascontiguousarray(image), Geometry(image.shape, affine)


def _masks(target: Target, found: Sequence[Named], recipe: str, series: int) -> dict[int, dict]:
    """Write the masks of a recipe; for the number of each word that has one, where it is."""
    made = {one: target.mask(one.heatmap) for one in found if one.heatmap is not None and one.sure}
    made = {one: mask for one, mask in made.items() if mask.any()}
    if not made:
        return {}
    labels, numbers = [target.label(one) for one in made], [one.number for one in made]
    whole = segmentation(np.stack(list(made.values())), labels, numbers, target.slices, target.study, recipe, series)
    path = target.save(whole, f"seg/{safe_name(recipe)}.dcm")
    return {number: {"mask": path, "segment": segment} for segment, number in enumerate(numbers, start=1)}


def _maps(target: Target, found: Sequence[Named], recipe: str, series: int) -> Iterator[dict]:
    """Write the maps of a recipe; an entry of the sidecar for each word."""
    for place, one in enumerate(found):
        entry = {"word": one.word, "number": one.number, "recipe": recipe, "map": None, "raw": None}
        if one.heatmap is None:
            yield {**entry, "note": "not measured"}
            continue
        values = one.heatmap.resize(target.study.geometry).values
        shown = np.where(target.mask(one.heatmap), values, 0)
        wanted = {"map": shown if one.sure and shown.any() else None, "raw": values if target.raw else None}
        for offset, (kind, array) in enumerate(wanted.items()):
            if array is not None:
                label = target.label(one) + ("" if kind == "map" else ", raw")
                number = series + 2 * place + offset
                made = parametric_map(array, label, target.slices, target.study, recipe, number)
                name = f"{safe_name(recipe)}-{one.number:02d}{'' if kind == 'map' else '-raw'}"
                entry[kind] = target.save(made, f"map/{name}.dcm")
        yield {**entry, "distinguishable": one.sure, "maximum": float(values.max())}


def _named(explanation: Explanation, recipe: str, words: Sequence[str] | None) -> Iterator[Named]:
    labels = [one.label for one in explanation.attributions[recipe].words()] if words is None else words
    for number, word in enumerate(labels, start=1):
        try:
            heatmap = explanation.word(word, recipe=recipe)
        except UnmeasuredError:
            heatmap = None
        yield Named(word, number, heatmap, explanation.sure(word, recipe))


def _content(explanation: Explanation) -> str:
    """What names the run: its image and where it is. Nothing of the prompt."""
    image, geometry = explanation.sample.image, explanation.sample.geometry
    return hashlib.sha256(image.tobytes() + geometry.affine.tobytes()).hexdigest()
