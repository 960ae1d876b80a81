"""What the adapters of diffusers pipelines share: the texts they were told, the schedule, images, and generating."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxplain import __version__
from voxplain.adapters.base import Adapter
from voxplain.adapters.pipelines import replaced
from voxplain.geometry import Geometry, regular
from voxplain.maps import Sample
from voxplain.models.events import Call, Event, Run
from voxplain.models.requests import asked_for
from voxplain.tokens import TokenizedPrompt

Told = str | TokenizedPrompt | Sequence[str | TokenizedPrompt] | None


class PipelineAdapter(Adapter):
    """A diffusers pipeline, heard whether it is called itself or through `generate`; a family says how it is asked.

    `network` is the denoiser; `prompt` tells the text of runs that are given `prompt_embeds`, one for each or one for
    all. Images are `[channels, *spatial]` from 0 to 1; the frames of a volume are images to the autoencoder.
    """

    pipe: Any
    network: Any
    events: Any
    """The `PipelineEvents` that hear it."""

    def __init__(self, pipe: Any, network: Any, channels: int, grid: tuple[int, ...], prompt: Told) -> None:
        self.pipe, self.network = pipe, network
        self.name = Path(str(getattr(pipe, "name_or_path", None) or type(pipe).__name__)).name
        self.localizing_layers = ()
        self.latent_shape = (channels, *grid)
        self.geometry = self.image_geometry(grid)
        self._told = [prompt] if isinstance(prompt, str | TokenizedPrompt) else prompt and list(prompt)
        self._schedules: dict[int, tuple[Any, Any]] = {}  # the pipeline's scheduler, and one of so many steps

    def image_geometry(self, grid: tuple[int, ...]) -> Geometry:
        """Of the image of a latent grid; pixels are taken as millimeters, and the geometry says that nobody knows."""
        scale = self.pipe.vae_scale_factor
        return replace(regular((*grid[:-2], *(scale * size for size in grid[-2:])), 1.0), spacing_known=False)

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs."""
        return self.pipe._execution_device

    def default(self, name: str) -> Any:
        """What the pipeline does where its user says nothing."""
        return signature(type(self.pipe).__call__).parameters[name].default

    @property
    def prediction(self) -> str | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the scheduler of the moment names it; flow matching names nothing."""
        kind = self.pipe.scheduler.config.get("prediction_type")
        return "v" if kind == "v_prediction" else kind

    @property
    def usual_guidance(self) -> float:
        """The guidance scale of `generate` where nobody gives one."""
        return float(self.default("guidance_scale"))

    # seams --------------------------------------------------------------------------------------------------------

    def watching(self, callback: Callable[[Event], None]) -> AbstractContextManager[None]:
        return self.events.watching(callback)

    def predicting(self, call: Call) -> AbstractContextManager[None]:
        return self.events.predicting(call)

    # text ---------------------------------------------------------------------------------------------------------

    def prompts(self, given: Mapping[str, Any], samples: int) -> tuple[TokenizedPrompt, ...]:
        """One prompt a sample, from the arguments of the pipeline's `encode_prompt`."""
        texts = self.texts(given, samples)
        return tuple(text if isinstance(text, TokenizedPrompt) else self.tokenize(text) for text in texts)

    def texts(self, given: Mapping[str, Any], samples: int) -> list[str | TokenizedPrompt]:
        """The text of each sample, from the arguments of the pipeline's `encode_prompt`."""
        texts: Any = given.get("prompt")
        if texts is None:
            if self._told is None:
                raise ValueError(
                    "the pipeline was given embeddings for its text, so nobody knows the words; tell the text by "
                    "voxplain.trace(voxplain.as_adapter(pipe, prompt=...))"
                )
            texts = self._told
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts or samples % len(texts):
            raise ValueError(f"{len(texts)} texts for {samples} samples; give one for all, or one for each prompt")
        return [text for text in texts for _ in range(samples // len(texts))]

    # the schedule -------------------------------------------------------------------------------------------------

    def schedule(self, scheduler: Any, steps: int) -> None:
        """Set the noise levels of a scheduler as the pipeline does for the adapter's own size."""
        scheduler.set_timesteps(steps)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        own, known = self.pipe.scheduler, self._schedules.get(steps)
        if known is None or known[0] is not own:  # it may have been exchanged
            known = self._schedules[steps] = own, copy.deepcopy(own)
            self.schedule(known[1], steps)
        return tuple(float(level) for level in known[1].timesteps)

    def add_noise(self, latent: Tensor, noise: Tensor, timestep: float) -> Tensor:
        scheduler = self.pipe.scheduler
        if not hasattr(scheduler, "add_noise"):  # flow matching: a straight line between the latent and the noise
            level = timestep / scheduler.config["num_train_timesteps"]
            return (1 - level) * latent + level * noise
        scheduler, level = self._at(timestep)
        return scheduler.add_noise(latent, noise, level[None])

    def scaled(self, latent: Tensor, timestep: float) -> Tensor:
        """The latent as the scheduler hands it to the network."""
        if not hasattr(self.pipe.scheduler, "scale_model_input"):
            return latent
        scheduler, level = self._at(timestep)
        return scheduler.scale_model_input(latent, level)

    def _at(self, timestep: float) -> tuple[Any, Tensor]:
        """A scheduler that stands at a noise level, and the timestep as it writes it."""
        own = self.pipe.scheduler
        if hasattr(own, "sigmas_interpol") or hasattr(own, "mid_point_sigma"):
            raise NotImplementedError(
                f"{type(own).__name__} evaluates between its noise levels, at some that only its run knows; exchange "
                "it, say by EulerDiscreteScheduler.from_config(pipe.scheduler.config)"
            )
        known = [own, *(scheduler for origin, scheduler in self._schedules.values() if origin is own)]
        away = [(one.timesteps.float() - timestep).abs() for one in known]
        near = [number for number, distance in enumerate(away) if float(distance.min()) < 1e-3]
        if not near and hasattr(own, "sigmas"):
            raise ValueError(
                f"{type(own).__name__} knows the noise levels of its schedule only, and {timestep:g} is none of "
                "them; take one of timesteps(steps)"
            )
        scheduler = copy.copy(known[near[0] if near else 0])
        for counter in ("_step_index", "_begin_index"):
            if hasattr(scheduler, counter):
                setattr(scheduler, counter, None)
        nearest = scheduler.timesteps[away[near[0]].argmin()] if near else torch.tensor(timestep)
        return scheduler, nearest.to(scheduler.timesteps)

    # images -------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode_image(self, image: Float[np.ndarray, "channels *spatial"]) -> Float[Tensor, "1 dim *grid"]:
        vae = self._vae()
        values = torch.tensor(np.asarray(image, np.float32))[None].to(self.device, vae.dtype)
        encoded = vae.encode(2 * flat(values) - 1)
        latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latent
        return deep((latent - self._shift) * vae.config["scaling_factor"], values.shape[2:-2])

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "batch dim *grid"]) -> Float[np.ndarray, "batch channels *spatial"]:
        vae = self._vae()
        stacked = flat(latent).to(self.device, vae.dtype) / vae.config["scaling_factor"] + self._shift
        image = vae.decode(stacked, return_dict=False)[0]
        return deep((image / 2 + 0.5).clamp(0, 1), latent.shape[2:-2]).float().cpu().numpy()

    def _vae(self) -> Any:
        if self.pipe.vae.config.get("latents_mean") is not None:
            raise NotImplementedError(
                f"the autoencoder of {self.name} shifts its latents channel by channel, which is not known here"
            )
        return self.pipe.vae

    @property
    def _shift(self) -> float:
        return self.pipe.vae.config.get("shift_factor") or 0.0

    # generating ---------------------------------------------------------------------------------------------------

    def usual(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        """The arguments that every pipeline takes, those that somebody gave."""
        asked: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        asked["negative_prompt"] = negative_prompt if negative_prompt is None else [negative_prompt] * samples
        return {name: value for name, value in asked.items() if value is not None}

    @abstractmethod
    def asked(
        self, samples: int, steps: int | None, guidance_scale: float | None, negative_prompt: str | None
    ) -> dict[str, Any]:
        """The arguments that the pipeline is called with beside the prompts, for so many of them."""

    def images(self, made: Any) -> Float[np.ndarray, "samples channels *spatial"]:
        """The images of what the pipeline returned."""
        return np.moveaxis(np.asarray(made.images, np.float32), -1, 1)

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
        if "image" in signature(type(self.pipe).__call__).parameters:
            raise NotImplementedError(
                f"{type(self.pipe).__name__} needs more than a prompt; call the pipeline itself inside voxplain.trace"
            )
        most = self.pipe.scheduler.config["num_train_timesteps"]
        scale = self.usual_guidance if guidance_scale is None else guidance_scale
        texts, seeds = asked_for(prompt, seed, samples, 1 if steps is None else steps, most, scale)
        runs: list[Run] = []
        with (
            self.on_run(runs.append),
            self.on_step(lambda step: progress and progress(step.step + 1, runs[-1].steps)),
            replaced(self.pipe, "_progress_bar_config", lambda before: {**(before or {}), "disable": True}),
        ):
            made = self.pipe(
                prompt=texts,
                generator=[torch.Generator().manual_seed(one) for one in seeds],
                output_type="np",
                **self.asked(len(texts), steps, guidance_scale, negative_prompt),
            )
        common = {
            "model": self.name,
            "weights": self.weights_hash,
            "steps": runs[-1].steps,
            "guidance_scale": scale,
            "negative_prompt": negative_prompt or "",
            "sampler": type(self.pipe.scheduler).__name__,
            "version": __version__,
        }
        found = []
        for image, text, start in zip(self.images(made), texts, seeds, strict=True):
            origin = {"prompt": text, "seed": start, "truncated": self.tokenize(text).truncated, "unknown_words": []}
            found.append(Sample(image, self.geometry, text, {**common, **origin}, "intensity"))
        return found[0] if isinstance(prompt, str) and samples == 1 else found


def latent_grid(native: int | Sequence[int], size: Sequence[int] | None, scale: int) -> tuple[int, ...]:
    """The cells of a latent of (rows, columns) pixels, or the network's native ones; `scale` pixels to a cell."""
    if size is None:
        return (native, native) if isinstance(native, int) else tuple(native)
    if any(edge % scale for edge in size):
        raise ValueError(f"size {tuple(size)} is no multiple of {scale}, the pixels of a latent cell")
    return tuple(edge // scale for edge in size)


def flat(volumes: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "images channels rows columns"]:
    """Every frame as an image of the batch; images stay as they are."""
    return volumes.movedim(1, -3).flatten(0, -4)


def deep(images: Float[Tensor, "images channels rows columns"], frames: Sequence[int]) -> Float[Tensor, "..."]:
    """The inverse of `flat`, `[batch, channels, *frames, rows, columns]`; `frames` is empty for images."""
    return images.unflatten(0, (-1, *frames)).movedim(-3, 1)
