"""A given image on the grid of a model, and whether the model can read it."""

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float

from voxplain.adapters.base import Adapter
from voxplain.datasets.frames import Resize, Step, frame_of, grid_like
from voxplain.geometry import Geometry
from voxplain.maps import Sample


def fitted(sample: Sample, geometry: Geometry) -> Sample:
    """The sample on a model's grid: shape, spacing and axes of `geometry`, around the sample's own center (`way_to`).

    Resampled as `datasets.frames.Frame.image` does it: what lies outside the sample gets its lowest value (air, in a
    CT).
    """
    frame = frame_of(sample.geometry, way_to(sample.geometry, geometry))
    return replace(sample, image=frame.image(sample.image), geometry=frame.target) if frame.steps else sample


def way_to(own: Geometry, geometry: Geometry) -> tuple[Step, ...]:
    """The step that brings a volume to a model's grid; none where it lies there.

    Where nobody knows the spacing of one of the two, an image of the model's shape is taken as it is, one that shows
    just the model's field of view is resized, and any other is refused (ValueError).
    """
    if own.ndim != geometry.ndim:
        kind = "pictures" if own.ndim == 2 else "volumes"
        raise ValueError(
            f"the image has {own.ndim} axes {own.shape}, but the model makes {geometry.shape}; choose a model of {kind}"
        )
    if own.same_as(geometry):
        return ()
    if own.at(geometry.shape).same_as(geometry):
        return (Resize(geometry.shape),)
    unknown = [name for name, one in (("image", own), ("model", geometry)) if not one.spacing_known]
    if not unknown:
        return (grid_like(geometry),)
    if own.shape == geometry.shape and np.allclose(_axes(own), _axes(geometry), atol=1e-3):
        return ()
    raise ValueError(
        f"the spacing of the {' and the '.join(unknown)} is not known, so the image {own.shape} cannot be brought to "
        f"the model's {geometry.shape} by millimeters; set it in the image's header, or bring the image to that shape"
    )


def check_channels(adapter: Adapter, image: Float[np.ndarray, "channels *spatial"], name: str = "the image") -> None:
    """Raise ValueError where an image has another number of channels than those that the model makes."""
    autoencoder = getattr(getattr(adapter, "pipe", None), "vae", None)
    if autoencoder is not None:
        reads = autoencoder.config["in_channels"]
    elif len(image) == 1:  # as most models read; asking takes a decoding
        return
    else:
        device = getattr(getattr(adapter, "pipeline", adapter), "device", None)
        with torch.no_grad():
            reads = adapter.decode(torch.zeros(1, *adapter.latent_shape, device=device)).shape[1]
    if len(image) != reads:
        what = "one of them" if reads == 1 else f"an image of {reads}"
        raise ValueError(f"{name} holds {len(image)} channels, and {adapter.name} reads {reads}; give {what}")


def _axes(geometry: Geometry) -> Float[np.ndarray, "axes axes"]:
    """The direction of each axis in the world, as columns of length one."""
    return geometry.affine[:-1, :-1] / geometry.spacing
