"""From files on disk to a pipeline that is ready to generate."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch

from voxplain.models.medsyn.checkpoint import LICENSE, find_file, load_checkpoint
from voxplain.models.medsyn.network import UpOrder
from voxplain.models.medsyn.orders import fit_up_order
from voxplain.models.medsyn.pipeline import MedSyn
from voxplain.models.medsyn.text import find_weights, load_text_encoder

SLAB = 16  # slices of the volume that the order of the up levels is tested on


def load(
    checkpoint: str | Path,
    text_encoder: str | Path,
    *,
    up_order: UpOrder | None = None,
    ema: bool = True,
    shape: tuple[int, int, int] = (64, 64, 64),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MedSyn:
    """A pipeline from a checkpoint of the low-resolution network (see `load_checkpoint`) and a BERT folder.

    Without `up_order` the order that fits the weights is tested, two evaluations of a few slices; where that cannot
    tell, it is "up_last", that of the public inference script, with a warning. `dtype` is the network's; text features
    and the volume stay float32.
    """
    file, words = find_file(checkpoint, ema=ema), find_weights(text_encoder)
    network = load_checkpoint(file, up_order=up_order or "up_last", dtype=dtype).to(device)
    facts: dict[str, Any] = {"checkpoint": file.name, "license": LICENSE}
    if up_order is None:
        tested = fit_up_order(network, shape=(min(SLAB, shape[0]), *shape[1:]))
        facts["up_order_test"] = str(tested)
        network.up_order = tested.best or "up_last"
        if tested.best is None:
            warnings.warn(
                f"{file}: which order of the up levels fits these weights cannot be told ({tested}); taking 'up_last'. "
                "If volumes look useless, load with up_order='up_mid'",
                stacklevel=2,
            )
    encoder = load_text_encoder(words.parent, context=network.context).to(device)
    pipeline = MedSyn(network, encoder, shape=shape, facts=facts)
    pipeline.weights_hash = hashlib.sha256((_sha256(file) + _sha256(words)).encode()).hexdigest()
    return pipeline.eval()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
