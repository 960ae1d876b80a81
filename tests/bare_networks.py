"""A home-made network and its sampling loop, which tell their own attention, so that no hook has to be trusted."""

import math

import torch
from torch import nn
from torch.nn import functional

WIDTH, HEADS, STEPS = 8, 2, 3
PIECES = [None, "large", "pneumo", "##thorax", None, None]


class Cross(nn.Module):
    """Cross-attention that tells its own probabilities, so the tests need not trust any hook."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.told = HEADS, []
        self.to_q, self.to_k, self.to_v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm: nn.Module | None = None

    def forward(self, cells, text, mask=None):
        query, key, value = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (self.to_q(cells), self.to_k(text), self.to_v(text))
        )
        if self.norm is not None:
            query = self.norm(query)
        scores = query @ key.mT / math.sqrt(WIDTH / HEADS)
        probs = (scores if mask is None else scores.masked_fill(~mask, -math.inf)).softmax(-1)
        self.told.append(probs.detach())  # [batch, heads, queries, tokens]
        return self.out((probs @ value).transpose(1, 2).flatten(2))


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.cross = Cross()
        self.mask: torch.Tensor | None = None

    def forward(self, image, text):
        return image + self.cross(image.flatten(2).mT, text, mask=self.mask).mT.unflatten(-1, image.shape[2:])


class Net(nn.Module):
    """Two resolutions; the coarse one is skipped at the calls in `skip`."""

    def __init__(self, axes):
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[axes - 2]
        self.pool = (functional.avg_pool2d, functional.avg_pool3d)[axes - 2]
        self.enter, self.leave = convolution(1, WIDTH, 3, padding=1), convolution(WIDTH, 1, 3, padding=1)
        self.fine, self.coarse = Stage(), Stage()
        self.skip, self.calls = (), 0

    def forward(self, noisy, level, text):
        image = self.fine(self.enter(noisy) + level, text)
        if self.calls not in self.skip:
            image = image + functional.interpolate(self.coarse(self.pool(image, 2), text), scale_factor=2.0)
        self.calls += 1
        return self.leave(image)


def build(grid):
    torch.manual_seed(0)
    net = Net(len(grid)).eval()
    for part in (net.fine.cross, net.coarse.cross):
        part.to_q.weight.data *= 4  # so that tokens differ
    return net, torch.randn(2, len(PIECES), WIDTH), torch.randn(1, len(PIECES), WIDTH)


@torch.no_grad()
def ddim(net, text, null, grid, guidance="none", steps=STEPS):
    """A home-made deterministic sampler; the order of the branches is that of the name of `guidance`."""
    image = torch.randn(len(text), 1, *grid, generator=torch.Generator().manual_seed(1))
    null, signal = null.expand_as(text), torch.linspace(0.1, 1, steps + 1)
    for step in range(steps):
        level = 1 - signal[step]
        if guidance == "none":
            noise = net(image, level, text)
        elif guidance in ("second half", "first half"):
            both = [null, text] if guidance == "second half" else [text, null]
            parts = net(torch.cat([image, image]), level, torch.cat(both)).chunk(2)
            free, given = parts if guidance == "second half" else parts[::-1]
            noise = free + 2 * (given - free)
        else:
            order = [null, text] if guidance == "second pass" else [text, null]
            made = {id(one): net(image, level, one) for one in order}
            noise = made[id(null)] + 2 * (made[id(text)] - made[id(null)])
        clean = (image - (1 - signal[step]).sqrt() * noise) / signal[step].sqrt()
        image = signal[step + 1].sqrt() * clean + (1 - signal[step + 1]).sqrt() * noise
    return image


def expected(net, grid, chosen, samples=1):
    """The plain mean of what the layers told, of rows `chosen(call)`; coarse maps enlarged by PyTorch."""
    mode = ("bilinear", "trilinear")[len(grid) - 2]
    made = []
    for stage, shape in ((net.fine, grid), (net.coarse, tuple(size // 2 for size in grid))):
        rows = [probs[chosen(number)] for number, probs in enumerate(stage.cross.told) if chosen(number)]
        mean = torch.stack(rows).mean(dim=(0, 2)).mT.unflatten(-1, shape)  # [samples, tokens, *grid]
        made.append(functional.interpolate(mean, size=grid, mode=mode))
    whole = torch.stack(made).mean(0)
    words, padding = whole[:, 1:4], whole[:, [0, 4, 5]].sum(1)
    return [(words[sample].numpy(), padding[sample].numpy()) for sample in range(samples)]


def hooks(net):
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in net.modules())
