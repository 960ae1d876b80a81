"""What a classifier says of generated images: one score an image and finding, from any environment."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from voxplain.metrics.base import Undefined, finite
from voxplain.metrics.localization import auc_roc

TORCHXRAYVISION: Mapping[str, str] = {"Pleural Effusion": "Effusion"}
"""Our finding -> the output of TorchXRayVision's networks, where the two names differ."""


def finding_auc(
    scores: Float[np.ndarray, "cases outputs"],
    outputs: Sequence[str],
    labels: Sequence[str],
    finding: str,
    *,
    healthy: str = "No Finding",
    names: Mapping[str, str] = TORCHXRAYVISION,
) -> float:
    """AUC of the finding's output: images whose label is that finding alone against images labeled `healthy`.

    0 to 1, higher is better, 0.5 is chance. `outputs` names the columns of `scores`, `labels` says what each image was
    generated for; images of other labels ("Edema|Pneumonia") do not count. `names` maps a finding to its output where
    they differ. Give real images the same way for the row to read it against (Dombrowski et al., AAAI 2024, table 5).
    Undefined where one of the two groups has no image; an unknown name is an error.
    """
    if scores.shape != (len(labels), len(outputs)):
        raise ValueError(f"{len(labels)} labels and {len(outputs)} outputs, but scores of shape {scores.shape}")
    output = names.get(finding, finding)
    if output not in outputs:
        raise ValueError(
            f"the classifier has no output {output!r} for {finding!r}; it has {', '.join(outputs)}: say which of them "
            "it is by `names` (--as LABEL=OUTPUT)"
        )
    positive, negative = (np.array([label == name for label in labels], bool) for name in (finding, healthy))
    for name, group in ((finding, positive), (healthy, negative)):
        if not group.any():
            raise Undefined(f"no image is labeled {name!r} alone")
    counted = positive | negative
    found = scores[counted, list(outputs).index(output)]
    finite(found, f"the scores of {output!r}", "find the image that caused it and score it again, or leave it out")
    return auc_roc(found, positive[counted])
