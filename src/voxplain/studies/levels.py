"""Which noise levels a training draws: those that are sampled, and more of them where the text decides."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from voxplain.models.latent_diffusion import LatentDiffusion
from voxplain.models.schedule import log_noise

NEAR = (0.15, 8.0)  # every other family has noise of so many times what a pair of it differs by


class Levels:
    """The noise levels that a pipeline visits, by numbers of 0 to 1: evenly in the logarithm of noise over signal.

    `noise` is that logarithm at each level; 0 is the level `finest` of the pipeline's configuration, 1 is `loudest`.
    """

    def __init__(self, pipeline: LatentDiffusion) -> None:
        self.noise = log_noise(pipeline.alphas.cpu())
        self.low = self.noise[pipeline.config["finest"]].item()
        self.high = math.log(pipeline.config["loudest"])

    def at(self, numbers: Float[Tensor, " families"]) -> Int[Tensor, " families"]:
        """The levels nearest to some numbers."""
        wanted = self.low + numbers * (self.high - self.low)
        return (self.noise - wanted[:, None]).abs().argmin(1)

    def number(self, noise: Float[Tensor, " families"]) -> Float[Tensor, " families"]:
        """The numbers of some logarithms of noise over signal, the nearest that there are."""
        return ((noise - self.low) / (self.high - self.low)).clamp(0, 1)

    def draw(
        self, step: int, pairs: Float[Tensor, "families pairs"], generator: torch.Generator
    ) -> Float[Tensor, " families"]:
        """A number for each family: any for every other one, for the rest within `NEAR` of what one of its `pairs`
        differs by (`weighing.apart`), which is where its text decides (ours).
        """
        uniform, reach = torch.rand(2, len(pairs), generator=generator)
        chosen = torch.randint(pairs.shape[1], (len(pairs), 1), generator=generator)
        low, high = torch.tensor(NEAR).log()
        near = self.number(pairs.gather(1, chosen)[:, 0].log() + torch.lerp(low, high, reach))
        return torch.where((step + torch.arange(len(pairs))) % 2 == 0, uniform, near)
