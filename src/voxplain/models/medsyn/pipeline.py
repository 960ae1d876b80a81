"""A prompt in, a chest CT with lobes, airway and vessels out: MedSyn's low-resolution stage."""

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain import __version__
from voxplain.geometry import Geometry
from voxplain.maps import Sample
from voxplain.models.events import NULL, TEXT, Announcing, Call, Event, Run
from voxplain.models.medsyn.channels import from_physical, names, to_physical, volume_geometry
from voxplain.models.medsyn.network import MedSynNetwork
from voxplain.models.medsyn.sampling import alpha_bar, ddim_step, timesteps
from voxplain.models.medsyn.text import TextEncoder
from voxplain.models.requests import asked_for
from voxplain.tokens import TokenizedPrompt


class MedSyn(Announcing, nn.Module):
    """Network and text encoder, sampled as the public scripts do: DDIM without noise, clean volumes clipped to -1..1.

    `shape` is (slices, rows, columns) of a volume; it always covers the whole atlas. `facts` go into the provenance of
    each sample: which weights, and how their `up_order` was found.
    """

    def __init__(
        self,
        network: MedSynNetwork,
        text_encoder: TextEncoder,
        *,
        shape: tuple[int, int, int] = (64, 64, 64),
        steps: int = 51,
        guidance_scale: float = 1.0,
        name: str = "medsyn",
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if text_encoder.width != network.cond_dim or text_encoder.context != network.context:
            raise ValueError(
                f"the text encoder makes {text_encoder.context} features of width {text_encoder.width}, but the "
                f"network reads {network.context} of width {network.cond_dim}; give the encoder it was trained with"
            )
        if min(shape) < 1 or shape[1] % network.coarsest or shape[2] % network.coarsest:
            raise ValueError(f"shape {shape}; rows and columns must be multiples of {network.coarsest}")
        self.network, self.text_encoder = network, text_encoder
        self.channels = names(network.channels)
        self.shape, self.steps, self.guidance_scale = shape, steps, guidance_scale
        self.name, self.facts, self.weights_hash = name, dict(facts or {}), "untrained"
        self._watchers: list[Callable[[Event], None]] = []

    # what it is ---------------------------------------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """[channels, slices, rows, columns]; MedSyn works on the voxels themselves."""
        return (len(self.channels), *self.shape)

    @property
    def geometry(self) -> Geometry:
        """Where the voxels of a generated volume lie."""
        return volume_geometry(self.shape)

    @property
    def device(self) -> torch.device:
        return self.network.init_conv.weight.device

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """The times of `steps` evaluations, from 1000 to 0; what the public scripts call 50 steps is 51 here."""
        return timesteps(steps)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        """The volume at a time 0..1000."""
        alpha = alpha_bar(float(timestep)).to(latent.device)
        return alpha.sqrt() * latent + (1 - alpha).sqrt() * noise

    # text and volumes in and out ----------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self.text_encoder.tokenize(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words that the text encoder cannot spell."""
        return self.text_encoder.unknown_words(prompt)

    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        """The features of one prompt at all positions, padding included."""
        return self.text_encoder(prompt.text)

    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 channels *grid"]:
        """All channels of one volume (HU, then gray levels 0..1) -> -1..1; values beyond the range are clipped."""
        if image.shape != self.latent_shape:
            raise ValueError(
                f"image {image.shape}, but {self.name} takes {self.latent_shape}: {', '.join(self.channels)}, each "
                f"{self.shape}; resample it, and bring the label volumes, which are part of the model's state"
            )
        return torch.from_numpy(from_physical(image))[None].to(self.device)

    def decode(self, latent: Float[Tensor, "batch channels *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        """-1..1, clipped to it -> HU, then gray levels 0..1."""
        return to_physical(latent.detach().float().cpu().numpy())

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float,
        context: Float[Tensor, "contexts tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        """The estimated clean volume, not clipped, in float32; a context of one row serves all rows."""
        dtype = self.network.init_conv.weight.dtype
        times = torch.full((len(latent),), float(timestep), device=latent.device)
        return self.network(latent.to(dtype), times, context.expand(len(latent), -1, -1).to(dtype)).float()

    # generation ---------------------------------------------------------------------------------------------------

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
        """One `Sample` of all channels, or a list where `prompt` is a list or `samples` > 1 (prompt by prompt, one
        batch).

        `steps` counts evaluations: the public scripts' 50 DDIM steps are 51. Sample i starts from the noise of seed + i
        (or of `seed[i]`), whatever else is in its batch. `guidance_scale` 0..30: 1, as in the public inference script,
        runs the text alone; otherwise the null text runs in a second pass. The null text is the learned one, or
        `negative_prompt` where given. `progress(done, steps)` is called after each evaluation.
        """
        steps = operator.index(self.steps if steps is None else steps)
        scale = float(self.guidance_scale if guidance_scale is None else guidance_scale)
        texts, seeds = asked_for(prompt, seed, samples, steps, 1001, scale)
        prompts = tuple(self.tokenize(text) for text in texts)
        for cut in dict.fromkeys(one.truncated for one in prompts if one.truncated):
            warnings.warn(f"the prompt is longer than the context; these words fell off: {cut!r}", stacklevel=2)

        self.announce(Run(prompts, self.geometry, steps))
        noise = [torch.randn(self.latent_shape, generator=torch.Generator().manual_seed(one)) for one in seeds]
        latent = self.denoise(
            torch.stack(noise).to(self.device),
            torch.cat([self.encode_prompt(one) for one in prompts]),
            self._null(negative_prompt),
            steps,
            scale,
            progress,
        )
        common = {
            "model": self.name,
            "weights": self.weights_hash,
            **self.facts,
            "up_order": self.network.up_order,
            "dtype": str(self.network.init_conv.weight.dtype).removeprefix("torch."),
            "channels": list(self.channels),
            "steps": steps,
            "guidance_scale": scale,
            "negative_prompt": negative_prompt or "",
            "sampler": "DDIM, eta 0, estimates of the clean volume",
            "version": __version__,
        }
        made = [
            Sample(image, self.geometry, one.text, {**common, **self._origin(one, start)}, "HU")
            for image, one, start in zip(self.decode(latent), prompts, seeds, strict=True)
        ]
        return made[0] if isinstance(prompt, str) and samples == 1 else made

    def denoise(
        self,
        latent: Float[Tensor, "samples channels *grid"],
        context: Float[Tensor, "samples tokens dim"],
        null: Float[Tensor, "1 tokens dim"],
        steps: int,
        scale: float,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "samples channels *grid"]:
        """The clean volumes from pure noise; the text is passed first, then, if `scale` is not 1, the null text."""
        numbers, levels = tuple(range(len(latent))), self.timesteps(steps)

        def guided(x: Tensor, level: float, step: int) -> Tensor:
            self.announce(Call(tuple((number, TEXT) for number in numbers), step, level))
            clean = self.predict(x, level, context)
            if scale == 1:
                return clean
            self.announce(Call(tuple((number, NULL) for number in numbers), step, level))
            return self.predict(x, level, null).lerp(clean, scale)

        def move(x: Tensor, prediction: Tensor, step: int) -> Tensor:
            clean = prediction.clamp(-1, 1)
            return clean if step + 1 == steps else ddim_step(x, clean, levels[step], levels[step + 1])

        return self.descend(latent, levels, guided, move, network=self, encode=lambda: None, progress=progress)

    def _null(self, negative: str | None) -> Float[Tensor, "1 tokens dim"]:
        return self.encode_prompt(self.tokenize(negative)) if negative else self.network.null_cond_emb

    def _origin(self, prompt: TokenizedPrompt, seed: int) -> dict[str, Any]:
        unknown = self.unknown_words(prompt.text)
        return {"prompt": prompt.text, "seed": seed, "truncated": prompt.truncated, "unknown_words": unknown}
