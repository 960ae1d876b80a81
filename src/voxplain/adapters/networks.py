"""A denoiser of your own: what every adapter needs is here, and what nobody else can know is left to a subclass."""

import operator
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain import __version__
from voxplain.adapters.base import Adapter, Editor, Listener, Rows, announced_rows, projections
from voxplain.adapters.pipelines import refuse_compiled
from voxplain.geometry import Geometry
from voxplain.maps import Sample
from voxplain.models.diagnosis import explain_nan
from voxplain.models.events import NULL, TEXT, Announcing, Call, Event, Run, Step
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

    # what a subclass knows ----------------------------------------------------------------------------------------

    @abstractmethod
    def denoise(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        """What the network predicts at one noise level."""

    def block(self, layer: str) -> nn.Module:
        """The module that still sees the grid: by default the one that holds the layer."""
        return self.network.get_submodule(layer.rpartition(".")[0])

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        return torch.tensor(np.asarray(image, np.float32), device=self.device)[None]

    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        return latent.detach().float().cpu().numpy()

    # seams --------------------------------------------------------------------------------------------------------

    def observe(self, layer: str, listener: Listener) -> AbstractContextManager[None]:
        return self._heard(layer, listener, edit=False)

    def edit(self, layer: str, editor: Editor) -> AbstractContextManager[None]:
        return self._heard(layer, editor, edit=True)

    def _heard(self, layer: str, use: Callable, edit: bool) -> AbstractContextManager[None]:
        if layer not in self.layers:
            raise KeyError(f"{self.name} has no layer {layer!r}; it has {', '.join(self.layers)}")
        refuse_compiled(self.network)
        return projections(self, layer, self.block(layer), self.network.get_submodule(layer), use, edit)

    # the model ----------------------------------------------------------------------------------------------------

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "contexts tokens dim"],
        *,
        rows: Rows | None = None,
        step: int = 0,
    ) -> Float[Tensor, "batch channels *grid"]:
        self.announce(Call(announced_rows(rows, len(latent)), step, float(timestep)))
        return self.denoise(latent, float(timestep), context.expand(len(latent), -1, -1))

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
        latent, levels, numbers = torch.stack(noise).to(self.device), self.timesteps(steps), tuple(range(len(texts)))
        self.announce(Run(prompts, self.geometry, steps))
        for step, level in enumerate(levels):
            moment = latent, level, context, null, scale, step
            prediction = self._guided(*moment)
            following = self._alpha(levels[step + 1]) if step + 1 < steps else CLEAN.to(self.device)
            ahead = ddim_step(latent, prediction, self._alpha(level), following, kind=self.prediction)
            if not torch.isfinite(ahead).all():
                where = f"step {step + 1} of {steps} (timestep {level:g})"
                explain_nan(self.network, lambda moment=moment: self._guided(*moment), where)
            self.announce(Step(step, level, latent, prediction, numbers))
            latent = ahead
            if progress:
                progress(step + 1, steps)
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

    def _guided(self, latent: Tensor, level: float, context: Tensor, null: Tensor, scale: float, step: int) -> Tensor:
        """The prediction of the text, away from that of the null text; a scale of 1 spares the second pass."""
        given, free = ([(number, branch) for number in range(len(latent))] for branch in (TEXT, NULL))
        conditional = self.predict(latent, level, context, rows=given, step=step)
        if scale == 1:
            return conditional
        return self.predict(latent, level, null, rows=free, step=step).lerp(conditional, scale)

    def _alpha(self, timestep: float) -> Float[Tensor, ""]:
        """The share of signal variance at a noise level."""
        return self.alphas[round(timestep)].to(self.device)
