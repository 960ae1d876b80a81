from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from voxplain.datasets.phantom.cases import Case, draw
from voxplain.datasets.phantom.findings import Plan
from voxplain.datasets.phantom.registration import register
from voxplain.datasets.phantom.segmenter import SMALLEST_ML, Found, findings, segment
from voxplain.datasets.phantom.shapes import standing_out

SEED = 900  # dev cases that no threshold was chosen on
PLANS = {
    "consolidation": Plan("consolidation", "right", "right upper lobe", "moderate"),
    "ground_glass": Plan("ground_glass", "left", "left lower lobe", "moderate"),
    "nodule": Plan("nodule", "left", "left upper lobe", "large"),
    "effusion": Plan("effusion", "right", None, "moderate"),
    "pneumothorax": Plan("pneumothorax", "left", None, "moderate"),
    "cardiomegaly": Plan("cardiomegaly", None, None, "large"),
    "atelectasis": Plan("atelectasis", "right", "right upper lobe", "moderate"),
    "emphysema": Plan("emphysema", "bilateral", None, "large"),
    "pericardial_effusion": Plan("pericardial_effusion", None, None, "large"),
    "fibrosis": Plan("fibrosis", "bilateral", None, "moderate"),
}


@cache
def read(*plans: Plan, index: int = SEED) -> tuple[Case, list[Found]]:
    case = draw(index, "dev", plans)
    return case, findings(case.image[0])


def test_every_kind_that_the_phantoms_have_is_read():
    assert set(PLANS) == set(SMALLEST_ML)


@pytest.mark.parametrize("kind", PLANS)
def test_each_finding_is_seen_alone_in_its_place_and_on_its_voxels(kind):
    plan = PLANS[kind]
    case, found = read(plan)
    assert [f.kind for f in found] == [kind]
    (only,), (truth,) = found, case.findings
    assert only.lobe == plan.lobe
    assert plan.side is None or only.side == plan.side
    common = (only.mask & truth.mask).sum()
    assert common / truth.mask.sum() > 0.4
    assert common / only.mask.sum() > (0.25 if kind in ("fibrosis", "pericardial_effusion") else 0.5)
    assert only.volume_ml == pytest.approx(only.mask.sum() * 0.125)


def test_a_chest_without_findings_is_read_as_one():
    for index in (SEED, SEED + 1, SEED + 2):
        assert [f.kind for f in read(index=index)[1]] == []


@pytest.mark.parametrize("kind", [None, "ground_glass", "nodule", "pericardial_effusion", "fibrosis"])
def test_a_smoothed_chest_is_read_like_the_sharp_one(kind):
    case, found = read(*([] if kind is None else [PLANS[kind]]))
    smooth = findings(ndimage.gaussian_filter(case.image[0], 0.5))
    assert [(f.kind, f.side, f.lobe) for f in smooth] == [(f.kind, f.side, f.lobe) for f in found]


def test_a_ball_stands_out_and_a_rod_does_not():
    volume = np.zeros((15, 15, 15), np.float32)
    volume[7, 7, 7] = 100
    assert standing_out(volume)[7, 7, 7] == 100
    volume[7, 7, :] = 100
    assert standing_out(volume)[7, 7, 7] == 0


def test_fluid_on_both_sides_is_one_bilateral_finding():
    _, found = read(Plan("effusion", "bilateral", None, "moderate"))
    assert [(f.kind, f.side) for f in found] == [("effusion", "bilateral")]


def test_two_nodules_are_counted():
    case, found = read(Plan("nodule", "right", "right lower lobe", "small", 2), index=SEED + 4)
    assert case.findings[0].count == 2
    assert sum(f.count for f in found if f.kind == "nodule") == 2


def test_a_chest_turned_left_to_right_has_its_finding_on_the_other_side():
    case, found = read(PLANS["effusion"])
    mirrored = findings(np.ascontiguousarray(case.image[0][:, :, ::-1]))
    assert [f.side for f in found if f.kind == "effusion"] == ["right"]
    assert [f.side for f in mirrored if f.kind == "effusion"] == ["left"]


def test_masks_by_kind_hold_what_the_findings_hold():
    case, found = read(PLANS["effusion"], PLANS["nodule"])
    masks = segment(case.image[0])
    assert set(masks) == {f.kind for f in found} == {"effusion", "nodule"}
    assert all(masks[f.kind][f.mask].all() for f in found)


def test_the_anatomy_is_found_where_it_was_drawn():
    case, _ = read(PLANS["effusion"])
    anatomy = register(case.image[0])
    expected = {"left lung": anatomy.side("left"), "right lung": anatomy.side("right"), "heart": anatomy.heart}
    for name, mask in expected.items():
        drawn = case.organs[name]
        assert 2 * (mask & drawn).sum() / (mask.sum() + drawn.sum()) > 0.85, name


def test_wrong_input_is_refused():
    with pytest.raises((ValueError, TypeError)):
        findings(np.zeros((4, 4), np.float32))
    with pytest.raises(ValueError, match="finite HU"):
        findings(np.full((64, 64, 64), np.nan, np.float32))


def test_a_volume_without_a_chest_has_no_findings():
    assert [f.kind for f in findings(np.full((64, 64, 64), -1000, np.float32))] == []
