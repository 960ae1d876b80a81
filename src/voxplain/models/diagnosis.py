"""Where a NaN came from."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NoReturn

import torch
from torch import Tensor, nn


def explain_nan(model: nn.Module, again: Callable[[], Any], where: str) -> NoReturn:
    """Run `again` once more and raise an error that names the first module of `model` with a bad output."""
    bad: list[str] = []
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if not any(module.children()):
                hooks.callback(module.register_forward_hook(_noting(name, bad)).remove)
        again()
    source = f"the first module to make one is {bad[0]!r}" if bad else "no module made one: the latent overflowed"
    raise FloatingPointError(f"NaN or infinity at {where}; {source}. Check the weights, or lower guidance_scale.")


def _noting(name: str, bad: list[str]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            bad.append(name)

    return hook
