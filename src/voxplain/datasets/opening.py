"""A data set by its name: what the command line and a study's settings give."""

import inspect
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from voxplain.datasets.base import Dataset
from voxplain.datasets.chexpert_plus import build_chexpert_plus
from voxplain.datasets.coco import build_coco
from voxplain.datasets.folder import build_folder
from voxplain.datasets.mimic_cxr import build_mimic_cxr
from voxplain.datasets.mscxr import build_ms_cxr
from voxplain.datasets.prompts import build_coco_gen, build_unreal_gen
from voxplain.datasets.shared import SETS, build_shared

BUILDERS: Mapping[str, Callable[..., Dataset]] = {
    "folder": build_folder,
    "ms-cxr": build_ms_cxr,
    "mimic-cxr": build_mimic_cxr,
    "chexpert-plus": build_chexpert_plus,
    "coco": build_coco,
    "coco-gen": build_coco_gen,
    "unreal-gen": build_unreal_gen,
}


def build(name: str, root: str | os.PathLike | None = None, **options: Any) -> Dataset:
    """The set of that name from the user's files in `root`; a shared set ("shared-cxr") may do without.

    `options` are those of the set's own function, in `BUILDERS`. Raises ValueError for an unknown name, an unknown
    option, one that has to be said and was not, and where they leave no record.
    """
    made = _built(name, root, options)
    if not made.records:
        said = ", ".join(f"{option}={value}" for option, value in options.items()) or "no option"
        raise ValueError(f"no record is left with {said}: {made.summary()}")
    return made


def _built(name: str, root: str | os.PathLike | None, options: Mapping[str, Any]) -> Dataset:
    builders = {**BUILDERS, **{f"shared-{one}": partial(build_shared, one) for one in SETS}}
    if name not in builders:
        raise ValueError(f"no data set {name!r}; there are {', '.join(builders)}")
    if root is None and name in BUILDERS:
        raise ValueError(f"{name} is built from your own copy of its files; give its folder")
    builder = builders[name]
    try:
        inspect.signature(builder).bind(root, **options)
    except TypeError as error:
        known = ", ".join(list(inspect.signature(builder).parameters)[1:]) or "none"
        raise ValueError(f"{name}: {error}; its options are {known}") from error
    return builder(root, **options)
