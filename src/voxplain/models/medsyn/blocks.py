"""The parts of the MedSyn network: residual blocks over slices or volumes, and its two kinds of attention.

Written from the formulas in the description of the public code, not from the code. Volumes are
`[batch, channels, frames, rows, columns]`; attribute names are those of published checkpoints.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu

SLICE, VOLUME = (1, 3, 3), (3, 3, 3)  # kernels: within a slice, or through its neighbors too


class TimeWaves(nn.Module):
    """Sines and cosines of the time, `width` of them (Vaswani et al. 2017), float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.rates = width // 2

    def forward(self, time: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        rates = torch.arange(self.rates, device=time.device) * (-math.log(10000) / (self.rates - 1))
        angles = time.float()[:, None] * rates.exp()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class ConvNorm(nn.Module):
    """Convolution, group norm, a scale and shift where given, SiLU."""

    def __init__(self, width_in: int, width: int, kernel: tuple[int, int, int], groups: int) -> None:
        super().__init__()
        depth, rows, columns = kernel
        self.proj = nn.Conv3d(width_in, width, kernel, padding=(depth // 2, rows // 2, columns // 2))
        self.norm = nn.GroupNorm(groups, width)

    def forward(
        self,
        x: Float[Tensor, "batch channels frames rows columns"],
        film: tuple[Float[Tensor, "batch width 1 1 1"], Float[Tensor, "batch width 1 1 1"]] | None = None,
    ) -> Float[Tensor, "batch width frames rows columns"]:
        x = self.norm(self.proj(x))
        if film is not None:
            scale, shift = film
            x = x * (scale + 1) + shift
        return silu(x)


class ResidualBlock(nn.Module):
    """Two convolutions around a shortcut; the time scales and shifts what is between them, if `time_width` is given."""

    def __init__(
        self, width_in: int, width: int, kernel: tuple[int, int, int], groups: int, time_width: int | None = None
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_width, 2 * width)) if time_width else None
        self.block1 = ConvNorm(width_in, width, kernel, groups)
        self.block2 = ConvNorm(width, width, kernel, groups)
        self.res_conv = nn.Conv3d(width_in, width, 1) if width_in != width else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "batch channels frames rows columns"],
        time: Float[Tensor, "batch time"] | None = None,
    ) -> Float[Tensor, "batch width frames rows columns"]:
        film = None
        if self.mlp is not None:
            scale, shift = self.mlp(time)[..., None, None, None].chunk(2, dim=1)
            film = scale, shift
        return self.block2(self.block1(x, film)) + self.res_conv(x)


class ChannelNorm(nn.Module):
    """Every cell's channels to mean 0 and variance 1 (biased), times a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, width, 1, 1, 1))

    def forward(
        self, x: Float[Tensor, "batch channels frames rows columns"]
    ) -> Float[Tensor, "batch channels frames rows columns"]:
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        return (x - mean) * (variance + 1e-5).rsqrt() * self.gamma


class Shortcut(nn.Module):
    """What `fn` makes is added to what it was given."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return x + self.fn(x, *rest)


class Normed(nn.Module):
    """`fn` of the normalized channels."""

    def __init__(self, width: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelNorm(width)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        return self.fn(self.norm(x), *rest)


class EachSlice(nn.Module):
    """`fn` of the cells of each slice, `[slices, cells, channels]`."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(
        self, x: Float[Tensor, "batch channels frames rows columns"]
    ) -> Float[Tensor, "batch channels frames rows columns"]:
        slices = to_slices(x)
        mixed = self.fn(slices.flatten(2).mT)  # [slices, cells, channels]
        return to_volume(mixed.mT.unflatten(2, slices.shape[2:]), len(x))


class SelfAttention(nn.Module):
    """Attention among the cells of a slice; no positions, no bias."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)

    def forward(self, x: Float[Tensor, "slices cells channels"]) -> Float[Tensor, "slices cells channels"]:
        query, key, value = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value)  # [slices, heads, cells, head width]
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Every cell of every slice reads the text. The keys are the same for all slices, so they are made once a volume.

    Channels of queries, keys and values run head by head.
    """

    def __init__(self, width: int, text_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_width**-0.5
        self.to_q = nn.Conv2d(width, heads * head_width, 1, bias=False)
        self.to_kv = nn.Linear(text_width, 2 * heads * head_width, bias=False)
        self.to_out = nn.Conv2d(heads * head_width, width, 1)

    def forward(
        self, x: Float[Tensor, "batch channels frames rows columns"], text: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch channels frames rows columns"]:
        batch, _, frames, rows, columns = x.shape
        query = self.to_q(to_slices(x)).reshape(batch, frames, self.heads, -1, rows * columns)
        query = query.permute(0, 2, 1, 4, 3).flatten(2, 3)  # [batch, heads, frames * cells, head width]
        key, value = self.to_kv(text).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value, scale=self.scale)
        slices = mixed.unflatten(2, (frames, -1)).permute(0, 2, 1, 4, 3)  # [batch, frames, heads, head width, cells]
        return to_volume(self.to_out(slices.reshape(batch * frames, -1, rows, columns)), batch)


def to_slices(
    volume: Float[Tensor, "batch channels frames rows columns"],
) -> Float[Tensor, "slices channels rows columns"]:
    """The slices of all volumes as one batch, volume by volume."""
    return volume.transpose(1, 2).flatten(0, 1)


def to_volume(
    slices: Float[Tensor, "slices channels rows columns"], batch: int
) -> Float[Tensor, "batch channels frames rows columns"]:
    """The volumes that the slices were of."""
    return slices.unflatten(0, (batch, -1)).transpose(1, 2)
