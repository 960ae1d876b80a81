"""From heatmaps to masks: a share of the values, a share of the maximum, several words at once.

A mask of attention is no segmentation. Threshold on the attention grid and enlarge the mask afterwards.
"""

import math

import voxplain
from voxplain import masks
from voxplain.adapters.toy import ToyAdapter

model = ToyAdapter()
with voxplain.trace(model) as tracer:
    sample = model.generate("effusion with nodule", seed=0)
attribution = tracer.attribution()
effusion, nodule = attribution.word("effusion"), attribution.word("nodule")

quarter = masks.top_fraction(effusion, 0.25)  # the top quarter of the nonzero values
print("top quarter:", int(quarter.values.sum()), "of", quarter.values.size, "cells")

peak = masks.relative_threshold(effusion, 0.4)  # at least 0.4 times the maximum
assert (peak.values == model.box("effusion")).all()

both = masks.joint([effusion, nodule], fraction=0.05)  # mean over only those words that are active at the cell
assert not both.values[~(model.box("effusion") | model.box("nodule"))].any()

voxels = peak.resize(sample.geometry)  # nearest cell
volume = voxels.values.sum() * math.prod(voxels.geometry.spacing) / 1000
print(f"{voxels.label}: {volume:.0f} ml of voxels")
