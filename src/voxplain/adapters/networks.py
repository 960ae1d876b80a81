"""A denoiser of your own: what every adapter needs is here, and what nobody else can know is left to a subclass."""

import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain import __version__
from voxplain.adapters.base import Adapter, Use
from voxplain.adapters.hooks import projections, refuse_compiled
from voxplain.geometry import Geometry
from voxplain.maps import Sample
from voxplain.models.events import NULL, TEXT, Announcing, Event, Run
from voxplain.models.requests import asked_for
from voxplain.models.schedule import PREDICTIONS, ddim_step, timesteps

CLEAN = torch.tensor(1.0)  # the share of signal variance behind the last step


class NetworkAdapter(Announcing, Adapter):
    """Hears, edits, samples and announces; a subclass writes `tokenize`, `encode_prompt` and `denoise`.

    `layers` are paths of modules in `network` with `to_q`, `to_k`, `to_v`, `out_proj`, `num_heads` and `scale`, each
    inside a module that is given `[batch, channels, *grid]`; `block` says which. `alphas` is the share of signal
    variance at each noise level, falling; `prediction` what the network was trained to predict, one of `PREDICTIONS`.
    Sampling is deterministic DDIM, with guidance in two passes; a model that samples otherwise has a `generate` of its
    own. The image is its own latent unless `encode_image` and `decode` are written too. Raises ValueError for an
    unknown `prediction`, for no layers, and for layers that the network does not have.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        layers: Sequence[str],
        latent_shape: Sequence[int],
        geometry: Geometry,
        alphas: Float[Tensor, " levels"],
        prediction: str = "epsilon",
        steps: int = 50,
        guidance_scale: float = 1.0,
    ) -> None:
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction = {prediction!r}; give one of {', '.join(PREDICTIONS)}")
        if not layers:
            raise ValueError(f"{name} names no layers; give the paths of the modules that attend to the text")
        if strange := sorted(set(layers) - {path for path, _ in network.named_modules()}):
            raise ValueError(f"{type(network).__name__} has no module {', '.join(strange)}")
        self.network, self.name, self.layers, self.localizing_layers = network, name, tuple(layers), ()
        self.latent_shape, self.geometry = tuple(latent_shape), geometry
        self.alphas, self.prediction, self.steps, self.guidance_scale = alphas, prediction, steps, guidance_scale
        self._watchers: list[Callable[[Event], None]] = []

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    # what a subclass may know better ------------------------------------------------------------------------------

    def block(self, layer: str) -> nn.Module:
        """The module that still sees the grid: by default the one that holds the layer."""
        return self.network.get_submodule(layer.rpartition(".")[0])

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        return torch.tensor(np.asarray(image, np.float32), device=self.device)[None]

    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        return latent.detach().float().cpu().numpy()

    # the model ----------------------------------------------------------------------------------------------------

    def hooked(self, layer: str, use: Use, edit: bool) -> AbstractContextManager[None]:
        refuse_compiled(self.network)
        return projections(self, layer, self.block(layer), self.network.get_submodule(layer), use, edit)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        return timesteps(steps, len(self.alphas))

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        alpha = self._alpha(timestep)
        return alpha.sqrt() * latent + (1 - alpha).sqrt() * noise

    @torch.no_grad()
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
        steps = operator.index(self.steps if steps is None else steps)
        scale = float(self.guidance_scale if guidance_scale is None else guidance_scale)
        texts, seeds = asked_for(prompt, seed, samples, steps, len(self.alphas), scale)
        prompts = tuple(self.tokenize(text) for text in texts)
        context = torch.cat([self.encode_prompt(one) for one in prompts])  # [samples, tokens, dim]
        null = self.encode_prompt(self.tokenize(negative_prompt or ""))
        noise = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(one)) for one in seeds]
        levels = self.timesteps(steps)
        alphas = [*(self._alpha(level) for level in levels), CLEAN.to(self.device)]
        kind = self.prediction
        assert kind is not None  # one of PREDICTIONS, since it was made

        def guided(latent: Tensor, level: float, step: int) -> Tensor:
            given, free = ([(number, branch) for number in range(len(texts))] for branch in (TEXT, NULL))
            conditional = self.predict(latent, level, context, rows=given, step=step)
            if scale == 1:
                return conditional
            return self.predict(latent, level, null, rows=free, step=step).lerp(conditional, scale)

        def move(latent: Tensor, prediction: Tensor, step: int) -> Tensor:
            return ddim_step(latent, prediction, alphas[step], alphas[step + 1], kind=kind)

        self.announce(Run(prompts, self.geometry, steps))
        latent = self.descend(
            torch.stack(noise).to(self.device),
            levels,
            guided,
            move,
            network=self.network,
            encode=lambda: self.encode_prompt(prompts[0]),
            progress=progress,
        )
        common = {
            "model": self.name,
            "steps": steps,
            "guidance_scale": scale,
            "negative_prompt": negative_prompt or "",
            "sampler": f"DDIM, eta 0, {self.prediction}-prediction",
            "version": __version__,
        }
        made = [
            Sample(image, self.geometry, one.text, {**common, "prompt": one.text, "seed": start})
            for image, one, start in zip(self.decode(latent), prompts, seeds, strict=True)
        ]
        return made[0] if isinstance(prompt, str) and samples == 1 else made

    def _alpha(self, timestep: float) -> Float[Tensor, ""]:
        """The share of signal variance at a noise level."""
        return self.alphas[round(timestep)].to(self.device)
