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
    _check_steps(steps, total, finest)
    return tuple(float(round(total - index * (total - finest) / steps) - 1) for index in range(steps))


def even_steps(steps: int, alphas: Float[Tensor, " levels"], finest: int, loudest: float) -> tuple[float, ...]:
    """`steps` levels down to `finest`, between which noise over signal falls by one factor.

    The first is at noise over signal of `loudest`: beyond it a state says nothing of its image, and no step is spent.
    Even in the logarithm, as Karras et al. 2022 (table 1, there with an exponent): a schedule's own numbers may lie
    dense where an image is decided by then, or nowhere near the noise at which a small one is.
    """
    _check_steps(steps, len(alphas), finest)
    noise = log_noise(alphas)
    wanted = torch.linspace(min(math.log(loudest), noise[-1].item()), noise[finest].item(), steps)
    levels = [int((noise - one).abs().argmin()) for one in wanted]
    above = len(alphas)
    for index, level in enumerate(levels):  # neighbors must differ, also where there are more steps than levels
        above = levels[index] = max(min(level, above - 1), finest + steps - 1 - index)
    return tuple(map(float, levels))


def log_noise(alphas: Float[Tensor, " levels"]) -> Float[Tensor, " levels"]:
    """The logarithm of noise over signal, in amplitude, at each level."""
    return 0.5 * torch.log((1 - alphas) / alphas.clamp(min=1e-20))


def _check_steps(steps: int, total: int, finest: int) -> None:
    if not 1 <= steps <= total - finest:
        raise ValueError(f"steps = {steps}; give 1 to {total - finest}")


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
    quieting: float = 0.0,
) -> Float[Tensor, "batch channels *grid"]:
    """The latent at the next level (Song et al. 2021, equation 12, sigma 0), from a prediction at this one.

    `clip` bounds the clean latent, as schedulers with `clip_sample` do; the noise stays what was predicted. `quieting`
    above 0 keeps less noise: its amplitude over the signal's, which falls by a factor, falls by that to the power of
    1 + `quieting`. A network that takes a share of the noise for image leaves it behind, and over many steps that adds
    up (ours, after the "epsilon scaling" of Ning et al. 2024, who divide the prediction by a constant).
    """
    clean, noise = estimates(latent, prediction, alpha, kind)
    if clip is not None:
        clean = clean.clamp(*clip)
    fallen = ((1 - following) / following * alpha / (1 - alpha)).sqrt()  # noise over signal, against that before
    return following.sqrt() * clean + (1 - following).sqrt() * fallen**quieting * noise
