"""Cross-attention that reads a volume slice by slice: its slices are rows of the batch, volume by volume."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.base import Adapter, Use
from voxplain.adapters.hooks import noting
from voxplain.attention import AttentionCall
from voxplain.models.events import TEXT


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of one such attention.

    The first input of `grid` ends in (rows, columns). `query`, `key` and `value` put out [slices, positions, heads *
    dim], or [slices, heads * dim, rows, columns] if they are convolutions; where `key` is `value`, the first half of
    its channels are keys. Keys may come once a volume instead of once a slice. `out` takes what attention has mixed,
    laid out like the queries.
    """

    grid: nn.Module
    query: nn.Module
    key: nn.Module
    value: nn.Module
    out: nn.Module
    heads: int
    scale: float


@contextmanager
def sliced_projections(adapter: Adapter, layer: str, parts: Parts, use: Use, edit: bool) -> Iterator[None]:
    """Hear (or edit) a layer through hooks on its projections; the attention kernel is left alone.

    All slices of a volume make one call with the grid (slices, rows, columns). An edit replaces what reaches `out`.
    """
    seen: dict[str, Any] = {}
    kept = {"query": parts.query, "key": parts.key, **({"value": parts.value} if edit else {})}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, output.detach())

    def measure(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["grid"] = tuple(inputs[0].shape[-2:])

    def heard(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not {"query", "key", "grid"} <= seen.keys():
            raise RuntimeError(
                f"{layer} ran, but its projections were not heard: they were exchanged or compiled while somebody "
                "listened; change the model outside of the block"
            )
        query, key, value, call = seen.pop("query"), seen.pop("key"), seen.pop("value", None), seen.get("call")
        if call is None or len(query) % len(call.rows):
            raise RuntimeError(
                f"{layer} ran with {len(query)} slices that were not announced; run the model through generate or the "
                "adapter's predict"
            )
        if parts.key is parts.value:
            half = key.shape[-1] // 2
            key, value = key[..., :half], key[..., half:]
        frames = len(query) // len(call.rows)
        grid, edited = (frames, *seen["grid"]), None
        for row, (sample, branch) in enumerate(call.rows):
            if branch != TEXT:
                continue
            own = slice(row * frames, (row + 1) * frames)
            text = [row * len(key) // len(call.rows)]  # the keys of its first slice serve all
            whole, words = merge(query[own], parts.heads), merge(key[text], parts.heads)
            new = use(AttentionCall(layer, sample, call.step, call.timestep, grid, whole, words, parts.scale))
            if edit and new is not None:
                mixed = new.flatten(2).mT.to(inputs[0].dtype) @ merge(value[text], parts.heads)  # [heads, cells, dim]
                edited = inputs[0].clone() if edited is None else edited
                edited[own] = split(mixed, inputs[0][own])
        return None if edited is None else (edited, *inputs[1:])

    with ExitStack() as hooks:
        hooks.enter_context(adapter.watching(noting(seen)))
        size = parts.grid.register_forward_pre_hook(
            lambda _, given: seen.__setitem__("grid", tuple(given[0].shape[-2:]))
        )
        hooks.callback(size.remove)
        for name, module in kept.items():
            hooks.callback(module.register_forward_hook(keep(name)).remove)
        hooks.callback(parts.out.register_forward_pre_hook(heard).remove)
        yield


def merge(projected: Float[Tensor, "slices ..."], heads: int) -> Float[Tensor, "heads cells dim"]:
    """The positions of all slices in one line, head by head."""
    line = projected.flatten(2).mT if projected.ndim == 4 else projected  # [slices, positions, heads * dim]
    return line.flatten(0, 1).unflatten(-1, (heads, -1)).transpose(0, 1)


def split(mixed: Float[Tensor, "heads cells dim"], like: Float[Tensor, "slices ..."]) -> Float[Tensor, "slices ..."]:
    """The inverse of `merge`, in the layout of `like`."""
    line = mixed.transpose(0, 1).flatten(1).unflatten(0, (len(like), -1))  # [slices, positions, heads * dim]
    return line.mT.reshape(like.shape) if like.ndim == 4 else line
