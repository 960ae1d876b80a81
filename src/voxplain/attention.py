"""Attention from queries and keys: one call of a layer, its probabilities, and running means of many calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from voxplain.geometry import Geometry
from voxplain.maps import AttentionMaps, MapKey
from voxplain.tokens import TokenizedPrompt

CHUNK = 1 << 22  # probabilities held at once where no fused kernel spares them: 16 MB of float32
FEW = 128  # keys, up to which plain products beat the fused kernel on a CPU
ROOM = 1 << 20  # scores that they hold at once, and as many probabilities: 8 MB


class SingleKeyError(ValueError):
    """A layer attends to one text key only, so its probabilities are all one and say nothing about words."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """One sample's queries and keys in one run of one layer; handed to a listener, then forgotten.

    `sample` counts within its generation, `step` from 0; `bias` is added to the scaled scores (a mask is -inf).
    """

    layer: str
    sample: int
    step: int
    timestep: float
    grid: tuple[int, ...]
    query: Float[Tensor, "heads queries dim"]
    key: Float[Tensor, "heads tokens dim"]
    scale: float
    bias: Float[Tensor, "#heads #queries tokens"] | None = None
    branch: str = "text"
    kind: str = "cross"

    def __post_init__(self) -> None:
        if prod(self.grid) != self.query.shape[1]:
            raise ValueError(f"{self.layer}: {self.query.shape[1]} queries do not fill a grid of {self.grid}")
        if self.key.shape[1] == 1:
            raise SingleKeyError(
                f"{self.layer} attends to a single text key, so every cell gives it probability 1 and attention says "
                "nothing about words; use recipe 'effect', which measures what a word changes"
            )

    def probs(self) -> Float[Tensor, "heads tokens *grid"]:
        """The probability of every token at every cell, float32; sums to one over tokens."""
        whole = attention_probs(self.query, self.key, self.scale, self.bias)
        return whole.unflatten(-1, self.grid)

    def mixed(self, values: Float[Tensor, "tokens columns"]) -> Iterator[tuple[slice, Float[Tensor, "heads cells _"]]]:
        """What attention makes of one row of values a token, in float32 and for some cells at a time.

        PyTorch's fused kernel mixes the values without holding the probabilities; where it has none, chunks bound
        them. It wants queries, keys and values of one width, so zeros fill up: the first columns are `values`'. On a
        CPU, plain products over few keys take half of its time, in chunks that share their memory.
        """
        (heads, tokens, dim), queries = self.key.shape, self.query.shape[1]
        if self.query.device.type == "cpu" and tokens <= FEW:
            yield from self._products(values)
            return
        width = max(dim, values.shape[1])
        key = _widen(self.key.float(), width)[None]
        value = _widen(values, width).expand(1, heads, tokens, width)
        size = max(1, CHUNK // (heads * tokens))
        for first in range(0, queries, size):
            cells = slice(first, first + size)
            query, bias = _widen(self.query[:, cells].float(), width)[None], self._bias(cells)
            with torch.autocast(query.device.type, enabled=False):
                mask = None if bias is None else bias[None]
                made = scaled_dot_product_attention(query, key, value, mask, scale=self.scale)[0]
            yield cells, made

    def _products(
        self, values: Float[Tensor, "tokens columns"]
    ) -> Iterator[tuple[slice, Float[Tensor, "heads cells columns"]]]:
        (heads, tokens, _), queries = self.key.shape, self.query.shape[1]
        size = min(queries, max(1, ROOM // (heads * tokens)))
        key, room = self.key.float().mT, torch.empty(2, heads, size, tokens)
        for first in range(0, queries, size):
            cells = slice(first, first + size)
            query, bias = self.query[:, cells].float(), self._bias(cells)
            scores, probs = room[:, :, : query.shape[1]]
            with torch.autocast("cpu", enabled=False):
                torch.baddbmm(scores, query, key, beta=0, alpha=self.scale, out=scores)
                if bias is not None:
                    scores += bias
                made = torch.softmax(scores, -1, out=probs) @ values
            yield cells, made

    def _bias(self, cells: slice) -> Float[Tensor, "#heads #cells tokens"] | None:
        if self.bias is None or self.bias.shape[1] == 1:
            return None if self.bias is None else self.bias.float()
        return self.bias[:, cells].float()


def attention_probs(
    query: Float[Tensor, "heads queries dim"],
    key: Float[Tensor, "heads tokens dim"],
    scale: float,
    bias: Float[Tensor, "#heads #queries tokens"] | None = None,
) -> Float[Tensor, "heads tokens queries"]:
    """softmax(Q K^T scale + bias) over tokens in float32 (Vaswani et al., 2017), one row a token."""
    with torch.autocast(query.device.type, enabled=False):
        scores = (key.float() * scale) @ query.float().mT  # [heads, tokens, queries]
    if bias is not None:
        scores = scores + bias.float().mT
    return scores.softmax(1)


class RunningMeans:
    """Mean attention of the samples of one generation; what it keeps does not depend on the number of calls.

    For each sample and each `MapKey`: float32 `[rows + 1, *grid]`, the kept rows of its prompt and then the summed
    probability of all other positions (padding). Every (layer, head, step) weighs once. By default one mean for each
    grid; `per_layer` and `per_head` (which implies `per_layer`) keep them apart, `bin_of` sorts calls into bins.
    """

    def __init__(
        self,
        prompts: Sequence[TokenizedPrompt],
        *,
        per_layer: bool = False,
        per_head: bool = False,
        bin_of: Callable[[AttentionCall], int] | None = None,
    ) -> None:
        self.prompts = tuple(prompts)
        self._per_layer, self._per_head, self._bin_of = per_layer or per_head, per_head, bin_of
        self._means: dict[tuple[int, MapKey], Tensor] = {}  # each [groups, cells, rows + 1]; a group is a head, or all
        self._counts: dict[tuple[int, MapKey], int] = {}
        self._selections: dict[int, Tensor] = {}
        self._calls: dict[tuple[int, str], int] = {}

    @torch.no_grad()
    def update(self, call: AttentionCall) -> None:
        """Take one call into the means."""
        if call.sample >= len(self.prompts):
            raise ValueError(
                f"{call.layer} ran for sample {call.sample}, but {len(self.prompts)} prompts were announced"
            )
        heads = len(call.key)
        groups = heads if self._per_head else 1
        layer = call.layer if self._per_layer else None
        key = call.sample, MapKey(call.grid, layer, None, self._bin_of(call) if self._bin_of else None)
        select = self._selection(call)
        weight = heads // groups
        count = self._counts[key] = self._counts.get(key, 0) + weight
        if key not in self._means:
            self._means[key] = select.new_zeros(groups, call.query.shape[1], select.shape[1])
        mean = self._means[key]
        for cells, mixed in call.mixed(select):
            new = mixed[..., : select.shape[1]]  # [heads, cells, rows + 1]
            mean[:, cells].lerp_(new if groups == heads else new.mean(0, keepdim=True), weight / count)
        place = call.sample, call.layer
        self._calls[place] = self._calls.get(place, 0) + 1

    def calls(self, sample: int) -> Mapping[str, int]:
        """How often each layer was recorded for a sample."""
        return {layer: count for (number, layer), count in self._calls.items() if number == sample}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors kept."""
        kept = [*self._means.values(), *self._selections.values()]
        return sum(tensor.nbytes for tensor in kept)

    def maps(self, sample: int, geometry: Geometry, provenance: Mapping[str, Any] | None = None) -> AttentionMaps:
        """The means of one sample, on the CPU; `geometry` is that of its image.

        Raises ValueError if nothing was recorded, and FloatingPointError where probabilities do not sum to one, since
        fused kernels make numbers of a query that is none.
        """
        means, counts = {}, {}
        for (number, key), mean in self._means.items():
            if number != sample:
                continue
            if not ((mean.sum(-1) - 1).abs() < 1e-3).all():
                raise FloatingPointError(
                    f"the attention of {key.layer or f'grid {key.grid}'} for sample {sample} does not sum to one: the "
                    "network computed NaN or infinity on the way; run it in float32 or bfloat16, or lower its guidance"
                )
            for head, values in enumerate(mean.mT.cpu().unflatten(-1, key.grid).numpy()):
                name = MapKey(key.grid, key.layer, head if self._per_head else None, key.bin)
                means[name], counts[name] = values, self._counts[number, key]
        if not means:
            raise ValueError(f"no attention was recorded for sample {sample}; run the model while this is listening")
        return AttentionMaps(self.prompts[sample], geometry, means, counts, provenance or {})

    def _selection(self, call: AttentionCall) -> Float[Tensor, "tokens rows"]:
        """1 where a position belongs to a row: one row for each kept position, the last for all others."""
        prompt, tokens = self.prompts[call.sample], call.key.shape[1]
        if tokens != len(prompt.ids):
            raise ValueError(
                f"{call.layer} has {tokens} text keys, but the prompt has {len(prompt.ids)} positions: {prompt.text!r}"
            )
        if call.sample not in self._selections:
            select = torch.zeros(tokens, len(prompt.kept) + 1)
            select[prompt.kept, range(len(prompt.kept))] = 1
            select[:, -1] = 1 - select.sum(1)
            self._selections[call.sample] = select.to(call.key.device)
        return self._selections[call.sample]


def _widen(values: Float[Tensor, "*rows columns"], width: int) -> Float[Tensor, "*rows width"]:
    """Zeros on the right, up to a width."""
    return pad(values, (0, width - values.shape[-1])) if values.shape[-1] < width else values
