"""The small open sets, read where they lie: every one of them, and with left, right, rows and columns as they are."""

import os
from pathlib import Path

import numpy as np
import pytest
from invented import picture

from voxplain.datasets.base import Boxes
from voxplain.datasets.frames import Contain, Grid, Pad
from voxplain.datasets.reading import read
from voxplain.datasets.shapes import paint
from voxplain.datasets.shared import SETS, build_shared, shared_root, structures
from voxplain.datasets.tables import rows

SHARED = Path(os.environ.get("VOXPLAIN_SHARED", Path(__file__).parents[3] / "shared"))
here = pytest.mark.skipif(
    not (SHARED / "data" / "cxr").is_dir(),
    reason=f"{SHARED} holds no data/cxr; set VOXPLAIN_SHARED to the folder that does",
)
SIZES = {
    "cxr": 336,
    "cxr-lungs_auto": 91,
    "nih_cxr": 479,
    "nih_cxr64": 974,
    "ct": 6,
    "mednist64": 3299,
    "brain_mri": 172,
    "ct_reports": 751,
    "roco_captions": 5341,
    "text_corpus": 16680,
}


def named(name, *ids):
    found = {record.id: record for record in build_shared(name, SHARED)}
    return [found[one] for one in ids]


def center(mask):
    """The mean world point of a mask: x to the patient's left, y to posterior (in films: down), z to superior."""
    return mask.geometry.world(np.argwhere(mask.values).astype(float)).mean(0)


def test_where_the_sets_lie_has_to_be_said(monkeypatch, tmp_path):
    monkeypatch.setenv("VOXPLAIN_SHARED", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="set VOXPLAIN_SHARED to the folder that holds data/"):
        build_shared("cxr")
    (tmp_path / "data").mkdir()
    assert shared_root() == tmp_path
    with pytest.raises(ValueError, match="no shared set 'cxr-hearts'; there are cxr,"):
        build_shared("cxr-hearts")


def test_names_of_structures():
    assert structures("1=right lung 2=left lung") == {"right lung": 1, "left lung": 2}
    assert structures("2=kidney_right; 33=vertebrae_T11; 99=rib_left_8") == {
        "right kidney": 2,
        "vertebrae T11": 33,
        "left rib 8": 99,
    }


@here
@pytest.mark.parametrize("name", [name for name in SETS if "-" not in name])
def test_every_set_is_read_and_keeps_its_license(name):
    found = build_shared(name, SHARED)
    assert len(found) == SIZES[name]
    assert all(record.facts["license"] and record.prompt and record.split for record in found)
    left_out = {"ct_reports": {"the report has no impression": 249}, "ct": {"the row is no CT": 9}}
    assert found.left_out == left_out.get(name, {})
    if name != "ct" and found.records[0].image is not None:
        image = read(found.records[-1]).sample.image
        assert image.shape[0] == 1 and 0 <= image.min() < image.max() <= 1


@here
@pytest.mark.parametrize(
    ("name", "size", "left_out"),
    [
        ("cxr-lungs", 296, {"the film has no mask": 188}),
        ("cxr-lungs_auto", 91, {"the film has no mask": 245}),
        ("nih_cxr-boxes", 39, {"the film has no box": 444}),
        ("ct-structures", 63, {"the row is no mask": 6}),
    ],
)
def test_what_a_set_with_a_truth_leaves_out_is_counted(name, size, left_out):
    found = build_shared(name, SHARED)
    assert (len(found), found.left_out) == (size, left_out)


def test_boxes_of_a_film_that_is_not_there_are_counted(tmp_path):
    base = tmp_path / "data/nih_cxr"
    picture(base / "a.png", 8, 8)
    (base / "metadata.csv").write_text("id,image,finding\na,a.png,x\nb,b.png,x\n")
    (base / "boxes.csv").write_text("id,label,x,y,w,h\na,Mass,0,0,2,2\nb,Mass,0,0,2,2\nc,Mass,0,0,2,2\n")
    found = build_shared("nih_cxr-boxes", tmp_path)
    assert [record.id for record in found] == ["a-mass"]
    assert found.left_out == {"the film of the boxes is not there": 2, "the image is not on the disk": 1}


@here
def test_splits_share_no_patient():
    for name in ("cxr", "nih_cxr", "nih_cxr64", "mednist64"):
        patients: dict[str, set[str]] = {}
        for record in build_shared(name, SHARED):
            patients.setdefault(record.patient, set()).add(record.split)
        assert all(len(splits) == 1 for splits in patients.values())


@here
def test_the_left_lung_of_a_film_is_on_its_right_and_rows_are_rows():
    pairs: dict[str, dict[str, object]] = {}
    for record in build_shared("cxr-lungs", SHARED).records[:60]:
        pairs.setdefault(record.id.split("-")[0], {})[record.label] = record
    both = [pair for pair in pairs.values() if len(pair) == 2][:12]
    assert len(both) == 12
    contrast, turned = [], []
    for pair in both:
        left, right = read(pair["left lung"]), read(pair["right lung"])
        assert center(left.truth)[0] > center(right.truth)[0] + 50
        assert not (left.truth.values & right.truth.values).any()
        image, lungs = left.sample.image[0], left.truth.values | right.truth.values
        contrast.append(image[~lungs].mean() - image[lungs].mean())
        turned.append(image[~lungs.T].mean() - image[lungs.T].mean())
    assert np.mean(contrast) > np.mean(turned) + 0.02  # air is dark, where the mask says, and not where its mirror does


@here
def test_finding_boxes_lie_beside_the_midline_and_not_beside_the_middle_row():
    found = build_shared("nih_cxr-boxes", SHARED)
    assert sum(len(record.truth.boxes) for record in found) == 39 and len(found.where(label="pneumonia")) >= 30
    columns = [x <= 128 <= x + w for record in found for x, y, w, h in record.truth.boxes]
    middle = [y <= 128 <= y + h for record in found for x, y, w, h in record.truth.boxes]
    assert np.mean(columns) < 0.25 < 0.5 < np.mean(middle)
    framed = read(found.records[0], [Contain((96, 96)), Pad((96, 128))])
    (box,) = framed.boxes
    x, y, w, h = found.records[0].truth.boxes[0]
    factor = 96 / 256
    np.testing.assert_allclose(box, (x * factor + 16, y * factor, w * factor, h * factor), atol=1e-6)
    cells = np.argwhere(framed.truth.values)
    np.testing.assert_allclose(cells.min(0), (box[1], box[0]), atol=0.51)
    np.testing.assert_allclose(cells.max(0) + 1, (box[1] + box[3], box[0] + box[2]), atol=0.51)


@here
def test_lungs_of_a_ct_are_air_and_the_left_one_is_on_the_left():
    left, right = map(read, named("ct-structures", "cip_ct64-left-lung", "cip_ct64-right-lung"))
    for found in (left, right):
        assert found.sample.image[0][found.truth.values].mean() < -600 and found.sample.unit == "HU"
        assert (np.diag(found.sample.geometry.affine[:3, 2::-1]) > 0).all()  # columns left, rows back, slices up
    assert center(left.truth)[0] > center(right.truth)[0] + 80
    assert np.argwhere(left.truth.values)[:, 2].mean() > np.argwhere(right.truth.values)[:, 2].mean()
    (upper,) = map(read, named("ct-structures", "cip_ct64-left-upper-third"))
    assert center(upper.truth)[2] > center(left.truth)[2]
    small = read(left.record, [Grid((32, 32, 32), (10.0, 10.0, 10.0))])  # onto a model's own grid
    np.testing.assert_allclose(center(small.truth), center(left.truth), atol=4)
    assert small.sample.image[0][small.truth.values].mean() < -600 and small.share > 0.99


@here
def test_organs_lie_where_a_body_has_them():
    found = {
        name: center(read(record).truth)
        for name, record in zip(
            ("liver", "spleen", "left", "right", "lung", "cord"),
            named(
                "ct-structures",
                *(
                    f"totalseg_upper_abdomen-{name}"
                    for name in (
                        "liver",
                        "spleen",
                        "left-kidney",
                        "right-kidney",
                        "left-lung-lower-lobe",
                        "spinal-cord",
                    )
                ),
            ),
            strict=True,
        )
    }
    assert found["spleen"][0] > found["liver"][0] and found["left"][0] > found["right"][0]
    assert found["cord"][1] > found["liver"][1]  # posterior
    assert found["lung"][2] > found["left"][2]  # superior


@here
def test_tumor_boxes_as_numbers_and_as_voxels_are_the_same():
    (record,) = named("ct-structures", "lungdx_a0001-mass")
    boxes = []
    for _, row in rows(record.image.with_name("tumor_boxes.csv")):
        z, i0, i1, j0, j1 = (int(row[name]) for name in ("z", "i0", "i1", "j0", "j1"))
        boxes.append((i0, j0, z, i1 - i0 + 1, j1 - j0 + 1, 1))
    filled = read(record, ())
    np.testing.assert_array_equal(paint(Boxes(tuple(boxes)), filled.frame.source.shape), filled.truth.values)
    body = filled.sample.image[0] > -300
    middle = filled.sample.geometry.world(np.argwhere(body)[::97].astype(float)).mean(0)
    assert center(filled.truth)[0] > middle[0] + 20  # the text says: in the left lung
    assert record.words == ("mass",) and "left lung" in record.prompt
