"""Trace a network of your own in a sampling loop of your own: no adapter, no pipeline, one `with`.

The network reads six text positions at two resolutions of a volume; guidance runs both branches in one batch.
"""

import torch
from torch import nn
from torch.nn.functional import avg_pool3d, interpolate, scaled_dot_product_attention

import voxplain

GRID, WIDTH, HEADS, STEPS = (4, 6, 8), 16, 2, 5
PIECES = ["large", "pneumo", "##thorax", None, None, None]  # what stands at each text position; None is padding

# --- somebody's network ---


class CrossAttention(nn.Module):
    num_heads = HEADS

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, cells, text):  # [batch, cells, width], [batch, positions, width]
        parts = self.to_q(cells), self.to_k(text), self.to_v(text)
        mixed = scaled_dot_product_attention(*(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts))
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.cross = CrossAttention()

    def forward(self, volume, text):  # [batch, width, *grid]
        return volume + self.cross(volume.flatten(2).mT, text).mT.unflatten(-1, volume.shape[2:])


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.fine, self.coarse = Block(), Block()
        self.enter, self.leave = nn.Conv3d(1, WIDTH, 3, padding=1), nn.Conv3d(WIDTH, 1, 3, padding=1)

    def forward(self, noisy, level, text):
        volume = self.fine(self.enter(noisy) + level, text)
        return self.leave(volume + interpolate(self.coarse(avg_pool3d(volume, 2), text), scale_factor=2.0))


# --- somebody's sampling loop ---


@torch.no_grad()
def sample(net, text, null, scale=3.0):
    image = torch.randn(1, 1, *GRID, generator=torch.Generator().manual_seed(0))
    signal = torch.linspace(0.05, 1, STEPS + 1)
    for now, then in zip(signal[:-1], signal[1:], strict=True):
        free, given = net(torch.cat([image, image]), 1 - now, torch.cat([null, text])).chunk(2)
        noise = free + scale * (given - free)
        clean = (image - (1 - now).sqrt() * noise) / now.sqrt()
        image = then.sqrt() * clean + (1 - then).sqrt() * noise
    return image


torch.manual_seed(0)
net, text, null = Denoiser().eval(), torch.randn(1, len(PIECES), WIDTH), torch.zeros(1, len(PIECES), WIDTH)
plain = sample(net, text, null)

# --- traced ---

with voxplain.trace_modules(
    net,
    "*.cross",  # the attention modules, by their paths
    query="to_q",
    key="to_k",
    tokens=PIECES,
    rows="second half",  # of each batch: the conditional one
    steps=STEPS,
    check=("to_v", "to_out"),  # prove on the first call that this is how the network attends
) as tracer:
    image = sample(net, text, null)

assert torch.equal(image, plain), "listening changes nothing"
attribution = tracer.attribution()
total = attribution.maps.sum(0) + attribution.padding
assert abs(total - 1).max() < 1e-5
heatmap = attribution.word("pneumothorax")  # the mean of its two pieces
assert heatmap.values.shape == GRID
print("layers:", ", ".join(tracer.layers), "| cells:", attribution.provenance["counts"])
print("'pneumothorax' is attended to most at cell", heatmap.peak, "of", heatmap.values.shape)
for word, share in attribution.mass().items():
    print(f"{word:>14} {share:.3f}")

# --- what cannot be read rightly is refused ---

try:
    with voxplain.trace_modules(net, "*.cross", tokens=PIECES):  # no word about guidance
        sample(net, text, null)
except ValueError as error:
    print("refused:", error)
    assert "rows=" in str(error)
else:
    raise AssertionError("the unconditional rows would have reached the maps")
