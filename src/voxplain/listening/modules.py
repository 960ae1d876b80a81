"""Listening to a network in anybody's own sampling loop: `trace_modules` needs no adapter."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from voxplain.adapters.hooks import refuse_compiled
from voxplain.geometry import Geometry
from voxplain.listening.recording import LAYOUTS, SAY, Grids, Layout, ModuleTrace, around
from voxplain.listening.scores import Projection, Reading, heard
from voxplain.maps import Recipe
from voxplain.models.events import TEXT
from voxplain.recipes import get
from voxplain.tokens import TokenizedPrompt

Pieces = Sequence[str | None]  # one a key position; None for special tokens and padding


@contextmanager
def trace_modules(
    net: nn.Module,
    pattern: str | Sequence[str],
    *,
    tokens: TokenizedPrompt | Sequence[str | None] | Sequence[TokenizedPrompt | Pieces],
    query: Projection = "to_q",
    key: Projection = "to_k",
    heads: int | str | Callable[[Any], int] | None = None,
    scale: float | str | Callable[[Any], float] | None = None,
    mask: Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor | None] | None = None,
    check: tuple[str, str] | None = None,
    grid: Grids = None,
    rows: Layout = None,
    steps: int | None = None,
    recipe: str | Recipe = "mean",
    per_layer: bool = False,
    per_head: bool = False,
    bins: int | None = None,
    geometry: Geometry | None = None,
) -> Iterator[ModuleTrace]:
    """Record the cross-attention of one generation by any network; what it computes stays bit-identical.

    Which modules: `pattern`, one or more globs on the module paths of `net` ("*.cross").
    Which text: `tokens`, a `TokenizedPrompt` or the pieces that the network reads, one a key position and None where
    that is padding or special ("##" joins a piece to the one before); for a batch of samples a list of these.
    Which rows: `rows`. "all" rows of the batch are conditional, or its "first half" or "second half", or the "first
    pass" or "second pass" of two calls a step; or (sample, branch) for each row, branch "text" being conditional; or
    a callable of (number of the call, args, kwargs) that returns this. By default there is no guidance, and a batch
    that does not fit the prompts or a text that changes on the way is refused.
    How they attend: `query` and `key` name submodules that put out the projections, or are callables of (module, args,
    kwargs, output) that return `[batch, heads, positions, dim]`; a `torch.nn.MultiheadAttention` needs neither.
    `heads`: number, attribute or callable (default: num_heads, heads, n_heads or nhead). `scale`: the same (default
    1 / sqrt(dim)). `mask`, of (module, args, kwargs): `[batch, heads, queries, tokens]`, each but the last or 1, added
    to the scores, or True where a key is attended to. `check` names the submodules of the values and of what takes the
    mixed values, ("to_v", "to_out"): the first run of each layer then has to equal what was read.
    Where: `grid`, a shape, or one for each path or glob, or a callable of (path, number of queries). By default the
    axes behind [batch, channels] of what the innermost module around the attention is given. Cells are in row-major
    order. `geometry` is the image's; by default that of the finest grid, spacing unknown.
    When: each conditional call of `net` is a step. `steps` announces how many there are, so that a run cut short is
    an error; `bins` splits them into equal parts. `recipe`, `per_layer` and `per_head` are those of `trace`, but which
    layers count is said by `pattern` alone.
    """
    chosen = get(recipe)
    if not chosen.needs_attention:
        raise ValueError(f"recipe {chosen.name!r} does not read attention; it needs an adapter, and voxplain.explain")
    if isinstance(rows, str) and rows not in LAYOUTS:
        raise ValueError(f"rows = {rows!r}; give {SAY}")
    if isinstance(rows, Sequence) and not isinstance(rows, str) and all(branch != TEXT for _, branch in rows):
        raise ValueError(f"no row of {list(rows)} is on the branch {TEXT!r}, so nothing would be recorded")
    if steps is not None and steps < 1:
        raise ValueError(f"steps = {steps}; give 1 or more")
    if bins is not None and not 1 <= bins <= (steps or 0):
        raise ValueError(f"bins = {bins} of steps = {steps}; announce the steps, and give 1 bin up to one a step")
    refuse_compiled(net)
    tracer = ModuleTrace(
        net,
        _fitting(net, [pattern] if isinstance(pattern, str) else list(pattern)),
        _prompts(tokens),
        replace(chosen, layers=None),
        grid=grid,
        rows=rows,
        steps=steps,
        bins=bins,
        geometry=geometry,
        per_layer=per_layer or "layer" in chosen.accumulate,
        per_head=per_head or "head" in chosen.accumulate,
    )
    with ExitStack() as hooks:
        how = Reading(query, key, heads, scale, mask, check)
        for layer in tracer.layers:
            hooks.enter_context(heard(layer, net.get_submodule(layer), how, tracer.listener(layer)))
        for path in {path for layer in tracer.layers if grid is None for path in around(layer)}:
            module = net.get_submodule(path)
            hooks.callback(module.register_forward_pre_hook(tracer.note(path), with_kwargs=True).remove)
        hooks.callback(net.register_forward_pre_hook(tracer.begin, with_kwargs=True, prepend=True).remove)
        hooks.callback(net.register_forward_hook(tracer.finish).remove)
        try:
            yield tracer
        except BaseException:
            tracer.broken = True
            raise


def _fitting(net: nn.Module, patterns: list[str]) -> tuple[str, ...]:
    """The modules of a network that fit any pattern, in its order. Raises where a pattern fits none."""
    paths = {path: type(part).__name__ for path, part in net.named_modules() if path}
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            alike = [f"{path} ({kind})" for path, kind in paths.items() if _looks(net, path, kind)]
            shown = ", ".join(alike[:12]) + (f" and {len(alike) - 12} more" if len(alike) > 12 else "")
            raise ValueError(
                f"no module of {type(net).__name__} fits {pattern!r}; "
                + (f"these look like attention: {shown}" if alike else "none of its modules looks like attention")
            )
    if not patterns:
        raise ValueError("no pattern, so there is nothing to record; give a glob on module paths, such as '*.attn2'")
    return tuple(path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns))


def _looks(net: nn.Module, path: str, kind: str) -> bool:
    """Whether a module may be attention, by its class or by what it consists of."""
    children = {name for name, _ in net.get_submodule(path).named_children()}
    return (
        kind.lower().endswith(("attention", "attn")) or {"to_q", "to_k"} <= children or {"q_proj", "k_proj"} <= children
    )


def _prompts(tokens: Any) -> tuple[TokenizedPrompt, ...]:
    """One prompt a sample, from all that `tokens` may be."""
    if isinstance(tokens, str):
        raise ValueError(f"tokens = {tokens!r} is a text; give the pieces that the network reads, one a key position")
    if isinstance(tokens, TokenizedPrompt):
        return (tokens,)
    if all(piece is None or isinstance(piece, str) for piece in tokens):
        return (_joined(tokens),)
    return tuple(one if isinstance(one, TokenizedPrompt) else _joined(one) for one in tokens)


def _joined(pieces: Pieces) -> TokenizedPrompt:
    """A prompt of its pieces, joined by blanks; "##" joins a piece to the one before."""
    text, spans = "", []
    for piece in pieces:
        if piece is None:
            spans.append(None)
            continue
        bare = piece.removeprefix("##")
        if not bare.strip():
            raise ValueError(f"tokens holds the blank piece {piece!r}; write None for padding and special tokens")
        text += "" if piece != bare or not text else " "
        spans.append((len(text), len(text) + len(bare)))
        text += bare
    if not text:
        raise ValueError(f"tokens names no word among {len(pieces)} positions; give the pieces that the network reads")
    names = tuple("[PAD]" if piece is None else piece for piece in pieces)
    return TokenizedPrompt(text, tuple(range(len(names))), names, tuple(spans), start=None)
