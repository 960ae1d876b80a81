"""Reading MedSyn checkpoints as data, strictly, whatever wrapped them."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from voxplain.models.medsyn.network import STAGES, MedSynNetwork, UpOrder
from voxplain.models.storage import read_weights

LICENSE = (
    "The published MedSyn weights carry CC BY-NC 4.0 at least (that of their repository), and what their application "
    "form demands: non-commercial use only, with attribution. Voxplain does not bundle or download them. Weights that "
    "you trained yourself are under your own terms."
)
PARALLEL, WRAPPER = "module.", "denoise_fn."  # prefixes of multi-GPU training and of the diffusion around the network
LEGACY = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "ddim_sigmas",
        "ddim_alphas",
        "ddim_alphas_prev",
        "ddim_sqrt_one_minus_alphas",
        "ddim_sigmas_for_original_num_steps",
    }
)  # noise schedules that older wrappers stored beside the network; unused
SHARED = [[f"mid_spatial_attn{stage}.fn.fn.fn.{part}.weight" for stage in STAGES] for part in ("to_qkv", "to_out")]
STATE_FILES = {  # of an `accelerate` state folder: the raw model is saved first, its moving average second
    True: ("model_1.safetensors", "pytorch_model_1.bin"),
    False: ("model.safetensors", "pytorch_model.bin"),
}
HEAD_WIDTH = 32  # of every published network; shapes do not tell it
SHOWN = 12  # names listed in an error


class WeightsLicenseWarning(UserWarning):
    """Under which license the weights are that are being loaded."""


class CheckpointError(ValueError):
    """A file that is no checkpoint of the low-resolution MedSyn network, or not readable as plain tensors."""


def load_checkpoint(
    path: str | Path, *, up_order: UpOrder = "up_last", ema: bool = True, dtype: torch.dtype = torch.float32
) -> MedSynNetwork:
    """The network of a checkpoint, in evaluation mode and without gradients; sizes are read from the shapes.

    `path` is a safetensors file, a pickle of plain tensors, or a folder (see `find_file`). The wrappers' prefixes are
    stripped, the 17 entries of old noise schedules dropped, names of shared weights filled in; all else must fit name
    by name and shape by shape, or CheckpointError lists what does not. `up_order` is not in the file: see
    `fit_up_order`. Warns which license published weights carry.
    """
    file = find_file(path, ema=ema)
    state = unwrapped(read_tensors(file), file)
    with torch.device("meta"):
        network = MedSynNetwork(**sizes(state, file), up_order=up_order)
    _must_fit(state, network, file)
    network.load_state_dict({name: value.to(dtype) for name, value in state.items()}, assign=True)
    warnings.warn(LICENSE, WeightsLicenseWarning, stacklevel=2)
    return network.eval().requires_grad_(False)


def find_file(path: str | Path, *, ema: bool = True) -> Path:
    """The weights in a state folder of `accelerate`, or in the last `<number>_ckpt` of a results folder; a file is
    itself. `ema` takes the moving average, which the public inference script samples from; else the raw model.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist; give a MedSyn checkpoint file or the folder that holds it")
    numbered = {int(found[1]): each for each in path.iterdir() if (found := re.fullmatch(r"(\d+)_ckpt", each.name))}
    folder = numbered[max(numbered)] if numbered else path
    for name in STATE_FILES[ema]:
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(each.name for each in folder.iterdir())) or "nothing"
    raise FileNotFoundError(
        f"{folder} holds neither {' nor '.join(STATE_FILES[ema])} ({'averaged' if ema else 'raw'} weights), but "
        f"{there}; name the file itself, or load with ema={not ema}"
    )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A flat mapping from names to tensors; pickles are read as weights only, so that no code in them runs."""
    found = read_weights(path, CheckpointError)
    if not isinstance(found, Mapping):
        found = {"the whole file": found}
    strange = {name: type(value).__name__ for name, value in found.items() if not isinstance(value, Tensor)}
    if strange:
        listed = ", ".join(f"{name} ({kind})" for name, kind in list(strange.items())[:SHOWN])
        raise CheckpointError(f"{path} is no flat mapping from names to tensors: {listed}; save the state_dict alone")
    return dict(found)


def unwrapped(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The network's own names: no prefixes, no schedules of old wrappers, every name of the shared weights."""
    plain: dict[str, Tensor] = {}
    for wrapped, value in state.items():
        name = wrapped.removeprefix(PARALLEL)
        if name in LEGACY:
            continue
        name = name.removeprefix(WRAPPER)
        if name in plain:
            raise CheckpointError(f"{path} holds {name} twice, under different prefixes; keep one model a file")
        plain[name] = value
    for group in SHARED:
        given = [name for name in group if name in plain]
        for other in given[1:]:
            if not torch.equal(plain[given[0]], plain[other]):
                raise CheckpointError(f"{path}: {given[0]} and {other} differ, but MedSyn's stages share these weights")
        plain |= {name: plain[given[0]] for name in group if given}
    return plain


def sizes(state: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """The constructor's arguments, from the shapes of a state with the network's own names."""

    def shape(name: str, axes: int) -> tuple[int, ...]:
        if name not in state or state[name].ndim != axes:
            found = tuple(state[name].shape) if name in state else "missing"
            hint = "" if name != "null_cond_emb" else " (the super-resolution stage reads no text)"
            raise CheckpointError(
                f"{path} is no low-resolution MedSyn network{hint}: {name} is {found}, expected {axes} axes; its names "
                f"are {', '.join(sorted(state)[:SHOWN])}..."
            )
        return tuple(state[name].shape)

    _, context, text = shape("null_cond_emb", 3)
    dim, channels, stem, _, _ = shape("init_conv.weight", 5)
    levels = len({name.split(".")[1] for name in state if name.startswith("downs.")})
    widths = [shape(f"downs.{level}.0.block1.proj.weight", 5)[0] for level in range(levels)]
    heads = shape("mid_cross_attn1.fn.fn.to_q.weight", 4)[0] // HEAD_WIDTH
    return {
        "dim": dim,
        "dim_mults": tuple(width // dim for width in widths),
        "channels": channels,
        "cond_dim": text,
        "context": context,
        "attn_heads": heads,
        "attn_dim_head": HEAD_WIDTH,
        "stem": stem,
    }


def _must_fit(state: Mapping[str, Tensor], network: MedSynNetwork, path: Path) -> None:
    expected = network.state_dict()
    missing, unexpected = [name for name in expected if name not in state], [n for n in state if n not in expected]
    shapes = [
        f"{name} {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    wrong = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    if not any(wrong.values()):
        return
    listed = "; ".join(
        f"{len(found)} {what}: {', '.join(found[:SHOWN])}{', ...' if len(found) > SHOWN else ''}"
        for what, found in wrong.items()
        if found
    )
    raise CheckpointError(f"{path} does not fit the MedSyn network of its own sizes. {listed}")
