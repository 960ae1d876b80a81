"""MIMIC-CXR-JPG on a synthetic copy: splits, labels by policy, impressions, and what is left out."""

import gzip
import shutil

import pytest
from invented import COLUMNS, FILMS, LABELS, ms_cxr_rows, write_csv

from voxplain.datasets.base import Excluded
from voxplain.datasets.labels import settle
from voxplain.datasets.mimic_cxr import build_mimic_cxr, impression
from voxplain.datasets.opening import build
from voxplain.datasets.reading import read

VIEWS = ("PA", "AP", "LATERAL")


def test_impressions_are_the_prompts_and_every_row_is_accounted_for(mimic):
    found = build_mimic_cxr(mimic, uncertain="unknown", reports=mimic / "reports")
    assert {record.prompt for record in found} == {
        "Small left pleural effusion. No pneumothorax.",
        "Right basilar opacity, ___ stable.",
    }
    assert found.left_out == {
        "another view": 1,
        "the image is not on the disk": 1,
        "the impression has 7 characters or less": 1,
        "the report has more than one impression": 1,
        "the report has no impression": 1,
    }
    assert len(found) + sum(found.left_out.values()) == len(FILMS)
    assert found.credentialed
    assert read(found.records[0]).sample.image.shape == (1, 480, 640)


@pytest.mark.parametrize(
    ("uncertain", "edema", "studies"),
    [("positive", True, 6), ("negative", False, 6), ("unknown", None, 6), ("exclude", None, 4)],
)
def test_the_policy_says_what_minus_one_becomes(mimic, uncertain, edema, studies):
    found = build_mimic_cxr(mimic, uncertain=uncertain, views=VIEWS)
    labels = {record.facts["study_id"]: record.labels for record in found}
    assert len(found) == studies
    assert labels.get("50000002", {}).get("Edema") is edema
    assert labels["50000001"] == {"Pleural Effusion": True, "Pneumothorax": False}  # empty fields are not in it
    assert found.left_out.get("a label is uncertain", 0) == (3 if uncertain == "exclude" else 0)


def test_a_policy_has_to_be_said(mimic):
    with pytest.raises(TypeError, match="uncertain"):
        build_mimic_cxr(mimic)
    with pytest.raises(ValueError, match="say what -1 becomes: positive .present., negative"):
        build_mimic_cxr(mimic, uncertain="maybe")
    with pytest.raises(ValueError, match="label 'Edema' is 2"):
        settle({"Edema": 2}, "unknown")


def test_without_reports_the_prompt_names_the_positive_labels(mimic):
    prompts = {record.prompt for record in build_mimic_cxr(mimic, uncertain="positive")}
    assert {"Pleural Effusion", "Cardiomegaly, Edema", "Lung Opacity, Pneumonia"} <= prompts


def test_official_splits_and_the_papers(mimic, tmp_path):
    official = build_mimic_cxr(mimic, uncertain="unknown")
    assert {(record.patient, record.split) for record in official} == {
        ("10000001", "train"),
        ("11000002", "validate"),
        ("19000003", "test"),
    }
    write_csv(tmp_path / "one.csv", [*COLUMNS, "split"], ms_cxr_rows()[:1])
    paper = build_mimic_cxr(mimic, uncertain="unknown", ms_cxr=tmp_path / "one.csv")
    found = {record.patient: record.split for record in paper}
    assert found == {"10000001": "mscxr", "11000002": "validate", "19000003": "p19"}
    only = build_mimic_cxr(mimic, uncertain="unknown", ms_cxr=tmp_path / "one.csv", splits=["p19"])
    assert {record.split for record in only} == {"p19"} and only.left_out["another split"] == 4
    with pytest.raises(ValueError, match="split p19: there are train, validate, test"):
        build_mimic_cxr(mimic, uncertain="unknown", splits=["p19"])


def test_a_study_without_labels_is_counted_and_a_missing_table_named(mimic, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither mimic-cxr-2.0.0-negbio.csv nor mimic-cxr-2.0.0-negbio.csv.gz"):
        build_mimic_cxr(mimic, uncertain="unknown", labeler="negbio")
    with pytest.raises(FileNotFoundError, match=r"metadata\.csv"):
        build_mimic_cxr(tmp_path, uncertain="unknown")


def test_a_report_on_another_disk_is_counted(mimic, tmp_path):
    found = build_mimic_cxr(mimic, uncertain="unknown", reports=tmp_path)
    assert len(found) == 0 and found.left_out["the report is not on the disk"] == 5


def test_an_impression_is_what_follows_its_only_mark():
    assert impression("EXAM\nIMPRESSION:  No acute\n  process. \n\nRECOMMENDATION: none") == (
        "No acute process. RECOMMENDATION: none"
    )
    for text, reason in (("FINDINGS: a", "no impression"), ("IMPRESSION: a IMPRESSION: b", "more than one")):
        with pytest.raises(Excluded, match=reason):
            impression(text)


def test_options_that_leave_no_record_are_an_error_with_the_reasons(mimic, tmp_path):
    with pytest.raises(ValueError, match=r"no record is left with .*reports=.*: .* the report is not on the disk 5"):
        build("mimic-cxr", mimic, uncertain="unknown", reports=tmp_path)
    assert len(build("mimic-cxr", mimic, uncertain="unknown", views=["LATERAL"])) == 1


@pytest.mark.parametrize("views", [["PA", "LATTERAL"], "LATTERAL"])
def test_an_unknown_view_is_refused(mimic, views):
    with pytest.raises(ValueError, match="view .*: there are AP, LATERAL, PA"):
        build_mimic_cxr(mimic, uncertain="unknown", views=views)


@pytest.mark.parametrize(("kind", "key"), [("split", "dicom_id"), ("metadata", "dicom_id"), ("chexpert", "study_id")])
def test_what_a_table_lists_twice_is_refused_with_both_lines(mimic, tmp_path, kind, key):
    place = shutil.copytree(mimic, tmp_path / "copy")
    (path,) = place.glob(f"mimic-cxr-2.0.0-{kind}.csv*")
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        lines = file.readlines()
    with opened(path, "wt") as file:
        file.writelines([*lines, lines[2]])
    with pytest.raises(ValueError, match=rf"line {len(lines) + 1} has the {key} of {path.name}, line 3; keep"):
        build_mimic_cxr(place, uncertain="unknown")


def test_a_label_that_is_none_is_refused_with_its_line(mimic, tmp_path):
    place = shutil.copytree(mimic, tmp_path / "copy")
    labels = [{"study_id": "1", "Edema": "2"}]
    write_csv(place / "mimic-cxr-2.0.0-chexpert.csv.gz", ["study_id", *LABELS], labels)
    with pytest.raises(ValueError, match=r"chexpert\.csv\.gz, line 2: label 'Edema' is 2\.0; expected the number 1"):
        build_mimic_cxr(place, uncertain="unknown")
