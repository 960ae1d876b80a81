"""MedSyn's noise schedule in continuous time, the times that its sampler visits, and the step between two of them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LAST = 1000.0  # time of pure noise; 0 is the time of the volume itself


def alpha_bar(time: float) -> Float[Tensor, ""]:
    """The share of signal variance left at a time 0..1000: the cosine of Nichol and Dhariwal 2021 (equation 17), not
    divided by its value at 0, and kept within 1e-4..1 - 1e-4.
    """
    curve = math.cos((time / LAST + 0.008) / 1.008 * math.pi / 2) ** 2
    return torch.tensor(min(max(curve, 1e-4), 1 - 1e-4))


def timesteps(steps: int) -> tuple[float, ...]:
    """The times of `steps` evaluations, evenly spaced from 1000 down to and including 0; a single one is at 1000."""
    if steps < 1:
        raise ValueError(f"steps = {steps}; give 1 or more")
    return tuple(LAST * left / (steps - 1) for left in range(steps - 1, -1, -1)) if steps > 1 else (LAST,)


def ddim_step(
    latent: Float[Tensor, "batch channels *grid"],
    clean: Float[Tensor, "batch channels *grid"],
    time: float,
    following: float,
) -> Float[Tensor, "batch channels *grid"]:
    """The volume at the following time (Song et al. 2021, equation 12, sigma 0), from an estimate of the clean one."""
    now, then = alpha_bar(time).to(latent.device), alpha_bar(following).to(latent.device)
    noise = (latent - now.sqrt() * clean) / (1 - now).sqrt()
    return then.sqrt() * clean + (1 - then).sqrt() * noise
