"""What the adapters of Voxplain's own pipelines share: all but the layers is the pipeline's."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters.base import Adapter
from voxplain.maps import Sample
from voxplain.models.events import Call, Event
from voxplain.tokens import TokenizedPrompt


class OwnAdapter(Adapter):
    """A pipeline that tokenizes, generates, predicts and announces by itself; a family adds `hooked`."""

    pipeline: Any

    def __init__(self, pipeline: Any, name: str, layers: tuple[str, ...]) -> None:
        self.pipeline, self.name, self.layers, self.localizing_layers = pipeline, name, layers, ()
        self.latent_shape, self.geometry = pipeline.latent_shape, pipeline.geometry

    @property
    def weights_hash(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.pipeline.weights_hash

    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        return self.pipeline.watching(callback)

    def predicting(self, call: Call) -> AbstractContextManager[None]:
        return self.pipeline.predicting(call)

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self.pipeline.tokenize(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        return self.pipeline.unknown_words(prompt)

    def generate(self, prompt: str | Sequence[str], **options: Any) -> Sample | list[Sample]:
        return self.pipeline.generate(prompt, **options)

    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        return self.pipeline.encode_prompt(prompt)

    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: Any,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        return self.pipeline.predict(latent, timestep, context)

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        return self.pipeline.encode_image(image)

    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        return self.pipeline.decode(latent)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        return self.pipeline.add_noise(latent, noise, timestep)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        return self.pipeline.timesteps(steps)
