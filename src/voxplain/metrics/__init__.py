"""Metrics: arrays in, a float out; no model, no data set, no picture."""

from voxplain.metrics.base import Undefined
from voxplain.metrics.controls import (
    abs_from_mean,
    center_prior,
    gradient_magnitude,
    mean_mask,
    random_half,
    region_lit,
)
from voxplain.metrics.localization import (
    auc_roc,
    chance_level,
    cnr,
    mass_inside,
    native_oracle,
    pointing_game,
    rank_correlation,
    top_overlap,
)
from voxplain.metrics.statistics import Interval, bootstrap, mean_of_groups, paired_gain, wilson

__all__ = [
    "Interval",
    "Undefined",
    "abs_from_mean",
    "auc_roc",
    "bootstrap",
    "center_prior",
    "chance_level",
    "cnr",
    "gradient_magnitude",
    "mass_inside",
    "mean_mask",
    "mean_of_groups",
    "native_oracle",
    "paired_gain",
    "pointing_game",
    "random_half",
    "rank_correlation",
    "region_lit",
    "top_overlap",
    "wilson",
]
