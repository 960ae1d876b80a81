"""What an adapter finds in a model: layers, grids, text keys, guidance, what is refused, what tracing costs."""

from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from time import process_time
from typing import Any

from voxplain.adapters.base import Adapter
from voxplain.attention import AttentionCall, SingleKeyError
from voxplain.models.events import Call
from voxplain.testing.promises import PROMPTS
from voxplain.tracing import Trace, trace

GUIDANCE = 2.0  # any scale that runs the unconditional branch
Progress = Callable[[str, int, int], None]  # (stage, done, total)


def describe(
    adapter: Adapter,
    prompt: str = PROMPTS[0],
    *,
    steps: int = 2,
    pairs: int = 3,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What the adapter says and what is heard when it generates, ready for JSON.

    "layers" has the layer, grid, heads and text keys of each that was heard, in the order of the network; "refused"
    says why the others were not. "guidance" lists the branches of each run of the denoiser within a step, with and
    without guidance. "cost" is None where attention is refused; else the CPU time of this process with a trace of all
    layers over that without one, for `pairs` pairs of generations of `steps` steps that take turns (on a GPU that is
    the time of the host only), and the bytes that the trace kept.
    """
    tokens, geometry = adapter.tokenize(prompt), adapter.geometry
    refused: dict[str, str] = {}
    heard: dict[str, dict[str, Any]] = {}

    def note(call: AttentionCall) -> None:
        sizes = {"grid": list(call.grid), "heads": len(call.key), "keys": call.key.shape[1]}
        heard[call.layer] = {"layer": call.layer, **sizes}

    with ExitStack() as hooks:
        for layer in adapter.layers:
            try:
                hooks.enter_context(adapter.observe(layer, note))
            except Exception as error:  # whatever it is, it is the reason
                refused[layer] = f"{type(error).__name__}: {error}"
        try:
            adapter.generate(prompt, seed=0, steps=1)
        except SingleKeyError as error:
            refused |= {layer: str(error) for layer in adapter.layers}
            heard.clear()
    layers = [heard[layer] for layer in adapter.layers if layer in heard]
    silent = [layer for layer in adapter.layers if layer not in heard and layer not in refused]
    refused |= {layer: "it ran without being heard, or did not run" for layer in silent}
    special = {name: tokens.pieces[at] for name, at in (("start", tokens.start), ("end", tokens.end)) if at is not None}
    return {
        "model": adapter.name,
        "weights": adapter.weights_hash,
        "image": list(geometry.shape),
        "spacing": list(geometry.spacing) if geometry.spacing_known else None,
        "latent": list(adapter.latent_shape),
        "prompt": prompt,
        "pieces": [tokens.pieces[at] for at in tokens.kept],
        "positions": len(tokens.ids),
        "padding": len(tokens.padding),
        **special,
        "layers": layers,
        "refused": refused,
        "guidance": {
            "with": _branches(adapter, prompt, GUIDANCE),
            "without": _branches(adapter, prompt, 1.0),
        },
        "cost": None if refused else _cost(adapter, prompt, steps, pairs, progress),
    }


def _branches(adapter: Adapter, prompt: str, scale: float) -> list[list[str]]:
    """The branch of each row, for each time that the denoiser runs in the first step."""
    runs: list[list[str]] = []

    def note(event: Any) -> None:
        if isinstance(event, Call) and event.step == 0:
            runs.append([branch for _, branch in event.rows])

    with adapter.watching(note):
        adapter.generate(prompt, seed=0, steps=1, guidance_scale=scale)
    return runs


def _cost(adapter: Adapter, prompt: str, steps: int, pairs: int, progress: Progress | None) -> dict[str, Any]:
    ratios: list[float] = []
    tracer: Trace | None = None
    adapter.generate(prompt, seed=0, steps=steps)  # what is made once, at the first run, is no cost of tracing
    for number in range(pairs):
        times: dict[bool, float] = {}
        for traced in (number % 2 == 0, number % 2 == 1):
            began = process_time()
            if traced:
                with trace(adapter) as tracer:
                    adapter.generate(prompt, seed=0, steps=steps)
                tracer.attribution()
            else:
                adapter.generate(prompt, seed=0, steps=steps)
            times[traced] = process_time() - began
        ratios.append(times[True] / times[False])
        if progress:
            progress("measuring the cost", number + 1, pairs)
    assert tracer is not None
    return {
        "cpu_ratio": round(median(ratios), 3),
        "of_pairs": [round(ratio, 3) for ratio in ratios],
        "steps": steps,
        "kept_bytes": tracer.nbytes,
    }
