"""The low-resolution text-to-CT network of MedSyn, written anew; it loads published checkpoints name by name."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.models.medsyn.blocks import (
    SLICE,
    VOLUME,
    CrossAttention,
    EachSlice,
    Normed,
    ResidualBlock,
    SelfAttention,
    Shortcut,
    TimeWaves,
)

UpOrder = Literal["up_last", "up_mid"]
UP_ORDERS: tuple[UpOrder, ...] = get_args(UpOrder)
STAGES = (1, 2, 3, 4)  # of attention, at the coarsest level
HALVE = ((1, 4, 4), (1, 2, 2), (0, 1, 1))  # kernel, stride, padding: rows and columns by two, frames are kept


class MedSynNetwork(nn.Module):
    """Estimates the clean volume from a noisy one, its time 0..1000 and a text (Xu et al., IEEE TMI 2024).

    Convolutions run within slices, and once a level through their neighbors. The four stages at the coarsest level
    attend within each slice and to the text; slices meet by convolution only. The defaults are the published sizes.

    `up_order` says when an up level doubles its rows and columns: "up_last" after its three blocks, as in the public
    inference script; "up_mid" after the first, as in the training script. The weights fit both; `fit_up_order` tells
    which one they were trained in.
    """

    def __init__(
        self,
        dim: int = 160,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        *,
        channels: int = 4,
        cond_dim: int = 768,
        context: int = 192,
        attn_heads: int = 8,
        attn_dim_head: int = 32,
        groups: int = 8,
        stem: int = 7,
        up_order: UpOrder = "up_last",
    ) -> None:
        super().__init__()
        if up_order not in UP_ORDERS:
            raise ValueError(f"up_order = {up_order!r}; give {' or '.join(map(repr, UP_ORDERS))}")
        if dim % groups or dim < 4:
            raise ValueError(f"dim = {dim}; give 4 or more, a multiple of the {groups} groups")
        self.up_order: UpOrder = up_order
        self.channels, self.cond_dim, self.context = channels, cond_dim, context
        time = 4 * dim
        widths = [dim, *(dim * factor for factor in dim_mults)]
        levels = list(zip(widths, widths[1:], strict=False))

        def block(width_in: int, width: int, kernel: tuple[int, int, int]) -> ResidualBlock:
            return ResidualBlock(width_in, width, kernel, groups, time)

        self.null_cond_emb = nn.Parameter(torch.randn(1, context, cond_dim))
        self.init_conv = nn.Conv3d(channels, dim, stem, padding=stem // 2)
        self.time_mlp = nn.Sequential(TimeWaves(dim), nn.Linear(dim, time), nn.GELU(), nn.Linear(time, time))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for number, (before, width) in enumerate(levels, start=1):
            half = nn.Conv3d(width, width, *HALVE) if number < len(levels) else nn.Identity()
            parts = block(before, width, SLICE), block(width, width, SLICE), block(width, width, VOLUME), half
            self.downs.append(nn.ModuleList(parts))
        for number, (width, before) in enumerate(reversed(levels), start=1):
            twice = nn.ConvTranspose3d(width, width, *HALVE) if number < len(levels) else nn.Identity()
            parts = block(2 * before, width, SLICE), block(width, width, SLICE), block(width, width, VOLUME), twice
            self.ups.append(nn.ModuleList(parts))

        widest = widths[-1]
        within = SelfAttention(widest, attn_heads, attn_dim_head)  # one for all stages
        self.mid_block1 = block(widest, widest, SLICE)
        for stage in STAGES:
            cross = CrossAttention(widest, cond_dim, attn_heads, attn_dim_head)
            self.add_module(f"mid_spatial_attn{stage}", Shortcut(Normed(widest, EachSlice(within))))
            self.add_module(f"mid_cross_attn{stage}", Shortcut(Normed(widest, cross)))
            self.add_module(f"mid_temporal_attn{stage}", block(widest, widest, VOLUME))
        self.mid_block2 = block(widest, widest, SLICE)
        self.final_conv = nn.Sequential(ResidualBlock(2 * dim, dim, SLICE, groups), nn.Conv3d(dim, channels, 1))

    @property
    def coarsest(self) -> int:
        """How many rows (or columns) of a volume make one cell of the attention."""
        return 2 ** (len(self.downs) - 1)

    def forward(
        self,
        x: Float[Tensor, "batch channels frames rows columns"],
        time: Float[Tensor, " batch"],
        text: Float[Tensor, "batch tokens dim"],
    ) -> Float[Tensor, "batch channels frames rows columns"]:
        """The estimated clean volume. For no text give `null_cond_emb`, once a row; rows and columns must be
        multiples of `coarsest`.
        """
        if x.shape[3] % self.coarsest or x.shape[4] % self.coarsest:
            raise ValueError(f"{x.shape[3]} rows x {x.shape[4]} columns; give multiples of {self.coarsest}")
        x = first = self.init_conv(x)
        emb = self.time_mlp[1:](self.time_mlp[0](time).to(x.dtype))
        skips = []
        for flat, flat2, deep, half in self.downs:  # pyright: ignore[reportGeneralTypeIssues]
            x = flat2(flat(x, emb), emb)
            skips.append(x)
            x = deep(half(x), emb)

        x = self.mid_block1(x, emb)
        for stage in STAGES:
            x = self.get_submodule(f"mid_spatial_attn{stage}")(x)
            x = self.get_submodule(f"mid_cross_attn{stage}")(x, text)
            x = self.get_submodule(f"mid_temporal_attn{stage}")(x, emb)
        x = self.mid_block2(x, emb)

        for flat, flat2, deep, twice in self.ups:  # pyright: ignore[reportGeneralTypeIssues]
            x = flat(torch.cat([x, skips.pop()], dim=1), emb)
            x = deep(flat2(twice(x), emb), emb) if self.up_order == "up_mid" else twice(deep(flat2(x, emb), emb))
        return self.final_conv(torch.cat([x, first], dim=1))
