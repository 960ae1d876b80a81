"""Text-to-video pipelines around diffusers' `UNet3DConditionModel`: a volume is read frame by frame."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters.base import Use
from voxplain.adapters.diffusers import cross_attention, refuse_unread
from voxplain.adapters.folders import check_width
from voxplain.adapters.generation import PipelineAdapter, Told, deep, latent_grid
from voxplain.adapters.hooks import refuse_compiled
from voxplain.adapters.pipelines import PipelineEvents
from voxplain.adapters.prompts import tokenized
from voxplain.adapters.slices import Parts, sliced_projections
from voxplain.models.events import TEXT
from voxplain.tokens import TokenizedPrompt

PAGE = "docs/transformers.md"


class UNet3DAdapter(PipelineAdapter):
    """A diffusers pipeline around a `UNet3DConditionModel`; grids are (frames, rows, columns).

    `frames` and `size`, the image (rows, columns), are those of `generate`; by default the pipeline's own. `prompt`
    tells the text of runs that are given `prompt_embeds`. Attention over time, which reads no text, is not recorded.

    Raises NotImplementedError for networks and attention layers that are not read, by name, and ValueError for a
    compiled U-Net and for a text encoder that does not fit it.
    """

    def __init__(
        self, pipe: Any, *, prompt: Told = None, frames: int | None = None, size: tuple[int, int] | None = None
    ) -> None:
        unet: Any = getattr(pipe, "unet", None)
        if not isinstance(unet, UNet3DConditionModel):
            raise NotImplementedError(
                f"{type(pipe).__name__}: the denoiser is a {type(unet).__name__}, and this adapter reads a "
                f"UNet3DConditionModel; {PAGE} says which pipelines are read"
            )
        refuse_compiled(unet)
        check_width([pipe.text_encoder.config.to_dict()], unet.config)
        self.pipe, self.layers, scale = pipe, cross_attention(unet), pipe.vae_scale_factor
        grid = latent_grid(unet.config["sample_size"] or 32, size, scale)
        shape = (frames or self.default("num_frames"), *grid)
        super().__init__(pipe, unet, unet.config["in_channels"], shape, prompt)
        self.events = FramedEvents(pipe, unet, self.prompts, self.image_geometry, TEXT)

    # seams --------------------------------------------------------------------------------------------------------

    @contextmanager
    def hooked(self, layer: str, use: Use, edit: bool) -> Iterator[None]:
        attention: Any = self.network.get_submodule(layer)
        refuse_unread(layer, attention)
        block = self.network.get_submodule(layer.rpartition(".transformer_blocks.")[0])
        read = attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]

        def unchanged(*_: Any) -> None:
            refuse_unread(layer, attention)  # the processor may have been exchanged since the block began

        kept = attention.register_forward_pre_hook(unchanged)
        try:
            with sliced_projections(self, layer, Parts(block, *read, attention.heads, attention.scale), use, edit):
                yield
        finally:
            kept.remove()

    # text ---------------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return tokenized(self.pipe, prompt)

    @torch.no_grad()
    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        encode = type(self.pipe).encode_prompt
        return encode(self.pipe, prompt.text, self.device, 1, do_classifier_free_guidance=False)[0]

    # the denoiser -------------------------------------------------------------------------------------------------

    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        dtype, level = self.network.dtype, torch.full((len(latent),), timestep, device=self.device)
        scaled = self.scaled(latent.to(self.device), timestep).to(dtype)
        return self.network(scaled, level, context.to(self.device, dtype), return_dict=False)[0]

    def asked(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        frames, height, width = self.geometry.shape
        sizes = {"num_frames": frames, "height": height, "width": width}
        return sizes | self.usual(samples, steps, guidance_scale, negative_prompt)

    def images(self, made: Any) -> Float[np.ndarray, "samples channels *spatial"]:
        return np.moveaxis(np.asarray(made.frames, np.float32), -1, 1)


class FramedEvents(PipelineEvents):
    """The events of a pipeline whose scheduler steps the frames of all samples as one batch of images."""

    def latent(self, stepped: Tensor) -> Tensor:
        return deep(stepped, [len(stepped) // len(self._prompts)])
