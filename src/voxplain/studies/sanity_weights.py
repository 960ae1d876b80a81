"""Shuffling a network's weights from its end, and putting them back: what a map of learned attention cannot survive."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from voxplain.adapters.base import Adapter

STAGES = 4  # in which the weights are shuffled


def network_of(adapter: Adapter) -> nn.Module | None:
    """The denoiser; None where an adapter keeps it to itself."""
    holders = (adapter, getattr(adapter, "pipeline", None))
    found = (getattr(holder, name, None) for holder in holders for name in ("network", "unet"))
    return next((module for module in found if isinstance(module, nn.Module)), None)


@contextmanager
def shuffling(network: nn.Module, seed: int) -> Iterator[Callable[[int], None]]:
    """Shuffle the entries of each weight, stage by stage from the network's end; all are put back in the end.

    Modules are taken in the order in which they were made, which for networks of blocks is that of the forward pass.
    """
    weights = list(network.parameters())[::-1]
    kept = [weight.detach().clone() for weight in weights]
    edges = [round(stage * len(weights) / STAGES) for stage in range(STAGES + 1)]
    generator = torch.Generator().manual_seed(seed)

    def shuffle(stage: int) -> None:
        for weight in weights[edges[stage] : edges[stage + 1]]:
            order = torch.randperm(weight.numel(), generator=generator).to(weight.device)
            weight.data.copy_(weight.data.flatten()[order].view_as(weight))

    try:
        yield shuffle
    finally:
        for weight, values in zip(weights, kept, strict=True):
            weight.data.copy_(values)
