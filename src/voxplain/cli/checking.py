"""The verb that tries the promises of an adapter on a model of the user."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from voxplain.cli.base import Device, Dtype, TextEncoder, TrustCode, progress, verb
from voxplain.cli.opening import open_model


@verb
def check(
    model: Annotated[str, typer.Argument(help="As --model of `voxplain explain`.", show_default=False)],
    prompt: Annotated[list[str] | None, typer.Option(help="Two texts that the model can read; give it twice.")] = None,
    text_encoder: TextEncoder = None,
    dtype: Dtype = None,
    device: Device = None,
    trust_code: TrustCode = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Try a model: what is found in it, which promises hold, what tracing costs."""
    if prompt is not None and len(prompt) != 2:
        raise ValueError(f"{len(prompt)} prompts; give --prompt twice, or not at all")
    with progress() as report:
        opened = open_model(model, report, text_encoder=text_encoder, dtype=dtype, device=device, trust_code=trust_code)
        from voxplain.adapters import as_adapter
        from voxplain.testing import PROMPTS, describe, verdicts

        adapter, prompts = as_adapter(opened), PROMPTS if prompt is None else (prompt[0], prompt[1])
        promises = verdicts(
            adapter, prompts, lambda name, done, total: report("promises", done, total, name.replace("_", " "))
        )
        broken = {name: reason for name, reason in promises.items() if reason}
        try:
            facts = describe(adapter, prompts[0], progress=report)
        except Exception:
            if not broken:
                raise
            facts = {"model": adapter.name}  # a model that breaks promises need not run to an end
    if as_json:
        import json

        typer.echo(json.dumps({**facts, "promises": promises}, ensure_ascii=False))
    else:
        for line in sentences(facts, promises):
            typer.echo(line)
    if broken:
        raise SystemExit(1)


def sentences(facts: Mapping[str, Any], promises: Mapping[str, str | None]) -> Iterator[str]:
    """What was found, in words: one line for each thing."""
    if "layers" in facts:
        yield from found(facts)
    broken = {name: reason for name, reason in promises.items() if reason}
    yield f"Promises: {len(promises) - len(broken)} of {len(promises)} kept."
    for name, reason in broken.items():
        yield f"  broken: {name.replace('_', ' ')} ({reason})"


def found(facts: Mapping[str, Any]) -> Iterator[str]:
    """What `testing.describe` found."""
    spacing = facts["spacing"]
    size = f"voxels of {times(round(step, 2) for step in spacing)} mm" if spacing else "voxels of unknown size"
    yield f"{facts['model']} (weights {(facts['weights'] or 'unknown')[:12]})"
    yield f"Images: {times(facts['image'])} {size}, from latents of {times(facts['latent'][1:])}."
    ends = " and ".join(name for name in ("start", "end") if name in facts) or "no start or end"
    yield (
        f"Text: {facts['positions']} positions, {facts['padding']} of them padding for {facts['prompt']!r}; "
        f"pieces {' '.join(facts['pieces'])} ({ends} token)."
    )
    kinds = [(times(layer["grid"]), layer["heads"], layer["keys"]) for layer in facts["layers"]]
    yield f"Layers that read the text: {len(kinds) + len(facts['refused'])}, {len(kinds)} of them heard."
    for grid, heads, keys in dict.fromkeys(kinds):
        count = kinds.count((grid, heads, keys))
        yield f"  grid {grid}: {many(count, 'layer')} of {many(heads, 'head')}, {many(keys, 'text key')}"
    for reason, layers in reasons(facts["refused"]).items():
        yield f"  refused: {', '.join(layers)}: {reason}"
    yield f"Guidance: {layout(facts['guidance']['with'])}; without it {layout(facts['guidance']['without'])}."
    if cost := facts["cost"]:
        yield (
            f"Tracing: {cost['cpu_ratio']:.3f} times the CPU time of a plain run of {cost['steps']} steps, map "
            f"included (median of {', '.join(map(str, cost['of_pairs']))}), {cost['kept_bytes'] / 1e6:.2f} MB kept."
        )


def reasons(refused: Mapping[str, str]) -> dict[str, list[str]]:
    """The layers of each reason."""
    found: dict[str, list[str]] = {}
    for layer, reason in refused.items():
        found.setdefault(reason, []).append(layer)
    return found


def layout(runs: list[list[str]]) -> str:
    """Which branches of guidance run together."""
    rows = [" and ".join(branches) for branches in runs]
    return f"one run a step ({rows[0]})" if len(rows) == 1 else f"{len(rows)} runs a step ({', then '.join(rows)})"


def many(count: int, noun: str) -> str:
    """1 layer, 2 layers."""
    return f"{count} {noun}{'s' * (count != 1)}"


def times(sizes: Any) -> str:
    """4 x 6 x 8."""
    return " x ".join(f"{size:g}" for size in sizes)
