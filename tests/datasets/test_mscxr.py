"""MS-CXR on a synthetic copy: groups, unions, both files, both releases, and what is left out."""

import json

import numpy as np
import pytest
from invented import BOXES, COLUMNS, as_json, dicom, ms_cxr_rows, picture, write_csv
from synthetic import tokenized

from voxplain.datasets.base import Excluded
from voxplain.datasets.frames import Cover, Crop
from voxplain.datasets.mscxr import annotation_file, build_ms_cxr, subjects
from voxplain.datasets.reading import read

FILE = "MS_CXR_Local_Alignment_v{}"


@pytest.mark.parametrize("group", ["phrase", "finding"])
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_csv_and_json_give_the_same_groups(ms_cxr, mimic, group, version):
    name = FILE.format(version)
    one, other = (build_ms_cxr(ms_cxr / f"{name}.{kind}", mimic, group=group) for kind in ("csv", "json"))
    assert one.records == other.records and one.left_out == other.left_out
    assert {record.split for record in one} == ({""} if version == "1.0.0" else {"train", "test"})


def test_the_newest_release_is_taken_from_a_folder(ms_cxr, mimic):
    assert annotation_file(ms_cxr).name == f"{FILE.format('1.1.0')}.csv"
    with pytest.raises(FileNotFoundError, match="no folder with MS_CXR"):
        annotation_file(mimic)


def test_a_group_is_a_phrase_or_a_finding_and_no_row_is_lost(ms_cxr, mimic):
    by_phrase, by_finding = (build_ms_cxr(ms_cxr, mimic, group=group) for group in ("phrase", "finding"))
    phrases = {(film, finding, phrase.strip()) for film, finding, phrase, _ in BOXES}
    assert len(by_phrase) + sum(by_phrase.left_out.values()) == len(phrases) == 6
    assert len(by_finding) + sum(by_finding.left_out.values()) == len({key[:2] for key in phrases}) == 5
    assert by_phrase.left_out == by_finding.left_out == {"the image is not on the disk": 1}
    assert by_phrase.credentialed and by_phrase.about["group"] == "phrase"
    effusion = by_finding.where(label="Pleural Effusion").records[0]
    assert len(effusion.truth.boxes) == 3
    assert effusion.facts["phrases"] == "Small left pleural effusion | bilateral effusions"
    assert effusion.prompt == "Small left pleural effusion"


def test_the_boxes_of_a_phrase_are_one_truth(ms_cxr, mimic):
    record = next(r for r in build_ms_cxr(ms_cxr, mimic) if r.prompt == "Small left pleural effusion")
    stored = read(record)
    expected = np.zeros((480, 640), bool)
    expected[300:360, 400:480] = True
    expected[320:480, 500:640] = True
    np.testing.assert_array_equal(stored.truth.values, expected)
    small = read(record, [Cover((240, 240)), Crop((240, 240))])
    np.testing.assert_array_equal(small.truth.values, expected[1::2, 81:560:2])  # nearest to the center: the later
    assert 0 < small.share < 1 and small.truth.label == "Pleural Effusion"
    assert small.boxes == ((160, 150, 40, 30), (210, 160, 30, 80))


def test_the_words_of_a_finding_are_found_in_its_phrase(ms_cxr, mimic):
    found = {(record.label, record.prompt[:20]): record for record in build_ms_cxr(ms_cxr, mimic)}
    assert found["Pleural Effusion", "bilateral effusions"].words == ("effusions",)
    assert found["Pleural Effusion", "Small left pleural e"].words == ("pleural", "effusion")
    assert found["Pneumothorax", "apical lucency"].words == ()
    long = found["Edema", "pulmonary edema pulm"]
    assert long.words[0] == "edema#1" and len(long.words) == 41
    assert all(tokenized(record.prompt).find(word) for record in found.values() for word in record.words)


def test_a_box_outside_of_the_crop_is_excluded_and_a_thin_one_is_not(ms_cxr, mimic):
    found = {record.label: record for record in build_ms_cxr(ms_cxr, mimic)}
    with pytest.raises(Excluded, match="outside of the frame"):
        read(found["Edema"], [Cover((64, 64)), Crop((64, 64))])
    assert read(found["Pneumothorax"]).truth.values.sum() == 90


def test_patients_are_the_subjects_and_ids_are_numbers(ms_cxr, mimic):
    found = build_ms_cxr(ms_cxr, mimic)
    assert {record.patient for record in found} == {"10000001", "19000003"}
    assert found.records[0].id == "ms-cxr-0000" and not any("invented" in record.id for record in found)
    assert subjects(ms_cxr) == {"10000001", "19000003"}


@pytest.mark.parametrize("root", ["files", "."])
def test_the_films_are_found_with_and_without_the_leading_folder(ms_cxr, mimic, root):
    assert len(build_ms_cxr(ms_cxr, mimic / root)) == 5


def changed(tmp_path, **fields):
    """The annotations with some fields of the second row changed, as CSV."""
    rows = ms_cxr_rows()
    rows[1] |= {name: str(value) for name, value in fields.items()}
    write_csv(tmp_path / "changed.csv", [*COLUMNS, "split"], rows)
    return tmp_path / "changed.csv"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"category_name": "Nodule"}, "changed.csv, line 3: unknown finding 'Nodule'; MS-CXR has Atelectasis"),
        ({"image_width": 641}, r"line 3: size \(641, 480\), but changed.csv, line 2 has \(640, 480\)"),
        ({"split": "test"}, "line 3: split 'test', but"),
        ({"x": "left"}, "line 3, x: 'left' is no number"),
    ],
)
def test_rows_that_contradict_are_refused_with_their_line(tmp_path, mimic, fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        build_ms_cxr(changed(tmp_path, **fields), mimic)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"w": 141}, "a box leaves the image"),
        ({"h": 0}, "a box has no area"),
        ({"label_text": " "}, "the phrase is empty"),
    ],
)
def test_a_group_that_cannot_be_scored_is_counted(tmp_path, mimic, fields, reason):
    assert build_ms_cxr(changed(tmp_path, **fields), mimic).left_out[reason] == 1


def test_a_film_of_another_size_than_annotated_is_refused_when_it_is_read(tmp_path, mimic):
    rows = [{**row, "image_width": "1000"} for row in ms_cxr_rows() if row["dicom_id"] == dicom("f")]
    (tmp_path / "wide.json").write_text(json.dumps(as_json(rows, with_split=True)))
    (record,) = build_ms_cxr(tmp_path / "wide.json", mimic)
    with pytest.raises(ValueError, match="an image of 1000 x 320 .x first., but the file holds 320 x 320"):
        read(record)


def test_a_wrong_folder_is_an_error_and_not_an_empty_set(ms_cxr, tmp_path):
    picture(tmp_path / "other.jpg", 8, 8)
    with pytest.raises(FileNotFoundError, match="none of 6 images is on the disk"):
        build_ms_cxr(ms_cxr, tmp_path)
    with pytest.raises(ValueError, match="expected 'phrase' or 'finding'"):
        build_ms_cxr(ms_cxr, tmp_path, group="image")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="has no images, annotations, categories"):
        build_ms_cxr(tmp_path / "a.json", tmp_path)


@pytest.mark.parametrize(
    ("name", "at", "changes", "complaint"),
    [
        ("annotations", 1, {"bbox": None}, "annotations 2 has no bbox that is list"),
        ("annotations", 1, {"bbox": [1, 2, 3]}, "annotations 2: bbox has 3 numbers; expected 4"),
        ("annotations", 1, {"bbox": [1, 2, 3, None]}, "annotations 2, bbox: 'None' is no number"),
        ("annotations", 1, {"label_text": None}, "annotations 2 has no label_text that is str"),
        ("annotations", 1, {"image_id": 99}, "annotations 2 points to an image or category"),
        ("images", 0, {"path": None}, "images 1 has no path that is str"),
        ("images", 0, {"width": None}, "images 1 has no width that is"),
        ("images", 0, {"width": 640.5}, "annotations 1, width: '640.5' is no whole number"),
        ("images", 1, {"id": 0}, "images 2 has the id of .*json, images 1; keep the one"),
        ("categories", 0, {"name": None}, "categories 1 has no name that is str"),
    ],
)
def test_a_malformed_json_is_refused_with_file_and_entry(tmp_path, mimic, name, at, changes, complaint):
    document = as_json(ms_cxr_rows(), with_split=True)
    document[name][at] |= changes
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"a\.json, {complaint}"):
        build_ms_cxr(tmp_path / "a.json", mimic)


def test_what_is_no_json_is_named(tmp_path, mimic):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json is no JSON"):
        build_ms_cxr(tmp_path / "a.json", mimic)
