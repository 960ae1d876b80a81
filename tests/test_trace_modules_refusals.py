"""What `trace_modules` refuses: wrong options, wrong readings, incomplete recordings; and that nothing stays behind."""

import pytest
import torch
from bare_networks import PIECES, STEPS, WIDTH, Cross, Stage, build, ddim, hooks
from torch import nn
from torch.nn import functional

from voxplain.adapters.toy import ToyAdapter
from voxplain.attention import SingleKeyError
from voxplain.listening.modules import trace_modules

# refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"pattern": "*.attn2"}, r"no module of Net fits '\*.attn2'.*: fine.cross \(Cross\), coarse.cross \(Cross\)"),
        ({"pattern": []}, "no pattern"),
        ({"pattern": "*.to_q"}, r"fine.cross.to_q \(Linear\) has no submodule 'to_q'; it has none"),
        ({"query": "q_proj"}, "has no submodule 'q_proj'; it has to_q, to_k, to_v, out"),
        ({"heads": "count"}, "does not say its number of heads by count"),
        ({"tokens": "large effusion"}, "is a text; give the pieces"),
        ({"tokens": [None, None]}, "names no word"),
        ({"tokens": ["large", ""]}, "blank piece"),
        ({"rows": "last half"}, "rows = 'last half'; give 'all'"),
        ({"rows": [(0, "null")]}, "nothing would be recorded"),
        ({"steps": 0}, "steps = 0"),
        ({"bins": 2}, "bins = 2 of steps = None"),
        ({"recipe": "effect"}, "does not read attention"),
    ],
    ids=str,
)
def test_wrong_options_are_refused_before_anything_runs(options, complaint):
    net, _, _ = build((4, 6))
    options = {"pattern": "*.cross", "tokens": PIECES, **options}
    with pytest.raises(ValueError, match=complaint), trace_modules(net, **options):
        pytest.fail("the block was entered")
    assert hooks(net) == 0


@pytest.mark.parametrize(
    ("options", "guidance", "complaint"),
    [
        ({"tokens": PIECES[1:4]}, "none", "fine.cross has 6 keys, but tokens names 3"),
        ({}, "second half", r"a batch of 2, and 1 prompt\(s\) without rows= make 1 row"),
        ({"rows": "second half"}, "none", r"a batch of 1, and 1 prompt\(s\) with rows = 'second half' make 2 row"),
        ({}, "second pass", "the keys of fine.cross changed between calls.*guidance in two passes"),
        ({"grid": (4, 6)}, "none", r"coarse.cross has 6 queries, which do not fill a grid of \(4, 6\)"),
        ({"grid": {"fine.*": (4, 6)}}, "none", "grid gives coarse.cross 0 shapes"),
        ({"heads": 3}, "none", "8 channels, which 3 heads cannot share"),
        ({"check": ("to_v", "out"), "heads": 4}, "none", "does not attend by softmax"),
        ({"check": ("to_v", "out"), "scale": 1.0}, "none", "does not attend by softmax"),
        ({"query": lambda module, *_: torch.zeros(1, 24, WIDTH)}, "none", "expected .batch, heads, positions, dim."),
        ({"steps": STEPS - 1}, "none", "runs after its 2 steps"),
    ],
)
def test_what_would_be_read_wrongly_is_refused_while_it_runs(options, guidance, complaint):
    net, text, null = build((4, 6))
    with pytest.raises(ValueError, match=complaint), trace_modules(net, "*.cross", **{"tokens": PIECES, **options}):
        ddim(net, text[:1], null, (4, 6), guidance)
    assert hooks(net) == 0


def test_a_guidance_that_stops_midway_is_not_taken_for_two_passes():
    net, text, null = build((4, 6))
    with (
        pytest.raises(ValueError, match="changed between conditional passes"),
        trace_modules(net, "*.cross", tokens=PIECES, rows="second pass"),
    ):
        ddim(net, text[:1], null, (4, 6), "second pass", steps=1)
        ddim(net, text[:1], null, (4, 6), "none", steps=1)
        ddim(net, text[:1], null, (4, 6), "second pass", steps=1)


def test_self_attention_is_refused_though_its_keys_are_as_many_as_the_tokens():
    net, text, null = build((2, 4))

    class Inward(Stage):
        def forward(self, image, text):
            cells = image.flatten(2).mT
            return self.cross(cells, cells).mT.unflatten(-1, image.shape[2:])

    net.fine = Inward()
    with pytest.raises(ValueError, match="attends to itself"), trace_modules(net, "fine.cross", tokens=["w"] * 8):
        ddim(net, text[:1], null, (2, 4))


def test_one_key_is_refused_and_effect_is_named():
    net, text, null = build((4, 6))
    with pytest.raises(SingleKeyError, match="recipe 'effect'"), trace_modules(net, "*.cross", tokens=["effusion"]):
        ddim(net, text[:1, :1], null[:, :1], (4, 6))


def test_a_scale_of_its_own_has_to_be_spoken_of():
    model = ToyAdapter((8, 12), guidance="two_passes")
    tokens = model.tokenize("effusion")
    with (
        pytest.raises(ValueError, match=r"layers.0.attn2 has scale = 1.0, and 1 / sqrt\(12\)"),
        trace_modules(model.network, "*.attn2", tokens=tokens, rows="second pass"),
    ):
        model.generate("effusion")


def test_a_grid_that_nobody_sees_is_not_guessed():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.cross = Cross()

        def forward(self, cells, text):
            return self.cross(cells, text)

    net, given = Flat(), (torch.randn(1, 16, WIDTH), torch.randn(1, 6, WIDTH))
    with pytest.raises(ValueError, match="does not say in which grid"), trace_modules(net, "cross", tokens=PIECES):
        net(*given)
    with trace_modules(net, "cross", tokens=PIECES, grid=(2, 8)) as tracer:
        net(*given)
    assert tracer.attribution().maps.shape == (3, 2, 8)


def test_channels_that_stand_last_are_not_taken_for_a_grid():
    class Last(Stage):
        def forward(self, image, text):  # [batch, rows, columns, channels]; 4 * 8 cells, and 8 = columns = channels
            return self.cross(image.flatten(1, 2), text)

    net, text = Last(), torch.randn(1, 6, WIDTH)
    with pytest.raises(ValueError, match="does not say in which grid"), trace_modules(net, "cross", tokens=PIECES):
        net(torch.randn(1, 4, 8, WIDTH), text)
    with pytest.raises(ValueError, match="does not say in which grid"), trace_modules(net, "cross", tokens=PIECES):
        net(torch.randn(1, WIDTH, 4, WIDTH), text)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("how", ["whole", "part", "scripted"])
def test_compiled_modules_are_refused_by_name(how):
    net, _, _ = build((4, 6))
    if how == "part":
        net.fine.compile(backend="eager")
    elif how == "scripted":
        net.fine.cross.to_v = torch.jit.trace(net.fine.cross.to_v, torch.zeros(1, WIDTH))
    given = torch.compile(net, backend="eager") if how == "whole" else net
    name = {"whole": "OptimizedModule", "part": "fine", "scripted": r"fine\.cross\.to_v"}[how]
    with pytest.raises(ValueError, match=f"^{name} was compiled"), trace_modules(given, "*.cross", tokens=PIECES):
        pytest.fail("the block was entered")


# incomplete recordings, and nothing left behind -------------------------------------------------------------------


def test_a_block_in_which_nothing_ran_is_an_error():
    net, text, null = build((4, 6))
    with trace_modules(net, "*.cross", tokens=PIECES) as tracer:
        pass
    ddim(net, text[:1], null, (4, 6))
    with pytest.raises(ValueError, match="nothing was recorded: .* run the sampling loop in it"):
        tracer.attribution()


@pytest.mark.parametrize("skip", [(1,), (0, 1, 2)], ids=str)
def test_a_layer_that_ran_less_often_than_others_is_named(skip):
    net, text, null = build((4, 6))
    net.skip = skip
    with trace_modules(net, "*.cross", tokens=PIECES) as tracer:
        ddim(net, text[:1], null, (4, 6))
    with pytest.raises(ValueError, match=r"coarse\.cross did not run in every one of 3 steps"):
        tracer.attribution()


def test_a_run_shorter_than_announced_is_an_error():
    net, text, null = build((4, 6))
    with trace_modules(net, "*.cross", tokens=PIECES, steps=STEPS + 1) as tracer:
        ddim(net, text[:1], null, (4, 6))
    with pytest.raises(ValueError, match="only 3 of 4 steps"):
        tracer.maps()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["in the network", "in the loop"])
def test_an_exception_leaves_no_hook_and_no_attribution(error, where):
    net, text, null = build((4, 6))

    def stop(*_):
        raise error

    with pytest.raises(error), trace_modules(net, "*.cross", tokens=PIECES) as tracer:
        ddim(net, text[:1], null, (4, 6), steps=2)
        if where == "in the loop":
            stop()
        handle = net.coarse.register_forward_pre_hook(stop)
        try:
            ddim(net, text[:1], null, (4, 6))
        finally:
            handle.remove()
    assert hooks(net) == 0
    with pytest.raises(ValueError, match="broken off after 2 steps"):
        tracer.attribution()


def test_a_call_that_failed_and_was_caught_is_not_forgotten():
    net, text, null = build((4, 6))
    with trace_modules(net, "*.cross", tokens=PIECES) as tracer:
        handle = net.coarse.register_forward_pre_hook(lambda *_: 1 / 0)
        pytest.raises(ZeroDivisionError, ddim, net, text[:1], null, (4, 6))
        handle.remove()
        ddim(net, text[:1], null, (4, 6))
    with pytest.raises(ValueError, match="broken off"):
        tracer.attribution()


def test_a_projection_exchanged_in_the_block_is_noticed():
    net, text, null = build((4, 6))
    heard = pytest.raises(RuntimeError, match=r"fine\.cross ran, but its query was not heard")
    with heard, trace_modules(net, "*.cross", tokens=PIECES):
        net.fine.cross.to_q = nn.Linear(WIDTH, WIDTH)
        ddim(net, text[:1], null, (4, 6))
    assert hooks(net) == 0


def test_a_projection_that_runs_twice_in_one_call_is_refused():
    class Twice(Cross):
        def forward(self, cells, text, mask=None):
            self.to_q(cells)
            return super().forward(cells, text)

    net, text, null = build((4, 6))
    net.coarse.cross = Twice()
    twice = pytest.raises(ValueError, match=r"coarse\.cross ran 'to_q' twice in one call")
    with twice, trace_modules(net, "*.cross", tokens=PIECES):
        ddim(net, text[:1], null, (4, 6))


def test_keys_kept_from_an_earlier_call_are_noticed():
    class Keeping(Cross):
        kept = None

        def forward(self, cells, text, mask=None):
            self.kept = self.to_k(text) if self.kept is None else self.kept
            return self.out(functional.scaled_dot_product_attention(self.to_q(cells), self.kept, self.to_v(text)))

    net, text, null = build((4, 6))
    net.fine.cross = Keeping()
    missed = pytest.raises(RuntimeError, match=r"fine\.cross ran, but its key was not heard.*keys kept from an earlier")
    with missed, trace_modules(net, "*.cross", tokens=PIECES):
        ddim(net, text[:1], null, (4, 6))


def test_a_part_that_runs_without_the_network_is_refused():
    net, text, _ = build((4, 6))
    with pytest.raises(ValueError, match="the network was not called"), trace_modules(net, "*.cross", tokens=PIECES):
        net.fine(torch.randn(1, WIDTH, 4, 6), text[:1])
