"""CheXpert Plus (Chambon et al., 2024): films, sections of the reports, and labels that CheXbert read in them.

Built from the user's own copy: `df_chexpert_plus_240401.csv`, the PNG files, and `chexbert_labels/`. Under a data use
agreement, and so treated as credentialed.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from voxplain.datasets.base import Dataset, Excluded, Record, counted
from voxplain.datasets.labels import CHEXPERT, as_text, check_policy, checked, settle
from voxplain.datasets.tables import check_known, distinct, find_table, from_json, on_disk, rows, some_on_disk

TABLE = "df_chexpert_plus_240401.csv"
COLUMNS = ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "split")
VIEWS = ("PA", "AP")


def build_chexpert_plus(
    root: str | os.PathLike,
    *,
    uncertain: str,
    text: str = "impression",
    labels_of: str = "impression",
    views: Collection[str] = VIEWS,
    splits: Collection[str] | None = None,
) -> Dataset:
    """One record an image, with a section of its report (impression, findings), or its positive labels, as prompt.

    `root` holds the table; the films lie in it or in `PNG/`, `PNGs/` or `images/` below it, as PNG or JPEG.
    `labels_of` says in which part the labels were read: impression, findings or report. `uncertain` says what a label
    of -1 becomes (`labels.UNCERTAIN`). Splits are those of the table (train, valid).

    Rows are left out, and counted, for another split or view, no labels, no such section, and a missing file. Raises
    ValueError for an unknown split or view, and for a film that is listed twice.
    """
    check_policy(uncertain)
    base = Path(root)
    folders = [base, *(base / name for name in ("PNG", "PNG/PNG", "PNGs", "images"))]
    labels = {row["path_to_image"]: row["labels"] for _, row in distinct(_labels(base, labels_of), "path_to_image")}
    section = f"section_{text}"
    records, left_out, there = [], Counter(), 0
    known_views, known_splits = {*VIEWS}, set()
    films = rows(find_table(base, TABLE), COLUMNS if text == "labels" else (*COLUMNS, section))
    for place, row in distinct(films, "path_to_image"):
        stored = row["path_to_image"]
        view = row["ap_pa"] if row["frontal_lateral"] == "Frontal" else row["frontal_lateral"].upper()
        known_views.add(view)
        known_splits.add(row["split"])
        try:
            if splits is not None and row["split"] not in splits:
                raise Excluded("another split")
            if view not in views:
                raise Excluded("another view")
            if stored not in labels:
                raise Excluded("the image has no labels")
            found = settle(labels[stored], uncertain)
            image = on_disk(folders, stored) or on_disk(folders, str(Path(stored).with_suffix(".png")))
            if image is None:
                raise Excluded("the image is not on the disk")
            there += 1
            prompt = as_text(found) if text == "labels" else " ".join(row[section].split())
            if not prompt:
                raise Excluded(f"the report has no {text}")
        except Excluded as excluded:
            left_out[excluded.reason] += 1
            continue
        line = int(place.rsplit(" ", 1)[1])
        facts = {"path_to_image": stored, "view": view}
        patient = row["deid_patient_id"]
        records.append(
            Record(
                f"chexpert-plus-{line:06d}",
                prompt,
                image,
                labels=found,
                patient=patient,
                split=row["split"],
                facts=facts,
            )
        )
    check_known("view", views, sorted(known_views))
    check_known("split", splits or (), sorted(known_splits))
    some_on_disk(there, left_out["the image is not on the disk"], folders, "train/patient.../study.../....png")
    about = {"uncertain": uncertain, "text": text, "labels_of": labels_of, "views": sorted(views)}
    return Dataset("chexpert-plus", tuple(records), counted(left_out), about, credentialed=True)


def _labels(base: Path, section: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The entries of CheXbert's file, one JSON object a line, each with its place: path_to_image, labels."""
    name = f"{section}_fixed.json"
    path = on_disk([base, base / "chexbert_labels", base / "labels"], name)
    if path is None:
        raise FileNotFoundError(f"{base} holds no {name}, nor does chexbert_labels/ in it; unzip chexbert_labels.zip")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{name}, line {number}"
            entry = from_json(line, place)
            keys = ("path_to_image", *CHEXPERT)
            if missing := [key for key in keys if not isinstance(entry, dict) or key not in entry]:
                raise ValueError(f"{place} has no {', '.join(missing)}")
            found = {key: entry[key] for key in CHEXPERT if entry[key] is not None}
            yield place, {"path_to_image": str(entry["path_to_image"]), "labels": checked(found, place)}
