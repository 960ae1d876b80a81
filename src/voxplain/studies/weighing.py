"""Which errors of a denoiser count how much while it is trained."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

HEARD = (0.15, 0.8)  # noise over what a pair differs by: between these its contrast fades in
BANDS, FLOOR, MOST = 10, 0.02, 20.0  # of noise levels; least expected error and highest weight of a cell
TYPICAL = 3 / 64  # what a pair differs by, a number of the latent (root mean square)
EVENED, POWER = 8.0, 1.5  # how much more or less a pair may weigh for it, and how fast


def apart(clean: Float[Tensor, "families siblings *rest"]) -> Float[Tensor, "families pairs"]:
    """Half the distance of every further sibling from the first: what the pair differs by."""
    return (clean[:, 1:] - clean[:, :1]).flatten(2).norm(dim=2) / 2


def heard(noise: Float[Tensor, "families #pairs"], apart: Float[Tensor, "families pairs"]) -> Tensor:
    """0 to 1: how far a pair's contrast counts at its noise over signal, given as a logarithm (ours).

    Where noise is a small part of what two siblings differ by, the image tells them apart and the text need not: an
    effusion is seen through seven times the noise of a nodule.
    """
    low, high = map(math.log, HEARD)
    return ((noise - apart.clamp(min=1e-3).log() - low) / (high - low)).clamp(0, 1)


def evening(apart: Float[Tensor, "families pairs"], numbers: int) -> Float[Tensor, "families pairs"]:
    """A weight for each pair of latents of so many `numbers` that falls with what it differs by, to the power of 1.5,
    and is 1 at `TYPICAL` (ours).

    A squared error grows with that to the power of 2: so what is a tenth of an effusion counts a third as much, not a
    hundredth.
    """
    return (TYPICAL * math.sqrt(numbers) / apart.clamp(min=1e-3)).pow(POWER).clamp(1 / EVENED, EVENED)


def contrast(
    error: Float[Tensor, "families siblings channels *grid"], weights: Float[Tensor, "families pairs"]
) -> Float[Tensor, "families pairs channels *grid"]:
    """The weighed squared error that each further sibling does not share with the first."""
    return weights.reshape(*weights.shape, *(1 for _ in error.shape[2:])) * (error[:, 1:] - error[:, :1]).square() / 4


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
