import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import voxplain
from voxplain.adapters.toy import ToyAdapter
from voxplain.attention import SingleKeyError
from voxplain.geometry import regular
from voxplain.listening.modules import trace_modules
from voxplain.tokens import TokenizedPrompt

WIDTH, HEADS, STEPS = 8, 2, 3
PIECES = [None, "large", "pneumo", "##thorax", None, None]
BOTH = pytest.mark.parametrize("grid", [(4, 6), (2, 4, 6)], ids=["image", "volume"])


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


def test_a_prompt_tokenized_elsewhere_keeps_its_rows():
    net, text, null = build((4, 6))
    prompt = TokenizedPrompt(
        "left lung", (1, 5, 6, 2, 0, 0), ("s", "left", "lung", "e", "", ""), (None, (0, 4), (5, 9), *(None,) * 3), 0, 3
    )
    with trace_modules(net, "*.cross", tokens=prompt) as tracer:
        ddim(net, text[:1], null, (4, 6))
    assert tracer.attribution().maps.shape == (4, 4, 6)
