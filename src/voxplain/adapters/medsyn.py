"""MedSyn: text-to-CT in voxel space, whose four text attentions read slice by slice at the coarsest level."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters.base import Adapter, Editor, Listener, Rows, announced_rows
from voxplain.adapters.slices import Parts, sliced_projections
from voxplain.maps import Sample
from voxplain.models.events import Call, Event
from voxplain.models.medsyn.blocks import CrossAttention
from voxplain.models.medsyn.pipeline import MedSyn
from voxplain.tokens import TokenizedPrompt


class MedSynAdapter(Adapter):
    """Layers are the paths of the cross-attentions in the network; self-attention within slices reads no text.

    The native grid is (slices, rows / 8, columns / 8) for the published network: 64 x 8 x 8. Cells are stretched
    within the slice, and `Heatmap.resize` to the volume is where they are enlarged. With guidance the null text runs
    in a pass of its own, which no listener hears.
    """

    def __init__(self, pipeline: MedSyn) -> None:
        self.pipeline = pipeline
        self.name = pipeline.name
        modules = pipeline.network.named_modules()
        self.layers = tuple(path for path, module in modules if isinstance(module, CrossAttention))
        self.localizing_layers = ()  # nobody has measured them
        self.latent_shape, self.geometry = pipeline.latent_shape, pipeline.geometry

    @property
    def weights_hash(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.pipeline.weights_hash

    # seams --------------------------------------------------------------------------------------------------------

    def observe(self, layer: str, listener: Listener) -> AbstractContextManager[None]:
        return sliced_projections(self, layer, self._parts(layer), listener, edit=False)

    def edit(self, layer: str, editor: Editor) -> AbstractContextManager[None]:
        return sliced_projections(self, layer, self._parts(layer), editor, edit=True)

    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        return self.pipeline.watching(callback)

    def _parts(self, layer: str) -> Parts:
        if layer not in self.layers:
            raise KeyError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
        own = self.pipeline.network.get_submodule(layer)
        assert isinstance(own, CrossAttention)
        return Parts(own.to_q, own.to_q, own.to_kv, own.to_kv, own.to_out, own.heads, own.scale)

    # the model ----------------------------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self.pipeline.tokenize(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        return self.pipeline.text_encoder.unknown_words(prompt)

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
        return self.pipeline.predict(latent, float(timestep), context)

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        return self.pipeline.encode_image(image)

    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        return self.pipeline.decode(latent)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        return self.pipeline.add_noise(latent, noise, timestep)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        return self.pipeline.timesteps(steps)
