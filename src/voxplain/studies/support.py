"""The recipe `support` (ours): not what a word changed, but where that brings the prediction nearer to the image.

    s_w(x) = max(0, G * mean over states t of  < z - z_t(c without w), z_t(c) - z_t(c without w) >(x) / (M_t D_t))

z is the clean latent of the image, z_t(c) what the network takes for it at a noisy state of it with the text c, <.,.>
the product over channels; M_t and D_t are the root mean squares over cells of the two norms, G a Gaussian. So the mean
of s over cells, before G and the cut at zero, is the cosine between what the word changes and what was missing without
it: the `evidence` for the word, -1 to 1. A word that the image does not bear out has about 0, or less.

After the pointwise information of Kong et al., ICLR 2024 (arXiv 2310.07972), |z - z_t(c without w)|^2 - |z - z_t(c)|^2.
That is twice the product above less |z_t(c) - z_t(c without w)|^2, so it counts against a word that goes the right way
too far. The scale by M_t and D_t, the Gaussian and the cut are ours, chosen on `dev` (docs/effect.md).
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from voxplain import recipes
from voxplain.adapters.base import Adapter
from voxplain.maps import Attribution, Sample, Trajectory
from voxplain.models.schedule import estimates
from voxplain.studies.effect import (
    LIMIT,
    ROUNDING,
    How,
    Pass,
    Progress,
    by_word,
    origin,
    passes,
    removal,
    rows_of_words,
)
from voxplain.studies.inverting import alpha_bar, prediction
from voxplain.tokens import TokenizedPrompt, label

STEPS = 50  # noise levels of a schedule, to look at one of them
TINY = 1e-30  # instead of 0, where nothing was missing without the word
SMOOTH = 1.5 / 16  # standard deviation of the Gaussian, as a share of the grid along each axis


def check(adapter: Adapter) -> None:
    """Raise ValueError where DDIM does not apply to the model, so that a prediction is no estimate of the image."""
    prediction(adapter)
    alpha_bar(adapter, torch.zeros(1, *adapter.latent_shape), adapter.timesteps(STEPS)[0])


def supports(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    sample: Sample,
    states: Trajectory,
    removals: Sequence[tuple[int, ...]],
    *,
    how: How | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> tuple[Float[np.ndarray, "removals *grid"], Float[np.ndarray, " removals"]]:
    """The map of each set of rows of the prompt, as the formula of this module has it, and the evidence for it.

    `states` are noisy states of the sample; options as in `effect.differences`, and the same price a state. Where a
    removal changes nothing, both are 0. Raises ValueError where DDIM does not apply to the model (`check`), and
    FloatingPointError for a prediction that is not finite.
    """
    return borne_out(
        adapter, sample, passes(adapter, prompt, states, removals, how=how, limit=limit, progress=progress)
    )


def borne_out(
    adapter: Adapter, sample: Sample, made: Iterable[Pass]
) -> tuple[Float[np.ndarray, "removals *grid"], Float[np.ndarray, " removals"]]:
    """`supports` of passes that were made before."""
    kind = prediction(adapter)
    with torch.no_grad():
        clean = adapter.encode_image(sample.image).float()  # [1, channels, *grid]
    total, count = 0.0, 0
    for latent, level, full, others in made:
        alpha, noisy = alpha_bar(adapter, clean, level), latent.float()
        whole, without = (estimates(noisy.expand_as(one), one, alpha, kind)[0] for one in (full[None], others))
        missing, change = clean - without, whole - without  # [removals, channels, *grid]
        products, sizes = (missing * change).sum(1), _size(missing) * _size(change)
        if not torch.isfinite(sizes).all():
            raise FloatingPointError(f"{adapter.name}: the prediction at timestep {level:g} is not finite")
        moved = _size(change) > ROUNDING * _size(whole)
        total, count = total + (products / sizes.clamp(min=TINY)).where(moved, 0.0), count + 1  # [removals, *grid]
    assert isinstance(total, Tensor)
    signed = (total / count).cpu().numpy()
    smooth = gaussian_filter(signed, (0, *(SMOOTH * size for size in signed.shape[1:])), mode="nearest")
    return np.maximum(smooth, 0), signed.reshape(len(signed), -1).mean(1)


def support_words(
    adapter: Adapter,
    prompt: TokenizedPrompt,
    sample: Sample,
    states: Trajectory,
    *,
    how: How | None = None,
    limit: int = LIMIT,
    progress: Progress | None = None,
) -> Attribution:
    """The support of every word, as `effect.measure_words` has its effect; the `evidence` is in the provenance."""
    how, rows = how or removal(adapter, prompt), rows_of_words(prompt)
    maps, evidence = supports(adapter, prompt, sample, states, rows, how=how, limit=limit, progress=progress)
    told = {label(word): round(float(value), 6) for word, value in zip(prompt.words, evidence, strict=True)}
    return by_word(adapter, prompt, recipes.get("support"), maps, {"removed": how, **origin(states), "evidence": told})


def _size(values: Float[Tensor, "rows channels *grid"]) -> Float[Tensor, "rows *ones"]:
    """Root mean square over cells of the norm over channels, shaped to divide `[rows, *grid]`."""
    size = values.square().sum(1).flatten(1).mean(1).sqrt()
    return size.reshape(-1, *(1 for _ in values.shape[2:]))
