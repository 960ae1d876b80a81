"""A small convolutional reader: an image in, per-voxel logits of findings and anatomy out; it never sees a prompt."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float
from monai.networks.blocks.convolutions import Convolution
from torch import Tensor, nn

PATCH = 4  # the blocks run on a grid this much coarser than the image
CELL = 2  # the logits are for cells of this many voxels a side
SHIPPED = Path(__file__).parent / "judge"  # weights of the reader that comes with the package


class Reader(nn.Module):
    """Image `[batch, 1, *spatial]` in physical units -> logits `[batch, outputs, *half]` at half resolution.

    Each of `windows` (low, high) shows the image once, scaled to -1..1 and clipped, as a radiologist's windows do.
    Patches and normalized coordinates become channels, residual blocks with growing and shrinking dilation look around,
    and each position answers for all the cells of its patch. The outputs are not exclusive: one logit each.
    """

    def __init__(
        self,
        spatial_dims: int,
        outputs: int,
        *,
        windows: Sequence[Sequence[float]],
        width: int = 48,
        dilations: Sequence[int] = (1, 2, 4, 2, 1),
        groups: int = 8,
    ) -> None:
        super().__init__()
        axes = range(spatial_dims)
        grid = " ".join(f"g{axis}" for axis in axes)
        inner = " ".join(f"p{axis}" for axis in axes)
        fine = " ".join(f"(g{axis} p{axis})" for axis in axes)
        self._fold, self._unfold = f"b c {fine} -> b (c {inner}) {grid}", f"b (c {inner}) {grid} -> b c {fine}"
        self._axes, self.windows = axes, [(float(low), float(high)) for low, high in windows]
        seen = len(self.windows) * PATCH**spatial_dims + spatial_dims
        answers = outputs * (PATCH // CELL) ** spatial_dims
        self.stem = Convolution(spatial_dims, seen, width, kernel_size=1, conv_only=True)
        self.blocks = nn.Sequential(*(Block(spatial_dims, width, dilation, groups) for dilation in dilations))
        self.head = Convolution(spatial_dims, width, answers, kernel_size=1, conv_only=True)
        nn.init.constant_(self.head.get_parameter("conv.bias"), -3.0)  # most voxels are of no kind

    def forward(self, image: Float[Tensor, "batch 1 *spatial"]) -> Float[Tensor, "batch outputs *half"]:
        if len(image.shape) != len(self._axes) + 2 or any(size % PATCH for size in image.shape[2:]):
            raise ValueError(
                f"an image of shape {tuple(image.shape)}: expected [batch, 1] and {len(self._axes)} sizes "
                f"that are multiples of {PATCH}; resample or pad it"
            )
        views = [((image - low) * (2 / (high - low)) - 1).clamp(-1, 1) for low, high in self.windows]
        patches = rearrange(torch.cat(views, 1), self._fold, **{f"p{axis}": PATCH for axis in self._axes})
        x = self.blocks(self.stem(torch.cat([patches, _coordinates(patches)], 1)))
        return rearrange(self.head(x), self._unfold, **{f"p{axis}": PATCH // CELL for axis in self._axes})


class Block(nn.Module):
    """A residual pair of convolutions, the first one dilated; it starts as the identity."""

    def __init__(self, spatial_dims: int, width: int, dilation: int, groups: int) -> None:
        super().__init__()
        far = Convolution(spatial_dims, width, width, kernel_size=3, dilation=dilation, conv_only=True)
        near = Convolution(spatial_dims, width, width, kernel_size=3, conv_only=True)
        for parameter in near.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, width), nn.SiLU(), far, nn.GroupNorm(groups, width), nn.SiLU(), near
        )

    def forward(self, x: Float[Tensor, "batch width *grid"]) -> Float[Tensor, "batch width *grid"]:
        return x + self.body(x)


def _coordinates(like: Float[Tensor, "batch channels *grid"]) -> Float[Tensor, "batch axes *grid"]:
    """Where each position lies, -1 to 1 an axis: the centers of the patches."""
    batch, _, *grid = like.shape
    lines = [(torch.arange(size, device=like.device) + 0.5) * (2 / size) - 1 for size in grid]
    return torch.stack(torch.meshgrid(*lines, indexing="ij")).to(like.dtype).expand(batch, -1, *grid)
