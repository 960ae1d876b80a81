"""What all metrics share: masks are boolean, NaN is an error where it counts, and thresholds at the truth's cells."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxplain import metrics
from voxplain.metrics.base import at_each_hit, both

SCORES = np.arange(8, dtype=np.float32).reshape(2, 4)
TRUTH = np.array([[True, False, True, False], [False, True, True, False]])
REGION = np.array([[True, True, True, False], [True, True, True, True]])

CALLS = """
import numpy as np
from voxplain.metrics import *

scores = np.arange(8, dtype=np.float32).reshape(2, 4)
mask, region = scores > 2, scores >= 0
calls = {}
for metrics, given in (
    ((auc_roc, average_precision, pointing_game, mass_inside, oracle_iou, daam_iou), (scores, mask, region)),
    ((iou, dice, foreground_background_iou), (mask, mask, region)),
    ((box_iou, center_distance), (mask, mask)),
    ((tight_box, boxed, region_lit), (mask,)),
    ((chance_level,), (mask, region)),
    ((coverage, intensity), (scores, region)),
    ((abs_from_mean,), (scores, None, region)),
    ((rank_correlation,), (scores, scores, region)),
):
    for place, one in enumerate(given):
        if one is mask or one is region:
            wrong = [other.astype(np.uint8) if at == place else other for at, other in enumerate(given)]
            for metric in metrics:
                calls[metric.__name__, place] = lambda metric=metric, wrong=wrong: metric(*wrong)
ones = mask.astype(np.uint8)
calls["cnr"] = lambda: cnr(scores, ones)
calls["cnr, region"] = lambda: cnr(scores, mask, region=ones)
calls["mean_iou"] = lambda: mean_iou(scores, ones, scale="raw")
calls["top_overlap"] = lambda: top_overlap(scores, scores, region=ones)
calls["mean_mask"] = lambda: mean_mask([mask, ones])
calls["native_oracle"] = lambda: native_oracle(ones, (1, 2))
for name, call in calls.items():
    try:
        print(name, "gave", call())
    except TypeError as error:
        if "a mask is boolean, got uint8: compare it first, such as mask > 0" not in str(error):
            print(name, "said", error)
print(len(calls), "calls")
"""


def test_a_mask_of_zeros_and_ones_is_refused_by_every_metric_also_where_nobody_checks_annotations():
    done = subprocess.run([sys.executable, "-c", CALLS], capture_output=True, text=True, timeout=120)
    assert done.stdout == "40 calls\n", done.stdout + done.stderr


@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.float32])
def test_the_message_names_the_type_and_the_remedy(kind):
    for pair in ((TRUTH.astype(kind), TRUTH), (TRUTH, TRUTH.astype(kind))):
        with pytest.raises(TypeError, match=f"a mask is boolean, got {np.dtype(kind)}: compare it first"):
            both(*pair, None)


ELSEWHERE = {
    "auc_roc": lambda s: metrics.auc_roc(s, TRUTH, REGION),
    "average_precision": lambda s: metrics.average_precision(s, TRUTH, REGION),
    "pointing_game": lambda s: metrics.pointing_game(s, TRUTH, REGION),
    "mass_inside": lambda s: metrics.mass_inside(s, TRUTH, REGION),
    "oracle_iou": lambda s: metrics.oracle_iou(s, TRUTH, REGION),
    "cnr": lambda s: metrics.cnr(s, TRUTH, region=REGION),
    "mean_iou": lambda s: metrics.mean_iou(s, TRUTH, REGION, scale="minmax"),
    "intensity": lambda s: metrics.intensity(s, REGION),
    "rank_correlation": lambda s: metrics.rank_correlation(s, SCORES**2, REGION),
    "top_overlap": lambda s: metrics.top_overlap(s, -SCORES, region=REGION, fraction=0.5),
}
EVERYWHERE = {
    "daam_iou": lambda s: metrics.daam_iou(s, TRUTH, REGION),
    "coverage": lambda s: metrics.coverage(s, REGION),
}


def test_nan_outside_of_the_region_is_an_error_only_where_the_whole_map_counts():
    broken = np.where(REGION, SCORES, np.nan)
    for name, metric in ELSEWHERE.items():
        assert metric(broken) == metric(SCORES), name
    for metric in EVERYWHERE.values():
        with pytest.raises(ValueError, match="NaN"):
            metric(broken)
    for metric in (*ELSEWHERE.values(), *EVERYWHERE.values()):
        with pytest.raises(ValueError, match="NaN"):
            metric(np.full_like(SCORES, np.nan))


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([0, 1, 3]), share=st.sampled_from([0.05, 0.5, 0.95]))
def test_at_each_hit_cells_that_reach_its_score_are_counted_on_both_sides(seed, levels, share):
    rng = np.random.default_rng(seed)
    values = rng.integers(levels, size=50).astype(float) if levels else rng.random(50)
    inside = rng.random(50) < share
    inside[0] = True
    hits, misses = at_each_hit(values, inside)
    at = np.sort(values[inside])[:, None]
    np.testing.assert_array_equal(hits, (values[inside] >= at).sum(1))
    np.testing.assert_array_equal(misses, (values[~inside] >= at).sum(1))
