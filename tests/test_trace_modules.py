"""`trace_modules` in sampling loops of one's own: what is recorded is what the layers tell of themselves."""

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from bare_networks import HEADS, PIECES, STEPS, WIDTH, build, ddim, expected, hooks
from torch import nn

import voxplain
from voxplain.adapters.toy import ToyAdapter
from voxplain.geometry import regular
from voxplain.listening.modules import trace_modules
from voxplain.tokens import TokenizedPrompt

BOTH = pytest.mark.parametrize("grid", [(4, 6), (2, 4, 6)], ids=["image", "volume"])

# what is recorded is what the layers told -------------------------------------------------------------------------


LAYOUTS = {
    "none": lambda samples: lambda call: list(range(samples)),
    "first half": lambda samples: lambda call: list(range(samples)),
    "second half": lambda samples: lambda call: list(range(samples, 2 * samples)),
    "first pass": lambda samples: lambda call: [] if call % 2 else list(range(samples)),
    "second pass": lambda samples: lambda call: list(range(samples)) if call % 2 else [],
}


@BOTH
@pytest.mark.parametrize(
    ("guidance", "samples"), [*((name, 1) for name in LAYOUTS), ("none", 2), ("second half", 2), ("first pass", 2)]
)
def test_maps_equal_the_plain_mean_of_the_conditional_probabilities_and_the_image_is_untouched(grid, guidance, samples):
    net, text, null = build(grid)
    text = text[:samples]
    plain = ddim(net, text, null, grid, guidance)
    for stage in (net.fine, net.coarse):
        stage.cross.told.clear()
    tokens = PIECES if samples == 1 else [PIECES] * samples
    rows = None if guidance == "none" else guidance
    with trace_modules(net, "*.cross", tokens=tokens, rows=rows, check=("to_v", "out"), steps=STEPS) as tracer:
        image = ddim(net, text, null, grid, guidance)
    assert torch.equal(plain, image)
    assert hooks(net) == 0
    truth = expected(net, grid, LAYOUTS[guidance](samples), samples)
    for made, (words, padding) in zip(tracer.attributions(), truth, strict=True):
        np.testing.assert_allclose(made.maps, words, atol=1e-6)
        np.testing.assert_allclose(made.padding, padding, atol=1e-6)
        assert made.prompt.text == "large pneumothorax"
        np.testing.assert_allclose(made.word("pneumothorax").values, words[1:].mean(0), atol=1e-6)
        assert made.geometry.shape == grid and not made.geometry.spacing_known
        assert made.provenance["steps"] == STEPS


@pytest.mark.parametrize("grid", [(8, 12), (4, 8, 12)], ids=["image", "volume"])
@pytest.mark.parametrize("guidance", ["doubled", "two_passes"])
def test_the_network_of_an_adapter_gives_the_maps_of_its_adapter(grid, guidance):
    model, prompt = ToyAdapter(grid, guidance=guidance), "large left effusion"
    with voxplain.trace(model) as adapted:
        model.generate(prompt)
    rows = "second half" if guidance == "doubled" else "second pass"
    text, half = model.tokenize(prompt), tuple(size // 2 for size in grid)
    options = {"rows": rows, "scale": "scale", "grid": {"layers.0.*": grid, "layers.1.*": half}}
    with voxplain.trace_modules(model.network, "*.attn2", tokens=text, **options) as bare:
        model.generate(prompt)
    assert np.array_equal(bare.attribution().maps, adapted.attribution().maps)
    assert bare.attribution().prompt == text


@BOTH
def test_rows_can_be_listed_or_told_call_by_call(grid):
    net, text, null = build(grid)
    branches = [(0, "null"), (1, "null"), (0, "text"), (1, "text")]
    made = []
    for rows in ("second half", branches, lambda number, args, kwargs: branches[: len(args[0])]):
        with trace_modules(net, "*.cross", tokens=[PIECES] * 2, rows=rows) as tracer:
            ddim(net, text, null, grid, "second half")
        made.append([one.maps for one in tracer.attributions()])
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], made[2])

    def passes(number, args, kwargs):
        return [(0, "text" if number % 2 else "null")]

    single = {}
    for rows in ("second pass", passes):
        with trace_modules(net, "*.cross", tokens=PIECES, rows=rows, steps=STEPS) as tracer:
            ddim(net, text[:1], null, grid, "second pass")
        single[rows] = tracer.attribution().maps
    assert np.array_equal(single["second pass"], single[passes])


# how attention is read --------------------------------------------------------------------------------------------


def parts(name):
    def project(module, args, kwargs, output):
        made = getattr(module, f"to_{name}")(args[name == "k"]).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        return module.norm(made) if name == "q" and module.norm is not None else made

    return project


def test_callables_read_what_is_changed_after_the_projection_and_the_check_finds_names_that_do_not():
    grid = (4, 6)
    net, text, null = build(grid)
    net.fine.cross.norm = net.coarse.cross.norm = nn.LayerNorm(WIDTH // HEADS)
    check = {"heads": "num_heads", "check": ("to_v", "out")}
    with (
        pytest.raises(ValueError, match=r"fine\.cross does not attend by softmax.*normalization, rotary"),
        trace_modules(net, "*.cross", tokens=PIECES, **check),
    ):
        ddim(net, text[:1], null, grid)
    for stage in (net.fine, net.coarse):
        stage.cross.told.clear()
    with trace_modules(net, "*.cross", tokens=PIECES, query=parts("q"), key=parts("k"), **check) as tracer:
        ddim(net, text[:1], null, grid)
    np.testing.assert_allclose(tracer.attribution().maps, expected(net, grid, lambda _: [0])[0][0], atol=1e-6)


def test_a_mask_has_to_be_spoken_of_and_then_counts():
    grid = (4, 6)
    net, text, null = build(grid)
    net.fine.mask = net.coarse.mask = torch.tensor([piece is not None for piece in PIECES])
    with pytest.raises(ValueError, match=r"fine\.cross is given mask"), trace_modules(net, "*.cross", tokens=PIECES):
        ddim(net, text[:1], null, grid)
    wrong = pytest.raises(ValueError, match="does not attend by softmax")
    with wrong, trace_modules(net, "*.cross", tokens=PIECES, mask=lambda *_: None, check=("to_v", "out")):
        ddim(net, text[:1], null, grid)
    for stage in (net.fine, net.coarse):
        stage.cross.told.clear()
    options = {"mask": lambda module, args, kwargs: kwargs["mask"][None, None, None], "check": ("to_v", "out")}
    with trace_modules(net, "*.cross", tokens=PIECES, **options) as tracer:
        ddim(net, text[:1], null, grid)
    made = tracer.attribution()
    np.testing.assert_allclose(made.maps, expected(net, grid, lambda _: [0])[0][0], atol=1e-6)
    assert made.padding.max() < 1e-6


class Stock(nn.Module):
    """PyTorch's own attention, in a block that sees the grid."""

    def __init__(self, **options):
        super().__init__()
        self.attend, self.options = nn.MultiheadAttention(WIDTH, HEADS, **options), {}

    def forward(self, image, text):
        cells = image.flatten(2).mT
        if self.attend.batch_first:
            mixed, self.told = self.attend(cells, text, text, average_attn_weights=False, **self.options)
        else:
            mixed, self.told = self.attend(
                cells.transpose(0, 1), *(text.transpose(0, 1),) * 2, average_attn_weights=False, **self.options
            )
            mixed = mixed.transpose(0, 1)
        return image + mixed.mT.unflatten(-1, image.shape[2:])


@pytest.mark.parametrize(
    "options", [{"batch_first": True}, {}, {"bias": False, "kdim": 5, "vdim": 5, "batch_first": True}], ids=str
)
@pytest.mark.parametrize("mask", [None, "padding", "both"])
def test_pytorchs_own_attention_is_read_with_its_masks(options, mask):
    torch.manual_seed(0)
    net, ignored = Stock(**options).eval(), torch.tensor([[False] * 5 + [True], [False] * 4 + [True] * 2])
    if mask:
        net.options["key_padding_mask"] = ignored
    if mask == "both":
        net.options["attn_mask"] = torch.randn(24, 6) if "kdim" in options else torch.randn(2 * HEADS, 24, 6)
        net.options["key_padding_mask"] = torch.zeros(2, 6).masked_fill(ignored, -math.inf)
    given = torch.randn(2, WIDTH, 4, 6), torch.randn(2, 6, options.get("kdim", WIDTH))
    plain = net(*given)
    with trace_modules(net, "attend", tokens=[["w"] * 6] * 2) as tracer:
        assert torch.equal(net(*given), plain)
    truth = net.told.detach().mean(1).mT.unflatten(-1, (4, 6))  # [batch, tokens, *grid]
    np.testing.assert_allclose([made.maps for made in tracer.attributions()], truth, atol=1e-6)


def test_pytorchs_own_attention_is_refused_where_it_is_not_text_alone_or_told_twice():
    given = torch.randn(1, WIDTH, 4, 6), torch.randn(1, 6, WIDTH)
    for options, complaint in (
        ({"add_bias_kv": True}, "keys of its own"),
        ({"add_zero_attn": True}, "keys of its own"),
    ):
        net = Stock(batch_first=True, **options)
        with pytest.raises(NotImplementedError, match=complaint), trace_modules(net, "attend", tokens=["w"] * 6):
            net(*given)
    with pytest.raises(ValueError, match="is read whole; leave out"):
        trace_modules(Stock(), "attend", tokens=["w"] * 6, scale=1.0).__enter__()
    net = Stock(batch_first=True)
    with pytest.raises(ValueError, match="attends to itself"), trace_modules(net, "attend", tokens=["w"] * 24):
        net(given[0], given[0].flatten(2).mT)


def test_convolutions_and_channels_last_projections_tell_their_grid():
    class Spatial(nn.Module):
        heads = HEADS

        def __init__(self, last):
            super().__init__()
            self.ask = nn.Linear(WIDTH, WIDTH) if last else nn.Conv2d(WIDTH, WIDTH, 1)
            self.answer, self.last = nn.Linear(WIDTH, WIDTH), last

        def forward(self, image, text):
            query = self.ask(image.movedim(1, -1)).movedim(-1, 1) if self.last else self.ask(image)
            query = query.flatten(2).unflatten(1, (HEADS, -1)).mT
            key = self.answer(text).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            self.told = (query @ key.mT / math.sqrt(WIDTH / HEADS)).softmax(-1)
            return image

    for last in (False, True):
        net = nn.ModuleDict({"only": Spatial(last)})
        net.forward = lambda *given, net=net: net["only"](*given)
        with trace_modules(net, "only", tokens=["a", "b", "c"], query="ask", key="answer") as tracer:
            net(torch.randn(1, WIDTH, 4, 6), torch.randn(1, 3, WIDTH))
        truth = net["only"].told.detach()[0].mean(0).mT.unflatten(-1, (4, 6))
        np.testing.assert_allclose(tracer.attribution().maps, truth, atol=1e-6)


def test_half_precision_by_autocast_is_accumulated_in_float32():
    grid = (4, 6)
    net, text, null = build(grid)
    with trace_modules(net, "*.cross", tokens=PIECES) as exact:
        ddim(net, text[:1], null, grid)
    with (
        torch.autocast("cpu", torch.bfloat16),
        trace_modules(net, "*.cross", tokens=PIECES, check=("to_v", "out")) as half,
    ):
        ddim(net, text[:1], null, grid)
    made = half.attribution()
    np.testing.assert_allclose(made.maps.sum(0) + made.padding, 1, atol=1e-5)
    np.testing.assert_allclose(made.maps, exact.attribution().maps, atol=0.05)


# options ----------------------------------------------------------------------------------------------------------


def test_layers_heads_and_bins_are_kept_apart_and_average_to_the_whole():
    grid = (4, 6)
    net, text, null = build(grid)
    made = {}
    for name, options in {
        "whole": {},
        "layer": {"per_layer": True},
        "head": {"per_head": True},
        "bins": {"bins": 2},
    }.items():
        with trace_modules(net, "*.cross", tokens=PIECES, steps=4, **options) as tracer:
            ddim(net, text[:1], null, grid, steps=4)
        made[name] = tracer.attribution().maps
        counts = defaultdict(int)
        for key, count in tracer.maps()[0].counts.items():
            counts[key.bin] += count
        assert counts == ({0: 8, 1: 8} if name == "bins" else {None: 16})  # two layers, two heads
    for maps in made.values():
        np.testing.assert_allclose(maps, made["whole"], atol=1e-6)


def test_the_recipe_decides_what_is_kept_and_the_pattern_which_layers():
    net, text, null = build((4, 6))
    with trace_modules(net, "coarse.cross", tokens=PIECES, recipe="daam", geometry=regular((8, 12), 2.0)) as tracer:
        ddim(net, text[:1], null, (4, 6))
    made = tracer.attribution()
    assert {(key.layer, key.head) for key in tracer.maps()[0].means} == {("coarse.cross", 0), ("coarse.cross", 1)}
    assert made.image_geometry.shape == (8, 12) and made.geometry.spacing_known


@pytest.mark.parametrize(
    "grid",
    [
        {"fine.cross": (4, 6), "coarse.*": (2, 3)},
        lambda layer, queries: {24: (4, 6), 6: (2, 3)}[queries],
    ],
    ids=["mapping", "callable"],
)
def test_grids_can_be_told(grid):
    net, text, null = build((4, 6))
    with trace_modules(net, ["fine.cross", "coarse.cross"], tokens=PIECES, grid=grid) as tracer:
        ddim(net, text[:1], null, (4, 6))
    assert {key.grid for key in tracer.maps()[0].means} == {(4, 6), (2, 3)}


def test_memory_does_not_depend_on_the_number_of_steps():
    net, text, null = build((4, 6))
    kept = []
    for steps in (2, 9):
        with trace_modules(net, "*.cross", tokens=PIECES) as tracer:
            ddim(net, text[:1], null, (4, 6), steps=steps)
        kept.append(tracer.nbytes)
    assert kept[0] == kept[1]


def test_a_prompt_tokenized_elsewhere_keeps_its_rows():
    net, text, null = build((4, 6))
    prompt = TokenizedPrompt(
        "left lung", (1, 5, 6, 2, 0, 0), ("s", "left", "lung", "e", "", ""), (None, (0, 4), (5, 9), *(None,) * 3), 0, 3
    )
    with trace_modules(net, "*.cross", tokens=prompt) as tracer:
        ddim(net, text[:1], null, (4, 6))
    assert tracer.attribution().maps.shape == (4, 4, 6)
