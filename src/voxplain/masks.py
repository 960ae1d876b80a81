"""From a heatmap to a yes or no at every cell. A mask of attention is no segmentation."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from voxplain.arrays import active_mean, top_level
from voxplain.maps import Heatmap, Mask


def top_fraction(heatmap: Heatmap, fraction: float = 0.25) -> Mask:
    """Keep the top fraction of the positive values (Bradshaw et al., MIDL 2025, section 2.2: 0.25 = 75th percentile).

    Apply it to a heatmap on its native grid and resize the mask: enlarged maps hold ties. Cells that tie with the last
    kept value are kept too (>=), so a constant map is kept whole. Without a positive value the mask is empty.
    """
    return Mask(heatmap.label, heatmap.values >= top_level(heatmap.values, fraction), heatmap.geometry)


def relative_threshold(heatmap: Heatmap, tau: float = 0.4) -> Mask:
    """Keep values of at least `tau` (0 to 1) times the maximum (Tang et al., ACL 2023, DAAM equation 8).

    Without a positive value the mask is empty. Ours keeps DAAM's published rule, without its code's second bicubic
    enlargement and min-max.
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"tau {tau}: expected 0 to 1")
    peak = heatmap.values.max()
    return Mask(heatmap.label, (heatmap.values >= tau * peak) & (peak > 0), heatmap.geometry)


def joint(heatmaps: Sequence[Heatmap], fraction: float = 0.25) -> Heatmap:
    """One map of several words: at each cell the mean over only those that are active there (Bradshaw et al., 2025).

    A word is active in its own `top_fraction`. Cells where none is active are 0. All maps share one geometry.
    """
    if not heatmaps:
        raise ValueError("joint needs at least one heatmap")
    first = heatmaps[0]
    for other in heatmaps[1:]:
        if not first.geometry.same_as(other.geometry):
            raise ValueError(f"{first.label!r} and {other.label!r} lie on different grids; resize one to the other")
    values = active_mean(np.stack([heatmap.values for heatmap in heatmaps]), fraction)
    return Heatmap(" + ".join(heatmap.label for heatmap in heatmaps), values, first.geometry)


def largest_component(mask: Mask) -> Mask:
    """Keep the largest piece whose cells touch by their faces; of equal ones the first. An empty mask stays empty."""
    pieces, count = ndimage.label(mask.values)  # pyright: ignore[reportGeneralTypeIssues]
    if count == 0:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return Mask(mask.label, pieces == 1 + int(sizes.argmax()), mask.geometry)
