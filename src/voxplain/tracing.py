"""Listening to a model while it generates: `trace` records the attention of every word."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from voxplain.adapters.base import Adapter, Run, Step, as_adapter
from voxplain.attention import AttentionCall, RunningMeans
from voxplain.maps import AttentionMaps, Attribution, Recipe
from voxplain.recipes import get, reduce


@contextmanager
def attached(
    adapter: Adapter, listener: Callable[[AttentionCall], None], layers: Sequence[str] | None = None
) -> Iterator[None]:
    """Hand every conditional cross-attention call made inside the block to `listener`; all layers by default."""
    with ExitStack() as hooks:
        for layer in adapter.layers if layers is None else layers:
            hooks.enter_context(adapter.observe(layer, listener))
        yield


@contextmanager
def trace(
    model: Any,
    recipe: str | Recipe = "mean",
    *,
    layers: Sequence[str] | None = None,
    per_layer: bool = False,
    per_head: bool = False,
    bins: int | None = None,
    window: tuple[int, int] | None = None,
) -> Iterator["Trace"]:
    """Record the attention of all generations inside the block; the generated images stay bit-identical.

    `model` is a pipeline or an `Adapter`. `layers` are module paths or patterns ("up_blocks.*"), by default those of
    the recipe. `per_layer` and `per_head` keep means apart that are otherwise taken together at each grid; `bins`
    splits the steps into that many equal parts; `window` keeps the steps from its first to its last, both counted
    from 0 and included. Read the result with `attribution()`, after the generation.
    """
    adapter, chosen = as_adapter(model), get(recipe)
    if not chosen.needs_attention:
        raise ValueError(f"recipe {chosen.name!r} does not read attention; get it from voxplain.explain")
    if chosen.layers == ():  # the model names them
        if not adapter.localizing_layers:
            raise ValueError(
                f"nobody has measured which layers of {adapter.name} localize; trace with recipe='mean' and layers=..."
            )
        chosen = replace(chosen, layers=adapter.localizing_layers)
    if bins is not None and bins < 1:
        raise ValueError(f"bins = {bins}; give 1 or more")
    if window is not None and not 0 <= window[0] <= window[1]:
        raise ValueError(f"window = {window}; give the first and the last step, counted from 0")
    tracer = Trace(
        adapter,
        chosen,
        choose_layers(adapter, chosen.layers if layers is None else layers),
        per_layer=per_layer or "layer" in chosen.accumulate,
        per_head=per_head or "head" in chosen.accumulate,
        bins=bins,
        window=window,
    )
    with ExitStack() as hooks:
        hooks.enter_context(adapter.on_run(tracer.begin))
        hooks.enter_context(adapter.on_step(tracer.finish_step))
        hooks.enter_context(attached(adapter, tracer.record, tracer.layers))
        yield tracer


def choose_layers(adapter: Adapter, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """The layers of an adapter that match any pattern, in its order; all for None. Raises where a pattern fits none."""
    if patterns is None:
        return tuple(adapter.layers)
    for pattern in patterns:
        if not any(fnmatchcase(layer, pattern) for layer in adapter.layers):
            raise ValueError(f"no layer of {adapter.name} fits {pattern!r}; its layers: {', '.join(adapter.layers)}")
    found = tuple(layer for layer in adapter.layers if any(fnmatchcase(layer, pattern) for pattern in patterns))
    if not found:
        raise ValueError(f"no layers to record; the layers of {adapter.name}: {', '.join(adapter.layers)}")
    return found


class Recording(ABC):
    """What was recorded inside a block, and what its recipe makes of it."""

    recipe: Recipe

    @abstractmethod
    def maps(self) -> list[AttentionMaps]:
        """The recorded means of each sample, in the order of generation; raises if any is missing or incomplete."""

    def attributions(self) -> list[Attribution]:
        """One attribution for each sample, in the order of generation."""
        return [reduce(maps, self.recipe) for maps in self.maps()]

    def attribution(self) -> Attribution:
        """The attribution of the one sample that was generated; raises ValueError unless it was exactly one."""
        made = self.attributions()
        if len(made) != 1:
            raise ValueError(f"{len(made)} samples were generated in this trace; read attributions()")
        return made[0]


class Trace(Recording):
    """What a `trace` block has recorded; made by `trace`."""

    def __init__(
        self,
        adapter: Adapter,
        recipe: Recipe,
        layers: tuple[str, ...],
        *,
        per_layer: bool,
        per_head: bool,
        bins: int | None,
        window: tuple[int, int] | None,
    ) -> None:
        self.recipe, self.layers = recipe, layers
        self._options: dict[str, Any] = {"per_layer": per_layer, "per_head": per_head}
        self._bins, self._window = bins, window
        self._origin = {"model": adapter.name, "native": list(adapter.geometry.shape)}
        self._runs: list[tuple[Run, RunningMeans]] = []
        self._done: list[set[int]] = []  # steps finished, for each run

    def maps(self) -> list[AttentionMaps]:
        if not self._runs:
            raise ValueError("nothing was recorded: no generation began inside the trace block; run the model in it")
        provenance = {**self._origin, "layers": list(self.layers), "window": self._window, "bins": self._bins}
        made = []
        for number, (run, means) in enumerate(self._runs):
            for sample in range(len(run.prompts)):
                self._check(number, sample)
                made.append(means.maps(sample, run.geometry, {**provenance, "steps": run.steps}))
        return made

    @property
    def nbytes(self) -> int:
        """Bytes kept; the same for any number of steps."""
        return sum(means.nbytes for _, means in self._runs)

    # what the adapter reports -------------------------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """A generation begins."""
        if self._window is not None and self._window[1] >= run.steps:
            raise ValueError(f"window = {self._window}, but the last of {run.steps} steps is step {run.steps - 1}")
        bins = self._bins
        if bins is not None and bins > run.steps:
            raise ValueError(f"bins = {bins}, but there are {run.steps} steps")
        bin_of = None if bins is None else lambda call: call.step * bins // run.steps
        self._runs.append((run, RunningMeans(run.prompts, bin_of=bin_of, **self._options)))
        self._done.append(set())

    def record(self, call: AttentionCall) -> None:
        """A layer ran; what runs after the last step of a generation (a read-out, say) is no part of it."""
        if not self._runs:
            raise ValueError(f"{call.layer} ran outside of a generation; use `attached` to hear single predictions")
        if len(self._done[-1]) == self._runs[-1][0].steps:
            return
        if self._window is None or self._window[0] <= call.step <= self._window[1]:
            self._runs[-1][1].update(call)

    def finish_step(self, step: Step) -> None:
        """A step is done."""
        self._done[-1].add(step.step)

    def _check(self, number: int, sample: int) -> None:
        run, means = self._runs[number]
        if len(self._done[number]) < run.steps:
            raise ValueError(
                f"only {len(self._done[number])} of {run.steps} steps were generated inside the trace block; "
                "the generation was cut short, so there is no complete attribution"
            )
        first, last = self._window or (0, run.steps - 1)
        calls = means.calls(sample)
        for layer in self.layers:
            if calls.get(layer, 0) < last - first + 1:
                raise ValueError(
                    f"{layer} was recorded {calls.get(layer, 0)} times in {last - first + 1} steps; a part of the "
                    "model that was compiled before tracing runs without hooks: trace it uncompiled"
                )
