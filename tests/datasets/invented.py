"""Synthetic copies of credentialed sets: the layout of the public files, with identifiers that are visibly invented."""

import csv
import gzip
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = [
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
]
# (subject, study, film, view, split, width, height); the last one is listed, but not on the disk
FILMS = [
    ("10000001", "50000001", "a", "PA", "train", 640, 480),
    ("10000001", "50000001", "b", "LATERAL", "train", 300, 300),
    ("10000001", "50000002", "c", "AP", "train", 480, 640),
    ("11000002", "50000003", "d", "PA", "validate", 400, 400),
    ("19000003", "50000004", "e", "AP", "test", 200, 160),
    ("19000003", "50000005", "f", "PA", "test", 320, 320),
    ("19000003", "50000005", "missing", "PA", "test", 320, 320),
]
REPORTS = {
    "50000001": "FINDINGS: clear.\n IMPRESSION:\n  Small left pleural effusion.\n No pneumothorax. ",
    "50000002": "IMPRESSION: old text. IMPRESSION: Edema.",
    "50000003": "FINDINGS: No focal consolidation.",
    "50000004": "IMPRESSION: Normal.",
    "50000005": "IMPRESSION: Right basilar opacity, ___ stable.",
}
STUDY_LABELS = {
    "50000001": {"Pleural Effusion": "1.0", "Pneumothorax": "0.0"},
    "50000002": {"Edema": "-1.0", "Cardiomegaly": "1.0"},
    "50000003": {"No Finding": "1.0"},
    "50000004": {"No Finding": "1.0"},
    "50000005": {"Lung Opacity": "1.0", "Pneumonia": "-1.0"},
}
BOXES = [  # film, finding, phrase, (x, y, w, h)
    ("a", "Pleural Effusion", "Small left pleural effusion", (400, 300, 80, 60)),
    ("a", "Pleural Effusion", "Small left pleural effusion", (500, 320, 140, 160)),  # a second box; touches the edge
    ("a", "Pleural Effusion", "bilateral effusions", (10, 300, 80, 60)),  # the same finding in other words
    ("a", "Pneumothorax", "apical lucency", (100, 20, 1, 90)),  # another finding, not named; one pixel wide
    ("c", "Edema", "pulmonary edema " * 40 + "and edema", (0, 0, 480, 30)),  # leaves a central crop; long
    ("f", "Lung Opacity", "Right basilar opacity", (20, 200, 100, 90)),
    ("missing", "Pneumonia", "Right lower lung pneumonia", (5, 5, 10, 10)),
]
COLUMNS = ["dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height"]


def dicom(film: str) -> str:
    return "-".join(["invented", *[film.ljust(8, "0")[:8]] * 4])


def path_of(film: str) -> str:
    subject, study = next(row[:2] for row in FILMS if row[2] == film)
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom(film)}.jpg"


def write_csv(path: Path, columns: list[str], rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "wt", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def picture(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.add.outer(np.arange(height), 2 * np.arange(width)) % 256
    Image.fromarray(ramp.astype(np.uint8)).save(path)


def ms_cxr_rows() -> list[dict]:
    sizes = {film: (width, height) for _, _, film, _, _, width, height in FILMS}
    splits = {"10000001": "train", "11000002": "val", "19000003": "test"}
    subject_of = {film: subject for subject, _, film, *_ in FILMS}
    return [
        {
            "dicom_id": dicom(film),
            "category_name": finding,
            "label_text": phrase,
            "path": path_of(film),
            **dict(zip("xywh", map(str, box), strict=True)),
            "image_width": str(sizes[film][0]),
            "image_height": str(sizes[film][1]),
            "split": splits[subject_of[film]],
        }
        for film, finding, phrase, box in BOXES
    ]


def as_json(rows: list[dict], with_split: bool) -> dict:
    """The same rows in the COCO style of the data set."""
    films = list(dict.fromkeys(row["dicom_id"] for row in rows))
    findings = sorted({row["category_name"] for row in rows})
    images = []
    for number, film in enumerate(films):
        row = next(row for row in rows if row["dicom_id"] == film)
        size = {"width": int(row["image_width"]), "height": int(row["image_height"])}
        images.append({"id": number, "file_name": f"{film}.jpg", "path": row["path"], **size})
    annotations = []
    for number, row in enumerate(rows):
        entry = {
            "id": number,
            "image_id": films.index(row["dicom_id"]),
            "category_id": findings.index(row["category_name"]) + 1,
            "bbox": [float(row[side]) for side in "xywh"],
            "label_text": row["label_text"],
        }
        annotations.append({**entry, "split": row["split"]} if with_split else entry)
    categories = [{"id": number, "name": name} for number, name in enumerate(findings, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}
