"""Noise schedules, the levels that a sampler visits, and the deterministic step between two of them."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

PREDICTIONS = ("v", "epsilon", "sample")  # what a denoiser may be trained to predict


def alpha_bars(kind: str, steps: int, shift: float = 1.0) -> Float[Tensor, " steps"]:
    """The share of signal variance left at each noise level, falling from almost 1 to almost 0.

    "cosine": Nichol and Dhariwal 2021, equation 17, betas at most 0.999. "scaled_linear": Rombach et al. 2022.
    `shift` multiplies the signal's amplitude over that of the noise, so the signal-to-noise ratio by its square
    (Hoogeboom et al. 2023, section 3.1, their 64 / d): below 1 for images of many redundant cells, where a large
    structure stays visible under noise that hides each cell.
    """
    if kind == "cosine":
        curve = np.cos((np.linspace(0, 1, steps + 1) + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    elif kind == "scaled_linear":
        betas = np.linspace(0.00085**0.5, 0.012**0.5, steps) ** 2
    else:
        raise ValueError(f"schedule {kind!r}; known are 'cosine' and 'scaled_linear'")
    kept = np.cumprod(1 - betas)
    return torch.from_numpy(kept * shift**2 / (kept * shift**2 + 1 - kept)).float()


def timesteps(steps: int, total: int, finest: int = 0) -> tuple[float, ...]:
    """`steps` levels of `finest`..`total` - 1, evenly spaced, from the last (Lin et al. 2024, table 2, "trailing").

    The step after the least noisy of them goes to the clean image. `finest` above 0 spares a network the levels at
    which it leaves noise behind.
    """
    if not 1 <= steps <= total - finest:
        raise ValueError(f"steps = {steps}; give 1 to {total - finest}")
    return tuple(float(round(total - index * (total - finest) / steps) - 1) for index in range(steps))


def estimates(
    latent: Float[Tensor, "batch channels *grid"],
    prediction: Float[Tensor, "batch channels *grid"],
    alpha: Float[Tensor, ""],
    kind: str = "v",
) -> tuple[Float[Tensor, "batch channels *grid"], Float[Tensor, "batch channels *grid"]]:
    """The clean latent and the noise that a prediction of one of `PREDICTIONS` stands for (Salimans and Ho, 2022)."""
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    if kind == "epsilon":
        return (latent - spread * prediction) / signal, prediction
    if kind == "sample":
        return prediction, (latent - signal * prediction) / spread
    return signal * latent - spread * prediction, spread * latent + signal * prediction


def ddim_step(
    latent: Float[Tensor, "batch channels *grid"],
    prediction: Float[Tensor, "batch channels *grid"],
    alpha: Float[Tensor, ""],
    following: Float[Tensor, ""],
    *,
    kind: str = "v",
    clip: Sequence[float] | None = None,
) -> Float[Tensor, "batch channels *grid"]:
    """The latent at the next level (Song et al. 2021, equation 12, sigma 0), from a prediction at this one.

    `clip` bounds the clean latent, as schedulers with `clip_sample` do; the noise stays what was predicted.
    """
    clean, noise = estimates(latent, prediction, alpha, kind)
    if clip is not None:
        clean = clean.clamp(*clip)
    return following.sqrt() * clean + (1 - following).sqrt() * noise
