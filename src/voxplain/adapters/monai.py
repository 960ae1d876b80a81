"""Pipelines around MONAI's `DiffusionModelUNet` and `DiffusionModelUNetMaisi`, in two and three dimensions."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Float
from monai.networks.blocks.crossattention import CrossAttentionBlock
from torch import Tensor

from voxplain.adapters.base import Adapter, Editor, Listener, Rows, announced_rows, projections
from voxplain.maps import Sample
from voxplain.models.events import Call, Event
from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.tokens import TokenizedPrompt


class MonaiAdapter(Adapter):
    """A `LatentDiffusion` pipeline whose denoiser reads the text through MONAI's `CrossAttentionBlock`s.

    Layers are the paths of all blocks called `attn2` in the denoiser. Queries and keys are read in forward hooks on
    their projections, with or without flash attention; the grid is that of the `SpatialTransformer` around them.
    Guidance runs in one doubled batch, text rows first. Where the context is one pooled vector, attention is refused
    when it is heard, and the recipe `effect` is left.
    """

    def __init__(self, pipeline: LatentDiffusion) -> None:
        self.pipeline = pipeline
        self.name = str(pipeline.config["name"])
        self.layers = tuple(
            path
            for path, module in pipeline.unet.named_modules()
            if path.endswith("attn2") and isinstance(module, CrossAttentionBlock)
        )
        if not self.layers:
            raise ValueError(f"{self.name}: the denoiser has no cross-attention block called 'attn2'")
        self.localizing_layers = tuple(pipeline.config.get("localizing_layers", ()))
        self.latent_shape, self.geometry = pipeline.latent_shape, pipeline.geometry

    @property
    def weights_hash(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.pipeline.weights_hash

    # seams --------------------------------------------------------------------------------------------------------

    def observe(self, layer: str, listener: Listener) -> AbstractContextManager[None]:
        return self._projections(layer, listener, edit=False)

    def edit(self, layer: str, editor: Editor) -> AbstractContextManager[None]:
        return self._projections(layer, editor, edit=True)

    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        return self.pipeline.watching(callback)

    def _projections(self, layer: str, use: Callable, edit: bool) -> AbstractContextManager[None]:
        if layer not in self.layers:
            raise KeyError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
        block, _, _ = layer.rpartition(".transformer_blocks.")
        attention = self.pipeline.unet.get_submodule(layer)
        if attention.causal or attention.rel_positional_embedding is not None:
            raise NotImplementedError(f"{layer} adds a causal mask or relative positions, which are not read here")
        if attention.use_flash_attention and attention.dropout_rate:
            raise NotImplementedError(
                f"{layer} drops out {attention.dropout_rate:g} of its attention at random: MONAI's flash attention "
                "does so in evaluation mode, too; set its dropout_rate to 0"
            )
        return projections(self, layer, self.pipeline.unet.get_submodule(block), attention, use, edit)

    # the model ----------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self.pipeline.tokenize(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        return self.pipeline.tokenizer.unknown_words(prompt)

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        samples: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample | list[Sample]:
        return self.pipeline.generate(
            prompt,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            negative_prompt=negative_prompt,
            samples=samples,
            progress=progress,
        )

    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        return self.pipeline.encode_prompt(prompt)

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "contexts tokens dim"],
        *,
        rows: Rows | None = None,
        step: int = 0,
    ) -> Float[Tensor, "batch channels *grid"]:
        self.pipeline.announce(Call(announced_rows(rows, len(latent)), step, float(timestep)))
        return self.pipeline.predict(latent, timestep, context.expand(len(latent), -1, -1))

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        return self.pipeline.encode_image(image)

    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        return self.pipeline.decode(latent)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        return self.pipeline.add_noise(latent, noise, timestep)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        return self.pipeline.timesteps(steps)
