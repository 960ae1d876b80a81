"""Score a map against an exact mask: over the whole volume, and inside the region that the text names.

The second figure counts. Lighting up the whole region scores high over the volume and 0.5 inside the region.
"""

import numpy as np

from voxplain.datasets.phantom import cases
from voxplain.metrics import localization

drawn = (cases.draw(index, "dev") for index in range(50))
case, finding = next((case, finding) for case in drawn for finding in case.findings if finding.lobe)
region = case.organs[finding.lobe]
truth = finding.mask & region
print(f"{finding.kind} in the {finding.lobe}: {truth.sum()} of {region.sum()} voxels")

flat = region.astype(np.float32)  # "the finding is somewhere in the lobe": no more than the text says
print(f"region lit: {localization.auc_roc(flat, truth):.2f} over the volume", end=", ")
print(f"{localization.auc_roc(flat, truth, region):.2f} inside the lobe")
assert localization.auc_roc(flat, truth, region) == 0.5
assert localization.pointing_game(truth.astype(np.float32), truth) == 1.0
