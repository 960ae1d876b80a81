"""MedSyn's low-resolution text-to-CT network, written anew; weights are the user's own, under their own license."""

from voxplain.models.medsyn.channels import CHANNELS, ct, label_masks, volume_geometry
from voxplain.models.medsyn.checkpoint import LICENSE, CheckpointError, WeightsLicenseWarning, load_checkpoint
from voxplain.models.medsyn.network import UP_ORDERS, MedSynNetwork
from voxplain.models.medsyn.opening import load
from voxplain.models.medsyn.orders import OrderTest, fit_up_order
from voxplain.models.medsyn.pipeline import MedSyn
from voxplain.models.medsyn.text import TextEncoder, load_text_encoder

__all__ = [
    "CHANNELS",
    "LICENSE",
    "UP_ORDERS",
    "CheckpointError",
    "MedSyn",
    "MedSynNetwork",
    "OrderTest",
    "TextEncoder",
    "WeightsLicenseWarning",
    "ct",
    "fit_up_order",
    "label_masks",
    "load",
    "load_checkpoint",
    "load_text_encoder",
    "volume_geometry",
]
