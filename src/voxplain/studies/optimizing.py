"""An optimizer for a short training: Muon for the matrices of a network's blocks, AdamW for everything else."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class MuonAndAdamW:
    """Two optimizers of PyTorch behind one face: Muon (Jordan et al. 2024) for matrices, AdamW for the rest.

    `matrices` have two axes or more; convolutions count as matrices of [outputs, everything else]. Both take the same
    rate (Muon's steps are brought to the size of AdamW's, Liu et al. 2025). `groups` are AdamW's parameter groups.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], groups: list[dict[str, Any]], rate: float) -> None:
        self._kernels = list(matrices)
        self._views = [nn.Parameter(_matrix(kernel)) for kernel in self._kernels]
        for kernel, view in zip(self._kernels, self._views, strict=True):
            if kernel.data_ptr() != view.data_ptr():
                raise ValueError(
                    f"a kernel of {tuple(kernel.shape)} with strides {kernel.stride()}: channels last only"
                )
        muon = torch.optim.Muon(self._views, rate, weight_decay=1e-2, adjust_lr_fn="match_rms_adamw")
        self._parts = {"muon": muon, "adamw": torch.optim.AdamW(groups, rate, weight_decay=1e-3, fused=True)}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for part in self._parts.values() for group in part.param_groups]

    def zero_grad(self) -> None:
        self._parts["adamw"].zero_grad()
        for kernel in self._kernels:
            kernel.grad = None

    def step(self) -> None:
        for view, kernel in zip(self._views, self._kernels, strict=True):
            assert kernel.grad is not None
            view.grad = _matrix(kernel.grad)
        for part in self._parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self._parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self._parts.items():
            part.load_state_dict(state[name])


def split(network: nn.Module, plain: tuple[str, ...]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The matrices of a network that are not in the submodules named `plain`, and its other parameters."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        inner = parameter.ndim >= 2 and name.partition(".")[0] not in plain
        (matrices if inner else others).append(parameter)
    return matrices, others


def _matrix(kernel: Tensor) -> Tensor:
    """[outputs, rest], in the order in which a kernel lies in memory: a parameter's is a view of it."""
    return kernel.detach().movedim(1, -1).flatten(1)
