"""Text-to-video pipelines around diffusers' `UNet3DConditionModel`: a volume is read frame by frame."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters.base import Editor, Listener, Rows, announced_rows
from voxplain.adapters.diffusers import cross_attention, refuse_unread
from voxplain.adapters.folders import check_width
from voxplain.adapters.generation import PipelineAdapter, Told, deep, latent_grid
from voxplain.adapters.pipelines import PipelineEvents, refuse_compiled
from voxplain.adapters.prompts import tokenized
from voxplain.adapters.slices import Parts, sliced_projections
from voxplain.models.events import TEXT, Call, Event
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
        self.events = FramedEvents(pipe, unet, self._read, self.image_geometry, TEXT)

    # seams --------------------------------------------------------------------------------------------------------

    def observe(self, layer: str, listener: Listener) -> AbstractContextManager[None]:
        return self._slices(layer, listener, edit=False)

    def edit(self, layer: str, editor: Editor) -> AbstractContextManager[None]:
        return self._slices(layer, editor, edit=True)

    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        return self.events.watching(callback)

    @contextmanager
    def _slices(self, layer: str, use: Callable, edit: bool) -> Iterator[None]:
        if layer not in self.layers:
            raise KeyError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
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

    def _read(self, given: Mapping[str, Any], samples: int) -> tuple[TokenizedPrompt, ...]:
        return tuple(self.tokenize(text) for text in self.texts(given, samples))

    @torch.no_grad()
    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        encode = type(self.pipe).encode_prompt
        return encode(self.pipe, prompt.text, self.device, 1, do_classifier_free_guidance=False)[0]

    # the denoiser -------------------------------------------------------------------------------------------------

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "contexts tokens dim"],
        *,
        rows: Rows | None = None,
        step: int = 0,
    ) -> Float[Tensor, "batch channels *grid"]:
        dtype = self.network.dtype
        scaled = self.scaled(latent.to(self.device), timestep).to(dtype)
        level = torch.full((len(latent),), float(timestep), device=self.device)
        context = context.to(self.device, dtype).expand(len(latent), -1, -1)
        with self.events.predicting(Call(announced_rows(rows, len(latent)), step, float(timestep))):
            return self.network(scaled, level, context, return_dict=False)[0]

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
