"""The queries and keys of one attention module of any network, read in hooks; its kernel is left alone."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

# of (module, args, kwargs, output) of the attention module; [batch, heads, positions, dim]
Projection = str | Callable[[Any, tuple[Any, ...], dict[str, Any], Any], Tensor]
HEADS = ("num_heads", "heads", "n_heads", "nhead")  # what networks call the number of heads


@dataclass(frozen=True, slots=True)
class Reading:
    """How attention modules are read; the fields are the options of `trace_modules`."""

    query: Projection = "to_q"
    key: Projection = "to_k"
    heads: int | str | Callable[[Any], int] | None = None
    scale: float | str | Callable[[Any], float] | None = None
    mask: Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor | None] | None = None
    check: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the softmax of one run of a layer is made of; `cells` are the axes that the queries had in the network."""

    query: Float[Tensor, "batch heads queries dim"]
    key: Float[Tensor, "batch heads tokens dim"]
    scale: float
    bias: Float[Tensor, "#batch #heads #queries tokens"] | None
    cells: tuple[int, ...]


@contextmanager
def heard(layer: str, module: nn.Module, how: Reading, use: Callable[[Scores], None]) -> Iterator[None]:
    """Hand the scores of each run of `module` to `use`.

    Raises ValueError for a part that is not there, and while listening for whatever would be read wrongly: a mask
    that nobody spoke of, another scale, self-attention, and with `check` any result that the scores do not explain.
    """
    own = isinstance(module, nn.MultiheadAttention) and isinstance(how.query, str) and isinstance(how.key, str)
    if own and (how.mask is not None or how.check is not None or how.scale is not None):
        raise ValueError(f"{layer}: a MultiheadAttention is read whole; leave out mask, scale and check")
    value, out = how.check or (None, None)
    names = {} if own else {"query": how.query, "key": how.key, "value": value, "out": out}
    parts = {part: _submodule(layer, module, name) for part, name in names.items() if isinstance(name, str)}
    heads = _heads(layer, module, how.heads) if parts else 0
    words = [name for name, one in signature(module.forward).parameters.items() if one.kind != Parameter.VAR_KEYWORD]
    seen: dict[str, tuple[Any, Tensor]] = {}
    inside = checked = False

    def start(*_: Any) -> None:
        nonlocal inside
        inside = True
        seen.clear()

    def keep(part: str) -> Callable[..., None]:
        def hook(_: nn.Module, given: tuple[Any, ...], output: Any = None) -> None:
            if not inside:  # another module's use of a shared projection, or a callable's
                return
            if part in seen:
                raise ValueError(f"{layer} ran {names[part]!r} twice in one call; give callables for query and key")
            seen[part] = given[0] if given else None, given[0] if part == "out" else output

        return hook

    def project(part: str, named: Projection, *run: Any) -> tuple[Tensor, tuple[int, ...]]:
        if isinstance(named, str):
            return _split(f"{layer}.{named}", parts[part], seen[part][1], heads)
        made = named(module, *run)
        if made.ndim != 4:
            raise ValueError(
                f"{layer}: the callable for {part} gave {tuple(made.shape)}; expected [batch, heads, positions, dim]"
            )
        return made, tuple(made.shape[2:3])

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Scores:
        nonlocal checked
        if own:
            return _in_projection(layer, module, args, kwargs)
        if missing := parts.keys() - seen.keys():
            raise RuntimeError(
                f"{layer} ran, but its {', '.join(sorted(missing))} was not heard: the module was exchanged, compiled "
                "or left out in this call (keys kept from an earlier one?); change the network outside of the block"
            )
        if {"query", "key"} <= seen.keys() and _same(seen["query"][0], seen["key"][0]):
            raise ValueError(f"{layer} attends to itself, not to text; narrow the pattern")
        run = args, kwargs, output
        query, cells = project("query", how.query, *run)
        key, _ = project("key", how.key, *run)
        if len(key) == 1:  # one text for the whole batch
            key = key.expand(len(query), -1, -1, -1)
        if (len(key), key.shape[1], key.shape[3]) != (len(query), query.shape[1], query.shape[3]):
            raise ValueError(
                f"{layer}: queries {tuple(query.shape)} and keys {tuple(key.shape)} do not fit as [batch, heads, "
                "positions, dim]; give callables for them that repeat what the network shares"
            )
        scores = Scores(query, key, _scale(layer, module, how.scale, query.shape[3]), bias(args, kwargs), cells)
        if how.check and not checked:
            _prove(layer, scores, *(_split(f"{layer}.{names[p]}", parts[p], seen[p][1], heads)[0] for p in CHECKED))
            checked = True
        return scores

    def bias(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        if how.mask is not None:
            mask = how.mask(module, args, kwargs)
            if mask is not None and mask.ndim != 4:
                raise ValueError(
                    f"{layer}: the mask is {tuple(mask.shape)}; expected [batch or 1, heads or 1, queries or 1, tokens]"
                )
            return mask if mask is None else _additive(~mask if mask.dtype == torch.bool else mask)
        given = {**dict(zip(words, args, strict=False)), **kwargs}
        odd = [name for name, one in given.items() if ("mask" in name or "bias" in name) and isinstance(one, Tensor)]
        if odd:
            raise ValueError(
                f"{layer} is given {', '.join(odd)}, which may change its attention; say what it does to the scores by "
                "mask=lambda module, args, kwargs: ... (None for nothing)"
            )
        return None

    def finish(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal inside
        inside = False
        try:
            with torch.no_grad():
                use(read(args, kwargs, output))
        finally:
            seen.clear()  # or the queries of every layer would stay in memory

    with ExitStack() as hooks:
        hooks.callback(module.register_forward_pre_hook(start).remove)
        for part, one in parts.items():
            listen = one.register_forward_pre_hook if part == "out" else one.register_forward_hook
            hooks.callback(listen(keep(part)).remove)
        hooks.callback(module.register_forward_hook(finish, with_kwargs=True).remove)
        yield


CHECKED = ("value", "out")


def _submodule(layer: str, module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError:
        children = ", ".join(path for path, _ in module.named_children()) or "none"
        raise ValueError(
            f"{layer} ({type(module).__name__}) has no submodule {name!r}; it has {children}. Narrow the pattern, name "
            "another one, or give a callable"
        ) from None


def _heads(layer: str, module: nn.Module, given: int | str | Callable[[Any], int] | None) -> int:
    if isinstance(given, int):
        return given
    if callable(given):
        return int(given(module))
    names = HEADS if given is None else (given,)
    found = {int(one) for name in names if isinstance(one := getattr(module, name, None), int)}
    if len(found) != 1:
        raise ValueError(
            f"{layer} ({type(module).__name__}) does not say its number of heads by {' or '.join(names)}; give heads="
            "a number, the name of an attribute, or a callable"
        )
    return found.pop()


def _scale(layer: str, module: nn.Module, given: float | str | Callable[[Any], float] | None, dim: int) -> float:
    if isinstance(given, int | float):
        return float(given)
    if callable(given):
        return float(given(module))
    if given is not None:
        return float(getattr(module, given))
    usual, stated = dim**-0.5, getattr(module, "scale", None)
    agrees = math.isclose(stated, usual, rel_tol=1e-3) if isinstance(stated, int | float) else True
    if isinstance(stated, Tensor) or not agrees:
        raise ValueError(
            f"{layer} has scale = {stated}, and 1 / sqrt({dim}) is {usual:g}; say which one its scores are multiplied "
            "by: scale='scale', a number, or a callable"
        )
    return usual


def _split(name: str, part: nn.Module, made: Any, heads: int) -> tuple[Tensor, tuple[int, ...]]:
    """[batch, heads, positions, dim] and the axes of the positions, of what a projection put out.

    Channels are second where it is a convolution, else last; more than one axis of positions only where it is known.
    """
    shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
    convolution = isinstance(part, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    if (
        not isinstance(made, Tensor)
        or made.ndim < 3
        or (made.ndim > 3 and not (convolution or type(part) is nn.Linear))
    ):
        raise ValueError(
            f"{name} ({type(part).__name__}) put out {shape}; expected [batch, positions, heads * dim]. Give a "
            "callable that returns [batch, heads, positions, dim]"
        )
    line = made.movedim(1, -1) if convolution else made
    if line.shape[-1] % heads:
        raise ValueError(f"{name} put out {line.shape[-1]} channels, which {heads} heads cannot share; give heads=")
    return line.flatten(1, -2).unflatten(-1, (heads, -1)).transpose(1, 2), tuple(line.shape[1:-1])


def _same(one: Any, other: Any) -> bool:
    """Whether both are the same tensor, or equal to the last bit."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and (one is other or (one.shape == other.shape and torch.equal(one, other)))


def _additive(mask: Tensor) -> Tensor:
    """Minus infinity where a boolean mask is True; any other is added as it is."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(mask, -math.inf)


def _prove(layer: str, scores: Scores, value: Tensor, mixed: Tensor) -> None:
    """Raise ValueError unless softmax(QK^T scale + bias) V is what attention handed on, to a part in a thousand."""
    query, key, value = scores.query.float(), scores.key.float(), value.expand(len(scores.key), -1, -1, -1).float()
    bias = None if scores.bias is None else scores.bias.float()
    with torch.autocast(mixed.device.type, enabled=False):
        away = (scaled_dot_product_attention(query, key, value, bias, scale=scores.scale) - mixed.float()).abs().max()
    size = mixed.float().abs().max()
    if not away <= (1e-3 if mixed.dtype in (torch.float32, torch.float64) else 3e-2) * size:
        raise ValueError(
            f"{layer} does not attend by softmax(Q K^T * {scores.scale:g}{' + mask' if bias is not None else ''}) V of "
            f"the parts named: its result departs from that by {float(away / size):.2g} of its maximum. Something "
            "changes queries or keys after their projection (a normalization, rotary positions), or a mask or another "
            "scale is at work; give query= and key= as callables, mask= or scale="
        )


def _in_projection(layer: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Scores:
    """The scores of a `torch.nn.MultiheadAttention`, its masks included."""
    given = signature(module.forward).bind(*args, **kwargs).arguments
    query, key = given["query"], given["key"]
    if _same(query, key):
        raise ValueError(f"{layer} attends to itself, not to text; narrow the pattern")
    if module.bias_k is not None or module.add_zero_attn:
        raise NotImplementedError(f"{layer} adds keys of its own (add_bias_kv or add_zero_attn), which are no tokens")
    width, heads = module.embed_dim, module.num_heads
    one = module.in_proj_weight
    weights = (module.q_proj_weight, module.k_proj_weight) if one is None else (one[:width], one[width : 2 * width])
    shift = module.in_proj_bias
    shifts = (None, None) if shift is None else (shift[:width], shift[width : 2 * width])
    rows = []
    for made, weight, constant in zip((query, key), weights, shifts, strict=True):
        made = made if module.batch_first or made.ndim == 2 else made.transpose(0, 1)
        projected = linear(made if made.ndim == 3 else made[None], weight, constant)
        rows.append(projected.unflatten(-1, (heads, -1)).transpose(1, 2))  # [batch, heads, positions, dim]
    bias, mask, padding = None, given.get("attn_mask"), given.get("key_padding_mask")
    if mask is not None:
        mask = _additive(mask)
        bias = mask[None, None] if mask.ndim == 2 else mask.unflatten(0, (-1, heads))
    if padding is not None:
        ignored = _additive(padding).reshape(-1, 1, 1, padding.shape[-1])
        bias = ignored if bias is None else bias + ignored
    return Scores(rows[0], rows[1], (width // heads) ** -0.5, bias, tuple(rows[0].shape[2:3]))
