"""MS-CXR: phrases of radiology reports with boxes on films of MIMIC-CXR (Boecking et al., ECCV 2022).

Built from the public annotation file, CSV or JSON, release 0.1 (files v1.0.0) or 1.1.0, and the user's own copy of the
films of MIMIC-CXR-JPG. Credentialed.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from voxplain.datasets.base import Box, Boxes, Dataset, Excluded, Record, counted, whole_words
from voxplain.datasets.shapes import box_inside
from voxplain.datasets.tables import ID, distinct, entries, number, on_disk, read_document, rows, some_on_disk, whole

WORDS = {
    "Atelectasis": ("atelectasis", "atelectatic"),
    "Cardiomegaly": ("cardiomegaly", "cardiac"),
    "Consolidation": ("consolidation", "consolidations", "consolidative"),
    "Edema": ("edema",),
    "Lung Opacity": ("opacity", "opacities", "opacification"),
    "Pleural Effusion": ("pleural", "effusion", "effusions"),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax", "pneumothoraces"),
}
"""The words that are read for each finding (Dombrowski et al., Table 9, and the forms that their code adds)."""
COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
SUBJECT = re.compile(r"/p(\d{8})/")
RELEASE = re.compile(r"MS_CXR_Local_Alignment_v(\d+)\.(\d+)\.(\d+)\.(csv|json)")
GROUPS = ("phrase", "finding")
IMAGE = {"id": ID, "file_name": str, "path": str, "width": (int, float, str), "height": (int, float, str)}
CATEGORY = {"id": ID, "name": str}
ANNOTATION = {"image_id": ID, "category_id": ID, "bbox": list, "label_text": str}


@dataclass(frozen=True, slots=True)
class _Row:
    dicom: str
    finding: str
    phrase: str
    path: str
    box: Box
    size: tuple[int, int]
    split: str
    place: str


def build_ms_cxr(annotations: str | os.PathLike, images: str | os.PathLike, *, group: str = "phrase") -> Dataset:
    """One record for each (image, finding, phrase), or each (image, finding); its boxes are one truth together.

    `annotations` is the CSV or JSON file, or the folder that holds it (then the newest release, CSV before JSON);
    `images` the root of MIMIC-CXR-JPG. A group by finding has its first phrase as prompt, and all of them in `facts`.
    The split is that of release 1.1.0, which is not MIMIC's; older files have none.

    A group is left out, and counted, if its image is not on the disk, its phrase is empty, or one of its boxes has no
    area or leaves the image. Raises ValueError for an unknown finding and for rows that contradict each other.
    """
    if group not in GROUPS:
        raise ValueError(f"group={group!r}: expected {' or '.join(map(repr, GROUPS))}")
    path, root = annotation_file(annotations), Path(images)
    folders = [root, root / "files", root.parent]
    groups: dict[tuple[str, ...], list[_Row]] = {}
    for row in _checked(path):
        key = (row.dicom, row.finding, row.phrase) if group == "phrase" else (row.dicom, row.finding)
        groups.setdefault(key, []).append(row)
    records, left_out = [], Counter()
    for count, key in enumerate(sorted(groups)):
        try:
            records.append(_record(f"ms-cxr-{count:04d}", groups[key], folders))
        except Excluded as excluded:
            left_out[excluded.reason] += 1
    missing = left_out["the image is not on the disk"]
    some_on_disk(len(groups) - missing, missing, folders, "files/p1X/pXXXXXXXX/...jpg")
    about = {"file": path.name, "group": group}
    return Dataset("ms-cxr", tuple(records), counted(left_out), about, credentialed=True)


def annotation_file(place: str | os.PathLike) -> Path:
    """The annotation file itself, or the newest one in a folder (CSV before JSON)."""
    path = Path(place)
    if path.is_file():
        return path
    found = [(match, file) for file in sorted(path.glob("*")) if (match := RELEASE.fullmatch(file.name))]
    if not found:
        raise FileNotFoundError(f"{path} is no file, and no folder with MS_CXR_Local_Alignment_v1.1.0.csv or .json")
    return max(found, key=lambda one: (*map(int, one[0].groups()[:3]), one[0][4] == "csv"))[1]


def subjects(annotations: str | os.PathLike) -> frozenset[str]:
    """The subject ids of MIMIC-CXR whose films MS-CXR shows, to hold them out of a training."""
    return frozenset(_subject(row) for row in _checked(annotation_file(annotations)))


def _record(name: str, group: list[_Row], folders: list[Path]) -> Record:
    first = group[0]
    phrases = list(dict.fromkeys(row.phrase for row in group))
    image = on_disk(folders, first.path)
    if image is None:
        raise Excluded("the image is not on the disk")
    if not all(phrases):
        raise Excluded("the phrase is empty")
    if any(min(row.box[2:]) <= 0 for row in group):
        raise Excluded("a box has no area")
    if not all(box_inside(row.box, row.size[::-1]) for row in group):
        raise Excluded("a box leaves the image")
    return Record(
        id=name,
        prompt=phrases[0],
        image=image,
        truth=Boxes(tuple(dict.fromkeys(row.box for row in group))),
        words=_words(first.finding, phrases[0]),
        label=first.finding,
        patient=_subject(first),
        split=first.split,
        size=first.size,
        facts={"dicom_id": first.dicom, "phrases": " | ".join(phrases)},
    )


def _words(finding: str, phrase: str) -> tuple[str, ...]:
    """The forms of the finding that stand in the phrase as whole words, numbered where one stands there twice."""
    found = []
    for form in WORDS[finding]:
        count = len(re.findall(whole_words(form), phrase, re.IGNORECASE))
        found += [form] if count == 1 else [f"{form}#{i + 1}" for i in range(count)]
    return tuple(found)


def _subject(row: _Row) -> str:
    match = SUBJECT.search(f"/{row.path}")
    if match is None:
        raise ValueError(f"{row.place}: path {row.path!r} names no subject; expected files/p1X/p1XXXXXXX/s5XXXXXXX/...")
    return match[1]


def _checked(path: Path) -> Iterator[_Row]:
    """The rows of the file, in order, as long as they do not contradict each other."""
    known: dict[str, _Row] = {}
    for row in _from_json(path) if path.suffix == ".json" else _from_csv(path):
        if row.finding not in WORDS:
            raise ValueError(f"{row.place}: unknown finding {row.finding!r}; MS-CXR has {', '.join(WORDS)}")
        first = known.setdefault(row.dicom, row)
        for what in ("size", "path", "split"):
            one, other = getattr(first, what), getattr(row, what)
            if one != other:
                raise ValueError(f"{row.place}: {what} {other!r}, but {first.place} has {one!r} for the same image")
        yield row


def _from_csv(path: Path) -> Iterator[_Row]:
    for place, row in rows(path, COLUMNS):
        x, y, w, h = (number(row[name], f"{place}, {name}") for name in ("x", "y", "w", "h"))
        size = (whole(row["image_width"], place), whole(row["image_height"], place))
        yield _Row(
            dicom=row["dicom_id"],
            finding=row["category_name"],
            phrase=" ".join(row["label_text"].split()),
            path=row["path"],
            box=(x, y, w, h),
            size=size,
            split=row.get("split", ""),
            place=place,
        )


def _from_json(path: Path) -> Iterator[_Row]:
    lists = read_document(path, ("images", "annotations", "categories"))
    images, names = (
        {entry["id"]: entry for _, entry in distinct(entries(path, name, lists[name], fields), "id")}
        for name, fields in (("images", IMAGE), ("categories", CATEGORY))
    )
    for place, entry in entries(path, "annotations", lists["annotations"], ANNOTATION):
        if entry["image_id"] not in images or entry["category_id"] not in names:
            raise ValueError(f"{place} points to an image or category that the file does not have")
        image = images[entry["image_id"]]
        sides = [number(str(side), f"{place}, bbox") for side in entry["bbox"]]
        if len(sides) != 4:
            raise ValueError(f"{place}: bbox has {len(sides)} numbers; expected 4: x, y, width, height")
        yield _Row(
            dicom=Path(image["file_name"]).stem,
            finding=names[entry["category_id"]]["name"],
            phrase=" ".join(entry["label_text"].split()),
            path=image["path"],
            box=tuple(sides),
            size=(whole(str(image["width"]), f"{place}, width"), whole(str(image["height"]), f"{place}, height")),
            split=str(entry.get("split", image.get("split", ""))),
            place=place,
        )
