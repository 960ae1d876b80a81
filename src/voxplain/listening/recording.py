"""What a network without an adapter has attended to: one generation, heard layer by layer."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.base import Rows
from voxplain.attention import AttentionCall, RunningMeans
from voxplain.geometry import Geometry, regular
from voxplain.listening.scores import Scores
from voxplain.maps import AttentionMaps, Recipe
from voxplain.models.events import NULL, TEXT
from voxplain.tokens import TokenizedPrompt
from voxplain.tracing import Recording

Grid = tuple[int, ...]
Grids = Grid | Mapping[str, Grid] | Callable[[str, int], Grid] | None
Layout = str | Rows | Callable[[int, tuple[Any, ...], dict[str, Any]], Rows] | None
LAYOUTS: dict[str | None, tuple[str, ...]] = {  # the branches of the parts of a batch, in order
    None: (TEXT,),
    "all": (TEXT,),
    "first half": (TEXT, NULL),
    "second half": (NULL, TEXT),
    "first pass": (TEXT,),
    "second pass": (TEXT,),
}
PASSES = ("first pass", "second pass")
SAY = "'all', 'first half', 'second half', 'first pass', 'second pass', a list of (sample, branch), or a callable"


class ModuleTrace(Recording):
    """What a `trace_modules` block has recorded; made by `trace_modules`."""

    def __init__(
        self,
        net: nn.Module,
        layers: tuple[str, ...],
        prompts: tuple[TokenizedPrompt, ...],
        recipe: Recipe,
        *,
        grid: Grids,
        rows: Layout,
        steps: int | None,
        bins: int | None,
        geometry: Geometry | None,
        per_layer: bool,
        per_head: bool,
    ) -> None:
        self.recipe, self.layers, self.broken = recipe, layers, False
        self._model, self._geometry, self._prompts = type(net).__name__, geometry, prompts
        self._grid, self._rows, self._steps, self._bins = grid, rows, steps, bins
        bin_of = None if bins is None else lambda call: call.step * bins // (steps or 1)
        self._means = RunningMeans(prompts, per_layer=per_layer, per_head=per_head, bin_of=bin_of)
        self._grids: set[Grid] = set()
        self._calls = self._done = 0  # calls of the network, and conditional ones that ended
        self._open = self._conditional = False
        self._given: Rows = ()  # what a callable says of the rows of this call
        self._shapes: dict[str, Grid] = {}  # what the modules around a layer were given in this call
        self._ran: Counter[str] = Counter()  # layers in this call
        self._first: Counter[str] | None = None  # layers in the first conditional call
        self._uneven: set[str] = set()
        self._text: Tensor | None = None  # the first layer's keys, where the text must not change

    def maps(self) -> list[AttentionMaps]:
        if not self._done and not self.broken:
            raise ValueError(
                "nothing was recorded: the network made no conditional call inside the block; run the sampling loop in "
                "it, with this very network (no copy of it, and not its forward)"
            )
        if self.broken or self._open or (self._rows in PASSES and self._calls % 2):
            raise ValueError(
                f"the generation was broken off after {self._done} steps, so there is no complete attribution"
            )
        if self._steps is not None and self._done < self._steps:
            raise ValueError(f"only {self._done} of {self._steps} steps were generated inside the block")
        for layer in self.layers:
            if layer in self._uneven or not (self._first or {}).get(layer):
                raise ValueError(
                    f"{layer} did not run in every one of {self._done} steps, or not equally often; leave it out of "
                    "the pattern if the network skips it, and trace uncompiled what was compiled"
                )
        geometry = self._geometry or replace(regular(max(self._grids, key=math.prod), 1.0), spacing_known=False)
        provenance = {
            "model": self._model,
            "layers": list(self.layers),
            "steps": self._done,
            "bins": self._bins,
            "native": list(geometry.shape),
        }
        return [self._means.maps(sample, geometry, provenance) for sample in range(len(self._prompts))]

    @property
    def nbytes(self) -> int:
        """Bytes kept; the same for any number of steps."""
        return self._means.nbytes

    # what the hooks report ----------------------------------------------------------------------------------------

    def begin(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The network is called."""
        self.broken = self.broken or self._open  # the call before this one never came to its end
        if callable(self._rows):
            self._given = tuple(self._rows(self._calls, args, kwargs))
            self._conditional = any(branch == TEXT for _, branch in self._given)
        else:
            self._conditional = self._rows not in PASSES or self._rows == PASSES[self._calls % 2]
        if self._conditional and self._done == self._steps:
            raise ValueError(f"the network runs after its {self._steps} steps; a block holds one generation")
        self._open, self._calls = True, self._calls + 1
        self._shapes.clear()
        self._ran.clear()

    def finish(self, *_: Any) -> None:
        """The call has ended."""
        self._open = False
        if self._conditional:
            self._first = self._first or Counter(self._ran)
            self._uneven |= {layer for layer in self.layers if self._ran[layer] != self._first[layer]}
            self._done += 1

    def note(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A hook that keeps the shape of the first tensor of four axes or more that a module is given."""

        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            shapes = [tuple(one.shape) for one in (*args, *kwargs.values()) if isinstance(one, Tensor) and one.ndim > 3]
            self._shapes.update({path: shapes[0]} if shapes else {})

        return hook

    def listener(self, layer: str) -> Callable[[Scores], None]:
        """What takes the scores of a layer."""

        def listen(scores: Scores) -> None:
            if not self._open:
                raise ValueError(f"{layer} ran, but the network was not called; call the whole of it inside the block")
            if self._conditional:
                self._watch(layer, scores.key)
                self._record(layer, scores)
            self._ran[layer] += 1

        return listen

    def _record(self, layer: str, scores: Scores) -> None:
        grid = self._cells(layer, scores)
        self._grids.add(grid)
        batch = len(scores.query)
        for row, (sample, branch) in enumerate(self._named(layer, batch)):
            if branch != TEXT:
                continue
            bias = None if scores.bias is None else scores.bias.expand(batch, -1, -1, -1)[row]
            moment = layer, sample, self._done, math.nan, grid
            call = AttentionCall(*moment, scores.query[row], scores.key[row], scores.scale, bias)
            if sample < len(self._prompts) and scores.key.shape[2] != len(self._prompts[sample].ids):
                raise ValueError(
                    f"{layer} has {scores.key.shape[2]} keys, but tokens names {len(self._prompts[sample].ids)}; name "
                    "every position of the text, padding by None, and keep self-attention out of the pattern"
                )
            self._means.update(call)

    def _named(self, layer: str, batch: int) -> Rows:
        """(sample, branch) of each row."""
        if callable(self._rows):
            named = self._given
        elif self._rows is None or isinstance(self._rows, str):
            named = [(sample, branch) for branch in LAYOUTS[self._rows] for sample in range(len(self._prompts))]
        else:
            named = self._rows
        if len(named) != batch:
            layout = "without rows=" if self._rows is None else f"with rows = {self._rows!r}"
            raise ValueError(
                f"{layer} ran with a batch of {batch}, and {len(self._prompts)} prompt(s) {layout} make {len(named)} "
                f"row(s); say which rows are conditional by rows=, and give one prompt a sample. rows= is {SAY}"
            )
        return named

    def _watch(self, layer: str, key: Tensor) -> None:
        """Where nobody named the rows of each call, the text of conditional calls has to stay the same."""
        if layer != self.layers[0] or self._ran[layer] or self._rows not in (None, *PASSES):
            return
        if self._text is None:
            self._text = key.clone()
        elif not torch.equal(self._text, key):
            raise ValueError(
                f"the keys of {layer} changed between {'calls' if self._rows is None else 'conditional passes'}, so "
                "more than one text is read (guidance in two passes?) or they follow the step; say which calls are "
                f"conditional by rows=, which is {SAY}"
            )

    def _cells(self, layer: str, scores: Scores) -> Grid:
        queries = scores.query.shape[2]
        if callable(self._grid):
            grid = self._grid(layer, queries)
        elif isinstance(self._grid, Mapping):
            found = [grid for glob, grid in self._grid.items() if glob == layer or fnmatchcase(layer, glob)]
            if len(set(found)) != 1:
                raise ValueError(f"grid gives {layer} {len(found)} shapes; name it once: {', '.join(self._grid)}")
            grid = found[0]
        elif self._grid is not None:
            grid = self._grid
        else:
            grid = scores.cells if len(scores.cells) > 1 else self._shape_around(layer, scores.query)
        if math.prod(grid) != queries:
            raise ValueError(
                f"{layer} has {queries} queries, which do not fill a grid of {tuple(grid)}; give grid= a shape, one "
                "for each layer, or a callable of (path, number of queries)"
            )
        return tuple(int(size) for size in grid)

    def _shape_around(self, layer: str, query: Float[Tensor, "batch heads queries dim"]) -> Grid:
        """The axes behind [batch, channels] of what the innermost module around a layer was given."""
        shape = next((self._shapes[path] for path in around(layer) if path in self._shapes), ())
        first, last = shape[2:], shape[1:-1]  # of [batch, channels, *grid], and of [batch, *grid, channels]
        sure = first == last or math.prod(last) != query.shape[2]
        if not shape or shape[0] != len(query) or math.prod(first) != query.shape[2] or not sure:
            raise ValueError(
                f"{layer} has {query.shape[2]} queries for each of {len(query)} rows, and what the module around it is "
                f"given ({shape or 'no tensor of four axes or more'}) does not say in which grid; give grid= a shape, "
                "one for each layer, or a callable of (path, number of queries)"
            )
        return first


def around(layer: str) -> list[str]:
    """The paths of a layer and of all modules around it, innermost first; the last is the network."""
    parts = layer.split(".")
    return [".".join(parts[:size]) for size in range(len(parts), -1, -1)]
