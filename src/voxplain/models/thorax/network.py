"""The parts of the thorax models, assembled from a configuration: autoencoder, denoiser, text encoder."""

from collections.abc import Mapping
from itertools import chain
from math import prod
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from monai.networks.blocks.convolutions import Convolution
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from torch import Tensor, nn

from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.thorax.text import CONTEXT, TextEncoder, Tokenizer

THORAX: dict[str, Any] = {
    "name": "thorax",
    "image_shape": [64, 64, 64],
    "spacing": [5.0, 5.0, 5.0],  # mm, slowest axis first
    "unit": "HU",
    "intensity": [-1024.0, 1024.0],  # brought to -1..1; decoded images are clipped to it
    "latent_shift": 0.0,  # latent = (posterior mean - shift) * scale, a number or one a channel
    "latent_scale": 1.0,
    "prediction": "v",
    "schedule": {"kind": "cosine", "steps": 1000, "shift": 0.13},
    "steps": 50,
    "finest": 15,
    "loudest": 150.0,
    "guidance_scale": 3.0,
    "coordinates": True,
    "localizing_layers": [],
    "text": {"width": 128, "layers": 2, "heads": 4, "context": CONTEXT, "silent": 3},
    "autoencoder": {
        "patch": 4,
        "channels": [64],
        "latent_channels": 16,
        "num_res_blocks": 2,
        "norm_num_groups": 8,
        "refinement": 8,
    },
    "unet": {
        "channels": [32, 64, 128],
        "num_res_blocks": 1,
        "num_head_channels": [32, 32, 32],
        "norm_num_groups": 8,
        "transformer_num_layers": 1,
        "self_attention_cells": 64,
    },
}
THORAX_2D: dict[str, Any] = {
    **THORAX,
    "name": "thorax-2d",
    "image_shape": [96, 96],
    "spacing": [320 / 96, 320 / 96],
    "unit": "relative attenuation",
    "intensity": [0.0, 1.0],
    "guidance_scale": 2.0,
    "autoencoder": {**THORAX["autoencoder"], "latent_channels": 4},
}


def build(config: Mapping[str, Any], tokenizer: Tokenizer) -> LatentDiffusion:
    """An untrained pipeline, laid out as `config` says (`THORAX`, `THORAX_2D` or one derived from them)."""
    spatial_dims, text, parts = len(config["image_shape"]), config["text"], config["autoencoder"]
    reduction = parts["patch"] * 2 ** (len(parts["channels"]) - 1)
    if any(size % reduction for size in config["image_shape"]):
        raise ValueError(f"image shape {config['image_shape']} cannot be cut into cells of {reduction} a side")
    grid = tuple(size // reduction for size in config["image_shape"])
    channels = parts["latent_channels"]
    unet = _denoiser(config["unet"], grid, channels + spatial_dims * config["coordinates"], channels, text["width"])
    encoder, autoencoder = TextEncoder(len(tokenizer.pieces), **text), PatchAutoencoder(spatial_dims, **parts)
    for module in chain(unet.modules(), autoencoder.modules()):
        module.__class__ = HASTENED.get(type(module), type(module))
    complete = {**config, "latent_shape": [channels, *grid], "spatial_dims": spatial_dims}
    return LatentDiffusion(unet, autoencoder, encoder, tokenizer, complete)


class _OneDnn:
    """A convolution that goes to oneDNN on a CPU also where PyTorch's rule of thumb takes its own kernel: for a batch
    of one with at most 20,480 numbers, which these coarse grids have, and which then takes as long as a batch of two.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        alone = len(input) == 1 and input.device.type == "cpu" and input.dtype == weight.dtype == torch.float32
        if alone and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu"):
            own: Any = self
            return torch.mkldnn_convolution(input, weight, bias, own.padding, own.stride, own.dilation, own.groups)
        return super()._conv_forward(input, weight, bias)  # type: ignore[misc]


class _Conv2d(_OneDnn, nn.Conv2d):
    pass


class _Conv3d(_OneDnn, nn.Conv3d):
    pass


HASTENED: dict[type, type] = {nn.Conv2d: _Conv2d, nn.Conv3d: _Conv3d}


class PatchAutoencoder(nn.Module):
    """Image `[1, *spatial]` <-> latent `[channels, *grid]`: patches as channels, then MONAI's `AutoencoderKL`.

    Convolutions run on the coarse grid, where they cost little; only a small correction of seams between patches
    runs at full resolution. Values are normalized intensities, about -1 to 1.
    """

    def __init__(
        self,
        spatial_dims: int,
        *,
        patch: int,
        channels: list[int],
        latent_channels: int,
        num_res_blocks: int,
        norm_num_groups: int,
        refinement: int,
    ) -> None:
        super().__init__()
        axes = range(spatial_dims)
        fine = "b c " + " ".join(f"(g{axis} p{axis})" for axis in axes)
        coarse = f"b (c {' '.join(f'p{axis}' for axis in axes)}) {' '.join(f'g{axis}' for axis in axes)}"
        self._fold, self._unfold = f"{fine} -> {coarse}", f"{coarse} -> {fine}"
        self._sizes = {f"p{axis}": patch for axis in axes}
        kl: Any = AutoencoderKL(
            spatial_dims,
            in_channels=patch**spatial_dims,
            out_channels=patch**spatial_dims,
            num_res_blocks=[num_res_blocks] * len(channels),
            channels=channels,
            attention_levels=[False] * len(channels),
            latent_channels=latent_channels,
            norm_num_groups=norm_num_groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.kl = kl
        # A linear code of the patches beside the network, so that training starts from principal components
        # (`start_from`) and the convolutions learn only what a linear code cannot say.
        self.code = Convolution(spatial_dims, patch**spatial_dims, latent_channels, kernel_size=1, conv_only=True)
        self.sketch = Convolution(spatial_dims, latent_channels, patch**spatial_dims, kernel_size=1, conv_only=True)
        widen = Convolution(spatial_dims, 1, refinement, kernel_size=3, conv_only=True)
        narrow = Convolution(spatial_dims, refinement, 1, kernel_size=3, conv_only=True)
        self.refine = nn.Sequential(widen, nn.SiLU(), narrow)
        silent = (narrow, kl.quant_conv_mu, kl.quant_conv_log_sigma, kl.decoder.blocks[-1])
        for parameter in chain.from_iterable(module.parameters() for module in silent):
            nn.init.zeros_(parameter)
        nn.init.constant_(kl.quant_conv_log_sigma.conv.bias, -6.0)

    @torch.no_grad()
    def start_from(self, images: Float[Tensor, "batch 1 *spatial"]) -> None:
        """Set the linear code to the principal components of the patches of some images."""
        patches = rearrange(images, self._fold, **self._sizes)
        rows = patches.movedim(1, -1).flatten(0, -2)  # [patches, voxels of a patch]
        mean = rows.mean(0)
        axes = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors.flip(1)  # [voxels, components]
        code, sketch = (module.get_parameter("conv.weight") for module in (self.code, self.sketch))
        axes = axes[:, : len(code)]
        code.copy_(axes.T.reshape(code.shape))
        sketch.copy_(axes.reshape(sketch.shape))
        self.code.get_parameter("conv.bias").copy_(-(axes.T @ mean))
        self.sketch.get_parameter("conv.bias").copy_(mean)

    def encode(
        self, image: Float[Tensor, "batch 1 *spatial"]
    ) -> tuple[Float[Tensor, "batch channels *grid"], Float[Tensor, "batch channels *grid"]]:
        """Mean and standard deviation of the posterior; the mean is the deterministic encoding."""
        patches = rearrange(image, self._fold, **self._sizes)
        mean, deviation = self.kl.encode(patches)
        return self.code(patches) + mean, deviation

    def decode(self, latent: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch 1 *spatial"]:
        """The image of a latent; not clipped."""
        image = rearrange(self.sketch(latent) + self.kl.decode(latent), self._unfold, **self._sizes)
        return image + self.refine(image)

    def forward(self, image: Float[Tensor, "batch 1 *spatial"]) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction through a drawn latent, posterior mean, posterior standard deviation (for training)."""
        mean, deviation = self.encode(image)
        return self.decode(mean + deviation * torch.randn_like(mean)), mean, deviation


class NoSelfAttention(nn.Module):
    """Stands where a self-attention layer stood and adds nothing to the residual stream."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def _denoiser(
    options: Mapping[str, Any], grid: tuple[int, ...], in_channels: int, out_channels: int, width: int
) -> DiffusionModelUNet:
    options = dict(options)
    limit, levels = options.pop("self_attention_cells"), len(options["channels"])
    unet = DiffusionModelUNet(
        len(grid),
        in_channels,
        out_channels,
        attention_levels=[True] * levels,
        with_conditioning=True,
        cross_attention_dim=width,
        use_flash_attention=True,
        **options,
    )
    stages = chain(enumerate(unet.down_blocks), enumerate(reversed(unet.up_blocks)), [(levels - 1, unet.middle_block)])
    for level, stage in stages:
        cells = prod(-(-size // 2**level) for size in grid)
        for name, _ in list(stage.named_modules()):
            if name.endswith("attn1") and cells > limit:
                # Self-attention grows with the square of the cells: at 16^3 it would take twice the time of all
                # the rest of the network together (measured), and the coarser levels carry what is far apart anyway.
                stage.set_submodule(name, NoSelfAttention())
    return unet
