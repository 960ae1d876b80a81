"""MIMIC-CXR-JPG (Johnson et al., 2019): films, official splits, labels, and impressions of the reports of MIMIC-CXR.

Built from the user's own copy; CSV files may be zipped or not. Credentialed.
"""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from voxplain.datasets.base import Dataset, Excluded, Record, counted
from voxplain.datasets.labels import CHEXPERT, as_text, check_policy, from_row, settle
from voxplain.datasets.mscxr import subjects
from voxplain.datasets.tables import check_known, distinct, find_table, on_disk, rows, some_on_disk

SPLITS = ("train", "validate", "test")
VIEWS = ("PA", "AP")
MARK = "IMPRESSION:"
LONGER_THAN = 7  # characters (Dombrowski et al., section Datasets)

Labels = dict[str, dict[str, float]]  # study -> each label that is mentioned -> 1, 0, -1


def build_mimic_cxr(
    root: str | os.PathLike,
    *,
    uncertain: str,
    reports: str | os.PathLike | None = None,
    labeler: str = "chexpert",
    views: Collection[str] = VIEWS,
    splits: Collection[str] | None = None,
    ms_cxr: str | os.PathLike | None = None,
) -> Dataset:
    """One record an image: the impression as prompt (with `reports`), else the names of the positive labels.

    `root` holds the CSV files and `files/`; `reports` the text files of MIMIC-CXR (`files/p10/p.../s....txt`).
    `uncertain` says what a label of -1 becomes (`labels.UNCERTAIN`), `labeler` whose labels they are: chexpert or
    negbio. Splits are the official ones. With the annotations of `ms_cxr` they are those of Dombrowski et al.: subjects
    in MS-CXR are "mscxr", the others of folder p19 are "p19". (They hold out the films of MS-CXR; here it is the
    subjects, so no patient is on both sides.) Only `splits` are kept, if given.

    Rows are left out, and counted, for another split or view, a label or study without labels, a missing file, and a
    report with no impression, more than one, or one of 7 characters or less. Raises ValueError for an unknown split or
    view, and for a film or a study that a table lists twice.
    """
    check_policy(uncertain)
    base = Path(root)
    folders = [base, base.parent]
    held_out = subjects(ms_cxr) if ms_cxr is not None else frozenset()
    known = (*SPLITS, *(("p19", "mscxr") if ms_cxr is not None else ()))
    check_known("split", splits or (), known)
    view_of = _views(base)
    check_known("view", views, sorted({*VIEWS, *view_of.values()}))
    labels = _labels(base, labeler)
    texts: dict[str, str | Excluded] = {}
    records, left_out, there = [], Counter(), 0
    films = rows(find_table(base, "mimic-cxr-2.0.0-split.csv"), ("dicom_id", "study_id", "subject_id", "split"))
    for place, row in distinct(films, "dicom_id"):
        dicom, study, subject = row["dicom_id"], row["study_id"], row["subject_id"]
        split = row["split"]
        if ms_cxr is not None and subject in held_out:
            split = "mscxr"
        elif ms_cxr is not None and subject.startswith("19"):
            split = "p19"
        try:
            if splits is not None and split not in splits:
                raise Excluded("another split")
            if view_of.get(dicom) not in views:
                raise Excluded("another view")
            if study not in labels:
                raise Excluded("the study has no labels")
            found = settle(labels[study], uncertain)
            folder = f"files/p{subject[:2]}/p{subject}/s{study}"
            image = on_disk(folders, f"{folder}/{dicom}.jpg")
            if image is None:
                raise Excluded("the image is not on the disk")
            there += 1
            prompt = as_text(found) if reports is None else _impression(Path(reports), f"{folder}.txt", texts)
        except Excluded as excluded:
            left_out[excluded.reason] += 1
            continue
        line = int(place.rsplit(" ", 1)[1])
        facts = {"dicom_id": dicom, "study_id": study, "view": view_of[dicom]}
        records.append(
            Record(f"mimic-cxr-{line:06d}", prompt, image, labels=found, patient=subject, split=split, facts=facts)
        )
    some_on_disk(there, left_out["the image is not on the disk"], folders, "files/p10/p.../s.../....jpg")
    about = {"uncertain": uncertain, "labeler": labeler, "views": sorted(views), "splits": sorted(splits or known)}
    about |= {"text": "labels" if reports is None else "impression", "held_out": ms_cxr is not None}
    return Dataset("mimic-cxr", tuple(records), counted(left_out), about, credentialed=True)


def impression(report: str) -> str:
    """What follows "IMPRESSION:", on one line. Raises `Excluded` if the mark is not there exactly once.

    As in the code of Dombrowski et al., the rest of the report belongs to it, recommendations included.
    """
    count = report.count(MARK)
    if count != 1:
        raise Excluded("the report has no impression" if count == 0 else "the report has more than one impression")
    text = " ".join(report.split(MARK)[1].split())
    if len(text) <= LONGER_THAN:
        raise Excluded(f"the impression has {LONGER_THAN} characters or less")
    return text


def _impression(reports: Path, relative: str, texts: dict[str, str | Excluded]) -> str:
    """The impression of a study's report, or what excludes it; a report is opened once for all its images."""
    if relative not in texts:
        path = on_disk([reports, reports.parent], relative)
        try:
            if path is None:
                raise Excluded("the report is not on the disk")
            texts[relative] = impression(path.read_text(encoding="utf-8", errors="replace"))
        except Excluded as excluded:
            texts[relative] = excluded
    found = texts[relative]
    if isinstance(found, Excluded):
        raise found
    return found


def _views(base: Path) -> dict[str, str]:
    table = find_table(base, "mimic-cxr-2.0.0-metadata.csv")
    found = distinct(rows(table, ("dicom_id", "ViewPosition")), "dicom_id")
    return {row["dicom_id"]: row["ViewPosition"] for _, row in found}


def _labels(base: Path, labeler: str) -> Labels:
    table = find_table(base, f"mimic-cxr-2.0.0-{labeler}.csv")
    found = distinct(rows(table, ("study_id", *CHEXPERT)), "study_id")
    return {row["study_id"]: from_row(row, CHEXPERT, place) for place, row in found}
