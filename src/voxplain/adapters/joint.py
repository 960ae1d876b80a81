"""Attention of transformers, heard and edited: image queries against text keys, alone or beside the image's own keys.

Where text and image share one softmax, all image keys are handed on as one key: its score at a query is the logarithm
of the sum of their exponentiated scores, so the probabilities of the text are exactly those of the joint softmax.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from voxplain.adapters.base import Use
from voxplain.adapters.hooks import noting
from voxplain.attention import CHUNK, AttentionCall
from voxplain.models.events import TEXT, Call, Event


@dataclass(frozen=True, slots=True)
class Wiring:
    """Which submodules of an attention layer put out what it multiplies, after all normalization.

    `text` and `image` are the paths of keys and values; `image` is None where queries meet text keys only. Where the
    two are the same, text and image stand in one line, text first. Outputs are `[batch, positions, heads * dim]`, or
    have their heads apart: before the positions if `heads_first`, else after them.
    """

    query: str
    text: tuple[str, str]
    image: tuple[str, str] | None = None
    heads_first: bool = True

    @property
    def together(self) -> bool:
        """Text and image in one line."""
        return self.text == self.image


@dataclass(frozen=True, slots=True)
class Seats:
    """Where things are in the run of a transformer that is under way."""

    grid: tuple[int, ...]
    """The cells of the image's positions."""
    texts: int
    """The number of text positions."""
    orders: tuple[tuple[int, ...] | None, ...]
    """For each row of the batch, which text key stands at each position of its prompt; None: as they come."""


@contextmanager
def joint_products(
    watching: Callable[[Callable[[Event], None]], Any],
    seats: Callable[[Call], Seats],
    layer: str,
    attention: Any,
    wiring: Wiring,
    refuse: Callable[[], None],
    use: Use,
    edit: bool,
) -> Iterator[None]:
    """Hear (or edit) a layer through hooks on its projections and norms; its processor and kernel are left alone.

    What comes after the norms, rotary embeddings, is recomputed from the arguments of the layer. `refuse` raises if
    the layer has become one that is not read.
    """
    seen: dict[str, Any] = {}
    sides = [wiring.text, *([wiring.image] if wiring.image else [])]
    paths = {wiring.query, *(path for side in sides for path in side[: 2 if edit else 1])}
    parts = {path: attention.get_submodule(path) for path in paths}

    def keep(path: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(path, output.detach())

    def heard(module: nn.Module, args: tuple, named: dict[str, Any], output: Any) -> Any:
        call = seen.get("call")
        same = all(attention.get_submodule(path) is part for path, part in parts.items())
        if not same or not parts.keys() <= seen.keys():
            raise RuntimeError(
                f"{layer} ran, but not all of it was heard: its projections were exchanged or compiled while somebody "
                "listened; load LoRA weights and compile outside of the block"
            )
        got = {path: _apart(seen.pop(path), attention.heads, wiring.heads_first) for path in parts}
        if call is None or len(call.rows) != len(got[wiring.query]):
            raise RuntimeError(
                f"{layer} ran with a batch of {len(got[wiring.query])} that was not announced; run the model through "
                "generate or the adapter's predict"
            )
        here = seats(call)
        line = _line(got, wiring, here.texts, named.get("image_rotary_emb"))
        mask, edited = named.get("attention_mask"), None
        if mask is not None and wiring.image:
            raise NotImplementedError(f"{layer} masks a joint attention, which is not read here")
        for row, (sample, branch) in enumerate(call.rows):
            if branch != TEXT:
                continue
            one = {name: part[row] for name, part in line.items()}  # each [heads, positions, dim]
            bias = None if mask is None else mask[row][None]  # [1, 1, tokens]
            if (order := here.orders[row]) is not None:
                one |= {name: one[name][:, list(order)] for name in one if name.startswith("text")}
            scale = one["query"].shape[-1] ** -0.5
            query, key = one["query"], one["text_key"]
            if wiring.image:
                query, key = beside(query, key, one["image_key"], scale)
            kind = "joint" if wiring.image else "cross"
            moment = sample, call.step, call.timestep, here.grid
            new = use(AttentionCall(layer, *moment, query, key, scale, bias, kind=kind))
            if edit and new is not None:
                first = output[0] if isinstance(output, tuple) else output
                edited = first.clone() if edited is None else edited
                made = _out(attention, _mixed(new, one, scale).to(first.dtype))
                edited[row, here.texts if wiring.together else 0 :] = made
        if edited is None:
            return None
        return (edited, *output[1:]) if isinstance(output, tuple) else edited

    with ExitStack() as hooks:
        hooks.enter_context(watching(noting(seen)))
        hooks.callback(attention.register_forward_pre_hook(lambda *_: refuse()).remove)
        for path, part in parts.items():
            hooks.callback(part.register_forward_hook(keep(path)).remove)
        hooks.callback(attention.register_forward_hook(heard, with_kwargs=True).remove)
        yield


def beside(
    query: Float[Tensor, "heads queries dim"],
    key: Float[Tensor, "heads tokens dim"],
    image_key: Float[Tensor, "heads cells dim"],
    scale: float,
) -> tuple[Float[Tensor, "heads queries dim+1"], Float[Tensor, "heads tokens+1 dim+1"]]:
    """Queries and keys whose softmax is the joint one, with all image keys as the last key.

    One more column carries its scores: log sum exp of the image's at the queries, and one at that key only.
    """
    size = max(1, CHUNK // (image_key.shape[0] * image_key.shape[1]))
    transposed = image_key.float().mT * scale
    with torch.autocast(query.device.type, enabled=False):
        scores = [(chunk.float() @ transposed).logsumexp(-1) for chunk in query.split(size, 1)]
    queries = torch.cat([query.float(), torch.cat(scores, 1)[..., None] / scale], -1)
    keys = torch.nn.functional.pad(key.float(), (0, 1, 0, 1))
    keys[:, -1, -1] = 1
    return queries, keys


def rotated(
    line: Float[Tensor, "batch heads positions dim"], turns: tuple[Tensor, Tensor]
) -> Float[Tensor, "batch heads positions dim"]:
    """Each pair of neighboring channels turned by the angle of its position; `turns` are (cos, sin), one a channel."""
    cos, sin = (turn.to(line.device) for turn in turns)  # [positions, dim]
    even, odd = line.float().unflatten(-1, (-1, 2)).unbind(-1)
    return (line.float() * cos + torch.stack([-odd, even], -1).flatten(-2) * sin).to(line.dtype)


def _apart(projected: Tensor, heads: int, heads_first: bool) -> Float[Tensor, "batch heads positions dim"]:
    if projected.ndim == 3:
        return projected.unflatten(-1, (heads, -1)).transpose(1, 2)
    return projected if heads_first else projected.transpose(1, 2)


def _line(got: dict[str, Tensor], wiring: Wiring, texts: int, turns: tuple[Tensor, Tensor] | None) -> dict[str, Tensor]:
    """Image queries, text keys and image keys as they are multiplied, and values if they were kept."""
    names = {"query": wiring.query, "text_key": wiring.text[0], "text_value": wiring.text[1]}
    if wiring.image:
        names |= {"image_key": wiring.image[0], "image_value": wiring.image[1]}
    line = {name: got[path] for name, path in names.items() if path in got}
    if wiring.together:
        line = {name: x[:, :, :texts] if name.startswith("text") else x[:, :, texts:] for name, x in line.items()}
    if turns is not None:
        places = {"query": slice(texts, None), "text_key": slice(texts), "image_key": slice(texts, None)}
        for name, place in places.items():
            line[name] = rotated(line[name], (turns[0][place], turns[1][place]))
    return line


def _mixed(
    new: Float[Tensor, "heads tokens *grid"], one: dict[str, Tensor], scale: float
) -> Float[Tensor, "heads cells dim"]:
    """The values under new probabilities; what the image gets is shared among its keys as before."""
    weights, values = new.flatten(2).mT, one["text_value"]  # [heads, cells, tokens]
    if "image_value" not in one:
        return weights.to(values.dtype) @ values
    own = scaled_dot_product_attention(one["query"], one["image_key"], one["image_value"], scale=scale)
    return weights[..., :-1].to(values.dtype) @ values + weights[..., -1:].to(values.dtype) * own


def _out(attention: Any, mixed: Float[Tensor, "heads cells dim"]) -> Float[Tensor, "cells channels"]:
    """Through the layer's output projection, if it has one."""
    line = mixed.transpose(0, 1).flatten(1)
    for module in getattr(attention, "to_out", ()):
        line = module(line)
    return line
