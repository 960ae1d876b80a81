import pytest
import torch
from torch import nn

from voxplain.studies.optimizing import MuonAndAdamW, split

SPATIAL = {2: (nn.Conv2d, torch.channels_last), 3: (nn.Conv3d, torch.channels_last_3d)}


def network(dims=2):
    torch.manual_seed(0)
    conv, layout = SPATIAL[dims]
    parts = {"conv_in": conv(1, 4, 3), "inner": nn.Sequential(conv(4, 6, 3), conv(6, 6, 1)), "out": nn.Linear(6, 2)}
    return nn.ModuleDict(parts).to(memory_format=layout)


def taught(net, steps, optimizer=None, first=0):
    if optimizer is None:
        matrices, others = split(net, plain=("conv_in", "out"))
        optimizer = MuonAndAdamW(matrices, [{"params": others}], 0.01)
    for step in range(first, first + steps):
        optimizer.zero_grad()
        for number, parameter in enumerate(net.parameters()):
            generator = torch.Generator().manual_seed(1000 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator).contiguous(
                memory_format=SPATIAL[parameter.ndim - 2][1] if parameter.ndim > 3 else torch.contiguous_format
            )
        optimizer.step()
    return optimizer


def test_matrices_are_what_has_two_axes_inside_the_blocks():
    matrices, others = split(network(), plain=("conv_in", "out"))
    assert [tuple(each.shape) for each in matrices] == [(6, 4, 3, 3), (6, 6, 1, 1)]
    assert len(others) == 6  # both plain layers and all biases


@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_moves_every_parameter_of_the_network_itself(dims):
    net = network(dims)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    taught(net, 1)
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))


def test_a_step_of_a_matrix_goes_about_as_far_in_each_direction():
    kernel = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last).weight
    optimizer = MuonAndAdamW([kernel], [{"params": [nn.Parameter(torch.zeros(1))]}], 0.01)
    before = kernel.detach().clone()
    gradient = torch.linalg.svd(torch.randn(6, 36, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    lopsided = gradient.U @ torch.diag(10.0 ** -torch.arange(0, 3, 0.5)) @ gradient.Vh  # singular values 1 to 0.003
    kernel.grad = lopsided.reshape(6, 3, 3, 4).movedim(-1, 1)
    optimizer.step()
    moved = torch.linalg.svdvals((kernel.detach() - before).movedim(1, -1).flatten(1))
    assert moved[0] / moved[-1] < 5


def test_a_state_that_is_saved_goes_on_as_if_nothing_had_happened():
    whole, part = network(), network()
    taught(whole, 3)
    state, kept = taught(part, 2).state_dict(), {name: one.clone() for name, one in part.state_dict().items()}
    again = network()
    again.load_state_dict(kept)
    matrices, others = split(again, plain=("conv_in", "out"))
    optimizer = MuonAndAdamW(matrices, [{"params": others}], 0.01)
    optimizer.load_state_dict(state)
    taught(again, 1, optimizer, first=2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_kernel_that_does_not_lie_channels_last_is_refused():
    conv = nn.Conv2d(4, 6, 3)
    with pytest.raises(ValueError, match="channels last"):
        MuonAndAdamW([conv.weight], [{"params": [conv.bias]}], 0.01)
