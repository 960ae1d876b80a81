"""Which order of the up levels a checkpoint was trained in: its names and shapes fit both."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from voxplain.models.medsyn.network import UP_ORDERS, MedSynNetwork, UpOrder
from voxplain.models.medsyn.sampling import alpha_bar

CLEAR = 2.0  # how many times larger the worse error must be


@dataclass(frozen=True, slots=True)
class OrderTest:
    """The root mean square error of the clean volume in each order."""

    errors: dict[UpOrder, float]

    @property
    def ratio(self) -> float:
        """The worse error over the better one."""
        return max(self.errors.values()) / max(min(self.errors.values()), 1e-12)

    @property
    def best(self) -> UpOrder | None:
        """The order that fits the weights; None where the errors are too close to tell."""
        return min(self.errors, key=lambda order: self.errors[order]) if self.ratio >= CLEAR else None

    def __str__(self) -> str:
        errors = ", ".join(f"{order} {error:.3g}" for order, error in self.errors.items())
        return f"error of the clean volume: {errors}; " + (f"{self.best} fits" if self.best else "too close to tell")


@torch.no_grad()
def fit_up_order(
    network: MedSynNetwork,
    volume: Float[Tensor, "channels frames rows columns"] | None = None,
    *,
    shape: tuple[int, int, int] = (16, 64, 64),
    time: float = 20.0,
) -> OrderTest:
    """One forward in each order on a volume with little noise (time 20 of 1000) and no text; nothing is changed.

    A trained denoiser nearly hands back what it is given there, and only in its own order. `volume` is in -1..1, by
    default a plain chest of the given `shape`; a real one is a sharper test.
    """
    given = torso(network.channels, shape) if volume is None else volume
    weight = network.init_conv.weight
    clean = given[None].to(weight)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(weight)
    alpha = alpha_bar(time).to(weight)
    noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    was, errors = network.up_order, {}
    try:
        for order in UP_ORDERS:
            network.up_order = order
            found = network(noisy, weight.new_full((1,), time), network.null_cond_emb)
            errors[order] = float((found - clean).float().square().mean().sqrt())
    finally:
        network.up_order = was
    return OrderTest(errors)


def torso(channels: int, shape: tuple[int, int, int]) -> Float[Tensor, "channels frames rows columns"]:
    """A body with two lungs and a spine in the training range -1..1, of which the lungs are labeled as lobes."""
    ends = (shape[0] / max(shape), 1, 1)  # few slices are a slab of the middle
    axes = [torch.linspace(-end, end, size) for end, size in zip(ends, shape, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")  # rows grow to anterior
    body = (x / 0.9).square() + (y / 0.7).square() < 1
    lungs = ((x.abs() - 0.42) / 0.3).square() + (y / 0.5).square() + (z / 0.9).square() < 1
    spine = (x / 0.12).square() + ((y + 0.5) / 0.12).square() < 1
    hounsfield = torch.full(shape, -1000.0).masked_fill(body, 40.0).masked_fill(lungs, -850.0).masked_fill(spine, 400.0)
    labels = torch.full((channels - 1, *shape), -1.0)
    labels[:1] = torch.where(lungs, 0.2, -1.0)
    return torch.cat([(hounsfield[None] + 1024) / 812 - 1, labels])
