"""A text-to-image latent diffusion pipeline: a prompt in, a `Sample` in physical units out."""

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
from voxplain.models.diagnosis import explain_nan
from voxplain.models.events import NULL, TEXT, Announcing, Call, Event, Run
from voxplain.models.placing import placed
from voxplain.models.requests import asked_for
from voxplain.models.schedule import PREDICTIONS, alpha_bars, ddim_step, even_steps, timesteps
from voxplain.tokens import TokenizedPrompt

Numbers = float | int | Sequence[float]


class LatentDiffusion(Announcing, nn.Module):
    """Denoiser, autoencoder and text encoder of a latent diffusion model.

    `config` names at least: name, image_shape, spacing (mm; None where nobody knows it), unit, intensity (lowest and
    highest value), latent_shape, latent_shift and latent_scale, coordinates (normalized positions are further input
    channels of the denoiser), schedule, prediction ("v", "epsilon" or "sample"), steps, guidance_scale,
    localizing_layers. It may name: model_range (what `intensity` is brought to, by default -1..1), orientation (see
    `placed`), clip (bounds of the clean latent at each step), inputs (further arguments of the denoiser, the same for
    every sample), latent_spread (see `forward`; only for "v"), finest (the least noisy level that sampling may visit),
    loudest (noise over signal at the first step, see `timesteps`), quieting (see `ddim_step`),
    words_removed ("after" or "before" the text encoder: how the recipe `effect` takes words out).
    `alphas` is the share of signal left at each noise level, by default that of `schedule`.
    """

    def __init__(
        self,
        unet: nn.Module,
        autoencoder: Any,
        text_encoder: nn.Module,
        tokenizer: Any,
        config: Mapping[str, Any],
        alphas: Float[Tensor, " levels"] | None = None,
    ) -> None:
        super().__init__()
        if config["prediction"] not in PREDICTIONS:
            raise ValueError(f"prediction {config['prediction']!r}: give one of {', '.join(map(repr, PREDICTIONS))}")
        self.unet, self.autoencoder, self.text_encoder = unet, autoencoder, text_encoder
        self.tokenizer, self.config, self.weights_hash = tokenizer, dict(config), "untrained"
        self._watchers: list[Callable[[Event], None]] = []
        channels, *grid = self.latent_shape
        axes = [torch.linspace(-1, 1, size) for size in grid] if config["coordinates"] else []
        places = torch.stack(torch.meshgrid(axes, indexing="ij")) if axes else torch.zeros(0, *grid)  # [axes, *grid]
        self.register_buffer("places", places, persistent=False)
        alphas = alpha_bars(**config["schedule"]) if alphas is None else alphas
        self.register_buffer("alphas", alphas, persistent=False)
        self.calibrate(config["latent_shift"], config["latent_scale"], config.get("latent_spread", 1.0))

    def calibrate(self, shift: Numbers, scale: Numbers, spread: Numbers = 1.0) -> None:
        """Latents are (posterior mean - shift) * scale from now on, and vary by `spread`; also kept in `config`.

        Each is a number, or one a channel.
        """
        for name, given in (("latent_shift", shift), ("latent_scale", scale), ("latent_spread", spread)):
            values = torch.as_tensor(given, dtype=torch.float32).expand(self.latent_shape[0]).to(self.device)
            self.config[name] = values.tolist()
            self.register_buffer(name, values.reshape(-1, *(1 for _ in self.latent_shape[1:])), persistent=False)

    autoencoder: Any
    places: Tensor
    alphas: Tensor
    latent_shift: Tensor
    latent_scale: Tensor
    latent_spread: Tensor

    # what it is ---------------------------------------------------------------------------------------------------

    @property
    def latent_shape(self) -> tuple[int, ...]:
        return tuple(self.config["latent_shape"])

    @property
    def geometry(self) -> Geometry:
        """Where the voxels of a generated image lie."""
        return placed(self.config["image_shape"], self.config["spacing"], self.config.get("orientation"))

    @property
    def _ranges(self) -> tuple[Sequence[float], Sequence[float]]:
        """Of images in physical units, and of what the autoencoder is given."""
        return self.config["intensity"], self.config.get("model_range", (-1, 1))

    @property
    def device(self) -> torch.device:
        return self.alphas.device

    def alpha_bar(self, timestep: float | int | Tensor) -> Tensor:
        """The share of signal variance that is left at a noise level 0..steps-1; 1 at -1, which is no noise."""
        index = torch.as_tensor(timestep, device=self.device).long()
        return torch.where(index < 0, 1.0, self.alphas[index.clamp(min=0)])

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """The noise levels that `steps` steps visit, from the last of the schedule downwards: evenly spaced, or, where
        `config` has `loudest`, evenly in the logarithm of noise over signal (`even_steps`).
        """
        finest, loudest = self.config.get("finest", 0), self.config.get("loudest")
        if loudest is None:
            return timesteps(steps, len(self.alphas), finest)
        return even_steps(steps, self.alphas.cpu(), finest, loudest)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float | int | Tensor) -> Tensor:
        """The latent at a noise level: sqrt(a) latent + sqrt(1 - a) noise; one level, or one a row."""
        alpha = self._rows(self.alpha_bar(timestep), latent)
        return alpha.sqrt() * latent + (1 - alpha).sqrt() * noise

    def velocity(self, latent: Tensor, noise: Tensor, timestep: float | int | Tensor) -> Tensor:
        """What the denoiser is trained to predict: sqrt(a) noise - sqrt(1 - a) latent (Salimans and Ho, 2022)."""
        alpha = self._rows(self.alpha_bar(timestep), latent)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latent

    # text and images in and out -----------------------------------------------------------------------------------

    def tokenize(self, prompt: str) -> TokenizedPrompt:
        return self.tokenizer.tokenize(prompt)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words that training never showed."""
        return self.tokenizer.unknown_words(prompt)

    def encode_prompt(self, prompt: TokenizedPrompt) -> Float[Tensor, "1 tokens dim"]:
        """The context vectors of one prompt, padding included."""
        return self.text_encoder(torch.tensor([prompt.ids], device=self.device))

    def to_latent(self, image: Float[Tensor, "batch channels *spatial"]) -> Float[Tensor, "batch dim *grid"]:
        """Images in physical units -> normalized latents (the posterior's mean: nothing is drawn)."""
        (low, high), (first, last) = self._ranges
        mean, _ = self.autoencoder.encode((image - low) * ((last - first) / (high - low)) + first)
        return (mean - self.latent_shift) * self.latent_scale

    def to_image(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[Tensor, "batch channels *spatial"]:
        """Normalized latents -> images in physical units, not clipped."""
        (low, high), (first, last) = self._ranges
        image = self.autoencoder.decode(latent / self.latent_scale + self.latent_shift)
        return (image - first) * ((high - low) / (last - first)) + low

    @torch.no_grad()
    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        """The latent of one image in physical units; values beyond the intensity range are clipped to it."""
        if image.shape[1:] != self.geometry.shape:
            raise ValueError(
                f"image {image.shape[1:]}, but {self.config['name']} takes {self.geometry.shape}; resample it"
            )
        values = np.clip(np.asarray(image, np.float32), *self.config["intensity"])
        return self.to_latent(torch.from_numpy(values)[None].to(self.device))

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        """The images of latents, in physical units, clipped to the intensity range."""
        return self.to_image(latent).clamp(*self.config["intensity"]).float().cpu().numpy()

    # the denoiser -------------------------------------------------------------------------------------------------

    def forward(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: Float[Tensor, " batch"],
        context: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        """The denoiser's prediction, one noise level a row.

        Where channels vary by `latent_spread` and not by 1, the network is given each channel at unit variance and
        predicts, at unit variance too, what a linear estimate of v from that channel leaves open: it need not pass the
        noise of faint channels through (the preconditioning of Karras et al. 2022, section 5, a channel at a time).
        """
        kept, spread, variance = self._spreads(timestep, latent)
        places = self.places.expand(len(latent), *self.places.shape).to(latent.dtype)
        given = torch.cat([latent / variance.sqrt(), places], dim=1)
        rest = self.unet(given, timestep, context=context, **self._inputs(latent))
        linear = ((1 - kept) * kept).sqrt() * (1 - spread**2) / variance * latent
        return linear + rest * spread / variance.sqrt()

    def scale_of_error(
        self, timestep: Float[Tensor, " batch"], latent: Tensor
    ) -> Float[Tensor, "batch channels *ones"]:
        """By how much an error of the denoiser itself is larger in the prediction that `forward` makes of it."""
        _, spread, variance = self._spreads(timestep, latent)
        return spread / variance.sqrt()

    def _spreads(self, timestep: Tensor, latent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Signal left, deviation of the clean latent and variance of the noisy one, by channel."""
        kept, spread = self._rows(self.alpha_bar(timestep), latent), self.latent_spread
        return kept, spread, kept * spread**2 + (1 - kept)

    def _inputs(self, latent: Tensor) -> dict[str, Tensor]:
        """The further arguments of the denoiser, one row a sample."""
        given = self.config.get("inputs", {})
        kinds = {name: torch.long if name == "class_labels" else latent.dtype for name in given}
        rows = {name: torch.tensor(value, dtype=kinds[name], device=latent.device) for name, value in given.items()}
        return {name: value.expand(len(latent), *value.shape) for name, value in rows.items()}

    def predict(
        self,
        latent: Float[Tensor, "batch channels *grid"],
        timestep: float | int | Sequence[float],
        context: Float[Tensor, "contexts tokens dim"],
    ) -> Float[Tensor, "batch channels *grid"]:
        """The denoiser's prediction for rows of one noise level, or of one each; a context of one row serves all."""
        levels = torch.tensor(timestep, dtype=torch.float32, device=latent.device).expand(len(latent))
        return self(latent, levels, context.expand(len(latent), -1, -1))

    # generation ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        seed: int | Sequence[int] = 0,
        steps: int | None = None,
        guidance_scale: float | int | None = None,
        negative_prompt: str | None = None,
        samples: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sample | list[Sample]:
        """One `Sample`, or a list where `prompt` is a list or `samples` > 1 (prompt by prompt, all in one batch).

        Deterministic DDIM. Sample i starts from the noise of seed + i (or of `seed[i]`) whatever else is in its
        batch. `guidance_scale` 0..30: conditional and null rows run in one doubled batch, 1 spares the null rows.
        The null prompt is `negative_prompt`, else the empty text. `progress(done, steps)` is called after each step.
        """
        steps = operator.index(self.config["steps"] if steps is None else steps)
        scale = float(self.config["guidance_scale"] if guidance_scale is None else guidance_scale)
        most = len(self.alphas) - self.config.get("finest", 0)
        texts, seeds = asked_for(prompt, seed, samples, steps, most, scale)
        prompts = tuple(self.tokenize(text) for text in texts)
        for cut in {text: one.truncated for text, one in zip(texts, prompts, strict=True) if one.truncated}.values():
            warnings.warn(f"the prompt is longer than the context; these words fell off: {cut!r}", stacklevel=2)

        self.announce(Run(prompts, self.geometry, steps))
        latent = self._sample(prompts, seeds, steps, scale, negative_prompt or "", progress)
        images = self.decode(latent)
        if not np.isfinite(images).all():
            explain_nan(self, lambda: self.to_image(latent), "decoding")
        levels, quieting = self.timesteps(steps), self.config.get("quieting", 0)
        visited = f"levels {levels[0]:g} to {levels[-1]:g}" + f", quieting {quieting:g}" * bool(quieting)
        common = {
            "model": self.config["name"],
            "weights": self.weights_hash,
            "steps": steps,
            "guidance_scale": scale,
            "negative_prompt": negative_prompt or "",
            "sampler": f"DDIM, eta 0, {self.config['prediction']}-prediction, {visited}",
            "version": __version__,
        }
        made = [
            Sample(image, self.geometry, text, {**common, **self._origin(one, start)}, self.config["unit"])
            for image, text, one, start in zip(images, texts, prompts, seeds, strict=True)
        ]
        return made[0] if isinstance(prompt, str) and samples == 1 else made

    def _sample(
        self,
        prompts: Sequence[TokenizedPrompt],
        seeds: Sequence[int],
        steps: int,
        scale: float,
        negative: str,
        progress: Callable[[int, int], None] | None,
    ) -> Float[Tensor, "samples channels *grid"]:
        shape, guides = self.latent_shape, scale != 1
        rows = tuple((number, branch) for branch in (TEXT, NULL)[: 1 + guides] for number in range(len(prompts)))
        encoded = {one.text: self.encode_prompt(one) for one in prompts}
        contexts = [encoded[one.text] for one in prompts]
        contexts += [self.encode_prompt(self.tokenize(negative))] * len(prompts) * guides
        context = torch.cat(contexts)  # [rows, tokens, dim]
        noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        latent = torch.stack(noise).to(self.device)  # [samples, channels, *grid]

        levels, kind = self.timesteps(steps), self.config["prediction"]
        settings = {name: self.config[name] for name in ("clip", "quieting") if name in self.config}

        def guided(latent: Tensor, level: float, step: int) -> Tensor:
            self.announce(Call(rows, step, level))
            raw = self.predict(latent.repeat(1 + guides, *(1 for _ in shape)), level, context)
            return raw[len(prompts) :].lerp(raw[: len(prompts)], scale) if guides else raw

        def move(latent: Tensor, prediction: Tensor, step: int) -> Tensor:
            following = (*levels, -1.0)[step + 1]
            return ddim_step(
                latent, prediction, self.alpha_bar(levels[step]), self.alpha_bar(following), kind=kind, **settings
            )

        return self.descend(
            latent,
            levels,
            guided,
            move,
            network=self,
            encode=lambda: self.encode_prompt(prompts[0]),
            progress=progress,
        )

    def _origin(self, prompt: TokenizedPrompt, seed: int) -> dict[str, Any]:
        unknown = self.unknown_words(prompt.text)
        return {"prompt": prompt.text, "seed": seed, "truncated": prompt.truncated, "unknown_words": unknown}

    @staticmethod
    def _rows(alpha: Tensor, latent: Tensor) -> Tensor:
        return alpha.reshape(-1, *(1 for _ in latent.shape[1:]))
