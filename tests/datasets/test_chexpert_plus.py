"""CheXpert Plus on a synthetic copy: sections, CheXbert's labels, views, and what is left out."""

import json
import shutil

import pytest
from invented import LABELS, picture, write_csv

from voxplain.datasets.chexpert_plus import TABLE, build_chexpert_plus
from voxplain.datasets.reading import read

ROWS = [  # path, view, split, impression, findings, labels
    ("train/patient90001/study1/view1_frontal.jpg", "AP", "train", "Mild edema.", "", {"Edema": 1.0}),
    ("train/patient90001/study1/view2_lateral.jpg", "", "train", "Mild edema.", "", {"Edema": 1.0}),
    ("train/patient90002/study1/view1_frontal.jpg", "PA", "train", "", "Clear lungs.", {"No Finding": 1.0}),
    ("valid/patient90003/study1/view1_frontal.jpg", "PA", "valid", "Opacity.", "x", {"Lung Opacity": -1.0}),
    ("valid/patient90004/study1/view1_frontal.jpg", "PA", "valid", "Not on disk.", "", {"Fracture": 0.0}),
    ("valid/patient90005/study1/view1_frontal.jpg", "PA", "valid", "No labels.", "", None),
]
COLUMNS = ["path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "split", "section_impression"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    root = tmp_path_factory.mktemp("chexpert")
    table, labels = [], []
    for path, view, split, impression, findings, found in ROWS:
        table.append(
            {
                "path_to_image": path,
                "frontal_lateral": "Frontal" if view else "Lateral",
                "ap_pa": view,
                "deid_patient_id": path.split("/")[1],
                "split": split,
                "section_impression": impression,
                "section_findings": findings,
            }
        )
        if found is not None:
            labels.append(json.dumps({"path_to_image": path, **{name: found.get(name) for name in LABELS}}))
        if "90004" not in path:
            picture(root / "PNG" / path.replace(".jpg", ".png"), 32, 24)
    write_csv(root / TABLE, [*COLUMNS, "section_findings"], table)
    (root / "chexbert_labels").mkdir()
    (root / "chexbert_labels/impression_fixed.json").write_text("\n".join(labels) + "\n")
    return root


def test_impressions_labels_and_reasons(copy):
    found = build_chexpert_plus(copy, uncertain="unknown")
    assert [(record.prompt, record.patient, record.split) for record in found] == [
        ("Mild edema.", "patient90001", "train"),
        ("Opacity.", "patient90003", "valid"),
    ]
    assert [record.labels for record in found] == [{"Edema": True}, {}]
    assert found.left_out == {
        "another view": 1,
        "the image has no labels": 1,
        "the image is not on the disk": 1,
        "the report has no impression": 1,
    }
    assert len(found) + sum(found.left_out.values()) == len(ROWS)
    assert found.credentialed and read(found.records[0]).sample.image.shape == (1, 24, 32)


def test_other_texts_views_and_splits(copy):
    findings = build_chexpert_plus(copy, uncertain="unknown", text="findings", views=["PA", "LATERAL"])
    assert {record.prompt for record in findings} == {"Clear lungs.", "x"}
    names = build_chexpert_plus(copy, uncertain="positive", text="labels", splits=["valid"])
    assert [record.prompt for record in names] == ["Lung Opacity"] and names.left_out["another split"] == 3
    assert build_chexpert_plus(copy, uncertain="exclude").left_out["a label is uncertain"] == 1


def test_missing_labels_are_named(copy):
    with pytest.raises(FileNotFoundError, match="no report_fixed.json.*unzip"):
        build_chexpert_plus(copy, uncertain="unknown", labels_of="report")
    with pytest.raises(ValueError, match="say what -1 becomes"):
        build_chexpert_plus(copy, uncertain="skip")


def copied(copy, folder, change=str, entry=None):
    """A copy whose table is changed, with an entry more among the labels."""
    place = shutil.copytree(copy, folder / "copy")
    path, labels = place / TABLE, place / "chexbert_labels/impression_fixed.json"
    path.write_text(change(path.read_text()))
    if entry is not None:
        labels.write_text(f"{labels.read_text()}{entry}\n")
    return place


def test_a_film_that_is_listed_twice_is_refused_with_both_lines(copy, tmp_path):
    doubled = copied(copy, tmp_path / "a", lambda text: text + text.splitlines()[1] + "\n")
    with pytest.raises(ValueError, match="line 8 has the path_to_image of .*, line 2; keep"):
        build_chexpert_plus(doubled, uncertain="unknown")
    entry = json.dumps({"path_to_image": ROWS[0][0], **dict.fromkeys(LABELS)})
    with pytest.raises(ValueError, match=r"impression_fixed\.json, line 6 has the path_to_image of .*, line 1; keep"):
        build_chexpert_plus(copied(copy, tmp_path / "b", entry=entry), uncertain="unknown")


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{", "line 6 is no JSON"),
        ("3", "line 6 has no path_to_image"),
        ({"path_to_image": "x"}, "line 6 has no Atelectasis"),
        ({"path_to_image": "x", **dict.fromkeys(LABELS, 2)}, "line 6: label 'Atelectasis' is 2; expected the number 1"),
        ({"path_to_image": "x", **dict.fromkeys(LABELS, "1.0")}, "line 6: label 'Atelectasis' is '1.0'; expected"),
    ],
)
def test_malformed_labels_are_refused_with_their_line(copy, tmp_path, entry, complaint):
    text = entry if isinstance(entry, str) else json.dumps(entry)
    with pytest.raises(ValueError, match=rf"impression_fixed\.json, {complaint}"):
        build_chexpert_plus(copied(copy, tmp_path, entry=text), uncertain="unknown")


def test_unknown_views_and_splits_are_refused(copy):
    with pytest.raises(ValueError, match="view LATTERAL: there are AP, LATERAL, PA"):
        build_chexpert_plus(copy, uncertain="unknown", views=["PA", "LATTERAL"])
    with pytest.raises(ValueError, match="split test: there are train, valid"):
        build_chexpert_plus(copy, uncertain="unknown", splits=["test"])
