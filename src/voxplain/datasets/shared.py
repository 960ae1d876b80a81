"""The small open sets that this project is developed on, read where they lie: found through VOXPLAIN_SHARED.

Each row keeps its license in `facts`. Lungs and organs are named as the patient has them: the left lung is on the
right of a film.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from voxplain.datasets.base import Boxes, Dataset, MaskFile, Record, counted
from voxplain.datasets.folder import build_folder
from voxplain.datasets.tables import number, rows, whole

VARIABLE = "VOXPLAIN_SHARED"
STRUCTURE = re.compile(r"(\d+)\s*=\s*([^=;]+?)(?=[;\s]+\d+\s*=|$)")
CT_PROMPT = "chest CT"
THIRDS = {"left lung": (9, 10, 11), "right lung": (12, 13, 14)}
CONDITION = {"abnormal": "abnormal chest radiograph", "normal": "normal chest radiograph"}
CLASSES = {"BreastMRI": "breast MRI", "HeadCT": "head CT", "CXR": "chest radiograph"}


def shared_root() -> Path:
    """The folder that VOXPLAIN_SHARED names. Raises FileNotFoundError if it holds no `data`."""
    root = Path(os.environ.get(VARIABLE, ""))
    if not os.environ.get(VARIABLE) or not (root / "data").is_dir():
        raise FileNotFoundError(f"set {VARIABLE} to the folder that holds data/ (now {os.environ.get(VARIABLE)!r})")
    return root


def build_shared(name: str, root: str | os.PathLike | None = None) -> Dataset:
    """The set of that name, one of `SETS`; nothing is copied. `root` holds `data/`; None asks VOXPLAIN_SHARED."""
    if name not in SETS:
        raise ValueError(f"no shared set {name!r}; there are {', '.join(SETS)}")
    data = (shared_root() if root is None else Path(root)) / "data"
    left_out: Counter[str] = Counter()
    records = tuple(SETS[name](data / name.split("-")[0], left_out))
    return Dataset(f"shared-{name}", records, counted(left_out), {"shared": name})


def _folder(base: Path, left_out: Counter[str], **columns: str) -> Sequence[Record]:
    """The records of a folder whose table has other names for these columns."""
    found = build_folder(base, columns=columns)
    left_out.update(found.left_out)
    return found.records


def _films(base: Path, left_out: Counter[str]) -> Sequence[Record]:
    return _folder(base, left_out, label="finding")


def _lungs(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    """Each lung that was drawn by hand; its prompt names it."""
    for record in _folder(base, left_out, mask="lung_mask"):
        if not isinstance(record.truth, MaskFile):
            left_out["the film has no mask"] += 1
            continue
        sides = {"right lung": 1, "left lung": 2}
        for name, value in sides.items():
            if _holds(record.truth.path, value):
                yield _named(record, name, replace(record.truth, values=(value,)))
            else:
                left_out["the lung is not in the mask"] += 1


def _lungs_auto(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    for record in _folder(base, left_out, mask="lung_mask_auto"):
        if isinstance(record.truth, MaskFile):
            yield _named(record, "lungs", record.truth)
        else:
            left_out["the film has no mask"] += 1


def _boxes(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    """One record for each film and finding that has boxes; the prompt names the finding."""
    groups: dict[tuple[str, str], list[tuple[float, ...]]] = {}
    for place, row in rows(base / "boxes.csv", ("id", "label", "x", "y", "w", "h")):
        box = tuple(number(row[side], place) for side in "xywh")
        groups.setdefault((row["id"], row["label"].lower()), []).append(box)
    films = {record.id: record for record in _films(base, left_out)}
    left_out["the film has no box"] += len(films.keys() - {film for film, _ in groups})
    for (film, finding), boxes in groups.items():
        if film in films:
            yield _named(films[film], finding, Boxes(tuple(boxes)))
        else:
            left_out["the film of the boxes is not there"] += 1


def _named(record: Record, name: str, truth: MaskFile | Boxes) -> Record:
    made = f"{record.id}-{name.replace(' ', '-')}"
    return replace(record, id=made, prompt=name, words=(name,), label=name, truth=truth)


def _holds(path: Path, value: int) -> bool:
    with Image.open(path) as picture:
        return bool((np.asarray(picture) == value).any())


def _volumes(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    """Each CT, without a truth."""
    for row in _ct_rows(base):
        if row["kind"] == "ct":
            yield _volume(base, row["file"], row["case"], CT_PROMPT, row)
        else:
            left_out["the row is no CT"] += 1


def _structures(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    """Each structure that a mask file names, on the CT of its case (the lung mask without a CT: on itself)."""
    for row in _ct_rows(base):
        if not row["kind"].startswith("mask"):
            left_out["the row is no mask"] += 1
            continue
        image = f"{row['case']}/ct.nii.gz"
        alone = not (base / image).is_file()
        if row["file"].endswith("tumor_boxes.nii.gz"):
            text = json.loads((base / row["case"] / "info.json").read_text())["prompt"]
            found = {"mass": ((1,), text)}
        elif alone:
            found = {"right lung": ((50,), "right lung"), "left lung": ((100,), "left lung")}
        else:
            found = {name: ((value,), name) for name, value in structures(row["labels"]).items()}
        if row["file"].endswith("lung_thirds.nii.gz"):
            found |= {name: (values, name) for name, values in THIRDS.items()}
        for name, (values, text) in found.items():
            record = _volume(
                base, row["file"] if alone else image, f"{row['case']}-{name.replace(' ', '-')}", text, row
            )
            truth = MaskFile(base / row["file"], values)
            yield replace(record, truth=truth, words=(name,), label=name, unit="code" if alone else "")


def structures(labels: str) -> dict[str, int]:
    """Name -> value from "1=right lung 2=left lung"; "kidney_left" becomes "left kidney"."""
    found = {}
    for match in STRUCTURE.finditer(labels):
        words = match[2].replace("_", " ").split()
        side = next((word for word in words if word in ("left", "right")), None)
        if side is not None and "_" in match[2]:
            words.remove(side)
            words.insert(0, side)
        found[" ".join(words)] = int(match[1])
    return found


def _ct_rows(base: Path) -> Iterator[Mapping[str, str]]:
    for _, row in rows(base / "metadata.csv", ("case", "file", "kind", "labels", "license")):
        yield row


def _volume(base: Path, file: str, name: str, prompt: str, row: Mapping[str, str]) -> Record:
    small = "-small" if file.endswith("baseline_small.nii.gz") else ""
    facts = {"license": row["license"], "source": row["source"], "kind": row["kind"]}
    return Record(f"{name}{small}", prompt, base / file, patient=row["case"], split="test", facts=facts)


def _slices(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    for record in _folder(base, left_out, patient="case"):
        yield replace(record, prompt="axial T1 slice of the brain", split="test")


def _stacked(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    """MedNIST: the text is the class; blocks of neighboring file numbers stand in for patients."""
    for place, row in rows(base / "metadata.csv", ("file", "index", "label", "block", "split", "license")):
        at, label = whole(row["index"], place), row["label"]
        facts = {"license": row["license"], "source": row["source"]}
        patient = f"{label}-{row['block']}"
        path = base / row["file"]
        made = Record(f"{label}-{at:04d}", CLASSES[label], path, at, label=label, patient=patient, facts=facts)
        yield replace(made, split=row["split"])


def _stacked_films(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    for place, row in rows(base / "metadata.csv", ("index", "id", "patient", "split", "label", "license")):
        facts = {"license": row["license"], "source": row["source"]}
        made = Record(row["id"], CONDITION[row["label"]], base / "images.npz", whole(row["index"], place), facts=facts)
        yield replace(made, label=row["label"], patient=row["patient"], split=row["split"])


def _reports(base: Path, left_out: Counter[str]) -> Iterator[Record]:
    """The impressions; reports without one are left out."""
    for _, row in rows(base / "metadata.csv", ("id", "split", "impression", "license")):
        names = list(row)
        labels = {name: row[name] == "1" for name in names[names.index("impression") + 1 :]}
        if not row["impression"]:
            left_out["the report has no impression"] += 1
            continue
        facts = {"license": row["license"], "source": row["source"]}
        yield Record(row["id"], row["impression"], labels=labels, split=row["split"], facts=facts)


def _captions(base: Path, left_out: Counter[str]) -> Sequence[Record]:
    return _folder(base, left_out, prompt="caption")


def _lines(base: Path, left_out: Counter[str]) -> Sequence[Record]:
    return _folder(base, left_out, prompt="text")


SETS: Mapping[str, Callable[[Path, Counter[str]], Iterable[Record]]] = {
    "cxr": _films,
    "cxr-lungs": _lungs,
    "cxr-lungs_auto": _lungs_auto,
    "nih_cxr": _films,
    "nih_cxr-boxes": _boxes,
    "nih_cxr64": _stacked_films,
    "ct": _volumes,
    "ct-structures": _structures,
    "mednist64": _stacked,
    "brain_mri": _slices,
    "ct_reports": _reports,
    "roco_captions": _captions,
    "text_corpus": _lines,
}
"""Folder, or folder-truth -> how it is read, counting what it leaves out. Without a truth in its name it has none."""
