import itertools

import numpy as np
import pytest
from scipy import ndimage

from voxplain.datasets.phantom import cases
from voxplain.datasets.phantom.cases import BLOCK, SPLITS, draw, held_out, plan_case, plan_siblings, radiograph, seed_of
from voxplain.datasets.phantom.findings import CORE, KINDS, LOBAR, LOBES, SIDED, Plan


def plan(kind, severity="large"):
    lobe = "left lower lobe" if kind in LOBAR else None
    return Plan(kind, "left" if kind in SIDED else None, lobe, severity)


@pytest.fixture(scope="module")
def drawn():
    return {kind: draw(number, "dev", [plan(kind)]) for number, kind in enumerate(KINDS)}


def test_the_same_seed_draws_the_same_case_bit_by_bit():
    first, second = draw(3), draw(3)
    assert np.array_equal(first.image, second.image)
    assert all(np.array_equal(a.mask, b.mask) for a, b in zip(first.findings, second.findings, strict=True))


def test_the_seed_blocks_of_two_splits_never_overlap():
    ends = [(seed_of(0, split), seed_of(BLOCK - 1, split)) for split in SPLITS]
    assert all(a[1] < b[0] or b[1] < a[0] for a, b in itertools.combinations(ends, 2))
    with pytest.raises(ValueError, match=r"expected 0 to"):
        seed_of(BLOCK, "train")
    with pytest.raises(ValueError, match="dev"):
        seed_of(0, "validation")


def test_training_never_shows_a_held_out_pair_and_the_others_do():
    rng = np.random.default_rng(0)
    shown = [p for _ in range(2000) for p in plan_case(rng, allow_held_out=False)]
    assert shown
    assert not any(held_out(p) for p in shown)
    assert any(held_out(p) for _ in range(400) for p in plan_case(rng))


@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_is_drawn_where_the_plan_says(drawn, kind):
    case = drawn[kind]
    (finding,) = case.findings
    assert finding.mask.sum() >= 4
    if kind in LOBAR:
        outside = finding.mask & ~case.organs["left lower lobe"]
        assert outside.sum() <= (0.5 if kind == "nodule" else 0) * finding.mask.sum()
    elif kind in SIDED:
        assert not (finding.mask & ~case.organs["left lung"]).any()


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("consolidation", -30, 90),
        ("ground_glass", -700, -300),
        ("nodule", -250, 90),
        ("effusion", -20, 45),
        ("pneumothorax", -1024, -950),
        ("cardiomegaly", 20, 60),
        ("atelectasis", 10, 90),
        ("emphysema", -1000, -880),
        ("pericardial_effusion", -60, 30),
    ],
)
def test_a_finding_has_the_hounsfield_units_of_its_kind(drawn, kind, low, high):
    case = drawn[kind]
    values = case.image[0][case.findings[0].mask]
    assert low <= np.median(values) <= high


def test_lobes_cut_the_lungs_without_gap_or_overlap(drawn):
    organs = drawn["cardiomegaly"].organs
    assert np.array_equal(sum(organs[lobe].astype(int) for lobe in LOBES), organs["lungs"].astype(int))
    assert not (organs["left lung"] & organs["right lung"]).any()


def test_the_patients_left_lung_lies_at_growing_columns(drawn):
    organs = drawn["nodule"].organs
    assert np.argwhere(organs["left lung"])[:, 2].mean() > np.argwhere(organs["right lung"])[:, 2].mean()
    assert np.argwhere(organs["spine"])[:, 1].mean() > np.argwhere(organs["heart"])[:, 1].mean()  # posterior
    assert np.argwhere(organs["liver"])[:, 0].mean() < np.argwhere(organs["lungs"])[:, 0].mean()  # inferior


@pytest.mark.parametrize(("kind", "low"), [("effusion", True), ("pneumothorax", False)])
def test_fluid_runs_down_and_air_rises(kind, low):
    for position, axis, down in ((0, 1, 1), (90, 0, -1), (180, 1, -1)):  # supine: down is posterior, and so on
        case = draw(11, "dev", [plan(kind, "small")], position=position)
        mine, lung = (np.argwhere(m)[:, axis].mean() for m in (case.findings[0].mask, case.organs["left lung"]))
        assert bool(down * mine > down * lung) is low


def test_cardiomegaly_is_a_larger_heart():
    large = [draw(i, "dev", [plan("cardiomegaly")]).organs["heart"].sum() for i in range(4)]
    plain = [draw(i, "dev", []).organs["heart"].sum() for i in range(4)]
    assert min(large) > max(plain)


def test_about_half_of_the_cases_carry_a_distractor_that_is_in_no_finding():
    some = [draw(i, "dev") for i in range(40)]
    with_one = [case for case in some if case.distractor is not None]
    assert 10 <= len(with_one) <= 30
    assert not any((f.mask & case.distractor[1]).any() for case in with_one for f in case.findings)


def test_the_shifted_split_is_noisier():
    def noise(case):
        return np.std(case.image[0][:, 2])  # air in front of the body

    assert np.mean([noise(draw(i, "shift")) for i in range(4)]) > 1.5 * np.mean([noise(draw(i)) for i in range(4)])


def test_a_radiograph_is_the_projection_of_its_case():
    case = radiograph(5, "dev", [plan("consolidation")])
    assert case.image.shape == (1, *cases.RADIOGRAPH)
    assert case.geometry.shape == cases.RADIOGRAPH
    assert 0 <= case.image.min() < case.image.max() <= 1
    (finding,) = case.findings
    lung = case.organs["left lung"] & ~finding.mask & ~case.organs["heart"]
    assert case.image[0][finding.mask].mean() > case.image[0][lung].mean()
    liver, lungs = (np.argwhere(case.organs[name])[:, 0].mean() for name in ("liver", "lungs"))
    assert liver > lungs  # superior on top


def test_the_text_leaves_the_place_open():
    """The mean mask of other cases with the same text must not find a finding inside the region that the text names."""
    from voxplain.metrics.localization import auc_roc

    for kind in ("consolidation", "ground_glass", "nodule", "pneumothorax"):
        assert kind in CORE
        region = "left lower lobe" if kind in LOBAR else "left lung"
        others = [draw(i, "train", [plan(kind, "moderate" if kind != "nodule" else "small")]) for i in range(25)]
        prior = np.mean([c.findings[0].mask for c in others if c.findings], axis=0)
        mine = [draw(i, "dev", [plan(kind, "moderate" if kind != "nodule" else "small")]) for i in range(12)]
        scores = [
            auc_roc(prior.astype(np.float32), c.findings[0].mask, c.organs[region])
            for c in mine
            if c.findings and (c.findings[0].mask & c.organs[region]).any()
        ]
        assert np.mean(scores) <= 0.8


def test_alike_siblings_differ_in_one_finding_and_what_it_does_to_the_lung():
    kept, lobar = Plan("effusion", "left", None, "large"), Plan("nodule", "right", "right upper lobe", "large")
    without, more = (draw(3, "train", plans, alike=True) for plans in ([kept], [kept, lobar]))
    nodule = next(f.mask for f in more.findings if f.kind == "nodule")
    reach = ndimage.binary_dilation(nodule, iterations=5)
    assert np.array_equal(without.image[0][~reach], more.image[0][~reach])
    assert np.abs(without.image - more.image)[0][nodule].mean() > 100
    apart = draw(3, "train", [kept]), draw(3, "train", [kept, lobar])
    assert not np.array_equal(apart[0].image[0][~reach], apart[1].image[0][~reach])


def test_siblings_are_planned_as_none_one_elsewhere_and_another_and_never_held_out():
    for family in range(60):
        kept, here, there, instead = plan_siblings(np.random.default_rng(family))
        assert here[: len(kept)] == there[: len(kept)] == instead[: len(kept)] == kept
        assert here[-1].kind == there[-1].kind != instead[-1].kind
        assert here[-1] != there[-1]
        assert not any(held_out(plan) for plans in (here, there, instead) for plan in plans)
