import math

import numpy as np
import pytest

from voxplain.geometry import regular
from voxplain.maps import Heatmap, Mask
from voxplain.metrics import Undefined, mixture_mask
from voxplain.scoring import (
    CHANCE,
    LOWER,
    MASK_METRICS,
    METRICS,
    NEITHER,
    Score,
    Scores,
    overall,
    score,
    summarize,
    values,
)

GEOMETRY = regular((4, 4, 4), (5.0, 5.0, 5.0))


def mask(label: str, *cells: int) -> Mask:
    values = np.zeros(64, bool)
    values[list(cells)] = True
    return Mask(label, values.reshape(4, 4, 4), GEOMETRY)


def heatmap(label: str, seed: int = 0, hot: tuple[int, ...] = ()) -> Heatmap:
    values = np.random.default_rng(seed).random(64)
    values[list(hot)] += 2
    return Heatmap(label, values.reshape(4, 4, 4), GEOMETRY)


CASES = [
    ("a", heatmap("effusion", 0, (1, 2)), mask("effusion", 1, 2), mask("left lung", *range(32))),
    ("b", heatmap("effusion", 1), mask("effusion", 5, 6, 7), None),
    ("c", heatmap("effusion", 2), mask("effusion"), mask("left lung", *range(32))),
    ("a", heatmap("nodule", 3, (40, 41)), mask("nodule", 40, 41), mask("right lung", *range(32, 64))),
]


def test_there_is_one_row_per_case_and_metric_in_order():
    scores = score(CASES, ["auc_roc", "pointing_game"])
    assert [(row.case, row.word, row.metric) for row in scores.rows[:3]] == [
        ("a", "effusion", "auc_roc"),
        ("a", "effusion", "pointing_game"),
        ("b", "effusion", "auc_roc"),
    ]
    assert len(scores.rows) == 8
    assert scores.rows[0].value == scores.rows[1].value == 1.0


def test_undefined_cases_are_counted_by_reason_and_left_out_of_the_mean():
    found = {(s.word, s.metric): s for s in summarize(score(CASES, ["auc_roc", "auc_roc_inside"]))}
    assert found["effusion", "auc_roc"].interval.n == 2
    assert found["effusion", "auc_roc"].undefined == {"the truth is empty": 1}
    assert found["effusion", "auc_roc_inside"].undefined == {"the case names no region": 1, "the truth is empty": 1}
    assert found["effusion", "auc_roc_inside"].interval.mean == 1.0
    assert found["nodule", "auc_roc"].undefined == {}


def test_a_word_without_any_value_keeps_its_row():
    (only,) = summarize(score([CASES[2]], ["cnr"]))
    assert only.interval is None
    assert only.to_dict() == {
        "word": "effusion", "metric": "cnr", "n": 0, "mean": None, "low": None, "high": None,
        "note": "no case has a value", "undefined": {"the truth is empty": 1},
    }  # fmt: skip


def test_both_ways_to_average_are_given():
    rare = {"value": lambda scores, truth, region: float(truth.sum())}
    cases = [CASES[0], CASES[0], CASES[1], CASES[1], ("d", heatmap("nodule"), mask("nodule", 3), None)]
    plain, weighted = overall(score(cases, rare))
    assert (plain.word, weighted.word) == ("mean over words", "all rows")
    assert plain.interval.mean == pytest.approx((2.5 + 1) / 2)
    assert weighted.interval.mean == pytest.approx(11 / 5)
    assert plain.interval.n == weighted.interval.n == 5


def test_every_named_metric_gives_a_number_or_a_reason():
    names = [*METRICS, *MASK_METRICS]
    rows = score(CASES, names).rows
    assert len(rows) == len(CASES) * len(names)
    assert {*CHANCE, *LOWER, *NEITHER} <= set(names)
    assert all(math.isfinite(row.value) != bool(row.reason) for row in rows)


def test_the_named_metrics_are_the_documented_ones():
    perfect = Heatmap("effusion", CASES[0][2].values.astype(float), GEOMETRY)
    found = values(perfect, CASES[0][2], None, [*METRICS, *MASK_METRICS])
    for name in ("auc_roc", "average_precision", "oracle_iou", "mean_iou", "daam_iou_0.3", "daam_iou_0.5"):
        assert found[name] == 1
    assert found["coverage"] == found["intensity"] == found["chance_level"] == 2 / 64
    assert found["auc_roc_inside"] == "the case names no region"


def test_the_mixture_is_fitted_on_the_maps_own_grid():
    coarse = Heatmap("effusion", np.arange(8.0).reshape(2, 2, 2) ** 3, GEOMETRY.at((2, 2, 2)))
    mask = mixture_mask(coarse.values).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    truth = Mask("effusion", mask, GEOMETRY)
    found = values(coarse, truth, None, list(MASK_METRICS))
    assert found == {
        "mixture_iou": 1, "mixture_dice": 1, "foreground_background_iou": 1, "box_iou": 1, "center_distance": 0,
    }  # fmt: skip
    elsewhere = Mask("effusion", np.roll(mask, 1, 2), GEOMETRY)
    assert values(coarse, elsewhere, None, ["mixture_iou"])["mixture_iou"] < 1


def test_whole_patients_are_drawn_where_they_are_named():
    cases = [(str(number), heatmap("effusion", number), mask("effusion", 1, 2), None) for number in range(6)]
    scores = score(cases, ["auc_roc"])
    same = {str(number): "one" for number in range(5)}
    (alone,), (together,) = summarize(scores), summarize(scores, clusters=same)
    assert alone.interval.mean == together.interval.mean and alone.interval.n == together.interval.n == 6
    assert "2 clusters drawn whole" in together.interval.note and not alone.interval.note
    assert all("2 clusters drawn whole" in one.interval.note for one in overall(scores, clusters=same))


def test_a_coarse_heatmap_is_brought_to_the_truth_first():
    coarse = heatmap("effusion").resize(GEOMETRY.at((2, 2, 2)))
    (row,) = score([("a", coarse, CASES[1][2], None)], ["auc_roc"]).rows
    assert 0 <= row.value <= 1


def test_wrong_use_is_an_error_and_no_row():
    with pytest.raises(ValueError, match="unknown metric 'auc'; known: auc_roc"):
        score(CASES, ["auc"])
    elsewhere = Mask("left lung", np.ones((2, 2, 2), bool), GEOMETRY.at((2, 2, 2)))
    with pytest.raises(ValueError, match="differ in geometry"):
        score([(*CASES[0][:3], elsewhere)], ["auc_roc"])

    shifted = Heatmap("effusion", np.ones((4, 4, 4)), regular((4, 4, 4), 5.0, (0, 0, 5)))
    with pytest.raises(ValueError, match="case 'a': map .* do not cover the same field of view"):
        score([("a", shifted, CASES[0][2], None)], ["auc_roc"])

    def broken(scores, truth, region):
        raise ValueError("not this way")

    with pytest.raises(ValueError, match="not this way") as error:
        score(CASES, {"broken": broken})
    assert not isinstance(error.value, Undefined)


def test_scores_have_a_mean_for_each_metric():
    scores = Scores(
        (Score("a", "w", "auc", 0.5), Score("b", "w", "auc", 1.0), Score("a", "w", "cnr", 2.0, 3, 1.0, 4.0))
    )
    assert scores.mean() == {"auc": 0.75, "cnr": 2.0}
    row = scores.to_dicts()[2]
    assert [row[name] for name in ("case", "word", "metric", "value", "n", "low", "high")] == [
        "a",
        "w",
        "cnr",
        2,
        3,
        1,
        4,
    ]


def test_a_row_without_a_value_is_no_zero_in_the_mean():
    none = Score("b", "w", "auc", float("nan"), 0)
    assert Scores((Score("a", "w", "auc", 0.5), none)).mean() == {"auc": 0.5}
    assert Scores((none,)).mean() == {}
