"""MONAI bundles of the user: a folder of configuration and weights, read as data."""

from voxplain.models.bundle.config import BundleError
from voxplain.models.bundle.opening import FACTS, load

__all__ = ["FACTS", "BundleError", "load"]
