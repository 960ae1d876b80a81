"""Which errors of a denoiser count how much while it is trained."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

HEARD = (1.5, 12.0)  # noise over signal between which the contrast fades in: below, the image tells siblings apart
BANDS, FLOOR, MOST = 10, 0.02, 20.0  # of noise levels; least expected error and highest weight of a cell
TYPICAL = 0.004  # mean square by which latents of siblings differ from their mean
EVENED = 4.0  # how much more or less a family may weigh for it


def heard(noise: Float[Tensor, " families"]) -> Float[Tensor, " families"]:
    """0 to 1: how far a family's contrast counts at its noise over signal, given as a logarithm."""
    low, high = map(math.log, HEARD)
    return ((noise - low) / (high - low)).clamp(0, 1)


def evening(clean: Float[Tensor, "families siblings *rest"]) -> Float[Tensor, "families *ones"]:
    """A weight for each family that falls with the root of how much its siblings differ, 1 at `TYPICAL` (ours).

    So what changes a hundredth of what an effusion changes counts a tenth as much, not a hundredth.
    """
    apart = (clean - clean.mean(1, keepdim=True)).square().mean(tuple(range(1, clean.ndim)), keepdim=True)
    return (TYPICAL / apart.clamp(min=1e-6)).sqrt().clamp(1 / EVENED, EVENED)


class Precision(nn.Module):
    """Weights of cells and channels: the inverse of the squared error that is usual there (ours).

    A body's outline errs a hundred times more than the middle of a lung, where most findings lie, and would have
    nearly all of the gradient. A weight depends on place, channel and noise level alone, never on the image, so the
    prediction that is best does not change (as in a Gaussian likelihood with a variance of its own at each place).
    Channels that vary more weigh more, in proportion: what faint ones hold is texture that no text tells.
    """

    def __init__(self, spread: Float[Tensor, "channels *ones"], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("worth", spread / spread.mean(), persistent=False)
        self.register_buffer("usual", torch.ones(BANDS, *shape))
        self.register_buffer("seen", torch.zeros(BANDS))

    worth: Tensor
    usual: Tensor
    seen: Tensor

    def weigh(
        self, error: Float[Tensor, "families siblings channels *grid"], bands: Int[Tensor, " families"]
    ) -> Float[Tensor, "families 1 channels *grid"]:
        """The weights of some errors of the denoiser, 1 on average, from what was usual with these included."""
        found = error.detach().square().mean(1)  # [families, channels, *grid]
        for band, one in zip(bands.tolist(), found, strict=True):
            self.usual[band].lerp_(one, max(0.02, 1 / (2 + self.seen[band].item())))
            self.seen[band] += 1
        weights = self.worth / (self.usual[bands.to(found.device)] + FLOOR)
        average = weights.mean(tuple(range(1, weights.ndim)), keepdim=True)
        return (weights / average).clamp(max=MOST)[:, None]
