"""An image from elsewhere and its truth, brought to a model by one recorded way; the map of a token rule, scored."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float

from voxplain import recipes as known
from voxplain.adapters.base import Adapter
from voxplain.datasets.base import Box, Boxes
from voxplain.datasets.frames import Frame, frame_of
from voxplain.datasets.reading import NIFTI, check_file, check_finite, read_mask, read_nifti
from voxplain.datasets.reading import read_image as read_picture
from voxplain.datasets.shapes import paint
from voxplain.geometry import Geometry, regular
from voxplain.io.dicom_series import read_series
from voxplain.io.nifti import SPREAD
from voxplain.maps import Attribution, Explanation, Heatmap, Mask, Sample
from voxplain.metrics.controls import center_prior, random_half
from voxplain.scoring import values
from voxplain.studies.benchmark import read
from voxplain.studies.benchmark_cases import is_picture, steps_of, suited
from voxplain.studies.fitting import check_channels
from voxplain.studies.rules import occurrences
from voxplain.tokens import TokenizedPrompt

READS = {2: "pictures", 3: "volumes"}  # what a model of so many axes reads
SPECIAL = ("start", "end", "padding")  # rules that need attention
METRICS = ("auc_roc", "cnr", "average_precision", "pointing_game", "chance_level", "mass_inside", "mixture_iou")


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """An image in the frame of a model, with its truth there; `share` is how much of the stored truth lies in it."""

    sample: Sample
    frame: Frame
    truth: Mask | None = None
    share: float = 1.0


def given(
    path: str | os.PathLike[str],
    text: str,
    adapter: Adapter,
    *,
    mask: str | os.PathLike[str] | None = None,
    mask_values: Sequence[int] = (),
    boxes: Sequence[Box] = (),
    size: tuple[int, ...] | None = None,
) -> Given:
    """The image of a NIfTI file, a CT series' folder, or, for a model of pictures, a PNG or JPEG.

    The truth is a mask on the image's own grid (`mask_values` of it, or all that is not 0), or the union of boxes in
    pixels of the image as it is stored; `size` (width, height, ...) is what the annotation says of that image. The
    frame is kept in the sample's provenance. Raises FileNotFoundError for an absent file, and ValueError for a picture
    and a model of volumes or the other way round, other channels than the model's, NaN, another size, a mask in another
    frame (it is never resized) or that `read_mask` refuses, an empty one, a box that leaves the image, and a truth that
    lies outside of the model's frame.
    """
    path, mask = Path(path), None if mask is None else Path(mask)
    if mask_values and mask is None:
        raise ValueError(f"values {', '.join(map(str, mask_values))} of a mask are named, but no mask is; give both")
    if mask is not None and boxes:
        raise ValueError("give a mask or boxes as the truth, not both")
    if not path.is_dir():
        check_file(path)
    if mask is not None:
        check_file(mask, "mask ")
    image, stored, unit = _stored(path, adapter)
    check_finite(image, path)
    if size is not None and tuple(size) != stored.shape[::-1]:
        said, found = (" x ".join(map(str, each)) for each in (size, stored.shape[::-1]))
        raise ValueError(
            f"the annotation is for an image of {said} (x first), but {path.name} holds {found}; was it resized? Boxes "
            "fit the original only"
        )
    frame = frame_of(stored, steps_of(path, adapter)(stored))
    seen = frame.image(image) if frame.steps else image
    sample = suited(Sample(seen, frame.target, text, unit=unit), adapter)
    check_channels(adapter, sample.image, path.name)
    affines = {"stored_affine": stored.affine.tolist(), "scored_affine": frame.target.affine.tolist()}
    sample = replace(sample, provenance={"image": path.name, "frame": {**frame.facts(), **affines}})
    if mask is None and not boxes:
        return Given(sample, frame)
    drawn = paint(Boxes(tuple(boxes)), stored.shape) if mask is None else _mask(mask, path, stored, mask_values)
    if not drawn.any():
        which = f"has no cell of {', '.join(map(str, mask_values))}" if mask_values else "is empty"
        raise ValueError(f"the mask {mask} {which}, so there is nothing to find")
    truth = frame.mask(drawn)
    if not truth.any():
        way = ", ".join(type(step).__name__ for step in frame.steps)
        raise ValueError(
            f"the truth lies outside of the part of {path.name} {stored.shape} that the model sees, or is thinner than "
            f"a cell of it: {frame.target.shape} by {way or 'its place'}; there is nothing to score"
        )
    return Given(sample, frame, Mask("truth", truth, frame.target), frame.share(drawn))


def check_rule(
    prompt: TokenizedPrompt, rule: str, words: Sequence[str], recipes: Sequence[str], *, scored: bool = False
) -> None:
    """Raise ValueError, before anything is read, where the rule would have no map of this text by any of the recipes.

    `words` are forms of one finding, of which "words" and "first" need one in the text; "substring" does without. A
    rule that goes by the text alone takes none. Where the map is to be `scored`, a text that is longer than the model's
    context needs words, since the finding may be what fell off.
    """
    if any(not word.strip() for word in words):
        raise ValueError("a word of the finding is blank; give a word or phrase of the text")
    if scored and prompt.truncated and not words:
        raise ValueError(
            f"the text is longer than the model's context, and {prompt.truncated!r} fell off, so the score might be of "
            "a map without the finding; name the finding's words (--word), or shorten the text"
        )
    if rule in ("words", "first") and len(words) == 1:
        prompt.find(words[0], None if "#" in words[0] else 0)  # says which words are near
    if words and rule in ("all", *SPECIAL):
        raise ValueError(f"token rule {rule!r} goes by no words, but these were given: {', '.join(words)}")
    chosen = [known.get(name) for name in recipes]
    recipe = next((one for one in chosen if one.needs_attention), chosen[0])
    if prompt.words:
        grid = regular((1, 1), 1.0)
        rows = np.zeros((len(prompt.kept), *grid.shape), np.float32)
        read(Attribution(rows, rows[0], prompt, grid, recipe, grid), rule, tuple(words))


def ruled(explanation: Explanation, rule: str, words: Sequence[str]) -> dict[str, Heatmap]:
    """The rule's map by each recipe that can give it, and by its mean over seeds.

    A phrase of several words is measured as a whole by a recipe that does so; over seeds it is the mean over its words.
    """
    found = {}
    for name, one in explanation.attributions.items():
        if one.provenance.get("statistic") == SPREAD or not (one.recipe.needs_attention or rule not in SPECIAL):
            continue
        if one.recipe.whole_spans and rule == "words" and "statistic" not in one.provenance and explanation.measure:
            one = _whole(one, words, explanation.measure)
        found[name] = read(one, rule, tuple(words))
    return found


def _whole(attribution: Attribution, words: Sequence[str], measure: Callable[[str], Heatmap]) -> Attribution:
    """The attribution with each phrase of several words in it, measured now."""
    prompt, phrases = attribution.prompt, dict(attribution.phrases)
    for place in occurrences(prompt, words):
        rows = prompt.find(*place)
        if rows not in phrases and not any(set(rows) <= set(word.rows) for word in prompt.words):
            phrases[rows] = measure(prompt.name(*place)).values
    return replace(attribution, phrases=phrases)


def scored(maps: Mapping[str, Heatmap], truth: Mask, *, seed: int = 0) -> dict[str, dict[str, float | str]]:
    """The figures of each map, and of two controls on the grid of the first; a text says why there is no figure."""
    coarse = truth.geometry.at(next(iter(maps.values())).geometry.shape)
    controls = {
        "control: center": Heatmap("center", center_prior(coarse.shape), coarse),
        "control: random half": Heatmap("random", random_half(coarse.shape, seed), coarse),
    }
    return {name: values(heat, truth, None, METRICS) for name, heat in {**maps, **controls}.items()}


def _stored(path: Path, adapter: Adapter) -> tuple[Float[np.ndarray, "channels *spatial"], Geometry, str]:
    """The image as the file has it, and the unit of its values."""
    if is_picture(path):
        return read_picture(path)
    ndim = adapter.geometry.ndim
    if path.is_dir() and ndim == 3:
        image, geometry = read_series(path)
    elif path.is_file() and path.name.lower().endswith(NIFTI):
        image, geometry = read_nifti(path, ndim)
    else:
        raise ValueError(
            f"{path} is no image that {adapter.name} can read: models of volumes take NIfTI (.nii or .nii.gz) or the "
            "folder of one CT series, models of pictures PNG, JPEG or TIFF"
        )
    if geometry.ndim != ndim:
        raise ValueError(
            f"{path.name} has shape {geometry.shape}, and {adapter.name} reads {READS[ndim]}; choose a model of "
            f"{READS[geometry.ndim]}"
        )
    return image.reshape(-1, *geometry.shape).astype(np.float32), geometry, "HU"


def _mask(path: Path, image: Path, geometry: Geometry, values: Sequence[int]) -> Bool[np.ndarray, "*spatial"]:
    """The mask on the grid of the stored image."""
    if is_picture(path) and not is_picture(image):
        raise ValueError(
            f"mask {path.name} is a picture, which has no place in the world, so nobody knows how it lies on "
            f"{image.name}; give the mask as NIfTI on the image's grid"
        )
    return read_mask(path, geometry, values)
