"""Hooks that hear an attention layer by its projections, and the refusal of networks that run without hooks."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from voxplain.adapters.base import Adapter, Use
from voxplain.attention import AttentionCall
from voxplain.models.events import TEXT, Call, Event, Step


def refuse_compiled(network: nn.Module) -> None:
    """Raise ValueError if a part of the network was compiled: it runs without the hooks that would hear it."""
    compiled = [
        path
        for path, part in network.named_modules()
        if hasattr(part, "_orig_mod")
        or getattr(part, "_compiled_call_impl", None) is not None
        or isinstance(part, torch.jit.ScriptModule)
    ]
    if compiled:
        raise ValueError(
            f"{compiled[0] or type(network).__name__} was compiled and would run without the hooks that hear it; trace "
            "it uncompiled (its `_orig_mod` is the network before torch.compile)"
        )


def noting(seen: dict[str, Any]) -> Callable[[Event], None]:
    """What keeps the call that was announced last as `seen["call"]`, until its step is done."""

    def note(event: Event) -> None:
        if isinstance(event, Call):
            seen["call"] = event
        elif isinstance(event, Step):
            seen.pop("call", None)

    return note


@contextmanager
def projections(
    adapter: Adapter,
    layer: str,
    block: nn.Module,
    attention: Any,
    use: Use,
    edit: bool,
    mask: Callable[[dict[str, Any]], Tensor | None] | None = None,
) -> Iterator[None]:
    """Hear (or edit) a layer through hooks on its `to_q`, `to_k` and `to_v`; the attention kernel is left alone.

    `attention` has `num_heads`, `scale` and `out_proj`; `block` is the module around it that still sees the grid,
    as `[batch, channels, *grid]`. Keys, values and heads are laid out as in MONAI: "b h (heads dim)". `mask` reads the
    bias of the scores, `[batch, heads or 1, queries or 1, tokens]`, from the keyword arguments of the attention.
    """
    seen: dict[str, Any] = {}
    paths = {"query": "to_q", "key": "to_k", **({"value": "to_v"} if edit else {})}
    parts = {name: attention.get_submodule(path) for name, path in paths.items()}
    heads, scale = attention.num_heads, attention.scale

    def split(projected: Tensor) -> Float[Tensor, "heads cells dim"]:
        return projected.detach().reshape(len(projected), heads, -1).transpose(0, 1)

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, output)

    def heard(module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        same = all(attention.get_submodule(path) is parts[name] for name, path in paths.items())
        if not same or not {*parts, "grid"} <= seen.keys():
            raise RuntimeError(
                f"{layer} ran, but not all of it was heard: its projections were exchanged or compiled while somebody "
                "listened; load LoRA weights and compile outside of the block"
            )
        query, key, call, bias = seen.pop("query"), seen.pop("key"), seen.get("call"), seen.pop("bias", None)
        if call is None or len(call.rows) != len(query):
            raise RuntimeError(
                f"{layer} ran with a batch of {len(query)} that was not announced; run the model through generate or "
                "the adapter's predict"
            )
        edited = None
        for row, (sample, branch) in enumerate(call.rows):
            if branch != TEXT:
                continue
            moment = sample, call.step, call.level(row)
            scores = split(query[row]), split(key[row]), scale, bias if bias is None else bias[row]
            new = use(AttentionCall(layer, *moment, seen["grid"], *scores))
            if edit and new is not None:
                mixed = new.flatten(2).mT.to(output.dtype) @ split(seen["value"][row])  # [heads, cells, dim]
                edited = output.clone() if edited is None else edited
                edited[row] = attention.out_proj(mixed.transpose(0, 1).flatten(1))
        return edited

    def masked(module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        seen["bias"] = None if mask is None else mask(named)

    with ExitStack() as hooks:
        hooks.enter_context(adapter.watching(noting(seen)))
        grid = block.register_forward_pre_hook(lambda _, inputs: seen.__setitem__("grid", tuple(inputs[0].shape[2:])))
        hooks.callback(grid.remove)
        if mask is not None:
            hooks.callback(attention.register_forward_pre_hook(masked, with_kwargs=True).remove)
        for name, part in parts.items():
            hooks.callback(part.register_forward_hook(keep(name)).remove)
        hooks.callback(attention.register_forward_hook(heard).remove)
        yield
