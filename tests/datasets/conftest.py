"""Copies of credentialed sets with invented content, in the layout of the public files."""

import json
from pathlib import Path

import pytest
from invented import (
    COLUMNS,
    FILMS,
    LABELS,
    REPORTS,
    STUDY_LABELS,
    as_json,
    dicom,
    ms_cxr_rows,
    path_of,
    picture,
    write_csv,
)


@pytest.fixture(scope="session")
def mimic(tmp_path_factory) -> Path:
    """A copy of MIMIC-CXR-JPG with the reports beside it; three tables zipped, one not."""
    root = tmp_path_factory.mktemp("mimic")
    split, metadata = [], []
    for subject, study, film, view, part, width, height in FILMS:
        ids = {"dicom_id": dicom(film), "study_id": study, "subject_id": subject}
        split.append({**ids, "split": part})
        metadata.append({**ids, "ViewPosition": view, "Rows": str(height), "Columns": str(width)})
        if film != "missing":
            picture(root / path_of(film), width, height)
    ids = ["dicom_id", "study_id", "subject_id"]
    write_csv(root / "mimic-cxr-2.0.0-split.csv.gz", [*ids, "split"], split)
    write_csv(root / "mimic-cxr-2.0.0-metadata.csv", [*ids, "ViewPosition", "Rows", "Columns"], metadata)
    subject_of = {study: subject for subject, study, *_ in FILMS}
    labels = [{"subject_id": subject_of[study], "study_id": study, **row} for study, row in STUDY_LABELS.items()]
    write_csv(root / "mimic-cxr-2.0.0-chexpert.csv.gz", ["subject_id", "study_id", *LABELS], labels)
    for study, text in REPORTS.items():
        subject = subject_of[study]
        place = root / f"reports/files/p{subject[:2]}/p{subject}/s{study}.txt"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return root


@pytest.fixture(scope="session")
def ms_cxr(tmp_path_factory) -> Path:
    """Both releases of MS-CXR, each as CSV and JSON."""
    root = tmp_path_factory.mktemp("ms-cxr")
    rows = ms_cxr_rows()
    old = [{name: row[name] for name in COLUMNS} for row in rows]
    write_csv(root / "MS_CXR_Local_Alignment_v1.0.0.csv", COLUMNS, old)
    write_csv(root / "MS_CXR_Local_Alignment_v1.1.0.csv", [*COLUMNS, "split"], rows)
    for version, with_split in (("1.0.0", False), ("1.1.0", True)):
        path = root / f"MS_CXR_Local_Alignment_v{version}.json"
        path.write_text(json.dumps(as_json(rows, with_split)))
    return root
