"""The smallest pipelines that have every part: two levels, one block, a vocabulary of one report."""

import pytest
import torch

from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.thorax.network import THORAX, build
from voxplain.models.thorax.text import build_tokenizer

TEXTS = ["Large left pleural effusion. Severe consolidation in the right upper lobe.", "No pneumothorax."]


def build_tiny(spatial_dims: int = 2, **changes: object) -> LatentDiffusion:
    """An untrained pipeline whose output depends on the prompt (MONAI starts its last layers at zero)."""
    config = {
        **THORAX,
        "finest": 0,
        "name": "tiny",
        "image_shape": [16] * spatial_dims,
        "spacing": [5.0] * spatial_dims,
        "text": {"width": 16, "layers": 1, "heads": 2, "context": 24},
        "autoencoder": {**THORAX["autoencoder"], "channels": [8], "latent_channels": 3, "num_res_blocks": 1},
        "unet": {**THORAX["unet"], "channels": [8, 16], "num_head_channels": 8, "self_attention_cells": 4},
        **changes,
    }
    torch.manual_seed(0)
    pipeline = build(config, build_tokenizer(TEXTS, context=24))
    for parameter in pipeline.unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return pipeline.eval()


@pytest.fixture(scope="session")
def tiny():
    """Builds a tiny pipeline: `tiny(3)` for volumes, keywords change its configuration."""
    return build_tiny
