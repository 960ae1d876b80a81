"""DDIM inversion: from a given image up to the noise that the model would have made it from.

    z_t = sqrt(a_t) z_0' + sqrt(1 - a_t) e,   z_0' = (z_s - sqrt(1 - a_s) e) / sqrt(a_s),   e = noise of f(z_s, t, c)

from each level s to the next noisier level t (Song et al. 2021, equation 12 with its ends exchanged: e is taken at z_s
where z_t is not known yet, and that is its error). The text is read at guidance 1, nothing is drawn. How well it went
is measured: the same steps are taken back down, and the latent and the image that come out are compared with those
that went in.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from voxplain.adapters.base import Adapter
from voxplain.maps import Sample, Trajectory
from voxplain.models.schedule import PREDICTIONS, ddim_step, estimates
from voxplain.studies.effect import PROBE
from voxplain.tokens import TokenizedPrompt

TOLERANCE = 1e-3  # how far signal and noise may be from a variance of one


@dataclass(frozen=True, slots=True, eq=False)
class Inversion:
    """The latents on the way up, noisiest first, and the error of the way up and down again.

    `round_trip`: "latent" is the root mean square of the difference over that of the latent; "image" is the mean
    absolute difference to the decoded latent in the sample's `unit`, so the inversion's own part; "autoencoder" is
    that of the decoded latent to the image, which no inversion can undo.
    """

    states: Trajectory
    round_trip: Mapping[str, float | str]


def invert(
    adapter: Adapter,
    sample: Sample,
    prompt: TokenizedPrompt,
    *,
    steps: int,
    used: int,
    progress: Callable[[int, int], None] | None = None,
) -> Inversion:
    """The image's way up to the `used`-th of `steps` noise levels, and back; 2 * `used` passes of the network.

    Raises ValueError, with the model's name, where DDIM does not apply: no known kind of prediction, or noise levels
    that do not keep the variance (flow matching, sigmas). FloatingPointError if a latent is not finite.
    """
    kind, levels = prediction(adapter), adapter.timesteps(steps)[-used:]
    with torch.no_grad():
        context = adapter.encode_prompt(prompt)
        latent = adapter.encode_image(sample.image).float()  # [1, channels, *grid]
        clean = torch.ones((), device=latent.device)
        alphas = [alpha_bar(adapter, latent, level) for level in levels]

        def network(state: Tensor, level: float) -> Tensor:
            made = adapter.predict(state.to(context), level, context, rows=[(0, PROBE)]).float()
            if not torch.isfinite(made).all():
                raise FloatingPointError(
                    f"{adapter.name}: the inversion is not finite at timestep {level:g}; use the profile 'renoise'"
                )
            return made

        state, here, kept = latent, clean, []
        for number, (level, alpha) in enumerate(zip(levels[::-1], alphas[::-1], strict=True), start=1):
            if alpha < here:  # a level without noise is the image itself
                noise = estimates(state, network(state, level), alpha, kind)[1]
                state = alpha.sqrt() * (state - (1 - here).sqrt() * noise) / here.sqrt() + (1 - alpha).sqrt() * noise
            kept.append(state[0].cpu().numpy())
            here = alpha
            if progress:
                progress(number, 2 * used)
        for number, (level, alpha, following) in enumerate(zip(levels, alphas, [*alphas[1:], clean], strict=True), 1):
            if alpha < following:
                state = ddim_step(state, network(state, level), alpha, following, kind=kind)
            if progress:
                progress(used + number, 2 * used)
        before, after = adapter.decode(latent)[0], adapter.decode(state)[0]
    error = (state - latent).square().mean().sqrt() / latent.square().mean().sqrt().clamp(min=1e-12)
    round_trip = {
        "latent": float(error),
        "image": float(np.abs(after - before).mean()),
        "autoencoder": float(np.abs(before - sample.image).mean()),
        "unit": sample.unit,
    }
    return Inversion(Trajectory(np.stack(kept[::-1]), levels, tuple(range(steps - used, steps))), round_trip)


def prediction(adapter: Adapter) -> str:
    """What the denoiser predicts, one of `PREDICTIONS`; ValueError for a model that does not say."""
    kind = adapter.prediction
    if kind not in PREDICTIONS:
        raise ValueError(
            f"{adapter.name} cannot be inverted, nor tell what supports a word: its denoiser predicts "
            f"{kind or 'nothing that it names'}, and DDIM needs {', '.join(PREDICTIONS)}; use the profile 'renoise', "
            "and recipes other than 'support'"
        )
    return kind


def alpha_bar(adapter: Adapter, latent: Float[Tensor, "batch channels *grid"], level: float) -> Float[Tensor, ""]:
    """The share of signal variance at a noise level, as the adapter adds noise; ValueError if variance is not kept."""
    one, nothing = torch.ones_like(latent[:1]), torch.zeros_like(latent[:1])
    signal, noise = adapter.add_noise(one, nothing, level), adapter.add_noise(nothing, one, level)
    if (signal.square() + noise.square() - 1).abs().max() > TOLERANCE:
        raise ValueError(
            f"{adapter.name} cannot be inverted, nor tell what supports a word: at timestep {level:g} it mixes "
            f"{float(signal.mean()):.3g} of the latent and {float(noise.mean()):.3g} of noise, which is no schedule of "
            "DDIM (their squares sum to one); use the profile 'renoise', and recipes other than 'support'"
        )
    return signal.square().mean().clamp(max=1)
